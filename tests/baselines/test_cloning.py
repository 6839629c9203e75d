"""Cloning recovers a known policy, repeats itself by seed, stops early, and refuses data that are not finite."""

import numpy as np
import pytest
import torch

from ttlib.baselines import cloning


def policy_data(n, seed, noise=0.0):
    """Return inputs (n, 2) on very different scales, and actions (n, 1) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, 2)) * [1.0, 100.0] + [5.0, 0.0]
    actions = np.tanh(inputs[:, :1] - 5 + inputs[:, 1:] / 100)
    return inputs, np.clip(actions + noise * rng.normal(size=(n, 1)), -1, 1)


def test_a_known_policy_is_recovered():
    policy, errors = cloning.fit(*policy_data(2000, 0), *policy_data(500, 1), seed=0, updates=1000)
    inputs, actions = policy_data(500, 2)
    assert np.abs(policy.act(inputs) - actions).mean() < 0.02 and errors[-1] < errors[0]


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    data = (*policy_data(100, 0), *policy_data(50, 1))
    actions = [cloning.fit(*data, seed=s, updates=20)[0].act(data[0]) for s in (0, 0, 1)]
    assert (actions[0] == actions[1]).all() and (actions[0] != actions[2]).any()
    assert (torch.get_rng_state() == state).all()


def test_fitting_stops_early_and_returns_the_best_network():
    held_inputs, held_actions = policy_data(200, 1)
    policy, errors = cloning.fit(*policy_data(20, 0, 0.5), held_inputs, held_actions, seed=0, patience=2)
    best = int(np.argmin(errors))
    assert len(errors) == best + 1 + 2
    assert np.square(policy.act(held_inputs) - held_actions).mean() == pytest.approx(errors[best], rel=1e-4)


def test_only_bounded_networks_are_bounded():
    x = 1e3 * np.ones((4, 2))
    torch.manual_seed(0)
    bounded, free = (cloning.MLP(torch.zeros(2), torch.ones(2), 3, bounded) for bounded in (True, False))
    assert np.abs(bounded.act(x)).max() <= 1 < np.abs(free.act(x)).max()


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("i, name", list(enumerate(["inputs", "actions", "held_inputs", "held_actions"])))
def test_data_that_are_not_finite_are_named(i, name, number):
    data = [*policy_data(30, 0), *policy_data(30, 1)]
    data[i][7, 0] = number
    with pytest.raises(ValueError, match=f"^{name} holds 1 numbers that are not finite in float32"):
        cloning.fit(*data, seed=0, updates=5)


def test_a_fit_without_a_finite_error_is_an_error():
    inputs, actions = policy_data(30, 0)
    with pytest.raises(FloatingPointError, match=r"held-out errors \[.*; expected finite numbers: scale the targets"):
        cloning.fit(inputs, 1e30 * actions, inputs, 1e30 * actions, seed=0, updates=5, bounded=False)
