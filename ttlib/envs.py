"""Simulators and behaviour policies: the only importer of gymnasium, gym, d4rl and mujoco, and lazily."""

import difflib
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ttlib import data, results

POLICIES = results.ROOT / "data" / "policies"

# v5 changes Walker2d's friction and the terminal reward: -v4 has the reward and termination of D4RL's -v2 tasks.
TASKS = {
    "hopper": "Hopper-v4",
    "walker2d": "Walker2d-v4",
    "halfcheetah": "HalfCheetah-v4",
    "humanoid": "Humanoid-v5",
}
MEANING = {  # of the tokens of a step
    "hopper": (
        "height (m)", "torso angle (rad)", "thigh angle (rad)", "leg angle (rad)", "foot angle (rad)",
        "forward speed (m/s)", "upward speed (m/s)", "torso turning (rad/s)", "thigh turning (rad/s)",
        "leg turning (rad/s)", "foot turning (rad/s)", "thigh torque", "leg torque", "foot torque",
        "reward", "reward-to-go",
    )
}  # fmt: skip
D4RL_TASKS = ("hopper", "walker2d", "halfcheetah")
# Without contact forces, inertias, actuator forces and torques its observation is qpos[2:], qvel: 45 numbers.
_HUMANOID = {f"include_{name}_in_observation": False for name in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")}
MAX_STEPS = 1000  # the time limit of every task
PHYSICS = ("modern", "d4rl")
WORTH_PROCESSES = 20_000  # fewer steps take less time than starting processes for them


@dataclass(frozen=True)
class Recipe:
    """Who makes a regenerated dataset: snapshots (training steps; 0 = uniform actions) share its steps equally."""

    snapshots: tuple[int, ...]
    episode_steps: int = MAX_STEPS
    fixed_start: bool = False  # every episode from one and the same state; the policy's noise differs


def _recipes(medium: int, expert: int) -> dict[str, Recipe]:
    """The quality of D4RL's files: data/policies says how near each snapshot comes."""
    return {
        "random": Recipe((0,)),
        "medium-replay": Recipe(tuple(range(20_000, medium + 1, 20_000))),
        "medium": Recipe((medium,)),
        "medium-expert": Recipe((medium, expert)),
        "expert": Recipe((expert,)),
    }


RECIPES = {
    "hopper": _recipes(240_000, 600_000),
    "walker2d": _recipes(240_000, 720_000),
    "halfcheetah": _recipes(120_000, 1_000_000),
    # Short episodes: many starts, since what is predicted begins at a start.
    "humanoid": {
        "expert": Recipe((825_000,), episode_steps=200),
        "reference": Recipe((825_000,), episode_steps=101, fixed_start=True),
        "simulator": Recipe((825_000,), episode_steps=101, fixed_start=True),  # more of the same, by other noise
    },
}


def _known(name: str, names, what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown {what} {name!r}{hint}; expected one of {sorted(names)}")


def make(task: str, physics: str = "modern", **options):
    """A gymnasium environment by our task name, time limit included.

    physics: "modern", MuJoCo as installed, or "d4rl", as the official files were recorded (`old_physics`).
    ValueError lists the known names.
    """
    _known(task, TASKS, "task")
    _known(physics, PHYSICS, "physics")
    import gymnasium
    import mujoco

    mujoco.set_mju_user_warning(lambda message: None)  # else MuJoCo writes MUJOCO_LOG.TXT where it is run
    if task == "humanoid":
        options = _HUMANOID | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "v4 is out of date"
        env = gymnasium.make(TASKS[task], disable_env_checker=True, **options)
    if physics == "d4rl":
        old_physics(env.unwrapped)
    return env


def old_physics(env) -> None:
    """Give an environment the masses and contact margins of MuJoCo 2.1.0 and older, in place.

    Those versions took a capsule's mass and inertia to be those of a cylinder longer by half a radius at each
    end; and since 3.5.0 a contact's margin is the sum of two geoms' margins, where it was the larger of them.
    """
    import mujoco

    spec = mujoco.MjSpec.from_file(env.fullpath)
    for geom in spec.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE:
            geom.type = mujoco.mjtGeom.mjGEOM_CYLINDER
            if np.isfinite(geom.fromto).all():
                ends = np.array(geom.fromto).reshape(2, 3)
                along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
                geom.fromto = np.concatenate([ends[0] - along * geom.size[0] / 2, ends[1] + along * geom.size[0] / 2])
            else:
                geom.size = [geom.size[0], geom.size[1] + geom.size[0] / 2, geom.size[2]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "settotalmass is deprecated"
        twin = spec.compile()
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        getattr(env.model, name)[:] = getattr(twin, name)
    if tuple(map(int, mujoco.__version__.split(".")[:2])) >= (3, 5):
        env.model.geom_margin[:] *= 0.5
    mujoco.mj_setConst(env.model, env.data)


def four_rooms():
    """The four rooms of Figure 5, time limit included."""
    import gymnasium

    from ttlib import fourrooms  # noqa: F401 (registers the environment)

    return gymnasium.make("ttlib/FourRooms-v0", disable_env_checker=True)


@lru_cache
def d4rl():
    """The package d4rl, imported without its banners: names, addresses, reference scores and file conventions."""
    os.environ.setdefault("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    sys.modules.setdefault("mujoco_py", None)  # a full d4rl install has one that raises a bare Exception
    import gym_notices.notices

    gym_notices.notices.notices.clear()  # gym's banner
    import d4rl

    return d4rl


def reference_scores(task: str) -> tuple[float, float]:
    """D4RL's (random, expert) returns of a task: score = 100 (return - random) / (expert - random).

    They were measured with the physics of D4RL's time, so a score on today's MuJoCo is close to, not
    exactly, comparable.
    """
    _known(task, D4RL_TASKS, "task of D4RL")
    infos = d4rl().infos
    return infos.REF_MIN_SCORE[f"{task}-medium-v2"], infos.REF_MAX_SCORE[f"{task}-medium-v2"]


def score(task: str, episode_return: float) -> float:
    """Normalised score in percent, with D4RL's constants."""
    low, high = reference_scores(task)
    return 100 * (episode_return - low) / (high - low)


def policy(task: str, step: int):
    """Stochastic behaviour policy of one training snapshot: (states (B, N), rng) -> actions (B, M) of the task.

    Two hidden layers with ReLU, then tanh of a Gaussian (Haarnoja et al. 2018).  Snapshot 0 is a policy before
    any training: uniform actions.
    """
    low, high = _action_range(task)
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
def _action_range(task: str) -> tuple[np.ndarray, np.ndarray]:
    env = make(task)
    space = env.action_space
    env.close()
    return space.low.astype(np.float64), space.high.astype(np.float64)


def recipe(task: str, quality: str) -> Recipe:
    """ValueError lists the known recipes."""
    _known(f"{task}-{quality}", [f"{t}-{q}" for t in RECIPES for q in RECIPES[t]], "dataset")
    return RECIPES[task][quality]


def policy_keys(task: str, quality: str) -> list:
    """What a dataset is made by: content hashes of the snapshots, and how they are rolled out where not as usual."""
    made = recipe(task, quality)
    usual = made == Recipe(made.snapshots)
    steps = [f"uniform-{step}" if step == 0 else _snapshot_key(task, step) for step in made.snapshots]
    return steps if usual else [*steps, made]


def _snapshot_key(task: str, step: int) -> str:
    return results.file_key(POLICIES / task / f"step_{step:07d}.npz")


def _behave(task: str, snapshot: int, steps: int, seeds: list[int], made: Recipe, physics: str) -> dict:
    """Exactly `steps` steps of one snapshot; the episode cut off at the end counts as timed out."""
    env, act = make(task, physics, max_episode_steps=made.episode_steps), policy(task, snapshot)
    rng = np.random.default_rng(seeds)
    rows, state = [], None
    while len(rows) < steps:
        if state is None:
            state, _ = env.reset(seed=0 if made.fixed_start else int(rng.integers(2**31)))
        qpos, qvel = env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
        action = act(state[None], rng)[0].astype(np.float32)
        following, reward, terminal, timeout, _ = env.step(action)
        rows.append((state, action, reward, terminal, timeout or (len(rows) == steps - 1 and not terminal), qpos, qvel))
        state = None if terminal or timeout else following
    env.close()
    names = (*data.KEYS, "infos/qpos", "infos/qvel")
    arrays = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return {k: v.astype(np.float32) if v.dtype == np.float64 and "infos" not in k else v for k, v in arrays.items()}


def regenerate(path: Path, task: str, quality: str, steps: int, seed: int, physics: str = "modern") -> None:
    """Roll out the behaviour policies of a dataset into an HDF5 file of D4RL's format, in parallel over the cores.

    `steps` are shared equally between the snapshots, and those of few snapshots between four processes, whatever
    the number of cores: byte-equal on repetition on one machine.
    """
    made = recipe(task, quality)
    parts = -(-4 // len(made.snapshots))
    runs = [(snapshot, part) for snapshot in made.snapshots for part in range(parts)]
    shares = [steps * (i + 1) // len(runs) - steps * i // len(runs) for i in range(len(runs))]
    jobs = [
        (task, snapshot, share, [seed, snapshot] + [part] * (part > 0), made, physics)
        for (snapshot, part), share in zip(runs, shares, strict=True)
        if share
    ]
    if steps < WORTH_PROCESSES:
        found = [_behave(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), results.follow_parent) as pool:
            found = list(pool.map(_behave, *zip(*jobs, strict=True)))
    data.write(path, {name: np.concatenate([part[name] for part in found]) for name in found[0]})


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


def replay_error(
    task: str, arrays: dict[str, np.ndarray], physics: str, count: int = 1000, seed: int = 0
) -> np.ndarray:
    """Was a file recorded with these physics?  Sets the simulator to `count` of its steps, takes the action
    recorded there and compares with the step that follows.

    arrays: D4RL's keys with infos/qpos (n, nq) and infos/qvel (n, nv).  -> (count,) the largest error of a joint's
    position (m, rad) or velocity (m/s, rad/s); steps that end an episode have no successor and are left out.
    """
    if missing := [key for key in ("infos/qpos", "infos/qvel") if key not in arrays]:
        raise ValueError(f"keys {missing} are missing: only files that keep the simulator's state can be replayed")
    going_on = ~(np.asarray(arrays["terminals"], bool) | np.asarray(arrays["timeouts"], bool))
    going_on[-1] = False
    steps = np.flatnonzero(going_on)
    steps = np.random.default_rng(seed).choice(steps, min(count, len(steps)), replace=False)
    env, errors = make(task, physics), []
    env.reset(seed=0)
    simulator = env.unwrapped
    for t in steps:
        simulator.set_state(arrays["infos/qpos"][t], arrays["infos/qvel"][t])
        simulator.do_simulation(arrays["actions"][t], simulator.frame_skip)
        found = np.concatenate([simulator.data.qpos, simulator.data.qvel])
        expected = np.concatenate([arrays["infos/qpos"][t + 1], arrays["infos/qvel"][t + 1]])
        errors.append(np.abs(found - expected).max())
    env.close()
    return np.array(errors)


def pose(task: str, states: np.ndarray, root: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Joint positions of a trajectory of states that leave out where the body is.  (T, N) -> (T, nq).

    Observations are qpos without the root's x (and, for the humanoid, y), then qvel: the root's path is
    integrated from its velocity by the trapezoid rule, starting at `root` (metres), and the humanoid's
    quaternion normalised.
    """
    env = make(task)
    nq, dt, hidden = env.unwrapped.model.nq, env.unwrapped.dt, 2 if task == "humanoid" else 1
    env.close()
    velocity = states[:, nq - hidden : nq]
    path = np.zeros((len(states), hidden)) + root[:hidden]
    path[1:] += np.cumsum((velocity[1:] + velocity[:-1]) / 2 * dt, axis=0)
    qpos = np.concatenate([path, states[:, : nq - hidden]], axis=1)
    if task == "humanoid":
        qpos[:, 3:7] /= np.maximum(np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True), 1e-9)
    return qpos


def capsules(task: str, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Bodies in space.  qpos: (T, nq) -> ends (T, capsules, 2, 3) in metres, radii (capsules,), names of geoms."""
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
    names = [model.geom(g).name for g in geoms]
    radii = model.geom_size[geoms, 0].copy()
    env.close()
    return np.array(ends), radii, names
