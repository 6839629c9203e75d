"""Episodes, reward-to-go and windows against slow loops; files that are whole or not there."""

import itertools
import multiprocessing
import re
import resource
import signal
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
from conftest import NO_REWARDS, WORLD, V
from hypothesis import given
from hypothesis import strategies as st

from ttlib import data, tokenizer
from ttlib.datasets import hdf5
from ttlib.model import ModelConfig
from ttlib.pipeline import experiments, places, store

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
    if not np.any(flags):  # one episode, or timeouts that were lost: only who wrote the file knows
        with pytest.raises(ValueError, match=rf"none of the {len(flags)} steps ends .*timeouts\[-1\] = True"):
            data.episodes(arrays)
        return
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
    count = max(1, round(held_out * len(lengths)))
    if count == len(lengths):
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


def put(key, at, value):
    """A change of some arrays: value at a place of one of them, which is made a float array."""
    def change(arrays):
        arrays[key] = arrays[key].astype(np.float32)
        arrays[key][at] = value
    return change


@pytest.mark.parametrize("change, match", [
    (lambda a: a.pop("timeouts"), r"\['timeouts'\] are missing; expected .*'timeouts'.*there are .*'rewards"),
    (lambda a: a.update(observations=a["rewards"]), r"observations has shape \(6,\); expected \(n, k\): .*\[:, None\]"),
    (lambda a: a.update(actions=a["actions"][None]), r"actions has shape \(1, 6, 1\); expected \(n, k\)$"),
    (lambda a: a.update(rewards=a["rewards"][:, None]), r"rewards has shape \(6, 1\); expected \(n,\): .*\[:, 0\]"),
    (lambda a: a.update(timeouts=a["timeouts"][None]), r"timeouts has shape \(1, 6\); expected \(n,\)$"),
    (lambda a: a.update(actions=a["actions"][1:]), "rewards has 6 rows, but {'actions': 5}"),
    (lambda a: a.update({k: v[:0] for k, v in a.items()}), "no steps.*empty"),
    (lambda a: a.update(rewards=a["rewards"].astype("S3")), r"rewards holds \|S3; expected finite numbers"),
    (put("observations", (4, 1), np.nan), "observations, row 4, column 1: nan; expected finite numbers.*remove"),
    (put("actions", slice(1, 5), np.inf), "actions, row 1, column 0: inf, and 3 more such values; expected finite"),
    (put("rewards", 2, -np.inf), "rewards, row 2: -inf; expected finite"),
    (put("terminals", 3, 0.5), "terminals, row 3: 0.5; expected 0 or 1"),
    (put("timeouts", 5, 2), "timeouts, row 5: 2.0; expected 0 or 1"),
    (lambda a: a.update(terminals=np.zeros(6, bool)), "none of the 6 steps ends an episode: set `timeouts`"),
])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_what_is_not_in_the_format_is_refused(change, match, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", chunk)
    arrays = flat([2, 4])
    change(arrays)
    with pytest.raises(ValueError, match=match):
        data.episodes(arrays)
    path = tmp_path / "own.hdf5"
    hdf5.write(path, arrays)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{match}"), hdf5.opened(path):
        pytest.fail("nobody is given a file with faults")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.float64])
def test_ends_may_be_numbers(dtype):
    arrays = flat([2, 4, 1], [True, False, True])
    plain = data.episodes(arrays)
    found = data.episodes(arrays | {key: arrays[key].astype(dtype) for key in ("terminals", "timeouts")})
    assert (found.starts == plain.starts).all() and found.terminal.tolist() == [True, False, True]


def test_actions_are_held_against_a_range_that_is_given():
    arrays = flat([4])
    arrays["actions"] = np.array([[-1 - 5e-6], [1 + 5e-6], [0.5], [1.0]], np.float32)
    assert (data.episodes(arrays, (-1.0, 1.0)).actions == arrays["actions"]).all()  # rounding is no fault
    arrays["actions"][1:3, 0] = 1.5, -1.001
    assert len(data.episodes(arrays)) == len(data.episodes(arrays, (-2.0, 2.0))) == 1
    with pytest.raises(ValueError, match=r"actions, row 1, column 0: 1.5, and 1 more .* numbers in \[-1, 1\]"):
        data.episodes(arrays, (-1.0, 1.0))
    with pytest.raises(ValueError, match=r"actions, row 2, column 0: -1.00.*; expected numbers in \[-1, 1.5\]"):
        data.episodes(arrays, (-1.0, 1.5))


