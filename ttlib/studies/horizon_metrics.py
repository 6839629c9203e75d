"""Figure 2: log-likelihood of held-out states under the marginals that a model predicts for each step of a horizon.

A marginal is a table of bin masses (steps, N, V).  It is either the mean of a model's predictive distributions (scoring
`mixture`) or the histogram of its samples (scoring `histogram`).  Both are smoothed in the same way and scored on the
same bins.  An ensemble also has a density without bins (scoring `density`).

Trajectories are arrays (n, steps, N) of states in raw units, NaN after their end.  They do not hold the state in which
all of them start.  Scores are in nats.
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

EVERY_SEED = -1  # the value of the column `seed` in rows that pool all training seeds


@dataclass(frozen=True)
class Grid:
    """The uniform bins of the N state dimensions in raw units."""

    edges: np.ndarray  # (N, V + 1)
    varies: np.ndarray  # (N,) bool; a constant has no density, so every score leaves it out

    @property
    def width(self) -> np.ndarray:
        """The widths of the bins, (N, V)."""
        return np.diff(self.edges, axis=1)

    def bins(self, x: np.ndarray) -> np.ndarray:
        """Return the bins in [0, V) of states (..., N), in the same shape."""
        # Departs from the paper: the first and the last bin reach to infinity, where it has no mass at all.
        return np.stack([np.searchsorted(e[1:-1], x[..., i], side="right") for i, e in enumerate(self.edges)], -1)

    def out_of_range(self, x: np.ndarray) -> np.ndarray:
        """Return the fraction of the values of trajectories outside [low, high), (steps,)."""
        outside = ((x < self.edges[:, 0]) | (x >= self.edges[:, -1]))[..., self.varies].mean(2)
        return _mean(np.where(_alive(x), outside, np.nan))


def grid(tokenizer: Tokenizer, states: np.ndarray) -> Grid:
    """Return a tokenizer's bins.  Raises ValueError if they are not uniform, or if no dimension of states varies."""
    if tokenizer.kind != "uniform":
        raise ValueError(
            f"bins of kind {tokenizer.kind!r}; expected 'uniform', on which all models are compared: "
            "fit the tokenizer with kind='uniform'"
        )
    if not (varies := np.ptp(states, axis=0) > 0).any():
        raise ValueError(
            f"all {states.shape[1]} state dimensions are constant; expected at least one that varies, "
            "since a constant has no density: give more or other states"
        )
    return Grid(tokenizer.edges[tokenizer.transition.state].cpu().numpy(), varies)


def trajectories(data: Episodes, steps: int) -> np.ndarray:
    """Return the states 1, ..., steps of every episode as trajectories (episodes, steps, N), float64."""
    states = np.full((len(data), steps + 1, data.states.shape[1]), np.nan)
    for row, start, length in zip(states, data.starts[:-1], np.minimum(data.lengths, steps + 1), strict=True):
        row[:length] = data.states[start : start + length]
    return states[:, 1:]


def _alive(x: np.ndarray) -> np.ndarray:
    """Return which states of trajectories exist and are finite, (n, steps) bool."""
    return np.isfinite(x).all(2)


def alive(x: np.ndarray) -> np.ndarray:
    """Return how many trajectories have not ended at each step, (steps,)."""
    return _alive(x).sum(0)


