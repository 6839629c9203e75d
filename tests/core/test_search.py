"""Search against the paper's listing, exhaustive enumeration and worlds whose best plan is known."""

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
from scipy.stats import chisquare

from ttlib import data, search
from ttlib.search import Plan
from ttlib.tokenizer import Tokenizer, Transition

seeds = st.integers(0, 10_000)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# -- Algorithm 1 -------------------------------------------------------------------------------------------

def test_wide_beam_is_exhaustive_search():
    V, length, starts = 3, 4, [(0,), (1,), (2, 2)]
    row = random_row(0, V)
    table = Table(row, starts)
    found = search.beam_search(table.advance, table.log_p, length, V**length)
    for g, start in enumerate(starts):
        every = {}
        for sequence in itertools.product(range(V), repeat=length):
            every[sequence] = sum(row(start + sequence[:i])[v].item() for i, v in enumerate(sequence))
        best_first = sorted(every, key=every.get, reverse=True)
        assert [tuple(b) for b in found.bins[g].tolist()] == best_first
        assert found.log_p[g].tolist() == pytest.approx([every[s] for s in best_first])


@given(seeds, st.integers(1, 6), st.integers(1, 12), st.integers(2, 4), st.sets(st.integers(0, 5)))
def test_beam_search_is_the_papers_listing(seed, length, width, V, skip):
    row, starts = random_row(seed, V), [(0,), (1,)]
    table = Table(row, starts)
    found = search.beam_search(table.advance, table.log_p, length, width, skip)
    for g, start in enumerate(starts):
        listed = algorithm_1(row, start, length, width, V, skip)
        real = len(listed)  # a skipped step offers one choice: what fills the width has no probability
        assert [tuple(b) for b in found.bins[g, :real].tolist()] == [sequence for sequence, _ in listed]
        assert found.log_p[g, :real].tolist() == pytest.approx([q for _, q in listed])
        assert (found.log_p[g, real:] == -math.inf).all() and found.bins.shape[1] <= width
        # `parents` says which of the sequences that `advance` knows each one continues.
        for bins, parent in zip(found.bins[g].tolist(), found.parents[g].tolist()):
            assert table.groups[g][parent] == start + tuple(bins[:-1])


@given(seeds, st.integers(1, 4), st.integers(1, 5))
def test_problems_in_a_batch_do_not_meet(seed, length, width):
    row, starts = random_row(seed, 3), [(0,), (1,), (2,)]
    table = Table(row, starts)
    together = search.beam_search(table.advance, table.log_p, length, width)
    for g, start in enumerate(starts):
        table = Table(row, [start])
        alone = search.beam_search(table.advance, table.log_p, length, width)
        assert all((a[0] == b[g]).all() for a, b in zip(alone, together))


# -- sampling ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, exponent", [
    ({}, 1), ({"temperature": 0.5}, 2), ({"temperature": 2.0}, 0.5)])
def test_sampled_frequencies_are_the_probabilities(options, exponent):
    log_p, n = torch.randn(2, 3, 5, generator=rng()).log_softmax(-1), 4000
    drawn = search.sample(log_p.expand(n, 2, 3, 5), rng(1), **options)
    assert drawn.shape == (n, 2, 3)
    p = (exponent * log_p).softmax(-1).double()
    for i, j in itertools.product(range(2), range(3)):
        counts = torch.bincount(drawn[:, i, j], minlength=5).numpy()
        expected = p[i, j].numpy()
        assert chisquare(counts, n * expected / expected.sum()).pvalue > 1e-3


def test_samples_come_from_the_callers_generator_alone():
    log_p = torch.randn(50, 6, generator=rng()).log_softmax(-1)
    state = torch.get_rng_state()
    a, b, c = (search.sample(log_p, rng(seed)) for seed in (3, 3, 4))
    assert (a == b).all() and (a != c).any() and (torch.get_rng_state() == state).all()


