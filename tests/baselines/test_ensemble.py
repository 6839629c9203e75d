"""The ensemble agrees with scipy's densities, with single networks, and with worlds whose distribution is known."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from damage import cut, edit_config, edit_tensors, fill_disk
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from ttlib import checkpoint
from ttlib.baselines import ensemble, kept
from ttlib.baselines.ensemble import Ensemble, EnsembleConfig, Transitions
from ttlib.data import Episodes
from ttlib.pipeline import packing
from ttlib.studies import horizon_metrics

N, M = 2, 1
SMALL = dict(members=3, width=8, layers=2)


def random_transitions(n=40, seed=0, masked=False):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(n, N)) * [1.0, 100.0] + [5.0, 0.0]
    masks = (rng.random((n, N)) < 0.5, rng.random((n, N)) < 0.5) if masked else ()
    following = states + rng.normal(size=(n, N)) * [0.1, 3.0]
    return Transitions(states, rng.normal(size=(n, M)), following, rng.normal(size=n), *masks)


def random_ensemble(data=None, **options):
    """Return an ensemble with weights so large that every input, member and unit matters, standardised by the data."""
    model = Ensemble(N, M, EnsembleConfig(**SMALL | options))
    rng = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=rng)
    if data is not None:
        model.standardise(data)
    return model


def drifting(drifts, std):
    """Return an ensemble whose members predict s' = s + drift + std * noise in every dimension, for all inputs."""
    model = Ensemble(N, M, EnsembleConfig(members=len(drifts), width=4, layers=1))
    with torch.no_grad():
        for weight in model.weights:
            weight.zero_()
        model.biases[-1][:, 0, :N] = torch.tensor(drifts)[:, None]
        model.biases[-1][:, 0, N:] = 2 * math.log(std)
        model.min_log_var.fill_(-200.0)
        model.max_log_var.fill_(200.0)
    return model


def one_member(model, e, x):
    """Compute the network of one member layer by layer, with its bounds.  Return mean and log-variance."""
    for i, (weight, bias) in enumerate(zip(model.weights, model.biases)):
        x = (x * torch.sigmoid(x) if i else x) @ weight[e] + bias[e]
    mean, log_var = x.chunk(2, -1)
    upper, lower = model.max_log_var[e], model.min_log_var[e]
    log_var = upper - (1 + (upper - log_var).exp()).log()
    return mean, lower + (1 + (log_var - lower).exp()).log()


def no_actions(states, rng):
    return np.zeros((len(states), M))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda lengths: max(lengths) > 1), st.booleans())
def test_transitions_never_cross_episodes(lengths, masked):
    n = sum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    states = np.stack([np.arange(n), 10.0 * np.arange(n)], 1)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    data = Episodes(states, states[:, :1] + 0.5, states[:, 0] / 4, starts, np.ones(len(lengths), bool))
    mask = states % 3 == 0 if masked else None
    pairs = ensemble.transitions(dataclasses.replace(data, mask=mask))
    rows = [t for t in range(n - 1) if episode[t] == episode[t + 1]]
    following = [t + 1 for t in rows]
    assert len(pairs) == len(rows)
    assert (pairs.states == states[rows]).all() and (pairs.next_states == states[following]).all()
    assert (pairs.actions == data.actions[rows]).all() and (pairs.rewards == data.rewards[rows]).all()
    if masked:
        assert (pairs.mask == mask[rows]).all() and (pairs.next_mask == mask[following]).all()


def test_data_without_transitions_or_of_other_shapes_is_refused():
    data = Episodes(np.zeros((2, N)), np.zeros((2, M)), np.zeros(2), np.arange(3), np.ones(2, bool))
    with pytest.raises(ValueError, match="no transitions: all 2 episodes have a single step"):
        ensemble.transitions(data)
    other = dataclasses.replace(random_transitions(), actions=np.zeros((40, 3)))
    with pytest.raises(ValueError, match=r"\(40, 3\) do not have the dimensions of the training data.*\(40, 1\)"):
        ensemble.fit(random_transitions(), other, EnsembleConfig())
    for data, p in ((random_transitions(masked=True), 0.0), (random_transitions(), 0.5)):
        with pytest.raises(ValueError, match=f"mask is given, but the ensemble's config has mask_probability={p}"):
            ensemble.fit(data, data, EnsembleConfig(**SMALL, mask_probability=p))


