"""Data of your own: collect them, convert Minari's episodes, and compare data with the environment to act in."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ttlib.data import Episodes
from ttlib.datasets.arrays import KEYS, ROUNDING, checked, episodes, refuse
from ttlib.environments import stepping

TRIED = 3  # steps that `check` takes in an environment


def collect(
    env, act: Callable, steps: int, seed: int | Sequence[int],
    reset_seed: int | None = None, infos: Callable = lambda env: {},
) -> dict[str, np.ndarray]:  # fmt: skip
    """Step a gymnasium environment, and return `steps` steps as D4RL's flat arrays.

    act(state (N,), rng) returns an action (M,).  The generator `rng` has the seed `seed`.
    It also draws a new seed for each reset, unless all resets have the `reset_seed`.
    infos(env) is called before each action, and returns more arrays of the step by name.
    The last step counts as a timeout if its episode goes on.
    """
    rng, rows, state = np.random.default_rng(seed), [], None
    while len(rows) < steps:
        if state is None:
            new_seed = int(rng.integers(2**31)) if reset_seed is None else reset_seed
            state, _ = env.reset(seed=new_seed)
        more = infos(env)
        action = act(state, rng)
        next_state, reward, terminal, timeout, _ = env.step(action)
        cut = len(rows) == steps - 1 and not terminal
        row = (state, action, reward, terminal, timeout or cut)
        rows.append(dict(zip(KEYS, row, strict=True)) | more)
        state = None if terminal or timeout else next_state
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def clumsy(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a torque (1,) in [-2, 2] that swings a pendulum (cos, sin, angular velocity) up, but does not hold it.

    Half of the torques are random.  The others push along the motion while the energy is below that of standing
    upright, and against it while it is above.
    """
    cos, _, velocity = state
    missing_energy = 15.0 - (velocity**2 / 2 + 15.0 * cos)  # per moment of inertia; standing upright has 15
    torque = np.clip(0.3 * missing_energy * velocity + rng.normal(), -2.0, 2.0)
    return np.array([rng.uniform(-2.0, 2.0) if rng.random() < 0.5 else torque], np.float32)


def swing_up(steps: int, seed: int) -> dict[str, np.ndarray]:
    """Collect data with the clumsy controller on gymnasium's Pendulum-v1, whose episodes time out at 200 steps."""
    import gymnasium

    env = gymnasium.make("Pendulum-v1")
    arrays = collect(env, clumsy, steps, seed)
    env.close()
    return arrays


def from_minari(dataset) -> dict[str, np.ndarray]:
    """Convert a Minari dataset, given as such or by its name, to D4RL's flat arrays.

    The last observation of an episode has no action, and is left out.  Raises ImportError if minari is needed but
    missing, and ValueError for observations or actions that are not arrays.
    """
    if isinstance(dataset, str):
        try:
            import minari
        except ImportError as error:
            raise ImportError(
                f"{dataset!r} is read with the package minari, which is not installed and not part of this project: "
                "run `pip install minari` in its environment, or give arrays or an HDF5 file"
            ) from error
        dataset = minari.load_dataset(dataset, download=True)
    if not hasattr(dataset, "iterate_episodes"):
        raise ValueError(f"{dataset!r} is no dataset of Minari; expected one, or its name as text")
    return join(map(_entries, dataset.iterate_episodes()))


def _entries(episode) -> dict:
    """Return the entries of an episode of Minari that `join` takes."""
    for name in ("observations", "actions"):
        if not isinstance(values := getattr(episode, name), np.ndarray):
            raise ValueError(
                f"{name} of episode {episode.id} are a {type(values).__name__}; expected an array with one row per "
                "step: choose the entries you want and stack them, or flatten them with gymnasium.spaces.flatten"
            )
    return {name: getattr(episode, name) for name in ("observations", "actions", "rewards", "terminations")}


def join(episodes: Iterable[Mapping]) -> dict[str, np.ndarray]:
    """Join episodes of T steps, with the entries that Minari has, to D4RL's flat arrays.

    observations: (T, N), or (T + 1, N), of which the last has no action and is left out; actions (T, M); rewards (T,);
    terminations: whether the environment ended the episode, (T,) or one number.  Raises ValueError without episodes.
    """
    parts = []
    for episode in episodes:
        T, ended = len(episode["actions"]), np.zeros(len(episode["actions"]), bool)
        ended[-1:] = np.ravel(episode["terminations"])[-1:]
        last = np.arange(T) == T - 1
        columns = (episode["observations"][:T], episode["actions"][:], np.ravel(episode["rewards"]))
        parts.append(dict(zip(KEYS, (*columns, ended, last & ~ended), strict=True)))
    if not parts:
        raise ValueError("no episodes; expected at least one: does a filter keep none?")
    return {name: np.concatenate([part[name] for part in parts]) for name in KEYS}


