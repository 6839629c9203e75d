"""python -m ttlib.commands.tune_hopper: the search for the cheapest training with which planning on hopper pays.

Rollout seeds start at 1000: no report uses them.  Models and rollouts are kept by their content, so a killed
run goes on where it was.  The table is data/tried_hopper.csv.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from ttlib import checkpoint
from ttlib.pipeline import experiments, places, results, rollouts, store
from ttlib.pipeline.experiments import Experiment
from ttlib.search import Plan

SEEDS = tuple(range(1000, 1008))
NAME = "hopper-long"


def shortened(exp: Experiment, tokens: float, T: int = 10, **changes) -> Experiment:
    """The same training over fewer tokens, or with other settings."""
    model, batch = replace(exp.model, T=T), changes.pop("batch", exp.train.batch)
    updates = int(tokens / (batch * model.max_tokens))
    trained = replace(exp.train, updates=updates, batch=batch, **changes)
    plan = replace(exp.plan, horizon=min(exp.plan.horizon, T))
    return replace(exp, name=f"{exp.name}-tried", model=model, train=trained, plan=plan)


def trainings(size: str) -> list[Experiment]:
    v1, released = (experiments.get(NAME, size, profile) for profile in experiments.PROFILES)
    return [
        shortened(v1, 2e6, optimiser="adamw", lr=2e-3, batch=32),
        shortened(v1, 2e6, batch=32),
        shortened(v1, 2e6),
        shortened(v1, 5e6),
        v1,
        released,
    ]


def actings(exp: Experiment) -> list[tuple[str, Experiment]]:
    """Ways to act that are compared: (method, experiment)."""
    filtered = Plan(3, 16, 2, experiments.GAMMA, exp.bins.include_current, "sample", 0.6)
    plans = [filtered] if exp.plan.proposal == "sample" else [exp.plan, filtered]
    if not exp.name.endswith("tried"):
        beam = replace(filtered, proposal="beam", horizon=1, plans=8, candidates=4)
        plans += [beam, replace(beam, horizon=3), replace(filtered, cdf=0.0)]
    ways = [("sampling", exp)] + [("tto", replace(exp, plan=plan)) for plan in plans]
    return ways if exp.name.endswith("tried") else [*ways, ("sampling", replace(exp, past=5))]


def rolled_out(method: str, exp: Experiment) -> pd.DataFrame:
    runs = rollouts.run_rollouts(exp, method, SEEDS)
    row = {"mean": np.mean([run.total for run in runs]), "std": np.std([run.total for run in runs])}
    row |= {"length": np.mean([len(run.rewards) for run in runs]), "n": len(runs)}
    if method == "tto":
        values = pd.DataFrame(rollouts.value_rows(runs, exp))
        row["too_hopeful"] = (values.predicted - values.achieved).mean()
    return pd.DataFrame([row])


def main(size: str = "laptop") -> None:
    rows = []
    for exp in trainings(size):
        store.load_or_train(exp)
        about = checkpoint.about(store.checkpoint_folder(exp))
        for method, tried in actings(exp):
            made = results.table(
                f"tried-{method}",
                size,
                lambda method=method, tried=tried: rolled_out(method, tried),
                config={"method": method, "experiment": tried, "seeds": SEEDS},
                inputs={exp.label: store.weights_key(exp)},
                public=False,
            ).iloc[0]
            plan = tried.plan
            how = f"{plan.proposal}, horizon {plan.horizon}, {plan.plans} x {plan.candidates}"
            how += f", cdf {plan.cdf}" if plan.proposal == "sample" else ""
            rows.append(
                {
                    "profile": exp.profile,
                    "window": exp.model.T,
                    "batch": exp.train.batch,
                    "optimiser": f"{exp.train.optimiser} {exp.train.lr:g}",
                    "million tokens": about["tokens"] / 1e6,
                    "held-out nats": about["held_out_all"],
                    "acting": "sampling" if method == "sampling" else how,
                    "past": tried.past,
                    **made[["n", "mean", "std", "length"]],
                    "too hopeful": made.get("too_hopeful"),
                }
            )
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(places.ROOT / "data" / "tried_hopper.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
