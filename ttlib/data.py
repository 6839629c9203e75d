"""Turn trajectories into training windows: episodes, reward-to-go, bins made once.

Arrays of n steps may be numpy arrays, or anything that is read by slices and has a
shape and a dtype: data need not fit into memory.  `datasets.arrays` checks arrays
with D4RL's names and cuts them into `Episodes`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttlib.tokenizer import Tokenizer, Transition

MASKED = 255  # the byte of a masked state dimension among bins
CHUNK = 1 << 14  # steps read, checked or tokenized at a time


@dataclass(frozen=True)
class Episodes:
    """The n steps of E episodes, one after the other."""

    states: np.ndarray  # (n, N)
    actions: np.ndarray  # (n, M)
    rewards: np.ndarray  # (n,) float64
    starts: np.ndarray  # (E + 1,), the last is n
    terminal: np.ndarray  # (E,) bool: the environment ended the episode
    mask: np.ndarray | None = None  # (n, N) bool: states not shown

    def __len__(self) -> int:
        return len(self.terminal)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @property
    def returns(self) -> np.ndarray:
        """The undiscounted return of each episode.  (E,)"""
        return np.add.reduceat(self.rewards, self.starts[:-1])

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Return which steps belong to the episodes `chosen` -> (n,) bool."""
        return np.repeat(np.isin(np.arange(len(self)), chosen), self.lengths)

    def select(self, chosen: np.ndarray) -> "Episodes":
        """Return the episodes with indices `chosen` (K,), in that order."""
        spans = [np.arange(self.starts[i], self.starts[i + 1]) for i in chosen]
        rows = np.concatenate(spans)
        columns = (self.states[rows], self.actions[rows], self.rewards[rows])
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])])
        mask = None if self.mask is None else self.mask[rows]
        return Episodes(*columns, starts, self.terminal[chosen], mask)

    def split(self, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return indices of training and of held-out episodes, (K,) each."""
        order = np.random.default_rng(seed).permutation(len(self))
        count = max(1, round(held_out * len(self)))
        if count >= len(self):
            found = f"{held_out:.0%} of {len(self)} episodes"
            raise ValueError(f"{found} leaves one side of the split empty")
        return np.sort(order[count:]), np.sort(order[:count])


def reward_to_go(
    rewards: np.ndarray, starts: np.ndarray, gamma: float, reward_in_R: bool = True
) -> np.ndarray:
    """Return R_t = sum_{t' >= t} gamma^(t' - t) r_t' in each episode (Section 3.2).

    (n,), (E + 1,) -> (n,).  In the authors' later code, reward_in_R=False, it is
    the paper's R_{t+1}, and 0 at the end of an episode.
    """
    R, last = np.array(rewards, np.float64), starts[1:] - 1
    going_on = np.ones(len(R), bool)
    going_on[last] = False
    for t in range(len(R) - 2, -1, -1):
        if going_on[t]:
            R[t] += gamma * R[t + 1]
    if not reward_in_R:
        R[:-1], R[last] = R[1:], 0.0
    return R


@dataclass(frozen=True)
class Steps:
    """A table of steps (n, D): columns (n, k) side by side, read when sliced."""

    arrays: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, rows: slice) -> Tensor:
        """Return rows of the table, (rows, D) float64."""
        parts = [array[rows] for array in self.arrays]
        return torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float64))

    def columns(self, chosen: np.ndarray) -> Iterator[Tensor]:
        """Return each dimension's values in turn for the rows chosen, (n,) bool."""
        for array in self.arrays:
            for d in range(array.shape[1]):
                column = array[:, d]
                dtype = np.result_type(column, np.float32)
                yield torch.from_numpy(column[chosen].astype(dtype))


def steps(
    data: Episodes, transition: Transition, gamma: float, reward_in_R: bool = True,
    terminal_reward: float | None = None,
) -> Steps:  # fmt: skip
    """Return the steps of all episodes, (n, D), in the order of `transition`.

    terminal_reward replaces the reward where the environment ended an episode (the
    later code).  Raises ValueError where the data have other dimensions.
    """
    sizes = (data.states.shape[1], data.actions.shape[1])
    if sizes != (transition.N, transition.M):
        raise ValueError(f"these data have (N, M) = {sizes}; expected {transition}")
    arrays = [data.states, data.actions]
    if transition.rewards:
        rewards = data.rewards
        if terminal_reward is not None:
            rewards = rewards.copy()
            rewards[data.starts[1:][data.terminal] - 1] = terminal_reward
        R = reward_to_go(rewards, data.starts, gamma, reward_in_R)
        arrays += [rewards[:, None], R[:, None]]
    return Steps(tuple(arrays))


@dataclass(frozen=True)
class Windows:
    """Windows of T successive transitions of one episode, from bins made once.

    Every step starts one window.  Where the episode ends inside it, the rest is
    padding without loss, so that all of a short episode is learned.
    """

    bins: Tensor  # (n, D) uint8
    end: Tensor  # (n,) int64: the end of each step's episode
    tokenizer: Tokenizer
    T: int
    action_weight: float = 1.0
    goal: bool = False  # the episode's last state stands in front of each window
    masked: bool = False  # the byte MASKED is a masked state; it carries no loss
    markov: bool = False  # a first transition has loss if it opens an episode

    def __len__(self) -> int:
        return len(self.bins)

    @property
    def prefix(self) -> int:
        return self.tokenizer.transition.N if self.goal else 0

    @property
    def length(self) -> int:
        return self.prefix + self.T * self.tokenizer.transition.D

    def batch(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return windows of L tokens that begin at steps (B,): ids with true
        rewards-to-go and the loss weight of each token, (B, L) both."""
        transition, offset = self.tokenizer.transition, self.tokenizer.offset
        step = start[:, None] + torch.arange(self.T, device=start.device)
        end = self.end[start, None]
        real = step < end
        bins = self.bins[step.minimum(end - 1)].long()  # (B, T, D)
        ids, weight = bins + offset, torch.ones(transition.D, device=start.device)
        weight[transition.action] = self.action_weight
        weight = real[..., None] * weight
        if self.masked:
            ids = torch.where(bins == MASKED, self.tokenizer.mask_ids, ids)
            weight = weight * (bins != MASKED)
        if self.markov:
            opens = (start == 0) | (self.end[start - 1] == start)
            weight[:, 0] *= opens[:, None]
        ids, weight = ids.flatten(1), weight.flatten(1)
        if self.goal:
            last = self.bins[end[:, 0] - 1, transition.state].long()
            ids = torch.cat([last + offset[transition.state], ids], dim=1)
            weight = F.pad(weight, (last.shape[1], 0))
        return ids, weight

    def to(self, device) -> "Windows":
        names = ("bins", "end", "tokenizer")
        moved = {name: getattr(self, name).to(device) for name in names}
        return dataclasses.replace(self, **moved)


def windows(
    data: Episodes, steps: Steps | Tensor, tokenizer: Tokenizer, T: int,
    parts: Sequence[np.ndarray] | None = None, **options,
) -> list[Windows]:  # fmt: skip
    """Tokenize steps (n, D) in chunks -> windows of each part of the episodes.

    parts: as from `Episodes.split`, or one part with all; options: see `Windows`.
    """
    parts = [np.arange(len(data))] if parts is None else parts
    bins = np.empty((len(steps), tokenizer.transition.D), np.uint8)
    for start in range(0, len(steps), CHUNK):
        chunk = slice(start, start + CHUNK)
        bins[chunk] = tokenizer.bins(steps[chunk], slice(None)).numpy()
    if data.mask is not None:
        bins[:, tokenizer.transition.state][data.mask] = MASKED
    options = {"masked": data.mask is not None, **options}
    lengths = [data.lengths[part] for part in parts]
    ends = [torch.from_numpy(np.repeat(np.cumsum(n), n)) for n in lengths]
    rows = [torch.from_numpy(bins[data.rows(part)]) for part in parts]
    return [Windows(b, end, tokenizer, T, **options) for b, end in zip(rows, ends)]
