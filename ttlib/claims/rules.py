"""The rules that decide the paper's claims, one for each row of data/claims.toml: (tables, limits) -> Finding."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ttlib.pipeline import experiments, places

Tables = dict[str, pd.DataFrame]


class NotTestedError(Exception):
    """The files are there; rows that the rule needs are not."""


@dataclass(frozen=True)
class Finding:
    """What a rule finds: our value with its interval (NaN: none), and whether the claim or only its trend holds."""

    value: float
    low: float
    high: float
    holds: bool
    trend: bool
    note: str = ""


RULES: dict[str, Callable[[Tables, dict[str, float]], Finding]] = {}


def rule(name: str):
    def add(function):
        RULES[name] = function
        return function

    return add


def rows_of(table: pd.DataFrame, **equal) -> pd.DataFrame:
    """Rows with these values.  NotTestedError where there is none."""
    found = table
    for column, value in equal.items():
        found = found[found[column] == value]
    if not len(found):
        raise NotTestedError("no rows" + ", ".join(f" with {c} = {v}" for c, v in equal.items()))
    return found


def means(rows: pd.DataFrame, column: str, samples: int = 2000) -> np.ndarray:
    """(samples,) bootstrap means of a column: models drawn with replacement, and rollouts within each.

    The draws are the same at every call, so two methods with the same seeds in the same order are compared in pairs.
    """
    rng = np.random.default_rng(0)
    values = [group.to_numpy(float) for _, group in rows.groupby("model_seed")[column]]
    within = np.stack([v[rng.integers(len(v), size=(samples, len(v)))].mean(1) for v in values])
    drawn = rng.integers(len(values), size=(samples, len(values)))
    return within[drawn, np.arange(samples)[:, None]].mean(1)


def between(x: np.ndarray, level: float = 0.9) -> tuple[float, float]:
    """The interval that holds the middle of bootstrap values."""
    low, high = np.quantile(x, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean(rows: pd.DataFrame, column: str) -> float:
    """Of the models' means."""
    return float(rows.groupby("model_seed")[column].mean().mean())


@rule("round-trip")
def _(tables: Tables, limits: dict) -> Finding:
    found = rows_of(tables["round_trip"], bins="uniform")
    worst = found.largest_error.max()
    holds = bool(worst <= limits["half_bins"])
    return Finding(worst, np.nan, np.nan, holds, False, f"{len(found)} dimensions of {found.steps.max():,} steps")


@rule("length-m-is-cloning")
def _(tables: Tables, limits: dict) -> Finding:
    found = tables["cloning_check"]
    same = (found.search == found.policy) & (found.search_log_p - found.policy_log_p).abs().le(limits["nats"])
    return Finding(same.mean(), np.nan, np.nan, bool(same.all()), False, f"{len(found)} states")


# Figures 1 and 2.


@rule("plausible-humanoid")
def _(tables: Tables, limits: dict) -> Finding:
    keys = ["model", "rollout", "t"]
    traced = tables["fig1_humanoid"].pivot(index=keys, columns="body", values="z")
    found = rows_of(tables["fig1_poses"].set_index(keys).join(traced, how="inner").sort_index())
    quaternion = found[["q3", "q4", "q5", "q6"]]
    before = quaternion.groupby(level=["model", "rollout"]).shift()
    cosine = (quaternion * before).sum(axis=1, skipna=False).abs().clip(upper=1)
    found["turn"] = 2 * np.arccos(cosine)  # of the torso since the step before, radians; NaN at the first
    true = rows_of(found.reset_index(), model="reference")
    moving = found[found.index.get_level_values("t") > 0]
    heights = moving[list(traced)]
    inside = (heights >= true[list(traced)].min() - limits["metres"]) & (
        heights <= true[list(traced)].max() + limits["metres"]
    )
    fine = inside.all(axis=1) & (moving.turn <= limits["turns"] * true.turn.max())
    share = fine.groupby(level=["model", "rollout"]).mean()
    ours, other = share.loc["transformer"], share.drop(index=["transformer", "reference"]).mean()
    ahead = ours.mean() > other
    note = f"the ensemble: {other:.0%}, true trajectories: {share.loc['reference'].mean():.0%}"
    return Finding(ours.mean(), ours.min(), ours.max(), ahead and ours.mean() >= limits["plausible"], ahead, note)


