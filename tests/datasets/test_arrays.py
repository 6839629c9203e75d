"""Tests of D4RL's format: episodes end where the flags say, and faults are refused by name."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from conftest import flat
from hypothesis import given
from hypothesis import strategies as st

from ttlib.datasets import arrays as format_
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


@pytest.mark.parametrize("kind", [
    lambda x: x.tolist(), torch.from_numpy, lambda x: torch.from_numpy(x).bool() if x.dtype == bool else list(x),
    lambda x: pd.DataFrame(x) if x.ndim > 1 else pd.Series(x), scipy.sparse.csr_array, np.ma.masked_array,
    lambda x: x.reshape(len(x), -1), lambda x: [np.ravel(row) for row in x],
])  # fmt: skip
def test_lists_tensors_frames_and_columns_are_taken_as_arrays(kind):
    arrays = flat([2, 4, 1], [True, False, True])
    taken, plain = episodes({key: kind(array) for key, array in arrays.items()}), episodes(arrays)
    for name in ("states", "actions", "rewards", "starts", "terminal"):
        assert np.array_equal(getattr(taken, name), getattr(plain, name)), name


def test_all_faults_are_listed_at_once_by_the_names_of_the_users_columns():
    arrays = flat([6]) | {"rewards": np.full(6, 1e308), "terminals": [0, 0, 2, 0, 0, 1]}
    frame = pd.DataFrame(arrays["observations"], columns=["angle", "speed"])
    frame.loc[3, "speed"] = np.inf
    with pytest.raises(ValueError) as error:
        episodes(arrays | {"observations": frame, "actions": np.zeros((6, 0))})
    found = str(error.value).split("\n  - ")
    expected = ["4 faults:", "actions .* one column", "'speed': inf", "1e.308, and 5", "row 2: 2"]
    assert all(re.match(f".*{words}", sentence) for sentence, words in zip(found, expected, strict=True)), found


@given(st.integers(2, 300), st.floats(0.01, 0.9))
def test_one_long_episode_is_split_by_time(n, held_out):
    cut, (training, held) = format_.split(episodes(flat([n])), held_out, 0)
    assert (training.tolist(), held.tolist()) == ([0], [1]) and cut.starts[[0, -1]].tolist() == [0, n]
    assert abs(cut.lengths[1] - held_out * n) <= 1 and (cut.lengths > 0).all()
    assert cut.terminal.tolist() == [False, True]