@pytest.mark.parametrize("options, match", [
    ({"members": 0}, "members=0; expected at least 1"), ({"batch": -1}, "batch=-1; expected at least 1"),
    ({"mask_probability": 1.0}, "mask_probability=1.0; expected at least 0 and below 1"),
    ({"lr": 0.0}, "lr=0.0; expected a positive"), ({"lr": math.nan}, "lr=nan; expected a positive"),
])  # fmt: skip
def test_bad_configs_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        EnsembleConfig(**options)


@pytest.mark.parametrize("options", [{}, {"rewards": True}, {"mask_probability": 0.5, "rewards": True}])
def test_members_in_one_batch_are_members_alone(options):
    data = random_transitions(masked="mask_probability" in options)
    model = random_ensemble(data, **options).double()
    x, target, weight = (tensor.double() for tensor in model.tensors(data))
    assert x.shape[1] == N + M + N * ("mask_probability" in options) and target.shape[1] == N + ("rewards" in options)
    together, each = model(x), model(torch.stack([x, 2 * x, -x]))
    value = ensemble.nats(model, x, target, weight)
    for e in range(3):
        mean, log_var = one_member(model, e, x)
        assert torch.allclose(together[0][e], mean) and torch.allclose(together[1][e], log_var)
        assert torch.allclose(each[0][e], one_member(model, e, (x, 2 * x, -x)[e])[0])
        log_p = torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(target)
        assert torch.allclose(value[e], -log_p[weight > 0].mean())


