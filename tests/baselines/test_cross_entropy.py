"""Tests of the cross-entropy method where the optimum is known, and beside random shooting."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ttlib.baselines import cloning
from ttlib.baselines.cross_entropy import CEMConfig, CrossEntropy
from ttlib.baselines.ensemble import Ensemble, EnsembleConfig
from ttlib.baselines.shooting import RandomShooting
from ttlib.search import Plan

RANGE = np.full(2, -1.0), np.full(2, 1.0)
LAST = SimpleNamespace(act=lambda s: -np.square(s).sum(1, keepdims=True))  # V(s) = -|s|^2
DYNAMICS = SimpleNamespace(config=SimpleNamespace(members=2), target_std=torch.ones(3))
GAMMA, H = 0.9, 3
MANY = CEMConfig(8, 200, 20)
STATES = np.array([[1.0, -0.5], [0.2, 0.9], [-1.1, 0.3], [0.0, 0.0]])


class LinearQuadratic(CrossEntropy):
    """Every member knows that s' = s + a / 2 and r = -|s|^2 - |a|^2 / 2; `tilt` (members,) moves each one's states."""

    tilt = np.zeros(2)

    def predict(self, states, actions):
        ahead = states + actions / 2 + self.tilt[:, None, None] * np.maximum(actions, 0)
        return ahead, -np.square(states).sum(-1) - np.square(actions).sum(-1) / 2


def agent(config=MANY, kind=LinearQuadratic, h=H, states=STATES):
    made = kind(config, DYNAMICS, LAST, Plan(h, 1, 1, gamma=GAMMA), *RANGE)
    made.reset(range(len(states)))
    return made


def riccati(states):
    """Return the best first actions and the values, by the Riccati equation of one dimension; no bound is active."""
    p = 1.0  # the value of a state is -p s^2
    for _ in range(H):
        gain = -(GAMMA * p / 2) / (0.5 + GAMMA * p / 4)
        p = 1 + 0.5 * gain**2 + GAMMA * p * (1 + gain / 2) ** 2
    return gain * states, -p * np.square(states).sum(1)


def test_it_finds_the_optimum_of_a_linear_quadratic_world_and_random_shooting_does_not():
    best, value = riccati(STATES)
    assert np.abs(best).max() < 1
    actions, record = agent().act(STATES)
    assert np.abs(actions - best).max() < 0.05 and record["value"] == pytest.approx(value, abs=0.01)

    def known(states, actions):
        ahead, rewards = agent().predict(states[None], actions)
        mean = np.concatenate([ahead[0], rewards[0][:, None]], 1)
        return np.stack([mean, mean]), np.zeros((2, *mean.shape))

    dynamics = SimpleNamespace(predict=known, config=DYNAMICS.config)
    shooting = RandomShooting(dynamics, LAST, Plan(H, 8, 200, gamma=GAMMA), *RANGE)  # as many sequences
    shooting.reset(range(len(STATES)))
    assert (shooting.act(STATES)[1]["value"] < record["value"] - 0.02).all()


def test_an_optimum_outside_of_the_range_is_the_bound():
    far = 9 * np.sign(STATES[:2])
    assert (agent(h=1, states=far).act(far)[0] == -np.sign(far)).all()


def test_the_penalty_keeps_it_where_members_agree():
    """The members disagree about positive actions alone, which the far states ask for."""
    far, moved = -2 * np.ones((4, 2)), type("", (LinearQuadratic,), {"tilt": np.array([-0.1, 0.1])})
    for penalty, positive in ((0.0, True), (1000.0, False)):
        actions, record = agent(CEMConfig(8, 200, 20, penalty), moved, 1).act(far)
        assert (actions > 0.5).all() == positive and (actions <= 0).all() != positive
        known = -8 - np.square(actions).sum(1) / 2  # r, and V of the states that the members predict
        ahead = moved.predict(moved, np.stack([far, far]), actions)[0]
        assert record["value"] == pytest.approx(known - GAMMA * np.square(ahead).sum(-1).mean(0))


def test_a_sequence_that_diverges_is_never_chosen():
    class Diverging(LinearQuadratic):
        def predict(self, states, actions):
            ahead, rewards = super().predict(states, actions)
            return ahead, np.where(actions[:, 0] > 0, np.inf, rewards)

    assert (agent(kind=Diverging).act(-np.ones((4, 2)))[0][:, 0] <= 0).all()


def real(penalty=0.5):
    torch.manual_seed(0)
    dynamics = Ensemble(2, 2, EnsembleConfig(members=3, width=8, layers=2, rewards=True))
    for parameter in dynamics.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    dynamics.target_std.mul_(torch.tensor([2.0, 0.1, 5.0]))
    dynamics.target_mean.add_(torch.tensor([0.5, -1.0, 3.0]))
    value = cloning.MLP(torch.zeros(2), torch.ones(2), 1, bounded=False)
    return CrossEntropy(CEMConfig(3, 32, 4, penalty), dynamics, value, Plan(H, 1, 1, gamma=GAMMA), *RANGE)


def test_each_member_predicts_its_own_states():
    made, rng = real(), np.random.default_rng(0)
    states, actions = rng.normal(size=(3, 5, 2)), rng.uniform(-1, 1, (5, 2))
    ahead, rewards = made.predict(states, actions)
    for e in range(3):
        mean = made.dynamics.predict(states[e], actions)[0][e]
        assert np.allclose(ahead[e], mean[:, :2], atol=1e-5) and np.allclose(rewards[e], mean[:, 2], atol=1e-5)


def test_a_rollout_is_the_same_whatever_runs_beside_it():
    """The second of three leaves after a step, and the third acts as it does alone."""
    together, alone = real(), real()
    together.reset((7, 8, 9))
    alone.reset((9,))
    first, last = (together.act(STATES[:3])[0][2], alone.act(STATES[2:3])[0][0])
    assert np.allclose(first, last, atol=1e-5)
    together.observe(np.zeros(3), np.array([True, False, True]))
    alone.observe(np.zeros(1), np.array([True]))
    (a, b), (c, d) = together.act(STATES[[0, 3]]), alone.act(STATES[3:])
    assert np.allclose(a[1], c[0], atol=1e-5) and b["value"][1] == pytest.approx(d["value"][0], rel=1e-5)


@pytest.mark.parametrize("options", [{"iterations": 0}, {"elites": 0}, {"elites": 65}, {"penalty": -1.0}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="expected iterations >= 1, 1 <= elites <= sequences and penalty >= 0"):
        CEMConfig(**options)
