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
    record: dict[str, list] = field(default_factory=dict)  # T of each name
    terminal: bool = False
    diverged: bool = False  # not finite; the return so far counts

    @property
    def total(self) -> float:
        """The undiscounted return."""
        return float(sum(self.rewards))

    def step(self, env, action: np.ndarray) -> bool:
        """Take an action (M,) -> whether the episode goes on.  Raises ValueError if the environment takes another M."""
        space = env.action_space
        if action.shape != space.low.shape:  # numpy would give one number to every joint
            raise ValueError(f"actions of shape {action.shape}; the environment takes {space.low.shape}: {OTHER}")
        action = np.clip(action, space.low, space.high)
        state, reward, terminal, timeout, _ = env.step(action.astype(np.float32))
        state, reward = as_state(state, len(self.states[-1])), as_number(reward)
        self.diverged = not (np.isfinite(state).all() and np.isfinite(reward))
        self.states.append(self.states[-1] if self.diverged else state)
        self.actions.append(action)
        self.rewards.append(0.0 if self.diverged else reward)
        self.terminal = bool(terminal) and not self.diverged
        return not (terminal or timeout or self.diverged)


OTHER = "is it the environment that the data are from?"


def as_state(state, N: int | None = None) -> np.ndarray:
    """Return the state of an environment, (N,) float64.  Raises ValueError for anything but a row of (N) numbers."""
    try:
        array = np.asarray(state, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"the environment's state is a {type(state).__name__}; expected a row of numbers: wrap the environment in "
            "gymnasium.wrappers.FlattenObservation"
        ) from None
    if array.ndim != 1 or N not in (None, len(array)):
        raise ValueError(
            f"the environment's state has shape {array.shape}; expected ({'N' if N is None else N},): {OTHER}"
        )
    return array


def as_number(reward) -> float:
    """Return a reward, which may be an array of one element.  Raises ValueError for anything else."""
    try:
        return float(np.asarray(reward, np.float64).reshape(()))
    except (TypeError, ValueError):
        raise ValueError(f"the environment's reward is {reward!r}; expected one number") from None


def time_limit(env) -> int | None:
    """Return after how many steps gymnasium ends an episode of an environment; None if it never does."""
    while env is not None:
        if steps := getattr(env, "_max_episode_steps", None):  # of gymnasium.wrappers.TimeLimit
            return steps
        env = getattr(env, "env", None)
    return None


def action_faults(env, M: int | None = None) -> list[str]:
    """Return sentences about actions that nothing here can choose: those that are not rows of (M) numbers."""
    space = env.action_space
    if not hasattr(space, "low"):
        return [
            f"the environment's actions are {space}; expected a Box: wrap the environment so that its actions are a "
            "Box of shape (M,), and round what it gets (page 07, Discrete actions)"
        ]
    if len(space.low.shape) != 1 or M not in (None, len(space.low)):
        return [
            f"the environment takes actions of shape {space.low.shape}; expected ({'M' if M is None else M},): {OTHER}"
        ]
    return []


def rollouts(
    make: Callable[[], object], agent, seeds: Sequence[int],
    options: Sequence[dict] | None = None, progress: Callable | None = None,
) -> list[Rollout]:  # fmt: skip
    """Run one episode for each seed, all in step, so that decisions are one batch.

    make() -> a gymnasium environment with a time limit; options[i] go to its reset.  The agent has reset(seeds),
    act(states) and observe(rewards, going_on).  Raises ValueError without seeds, for different tasks, for actions that
    are not rows of numbers, and for an environment of gymnasium whose episodes may never end.
    """
    if not len(seeds):
        raise ValueError("no seeds; expected at least one, one for each rollout")
    envs, runs = [make() for _ in seeds], [Rollout(int(seed)) for seed in seeds]
    if faults := action_faults(envs[0]):
        raise ValueError(faults[0])
    if hasattr(envs[0], "unwrapped") and not time_limit(envs[0]):
        way_out = "gymnasium.wrappers.TimeLimit(env, max_episode_steps=...)"
        raise ValueError(f"the environment {envs[0]} has no time limit, so episodes may never end: give {way_out}")
    for i, (env, run) in enumerate(zip(envs, runs)):
        state, _ = env.reset(seed=run.seed, options=options[i] if options else None)
        run.states.append(as_state(state))
    if len(sizes := {len(run.states[0]) for run in runs}) > 1:
        raise ValueError(f"environments with {sizes} state dimensions; expected one")
    agent.reset(seeds)
    live = np.arange(len(seeds))
    while len(live):
        actions, record = agent.act(np.stack([runs[i].states[-1] for i in live]))
        for name, values in record.items():
            for i, value in zip(live, values):
                runs[i].record.setdefault(name, []).append(value)
        pairs = zip(live, actions, strict=True)
        going_on = np.array([runs[i].step(envs[i], action) for i, action in pairs])
        agent.observe(np.array([runs[i].rewards[-1] for i in live]), going_on)
        live = live[going_on]
        if progress:
            progress(len(live))
    for env in envs:
        env.close()
    return runs
