"""Datasets and models, each found by the content that made it, else made."""

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ttlib import checkpoint, data, files, tokenizer, train
from ttlib.checkpoint import Checkpoint
from ttlib.data import Episodes, Windows
from ttlib.datasets import hdf5, official, own, regenerated
from ttlib.environments import four_rooms, policies, tasks
from ttlib.model import GPT
from ttlib.pipeline import keys, places, provenance, results
from ttlib.pipeline.experiments import DataConfig, Experiment
from ttlib.pipeline.places import mode

# Raised by hand when the meaning of a stage changes, so that tidying code retrains nothing.
DATA_STAGE, MODEL_STAGE = 1, 1


REGENERATED = (places.BUILD if os.environ.get("TTLIB_BUILD") else places.ROOT / "data") / "regenerated"


SHIPPED = places.ROOT / "data" / "checkpoints"


TRAINED = places.BUILD / "checkpoints"


ACTION_RANGE = (-1.0, 1.0)  # of every task of the book; the humanoid's is narrower still


def policy_keys(task: str, quality: str) -> list:
    """What a dataset is made by: content hashes of the snapshots, and how they are rolled out where not as usual."""
    made = regenerated.recipe(task, quality)
    usual = made == regenerated.Recipe(made.snapshots)
    steps = [f"uniform-{step}" if step == 0 else _snapshot_key(task, step) for step in made.snapshots]
    return steps if usual else [*steps, made]


def _snapshot_key(task: str, step: int) -> str:
    return keys.file_key(policies.POLICIES / task / f"step_{step:07d}.npz")


def data_key(config: DataConfig) -> str:
    """Of the recipe, never of the bytes: simulators differ in the last bits between machines."""
    if config.official:
        return keys.key("data", DATA_STAGE, official.published(config.name))
    made_by = [policy_keys(config.task, config.quality)] if config.task in tasks.TASKS else []
    recipe = {k: v for k, v in keys.plain(config).items() if k not in ("held_out", "hidden")}
    return keys.key("data", DATA_STAGE, recipe, made_by)


def dataset_file(config: DataConfig) -> Path:
    """The dataset's file, generated (an official one: downloaded) first where it is not there."""
    if config.official:
        return official.fetch(config.name)
    path = REGENERATED / f"{config.name}-{data_key(config)}.hdf5"
    if path.exists():
        return path
    if config.task == "own":
        raise FileNotFoundError(f"{path} is missing: hand the arrays to `store.keep` again")
    with results.alone(path):
        if not path.exists():
            _generate(config, path)
    return path


def _generate(config: DataConfig, path: Path) -> None:
    print(f"{config.name}: generating {config.steps:,} {'trajectories' if config.task == 'four-rooms' else 'steps'}")
    if config.task == "four-rooms":
        hdf5.write(path, four_rooms.demonstrations(config.steps, config.seed, config.excluded_pairs))
    elif config.task == "pendulum":
        hdf5.write(path, own.swing_up(config.steps, config.seed))
    else:
        regenerated.regenerate(path, config.task, config.quality, config.steps, config.seed, config.physics)


def keep(name: str, arrays: Mapping[str, np.ndarray], action_range: tuple[float, float] | None = None) -> DataConfig:
    """Check arrays of your own, keys as in `data`, and write them where `dataset` finds them, by their content.

    Raises as `data.episodes` does, and ValueError for a name that a file cannot have.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"dataset name {name!r}; expected letters, digits, '.', '_' and '-' alone")
    data.episodes(arrays, action_range)
    arrays, digest = {key: np.ascontiguousarray(arrays[key]) for key in data.KEYS}, hashlib.sha256()
    for array in arrays.values():
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array)
    config = DataConfig("own", f"{name}-{digest.hexdigest()[:16]}", len(arrays["rewards"]))
    path = REGENERATED / f"{config.name}-{data_key(config)}.hdf5"
    if not path.exists():
        hdf5.write(path, arrays)
    return config


def action_range(config: DataConfig) -> tuple[float, float] | None:
    """Where a dataset's actions must lie; None where that is not known, or was checked when they were made."""
    return None if config.task in ("own", "pendulum") else ACTION_RANGE


@functools.lru_cache(maxsize=4)
def dataset(config: DataConfig) -> Episodes:
    """The dataset in memory."""
    found = hdf5.load(dataset_file(config), action_range(config))
    return found.hide(config.hidden, config.seed) if config.hidden else found


def windows(exp: Experiment) -> tuple[Windows, Windows]:
    """Training and held-out windows; bins are fitted to the training episodes alone."""
    return windows_of(dataset_file(exp.data), exp)