@given(seeds, st.integers(1, 6))
def test_bins_without_mass_are_not_drawn_at_either_end_of_the_uniform_numbers(seed, kept):
    log_p, generator = torch.randn(1, 6, generator=rng(seed)), rng(seed)
    possible = torch.randperm(6, generator=generator)[:kept].sort().values
    log_p = torch.full_like(log_p, -torch.inf).index_copy(1, possible, log_p[:, possible])
    drawn = []
    for u in (0.0, 1 - 2**-24):  # all that torch.rand gives lies between
        with unittest.mock.patch("torch.rand", lambda *size, u=u, **options: torch.full(*size, u)):
            drawn.append(search.sample(log_p, generator).item())
    assert drawn == [possible[0], possible[-1]]


def test_a_low_temperature_takes_the_likeliest():
    log_p = torch.randn(200, 6, generator=rng()).log_softmax(-1)
    assert (search.sample(log_p, rng(), temperature=1e-4) == log_p.argmax(-1)).all()


@given(seeds, st.integers(1, 8))
def test_top_k_keeps_the_k_likeliest_unchanged(seed, k):
    log_p = torch.randn(2, 6, generator=rng(seed)).log_softmax(-1)
    left = search.filtered(log_p, top_k=k)
    for kept, p in zip(left, log_p):
        wanted = sorted(range(6), key=lambda b: -p[b])[:k]
        assert sorted(kept.isfinite().nonzero().flatten().tolist()) == sorted(wanted)
        assert torch.allclose(kept[wanted], p[wanted], atol=1e-6)


@given(seeds, st.floats(0, 0.999))
def test_cdf_drops_exactly_the_least_likely_that_hold_less(seed, cdf):
    log_p = torch.randn(3, 7, generator=rng(seed), dtype=torch.float64).log_softmax(-1)
    for kept, p in zip(search.filtered(log_p, cdf=cdf), log_p.exp().tolist()):
        dropped, held = set(), 0.0
        for b in sorted(range(7), key=lambda b: p[b]):
            held += p[b]
            if held >= cdf or b == max(range(7), key=lambda b: p[b]):
                break
            dropped.add(b)
        assume(abs(held - cdf) > 1e-9)
        assert set(kept.isinf().nonzero().flatten().tolist()) == dropped
        assert kept[max(range(7), key=lambda b: p[b])].isfinite()


def test_the_likeliest_bin_stays_even_if_it_holds_less_than_cdf():
    log_p = torch.randn(300, 100, generator=rng()).log_softmax(-1)
    for cdf in (0.99, 1 - 1e-9):  # the second is 1 in fp32; sums of fp32 probabilities often fall short
        left = search.filtered(log_p, cdf=cdf).isfinite()
        assert left.gather(1, log_p.argmax(1, keepdim=True)).all()
    assert (left.sum(1) == 1).all()


def test_filters_hand_gradients_on():
    logits = torch.randn(4, 7, generator=rng(), requires_grad=True)
    kept = search.filtered(logits, cdf=0.5)
    (gradient,) = torch.autograd.grad(kept[kept.isfinite()].sum(), logits)
    n = kept.isfinite().sum(1, keepdim=True)  # d log p_i / d logit_j = [i = j] - p_j
    assert torch.allclose(gradient, kept.isfinite().float() - n * logits.softmax(1), atol=1e-6)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 0}, {"cdf": 1.0}, {"cdf": -0.1}])
def test_impossible_filters_are_refused(options):
    (name, value), = options.items()
    with pytest.raises(ValueError, match=rf"{name}={value}.*temperature > 0, top_k >= 1, 0 <= cdf < 1"):
        search.filtered(torch.zeros(3), **options)


