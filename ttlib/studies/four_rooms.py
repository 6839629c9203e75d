"""Figure 5: agents that reach goals in the four rooms, and tables of their success."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from ttlib import control
from ttlib.baselines import agents, cloning
from ttlib.environments import four_rooms, stepping, tasks
from ttlib.pipeline import experiments, store
from ttlib.pipeline.experiments import Experiment


def four_rooms_pairs(split: str, n: int, seed: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return n starts and n goals, (n, 2) each; with split `held_out`, of pairs of rooms that its model never saw."""
    rng = np.random.default_rng([seed, 7])
    room_pairs = [(a, b) for a in range(4) for b in range(4)]
    excluded = [pair for pair in room_pairs if pair not in experiments.HELD_OUT_PAIRS] if split == "held_out" else ()
    return four_rooms.sample_pairs(n, rng, excluded)


def four_rooms_agent(model: str, exp: Experiment, goals: np.ndarray):
    """Return an agent for goals (n, 2), by its name in `four_rooms_success.csv`.

    `goal_mlp` is the goal-conditioned MLP; names but `straight` stand for the Transformer of the experiment.
    """
    if model == "straight":
        return agents.FunctionAgent(lambda s, rows: four_rooms.straight(s, goals[rows]))
    if model == "goal_mlp":
        policy = goal_mlp(exp)
        return agents.FunctionAgent(lambda s, rows: policy.act(np.hstack([s, goals[rows]])))
    loaded = store.load_or_train(exp)
    choose = control.ByLikelihood(exp.horizon, exp.width)
    goals = goals if exp.goal else None
    return control.TransformerAgent(loaded.model, loaded.tokenizer, choose, exp.context, goals)


def goal_mlp(exp: Experiment) -> cloning.MLP:
    """Fit the goal-conditioned MLP: it maps a state and a goal, the last state of the episode, to an action."""
    inputs, actions = [], []
    for part in store.split(exp.data):
        goals = np.repeat(part.states[part.starts[1:] - 1], part.lengths, axis=0)
        inputs.append(np.hstack([part.states, goals]))
        actions.append(part.actions)
    updates = 200 if exp.size == "smoke" else 20_000
    return cloning.fit(inputs[0], actions[0], inputs[1], actions[1], seed=0, updates=updates)[0]


def reach(agent, starts: np.ndarray, goals: np.ndarray, progress=None) -> list[stepping.Rollout]:
    """Run one rollout from each start to its goal, (n, 2) each, all in one batch."""
    options = [{"start": s, "goal": g} for s, g in zip(starts, goals, strict=True)]
    return stepping.rollouts(tasks.four_rooms, agent, list(range(len(goals))), options, progress)


def success_table(runs: list[stepping.Rollout], starts: np.ndarray, goals: np.ndarray, **columns) -> pd.DataFrame:
    """Return the rows of `four_rooms_success.csv`: one for all pairs, and one for each number of rooms.

    The row for all pairs has rooms_crossed -1.  low, high: the Wilson 95% interval of success.  path_ratio: path length
    divided by the length of the shortest path to where the path ended, the mean over successes.
    """
    length = np.array([np.linalg.norm(np.diff(run.states, axis=0), axis=1).sum() for run in runs])
    ends = np.array([run.states[-1] for run in runs], np.float32)
    each = pd.DataFrame({"rooms": four_rooms.rooms_crossed(starts, goals), "success": [run.terminal for run in runs]})
    each["ratio"] = length / np.maximum(four_rooms.shortest_path(starts, ends), 1e-9)
    rows = []
    for rooms, part in pd.concat([each.assign(rooms=-1), each]).groupby("rooms"):
        interval = binomtest(int(part.success.sum()), len(part)).proportion_ci(method="wilson")
        row = {"rooms_crossed": rooms, "n": len(part), "success": part.success.mean()}
        row |= {"low": interval.low, "high": interval.high, "path_ratio": part.ratio[part.success].mean()}
        rows.append(columns | row)
    return pd.DataFrame(rows)
