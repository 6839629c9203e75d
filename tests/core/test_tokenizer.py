"""Tests of Equation 1, of its quantile variant, and of the way back."""

import math

import numpy as np
import pytest
import torch
from conftest import WORLD, V, random_steps, tiny_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

from ttlib import tokenizer
from ttlib.tokenizer import Tokenizer, Transition

LINE = Transition(1, 0, rewards=False)  # a step of one token
ALL = slice(None)
KINDS = ("uniform", "quantile")
kinds, sizes = st.sampled_from(KINDS), st.integers(2, 12)
numbers = st.floats(-100, 100, width=32) | st.integers(-2, 2)  # distinct values and heavy ties
columns = st.lists(numbers, min_size=1, max_size=60)


def fit_column(column, bins, kind):
    x = torch.tensor(column, dtype=torch.float64)[:, None]
    return x, tokenizer.fit(x.T, LINE, bins, kind)


def test_dimensions_of_a_step_are_state_action_reward_and_reward_to_go():
    names = Transition(3, 2).names()
    assert names == ["s0", "s1", "s2", "a0", "a1", "r", "R"]
    t = Transition(3, 2)
    found = names[t.state], names[t.action], names[t.reward], names[t.reward_to_go], t.D
    assert found == (names[:3], names[3:5], "r", "R", 7)
    bare = Transition(3, 2, rewards=False)
    assert (bare.names(), bare.D) == (names[:5], 5) and bare.reward_to_go not in range(bare.D)


@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(1, 4), st.integers(1, 3))
def test_the_dimension_of_a_position_is_that_of_a_window_written_out(N, M, rewards, T, prefix):
    """A prefix of goal tokens has the dimensions of states; T whole transitions follow it, or stand alone."""
    t = Transition(N, M, rewards)
    for goal in (0, min(prefix, N)):
        written = [*range(goal)] + [*range(t.D)] * T
        assert [t.dimension(position, goal) for position in range(len(written))] == written


def test_id_is_bin_plus_V_times_dimension():
    t, x = tiny_tokenizer(), random_steps(seed=1)
    ids = t.encode(x, ALL)
    assert (ids // V == torch.arange(WORLD.D)).all() and (ids % V == t.bins(x, ALL)).all()
    for dim in range(WORLD.D):
        assert (t.encode(x[:, dim : dim + 1], slice(dim, dim + 1))[:, 0] == ids[:, dim]).all()
    assert (t.encode(x[:, WORLD.action], WORLD.action) == ids[:, WORLD.action]).all()
    assert ids[:, WORLD.reward_to_go].min() >= V * (WORLD.D - 1)


@given(st.integers(0, 1000), sizes)
def test_uniform_ids_are_equation_1(seed, bins):
    steps = random_steps(20, seed=seed)
    t = tokenizer.fit(steps.T, WORLD, bins)
    ids = t.encode(steps, ALL).tolist()
    low = [min(column) for column in steps.T.tolist()]
    top = [max(column) for column in steps.T.tolist()]
    high = t.high.tolist()
    assert t.low.tolist() == low
    assert all(0 < h - b <= 1e-5 * (b - a) for a, b, h in zip(low, top, high))  # the maximum is inside
    for x, found in zip(steps.tolist(), ids):
        assert found == [math.floor(bins * (x[i] - low[i]) / (high[i] - low[i])) + bins * i for i in range(5)]


@given(columns, sizes, kinds)
def test_columns_of_single_precision_are_fitted_as_exactly_as_of_double(column, bins, kind):
    x, t = fit_column(column, bins, kind)
    single = tokenizer.fit(x.float().T, LINE, bins, kind)
    assert torch.equal(single.edges, t.edges) and torch.equal(single.centres, t.centres)


@given(columns, sizes, kinds)
def test_decoded_values_are_within_half_a_bin(column, bins, kind):
    x, t = fit_column(column, bins, kind)
    half = t.width[0, t.bins(x, ALL)] / 2
    assert ((t.decode(t.encode(x, ALL)) - x).abs() <= half * (1 + 1e-6) + 1e-12).all()


@given(columns, sizes, kinds)
@example([0.0, 1 + 2**-52, 1 + 2**-51, 2.0], 4, "quantile")  # a centre between two neighbours is one of them
def test_bins_decode_into_themselves(column, bins, kind):
    _, t = fit_column(column, bins, kind)
    real = torch.arange(bins)[t.edges[0, 1:].isfinite()]
    assert (t.encode(t.decode(real)[:, None], ALL)[:, 0] == real).all()
    assert kind == "quantile" or len(real) == bins


@given(st.sets(st.integers(-10_000, 10_000), min_size=12, max_size=60), sizes)
def test_distinct_values_are_divided_equally_among_quantile_bins(values, bins):
    x, t = fit_column([v / 7 for v in values], bins, "quantile")
    counts = torch.bincount(t.bins(x, ALL)[:, 0], minlength=bins)
    assert counts.min() >= len(values) // bins and counts.max() <= -(-len(values) // bins)


@given(columns, sizes)
def test_quantile_bins_have_members_and_width(column, bins):
    x, t = fit_column(column, bins, "quantile")
    real = int(t.edges[0, 1:].isfinite().sum())
    edges = t.edges[0, : real + 1]
    assert (edges.diff() > 0).all() and (t.width[0, :real] == edges.diff()).all()
    assert t.width[0, real:].isinf().all() and t.centres.isfinite().all()  # empty bins have density zero
    members = torch.bincount(t.bins(x, ALL)[:, 0], minlength=bins)
    assert (members > 0).tolist() == [b < real for b in range(bins)]
    assert (edges[0], edges[-1]) == (t.low, t.high) and edges[0] == x.min() and edges[-1] > x.max()


def test_heavy_ties_are_one_bin():
    x, t = fit_column([0.0] * 30 + [1.0] * 50 + [2.0, 3.0, 4.0, 5.0] * 5, 5, "quantile")
    assert t.edges[0, :3].tolist() == [0, 1, 2] and t.edges[0, 3] > 5 and t.edges[0, 4:].isinf().all()
    assert torch.bincount(t.bins(x, ALL)[:, 0], minlength=5).tolist() == [30, 50, 20, 0, 0]


@given(st.floats(1e-3, 1e300), kinds)
def test_values_outside_go_to_the_first_or_last_bin(far, kind):
    column = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0]
    _, t = fit_column(column, 5, kind)
    last = int(t.edges[0, 1:].isfinite().sum()) - 1
    assert t.bins(torch.tensor([[-far], [4 + far]], dtype=torch.float64), ALL)[:, 0].tolist() == [0, last]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, -3.7, 1e6])
