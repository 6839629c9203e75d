"""Tests of planning by random shooting where the model and the values are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from ttlib.baselines import cloning, shooting
from ttlib.data import Episodes
from ttlib.search import Plan


class Known:
    """Two members that know s' = s + a and r = -|s + a|, so that sampling changes nothing."""

    config = SimpleNamespace(members=2)

    def predict(self, states, actions):
        s = states + actions
        mean = np.hstack([s, -np.abs(s).sum(1, keepdims=True)])
        return np.stack([mean, mean]), np.zeros((2, *mean.shape))


def test_shooting_takes_the_sequence_of_greatest_discounted_value():
    plan, states = Plan(horizon=3, beam_width=5, expansions=4, gamma=0.9), np.array([[2.0], [-1.0], [0.3]])
    value = SimpleNamespace(act=lambda s: 3 - np.abs(s))
    agent = shooting.RandomShooting(Known(), value, plan, np.array([-1.0]), np.array([1.0]))
    agent.reset((0, 1, 2))
    actions, record = agent.act(states)
    drawn = np.stack([np.random.default_rng(seed).uniform([-1.0], [1.0], (3, 20, 1))[..., 0] for seed in range(3)], 1)
    for i, s in enumerate(states[:, 0]):
        worth = []
        for k in range(20):
            at = s + np.cumsum(drawn[:, i, k])
            worth.append(sum(0.9**t * -abs(x) for t, x in enumerate(at)) + 0.9**3 * (3 - abs(at[-1])))
        assert record["value"][i] == pytest.approx(max(worth))
        assert actions[i, 0] == drawn[0, i, int(np.argmax(worth))]


def test_a_sequence_that_diverges_is_never_chosen():
    def predict(states, actions):
        mean, std = Known().predict(states, actions)
        mean[:, actions[:, 0] > 0] = np.inf
        return mean, std

    value = SimpleNamespace(act=lambda s: np.zeros_like(s))
    plan = Plan(horizon=1, beam_width=16, expansions=2)
    dynamics = SimpleNamespace(predict=predict, config=Known.config)
    agent = shooting.RandomShooting(dynamics, value, plan, np.array([-1.0]), np.array([1.0]))
    agent.reset(range(4))
    assert (agent.act(np.ones((4, 1)))[0] < 0).all()


def test_values_of_states_are_fitted_on_their_own_scale():
    """The reward-to-go of a constant reward is known: V must be near it, although the network fits a scaled one."""
    rng = np.random.default_rng(0)
    starts, time = np.arange(0, 601, 50), np.tile(np.arange(50), 12)
    states = np.stack([time / 50, rng.standard_normal(len(time))], 1)
    made = Episodes(states, rng.uniform(-1, 1, (len(time), 1)), np.full(len(time), 100.0), starts, np.zeros(12, bool))
    value, _ = cloning.fit(made, made, cloning.MLPConfig(2000, 3e-3, gamma=1.0))
    expected = 100.0 * (50 - time)
    assert np.abs(value.act(states)[:, 0] - expected).mean() < 0.05 * expected.max()
