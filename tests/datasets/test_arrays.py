"""Tests of D4RL's format: episodes end where the flags say, and faults are refused by name."""

import re

import numpy as np
import pytest
from conftest import flat
from hypothesis import given
from hypothesis import strategies as st

from ttlib.datasets import arrays as format_
from ttlib.datasets import hdf5
from ttlib.datasets.arrays import episodes


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_episodes_end_at_terminals_or_timeouts_and_at_the_end_of_the_file(flags):
    arrays = flat([len(flags)])
    arrays["terminals"], arrays["timeouts"] = (np.array(column) for column in zip(*flags))
    if not np.any(flags):  # this is one episode, or its timeouts were lost: only the writer of the file knows
        with pytest.raises(ValueError, match=rf"none of the {len(flags)} steps ends .*timeouts\[-1\] = True"):
            episodes(arrays)
        return
    expected, first = [], 0
    for row, (terminal, timeout) in enumerate(flags):
        if terminal or timeout or row == len(flags) - 1:
            expected.append((first, row + 1, terminal))
            first = row + 1
    e = episodes(arrays)
    assert list(zip(e.starts[:-1], e.starts[1:], e.terminal)) == expected
    assert len(e) == len(expected) and e.lengths.tolist() == [b - a for a, b, _ in expected]
    assert e.returns == pytest.approx([arrays["rewards"][a:b].sum() for a, b, _ in expected])
    assert (e.states == arrays["observations"]).all() and (e.actions == arrays["actions"]).all()


def put(key, at, value):
    """Return a change of arrays: a value at a place of one of them, which becomes a float array."""

    def change(arrays):
        arrays[key] = arrays[key].astype(np.float32)
        arrays[key][at] = value

    return change


@pytest.mark.parametrize("change, match", [
    (lambda a: a.pop("timeouts"), r"\['timeouts'\] are missing; expected .*'timeouts'.*found .*'rewards"),
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
])  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_what_is_not_in_the_format_is_refused(change, match, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(format_, "CHUNK", chunk)
    arrays = flat([2, 4])
    change(arrays)
    with pytest.raises(ValueError, match=match):
        episodes(arrays)
    path = tmp_path / "own.hdf5"
    hdf5.write(path, arrays)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{match}"), hdf5.opened(path):
        pytest.fail("a file with faults was opened")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.float64])
def test_ends_may_be_numbers(dtype):
    arrays = flat([2, 4, 1], [True, False, True])
    plain = episodes(arrays)
    e = episodes(arrays | {key: arrays[key].astype(dtype) for key in ("terminals", "timeouts")})
    assert (e.starts == plain.starts).all() and e.terminal.tolist() == [True, False, True]


def test_actions_are_compared_with_a_range_that_is_given():
    arrays = flat([4])
    arrays["actions"] = np.array([[-1 - 5e-6], [1 + 5e-6], [0.5], [1.0]], np.float32)
    assert (episodes(arrays, (-1.0, 1.0)).actions == arrays["actions"]).all()  # rounding is no fault
    arrays["actions"][1:3, 0] = 1.5, -1.001
    assert len(episodes(arrays)) == len(episodes(arrays, (-2.0, 2.0))) == 1
    with pytest.raises(ValueError, match=r"actions, row 1, column 0: 1.5, and 1 more .* numbers in \[-1, 1\]"):
        episodes(arrays, (-1.0, 1.0))
    with pytest.raises(ValueError, match=r"actions, row 2, column 0: -1.00.*; expected numbers in \[-1, 1.5\]"):
        episodes(arrays, (-1.0, 1.5))


def test_returns_are_summed_in_float64():
    rewards = np.full(20_000, 0.1, np.float32)
    arrays = flat([20_000]) | {"rewards": rewards}
    assert episodes(arrays).returns[0] == pytest.approx(20_000 * float(np.float32(0.1)), rel=1e-12)
