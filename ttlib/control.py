"""Act: the cached model as `advance`, ways to choose, receding-horizon control."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttlib import search
from ttlib.cache import Cache, decode
from ttlib.model import GPT
from ttlib.tokenizer import Tokenizer


class Streams:
    """Random numbers of E environments: what runs beside a rollout changes none."""

    def __init__(self, seeds: Collection[int], device="cpu"):
        self.generators = [torch.Generator(device).manual_seed(s) for s in seeds]

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uniform numbers (E * n, ...), in the order of environments."""
        each, numbers = (shape[0] // len(self.generators), *shape[1:]), []
        for g in self.generators:
            how = {"generator": g, "dtype": dtype, "device": g.device}
            numbers.append(torch.rand(each, **how))
        return torch.cat(numbers)

    def select(self, going_on: Collection[bool]) -> None:
        """Keep the environments that go on.  (E,) bool"""
        pairs = zip(self.generators, going_on, strict=True)
        self.generators = [generator for generator, stays in pairs if stays]


class Decoder:
    """The model as the verbs of `search`, reading on from E contexts.

    ids (E, L) end inside a step and are read once for all sequences.
    log_p (E, 1, V) are log-probabilities of the first new token.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, ids: Tensor):
        self.model, self.tokenizer = model, tokenizer
        transition, prefix = tokenizer.transition, model.config.prefix
        self.dim = transition.dimension(ids.shape[1], prefix)
        self.cache, self.rows = Cache(), len(ids)
        self.empty = tokenizer.empty if tokenizer.kind == "quantile" else None
        self.log_p = self._log_p(decode(model, ids, self.cache)[:, -1:])

    def _log_p(self, logits: Tensor) -> Tensor:
        """Return log-probabilities (..., V); empty bins have no mass."""
        if self.empty is not None:
            logits = logits.masked_fill(self.empty[self.dim], -torch.inf)
        return logits.float().log_softmax(-1)

    def advance(self, bins: Tensor, parents: Tensor | None) -> Tensor:
        """Append bins (G, K) to sequences `parents` (G, K) -> log_p (G, K, V)."""
        (G, K), transition = bins.shape, self.tokenizer.transition
        if parents is not None:
            self.cache.reorder(self._flat(parents))
        self.rows = G * K
        # Make room for the tokens of these sequences up to r.
        self.cache.reserve(K * max(0, transition.reward - self.dim))
        first = transition.first_id(self.tokenizer.V, self.dim)
        ids = bins.flatten()[:, None] + first
        self.dim = transition.dimension(self.dim + 1)
        return self._log_p(decode(self.model, ids, self.cache).view(G, K, -1))

    def _flat(self, within: Tensor) -> Tensor:
        """Count rows (G, K) of groups through all groups -> (G * K,)."""
        groups = torch.arange(len(within), device=within.device)
        return (within + groups[:, None] * (self.rows // len(within))).flatten()

    def select_plans(self, rows: Tensor) -> None:
        """Make each of the sequences `rows` (E, B) a group of its own."""
        flat, transition = self._flat(rows), self.tokenizer.transition
        # Make room for R, the next state and as many candidates as there were.
        candidates = self.rows // len(flat) * (transition.M + 1)
        self.cache.reserve(1 + transition.N + candidates)
        self.cache.regroup(flat)
        self.rows = len(flat)


@dataclass(frozen=True)
class ByReward:
    """Take the best plan's first action; record its value, and the spread."""

    plan: search.Plan
    propose: Callable = search.propose  # hooks of `search.maximise`
    read: Callable = search.read_rewards

    @property
    def horizon(self) -> int:
        return self.plan.horizon

    def __call__(self, decoder: Decoder, streams: Streams) -> tuple[Tensor, dict]:
        """Return action bins (E, M) and what to record, (E,) each."""
        tokenizer = decoder.tokenizer
        verbs = (decoder.advance, decoder.select_plans, decoder.log_p)
        hooks = (self.propose, self.read)
        plans = search.maximise(*verbs, tokenizer, self.plan, streams, *hooks)
        actions = plans.bins[:, 0, : tokenizer.transition.M]
        return actions, {"value": plans.value[:, 0], "spread": plans.spread}


@dataclass(frozen=True)
class ByLikelihood:
    """Run Algorithm 1 over the tokens of `horizon` transitions from the action on.

    It imitates, and reaches goals.  Horizon 0 means the M action tokens alone: with
    width 1 that is behaviour cloning (Section 3.2).
    """

    horizon: int
    width: int

    def __call__(self, decoder: Decoder, streams: Streams) -> tuple[Tensor, dict]:
        """Return action bins (E, M) and what to record, (E,) each."""
        step = decoder.tokenizer.transition
        length = step.M
        if self.horizon:  # a last R would count nothing
            length = self.horizon * step.D - step.N - step.rewards
        dims = [step.dimension(step.N + i) for i in range(length)]
        skip = [i for i, dim in enumerate(dims) if dim == step.reward_to_go]
        start = (decoder.advance, decoder.log_p)
        beams = search.beam_search(*start, length, self.width, skip)
        return beams.bins[:, 0, : step.M], {"log_p": beams.log_p[:, 0]}


class TransformerAgent:
    """Receding-horizon control of E environments: context, choice, first action.

    choose: such as `ByReward`; context: transitions read before the current one;
    goals: (E, N) or None; decoder: what gives the verbs of `search`, as `Decoder`
    does.  Raises ValueError where a plan exceeds the window.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, choose, context=0, goals=None,
        decoder=Decoder,
    ):  # fmt: skip
        horizon, prefix = max(choose.horizon, 1), model.config.prefix
        if context < 0 or context + horizon > model.config.T:
            raise ValueError(
                f"{context} context + {horizon} planned transitions > window of "
                f"{model.config.T}: shorten one of them or train a longer window"
            )
        if (goals is not None) != (prefix > 0):
            given = "no goals are" if goals is None else "goals are"
            raise ValueError(f"{given} given; the model has {prefix} goal tokens")
        self.model, self.tokenizer, self.choose = model, tokenizer, choose
        self.decoder = decoder
        self.context, self.device = context, next(model.parameters()).device
        state = tokenizer.transition.state
        self.every_goal = None if goals is None else self._encode(goals, state)

    def _encode(self, x: np.ndarray, dims: slice) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float64, device=self.device)
        return self.tokenizer.encode(x, dims)

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin an episode for each seed, from which its random numbers come."""
        self.streams, self.goals = Streams(seeds, self.device), self.every_goal
        self.steps: list[Tensor] = []

    @torch.inference_mode()
    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return actions (E, M) for states (E, N), and what to record, (E,)."""
        transition = self.tokenizer.transition
        if states.shape[1:] != (transition.N,):
            raise ValueError(f"states {states.shape}; expected (E, {transition.N})")
        self.state_ids = self._encode(states, transition.state)
        goals = [] if self.goals is None else [self.goals]
        ids = torch.cat([*goals, *self.steps, self.state_ids], 1)
        decoder = self.decoder(self.model, self.tokenizer, ids)
        # Logits are looked at before the choice, values after it: a check per token
        # would make a GPU wait.
        finite, record = not decoder.log_p.isnan().any(), {}
        if finite:
            bins, record = self.choose(decoder, self.streams)
        if not finite or not all(x.isfinite().all() for x in record.values()):
            raise FloatingPointError(
                "the model's predictions are not finite: its weights are damaged; "
                "train or load the model again"
            )
        self.action_ids = bins + self.tokenizer.offset[transition.action]
        actions = self.tokenizer.decode(self.action_ids).cpu().numpy()
        record = {"bins": bins, **record}
        return actions, {name: x.cpu().numpy() for name, x in record.items()}

    def observe(self, rewards: np.ndarray, going_on: np.ndarray) -> None:
        """Remember a step: rewards (E,), and who goes on, (E,) bool."""
        step, tokens = self.tokenizer.transition, [self.state_ids, self.action_ids]
        if step.rewards:
            r = self._encode(rewards[:, None], slice(step.reward, step.reward + 1))
            tokens += [r, torch.full_like(r, self.tokenizer.blank)]
        steps = [*self.steps, torch.cat(tokens, 1)]
        steps = steps[max(0, len(steps) - self.context) :]
        stay = torch.as_tensor(going_on, device=self.device)
        self.steps = [x[stay] for x in steps]
        self.goals = None if self.goals is None else self.goals[stay]
        self.streams.select(going_on)
