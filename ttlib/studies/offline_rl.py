"""Table 1, Figure 4 and imitation (Sections 3.2 and 4.2): which rollouts they are made of."""

from dataclasses import replace

import numpy as np
import pandas as pd

from ttlib import control
from ttlib.pipeline import experiments, keys, places, results, rollouts, statistics, store
from ttlib.pipeline.experiments import Experiment


def comparison(name: str, size: str) -> list[rollouts.RolloutSet]:
    """All rollouts of one dataset of Table 1: the planner in both profiles and what it is compared with."""
    v1, released = (experiments.get(name, size, profile) for profile in ("v1", "released"))
    runs = []
    for ours, theirs in zip(experiments.models(released), experiments.models(v1)):
        runs += [rollouts.planning(ours, scorer=theirs), rollouts.planning(theirs, scorer=ours)]
    runs += rollouts.cloning(v1, "bc", "MLP 2 x 256") + rollouts.cloning(
        v1, "bc10", "MLP 2 x 256, best tenth of episodes"
    )
    if not v1.data.official:
        many = tuple(range(2 if size == "smoke" else 12))
        runs.append(rollouts.RolloutSet(v1, "behaviour", "the data's policies in turn", many))
    # The same horizon and as many transitions of the model as the planner.
    setting = f"horizon {released.plan.horizon}, {released.plan.plans * released.plan.candidates} sequences"
    runs.append(rollouts.RolloutSet(released, "random_shooting", setting, v1.seeds, scorer=v1))
    return runs


def names(size: str, official: bool = False) -> list[str]:
    return [f"{name}-v2" if official else name for name in experiments.table1(size)]


def table1_runs(size: str, official: bool = False) -> list[rollouts.RolloutSet]:
    return [run for name in names(size, official) for run in comparison(name, size)]


def table1(size: str, official: bool = False) -> pd.DataFrame:
    """`table1_rollouts.csv`."""
    return rollouts.table("table1_rollouts", size, table1_runs(size, official))


def planners(size: str, official: bool = False) -> list[rollouts.RolloutSet]:
    return [run for run in table1_runs(size, official) if run.scorer]


def values(size: str, official: bool = False) -> pd.DataFrame:
    """`planner_values.csv`: what plans promised and what followed, for the planner and for random shooting."""
    runs = planners(size, official)

    def make() -> pd.DataFrame:
        parts = [pd.DataFrame(rollouts.value_rows(run.rollouts(), run.exp, run.method)).assign(
            setting=run.setting, profile=run.profile, model_seed=run.model_seed) for run in runs]  # fmt: skip
        return pd.concat([part for part in parts if len(part)], ignore_index=True)

    return results.table("planner_values", size, make, {"runs": runs}, rollouts._inputs(runs))


def likelihoods(size: str, official: bool = False) -> pd.DataFrame:
    """`action_likelihood.csv`: mean log-density in nats of the actions taken, one row a rollout, under the model of
    the other profile, which did not plan them; `data`: of held-out episodes' own actions, under both."""
    runs = planners(size, official)

    def make() -> pd.DataFrame:
        rows = []
        for run in runs:
            for seed, steps in run.steps().groupby("rollout_seed"):
                rows.append({"dataset": run.exp.data.name, "method": run.method, "profile": run.profile, "setting":
                             run.setting, "scorer": run.scorer.profile, "model_seed": run.model_seed,
                             "rollout_seed": seed, "log_likelihood": steps.log_density.mean()})  # fmt: skip
        for name in names(size, official):
            for profile in experiments.PROFILES:
                rows.append(_held_out(experiments.get(name, size, profile)))
        return pd.DataFrame(rows)

    return results.table("action_likelihood", size, make, {"runs": runs}, rollouts._inputs(runs))


def _held_out(exp: Experiment, count: int = 5000) -> dict:
    held = store.dataset(exp.data).split(exp.data.held_out, exp.data.seed)[1]
    rows = np.random.default_rng(0).permutation(len(held.states))[:count]
    data = control.Rollout(-1, states=list(held.states[rows]), actions=list(held.actions[rows]))
    found = rollouts.action_log_density(exp, [data])[0].mean()
    return {"dataset": exp.data.name, "method": "data", "profile": "any", "setting": "held-out episodes", "scorer":
            exp.profile, "model_seed": exp.train.seed, "rollout_seed": -1, "log_likelihood": found}  # fmt: skip


def figure_4(size: str, rollouts: pd.DataFrame) -> pd.DataFrame:
    """`fig4_offline_rl.csv`: scores of ours and of others; low and high bound a 90% bootstrap interval over rollouts,
    stratified for the mean over all datasets."""

    def make() -> pd.DataFrame:
        rows = []
        for (method, profile), found in rollouts.groupby(["method", "profile"], sort=False):
            scores = {name: part.score.to_numpy() for name, part in found.groupby("dataset", sort=False)}
            for name, x in [*scores.items(), ("mean", None)]:
                low, high = statistics.bootstrap(*(scores.values() if x is None else [x]))
                means = np.array([part.mean() for part in scores.values()])
                n = sum(map(len, scores.values())) if x is None else len(x)
                std = x.std(ddof=1) if x is not None and n > 1 else np.nan
                rows.append({"dataset": name, "method": method, "profile": profile, "source": "ours",
                             "mean": means.mean() if x is None else x.mean(), "std": std, "stderr": std / n**0.5,
                             "low": low, "high": high, "n": n})  # fmt: skip
        published = pd.read_csv(places.ROOT / "data" / "published_table1.csv")
        for method, found in published.groupby("method", sort=False):
            for row in found.itertuples():
                rows.append({"dataset": row.dataset, "method": method, "profile": "published",
                             "source": row.source.split()[0], "mean": row.mean, "std": row.plus_minus})  # fmt: skip
            rows.append({"dataset": "mean", "method": method, "profile": "published",
                         "source": found.source.iloc[0].split()[0], "mean": found["mean"].mean()})  # fmt: skip
        return pd.DataFrame(rows)

    text = rollouts.to_csv(index=False, float_format="%.6g")
    return results.table("fig4_offline_rl", size, make, {"level": 0.9}, {"rollouts": keys.key(text)})


LENGTHS = {0: "action alone", 1: "1 transition", 3: "3 transitions"}  # of a likelihood beam


def imitation_runs(size: str) -> list[rollouts.RolloutSet]:
    runs = []
    for name in experiments.experts(size):
        exp = experiments.get(name, size)
        longest = exp.model.T - exp.past
        for horizon, setting in LENGTHS.items():
            if horizon <= longest:
                for e in experiments.models(exp):
                    runs.append(
                        rollouts.RolloutSet(replace(e, horizon=horizon), "imitation", setting, e.seeds, e.train.seed)
                    )
        runs += rollouts.cloning(exp, "bc", "MLP 2 x 256")
        runs.append(rollouts.RolloutSet(exp, "behaviour", "the expert", tuple(range(2 if size == "smoke" else 12))))
    return runs


def imitation(size: str) -> pd.DataFrame:
    """`imitation_rollouts.csv`: likelihood beams of several lengths on expert data, beside cloning and the expert."""
    return rollouts.table("imitation_rollouts", size, imitation_runs(size))
