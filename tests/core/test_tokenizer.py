"""Equation 1, its quantile variant, and the way back."""

import math

import numpy as np
import pytest
import torch
from conftest import WORLD, V, random_steps, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ttlib import tokenizer
from ttlib.tokenizer import Tokenizer, Transition

LINE = Transition(1, 0, rewards=False)  # a step of one token
KINDS = ("uniform", "quantile")
kinds, sizes = st.sampled_from(KINDS), st.integers(2, 12)
numbers = st.floats(-100, 100, width=32) | st.integers(-2, 2)  # distinct values and heavy ties
columns = st.lists(numbers, min_size=1, max_size=60)


def fit_column(column, bins, kind):
    x = torch.tensor(column, dtype=torch.float64)[:, None]
    return x, tokenizer.fit(x, LINE, bins, kind)


# -- order of tokens ---------------------------------------------------------------------------------------

def test_dimensions_of_a_step_are_state_action_reward_and_reward_to_go():
    names = Transition(3, 2).names()
    assert names == ["s0", "s1", "s2", "a0", "a1", "r", "R"]
    t = Transition(3, 2)
    assert (names[t.state], names[t.action], names[t.reward], names[t.reward_to_go], t.D) == (
        names[:3], names[3:5], "r", "R", 7)
    bare = Transition(3, 2, rewards=False)
    assert (bare.names(), bare.D) == (names[:5], 5) and bare.reward_to_go not in range(bare.D)