def test_a_constant_dimension_has_finite_bins(kind, value):
    x, t = fit_column([value] * 9, 5, kind)
    at = t.bins(x, ALL)
    assert t.centres.isfinite().all() and (t.width > 0).all() and t.width[0, at].isfinite().all()
    assert (at == 0).all() and ((t.decode(t.encode(x, ALL)) - value).abs() <= 0.5 * t.width[0, at]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_named(kind, bad):
    steps = random_steps()
    steps[7, 2] = bad
    with pytest.raises(ValueError, match=rf"value {bad} in dimension a0, row 7: .*before fitting"):
        tokenizer.fit(steps.T, WORLD, V, kind)
    with pytest.raises(ValueError, match=rf"{bad} in dimension a0, row \(7,\): .*finite numbers"):
        tiny_tokenizer(kind=kind).encode(steps, ALL)
    with pytest.raises(ValueError, match=rf"{bad} in dimension R, row \(1, 0\)"):
        tiny_tokenizer(kind=kind).encode(torch.tensor([[[0.0]], [[bad]]]), slice(WORLD.D - 1, WORLD.D))


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
    at = t.bins(points[:, None], ALL)[:, 0]
    assert (p[at] / t.width[0, at] * ends.diff()).sum().item() == pytest.approx(1)
    assert ends[-1] - ends[0] == pytest.approx((t.high - t.low).item())


@pytest.mark.parametrize("bins", [257, 1, 0])
def test_bins_must_fit_a_byte(bins):
    with pytest.raises(ValueError, match=rf"V = {bins} .*2 to 256"):
        tokenizer.fit(random_steps().T, WORLD, bins)


@pytest.mark.parametrize("shape, match", [
    ((6, 4), "6 columns; expected D = 5"), ((7, 4), "7 columns; expected D = 5"), ((4, 4), "4 columns; expected D = 5"),
    ((4,), r"s0.* \(\); expected \(n > 0,\)"), ((5, 0), r"s0.* \(0,\); expected \(n > 0,\)"),
    ((5, 2, 2), r"s0.* \(2, 2\); expected \(n > 0,\)"),
])  # fmt: skip
def test_columns_of_another_shape_are_refused(shape, match):
    with pytest.raises(ValueError, match=match):
        tokenizer.fit(torch.zeros(shape), WORLD)


def test_unknown_kinds_and_wrong_edges_are_refused():
    with pytest.raises(ValueError, match="'log'; expected .*uniform.*quantile"):
        tokenizer.fit(random_steps().T, WORLD, V, "log")
    t = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"bin edges \(5, 5\); expected .*\(5, 6\)"):
        Tokenizer(WORLD, V, "uniform", t.edges[:, 1:], t.centres)
