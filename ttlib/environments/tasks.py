"""The simulated tasks: names, physics, reference scores, replays."""

import difflib
import os
import sys
import warnings
from functools import lru_cache

import numpy as np

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


def check_known(name: str, names, what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown {what} {name!r}{hint}; expected one of {sorted(names)}")


def make(task: str, physics: str = "modern", **options):
    """A gymnasium environment by our task name, time limit included.

    physics: "modern", MuJoCo as installed, or "d4rl", as the official files were recorded (`old_physics`).
    ValueError lists the known names.
    """
    check_known(task, TASKS, "task")
    check_known(physics, PHYSICS, "physics")
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
    check_known(task, D4RL_TASKS, "task of D4RL")
    infos = d4rl().infos
    return infos.REF_MIN_SCORE[f"{task}-medium-v2"], infos.REF_MAX_SCORE[f"{task}-medium-v2"]


def score(task: str, episode_return: float) -> float:
    """Normalised score in percent, with D4RL's constants."""
    low, high = reference_scores(task)
    return 100 * (episode_return - low) / (high - low)


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
