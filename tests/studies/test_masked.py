"""Hidden states are tokens that say so and carry no loss; a Markovian model's windows score what follows one step."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import WORLD, V, random_ids, tiny_model

from ttlib import checkpoint, data, tokenizer, train
from ttlib.data import Episodes
from ttlib.model import ModelConfig

N, D = WORLD.N, WORLD.D


def world(lengths=(4, 1, 5), seed=0):
    """Episodes of random numbers and their windows of T transitions."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    states, actions, rewards = rng.normal(size=(n, N)), rng.normal(size=(n, WORLD.M)), rng.normal(size=n)
    return Episodes(states, actions, rewards, np.cumsum([0, *lengths]), np.ones(len(lengths), bool))


def all_windows(episodes, T=3, fitted=None, **options):
    steps = data.steps_table(episodes, WORLD, 0.9, True)
    w = data.windows(episodes, steps, fitted or tokenizer.fit(steps, WORLD, V), T, **options)
    return w, *w.batch(torch.arange(len(w)))


def test_each_dimension_is_hidden_with_its_probability_and_by_the_seed():
    whole = dataclasses.replace(world(), states=np.zeros((40_000, 2)))
    hidden = whole.hide(0.3, 0).hidden
    assert hidden.mean(0) == pytest.approx([0.3, 0.3], abs=0.01)  # four deviations
    assert (hidden[:, 0] & hidden[:, 1]).mean() == pytest.approx(0.09, abs=0.006)  # independently
    assert np.array_equal(hidden, whole.hide(0.3, 0).hidden)
    assert not np.array_equal(hidden, whole.hide(0.3, 1).hidden)


def test_a_hidden_value_is_an_id_of_its_own_without_loss_and_the_rest_stays():
    seen = world()
    partly = seen.hide(0.5, 3)
    w, ids, weight = all_windows(seen)
    _, masked_ids, masked_weight = all_windows(partly)
    step = (torch.arange(len(w))[:, None] + torch.arange(3)).minimum(w.end[:, None] - 1)
    hidden = torch.zeros(len(w), 3, D, dtype=torch.bool)
    hidden[:, :, :N] = torch.from_numpy(partly.hidden)[step]
    hidden = hidden.flatten(1)
    assert hidden.any() and not hidden[:, :N].all()
    names = torch.arange(D).repeat(3).expand_as(ids)
    assert (masked_ids == torch.where(hidden, V * D + names, ids)).all()
    assert (masked_weight == weight * ~hidden).all()


def test_what_is_hidden_cannot_be_told_from_the_tokens():
    partly = world().hide(0.5, 3)
    w, ids, weight = all_windows(partly)
    other = dataclasses.replace(partly, states=np.where(partly.hidden, 7.0, partly.states))
    _, other_ids, other_weight = all_windows(other, fitted=w.tokenizer)
    assert (ids == other_ids).all() and (weight == other_weight).all()


def test_a_model_sees_that_a_value_is_hidden_and_still_never_a_reward_to_go():
    model, ids = tiny_model(missing=True), random_ids(3, 2 * D)
    before = model(ids)
    for R in range(V):
        changed = ids.clone()
        changed[:, D - 1] = V * WORLD.reward_to_go + R
        assert (model(changed) == before).all()
    for dim in range(N):
        hidden = ids.clone()
        hidden[:, dim] = V * D + dim
        after = model(hidden)
        assert (after[:, :dim] == before[:, :dim]).all()
        assert ((after - before).abs().amax(-1)[:, dim:] > 1e-4).all()


def test_hidden_targets_do_not_move_the_model():
    model, (_, ids, weight) = tiny_model(missing=True), all_windows(world().hide(0.5, 3))
    value = train.loss(model, ids, weight)
    nats, kept = train.token_nats(model, ids), weight[:, 1:] > 0
    assert (ids[:, 1:][kept] < V * D).all()
    assert value.item() == pytest.approx(nats[kept].mean().item(), rel=1e-5)


def test_a_checkpoint_keeps_what_was_hidden(tmp_path):
    model, (w, ids, weight) = tiny_model(missing=True), all_windows(world().hide(0.5, 3))
    checkpoint.save(tmp_path, model, w.tokenizer, {}, ids, weight)
    back = checkpoint.load(tmp_path)
    assert (back.held_out == ids).all() and (back.held_out >= V * D).any()
    assert back.model.config.missing


def test_byte_255_is_either_a_bin_or_the_mark():
    with pytest.raises(ValueError, match="V=256 bins; expected at most 255"):
        ModelConfig(WORLD, 2, V=256, missing=True)


def test_a_markovian_window_scores_its_second_transition_and_an_episodes_first():
    episodes = world()
    _, ids, weight = all_windows(episodes, T=2, markov=True)
    _, plain_ids, plain = all_windows(episodes, T=2)
    assert (ids == plain_ids).all()
    assert (weight[:, D:] == plain[:, D:]).all()
    opens = torch.zeros(len(ids), dtype=torch.bool)
    opens[torch.from_numpy(episodes.starts[:-1])] = True
    assert (weight[opens, :D] == 1).all() and (weight[~opens, :D] == 0).all()
    # So every token of every episode is scored exactly once.
    assert weight.sum() == len(episodes.states) * D
