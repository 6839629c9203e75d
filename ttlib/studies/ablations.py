"""Ablations: the planner with one change at a time."""

from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from ttlib import search
from ttlib.control import Streams
from ttlib.pipeline import experiments, rollouts
from ttlib.pipeline.rollouts import RolloutSet, planning
from ttlib.search import Beams, Plan
from ttlib.tokenizer import Tokenizer

# -- hooks of `search.maximise` ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Noisy:
    """Read rewards with Gaussian noise on R.

    noise: its standard deviation as a fraction of that of the centres of R's bins.
    """

    noise: float

    def __call__(self, advance, beams: Beams, tokenizer: Tokenizer, streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """Return E[r], noisy E[R] and the bin of E[r], (G, K) each."""
        r, R, bin_r = search.read_rewards(advance, beams, tokenizer)
        dim = tokenizer.transition.reward_to_go
        centres = tokenizer.centres[dim][~tokenizer.empty[dim]].to(R.dtype)
        u = streams.uniform(*R.shape, dtype=torch.float64)
        normal = 2**0.5 * torch.erfinv(2 * u.clamp(min=1e-12) - 1)
        return r, R + self.noise * centres.std() * normal.to(R.dtype), bin_r


@dataclass(frozen=True)
class Sampled:
    """Read rewards by drawing r and R, in place of their expectations."""

    def __call__(self, advance, beams: Beams, tokenizer: Tokenizer, streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """Return drawn r, drawn R and the bin of r, (G, K) each."""
        transition = tokenizer.transition
        log_p = advance(beams.bins[..., -1], beams.parents)
        bin_r = search.sample(log_p, streams)
        bin_R = search.sample(advance(bin_r, None), streams)
        r, R = tokenizer.centres[transition.reward][bin_r], tokenizer.centres[transition.reward_to_go][bin_R]
        return r.to(log_p.dtype), R.to(log_p.dtype), bin_r


@dataclass(frozen=True)
class Independent:
    """Propose transitions whose dimensions are independent of each other, in place of autoregressive ones.

    The dimensions of a state, and those of an action, are taken from marginals that `chains` sampled sequences
    estimate.  The plan's proposal is "sample".
    """

    chains: int

    def __call__(self, advance, log_p: Tensor, tokens: tuple[int, int], count: int, plan: Plan, streams: Streams):
        """Return `count` candidates for each of G plans, as `search.propose` does."""
        state, action = tokens

        def draw(x: Tensor) -> Tensor:
            return search.sample(x, streams, plan.drop_probability)

        if not state:
            return self._extend(advance, log_p, action, count, draw, streams)
        states = self._extend(advance, log_p, state, 1, lambda x: x.argmax(-1), streams)
        log_p = advance(states.bins[..., -1], states.parents)
        actions = self._extend(advance, log_p, action, count, draw, streams)
        bins = torch.cat([states.bins.expand(-1, count, -1), actions.bins], -1)
        return Beams(bins, states.log_p + actions.log_p, actions.parents)

    def _extend(self, advance, log_p: Tensor, length: int, count: int, pick, streams: Streams) -> Beams:
        """Append `length` tokens to `count` sequences and to the chains, which are dropped at the end."""

        def apart(log_p: Tensor) -> Tensor:
            chains = log_p[:, count:]
            marginal = chains.logsumexp(1, keepdim=True).expand(-1, count, -1)
            return torch.cat([pick(marginal), search.sample(chains, streams)], 1)

        first = torch.zeros(len(log_p), count + self.chains, dtype=torch.long, device=log_p.device)
        beams = search.extend(advance, log_p, first, length, apart)
        return Beams(*(x[:, :count] for x in beams))


# -- what is changed ---------------------------------------------------------------------------------------


def search_changes(plan: Plan) -> list[tuple[str, str, dict, dict]]:
    """Return the ablations of the search: label, variant, changed fields of the plan, hooks."""
    changes = [
        ("main", "main", {}, {}),
        ("no reward-to-go", "no_reward_to_go", {"use_reward_to_go": False}, {}),
        ("noise in R, 0.25 standard deviations", "noise", {}, {"read": Noisy(0.25)}),
        ("noise in R, 1 standard deviation", "noise", {}, {"read": Noisy(1.0)}),
        ("r and R drawn", "rewards_drawn", {}, {"read": Sampled()}),
        ("independent dimensions", "independent_dimensions", {}, {"propose": Independent(8)}),
        ("every action allowed", "all_actions", {"drop_probability": 0.0}, {}),
        ("the authors' filter", "authors_filter", {"drop_probability": 0.6}, {}),
        ("horizon 1", "horizon_1", {"horizon": 1}, {}),
        ("a quarter of the beam width", "quarter_beam", {"beam_width": max(1, plan.beam_width // 4)}, {}),
        ("twice the beam width", "double_beam", {"beam_width": plan.beam_width * 2}, {}),
    ]
    return [row for row in changes if row[1] != "authors_filter" or plan.drop_probability != 0.6]


def ablations_runs(size: str) -> list[RolloutSet]:
    """Return the rollouts of `ablations_rollouts.csv`.

    The search is changed on hopper; the bins on halfcheetah's medium-expert data, where the paper suspects that they
    are too coarse.
    """
    v1, exp = (experiments.get("hopper-medium-replay", size, profile) for profile in experiments.PROFILES)
    runs, plan = [], exp.plan
    for label, variant, change, hooks in search_changes(plan):
        # With this scorer the rollouts of the main setting are those of Table 1.
        scorer = v1 if variant == "main" else None
        changed = replace(exp, plan=replace(plan, **change))
        runs.append(planning(changed, label, variant=variant, scorer=scorer, **hooks))
    blind = replace(exp, context=0)  # which leaves the whole window for a plan
    longest, T = replace(blind, plan=replace(plan, horizon=exp.model.T)), exp.model.T
    runs.append(planning(blind, "no context", variant="no_context"))
    runs.append(planning(longest, f"no context, horizon {T}", variant="no_context_long_horizon"))
    v1, released = (experiments.get("halfcheetah-medium-expert", size, profile) for profile in experiments.PROFILES)
    runs.append(planning(released, "main", scorer=v1))
    for name in experiments.BINS:
        words = name.split("-")[-2:]
        runs.append(planning(experiments.get(name, size, "released"), " ".join(words), variant="_".join(words)))
    return runs


def ablations(size: str) -> pd.DataFrame:
    """Return `ablations_rollouts.csv`."""
    return rollouts.table("ablations_rollouts", size, ablations_runs(size))
