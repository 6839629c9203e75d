"""Long-horizon prediction (Section 4.1): trajectories sampled from the model alone, actions included."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttlib import cache, search
from ttlib.cache import Cache
from ttlib.control import Streams
from ttlib.model import GPT
from ttlib.tokenizer import Tokenizer


def context_length(t: int, T: int, kept_transitions: int) -> int:
    """Return how many earlier transitions the model reads before transition t = 0, 1, ..., in a window of T.

    The number grows from 0 to T - 1.  Then the window is full and is cut to its last `kept_transitions`, and the number
    grows from there to T - 1 again, over and over.
    """
    return t if t < T else kept_transitions + (t - T) % (T - kept_transitions)


class WindowReader:
    """A reader of S sequences of any number of transitions, through the model's window.

    Every token of transition t is predicted from the `context_length(t)` transitions before it and from the tokens of t
    before it, with positions from 0 on.  Raises ValueError if `kept_transitions` is not in 1, ..., T - 1, or if the
    model has a goal.
    """

    def __init__(self, model: GPT, kept_transitions: int):
        T = model.config.T
        if not 1 <= kept_transitions < T:
            raise ValueError(
                f"kept_transitions={kept_transitions} in a window of {T} transitions; expected 1 to {T - 1}: "
                "a state is predicted from at least one transition, and the window needs room for the next one"
            )
        if model.config.prefix:
            raise ValueError(
                f"the model reads {model.config.prefix} goal tokens; expected none: predict with a model without goals"
            )
        self.model, self.kept_transitions, self.t, self.window = model, kept_transitions, 0, []
        self.cache = Cache(spare_slots=model.config.transition.D)  # it grows by one transition at a time

    def read(self, ids: Tensor) -> Tensor:
        """Read the next tokens ids (S, n), of one transition, and return the logits (S, V) of the token after them."""
        logits = cache.decode(self.model, ids, self.cache)[:, -1]
        self.window.append(ids)
        D = self.model.config.transition.D
        if self.model.config.transition.dimension(self.cache.length) == 0:
            self.t += 1
            length = D * context_length(self.t, self.model.config.T, self.kept_transitions)
            if length < self.cache.length:
                self.window, self.cache = [torch.cat(self.window, 1)[:, -length:]], Cache(spare_slots=D)
                # The first token of the next state is also predicted from the shorter window.
                logits = cache.decode(self.model, self.window[0], self.cache)[:, -1]
        return logits


@dataclass(frozen=True)
class Prediction:
    """Sampled trajectories, S of them, whose values are centres of bins.

    predictive: for the states after the first, the model's distribution of each dimension, given all tokens that a
    sample drew before it.  It is the mean over samples.
    """

    states: np.ndarray  # (S, steps + 1, N), the given states first
    actions: np.ndarray  # (S, steps, M)
    predictive: np.ndarray  # (steps, N, V)


def _tokens_to_read(tokenizer: Tokenizer, token: Tensor, dim: int, masked: Tensor | None) -> Tensor:
    """Return what the model reads once the token (S, 1) of a dimension is known.

    It reads the mask instead of state dimensions where masked (S, N) is true, and the blank reward-to-go with a reward.
    """
    transition = tokenizer.transition
    if masked is not None and dim < transition.N:
        return torch.where(masked[:, dim, None], tokenizer.mask_ids[dim], token)
    if dim == transition.reward:
        return torch.cat([token, torch.full_like(token, tokenizer.blank)], 1)
    return token


@torch.inference_mode()
def rollout(
    model: GPT, tokenizer: Tokenizer, start: np.ndarray, steps: int, kept_transitions: int, streams: Streams,
    mask_probability: float = 0.0, progress: Callable[[int], None] | None = None,
) -> Prediction:  # fmt: skip
    """Sample a trajectory of `steps` transitions from each first state, start (S, N) in raw units.

    Each token but rewards-to-go is drawn from the model, as `WindowReader` reads.  Each state dimension is masked with
    `mask_probability`, independently for every sample and step: its value is drawn, but the model does not see it.
    streams: one for all samples or one for each of equal groups of them.  Raises ValueError if start cannot be
    tokenized, if mask_probability is 0 for a masked model or above 0 for another one, and as `WindowReader` does.
    """
    transition = tokenizer.transition
    if (mask_probability > 0) != model.config.masked:
        raise ValueError(
            f"mask_probability={mask_probability}, but the model's config has masked={model.config.masked}; "
            "expected a probability above 0 for a masked model, and 0 for any other"
        )
    device, reader = next(model.parameters()).device, WindowReader(model, kept_transitions)
    first = tokenizer.encode(torch.as_tensor(start, dtype=torch.float64, device=device), transition.state)
    ids = first.new_empty(len(first), steps + 1, transition.D)
    ids[:, 0, transition.state] = first
    predictive = torch.empty(steps, transition.N, tokenizer.V, device=device)
    masked = log_p = None
    for t in range(steps + 1):
        if mask_probability:
            masked = streams.uniform(*first.shape) < mask_probability
        for dim in range(transition.N if t == steps else transition.D - transition.rewards):  # R is never drawn
            if t and dim < transition.N:
                # Departs from the paper: a marginal is the mean of predictive distributions, with no empty bins, not
                # a histogram of samples.
                predictive[t - 1, dim] = log_p.exp().mean(0)
            if t or dim >= transition.N:  # the first state is given
                ids[:, t, dim] = search.sample(log_p, streams) + tokenizer.offset[dim]
            log_p = reader.read(_tokens_to_read(tokenizer, ids[:, t, dim, None], dim, masked)).log_softmax(-1)
        if progress and t:
            progress(t)
    states = tokenizer.decode(ids[..., transition.state]).cpu().numpy()
    states[:, 0] = start
    actions = tokenizer.decode(ids[:, :-1, transition.action]).cpu().numpy()
    return Prediction(states, actions, predictive.double().cpu().numpy())
