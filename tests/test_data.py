"""Episodes, reward-to-go and windows against slow loops; files that are whole or not there."""

import itertools
import re

import h5py
import numpy as np
import pytest
import torch
from conftest import NO_REWARDS, WORLD, V
from hypothesis import given
from hypothesis import strategies as st

from ttlib import data, tokenizer

gammas = st.floats(0, 1)
lengths_ = st.lists(st.integers(1, 6), min_size=1, max_size=6)
ends = st.lists(st.booleans(), min_size=6, max_size=6)
worlds = st.sampled_from([WORLD, NO_REWARDS])


def flat(lengths, terminal=None, seed=0):
    """D4RL's arrays of episodes of these lengths; terminal[i]: episode i ends by itself, not by the clock."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    last, ended = np.cumsum(lengths) - 1, np.zeros((2, n), bool)
    for i, row in enumerate(last):
        ended[0 if terminal is None or terminal[i] else 1, row] = True
    return {"observations": rng.normal(size=(n, 2)), "actions": rng.normal(size=(n, 1)),
            "rewards": rng.normal(size=n), "terminals": ended[0], "timeouts": ended[1]}


def spans(lengths):
    """(first, end) rows of each episode."""
    return list(itertools.pairwise([0, *np.cumsum(lengths).tolist()]))


# -- episodes ----------------------------------------------------------------------------------------------

@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_episodes_end_at_terminals_or_timeouts_and_at_the_end_of_the_file(flags):
    arrays = flat([len(flags)])
    arrays["terminals"], arrays["timeouts"] = (np.array(column) for column in zip(*flags))
    found, first = [], 0
    for row, (terminal, timeout) in enumerate(flags):
        if terminal or timeout or row == len(flags) - 1:
            found.append((first, row + 1, terminal))
            first = row + 1
    e = data.episodes(arrays)
    assert list(zip(e.starts[:-1], e.starts[1:], e.terminal)) == found
    assert len(e) == len(found) and e.lengths.tolist() == [b - a for a, b, _ in found]
    assert e.returns == pytest.approx([arrays["rewards"][a:b].sum() for a, b, _ in found])
    assert (e.states == arrays["observations"]).all() and (e.actions == arrays["actions"]).all()


@given(st.lists(st.integers(1, 5), min_size=2, max_size=30), st.floats(0.1, 0.9), st.integers(0, 99))
def test_split_is_by_episode_disjoint_and_exhaustive(lengths, held_out, seed):
    arrays = flat(lengths, [i % 2 == 0 for i in range(len(lengths))])
    arrays["rewards"] = np.repeat(np.arange(len(lengths)), lengths).astype(float)  # which episode
    whole = data.episodes(arrays)
    count = round(held_out * len(lengths))
    if not 0 < count < len(lengths):
        with pytest.raises(ValueError, match=rf"{held_out:.0%} of {len(lengths)} episodes .*empty"):
            whole.split(held_out, seed)
        return
    parts = whole.split(held_out, seed)
    numbers = [[int(part.rewards[a]) for a in part.starts[:-1]] for part in parts]
    assert sorted(sum(numbers, [])) == list(range(len(lengths))) and len(numbers[1]) == count
    for part, chosen in zip(parts, numbers):
        rows = np.concatenate([np.arange(*spans(lengths)[i]) for i in chosen])
        assert (part.states == whole.states[rows]).all() and (part.actions == whole.actions[rows]).all()
        assert (part.rewards == whole.rewards[rows]).all() and (part.terminal == whole.terminal[chosen]).all()
        assert part.lengths.tolist() == [lengths[i] for i in chosen]
    again = whole.split(held_out, seed)
    assert all((a.rewards == b.rewards).all() for a, b in zip(parts, again))


def test_split_depends_on_the_seed():
    whole = data.episodes(flat([1] * 100))
    assert not np.array_equal(whole.split(0.5, 0)[0].rewards, whole.split(0.5, 1)[0].rewards)


@pytest.mark.parametrize("change, match", [
    (lambda a: a.pop("timeouts"), r"\['timeouts'\] are missing; expected .*'timeouts'.*there are .*'rewards"),
    (lambda a: a.update(actions=a["actions"][1:]), "rewards has 6 rows, but {'actions': 5}"),
    (lambda a: a["observations"].__setitem__((4, 1), np.nan), "non-finite number in observations, row 4"),
    (lambda a: a["rewards"].__setitem__(2, -np.inf), "non-finite number in rewards, row 2"),
    (lambda a: a.update({k: v[:0] for k, v in a.items()}), "no steps.*empty"),
])
def test_bad_arrays_are_refused(change, match):
    arrays = flat([2, 4])
    change(arrays)
    with pytest.raises(ValueError, match=match):
        data.episodes(arrays)


# -- reward-to-go ------------------------------------------------------------------------------------------

@given(lengths_, gammas, st.booleans(), st.integers(0, 99))
def test_reward_to_go_is_the_double_sum_within_each_episode(lengths, gamma, include_current, seed):
    rewards = flat(lengths, seed=seed)["rewards"]
    slow = []
    for a, b in spans(lengths):
        for t in range(a, b):
            first = t if include_current else t + 1  # its reward is not discounted
            slow.append(sum(gamma ** (u - first) * rewards[u] for u in range(first, b)))
    starts = np.array([0, *np.cumsum(lengths)])
    kept = rewards.copy()
    R = data.reward_to_go(rewards, starts, gamma, include_current)
    assert np.abs(R - slow).max() < 1e-12
    assert (rewards == kept).all()


@given(lengths_, ends, st.sampled_from([None, -100.0]), st.booleans())
def test_terminal_reward_stands_at_real_terminals_alone(lengths, terminal, terminal_reward, include_current):
    arrays = flat(lengths, terminal)
    e = data.episodes(arrays)
    table = data.steps_table(e, WORLD, 0.9, include_current, terminal_reward).numpy()
    kept, expected = flat(lengths, terminal)["rewards"], flat(lengths, terminal)["rewards"]
    if terminal_reward is not None:
        expected[arrays["terminals"]] = terminal_reward
    assert (table[:, WORLD.state] == arrays["observations"]).all()
    assert (table[:, WORLD.action] == arrays["actions"]).all()
    assert (table[:, WORLD.reward] == expected).all()
    R = data.reward_to_go(expected, e.starts, 0.9, include_current)
    assert (table[:, WORLD.reward_to_go] == R).all() and table.shape[1] == WORLD.D
    assert (e.rewards == kept).all()


def test_without_rewards_a_step_is_state_and_action():
    arrays = flat([3, 2])
    table = data.steps_table(data.episodes(arrays), NO_REWARDS, 0.9, True)
    assert (table.numpy() == np.hstack([arrays["observations"], arrays["actions"]])).all()


# -- windows -----------------------------------------------------------------------------------------------

@given(lengths_, st.integers(1, 4), st.sampled_from([1.0, 5.0]), st.booleans(), worlds)
def test_every_step_starts_one_window_of_its_own_episode(lengths, T, action_weight, goal, transition):
    e = data.episodes(flat(lengths, seed=len(lengths)))
    steps = data.steps_table(e, transition, 0.9, True)
    t = tokenizer.fit(steps, transition, V)
    w = data.windows(e, steps, t, T, action_weight=action_weight, goal=goal)
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
    assert (ids // V == dims).all()  # padding too is made of ids that stand where they may


def test_batches_come_in_the_order_asked():
    e = data.episodes(flat([3, 4]))
    steps = data.steps_table(e, WORLD, 0.9, True)
    w = data.windows(e, steps, tokenizer.fit(steps, WORLD, V), 2)
    order = torch.tensor([5, 0, 5, 2])
    assert all((a == b[order]).all() for a, b in zip(w.batch(order), w.batch(torch.arange(7))))


# -- files -------------------------------------------------------------------------------------------------

def test_what_is_written_is_read(tmp_path):
    arrays = {k: v.astype(np.float32) if v.dtype == float else v for k, v in flat([3, 2]).items()}
    arrays |= {"infos/qpos": np.arange(10.0).reshape(5, 2), "metadata/algorithm": np.array([1])}
    data.write(tmp_path / "new" / "a.hdf5", arrays)
    back = data.read(tmp_path / "new" / "a.hdf5")
    arrays.pop("metadata/algorithm")
    assert back.keys() == arrays.keys()
    assert all(back[k].dtype == v.dtype and (back[k] == v).all() for k, v in arrays.items())


def test_missing_and_unreadable_files_are_named(tmp_path):
    path = tmp_path / "hopper.hdf5"
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(path))} is missing; run `make data`"):
        data.read(path)
    data.write(path, flat([50]))
    content = path.read_bytes()
    for broken in (b"not an HDF5 file", b"", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not a readable HDF5 .*make data"):
            data.read(path)


def test_a_failed_write_leaves_nothing_and_spares_what_was_there(tmp_path, monkeypatch):
    whole, create = h5py.Group.create_dataset, []

    def fails_midway(group, name, *args, **options):
        create.append(name)
        if len(create) == 3:
            raise OSError("no space left")
        return whole(group, name, *args, **options)

    data.write(tmp_path / "old.hdf5", flat([2]))
    before = (tmp_path / "old.hdf5").read_bytes()
    monkeypatch.setattr(h5py.Group, "create_dataset", fails_midway)
    for name in ("new.hdf5", "old.hdf5"):
        create.clear()
        with pytest.raises(OSError, match="no space left"):
            data.write(tmp_path / name, flat([4]))
    assert [p.name for p in tmp_path.iterdir()] == ["old.hdf5"]
    assert (tmp_path / "old.hdf5").read_bytes() == before
