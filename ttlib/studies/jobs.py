"""The jobs of a sweep: all rollouts of the pages, and Table 1 as far as it is finished."""

import pandas as pd

from ttlib.pipeline import experiments, rollouts, sweep
from ttlib.pipeline.experiments import Fit
from ttlib.pipeline.rollouts import RolloutSet
from ttlib.pipeline.sweep import Job
from ttlib.studies import ablations, four_rooms, long_horizon, offline_rl


def tables(size: str) -> dict[str, list[RolloutSet]]:
    """Return every record of rollouts, by its name, and the sets that it is made of."""
    return {
        "table1_rollouts": offline_rl.table1_runs(size),
        "imitation_rollouts": offline_rl.imitation_runs(size),
        "ablations_rollouts": ablations.ablations_runs(size),
        "hopper_rollouts": offline_rl.hopper_runs(size),
    } | offline_rl.exercises(size)


def checkable(size: str) -> dict[str, list]:
    """Return every record whose rollouts can be made again one by one, and the sets that it is made of."""
    return tables(size) | {"four_rooms_rollouts": four_rooms.walks(size)}


def jobs(size: str, only: str = "") -> list[Job]:
    """Return each job once, models before the rollouts that need them.

    only: the jobs of datasets whose name contains this.  Raises ValueError where there are none.
    """
    every = [run for sets in tables(size).values() for run in sets]
    runs = [run for run in every if only in run.exp.data.name]
    if not runs:
        names = sorted({run.exp.data.name for run in every})
        raise ValueError(f"no dataset's name contains {only!r}; expected a part of one of {names}")
    return _once(runs)


def _once(runs: list[RolloutSet]) -> list[Job]:
    """Return each set of rollouts and each model that it needs once, models first."""
    by_identity = {}
    for job in (job for run in runs for job in (*run.models, run)):
        by_identity.setdefault(sweep.identity(job), job)
    return list(by_identity.values())


def unrecorded(size: str, only: str = "") -> list[Job]:
    """Return the jobs of `jobs` whose rollouts no record holds that may be taken."""
    wanted, runs = set(jobs(size, only)), []
    for name, sets in tables(size).items():
        known = rollouts.recorded(name, size)
        runs += [run for run in sets if not len(run.found_in(known))]
    return [job for job in _once(runs) if job in wanted]


def fits(size: str) -> list[Fit]:
    """Return each fitted baseline once that rollouts, the four rooms and Figure 2 need."""
    runs = [run for sets in tables(size).values() for run in sets]
    found = [fit for run in runs for fit in run.fits]
    for name in ("four-rooms", "four-rooms-held-out"):
        found.append(experiments.baseline("goal-mlp", experiments.get(name, size).data, size))
    for protocol in (experiments.long_horizon(size, panel) for panel in experiments.PANELS):
        found += [long_horizon.ensemble_fit(protocol, seed) for seed in protocol.seeds]
    return list(dict.fromkeys(found))


def finished_rows(size: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of Table 1's rollouts that are recorded or finished, and a line for each set that is missing."""
    rows, missing, known = [], [], rollouts.recorded("table1_rollouts", size)
    for run in offline_rl.table1_runs(size):
        try:
            done, why = len(run.found_in(known)) > 0 or sweep.finished(run), "it is not there"
        except ValueError as error:
            done, why = False, str(error)
        if done:
            rows.append(run.rows(known))
        else:
            missing.append(f"{sweep.label(run)}: {why}")
    columns = ["dataset", "method", "profile", "score"]
    return pd.concat([pd.DataFrame(columns=columns), *rows])[columns], missing


def table1(size: str) -> tuple[pd.DataFrame, list[str]]:
    """Return Table 1 of what is finished, and what is missing.

    Columns: dataset, method, profile, mean and std of the score, n rollouts of how many `expected`.
    """
    rows, missing = finished_rows(size)
    columns = ["dataset", "method", "profile"]
    expected = pd.DataFrame(
        [
            (run.exp.data.name, run.method_shown, run.profile, len(run.seeds))
            for run in offline_rl.table1_runs(size)
        ],
        columns=[*columns, "expected"],
    )
    scores = rows.groupby(columns).score.agg(["mean", "std", "count"]).rename(columns={"count": "n"})
    table = expected.groupby(columns, sort=False).sum().join(scores).fillna({"n": 0}).astype({"n": int})
    return table.reset_index(), missing
