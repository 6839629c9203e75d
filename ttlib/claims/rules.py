"""The rules that judge the paper's claims: RULES, at the end, has one for each row of data/claims.toml.

A rule takes the result tables by name and the limits of its row, and returns a Finding.  Rules tell settings apart by
the columns `variant`, `horizon`, `noise`, ... and never by a label.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from ttlib.pipeline import experiments, places

Tables = dict[str, pd.DataFrame]
Limits = dict[str, float]


class NotTestedError(Exception):
    """The result files exist, but they lack rows that the rule needs."""


@dataclass(frozen=True)
class Finding:
    """Hold our value, whether the claim or only its trend holds, and the value's interval (NaN if there is none)."""

    value: float
    holds: bool
    trend: bool = False
    note: str = ""
    low: float = np.nan
    high: float = np.nan


# Statistics


@dataclass(frozen=True)
class Statistics:
    """Hold how rules sum up values, and list the rows whose means they resampled."""

    average: Callable = np.mean
    level: float = 0.9
    resampled: list[pd.DataFrame] | None = None


_STATISTICS = ContextVar("statistics", default=Statistics())  # noqa: B039 - it is frozen


@contextmanager
def summed_up(**choices) -> Iterator[Statistics]:
    """Let rules sum up values by these fields of Statistics inside a `with` block, which gets the Statistics."""
    token = _STATISTICS.set(Statistics(**choices, resampled=[]))
    try:
        yield _STATISTICS.get()
    finally:
        _STATISTICS.reset(token)


def average(values: pd.Series) -> float:
    """Return the mean of values, or what `summed_up` takes in its place."""
    return float(_STATISTICS.get().average(values.to_numpy(float)))


def rows_of(table: pd.DataFrame, **equal) -> pd.DataFrame:
    """Return the rows whose columns have these values.  NotTestedError if there are no such rows."""
    rows = table
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    if not len(rows):
        wanted = ", ".join(f"{column} = {value}" for column, value in equal.items())
        raise NotTestedError(f"The results have no rows with {wanted}." if wanted else "The results have no rows.")
    return rows


def model_mean(rows: pd.DataFrame, column: str) -> float:
    """Return the mean over models of each model's mean."""
    return average(rows.groupby("model_seed")[column].agg(average))


def bootstrap_means(rows: pd.DataFrame, column: str, samples: int = 2000) -> np.ndarray:
    """Return (samples,) bootstrap means of a column: models are drawn with replacement, and rollouts within each.

    The draws are the same at every call, so two methods with the same seeds in the same order are compared in pairs.
    """
    rng, statistics = np.random.default_rng(0), _STATISTICS.get()
    if statistics.resampled is not None:
        statistics.resampled.append(rows)
    values = [group.to_numpy(float) for _, group in rows.groupby("model_seed")[column]]
    within = np.stack([statistics.average(v[rng.integers(len(v), size=(samples, len(v)))], axis=1) for v in values])
    drawn = rng.integers(len(values), size=(samples, len(values)))
    return statistics.average(within[drawn, np.arange(samples)[:, None]], axis=1)


