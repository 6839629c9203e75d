"""Figure 2: log-likelihood of held-out states under the marginals that a model predicts at each step of a horizon.

A marginal is a table of bin masses (steps, N, V): the mean of a model's predictive distributions (scoring `mixture`)
or the histogram of its samples (`histogram`).  Both are smoothed alike and scored on the same bins.  An ensemble has
a plain density too (`density`).  Trajectories are (n, steps, N), without the fixed start, NaN after their end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp, ndtr

from ttlib.baselines import ensemble
from ttlib.data import Episodes
from ttlib.tokenizer import Tokenizer

EVERY_SEED = -1  # in the column `seed`: all training seeds together


@dataclass(frozen=True)
class Grid:
    """Uniform bins of the N state dimensions in raw units, edges (N, V + 1), and which of them vary, (N,) bool:
    a constant has no density and is left out of every score."""

    edges: np.ndarray
    varies: np.ndarray

    @property
    def width(self) -> np.ndarray:
        """(N, V)"""
        return np.diff(self.edges, axis=1)

    def bins(self, x: np.ndarray) -> np.ndarray:
        """x (..., N) -> (..., N) bins in [0, V)."""
        # Departs from the paper: the first and the last bin reach to infinity, where it has no mass at all.
        return np.stack([np.searchsorted(e[1:-1], x[..., i], side="right") for i, e in enumerate(self.edges)], -1)

    def out_of_range(self, x: np.ndarray) -> np.ndarray:
        """Trajectories -> (steps,) share of their values outside [low, high)."""
        outside = ((x < self.edges[:, 0]) | (x >= self.edges[:, -1]))[..., self.varies].mean(2)
        return _mean(np.where(_alive(x), outside, np.nan))


def grid(tokenizer: Tokenizer, states: np.ndarray) -> Grid:
    """The bins of a tokenizer; states (n, N), those it was fitted to, say which dimensions vary.

    ValueError if the bins are not uniform, or if nothing varies.
    """
    if tokenizer.kind != "uniform":
        raise ValueError(f"bins of kind {tokenizer.kind!r}; expected 'uniform', on which all models are compared")
    if not (varies := np.ptp(states, axis=0) > 0).any():
        raise ValueError(f"all {states.shape[1]} state dimensions are constant: there is nothing to score")
    return Grid(tokenizer.edges[tokenizer.transition.state].cpu().numpy(), varies)


def trajectories(data: Episodes, steps: int) -> np.ndarray:
    """The states 1, ..., steps of every episode as trajectories, float64."""
    found = np.full((len(data), steps + 1, data.states.shape[1]), np.nan)
    for row, start, length in zip(found, data.starts[:-1], np.minimum(data.lengths, steps + 1), strict=True):
        row[:length] = data.states[start : start + length]
    return found[:, 1:]


def _alive(x: np.ndarray) -> np.ndarray:
    return np.isfinite(x).all(2)


def alive(x: np.ndarray) -> np.ndarray:
    """Trajectories -> (steps,) how many have not ended."""
    return _alive(x).sum(0)


def histogram(on: Grid, samples: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Masses (steps, N, V) of sampled trajectories: their number in each bin over n, a number or (steps,).

    A state with a value that is not finite is in no bin.  For a model n = len(samples), so that samples that
    diverge lower its masses; for true rollouts n = alive(samples), as references are scored while they live.
    """
    (_, steps, N), V, kept = samples.shape, on.width.shape[1], _alive(samples)
    cells = on.bins(samples) + V * np.arange(N) + N * V * np.arange(steps)[:, None]
    counts = np.bincount(cells[kept].ravel(), minlength=steps * N * V).reshape(steps, N, V)
    return counts / np.maximum(_per_step(n), 1)


def _per_step(n: int | np.ndarray) -> np.ndarray:
    return np.asarray(n).reshape(-1, 1, 1)


