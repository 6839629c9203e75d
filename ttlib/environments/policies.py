"""Behaviour policies: snapshots from one training run of each task."""

import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from ttlib.environments import checkout, tasks

POLICIES = checkout.ROOT / "data" / "policies"


def policy(task: str, step: int, folder: Path | None = None):
    """Return the stochastic behaviour policy of one snapshot: a function (states (B, N), rng) -> actions (B, M).

    folder: where the snapshots lie, by default that of the task.  Snapshot 0 was not trained: its actions are uniform
    over the action space.  The others have two hidden layers, and an action is the tanh of a Gaussian, scaled to the
    action space.  Raises FileNotFoundError for an unknown snapshot, ValueError for a damaged one.
    """
    low, high = action_limits(task)
    if step == 0:
        return lambda states, rng: rng.uniform(low, high, (len(states), len(low)))
    path = (folder or POLICIES / task) / f"step_{step:07d}.npz"
    if not path.exists():
        known = sorted(int(p.stem[5:]) for p in path.parent.glob("step_*.npz"))
        raise FileNotFoundError(f"{path} is missing; the snapshots of {path.parent.name!r} are {known}")

    def act(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x = np.maximum(states @ w["hidden0_weight"] + w["hidden0_bias"], 0)
        x = np.maximum(x @ w["hidden1_weight"] + w["hidden1_bias"], 0)
        mean = x @ w["mean_weight"] + w["mean_bias"]
        std = np.exp(np.clip(x @ w["log_std_weight"] + w["log_std_bias"], -20, 2))
        return (low + high) / 2 + (high - low) / 2 * np.tanh(mean + std * rng.standard_normal(mean.shape))

    try:
        with np.load(path) as file:
            w = {name: file[name] for name in file}
        tried = act(np.zeros((2, len(w["hidden0_weight"]))), np.random.default_rng(0))
        if tried.shape != (2, len(low)) or not all(np.isfinite(x).all() for x in w.values()):
            raise ValueError(f"actions of shape {tried.shape[1:]}, or weights that are not finite")
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a readable policy ({error!r}): fetch it again, or run `make policies`"
        ) from error
    return act


@lru_cache
def action_limits(task: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest action of a task, (M,) float64 each."""
    env = tasks.make(task)
    space = env.action_space
    env.close()
    return space.low.astype(np.float64), space.high.astype(np.float64)
