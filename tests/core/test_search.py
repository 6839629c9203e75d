"""Tests of search against the paper's listing, and against a slow search over transitions."""

import itertools
import math
import unittest.mock
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import WORLD, Table, algorithm_1, random_row, tiny_tokenizer
from hypothesis import assume, given
from hypothesis import strategies as st

from ttlib import data, search
from ttlib.control import Streams
from ttlib.search import Plan
from ttlib.tokenizer import Transition

seeds = st.integers(0, 10_000)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@given(seeds, st.integers(1, 6), st.integers(1, 12), st.integers(2, 4), st.sets(st.integers(0, 5)))
def test_beam_search_is_the_papers_listing(seed, length, width, V, skip):
    row, starts = random_row(seed, V), [(0,), (1,)]
    table = Table(row, starts)
    found = search.beam_search(table.advance, table.log_p, length, width, skip)
    for g, start in enumerate(starts):
        listed = algorithm_1(row, start, length, width, V, skip)
        real = len(listed)  # a skipped step has one choice: sequences that fill the width have no probability
        assert [tuple(b) for b in found.bins[g, :real].tolist()] == [sequence for sequence, _ in listed]
        assert found.log_p[g, :real].tolist() == pytest.approx([q for _, q in listed])
        assert (found.log_p[g, real:] == -math.inf).all() and found.bins.shape[1] <= width
        # `parents` says which of the sequences that `advance` knows each one continues.
        for bins, parent in zip(found.bins[g].tolist(), found.parents[g].tolist()):
            assert table.groups[g][parent] == start + tuple(bins[:-1])


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.integers(1, 3), st.lists(st.booleans(), min_size=4))
def test_each_environment_has_the_random_numbers_of_its_seed_alone(environments, each, going_on):
    together, alone = Streams(environments), [Streams([seed]) for seed in environments]
    for _ in range(3):
        numbers = together.uniform(each * len(alone), 5, dtype=torch.float64)
        assert torch.equal(numbers, torch.cat([stream.uniform(each, 5, dtype=torch.float64) for stream in alone]))
        stay = going_on[: len(alone)]
        if not any(stay):
            return
        together.select(stay)
        alone = [stream for stream, stays in zip(alone, stay) if stays]


@given(seeds, st.integers(1, 6))
def test_bins_without_mass_are_not_drawn_at_either_end_of_the_uniform_numbers(seed, count):
    log_p, generator = torch.randn(1, 6, generator=rng(seed)), rng(seed)
    possible = torch.randperm(6, generator=generator)[:count].sort().values
    log_p = torch.full_like(log_p, -torch.inf).index_copy(1, possible, log_p[:, possible])
    drawn = []
    for u in (0.0, 1 - 2**-24):  # all that torch.rand gives lies between
        with unittest.mock.patch("torch.rand", lambda *size, u=u, **options: torch.full(*size, u)):
            drawn.append(search.sample(log_p, Streams([0])).item())
    assert drawn == [possible[0], possible[-1]]


@given(seeds, st.floats(0, 0.999))
def test_the_filter_drops_exactly_the_least_likely_that_hold_less(seed, drop_probability):
    log_p = torch.randn(3, 7, generator=rng(seed), dtype=torch.float64).log_softmax(-1)
    for left, p in zip(search.filtered(log_p, drop_probability), log_p.exp().tolist()):
        dropped, held = set(), 0.0
        for b in sorted(range(7), key=lambda b: p[b]):
            held += p[b]
            if held >= drop_probability or b == max(range(7), key=lambda b: p[b]):
                break
            dropped.add(b)
        assume(abs(held - drop_probability) > 1e-9)
        assert set(left.isinf().nonzero().flatten().tolist()) == dropped
        assert left[max(range(7), key=lambda b: p[b])].isfinite()


def test_the_likeliest_bin_stays_even_if_it_holds_less_than_the_drop_probability():
    log_p = torch.randn(300, 100, generator=rng()).log_softmax(-1)
    for drop_probability in (0.99, 1 - 1e-9):  # the second is 1 in fp32; sums of fp32 probabilities often fall short
        left = search.filtered(log_p, drop_probability).isfinite()
        assert left.gather(1, log_p.argmax(1, keepdim=True)).all()
    assert (left.sum(1) == 1).all()


