"""Trajectories: D4RL's HDF5 files, episodes, reward-to-go, bins made once, windows by index arithmetic.

A dataset is one HDF5 file with D4RL's keys (Fu et al. 2020), n steps of any number of episodes one after the other:

    observations  (n, N)  states, float32 (float64 and integers are read too)
    actions       (n, M)  what was done in them
    rewards       (n,)    what that gave; (n, 1) is refused, since (n, 1) * (n,) is silently (n, n)
    terminals     (n,)    true where the environment ended the episode (a fall); bool, or the numbers 0 and 1
    timeouts      (n,)    true where a time limit or the recording ended it: not a property of the state

An episode ends at either; steps after the last end are one more episode, ended by the file.  All numbers are finite.
Arrays beside these (infos/..., metadata/...) are left alone.  Own data in this format work like any other: `write`
makes such a file, `load` reads one whole, `opened` reads one that need not fit into memory.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import h5py
import numpy as np
import torch
from torch import Tensor

from ttlib import files
from ttlib.pipeline import places
from ttlib.tokenizer import Tokenizer, Transition


def _is_flag(x: np.ndarray) -> np.ndarray:
    return (x == 0) | (x == 1)


# Of each key: number of axes, which values are right, and that in words.
FORMAT = {
    "observations": (2, np.isfinite, "finite numbers"),
    "actions": (2, np.isfinite, "finite numbers"),
    "rewards": (1, np.isfinite, "finite numbers"),
    "terminals": (1, _is_flag, "0 or 1"),
    "timeouts": (1, _is_flag, "0 or 1"),
}


KEYS = tuple(FORMAT)


MISSING = 255  # byte of a hidden state dimension among bins


# Simulators round: an action may exceed its range by this much.
ROUNDING = 1e-5


# Steps read, checked or tokenized at a time, and bytes of the columns that bins are fitted to at a time.
CHUNK, COLUMN_BYTES = 1 << 14, 1 << 24


@dataclass(frozen=True)
class Episodes:
    """Steps of all episodes, one after the other.

    states (n, N), actions (n, M) of the file's dtype, in memory or (from `opened`) read where they are sliced;
    rewards (n,) float64; starts (episodes + 1,) with starts[-1] = n;
    terminal (episodes,) bool: ended by the environment, not by a time limit; hidden (n, N) bool or None: what a
    partially observed dataset does not show.
    """

    states: np.ndarray | h5py.Dataset
    actions: np.ndarray | h5py.Dataset
    rewards: np.ndarray
    starts: np.ndarray
    terminal: np.ndarray
    hidden: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.terminal)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @property
    def returns(self) -> np.ndarray:
        """(episodes,) undiscounted sums of reward."""
        return np.add.reduceat(self.rewards, self.starts[:-1])

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """chosen: indices of episodes -> (n,) bool, the steps that are theirs."""
        return np.repeat(np.isin(np.arange(len(self)), chosen), self.lengths)

    def select(self, chosen: np.ndarray) -> "Episodes":
        """chosen: indices of episodes, in the order wanted."""
        rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in chosen])
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])])
        columns = (self.states[rows], self.actions[rows], self.rewards[rows], starts, self.terminal[chosen])
        return Episodes(*columns, None if self.hidden is None else self.hidden[rows])

    def hide(self, share: float, seed: int) -> "Episodes":
        """The same, partially observed: each state dimension hidden with probability `share`, anew for every step."""
        rng, hidden = np.random.default_rng([seed, 99]), np.empty(self.states.shape, bool)
        for start in range(0, len(hidden), CHUNK):
            part = hidden[start : start + CHUNK]
            part[:] = rng.random(part.shape) < share
        return dataclasses.replace(self, hidden=hidden)

    def parts(self, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of training and of held-out episodes, ascending: split by episode and never by step."""
        order = np.random.default_rng(seed).permutation(len(self))
        count = max(1, round(held_out * len(self)))
        if count >= len(self):
            raise ValueError(f"{held_out:.0%} of {len(self)} episodes leaves one side of the split empty")
        return np.sort(order[count:]), np.sort(order[:count])

    def split(self, held_out: float, seed: int) -> tuple["Episodes", "Episodes"]:
        """Training and held-out data, as `parts` says."""
        training, unseen = self.parts(held_out, seed)
        return self.select(training), self.select(unseen)


