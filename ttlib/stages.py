"""From recipe to rollouts: datasets, models and tables of results, each found by the content that made it."""

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch

from ttlib import (
    cloning,
    control,
    data,
    envs,
    experiments,
    fourrooms,
    official,
    own,
    results,
    shooting,
    tokenizer,
    train,
)
from ttlib.data import Episodes, Windows
from ttlib.experiments import HELD_OUT_PAIRS, DataConfig, Experiment
from ttlib.model import GPT
from ttlib.train import Checkpoint

# Raised by hand when the meaning of a stage changes, so that tidying code retrains nothing.
DATA_STAGE, MODEL_STAGE = 1, 1
REGENERATED = (results.BUILD if os.environ.get("TTLIB_BUILD") else results.ROOT / "data") / "regenerated"
SHIPPED = results.ROOT / "data" / "checkpoints"
TRAINED = results.BUILD / "checkpoints"
ACTION_RANGE = (-1.0, 1.0)  # of every task of the book; the humanoid's is narrower still


def data_key(config: DataConfig) -> str:
    """Of the recipe, never of the bytes: simulators differ in the last bits between machines."""
    if config.official:
        return results.key("data", DATA_STAGE, official.published(config.name))
    made_by = [envs.policy_keys(config.task, config.quality)] if config.task in envs.TASKS else []
    recipe = {k: v for k, v in results.plain(config).items() if k not in ("held_out", "hidden")}
    return results.key("data", DATA_STAGE, recipe, made_by)


def dataset_file(config: DataConfig) -> Path:
    """The dataset's file, generated (an official one: downloaded) first where it is not there."""
    if config.official:
        return official.fetch(config.name)
    path = REGENERATED / f"{config.name}-{data_key(config)}.hdf5"
    if path.exists():
        return path
    if config.task == "own":
        raise FileNotFoundError(f"{path} is missing: hand the arrays to `stages.keep` again")
    with results.alone(path):
        if not path.exists():
            _generate(config, path)
    return path


def _generate(config: DataConfig, path: Path) -> None:
    print(f"{config.name}: generating {config.steps:,} {'trajectories' if config.task == 'four-rooms' else 'steps'}")
    if config.task == "four-rooms":
        data.write(path, fourrooms.demonstrations(config.steps, config.seed, config.excluded_pairs))
    elif config.task == "pendulum":
        data.write(path, own.swing_up(config.steps, config.seed))
    else:
        envs.regenerate(path, config.task, config.quality, config.steps, config.seed, config.physics)


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
        data.write(path, arrays)
    return config


def action_range(config: DataConfig) -> tuple[float, float] | None:
    """Where a dataset's actions must lie; None where that is not known, or was checked when they were made."""
    return None if config.task in ("own", "pendulum") else ACTION_RANGE


@functools.lru_cache(maxsize=4)
def dataset(config: DataConfig) -> Episodes:
    """The dataset in memory."""
    found = data.load(dataset_file(config), action_range(config))
    return found.hide(config.hidden, config.seed) if config.hidden else found


def windows(exp: Experiment) -> tuple[Windows, Windows]:
    """Training and held-out windows; bins are fitted to the training episodes alone."""
    return windows_of(dataset_file(exp.data), exp)


def windows_of(path: Path, exp: Experiment) -> tuple[Windows, Windows]:
    """`windows` of a file, which is read a chunk at a time and need not fit into memory."""
    transition, bins = exp.model.transition, exp.bins
    with data.opened(path, action_range(exp.data)) as episodes:
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
    return results.key(
        "model", MODEL_STAGE, data_key(exp.data), exp.data.held_out, exp.bins, exp.model, exp.train, exp.goal, *later
    )


def checkpoint_folder(exp: Experiment) -> Path | None:
    """Where a model of this key lies: shipped (but not in mode scratch), or trained here; None if nowhere."""
    shipped = SHIPPED / f"{exp.label}-{exp.size}"
    places = [TRAINED / f"{exp.label}-{exp.size}-{model_key(exp)}"]
    if results.mode() != "scratch":
        places.insert(0, shipped)
    for folder in places:
        if (folder / "config.json").exists() and train.about(folder)["key"] == model_key(exp):
            return folder
    return None


