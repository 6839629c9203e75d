"""Acting: the cached model as `advance`, contexts of past tokens, batched rollouts: the only code that steps
an environment."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ttlib import cache, search
from ttlib.cache import Cache
from ttlib.model import GPT
from ttlib.tokenizer import Tokenizer


class Decoder:
    """The model reading on from E contexts: `advance` and `keep` of `search`, `log_p` (E, 1, V) to begin with.

    ids (E, L) end inside a step.  The context is encoded once and shared by all sequences of its environment.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, ids: Tensor):
        self.model, self.tokenizer = model, tokenizer
        self.dim = (ids.shape[1] - model.config.prefix) % tokenizer.transition.D
        self.cache, self.rows = Cache(), len(ids)
        self.log_p = _log_p(cache.read(model, ids, self.cache)[:, -1:])

    def advance(self, bins: Tensor, parents: Tensor | None) -> Tensor:
        """(G, K) bins appended to sequences `parents` (G, K) of each group -> (G, K, V) log-probabilities."""
        (G, K), transition = bins.shape, self.tokenizer.transition
        if parents is not None:
            self.cache.select(self._flat(parents))
        self.rows = G * K
        self.cache.room = K * max(0, transition.reward - self.dim)  # for these sequences' tokens up to r
        ids = bins.flatten()[:, None] + self.tokenizer.V * self.dim
        self.dim = (self.dim + 1) % transition.D
        return _log_p(cache.read(self.model, ids, self.cache).view(G, K, -1))

    def _flat(self, within: Tensor) -> Tensor:
        """(G, K) rows counted within each of G groups -> (G * K,) rows counted through."""
        G = len(within)
        return (within + torch.arange(G, device=within.device)[:, None] * (self.rows // G)).flatten()

    def keep(self, rows: Tensor) -> None:
        """rows: (E, B) of each environment's sequences; each becomes a group of its own."""
        flat, transition = self._flat(rows), self.tokenizer.transition
        # For R, the next state and, up to r, as many candidates of each as there were.
        self.cache.room = 1 + transition.N + self.rows // len(flat) * (transition.M + 1)
        self.cache.keep(flat)
        self.rows = len(flat)


def _log_p(logits: Tensor) -> Tensor:
    """Log-probabilities, (..., V), in float32 at least: of bf16 no mean or cumulative sum can be taken."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


Choose = Callable[[Decoder], tuple[Tensor, dict[str, Tensor]]]  # -> action bins (E, M), what to record, (E,) each


def by_reward(plan: search.Plan, rng: torch.Generator) -> Choose:
    """The first action of the plan of highest value; records the value predicted."""

    def choose(decoder):
        found = search.maximise(decoder.advance, decoder.keep, decoder.log_p, decoder.tokenizer, plan, rng)
        return found.bins[:, 0, : decoder.tokenizer.transition.M], {"value": found.value[:, 0]}

    return choose


def by_likelihood(horizon: int, width: int) -> Choose:
    """Imitation and goal reaching: Algorithm 1 over all tokens of `horizon` transitions from the action on.

    horizon 0: over the M action tokens alone, which is behaviour cloning (Section 3.2).
    """

    def choose(decoder):
        transition = decoder.tokenizer.transition
        # A last R would count nothing.
        length = horizon * transition.D - transition.N - transition.rewards if horizon else transition.M
        dims = (torch.arange(length) + transition.N) % transition.D
        skip = (dims == transition.reward_to_go).nonzero().flatten().tolist()
        found = search.beam_search(decoder.advance, decoder.log_p, length, width, skip)
        return found.bins[:, 0, : transition.M], {"log_p": found.log_p[:, 0]}

    return choose


def by_sampling(rng: torch.Generator, **options) -> Choose:
    """An action drawn from the model: imitation without search.  Options as in `search.filtered`."""

    def choose(decoder):
        start = torch.zeros(decoder.log_p.shape[:2], dtype=torch.long, device=decoder.log_p.device)
        pick = lambda log_p: search.sample(log_p, rng, **options)  # noqa: E731
        found = search.grow(decoder.advance, decoder.log_p, start, decoder.tokenizer.transition.M, pick)
        return found.bins[:, 0], {"log_p": found.log_p[:, 0]}

    return choose


class TransformerAgent:
    """Receding-horizon control of E environments at once: context, choice, first action.

    past: transitions of context beside the current one; horizon: transitions a choice looks ahead (the current
    one included), both checked against the window.  goals (E, N) float or None.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, choose: Choose, past: int, horizon: int, goals=None):
        if past < 0 or past + horizon > model.config.T:
            raise ValueError(
                f"{past} past + {horizon} planned transitions > window of {model.config.T}: "
                "shorten one of them or train with a longer window"
            )
        if (goals is not None) != (model.config.prefix > 0):
            raise ValueError(f"goals given: {goals is not None}, but the model has {model.config.prefix} goal tokens")
        self.model, self.tokenizer, self.choose, self.past, self.horizon = model, tokenizer, choose, past, horizon
        self.device = next(model.parameters()).device
        self.goals = None if goals is None else self._encode(goals, tokenizer.transition.state)
        self.steps: list[Tensor] = []

    def _encode(self, x: np.ndarray, dims: slice | int) -> Tensor:
        return self.tokenizer.encode(torch.as_tensor(x, dtype=torch.float64, device=self.device), dims)

    @torch.inference_mode()
    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """states: (E, N) -> actions (E, M), bin centres, and what the choice records."""
        transition = self.tokenizer.transition
        if states.shape[1:] != (transition.N,):
            raise ValueError(f"states of shape {states.shape}; the model knows states of {transition.N} numbers")
        self.state_ids = self._encode(states, transition.state)
        prefix = [] if self.goals is None else [self.goals]
        ids = torch.cat([*prefix, *self.steps, self.state_ids], 1)
        bins, record = self._decide(ids)
        self.action_ids = bins + self.tokenizer.offset[transition.action]
        actions = self.tokenizer.decode(self.action_ids).cpu().numpy()
        return actions, {name: value.cpu().numpy() for name, value in record.items()}

    def _decide(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A choice, looked at once before and once after it, never between."""
        decoder = None
        try:
            decoder = Decoder(self.model, self.tokenizer, ids)
            finite = bool(decoder.log_p.isfinite().all())
            bins, record = self.choose(decoder) if finite else (None, {})
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            config, E = self.model.config, len(ids)
            rows, tokens = decoder.rows if decoder else E, ids.shape[1] + self.horizon * config.transition.D
            size = 2 * config.n_layer * config.d_model * tokens * next(self.model.parameters()).element_size()
            raise MemoryError(
                f"out of memory with {rows // E} beams x {E} environments: the keys and values of {tokens} tokens take "
                f"about {rows * size / 1e6:.4g} MB, attention a few times that; plan with fewer beams or a shorter "
                "horizon, or run fewer environments at once"
            ) from error
        if not finite or not all(bool(value.isfinite().all()) for value in record.values()):
            raise FloatingPointError(
                "the model's predictions are not finite numbers: its weights are damaged, or too large for their "
                f"type, {next(self.model.parameters()).dtype}; plan in float32, or train or load the model again"
            )
        return bins, record

    def observe(self, rewards: np.ndarray, going_on: np.ndarray) -> None:
        """rewards (E,) of the action taken; going_on (E,) bool: the environments that remain."""
        transition, tokens = self.tokenizer.transition, [self.state_ids, self.action_ids]
        if transition.rewards:
            r = self._encode(rewards[:, None], transition.reward)
            tokens += [r, torch.full_like(r, self.tokenizer.V * transition.reward_to_go)]
        keep = torch.as_tensor(going_on, device=self.device)
        steps = [*self.steps, torch.cat(tokens, 1)]
        self.steps = [step[keep] for step in steps[len(steps) - min(len(steps), self.past) :]]
        self.goals = None if self.goals is None else self.goals[keep]


class FunctionAgent:
    """An agent without memory: act(states (E, N), rows (E,)) -> (E, M), rows being the rollouts still going."""

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int):
        self.function, self.rows = function, np.arange(count)

    def act(self, states):
        return self.function(states, self.rows), {}

    def observe(self, rewards, going_on):
        self.rows = self.rows[going_on]


@dataclass
class Rollout:
    """One episode: states (T + 1, N), actions (T, M), rewards (T,), what the agent recorded, (T,) each."""

    seed: int
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    record: dict[str, list[float]] = field(default_factory=dict)
    terminal: bool = False
    diverged: bool = False  # the simulator's state or reward was not finite: the return so far counts

    @property
    def total(self) -> float:
        """Undiscounted return."""
        return float(sum(self.rewards))


def rollouts(
    make: Callable[[], object],
    agent,
    seeds: list[int],
    options: list[dict] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """Run one episode per seed, all in step so that their decisions are one batch.

    make() -> gymnasium environment with a time limit; options[i] is handed to reset.  An environment that has
    ended leaves the batch; so does one whose simulation diverged, which its rollout says.  ValueError where the
    environments are not all of one task.
    """
    if not seeds:
        raise ValueError("no seeds: at least one rollout is needed")
    envs, runs = [make() for _ in seeds], [Rollout(seed) for seed in seeds]
    live = np.arange(len(seeds))
    for i, (env, run) in enumerate(zip(envs, runs, strict=True)):
        state, _ = env.reset(seed=run.seed, options=options[i] if options else None)
        run.states.append(np.asarray(state, np.float64))
    tasks = {f"{type(getattr(e, 'unwrapped', e)).__name__} with {len(run.states[0])} state dimensions"
             for e, run in zip(envs, runs, strict=True)}  # fmt: skip
    if len(tasks) > 1:
        raise ValueError(f"environments of different tasks in one batch: {sorted(tasks)}; run each task by itself")
    while len(live):
        actions, record = agent.act(np.stack([runs[i].states[-1] for i in live]))
        going_on = np.ones(len(live), bool)
        for row, i in enumerate(live):
            action = np.clip(actions[row], envs[i].action_space.low, envs[i].action_space.high)
            state, reward, terminal, timeout, _ = envs[i].step(action.astype(np.float32))
            run = runs[i]
            run.diverged = not (np.isfinite(state).all() and np.isfinite(reward))
            run.states.append(run.states[-1] if run.diverged else np.asarray(state, np.float64))
            run.actions.append(action)
            run.rewards.append(0.0 if run.diverged else float(reward))
            for name, values in record.items():
                run.record.setdefault(name, []).append(float(values[row]))
            run.terminal = bool(terminal) and not run.diverged
            going_on[row] = not (terminal or timeout or run.diverged)
        agent.observe(np.array([runs[i].rewards[-1] for i in live]), going_on)
        live = live[going_on]
        if progress:
            progress(len(live))
    for env in envs:
        env.close()
    return runs
