"""Intervals of means."""

import numpy as np


def bootstrap(*groups: np.ndarray, level: float = 0.9, samples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return a percentile bootstrap interval of the mean of independent values (n,), or of the mean of groups' means.

    Each group is resampled from its own values (Agarwal et al. 2021).  Raises ValueError for an empty group.
    """
    if not groups or not all(len(x) for x in groups):
        raise ValueError("no values to bootstrap; at least one is needed in each group")
    rng, groups = np.random.default_rng(seed), [np.asarray(x, float) for x in groups]
    means = np.mean([x[rng.integers(len(x), size=(samples, len(x)))].mean(1) for x in groups], axis=0)
    return tuple(float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