def test_inputs_and_targets_are_standardised_in_float64_and_constants_left_alone():
    rng = np.random.default_rng(0)
    n = 4000
    states = np.stack([1e6 + 1e-3 * rng.normal(size=n), np.full(n, 1e6 / 3)], 1)
    data = Transitions(states, 5 * rng.normal(size=(n, M)) + 3, states.copy(), np.zeros(n))
    data.next_states[:, 0] += 2 + 1e-3 * rng.normal(size=n)
    model = Ensemble(N, M, EnsembleConfig(**SMALL))
    model.standardise(data)
    x, target, _ = model.tensors(data)
    assert torch.allclose(x[:, [0, 2]].mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(x[:, [0, 2]].std(0), torch.ones(2), atol=1e-3)
    assert torch.allclose(target[:, 0].std(), torch.ones(()), atol=1e-3)
    assert (x[:, 1].abs() < 1e-6).all() and (target[:, 1] == 0).all()
    others = model.inputs(states + [0, 0.5], data.actions)
    assert torch.allclose(others[:, 1], torch.full((n,), 0.5), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rewards": True}, {"mask_probability": 0.5}])
def test_log_density_is_that_of_the_reference_library_in_raw_units(options):
    data = random_transitions(masked="mask_probability" in options)
    model = random_ensemble(data, **options)
    x, base = model.inputs(data.states, data.actions, data.mask), 0 if "mask_probability" in options else data.states
    log_p = model.log_density(data)
    for e in range(3):
        mean, log_var = (y.detach().double().numpy() for y in one_member(model, e, x))
        scale, shift = model.target_std.numpy(), model.target_mean.numpy()
        law = norm((base + (shift + scale * mean)[:, :N]), (scale * np.exp(log_var / 2))[:, :N])
        assert log_p[e] == pytest.approx(law.logpdf(data.next_states).sum(1), rel=1e-4, abs=1e-4)
    weighted = np.log(np.mean(np.exp(log_p), axis=0))
    assert ensemble.mixture(log_p) == pytest.approx(weighted)


def edges_around(V, dims, low=-1.0, high=1.0):
    return np.tile(np.linspace(low, high, V + 1), (dims, 1)) * np.arange(1, dims + 1)[:, None]


def components(seed=0, shape=(3, 5, N)):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=shape), np.exp(rng.normal(size=shape))


def test_bin_masses_keep_their_digits_in_both_tails():
    edges, one = edges_around(4, 1, -20, 20), np.ones((1, 1))
    for mean in (-25.0, 25.0):
        mass = horizon_metrics.bin_mass(edges, mean * one, one)[0]
        mass = mass if mean < 0 else mass[::-1]
        assert mass[0] == pytest.approx(1)
        expected = norm.sf([15, 25, 35]) - norm.sf([25, 35, np.inf])
        assert mass[1:] == pytest.approx(expected, rel=1e-9, abs=0)


def test_narrow_bins_have_the_density_of_the_mixture():
    mean, std = components()
    x = np.array([[0.3, -0.7], [2.0, 1.0], [-40.0, 0.0]])
    densities = horizon_metrics.marginal_log_density(x, mean, std)
    for row, log_p in zip(x, densities):
        width = 1e-5
        edges = row[:, None] + width * np.array([-10, -0.5, 0.5, 10])
        mass = horizon_metrics.bin_mass(edges, mean, std)[:, 1]
        assert np.log(mass) - math.log(width) == pytest.approx(log_p, abs=1e-4)
    slow = np.log(norm.pdf(x[:2, None], mean.reshape(-1, N), std.reshape(-1, N)).mean(1))
    assert densities[:2] == pytest.approx(slow)


def test_components_that_are_not_finite_have_no_mass():
    mean, std = components(shape=(4, 5, N))
    mass = horizon_metrics.bin_mass(edges_around(5, N), mean[:3], std[:3])
    density = horizon_metrics.marginal_log_density(np.zeros((1, N)), mean[:3], std[:3])
    mean[3, :3], mean[3, 3:], std[3, 4] = np.nan, np.inf, np.inf
    assert horizon_metrics.bin_mass(edges_around(5, N), mean, std) == pytest.approx(0.75 * mass)
    with_others = horizon_metrics.marginal_log_density(np.zeros((1, N)), mean, std)
    assert with_others == pytest.approx(density + math.log(0.75))
    assert (horizon_metrics.bin_mass(edges_around(5, N), mean[3:], std[3:]) == 0).all()
    assert (horizon_metrics.marginal_log_density(np.zeros((1, N)), mean[3:], std[3:]) == -np.inf).all()


A, B, STD = np.array([[-0.2, 0.3], [0.1, -0.4]]), np.array([[0.5], [-0.3]]), np.array([0.2, 0.05])
FITTED = EnsembleConfig(members=2, width=16, layers=1, rewards=True, lr=1e-2, batch=128, updates=800, patience=9)


def linear_world(n, seed):
    """Return transitions with s' - s = A s + B a + STD * noise and r = s_0 - s_1, and the means of s'."""
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(n, N)), rng.uniform(-1, 1, (n, M))
    mean = states + states @ A.T + actions @ B.T
    return Transitions(states, actions, mean + STD * rng.normal(size=(n, N)), states[:, 0] - states[:, 1]), mean


@pytest.fixture(scope="module")
def linear():
    training, (held_out, mean) = linear_world(6000, 0)[0], linear_world(3000, 1)
    model, curve = ensemble.fit(training, held_out, FITTED)
    return model, curve, training, held_out, mean


