"""Compare ensembles by members, width and layers: which make the best single-step model of the humanoid.

The table is data/tried_ensemble.csv; a killed run goes on after its last fit.  Members are fitted independently, so
the first 3 and 5 of 7 are ensembles too.  Seconds are of one processor, which other work does not lengthen.
coverage90 and rmse_share are means over dimensions; binned_t is what Figure 2 (left) shows at t, TS-1 with 200
samples, in nats.
"""

import time
from dataclasses import replace

import numpy as np
import pandas as pd

from ttlib.baselines import ensemble
from ttlib.baselines.ensemble import EnsembleConfig
from ttlib.pipeline import experiments, places, store
from ttlib.studies import horizon_metrics, long_horizon

PATH = places.ROOT / "data" / "tried_ensemble.csv"
TRIED = [
    EnsembleConfig(members=7, width=width, layers=layers, updates=4000, batch=128, lr=1.6 / width)
    for width in (100, 200, 400)
    for layers in (3, 4)
]
TRIED += [EnsembleConfig(width=400, layers=3, updates=8000, batch=128, lr=4e-3)]
LEARNING = [(2500, 256, 1e-3), (2500, 256, 2e-3), (2500, 256, 4e-3), (2500, 256, 8e-3), (2500, 256, 1.6e-2),
            (5000, 128, 4e-3), (5000, 128, 8e-3), (9000, 64, 4e-3)]  # fmt: skip
TRIED += [EnsembleConfig(updates=updates, batch=batch, lr=lr) for updates, batch, lr in LEARNING]
SETTINGS = ("members", "width", "layers", "updates", "batch", "lr")
TIMES, SAMPLES = (1, 5, 20, 50, 100), 200


def binned(made: ensemble.Ensemble, on: horizon_metrics.Grid, size: str) -> dict:
    """The scores of TS-1 at TIMES, and the share of its trajectories that are not finite at the last."""
    references, start = long_horizon.references(size, max(TIMES))
    marginals, starts = (
        horizon_metrics.GaussianMarginals(on, references),
        np.repeat(start[None].astype(float), SAMPLES, axis=0),
    )

    def visit(t: int, *moments: np.ndarray) -> None:
        if t in TIMES:
            marginals.visit(t, *moments)

    rng = np.random.default_rng(0)
    _, lost = ensemble.sample(made, long_horizon.policy(), starts, max(TIMES), "ts1", rng, visit)
    nats = horizon_metrics.log_likelihood(on, marginals.mass, SAMPLES, references).mean(0)
    return {f"binned_{t}": nats[t - 1] for t in TIMES} | {f"not_finite_{max(TIMES)}": lost[-1] / SAMPLES}


def first(made: ensemble.Ensemble, members: int) -> ensemble.Ensemble:
    """The ensemble of its first members."""
    part = ensemble.Ensemble(made.N, made.M, replace(made.config, members=members))
    own = {name for name, _ in made.named_parameters()}
    part.load_state_dict({name: x[:members] if name in own else x for name, x in made.state_dict().items()})
    return part


def main(size: str = "laptop") -> None:
    exp = experiments.get("humanoid", size)
    training, held_out = map(ensemble.transitions, store.dataset(exp.data).split(exp.data.held_out, exp.data.seed))
    rows = pd.read_csv(PATH).to_dict("records") if PATH.exists() else []
    done = {tuple(row[name] for name in SETTINGS) for row in rows}
    for tried in TRIED:
        if tuple(getattr(tried, name) for name in SETTINGS) in done:
            continue
        start = time.process_time()
        fitted, curve = ensemble.fit(training, held_out, tried)
        seconds = (time.process_time() - start) / tried.members
        linear = ensemble.linear_log_likelihood(fitted, training, held_out)
        for members in {3, 5, 7} if tried.members == 7 else {tried.members}:
            made = first(fitted, members)
            found = ensemble.diagnose(made, held_out)
            row = {name: getattr(made.config, name) for name in SETTINGS}
            row |= {"stopped": curve[-1]["update"], "seconds": seconds * members}
            row |= {"held_out_log_likelihood": found["log_likelihood"], "linear_log_likelihood": linear}
            row |= {"coverage90": found["coverage"].mean(), "rmse_share": found["rmse_share"].mean()}
            rows.append(row | binned(made, long_horizon.grid(exp), size))
        pd.DataFrame(rows).to_csv(PATH, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