@pytest.mark.parametrize("value", [1.0, -0.1])
def test_impossible_filters_are_refused(value):
    with pytest.raises(ValueError, match=rf"drop_probability={value}; expected"):
        search.filtered(torch.zeros(3), value)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0, 1), st.booleans())
def test_with_true_rewards_a_plan_is_worth_R_0_at_every_horizon(rewards, gamma, reward_in_R):
    r, starts = np.array(rewards), np.array([0, len(rewards)])
    R = torch.from_numpy(data.reward_to_go(r, starts, gamma, reward_in_R))
    worth = sum(gamma**t * reward for t, reward in enumerate(rewards))  # the whole return from now on
    for h in range(1, len(r) + 1):
        plans = (torch.from_numpy(r[:h]).expand(2, 3, h), R[:h].expand(2, 3, h))
        value = search.plan_value(*plans, gamma, reward_in_R)
        assert value.numpy() == pytest.approx(np.full((2, 3), worth), abs=1e-9)


SMALL = Transition(1, 1)


def read_rewards(row, history, bins):
    """Return E[r] and E[R] after the last action token, and the history with the bin of E[r], and 0 for R."""
    r = sum(p * c for p, c in zip(row(history).exp().tolist(), bins.centres[-2].tolist()))
    dim = bins.transition.reward
    history += (int(bins.bins(torch.tensor([[r]]).double(), slice(dim, dim + 1))),)
    R = sum(p * c for p, c in zip(row(history).exp().tolist(), bins.centres[-1].tolist()))
    return r, R, history + (0,)


def worth(r, R, plan):
    h, g = len(r), plan.gamma
    if not plan.use_reward_to_go:
        return sum(g**k * r[k] for k in range(h))
    counted = h - 1 if plan.reward_in_R else h
    return sum(g**k * r[k] for k in range(counted)) + g**counted * R[-1]


def maximise_slowly(row, start, bins, plan):
    """Search as in Section 3.2, in lists -> [(value, tokens after start, r, R)], best first."""
    t, plans = bins.transition, [(0.0, tuple(start), [], [])]
    for step in range(plan.horizon):
        longer = []
        for _, history, r, R in plans:
            width = plan.expansions if step else plan.beam_width * plan.expansions
            for tokens, _ in algorithm_1(row, history, t.N * (step > 0) + t.M, width, bins.V):
                new_r, new_R, after = read_rewards(row, history + tokens, bins)
                longer.append((worth(r + [new_r], R + [new_R], plan), after, r + [new_r], R + [new_R]))
        plans = sorted(longer, key=lambda p: -p[0])[: plan.beam_width]
    return [(value, history[len(start) :], r, R) for value, history, r, R in plans]


def maximise(row, starts, bins, plan, seed=0):
    """Plan for each of `starts`, with the seeds from `seed` on."""
    table, streams = Table(row, starts), Streams(range(seed, seed + len(starts)))
    return search.maximise(table.advance, table.select_plans, table.log_p, bins, plan, streams)


def test_extended_sequences_are_those_of_their_parents():
    log_p, parents = torch.randn(2, 3, 4, generator=rng()).log_softmax(-1), torch.tensor([[2, 2], [0, 1]])
    found, best = search.extend(None, log_p, parents, 1, lambda p: p.argmax(-1)), log_p.max(-1)
    assert (found.bins[..., 0] == best.indices.gather(1, parents)).all() and (found.parents == parents).all()
    assert torch.equal(found.log_p, best.values.gather(1, parents))


def fed(plans, transition):
    """Return the tokens (E, B, L) of plans as they were fed: R as 0."""
    dims = (torch.arange(plans.bins.shape[2]) + transition.N) % transition.D
    return plans.bins.masked_fill(dims == transition.reward_to_go, 0)


search_options = st.fixed_dictionaries({
    "horizon": st.integers(1, 3), "beam_width": st.integers(1, 4), "expansions": st.integers(1, 4),
    "gamma": st.sampled_from([0.9, 1.0]), "reward_in_R": st.booleans(), "use_reward_to_go": st.booleans()})


