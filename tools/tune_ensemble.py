"""python tools/tune_ensemble.py: which members, width and layers make the best single-step model of the humanoid.

The table is data/tried_ensemble.csv; a killed run goes on after its last fit.  Members are fitted independently, so
the first 3 and 5 of 7 are ensembles too.  Seconds are of one processor, which other work does not lengthen.
coverage90 and rmse_share are means over dimensions; binned_t is what Figure 2 (left) shows at t, TS-1 with 200
samples, in nats.
"""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from ttlib import data, ensemble, envs, experiments, results, stages, tokenizer
from ttlib.ensemble import EnsembleConfig
from ttlib.experiments import HUMANOID

PATH = results.ROOT / "data" / "tried_ensemble.csv"
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
TIMES = (1, 5, 20, 50, 100)


def binned(made: ensemble.Ensemble, training: data.Episodes, reference: data.Episodes, samples: int = 200) -> dict:
    """Log-likelihood of the reference states under the samples' marginals on uniform bins, per time, in nats."""
    steps = torch.from_numpy(training.states).double()
    edges = tokenizer.fit(steps, replace(HUMANOID, M=0, rewards=False)).edges.numpy()
    V, width, found = edges.shape[1] - 1, np.diff(edges)[:, 0], {}
    states = reference.states.reshape(len(reference), -1, HUMANOID.N)
    bins = np.clip((states - edges[:, 0]) // width, 0, V - 1).astype(int)

    def visit(t: int, mean: np.ndarray, std: np.ndarray) -> None:
        if t in TIMES:
            p = (samples * ensemble.bin_mass(edges, mean, std) + 1 / V) / (samples + 1)
            log_p = np.log(p / width[:, None])[np.arange(HUMANOID.N), bins[:, t]]
            found[f"binned_{t}"] = log_p.sum(1).mean()

    policy = envs.policy("humanoid", *envs.recipe("humanoid", "expert").snapshots)
    start = np.repeat(states[:1, 0], samples, axis=0)
    _, lost = ensemble.sample(made, policy, start, max(TIMES), "ts1", np.random.default_rng(0), visit)
    return found | {"not_finite_100": lost[-1] / samples}


def first(made: ensemble.Ensemble, members: int) -> ensemble.Ensemble:
    """The ensemble of its first members."""
    part = ensemble.Ensemble(made.N, made.M, replace(made.config, members=members))
    own = {name for name, _ in made.named_parameters()}
    part.load_state_dict({name: x[:members] if name in own else x for name, x in made.state_dict().items()})
    return part


def main(size: str = "laptop") -> None:
    config, reference = (experiments.regenerated("humanoid", q, size) for q in ("expert", "reference"))
    parts = stages.dataset(config).split(config.held_out, config.seed)
    training, held_out = map(ensemble.transitions, parts)
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
            rows.append(row | binned(made, parts[0], stages.dataset(reference)))
        pd.DataFrame(rows).to_csv(PATH, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
