"""Cloning recovers a known policy, repeats itself by seed, keeps its best network, and refuses infinite data."""

import numpy as np
import pytest
import torch

from ttlib.baselines import cloning
from ttlib.baselines.cloning import MLPConfig


def policy_data(n, seed, noise=0.0):
    """Return inputs (n, 2) on very different scales, and actions (n, 1) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, 2)) * [1.0, 100.0] + [5.0, 0.0]
    actions = np.tanh(inputs[:, :1] - 5 + inputs[:, 1:] / 100)
    return inputs, np.clip(actions + noise * rng.normal(size=(n, 1)), -1, 1)


def test_a_known_policy_is_recovered():
    policy, errors = cloning.regress(*policy_data(2000, 0), *policy_data(500, 1), MLPConfig(1000, 3e-3))
    inputs, actions = policy_data(500, 2)
    assert np.abs(policy.act(inputs) - actions).mean() < 0.02 and errors[-1] < errors[0]


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    data = (*policy_data(100, 0), *policy_data(50, 1))
    actions = [cloning.regress(*data, MLPConfig(20, 1e-3, seed=s))[0].act(data[0]) for s in (0, 0, 1)]
    assert (actions[0] == actions[1]).all() and (actions[0] != actions[2]).any()
    assert (torch.get_rng_state() == state).all()


def test_the_network_of_least_held_out_error_is_returned():
    held = policy_data(200, 1)
    policy, errors = cloning.regress(*policy_data(20, 0, 0.5), *held, MLPConfig(2000, 1e-3))
    assert len(errors) == 8 and min(errors) < errors[-1]  # it overfits
    assert np.square(policy.act(held[0]) - held[1]).mean() == pytest.approx(min(errors), rel=1e-4)


def test_only_bounded_networks_are_bounded():
    x = 1e3 * np.ones((4, 2))
    torch.manual_seed(0)
    bounded, free = (cloning.MLP(torch.zeros(2), torch.ones(2), 3, bounded) for bounded in (True, False))
    assert np.abs(bounded.act(x)).max() <= 1 < np.abs(free.act(x)).max()


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("i, name", list(enumerate(["inputs", "targets", "held_inputs", "held_targets"])))
def test_data_that_are_not_finite_are_named(i, name, number):
    data = [*policy_data(30, 0), *policy_data(30, 1)]
    data[i][7, 0] = number
    with pytest.raises(ValueError, match=f"^{name} holds 1 numbers that are not finite in float32"):
        cloning.regress(*data, MLPConfig(5, 1e-3))


def test_a_fit_without_a_finite_error_is_an_error():
    inputs, actions = policy_data(30, 0)
    with pytest.raises(FloatingPointError, match=r"held-out errors \[.*; expected finite numbers: scale the targets"):
        cloning.regress(inputs, 1e30 * actions, inputs, 1e30 * actions, MLPConfig(5, 1e-3, gamma=1.0))
