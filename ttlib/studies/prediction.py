"""Long-horizon prediction (Section 4.1): whole trajectories sampled from the model alone, actions included."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttlib import cache, search
from ttlib.cache import Cache
from ttlib.model import GPT
from ttlib.tokenizer import Tokenizer


def past(t: int, T: int, kept: int) -> int:
    """How many transitions before it transition t = 0, 1, ... is read after, in a window of T.

    0, 1, ..., T - 1, then kept, kept + 1, ..., T - 1 over and over: a full window is cut to its last `kept`
    transitions.  kept = T - 1 moves it by one transition at a time; a smaller number reads less anew.
    """
    return t if t < T else kept + (t - T) % (T - kept)


class Stream:
    """S sequences of any number of transitions, read through the model's window.

    Every token of transition t, its first one included, is predicted from the `past(t)` transitions before it, at
    positions that begin with 0 there, and from nothing earlier.  A Markovian model (T = 2, kept = 1) so sees the
    previous and the current transition.
    """

    def __init__(self, model: GPT, kept: int):
        T = model.config.T
        if not 1 <= kept < T or model.config.prefix:
            raise ValueError(
                f"kept={kept} transitions of a window of {T} after {model.config.prefix} goal tokens; expected "
                "1 <= kept < T, since a state is predicted from the transition before it, and no goal"
            )
        self.model, self.kept, self.t, self.window = model, kept, 0, []
        self.cache = self._empty()

    def _empty(self) -> Cache:
        cache = Cache()
        cache.room = self.model.config.transition.D  # a sequence is a group of its own, and grows by these
        return cache

    def read(self, ids: Tensor) -> Tensor:
        """The next tokens, (S, n), none beyond the end of their transition -> logits (S, V) of the token after."""
        logits = cache.read(self.model, ids, self.cache)[:, -1]
        self.window.append(ids)
        D = self.model.config.transition.D
        if self.cache.length % D == 0:
            self.t += 1
            length = D * past(self.t, self.model.config.T, self.kept)
            if length < self.cache.length:
                self.window, self.cache = [torch.cat(self.window, 1)[:, -length:]], self._empty()
                # The next state's first token too is predicted from the shorter window.
                logits = cache.read(self.model, self.window[0], self.cache)[:, -1]
        return logits


@dataclass(frozen=True)
class Prediction:
    """S sampled trajectories: states (S, steps + 1, N), the given ones first, and actions (S, steps, M), bin centres.

    predictive (steps, N, V): for the states after the first, the mean over samples of the model's distribution of
    each dimension, given all that the sample had drawn before it.
    """

    states: np.ndarray
    actions: np.ndarray
    predictive: np.ndarray


@torch.inference_mode()
def rollout(
    model: GPT,
    tokenizer: Tokenizer,
    start: np.ndarray,
    steps: int,
    kept: int,
    rng: torch.Generator,
    hidden: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> Prediction:
    """Sample a trajectory of `steps` transitions from each first state, start (S, N).

    Each token is drawn from the model given the tokens before it, as `Stream` reads them; rewards too, but
    rewards-to-go never.  hidden: share of state dimensions that the model is not shown, drawn anew for every
    sample and step; their values are drawn all the same.  progress is called with the steps done.
    Raises ValueError if start cannot be tokenized or a model of hidden states is to see all, or the reverse.
    """
    transition, V = tokenizer.transition, tokenizer.V
    if (hidden > 0) != model.config.missing:
        raise ValueError(f"hidden={hidden}, but the model is of partly hidden states: {model.config.missing}")
    device, stream = next(model.parameters()).device, Stream(model, kept)
    first = tokenizer.encode(torch.as_tensor(start, dtype=torch.float64, device=device), transition.state)
    ids = first.new_empty(len(first), steps + 1, transition.D)
    ids[:, 0, transition.state] = first
    predictive = torch.empty(steps, transition.N, V, device=device)
    log_p = None
    for t in range(steps + 1):
        unseen = torch.rand(first.shape, generator=rng, device=device) < hidden if hidden else None
        for dim in range(transition.D if t < steps else transition.N):
            is_state = dim < transition.N
            if dim == transition.reward_to_go:
                continue  # it was read together with r
            if t and is_state:
                # Departs from the paper: a marginal is the mean of predictive distributions, with no empty bins, not
                # a histogram of samples.
                predictive[t - 1, dim] = log_p.exp().mean(0)
            if t or not is_state:
                ids[:, t, dim] = search.sample(log_p, rng) + V * dim
            token = ids[:, t, dim, None]
            if is_state and hidden:
                token = torch.where(unseen[:, dim, None], tokenizer.missing[dim], token)
            elif dim == transition.reward:
                token = torch.cat([token, torch.full_like(token, V * transition.reward_to_go)], 1)
            log_p = stream.read(token).log_softmax(-1)
        if progress and t:
            progress(t)
    states = tokenizer.decode(ids[..., transition.state]).cpu().numpy()
    states[:, 0] = start
    actions = tokenizer.decode(ids[:, :-1, transition.action]).cpu().numpy()
    return Prediction(states, actions, predictive.double().cpu().numpy())
