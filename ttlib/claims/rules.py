"""The rules that judge the paper's claims, one function for each row of data/claims.toml.

A rule takes the result tables by name and the limits of its row, and returns a Finding.  Its name is the id of the row
with underscores.  Rules tell settings apart by the columns `variant`, `horizon`, `noise`, ... and never by a label.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ttlib.pipeline import experiments, places

Tables = dict[str, pd.DataFrame]
Limits = dict[str, float]


class NotTestedError(Exception):
    """The result files exist, but they lack rows that the rule needs."""


@dataclass(frozen=True)
class Finding:
    """Hold our value, its interval (NaN where there is none), and whether the claim or only its trend holds."""

    value: float
    low: float
    high: float
    holds: bool
    trend: bool
    note: str = ""


RULES: dict[str, Callable[[Tables, Limits], Finding]] = {}


def rule(function: Callable[[Tables, Limits], Finding]) -> Callable[[Tables, Limits], Finding]:
    """Add a rule to RULES under the id of its claim: `round_trip` judges the claim `round-trip`."""
    RULES[function.__name__.replace("_", "-")] = function
    return function


# Statistics


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
    return float(rows.groupby("model_seed")[column].mean().mean())


def bootstrap_means(rows: pd.DataFrame, column: str, samples: int = 2000) -> np.ndarray:
    """Return (samples,) bootstrap means of a column: models are drawn with replacement, and rollouts within each.

    The draws are the same at every call, so two methods with the same seeds in the same order are compared in pairs.
    """
    rng = np.random.default_rng(0)
    values = [group.to_numpy(float) for _, group in rows.groupby("model_seed")[column]]
    within = np.stack([v[rng.integers(len(v), size=(samples, len(v)))].mean(1) for v in values])
    drawn = rng.integers(len(values), size=(samples, len(values)))
    return within[drawn, np.arange(samples)[:, None]].mean(1)


def interval(bootstrap: np.ndarray, level: float = 0.9) -> tuple[float, float]:
    """Return the bounds that hold the middle `level` of bootstrap values."""
    low, high = np.quantile(bootstrap, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def listed(values: dict[str, str]) -> str:
    """Return "a 1, b 2" for notes."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


# Equation 1 and Section 3.2: exact statements


@rule
def round_trip(tables: Tables, limits: Limits) -> Finding:
    rows = rows_of(tables["round_trip"], bins="uniform")
    worst = rows.largest_error.max()
    note = f"All {rows.steps.max():,} steps were checked in {len(rows)} dimensions."
    return Finding(worst, np.nan, np.nan, bool(worst <= limits["half_bins"]), False, note)


@rule
def length_m_is_cloning(tables: Tables, limits: Limits) -> Finding:
    rows = tables["cloning_check"]
    same = (rows.search == rows.policy) & (rows.search_log_p - rows.policy_log_p).abs().le(limits["nats"])
    return Finding(same.mean(), np.nan, np.nan, bool(same.all()), False, f"{len(rows)} states were tried.")


# Figure 1


def _torso_turns(poses: pd.DataFrame) -> pd.Series:
    """Return the torso's turn since the step before in radians, NaN at the first step of a trajectory."""
    quaternion = poses[["q3", "q4", "q5", "q6"]]
    before = quaternion.groupby(level=["model", "rollout"]).shift()
    return 2 * np.arccos((quaternion * before).sum(axis=1, skipna=False).abs().clip(upper=1))


@rule
def plausible_humanoid(tables: Tables, limits: Limits) -> Finding:
    keys = ["model", "rollout", "t"]
    heights = tables["fig1_humanoid"].pivot(index=keys, columns="body", values="z")
    poses = rows_of(tables["fig1_poses"].set_index(keys).join(heights, how="inner").sort_index())
    poses["turn"] = _torso_turns(poses)
    true = rows_of(poses.reset_index(), model="reference")
    moving = poses[poses.index.get_level_values("t") > 0]
    lowest, highest = true[list(heights)].min() - limits["metres"], true[list(heights)].max() + limits["metres"]
    inside = (moving[list(heights)] >= lowest) & (moving[list(heights)] <= highest)
    plausible = inside.all(axis=1) & (moving.turn <= limits["turns"] * true.turn.max())
    fraction = plausible.groupby(level=["model", "rollout"]).mean()
    ours, other = fraction.loc["transformer"], fraction.drop(index=["transformer", "reference"]).mean()
    ahead = ours.mean() > other
    note = f"The ensemble reaches {other:.0%}, true trajectories {fraction.loc['reference'].mean():.0%}."
    return Finding(ours.mean(), ours.min(), ours.max(), ahead and ours.mean() >= limits["plausible"], ahead, note)


