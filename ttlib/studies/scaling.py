"""How far more training carries: held-out loss and scores of `released` by data and tokens read."""

from dataclasses import replace

import pandas as pd

from ttlib.pipeline import experiments, rollouts, store
from ttlib.pipeline.experiments import Experiment
from ttlib.pipeline.rollouts import RolloutSet, planning

SEEDS = tuple(range(1000, 1020))  # no result uses seeds from 1000 on


def trained(size: str) -> list[Experiment]:
    """Return the points of the curve whose models are there, and the two models that Table 1 uses."""
    tasks = ("walker2d-medium-expert", "hopper-medium-expert")
    usual = [experiments.get(name, size, "released") for name in tasks]
    points = [exp for exp in experiments.curve(size) if size == "laptop" and store.checkpoint_folder(exp)]
    return sorted(usual + points, key=lambda exp: exp.data.name)


def runs(size: str) -> list[RolloutSet]:
    """Return the rollouts of every point of the curve."""
    seeds = SEEDS if size == "laptop" else SEEDS[:2]
    return [planning(replace(exp, seeds=seeds), exp.label, variant="scaling") for exp in trained(size)]


def losses(size: str) -> pd.DataFrame:
    """Return the held-out loss of every point, in nats per token, for all tokens and for each kind of token.

    Columns: dataset, setting (the model's label), steps of data, million tokens read, seed, minutes of training, nats,
    and nats of states, actions, reward and reward-to-go.
    """
    rows = []
    for exp in trained(size):
        about, transition = store.load_or_train(exp).about, exp.model.transition
        nats = pd.Series(about["held_out_by_dimension"])
        kinds = {"state": transition.state, "action": transition.action, "reward": slice(-2, -1), "R": slice(-1, None)}
        row = {"dataset": exp.data.name, "setting": exp.label, "steps": exp.data.steps, "seed": exp.train.seed}
        row |= {"million_tokens": about["tokens"] / 1e6, "minutes": about["seconds"] / 60, "nats": about["held_out_all"]}
        rows.append(row | {f"nats_{kind}": nats[part].mean() for kind, part in kinds.items()})
    return pd.DataFrame(rows)


def curve(size: str) -> pd.DataFrame:
    """Return `losses` beside the mean score of each point, its standard error, and how many rollouts it has."""
    table = rollouts.table("curve_rollouts", size, runs(size))
    scores = table.groupby("setting").score.agg(score="mean", stderr="sem", n="count")
    return losses(size).join(scores, on="setting")
