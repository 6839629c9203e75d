"""Data from elsewhere: a loop that collects some, and Minari's episodes as the flat arrays of D4RL."""

from collections.abc import Callable

import numpy as np

from ttlib import data


def collect(env, act: Callable, steps: int, seed: int) -> dict[str, np.ndarray]:
    """`steps` steps of a gymnasium environment as D4RL's flat arrays (data.KEYS).

    act(state (N,), rng) -> action (M,).  The episode that the end of the data cuts off counts as timed out.
    """
    rng, rows, state = np.random.default_rng(seed), [], None
    while len(rows) < steps:
        if state is None:
            state, _ = env.reset(seed=int(rng.integers(2**31)))
        action = act(state, rng)
        following, reward, terminal, timeout, _ = env.step(action)
        cut = len(rows) == steps - 1 and not terminal
        rows.append((state, action, reward, terminal, timeout or cut))
        state = None if terminal or timeout else following
    return {name: np.array(column) for name, column in zip(data.KEYS, zip(*rows, strict=True), strict=True)}


def clumsy(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Swing a pendulum up without holding it there: (cos, sin, angular velocity) -> torque (1,) in [-2, 2].

    Half of the torques are random; the others push along the motion while there is too little energy to come
    upright, and against it while there is too much.
    """
    cos, _, velocity = state
    missing = 15.0 - (velocity**2 / 2 + 15.0 * cos)  # energy over moment of inertia, of standing upright and of now
    pumping = np.clip(0.3 * missing * velocity + rng.normal(), -2.0, 2.0)
    return np.array([rng.uniform(-2.0, 2.0) if rng.random() < 0.5 else pumping], np.float32)


def swing_up(steps: int, seed: int) -> dict[str, np.ndarray]:
    """The data of page 07: the clumsy controller on gymnasium's Pendulum-v1, whose episodes time out at 200 steps."""
    import gymnasium

    env = gymnasium.make("Pendulum-v1")
    arrays = collect(env, clumsy, steps, seed)
    env.close()
    return arrays


def from_minari(dataset) -> dict[str, np.ndarray]:
    """A Minari dataset, or the name of one, as D4RL's flat arrays; timeouts are its truncations.

    An episode of T steps has T + 1 observations there: the last has no action and is left out.  One whose data
    stop without an end counts as timed out.  ImportError without the package minari, ValueError where
    observations or actions are not arrays.
    """
    if isinstance(dataset, str):
        try:
            import minari
        except ImportError as error:
            raise ImportError(
                f"{dataset!r} is read with the package minari, which is not installed and does not come with this "
                "project: `pip install minari` into its environment, or give arrays or an HDF5 file"
            ) from error
        dataset = minari.load_dataset(dataset, download=True)
    parts = []
    for episode in dataset.iterate_episodes():
        for name in ("observations", "actions"):
            if not isinstance(values := getattr(episode, name), np.ndarray):
                raise ValueError(
                    f"{name} of episode {episode.id} are a {type(values).__name__}; expected an array with one row a "
                    "step: choose the entries you want and stack them, or flatten them with gymnasium.spaces.flatten"
                )
        timeouts = np.array(episode.truncations, bool)
        timeouts[-1] |= not episode.terminations[-1]
        states = episode.observations[: len(timeouts)]
        columns = (states, episode.actions, episode.rewards, episode.terminations, timeouts)
        parts.append(dict(zip(data.KEYS, columns, strict=True)))
    return {name: np.concatenate([part[name] for part in parts]) for name in data.KEYS}