def test_returns_are_summed_in_float64():
    rewards = np.full(20_000, 0.1, np.float32)
    arrays = flat([20_000]) | {"rewards": rewards}
    assert data.episodes(arrays).returns[0] == pytest.approx(20_000 * float(np.float32(0.1)), rel=1e-12)


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


# -- a chunk at a time -------------------------------------------------------------------------------------

def experiment(kind, include_current, terminal_reward, hidden, goal):
    e = experiments.get("hopper-medium-replay", "smoke")
    bins = experiments.Bins(kind, V, 0.9, include_current, terminal_reward, action_weight=5.0)
    model = ModelConfig(WORLD, T=3, V=V, n_layer=1, n_head=1, d_model=4, missing=hidden > 0)
    return replace(e, data=replace(e.data, held_out=0.3, seed=3, hidden=hidden), bins=bins, model=model, past=0,
                   plan=None, goal=goal)


@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=8), st.integers(0, 99), st.sampled_from([1, 2, 3, 5, 7, 1000]),
    st.sampled_from([1, 30, 10_000]), st.sampled_from(["uniform", "quantile"]), st.booleans(),
    st.sampled_from([None, -100.0]), st.sampled_from([0.0, 0.4]), st.sampled_from([np.float32, np.float64]),
)
def test_a_file_in_chunks_is_the_table_at_once(
    lengths, seed, chunk, column_bytes, kind, include_current, terminal_reward, hidden, dtype
):
    arrays = flat(lengths, [i % 2 == 0 for i in range(len(lengths))], seed)
    arrays = {k: np.tanh(v).astype(dtype) if v.dtype == float else v for k, v in arrays.items()}
    arrays["observations"][::2] = 0.5  # ties
    exp = experiment(kind, include_current, terminal_reward, hidden, goal=seed % 2 == 0)
    with tempfile.TemporaryDirectory() as folder:
        hdf5.write(Path(folder) / "a.hdf5", arrays)
        with mock.patch.multiple(data, CHUNK=chunk, COLUMN_BYTES=column_bytes):
            found = store.windows_of(Path(folder) / "a.hdf5", exp)

    whole = data.episodes(arrays)
    masks = np.random.default_rng([3, 99]).random((sum(lengths), 2)) < hidden
    parts = replace(whole, hidden=masks).split(0.3, 3)
    columns = []
    for part in parts:  # float64 from the start
        rewards = part.rewards.copy()
        if terminal_reward is not None:
            rewards[part.starts[1:][part.terminal] - 1] = terminal_reward
        R = data.reward_to_go(rewards, part.starts, 0.9, include_current)
        columns.append(np.column_stack([part.states.astype(float), part.actions.astype(float), rewards, R]))
    fitted = tokenizer.fit(torch.from_numpy(columns[0]), WORLD, V, kind)
    for w, part, table in zip(found, parts, columns, strict=True):
        bins = fitted.bins(torch.from_numpy(table), slice(None))
        bins[:, WORLD.state][torch.from_numpy(part.hidden)] = data.MISSING
        assert torch.equal(w.bins, bins.to(torch.uint8))
        assert w.end.tolist() == np.repeat(part.starts[1:], part.lengths).tolist()
        assert torch.equal(w.tokenizer.edges, fitted.edges) and torch.equal(w.tokenizer.centres, fitted.centres)
        assert (w.T, w.action_weight, w.goal, w.missing) == (3, 5.0, exp.goal, hidden > 0)


