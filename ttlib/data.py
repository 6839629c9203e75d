"""Trajectories: D4RL's HDF5 files, episodes, reward-to-go, bins made once, windows by index arithmetic."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ttlib import results
from ttlib.tokenizer import Tokenizer, Transition

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
MISSING = 255  # byte of a hidden state dimension among bins


@dataclass(frozen=True)
class Episodes:
    """Steps of all episodes, one after the other.

    states (n, N), actions (n, M), rewards (n,) float; starts (episodes + 1,) with starts[-1] = n;
    terminal (episodes,) bool: ended by the environment, not by a time limit; hidden (n, N) bool or None: what a
    partially observed dataset does not show.
    """

    states: np.ndarray
    actions: np.ndarray
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

    def select(self, chosen: np.ndarray) -> "Episodes":
        """chosen: indices of episodes, in the order wanted."""
        rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in chosen])
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])])
        columns = (self.states[rows], self.actions[rows], self.rewards[rows], starts, self.terminal[chosen])
        return Episodes(*columns, None if self.hidden is None else self.hidden[rows])

    def hide(self, share: float, seed: int) -> "Episodes":
        """The same, partially observed: each state dimension hidden with probability `share`, anew for every step."""
        return dataclasses.replace(self, hidden=np.random.default_rng([seed, 99]).random(self.states.shape) < share)

    def split(self, held_out: float, seed: int) -> tuple["Episodes", "Episodes"]:
        """Training and held-out data, split by episode and never by step."""
        order = np.random.default_rng(seed).permutation(len(self))
        count = round(held_out * len(self))
        if not 0 < count < len(self):
            raise ValueError(f"{held_out:.0%} of {len(self)} episodes leaves one side of the split empty")
        return self.select(np.sort(order[count:])), self.select(np.sort(order[:count]))


def episodes(arrays: dict[str, np.ndarray]) -> Episodes:
    """Cut D4RL's flat arrays (KEYS) into episodes: one ends at `terminals` or `timeouts`.

    Raises ValueError for a missing key, lengths that differ, non-finite numbers or no steps.  Steps
    after the last end form an episode of their own, ended by the file and so not terminal.
    """
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(f"keys {missing} are missing; expected {list(KEYS)}, there are {sorted(arrays)}")
    n = len(arrays["rewards"])
    if lengths := {key: len(arrays[key]) for key in KEYS if len(arrays[key]) != n}:
        raise ValueError(f"lengths differ: rewards has {n} rows, but {lengths}")
    if n == 0:
        raise ValueError("no steps: the arrays are empty")
    for key in KEYS[:3]:
        if not (finite := np.isfinite(arrays[key])).all():
            raise ValueError(f"non-finite number in {key}, row {np.argwhere(~finite)[0][0]}: remove that episode")
    terminals, timeouts = (np.asarray(arrays[key]).astype(bool) for key in KEYS[3:])
    ends = np.flatnonzero(terminals | timeouts) + 1
    if not len(ends) or ends[-1] != n:
        ends = np.append(ends, n)
    states, actions, rewards = (np.asarray(arrays[key], np.float64) for key in KEYS[:3])
    return Episodes(states, actions, rewards, np.concatenate([[0], ends]), terminals[ends - 1])


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an HDF5 file in D4RL's format, metadata left out."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing; run `make data` (see data/README.md)")
    try:
        with h5py.File(path) as file:
            found = {}
            file.visititems(lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {}))
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error}); delete it and run `make data`") from error
    return {name: array for name, array in found.items() if not name.startswith("metadata")}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as HDF5, aside first: a killed run leaves no half file under the final name."""

    def fill(aside: Path) -> None:
        with h5py.File(aside, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip", compression_opts=1, shuffle=True)

    results.write_aside(Path(path), fill)


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
    return R if include_current else np.where(going_on, np.append(R[1:], 0.0), 0.0)


def steps_table(
    data: Episodes, transition: Transition, gamma: float, include_current: bool, terminal_reward: float | None = None
) -> Tensor:
    """(n, D) float64: one row a step, columns in the order of `transition`.

    terminal_reward replaces the reward of a step that really ended the episode (never of a timeout)
    before reward-to-go is summed, as the authors' later code does; None leaves rewards as they are.
    """
    columns = [data.states, data.actions]
    if transition.rewards:
        rewards = data.rewards.copy()
        if terminal_reward is not None:
            rewards[data.starts[1:][data.terminal] - 1] = terminal_reward
        R = reward_to_go(rewards, data.starts, gamma, include_current)
        columns += [rewards[:, None], R[:, None]]
    return torch.from_numpy(np.concatenate(columns, axis=1))


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


def windows(data: Episodes, steps: Tensor, tokenizer: Tokenizer, T: int, **options) -> Windows:
    """Tokenize a whole table of steps (n, D) once and index its windows."""
    bins = tokenizer.bins(steps, slice(None)).to(torch.uint8)
    if data.hidden is not None:
        bins[:, tokenizer.transition.state][torch.from_numpy(data.hidden)] = MISSING
    end = torch.from_numpy(np.repeat(data.starts[1:], data.lengths))
    return Windows(bins, end, tokenizer, T, missing=data.hidden is not None, **options)
