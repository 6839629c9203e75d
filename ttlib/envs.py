"""Simulators and behaviour policies: the only importer of gymnasium, gym, d4rl and mujoco, and lazily."""

import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ttlib import data, results

POLICIES = results.ROOT / "data" / "policies"

# v5 changes Walker2d's friction and the terminal reward: -v4 has the reward and termination of D4RL's -v2 tasks.
TASKS = {"hopper": "Hopper-v4"}
MAX_STEPS = 1000  # the time limit of every task
# Snapshots (training steps) that make each regenerated dataset; several share its steps equally.
RECIPES = {"hopper": {"medium-replay": tuple(range(20_000, 240_001, 20_000))}}


def make(task: str, **options):
    """A gymnasium environment by our task name, time limit included.  ValueError lists the known names."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {sorted(TASKS)}")
    import gymnasium
    import mujoco

    mujoco.set_mju_user_warning(lambda message: None)  # else MuJoCo writes MUJOCO_LOG.TXT where it is run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "v4 is out of date"
        return gymnasium.make(TASKS[task], disable_env_checker=True, **options)


def four_rooms():
    """The four rooms of Figure 5, time limit included."""
    import gymnasium

    from ttlib import fourrooms  # noqa: F401 (registers the environment)

    return gymnasium.make("ttlib/FourRooms-v0", disable_env_checker=True)


@lru_cache
def reference_scores(task: str) -> tuple[float, float]:
    """D4RL's (random, expert) returns of a task: score = 100 (return - random) / (expert - random).

    They were measured with the physics of D4RL's time, so a score on today's MuJoCo is close to, not
    exactly, comparable.
    """
    os.environ.setdefault("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    sys.modules.setdefault("mujoco_py", None)  # a full d4rl install has one that raises a bare Exception
    import gym_notices.notices

    gym_notices.notices.notices.clear()  # gym's banner
    from d4rl import infos

    return infos.REF_MIN_SCORE[f"{task}-medium-v2"], infos.REF_MAX_SCORE[f"{task}-medium-v2"]


def score(task: str, episode_return: float) -> float:
    """Normalised score in percent, with D4RL's constants."""
    low, high = reference_scores(task)
    return 100 * (episode_return - low) / (high - low)


def policy(task: str, step: int):
    """Stochastic behaviour policy of one training snapshot: (states (B, N), rng) -> actions (B, M) in [-1, 1].

    Two hidden layers with ReLU, then tanh of a Gaussian (Haarnoja et al. 2018).
    """
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
        return np.tanh(mean + std * rng.standard_normal(mean.shape))

    return act


def policy_keys(task: str, quality: str) -> list[str]:
    """Content hashes of the snapshots that make a dataset; ValueError lists the known recipes."""
    known = RECIPES.get(task, {})
    if quality not in known:
        raise ValueError(f"no recipe for {task}-{quality}; expected one of {sorted(known)} for {task}")
    return [results.file_key(POLICIES / task / f"step_{step:07d}.npz") for step in known[quality]]


def _behave(task: str, snapshot: int, steps: int, seed: int) -> dict[str, np.ndarray]:
    """Exactly `steps` steps of one snapshot; the episode cut off at the end counts as timed out."""
    env, act = make(task), policy(task, snapshot)
    rng = np.random.default_rng([seed, snapshot])
    rows, state = [], None
    while len(rows) < steps:
        if state is None:
            state, _ = env.reset(seed=int(rng.integers(2**31)))
        qpos, qvel = env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
        action = act(state[None], rng)[0].astype(np.float32)
        following, reward, terminal, timeout, _ = env.step(action)
        rows.append((state, action, reward, terminal, timeout or (len(rows) == steps - 1 and not terminal), qpos, qvel))
        state = None if terminal or timeout else following
    env.close()
    names = (*data.KEYS, "infos/qpos", "infos/qvel")
    arrays = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return {k: v.astype(np.float32) if v.dtype == np.float64 and "infos" not in k else v for k, v in arrays.items()}


def regenerate(path: Path, task: str, quality: str, steps: int, seed: int) -> None:
    """Roll out the behaviour policies of a dataset into an HDF5 file of D4RL's format, one core a snapshot.

    `steps` are shared equally between the snapshots.  Byte-equal on repetition on one machine.
    """
    chosen = RECIPES[task][quality]
    shares = [steps * (i + 1) // len(chosen) - steps * i // len(chosen) for i in range(len(chosen))]
    jobs = [[task] * len(chosen), chosen, shares, [seed] * len(chosen)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(_behave, *jobs))
    data.write(path, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def replay(task: str, seed: int, actions: np.ndarray) -> np.ndarray:
    """Joint positions (T + 1, nq) of an episode, from its reset seed and actions (T, M): simulators repeat."""
    env = make(task)
    env.reset(seed=seed)
    qpos = [env.unwrapped.data.qpos.copy()]
    for action in actions:
        env.step(action.astype(np.float32))
        qpos.append(env.unwrapped.data.qpos.copy())
    env.close()
    return np.array(qpos)


def capsules(task: str, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Bodies in space.  qpos: (T, nq) -> ends (T, capsules, 2, 3) in metres, radii (capsules,), names of bodies."""
    import mujoco

    env = make(task)
    model, state = env.unwrapped.model, env.unwrapped.data
    # A sphere is a capsule without length; planes are the floor.
    shapes = (int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_SPHERE))
    geoms = [g for g in range(model.ngeom) if model.geom_type[g] in shapes]
    half = np.where(model.geom_type[geoms] == shapes[0], model.geom_size[geoms, 1], 0.0)
    ends = []
    for q in qpos:
        state.qpos[:] = q
        mujoco.mj_kinematics(model, state)
        axis = state.geom_xmat[geoms].reshape(-1, 3, 3)[:, :, 2] * half[:, None]
        centre = state.geom_xpos[geoms]
        ends.append(np.stack([centre - axis, centre + axis], 1))
    names = [model.body(model.geom_bodyid[g]).name for g in geoms]
    radii = model.geom_size[geoms, 0].copy()
    env.close()
    return np.array(ends), radii, names
