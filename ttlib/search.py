"""Sampling, Algorithm 1, and reward-maximising search.

Search knows nothing about networks.  It grows sequences by one verb,

    advance(bins, parents): (G, K), (G, K) -> (G, K, V)

which appends a token to K sequences of each of G problems and answers with
log-probabilities of the next one.  Sequence k continues the parents[g, k]-th of
the sequences before (parents None: itself).  Reward-maximising search also needs
select_plans(rows), (E, B): B sequences of each of E environments become problems,
so that G becomes E * B.  `control.Decoder` implements both.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ttlib.tokenizer import Tokenizer

Advance = Callable[[Tensor, Tensor | None], Tensor]


def filtered(log_p: Tensor, drop_probability: float) -> Tensor:
    """Return log-probabilities (..., V) with -inf where a bin is dropped.

    The least likely bins that together hold less than `drop_probability` are
    dropped.  The rest is not renormalised.
    """
    if not 0 <= drop_probability < 1:
        raise ValueError(f"drop_probability={drop_probability}; expected [0, 1)")
    log_p = log_p.log_softmax(-1)
    if not drop_probability:
        return log_p
    ascending = log_p.sort(-1).values if log_p.is_cuda else _sorted(log_p)
    below = ascending.softmax(-1).cumsum(-1) < drop_probability
    dropped = below.sum(-1, keepdim=True).clamp(max=log_p.shape[-1] - 1)
    least = ascending.gather(-1, dropped)  # the likeliest bin always stays
    return log_p.masked_fill(log_p < least, -torch.inf)


def _sorted(x: Tensor) -> Tensor:
    """Sort the last axis by numpy, which takes a twentieth of torch's time."""
    return torch.from_numpy(np.sort(x.detach().numpy(), axis=-1))


def sample(log_p: Tensor, streams, drop_probability=0.0) -> Tensor:
    """Draw bins from `filtered` log-probabilities.  (G, ..., V) -> (G, ...)

    streams: see `control.Streams`.  NaN gives an arbitrary valid bin.
    """
    up_to = filtered(log_p, drop_probability).softmax(-1).cumsum(-1)
    u = streams.uniform(*up_to.shape[:-1], 1, dtype=up_to.dtype)
    # Because u < 1, bins without mass are never drawn.
    bins = torch.searchsorted(up_to, u * up_to[..., -1:], right=True)[..., 0]
    return bins.clamp(max=up_to.shape[-1] - 1)


class Beams(NamedTuple):
    """Sequences, best first; their last token was not fed to `advance` yet."""

    bins: Tensor  # (G, B, length)
    log_p: Tensor  # (G, B)
    parents: Tensor  # (G, B): the sequence of the step before that each continues


def beam_search(
    advance: Advance, log_p: Tensor, length: int, width: int, skip: Collection = ()
) -> Beams:
    """Run Algorithm 1 for G problems at once.

    log_p: (G, K, V) of the first token of K sequences each.  The token of steps in
    `skip` is no choice but bin 0, and counts nothing: R is never an input.
    """
    G, K, V = log_p.shape
    q = log_p.new_zeros(G, K)
    bins = torch.zeros(G, K, 0, dtype=torch.long, device=log_p.device)
    only_bin_0 = torch.full((V,), -torch.inf, device=log_p.device)
    only_bin_0[0] = 0.0
    for step in range(length):
        if step in skip:
            log_p = only_bin_0.expand_as(log_p)
        scores = (q[..., None] + log_p).flatten(1)
        q, pick = scores.topk(min(width, scores.shape[1]))
        parents, token = pick // V, pick % V
        bins = bins.gather(1, parents[..., None].expand(-1, -1, step))
        bins = torch.cat([bins, token[..., None]], dim=2)
        if step + 1 < length:
            log_p = advance(token, parents)
    return Beams(bins, q, parents)


def extend(
    advance: Advance, log_p: Tensor, parents: Tensor, length: int, pick: Callable
) -> Beams:
    """Append `length` >= 1 tokens chosen by `pick`, (G, K, V) -> (G, K).

    log_p: (G, K', V) of the sequences that `parents` (G, K) continue.
    """
    tokens, q, V, first = [], 0.0, log_p.shape[-1], parents
    log_p = log_p.gather(1, parents[..., None].expand(-1, -1, V))
    for step in range(length):
        tokens.append(pick(log_p))
        q = q + log_p.gather(-1, tokens[-1][..., None])[..., 0]
        if step + 1 < length:
            log_p = advance(tokens[-1], parents)
            parents = None  # from now on each sequence continues itself
    if parents is None:
        parents = torch.arange(first.shape[1], device=first.device).expand_as(first)
    return Beams(torch.stack(tokens, -1), q, parents)


def plan_value(r: Tensor, R: Tensor, gamma: float, reward_in_R=True) -> Tensor:
    """Return the value of plans of h steps.  r, R: (..., h) -> (...)

    R_t contains r_t, so the last reward enters only through R: sum_{k<h-1} g^k r_k
    + g^(h-1) R_{h-1}.  In the later code it is sum_{k<h} g^k r_k + g^h R_{h-1}.
    """
    h = r.shape[-1]
    discount = gamma ** torch.arange(h + 1, device=r.device, dtype=r.dtype)
    counted = h - 1 if reward_in_R else h
    rewards = (discount[:counted] * r[..., :counted]).sum(-1)
    return rewards + discount[counted] * R[..., -1]