def test_a_linear_gaussian_world_is_recovered(linear):
    model, _, _, held_out, true_mean = linear
    mean, std = model.predict(held_out.states, held_out.actions)
    assert (np.sqrt(((mean[..., :N] - true_mean) ** 2).mean((0, 1))) < 0.3 * STD).all()
    assert std[..., :N].mean((0, 1)) == pytest.approx(STD, rel=0.08)
    assert np.sqrt(((mean[..., N] - held_out.rewards) ** 2).mean()) < 0.05
    scores = ensemble.diagnose(model, held_out)
    assert scores["coverage"] == pytest.approx(0.9 * np.ones(N), abs=0.02)
    true = norm(true_mean, STD).logpdf(held_out.next_states).sum(1).mean()
    assert true - 0.06 < scores["log_likelihood"] < true + 0.01
    assert scores["log_likelihood"] > model.log_density(held_out).mean()  # Jensen


def test_the_linear_gaussian_is_least_squares(linear):
    model, _, training, held_out, true_mean = linear
    log_likelihood = ensemble.linear_log_likelihood(model, training, held_out)
    assert log_likelihood == pytest.approx(norm(true_mean, STD).logpdf(held_out.next_states).sum(1).mean(), abs=0.01)
    total = 0.0
    design = [np.hstack([d.states, d.actions, np.ones((len(d), 1))]) for d in (training, held_out)]
    for i in range(N):
        fitted = np.linalg.lstsq(design[0], training.next_states[:, i], rcond=None)[0]
        residual = training.next_states[:, i] - design[0] @ fitted
        total += norm(design[1] @ fitted, residual.std()).logpdf(held_out.next_states[:, i]).mean()
    assert log_likelihood == pytest.approx(total, abs=1e-4)


def test_the_same_seed_gives_the_same_ensemble_and_members_differ():
    training, held_out = linear_world(300, 0)[0], linear_world(100, 1)[0]
    options = dict(members=2, width=8, layers=1, batch=16, updates=30)
    state = torch.get_rng_state()
    fitted = [ensemble.fit(training, held_out, EnsembleConfig(**options, seed=s)) for s in (0, 0, 1)]
    assert (torch.get_rng_state() == state).all()
    log_p = [model.log_density(held_out) for model, _ in fitted]
    assert (log_p[0] == log_p[1]).all() and fitted[0][1] == fitted[1][1]
    assert (log_p[0] != log_p[2]).all() and (log_p[0][0] != log_p[0][1]).all()


def test_each_member_sees_its_own_bootstrap_sample(monkeypatch):
    training, held_out = linear_world(200, 0)[0], linear_world(50, 1)[0]
    plain, seen = ensemble.nats, [set(), set()]

    def spying(model, x, target, weight):
        for e, rows in enumerate(x if x.ndim == 3 else []):
            seen[e] |= set(rows[:, 0].tolist())
        return plain(model, x, target, weight)

    monkeypatch.setattr(ensemble, "nats", spying)
    ensemble.fit(training, held_out, EnsembleConfig(members=2, width=4, layers=1, batch=64, updates=100))
    expected = 1 - math.exp(-1)  # fraction of the data in a bootstrap sample
    assert [len(rows) / 200 for rows in seen] == pytest.approx([expected] * 2, abs=0.08)
    assert len(seen[0] & seen[1]) / 200 == pytest.approx(expected**2, abs=0.1)


def test_early_stopping_returns_each_member_at_its_best_check(monkeypatch):
    monkeypatch.setattr(ensemble, "CHECK", 5)
    training, held_out = linear_world(30, 0)[0], linear_world(200, 1)[0]
    config = EnsembleConfig(members=4, width=32, layers=2, lr=2e-2, batch=30, updates=2000, patience=6)
    model, curve = ensemble.fit(training, held_out, config)
    held = np.array([row["held_out"] for row in curve])
    with torch.no_grad():
        nats = ensemble.nats(model, *model.tensors(held_out))
    assert nats.tolist() == pytest.approx(held.min(0).tolist(), rel=1e-5)
    best = held.argmin(0)
    assert len(set(best)) > 1 and (held[-1] > held.min(0)).all()
    assert len(curve) - 1 - best.max() == 6 and curve[-1]["update"] == 5 * len(curve) < 2000


