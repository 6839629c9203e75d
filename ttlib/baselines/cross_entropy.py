"""Planning by the cross-entropy method (CEM) through the Gaussian ensemble, as PETS does (Chua et al. 2018)."""

from dataclasses import dataclass

import numpy as np
import torch

from ttlib.baselines.shooting import RandomShooting


@dataclass(frozen=True)
class CEMConfig:
    """How many action sequences are drawn, how many of them the Gaussian is refitted to, and how careful it is."""

    iterations: int = 3
    sequences: int = 64  # of each iteration
    elites: int = 8  # the best sequences of an iteration
    penalty: float = 0.0  # of each standard deviation of s' - s by which the members' next states disagree

    def __post_init__(self):
        if self.iterations < 1 or not 1 <= self.elites <= self.sequences or self.penalty < 0:
            raise ValueError(f"{self}; expected iterations >= 1, 1 <= elites <= sequences and penalty >= 0")


class CrossEntropy(RandomShooting):
    """An agent that draws action sequences from a Gaussian, and refits it to the best ones, several times.

    It takes the first action of the best sequence of all.  Sequences are as long as the horizon h of the plan, and
    actions are clipped to their range.  Each member of the ensemble predicts a trajectory of its own, by its means; the
    value of a sequence is the members' average of sum_{k<h} gamma^k r_k + gamma^h V(s_h), as random shooting has it.
    What is maximised is this value less a penalty on disagreement, which is the standard deviation over members of the
    predicted states, in units of the data's changes of state, averaged over dimensions and discounted like a reward.
    """

    def __init__(self, config: CEMConfig, *shooting):
        super().__init__(*shooting)
        self.config = config

    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return actions (E, M) for states (E, N), and their predicted values (E,), without the penalty."""
        E, M = len(states), len(self.low)
        mean = np.zeros((E, 1, self.plan.horizon, M)) + (self.low + self.high) / 2
        std = np.zeros_like(mean) + (self.high - self.low) / 2
        actions, value, most = np.zeros((E, M)), np.zeros(E), np.full(E, -np.inf)
        for _ in range(self.config.iterations):
            noise = [rng.standard_normal((self.config.sequences, *mean.shape[2:])) for rng in self.rngs]
            drawn = np.clip(mean + std * np.stack(noise), self.low, self.high)
            values, worth = self._evaluate(states, drawn)
            best = np.argsort(-worth, axis=1, kind="stable")[:, : self.config.elites]
            elites = np.take_along_axis(drawn, best[..., None, None], 1)
            mean, std = elites.mean(1, keepdims=True), elites.std(1, keepdims=True)
            first = (np.arange(E), best[:, 0])
            better = worth[first] >= most
            most = np.maximum(worth[first], most)
            value = np.where(better, values[first], value)
            actions = np.where(better[:, None], elites[:, 0, 0], actions)
        return actions, {"value": value}

    def _evaluate(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values, and what is maximised, (E, K) each, for states (E, N) and K sequences of actions (E, K, h, M).

        The latter is -inf for a sequence whose value is not finite.
        """
        (E, K, h, M), members, gamma = actions.shape, self.dynamics.config.members, self.plan.gamma
        s, value = np.repeat(states[None], K, axis=1).repeat(members, axis=0), np.zeros((members, E * K))
        disagreement, scale = np.zeros(E * K), self.dynamics.target_std[: s.shape[-1]].cpu().numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # some trajectories diverge
            for t in range(h):
                s, r = self.predict(s, actions[:, :, t].reshape(E * K, M))
                value = value + gamma**t * r
                disagreement = disagreement + gamma**t * (s / scale).std(0).mean(-1)
            value = value + gamma**h * self.value.act(s.reshape(members * E * K, -1)).reshape(members, E * K)
            worth = value.mean(0) - self.config.penalty * disagreement
        worth = np.where(np.isfinite(worth), worth, -np.inf)
        return value.mean(0).reshape(E, K), worth.reshape(E, K)

    @torch.inference_mode()
    def predict(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what each member predicts for its own states: the next ones (members, B, N), rewards (members, B).

        states: (members, B, N); actions: (B, M), the same for all members.
        """
        members, B, N = states.shape
        x = self.dynamics.inputs(states.reshape(members * B, N), np.tile(actions, (members, 1)))
        mean = self.dynamics(x.view(members, B, -1))[0].double()
        mean = (self.dynamics.target_mean + self.dynamics.target_std * mean).cpu().numpy()
        return states + mean[..., :N], mean[..., N]
