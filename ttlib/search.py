"""Sampling, Algorithm 1, and reward-maximising search, as functions of next-token log-probabilities.

Search knows nothing about networks.  It grows sequences by one verb,

    advance(bins, parents): (G, K), (G, K) -> (G, K, V)

which appends a token to K sequences of each of G problems, sequence k continuing the parents[g, k]-th
of the sequences before (parents None: each continues itself), and answers with log-probabilities of the
token after it.  A table in a test and the cached model in `control.Decoder` both implement it.
Reward-maximising search also needs

    keep(rows): (E, B)

which makes B chosen sequences of each of E environments problems of their own: G becomes E * B.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ttlib.tokenizer import Tokenizer

Advance = Callable[[Tensor, Tensor | None], Tensor]


def filtered(log_p: Tensor, temperature: float = 1.0, top_k: int | None = None, cdf: float = 0.0) -> Tensor:
    """Log-probabilities (..., V) to draw from: -inf where a bin is dropped, not renormalised.

    top_k keeps the k likeliest bins; cdf drops the least likely bins that together hold less than `cdf`,
    but keeps those that are as likely as the first that stays.
    """
    if temperature <= 0 or not 0 <= cdf < 1 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, cdf={cdf}; expected temperature > 0, top_k >= 1, 0 <= cdf < 1"
        )
    log_p = (log_p / temperature).log_softmax(-1)
    if top_k is not None and top_k < log_p.shape[-1]:
        kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, log_p.topk(top_k).indices, True)
        log_p = log_p.masked_fill(~kept, -torch.inf)
    if cdf:
        ascending = _ascending(log_p)
        dropped = (ascending.softmax(-1).cumsum(-1) < cdf).sum(-1, keepdim=True)
        least = ascending.gather(-1, dropped.clamp(max=log_p.shape[-1] - 1))  # the likeliest bin always stays
        log_p = log_p.masked_fill(log_p < least, -torch.inf)
    return log_p


def _ascending(x: Tensor) -> Tensor:
    """The last axis sorted.  On a CPU by numpy, whose vector instructions take a twentieth of torch's time."""
    return x.sort(-1).values if x.device.type != "cpu" else torch.from_numpy(np.sort(x.detach().numpy(), axis=-1))


def sample(log_p: Tensor, rng: torch.Generator, **options) -> Tensor:
    """(..., V) -> (...) bins drawn with the caller's generator; options as in `filtered`.

    The cumulative distribution is inverted at one uniform number: `multinomial` draws V of them, which takes twice as
    long.
    """
    up_to = filtered(log_p, **options).softmax(-1).cumsum(-1)
    u = torch.rand((*up_to.shape[:-1], 1), generator=rng, dtype=up_to.dtype, device=up_to.device)
    # u < 1 leaves out bins without mass, before and behind.  Of distributions that are not finite: any bin.
    return torch.searchsorted(up_to, u * up_to[..., -1:], right=True)[..., 0].clamp(max=up_to.shape[-1] - 1)


class Beams(NamedTuple):
    """bins (G, B, length) and log-probability (G, B) of each, best first; which sequence of the step before
    each continues, parents (G, B).  The last token has not been fed to `advance` yet."""

    bins: Tensor
    log_p: Tensor
    parents: Tensor


def beam_search(advance: Advance, log_p: Tensor, length: int, width: int, skip: Collection[int] = ()) -> Beams:
    """Algorithm 1 for G problems at once.  log_p: (G, K, V) of the first token of K sequences each.

    skip: steps whose token is no choice: it is bin 0 and counts nothing (reward-to-go is never an input).
    """
    G, K, V = log_p.shape
    q, bins = log_p.new_zeros(G, K), torch.zeros(G, K, 0, dtype=torch.long, device=log_p.device)
    only_bin_0 = torch.full((V,), -torch.inf, device=log_p.device)
    only_bin_0[0] = 0.0
    for step in range(length):
        if step in skip:
            log_p = only_bin_0.expand_as(log_p)
        q, pick = (q[..., None] + log_p).flatten(1).topk(min(width, q.shape[1] * V))
        parents, token = pick // V, pick % V
        bins = torch.cat([bins.gather(1, parents[..., None].expand(-1, -1, step)), token[..., None]], dim=2)
        if step + 1 < length:
            log_p = advance(token, parents)
    return Beams(bins, q, parents)


