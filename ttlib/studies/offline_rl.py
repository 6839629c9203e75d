"""Table 1, Figure 4 and imitation (Sections 3.2 and 4.2): the rollouts that they are made of."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd

from ttlib.environments import stepping
from ttlib.pipeline import experiments, places, results, rollouts, statistics, store
from ttlib.pipeline.experiments import Experiment
from ttlib.pipeline.rollouts import RolloutSet, cloning, planning

TABLE1_CEM = ()
CLONED, TOP_CLONED = "MLP 2 x 256", "MLP 2 x 256, best tenth of episodes"


def comparison(name: str, size: str) -> list[RolloutSet]:
    """Return all rollouts of one dataset of Table 1: the planner in both profiles and what it is compared with."""
    v1, released = (experiments.get(name, size, profile) for profile in experiments.PROFILES)
    runs = []
    for ours, theirs in zip(experiments.models(released), experiments.models(v1)):
        runs += [planning(ours, scorer=theirs), planning(theirs, scorer=ours)]
    runs += cloning(v1, "bc", CLONED) + cloning(v1, "bc10", TOP_CLONED)
    if not v1.data.official:
        many, label = tuple(range(2 if size == "smoke" else 12)), "the data's policies in turn"
        runs.append(RolloutSet(v1, "behaviour", label, many, variant="behaviour_policies"))
    # Random shooting has the planner's horizon and as many transitions of the model; CEM has the same horizon.
    shot = [RolloutSet(released, method, "", v1.seeds, scorer=v1) for method in ("random_shooting", *TABLE1_CEM)]
    runs += [replace(run, setting=f"horizon {released.plan.horizon}, {run.sequences} sequences") for run in shot]
    return runs


def names(size: str, official: bool = False) -> list[str]:
    """Return the names of Table 1's datasets: regenerated, or D4RL's own."""
    return [f"{name}-v2" if official else name for name in experiments.table1(size)]


def described(size: str, configs: list[experiments.DataConfig]) -> pd.DataFrame:
    """Return one row for each dataset, from the table of page 06 if it has them, else from the episodes."""
    path, wanted = places.published("datasets", size), [config.name for config in configs]
    if path.exists() and set(wanted) <= set((table := pd.read_csv(path, index_col="dataset")).index):
        return table.loc[wanted]
    rows = {}
    for config in configs:
        of = (episodes := store.dataset(config)).returns
        rows[config.name] = {"episodes": len(of), "mean": of.mean(), "std": of.std(), "max": of.max(),
                             "fell": episodes.terminal.mean()}  # fmt: skip
    return pd.DataFrame.from_dict(rows, "index").rename_axis("dataset")


def table1_runs(size: str, official: bool = False) -> list[RolloutSet]:
    """Return the rollouts of `table1_rollouts.csv`."""
    return [run for name in names(size, official) for run in comparison(name, size)]


def table1(size: str, official: bool = False) -> pd.DataFrame:
    """Return `table1_rollouts.csv`."""
    return rollouts.table("table1_rollouts", size, table1_runs(size, official))


def promised(table: pd.DataFrame) -> pd.DataFrame:
    """Return the value that each plan promised and the return that followed: a row for every fifth step.

    table: rows of `table1_rollouts.csv`, of which those without plans are left out.
    """
    planned = table[table.promised != "[]"]
    lists = {"predicted": planned.promised.map(json.loads), "achieved": planned.achieved.map(json.loads)}
    lists["t"] = lists["predicted"].map(lambda values: list(range(0, rollouts.EVERY * len(values), rollouts.EVERY)))
    named = ["dataset", "method", "profile", "setting", "variant", "model_seed", "rollout_seed", "horizon", "sequences"]
    return planned[named].assign(**lists).explode([*lists], ignore_index=True).astype(dict.fromkeys(lists, float))


def values(size: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return `planner_values.csv`: what `promised` finds in Table 1's rollouts."""
    return results.drawn("planner_values", size, lambda: promised(table), table)


def likelihoods(size: str, table: pd.DataFrame, official: bool = False) -> pd.DataFrame:
    """Return `action_likelihood.csv`: the mean log-density in nats of the actions taken, one row for each rollout.

    table: Table 1's rollouts.  The model of the other profile scores them, which did not plan them.  Rows of method
    `data` are held-out episodes' own actions, under both models.
    """
    exps = [experiments.get(name, size, profile) for name in names(size, official) for profile in experiments.PROFILES]
    held = store.table("held_out_actions", size, lambda: pd.DataFrame(map(_held_out, exps)), exps, record=True)

    def make() -> pd.DataFrame:
        scored = table[table.log_density.notna()].rename(columns={"log_density": "log_likelihood"})
        scorer = scored.profile.map({"v1": "released"}).fillna("v1")
        return pd.concat([scored.assign(scorer=scorer)[held.columns], held], ignore_index=True)

    return results.drawn("action_likelihood", size, make, table, held)


def _held_out(exp: Experiment, count: int = 5000) -> dict:
    """Return the row of `action_likelihood.csv` for held-out actions under the experiment's model."""
    held = store.split(exp.data)[1]
    rows = np.random.default_rng(0).permutation(len(held.states))[:count]
    data = stepping.Rollout(-1, states=list(held.states[rows]), actions=list(held.actions[rows]))
    mean = rollouts.action_log_density(exp, [data])[0].mean()
    return {"dataset": exp.data.name, "method": "data", "profile": "any", "setting": "held-out episodes", "scorer":
            exp.profile, "model_seed": exp.train.seed, "rollout_seed": -1, "log_likelihood": mean,
            "variant": "main", "horizon": np.nan, "sequences": np.nan}  # fmt: skip


