"""Check arrays with D4RL's names and cut them into episodes.

A dataset is a mapping of arrays with D4RL's names (Fu et al. 2020).  It holds n steps of any number of episodes, one
after the other:

    observations  (n, N)  states
    actions       (n, M)  the actions taken in them
    rewards       (n,)    the rewards received; (n, 1) is refused, since (n, 1) * (n,) is silently (n, n)
    terminals     (n,)    true where the environment ended the episode, such as a fall; bool, or the numbers 0 and 1
    timeouts      (n,)    true where a time limit or the recording ended it: not a property of the state

An episode ends at either.  Steps after the last end are one more episode, ended by the recording.  All numbers are
finite.  Arrays beside these (infos/..., metadata/...) are left alone.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ttlib.data import CHUNK, Episodes

FINITE, FLAG = (np.isfinite, "finite numbers"), (lambda x: (x == 0) | (x == 1), "0 or 1")
# For each key: the number of axes, the test of its values, and that test in words.
FORMAT = {"observations": (2, *FINITE), "actions": (2, *FINITE), "rewards": (1, *FINITE)}
FORMAT |= {"terminals": (1, *FLAG), "timeouts": (1, *FLAG)}
KEYS = tuple(FORMAT)
ROUNDING = 1e-5  # simulators round: an action may exceed its range by this much


def episodes(arrays: Mapping[str, np.ndarray], action_range: tuple[float, float] | None = None) -> Episodes:
    """Check arrays, with actions in action_range if given, and cut them into episodes; ValueError names a fault."""
    _check_shapes(arrays)
    checks = dict(FORMAT)
    if action_range is not None:
        low, high = action_range
        within = lambda x: (low - ROUNDING <= x) & (x <= high + ROUNDING)  # noqa: E731
        checks["actions"] = (2, within, f"numbers in [{low:g}, {high:g}]")
    for key, (_, right, words) in checks.items():
        _check_values(key, arrays[key], right, words)
    terminals, timeouts = (arrays[key][:].astype(bool) for key in KEYS[3:])
    ends, n = np.flatnonzero(terminals | timeouts) + 1, len(terminals)
    if not len(ends):
        raise ValueError(
            f"none of the {n} steps ends an episode: set `timeouts` at the last step of "
            "each episode (timeouts[-1] = True if there is only one)"
        )
    if ends[-1] != n:
        ends = np.append(ends, n)
    rewards = arrays["rewards"][:].astype(np.float64)
    starts, terminal = np.append(0, ends), terminals[ends - 1]
    return Episodes(arrays["observations"], arrays["actions"], rewards, starts, terminal)


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless all keys are there, with the right axes and one length."""
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(f"keys {missing} are missing; expected {list(KEYS)}, found {sorted(arrays)}")
    for key, (axes, _, _) in FORMAT.items():
        if len(shape := arrays[key].shape) != axes:
            expected, cut = (("(n,)", "[:, 0]"), ("(n, k)", "[:, None]"))[axes - 1]
            hint = f": write {key}{cut}" if shape[1:] in ((), (1,)) else ""
            raise ValueError(f"{key} has shape {shape}; expected {expected}{hint}")
    n = len(arrays["rewards"])
    if lengths := {key: len(arrays[key]) for key in KEYS if len(arrays[key]) != n}:
        raise ValueError(f"lengths differ: rewards has {n} rows, but {lengths}")
    if n == 0:
        raise ValueError("no steps: the arrays are empty")


def _check_values(key: str, array: np.ndarray, right: Callable, words: str) -> None:
    """Raise ValueError unless right(array) is true everywhere; read it in chunks."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{key} holds {array.dtype}; expected {words}")
    first, count = None, 0
    for start in range(0, len(array), CHUNK):
        part = array[start : start + CHUNK]
        wrong = np.argwhere(~right(part))
        if len(wrong) and first is None:
            at = tuple(wrong[0])
            column = f", column {at[1]}" if len(at) > 1 else ""
            first = f"{key}, row {start + at[0]}{column}: {part[at]}"
        count += len(wrong)
    if count:
        others = f", and {count - 1} more such values" if count > 1 else ""
        raise ValueError(f"{first}{others}; expected {words}: repair them or remove their episodes")


def mask_states(episodes: Episodes, probability: float, seed: int) -> Episodes:
    """Return the same episodes with each state dimension masked with this probability, drawn anew for every step."""
    rng = np.random.default_rng([seed, 99])
    mask = np.empty(episodes.states.shape, bool)
    for start in range(0, len(mask), CHUNK):
        part = mask[start : start + CHUNK]
        part[:] = rng.random(part.shape) < probability
    return dataclasses.replace(episodes, mask=mask)
