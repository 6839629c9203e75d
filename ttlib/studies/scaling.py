"""How far more training carries: the held-out loss of `released` by the data and the tokens that it read."""

import pandas as pd

from ttlib.pipeline import experiments, store
from ttlib.pipeline.experiments import Experiment

DATASETS = ("hopper-medium-expert", "walker2d-medium-expert")


def trained(size: str) -> list[Experiment]:
    """Return the two models of Table 1, and the points of the curve whose models are there."""
    usual = [experiments.get(name, size, "released") for name in DATASETS]
    points = [exp for exp in experiments.curve(size) if size == "laptop" and store.checkpoint_folder(exp)]
    return sorted(usual + points, key=lambda exp: exp.data.name)


def losses(size: str) -> pd.DataFrame:
    """Return the held-out loss of every point, in nats per token, for all tokens and for each kind of token.

    The models are there.  Columns: dataset, steps of data, million_tokens read, seed, minutes of training, nats, and
    nats of states, actions, rewards and rewards-to-go.
    """
    rows = []
    for exp in trained(size):
        about, transition = store.about(store.checkpoint_folder(exp)), exp.model.transition
        nats = pd.Series(about["held_out_by_dimension"], dtype=float)
        kinds = {"state": transition.state, "action": transition.action, "reward": slice(-2, -1), "R": slice(-1, None)}
        row = {"dataset": exp.data.name, "steps": exp.data.steps, "million_tokens": about["tokens"] / 1e6}
        row |= {"seed": exp.train.seed, "minutes": about["seconds"] / 60, "nats": about["held_out_all"]}
        rows.append(row | {f"nats_{kind}": nats[part].mean() for kind, part in kinds.items()})
    return pd.DataFrame(rows)


def table(size: str) -> pd.DataFrame:
    """Return `losses` as the published table `scaling.csv`; a model of Table 1 that is missing is trained first."""
    return store.table("scaling", size, lambda: losses(size), trained(size))