def _score_rows(method: str, profile: str, scores: dict[str, np.ndarray]) -> list[dict]:
    """Return rows of `fig4_offline_rl.csv` for scores by dataset, and for the mean over datasets."""
    rows = []
    for name, x in [*scores.items(), ("mean", None)]:
        low, high = statistics.bootstrap(*(scores.values() if x is None else [x]))
        means = np.array([part.mean() for part in scores.values()])
        n = sum(map(len, scores.values())) if x is None else len(x)
        std = x.std(ddof=1) if x is not None and n > 1 else np.nan
        rows.append({"dataset": name, "method": method, "profile": profile, "source": "ours",
                     "mean": means.mean() if x is None else x.mean(), "std": std, "stderr": std / n**0.5,
                     "low": low, "high": high, "n": n})  # fmt: skip
    return rows


def figure_4(size: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return `fig4_offline_rl.csv`: our scores, from the rollouts of `table`, and published ones.

    low and high bound a 90% bootstrap interval over rollouts, stratified for the mean over all datasets.
    """

    def make() -> pd.DataFrame:
        rows = []
        for (method, profile), part in table.groupby(["method", "profile"], sort=False):
            scores = {name: group.score.to_numpy() for name, group in part.groupby("dataset", sort=False)}
            rows += _score_rows(method, profile, scores)
        published = pd.read_csv(places.ROOT / "data" / "published_table1.csv")
        for method, part in published.groupby("method", sort=False):
            for row in part.itertuples():
                rows.append({"dataset": row.dataset, "method": method, "profile": "published",
                             "source": row.source.split()[0], "mean": row.mean, "std": row.plus_minus})  # fmt: skip
            rows.append({"dataset": "mean", "method": method, "profile": "published",
                         "source": part.source.iloc[0].split()[0], "mean": part["mean"].mean()})  # fmt: skip
        return pd.DataFrame(rows)

    return results.drawn("fig4_offline_rl", size, make, table[["dataset", "method", "profile", "score"]], level=0.9)


LENGTHS = {0: "action alone", 1: "1 transition", 3: "3 transitions"}  # of a likelihood beam


def imitation_runs(size: str) -> list[RolloutSet]:
    """Return the rollouts of `imitation_rollouts.csv`."""
    runs = []
    for name in experiments.experts(size):
        exp = experiments.get(name, size)
        for horizon, label in LENGTHS.items():
            if horizon <= exp.model.T - exp.context:
                for e in experiments.models(exp):
                    runs.append(RolloutSet(replace(e, horizon=horizon), "imitation", label, e.seeds, e.train.seed))
        runs += cloning(exp, "bc", CLONED)
        many = tuple(range(2 if size == "smoke" else 12))
        runs.append(RolloutSet(exp, "behaviour", "the expert", many, variant="expert_policy"))
    return runs


def imitation(size: str) -> pd.DataFrame:
    """Return `imitation_rollouts.csv`: likelihood beams of several lengths on expert data, cloning, the expert."""
    return rollouts.table("imitation_rollouts", size, imitation_runs(size))


def hopper_runs(size: str) -> list[RolloutSet]:
    """Return the rollouts of `hopper_rollouts.csv`: planning and sampling in both profiles, cloning, the policies."""
    runs, exps = [], [experiments.get("hopper-long", size, profile) for profile in experiments.PROFILES]
    for exp in exps:
        runs += [planning(exp), RolloutSet(exp, "sampling", "sampling", exp.seeds)]
    runs += [RolloutSet(exps[0], "bc", CLONED, exps[0].seeds, model_seed) for model_seed in range(3)]
    many = tuple(range(2 if size == "smoke" else 36))
    return [*runs, RolloutSet(exps[0], "behaviour", "12 snapshots in turn", many)]


def hopper(size: str) -> pd.DataFrame:
    """Return `hopper_rollouts.csv`."""
    return rollouts.table("hopper_rollouts", size, hopper_runs(size))


def exercise(exp: Experiment, setting: str, **plan) -> RolloutSet:
    """Return the rollouts of an exercise, on seeds of its own: planning with another plan."""
    seeds = tuple(range(2000, 2002 if exp.size == "smoke" else 2004))
    return planning(replace(exp, plan=replace(exp.plan, **plan), seeds=seeds), setting)


def exercises(size: str) -> dict[str, list[RolloutSet]]:
    """Return the rollouts of the exercises, by the name of their record."""
    long, medium = (experiments.get(name, size, "released") for name in ("hopper-long", "hopper-medium"))
    changes = {"one_transition": {"horizon": 1}, "as_it_is": {}, "no_reward_to_go": {"use_reward_to_go": False}}
    found = {f"exercise_{name}": [exercise(long, name, **change)] for name, change in changes.items()}
    for width in (medium.plan.beam_width // 2, medium.plan.beam_width * 2):
        found[f"exercise_offline_{width}_plans"] = [exercise(medium, f"{width} plans", beam_width=width)]
    drawn = replace(exercise(experiments.get("hopper-expert", size), "drawn"), method="sampling")
    return found | {"exercise_imitation_noise": [drawn]}
