"""The simulated tasks: their names, physics, reference scores and replays."""

import difflib
import os
import sys
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np

from ttlib.environments import checkout

# The reward and the termination of -v4 are those of D4RL's -v2 tasks.  Version -v5 changes the friction of Walker2d and
# the reward of the step that ends an episode.
TASKS = {"hopper": "Hopper-v4", "walker2d": "Walker2d-v4", "halfcheetah": "HalfCheetah-v4", "humanoid": "Humanoid-v5"}
# The meaning of each dimension of a transition.
MEANING = {
    "hopper": (
        "height (m)", "torso angle (rad)", "thigh angle (rad)", "leg angle (rad)", "foot angle (rad)",
        "forward speed (m/s)", "upward speed (m/s)", "torso turning (rad/s)", "thigh turning (rad/s)",
        "leg turning (rad/s)", "foot turning (rad/s)", "thigh torque", "leg torque", "foot torque",
        "reward", "reward-to-go",
    )
}  # fmt: skip
D4RL_TASKS = ("hopper", "walker2d", "halfcheetah")
# Inertias, velocities of masses, actuator forces and contact forces are left out of the humanoid's observation.  The
# 45 numbers that remain are qpos[2:] and qvel.
_HUMANOID = {f"include_{name}_in_observation": False for name in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")}
MAX_STEPS = 1000  # the time limit of every simulated robot, in steps
PHYSICS = ("modern", "d4rl")  # MuJoCo as installed, and as it was when D4RL's files were recorded


def check_known(name: str, names, what: str) -> None:
    """Raise ValueError unless `name` is one of `names`.  The message calls it `what`, for example a task."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown {what} {name!r}{hint}; expected one of {sorted(names)}")


def make(task: str, physics: str = "modern", **options):
    """Return the environment of a task, with its time limit.  Raises ValueError for an unknown task or physics."""
    check_known(task, TASKS, "task")
    check_known(physics, PHYSICS, "physics")
    try:
        import mujoco.gl_context
    except (RuntimeError, AttributeError, OSError):  # MUJOCO_GL names nothing, or a renderer that is not installed
        os.environ["MUJOCO_GL"] = "disable"  # nothing is rendered here
    import gymnasium
    import mujoco

    mujoco.set_mju_user_warning(lambda message: None)  # otherwise MuJoCo writes a log file into the current folder
    if task == "humanoid":
        options = _HUMANOID | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that v4 is out of date
        env = gymnasium.make(TASKS[task], disable_env_checker=True, **options)
    if physics == "d4rl":
        old_physics(env.unwrapped)
    return env


def old_physics(env) -> None:
    """Give an environment the masses and contact margins of MuJoCo 2.1.0 and older, in place.

    Those versions computed the mass and inertia of a capsule as those of a cylinder that is longer by half a radius at
    each end.  Before MuJoCo 3.5.0 the margin of a contact was the larger margin of its two geoms; now it is their sum.
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
        warnings.simplefilter("ignore")  # the warning that settotalmass is deprecated
        with_cylinders = spec.compile()
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        getattr(env.model, name)[:] = getattr(with_cylinders, name)
    if tuple(map(int, mujoco.__version__.split(".")[:2])) >= (3, 5):
        env.model.geom_margin[:] *= 0.5
    mujoco.mj_setConst(env.model, env.data)


def four_rooms():
    """Return the environment of the four rooms (Figure 5), with its time limit."""
    import gymnasium

    import ttlib.environments.four_rooms  # noqa: F401  registers the environment

    return gymnasium.make("ttlib/FourRooms-v0", disable_env_checker=True)


def _d4rl_folder() -> str:
    """Return the folder of d4rl's files, which it makes where it is imported: in the home, or else in the checkout."""
    for folder in (os.path.expanduser("~/.d4rl/datasets"), str(checkout.ROOT / "data" / "d4rl")):
        try:
            if os.path.isabs(folder):  # it is not where there is no home
                os.makedirs(folder, exist_ok=True)
                return folder
        except OSError:
            continue
    return str(Path(__file__).parent)  # neither can be written; this one is there, so that nothing is made


@lru_cache
def d4rl():
    """Import the package d4rl without its banners, and return it."""
    os.environ["D4RL_DATASET_DIR"] = os.environ.get("D4RL_DATASET_DIR") or _d4rl_folder()
    os.environ.setdefault("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    sys.modules.setdefault("mujoco_py", None)  # where mujoco_py is installed, its import may fail with an Exception
    import gym_notices.notices

    gym_notices.notices.notices.clear()  # otherwise gym prints a banner
    import d4rl

    return d4rl


def score(task: str, episode_return: float) -> float:
    """Return the normalised score of a return, in percent: d4rl's random policy has 0, and its expert 100.

    D4RL measured both with the physics of its time.  A score on MuJoCo as installed is therefore only approximately
    comparable.  Raises ValueError for a task that D4RL lacks.
    """
    check_known(task, D4RL_TASKS, "task of D4RL")
    infos = d4rl().infos
    low, high = infos.REF_MIN_SCORE[f"{task}-medium-v2"], infos.REF_MAX_SCORE[f"{task}-medium-v2"]
    return 100 * (episode_return - low) / (high - low)


def replay(task: str, seed: int, actions: np.ndarray) -> np.ndarray:
    """Repeat an episode from the seed of its reset and its actions (T, M).  Return its joint positions (T + 1, nq)."""
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
    """Return how far the simulator departs from the recorded transitions of a file, under the given physics.

    The simulator is put into the state of each of `count` random steps that end no episode, and takes the recorded
    action.  Returns the largest error of each step over the positions (m, rad) and velocities (m/s, rad/s) of all
    joints, (count,).  Raises ValueError for arrays without infos/qpos and infos/qvel.
    """
    if missing := [key for key in ("infos/qpos", "infos/qvel") if key not in arrays]:
        raise ValueError(f"keys {missing} are missing: only a file that holds the simulator's states can be replayed")
    has_next = ~(np.asarray(arrays["terminals"], bool) | np.asarray(arrays["timeouts"], bool))
    has_next[-1] = False
    steps = np.flatnonzero(has_next)
    steps = np.random.default_rng(seed).choice(steps, min(count, len(steps)), replace=False)
    env, errors = make(task, physics), []
    env.reset(seed=0)
    simulator = env.unwrapped
    for t in steps:
        simulator.set_state(arrays["infos/qpos"][t], arrays["infos/qvel"][t])
        simulator.do_simulation(arrays["actions"][t], simulator.frame_skip)
        simulated = np.concatenate([simulator.data.qpos, simulator.data.qvel])
        recorded = np.concatenate([arrays["infos/qpos"][t + 1], arrays["infos/qvel"][t + 1]])
        errors.append(np.abs(simulated - recorded).max())
    env.close()
    return np.array(errors)
