"""Tests of masked states, which are tokens without loss, and of the loss of a Markovian model's windows."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import WORLD, V, random_ids, tiny_model

from ttlib import data, tokenizer
from ttlib.data import Episodes
from ttlib.datasets.arrays import mask_states
from ttlib.model import ModelConfig

N, D = WORLD.N, WORLD.D


def world(lengths=(4, 1, 5), seed=0):
    """Return episodes of random numbers."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    states, actions, rewards = rng.normal(size=(n, N)), rng.normal(size=(n, WORLD.M)), rng.normal(size=n)
    return Episodes(states, actions, rewards, np.cumsum([0, *lengths]), np.ones(len(lengths), bool))


def all_windows(episodes, T=3, bins=None, **options):
    """Return the windows of T transitions of all episodes, and the ids and loss weights of every window."""
    steps = data.steps(episodes, WORLD, 0.9, True)[:]
    windows = data.windows(episodes, steps, bins or tokenizer.fit(steps.T, WORLD, V), T, **options)[0]
    return windows, *windows.batch(torch.arange(len(windows)))


def test_each_dimension_is_masked_with_its_probability_and_by_the_seed():
    episodes = dataclasses.replace(world(), states=np.zeros((40_000, 2)))
    mask = mask_states(episodes, 0.3, 0).mask
    assert mask.mean(0) == pytest.approx([0.3, 0.3], abs=0.01)  # four standard deviations
    assert (mask[:, 0] & mask[:, 1]).mean() == pytest.approx(0.09, abs=0.006)  # the dimensions are independent
    assert np.array_equal(mask, mask_states(episodes, 0.3, 0).mask)
    assert not np.array_equal(mask, mask_states(episodes, 0.3, 1).mask)


def test_a_masked_value_has_its_own_id_without_loss_and_other_tokens_do_not_change():
    episodes = world()
    masked = mask_states(episodes, 0.5, 3)
    windows, ids, weight = all_windows(episodes)
    _, masked_ids, masked_weight = all_windows(masked)
    step = (torch.arange(len(windows))[:, None] + torch.arange(3)).minimum(windows.end[:, None] - 1)
    mask = torch.zeros(len(windows), 3, D, dtype=torch.bool)
    mask[:, :, :N] = torch.from_numpy(masked.mask)[step]
    mask = mask.flatten(1)
    assert mask.any() and not mask[:, :N].all()
    dims = torch.arange(D).repeat(3).expand_as(ids)
    assert (masked_ids == torch.where(mask, V * D + dims, ids)).all()
    assert (masked_weight == weight * ~mask).all()


def test_a_masked_model_reads_masks_and_still_never_a_reward_to_go():
    model, ids = tiny_model(masked=True), random_ids(3, 2 * D)
    before = model(ids)
    for R in range(V):
        changed = ids.clone()
        changed[:, D - 1] = V * WORLD.reward_to_go + R
        assert (model(changed) == before).all()
    for dim in range(N):
        masked = ids.clone()
        masked[:, dim] = V * D + dim
        after = model(masked)
        assert (after[:, :dim] == before[:, :dim]).all()
        assert ((after - before).abs().amax(-1)[:, dim:] > 1e-4).all()


def test_byte_255_is_either_a_bin_or_the_mask():
    with pytest.raises(ValueError, match="V=256; expected at most 255"):
        ModelConfig(WORLD, 2, V=256, masked=True)


def test_a_markovian_window_scores_its_second_transition_and_the_first_of_an_episode():
    episodes = world()
    _, ids, weight = all_windows(episodes, T=2, markov=True)
    _, plain_ids, plain = all_windows(episodes, T=2)
    assert (ids == plain_ids).all()
    assert (weight[:, D:] == plain[:, D:]).all()
    opens = torch.zeros(len(ids), dtype=torch.bool)
    opens[torch.from_numpy(episodes.starts[:-1])] = True
    assert (weight[opens, :D] == 1).all() and (weight[~opens, :D] == 0).all()
    assert weight.sum() == len(episodes.states) * D  # every token of every episode is scored once