def episodes(
    arrays: Mapping[str, np.ndarray | h5py.Dataset], action_range: tuple[float, float] | None = None
) -> Episodes:
    """Check arrays in the format above and cut them into episodes; actions within [low, high] if a range is given.

    Raises ValueError, naming key, row, column and number of the values at fault, for what the format excludes.
    """
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(f"keys {missing} are missing; expected {list(KEYS)}, there are {sorted(arrays)}")
    for key, (axes, _, _) in FORMAT.items():
        if len(shape := arrays[key].shape) != axes:
            wanted, cut = (("(n,)", "[:, 0]"), ("(n, k)", "[:, None]"))[axes - 1]
            hint = f": write {key}{cut}" if shape[1:] in ((), (1,)) else ""
            raise ValueError(f"{key} has shape {shape}; expected {wanted}{hint}")
    n = len(arrays["rewards"])
    if lengths := {key: len(arrays[key]) for key in KEYS if len(arrays[key]) != n}:
        raise ValueError(f"lengths differ: rewards has {n} rows, but {lengths}")
    if n == 0:
        raise ValueError("no steps: the arrays are empty")
    values = {key: (right, words) for key, (_, right, words) in FORMAT.items()}
    if action_range is not None:
        low, high = action_range
        values["actions"] = (
            lambda x: (low - ROUNDING <= x) & (x <= high + ROUNDING),
            f"numbers in [{low:g}, {high:g}]",
        )
    for key, (right, words) in values.items():
        _check_values(key, arrays[key], right, words)
    terminals, timeouts = (arrays[key][:].astype(bool) for key in KEYS[3:])
    ends = np.flatnonzero(terminals | timeouts) + 1
    if not len(ends):
        raise ValueError(
            f"none of the {n} steps ends an episode: set `timeouts` at the last step of each "
            "(of one single episode: timeouts[-1] = True)"
        )
    if ends[-1] != n:
        ends = np.append(ends, n)
    rewards = arrays["rewards"][:].astype(np.float64)
    return Episodes(arrays["observations"], arrays["actions"], rewards, np.append(0, ends), terminals[ends - 1])


