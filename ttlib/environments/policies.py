"""Behaviour policies: snapshots along one training run of each task."""

from functools import lru_cache

import numpy as np

from ttlib.environments import tasks
from ttlib.pipeline import places

POLICIES = places.ROOT / "data" / "policies"


def policy(task: str, step: int):
    """Stochastic behaviour policy of one training snapshot: (states (B, N), rng) -> actions (B, M) of the task.

    Two hidden layers with ReLU, then tanh of a Gaussian (Haarnoja et al. 2018).  Snapshot 0 is a policy before
    any training: uniform actions.
    """
    low, high = action_limits(task)
    if step == 0:
        return lambda states, rng: rng.uniform(low, high, (len(states), len(low)))
    path = POLICIES / task / f"step_{step:07d}.npz"
    if not path.exists():
        known = sorted(int(p.stem[5:]) for p in path.parent.glob("step_*.npz"))
        raise FileNotFoundError(f"{path} is missing; snapshots of {task!r} that are there: {known}")
    w = dict(np.load(path))

    def act(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x = np.maximum(states @ w["hidden0_weight"] + w["hidden0_bias"], 0)
        x = np.maximum(x @ w["hidden1_weight"] + w["hidden1_bias"], 0)
        mean = x @ w["mean_weight"] + w["mean_bias"]
        std = np.exp(np.clip(x @ w["log_std_weight"] + w["log_std_bias"], -20, 2))
        return (low + high) / 2 + (high - low) / 2 * np.tanh(mean + std * rng.standard_normal(mean.shape))

    return act


@lru_cache
def action_limits(task: str) -> tuple[np.ndarray, np.ndarray]:
    env = tasks.make(task)
    space = env.action_space
    env.close()
    return space.low.astype(np.float64), space.high.astype(np.float64)