@given(seeds, st.integers(1, 4))
def test_grow_appends_what_pick_chooses(seed, length):
    row, starts = random_row(seed, 4), [(0,), (1,)]
    table = Table(row, starts)
    log_p = table.advance(torch.tensor([[0, 1, 2], [2, 3, 0]]), torch.zeros(2, 3, dtype=torch.long))
    before, parents = table.groups, torch.tensor([[2, 2], [0, 1]])
    found = search.grow(table.advance, log_p, parents, length, lambda p: p.argmax(-1))
    for g, k in itertools.product(range(2), range(2)):
        history, q = before[g][parents[g, k]], 0.0
        for bin_ in found.bins[g, k].tolist():
            assert bin_ == row(history).argmax()
            history, q = history + (bin_,), q + row(history).max().item()
        assert found.log_p[g, k].item() == pytest.approx(q)
        assert table.groups[g][found.parents[g, k]] == history[:-1]


# -- value of a plan ---------------------------------------------------------------------------------------

@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0, 1), st.booleans())
def test_with_true_rewards_a_plan_is_worth_R_0_at_every_horizon(rewards, gamma, include_current):
    r, starts = np.array(rewards), np.array([0, len(rewards)])
    R = torch.from_numpy(data.reward_to_go(r, starts, gamma, include_current))
    worth = sum(gamma**t * reward for t, reward in enumerate(rewards))  # the whole return from now on
    for h in range(1, len(r) + 1):
        plans = (torch.from_numpy(r[:h]).expand(2, 3, h), R[:h].expand(2, 3, h))
        value = search.plan_value(*plans, gamma, include_current)
        assert value.numpy() == pytest.approx(np.full((2, 3), worth), abs=1e-9)


# -- reward-maximising search ------------------------------------------------------------------------------

SMALL = Transition(1, 1)


def read_rewards(row, history, bins):
    """E[r], E[R] after the last action token, and the history then: the bin of E[r], and 0 for R."""
    r = sum(p * c for p, c in zip(row(history).exp().tolist(), bins.centres[-2].tolist()))
    history += (int(bins.bins(torch.tensor([[r]]).double(), bins.transition.reward)),)
    R = sum(p * c for p, c in zip(row(history).exp().tolist(), bins.centres[-1].tolist()))
    return r, R, history + (0,)


def worth(r, R, plan):
    h, g = len(r), plan.gamma
    if not plan.use_reward_to_go:
        return sum(g**k * r[k] for k in range(h))
    counted = h - 1 if plan.include_current else h
    return sum(g**k * r[k] for k in range(counted)) + g**counted * R[-1]


def maximise_slowly(row, start, bins, plan):
    """Section 3.2 in lists -> [(value, tokens after start, r, R)], best first."""
    t, plans = bins.transition, [(0.0, tuple(start), [], [])]
    for step in range(plan.horizon):
        longer = []
        for _, history, r, R in plans:
            width = plan.candidates if step else plan.plans * plan.candidates
            for tokens, _ in algorithm_1(row, history, t.N * (step > 0) + t.M, width, bins.V):
                new_r, new_R, after = read_rewards(row, history + tokens, bins)
                longer.append((worth(r + [new_r], R + [new_R], plan), after, r + [new_r], R + [new_R]))
        plans = sorted(longer, key=lambda p: -p[0])[: plan.plans]
    return [(value, history[len(start) :], r, R) for value, history, r, R in plans]


def maximise(row, starts, bins, plan, seed=0):
    table = Table(row, starts)
    return search.maximise(table.advance, table.keep, table.log_p, bins, plan, rng(seed))


def fed(plans, transition):
    """Tokens (E, B, L) of plans as they were fed: R as 0."""
    dims = (torch.arange(plans.bins.shape[2]) + transition.N) % transition.D
    return plans.bins.masked_fill(dims == transition.reward_to_go, 0)


def test_with_enough_plans_the_best_of_all_is_found():
    V, row, bins, start = 3, random_row(5, 3), tiny_tokenizer(SMALL, 3), (1,)
    plan = Plan(horizon=3, plans=V**5, candidates=V**2, gamma=0.9)
    best = []
    for tokens in itertools.product(range(V), repeat=5):  # a, s, a, s, a
        history, r, R = start, [], []
        for transition in (tokens[:1], tokens[1:3], tokens[3:]):
            new_r, new_R, history = read_rewards(row, history + transition, bins)
            r, R = r + [new_r], R + [new_R]
        best.append((r[0] + 0.9 * r[1] + 0.81 * R[2], history[1:]))
    found = maximise(row, [start], bins, plan)
    assert found.value.shape == (1, V**5) and found.value[0, 0].item() == pytest.approx(max(best)[0])
    assert tuple(fed(found, SMALL)[0, 0].tolist()) == max(best)[1]
    assert sorted(found.value[0].tolist()) == pytest.approx(sorted(value for value, _ in best))