def windows_of(path: Path, exp: Experiment) -> tuple[Windows, Windows]:
    """`windows` of a file, which is read a chunk at a time and need not fit into memory."""
    transition, bins = exp.model.transition, exp.bins
    with hdf5.opened(path, action_range(exp.data)) as episodes:
        if exp.data.hidden:
            episodes = episodes.hide(exp.data.hidden, exp.data.seed)
        steps = data.steps(episodes, transition, bins.gamma, bins.include_current, bins.terminal_reward)
        parts = episodes.parts(exp.data.held_out, exp.data.seed)
        columns = steps.columns(episodes.rows(parts[0]))
        fitted = tokenizer.fit_columns(columns, transition, bins.V, bins.kind, bins.V_rest)
        options = {"action_weight": bins.action_weight, "goal": exp.goal, "markov": exp.markov}
        return tuple(data.part_windows(episodes, parts, steps, fitted, exp.model.T, **options))


def model_key(exp: Experiment) -> str:
    later = [exp.data.hidden, exp.markov] if exp.data.hidden or exp.markov else []
    return keys.key(
        "model", MODEL_STAGE, data_key(exp.data), exp.data.held_out, exp.bins, exp.model, exp.train, exp.goal, *later
    )


def checkpoint_folder(exp: Experiment) -> Path | None:
    """Where a model of this key lies: shipped (but not in mode scratch), or trained here; None if nowhere."""
    shipped = SHIPPED / f"{exp.label}-{exp.size}"
    places = [TRAINED / f"{exp.label}-{exp.size}-{model_key(exp)}"]
    if mode() != "scratch":
        places.insert(0, shipped)
    for folder in places:
        if (folder / "config.json").exists() and checkpoint.about(folder)["key"] == model_key(exp):
            return folder
    return None


def load_or_train(exp: Experiment) -> Checkpoint:
    """The experiment's model: shipped or trained before, else trained now, resumable, with a progress bar."""
    folder = checkpoint_folder(exp)
    if folder is not None:
        loaded = checkpoint.load(folder, device())
        print(
            f"{exp.label}: model loaded from {places.shown(folder)}, "
            f"{loaded.about['held_out_all']:.3f} held-out nats a token"
        )
        return loaded
    if places.mode() == "book":
        raise FileNotFoundError(f"no checkpoint of {exp.label} at size {exp.size}: run `make all` first")
    folder = TRAINED / f"{exp.label}-{exp.size}-{model_key(exp)}"
    train_model(exp, folder)
    return checkpoint.load(folder, device())


def train_model(exp: Experiment, folder: Path) -> None:
    """Train, round the weights to bf16, write the checkpoint with 64 held-out windows."""
    training, held_out = windows(exp)
    tokens = exp.train.updates * exp.train.batch * training.length
    print(f"{exp.label}: training on {tokens / 1e6:.1f} million tokens", flush=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(exp.train.seed)
        model = GPT(exp.model).to(device())
    curve = train.fit(model, training, exp.train, folder, held_out)
    checkpoint.round_weights(model)
    start = torch.from_numpy(np.random.default_rng(0).choice(len(held_out), 64, replace=len(held_out) < 64))
    about = {
        "key": model_key(exp),
        "experiment": keys.plain(exp),
        "tokens": tokens,
        "curve": curve,
        "held_out_all": train.evaluate(model, held_out),
        "held_out_by_dimension": [nats for nats, _ in train.by_dimension(model, held_out)],
        "seconds": round(sum(row["seconds"] for row in curve), 1),
    } | provenance.here()
    ids, weight = held_out.batch(start)
    checkpoint.save(folder, model.cpu(), held_out.tokenizer, about, ids, weight)
    (folder / "resume.safetensors").unlink(missing_ok=True)


def ship(exp: Experiment) -> Path:
    """Copy the model trained here to data/checkpoints, where git keeps it."""
    name = f"{exp.label}-{exp.size}"
    return shipped(TRAINED / f"{name}-{model_key(exp)}", SHIPPED / name)


def shipped(source: Path, target: Path) -> Path:
    """A folder under build/checkpoints copied to `target`, which it replaces, its weights packed."""
    if not (source / "config.json").exists():
        raise FileNotFoundError(f"{source} is missing: `make scratch` trains it")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("resume*", "model.safetensors*"))
    (target / files.PACKED).write_bytes(files.pack(files.weights(source)))
    return target


def weights_key(exp: Experiment) -> str:
    """Of the weights themselves: what results are computed from."""
    folder = checkpoint_folder(exp)
    return hashlib.sha256(files.weights(folder)).hexdigest()[:16] if folder else model_key(exp)


def device() -> torch.device:
    """Where models run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
