"""Intervals."""

import numpy as np


def bootstrap(*groups: np.ndarray, level: float = 0.9, samples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of (n,) independent values; of several groups, of the mean of their
    means, each drawn anew from its own values (stratified, as in Agarwal et al. 2021)."""
    if not groups or not all(len(x) for x in groups):
        raise ValueError("no values to bootstrap; at least one is needed in each group")
    rng, groups = np.random.default_rng(seed), [np.asarray(x, float) for x in groups]
    means = np.mean([x[rng.integers(len(x), size=(samples, len(x)))].mean(1) for x in groups], axis=0)
    return tuple(float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion."""
    from scipy.stats import norm

    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}; expected 0 <= successes <= n and n > 0")
    z, p = norm.ppf((1 + level) / 2), successes / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float((centre - half) / (1 + z**2 / n)), float((centre + half) / (1 + z**2 / n))