search_options = st.fixed_dictionaries({
    "horizon": st.integers(1, 3), "plans": st.integers(1, 4), "candidates": st.integers(1, 4),
    "gamma": st.sampled_from([0.9, 1.0]),
    "include_current": st.booleans(), "use_reward_to_go": st.booleans()})


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
        assert all((a[0] == b[e]).all() for a, b in zip(alone, found))


@given(seeds, st.integers(1, 3), st.sampled_from([0, 0.6, 0.999]), st.sampled_from([Transition(2, 2), SMALL]))
def test_sampled_plans_are_what_the_table_says(seed, horizon, cdf, transition):
    """Likeliest states, actions that the filter leaves, and rewards and values as read along the way."""
    V, starts = 4, [(0,), (1, 2)]
    row, bins = random_row(seed, V), tiny_tokenizer(transition, V)
    plan = Plan(horizon, plans=3, candidates=4, proposal="sample", cdf=cdf, include_current=False)
    found = maximise(row, starts, bins, plan, seed)
    tokens = fed(found, transition)
    assert (found.value.diff(dim=1) <= 0).all()
    assert found.bins.shape[2] == horizon * transition.D - transition.N
    for e, b in itertools.product(range(2), range(3)):
        history, left, r, R = starts[e], tuple(tokens[e, b].tolist()), [], []
        for step in range(horizon):
            for dim in range(transition.N if step == 0 else 0, transition.N + transition.M):
                p = row(history)
                if dim < transition.N:
                    assert left[0] == p.argmax()
                assert search.filtered(p, cdf=cdf)[left[0]].isfinite()
                history, left = history + left[:1], left[1:]
            new_r, new_R, history = read_rewards(row, history, bins)
            r, R, left = r + [new_r], R + [new_R], left[2:]
        assert history == starts[e] + tuple(tokens[e, b].tolist())
        assert found.rewards[e, b].tolist() == pytest.approx(r)
        assert found.rewards_to_go[e, b].tolist() == pytest.approx(R)
        assert found.value[e, b].item() == pytest.approx(worth(r, R, plan))


def test_chains_take_dimensions_independently():
    """Second dimensions depend on the first ones so that the likeliest pair of states is not the pair of the likeliest
    dimensions, and that both dimensions of a drawn action are alike: with chains the pairs are a product."""
    transition = Transition(2, 2)

    def row(history):
        dim, last = (len(history) + 2) % transition.D, (0, *history)[-1]
        p = {0: (0.4, 0.6), 1: ((1.0, 0.0), (0.4, 0.6))[last], 2: (0.5, 0.5), 3: ((0.9, 0.1), (0.1, 0.9))[last]}
        return torch.tensor(p.get(dim, (0.5, 0.5)), dtype=torch.float64).log()

    starts, found = [()] * 50, {}
    for chains in (0, 200):
        plan = Plan(2, plans=8, candidates=2, proposal="sample", cdf=0.0, chains=chains)
        found[chains] = maximise(row, starts, tiny_tokenizer(transition, 2), plan).bins.flatten(0, 1)
    action, state = slice(0, 2), slice(4, 6)
    assert (found[0][:, state] == torch.tensor([1, 1])).all()  # 0.6 * 0.6 against 0.4
    assert (found[200][:, state] == torch.tensor([1, 0])).all()  # 0.6 against 0.4, 0.4 + 0.6 * 0.4 against 0.36
    for chains, alike in ((0, 0.9), (200, 0.5)):
        pairs = found[chains][:, action]
        assert (pairs[:, 0] == pairs[:, 1]).double().mean().item() == pytest.approx(alike, abs=0.1)
        assert pairs.double().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.1)


