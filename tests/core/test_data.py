"""Tests of episodes, reward-to-go and windows against slow loops."""

import itertools

import numpy as np
import pytest
import torch
from conftest import NO_REWARDS, WORLD, V, flat
from hypothesis import given
from hypothesis import strategies as st

from ttlib import data, tokenizer
from ttlib.datasets import arrays
from ttlib.datasets.arrays import episodes

gammas = st.floats(0, 1)
lengths_ = st.lists(st.integers(1, 6), min_size=1, max_size=6)
ends = st.lists(st.booleans(), min_size=6, max_size=6)
worlds = st.sampled_from([WORLD, NO_REWARDS])


def spans(lengths):
    """Return the (first, end) rows of each episode."""
    return list(itertools.pairwise([0, *np.cumsum(lengths).tolist()]))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=30), st.floats(0.1, 0.9), st.integers(0, 99))
def test_split_is_by_episode_disjoint_and_exhaustive(lengths, held_out, seed):
    whole = episodes(flat(lengths))
    count = max(1, round(held_out * len(lengths)))
    if count == len(lengths):
        with pytest.raises(ValueError, match=rf"{held_out:.0%} of {len(lengths)} episodes .*empty"):
            whole.split(held_out, seed)
        return
    parts = whole.split(held_out, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths))) and len(parts[1]) == count
    assert all((np.diff(part) > 0).all() for part in parts)
    again = whole.split(held_out, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_selected_episodes_are_those_asked_for_in_that_order(lengths, random):
    whole = episodes(flat(lengths, [i % 2 == 0 for i in range(len(lengths))]))
    chosen = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    part = whole.select(chosen)
    rows = np.concatenate([np.arange(*spans(lengths)[i]) for i in chosen])
    assert (part.states == whole.states[rows]).all() and (part.actions == whole.actions[rows]).all()
    assert (part.rewards == whole.rewards[rows]).all() and (part.terminal == whole.terminal[chosen]).all()
    assert part.lengths.tolist() == [lengths[i] for i in chosen]
    assert np.flatnonzero(whole.rows(chosen)).tolist() == sorted(rows)


def test_split_depends_on_the_seed():
    whole = episodes(flat([1] * 100))
    assert not np.array_equal(whole.split(0.5, 0)[0], whole.split(0.5, 1)[0])


@given(lengths_, gammas, st.booleans(), st.integers(0, 99))
def test_reward_to_go_is_the_double_sum_within_each_episode(lengths, gamma, reward_in_R, seed):
    rewards = flat(lengths, seed=seed)["rewards"]
    slow = []
    for a, b in spans(lengths):
        for t in range(a, b):
            first = t if reward_in_R else t + 1  # its reward is not discounted
            slow.append(sum(gamma ** (u - first) * rewards[u] for u in range(first, b)))
    starts = np.array([0, *np.cumsum(lengths)])
    before = rewards.copy()
    R = data.reward_to_go(rewards, starts, gamma, reward_in_R)
    assert np.abs(R - slow).max() < 1e-12
    assert (rewards == before).all()


@given(lengths_, ends, st.sampled_from([None, -100.0]), st.booleans())
def test_terminal_reward_replaces_that_of_real_terminals_alone(lengths, terminal, terminal_reward, reward_in_R):
    arrays = flat(lengths, terminal)
    e = episodes(arrays)
    table = data.steps(e, WORLD, 0.9, reward_in_R, terminal_reward)[:].numpy()
    before, expected = flat(lengths, terminal)["rewards"], flat(lengths, terminal)["rewards"]
    if terminal_reward is not None:
        expected[arrays["terminals"]] = terminal_reward
    assert (table[:, WORLD.state] == arrays["observations"]).all()
    assert (table[:, WORLD.action] == arrays["actions"]).all()
    assert (table[:, WORLD.reward] == expected).all()
    R = data.reward_to_go(expected, e.starts, 0.9, reward_in_R)
    assert (table[:, WORLD.reward_to_go] == R).all() and table.shape[1] == WORLD.D
    assert (e.rewards == before).all()


def test_without_rewards_a_step_is_state_and_action():
    arrays = flat([3, 2])
    table = data.steps(episodes(arrays), NO_REWARDS, 0.9)[:]
    assert (table.numpy() == np.hstack([arrays["observations"], arrays["actions"]])).all()


@given(lengths_, st.integers(1, 4), st.sampled_from([1.0, 5.0]), st.booleans(), worlds)
def test_every_step_starts_one_window_of_its_own_episode(lengths, T, action_weight, goal, transition):
    e = episodes(flat(lengths, seed=len(lengths)))
    steps = data.steps(e, transition, 0.9)[:]
    t = tokenizer.fit(steps.T, transition, V)
    w = data.windows(e, steps, t, T, action_weight=action_weight, goal=goal)[0]
    ids, weight = w.batch(torch.arange(len(steps)))
    assert len(w) == sum(lengths) and ids.shape == weight.shape == (sum(lengths), w.length)
    N, D, prefix = transition.N, transition.D, transition.N if goal else 0
    assert w.prefix == prefix and w.length == prefix + T * D
    all_ids = t.encode(steps, slice(None)).tolist()
    of_step = [action_weight if d == N else 1.0 for d in range(D)]  # M = 1
    for first, end in spans(lengths):
        for start in range(first, end):
            inside = range(start, min(start + T, end))
            expected = (all_ids[end - 1][:N] if goal else []) + sum((all_ids[i] for i in inside), [])
            assert ids[start, : len(expected)].tolist() == expected
            padding = w.length - len(expected)
            assert ids[start, len(expected) :].tolist() == all_ids[end - 1] * (padding // D)  # its own
            assert weight[start].tolist() == [0.0] * prefix + of_step * len(inside) + [0.0] * padding
    dims = torch.tensor([*range(prefix)] + [*range(D)] * T)
    assert (ids // V == dims).all()  # padding too has the ids of its positions
    order = torch.arange(len(steps)).flip(0)  # batches come in the order asked
    assert all((a == b[order]).all() for a, b in zip(w.batch(order), (ids, weight)))


class Watched:
    """An array on a disk that notes how much is read of it each time."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.sizes = array, array.shape, array.dtype, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, at):
        self.sizes.append(self.array[at].size)
        return self.array[at]


@pytest.mark.parametrize("kind", ["uniform", "quantile"])
def test_no_more_than_a_chunk_or_a_column_is_read_at_once(kind, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 7)
    monkeypatch.setattr(arrays, "CHUNK", 7)
    transition, rng = tokenizer.Transition(5, 2, rewards=False), np.random.default_rng(0)
    columns = flat([40, 60]) | {"observations": rng.random((100, 5)), "actions": rng.random((100, 2))}
    watched = columns | {key: Watched(columns[key]) for key in ("observations", "actions")}
    e = episodes(watched, (0, 1))
    steps = data.steps(e, transition, 0.9)
    fitted = tokenizer.fit(steps.columns(np.ones(100, bool)), transition, V, kind)
    data.windows(e, steps, fitted, T=2)
    for key, width in (("observations", 5), ("actions", 2)):
        sizes = watched[key].sizes
        chunks = 14 * [7 * width] + [2 * width]
        assert sizes == chunks + width * [100] + chunks  # it is checked once, fitted once and tokenized once


def test_data_of_another_task_are_refused():
    with pytest.raises(ValueError, match=r"\(N, M\) = \(2, 1\); expected Transition\(N=3, M=1"):
        data.steps(episodes(flat([3])), tokenizer.Transition(3, 1), 0.9)