def test_id_is_bin_plus_V_times_dimension():
    t, x = tiny_tokenizer(), random_steps(seed=1)
    ids = t.encode(x, slice(None))
    assert (ids // V == torch.arange(WORLD.D)).all() and (ids % V == t.bins(x, slice(None))).all()
    for dim in range(WORLD.D):
        assert (t.encode(x[:, dim : dim + 1], dim)[:, 0] == ids[:, dim]).all()
    assert (t.encode(x[:, WORLD.action], WORLD.action) == ids[:, WORLD.action]).all()
    assert ids[:, WORLD.reward_to_go].min() >= V * (WORLD.D - 1)


# -- Equation 1 --------------------------------------------------------------------------------------------

@given(st.integers(0, 1000), sizes)
def test_uniform_ids_are_equation_1(seed, bins):
    steps = random_steps(20, seed=seed)
    t = tokenizer.fit(steps, WORLD, bins)
    ids = t.encode(steps, slice(None)).tolist()
    low = [min(column) for column in steps.T.tolist()]
    top = [max(column) for column in steps.T.tolist()]
    high = t.high.tolist()
    assert t.low.tolist() == low
    assert all(0 < h - b <= 1e-5 * (b - a) for a, b, h in zip(low, top, high))  # the maximum is inside
    for x, found in zip(steps.tolist(), ids):
        assert found == [math.floor(bins * (x[i] - low[i]) / (high[i] - low[i])) + bins * i for i in range(5)]


@given(columns, sizes)
def test_uniform_bins_are_of_one_width(column, bins):
    _, t = fit_column(column, bins, "uniform")
    assert t.width[0].numpy() == pytest.approx((t.high - t.low).item() / bins, rel=1e-6)


@given(columns, sizes, kinds)
def test_columns_of_single_precision_are_fitted_as_exactly_as_of_double(column, bins, kind):
    x, t = fit_column(column, bins, kind)
    single = tokenizer.fit(x.float(), LINE, bins, kind)
    assert torch.equal(single.edges, t.edges) and torch.equal(single.centres, t.centres)


# -- there and back ----------------------------------------------------------------------------------------

@given(columns, sizes, kinds)
def test_decoded_values_are_within_half_a_bin(column, bins, kind):
    x, t = fit_column(column, bins, kind)
    half = t.width[0, t.bins(x, 0)] / 2
    assert ((t.decode(t.encode(x, 0)) - x).abs() <= half * (1 + 1e-6) + 1e-12).all()


@given(columns, sizes, kinds)
def test_bins_decode_into_themselves(column, bins, kind):
    _, t = fit_column(column, bins, kind)
    real = torch.arange(bins)[t.edges[0, 1:].isfinite()]
    assert (t.encode(t.decode(real)[:, None], 0)[:, 0] == real).all()
    assert kind == "quantile" or len(real) == bins


@pytest.mark.parametrize("kind", KINDS)
def test_shape_of_the_batch_does_not_matter(kind):
    t, x = tiny_tokenizer(kind=kind), random_steps(24, seed=1)
    one_by_one = torch.stack([torch.stack([t.encode(row[i : i + 1], i)[0] for i in range(5)]) for row in x])
    assert (t.encode(x.view(2, 3, 4, -1), slice(None)) == one_by_one.view(2, 3, 4, -1)).all()
    assert (t.decode(one_by_one.view(2, 3, 4, -1)) == t.decode(one_by_one).view(2, 3, 4, -1)).all()


# -- quantile bins -----------------------------------------------------------------------------------------

@given(st.sets(st.integers(-10_000, 10_000), min_size=12, max_size=60), sizes)
def test_distinct_values_are_shared_equally_among_quantile_bins(values, bins):
    x, t = fit_column([v / 7 for v in values], bins, "quantile")
    counts = torch.bincount(t.bins(x, 0)[:, 0], minlength=bins)
    assert counts.min() >= len(values) // bins and counts.max() <= -(-len(values) // bins)


@given(columns, sizes)
def test_quantile_bins_have_members_and_width(column, bins):
    x, t = fit_column(column, bins, "quantile")
    real = int(t.edges[0, 1:].isfinite().sum())
    edges = t.edges[0, : real + 1]
    assert (edges.diff() > 0).all() and (t.width[0, :real] == edges.diff()).all()
    members = torch.bincount(t.bins(x, 0)[:, 0], minlength=bins)
    assert (members > 0).tolist() == [b < real for b in range(bins)]
    assert (edges[0], edges[-1]) == (t.low, t.high) and edges[0] == x.min() and edges[-1] > x.max()


def test_heavy_ties_are_one_bin():
    x, t = fit_column([0.0] * 30 + [1.0] * 50 + [2.0, 3.0, 4.0, 5.0] * 5, 5, "quantile")
    assert t.edges[0, :3].tolist() == [0, 1, 2] and t.edges[0, 3] > 5 and t.edges[0, 4:].isinf().all()
    assert torch.bincount(t.bins(x, 0)[:, 0], minlength=5).tolist() == [30, 50, 20, 0, 0]


# -- outside, constant, not finite -------------------------------------------------------------------------

@given(st.floats(1e-3, 1e300), kinds)
def test_values_outside_go_to_the_first_or_last_bin(far, kind):
    column = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0]
    _, t = fit_column(column, 5, kind)
    last = int(t.edges[0, 1:].isfinite().sum()) - 1
    assert t.bins(torch.tensor([[-far], [4 + far]], dtype=torch.float64), 0)[:, 0].tolist() == [0, last]


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_range_counts_what_lies_outside(kind):
    t, x = tiny_tokenizer(kind=kind), 3 * random_steps(200, seed=1)
    low, high = random_steps().amin(0).tolist(), random_steps().amax(0).tolist()
    dims = slice(1, 4)
    share = [np.mean([not low[i] <= v <= high[i] for v in x[:, i].tolist()]) for i in range(5)][dims]
    assert min(share) > 0.1
    assert t.out_of_range(x[:, dims], dims).tolist() == pytest.approx(share)
    assert t.out_of_range(random_steps(), slice(None)).tolist() == [0] * 5
    assert t.out_of_range(t.high[None], slice(None)).tolist() == [1] * 5  # half open: high itself is outside


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, -3.7, 1e6])
def test_a_constant_dimension_has_finite_bins(kind, value):
    x, t = fit_column([value] * 9, 5, kind)
    at = t.bins(x, 0)
    assert t.centres.isfinite().all() and (t.width > 0).all() and t.width[0, at].isfinite().all()
    assert (at == 0).all() and ((t.decode(t.encode(x, 0)) - value).abs() <= 0.5 * t.width[0, at]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_named(kind, bad):
    steps = random_steps()
    steps[7, 2] = bad
    with pytest.raises(ValueError, match=rf"value {bad} in dimension a0, row 7: .*before fitting"):
        tokenizer.fit(steps, WORLD, V, kind)
    with pytest.raises(ValueError, match=rf"{bad} in dimension a0, row \(7,\): .*finite numbers"):
        tiny_tokenizer(kind=kind).encode(steps, slice(None))
    with pytest.raises(ValueError, match=rf"{bad} in dimension R, row \(1, 0\)"):
        tiny_tokenizer(kind=kind).encode(torch.tensor([[[0.0]], [[bad]]]), WORLD.reward_to_go)


# -- what a distribution over bins says --------------------------------------------------------------------

@given(st.integers(0, 1000), kinds, st.integers(0, WORLD.D - 1))
def test_expected_is_the_mean_of_the_centres(seed, kind, dim):
    t = tiny_tokenizer(kind=kind)
    log_p = torch.randn(3, 2, V, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    centre = t.decode(torch.arange(V) + V * dim).tolist()
    slow = [[sum(math.exp(q) * c for q, c in zip(row, centre)) for row in rows] for rows in log_p.tolist()]
    assert t.expected(log_p, dim).numpy() == pytest.approx(np.array(slow), abs=1e-5)
    assert t.expected(torch.eye(V).log(), dim).numpy() == pytest.approx(t.centres[dim].numpy(), abs=1e-6)


@given(columns, sizes, kinds, st.integers(0, 1000))
def test_probability_over_width_is_a_density(column, bins, kind, seed):
    _, t = fit_column(column, bins, kind)
    p = torch.rand(bins, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = p.masked_fill(t.edges[0, 1:].isinf(), 0)
    p = p / p.sum()
    # Midpoint rule between all edges: the density is looked up where `bins` says that a point lies.
    ends = t.edges[0][t.edges[0].isfinite()]
    points = (ends[:-1] + ends[1:]) / 2
    at = t.bins(points[:, None], 0)[:, 0]
    assert (p[at] / t.width[0, at] * ends.diff()).sum().item() == pytest.approx(1)
    assert ends[-1] - ends[0] == pytest.approx((t.high - t.low).item())


def test_bins_without_members_have_density_zero():
    _, t = fit_column([0.0, 1.0], 6, "quantile")
    empty = t.edges[0, 1:].isinf()
    assert empty.sum() == 4 and (1 / t.width[0, empty] == 0).all() and t.width[0, empty].isinf().all()
    assert t.centres.isfinite().all()


# -- doors -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bins", [257, 1, 0])
def test_bins_must_fit_a_byte(bins):
    with pytest.raises(ValueError, match=rf"V = {bins} .*2 to 256"):
        tokenizer.fit(random_steps(), WORLD, bins)


@pytest.mark.parametrize("shape", [(4, 6), (4,), (0, 5), (2, 2, 5)])
def test_steps_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=rf"shape {str(shape).replace('(', '.').replace(')', '.')}; .*D = 5"):
        tokenizer.fit(torch.zeros(shape), WORLD)


def test_unknown_kinds_and_wrong_edges_are_refused():
    with pytest.raises(ValueError, match="'log'; expected 'uniform' or 'quantile'"):
        tokenizer.fit(random_steps(), WORLD, V, "log")
    t = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"shape \(5, 5\); .*\(5, 6\)"):
        Tokenizer(WORLD, V, "uniform", t.edges[:, 1:], t.centres)