def _check_values(key: str, array: np.ndarray | h5py.Dataset, right, words: str) -> None:
    """ValueError unless right(array) everywhere; a chunk at a time."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{key} holds {array.dtype}; expected {words}")
    first, count = None, 0
    for start in range(0, len(array), CHUNK):
        part = array[start : start + CHUNK]
        wrong = np.argwhere(~right(part))
        if len(wrong) and first is None:
            at = tuple(wrong[0])
            first = f"{key}, row {start + at[0]}{f', column {at[1]}' if len(at) > 1 else ''}: {part[at]}"
        count += len(wrong)
    if count:
        others = f", and {count - 1} more such values" if count > 1 else ""
        raise ValueError(f"{first}{others}; expected {words}: repair them or remove their episodes")


def reward_to_go(rewards: np.ndarray, starts: np.ndarray, gamma: float, include_current: bool = True) -> np.ndarray:
    """R_t = sum_{t' >= t} gamma^(t' - t) r_t' within each episode (Section 3.2).  (n,), (E + 1,) -> (n,).

    include_current=False is the authors' later code: the sum begins at t + 1, undiscounted there, so that it is
    the R_{t+1} of the paper, and 0 at the end of an episode.
    """
    R, last = np.array(rewards, np.float64), starts[1:] - 1
    going_on = np.ones(len(R), bool)
    going_on[last] = False
    for t in range(len(R) - 2, -1, -1):
        if going_on[t]:
            R[t] += gamma * R[t + 1]
    if not include_current:
        R[:-1], R[last] = R[1:], 0.0
    return R


@dataclass(frozen=True)
class Steps:
    """A table of steps, (n, D), one row a step, columns in the order of a `Transition`, read where it is sliced.

    arrays: its columns side by side, (n, k) each.
    """

    arrays: tuple[np.ndarray | h5py.Dataset, ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, rows: slice) -> Tensor:
        """(rows, D) float64."""
        return torch.from_numpy(np.concatenate([array[rows] for array in self.arrays], axis=1, dtype=np.float64))

    def columns(self, chosen: np.ndarray) -> Iterator[Tensor]:
        """The values of each dimension in turn, of the rows chosen, (n,) bool; a few columns are in memory at once."""
        count = np.count_nonzero(chosen)
        for array in self.arrays:
            dtype = np.result_type(array, np.float32)
            few = max(1, COLUMN_BYTES // max(1, dtype.itemsize * count))
            for d in range(0, array.shape[1], few):
                block = np.empty((min(few, array.shape[1] - d), count), dtype)
                at = 0
                for start in range(0, len(self), CHUNK):
                    part = array[start : start + CHUNK, d : d + few][chosen[start : start + CHUNK]]
                    block[:, at : at + len(part)] = part.T
                    at += len(part)
                yield from torch.from_numpy(block)


def steps(
    data: Episodes, transition: Transition, gamma: float, include_current: bool, terminal_reward: float | None = None
) -> Steps:
    """The steps of all episodes, columns in the order of `transition`.

    terminal_reward replaces the reward of a step that really ended the episode (never of a timeout)
    before reward-to-go is summed, as the authors' later code does; None leaves rewards as they are.
    """
    arrays = [data.states, data.actions]
    if (found := (data.states.shape[1], data.actions.shape[1])) != (transition.N, transition.M):
        raise ValueError(f"these data have (N, M) = {found} state and action dimensions; expected {transition}")
    if transition.rewards:
        rewards = data.rewards
        if terminal_reward is not None:
            rewards = rewards.copy()
            rewards[data.starts[1:][data.terminal] - 1] = terminal_reward
        R = reward_to_go(rewards, data.starts, gamma, include_current)
        arrays += [rewards[:, None], R[:, None]]
    return Steps(tuple(arrays))


def steps_table(
    data: Episodes, transition: Transition, gamma: float, include_current: bool, terminal_reward: float | None = None
) -> Tensor:
    """`steps` in memory: (n, D) float64."""
    return steps(data, transition, gamma, include_current, terminal_reward)[:]


@dataclass(frozen=True)
class Windows:
    """Windows of T successive transitions of one episode, gathered from bins made once.

    bins (n, D) uint8; end (n,) int64: end of the episode of each step.  Every step starts one window;
    where the episode ends inside it, the rest is padding that carries no loss, so that short
    episodes and their last steps are learned from.  goal=True prepends the episode's last state.  missing=True:
    a byte MISSING is a hidden state dimension, whose id is V*D + its dimension and which carries no loss.
    markov=True: a window's first transition is only read, and carries loss only where it opens an episode.
    """

    bins: Tensor
    end: Tensor
    tokenizer: Tokenizer
    T: int
    action_weight: float = 1.0
    goal: bool = False
    missing: bool = False
    markov: bool = False

    def __len__(self) -> int:
        return len(self.bins)

    @property
    def prefix(self) -> int:
        """Goal tokens in front of a window."""
        return self.tokenizer.transition.N if self.goal else 0

    @property
    def length(self) -> int:
        return self.prefix + self.T * self.tokenizer.transition.D

    def batch(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """start: (B,) first steps -> ids (B, L) with true rewards-to-go, loss weight (B, L) of each token."""
        transition, offset = self.tokenizer.transition, self.tokenizer.offset
        step = start[:, None] + torch.arange(self.T, device=start.device)
        end = self.end[start, None]
        real = step < end
        bins = self.bins[step.minimum(end - 1)].long()  # (B, T, D)
        ids, weight = bins + offset, torch.ones(transition.D, device=start.device)
        weight[transition.action] = self.action_weight
        weight = real[..., None] * weight
        if self.missing:
            hidden = bins == MISSING
            ids = torch.where(hidden, self.tokenizer.missing, ids)
            weight = weight * ~hidden
        if self.markov:
            opens = (start == 0) | (self.end[start - 1] == start)
            weight[:, 0] *= opens[:, None]
        ids, weight = ids.flatten(1), weight.flatten(1)
        if self.goal:
            last = self.bins[end[:, 0] - 1, transition.state].long() + offset[transition.state]
            ids = torch.cat([last, ids], dim=1)
            weight = torch.cat([torch.zeros_like(last, dtype=weight.dtype), weight], dim=1)
        return ids, weight

    def to(self, device) -> "Windows":
        moved = {"bins": self.bins.to(device), "end": self.end.to(device), "tokenizer": self.tokenizer.to(device)}
        return dataclasses.replace(self, **moved)


def windows(data: Episodes, steps: Steps | Tensor, tokenizer: Tokenizer, T: int, **options) -> Windows:
    """Tokenize a whole table of steps (n, D) once and index its windows; options as in `Windows`."""
    return part_windows(data, [np.arange(len(data))], steps, tokenizer, T, **options)[0]


def part_windows(
    data: Episodes, parts: Sequence[np.ndarray], steps: Steps | Tensor, tokenizer: Tokenizer, T: int, **options
) -> list[Windows]:
    """Windows of each of several parts of the episodes (ascending indices), in one pass over the steps.

    Bins lie in a file that is mapped into memory, the parts one after the other.  It stands under build/ without a
    name: no run can find the bins of another, and nothing stays behind, however the process ends.
    """
    transition, chosen = tokenizer.transition, [data.rows(part) for part in parts]
    first = np.cumsum([0, *map(np.count_nonzero, chosen)]).tolist()  # where each part begins in the file
    folder = places.ROOT / "build"
    folder.mkdir(exist_ok=True)
    with files.needing(first[-1] * transition.D, folder), tempfile.TemporaryFile(dir=folder) as file:
        at = [row * transition.D for row in first]
        for start in range(0, len(steps), CHUNK):
            chunk = slice(start, start + CHUNK)
            bins = tokenizer.bins(steps[chunk], slice(None)).to(torch.uint8).numpy()
            if data.hidden is not None:
                bins[:, transition.state][data.hidden[chunk]] = MISSING
            for i, rows in enumerate(chosen):
                file.seek(at[i])
                at[i] += file.write(bins[rows[chunk]])
        file.flush()
        bins = torch.from_numpy(np.memmap(file, np.uint8, "c", shape=(first[-1], transition.D)))
    found = []
    for part, (a, b) in zip(parts, itertools.pairwise(first), strict=True):
        end = torch.from_numpy(np.repeat(np.cumsum(data.lengths[part]), data.lengths[part]))
        found.append(Windows(bins[a:b], end, tokenizer, T, missing=data.hidden is not None, **options))
    return found
