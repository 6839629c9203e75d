"""Where the bodies of a robot are in space."""

import numpy as np

from ttlib.environments import tasks


def pose(task: str, states: np.ndarray, root: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Joint positions of a trajectory of states that leave out where the body is.  (T, N) -> (T, nq).

    Observations are qpos without the root's x (and, for the humanoid, y), then qvel: the root's path is
    integrated from its velocity by the trapezoid rule, starting at `root` (metres), and the humanoid's
    quaternion normalised.
    """
    env = tasks.make(task)
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

    env = tasks.make(task)
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