class Watched:
    """An array on a disk that notes what is read of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.sizes = array, array.shape, array.dtype, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, at):
        self.sizes.append(self.array[at].size)
        return self.array[at]


@pytest.mark.parametrize("kind", ["uniform", "quantile"])
def test_no_more_than_a_chunk_is_read_at_once(kind, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 7)
    monkeypatch.setattr(data, "COLUMN_BYTES", 1600)  # two columns
    transition, rng = tokenizer.Transition(5, 2, rewards=False), np.random.default_rng(0)
    arrays = flat([40, 60]) | {"observations": rng.random((100, 5)), "actions": rng.random((100, 2))}
    watched = arrays | {key: Watched(arrays[key]) for key in ("observations", "actions")}
    e = data.episodes(watched, (0, 1))
    steps, everything = data.steps(e, transition, 0.9, True), np.ones(100, bool)
    fitted = tokenizer.fit_columns(steps.columns(everything), transition, V, kind)
    data.windows(e, steps, fitted, T=2)
    states, actions = watched["observations"].sizes, watched["actions"].sizes
    assert max(states) == 7 * 5 and max(actions) == 7 * 2
    # Checked once, fitted (in three passes, of 2, 2 and 1 columns) and tokenized once.
    assert sum(states) == 3 * 100 * 5 and sum(actions) == 3 * 100 * 2
    assert len(states) == (1 + 3 + 1) * 15 and len(actions) == (1 + 1 + 1) * 15


def test_bins_leave_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "ROOT", tmp_path)
    e = data.episodes(flat([30, 40]))
    steps = data.steps_table(e, WORLD, 0.9, True)
    fitted = tokenizer.fit(steps, WORLD, V)
    w = data.windows(e, steps, fitted, T=2)
    assert list(tmp_path.rglob("*")) == [tmp_path / "build"]
    assert torch.equal(w.bins.long(), fitted.bins(steps, slice(None)))
    with room_for(100), pytest.raises(OSError, match=rf"build: writing failed .*; it needs {70 * WORLD.D} bytes"):
        data.windows(e, steps, fitted, T=2)
    assert list(tmp_path.rglob("*")) == [tmp_path / "build"]


def test_data_of_another_task_are_refused():
    with pytest.raises(ValueError, match=r"\(N, M\) = \(2, 1\) .*expected Transition\(N=3, M=1"):
        data.steps(data.episodes(flat([3])), tokenizer.Transition(3, 1), 0.9, True)


# -- files -------------------------------------------------------------------------------------------------

@contextmanager
def room_for(size):
    """No file can grow beyond `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read(tmp_path):
    arrays = {k: v.astype(np.float32) if v.dtype == float else v for k, v in flat([3, 2]).items()}
    arrays |= {"infos/qpos": np.arange(10.0).reshape(5, 2), "metadata/algorithm": np.array([1])}
    path = tmp_path / "new" / "a.hdf5"
    hdf5.write(path, arrays)
    back = hdf5.read(path)
    arrays.pop("metadata/algorithm")
    assert back.keys() == arrays.keys()
    assert all(back[k].dtype == v.dtype and (back[k] == v).all() for k, v in arrays.items())
    e = hdf5.load(path)
    assert e.states.dtype == e.actions.dtype == np.float32 and e.starts.tolist() == [0, 3, 5]
    assert (e.states == arrays["observations"]).all() and (e.actions == arrays["actions"]).all()
    assert (e.rewards == arrays["rewards"]).all()


def test_missing_and_unreadable_files_are_named(tmp_path):
    path = tmp_path / "hopper.hdf5"
    for reader in (hdf5.read, hdf5.load):
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(path))} is missing; run `make data`"):
            reader(path)
    hdf5.write(path, flat([50]))
    content = path.read_bytes()
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    middle = chunk.byte_offset + chunk.size // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    for broken in (b"not an HDF5 file", b"", content[: len(content) // 2], flipped):
        path.write_bytes(broken)
        for reader in (hdf5.read, hdf5.load):
            with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not a readable HDF5 .*make data"):
                reader(path)


def test_a_full_disk_leaves_nothing_and_spares_what_was_there(tmp_path):
    hdf5.write(tmp_path / "old.hdf5", flat([2]))
    before = (tmp_path / "old.hdf5").read_bytes()
    hdf5.write(tmp_path / "new.hdf5", flat([400]))
    needed = (tmp_path / "new.hdf5").stat().st_size
    (tmp_path / "new.hdf5").unlink()
    for name in ("new.hdf5", "old.hdf5"):
        message = rf"{name}: writing failed \(.*too large.*\); it needs {needed:,} bytes"
        with room_for(needed // 2), pytest.raises(OSError, match=message):
            hdf5.write(tmp_path / name, flat([400]))
    assert [p.name for p in tmp_path.iterdir()] == ["old.hdf5"]
    assert (tmp_path / "old.hdf5").read_bytes() == before


def _killed_in_mid_file(path, size):
    """To be killed by the kernel, as by kill -9, by the signal for a file that becomes too large."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with room_for(size):
        hdf5.write(path, flat([400]))


def test_a_second_run_after_a_killed_one_succeeds(tmp_path):
    path = tmp_path / "a.hdf5"
    process = multiprocessing.get_context("fork").Process(target=_killed_in_mid_file, args=(path, 1000))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGXFSZ
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part") and left.stat().st_size == 1000
    hdf5.write(path, flat([400]))
    assert (hdf5.load(path).states == flat([400])["observations"]).all() and left.exists()
