"""How much a verdict can bear: the design behind it, other choices in its rule, and repetitions of its experiment."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ttlib.claims import ledger, rules
from ttlib.claims.ledger import Claim, Outcome
from ttlib.claims.rules import Tables
from ttlib.pipeline import keys, places, results

FEW = 6  # The bootstrap of fewer values covers far less than its name says.
NO_MODELS = {"round_trip", "bench_planning", "bench_training"}  # tables in which no training takes part
NOT_THRESHOLDS = {"paper", "low", "high"}  # limits that quote the paper
# The score of one setting differs by this deviation from training to training: rows of data/tried_offline.csv that
# repeat a setting.  The published results hold one training of each model, so they cannot tell.
BETWEEN_TRAININGS = 8.0
OWN_MODELS = ("uniform_bins", "finer_states")  # ablations that are models of their own


# Design


def _count(numbers: list[int], word: str, once: str) -> str:
    """Return "3 rollouts", "3 to 6 rollouts", or the words for one; word: the plural."""
    low, high = min(numbers), max(numbers)
    return once if high == 1 else f"{low} {word}" if low == high else f"{low} to {high} {word}"


def _trainings(tables: Tables, used: pd.DataFrame | None) -> list[int]:
    """Return how many trainings of each model the tables hold; a table that does not tell them apart holds one."""
    numbers = []
    for name in tables.keys() - NO_MODELS:
        table, column = tables[name], "model_seed" if "model_seed" in tables[name] else "seed"
        if used is not None and "method" in table:
            table = table[(table.method == "tto") & table.dataset.isin(used.dataset) & table.profile.isin(used.profile)]
        by = [key for key in ("dataset", "profile", "model") if key in table]
        numbers += [*table.groupby(by)[column].nunique()] if column in table and by else [1]
    return numbers


def design(claim: Claim, tables: Tables) -> dict[str, str]:
    """Return the words for how many trainings, rollouts and datasets decide a claim, and for what brackets cover."""
    with rules.summed_up() as statistics:
        rules.RULES[claim.id](tables, claim.limits)
    used = pd.concat(statistics.resampled) if statistics.resampled else None
    trainings = _trainings(tables, used)
    words = {"trainings": _count(trainings, "trainings", "one training of each model") if trainings else "no training"}
    covers = claim.interval
    if used is not None:
        sizes = [len(rows) // rows.model_seed.nunique() for rows in statistics.resampled]
        rollouts = _count(sizes, "rollouts", "one rollout")
        words |= {
            "rollouts": f"{rollouts} of each model",
            "datasets": _count([used.dataset.nunique()], "datasets", "one dataset"),
        }
        drawn = f"{rollouts} of {_count(trainings, 'trainings', 'one training')}"
        few = f"the middle 90% of a bootstrap of {drawn}, which are too few to call it an interval"
        covers = covers.format(bootstrap=few if min(sizes) < FEW else f"a 90% bootstrap interval over {drawn}")
    for table in tables.values():
        if "rollout" in table:
            each = [*table.groupby("model")["rollout"].nunique()]
            words["rollouts"] = _count(each, "trajectories of each model", "one of each model")
        elif "n" in table and used is None:
            words["rollouts"] = f"{table.n.max():,} rollouts"
        elif "task" in table:
            words["tasks"] = _count([table.task.nunique()], "tasks", "one task")
    return words | {"brackets": covers}


# Sensitivity


def _one_profile(tables: Tables, profile: str) -> Tables:
    """Return the tables without the Transformer's rows of the other profile."""
    kept = {}
    for name, table in tables.items():
        if {"v1", "released"} <= set(table.get("profile", ())):
            ensemble = table.model == "ensemble" if "model" in table else False
            table = table[(table.profile == profile) | ~table.profile.isin(("v1", "released")) | ensemble]
        kept[name] = table
    return kept


def variations(claim: Claim, size: str, tables: Tables) -> Iterator[tuple[str, Outcome]]:
    """Judge a claim with other choices -> (the choice in words, the outcome), the same choices for every row.

    Thresholds are halved and doubled; each profile decides alone; intervals hold more or less; medians replace means.
    """
    for name in [name for name in claim.limits if name not in NOT_THRESHOLDS]:
        for word, factor in (("halved", 0.5), ("doubled", 2.0)):
            changed = claim.limits | {name: claim.limits[name] * factor}
            yield f"`{name}` {word} to {changed[name]:g}", ledger.judge(claim, size, tables, changed)
    for profile in ("v1", "released"):
        yield f"profile {profile} alone", ledger.judge(claim, size, _one_profile(tables, profile), claim.limits)
    choices = {"median instead of mean": {"average": np.median}}
    choices |= {f"{level:.0%} bootstrap intervals": {"level": level} for level in (0.8, 0.95)}
    for words, choice in choices.items():
        with rules.summed_up(**choice):
            yield words, ledger.judge(claim, size, tables, claim.limits)


