"""Plan as only the authors' later code does: with a window that slides, and with the likeliest bins alone."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ttlib import search
from ttlib.control import ByReward, Streams
from ttlib.model import GPT
from ttlib.search import Beams, Plan
from ttlib.tokenizer import Tokenizer


class SlidingDecoder:
    """The verbs of `search`, as `control.Decoder`, for plans that are longer than the window.

    A sequence that fills `window` transitions loses its first one, and what is left is read anew from position 0.  So a
    token sees at most window - 1 transitions before its own, observed or imagined.  reader: the decoder that reads.
    Sequences have no goal; a transition is complete where its R is read, after `select_plans`.
    """

    def __init__(self, reader: Callable, window: int, model: GPT, tokenizer: Tokenizer, ids: Tensor):
        self.reader, self.model, self.tokenizer = reader, model, tokenizer
        self.full = window * tokenizer.transition.D  # tokens
        self._read(ids)

    def _read(self, ids: Tensor) -> None:
        """Read sequences (G, L) from position 0."""
        self.ids = ids[:, None]  # of all sequences, (G, K, L)
        self.decoder = self.reader(self.model, self.tokenizer, ids)
        self.log_p = self.decoder.log_p

    def advance(self, bins: Tensor, parents: Tensor | None) -> Tensor:
        """Append bins (G, K) to sequences `parents` (G, K) -> log_p (G, K, V)."""
        if parents is not None:
            self.ids = self.ids.take_along_dim(parents[..., None], 1)
        transition, length = self.tokenizer.transition, self.ids.shape[2]
        first = transition.first_id(self.tokenizer.V, transition.dimension(length))
        self.ids = torch.cat([self.ids, bins[..., None] + first], 2)
        if length + 1 < self.full:
            return self.decoder.advance(bins, parents)
        self._read(self.ids[:, 0, transition.D :])
        return self.log_p

    def select_plans(self, rows: Tensor) -> None:
        """Make each of the sequences `rows` (E, B) a group of its own."""
        whole = self.ids.view(len(rows), -1, self.ids.shape[2])
        self.ids = whole.take_along_dim(rows[..., None], 1).flatten(0, 1)[:, None]
        if self.ids.shape[2] + 1 < self.full:  # else R fills the window, and all is read anew
            self.decoder.select_plans(rows)


def sliding(reader: Callable, window: int) -> Callable:
    """Return a decoder, as `control.Decoder`, that reads `window` transitions at once, the current one included."""
    return functools.partial(SlidingDecoder, reader, window)


class ByRewardSliding(ByReward):
    """Choose as `ByReward` does, by plans of any length, which a `SlidingDecoder` reads."""

    @property
    def horizon(self) -> int:
        """The transitions that the window must hold beside the context."""
        return 1


@dataclass(frozen=True)
class LikeliestBins:
    """Propose as `search.propose` does, with tokens that are drawn from the `count` likeliest bins alone."""

    count: int

    def __call__(
        self, advance: search.Advance, log_p: Tensor, tokens: tuple[int, int], count: int, plan: Plan, streams: Streams
    ) -> Beams:
        """Return `count` candidates for each of G plans; the likeliest state stays the likeliest."""

        def advance_filtered(bins: Tensor, parents: Tensor | None) -> Tensor:
            return self._filtered(advance(bins, parents))

        return search.propose(advance_filtered, self._filtered(log_p), tokens, count, plan, streams)

    def _filtered(self, log_p: Tensor) -> Tensor:
        """Return log-probabilities (..., V), with -inf for all but the likeliest."""
        least = log_p.topk(min(self.count, log_p.shape[-1])).values[..., -1:]
        return log_p.masked_fill(log_p < least, -torch.inf)
