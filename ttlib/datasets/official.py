"""The official D4RL `-v2` files (Fu et al. 2020), checked; and their tasks as d4rl presents them."""

import difflib
import hashlib
import time
from pathlib import Path

import gymnasium
import numpy as np

from ttlib import files
from ttlib.environments import tasks
from ttlib.pipeline import places

CHECKSUMS = places.ROOT / "data" / "d4rl_checksums.tsv"


FOLDER = places.ROOT / "data" / "d4rl"  # git ignores it


ATTEMPTS = 3


def _files() -> dict[str, tuple[str, int, str]]:
    rows = [line.split("\t") for line in CHECKSUMS.read_text().splitlines()[1:]]
    return {file.removesuffix(".hdf5").replace("_", "-"): (file, int(size), sha256) for file, size, sha256 in rows}


def names() -> list[str]:
    """Datasets whose checksums are known: the nine of Table 1 (its `mixed` is `medium-replay`) and the expert sets."""
    return list(_files())


def published(name: str) -> tuple[str, int, str]:
    """File name, bytes and sha256 of a dataset, named as d4rl does.  ValueError suggests the nearest name."""
    files = _files()
    if name not in files:
        spelled = name.lower().replace("mixed", "medium-replay").replace("med-", "medium-")  # as in the paper
        near = difflib.get_close_matches(spelled, files, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown official dataset {name!r}{hint}; expected one of {names()}")
    return files[name]


def path(name: str) -> Path:
    """Where the file of a dataset lies, unchecked: in d4rl's own folder (D4RL_DATASET_DIR where that is set when
    d4rl is imported, else ~/.d4rl/datasets), else in data/d4rl; where it lies in neither, d4rl's own place."""
    file, _, _ = published(name)
    d4rl_place = Path(tasks.d4rl().offline_env.filepath_from_url(file))
    return FOLDER / file if not d4rl_place.exists() and (FOLDER / file).exists() else d4rl_place


def fetch(name: str) -> Path:
    """The checked file of a dataset: used where it lies (see `path`), else downloaded to d4rl's own folder, where
    d4rl and other projects find it too.

    Raises ValueError for an unknown name or for bytes that are not the published ones: a file that was there
    stays, one just downloaded does not.  ConnectionError where it cannot be downloaded.
    """
    found = path(name)
    if found.exists():
        _check(found, name, str(found), "delete or move it, and it is downloaded again")
    else:
        print(f"{name}: downloading to {found}", flush=True)
        _download(name, found)
    return found


def _check(file: Path, name: str, what: str, way_out: str) -> None:
    _, *expected = published(name)
    with file.open("rb") as stream:
        found = [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]
    if found != expected:
        raise ValueError(f"{what}: [bytes, sha256] are {found}, expected {expected} for {name}: {way_out}")


def _download(name: str, target: Path) -> None:
    import pooch  # here, since it is slow to import
    import requests

    url = tasks.d4rl().infos.DATASET_URLS[name]
    by_hand = f"put {target.name} from {url} into {target.parent} or {FOLDER} by hand"

    def fill(aside: Path) -> None:
        # Not pooch.retrieve: it leaves a file that only its owner can read, and the folder may be shared.
        pooch.HTTPDownloader(progressbar=True)(url, str(aside), None)
        _check(aside, name, f"the answer of {url}", f"nothing of it was kept; try again, or {by_hand}")

    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            return files.write_aside(target, fill)
        except requests.RequestException as error:
            failure = error
    raise ConnectionError(
        f"{name} cannot be downloaded: {by_hand}, or use the regenerated {name.removesuffix('-v2')}, which needs no "
        f"network (`make data`). The last of {ATTEMPTS} attempts ended with: {failure}"
    ) from failure


class OfflineEnv(gymnasium.Wrapper):
    """A gymnasium environment that also answers as d4rl's OfflineEnv does, so that d4rl's readers
    (`sequence_dataset`, `qlearning_dataset`) take it.  reset and step are gymnasium's."""

    _max_episode_steps = tasks.MAX_STEPS

    def __init__(self, env: gymnasium.Env, name: str):
        super().__init__(env)
        infos = tasks.d4rl().infos
        self.name, self.dataset_url = name, infos.DATASET_URLS[name]
        self.ref_min_score, self.ref_max_score = infos.REF_MIN_SCORE[name], infos.REF_MAX_SCORE[name]

    @property
    def dataset_filepath(self) -> str:
        return str(path(self.name))

    def step(self, action: np.ndarray):
        """Actions are clipped to the action space first, as d4rl's NormalizedBoxEnv does."""
        return self.env.step(np.clip(action, self.action_space.low, self.action_space.high))

    def get_dataset(self, h5path: str | None = None) -> dict[str, np.ndarray]:
        """All arrays of a file, metadata included, by d4rl's own code: AssertionError where a key is missing or
        a shape is not the environment's.  Without h5path it is the official file (`fetch`)."""
        return tasks.d4rl().offline_env.OfflineEnv.get_dataset(self, fetch(self.name) if h5path is None else h5path)

    def get_normalized_score(self, score: float) -> float:
        """A return as the fraction, not percent, of the way from d4rl's random to its expert return."""
        return tasks.d4rl().offline_env.OfflineEnv.get_normalized_score(self, score)


def make(name: str, physics: str = "d4rl") -> OfflineEnv:
    """The task of an official dataset, with the physics that the file was recorded under."""
    published(name)
    return OfflineEnv(tasks.make(name.split("-")[0], physics=physics), name)
