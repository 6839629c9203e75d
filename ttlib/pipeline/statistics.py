"""Intervals of means and of proportions."""

import numpy as np


def bootstrap(*groups: np.ndarray, level: float = 0.9, samples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return a percentile bootstrap interval of the mean of independent values (n,).

    With several groups it is the interval of the mean of their means.  Each group is resampled from its own values
    (stratified, as in Agarwal et al. 2021).  Raises ValueError for an empty group.
    """
    if not groups or not all(len(x) for x in groups):
        raise ValueError("no values to bootstrap; at least one is needed in each group")
    rng, groups = np.random.default_rng(seed), [np.asarray(x, float) for x in groups]
    means = np.mean([x[rng.integers(len(x), size=(samples, len(x)))].mean(1) for x in groups], axis=0)
    return tuple(float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.  Raises ValueError unless 0 <= successes <= n and n > 0."""
    from scipy.stats import norm

    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}; expected 0 <= successes <= n and n > 0")
    z, p = norm.ppf((1 + level) / 2), successes / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float((centre - half) / (1 + z**2 / n)), float((centre + half) / (1 + z**2 / n))