def grow(advance: Advance, log_p: Tensor, parents: Tensor, length: int, pick: Callable[[Tensor], Tensor]) -> Beams:
    """Append `length` >= 1 tokens chosen by `pick`, (G, K, V) -> (G, K), to sequences `parents` (G, K)."""
    tokens, q, V = [], 0.0, log_p.shape[-1]
    log_p = log_p.gather(1, parents[..., None].expand(-1, -1, V))
    given = parents
    for step in range(length):
        tokens.append(pick(log_p))
        q = q + log_p.gather(-1, tokens[-1][..., None])[..., 0]
        if step + 1 < length:
            log_p = advance(tokens[-1], parents)
            parents = None
    if parents is None:
        parents = torch.arange(given.shape[1], device=given.device).expand_as(given)
    return Beams(torch.stack(tokens, -1), q, parents)


def plan_value(r: Tensor, R: Tensor, gamma: float, include_current: bool = True) -> Tensor:
    """Value of plans of h steps.  r, R: (..., h) -> (...).

    With R_t as printed, R_t already contains r_t, so the last reward enters only through R:
    sum_{k<h-1} gamma^k r_k + gamma^(h-1) R_{h-1}.  The authors' later code leaves r_t out of R_t
    (include_current=False): sum_{k<h} gamma^k r_k + gamma^h R_{h-1}.
    """
    h = r.shape[-1]
    discount = gamma ** torch.arange(h + 1, device=r.device, dtype=r.dtype)
    counted = h - 1 if include_current else h
    return (discount[:counted] * r[..., :counted]).sum(-1) + discount[counted] * R[..., -1]


@dataclass(frozen=True)
class Plan:
    """How a reward-maximising search proposes and keeps.

    plans B, candidates K each, horizon h in transitions.  proposal "beam": each plan's Algorithm 1 of width
    K over the next state and action (v1); "sample": the likeliest state, then K actions sampled after `cdf`
    (released).  use_reward_to_go=False adds up rewards alone.  Three ablations: lucky=True draws r and R instead of
    reading their expectations; noise is the deviation of a Gaussian added to every R that is read, as a share of the
    deviation of R's bin centres; chains > 0 takes the dimensions of a state, and those of an action, independently of
    each other ("sample" alone), from marginals that this many sampled sequences estimate.
    """

    horizon: int
    plans: int
    candidates: int
    gamma: float = 0.99
    include_current: bool = True
    proposal: str = "beam"
    cdf: float = 0.6
    use_reward_to_go: bool = True
    lucky: bool = False
    noise: float = 0.0
    chains: int = 0

    def __post_init__(self):
        if self.proposal not in ("beam", "sample"):
            raise ValueError(f"proposal {self.proposal!r}; expected 'beam' or 'sample'")
        if self.chains < 0 or (self.chains and self.proposal != "sample"):
            raise ValueError(
                f"chains={self.chains} with proposal {self.proposal!r}; expected 0, or more with proposal 'sample'"
            )
        if min(self.horizon, self.plans, self.candidates) < 1:
            raise ValueError(f"{self}: horizon, plans and candidates must be at least 1")


class Plans(NamedTuple):
    """bins (E, B, tokens) from the current action on, rewards-to-go as their expected bin; rewards and
    rewards_to_go (E, B, h); value (E, B), best first."""

    bins: Tensor
    rewards: Tensor
    rewards_to_go: Tensor
    value: Tensor


def propose(advance: Advance, log_p: Tensor, tokens: tuple[int, int], width: int, plan: Plan, rng) -> Beams:
    """Candidate (state, action) tokens for each of G plans.  log_p: (G, 1, V) -> `width` candidates each."""
    state, action = tokens
    G, device = log_p.shape[0], log_p.device
    if plan.proposal == "beam":
        return beam_search(advance, log_p, state + action, width)

    def extend(log_p: Tensor, length: int, width: int, pick: Callable[[Tensor], Tensor]) -> Beams:
        def apart(log_p: Tensor) -> Tensor:
            """Chains are drawn as ever; `pick` chooses the others' tokens from the mean of their distributions."""
            chains = log_p[:, width:]
            marginal = chains.logsumexp(1, keepdim=True).expand(-1, width, -1)
            return torch.cat([pick(marginal), sample(chains, rng)], 1)

        start = torch.zeros(G, width + plan.chains, dtype=torch.long, device=device)
        found = grow(advance, log_p, start, length, apart if plan.chains else pick)
        return Beams(*(x[:, :width] for x in found))

    def draw(log_p: Tensor) -> Tensor:
        return sample(log_p, rng, cdf=plan.cdf)

    if not state:
        return extend(log_p, action, width, draw)
    states = extend(log_p, state, 1, lambda log_p: log_p.argmax(-1))
    log_p = advance(states.bins[..., -1], states.parents)
    actions = extend(log_p, action, width, draw)
    bins = torch.cat([states.bins.expand(-1, width, -1), actions.bins], -1)
    return Beams(bins, states.log_p + actions.log_p, actions.parents)