def _curve(table: pd.DataFrame, panel: str, model: str) -> pd.DataFrame:
    """Rows of Figure 2 by t; what all training seeds say together stands under the smallest seed."""
    scoring = "histogram" if model == "simulator" else "mixture"
    found = rows_of(table, panel=panel, model=model, scoring=scoring).sort_values("seed", kind="stable")
    return found.drop_duplicates("t").set_index("t").sort_index()[["log_likelihood", "low", "high"]]


def _better(table: pd.DataFrame, panel: str) -> str:
    """The better of the two ways to sample the ensemble, by its mean over the steps."""
    models = ("ensemble_ts1", "ensemble_tsinf")
    return max(models, key=lambda model: _curve(table, panel, model).log_likelihood.mean())


def _ensemble(table: pd.DataFrame, panel: str) -> pd.DataFrame:
    return _curve(table, panel, _better(table, panel))


def _leads(table: pd.DataFrame, panel: str, other: str) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """The Transformer's lead over another model: by t, over the second half of the steps, and over all."""
    found = rows_of(table, panel=panel, other=other).set_index(["first", "last"])[["lead", "low", "high"]]
    single = found[found.index.get_level_values(0) == found.index.get_level_values(1)].droplevel(1).sort_index()
    last = single.index.max()
    return single, found.loc[(last // 2 + 1, last)], found.loc[(1, last)]


@rule("order-of-models")
def _(tables: Tables, limits: dict) -> Finding:
    table = tables["fig2_error_compounding"]
    ours, other = _curve(table, "observed", "transformer"), _better(table, "observed")
    lead, late, _ = _leads(tables["fig2_leads"], "observed", other)
    above = ours.low > _curve(table, "observed", other).high
    note = f"disjoint and above at {above.mean():.0%} of the steps, {lead['lead'].iloc[-1]:+.0f} nats at the last"
    ahead = bool(above.iloc[-1])
    return Finding(late["lead"], late.low, late.high, ahead and above.mean() > limits["share"], ahead, note)


@rule("ensemble-fails")
def _(tables: Tables, limits: dict) -> Finding:
    table = tables["fig2_error_compounding"]
    true, ensemble = _curve(table, "observed", "simulator"), _ensemble(table, "observed")
    lost = true.log_likelihood - ensemble.log_likelihood >= limits["nats"]
    good = lost.index[~lost].max() if (~lost).any() else 0  # the last step before which it was still near
    last = int(lost.index.max())
    note = f"still near at step {good}" if good < last else f"still near at the last step, {last}"
    return Finding(min(good + 1, last), np.nan, np.nan, good < limits["steps"], good < last, note)


@rule("markov-is-close")
def _(tables: Tables, limits: dict) -> Finding:
    table = tables["fig2_error_compounding"]
    full, cut = _curve(table, "observed", "transformer"), _curve(table, "observed", "markov")
    gain = (full.log_likelihood - _ensemble(table, "observed").log_likelihood).mean()
    apart = (full.log_likelihood - cut.log_likelihood).abs().mean()
    overlap = ((full.low <= cut.high) & (cut.low <= full.high)).mean()
    note = (
        f"apart by {apart:.1f} nats on average, lead over the ensemble {gain:.1f}, intervals overlap at {overlap:.0%}"
    )
    holds = overlap == 1 or (gain > 0 and apart <= limits["close"] * gain)
    return Finding(apart / gain, np.nan, np.nan, holds, gain > 0 and apart <= limits["near"] * gain, note)


@rule("memory-when-masked")
def _(tables: Tables, limits: dict) -> Finding:
    lead, _, masked = _leads(tables["fig2_leads"], "masked", "markov")
    seen = _leads(tables["fig2_leads"], "observed", "markov")[2]
    above, larger = (lead.low > 0).mean(), masked["lead"] > max(0, seen["lead"])
    clearly = masked["low"] > max(0, seen["high"])
    ahead = rows_of(tables["humanoid_one_step_by_past"], model="transformer").sort_values("past")
    ahead = ahead.groupby("panel").log_density.agg(lambda density: density.iloc[-1] - density.iloc[0])
    note = (
        f"observed {seen['lead']:+.1f} [{seen['low']:.1f}, {seen['high']:.1f}]; masked above at {above:.0%} of the "
        f"steps, below at {(lead.high < 0).mean():.0%}; one step ahead the rest of the window adds "
        f"{ahead['masked']:.1f} nats to what the transition before gives, observed {ahead['observed']:.1f}"
    )
    return Finding(masked["lead"], masked["low"], masked["high"], clearly and above > limits["share"], larger, note)


@rule("discretisation-explains")
def _(tables: Tables, limits: dict) -> Finding:
    table = tables["fig2_error_compounding"]
    ensemble = _ensemble(table, "observed").log_likelihood
    full, cut = (_curve(table, "observed", model).log_likelihood - ensemble for model in ("transformer", "markov"))
    late = full.index > full.index.max() / 2
    kept = cut[late].mean() / full[late].mean() if full[late].mean() > 0 else 0.0
    lower, note = [], []
    for dataset, main, other in _ablation(tables["ablations_rollouts"], "independent"):
        low, high = between(means(other, "return") - means(main, "return"))
        lower.append(high < 0)
        note.append(f"{dataset} {mean(other, 'return') / mean(main, 'return'):.2f} of the return if independent")
    shared = kept >= limits["share"]
    return Finding(kept, np.nan, np.nan, shared and all(lower), shared or all(lower), "; ".join(note))


# Figure 3.


@rule("attention-patterns")
def _(tables: Tables, limits: dict) -> Finding:
    states = rows_of(tables["attention_scores"], rows="states")
    states = states.assign(times=states.value / states.uniform_value)
    markov = rows_of(states, score="markov").groupby(["profile", "seed"]).value.max()
    striated = rows_of(states, score="striated").groupby(["profile", "seed"]).times.max()
    both = bool((markov >= limits["weight"]).all()), bool((striated >= limits["times"]).all())
    note = f"{len(markov)} models; the most striated head of each: {striated.min():.1f} times uniform attention or more"
    return Finding(markov.mean(), markov.min(), markov.max(), all(both), any(both), note)


@rule("actions-attend-to-actions")
def _(tables: Tables, limits: dict) -> Finding:
    actions = rows_of(tables["attention_scores"], rows="actions")
    weight = {
        score: rows_of(actions, score=score).groupby(["profile", "seed"]).value.mean()
        for score in ("past_actions", "past_states", "past_action_key", "past_state_key")
    }
    sums, keys = weight["past_actions"] / weight["past_states"], weight["past_action_key"] / weight["past_state_key"]
    holds, trend = bool((sums > limits["sum"]).all()), bool((keys > 1).all())
    note = f"{len(sums)} models; per key {keys.min():.2g} to {keys.max():.2g} times"
    return Finding(sums.mean(), sums.min(), sums.max(), holds, trend, note)


# Table 1.

PRIOR = ("BC", "CQL", "MOPO", "MBOP")


def _planned(table: pd.DataFrame, datasets: list[str]) -> pd.DataFrame:
    """Rows of TTO on these datasets.  Of two profiles the one run on more of them, v1 (the paper's text) if equal; of
    several searches the first in the file; never mere sampling."""
    tto = table[table.dataset.str.removesuffix("-v2").isin(datasets) & (table.setting != "sampling")]
    tto = rows_of(tto, method="tto")
    run = tto.groupby("profile").dataset.nunique()
    tto = tto[tto.profile == ("v1" if run.get("v1", 0) == run.max() else run.idxmax())]
    return tto[tto.setting == tto.groupby("dataset").setting.transform("first")]


def _shot(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Rows of random shooting; of several numbers of sequences the least: as many transitions as the planner has."""
    rows = rows_of(table, dataset=dataset, method="random_shooting")
    count = rows.setting.str.extract(r"(\d+) sequences", expand=False).astype(float)
    return rows[count.isna() | (count == count.min())]


def _scores(table: pd.DataFrame, datasets: list[str], par: float) -> tuple[pd.DataFrame, np.ndarray, str]:
    """By dataset: score, source, best published prior, best other method run on the same data (the data's own policies
    apart), whether ours is good: above behaviour cloning and on par with that best.  Bootstrap means of the score over
    the datasets.  A note."""
    published = pd.read_csv(places.ROOT / "data" / "published_table1.csv")
    found, drawn, tto = [], [], _planned(table, datasets)
    for dataset, rows in tto.groupby("dataset"):
        everyone = table[(table.dataset == dataset) & (table.method != "tto")]
        learned = everyone[everyone.method != "behaviour"]
        clone = rows_of(learned, method="bc")
        prior = published[(published.dataset == dataset.removesuffix("-v2")) & published.method.isin(PRIOR)]
        row = {"source": rows.source.iloc[0], "score": mean(rows, "score"), "prior": prior["mean"].max()}
        for name, group in (("others", learned), ("everyone", everyone)):
            row[name] = max(mean(r, "score") for _, r in group.groupby(["method", "setting"]))
        row["above"] = between(means(rows, "score") - means(clone, "score"))[0] > 0
        row["good"] = row["above"] and row["score"] >= par * row["others"]
        found.append(row)
        drawn.append(means(rows, "score"))
    scores = pd.DataFrame(found)
    if 2 * len(scores) <= len(datasets):
        raise NotTestedError(f"{len(scores)} of {len(datasets)} data sets were run; more than half are needed")
    other = table[(table.method == "tto") & (table.setting != "sampling") & table.dataset.isin(tto.dataset)]
    other = other[other.profile != tto.profile.iloc[0]]
    beside = f"; profile {other.profile.iloc[0]}: mean score {other.score.mean():.1f}" if len(other) else ""
    note = (
        f"profile {tto.profile.iloc[0]}, {' and '.join(scores.source.unique())} data, {len(scores)} of {len(datasets)} "
        f"sets run: above behaviour cloning on {scores.above.sum()}, on {scores.good.sum()} of those also on par with "
        f"the best method run beside it{beside}"
    )
    return scores, np.mean(drawn, axis=0), note


def _on_par(tables: Tables, limits: dict, datasets: list[str]) -> Finding:
    scores, drawn, note = _scores(tables["table1_rollouts"], datasets, limits["par"])
    # Published scores belong to D4RL's files: on data of ours they are no yardstick.
    official = (scores.source == "official").all() and len(scores) == len(datasets)
    holds = official and (scores.score >= limits["par"] * scores.prior).all()
    return Finding(scores.score.mean(), *between(drawn), bool(holds), bool(2 * scores.good.sum() > len(datasets)), note)


@rule("hopper-walker")
def _(tables: Tables, limits: dict) -> Finding:
    return _on_par(tables, limits, [name for name in experiments.TABLE1 if not name.startswith("halfcheetah")])


@rule("halfcheetah")
def _(tables: Tables, limits: dict) -> Finding:
    return _on_par(tables, limits, ["halfcheetah-medium", "halfcheetah-medium-replay"])


@rule("halfcheetah-medium-expert")
def _(tables: Tables, limits: dict) -> Finding:
    scores, drawn, _ = _scores(tables["table1_rollouts"], ["halfcheetah-medium-expert"], 1.0)
    row, (low, high) = scores.iloc[0], between(drawn)
    holds = row.source == "official" and high < limits["short"] * row.prior
    note = f"{row.source} data; the best method run beside it: {row.everyone:.1f}"
    return Finding(row.score, low, high, bool(holds), bool(high < limits["short"] * row.everyone), note)


def _imitation(tables: Tables, limits: dict, dataset: str) -> Finding:
    """The longest search that was run, beside the demonstrator's mean return."""
    table = tables["imitation_rollouts"]
    tto = rows_of(table[table.dataset.str.removesuffix("-v2") == dataset], method="tto")
    length = tto.setting.str.extract(r"(\d+) transition", expand=False).astype(float).fillna(0)
    tto = _planned(tto[length == length.max()], [dataset])
    clone = rows_of(table, dataset=tto.dataset.iloc[0], method="bc")
    expert = tto.demonstrator.iloc[0]
    value, other = mean(tto, "return") / expert, mean(clone, "return") / expert
    low, high = between(means(tto, "return") / expert)
    which = f"{tto.source.iloc[0]} data, profile {tto.profile.iloc[0]}, {tto.setting.iloc[0]}"
    trend = value >= limits["half"] and high >= other
    holds = value >= limits["paper"] - limits["below"]
    return Finding(value, low, high, holds, trend, f"{which}; behaviour cloning {other:.2f}")


@rule("imitation-hopper")
def _(tables: Tables, limits: dict) -> Finding:
    return _imitation(tables, limits, "hopper-expert")


@rule("imitation-walker")
def _(tables: Tables, limits: dict) -> Finding:
    return _imitation(tables, limits, "walker2d-expert")


@rule("goals-without-rewards")
def _(tables: Tables, limits: dict) -> Finding:
    rows = rows_of(tables["four_rooms_success"], split="seen", rooms_crossed=-1)
    ours = rows_of(rows, model="goal_transformer").iloc[0]
    others = {name: rows_of(rows, model=name).iloc[0] for name in ("transformer", "straight")}
    ahead = all(ours.low > other.high for other in others.values())
    note = f"without goals {others['transformer'].success:.0%}, walking straight {others['straight'].success:.0%}"
    return Finding(ours.success, ours.low, ours.high, bool(ahead and ours.low > limits["success"]), ahead, note)


# Ablations.


def _ablation(table: pd.DataFrame, begins: str) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """(dataset, rows of the main setting, rows of the one whose name begins so), wherever both were run."""
    tto, pairs = rows_of(table, method="tto"), []
    for dataset, rows in tto.groupby("dataset"):
        other = rows[rows.setting.str.startswith(begins)]
        main = rows[(rows.setting == "main") & rows.profile.isin(other.profile)]
        if other.groupby(["profile", "setting"]).ngroups > 1:
            raise ValueError(
                f"ablations_rollouts.csv has several settings {begins!r} on {dataset}; the claim needs one"
            )
        if len(main) and len(other):
            pairs.append((dataset, main, other))
    if not pairs:
        raise NotTestedError(f"no data set has both main and a setting {begins!r}")
    return pairs


def _compared(pairs: list) -> tuple[pd.DataFrame, tuple[float, float]]:
    """By dataset: return as a share of the main one, interval of the difference; interval of the mean share."""
    found, drawn = [], []
    for dataset, main, other in pairs:
        low, high = between(means(other, "return") - means(main, "return"))
        found.append(
            {"dataset": dataset, "share": mean(other, "return") / mean(main, "return"), "low": low, "high": high}
        )
        drawn.append(means(other, "return") / means(main, "return"))
    return pd.DataFrame(found), between(np.mean(drawn, axis=0))


def _note(found: pd.DataFrame) -> str:
    return ", ".join(f"{row.dataset} {row.share:.2f}" for row in found.itertuples())


@rule("myopic")
def _(tables: Tables, limits: dict) -> Finding:
    found, interval = _compared(_ablation(tables["ablations_rollouts"], "no reward-to-go"))
    holds, trend = bool((found.high < 0).all()), bool((found.share < 1).mean() > 0.5)
    return Finding(found.share.mean(), *interval, holds, trend, _note(found))


@rule("coarse-bins")
def _(tables: Tables, limits: dict) -> Finding:
    table = tables["ablations_rollouts"]
    table = rows_of(table[table.dataset.str.removesuffix("-v2") == "halfcheetah-medium-expert"], method="tto")
    if (table.setting == "uniform bins").any():  # the main setting has quantile bins
        pairs = [(dataset, other, main) for dataset, main, other in _ablation(table, "uniform bins")]
    else:
        pairs = _ablation(table, "quantile bins")
    found, interval = _compared(pairs)
    others = [f"{s}: {mean(r, 'return'):.0f}" for s, r in table.groupby("setting")]
    return Finding(
        found.share[0], *interval, bool(found.low[0] > 0), bool(found.share[0] > 1), "returns " + ", ".join(others)
    )


@rule("inaccurate-values")
def _(tables: Tables, limits: dict) -> Finding:
    table = tables["ablations_rollouts"]
    noisy = _ablation(table, f"noise in R, {limits['noise']:g} of")
    found, interval = _compared(noisy)
    kept = found.share >= limits["kept"]
    try:
        blind = {dataset: other for dataset, _, other in _ablation(table, "no reward-to-go")}
    except NotTestedError:
        blind = {}
    better = [
        dataset in blind and between(means(other, "return") - means(blind[dataset], "return"))[0] > 0
        for dataset, _, other in noisy
    ]
    levels = table[(table.setting == "main") | table.setting.str.startswith("noise in R")]
    levels = levels.groupby(["dataset", "setting"], sort=False)["return"].mean()
    note = ", ".join(f"{dataset}, {setting}: return {x:.0f}" for (dataset, setting), x in levels.items())
    trend = bool(kept.mean() > 0.5 or all(better))
    return Finding(found.share.mean(), *interval, bool(kept.all()), trend, note)


# Where the planners' actions and promises are.


@rule("actions-in-distribution")
def _(tables: Tables, limits: dict) -> Finding:
    table, found, drawn = tables["action_likelihood"].assign(model_seed=0), [], []
    for dataset in rows_of(table, method="random_shooting").dataset.unique():
        other = _shot(table, dataset)
        # One density for both planners, and not that of the model that planned.
        scorer = other.scorer.iloc[0]
        tto = rows_of(table[table.profile != scorer], dataset=dataset, method="tto", scorer=scorer)
        drawn.append(means(tto, "log_likelihood") - means(other, "log_likelihood"))
        found.append(tto.log_likelihood.mean() - other.log_likelihood.mean())
    clear, average = [between(d)[0] > 0 for d in drawn], float(np.mean(found))
    note = f"clearly likelier on {sum(clear)} of {len(clear)} data sets"
    return Finding(average, *between(np.mean(drawn, axis=0)), all(clear), average > 0, note)


@rule("no-pessimism")
def _(tables: Tables, limits: dict) -> Finding:
    values, returns = tables["planner_values"], tables["table1_rollouts"]
    values = values.assign(hope=values.predicted - values.achieved, model_seed=0)
    kinds = ["dataset", "method", "profile", "setting", "model_seed", "rollout_seed"]
    values = values.groupby(kinds, sort=False).hope.mean().reset_index()  # decisions of one rollout are not independent
    found, drawn = [], []
    for dataset in rows_of(values, method="random_shooting").dataset.unique():
        name = [dataset.removesuffix("-v2")]
        tto, other = _planned(values[values.dataset == dataset], name), _shot(values, dataset)
        ours = _planned(returns[returns.dataset == dataset], name)
        less = mean(_shot(returns, dataset), "return") < mean(ours, "return")
        drawn.append(means(other, "hope") - means(tto, "hope"))
        exploited = between(means(other, "hope"))[0] > 0 and between(drawn[-1])[0] > 0
        found.append({"gap": other.hope.mean() - tto.hope.mean(), "tto": tto.hope.mean(), "so": exploited and less})
    found = pd.DataFrame(found)
    note = f"so on {found.so.sum()} of {len(found)} data sets; TTO itself is too hopeful by {found.tto.mean():.3g}"
    holds, trend = bool(found.so.all()), bool(found.so.mean() > 0.5)
    return Finding(found.gap.mean(), *between(np.mean(drawn, axis=0)), holds, trend, note)


# Cost.

CONTROL_STEP = {"hopper": 0.008, "walker2d": 0.008, "halfcheetah": 0.05, "humanoid": 0.015, "pendulum": 0.05}  # s


def _decisions(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """By task: seconds of the fastest decision of one environment through the Transformer, and through the ensemble."""
    one = rows_of(table, environments=1).dropna(subset="seconds_per_decision")
    single = one.model.str.contains("ensemble")
    return tuple(rows.groupby("task").seconds_per_decision.min() for rows in (one[~single], one[single]))


@rule("slower")
def _(tables: Tables, limits: dict) -> Finding:
    transformer, ensemble = _decisions(tables["bench_planning"])
    times = (transformer / ensemble).dropna()
    if not len(times):
        raise NotTestedError("no task was timed with both kinds of model")
    note = ", ".join(f"{task} {x:.1f}" for task, x in times.items())
    return Finding(
        times.mean(), times.min(), times.max(), bool((times > 1).all()), bool((times > 1).mean() > 0.5), note
    )


@rule("not-real-time")
def _(tables: Tables, limits: dict) -> Finding:
    transformer, _ = _decisions(tables["bench_planning"])
    steps = (transformer / pd.Series(CONTROL_STEP)).dropna()
    if not len(steps):
        raise NotTestedError(f"no task with a known control step was timed; known are {', '.join(CONTROL_STEP)}")
    note = ", ".join(f"{task} {1000 * transformer[task]:.0f} ms" for task in steps.index)
    return Finding(
        steps.mean(), steps.min(), steps.max(), bool((steps > 1).all()), bool((steps > 1).mean() > 0.5), note
    )


@rule("training-cost")
def _(tables: Tables, limits: dict) -> Finding:
    exp = experiments.get("humanoid", "paper")  # all models of the paper's size train on as many tokens a million steps
    rows = tables["bench_training"]
    rows = rows[(rows.model == "P") & rows.machine.str.contains("NVIDIA")]
    if not len(rows):
        raise NotTestedError("no model of the paper's size (P) was timed on a GPU")
    hours = exp.train.updates * exp.train.batch * exp.model.max_tokens / rows.tokens_per_second / 3600
    fast = hours.min()
    holds = limits["low"] / limits["factor"] <= fast <= limits["high"] * limits["factor"]
    note = ", ".join(rows.machine.unique())
    return Finding(fast, fast, hours.max(), bool(holds), bool(fast < limits["low"]), note)
