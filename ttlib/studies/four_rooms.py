"""Figure 5: goals in four rooms, reached by likelihood alone."""

import numpy as np
import pandas as pd

from ttlib import control
from ttlib.baselines import cloning
from ttlib.environments import four_rooms, tasks
from ttlib.pipeline import experiments, statistics, store
from ttlib.pipeline.experiments import Experiment


def four_rooms_pairs(split: str, n: int, seed: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """n unseen starts and goals, (n, 2) each: `seen` over all free space, `held_out` of the pairs never shown."""
    rng = np.random.default_rng([seed, 7])
    every = [(a, b) for a in range(4) for b in range(4)]
    excluded = [pair for pair in every if pair not in experiments.HELD_OUT_PAIRS] if split == "held_out" else ()
    return four_rooms.sample_pairs(n, rng, excluded)


def four_rooms_agent(model: str, exp: Experiment, goals: np.ndarray):
    """An agent of `four_rooms_success.csv` for goals (n, 2)."""
    if model == "straight":
        return control.FunctionAgent(lambda s, rows: four_rooms.straight(s, goals[rows]), len(goals))
    if model == "goal_mlp":
        policy = goal_mlp(exp)
        return control.FunctionAgent(lambda s, rows: policy.act(np.hstack([s, goals[rows]])), len(goals))
    loaded = store.load_or_train(exp)
    choose = control.by_likelihood(exp.horizon, exp.width)
    return control.TransformerAgent(
        loaded.model, loaded.tokenizer, choose, exp.past, exp.horizon, goals if exp.goal else None
    )


def goal_mlp(exp: Experiment) -> cloning.MLP:
    """The goal-conditioned MLP: state and the episode's last state -> action."""
    inputs, actions = [], []
    for part in store.dataset(exp.data).split(exp.data.held_out, exp.data.seed):
        goals = np.repeat(part.states[part.starts[1:] - 1], part.lengths, axis=0)
        inputs.append(np.hstack([part.states, goals]))
        actions.append(part.actions)
    updates = 200 if exp.size == "smoke" else 20_000
    return cloning.fit(inputs[0], actions[0], inputs[1], actions[1], seed=0, updates=updates)[0]


def reach(agent, starts: np.ndarray, goals: np.ndarray, progress=None) -> list[control.Rollout]:
    """Rollouts from starts to goals, (n, 2) each, all in one batch."""
    options = [{"start": s, "goal": g} for s, g in zip(starts, goals, strict=True)]
    return control.rollouts(tasks.four_rooms, agent, list(range(len(goals))), options, progress)


def success_table(runs: list[control.Rollout], starts: np.ndarray, goals: np.ndarray, **columns) -> pd.DataFrame:
    """Rows of `four_rooms_success.csv`: success with a Wilson 95% interval and path length over the shortest
    path to where the path ended (mean over successes), for all pairs (rooms_crossed = -1) and per rooms crossed."""
    success = np.array([run.terminal for run in runs])
    length = np.array([np.linalg.norm(np.diff(run.states, axis=0), axis=1).sum() for run in runs])
    ends = np.array([run.states[-1] for run in runs], np.float32)
    ratio = length / np.maximum(four_rooms.shortest_path(starts, ends), 1e-9)
    crossed, rows = four_rooms.rooms_crossed(starts, goals), []
    for rooms in (-1, *np.unique(crossed)):
        chosen = crossed == rooms if rooms >= 0 else np.ones(len(runs), bool)
        low, high = statistics.wilson(int(success[chosen].sum()), int(chosen.sum()))
        rows.append(
            {
                **columns,
                "rooms_crossed": int(rooms),
                "n": int(chosen.sum()),
                "success": success[chosen].mean(),
                "low": low,
                "high": high,
                "path_ratio": ratio[chosen & success].mean() if (chosen & success).any() else np.nan,
            }
        )
    return pd.DataFrame(rows)
