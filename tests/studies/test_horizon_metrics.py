"""Scores of Figure 2 against brute force, closed forms and the bounds that nothing may pass."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORLD, V, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy, norm

from ttlib import data, tokenizer
from ttlib.baselines import ensemble
from ttlib.pipeline import statistics
from ttlib.studies import horizon_metrics
from ttlib.studies.horizon_metrics import GaussianMarginals, Grid

seeds = st.integers(0, 10_000)


def random_grid(rng, N=3, bins=V):
    low, high = np.sort(rng.normal(size=(2, N, 1)), axis=0)
    return Grid(low + (high - low) * np.linspace(0, 1, bins + 1), np.ones(N, bool))


def random_mass(rng, steps, N=3, bins=V, sharpness=0.2):
    return rng.dirichlet(np.full(bins, sharpness), size=(steps, N))


def around(on, rng, n, steps):
    """Trajectories inside and outside the bins."""
    low, high = on.edges[:, 0], on.edges[:, -1]
    return low + (high - low) * rng.uniform(-0.3, 1.3, size=(n, steps, len(low)))


def bin_of(on, i, x):
    """By looking at one bin after the other; the outer ones reach to infinity."""
    bins = on.edges.shape[1] - 1
    return next(b for b in range(bins) if b == bins - 1 or x < on.edges[i, b + 1])


# -- bins --------------------------------------------------------------------------------------------------


@given(seed=seeds)
def test_values_fall_into_the_tokenizer_s_bins(seed):
    rng, made = np.random.default_rng(seed), tiny_tokenizer()
    on = horizon_metrics.grid(made, rng.normal(size=(5, WORLD.N)))
    x = 5 * rng.normal(size=(7, WORLD.N))
    assert (on.bins(x) == made.bins(torch.from_numpy(x), WORLD.state).numpy()).all()
    centres = made.centres[WORLD.state].numpy()
    assert (on.bins(centres.T) == np.arange(V)[:, None]).all()
    assert (on.bins(on.edges[:, :-1].T) == np.arange(V)[:, None]).all()  # a bin is [edge, next edge)


def test_only_uniform_bins_of_states_that_vary_are_scored():
    with pytest.raises(ValueError, match="bins of kind 'quantile'; expected 'uniform'"):
        horizon_metrics.grid(tiny_tokenizer(kind="quantile"), np.eye(2))
    with pytest.raises(ValueError, match="all 2 state dimensions are constant"):
        horizon_metrics.grid(tiny_tokenizer(), np.ones((4, 2)))


def test_a_constant_dimension_changes_no_score():
    rng = np.random.default_rng(0)
    steps = torch.randn(50, WORLD.D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps[:, 1] = 3.0
    on = horizon_metrics.grid(tokenizer.fit(steps, WORLD, V), steps[:, :2].numpy())
    alone = Grid(on.edges[:1], np.ones(1, bool))
    references, mass = around(on, rng, 6, 4), random_mass(rng, 4, N=2)
    references[..., 1] = 3.0
    assert on.varies.tolist() == [True, False]
    found = horizon_metrics.log_likelihood(on, mass, 9, references)
    assert found == pytest.approx(horizon_metrics.log_likelihood(alone, mass[:, :1], 9, references[..., :1]))
    assert horizon_metrics.oracle(on) == pytest.approx(horizon_metrics.oracle(alone))
    assert horizon_metrics.uniform(on) == pytest.approx(horizon_metrics.uniform(alone))
    outside = Grid.out_of_range
    assert outside(on, references) == pytest.approx(outside(alone, references[..., :1]))


# -- masses and scores -------------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(1, 12))
def test_a_histogram_counts(seed, n):
    rng = np.random.default_rng(seed)
    on = random_grid(rng)
    samples = around(on, rng, n, steps=2)
    samples[rng.random(samples.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    counts = np.zeros((2, 3, V))
    for t in range(2):
        for state in samples[:, t]:
            for i, x in enumerate(state):
                if np.isfinite(state).all():
                    counts[t, i, bin_of(on, i, x)] += 1
    assert horizon_metrics.histogram(on, samples, n) * n == pytest.approx(counts)
    alive = horizon_metrics.alive(samples)
    assert (alive == counts.sum(2)[:, 0]).all()
    assert horizon_metrics.histogram(on, samples, alive).sum(2) == pytest.approx(
        np.repeat(alive[:, None] > 0, 3, 1).astype(float)
    )


@given(seed=seeds, n=st.integers(0, 12))
def test_a_score_is_the_log_of_the_smoothed_mass_over_the_bin_s_width(seed, n):
    rng = np.random.default_rng(seed)
    on, steps = random_grid(rng), 3
    samples, references = around(on, rng, n, steps), around(on, rng, 4, steps)
    found = horizon_metrics.log_likelihood(on, horizon_metrics.histogram(on, samples, n), n, references)
    for k, t in np.ndindex(4, steps):
        score = 0.0
        for i in range(3):
            b = bin_of(on, i, references[k, t, i])
            count = sum(bin_of(on, i, x) == b for x in samples[:, t, i])
            score += math.log((count + 1 / V) / (n + 1)) - math.log(on.edges[i, b + 1] - on.edges[i, b])
        assert found[k, t] == pytest.approx(score)


@given(seed=seeds, bins=st.integers(2, 8))
def test_the_true_law_attains_its_entropy_and_no_other_does_better(seed, bins):
    """References that are the law exactly: each bin as often as it is likely."""
    rng = np.random.default_rng(seed)
    on, count, many = random_grid(rng, bins=bins), 20, 10**12  # so many samples that smoothing is nothing
    drawn = rng.integers(bins, size=(3, count))
    law = np.stack([np.bincount(row, minlength=bins) for row in drawn]) / count
    centres = (on.edges[:, 1:] + on.edges[:, :-1]) / 2
    references = np.take_along_axis(centres, drawn, 1).T[:, None]
    bound = -entropy(law, axis=1).sum() - np.log(on.width[:, 0]).sum()
    assert horizon_metrics.log_likelihood(on, law[None], many, references).mean() == pytest.approx(bound, abs=1e-6)
    other = random_mass(rng, 1, bins=bins)
    assert horizon_metrics.log_likelihood(on, other, many, references).mean() <= bound + 1e-6


@given(seed=seeds, n=st.integers(0, 50))
def test_equal_masses_score_the_floor_and_the_right_bin_the_oracle(seed, n):
    rng = np.random.default_rng(seed)
    on = random_grid(rng)
    references, extent = around(on, rng, 4, 2), on.edges[:, -1] - on.edges[:, 0]
    equal = horizon_metrics.log_likelihood(on, np.full((2, 3, V), 1 / V), n, references)
    assert equal == pytest.approx(np.full((4, 2), -np.log(extent).sum()))
    assert horizon_metrics.uniform(on) == pytest.approx(-np.log(extent).sum())
    right = np.eye(V)[on.bins(references[0])]
    best = horizon_metrics.log_likelihood(on, right, 10**12, references[:1])
    assert best == pytest.approx(horizon_metrics.oracle(on), abs=1e-6)
    assert horizon_metrics.oracle(on) == pytest.approx(np.log(V / extent).sum())


@given(seed=seeds, n=st.integers(0, 10**6), sharpness=st.sampled_from([0.01, 0.3, 5.0]))
def test_no_masses_score_above_the_oracle(seed, n, sharpness):
    rng = np.random.default_rng(seed)
    on = random_grid(rng)
    found = horizon_metrics.log_likelihood(on, random_mass(rng, 3, sharpness=sharpness), n, around(on, rng, 5, 3))
    assert (found <= horizon_metrics.oracle(on) + 1e-9).all()


@given(seed=seeds)
def test_neither_the_order_of_samples_nor_that_of_dimensions_matters(seed):
    rng = np.random.default_rng(seed)
    on, order = random_grid(rng), rng.permutation(3)
    samples, references = around(on, rng, 9, 2), around(on, rng, 4, 2)
    score = lambda on, x, y: horizon_metrics.log_likelihood(on, horizon_metrics.histogram(on, x, len(x)), len(x), y)  # noqa: E731
    found = score(on, samples, references)
    assert score(on, rng.permutation(samples), references) == pytest.approx(found)
    other = Grid(on.edges[order], on.varies[order])
    assert score(other, samples[..., order], references[..., order]) == pytest.approx(found)


def test_samples_that_diverge_take_mass_away_and_true_rollouts_that_end_do_not():
    rng = np.random.default_rng(0)
    on = random_grid(rng)
    samples, references = around(on, rng, 8, 1), around(on, rng, 5, 1)
    kept = samples[:6]
    samples[6, 0, 1], samples[7] = np.inf, np.nan
    score = lambda x, n: horizon_metrics.log_likelihood(on, horizon_metrics.histogram(on, x, n), n, references)  # noqa: E731
    smoothed = lambda n: np.exp(score(samples, n) - score(kept, 6))  # noqa: E731
    assert smoothed(8) == pytest.approx(np.full((5, 1), (7 / 9) ** 3))  # (count + 1/V) / (n + 1), three dimensions
    assert smoothed(horizon_metrics.alive(samples)) == pytest.approx(np.ones((5, 1)))


def test_what_lies_outside_is_scored_in_the_edge_bin_and_counted():
    on = Grid(np.stack([np.linspace(0, 1, V + 1), np.linspace(-2, 2, V + 1)]), np.ones(2, bool))
    mass = random_mass(np.random.default_rng(0), 1, N=2)
    far, near = np.array([[[1e30, -7.0]]]), np.array([[[0.999, -1.999]]])
    assert (horizon_metrics.log_likelihood(on, mass, 5, far) == horizon_metrics.log_likelihood(on, mass, 5, near)).all()
    four = np.concatenate([far, near, [[[1.0, 2.0]]], [[[0.0, -2.0]]]])  # [low, high)
    assert on.out_of_range(four) == pytest.approx([(2 + 0 + 2 + 0) / 8])


def test_trajectories_end_where_their_episodes_do():
    arrays = {
        "observations": np.arange(18.0).reshape(9, 2), "actions": np.zeros((9, 1)), "rewards": np.zeros(9),
        "terminals": np.eye(9)[2], "timeouts": np.eye(9)[8],
    }  # fmt: skip
    found = horizon_metrics.trajectories(data.episodes(arrays), steps=4)
    assert found.shape == (2, 4, 2)
    assert (found[0, :2] == arrays["observations"][1:3]).all() and np.isnan(found[0, 2:]).all()
    assert (found[1] == arrays["observations"][4:8]).all()
    assert horizon_metrics.alive(found).tolist() == [2, 2, 1, 1]


# -- the ensemble ------------------------------------------------------------------------------------------


def test_the_ensemble_s_marginals_are_the_mixture_of_what_is_visited():
    rng = np.random.default_rng(0)
    model = ensemble.Ensemble(2, 1, ensemble.EnsembleConfig(members=3, width=8, layers=1))
    on, start, steps = random_grid(rng, N=2), rng.normal(size=(4, 2)), 3
    references = around(on, rng, 5, steps)
    references[0, 1:] = np.nan
    found, seen = GaussianMarginals(on, references), {}

    def visit(t, mean, std):
        seen[t] = mean.reshape(-1, 2), std.reshape(-1, 2)
        found.visit(t, mean, std)

    ensemble.sample(model, lambda s, rng: s[:, :1], start, steps, "ts1", rng, visit)
    infinite = np.column_stack([np.full(2, -np.inf), on.edges[:, 1:-1], np.full(2, np.inf)])
    for t, (mean, std) in seen.items():
        for i in range(2):
            exact = np.diff(norm.cdf(infinite[i], mean[:, i, None], std[:, i, None]), axis=1).mean(0)
            assert found.mass[t - 1, i] == pytest.approx(exact)
        for k, x in enumerate(references[:, t - 1]):
            log_p = np.log(norm.pdf(x, mean, std).mean(0)).sum()
            assert found.log_density[k, t - 1] == pytest.approx(log_p, nan_ok=True)
    assert np.isnan(found.log_density).sum() == 2


def test_in_narrow_bins_mixture_and_density_agree():
    rng = np.random.default_rng(1)
    on = Grid(np.stack([np.linspace(-4, 4, 4001)] * 2), np.array([True, False]))
    references = rng.normal(size=(6, 1, 2))
    found = GaussianMarginals(on, references)
    found.visit(1, rng.normal(size=(3, 5, 2)), rng.uniform(0.5, 1, size=(3, 5, 2)))
    binned = horizon_metrics.log_likelihood(on, found.mass, 10**12, references)
    assert binned == pytest.approx(found.log_density, abs=0.01)


def test_an_ensemble_that_has_diverged_scores_minus_infinity_or_the_smoothing_alone():
    rng = np.random.default_rng(0)
    on = random_grid(rng)
    references = around(on, rng, 4, 2)
    found = GaussianMarginals(on, references)
    found.visit(1, np.zeros((2, 3, 3)), np.ones((2, 3, 3)))
    found.visit(2, np.full((2, 3, 3), np.nan), np.ones((2, 3, 3)))
    assert (found.log_density[:, 1] == -np.inf).all() and np.isfinite(found.log_density[:, 0]).all()
    n = 7
    smoothing = 3 * math.log(1 / V / (n + 1)) - np.log(on.width[:, 0]).sum()
    assert horizon_metrics.log_likelihood(on, found.mass, n, references)[:, 1] == pytest.approx(np.full(4, smoothing))


# -- intervals and tables ----------------------------------------------------------------------------------


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(200):
        low, high = horizon_metrics.interval(rng.normal(size=(1, 40, 1)), level=0.8, samples=100, seed=seed)
        covered.append(low[0] <= 0 <= high[0])
    assert np.mean(covered) == pytest.approx(0.8, abs=0.085)  # three deviations of a share of 200


def test_intervals_over_seeds_know_that_models_differ():
    """References all alike, seeds far apart: the references alone would be sure."""
    values = np.zeros((6, 50, 1)) + np.arange(6)[:, None, None]
    low, high = horizon_metrics.interval(values)[:, 0]
    exact = statistics.bootstrap(np.arange(6), level=0.95)
    assert (low, high) == pytest.approx(exact, abs=0.2)
    assert horizon_metrics.interval(values[:1])[:, 0].tolist() == [0, 0]


def test_intervals_of_one_seed_are_the_plain_bootstrap_of_whole_trajectories():
    rng = np.random.default_rng(0)
    x = rng.exponential(size=60)
    values = np.stack([x, -x, np.where(np.arange(60) < 30, x, np.nan)], 1)[None]
    low, high = horizon_metrics.interval(values, samples=10_000)
    for t, known in ((0, x), (2, x[:30])):
        assert (low[t], high[t]) == pytest.approx(statistics.bootstrap(known, level=0.95), abs=0.02)
    assert (low[1], high[1]) == pytest.approx((-high[0], -low[0]), abs=0.005)


def test_one_reference_of_no_density_makes_the_mean_minus_infinity():
    values = np.zeros((1, 200, 2))
    values[0, 0, 0], values[0, :, 1] = -np.inf, -np.inf
    low, high = horizon_metrics.interval(values)
    assert low.tolist() == [-np.inf, -np.inf] and high.tolist() == [0, -np.inf]


def test_rows_hold_each_seed_and_all_of_them():
    rng = np.random.default_rng(0)
    on, steps = random_grid(rng), 3
    references = around(on, rng, 10, steps)
    references[:4, 2] = np.nan
    scores = {seed: horizon_metrics.log_likelihood(on, random_mass(rng, steps), 9, references) for seed in (0, 1)}
    assert np.isnan(scores[0]).tolist() == np.isnan(references).all(2).tolist()
    table = pd.DataFrame(horizon_metrics.rows(scores, on, references, panel="observed", model="m", scoring="mixture"))
    columns = "panel, model, scoring, seed, t, log_likelihood, low, high, out_of_range, alive"
    assert table.columns.tolist() == columns.split(", ")
    assert table.seed.unique().tolist() == [0, 1, horizon_metrics.EVERY_SEED] and table.t.tolist() == 3 * [1, 2, 3]
    assert table[table.seed == 1].log_likelihood.to_numpy() == pytest.approx(np.nanmean(scores[1], 0))
    pooled = table[table.seed == horizon_metrics.EVERY_SEED]
    assert pooled.log_likelihood.to_numpy() == pytest.approx(np.nanmean(list(scores.values()), (0, 1)))
    assert table.alive.tolist() == 3 * [10, 10, 6]
    assert table.out_of_range.to_numpy() == pytest.approx(np.tile(on.out_of_range(references), 3))
    assert ((table.low <= table.log_likelihood) & (table.log_likelihood <= table.high)).all()
    only = horizon_metrics.rows({5: scores[0]}, on, references, panel="observed", model="m", scoring="mixture")
    assert {row["seed"] for row in only} == {5}


def test_a_lead_is_the_mean_difference_and_knows_which_references_are_hard():
    """What a reference costs both models is in neither the lead nor its interval; a lead that all references share has
    none; over several steps it is the mean over those that a reference lived to see."""
    rng = np.random.default_rng(0)
    one, other, hard = (rng.normal(scale=s, size=(2, 30, 4)) for s in (1, 1, 100))
    one[:, 3, 2:] = other[:, 3, 2:] = np.nan  # ended
    table = pd.DataFrame(horizon_metrics.leads(one, other, panel="p")).set_index(["first", "last"])
    assert [*table.index] == [(1, 1), (2, 2), (3, 3), (4, 4), (3, 4), (1, 4)] and (table.panel == "p").all()
    for (first, last), row in table.iterrows():
        gaps = [
            np.nanmean(gap)
            for gap in (one - other)[..., first - 1 : last].reshape(-1, last - first + 1)
            if not np.isnan(gap).all()
        ]
        assert row.lead == pytest.approx(np.mean(gaps)) and row.low < row.lead < row.high
    columns = ["lead", "low", "high"]
    same = pd.DataFrame(horizon_metrics.leads(one + hard, other + hard)).set_index(["first", "last"])
    assert np.allclose(same[columns], table[columns])
    shared = pd.DataFrame(horizon_metrics.leads(other + 3.0, other))
    assert np.allclose(shared[columns], 3.0)


def test_oracle_and_floor_are_rows_like_any_other():
    rng = np.random.default_rng(0)
    on = random_grid(rng)
    table = pd.DataFrame(horizon_metrics.bounds(on, around(on, rng, 5, 4), panel="masked", scoring="mixture"))
    for model, score in (("oracle", horizon_metrics.oracle(on)), ("uniform", horizon_metrics.uniform(on))):
        chosen = table[table.model == model]
        assert len(chosen) == 4
        assert chosen[["log_likelihood", "low", "high"]].to_numpy() == pytest.approx(np.full((4, 3), score))


@given(seed=seeds)
def test_horizons_are_where_the_gap_to_the_simulator_first_opens(seed):
    rng = np.random.default_rng(seed)
    curves = {("a", "simulator"): 50.0, ("a", "m"): 30.0, ("b", "simulator"): 10.0, ("b", "m"): 0.0}
    rows = [
        {"panel": panel, "model": model, "scoring": "mixture", "seed": 0, "t": t,
         "log_likelihood": top - (model == "m") * rng.uniform(0, 8) * t}
        for (panel, model), top in curves.items() for t in range(1, 11)
    ]  # fmt: skip
    table = pd.DataFrame(rows).sample(frac=1, random_state=seed)
    found = horizon_metrics.horizons(table, (25, 60))
    value = {(row["panel"], row["model"], row["t"]): row["log_likelihood"] for row in rows}
    assert len(found) == 4 and set(found.columns) == {"panel", "model", "scoring", "seed", "lost", "t"}
    for row in found.itertuples():
        opened = [t for t in range(1, 11) if value[row.panel, "simulator", t] - value[row.panel, "m", t] >= row.lost]
        assert row.t == min(opened) if opened else math.isnan(row.t)
