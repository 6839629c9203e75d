"""Tests of the store: a file in chunks is the table at once, and held-out windows come back from a checkpoint."""

import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import NO_REWARDS, WORLD, V, flat, random_steps, tiny_model, tiny_windows
from hypothesis import given
from hypothesis import strategies as st

from ttlib import checkpoint, data, tokenizer
from ttlib.datasets import arrays, hdf5
from ttlib.model import ModelConfig, loss
from ttlib.pipeline import experiments, store


def experiment(kind, reward_in_R, terminal_reward, masked, goal):
    e = experiments.get("hopper-medium-replay", "smoke")
    bins = experiments.Bins(kind, V, 0.9, reward_in_R, terminal_reward, action_weight=5.0)
    model = ModelConfig(WORLD, T=3, V=V, n_layer=1, n_head=1, d_model=4, masked=masked > 0)
    config = replace(e.data, held_out=0.3, seed=3, mask_probability=masked)
    return replace(e, data=config, bins=bins, model=model, context=0, plan=None, goal=goal)


@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=8), st.integers(0, 99), st.sampled_from([1, 2, 3, 5, 7, 1000]),
    st.sampled_from(["uniform", "quantile"]), st.booleans(), st.sampled_from([None, -100.0]),
    st.sampled_from([0.0, 0.4]), st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_a_file_in_chunks_is_the_table_at_once(lengths, seed, chunk, kind, reward_in_R, terminal_reward, masked, dtype):
    given_ = flat(lengths, [i % 2 == 0 for i in range(len(lengths))], seed)
    given_ = {k: np.tanh(v).astype(dtype) if v.dtype == float else v for k, v in given_.items()}
    given_["observations"][::2] = 0.5  # ties
    exp = experiment(kind, reward_in_R, terminal_reward, masked, goal=seed % 2 == 0)
    with tempfile.TemporaryDirectory() as folder:
        hdf5.write(Path(folder) / "a.hdf5", given_)
        with mock.patch.object(data, "CHUNK", chunk), mock.patch.object(arrays, "CHUNK", chunk):
            windows = store.windows(exp, Path(folder) / "a.hdf5")

    whole = arrays.episodes(given_)
    whole = replace(whole, mask=np.random.default_rng([3, 99]).random((sum(lengths), 2)) < masked)
    parts, tables = [whole.select(part) for part in whole.split(0.3, 3)], []
    for part in parts:  # all in float64
        rewards = part.rewards.copy()
        if terminal_reward is not None:
            rewards[part.starts[1:][part.terminal] - 1] = terminal_reward
        R = data.reward_to_go(rewards, part.starts, 0.9, reward_in_R)
        tables.append(np.column_stack([part.states.astype(float), part.actions.astype(float), rewards, R]))
    fitted = tokenizer.fit(torch.from_numpy(tables[0]).T, WORLD, V, kind)
    for w, part, table in zip(windows, parts, tables, strict=True):
        bins = fitted.bins(torch.from_numpy(table), slice(None))
        bins[:, WORLD.state][torch.from_numpy(part.mask)] = data.MASKED
        assert torch.equal(w.bins, bins.to(torch.uint8))
        assert w.end.tolist() == np.repeat(part.starts[1:], part.lengths).tolist()
        assert torch.equal(w.tokenizer.edges, fitted.edges) and torch.equal(w.tokenizer.centres, fitted.centres)
        assert (w.T, w.action_weight, w.goal, w.masked) == (3, 5.0, exp.goal, masked > 0)


def test_fewer_bins_for_all_but_states():
    steps = random_steps(500)
    every, few = (tokenizer.fit(steps.T, WORLD, bins, "quantile") for bins in (40, 7))
    some = store.coarser(every, few)
    assert torch.equal(some.edges[: WORLD.N], every.edges[: WORLD.N])
    assert torch.equal(some.edges[WORLD.N :, :8], few.edges[WORLD.N :]) and some.edges[WORLD.N :, 8:].isinf().all()
    ids = some.encode(steps, slice(0, WORLD.D))
    assert torch.equal(some.encode(some.decode(ids), slice(0, WORLD.D)), ids)


@pytest.mark.parametrize("kind, count", [("uniform", 7), ("quantile", 41)])
def test_fewer_bins_that_cannot_be_are_refused(kind, count):
    fine, coarse = (tokenizer.fit(random_steps().T, WORLD, bins, kind) for bins in (40, count))
    with pytest.raises(ValueError, match=f"V_rest = {count} of 40 {kind} bins"):
        store.coarser(fine, coarse)


@pytest.mark.parametrize("options", [{}, {"masked": 0.5}, {"goal": True}, {"goal": True, "transition": NO_REWARDS}])
def test_held_out_windows_come_back_with_their_loss(tmp_path, options):
    windows = tiny_windows(action_weight=5.0, **options)
    model = tiny_model(windows.tokenizer.transition, prefix=windows.prefix, masked=windows.masked)
    checkpoint.round_weights(model)
    ids, weight = windows.batch(torch.tensor([1, 12, 14]))
    store.save(tmp_path, model, windows.tokenizer, {"key": "k", "curve": [{"loss": 1.5}]}, ids, weight)
    loaded = checkpoint.load(tmp_path)
    found_ids, found_weight = store.held_out(loaded)
    assert (found_ids == ids).all() and (found_weight == weight).all() and loaded.model.config == model.config
    assert (ids >= V * WORLD.D).any() == windows.masked
    with torch.no_grad():
        nats = loss(model, ids, weight).item()
    assert loaded.about == {"key": "k", "curve": [{"loss": 1.5}], "held_out_nats": nats}