@dataclass(frozen=True)
class Plan:
    """How reward-maximising search proposes and keeps plans.

    Proposal "beam" (v1): each plan runs Algorithm 1, as wide as its expansions, on
    state and action.  "sample" (released): the likeliest state, sampled actions.
    """

    horizon: int  # transitions that a plan looks ahead, the current one included
    beam_width: int  # plans kept
    expansions: int  # candidates for each plan
    gamma: float = 0.99
    reward_in_R: bool = True
    proposal: str = "beam"
    drop_probability: float = 0.6  # see `filtered`
    use_reward_to_go: bool = True  # False adds up rewards alone

    def __post_init__(self):
        if self.proposal not in ("beam", "sample"):
            raise ValueError(f"proposal {self.proposal!r}; expected beam or sample")
        if min(self.horizon, self.beam_width, self.expansions) < 1:
            raise ValueError(f"{self}; expected horizon and widths of at least 1")


class Plans(NamedTuple):
    """Plans of E environments, best first."""

    bins: Tensor  # (E, B, tokens) from the current action on, r and R as expected
    rewards: Tensor  # (E, B, h)
    rewards_to_go: Tensor  # (E, B, h)
    value: Tensor  # (E, B)
    spread: Tensor  # (E,) the standard deviation of the last candidates' values


def propose(
    advance: Advance, log_p: Tensor, tokens: tuple[int, int], count: int,
    plan: Plan, streams,
) -> Beams:  # fmt: skip
    """Propose `count` candidates for the next state and action of each of G plans.

    log_p: (G, 1, V) of the first token; tokens: how many are state and action.
    """
    state, action = tokens
    if plan.proposal == "beam":
        return beam_search(advance, log_p, state + action, count)
    draw = lambda x: sample(x, streams, plan.drop_probability)  # noqa: E731
    one = torch.zeros(len(log_p), 1, dtype=torch.long, device=log_p.device)
    many = one.expand(-1, count)
    if not state:
        return extend(advance, log_p, many, action, draw)
    states = extend(advance, log_p, one, state, lambda x: x.argmax(-1))
    log_p = advance(states.bins[..., -1], states.parents)
    actions = extend(advance, log_p, many, action, draw)
    bins = torch.cat([states.bins.expand(-1, count, -1), actions.bins], -1)
    return Beams(bins, states.log_p + actions.log_p, actions.parents)


def read_rewards(
    advance: Advance, beams: Beams, tokenizer: Tokenizer, streams=None
) -> tuple[Tensor, Tensor, Tensor]:
    """Feed the last action token and the bin of E[r] -> (G, K): E[r], E[R], bin."""
    transition = tokenizer.transition
    log_p = advance(beams.bins[..., -1], beams.parents)
    r = tokenizer.expected(log_p, transition.reward)
    bin_r = expectation_bins(tokenizer, r, transition.reward)
    R = tokenizer.expected(advance(bin_r, None), transition.reward_to_go)
    return r, R, bin_r


def expectation_bins(tokenizer: Tokenizer, x: Tensor, dim: int) -> Tensor:
    """Return the bins of expectations, (...) -> (...).  NaN gives a valid bin."""
    x = x.to(torch.float64).nan_to_num()[..., None]
    return tokenizer.bins_of_finite(x, slice(dim, dim + 1))[..., 0]


def maximise(
    advance: Advance, select_plans: Callable[[Tensor], None], log_p: Tensor,
    tokenizer: Tokenizer, plan: Plan, streams=None,
    propose: Callable = propose, read: Callable = read_rewards,
) -> Plans:  # fmt: skip
    """Search for the plans of greatest reward plus reward-to-go (Section 3.2).

    log_p: (E, 1, V) of the first action token.  Likely transitions are proposed;
    those of greatest value survive.  `propose` and `read` are hooks.
    """
    transition, E = tokenizer.transition, len(log_p)
    bins = torch.zeros(E, 1, 0, dtype=torch.long, device=log_p.device)
    r = R = log_p.new_zeros(E, 1, 0)
    q = log_p.new_zeros(E, 1, 1)
    for step in range(plan.horizon):
        count = plan.expansions * (1 if step else plan.beam_width)
        tokens = (transition.N if step else 0, transition.M)
        beams = propose(advance, log_p, tokens, count, plan, streams)
        # Departs from the paper: r and R are read as expectations; beaming over
        # them would pick lucky bins.
        new_r, new_R, bin_r = read(advance, beams, tokenizer, streams)
        bin_R = expectation_bins(tokenizer, new_R, transition.reward_to_go)
        new_bins = torch.cat([beams.bins, bin_r[..., None], bin_R[..., None]], -1)
        bins = _append(bins, new_bins)
        r, R = _append(r, new_r[..., None]), _append(R, new_R[..., None])
        beyond = R if plan.use_reward_to_go else r * plan.reward_in_R
        value = plan_value(r, beyond, plan.gamma, plan.reward_in_R)
        q = _append(q, beams.log_p[..., None]).sum(-1, keepdim=True)
        spread = value.std(1, correction=0)
        value = value.masked_fill(q[..., 0].isneginf(), -torch.inf)  # empty bins
        value, best = value.topk(min(plan.beam_width, value.shape[1]))
        bins, r, R, q = (_rows(x, best) for x in (bins, r, R, q))
        if step + 1 < plan.horizon:
            select_plans(best)
            # R is read for the plans that stay, and always as bin 0.
            log_p = advance(torch.zeros_like(best).view(-1, 1), None)
    return Plans(bins, r, R, value, spread)


def _append(x: Tensor, new: Tensor) -> Tensor:
    """Join plans (E, B, n) and candidates (E * B, K, m): (E, B * K, n + m)."""
    E, B, _ = x.shape
    x = x.repeat_interleave(new.shape[1], dim=1)
    return torch.cat([x, new.reshape(E, x.shape[1], -1)], -1)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Choose rows (E, B) of x.  (E, B', n) -> (E, B, n)"""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
