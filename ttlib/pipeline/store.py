"""Datasets, models and tables, each found by the content that made it, else made."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ttlib import checkpoint, data, tokenizer, train
from ttlib.baselines import cloning, ensemble, kept
from ttlib.baselines.cloning import MLP, MLPConfig
from ttlib.checkpoint import Checkpoint
from ttlib.data import MASKED, Episodes, Windows
from ttlib.datasets import arrays, hdf5, official, own, regenerated
from ttlib.environments import four_rooms, tasks
from ttlib.model import GPT, loss
from ttlib.pipeline import cpu_training, keys, locks, packing, places, provenance, results
from ttlib.pipeline.experiments import DataConfig, Experiment, Fit
from ttlib.pipeline.resume import Resume
from ttlib.tokenizer import Tokenizer

# Raised by hand when the meaning of a stage changes, so that tidying code retrains nothing.
DATA_STAGE, MODEL_STAGE, ENSEMBLE_STAGE, MLP_STAGE = 1, 1, 2, 1
REGENERATED = (places.BUILD if os.environ.get("TTLIB_BUILD") else places.ROOT / "data") / "regenerated"
SHIPPED = places.ROOT / "data" / "checkpoints"
TRAINED = places.BUILD / "checkpoints"
FORWARD = 22  # the dimension of the humanoid's state that is its forward speed, in m/s
ACTION_RANGE = (-1.0, 1.0)  # of every robot; the humanoid's is narrower still


def device() -> torch.device:
    """Return where models run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# -- datasets ----------------------------------------------------------------------------------------------


def policy_keys(task: str, quality: str) -> list:
    """Return what makes a dataset: hashes of the policies, and the recipe where it is not the usual one."""
    recipe = regenerated.recipe(task, quality)
    made_by = [
        f"uniform-{step}" if step == 0 else keys.file_key(regenerated.folder(task, recipe) / f"step_{step:07d}.npz")
        for step in recipe.snapshots
    ]
    usual = recipe == regenerated.Recipe(recipe.snapshots)
    return made_by if usual else [*made_by, recipe]


def data_key(config: DataConfig) -> str:
    """Return the key of a dataset's recipe, never of its bytes: simulators differ in the last bits."""
    if config.official:
        return keys.key("data", DATA_STAGE, official.published(config.name))
    made_by = [policy_keys(config.task, config.quality)] if config.task in tasks.TASKS else []
    if config.starts_from:
        made_by += [data_key(config.starts_from), regenerated.MID_WALK, regenerated.MIN_SPEED]
    recipe = {k: v for k, v in keys.plain(config).items() if k not in ("held_out", "mask_probability")}
    return keys.key("data", DATA_STAGE, recipe, made_by)


def dataset_file(config: DataConfig) -> Path:
    """Return the dataset's file; it is generated, or downloaded if it is official, where it is missing."""
    if config.official:
        return official.fetch(config.name)
    path = REGENERATED / f"{config.name}-{data_key(config)}.hdf5"
    if path.exists():
        return path
    if config.task == "own":
        raise FileNotFoundError(f"{path} is missing: hand the arrays to `store.keep` again")
    with locks.alone(path):
        if not path.exists():
            _generate(config, path)
    return path


def _generate(config: DataConfig, path: Path) -> None:
    """Make a dataset that is not official."""
    unit = "trajectories" if config.task == "four-rooms" else "steps"
    results.say(f"{config.name}: generating {config.steps:,} {unit}")
    if config.task == "four-rooms":
        hdf5.write(path, four_rooms.demonstrations(config.steps, config.seed, config.excluded_pairs))
    elif config.task == "pendulum":
        hdf5.write(path, own.swing_up(config.steps, config.seed))
    else:
        starts = _simulator_starts(config) if config.starts_from else ()
        regenerated.regenerate(path, config.task, config.quality, config.steps, config.seed, config.physics, starts)