def load_or_train(exp: Experiment) -> Checkpoint:
    """The experiment's model: shipped or trained before, else trained now, resumable, with a progress bar."""
    folder = checkpoint_folder(exp)
    if folder is not None:
        loaded = train.load(folder, device())
        print(
            f"{exp.label}: model loaded from {results.shown(folder)}, "
            f"{loaded.about['held_out_all']:.3f} held-out nats a token"
        )
        return loaded
    if results.mode() == "book":
        raise FileNotFoundError(f"no checkpoint of {exp.label} at size {exp.size}: run `make all` first")
    folder = TRAINED / f"{exp.label}-{exp.size}-{model_key(exp)}"
    train_model(exp, folder)
    return train.load(folder, device())


def train_model(exp: Experiment, folder: Path) -> None:
    """Train, round the weights to bf16, write the checkpoint with 64 held-out windows."""
    training, held_out = windows(exp)
    tokens = exp.train.updates * exp.train.batch * training.length
    print(f"{exp.label}: training on {tokens / 1e6:.1f} million tokens", flush=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(exp.train.seed)
        model = GPT(exp.model).to(device())
    curve = train.fit(model, training, exp.train, folder, held_out)
    train.round_weights(model)
    start = torch.from_numpy(np.random.default_rng(0).choice(len(held_out), 64, replace=len(held_out) < 64))
    about = {
        "key": model_key(exp),
        "experiment": results.plain(exp),
        "tokens": tokens,
        "curve": curve,
        "held_out_all": train.evaluate(model, held_out),
        "held_out_by_dimension": [nats for nats, _ in train.by_dimension(model, held_out)],
        "seconds": round(sum(row["seconds"] for row in curve), 1),
    } | results.provenance()
    ids, weight = held_out.batch(start)
    train.save(folder, model.cpu(), held_out.tokenizer, about, ids, weight)
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
    (target / train.PACKED).write_bytes(train.pack(train.weights(source)))
    return target


def weights_key(exp: Experiment) -> str:
    """Of the weights themselves: what results are computed from."""
    folder = checkpoint_folder(exp)
    return hashlib.sha256(train.weights(folder)).hexdigest()[:16] if folder else model_key(exp)


def device() -> torch.device:
    """Where models run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def four_rooms_pairs(split: str, n: int, seed: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """n unseen starts and goals, (n, 2) each: `seen` over all free space, `held_out` of the pairs never shown."""
    rng = np.random.default_rng([seed, 7])
    every = [(a, b) for a in range(4) for b in range(4)]
    excluded = [pair for pair in every if pair not in HELD_OUT_PAIRS] if split == "held_out" else ()
    return fourrooms.sample_pairs(n, rng, excluded)


def four_rooms_agent(model: str, exp: Experiment, goals: np.ndarray):
    """An agent of `four_rooms_success.csv` for goals (n, 2)."""
    if model == "straight":
        return control.FunctionAgent(lambda s, rows: fourrooms.straight(s, goals[rows]), len(goals))
    if model == "goal_mlp":
        policy = goal_mlp(exp)
        return control.FunctionAgent(lambda s, rows: policy.act(np.hstack([s, goals[rows]])), len(goals))
    loaded = load_or_train(exp)
    choose = control.by_likelihood(exp.horizon, exp.width)
    return control.TransformerAgent(
        loaded.model, loaded.tokenizer, choose, exp.past, exp.horizon, goals if exp.goal else None
    )


def goal_mlp(exp: Experiment) -> cloning.MLP:
    """The goal-conditioned MLP: state and the episode's last state -> action."""
    inputs, actions = [], []
    for part in dataset(exp.data).split(exp.data.held_out, exp.data.seed):
        goals = np.repeat(part.states[part.starts[1:] - 1], part.lengths, axis=0)
        inputs.append(np.hstack([part.states, goals]))
        actions.append(part.actions)
    updates = 200 if exp.size == "smoke" else 20_000
    return cloning.fit(inputs[0], actions[0], inputs[1], actions[1], seed=0, updates=updates)[0]


def reach(agent, starts: np.ndarray, goals: np.ndarray, progress=None) -> list[control.Rollout]:
    """Rollouts from starts to goals, (n, 2) each, all in one batch."""
    options = [{"start": s, "goal": g} for s, g in zip(starts, goals, strict=True)]
    return control.rollouts(envs.four_rooms, agent, list(range(len(goals))), options, progress)


def success_table(runs: list[control.Rollout], starts: np.ndarray, goals: np.ndarray, **columns) -> pd.DataFrame:
    """Rows of `four_rooms_success.csv`: success with a Wilson 95% interval and path length over the shortest
    path to where the path ended (mean over successes), for all pairs (rooms_crossed = -1) and per rooms crossed."""
    success = np.array([run.terminal for run in runs])
    length = np.array([np.linalg.norm(np.diff(run.states, axis=0), axis=1).sum() for run in runs])
    ends = np.array([run.states[-1] for run in runs], np.float32)
    ratio = length / np.maximum(fourrooms.shortest_path(starts, ends), 1e-9)
    crossed, rows = fourrooms.rooms_crossed(starts, goals), []
    for rooms in (-1, *np.unique(crossed)):
        chosen = crossed == rooms if rooms >= 0 else np.ones(len(runs), bool)
        low, high = results.wilson(int(success[chosen].sum()), int(chosen.sum()))
        rows.append(
            {
                **columns,
                "rooms_crossed": int(rooms),
                "n": int(chosen.sum()),
                "success": success[chosen].mean(),
                "low": low,
                "high": high,
                "path_ratio": ratio[chosen & success].mean() if (chosen & success).any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


BY_TRANSFORMER = ("tto", "sampling", "imitation")
METHODS = (*BY_TRANSFORMER, "bc", "bc10", "behaviour", "random_shooting")


def act(
    exp: Experiment, method: str, seeds: tuple[int, ...], model_seed: int = 0, progress=None, make=None
) -> list[control.Rollout]:
    """Rollouts of a task by a method of `table1_rollouts.csv`, all in one batch: tto plans for reward, sampling
    draws the model's actions, imitation searches for likelihood, bc is the cloned MLP, bc10 that of the tenth of
    episodes of greatest return, behaviour the data's own policies in turn, random_shooting plans through a Gaussian
    ensemble.  make() is the environment where the data are not of one of our tasks."""
    make = make or (lambda: simulator(exp.data, exp.size))
    if method in BY_TRANSFORMER:
        agent = transformer_agent(exp, method, seeds[0])
    elif method in ("bc", "bc10"):
        policy = cloned(exp, model_seed, 1.0 if method == "bc" else 0.1)
        agent = control.FunctionAgent(lambda s, rows: policy.act(s), len(seeds))
    elif method == "behaviour":
        agent = control.FunctionAgent(behaviour(exp, seeds), len(seeds))
    elif method == "random_shooting":
        space = make().action_space
        agent = shooting.RandomShooting(*shooter(exp), exp.plan, space.low, space.high, seeds[0])
    else:
        raise ValueError(f"unknown method {method!r}; expected one of {METHODS}")
    return control.rollouts(make, agent, list(seeds), progress=progress)


def transformer_agent(exp: Experiment, method: str, seed: int) -> control.TransformerAgent:
    """The experiment's model acting by a method of BY_TRANSFORMER."""
    loaded, rng = load_or_train(exp), torch.Generator(device()).manual_seed(seed)
    if method == "tto":
        choose, horizon = control.by_reward(exp.plan, rng), exp.plan.horizon
    elif method == "sampling":
        choose, horizon = control.by_sampling(rng), 1
    else:
        choose, horizon = control.by_likelihood(exp.horizon, exp.width), max(exp.horizon, 1)
    return control.TransformerAgent(loaded.model, loaded.tokenizer, choose, exp.past, horizon)


def simulator(config: DataConfig, size: str):
    """The task that a dataset is of, with the physics it was recorded under; smoke episodes are cut short."""
    env = envs.make(config.task, "d4rl" if config.official else config.physics)
    return gymnasium.wrappers.TimeLimit(env, 20) if size == "smoke" else env


def cloned(exp: Experiment, seed: int, share: float = 1.0) -> cloning.MLP:
    """Behaviour cloning on the experiment's data, or on the share of its episodes of greatest return."""
    parts = [best(part, share) for part in dataset(exp.data).split(exp.data.held_out, exp.data.seed)]
    (x, y), (held_x, held_y) = ((part.states, part.actions) for part in parts)
    return cloning.fit(x, y, held_x, held_y, seed, 200 if exp.size == "smoke" else 20_000)[0]


def best(episodes: Episodes, share: float) -> Episodes:
    """The share of the episodes, at least one, of greatest return."""
    count = max(1, round(share * len(episodes)))
    return episodes.select(np.sort(np.argsort(-episodes.returns, kind="stable")[:count]))


@functools.lru_cache(maxsize=1)
def shooter(exp: Experiment):
    """What random shooting plans with: the ensemble and V(s), fitted to the experiment's data."""
    parts = dataset(exp.data).split(exp.data.held_out, exp.data.seed)
    smoke = exp.size == "smoke"
    config = replace(experiments.SHOOTING, updates=20) if smoke else experiments.SHOOTING
    return shooting.fit(*parts, config, exp.plan.gamma, 200 if smoke else 20_000)


def behaviour(exp: Experiment, seeds: tuple[int, ...]) -> Callable:
    """The data's behaviour policies: rollout i acts by the i-th snapshot, from the first again after the last."""
    chosen = envs.recipe(exp.data.task, exp.data.quality).snapshots
    policies = [envs.policy(exp.data.task, chosen[i % len(chosen)]) for i in range(len(seeds))]
    rng = np.random.default_rng([exp.data.seed, *seeds])
    return lambda states, rows: np.concatenate([policies[r](s[None], rng) for r, s in zip(rows, states, strict=True)])


def rollout_rows(
    runs: list[control.Rollout], exp: Experiment, method: str, setting: str, model_seed: int = 0
) -> list[dict]:
    """Rows of `table1_rollouts.csv`."""
    return [
        {"dataset": exp.data.name, "source": exp.data.source, "method": method, "profile": exp.profile,
         "setting": setting, "model_seed": model_seed, "rollout_seed": run.seed, "return": run.total,
         "score": envs.score(exp.data.task, run.total), "length": len(run.rewards), "fell": run.terminal,
         "diverged": run.diverged}
        for run in runs
    ]  # fmt: skip


def value_rows(runs: list[control.Rollout], exp: Experiment, method: str = "tto") -> list[dict]:
    """The value each plan predicted beside the discounted return that followed, per rollout and step.

    A fall counts what the model was told it costs.  Where the time limit ended the episode its last 200 steps are
    left out: the return that would have followed is not known there.
    """
    rows, told = [], exp.bins.terminal_reward
    for run in runs:
        rewards = np.array(run.rewards)
        if run.terminal and told is not None and method == "tto":
            rewards[-1] = told
        achieved = data.reward_to_go(rewards, np.array([0, len(rewards)]), exp.bins.gamma)
        known = len(rewards) - (0 if run.terminal else 200 if exp.size != "smoke" else 4)
        rows += [
            {"dataset": exp.data.name, "method": method, "profile": exp.profile, "rollout_seed": run.seed, "t": t,
             "predicted": run.record["value"][t], "achieved": achieved[t]}
            for t in range(0, max(known, 0), 5)
        ]  # fmt: skip
    return rows