def test_a_diverging_fit_is_stopped(monkeypatch):
    monkeypatch.setattr(ensemble, "CHECK", 5)
    data = linear_world(100, 0)[0]
    with pytest.raises(FloatingPointError, match=r"at update 5; expected finite numbers: lower lr=1e\+30"):
        ensemble.fit(data, data, EnsembleConfig(**SMALL, lr=1e30))


def test_particles_with_one_member_drift_with_it():
    drifts, steps, S = (-1.0, 0.5, 2.0), 20, 600
    model = drifting(drifts, 1e-12)
    start = np.random.default_rng(1).normal(size=(S, N))
    states, lost = ensemble.sample(model, no_actions, start, steps, "tsinf", np.random.default_rng(0))
    moved = states - start[:, None]
    own = np.abs(moved[:, 1, :1] - drifts).argmin(1)
    expected = np.arange(steps + 1) * np.array(drifts)[own][:, None]
    for i in range(N):
        assert np.abs(moved[..., i] - expected).max() < 1e-5
    assert np.bincount(own) == pytest.approx([S / 3] * 3, abs=4 * math.sqrt(S * 2 / 9))
    assert (lost == 0).all() and len(lost) == steps + 1


def test_particles_that_change_members_move_by_a_binomial():
    steps, S = 20, 4000
    states, _ = ensemble.sample(
        drifting((0.0, 1.0), 1e-12), no_actions, np.zeros((S, N)), steps, "ts1", np.random.default_rng(0))
    count = states[:, -1, 0].round().astype(int)
    assert states[:, -1, 0] == pytest.approx(count, abs=1e-5)
    law = binom(steps, 0.5)
    assert count.mean() == pytest.approx(law.mean(), abs=4 * law.std() / math.sqrt(S))
    assert count.var() == pytest.approx(law.var(), rel=4 * math.sqrt(2 / S))
    assert np.abs(states[..., 0] - states[..., 1]).max() < 1e-5  # a single member gives the whole state


def test_noise_has_the_predicted_standard_deviation_and_a_random_walk_its_variance():
    steps, S = 9, 4000
    model = drifting((0.0,), 0.3)
    states, _ = ensemble.sample(model, no_actions, np.zeros((S, N)), steps, "ts1", np.random.default_rng(0))
    assert states[:, -1].std(0) == pytest.approx([0.9, 0.9], rel=4 / math.sqrt(2 * S))
    assert abs(np.corrcoef(states[:, -1].T)[0, 1]) < 4 / math.sqrt(S)


@pytest.mark.parametrize("mode", ensemble.MODES)
def test_the_predicted_gaussians_are_given_at_every_step(mode):
    model, seen, acted = random_ensemble(random_transitions()), [], []

    def policy(states, rng):
        acted.append(rng.normal(size=(len(states), M)))
        return acted[-1]

    states, _ = ensemble.sample(model, policy, np.ones((5, N)), 4, mode, np.random.default_rng(0),
                                lambda *step: seen.append(step))
    assert [t for t, *_ in seen] == [1, 2, 3, 4]
    first_members = None
    for t, mean, std in seen:
        every = model.predict(states[:, t - 1], acted[t - 1])
        if mode == "ts1":
            assert mean == pytest.approx(every[0]) and std == pytest.approx(every[1])
        else:
            members = np.abs(every[0] - mean).sum(2).argmin(0)
            assert mean.shape == (1, 5, N) and mean[0] == pytest.approx(every[0][members, np.arange(5)])
            assert std[0] == pytest.approx(every[1][members, np.arange(5)])
            assert first_members is None or (members == first_members).all()
            first_members = members
    assert first_members is None or len(set(first_members)) > 1


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"'ts2'; expected one of \('ts1', 'tsinf'\)"):
        ensemble.sample(drifting((0.0,), 1.0), no_actions, np.zeros((1, N)), 1, "ts2", np.random.default_rng(0))


