"""Planning by random shooting through the Gaussian ensemble.

Section 3.2 warns that such a planner exploits the errors of its model.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ttlib.baselines.cloning import MLP
from ttlib.baselines.ensemble import Ensemble
from ttlib.search import Plan


class RandomShooting:
    """An agent that draws action sequences uniformly, and takes the first action of the one with the greatest value.

    The number of sequences is that of the candidates in the search of `plan` (beam width times expansions), and their
    length is its horizon h.  Each sequence is rolled out once, by TS-1.  Its value is
    sum_{k<h} gamma^k r_k + gamma^h V(s_h).  The dynamics predict rewards too, and V(s) is the expected
    discounted return from a state under the policies of the data.
    """

    def __init__(self, dynamics: Ensemble, value: MLP, plan: Plan, low: np.ndarray, high: np.ndarray):
        self.dynamics, self.value, self.plan, self.low, self.high = dynamics, value, plan, low, high

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one rollout for each seed, from which its random numbers come."""
        self.rngs = [np.random.default_rng(seed) for seed in seeds]

    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return actions (E, M) for states (E, N), and their predicted values (E,)."""
        E, K, h = len(states), self.plan.beam_width * self.plan.expansions, self.plan.horizon
        actions = self._draw(lambda rng: rng.uniform(self.low, self.high, (h, K, len(self.low))), axis=1)
        s, value = np.repeat(states, K, axis=0), np.zeros(E * K)
        for t in range(h):
            mean, std = self.dynamics.predict(s, actions[t])
            count, _, size = mean.shape
            members = self._draw(lambda rng, count=count: rng.integers(count, size=K))
            drawn = (members, np.arange(E * K))  # a member for each sequence
            outputs = mean[drawn] + std[drawn] * self._draw(lambda rng, size=size: rng.standard_normal((K, size)))
            s, value = outputs[:, :-1], value + self.plan.gamma**t * outputs[:, -1]
        value = (value + self.plan.gamma**h * self.value.act(s)[:, 0]).reshape(E, K)
        best = np.where(np.isfinite(value), value, -np.inf).argmax(1)
        return actions[0].reshape(E, K, -1)[np.arange(E), best], {"value": value[np.arange(E), best]}

    def _draw(self, draw: Callable[[np.random.Generator], np.ndarray], axis: int = 0) -> np.ndarray:
        """Draw from each rollout's generator and join along `axis`."""
        return np.concatenate([draw(rng) for rng in self.rngs], axis=axis)

    def observe(self, rewards: np.ndarray, going_on: np.ndarray) -> None:
        """Keep the random numbers of the rollouts that go on.  (E,) both"""
        self.rngs = [rng for rng, stays in zip(self.rngs, going_on, strict=True) if stays]
