"""Figure 5: agents that reach goals in the four rooms, their rollouts, and how often they arrive."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tqdm import tqdm

from ttlib import control
from ttlib.baselines import agents
from ttlib.environments import four_rooms, stepping, tasks
from ttlib.native.decoder import decoder_for, planner
from ttlib.pipeline import experiments, keys, rollouts, store
from ttlib.pipeline.experiments import Experiment

# Raised by hand when a rollout changes its meaning.  2: the MLP's shorter schedule, and a row for each rollout.
WALKS_STAGE = 2


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
        policy, _ = store.load_or_fit(experiments.baseline("goal-mlp", exp.data, exp.size))
        return agents.FunctionAgent(lambda s, rows: policy.act(np.hstack([s, goals[rows]])))
    loaded = store.load_or_train(exp)
    choose = control.ByLikelihood(exp.horizon, exp.width)
    goals = goals if exp.goal else None
    reader = decoder_for(loaded.model)
    return control.TransformerAgent(loaded.model, loaded.tokenizer, choose, exp.context, goals, reader)


@dataclass(frozen=True)
class Walks:
    """Rollouts of one controller, from `count` starts to as many goals that no model was trained on, in one batch.

    model: as in `four_rooms_success.csv`; split: as for `four_rooms_pairs`; exp: the experiment of its Transformer, or
    the one whose data its MLP was fitted to.
    """

    model: str
    split: str
    exp: Experiment
    count: int
    seed: int = 1000  # of the pairs of start and goal

    def __str__(self) -> str:
        return f"{self.model}, {self.split}"

    @property
    def setting(self) -> str:
        """The column of the record that tells its rows apart, beside the key."""
        return str(self)

    def inputs(self) -> dict[str, str]:
        """Return the key of the model's weights, or of the fitted MLP's recipe; nothing for the straight walker."""
        if self.model == "goal_mlp":
            fit = experiments.baseline("goal-mlp", self.exp.data, self.exp.size)
            return {fit.label: store.fit_key(fit)}
        return {} if self.model == "straight" else store.inputs([self.exp])

    @property
    def key(self) -> str:
        """The key of its rollouts: of its settings, its model, and the stage of the code."""
        return keys.key(self, WALKS_STAGE, self.inputs())

    def begin(self, seeds: Sequence[int]) -> tuple[Callable, object, list[dict]]:
        """Return how environments are made, the agent, and the starts and goals of these pairs."""
        starts, goals = (x[list(seeds)] for x in four_rooms_pairs(self.split, self.count, self.seed))
        options = [{"start": start, "goal": goal} for start, goal in zip(starts, goals, strict=True)]
        return tasks.four_rooms, four_rooms_agent(self.model, self.exp, goals), options

    def rows(self) -> pd.DataFrame:
        """Make its rollouts -> a row for each.

        ratio: path length divided by the length of the shortest path to where the path ended.
        """
        make, agent, options = self.begin(range(self.count))
        runs = stepping.rollouts(make, agent, range(self.count), options)
        starts, goals = (np.array([pair[name] for pair in options]) for name in ("start", "goal"))
        length = [np.linalg.norm(np.diff(run.states, axis=0), axis=1).sum() for run in runs]
        ends = np.array([run.states[-1] for run in runs], np.float32)
        rows = pd.DataFrame([
            {"rollout_seed": run.seed, "return": run.total, "length": len(run.rewards), "success": run.terminal}
            | rollouts.decisions(run) for run in runs
        ])  # fmt: skip
        rows["rooms"] = four_rooms.rooms_crossed(starts, goals)
        rows["ratio"] = length / np.maximum(four_rooms.shortest_path(starts, ends), 1e-9)
        by = "none" if self.model in ("straight", "goal_mlp") else planner()
        return rows.assign(model=self.model, split=self.split, setting=self.setting, planner=by, key=self.key)


def walks(size: str) -> list[Walks]:
    """Return the rollouts of `four_rooms_rollouts.csv`."""
    main, blind, held_out = (experiments.get(f"four-rooms{name}", size) for name in ("", "-unconditioned", "-held-out"))
    count, found = 30 if size == "smoke" else 1000, []
    for split, exp in (("seen", main), ("held_out", held_out)):
        found += [Walks(model, split, exp, count) for model in ("goal_transformer", "goal_mlp", "straight")]
    return [*found, Walks("transformer", "seen", blind, count)]


def walked(size: str) -> pd.DataFrame:
    """Return `four_rooms_rollouts.csv`."""
    sets = walks(size)
    make = lambda: pd.concat([each.rows() for each in tqdm(sets, unit="controller")], ignore_index=True)  # noqa: E731
    return store.table("four_rooms_rollouts", size, make, sets, stage=WALKS_STAGE, record=True)


def success(table: pd.DataFrame) -> pd.DataFrame:
    """Return `four_rooms_success.csv`: for each controller a row for all pairs, and one for each number of rooms.

    The row for all pairs has rooms_crossed -1.  low, high: the Wilson 95% interval of success.  path_ratio: the mean
    ratio over successes.
    """
    rows = []
    for (model, split), each in table.groupby(["model", "split"], sort=False):
        for rooms, part in pd.concat([each.assign(rooms=-1), each]).groupby("rooms"):
            interval = binomtest(int(part.success.sum()), len(part)).proportion_ci(method="wilson")
            rows.append({"model": model, "split": split, "rooms_crossed": rooms, "n": len(part),
                         "success": part.success.mean(), "low": interval.low, "high": interval.high,
                         "path_ratio": part.ratio[part.success].mean()})  # fmt: skip
    return pd.DataFrame(rows)