def test_diverging_particles_are_counted_and_returned():
    S, seen = 40, []
    model = drifting((0.0, 3e38), 1e-12)  # after two steps, states exceed float32

    def policy(states, rng):
        assert np.isfinite(states).all()
        seen.append((states != 0).any(1).sum())
        return no_actions(states, rng)

    states, lost = ensemble.sample(model, policy, np.ones((S, N)), 4, "tsinf", np.random.default_rng(0))
    wild = ~np.isfinite(states[:, 3]).all(1)
    assert 5 < wild.sum() < 35 and states.shape == (S, 5, N)
    assert lost.tolist() == [0, 0, 0, wild.sum(), wild.sum()]
    assert np.isfinite(states[~wild]).all() and seen == [S, S, S, S - wild.sum()]


def test_masked_values_change_nothing():
    data = random_transitions(masked=True)
    other = dataclasses.replace(data, states=np.where(data.mask, 1e6, data.states),
                                next_states=np.where(data.next_mask, -1e6, data.next_states))
    config = EnsembleConfig(**SMALL, mask_probability=0.5, batch=8, updates=20)
    fitted = [ensemble.fit(d, d, config) for d in (data, other)]
    assert fitted[0][1] == fitted[1][1]
    wild = np.where(data.mask, np.nan, data.states)
    for moments in zip(fitted[0][0].predict(data.states, data.actions, data.mask),
                       fitted[1][0].predict(wild, data.actions, data.mask)):
        assert (moments[0] == moments[1]).all()
    shown = fitted[0][0].predict(data.states, data.actions, np.zeros_like(data.mask))
    assert (shown[0] != fitted[0][0].predict(data.states, data.actions, data.mask)[0]).any()


def test_a_masked_value_differs_from_a_visible_mean():
    """The mask is an input too, so that a masked value and a visible value at the mean give different predictions."""
    model = random_ensemble(random_transitions(masked=True), mask_probability=0.5)
    state, action = model.input_mean[None, :N].numpy(), np.zeros((1, M))
    means = [model.predict(state, action, np.full((1, N), masked))[0] for masked in (True, False)]
    assert (means[0] != means[1]).all()


def test_rollouts_draw_new_masks_and_the_policy_sees_everything(monkeypatch):
    model, masks, shown = random_ensemble(random_transitions(masked=True), mask_probability=0.25), [], []
    predict = Ensemble.predict

    def spying(self, states, actions, mask):
        masks.append(mask)
        return predict(self, states, actions, mask)

    def policy(states, rng):
        shown.append(states.copy())
        return no_actions(states, rng)

    monkeypatch.setattr(Ensemble, "predict", spying)
    states, _ = ensemble.sample(model, policy, np.ones((500, N)), 6, "ts1", np.random.default_rng(0))
    masks = np.array(masks)
    assert (np.array(shown).transpose(1, 0, 2) == states[:, :-1]).all()
    assert masks.mean((1, 2)) == pytest.approx(np.full(6, 0.25), abs=4 * math.sqrt(0.25 * 0.75 / 1000))
    between = np.corrcoef(masks.reshape(6, -1)) - np.eye(6)
    assert np.abs(between).max() < 4.5 / math.sqrt(1000)


@pytest.mark.parametrize("claimed", [0.3, 0.1, 1.0])
def test_coverage_shows_standard_deviations_that_are_too_small_or_too_large(claimed):
    rng, n = np.random.default_rng(0), 4000
    states = rng.normal(size=(n, N))
    data = Transitions(states, np.zeros((n, M)), states + 0.5 + 0.3 * rng.normal(size=(n, N)), np.zeros(n))
    scores = ensemble.diagnose(drifting((0.5,), claimed), data)
    inside = 2 * norm.cdf(norm.ppf(0.95) * claimed / 0.3) - 1
    assert scores["coverage"] == pytest.approx([inside] * N, abs=0.02)
    assert scores["rmse_share"] == pytest.approx([1] * N, abs=1e-3)  # a constant predicts as well as the mean
    expected = N * (-0.5 * math.log(2 * math.pi) - math.log(claimed) - 0.5 * (0.3 / claimed) ** 2)
    assert scores["log_likelihood"] == pytest.approx(expected, rel=0.05)
    assert ensemble.diagnose(drifting((0.8,), 0.3), data)["rmse_share"] == pytest.approx([math.sqrt(2)] * N, abs=0.05)