def starts(config: DataConfig) -> tuple[Episodes, np.ndarray, np.ndarray]:
    """Return the dataset in whose held-out episodes those of another begin, and at which of its rows and ages.

    Rows and ages, in steps since the episode began, are (starts,).  Raises as `regenerated.draw_starts` does.
    """
    walk = config.starts_from
    episodes = dataset(walk)
    age = np.arange(len(episodes.states)) - np.repeat(episodes.starts[:-1], episodes.lengths)
    held_out = episodes.rows(episodes.split(walk.held_out, walk.seed)[1])
    speed = np.where(held_out, episodes.states[:, FORWARD], 0.0)
    rows = regenerated.draw_starts(age, speed, regenerated.recipe(config.task, config.quality).starts)
    return episodes, rows, age[rows]


def _simulator_starts(config: DataConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the simulator's state (qpos, qvel) of each of the `starts` of a dataset."""
    (_, rows, _), file = starts(config), hdf5.read(dataset_file(config.starts_from))
    return [(file["infos/qpos"][row], file["infos/qvel"][row]) for row in rows]


def keep(name: str, given: Mapping[str, np.ndarray], action_range: tuple[float, float] | None = None) -> DataConfig:
    """Check arrays of your own, with D4RL's names, and write them where `dataset` finds them by their content.

    Raises ValueError as `arrays.episodes` does, and for a name that a file cannot have.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"dataset name {name!r}; expected letters, digits, '.', '_' and '-' alone")
    taken, faults = arrays.checked(given, action_range)
    arrays.refuse(faults)
    given, digest = {key: np.ascontiguousarray(taken[key]) for key in arrays.KEYS}, hashlib.sha256()
    for array in given.values():
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array)
    config = DataConfig("own", f"{name}-{digest.hexdigest()[:16]}", len(given["rewards"]))
    path = REGENERATED / f"{config.name}-{data_key(config)}.hdf5"
    if not path.exists():
        hdf5.write(path, given)
    return config


def action_range(config: DataConfig) -> tuple[float, float] | None:
    """Return where a dataset's actions must lie; None where that is not known."""
    return None if config.task in ("own", "pendulum") else ACTION_RANGE


@functools.lru_cache(maxsize=4)
def dataset(config: DataConfig) -> Episodes:
    """Return the dataset in memory."""
    return _masked(hdf5.load(dataset_file(config), action_range(config)), config)


def _masked(episodes: Episodes, config: DataConfig) -> Episodes:
    """Return episodes with the masks of a partially observed dataset."""
    return arrays.mask_states(episodes, config.mask_probability, config.seed) if config.mask_probability else episodes


def _split(episodes: Episodes, config: DataConfig) -> tuple[Episodes, tuple[np.ndarray, np.ndarray]]:
    """Return episodes, and indices of those to train on and of those held out; a single one is cut in two."""
    if len(episodes) == 1:
        results.say(f"{config.name} is one episode: its last steps, {config.held_out:.0%} of them, are held out")
    return arrays.split(episodes, config.held_out, config.seed)


def split(config: DataConfig) -> tuple[Episodes, Episodes]:
    """Return the training and the held-out episodes of a dataset."""
    episodes, parts = _split(dataset(config), config)
    return tuple(episodes.select(part) for part in parts)


def windows(exp: Experiment, path: Path | None = None) -> tuple[Windows, Windows]:
    """Return training and held-out windows of a file, by default the experiment's dataset.

    Bins are fitted to the training episodes alone.  The file is read in chunks and need not fit into memory.
    """
    transition, bins = exp.model.transition, exp.bins
    with hdf5.opened(path or dataset_file(exp.data), action_range(exp.data)) as episodes:
        episodes, parts = _split(_masked(episodes, exp.data), exp.data)
        steps = data.steps(episodes, transition, bins.gamma, bins.reward_in_R, bins.terminal_reward)
        training = episodes.rows(parts[0])
        fitted = tokenizer.fit(steps.columns(training), transition, bins.V, bins.kind)
        if bins.V_rest:
            fitted = coarser(fitted, tokenizer.fit(steps.columns(training), transition, bins.V_rest, bins.kind))
        options = {"action_weight": bins.action_weight, "goal": exp.goal, "markov": exp.markov}
        return tuple(data.windows(episodes, steps, fitted, exp.model.T, parts, **options))


def coarser(fine: Tokenizer, coarse: Tokenizer) -> Tokenizer:
    """Return `fine` quantile bins for states with the fewer `coarse` ones for actions and rewards."""
    if fine.kind != "quantile" or coarse.V > fine.V:
        raise ValueError(f"V_rest = {coarse.V} of {fine.V} {fine.kind} bins; expected at most V, of quantile bins")
    edges, centres, N = fine.edges.clone(), fine.centres.clone(), fine.transition.N
    edges[N:], centres[N:] = torch.inf, coarse.centres[N:, -1:]
    edges[N:, : coarse.V + 1], centres[N:, : coarse.V] = coarse.edges[N:], coarse.centres[N:]
    return Tokenizer(fine.transition, fine.V, fine.kind, edges, centres)


# -- models ------------------------------------------------------------------------------------------------


def model_key(exp: Experiment) -> str:
    """Return the key of what makes a model: data, bins, sizes, training."""
    of = {"data": data_key(exp.data), "held_out": exp.data.held_out, "mask": exp.data.mask_probability}
    return keys.key("model", MODEL_STAGE, of, exp.bins, exp.model, exp.train, exp.goal, exp.markov)


def fit_key(fit: Fit) -> str:
    """Return the key of what makes a baseline."""
    stage = ("mlp", MLP_STAGE) if isinstance(fit.config, MLPConfig) else ("ensemble", ENSEMBLE_STAGE)
    of = {"data": data_key(fit.data), "held_out": fit.data.held_out, "mask": fit.data.mask_probability}
    return keys.key(*stage, of, fit.config)


def name_and_key(item: Experiment | Fit) -> tuple[str, str]:
    """Return the name of a model's folder and its key."""
    key = fit_key(item) if isinstance(item, Fit) else model_key(item)
    return f"{item.label}-{item.size}", key


def trained_folder(item: Experiment | Fit) -> Path:
    """Return where a model trained here lies, or will lie."""
    return TRAINED / "-".join(name_and_key(item))


def checkpoint_folder(item: Experiment | Fit) -> Path | None:
    """Return where the model lies: shipped (but not in mode scratch) or trained here; None if it is nowhere."""
    name, key = name_and_key(item)
    folders = sorted(TRAINED.glob(f"*-{key}"))  # whatever the name under which it was trained
    if places.mode() != "scratch":
        folders.insert(0, SHIPPED / name)
    for folder in folders:
        if (folder / "config.json").exists() and about(folder).get("key") == key:
            return folder
    return None


def _config(folder: Path) -> dict:
    """Return what config.json of a checkpoint or a baseline holds.  Raises ValueError if it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
        config["about"].keys()
        return config
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} is not a readable checkpoint ({error!r}): delete it and run `make all`") from error


def about(folder: Path) -> dict:
    """Return the notes of a checkpoint or a baseline.  Raises ValueError if they cannot be read."""
    return _config(folder)["about"]


def _compare(folder: Path, section: str, expected) -> None:
    """Raise ValueError unless a section of config.json has these settings: sizes are believed to no file.

    expected: a config, of which config.json may leave out what is at its default.
    """
    given, settings = _config(folder).get(section), json.loads(json.dumps(dataclasses.asdict(expected)))
    given = {f.name: f.default for f in dataclasses.fields(expected)} | (given if isinstance(given, dict) else {})
    for name in given:
        if given[name] != settings.get(name):
            raise ValueError(
                f"{folder} is not the model of its experiment: config.json says {section}.{name} = {given[name]!r}; "
                f"expected {settings.get(name)!r}: delete it and run `make all`"
            )


def _found_or_made(item: Experiment | Fit, make: Callable[[Path], None]) -> Path:
    """Return the folder of a model, which is trained where it is missing.  Raises FileNotFoundError in mode book."""
    if (folder := checkpoint_folder(item)) is not None:
        return folder
    if places.mode() == "book":
        raise FileNotFoundError(f"no checkpoint of {item.label} at size {item.size}: run `make all` first")
    folder = trained_folder(item)
    with locks.alone(folder):
        if (found := checkpoint_folder(item)) is None:  # else another command made it meanwhile
            make(folder)
    return found or folder


def _most_bytes(exp: Experiment) -> int:
    """Return how many bytes an experiment's weights, bins and held-out windows take at most."""
    with torch.device("meta"):
        weights = list(GPT(exp.model).parameters())
    bins, windows = 16 * exp.model.transition.D * (exp.bins.V + 1), 64 * 4 * exp.model.max_tokens
    return 2 * sum(p.numel() for p in weights) + bins + windows + 300 * len(weights) + 10_000


def load_or_train(exp: Experiment) -> Checkpoint:
    """Return the experiment's model: shipped or trained before, else trained now, with a progress bar.

    A killed training continues where it was.  Raises FileNotFoundError where it is missing in mode book.
    """
    folder = _found_or_made(exp, lambda folder: train_model(exp, folder))
    _compare(folder, "model", exp.model)
    loaded = checkpoint.load(folder, device(), packing.weights(folder, _most_bytes(exp)))
    tokens = loaded.tokenizer
    ascending = (tokens.edges.diff() > 0) | tokens.edges[:, 1:].isposinf()
    if (tokens.kind, tokens.V) != (exp.bins.kind, exp.bins.V):
        raise ValueError(
            f"{folder} has {tokens.V} {tokens.kind} bins; expected {exp.bins}: delete it and run `make all`"
        )
    if not (ascending.all() and tokens.edges[:, :2].isfinite().all() and tokens.centres.isfinite().all()):
        raise ValueError(
            f"{folder}: edges or centres of bins are not finite and ascending: delete it and run `make all`"
        )
    results.say(f"{exp.label}: {places.shown(folder)}, {loaded.about['held_out_all']:.3f} held-out nats per token")
    return loaded


def train_model(exp: Experiment, folder: Path) -> None:
    """Train, round the weights to bf16, and write the checkpoint with 64 held-out windows."""
    training, held_out = windows(exp)
    tokens = exp.train.updates * exp.train.batch * training.length
    results.say(f"{exp.label}: training on {tokens / 1e6:.1f} million tokens")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(exp.train.seed)
        model = GPT(exp.model).to(device())
    saved, attend = Resume(folder), cpu_training.faster(model)
    curve = train.fit(model, training, exp.train, held_out, saved, attend=attend)
    checkpoint.round_weights(model)
    start = np.random.default_rng(0).choice(len(held_out), 64, replace=len(held_out) < 64)
    ids, weight = held_out.batch(torch.from_numpy(start))
    notes = {
        "key": model_key(exp),
        "experiment": keys.plain(exp),
        "tokens": tokens,
        "curve": curve,
        "held_out_all": train.evaluate(model, held_out),
        # JSON has no NaN: a dimension that is never predicted, as in episodes of one step, has none.
        "held_out_by_dimension": [nats if n else None for nats, n in train.by_dimension(model, held_out)],
        "seconds": round(sum(row["seconds"] for row in curve), 1),
    } | provenance.here()
    save(folder, model.cpu(), held_out.tokenizer, notes, ids, weight)
    saved.path.unlink(missing_ok=True)


@torch.inference_mode()
def save(folder: Path, model: GPT, tokens: Tokenizer, notes: dict, ids: torch.Tensor, weight: torch.Tensor) -> None:
    """Write a checkpoint with held-out ids and loss weights, (B, L) both, and the loss on them."""
    notes = {**notes, "held_out_nats": loss(model.eval(), ids, weight).item()}
    masked = ids >= tokens.V * tokens.transition.D
    bins = (ids % tokens.V).masked_fill(masked, MASKED).to(torch.uint8)
    extras = {"held_out.bins": bins, "held_out.weight": weight.bfloat16()}
    checkpoint.save(folder, model, tokens, notes, extras)


def held_out(loaded: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the held-out ids and loss weights, (B, L) both, that lie beside a model."""
    bins, tokens, config = loaded.extras["held_out.bins"].long(), loaded.tokenizer.to("cpu"), loaded.model.config
    dims = [tokens.transition.dimension(i, config.prefix) for i in range(bins.shape[1])]
    ids = bins + tokens.offset[dims]
    if config.masked:
        ids = torch.where(bins == MASKED, tokens.mask_ids[dims], ids)
    return ids, loaded.extras["held_out.weight"].float()


def load_or_fit(fit: Fit) -> tuple[ensemble.Ensemble | MLP, dict]:
    """Return a baseline, as `load_or_train` does a model, and its notes: held-out errors, for ensembles in detail."""
    folder = _found_or_made(fit, lambda folder: make_fit(fit, folder))
    if not isinstance(fit.config, MLPConfig):
        _compare(folder, "ensemble", fit.config)
    return kept.load(folder, packing.weights(folder), device())


def make_fit(fit: Fit, folder: Path) -> None:
    """Fit a baseline, round the weights to fp16, and write it."""
    results.say(f"{fit.label}: fitting")
    training, held = split(fit.data)
    if isinstance(fit.config, MLPConfig):
        made, curve = cloning.fit(training, held, fit.config)
        scores = min(curve)
    else:
        training, held = map(ensemble.transitions, (training, held))
        made, curve = ensemble.fit(training, held, fit.config, device())
        checkpoint.round_weights(made, torch.float16)
        scores = {name: np.asarray(value).tolist() for name, value in ensemble.diagnose(made, held).items()}
        scores["linear_log_likelihood"] = ensemble.linear_log_likelihood(made, training, held)
    kept.save(folder, made, {"key": fit_key(fit), "curve": curve, "held_out": scores} | provenance.here())


def ship(item: Experiment | Fit) -> Path:
    """Copy a model trained here to data/checkpoints, where git keeps it, with packed weights."""
    source, target = trained_folder(item), SHIPPED / name_and_key(item)[0]
    if not (source / "config.json").exists():
        raise FileNotFoundError(f"{source} is missing: `make scratch` trains it")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("resume*", "model.safetensors*"))
    (target / packing.PACKED).write_bytes(packing.pack(packing.weights(source)))
    return target


# -- results -----------------------------------------------------------------------------------------------


def weights_key(item: Experiment | Fit) -> str:
    """Return the hash of a model's weights, from which results are computed; it is trained first where missing."""
    folder = checkpoint_folder(item)
    if folder is None:
        (load_or_fit if isinstance(item, Fit) else load_or_train)(item)
        folder = checkpoint_folder(item)
    return hashlib.sha256(packing.weights(folder)).hexdigest()[:16]


def inputs(of: Iterable) -> dict[str, str]:
    """Return the keys of what a result is computed from: weights of models, recipes of datasets.

    of: experiments, baselines, datasets, or things with a method `inputs` that answers for them.
    """
    found = {}
    for item in of:
        if isinstance(item, DataConfig):
            found[item.name] = data_key(item)
        elif isinstance(item, (Experiment, Fit)):
            found[item.label] = weights_key(item)
        else:
            found |= item.inputs()
    return found


def table(
    name: str,
    size: str,
    make: Callable[[], pd.DataFrame],
    of: Iterable,
    config: dict | None = None,
    stage: int = 1,
    public: bool = True,
    record: bool = False,
) -> pd.DataFrame:
    """Return a table of results: read where its key is known, else made; see `results.table`.

    of: what it is computed from, as in `inputs`; config: what else decides the numbers; stage: the number of the
    code that computes it, raised by hand when its meaning changes; record: whether it costs more than a minute.
    """
    of = list(of)
    return results.table(name, size, make, {"of": of, **(config or {})}, inputs(of), stage, public, record)
