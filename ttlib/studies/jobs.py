"""The jobs of a sweep: Table 1, imitation and ablations, and Table 1 as far as it is finished."""

import contextlib

import pandas as pd

from ttlib.pipeline import experiments, results, rollouts, store, sweep
from ttlib.pipeline.experiments import Fit
from ttlib.pipeline.sweep import Job
from ttlib.studies import ablations, long_horizon, offline_rl


def jobs(size: str, only: str = "") -> list[Job]:
    """Return each job once, models before the rollouts that need them.

    only: the jobs of datasets whose name contains this.  Raises ValueError where there are none.
    """
    every = [*offline_rl.table1_runs(size), *offline_rl.imitation_runs(size), *ablations.ablations_runs(size)]
    runs = [run for run in every if only in run.exp.data.name]
    if not runs:
        names = sorted({run.exp.data.name for run in every})
        raise ValueError(f"no dataset's name contains {only!r}; expected a part of one of {names}")
    by_identity = {}
    for job in (job for run in runs for job in (*run.models, run)):
        by_identity.setdefault(sweep.identity(job), job)
    return list(by_identity.values())


def fits(size: str) -> list[Fit]:
    """Return each fitted baseline once that the sweep, page 05, the four rooms and Figure 2 need."""
    runs = [(run.exp, run.method, run.model_seed) for run in jobs(size) if isinstance(run, rollouts.RolloutSet)]
    runs += [(experiments.get("hopper-long", size), "bc", seed) for seed in range(3)]  # page 05
    found = [fit for run in runs for fit in rollouts.fits(*run)]
    for name in ("four-rooms", "four-rooms-held-out"):
        found.append(experiments.baseline("goal-mlp", experiments.get(name, size).data, size))
    for protocol in (experiments.long_horizon(size, panel) for panel in experiments.PANELS):
        found += [long_horizon.ensemble_fit(protocol, seed) for seed in protocol.seeds]
    return list(dict.fromkeys(found))


def finished_rows(size: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of Table 1's rollouts that are finished, and a line for each set that is missing.

    Where the table is published whole, with these settings and weights, those are its rows.
    """
    runs = offline_rl.table1_runs(size)
    if all(store.checkpoint_folder(exp) for run in runs for exp in run.models):
        with contextlib.suppress(FileNotFoundError, ValueError):
            rows, about = results.published("table1_rollouts", size, {"of": runs}, rollouts.ROLLOUT_STAGE)
            if about["inputs"] == store.inputs(runs):
                return rows, []
    rows, missing = [], []
    for run in runs:
        try:
            done, why = sweep.finished(run), "it is not there"
        except ValueError as error:
            done, why = False, str(error)
        if done:
            rows += run.rows()
        else:
            missing.append(f"{sweep.label(run)}: {why}")
    return pd.DataFrame(rows, columns=["dataset", "method", "profile", "score"]), missing


def table1(size: str) -> tuple[pd.DataFrame, list[str]]:
    """Return Table 1 of what is finished, and what is missing.

    Columns: dataset, method, profile, mean and std of the score, n rollouts of how many `expected`.
    """
    rows, missing = finished_rows(size)
    columns = ["dataset", "method", "profile"]
    expected = pd.DataFrame(
        [
            (run.exp.data.name, "tto" if run.transformer else run.method, run.profile, len(run.seeds))
            for run in offline_rl.table1_runs(size)
        ],
        columns=[*columns, "expected"],
    )
    scores = rows.groupby(columns).score.agg(["mean", "std", "count"]).rename(columns={"count": "n"})
    table = expected.groupby(columns, sort=False).sum().join(scores).fillna({"n": 0}).astype({"n": int})
    return table.reset_index(), missing
