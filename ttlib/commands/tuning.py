"""python -m ttlib.commands.tuning hopper|training|ensemble|levers --size SIZE: search for settings.

hopper: compare trainings and ways to act on hopper, by returns on rollout seeds that no report uses.
training: compare optimisers and models by their held-out loss after equal minutes of one processor.
ensemble: compare members, width, layers and training of the ensemble of single-step models on the humanoid.
levers: compare cheap changes of the profile `released` by their held-out loss; see ttlib/commands/levers.py.

The table is data/tried_SEARCH.csv at size laptop, and build/tried_SEARCH-SIZE.csv at other sizes.  Settings that are in
the table are not run again, so a killed search continues where it was.  Delete the table to search anew.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ttlib import cpu, files, train
from ttlib.baselines import ensemble as ensembles
from ttlib.baselines.ensemble import Ensemble, EnsembleConfig, Transitions
from ttlib.commands import levers as cheap
from ttlib.model import GPT
from ttlib.pipeline import cpu_training, experiments, places, rollouts, store
from ttlib.pipeline.experiments import Experiment
from ttlib.search import Plan
from ttlib.studies import horizon_metrics, long_horizon

ADAMW = {"optimiser": "adamw", "lr": 2e-3}


def table_path(search: str, size: str) -> Path:
    """Return where the table of a search is."""
    laptop = places.ROOT / "data" / f"tried_{search}.csv"
    return laptop if size == "laptop" else places.BUILD / f"tried_{search}-{size}.csv"


def grid_search(path: Path, settings: Iterable[tuple[dict, tuple]], run: Callable[..., list[dict]]) -> None:
    """Run every setting that has no row in the table at `path`, and write the table after each.

    settings: pairs of the columns that name a setting, and the arguments of `run`, which returns rows for the table.
    """
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    for name, arguments in settings:
        if any(_as_written(row[key] for key in name) == _as_written(name.values()) for row in rows):
            continue
        new = [name | row for row in run(*arguments)]
        print(pd.DataFrame(new).to_string(index=False), flush=True)
        rows += new
        write = functools.partial(pd.DataFrame(rows).to_csv, index=False, float_format="%.4g")
        files.write_aside(path, write)


def _as_written(values: Iterable) -> list[str]:
    """Return values as the table has them."""
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]


# -- hopper ------------------------------------------------------------------------------------------------

SEEDS = tuple(range(1000, 1008))  # no report uses seeds from 1000 on


def hopper(size: str) -> None:
    """Compare trainings, and ways to act with each of their models."""
    ways = [way for trained in trainings(size) for way in actings(trained)]
    grid_search(table_path("hopper", size), [(acting_columns(*way), way) for way in ways], act)


def trainings(size: str) -> list[Experiment]:
    """Return the trainings that are compared, cheap ones first."""
    v1, released = (experiments.get("hopper-long", size, profile) for profile in experiments.PROFILES)
    million = 1e4 if size == "smoke" else 1e6
    short = [(2, ADAMW | {"batch": 32}), (2, {"batch": 32}), (2, {}), (5, {})]
    return [*(shortened(v1, tokens * million, changes) for tokens, changes in short), v1, released]


def shortened(exp: Experiment, tokens: float, changes: dict) -> Experiment:
    """Return a training on fewer tokens, with other settings of training."""
    train = replace(exp.train, **changes)
    train = replace(train, updates=int(tokens / (train.batch * exp.model.max_tokens)))
    return replace(exp, name=f"{exp.name}-tried", train=train)


def actings(exp: Experiment) -> list[tuple[str, Experiment]]:
    """Return the ways to act that are compared, fewer for shortened trainings: a method, and the experiment."""
    filtered = Plan(3, 16, 2, experiments.GAMMA, exp.bins.reward_in_R, "sample", 0.6)
    plans = [filtered] if exp.plan.proposal == "sample" else [exp.plan, filtered]
    whole = not exp.name.endswith("tried")
    if whole:
        beam = replace(filtered, proposal="beam", horizon=1, beam_width=8, expansions=4)
        plans += [beam, replace(beam, horizon=3), replace(filtered, drop_probability=0.0)]
    ways = [("sampling", exp)] + [("tto", replace(exp, plan=plan)) for plan in plans]
    return [*ways, ("sampling", replace(exp, plan=filtered, context=5, plan_window=None))] if whole else ways


def acting_columns(method: str, exp: Experiment) -> dict:
    """Return the columns that name a training and a way to act."""
    plan, tokens = exp.plan, exp.train.updates * exp.train.batch * exp.model.max_tokens
    acting = f"{plan.proposal}, horizon {plan.horizon}, {plan.beam_width} x {plan.expansions}"
    if plan.proposal == "sample":
        acting += f", drop probability {plan.drop_probability}"
    columns = {"profile": exp.profile, "window": exp.model.T, "batch": exp.train.batch}
    columns |= {"optimiser": f"{exp.train.optimiser} {exp.train.lr:g}", "million tokens": tokens / 1e6}
    return columns | {"acting": "sampling" if method == "sampling" else acting, "past": exp.context}


def act(method: str, exp: Experiment) -> list[dict]:
    """Train if needed, and roll out -> one row: held-out loss, returns, lengths, and the overestimation of plans."""
    loss = store.load_or_train(exp).about["held_out_all"]
    runs = rollouts.run_rollouts(exp, method, SEEDS)
    totals, hope = [run.total for run in runs], np.nan
    if method == "tto":
        values = pd.DataFrame(rollouts.value_rows(rollouts.step_rows(runs), exp))
        hope = (values.predicted - values.achieved).mean()
    row = {"held-out nats": loss, "n": len(runs), "mean": np.mean(totals), "std": np.std(totals)}
    return [row | {"length": np.mean([len(run.rewards) for run in runs]), "too hopeful": hope}]


# -- training ----------------------------------------------------------------------------------------------

EXPERIMENTS = {"hopper-medium-replay": "hopper-long", "humanoid": "humanoid"}
SMOOTH = {"embedding_length_scale": 30.0}
# Task, setting, minutes, and the differences from Muon with learning rate 5e-3, no dropout, independent embeddings and
# batches of 16 windows (humanoid: 8).
TRAININGS = [
    ("hopper-medium-replay", "AdamW, 6e-4", 2, ADAMW | {"lr": 6e-4}),
    ("hopper-medium-replay", "AdamW, 2e-3", 2, ADAMW),
    ("hopper-medium-replay", "Muon", 5, {}),
    ("hopper-medium-replay", "Muon, smooth embeddings", 5, SMOOTH),
    ("hopper-medium-replay", "AdamW", 17, ADAMW),
    ("hopper-medium-replay", "Muon, batch 32", 5, {"batch": 32}),
    ("hopper-medium-replay", "Muon, dropout 0.1 at the end of blocks", 5, {"dropout": 0.1}),
    ("hopper-medium-replay", "Muon, 2 layers", 5, {"n_layer": 2}),
    ("hopper-medium-replay", "Muon, window of 5", 5, {"T": 5, "batch": 32}),
    ("humanoid", "AdamW", 5, ADAMW),
    ("humanoid", "Muon", 5, {}),
    ("humanoid", "Muon, smooth embeddings", 5, SMOOTH),
    ("humanoid", "Muon, batch 16", 5, {"batch": 16}),
]


def training(size: str) -> None:
    """Compare trainings that take the same processor time, in which other work on the machine counts little."""
    settings = []
    for task, setting, minutes, changes in TRAININGS:
        exp = changed(experiments.get(EXPERIMENTS[task], size), {"embedding_length_scale": 0.0} | changes)
        minutes, points = (0.01, 2) if size == "smoke" else (minutes, 12)
        settings.append(({"task": task, "setting": setting, "budget": minutes}, (exp, minutes, points)))
    grid_search(table_path("training", size), settings, learning_curve)


def changed(exp: Experiment, changes: dict) -> Experiment:
    """Return the experiment with other fields of its model or its training."""
    parts = {}
    for name in ("model", "train"):
        config = getattr(exp, name)
        parts[name] = replace(config, **{field: changes[field] for field in changes.keys() & vars(config).keys()})
    return replace(exp, **parts, context=0)


def learning_curve(exp: Experiment, minutes: float, points: int) -> list[dict]:
    """Train for some minutes of processor time, which the learning rate follows -> rows at equal distances."""
    windows, own_held_out = store.windows(exp)
    # All settings are scored on the same windows of five transitions, which every model can read.
    held_out = store.windows(changed(exp, {"T": 5}))[1]
    torch.manual_seed(0)
    model, batch, seconds = GPT(exp.model), exp.train.batch, 60 * minutes
    dtype, attend = cpu.fast_dtype(torch.device("cpu")), cpu_training.faster(model)
    optimisers, order = train.optimisers(model, exp.train, dtype), torch.randperm(len(windows))
    used, updates, rows = 0.0, 0, []
    for point in range(1, points + 1):
        model.train()
        start = time.process_time() - used
        while (used := time.process_time() - start) < seconds * point / points:
            first, scheduled = updates * batch % (len(windows) - batch), int(used / seconds * exp.train.updates)
            part = windows.batch(order[first : first + batch])
            train.step(model, optimisers, part, exp.train, scheduled, dtype, attend)
            updates += 1
        row = {"batch": batch, "window": exp.model.T, "minutes": used / 60, "updates": updates}
        row |= {"million_tokens": updates * batch * windows.length / 1e6, "dtype": str(dtype).removeprefix("torch.")}
        row["own_window_nats"] = train.evaluate(model, own_held_out, 256) if point == points else None
        rows.append(row | {"held_out_nats": train.evaluate(model, held_out, 512)})
    return rows


# -- ensemble ----------------------------------------------------------------------------------------------

COLUMNS = ("members", "width", "layers", "updates", "batch", "lr")
LEARNING = [(2500, 256, 1e-3), (2500, 256, 2e-3), (2500, 256, 4e-3), (2500, 256, 8e-3), (2500, 256, 1.6e-2),
            (5000, 128, 4e-3), (5000, 128, 8e-3), (9000, 64, 4e-3)]  # fmt: skip
ENSEMBLES = [
    *(
        EnsembleConfig(members=7, width=width, layers=layers, updates=4000, batch=128, lr=1.6 / width)
        for width in (100, 200, 400)
        for layers in (3, 4)
    ),
    EnsembleConfig(width=400, layers=3, updates=8000, batch=128, lr=4e-3),
    *(EnsembleConfig(updates=updates, batch=batch, lr=lr) for updates, batch, lr in LEARNING),
]
TIMES = (1, 5, 20, 50, 100)  # steps of Figure 2 (left)


def ensemble(size: str) -> None:
    """Compare ensembles as single-step models, and by the scores of TS-1 over a long horizon."""
    tried = ENSEMBLES
    if size == "smoke":
        tried = [replace(config, width=8, updates=20) for config in ENSEMBLES[:2]]
    settings = [({name: getattr(config, name) for name in COLUMNS}, (config, size)) for config in tried]
    grid_search(table_path("ensemble", size), settings, fit_ensemble)


@functools.cache
def transitions(size: str) -> tuple[Transitions, Transitions]:
    """Return the training and the held-out transitions of the humanoid."""
    training, held_out = store.split(experiments.get("humanoid", size).data)
    return ensembles.transitions(training), ensembles.transitions(held_out)


def fit_ensemble(config: EnsembleConfig, size: str) -> list[dict]:
    """Fit an ensemble -> its row, with seconds of one processor, and means over the state dimensions.

    Members are fitted independently, so 7 members give rows for their first 3 and their first 5 as well.
    """
    training, held_out = transitions(size)
    start = time.process_time()
    fitted, curve = ensembles.fit(training, held_out, config)
    seconds = (time.process_time() - start) / config.members
    linear, rows = ensembles.linear_log_likelihood(fitted, training, held_out), []
    for members in (3, 5, 7) if config.members == 7 else (config.members,):
        part = first_members(fitted, members)
        scores = ensembles.diagnose(part, held_out)
        row = {"members": members, "stopped": curve[-1]["update"], "seconds": seconds * members}
        row |= {"held_out_log_likelihood": scores["log_likelihood"], "linear_log_likelihood": linear}
        row |= {"coverage90": scores["coverage"].mean(), "rmse_share": scores["rmse_share"].mean()}
        rows.append(row | long_scores(part, size))
    return rows


def first_members(made: Ensemble, members: int) -> Ensemble:
    """Return the ensemble of the first members."""
    part = Ensemble(made.N, made.M, replace(made.config, members=members))
    by_member = {name for name, _ in made.named_parameters()}
    state = {name: x[:members] if name in by_member else x for name, x in made.state_dict().items()}
    part.load_state_dict(state)
    return part


def long_scores(made: Ensemble, size: str) -> dict:
    """Return the scores of TS-1 at TIMES, in nats, and the fraction of trajectories that are not finite at the last."""
    samples, steps = 5 if size == "smoke" else 200, max(TIMES)
    references, start = long_horizon.references(size, steps)
    grid = long_horizon.grid(experiments.get("humanoid", size))
    marginals = horizon_metrics.GaussianMarginals(grid, references)

    def visit(t: int, *moments: np.ndarray) -> None:
        if t in TIMES:
            marginals.visit(t, *moments)

    starts, rng = np.repeat(start[None].astype(float), samples, axis=0), np.random.default_rng(0)
    _, not_finite = ensembles.sample(made, long_horizon.policy(), starts, steps, "ts1", rng, visit)
    nats = horizon_metrics.log_likelihood(grid, marginals.mass, samples, references).mean(0)
    return {f"binned_{t}": nats[t - 1] for t in TIMES} | {f"not_finite_{steps}": not_finite[-1] / samples}


def levers(size: str) -> None:
    """Compare cheap changes of the profile `released`."""
    grid_search(table_path("levers", size), cheap.settings(size), cheap.compare)


SEARCHES = {"hopper": hopper, "training": training, "ensemble": ensemble, "levers": levers}


def main() -> None:
    """Run one search."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("search", choices=SEARCHES)
    parser.add_argument("--size", choices=places.SIZES, default="laptop")
    arguments = parser.parse_args()
    SEARCHES[arguments.search](arguments.size)


if __name__ == "__main__":
    main()
