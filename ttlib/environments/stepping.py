"""Step gymnasium environments: one episode for each seed, all in one batch of decisions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Rollout:
    """One episode of T steps."""

    seed: int
    states: list[np.ndarray] = field(default_factory=list)  # T + 1, (N,) each
    actions: list[np.ndarray] = field(default_factory=list)  # T, (M,) each
    rewards: list[float] = field(default_factory=list)
    record: dict[str, list[float]] = field(default_factory=dict)
    terminal: bool = False
    diverged: bool = False  # not finite; the return so far counts

    @property
    def total(self) -> float:
        """The undiscounted return."""
        return float(sum(self.rewards))

    def step(self, env, action: np.ndarray) -> bool:
        """Take an action (M,) -> whether the episode goes on."""
        action = np.clip(action, env.action_space.low, env.action_space.high)
        state, reward, terminal, timeout, _ = env.step(action.astype(np.float32))
        self.diverged = not (np.isfinite(state).all() and np.isfinite(reward))
        last = self.states[-1] if self.diverged else np.asarray(state, np.float64)
        self.states.append(last)
        self.actions.append(action)
        self.rewards.append(0.0 if self.diverged else float(reward))
        self.terminal = bool(terminal) and not self.diverged
        return not (terminal or timeout or self.diverged)


def rollouts(
    make: Callable[[], object], agent, seeds: Sequence[int],
    options: Sequence[dict] | None = None, progress: Callable | None = None,
) -> list[Rollout]:  # fmt: skip
    """Run one episode for each seed, all in step, so that decisions are one batch.

    make() -> a gymnasium environment with a time limit; options[i] go to its reset.  The agent has reset(seeds),
    act(states) and observe(rewards, going_on).  Raises ValueError without seeds, or for different tasks.
    """
    if not len(seeds):
        raise ValueError("no seeds; expected at least one, one for each rollout")
    envs, runs = [make() for _ in seeds], [Rollout(int(seed)) for seed in seeds]
    for i, (env, run) in enumerate(zip(envs, runs)):
        state, _ = env.reset(seed=run.seed, options=options[i] if options else None)
        run.states.append(np.asarray(state, np.float64))
    if len(sizes := {len(run.states[0]) for run in runs}) > 1:
        raise ValueError(f"environments with {sizes} state dimensions; expected one")
    agent.reset(seeds)
    live = np.arange(len(seeds))
    while len(live):
        actions, record = agent.act(np.stack([runs[i].states[-1] for i in live]))
        for name, values in record.items():
            for i, value in zip(live, values):
                runs[i].record.setdefault(name, []).append(float(value))
        pairs = zip(live, actions, strict=True)
        going_on = np.array([runs[i].step(envs[i], action) for i, action in pairs])
        agent.observe(np.array([runs[i].rewards[-1] for i in live]), going_on)
        live = live[going_on]
        if progress:
            progress(len(live))
    for env in envs:
        env.close()
    return runs
