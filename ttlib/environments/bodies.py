"""Compute where the bodies of a robot are in space, from its states or its joint positions."""

import numpy as np

from ttlib.environments import tasks


def pose(task: str, states: np.ndarray, root: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return the joint positions of a trajectory whose states do not contain the place of the robot.

    states (T, N) -> qpos (T, nq), in metres and radians.  A state is qpos without the root's x (and y, for the
    humanoid), followed by qvel.  The path of the root, from `root` on, is the integral of its velocity.
    """
    env = tasks.make(task)
    nq, dt, unobserved = env.unwrapped.model.nq, env.unwrapped.dt, 2 if task == "humanoid" else 1
    env.close()
    velocity = states[:, nq - unobserved : nq]
    path = np.zeros((len(states), unobserved)) + root[:unobserved]
    path[1:] += np.cumsum((velocity[1:] + velocity[:-1]) / 2 * dt, axis=0)
    qpos = np.concatenate([path, states[:, : nq - unobserved]], axis=1)
    if task == "humanoid":
        qpos[:, 3:7] /= np.maximum(np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True), 1e-9)
    return qpos


def capsules(task: str, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the capsules of a robot at its joint positions (T, nq): ends (T, capsules, 2, 3), radii, and names."""
    import mujoco

    env = tasks.make(task)
    model, simulator = env.unwrapped.model, env.unwrapped.data
    # A sphere is a capsule without length.  Planes are the floor, and are left out.
    shapes = (int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_SPHERE))
    geoms = [g for g in range(model.ngeom) if model.geom_type[g] in shapes]
    half_length = np.where(model.geom_type[geoms] == shapes[0], model.geom_size[geoms, 1], 0.0)
    ends = []
    for q in qpos:
        simulator.qpos[:] = q
        mujoco.mj_kinematics(model, simulator)
        axis = simulator.geom_xmat[geoms].reshape(-1, 3, 3)[:, :, 2] * half_length[:, None]
        centre = simulator.geom_xpos[geoms]
        ends.append(np.stack([centre - axis, centre + axis], 1))
    names = [model.geom(g).name for g in geoms]
    radii = model.geom_size[geoms, 0].copy()
    env.close()
    return np.array(ends), radii, names
