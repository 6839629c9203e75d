"""Acting without search: by a function of the state, or by sampling from the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttlib import search
from ttlib.control import Decoder, Streams


class FunctionAgent:
    """An agent that acts by a function of the current states (E, N) and of rows (E,), the numbers of their rollouts."""

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.function = function

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one rollout for each seed."""
        self.rows = np.arange(len(seeds))

    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict]:
        """Return actions (E, M) for states (E, N), and nothing to record."""
        return self.function(states, self.rows), {}

    def observe(self, rewards: np.ndarray, going_on: np.ndarray) -> None:
        """Keep the rollouts that go on.  (E,) both"""
        self.rows = self.rows[going_on]


@dataclass(frozen=True)
class BySampling:
    """Draw the action from the model: imitation without search."""

    drop_probability: float = 0.0
    horizon: int = 1

    def __call__(self, decoder: Decoder, streams: Streams) -> tuple[Tensor, dict]:
        """Return action bins (E, M) and what to record, (E,) each."""
        pick = lambda x: search.sample(x, streams, self.drop_probability)  # noqa: E731
        one = torch.zeros_like(decoder.log_p[..., 0], dtype=torch.long)  # (E, 1)
        M = decoder.tokenizer.transition.M
        beams = search.extend(decoder.advance, decoder.log_p, one, M, pick)
        return beams.bins[:, 0], {"log_p": beams.log_p[:, 0]}