def log_likelihood(on: Grid, mass: np.ndarray, n: int | np.ndarray, references: np.ndarray) -> np.ndarray:
    """log p of reference trajectories (k, steps, N) in nats, as a density in raw units -> (k, steps), NaN once ended.

    mass (steps, N, V) from n samples, as in `histogram`.  Beside these one more sample is spread over all V bins,
    so that none is empty: p = (n * mass + 1/V) / (n + 1).
    """
    (steps, N, V), n = mass.shape, _per_step(n)
    density = np.log((n * mass + 1 / V) / (n + 1)) - np.log(on.width)
    found = density[np.arange(steps)[:, None], np.arange(N), on.bins(references)]
    return np.where(_alive(references), found[..., on.varies].sum(2), np.nan)


def oracle(on: Grid) -> float:
    """Appendix B, all mass in the right bin: sum_i log(V / (high_i - low_i)).  No binned score exceeds it."""
    return float(-np.log(on.width[on.varies].mean(1)).sum())


def uniform(on: Grid) -> float:
    """Equal mass in all bins, the floor: -sum_i log(high_i - low_i)."""
    return float(-np.log(on.width[on.varies].sum(1)).sum())


def bin_mass(edges: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """A mixture of Gaussians integrated over bins, each dimension for itself.

    edges: (N, V + 1); the first and the last bin reach to infinity.  mean, std: (..., N), the mixture's equally
    likely components; one that is not finite has no mass.  -> (N, V), rows that sum to the share that is finite.
    """
    mass = np.empty((len(edges), edges.shape[1] - 1))
    for i, edge in enumerate(edges):
        m, s = _finite(mean[..., i], std[..., i])
        # Departs from the paper: edge bins reach to infinity, so that what leaves the data's range keeps its mass.
        z = (np.concatenate([[-np.inf], edge[1:-1], [np.inf]]) - m[:, None]) / s[:, None]
        # From the nearer tail: far out, 1 - P(x < edge) would have lost its digits.
        tail, above = ndtr(-np.abs(z)), z > 0
        around = above[:, 1:] & ~above[:, :-1]
        whole = np.where(around, 1 - tail[:, 1:] - tail[:, :-1], np.abs(np.diff(tail)))
        mass[i] = whole.sum(0) / mean[..., i].size
    return mass


def marginal_log_density(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The same mixture as a density.  x (n, N), mean, std (..., N) -> (n, N) nats, each dimension for itself."""
    found = np.empty(x.shape)
    for i in range(x.shape[1]):
        m, s = _finite(mean[..., i], std[..., i])
        log_p = ensemble.log_normal(x[:, i], m[:, None], s[:, None])
        found[:, i] = logsumexp(log_p, axis=0) - math.log(mean[..., i].size) if len(m) else -np.inf
    return found


def _finite(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.isfinite(mean) & np.isfinite(std)
    return mean[kept], std[kept]


class GaussianMarginals:
    """The ensemble's mixture of Gaussians at each step, scored as `ensemble.sample` visits it.

    references: trajectories (k, steps, N).  mass (steps, N, V) is for `log_likelihood`; log_density (k, steps), NaN
    once ended, is the references' under the mixture without bins: it knows no oracle.
    """

    def __init__(self, on: Grid, references: np.ndarray):
        self.on, self.references = on, references
        self.mass = np.zeros((references.shape[1], *on.width.shape))
        self.log_density = np.full(references.shape[:2], np.nan)

    def visit(self, t: int, mean: np.ndarray, std: np.ndarray) -> None:
        """Step t = 1, 2, ...: means and deviations (..., N) of its equally likely components."""
        self.mass[t - 1] = bin_mass(self.on.edges, mean, std)
        x, varies = self.references[:, t - 1], self.on.varies
        living = np.isfinite(x).all(1)
        found = marginal_log_density(x[living][:, varies], mean[..., varies], std[..., varies])
        self.log_density[living, t - 1] = found.sum(1)


def _mean(values: np.ndarray) -> np.ndarray:
    """(n, steps) -> (steps,), NaN left out; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


def interval(values: np.ndarray, level: float = 0.95, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """Percentile bootstrap of the mean over training seeds and references, whole trajectories resampled.

    values (seeds, k, steps), NaN once ended -> low and high (2, steps).
    """
    rng, (seeds, k, steps) = np.random.default_rng(seed), values.shape
    means = np.empty((samples, steps))
    for mean in means:
        drawn = values[rng.integers(seeds, size=seeds)][:, rng.integers(k, size=k)]
        mean[:] = _mean(drawn.reshape(-1, steps))
    # A mean may be minus infinity, between which and a number nothing can be interpolated.
    return np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")


def rows(values: Mapping[int, np.ndarray], on: Grid, references: np.ndarray, **columns) -> list[dict]:
    """Rows of `fig2_error_compounding.csv`: mean and 95% interval at t = 1, 2, ... of each training seed's values
    (k, steps), and of all seeds together where there are several.  columns: panel, model, scoring."""
    shown = {seed: found[None] for seed, found in values.items()}
    if len(values) > 1:
        shown[EVERY_SEED] = np.stack(list(values.values()))
    outside, living = on.out_of_range(references), alive(references)
    table = []
    for seed, found in shown.items():
        mean, (low, high) = _mean(found.reshape(-1, found.shape[2])), interval(found)
        table += [
            {**columns, "seed": seed, "t": t + 1, "log_likelihood": mean[t], "low": low[t], "high": high[t],
             "out_of_range": outside[t], "alive": int(living[t])}
            for t in range(len(mean))
        ]  # fmt: skip
    return table


def leads(ours: np.ndarray, theirs: np.ndarray, **columns) -> list[dict]:
    """Rows of `fig2_leads.csv`: how far the scores `ours` are above `theirs`, both (seeds, k, steps) and of the same k
    references: mean and 95% interval at each step, over the second half of the steps and over all (`first` to `last`).

    The interval is of the difference: what makes a reference hard for both is not in it.  columns: panel, model, other.
    """
    gap = ours - theirs
    steps = gap.shape[2]
    spans = [(t, t) for t in range(1, steps + 1)] + [(steps // 2 + 1, steps), (1, steps)]
    flat = gap.reshape(-1, steps).T
    values = np.stack([_mean(flat[first - 1 : last]) for first, last in spans], 1)
    mean, (low, high) = _mean(values), interval(values.reshape(*gap.shape[:2], len(spans)))
    return [
        {**columns, "first": first, "last": last, "lead": mean[i], "low": low[i], "high": high[i]}
        for i, (first, last) in enumerate(spans)
    ]


def bounds(on: Grid, references: np.ndarray, **columns) -> list[dict]:
    """Rows of the models `oracle` and `uniform`, which are the same at every step.  columns: panel, scoring."""
    same = {"oracle": oracle(on), "uniform": uniform(on)}
    full = {model: {0: np.where(_alive(references), score, np.nan)} for model, score in same.items()}
    return [row for model, values in full.items() for row in rows(values, on, references, model=model, **columns)]


def horizons(table: pd.DataFrame, losses: tuple[float, ...] = (10, 50, 100)) -> pd.DataFrame:
    """The first t at which each model is `lost` nats below the simulator, NaN if at none, from the rows of Figure 2."""
    simulator = table[table.model == "simulator"].set_index(["panel", "t"]).log_likelihood
    found = []
    for keys, curve in table[table.model != "simulator"].groupby(["panel", "model", "scoring", "seed"]):
        gap = simulator.loc[keys[0]].loc[curve.t].to_numpy() - curve.log_likelihood.to_numpy()
        for lost in losses:
            t = curve.t[gap >= lost].min()
            found.append(dict(zip(("panel", "model", "scoring", "seed"), keys, strict=True)) | {"lost": lost, "t": t})
    return pd.DataFrame(found)