def sensitivity(claim: Claim, size: str, tables: Tables) -> pd.DataFrame:
    """Return the choices that apply to a claim, each with its verdict.  One that moves no number does not apply."""
    now, rows = ledger.judge(claim, size, tables, claim.limits), []
    for words, other in variations(claim, size, tables):
        if "`" in words or other.finding != now.finding:
            turns = other.verdict not in (now.verdict, ledger.UNTESTED)
            rows.append({"claim": claim.id, "check": words, "verdict": other.verdict, "turns": turns})
    return pd.DataFrame(rows)


# Power

GROUP = ("dataset", "method", "profile", "setting", "variant", "scorer", "noise", "model_seed")


def repeated(table: pd.DataFrame, rng: np.random.Generator, between: float) -> pd.DataFrame:
    """Return a table of rollouts as a repetition might have given it: normal, with each group's mean and deviation.

    between: the deviation of the score from training to training; 0 repeats the rollouts alone.
    """
    table = table.copy()
    group = [key for key in GROUP if key in table]
    seeds = table.groupby([*group, "rollout_seed"], dropna=False, sort=False).ngroup().to_numpy()
    drawn = rng.normal(size=seeds.max() + 1)[seeds]
    own = table.get("variant", pd.Series("", table.index)).where(lambda variant: variant.isin(OWN_MODELS), "")
    trained = table.assign(own=own)[["dataset", "method", "profile", "own", "model_seed"]]
    models = trained.groupby([*trained], sort=False).ngroup().to_numpy()
    luck = between * rng.normal(size=models.max() + 1)[models] * table.method.isin(("tto", "bc", "bc10"))
    unit = {}  # of a point of the score
    if "score" in table:
        spread = table.groupby(table.dataset.str.split("-").str[0])[["return", "score"]].transform(np.ptp)
        unit = {"score": 1.0, "return": spread["return"] / spread.score}
    first = table.assign(seeds=seeds).drop_duplicates("seeds")
    for column in {"return", "score", "log_likelihood", "predicted"} & set(table):
        value = table.predicted - table.achieved if column == "predicted" else table[column]
        of_rollout = value.groupby(seeds).transform("mean")
        by_group = of_rollout[first.index].groupby([first[key] for key in group], dropna=False)
        mean, deviation = by_group.transform("mean"), by_group.transform("std").fillna(0)
        place = first.seeds.to_numpy().argsort()
        mean, deviation = (x.to_numpy()[place][seeds] for x in (mean, deviation))
        table[column] = table[column] + mean + deviation * drawn - of_rollout + luck * unit.get(column, 0.0)
    return table


def power(claim: Claim, size: str, tables: Tables, times: int) -> pd.DataFrame:
    """Return the fraction of `times` repetitions that give a claim its verdict.  True effects are the measured ones.

    There are no rows if the claim does not rest on rollouts.
    """
    with rules.summed_up() as statistics:
        now = ledger.judge(claim, size, tables, claim.limits)
    if not statistics.resampled:
        return pd.DataFrame()
    rows = []
    for words, between in (("new rollouts", 0.0), ("new trainings and rollouts", BETWEEN_TRAININGS)):
        rng, same = np.random.default_rng(0), 0
        for _ in range(times):
            again = {n: repeated(t, rng, between) if "rollout_seed" in t else t for n, t in tables.items()}
            same += ledger.judge(claim, size, again, claim.limits).verdict == now.verdict
        rows.append({"claim": claim.id, "check": words, "verdict": now.verdict, "same": same / times})
    return pd.DataFrame(rows)


def table(claims: list[Claim], judged: dict[tuple[str, str], Outcome], size: str, times: int = 50) -> pd.DataFrame:
    """Return sensitivity and power of all claims that were tested; published, and kept while no result changes.

    Columns: claim, check, verdict, turns (whether a choice turns the verdict), same (fraction of repetitions).
    """
    tested = [claim for claim in claims if judged[claim.id, size].finding]

    def make() -> pd.DataFrame:
        parts = []
        for claim in tested:
            found = ledger.results(claim.files, size)
            parts += [sensitivity(claim, size, found), power(claim, size, found, times)]
        return pd.concat(parts, ignore_index=True)

    def state(claim: Claim) -> str:
        files = [keys.file_key(places.published(name, size)) for name in claim.files]
        outcome = judged[claim.id, size]
        return keys.key(claim.limits, outcome.verdict, f"{outcome.finding.value:.5g} {outcome.note}", files)

    inputs = {claim.id: state(claim) for claim in tested}
    return results.table("claims_checks", size, make, {"times": times}, inputs, record=True)