def histogram(grid: Grid, samples: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Return the masses (steps, N, V) of sampled trajectories: the number of samples in each bin, divided by n.

    A state with a value that is not finite is in no bin.  For a model, n = len(samples): samples that diverge lower its
    masses.  For true rollouts, n = alive(samples), (steps,): references too are scored only until they end.
    """
    (_, steps, N), V, living = samples.shape, grid.width.shape[1], _alive(samples)
    cells = grid.bins(samples) + V * np.arange(N) + N * V * np.arange(steps)[:, None]
    counts = np.bincount(cells[living].ravel(), minlength=steps * N * V).reshape(steps, N, V)
    return counts / np.maximum(np.reshape(n, (-1, 1, 1)), 1)


def log_likelihood(grid: Grid, mass: np.ndarray, n: int | np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return log p of reference trajectories (k, steps, N) as a density in raw units: (k, steps), NaN after their end.

    mass (steps, N, V) comes from n samples, as in `histogram`.  One more sample is spread evenly over all V bins, so
    that no bin is empty: p = (n * mass + 1/V) / (n + 1), divided by the width of the bin.
    """
    (steps, N, V), n = mass.shape, np.reshape(n, (-1, 1, 1))
    density = np.log((n * mass + 1 / V) / (n + 1)) - np.log(grid.width)
    log_p = density[np.arange(steps)[:, None], np.arange(N), grid.bins(references)]
    return np.where(_alive(references), log_p[..., grid.varies].sum(2), np.nan)


def counts_by_age(grid: Grid, data: Episodes) -> np.ndarray:
    """Count the states of each age, in steps since the start of their episode, in each bin: (longest, N, V)."""
    (N, V), longest = grid.width.shape, data.lengths.max()
    age = np.arange(len(data.states)) - np.repeat(data.starts[:-1], data.lengths)
    cells = grid.bins(data.states) + V * np.arange(N) + N * V * age[:, None]
    return np.bincount(cells.ravel(), minlength=longest * N * V).reshape(longest, N, V)


def _share(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return masses and numbers of states, as `histogram` and `log_likelihood` have them, of counts (steps, N, V)."""
    n = counts[:, 0].sum(1)
    return counts / np.maximum(n, 1)[:, None, None], n


# Three lines that know no model.  Each gives the masses (steps, N, V) of the states t = 1, ..., steps after a start,
# and the number of training states (steps,) that they come from.


def constant(counts: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the histogram of all training states, the same at each step; `counts` are those of `counts_by_age`."""
    return _share(np.repeat(counts.sum(0, keepdims=True), steps, axis=0))


def clock(counts: np.ndarray, age: int, steps: int, radius: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return the histograms of the training states that are as old as the state to predict, within `radius` steps.

    age: that of the start, in steps since its episode began.  At an age that no training episode reaches, n is 0.
    """
    return _share(np.stack([counts[max(a - radius, 0) : a + radius + 1].sum(0) for a in age + 1 + np.arange(steps)]))


def analog(
    grid: Grid, data: Episodes, start: np.ndarray, steps: int, count: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Return the histograms of what followed the `count` training states that are nearest to the start (N,).

    Distances are those of states that are divided by the deviation of each dimension.  What ended is no longer counted.
    """
    scale = data.states[:, grid.varies].std(0)
    distance = (((data.states - start)[:, grid.varies] / scale) ** 2).sum(1)
    nearest = np.argsort(distance, kind="stable")[:count]
    rows = nearest[:, None] + 1 + np.arange(steps)
    end = np.repeat(data.starts[1:], data.lengths)[nearest, None]
    future = np.where((rows < end)[..., None], data.states[np.minimum(rows, end - 1)], np.nan)
    n = alive(future)
    return histogram(grid, future, n), n


def by_start(score: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the conditional score: the mean over the references of each start, (k, steps), (k,) -> (starts, steps)."""
    return np.stack([_mean(score[start == s]) for s in np.unique(start)])


def oracle(grid: Grid) -> float:
    """Return the score of all mass in the right bin (Appendix B): sum_i log(V / (high_i - low_i))."""
    return float(-np.log(grid.width[grid.varies].mean(1)).sum())


def uniform(grid: Grid) -> float:
    """Return the score of equal mass in all bins: -sum_i log(high_i - low_i)."""
    return float(-np.log(grid.width[grid.varies].sum(1)).sum())


def bin_mass(edges: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Integrate a mixture of Gaussians over bins with edges (N, V + 1), one dimension at a time -> (N, V).

    mean, std: (..., N), those of the mixture's equally likely components, of which those that are not finite have no
    mass.
    """
    mass = np.empty((len(edges), edges.shape[1] - 1))
    for i, edge in enumerate(edges):
        m, s = _finite(mean[..., i], std[..., i])
        # Departs from the paper: edge bins reach to infinity, so that what leaves the data's range keeps its mass.
        z = (np.concatenate([[-np.inf], edge[1:-1], [np.inf]]) - m[:, None]) / s[:, None]
        # The nearer tail keeps its digits.  Far from the mean, 1 - P(x < edge) would lose them.
        tail, above = ndtr(-np.abs(z)), z > 0
        around = above[:, 1:] & ~above[:, :-1]  # the mean lies in this bin
        inside = np.where(around, 1 - tail[:, 1:] - tail[:, :-1], np.abs(np.diff(tail)))
        mass[i] = inside.sum(0) / mean[..., i].size
    return mass


def marginal_log_density(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return the log-density of a mixture of Gaussians, as in `bin_mass`, of each dimension of x (n, N): (n, N)."""
    density = np.empty(x.shape)
    for i in range(x.shape[1]):
        m, s = _finite(mean[..., i], std[..., i])
        log_p = ensemble.log_normal(x[:, i], m[:, None], s[:, None])
        density[:, i] = logsumexp(log_p, axis=0) - math.log(mean[..., i].size) if len(m) else -np.inf
    return density


def _finite(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and standard deviations of the components for which both are finite."""
    finite = np.isfinite(mean) & np.isfinite(std)
    return mean[finite], std[finite]


class GaussianMarginals:
    """The ensemble's mixture of Gaussians at each step, scored while `ensemble.sample` visits it.

    mass          (steps, N, V), for `log_likelihood`
    log_density   (k, steps), NaN after their end: log p of the references (k, steps, N) under the mixture without bins
    """

    def __init__(self, grid: Grid, references: np.ndarray):
        self.grid, self.references = grid, references
        self.mass = np.zeros((references.shape[1], *grid.width.shape))
        self.log_density = np.full(references.shape[:2], np.nan)

    def visit(self, t: int, mean: np.ndarray, std: np.ndarray) -> None:
        """Score step t = 1, 2, ...: means and standard deviations (..., N) of its equally likely components."""
        self.mass[t - 1] = bin_mass(self.grid.edges, mean, std)
        x, varies = self.references[:, t - 1], self.grid.varies
        living = np.isfinite(x).all(1)
        density = marginal_log_density(x[living][:, varies], mean[..., varies], std[..., varies])
        self.log_density[living, t - 1] = density.sum(1)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean (steps,) of values (n, steps) without the NaN among them; NaN where all are NaN."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


def interval(values: np.ndarray, level: float = 0.95, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """Return a bootstrap interval (2, steps) of the mean of (seeds, k, steps), of which seeds and k are resampled."""
    rng, (seeds, k, steps) = np.random.default_rng(seed), values.shape
    means = np.empty((samples, steps))
    for mean in means:
        drawn = values[rng.integers(seeds, size=seeds)][:, rng.integers(k, size=k)]
        mean[:] = _mean(drawn.reshape(-1, steps))
    # This method takes one of the means.  It never interpolates, which minus infinity would not allow.
    return np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")


def rows(values: Mapping[int, np.ndarray], grid: Grid, references: np.ndarray, **columns) -> list[dict]:
    """Return the rows of `fig2_error_compounding.csv`: a mean and its 95% interval for each step t = 1, 2, ...

    values maps each training seed to scores (k, steps).  If there are several seeds, further rows pool all of them.
    """
    scores = {seed: one[None] for seed, one in values.items()}
    if len(values) > 1:
        scores[EVERY_SEED] = np.stack(list(values.values()))
    outside, living = grid.out_of_range(references), alive(references)
    table = []
    for seed, score in scores.items():
        mean, (low, high) = _mean(score.reshape(-1, score.shape[2])), interval(score)
        table += [
            {**columns, "seed": seed, "t": t + 1, "log_likelihood": mean[t], "low": low[t], "high": high[t],
             "out_of_range": outside[t], "alive": int(living[t])}
            for t in range(len(mean))
        ]  # fmt: skip
    return table


def leads(ours: np.ndarray, theirs: np.ndarray, **columns) -> list[dict]:
    """Return the rows of `fig2_leads.csv`: how far the scores `ours` are above `theirs`, as a mean and a 95% interval.

    Both are (seeds, k, steps) and score the same k references.  There is a row for each step, one for the second half
    of the steps and one for all steps, each from step `first` to step `last`.  The interval is that of the difference.
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


def bounds(grid: Grid, references: np.ndarray, **columns) -> list[dict]:
    """Return the rows of the models `oracle` and `uniform`, whose scores are the same at every step."""
    table = []
    for model, score in {"oracle": oracle(grid), "uniform": uniform(grid)}.items():
        values = {0: np.where(_alive(references), score, np.nan)}
        table += rows(values, grid, references, model=model, **columns)
    return table


def horizons(table: pd.DataFrame, losses: tuple[float, ...] = (10, 50, 100)) -> pd.DataFrame:
    """Return the first t at which each model of Figure 2's rows is `lost` nats below the simulator, NaN for never."""
    simulator = table[table.model == "simulator"].set_index(["panel", "t"]).log_likelihood
    curves = table[table.model != "simulator"].join(simulator.rename("true"), on=["panel", "t"])
    by = [curves[name] for name in ("panel", "model", "scoring", "seed")]
    first = {lost: curves.t.where(curves.true - curves.log_likelihood >= lost).groupby(by).min() for lost in losses}
    return pd.DataFrame(first).rename_axis(columns="lost").stack(future_stack=True).rename("t").reset_index()