def test_reward_to_go_stands_in_a_plan_as_its_expected_bin():
    bins = tiny_tokenizer()
    found = maximise(random_row(0, 5), [(0,), (1,)], bins, Plan(3, 4, 4))
    dims = (torch.arange(found.bins.shape[2]) + WORLD.N) % WORLD.D
    for name, column in (("reward", found.rewards), ("reward_to_go", found.rewards_to_go)):
        dim = getattr(WORLD, name)
        assert (found.bins[:, :, dims == dim] == bins.bins(column[..., None], dim)[..., 0]).all()


@pytest.mark.parametrize("proposal", ["beam", "sample"])
def test_equal_seeds_give_equal_plans(proposal):
    plan = Plan(2, 4, 4, proposal=proposal, cdf=0.0)
    a, b, c = (maximise(random_row(0, 5), [(0,), (1,)], tiny_tokenizer(), plan, seed) for seed in (1, 1, 2))
    assert all((x == y).all() for x, y in zip(a, b))
    assert (a.bins != c.bins).any() == (proposal == "sample")


# -- a world whose good plan pays later --------------------------------------------------------------------

def later(history):
    """Tokens s, a, r, R.  First action 0: reward 1, then none; first action 1: none, then 2; others: none."""
    dim, first_action, now = len(history) % 4, (*history, 0)[1], len(history) < 4
    if dim == 1:
        return torch.tensor([0.4, 0.3, 0.3]).log()
    reward = {0: (1, 0), 1: (0, 2), 2: (0, 0)}[first_action]
    bin_ = {0: 0, 2: reward[not now], 3: sum(reward) if now else reward[1]}[dim]
    return torch.eye(3)[bin_].log()


@pytest.mark.parametrize("horizon, plans, use_reward_to_go, first, value", [
    (1, 3, True, 1, 2), (1, 3, False, 0, 1),  # what is paid later is out of sight
    (2, 3, False, 1, 2),  # now it is in sight
    (2, 1, False, 0, 1), (2, 1, True, 1, 2),  # in sight, but the only plan kept is the one that pays at once
])
def test_without_reward_to_go_search_is_myopic(horizon, plans, use_reward_to_go, first, value):
    edges = torch.tensor([-0.5, 0.5, 1.5, 2.5]).double().expand(4, 4)
    bins = Tokenizer(SMALL, 3, "uniform", edges, (edges[:, 1:] + edges[:, :-1]) / 2)
    plan = Plan(horizon, plans, candidates=3, gamma=1.0, use_reward_to_go=use_reward_to_go)
    found = maximise(later, [(0,)], bins, plan)
    assert (found.bins[0, 0, 0], found.value[0, 0]) == (first, value)


@given(st.booleans(), st.sampled_from(["beam", "sample"]), st.integers(1, 3))
def test_without_reward_to_go_a_value_is_the_rewards_alone(include_current, proposal, horizon):
    plan = Plan(horizon, 3, 3, 0.9, include_current, proposal, use_reward_to_go=False)
    found = maximise(random_row(1, 5), [(0,)], tiny_tokenizer(), plan)
    added = (0.9 ** torch.arange(horizon) * found.rewards).sum(-1)
    assert torch.allclose(found.value, added)


@pytest.mark.parametrize("options, match", [
    ({"proposal": "greedy"}, "'greedy'; expected 'beam' or 'sample'"),
    ({"horizon": 0}, "horizon=0.*at least 1"), ({"plans": 0}, "plans=0.*at least 1"),
    ({"candidates": -1}, "candidates=-1.*at least 1"),
    ({"chains": -1}, "chains=-1 with.*expected 0"), ({"chains": 2}, "chains=2 with proposal 'beam'.*'sample'"),
])
def test_bad_plans_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        replace(Plan(1, 1, 1), **options)
