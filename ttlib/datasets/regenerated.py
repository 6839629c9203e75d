"""Datasets that behaviour policies regenerate: which policies act, for how many steps, and how the file is made."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType

import numpy as np

from ttlib.datasets import hdf5, own
from ttlib.environments import policies, tasks

WORTH_PROCESSES = 20_000  # for fewer steps, starting processes takes longer than the steps themselves


@dataclass(frozen=True)
class Recipe:
    """The policies that make a regenerated dataset, an equal part each, and how their episodes begin and end."""

    snapshots: tuple[int, ...]  # the number of training steps of each policy; 0: uniform actions
    episode_steps: int = tasks.MAX_STEPS  # the time limit
    fixed_start: bool = False  # all episodes begin in one state, and differ by the noise of the policy only
    policy: str = ""  # the folder of the policies in data/policies, where that is not the task's
    starts: int = 0  # episodes begin in so many states of another dataset, an equal part in each; see `draw_starts`


def _recipes(medium: int, expert: int) -> dict[str, Recipe]:
    """Return a recipe for each quality of D4RL's files, given the snapshots that are medium and expert."""
    return {
        "random": Recipe((0,)),
        "medium-replay": Recipe(tuple(range(20_000, medium + 1, 20_000))),
        "medium": Recipe((medium,)),
        "medium-expert": Recipe((medium, expert)),
        "expert": Recipe((expert,)),
    }


def _mid_walk(starts: int) -> Recipe:
    """Return the recipe of episodes that begin while a humanoid walks."""
    return Recipe((750_000,), episode_steps=101, policy="humanoid_walk", starts=starts)


RECIPES = {
    "hopper": _recipes(240_000, 600_000),
    "walker2d": _recipes(240_000, 720_000),
    "halfcheetah": _recipes(120_000, 1_000_000),
    # Episodes are short so that there are many starts: predictions begin at the start of an episode.
    "humanoid": {
        "expert": Recipe((825_000,), episode_steps=200),
        "reference": Recipe((825_000,), episode_steps=101, fixed_start=True),
        "simulator": Recipe((825_000,), episode_steps=101, fixed_start=True),  # like reference, with other noise
        # A policy that walks, and what follows one moment of its walk, and each of twenty.
        "walk": Recipe((750_000,), policy="humanoid_walk"),
        "walk-reference": _mid_walk(1),
        "walk-simulator": _mid_walk(1),
        "walk-futures": _mid_walk(20),
        "walk-futures-simulator": _mid_walk(20),
    },
}
MID_WALK, MIN_SPEED = (200, 800), 0.8  # steps of an episode, and m/s, at which another episode may begin


def recipe(task: str, quality: str) -> Recipe:
    """Return the recipe of a dataset.  Raises ValueError, with the known ones, for an unknown dataset."""
    tasks.check_known(f"{task}-{quality}", [f"{t}-{q}" for t in RECIPES for q in RECIPES[t]], "dataset")
    return RECIPES[task][quality]


def folder(task: str, chosen: Recipe) -> Path:
    """Return where the policies of a recipe lie."""
    return policies.POLICIES / (chosen.policy or task)


def draw_starts(age: np.ndarray, speed: np.ndarray, count: int) -> np.ndarray:
    """Return `count` random steps at which a robot walks, given the age (steps) and the speed (m/s) of each, (n,).

    A smaller count gives the first of them.  Raises ValueError if too few steps are of that age and speed.
    """
    rows = np.flatnonzero((age >= MID_WALK[0]) & (age <= MID_WALK[1]) & (speed > MIN_SPEED))
    if len(rows) < count:
        raise ValueError(
            f"{len(rows)} held-out steps of age {MID_WALK[0]} to {MID_WALK[1]} are faster than {MIN_SPEED} m/s; "
            f"expected at least {count}: take more steps of data, or a policy that walks"
        )
    return np.random.default_rng(0).permutation(rows)[:count]


def follow_parent() -> None:
    """Make a worker process end when its parent ends, even if the parent is killed.  Call this first in the worker."""

    def watch():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def without_main() -> Iterator[None]:
    """Let workers that are begun inside not run the caller's script again, which may have no main guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _simulator_state(env) -> dict[str, np.ndarray]:
    return {f"infos/{name}": getattr(env.unwrapped.data, name).copy() for name in ("qpos", "qvel")}


def _roll_out(
    task: str, snapshot: int, steps: int, seeds: list[int], chosen: Recipe, physics: str, start: tuple | None = None
) -> dict:
    """Roll out one snapshot for exactly `steps` steps.  Return D4RL's arrays and the simulator's state of each step.

    The simulator's state keeps its float64; all other numbers are float32.  start: (qpos, qvel) of each first step.
    """
    options = {"max_episode_steps": chosen.episode_steps} | ({"reset_noise_scale": 0.0} if start else {})
    env, policy = tasks.make(task, physics, **options), policies.policy(task, snapshot, folder(task, chosen))
    if start:
        env.unwrapped.init_qpos, env.unwrapped.init_qvel = start
    act = lambda state, rng: policy(state[None], rng)[0].astype(np.float32)  # noqa: E731
    arrays = own.collect(env, act, steps, seeds, 0 if chosen.fixed_start else None, _simulator_state)
    env.close()
    return {k: v.astype(np.float32) if v.dtype == np.float64 and "infos" not in k else v for k, v in arrays.items()}


def _jobs(task: str, quality: str, steps: int, seed: int, physics: str, starts: Sequence[tuple]) -> list[tuple]:
    """Return the arguments of `_roll_out` for each part of a dataset."""
    chosen = recipe(task, quality)
    parts = max(-(-4 // len(chosen.snapshots)), chosen.starts)
    runs = [(snapshot, part) for snapshot in chosen.snapshots for part in range(parts)]
    counts = [steps * (i + 1) // len(runs) - steps * i // len(runs) for i in range(len(runs))]
    return [
        (task, snapshot, count, [seed, snapshot] + [part] * (part > 0), chosen, physics,
         starts[part % len(starts)] if starts else None)
        for (snapshot, part), count in zip(runs, counts, strict=True)
        if count
    ]  # fmt: skip


def regenerate(
    path: Path, task: str, quality: str, steps: int, seed: int, physics: str = "modern", starts: Sequence[tuple] = ()
) -> None:
    """Roll out the behaviour policies of a dataset, in parallel over the cores, into an HDF5 file.

    starts: (qpos, qvel) of each state in which episodes begin, where the recipe has such.

    The file has D4RL's keys, and infos/qpos and infos/qvel.  It is made in four parts or more, an equal number for each
    snapshot, whatever the number of cores: on one machine, the same arguments give the same bytes.
    """
    jobs = _jobs(task, quality, steps, seed, physics, starts)
    if steps < WORTH_PROCESSES:
        parts = [_roll_out(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), follow_parent) as pool:
            with without_main():
                made = pool.map(_roll_out, *zip(*jobs, strict=True))
            parts = list(made)
    hdf5.write(path, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