# Figure 2


def _curve(table: pd.DataFrame, panel: str, model: str) -> pd.DataFrame:
    """Return a model's curve by step t.

    The rows of the smallest seed hold the mean and the interval of all training seeds together.
    """
    scoring = "histogram" if model == "simulator" else "mixture"
    rows = rows_of(table, panel=panel, model=model, scoring=scoring).sort_values("seed", kind="stable")
    return rows.drop_duplicates("t").set_index("t").sort_index()[["log_likelihood", "low", "high"]]


def _better_ensemble(table: pd.DataFrame, panel: str) -> str:
    """Return the better of the two ways to sample the ensemble, by its mean over the steps."""
    models = ("ensemble_ts1", "ensemble_tsinf")
    return max(models, key=lambda model: _curve(table, panel, model).log_likelihood.mean())


def _leads(table: pd.DataFrame, panel: str, other: str) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Return the Transformer's lead over another model: by step, over the second half of the steps, and over all."""
    rows = rows_of(table, panel=panel, other=other).set_index(["first", "last"])[["lead", "low", "high"]]
    single = rows[rows.index.get_level_values(0) == rows.index.get_level_values(1)].droplevel(1).sort_index()
    last = single.index.max()
    return single, rows.loc[(last // 2 + 1, last)], rows.loc[(1, last)]


@rule
def order_of_models(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    ours, other = _curve(table, "observed", "transformer"), _better_ensemble(table, "observed")
    lead, late, _ = _leads(tables["fig2_leads"], "observed", other)
    above = ours.low > _curve(table, "observed", other).high
    note = (
        f"It is above the ensemble with disjoint intervals at {above.mean():.0%} of the steps, "
        f"and its lead at the last step is {lead['lead'].iloc[-1]:.0f} nats."
    )
    ahead = bool(above.iloc[-1])
    return Finding(late["lead"], late.low, late.high, ahead and above.mean() > limits["share"], ahead, note)


@rule
def ensemble_fails(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    true = _curve(table, "observed", "simulator").log_likelihood
    ensemble = _curve(table, "observed", _better_ensemble(table, "observed")).log_likelihood
    distance = true - ensemble
    lost = distance >= limits["nats"]
    last_near = lost.index[~lost].max() if (~lost).any() else 0
    last = int(lost.index.max())
    note = f"At the last step, {last}, it is {distance.loc[last]:.0f} nats below the true rollouts."
    value = min(last_near + 1, last)
    return Finding(value, np.nan, np.nan, last_near < limits["steps"], last_near < last, note)


@rule
def markov_is_close(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    full, markov = _curve(table, "observed", "transformer"), _curve(table, "observed", "markov")
    ensemble = _curve(table, "observed", _better_ensemble(table, "observed"))
    gain = (full.log_likelihood - ensemble.log_likelihood).mean()
    distance = (full.log_likelihood - markov.log_likelihood).abs().mean()
    overlap = ((full.low <= markov.high) & (markov.low <= full.high)).mean()
    note = (
        f"They are {distance:.1f} nats apart on average, and their intervals overlap at {overlap:.0%} of the steps. "
        f"The full model leads the ensemble by {gain:.1f} nats."
    )
    holds = overlap == 1 or (gain > 0 and distance <= limits["close"] * gain)
    return Finding(distance / gain, np.nan, np.nan, holds, gain > 0 and distance <= limits["near"] * gain, note)


@rule
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
    return Finding(masked["lead"], masked["low"], masked["high"], clearly and above > limits["share"], larger, note)


# Figure 3


@rule
def attention_patterns(tables: Tables, limits: Limits) -> Finding:
    states = rows_of(tables["attention_scores"], rows="states")
    states = states.assign(times=states.value / states.uniform_value)
    markov = rows_of(states, score="markov").groupby(["profile", "seed"]).value.max()
    striated = rows_of(states, score="striated").groupby(["profile", "seed"]).times.max()
    both = bool((markov >= limits["weight"]).all()), bool((striated >= limits["times"]).all())
    note = (
        f"{len(markov)} models were scored. In each of them the most striated head has at least {striated.min():.1f} "
        "times the weight of uniform attention."
    )
    return Finding(markov.mean(), markov.min(), markov.max(), all(both), any(both), note)


@rule
def actions_attend_to_actions(tables: Tables, limits: Limits) -> Finding:
    actions = rows_of(tables["attention_scores"], rows="actions")
    weight = {
        score: rows_of(actions, score=score).groupby(["profile", "seed"]).value.mean()
        for score in ("past_actions", "past_states", "past_action_key", "past_state_key")
    }
    sums, keys = weight["past_actions"] / weight["past_states"], weight["past_action_key"] / weight["past_state_key"]
    holds, trend = bool((sums > limits["sum"]).all()), bool((keys > 1).all())
    note = (
        f"{len(sums)} models were scored. A single past action gets {keys.min():.2g} to {keys.max():.2g} times the "
        "weight of a single past state dimension."
    )
    return Finding(sums.mean(), sums.min(), sums.max(), holds, trend, note)


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

    `others` is the best method that learned from the same data, `everyone` includes the data's own policies, `prior` is
    the best published one.  `good`: above behaviour cloning and on par with `others`.
    """
    dataset, score = ours.dataset.iloc[0], model_mean(ours, "score")
    beside = table[(table.dataset == dataset) & (table.method != "tto")]
    learned = beside[beside.method != "behaviour"]
    clone = rows_of(learned, method="bc", variant="main")
    best = {
        name: max(model_mean(rows, "score") for _, rows in group.groupby(["method", "variant"]))
        for name, group in (("others", learned), ("everyone", beside))
    }
    published = pd.read_csv(places.ROOT / "data" / "published_table1.csv")
    prior = published[(published.dataset == dataset.removesuffix("-v2")) & published.method.isin(PRIOR)]["mean"].max()
    above = interval(bootstrap_means(ours, "score") - bootstrap_means(clone, "score"))[0] > 0
    good = above and score >= par * best["others"]
    return {"source": ours.source.iloc[0], "score": score, "prior": prior, **best, "above": above, "good": good}


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


def _on_par(tables: Tables, limits: Limits, datasets: list[str]) -> Finding:
    scores, drawn, note = _scores(tables["table1_rollouts"], datasets, limits["par"])
    # Published scores belong to D4RL's files: on regenerated data they are no yardstick.
    official = (scores.source == "official").all() and len(scores) == len(datasets)
    holds = official and (scores.score >= limits["par"] * scores.prior).all()
    trend = 2 * scores.good.sum() > len(datasets)
    return Finding(scores.score.mean(), *interval(drawn), bool(holds), bool(trend), note)


@rule
def hopper_walker(tables: Tables, limits: Limits) -> Finding:
    return _on_par(tables, limits, [name for name in experiments.TABLE1 if not name.startswith("halfcheetah")])


@rule
def halfcheetah(tables: Tables, limits: Limits) -> Finding:
    return _on_par(tables, limits, ["halfcheetah-medium", "halfcheetah-medium-replay"])


@rule
def halfcheetah_medium_expert(tables: Tables, limits: Limits) -> Finding:
    scores, drawn, _ = _scores(tables["table1_rollouts"], ["halfcheetah-medium-expert"], 1.0)
    row, (low, high) = scores.iloc[0], interval(drawn)
    holds = row.source == "official" and high < limits["short"] * row.prior
    note = f"The data are {row.source}. The best method run on the same data scores {row.everyone:.1f}."
    return Finding(row.score, low, high, bool(holds), bool(high < limits["short"] * row.everyone), note)


# Imitation and goals, Section 4.2


def _imitation(tables: Tables, limits: Limits, dataset: str) -> Finding:
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
    return Finding(value, low, high, holds, trend, note)


@rule
def imitation_hopper(tables: Tables, limits: Limits) -> Finding:
    return _imitation(tables, limits, "hopper-expert")


@rule
def imitation_walker(tables: Tables, limits: Limits) -> Finding:
    return _imitation(tables, limits, "walker2d-expert")


@rule
def goals_without_rewards(tables: Tables, limits: Limits) -> Finding:
    rows = rows_of(tables["four_rooms_success"], split="seen", rooms_crossed=-1)
    ours = rows_of(rows, model="goal_transformer").iloc[0]
    others = {name: rows_of(rows, model=name).iloc[0] for name in ("transformer", "straight")}
    ahead = all(ours.low > other.high for other in others.values())
    note = (
        f"The model without goals reaches {others['transformer'].success:.0%}, "
        f"and walking straight reaches {others['straight'].success:.0%}."
    )
    return Finding(ours.success, ours.low, ours.high, bool(ahead and ours.low > limits["success"]), ahead, note)


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


@rule
def myopic(tables: Tables, limits: Limits) -> Finding:
    rows, bounds = compare_pairs(ablation_pairs(tables["ablations_rollouts"], "no_reward_to_go"))
    holds, trend = bool((rows.high < 0).all()), bool((rows.ratio < 1).mean() > 0.5)
    return Finding(rows.ratio.mean(), *bounds, holds, trend, f"By dataset: {_percentages(rows)}.")


@rule
def coarse_bins(tables: Tables, limits: Limits) -> Finding:
    table = rows_of(_on(tables["ablations_rollouts"], ["halfcheetah-medium-expert"]), method="tto")
    # The main planner has quantile bins, so each pair is turned round.
    pairs = [(dataset, uniform, main) for dataset, main, uniform in ablation_pairs(table, "uniform_bins")]
    rows, bounds = compare_pairs(pairs)
    returns = {variant.replace("_", " "): f"{model_mean(r, 'return'):.0f}" for variant, r in table.groupby("variant")}
    note = f"The returns are: {listed(returns)}."
    return Finding(rows.ratio[0], *bounds, bool(rows.low[0] > 0), bool(rows.ratio[0] > 1), note)


@rule
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
    trend = bool(enough.mean() > 0.5 or all(better))
    return Finding(rows.ratio.mean(), *bounds, bool(enough.all()), trend, note)


@rule
def discretisation_explains(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    ensemble = _curve(table, "observed", _better_ensemble(table, "observed")).log_likelihood
    full, markov = (_curve(table, "observed", model).log_likelihood - ensemble for model in ("transformer", "markov"))
    late = full.index > full.index.max() / 2
    kept = markov[late].mean() / full[late].mean() if full[late].mean() > 0 else 0.0
    rows, _ = compare_pairs(ablation_pairs(tables["ablations_rollouts"], "independent_dimensions"))
    enough, lower = kept >= limits["share"], bool((rows.high < 0).all())
    note = f"The planner's return with independent dimensions, relative to its own: {_percentages(rows)}."
    return Finding(kept, np.nan, np.nan, enough and lower, enough or lower, note)


# Actions and promises of the planners, Sections 2 and 3.2


@rule
def actions_in_distribution(tables: Tables, limits: Limits) -> Finding:
    table, gaps, drawn = tables["action_likelihood"].assign(model_seed=0), [], []
    shooting = rows_of(table, method="random_shooting", variant="main")
    for dataset, other in shooting.groupby("dataset", sort=False):
        # One density scores both planners, and it is not that of the model that planned.
        scorer = other.scorer.iloc[0]
        tto = rows_of(table[table.profile != scorer], dataset=dataset, method="tto", variant="main", scorer=scorer)
        drawn.append(bootstrap_means(tto, "log_likelihood") - bootstrap_means(other, "log_likelihood"))
        gaps.append(tto.log_likelihood.mean() - other.log_likelihood.mean())
    clear, average = [interval(d)[0] > 0 for d in drawn], float(np.mean(gaps))
    note = f"Planned actions are clearly likelier on {sum(clear)} of {len(clear)} datasets."
    return Finding(average, *interval(np.mean(drawn, axis=0)), all(clear), average > 0, note)


def _overestimation(values: pd.DataFrame) -> pd.DataFrame:
    """Return each rollout's mean overestimation; decisions of one rollout are not independent."""
    values = values.assign(overestimation=values.predicted - values.achieved, model_seed=0)
    keys = ["dataset", "method", "profile", "variant", "model_seed", "rollout_seed"]
    return values.groupby(keys, sort=False).overestimation.mean().reset_index()


@rule
def no_pessimism(tables: Tables, limits: Limits) -> Finding:
    values, returns = _overestimation(tables["planner_values"]), tables["table1_rollouts"]
    rows, drawn = [], []
    for dataset, other in rows_of(values, method="random_shooting", variant="main").groupby("dataset", sort=False):
        name = [dataset.removesuffix("-v2")]
        tto, ours = (_planned(table[table.dataset == dataset], name) for table in (values, returns))
        shooting = rows_of(returns, dataset=dataset, method="random_shooting", variant="main")
        less = model_mean(shooting, "return") < model_mean(ours, "return")
        theirs = bootstrap_means(other, "overestimation")
        drawn.append(theirs - bootstrap_means(tto, "overestimation"))
        exploited = interval(theirs)[0] > 0 and interval(drawn[-1])[0] > 0
        gap = other.overestimation.mean() - tto.overestimation.mean()
        rows.append({"gap": gap, "tto": tto.overestimation.mean(), "holds": exploited and less})
    rows = pd.DataFrame(rows)
    note = (
        f"The rule holds on {rows.holds.sum()} of {len(rows)} datasets. "
        f"The Trajectory Transformer itself overestimates by {rows.tto.mean():.3g}."
    )
    holds, trend = bool(rows.holds.all()), bool(rows.holds.mean() > 0.5)
    return Finding(rows.gap.mean(), *interval(np.mean(drawn, axis=0)), holds, trend, note)


# Cost, Section 5 and Appendix A

CONTROL_STEP = {"hopper": 0.008, "walker2d": 0.008, "halfcheetah": 0.05, "humanoid": 0.015, "pendulum": 0.05}  # seconds


def _decisions(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return seconds of the fastest decision by task, for one environment: of the Transformer, and of the ensemble."""
    one = rows_of(table, environments=1).dropna(subset="seconds_per_decision")
    if "setting" in one:  # Table 1's search is shorter than any that the paper times
        one = one[one.setting != "table 1"]
    ensemble = one.model == "ensemble"
    return tuple(rows.groupby("task").seconds_per_decision.min() for rows in (one[~ensemble], one[ensemble]))


def _above_one(times: pd.Series, note: str) -> Finding:
    """Return the finding of a claim that a ratio exceeds 1 in every task; its trend is more than half of the tasks."""
    above = times > 1
    return Finding(times.mean(), times.min(), times.max(), bool(above.all()), bool(above.mean() > 0.5), note)


@rule
def slower(tables: Tables, limits: Limits) -> Finding:
    transformer, ensemble = _decisions(tables["bench_planning"])
    times = (transformer / ensemble).dropna()
    if not len(times):
        raise NotTestedError("No task was timed with both kinds of model.")
    return _above_one(times, f"By task: {listed({task: f'{x:.1f}' for task, x in times.items()})}.")


@rule
def not_real_time(tables: Tables, limits: Limits) -> Finding:
    transformer, _ = _decisions(tables["bench_planning"])
    steps = (transformer / pd.Series(CONTROL_STEP)).dropna()
    if not len(steps):
        raise NotTestedError(f"No task with a known control step was timed. Known are {', '.join(CONTROL_STEP)}.")
    seconds = {task: f"{1000 * transformer[task]:.0f} ms" for task in steps.index}
    return _above_one(steps, f"A decision takes: {listed(seconds)}.")


@rule
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
    return Finding(fast, fast, hours.max(), bool(holds), bool(fast < limits["low"]), note)