def interval(bootstrap: np.ndarray) -> tuple[float, float]:
    """Return the bounds that hold the middle 90% of bootstrap values, or the level that `summed_up` takes."""
    level = _STATISTICS.get().level
    low, high = np.quantile(bootstrap, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def listed(values: dict[str, str]) -> str:
    """Return "a 1, b 2" for notes."""
    return ", ".join(map(" ".join, values.items()))


# Equation 1 and Section 3.2: exact statements


def round_trip(tables: Tables, limits: Limits) -> Finding:
    rows = rows_of(tables["round_trip"], bins="uniform")
    worst = rows.largest_error.max()
    note = f"All {rows.steps.max():,} steps were checked in {len(rows)} dimensions."
    return Finding(worst, worst <= limits["half_bins"], note=note)


def length_m_is_cloning(tables: Tables, limits: Limits) -> Finding:
    rows = tables["cloning_check"]
    same = (rows.search == rows.policy) & (rows.search_log_p - rows.policy_log_p).abs().le(limits["nats"])
    return Finding(same.mean(), same.all(), note=f"{len(rows)} states were tried.")


# Figure 1


def plausible_humanoid(tables: Tables, limits: Limits) -> Finding:
    keys = ["model", "rollout", "t"]
    heights = tables["fig1_humanoid"].pivot(index=keys, columns="body", values="z")
    poses = rows_of(tables["fig1_poses"].set_index(keys).join(heights, how="inner").sort_index())
    quaternion = poses[["q3", "q4", "q5", "q6"]]
    before = quaternion.groupby(level=["model", "rollout"]).shift()
    poses["turn"] = 2 * np.arccos((quaternion * before).sum(axis=1, skipna=False).abs().clip(upper=1))
    true = rows_of(poses.reset_index(), model="reference")
    moving = poses[poses.index.get_level_values("t") > 0]
    lowest, highest = true[list(heights)].min() - limits["metres"], true[list(heights)].max() + limits["metres"]
    inside = (moving[list(heights)] >= lowest) & (moving[list(heights)] <= highest)
    plausible = inside.all(axis=1) & (moving.turn <= limits["turns"] * true.turn.max())
    fraction = plausible.groupby(level=["model", "rollout"]).mean()
    ours, other = fraction.loc["transformer"], fraction.drop(index=["transformer", "reference"]).mean()
    ahead = ours.mean() > other
    note = f"The ensemble reaches {other:.0%}, true trajectories {fraction.loc['reference'].mean():.0%}."
    return Finding(ours.mean(), ahead and ours.mean() >= limits["plausible"], ahead, note, ours.min(), ours.max())


# Figure 2


def _curve(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return a model's curve by step t, where states are observed.

    The rows of the smallest seed hold the mean and the interval of all training seeds together.
    """
    scoring = "histogram" if model == "simulator" else "mixture"
    rows = rows_of(table, panel="observed", model=model, scoring=scoring).sort_values("seed", kind="stable")
    return rows.drop_duplicates("t").set_index("t").sort_index()[["log_likelihood", "low", "high"]]


def _better_ensemble(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the better of the two ways to sample the ensemble, by its mean over the steps, and its curve."""
    both = [(model, _curve(table, model)) for model in ("ensemble_ts1", "ensemble_tsinf")]
    return max(both, key=lambda pair: pair[1].log_likelihood.mean())


def _leads(table: pd.DataFrame, panel: str, other: str) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Return the Transformer's lead over another model: by step, over the second half of the steps, and over all."""
    rows = rows_of(table, panel=panel, other=other).set_index(["first", "last"])[["lead", "low", "high"]]
    single = rows[rows.index.get_level_values(0) == rows.index.get_level_values(1)].droplevel(1).sort_index()
    last = single.index.max()
    return single, rows.loc[(last // 2 + 1, last)], rows.loc[(1, last)]


def order_of_models(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    ours, (other, theirs) = _curve(table, "transformer"), _better_ensemble(table)
    lead, late, _ = _leads(tables["fig2_leads"], "observed", other)
    above = ours.low > theirs.high
    ahead = above.iloc[-1]
    note = (
        f"It is above the ensemble with disjoint intervals at {above.mean():.0%} of the steps, "
        f"and its lead at the last step is {lead['lead'].iloc[-1]:.0f} nats."
    )
    return Finding(late["lead"], ahead and above.mean() > limits["share"], ahead, note, late.low, late.high)


def ensemble_fails(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    distance = _curve(table, "simulator").log_likelihood - _better_ensemble(table)[1].log_likelihood
    lost, last = distance >= limits["nats"], distance.index.max()
    last_near = max(lost.index[~lost], default=0)
    note = f"At the last step, {last}, it is {distance.loc[last]:.0f} nats below the true rollouts."
    return Finding(min(last_near + 1, last), last_near < limits["steps"], last_near < last, note)


def markov_is_close(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    full, markov, (_, ensemble) = _curve(table, "transformer"), _curve(table, "markov"), _better_ensemble(table)
    gain = average(full.log_likelihood - ensemble.log_likelihood)
    distance = average((full.log_likelihood - markov.log_likelihood).abs())
    overlap = ((full.low <= markov.high) & (markov.low <= full.high)).mean()
    note = (
        f"They are {distance:.1f} nats apart on average, and their intervals overlap at {overlap:.0%} of the steps. "
        f"The full model leads the ensemble by {gain:.1f} nats."
    )
    holds = overlap == 1 or (gain > 0 and distance <= limits["close"] * gain)
    return Finding(distance / gain, holds, gain > 0 and distance <= limits["near"] * gain, note)


def memory_when_masked(tables: Tables, limits: Limits) -> Finding:
    lead, _, masked = _leads(tables["fig2_leads"], "masked", "markov")
    observed = _leads(tables["fig2_leads"], "observed", "markov")[2]
    above, larger = (lead.low > 0).mean(), masked["lead"] > max(0, observed["lead"])
    clearly = masked["low"] > max(0, observed["high"])
    one_step = rows_of(tables["humanoid_one_step_by_past"], model="transformer").sort_values("past")
    gain = one_step.groupby("panel").log_density.agg(lambda density: density.iloc[-1] - density.iloc[0])
    note = (
        f"If states are observed, the lead is {observed['lead']:.1f} "
        f"[{observed['low']:.1f}, {observed['high']:.1f}] nats. If they are masked, the full model is above at "
        f"{above:.0%} of the steps and below at {(lead.high < 0).mean():.0%}. One step ahead, a longer context adds "
        f"{gain['masked']:.1f} nats if states are masked and {gain['observed']:.1f} if they are observed."
    )
    return Finding(masked["lead"], clearly and above > limits["share"], larger, note, masked["low"], masked["high"])


# Figure 3


def attention_patterns(tables: Tables, limits: Limits) -> Finding:
    states = rows_of(tables["attention_scores"], rows="states")
    states = states.assign(times=states.value / states.uniform_value)
    markov = rows_of(states, score="markov").groupby(["profile", "seed"]).value.max()
    striated = rows_of(states, score="striated").groupby(["profile", "seed"]).times.max()
    both = (markov >= limits["weight"]).all(), (striated >= limits["times"]).all()
    note = (
        f"{len(markov)} models were scored. In each of them the most striated head has at least {striated.min():.1f} "
        "times the weight of uniform attention."
    )
    return Finding(markov.mean(), all(both), any(both), note, markov.min(), markov.max())


def actions_attend_to_actions(tables: Tables, limits: Limits) -> Finding:
    actions = rows_of(tables["attention_scores"], rows="actions")
    weight = {
        score: rows_of(actions, score=score).groupby(["profile", "seed"]).value.agg(average)
        for score in ("past_actions", "past_states", "past_action_key", "past_state_key")
    }
    sums, keys = weight["past_actions"] / weight["past_states"], weight["past_action_key"] / weight["past_state_key"]
    note = (
        f"{len(sums)} models were scored. A single past action gets {keys.min():.2g} to {keys.max():.2g} times the "
        "weight of a single past state dimension."
    )
    return Finding(sums.mean(), (sums > limits["sum"]).all(), (keys > 1).all(), note, sums.min(), sums.max())


# Table 1 and Figure 4

PRIOR = ("BC", "CQL", "MOPO", "MBOP")


def _on(table: pd.DataFrame, datasets: list[str]) -> pd.DataFrame:
    """Return the rows on these datasets, regenerated or D4RL's own."""
    return table[table.dataset.str.removesuffix("-v2").isin(datasets)]


def _one_profile(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the profile with most datasets; of two with equally many, v1, which is the paper's text."""
    datasets = rows.groupby("profile").dataset.nunique()
    return rows[rows.profile == ("v1" if datasets.get("v1", 0) == datasets.max() else datasets.idxmax())]


def _planned(table: pd.DataFrame, datasets: list[str]) -> pd.DataFrame:
    """Return the rows of the Trajectory Transformer's main search on these datasets, of one profile."""
    return _one_profile(rows_of(_on(table, datasets), method="tto", variant="main"))


def _dataset_score(table: pd.DataFrame, ours: pd.DataFrame, par: float) -> dict:
    """Return what the rules of Table 1 compare on one dataset.

    `everyone` is the best method run on the same data, the data's own policies included, and `prior` the best published
    one.  `above`: above behaviour cloning.  `good`: also on par with the best method that learned from the same data.
    """
    dataset, score = ours.dataset.iloc[0], model_mean(ours, "score")
    beside = table[(table.dataset == dataset) & (table.method != "tto")]
    clone = rows_of(beside, method="bc", variant="main")
    means = {key: model_mean(rows, "score") for key, rows in beside.groupby(["method", "variant"])}
    others = max(mean for (method, _), mean in means.items() if method != "behaviour")
    published = pd.read_csv(places.ROOT / "data" / "published_table1.csv")
    prior = published[(published.dataset == dataset.removesuffix("-v2")) & published.method.isin(PRIOR)]["mean"].max()
    above = interval(bootstrap_means(ours, "score") - bootstrap_means(clone, "score"))[0] > 0
    scores = {"source": ours.source.iloc[0], "score": score, "prior": prior, "everyone": max(means.values())}
    return scores | {"above": above, "good": above and score >= par * others}


def _scores(table: pd.DataFrame, datasets: list[str], par: float) -> tuple[pd.DataFrame, np.ndarray, str]:
    """Return `_dataset_score` of each dataset, bootstrap means of the score over the datasets, and a note."""
    tto = _planned(table, datasets)
    scores = pd.DataFrame([_dataset_score(table, rows, par) for _, rows in tto.groupby("dataset")])
    if 2 * len(scores) <= len(datasets):
        raise NotTestedError(f"The results cover {len(scores)} of {len(datasets)} datasets; more than half are needed.")
    drawn = np.mean([bootstrap_means(rows, "score") for _, rows in tto.groupby("dataset")], axis=0)
    note = (
        f"Profile {tto.profile.iloc[0]} ran on {len(scores)} of {len(datasets)} datasets "
        f"({' and '.join(scores.source.unique())}). It is above behaviour cloning on {scores.above.sum()}, and on "
        f"{scores.good.sum()} of those it is also on par with the best method run on the same data."
    )
    other = table[(table.method == "tto") & (table.variant == "main") & table.dataset.isin(tto.dataset)]
    other = other[other.profile != tto.profile.iloc[0]]
    if len(other):
        note += f" The mean score of profile {other.profile.iloc[0]} is {other.score.mean():.1f}."
    return scores, drawn, note


def on_par(tables: Tables, limits: Limits, datasets: list[str]) -> Finding:
    """Compare the scores on these datasets with the best published ones, or with the best methods run on them."""
    scores, drawn, note = _scores(tables["table1_rollouts"], datasets, limits["par"])
    # Published scores belong to D4RL's files: on regenerated data they are no yardstick.
    official = (scores.source == "official").all() and len(scores) == len(datasets)
    holds = official and (scores.score >= limits["par"] * scores.prior).all()
    trend = 2 * scores.good.sum() > len(datasets)
    return Finding(scores.score.mean(), holds, trend, note, *interval(drawn))


def halfcheetah_medium_expert(tables: Tables, limits: Limits) -> Finding:
    scores, drawn, _ = _scores(tables["table1_rollouts"], ["halfcheetah-medium-expert"], 1.0)
    row, (low, high) = scores.iloc[0], interval(drawn)
    holds = row.source == "official" and high < limits["short"] * row.prior
    note = f"The data are {row.source}. The best method run on the same data scores {row.everyone:.1f}."
    return Finding(row.score, holds, high < limits["short"] * row.everyone, note, low, high)


# Imitation and goals, Section 4.2


def imitation(tables: Tables, limits: Limits, dataset: str) -> Finding:
    """Compare the longest likelihood search that was run with the demonstrator's mean return."""
    table = tables["imitation_rollouts"]
    tto = rows_of(_on(table, [dataset]), method="tto")
    tto = _one_profile(tto[tto.horizon == tto.horizon.max()])
    clone = rows_of(table, dataset=tto.dataset.iloc[0], method="bc", variant="main")
    expert = tto.demonstrator.iloc[0]
    value, other = model_mean(tto, "return") / expert, model_mean(clone, "return") / expert
    low, high = interval(bootstrap_means(tto, "return") / expert)
    trend = value >= limits["half"] and high >= other
    holds = value >= limits["paper"] - limits["below"]
    transitions = f"{tto.horizon.iloc[0]:.0f} transitions" if tto.horizon.iloc[0] else "a single action"
    note = (
        f"The search of profile {tto.profile.iloc[0]} has a horizon of {transitions}, on {tto.source.iloc[0]} data. "
        f"Behaviour cloning reaches {other:.0%}."
    )
    return Finding(value, holds, trend, note, low, high)


def goals_without_rewards(tables: Tables, limits: Limits) -> Finding:
    rows = rows_of(tables["four_rooms_success"], split="seen", rooms_crossed=-1)
    ours = rows_of(rows, model="goal_transformer").iloc[0]
    others = {name: rows_of(rows, model=name).iloc[0] for name in ("transformer", "straight")}
    ahead = all(ours.low > other.high for other in others.values())
    note = (
        f"The model without goals reaches {others['transformer'].success:.0%}, "
        f"and walking straight reaches {others['straight'].success:.0%}."
    )
    return Finding(ours.success, ahead and ours.low > limits["success"], ahead, note, ours.low, ours.high)


# Ablations

Pairs = list[tuple[str, pd.DataFrame, pd.DataFrame]]


def ablation_pairs(table: pd.DataFrame, variant: str, **equal) -> Pairs:
    """Return (dataset, rows of the main planner, rows of a variant) for every dataset with both, of one profile.

    NotTestedError if no dataset has both.  ValueError if several settings of the variant remain after `equal`.
    """
    tto, pairs = rows_of(table, method="tto"), []
    for dataset, rows in tto.groupby("dataset"):
        other = rows[rows.variant == variant]
        for column, value in equal.items():
            other = other[other[column] == value]
        if other.groupby(["profile", "noise"], dropna=False).ngroups > 1:
            raise ValueError(f"ablations_rollouts.csv has several settings of {variant!r} on {dataset}; expected one")
        main = rows[(rows.variant == "main") & rows.profile.isin(other.profile)]
        if len(main) and len(other):
            pairs.append((dataset, main, other))
    if not pairs:
        raise NotTestedError(f"No dataset has rows of both the main planner and the variant {variant!r}.")
    return pairs


def compare_pairs(pairs: Pairs) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Return a row for each dataset, and the interval of the ratio's mean over the datasets.

    Columns: dataset, ratio (the variant's return over the main planner's), low and high (interval of the difference).
    """
    rows, drawn = [], []
    for dataset, main, other in pairs:
        ours, theirs = bootstrap_means(main, "return"), bootstrap_means(other, "return")
        low, high = interval(theirs - ours)
        ratio = model_mean(other, "return") / model_mean(main, "return")
        rows.append({"dataset": dataset, "ratio": ratio, "low": low, "high": high})
        drawn.append(theirs / ours)
    return pd.DataFrame(rows), interval(np.mean(drawn, axis=0))


def _percentages(rows: pd.DataFrame) -> str:
    return listed({row.dataset: f"{row.ratio:.0%}" for row in rows.itertuples()})


def myopic(tables: Tables, limits: Limits) -> Finding:
    rows, bounds = compare_pairs(ablation_pairs(tables["ablations_rollouts"], "no_reward_to_go"))
    holds, trend = (rows.high < 0).all(), (rows.ratio < 1).mean() > 0.5
    return Finding(rows.ratio.mean(), holds, trend, f"By dataset: {_percentages(rows)}.", *bounds)


def coarse_bins(tables: Tables, limits: Limits) -> Finding:
    table = rows_of(_on(tables["ablations_rollouts"], ["halfcheetah-medium-expert"]), method="tto")
    # The main planner has quantile bins, so each pair is turned round.
    pairs = [(dataset, uniform, main) for dataset, main, uniform in ablation_pairs(table, "uniform_bins")]
    rows, bounds = compare_pairs(pairs)
    returns = {variant.replace("_", " "): f"{model_mean(r, 'return'):.0f}" for variant, r in table.groupby("variant")}
    note = f"The returns are: {listed(returns)}."
    return Finding(rows.ratio[0], rows.low[0] > 0, rows.ratio[0] > 1, note, *bounds)


def inaccurate_values(tables: Tables, limits: Limits) -> Finding:
    table = tables["ablations_rollouts"]
    noisy = ablation_pairs(table, "noise", noise=limits["noise"])
    rows, bounds = compare_pairs(noisy)
    enough = rows.ratio >= limits["kept"]
    try:
        blind = {dataset: other for dataset, _, other in ablation_pairs(table, "no_reward_to_go")}
    except NotTestedError:
        blind = {}
    better = [
        dataset in blind
        and interval(bootstrap_means(other, "return") - bootstrap_means(blind[dataset], "return"))[0] > 0
        for dataset, _, other in noisy
    ]
    levels = rows_of(table[table.dataset.isin(rows.dataset)], method="tto", variant="noise").groupby("noise")["return"]
    returns = [f"{level.mean():.0f} with noise of strength {noise:g}" for noise, level in levels]
    main = np.mean([model_mean(main, "return") for _, main, _ in noisy])
    note = f"The return is {main:.0f} without noise, {', '.join(returns)}."
    return Finding(rows.ratio.mean(), enough.all(), enough.mean() > 0.5 or all(better), note, *bounds)


def discretisation_explains(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    ensemble = _better_ensemble(table)[1].log_likelihood
    full, markov = (_curve(table, model).log_likelihood - ensemble for model in ("transformer", "markov"))
    late = full.index > full.index.max() / 2
    ours, theirs = average(full[late]), average(markov[late])
    kept = theirs / ours if ours > 0 else 0.0
    rows, _ = compare_pairs(ablation_pairs(tables["ablations_rollouts"], "independent_dimensions"))
    enough, lower = kept >= limits["share"], (rows.high < 0).all()
    note = f"The planner's return with independent dimensions, relative to its own: {_percentages(rows)}."
    return Finding(kept, enough and lower, enough or lower, note)


# Actions and promises of the planners, Sections 2 and 3.2


def actions_in_distribution(tables: Tables, limits: Limits) -> Finding:
    table, gaps, drawn = tables["action_likelihood"].assign(model_seed=0), [], []
    shooting = rows_of(table, method="random_shooting", variant="main")
    for dataset, other in shooting.groupby("dataset", sort=False):
        # One density scores both planners, and it is not that of the model that planned.
        scorer = other.scorer.iloc[0]
        tto = rows_of(table[table.profile != scorer], dataset=dataset, method="tto", variant="main", scorer=scorer)
        drawn.append(bootstrap_means(tto, "log_likelihood") - bootstrap_means(other, "log_likelihood"))
        gaps.append(average(tto.log_likelihood) - average(other.log_likelihood))
    clear, mean = [interval(d)[0] > 0 for d in drawn], float(np.mean(gaps))
    note = f"Planned actions are clearly likelier on {sum(clear)} of {len(clear)} datasets."
    return Finding(mean, all(clear), mean > 0, note, *interval(np.mean(drawn, axis=0)))


def no_pessimism(tables: Tables, limits: Limits) -> Finding:
    values, returns = tables["planner_values"].assign(model_seed=0), tables["table1_rollouts"]
    values["overestimation"] = values.predicted - values.achieved
    keys = ["dataset", "method", "profile", "variant", "model_seed", "rollout_seed"]
    # Decisions of one rollout are not independent, so each rollout counts by its mean.
    values = values.groupby(keys, sort=False).overestimation.mean().reset_index()
    rows, drawn = [], []
    for dataset, other in rows_of(values, method="random_shooting", variant="main").groupby("dataset", sort=False):
        name = [dataset.removesuffix("-v2")]
        tto, ours = (_planned(table[table.dataset == dataset], name) for table in (values, returns))
        shooting = rows_of(returns, dataset=dataset, method="random_shooting", variant="main")
        less = model_mean(shooting, "return") < model_mean(ours, "return")
        theirs = bootstrap_means(other, "overestimation")
        drawn.append(theirs - bootstrap_means(tto, "overestimation"))
        exploited = interval(theirs)[0] > 0 and interval(drawn[-1])[0] > 0
        gap = average(other.overestimation) - average(tto.overestimation)
        rows.append({"gap": gap, "tto": average(tto.overestimation), "holds": exploited and less})
    rows = pd.DataFrame(rows)
    note = (
        f"The rule holds on {rows.holds.sum()} of {len(rows)} datasets. "
        f"The Trajectory Transformer itself overestimates by {rows.tto.mean():.3g}."
    )
    holds, trend = rows.holds.all(), rows.holds.mean() > 0.5
    return Finding(rows.gap.mean(), holds, trend, note, *interval(np.mean(drawn, axis=0)))


# Cost, Section 5 and Appendix A

CONTROL_STEP = {"hopper": 0.008, "walker2d": 0.008, "halfcheetah": 0.05, "humanoid": 0.015, "pendulum": 0.05}  # seconds


def slower(tables: Tables, limits: Limits, than: str) -> Finding:
    """Compare the fastest decision for one environment with the ensemble's, or with the control step, in every task."""
    one = rows_of(tables["bench_planning"], environments=1).dropna(subset="seconds_per_decision")
    if "setting" in one:  # Table 1's search is shorter than any that the paper times
        one = one[one.setting != "table 1"]
    ensemble = one.model == "ensemble"
    ours, theirs = (rows.groupby("task").seconds_per_decision.min() for rows in (one[~ensemble], one[ensemble]))
    times = (ours / (theirs if than == "ensemble" else pd.Series(CONTROL_STEP))).dropna()
    if not len(times):
        raise NotTestedError(f"No task was timed that can be compared with the {than}.")
    note = f"By task: {listed({task: f'{x:.1f}' for task, x in times.items()})}."
    if than == "control step":
        note = f"A decision takes: {listed({task: f'{1000 * ours[task]:.0f} ms' for task in times.index})}."
    above = times > 1
    return Finding(times.mean(), above.all(), above.mean() > 0.5, note, times.min(), times.max())


def training_cost(tables: Tables, limits: Limits) -> Finding:
    # All models of the paper's size train on as many tokens for a million steps of data.
    exp = experiments.get("humanoid", "paper")
    rows = tables["bench_training"]
    rows = rows[(rows.model == "P") & rows.machine.str.contains("NVIDIA")]
    if not len(rows):
        raise NotTestedError("No model of the paper's size (P) was timed on a GPU.")
    hours = exp.train.updates * exp.train.batch * exp.model.max_tokens / rows.tokens_per_second / 3600
    fast = hours.min()
    holds = limits["low"] / limits["factor"] <= fast <= limits["high"] * limits["factor"]
    note = f"Timed on {', '.join(rows.machine.unique())}."
    return Finding(fast, holds, fast < limits["low"], note, fast, hours.max())


_FUNCTIONS = (
    round_trip, length_m_is_cloning, plausible_humanoid, order_of_models, ensemble_fails, markov_is_close,
    memory_when_masked, discretisation_explains, attention_patterns, actions_attend_to_actions,
    halfcheetah_medium_expert, coarse_bins, goals_without_rewards, myopic, inaccurate_values, actions_in_distribution,
    no_pessimism, training_cost,
)  # fmt: skip
# The rule of each claim, (tables, limits) -> Finding, by the claim's id.
RULES = {function.__name__.replace("_", "-"): function for function in _FUNCTIONS} | {
    "hopper-walker": partial(on_par, datasets=[name for name in experiments.TABLE1 if "halfcheetah" not in name]),
    "halfcheetah": partial(on_par, datasets=["halfcheetah-medium", "halfcheetah-medium-replay"]),
    "slower": partial(slower, than="ensemble"),
    "not-real-time": partial(slower, than="control step"),
    "imitation-hopper": partial(imitation, dataset="hopper-expert"),
    "imitation-walker": partial(imitation, dataset="walker2d-expert"),
}
