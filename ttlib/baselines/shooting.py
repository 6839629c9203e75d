"""Planning by random shooting through the Gaussian ensemble: the planner that Section 3.2 says exploits its model."""

import numpy as np
import torch

from ttlib import data
from ttlib.baselines import cloning, ensemble
from ttlib.baselines.ensemble import Ensemble, EnsembleConfig
from ttlib.data import Episodes
from ttlib.search import Plan


def fit(
    training: Episodes, held_out: Episodes, config: EnsembleConfig, gamma: float, updates: int
) -> tuple[Ensemble, cloning.MLP]:
    """Dynamics with rewards, and V(s): the expected discounted return from a state on, of the data's policies."""
    parts = [training, held_out]
    made, _ = ensemble.fit(*(ensemble.transitions(part) for part in parts), config)
    values = [data.reward_to_go(part.rewards, part.starts, gamma)[:, None] for part in parts]
    scale = values[0].std() + 1e-6
    value, _ = cloning.fit(
        training.states, values[0] / scale, held_out.states, values[1] / scale,
        seed=config.seed, updates=updates, bounded=False,
    )  # fmt: skip
    with torch.no_grad():  # the network's last layer gives the scale back
        value.net[-1].weight *= scale
        value.net[-1].bias *= scale
    return made, value


class RandomShooting:
    """As many action sequences as the search of `plan` has candidates, each of its horizon, all drawn uniformly; the
    first action of the one of greatest value is taken.

    A sequence is rolled out once, by TS-1.  Its value is sum_{k<h} gamma^k r_k + gamma^h V(s_h).
    """

    def __init__(self, made: Ensemble, value: cloning.MLP, plan: Plan, low: np.ndarray, high: np.ndarray, seed: int):
        self.made, self.value, self.plan, self.low, self.high = made, value, plan, low, high
        self.rng = np.random.default_rng(seed)

    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """states (E, N) -> actions (E, M) and the value predicted, (E,)."""
        E, K, h = len(states), self.plan.plans * self.plan.candidates, self.plan.horizon
        actions = self.rng.uniform(self.low, self.high, (h, E * K, len(self.low)))
        s, value = np.repeat(states, K, axis=0), np.zeros(E * K)
        for t in range(h):
            mean, std = self.made.predict(s, actions[t])
            own = (self.rng.integers(len(mean), size=E * K), np.arange(E * K))
            found = mean[own] + std[own] * self.rng.standard_normal(mean.shape[1:])
            s, value = found[:, :-1], value + self.plan.gamma**t * found[:, -1]
        value = (value + self.plan.gamma**h * self.value.act(s)[:, 0]).reshape(E, K)
        best = np.where(np.isfinite(value), value, -np.inf).argmax(1)
        return actions[0].reshape(E, K, -1)[np.arange(E), best], {"value": value[np.arange(E), best]}

    def observe(self, rewards: np.ndarray, going_on: np.ndarray) -> None:
        """Nothing is remembered."""