def maximise(
    advance: Advance,
    keep: Callable[[Tensor], None],
    log_p: Tensor,
    tokenizer: Tokenizer,
    plan: Plan,
    rng: torch.Generator | None = None,
) -> Plans:
    """Reward-maximising search (Section 3.2) from a known state.  log_p: (E, 1, V) of the first action token.

    Transitions proposed by likelihood are the vocabulary; those of highest cumulative reward plus
    reward-to-go survive.  r and R are not searched over: their expectations are read, and the bin of E[r] is
    the token that later tokens see.
    """
    transition, E = tokenizer.transition, log_p.shape[0]
    bins = torch.zeros(E, 1, 0, dtype=torch.long, device=log_p.device)
    r = R = log_p.new_zeros(E, 1, 0)
    for step in range(plan.horizon):
        width = plan.plans * plan.candidates if step == 0 else plan.candidates
        tokens = (transition.N if step else 0, transition.M)
        found = propose(advance, log_p, tokens, width, plan, rng)
        # Departs from the paper: r and R are read as expectations; beaming over them would pick lucky bins.
        new_r, new_R, bin_r = read_rewards(advance, found, tokenizer, plan, rng)
        new_bins = torch.cat(
            [found.bins, bin_r[..., None], _bins(tokenizer, new_R, transition.reward_to_go)[..., None]], -1
        )
        B, K = bins.shape[1], found.bins.shape[1]  # every plan so far has K successors
        parent = torch.arange(B, device=log_p.device).repeat_interleave(K)
        bins = torch.cat([bins[:, parent], new_bins.view(E, B * K, -1)], -1)
        r = torch.cat([r[:, parent], new_r.view(E, B * K, 1)], -1)
        R = torch.cat([R[:, parent], new_R.view(E, B * K, 1)], -1)
        beyond = R if plan.use_reward_to_go else r * plan.include_current
        value = plan_value(r, beyond, plan.gamma, plan.include_current)
        value, best = value.topk(min(plan.plans, B * K))
        bins, r, R = (x.gather(1, best[..., None].expand(-1, -1, x.shape[-1])) for x in (bins, r, R))
        if step + 1 < plan.horizon:
            keep(best)
            log_p = advance(torch.zeros_like(best).view(-1, 1), None)  # R, of the plans kept alone
    return Plans(bins, r, R, value)


def read_rewards(
    advance: Advance, found: Beams, tokenizer: Tokenizer, plan: Plan, rng: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Feed the last action token and the bin of E[r] -> E[r], E[R] and that bin, all (G, K)."""
    transition = tokenizer.transition

    def read(log_p: Tensor, dim: int) -> Tensor:
        if plan.lucky:
            return tokenizer.centres[dim].to(log_p.dtype)[sample(log_p, rng)]
        return tokenizer.expected(log_p, dim)

    r = read(advance(found.bins[..., -1], found.parents), transition.reward)
    bin_r = _bins(tokenizer, r, transition.reward)
    R = read(advance(bin_r, None), transition.reward_to_go)
    if plan.noise:
        deviation = tokenizer.centres[transition.reward_to_go].std().to(R.dtype)
        R = R + plan.noise * deviation * torch.randn(R.shape, generator=rng, device=R.device)
    return r, R, bin_r


def _bins(tokenizer: Tokenizer, x: Tensor, dim: int) -> Tensor:
    """Bins of expectations, (...) -> (...).  Where one is not a number, the value of its plan is none either."""
    x = x.to(torch.float64).nan_to_num()[..., None]
    return tokenizer.bins_of_finite(x, slice(dim, dim + 1))[..., 0]
