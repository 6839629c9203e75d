"""Check arrays with D4RL's names and cut them into episodes.

A dataset is a mapping of arrays with D4RL's names (Fu et al. 2020).  It holds n steps of any number of episodes, one
after the other:

    observations  (n, N)  states
    actions       (n, M)  the actions taken in them
    rewards       (n,)    the rewards received
    terminals     (n,)    true where the environment ended the episode, such as a fall; bool, or the numbers 0 and 1
    timeouts      (n,)    true where a time limit or the recording ended it: not a property of the state

An episode ends at either.  Steps after the last end are one more episode, ended by the recording.  All numbers are
finite, and at most LARGEST, so that sums and ranges are finite too.  Arrays beside these (infos/..., metadata/...) are
left alone.  Lists, tensors and data frames are taken as arrays, and columns (n, 1) of rewards and ends as (n,).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from ttlib.data import CHUNK, Episodes

LARGEST = np.float64(1e30)
FINITE = (lambda x: np.isfinite(x) & (np.abs(x) <= LARGEST), "finite numbers, at most 1e+30")
FLAG = (lambda x: (x == 0) | (x == 1), "0 or 1")
# For each key: the number of axes, the test of its values, and that test in words.
FORMAT = {"observations": (2, *FINITE), "actions": (2, *FINITE), "rewards": (1, *FINITE)}
FORMAT |= {"terminals": (1, *FLAG), "timeouts": (1, *FLAG)}
KEYS = tuple(FORMAT)
ROUNDING = 1e-5  # simulators round: an action may exceed its range by this much


def episodes(given: Mapping, action_range: tuple[float, float] | None = None) -> Episodes:
    """Check arrays, with actions in action_range if given, and cut them into episodes; ValueError lists all faults."""
    arrays, found = checked(given, action_range)
    refuse(found)
    terminals, timeouts = (arrays[key][:].astype(bool) for key in KEYS[3:])
    ends, n = np.flatnonzero(terminals | timeouts) + 1, len(terminals)
    if ends[-1] != n:
        ends = np.append(ends, n)
    rewards = arrays["rewards"][:].astype(np.float64)
    starts, terminal = np.append(0, ends), terminals[ends - 1]
    return Episodes(arrays["observations"], arrays["actions"], rewards, starts, terminal)


def refuse(faults: list[str]) -> None:
    """Raise ValueError with all faults, unless there are none."""
    if len(faults) > 1:
        raise ValueError(f"{len(faults)} faults:" + "".join(f"\n  - {fault}" for fault in faults))
    if faults:
        raise ValueError(faults[0])


def checked(given: Mapping, action_range: tuple[float, float] | None = None) -> tuple[dict, list[str]]:
    """Return what is given as arrays, and a sentence about each fault of theirs."""
    if not isinstance(given, Mapping):
        return {}, [f"a {type(given).__name__} was given; expected a dictionary with the arrays {list(KEYS)}"]
    if faults := missing(given):
        return {}, faults
    arrays, found = {}, []
    for key in KEYS:
        try:
            arrays[key] = _array(key, given[key])
        except ValueError as error:
            found.append(str(error))
    n = len(arrays.get("rewards", ()))
    if n and (lengths := {key: len(array) for key, array in arrays.items() if len(array) != n}):
        more = lengths.get("observations", 0) > n
        hint = ": leave out the last observation of each episode, which has no action" if more else ""
        found.append(f"lengths differ: rewards has {n} rows, but {lengths}{hint}")
    if "rewards" in arrays and not n:
        found.append("no steps: the arrays are empty")
    checks = dict(FORMAT)
    if action_range is not None:
        low, high = action_range
        within = lambda x: (low - ROUNDING <= x) & (x <= high + ROUNDING)  # noqa: E731
        checks["actions"] = (2, within, f"numbers in [{low:g}, {high:g}]")
    found += filter(None, [_fault(key, array, given[key], *checks[key][1:]) for key, array in arrays.items()])
    if not found and not any(arrays[key][:].any() for key in KEYS[3:]):
        found.append(
            f"none of the {n} steps ends an episode: set `timeouts` at the last step of "
            "each episode (timeouts[-1] = True if there is only one)"
        )
    return arrays, found


def missing(names: Iterable[str]) -> list[str]:
    """Return the fault that keys are missing among `names`, if they are."""
    names = sorted(map(str, names))
    if absent := [key for key in KEYS if key not in names]:
        others = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return [f"keys {absent} are missing; expected {list(KEYS)}, found {names[:10]}{others}"]
    return []


def _array(key: str, x) -> np.ndarray:
    """Return lists, tensors and frames as arrays; what is read by slices stays so.  Raise ValueError otherwise."""
    axes, _, words = FORMAT[key]
    if isinstance(x, Mapping):
        names = list(x)[:10]
        raise ValueError(f"{key} holds the entries {names}; expected one array: put those that you want side by side")
    if np.ma.is_masked(x):
        raise ValueError(f"{key} hides {np.ma.count_masked(x)} values behind a mask; expected {words}: fill them in")
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    for method in ("to_numpy", "toarray"):  # data frames and their columns; sparse matrices
        x = getattr(x, method)() if hasattr(x, method) else x
    if isinstance(x, np.ndarray) or not (hasattr(x, "shape") and hasattr(x, "dtype")):
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{key} has rows of different lengths; expected one length: {error}") from None
    if x.dtype.kind not in "fiub" or x.dtype.itemsize > 8:
        raise ValueError(f"{key} holds {x.dtype}; expected {words}{_remedy(key, x.dtype)}")
    if axes == 1 and x.shape[1:] == (1,):
        return np.asarray(x[:])[:, 0]
    if len(shape := x.shape) != axes:
        expected, cut = (("(n,)", "[:, 0]"), ("(n, k)", "[:, None]"))[axes - 1]
        hint = f": write {key}{cut}" if shape[1:] == () and shape else ""
        hint = ": encode images into a few numbers first" if len(shape) == 4 else hint
        raise ValueError(f"{key} has shape {shape}; expected {expected}{hint}")
    if axes == 2 and not shape[1]:
        raise ValueError(f"{key} has shape {shape}; expected at least one column")
    return x


def _remedy(key: str, dtype: np.dtype) -> str:
    """Return how to turn values of a type that is no number into numbers."""
    if dtype.names:
        return f": put its fields {list(dtype.names)} side by side, as columns"
    if dtype.kind == "O":
        return ": stack its rows to one array of numbers, all of one length"
    if dtype.kind == "c":
        return ": give the real and the imaginary part as two columns"
    return f": write {key}.astype(np.float64)" if dtype.kind == "f" else ""


def _fault(key: str, array: np.ndarray, given, right: Callable, words: str) -> str:
    """Return a sentence unless right(array) is true everywhere, read in chunks.  Columns are named as in `given`."""
    first, count, names = None, 0, getattr(given, "columns", None)
    for start in range(0, len(array), CHUNK):
        part = array[start : start + CHUNK]
        wrong = np.argwhere(~right(part))
        if len(wrong) and first is None:
            at = tuple(wrong[0])
            name = at[-1] if names is None else repr(names[at[-1]])
            column = f", column {name}" if len(at) > 1 else ""
            first = f"{key}, row {start + at[0]}{column}: {part[at]}"
        count += len(wrong)
    others = f", and {count - 1} more such values" if count > 1 else ""
    return f"{first}{others}; expected {words}: repair them or remove their episodes" if count else ""


def split(episodes: Episodes, held_out: float, seed: int) -> tuple[Episodes, tuple[np.ndarray, np.ndarray]]:
    """Return episodes, and the indices of those to train on and of those held out, as `Episodes.split` does.

    A single episode is cut in two, of which the later one is held out.  Raises ValueError if it is a single step.
    """
    if len(episodes) > 1:
        return episodes, episodes.split(held_out, seed)
    n = episodes.starts[-1]
    if n < 2:
        raise ValueError("one step in one episode; expected more: no step is left to be held out")
    at = min(n - 1, max(1, round((1 - held_out) * n)))
    terminal = np.array([False, episodes.terminal[0]])
    cut = dataclasses.replace(episodes, starts=np.array([0, at, n]), terminal=terminal)
    return cut, (np.array([0]), np.array([1]))


def mask_states(episodes: Episodes, probability: float, seed: int) -> Episodes:
    """Return the same episodes with each state dimension masked with this probability, drawn anew for every step."""
    rng = np.random.default_rng([seed, 99])
    mask = np.empty(episodes.states.shape, bool)
    for start in range(0, len(mask), CHUNK):
        part = mask[start : start + CHUNK]
        part[:] = rng.random(part.shape) < probability
    return dataclasses.replace(episodes, mask=mask)
