"""The official D4RL `-v2` files (Fu et al. 2020): they are found or downloaded, checked, and read by d4rl."""

import difflib
import hashlib
import time
from pathlib import Path

import gymnasium
import numpy as np

from ttlib import files
from ttlib.environments import checkout, tasks

CHECKSUMS = checkout.ROOT / "data" / "d4rl_checksums.tsv"
FOLDER = checkout.ROOT / "data" / "d4rl"  # the project's own folder for these files, which git ignores
ATTEMPTS = 3  # of a download


def _files() -> dict[str, tuple[str, int, str]]:
    """Return the file name, the number of bytes and the sha256 of each dataset."""
    rows = [line.split("\t") for line in CHECKSUMS.read_text().splitlines()[1:]]
    return {file.removesuffix(".hdf5").replace("_", "-"): (file, int(size), sha256) for file, size, sha256 in rows}


def names() -> list[str]:
    """Return the names of the nine datasets of Table 1 (which calls `medium-replay` mixed) and the three of experts."""
    return list(_files())


def published(name: str) -> tuple[str, int, str]:
    """Return the file name, the bytes and the sha256 of a dataset of d4rl.  Raises ValueError for an unknown name."""
    known = _files()
    if name not in known:
        spelled = name.lower().replace("mixed", "medium-replay").replace("med-", "medium-")  # the paper's names
        near = difflib.get_close_matches(spelled, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown official dataset {name!r}{hint}; expected one of {names()}")
    return known[name]


def path(name: str) -> Path:
    """Return the path of a dataset's file, which may not exist, in d4rl's folder, or data/d4rl if only that has it."""
    file, _, _ = published(name)
    in_d4rl_folder = Path(tasks.d4rl().offline_env.filepath_from_url(file))
    return FOLDER / file if not in_d4rl_folder.exists() and (FOLDER / file).exists() else in_d4rl_folder


def fetch(name: str) -> Path:
    """Return the path of a dataset's file, downloaded to d4rl's own folder if necessary, and checked.

    Raises ValueError for an unknown name, or if the bytes are not the published ones: an existing file is then kept,
    and a downloaded one is deleted.  Raises ConnectionError if the file cannot be downloaded.
    """
    file = path(name)
    if file.exists():
        _check(file, name, str(file), "delete or move it, and it is downloaded again")
    else:
        print(f"{name}: downloading to {file}", flush=True)
        _download(name, file)
    return file


def _check(file: Path, name: str, what: str, way_out: str) -> None:
    """Raise ValueError, which says `what` is wrong and the `way_out`, unless a file has the published bytes."""
    _, *expected = published(name)
    with file.open("rb") as stream:
        actual = [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]
    if actual != expected:
        raise ValueError(f"{what}: [bytes, sha256] are {actual}; expected {expected} for {name}: {way_out}")


def _download(name: str, target: Path) -> None:
    """Download the file of a dataset to `target` and check it, in up to ATTEMPTS attempts."""
    import pooch  # imported here because its import is slow
    import requests

    url = tasks.d4rl().infos.DATASET_URLS[name]
    by_hand = f"download {url} by hand and put it as {target.name} into {target.parent} or {FOLDER}"

    def fill(aside: Path) -> None:
        # A file that pooch.retrieve makes can be read by its owner only, and other users may share this folder.
        pooch.HTTPDownloader(progressbar=True)(url, str(aside), None)
        _check(aside, name, f"the download from {url}", f"the file was deleted; try again, or {by_hand}")

    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            return files.write_aside(target, fill)
        except requests.RequestException as error:
            failure = error
    raise ConnectionError(
        f"{name} cannot be downloaded: {by_hand}, or use the regenerated {name.removesuffix('-v2')}, which `make data` "
        f"makes without a network. The last of {ATTEMPTS} attempts ended with: {failure}"
    ) from failure


class OfflineEnv(gymnasium.Wrapper):
    """A gymnasium environment with the attributes and methods of d4rl's OfflineEnv, which d4rl's readers accept."""

    _max_episode_steps = tasks.MAX_STEPS

    def __init__(self, env: gymnasium.Env, name: str):
        super().__init__(env)
        infos = tasks.d4rl().infos
        self.name, self.dataset_url = name, infos.DATASET_URLS[name]
        self.ref_min_score, self.ref_max_score = infos.REF_MIN_SCORE[name], infos.REF_MAX_SCORE[name]

    @property
    def dataset_filepath(self) -> str:
        """The path of the dataset's file (see `path`)."""
        return str(path(self.name))

    def step(self, action: np.ndarray):
        """Clip an action to the action space, as d4rl's NormalizedBoxEnv does, and take it."""
        return self.env.step(np.clip(action, self.action_space.low, self.action_space.high))

    def get_dataset(self, h5path: str | None = None) -> dict[str, np.ndarray]:
        """Read all arrays of a file, or of the official one, metadata included, with d4rl's own code and checks."""
        return tasks.d4rl().offline_env.OfflineEnv.get_dataset(self, fetch(self.name) if h5path is None else h5path)

    def get_normalized_score(self, score: float) -> float:
        """Return the normalised score of a return, as a fraction: 0 is d4rl's random return, 1 its expert return."""
        return tasks.d4rl().offline_env.OfflineEnv.get_normalized_score(self, score)


def make(name: str, physics: str = "d4rl") -> OfflineEnv:
    """Return the environment of an official dataset.  Raises ValueError for an unknown name."""
    published(name)
    return OfflineEnv(tasks.make(name.split("-")[0], physics=physics), name)
