"""Figure 5: agents that reach goals in the four rooms, and tables of their success."""

import numpy as np
import pandas as pd

from ttlib import control
from ttlib.baselines import agents
from ttlib.environments import four_rooms, stepping, tasks
from ttlib.pipeline import experiments, statistics, store
from ttlib.pipeline.experiments import Experiment


def four_rooms_pairs(split: str, n: int, seed: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return n starts and n goals that no model was trained on, (n, 2) each.

    With split `seen` they come from all free space.  With `held_out` they come from the pairs of rooms that the
    model of this split never saw.
    """
    rng = np.random.default_rng([seed, 7])
    room_pairs = [(a, b) for a in range(4) for b in range(4)]
    excluded = [pair for pair in room_pairs if pair not in experiments.HELD_OUT_PAIRS] if split == "held_out" else ()
    return four_rooms.sample_pairs(n, rng, excluded)


def four_rooms_agent(model: str, exp: Experiment, goals: np.ndarray):
    """Return an agent for goals (n, 2), by its name in `four_rooms_success.csv`.

    `straight` walks straight to the goal, and `goal_mlp` is the goal-conditioned MLP.  Any other name stands for the
    Transformer of the experiment.  An agent steps all n rollouts in one batch.
    """
    if model == "straight":
        return agents.FunctionAgent(lambda s, rows: four_rooms.straight(s, goals[rows]))
    if model == "goal_mlp":
        policy, _ = store.load_or_fit(experiments.baseline("goal-mlp", exp.data, exp.size))
        return agents.FunctionAgent(lambda s, rows: policy.act(np.hstack([s, goals[rows]])))
    loaded = store.load_or_train(exp)
    choose = control.ByLikelihood(exp.horizon, exp.width)
    goals = goals if exp.goal else None
    return control.TransformerAgent(loaded.model, loaded.tokenizer, choose, exp.context, goals)


def reach(agent, starts: np.ndarray, goals: np.ndarray, progress=None) -> list[stepping.Rollout]:
    """Run one rollout from each start to its goal, (n, 2) each, all in one batch."""
    options = [{"start": s, "goal": g} for s, g in zip(starts, goals, strict=True)]
    return stepping.rollouts(tasks.four_rooms, agent, list(range(len(goals))), options, progress)


def success_table(runs: list[stepping.Rollout], starts: np.ndarray, goals: np.ndarray, **columns) -> pd.DataFrame:
    """Return the rows of `four_rooms_success.csv`: one for all pairs, and one for each number of rooms crossed.

    rooms_crossed   -1 in the row for all pairs
    n               the number of rollouts
    success         the fraction of successes, with its Wilson 95% interval from low to high
    path_ratio      path length divided by the length of the shortest path to where the path ended, the mean over
                    successes
    """
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