def check(given: Mapping, environment: str | Callable | None = None) -> tuple[Episodes, Callable]:
    """Return the episodes of arrays, and a function that makes the environment where plans will act.

    environment: an id that gymnasium knows, or a function that makes it.  An environment without a time limit ends
    after as many steps as the longest episode of the data, which is printed.  Raises ValueError with all that is wrong
    with the data, with the environment, and between them; this takes seconds, and nothing is trained.
    """
    arrays, faults = checked(given)
    data = None if faults else episodes(given)
    if data and data.lengths.max() == 1:
        faults.append("every episode has one step, so none follows another: set ends at the last step of each episode")
    if not environment:
        refuse(faults)
        return data, None
    import gymnasium

    make = environment
    if isinstance(environment, str):
        make = lambda: gymnasium.make(environment, disable_env_checker=True)  # noqa: E731
    try:
        env = make()
    except Exception as error:  # whatever the code of others raises
        way_out = "give an id that gymnasium knows, as module:Id-v0 for one of yours"
        refuse([*faults, f"the environment {environment!r} cannot be made ({error}): {way_out}"])
    refuse(faults + _mismatches(arrays, env))
    limit = stepping.time_limit(env)
    env.close()
    if limit:
        return data, make
    limit = int(data.lengths.max())
    print(f"{environment} has no time limit: its episodes end after {limit} steps, the longest of the data")
    return data, lambda: gymnasium.wrappers.TimeLimit(make(), limit)


def _mismatches(arrays: Mapping[str, np.ndarray], env) -> list[str]:
    """Return a sentence for each way in which arrays, of which some may be missing, and an environment differ."""
    N, M = (arrays[key].shape[1] if key in arrays else None for key in KEYS[:2])
    faults = stepping.action_faults(env, M)
    actions = [env.action_space.sample() for _ in range(TRIED)]
    if not faults and "actions" in arrays:
        low, high, taken = env.action_space.low, env.action_space.high, np.asarray(arrays["actions"], np.float64)
        actions = np.clip(taken[:TRIED], low, high).astype(np.float32)
        beyond = np.maximum(taken - high, low - taken)
        for i in np.flatnonzero((beyond > ROUNDING * np.maximum(1, abs(high))).any(0)):
            part, most = (beyond[:, i] > 0).mean(), taken[np.argmax(beyond[:, i]), i]
            faults.append(
                f"actions, column {i}: {part:.0%} lie outside of the environment's [{low[i]:g}, {high[i]:g}], such as "
                f"{most:g}: convert their unit or, if the environment clipped them, clip them"
            )
    try:
        return faults + _tried(env, N, actions)
    except Exception as error:  # whatever the code of others raises
        return [*faults, f"the environment fails at its first steps: {error!r}"]


def _tried(env, N: int | None, actions: Sequence) -> list[str]:
    """Reset an environment and take actions (TRIED, M); return sentences about what it gives back."""
    given = env.reset(seed=0)
    if not (isinstance(given, tuple) and len(given) == 2):
        return [f"reset gives a {type(given).__name__}; expected (state, info), as gymnasium's environments give"]
    faults = _not_finite(given[0], 0.0, N)
    for action in actions:
        if faults:
            break
        given = env.step(action)
        if not (isinstance(given, tuple) and len(given) == 5):
            return ["step gives something else than (state, reward, terminal, timeout, info), as gymnasium's do"]
        faults = _not_finite(*given[:2], N)
        if given[2] or given[3]:
            break
    return faults


def _not_finite(state, reward, N: int | None) -> list[str]:
    """Return a sentence unless a state is a row of N numbers and a reward is a number."""
    try:
        numbers = [*stepping.as_state(state, N), stepping.as_number(reward)]
    except ValueError as error:
        return [str(error)]
    return (
        []
        if np.isfinite(numbers).all()
        else [f"the environment gives {state}, reward {reward}; expected finite numbers"]
    )
