"""Tests of the scores of Figure 2 against brute force, closed forms and the bounds that no score may pass."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORLD, V, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from ttlib import tokenizer
from ttlib.baselines import ensemble
from ttlib.datasets.arrays import episodes
from ttlib.pipeline import statistics
from ttlib.studies import horizon_metrics
from ttlib.studies.horizon_metrics import GaussianMarginals, Grid

seeds = st.integers(0, 10_000)


def random_grid(rng, N=3, bins=V):
    low, high = np.sort(rng.normal(size=(2, N, 1)), axis=0)
    return Grid(low + (high - low) * np.linspace(0, 1, bins + 1), np.ones(N, bool))


def random_mass(rng, steps, N=3, bins=V, sharpness=0.2):
    return rng.dirichlet(np.full(bins, sharpness), size=(steps, N))


def around(grid, rng, n, steps):
    """Return trajectories with values inside and outside the bins."""
    low, high = grid.edges[:, 0], grid.edges[:, -1]
    return low + (high - low) * rng.uniform(-0.3, 1.3, size=(n, steps, len(low)))


def bin_of(grid, i, x):
    """Find a bin by looking at one after the other; the outer ones reach to infinity."""
    bins = grid.edges.shape[1] - 1
    return next(b for b in range(bins) if b == bins - 1 or x < grid.edges[i, b + 1])


@given(seed=seeds)
def test_values_fall_into_the_bins_of_the_tokenizer(seed):
    rng, tokens = np.random.default_rng(seed), tiny_tokenizer()
    grid = horizon_metrics.grid(tokens, rng.normal(size=(5, WORLD.N)))
    x = 5 * rng.normal(size=(7, WORLD.N))
    assert (grid.bins(x) == tokens.bins(torch.from_numpy(x), WORLD.state).numpy()).all()
    centres = tokens.centres[WORLD.state].numpy()
    assert (grid.bins(centres.T) == np.arange(V)[:, None]).all()
    assert (grid.bins(grid.edges[:, :-1].T) == np.arange(V)[:, None]).all()  # a bin is [edge, next edge)


def test_only_uniform_bins_of_states_that_vary_are_scored():
    with pytest.raises(ValueError, match="bins of kind 'quantile'; expected 'uniform'"):
        horizon_metrics.grid(tiny_tokenizer(kind="quantile"), np.eye(2))
    with pytest.raises(ValueError, match="all 2 state dimensions are constant"):
        horizon_metrics.grid(tiny_tokenizer(), np.ones((4, 2)))


def test_a_constant_dimension_changes_no_score():
    rng = np.random.default_rng(0)
    steps = torch.randn(50, WORLD.D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps[:, 1] = 3.0
    grid = horizon_metrics.grid(tokenizer.fit(steps.T, WORLD, V), steps[:, :2].numpy())
    alone = Grid(grid.edges[:1], np.ones(1, bool))
    references, mass = around(grid, rng, 6, 4), random_mass(rng, 4, N=2)
    references[..., 1] = 3.0
    assert grid.varies.tolist() == [True, False]
    score = horizon_metrics.log_likelihood(grid, mass, 9, references)
    assert score == pytest.approx(horizon_metrics.log_likelihood(alone, mass[:, :1], 9, references[..., :1]))
    assert horizon_metrics.oracle(grid) == pytest.approx(horizon_metrics.oracle(alone))
    assert horizon_metrics.uniform(grid) == pytest.approx(horizon_metrics.uniform(alone))
    assert grid.out_of_range(references) == pytest.approx(alone.out_of_range(references[..., :1]))


@given(seed=seeds, n=st.integers(1, 12))
def test_a_histogram_counts(seed, n):
    rng = np.random.default_rng(seed)
    grid = random_grid(rng)
    samples = around(grid, rng, n, steps=2)
    samples[rng.random(samples.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    counts = np.zeros((2, 3, V))
    for t in range(2):
        for state in samples[:, t]:
            for i, x in enumerate(state):
                if np.isfinite(state).all():
                    counts[t, i, bin_of(grid, i, x)] += 1
    assert horizon_metrics.histogram(grid, samples, n) * n == pytest.approx(counts)
    alive = horizon_metrics.alive(samples)
    assert (alive == counts.sum(2)[:, 0]).all()
    totals = np.repeat(alive[:, None] > 0, 3, 1).astype(float)
    assert horizon_metrics.histogram(grid, samples, alive).sum(2) == pytest.approx(totals)


def recorded(*parts):
    """Return episodes with these states, (T, N) each."""
    n = sum(map(len, parts))
    ends = np.isin(np.arange(n), np.cumsum([len(part) for part in parts]) - 1)
    return episodes({"observations": np.concatenate(parts), "actions": np.zeros((n, 1)), "rewards": np.zeros(n),
                     "terminals": ends, "timeouts": np.zeros(n, bool)})  # fmt: skip


@given(seed=seeds, age=st.integers(0, 6), radius=st.integers(0, 3))
def test_the_clock_counts_the_states_of_the_same_age(seed, age, radius):
    rng = np.random.default_rng(seed)
    grid, parts = random_grid(rng), [rng.normal(size=(T, 3)) for T in (4, 7, 1)]
    counts = horizon_metrics.counts_by_age(grid, recorded(*parts))
    mass, n = horizon_metrics.clock(counts, age, 3, radius)
    for t in (1, 2, 3):
        found = [s for part in parts for a, s in enumerate(part) if abs(a - (age + t)) <= radius]
        assert n[t - 1] == len(found)
        for i, b in np.ndindex(3, V):
            expected = np.mean([bin_of(grid, i, s[i]) == b for s in found]) if found else 0
            assert mass[t - 1, i, b] == pytest.approx(expected)
    mass, n = horizon_metrics.constant(counts, 3)
    assert n.tolist() == 3 * [12] and (mass == mass[:1]).all()
    assert mass[0] == pytest.approx(horizon_metrics.histogram(grid, np.concatenate(parts)[:, None], 12)[0])


def test_the_clock_is_constant_where_each_age_has_the_same_states():
    rng = np.random.default_rng(0)
    grid = random_grid(rng)
    counts = horizon_metrics.counts_by_age(grid, recorded(*(np.repeat(s, 9, 0) for s in rng.normal(size=(5, 1, 3)))))
    clock, constant = horizon_metrics.clock(counts, 1, 5), horizon_metrics.constant(counts, 5)
    assert clock[0] == pytest.approx(constant[0]) and clock[1].tolist() == 5 * [5 * 5]


@given(seed=seeds)
def test_analogs_foretell_a_deterministic_period(seed):
    """Four episodes of six periods from any phase; the copies of a state near an end have a shorter future."""
    rng = np.random.default_rng(seed)
    grid, wave = random_grid(rng), rng.normal(size=(7, 3)) * [1.0, 10.0, 0.1]
    data = recorded(*(np.tile(np.roll(wave, shift, 0), (6, 1)) for shift in rng.integers(7, size=4)))
    mass, n = horizon_metrics.analog(grid, data, wave[2], steps=10, count=20)
    assert (np.diff(n) <= 0).all() and n[0] <= 20 and n[-1] >= 10
    for t in range(1, 11):
        assert (mass[t - 1] == np.eye(V)[grid.bins(wave[(2 + t) % 7])]).all()


def test_on_a_periodic_task_memory_beats_the_lines_without_a_model():
    """0, 1, 0, 2 from any phase: 0 alone does not say what is next, but 0 after 1 does.  All scores are known."""
    steps = 12
    series = [np.roll(np.tile([0.0, 1.0, 0.0, 2.0], 10), phase) for phase in range(4)] * 100
    with_last = [np.column_stack([x, np.append(x[3], x[:-1])]) for x in series]  # the state, and the one before it
    grid = Grid(np.array([[-0.5, 0.5, 1.5, 2.5]] * 2), np.ones(2, bool))
    seen = Grid(grid.edges[:1], np.ones(1, bool))
    one, two = recorded(*(x[:, None] for x in series)), recorded(*with_last)
    held, start = np.array([2.0, 0.0, 1.0, 0.0] * (steps // 4))[None, :, None], np.array([0.0, 1.0])  # 0 after 1
    counts = horizon_metrics.counts_by_age(seen, one)
    lines = {"constant": horizon_metrics.constant(counts, steps), "clock": horizon_metrics.clock(counts, 5, steps),
             "without memory": horizon_metrics.analog(seen, one, start[:1], steps),
             "memory": horizon_metrics.analog(grid, two, start, steps)}  # fmt: skip
    lines["memory"] = lines["memory"][0][:, :1], lines["memory"][1]
    score = {name: horizon_metrics.log_likelihood(seen, *line, held)[0] for name, line in lines.items()}
    marginal = np.log(np.where(np.arange(steps) % 2, 1 / 2, 1 / 4))
    for line in ("constant", "clock"):
        assert score[line] == pytest.approx(marginal, abs=0.01)
    assert score["without memory"] == pytest.approx(np.log(np.where(np.arange(steps) % 2, 1, 1 / 2)), abs=0.1)
    assert score["memory"] == pytest.approx(0, abs=0.01)


def test_a_conditional_score_is_the_mean_of_each_start():
    score, start = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, np.nan], [7.0, np.nan]]), np.array([0, 1, 0, 1])
    assert horizon_metrics.by_start(score, start).tolist() == [[3.0, 2.0], [5.0, 4.0]]


@given(seed=seeds, n=st.integers(0, 12))
def test_a_score_is_the_log_of_the_smoothed_mass_over_the_bin_s_width(seed, n):
    rng = np.random.default_rng(seed)
    grid, steps = random_grid(rng), 3
    samples, references = around(grid, rng, n, steps), around(grid, rng, 4, steps)
    scores = horizon_metrics.log_likelihood(grid, horizon_metrics.histogram(grid, samples, n), n, references)
    for k, t in np.ndindex(4, steps):
        score = 0.0
        for i in range(3):
            b = bin_of(grid, i, references[k, t, i])
            count = sum(bin_of(grid, i, x) == b for x in samples[:, t, i])
            score += math.log((count + 1 / V) / (n + 1)) - math.log(grid.edges[i, b + 1] - grid.edges[i, b])
        assert scores[k, t] == pytest.approx(score)


@given(seed=seeds, n=st.integers(0, 50))
def test_equal_masses_score_as_uniform_and_the_right_bin_as_the_oracle(seed, n):
    rng = np.random.default_rng(seed)
    grid = random_grid(rng)
    references, extent = around(grid, rng, 4, 2), grid.edges[:, -1] - grid.edges[:, 0]
    equal = horizon_metrics.log_likelihood(grid, np.full((2, 3, V), 1 / V), n, references)
    assert equal == pytest.approx(np.full((4, 2), -np.log(extent).sum()))
    assert horizon_metrics.uniform(grid) == pytest.approx(-np.log(extent).sum())
    right = np.eye(V)[grid.bins(references[0])]
    best = horizon_metrics.log_likelihood(grid, right, 10**12, references[:1])
    assert best == pytest.approx(horizon_metrics.oracle(grid), abs=1e-6)
    assert horizon_metrics.oracle(grid) == pytest.approx(np.log(V / extent).sum())


def test_values_outside_the_range_are_scored_in_the_edge_bin_and_counted():
    grid = Grid(np.stack([np.linspace(0, 1, V + 1), np.linspace(-2, 2, V + 1)]), np.ones(2, bool))
    mass = random_mass(np.random.default_rng(0), 1, N=2)
    far, near = np.array([[[1e30, -7.0]]]), np.array([[[0.999, -1.999]]])
    scores = [horizon_metrics.log_likelihood(grid, mass, 5, references) for references in (far, near)]
    assert (scores[0] == scores[1]).all()
    four = np.concatenate([far, near, [[[1.0, 2.0]]], [[[0.0, -2.0]]]])  # [low, high)
    assert grid.out_of_range(four) == pytest.approx([(2 + 0 + 2 + 0) / 8])


def test_trajectories_end_where_their_episodes_do():
    columns = {"observations": np.arange(18.0).reshape(9, 2), "actions": np.zeros((9, 1)), "rewards": np.zeros(9),
               "terminals": np.eye(9)[2], "timeouts": np.eye(9)[8]}  # fmt: skip
    states = horizon_metrics.trajectories(episodes(columns), steps=4)
    assert states.shape == (2, 4, 2)
    assert (states[0, :2] == columns["observations"][1:3]).all() and np.isnan(states[0, 2:]).all()
    assert (states[1] == columns["observations"][4:8]).all()
    assert horizon_metrics.alive(states).tolist() == [2, 2, 1, 1]


def test_the_marginals_are_the_mixture_of_the_visited_gaussians():
    rng = np.random.default_rng(0)
    model = ensemble.Ensemble(2, 1, ensemble.EnsembleConfig(members=3, width=8, layers=1))
    grid, start, steps = random_grid(rng, N=2), rng.normal(size=(4, 2)), 3
    references = around(grid, rng, 5, steps)
    references[0, 1:] = np.nan
    marginals, seen = GaussianMarginals(grid, references), {}

    def visit(t, mean, std):
        seen[t] = mean.reshape(-1, 2), std.reshape(-1, 2)
        marginals.visit(t, mean, std)

    ensemble.sample(model, lambda s, rng: s[:, :1], start, steps, "ts1", rng, visit)
    infinite = np.column_stack([np.full(2, -np.inf), grid.edges[:, 1:-1], np.full(2, np.inf)])
    for t, (mean, std) in seen.items():
        for i in range(2):
            exact = np.diff(norm.cdf(infinite[i], mean[:, i, None], std[:, i, None]), axis=1).mean(0)
            assert marginals.mass[t - 1, i] == pytest.approx(exact)
        for k, x in enumerate(references[:, t - 1]):
            log_p = np.log(norm.pdf(x, mean, std).mean(0)).sum()
            assert marginals.log_density[k, t - 1] == pytest.approx(log_p, nan_ok=True)
    assert np.isnan(marginals.log_density).sum() == 2


def test_intervals_over_seeds_include_the_differences_between_models():
    """All references of a seed score the same, so their interval alone would have no width."""
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


def test_one_reference_without_density_makes_the_mean_minus_infinity():
    values = np.zeros((1, 200, 2))
    values[0, 0, 0], values[0, :, 1] = -np.inf, -np.inf
    low, high = horizon_metrics.interval(values)
    assert low.tolist() == [-np.inf, -np.inf] and high.tolist() == [0, -np.inf]


def test_rows_hold_each_seed_and_all_seeds_together():
    rng = np.random.default_rng(0)
    grid, steps = random_grid(rng), 3
    references = around(grid, rng, 10, steps)
    references[:4, 2] = np.nan
    scores = {seed: horizon_metrics.log_likelihood(grid, random_mass(rng, steps), 9, references) for seed in (0, 1)}
    assert np.isnan(scores[0]).tolist() == np.isnan(references).all(2).tolist()
    table = pd.DataFrame(horizon_metrics.rows(scores, grid, references, panel="observed", model="m", scoring="mixture"))
    columns = "panel, model, scoring, seed, t, log_likelihood, low, high, out_of_range, alive"
    assert table.columns.tolist() == columns.split(", ")
    assert table.seed.unique().tolist() == [0, 1, horizon_metrics.EVERY_SEED] and table.t.tolist() == 3 * [1, 2, 3]
    assert table[table.seed == 1].log_likelihood.to_numpy() == pytest.approx(np.nanmean(scores[1], 0))
    pooled = table[table.seed == horizon_metrics.EVERY_SEED]
    assert pooled.log_likelihood.to_numpy() == pytest.approx(np.nanmean(list(scores.values()), (0, 1)))
    assert table.alive.tolist() == 3 * [10, 10, 6]
    assert table.out_of_range.to_numpy() == pytest.approx(np.tile(grid.out_of_range(references), 3))
    assert ((table.low <= table.log_likelihood) & (table.log_likelihood <= table.high)).all()
    only = horizon_metrics.rows({5: scores[0]}, grid, references, panel="observed", model="m", scoring="mixture")
    assert {row["seed"] for row in only} == {5}


def test_a_lead_is_the_mean_difference_on_the_same_references():
    """What is hard for both models changes no lead; over several steps it is the mean before a reference ended."""
    rng = np.random.default_rng(0)
    one, other, hard = (rng.normal(scale=s, size=(2, 30, 4)) for s in (1, 1, 100))
    one[:, 3, 2:] = other[:, 3, 2:] = np.nan  # ended
    table = pd.DataFrame(horizon_metrics.leads(one, other, panel="p")).set_index(["first", "last"])
    assert [*table.index] == [(1, 1), (2, 2), (3, 3), (4, 4), (3, 4), (1, 4)] and (table.panel == "p").all()
    for (first, last), row in table.iterrows():
        each = (one - other)[..., first - 1 : last].reshape(-1, last - first + 1)
        gaps = [np.nanmean(gap) for gap in each if not np.isnan(gap).all()]
        assert row.lead == pytest.approx(np.mean(gaps)) and row.low < row.lead < row.high
    columns = ["lead", "low", "high"]
    same = pd.DataFrame(horizon_metrics.leads(one + hard, other + hard)).set_index(["first", "last"])
    assert np.allclose(same[columns], table[columns])
    shared = pd.DataFrame(horizon_metrics.leads(other + 3.0, other))
    assert np.allclose(shared[columns], 3.0)


@given(seed=seeds)
def test_horizons_are_where_the_gap_to_the_simulator_first_opens(seed):
    rng = np.random.default_rng(seed)
    curves = {("a", "simulator"): 50.0, ("a", "m"): 30.0, ("b", "simulator"): 10.0, ("b", "m"): 0.0}
    rows = [{"panel": panel, "model": model, "scoring": "mixture", "seed": 0, "t": t,
             "log_likelihood": top - (model == "m") * rng.uniform(0, 8) * t}
            for (panel, model), top in curves.items() for t in range(1, 11)]  # fmt: skip
    table = pd.DataFrame(rows).sample(frac=1, random_state=seed)
    steps = horizon_metrics.horizons(table, (25, 60))
    value = {(row["panel"], row["model"], row["t"]): row["log_likelihood"] for row in rows}
    assert len(steps) == 4 and set(steps.columns) == {"panel", "model", "scoring", "seed", "lost", "t"}
    for row in steps.itertuples():
        opened = [t for t in range(1, 11) if value[row.panel, "simulator", t] - value[row.panel, "m", t] >= row.lost]
        assert row.t == min(opened) if opened else math.isnan(row.t)
