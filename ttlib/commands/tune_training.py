"""Compare trainings by their held-out loss at equal minutes of one processor.

Every setting trains for its minutes of processor time, schedule included, so that other work on the machine changes
little, and is evaluated on the way on the same held-out windows.  The curves are data/tried_training.csv; settings
that stand there are not trained again.  Schedule-free AdamW is tried where the package `schedulefree` is installed.
"""

import argparse
import importlib.util
import time
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import torch

from ttlib import files, train
from ttlib.model import GPT
from ttlib.pipeline import experiments, places, store
from ttlib.pipeline.experiments import Experiment

PATH = places.ROOT / "data" / "tried_training.csv"
POINTS = 12  # of a curve
EXPERIMENTS = {"hopper-medium-replay": "hopper-long", "humanoid": "humanoid"}
ADAMW = {"optimiser": "adamw", "lr": 2e-3}
# Task, setting, minutes, and what differs from Muon, learning rate 5e-3, no dropout, independent embeddings, batches
# of 16 windows (humanoid: 8).
SETTINGS = [
    ("hopper-medium-replay", "AdamW, 6e-4", 2, ADAMW | {"lr": 6e-4}),
    ("hopper-medium-replay", "AdamW, 2e-3", 2, ADAMW),
    ("hopper-medium-replay", "Muon", 5, {}),
    ("hopper-medium-replay", "Muon, smooth embeddings", 5, {"smooth": 30.0}),
    ("hopper-medium-replay", "AdamW", 17, ADAMW),
    ("hopper-medium-replay", "Muon, batch 32", 5, {"batch": 32}),
    ("hopper-medium-replay", "Muon, dropout 0.1 at the end of blocks", 5, {"dropout": 0.1}),
    ("hopper-medium-replay", "Muon, 2 layers", 5, {"n_layer": 2}),
    ("hopper-medium-replay", "Muon, window of 5", 5, {"T": 5, "batch": 32}),
    ("hopper-medium-replay", "schedule-free AdamW", 5, {"lr": 5e-3, "schedule_free": True}),
    ("humanoid", "AdamW", 5, ADAMW),
    ("humanoid", "Muon", 5, {}),
    ("humanoid", "Muon, smooth embeddings", 5, {"smooth": 30.0}),
    ("humanoid", "Muon, batch 16", 5, {"batch": 16}),
]


def changed(exp: Experiment, changes: dict) -> Experiment:
    """The experiment with other fields of its model or its training."""
    model = {name: value for name, value in changes.items() if name in ("dropout", "n_layer", "T", "smooth")}
    training = {name: value for name, value in changes.items() if name in ("optimiser", "lr", "batch")}
    if changes.get("schedule_free"):
        training["final_lr"] = 1.0  # constant after the warm-up
    return replace(exp, model=replace(exp.model, **model), train=replace(exp.train, **training), past=0)


def curve(exp: Experiment, minutes: float, schedule_free: bool) -> Iterator[dict]:
    """Train for `minutes` of processor time; yields the points of the learning curve."""
    training, _ = store.windows(exp)
    # Every setting is scored on the same windows of five transitions, which all of them can read.
    held_out = store.windows(changed(exp, {"T": 5}))[1]
    torch.manual_seed(0)
    model, dtype, config = GPT(exp.model), train.fast_dtype(torch.device("cpu")), exp.train
    optimisers = train.optimisers(model, config)
    if schedule_free:
        import schedulefree

        decay = {"betas": config.betas, "weight_decay": config.weight_decay}
        optimisers = [schedulefree.AdamWScheduleFree(model.parameters(), lr=config.lr, **decay)]
    order, used, update, points = torch.randperm(len(training)), 0.0, 0, 0
    while points < POINTS:
        for optimiser in optimisers if schedule_free else []:
            optimiser.train()
        model.train()
        start = time.process_time()
        while (now := used + time.process_time() - start) < 60 * minutes * (points + 1) / POINTS:
            at = update * config.batch % (len(training) - config.batch)
            scheduled = int(now / (60 * minutes) * config.updates)  # the schedule follows the time
            train.step(model, optimisers, training.batch(order[at : at + config.batch]), config, scheduled, dtype)
            update += 1
        used, points = now, points + 1
        for optimiser in optimisers if schedule_free else []:
            optimiser.eval()
        tokens = update * config.batch * training.length
        yield {"minutes": used / 60, "updates": update, "million_tokens": tokens / 1e6, "dtype": str(dtype)[6:],
               "own_window_nats": train.evaluate(model, store.windows(exp)[1], 256) if points == POINTS else None,
               "held_out_nats": train.evaluate(model, held_out, 512)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted({task for task, *_ in SETTINGS}))
    arguments = parser.parse_args()
    rows = pd.read_csv(PATH).to_dict("records") if PATH.exists() else []
    for task, setting, minutes, changes in SETTINGS:
        known = any((row["task"], row["setting"], row["budget"]) == (task, setting, minutes) for row in rows)
        schedule_free = changes.get("schedule_free", False)
        if known or arguments.task not in (None, task):
            continue
        if schedule_free and not importlib.util.find_spec("schedulefree"):
            continue
        exp = changed(experiments.get(EXPERIMENTS[task]), {"smooth": 0.0} | changes)
        about = {"task": task, "setting": setting, "budget": minutes, "batch": exp.train.batch, "window": exp.model.T}
        for point in curve(exp, minutes, schedule_free):
            rows.append(about | point)
            print(rows[-1], flush=True)
        files.write_aside(PATH, lambda path: pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