def test_the_interval_is_of_the_mixture_not_of_a_gaussian():
    """Two members are far apart: each has half of the mass, and the gap between them has none."""
    n = 3
    states, moves = np.zeros((n, N)), np.array([[0.0], [-1.9], [-1.5]])
    data = Transitions(states, np.zeros((n, M)), states + moves, np.zeros(n))
    levels = (norm.cdf((moves[:, 0] + 1) / 0.5) + norm.cdf((moves[:, 0] - 1) / 0.5)) / 2
    inside = ((levels > 0.05) & (levels < 0.95)).mean()
    assert 0 < inside < 1
    assert ensemble.diagnose(drifting((-1.0, 1.0), 0.5), data)["coverage"] == pytest.approx([inside] * N)


@pytest.mark.parametrize("options", [{}, {"rewards": True, "mask_probability": 0.5, "seed": 3}])
def test_a_saved_ensemble_is_loaded(tmp_path, options):
    data = random_transitions(masked="mask_probability" in options)
    model = random_ensemble(data, **options)
    exact = [p.detach().clone() for p in model.parameters()]
    checkpoint.round_weights(model, torch.float16)
    for p, q in zip(model.parameters(), exact, strict=True):  # float16 has 11 bits of mantissa
        assert (abs(p - q) <= 2.0**-11 * abs(q) + 2.0**-25).all()
    kept.save(tmp_path / "deep" / "e", model, {"key": "k"})
    loaded, about = kept.load(tmp_path / "deep" / "e", packing.weights(tmp_path / "deep" / "e"))
    assert about == {"key": "k"} and loaded.config == model.config and not loaded.training
    inputs = (data.states, data.actions, data.mask)
    for a, b in zip(model.predict(*inputs), loaded.predict(*inputs)):
        assert (a == b).all()
    assert sorted(p.name for p in (tmp_path / "deep" / "e").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("damage, match", [
    (cut(0.5), "Safetensor"), (lambda f: (f / "config.json").write_text("[]"), "KeyError"),
    (edit_config(lambda c: c.pop("about")), "KeyError.*about"),
    (edit_config(lambda c: c["ensemble"].update(width=0)), "width=0; expected at least 1"),
    (edit_config(lambda c: c["ensemble"].update(width=9)), "size mismatch"),
    (edit_config(lambda c: c["ensemble"].update(layers=3)), "weights"),
    (edit_config(lambda c: c["ensemble"].update(members=10**9)), "size mismatch"),
    (edit_config(lambda c: c.update(N=10**12)), "size mismatch"),
    (edit_config(lambda c: c.update(about=None)), "TypeError"),
    (edit_tensors(lambda t: t["weights.0"].fill_(math.nan)), "weights.0 holds numbers that are not finite"),
    (edit_tensors(lambda t: t.pop("input_mean")), "input_mean"),
])
def test_damaged_folders_are_refused(tmp_path, damage, match):
    kept.save(tmp_path / "e", random_ensemble(), {})
    damage(tmp_path / "e")
    where = re.escape(str(tmp_path / "e"))
    with pytest.raises(ValueError, match=rf"(?s){where} is not a readable baseline .*{match}.*; delete it"):
        kept.load(tmp_path / "e", packing.weights(tmp_path / "e"))


def test_a_failed_save_leaves_no_half_file(tmp_path, monkeypatch):
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        kept.save(tmp_path / "e", random_ensemble(), {})
    assert not list((tmp_path / "e").iterdir())