@given(seeds, search_options, st.sampled_from([SMALL, WORLD]))
def test_maximise_is_a_slow_search_over_transitions(seed, options, transition):
    plan, starts = Plan(**options), [(0,), (1, 2)]
    row, bins = random_row(seed, 3), tiny_tokenizer(transition, 3)
    found = maximise(row, starts, bins, plan)
    tokens = fed(found, transition)
    for e, start in enumerate(starts):
        slow = maximise_slowly(row, start, bins, plan)
        assert found.value[e].tolist() == pytest.approx([value for value, *_ in slow])
        assert [tuple(b) for b in tokens[e].tolist()] == [b for _, b, _, _ in slow]
        assert found.rewards[e].numpy() == pytest.approx(np.array([r for _, _, r, _ in slow]))
        assert found.rewards_to_go[e].numpy() == pytest.approx(np.array([R for *_, R in slow]))
        alone = maximise(row, [start], bins, plan)  # environments of a batch do not meet
        assert all((a[0] == b[e]).all() for a, b in zip(alone[:4], found))
        assert alone.spread.item() == pytest.approx(found.spread[e].item(), abs=1e-9)


@given(seeds, st.integers(1, 3), st.sampled_from([0, 0.6, 0.999]), st.sampled_from([Transition(2, 2), SMALL]))
def test_sampled_plans_are_what_the_table_says(seed, horizon, drop_probability, transition):
    """States are the likeliest, the filter leaves the actions, and rewards and values are read along the way."""
    V, starts = 4, [(0,), (1, 2)]
    row, bins = random_row(seed, V), tiny_tokenizer(transition, V)
    plan = Plan(horizon, 3, 4, reward_in_R=False, proposal="sample", drop_probability=drop_probability)
    found = maximise(row, starts, bins, plan, seed)
    tokens = fed(found, transition)
    assert (found.value.diff(dim=1) <= 0).all()
    dims = (torch.arange(found.bins.shape[2]) + transition.N) % transition.D
    for name, column in (("reward", found.rewards), ("reward_to_go", found.rewards_to_go)):  # bins of expectations
        dim = getattr(transition, name)
        assert (found.bins[:, :, dims == dim] == bins.bins(column[..., None], slice(dim, dim + 1))[..., 0]).all()
    assert found.bins.shape[2] == horizon * transition.D - transition.N
    for e in range(2):  # environments of a batch do not meet, and each has its own random numbers
        alone = maximise(row, [starts[e]], bins, plan, seed + e)
        assert all((a[0] == b[e]).all() for a, b in zip(alone[:4], found))
        assert alone.spread.item() == pytest.approx(found.spread[e].item(), abs=1e-9)
    for e, b in itertools.product(range(2), range(3)):
        history, left, r, R = starts[e], tuple(tokens[e, b].tolist()), [], []
        for step in range(horizon):
            for dim in range(transition.N if step == 0 else 0, transition.N + transition.M):
                p = row(history)
                if dim < transition.N:
                    assert left[0] == p.argmax()
                assert search.filtered(p, drop_probability)[left[0]].isfinite()
                history, left = history + left[:1], left[1:]
            new_r, new_R, history = read_rewards(row, history, bins)
            r, R, left = r + [new_r], R + [new_R], left[2:]
        assert history == starts[e] + tuple(tokens[e, b].tolist())
        assert found.rewards[e, b].tolist() == pytest.approx(r)
        assert found.rewards_to_go[e, b].tolist() == pytest.approx(R)
        assert found.value[e, b].item() == pytest.approx(worth(r, R, plan))


@pytest.mark.parametrize("options, match", [
    ({"proposal": "greedy"}, "'greedy'; expected .*beam.*sample"),
    ({"horizon": 0}, "horizon=0.*expected"), ({"beam_width": 0}, "beam_width=0.*expected"),
    ({"expansions": -1}, "expansions=-1.*expected"),
])  # fmt: skip
def test_bad_plans_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        replace(Plan(1, 1, 1), **options)
