"""Tests of Figure 3: rows are named by what they predict, scores agree with their definitions, keys can be hidden."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NO_REWARDS, WORLD, V, random_ids, tiny_model, tiny_tokenizer

from ttlib.checkpoint import Checkpoint
from ttlib.model import heads
from ttlib.pipeline import experiments, places, store
from ttlib.studies import attention

T, D, K = 4, WORLD.D, WORLD.N + WORLD.M
L = T * D
KEPT = {"states": range(WORLD.N), "actions": range(WORLD.N, K)}


def by_prediction(row) -> torch.Tensor:
    """Return the map (1, 1, L, L) in which row(p) -> {key: weight} holds the weights that predict token p."""
    weights = torch.zeros(L, L)
    for p in range(1, L):
        for key, w in row(p).items():
            weights[p - 1, key] = w
    return weights[None, None]


def evenly(keys) -> dict:
    """Return the same weight for every key."""
    keys = list(keys)
    return dict.fromkeys(keys, 1 / len(keys)) if keys else {}


def named(table) -> dict:
    """Return the values of a table of scores by (rows, score)."""
    return {(r.rows, r.score): r.value for r in table.itertuples()}


def random_map(seed=0, H=2, B=3):
    weights = torch.rand(B, H, L, L, generator=torch.Generator().manual_seed(seed)).double().tril()
    return weights / weights.sum(-1, keepdim=True)


def checkpoint(windows=37, cut=5):
    """Return a model with held-out windows, the last `cut` of which end before their last transition."""
    weight = torch.ones(windows, L)
    weight[windows - cut :, -1] = 0
    extras = {"held_out.bins": random_ids(windows, L) % V, "held_out.weight": weight}
    return Checkpoint(tiny_model(WORLD, T), tiny_tokenizer(), {}, extras)


def experiment():
    return experiments.replace(experiments.attention("smoke")[0], model=tiny_model(WORLD, T).config)


def test_attention_maps_are_causal_distributions_that_give_the_outputs_of_the_heads():
    model, ids, seen = tiny_model(), random_ids(3, L), []

    def causal_and_recorded(layer, qkv):
        y = model.causal(layer, qkv)
        seen.append((*heads(qkv, 2), y.unflatten(2, (2, 8)).transpose(1, 2)))
        return y

    model(ids, causal_and_recorded)
    maps = attention.attention_maps(model, ids)
    assert len(maps) == model.config.n_layer
    for (weights, values, outputs), (q, k, v, y) in zip(maps, seen, strict=True):
        assert weights.shape == (3, 2, L, L) and (weights.triu(1) == 0).all() and (weights >= 0).all()
        assert torch.allclose(weights.sum(-1), torch.ones(3, 2, L), atol=1e-6)
        assert torch.allclose(values, v, atol=1e-5) and torch.allclose(outputs, y, atol=1e-5)
        for i in (0, 7, L - 1):  # one softmax by hand
            logits = (k[:, :, : i + 1] @ q[:, :, i, :, None])[..., 0] / math.sqrt(q.shape[-1])
            assert torch.allclose(weights[:, :, i, : i + 1], logits.softmax(-1), atol=1e-5)
        assert weights[:, :, -1].amax() > 5 / L  # far from uniform


@pytest.mark.parametrize("transition", [WORLD, NO_REWARDS])
def test_rewards_are_left_out_and_rows_sum_to_one(transition):
    model = tiny_model(transition, T)
    for weights, _, _ in attention.attention_maps(model, random_ids(3, T * transition.D, transition)):
        rows = attention.without_rewards(attention.predicted(weights), transition)
        assert rows[..., 0, :].isnan().all()  # nothing predicts the first token
        torch.testing.assert_close(rows[..., 1:, :].sum(-1), torch.ones(3, 2, T * transition.D - 1))
        dim = torch.arange(T * transition.D) % transition.D
        assert (rows[..., 1:, dim >= K] == 0).all() and (rows[..., 1:, 0] > 0).all()
        assert (rows[..., 1:, :].triu(1) == 0).all()  # a token is predicted from those before it


@pytest.mark.parametrize("transition", [WORLD, NO_REWARDS])
def test_patterns_divide_all_earlier_tokens(transition):
    keys = attention.patterns(transition, T)
    before = torch.ones(T * transition.D, T * transition.D).tril(-1).int()
    parts = [keys[name].int() for name in ("past_actions", "past_states", "current", "rewards")]
    assert torch.equal(sum(parts), before)
    for name in ("markov", "same_before", "striated"):
        assert not (keys[name] & keys["rewards"]).any() and (keys[name].int() <= before).all()
    assert not (keys["markov"] & keys["striated"]).any()
    assert (keys["same_before"].int() <= keys["markov"].int()).all()


def test_a_markovian_map_scores_as_one():
    weights = by_prediction(lambda p: evenly(k for k in range(p) if k // D == p // D - 1 and k % D < K))
    score = named(attention.scores(weights, WORLD))
    for rows in KEPT:
        assert score[rows, "markov"] == pytest.approx(1) and score[rows, "same_before"] == pytest.approx(1 / K)
        assert score[rows, "striated"] == score[rows, "current"] == score[rows, "rewards"] == 0
    assert score["actions", "past_actions"] == pytest.approx(WORLD.M / K)
    assert score["actions", "past_states"] == pytest.approx(WORLD.N / K)


def test_scores_under_uniform_attention_are_fractions_of_keys():
    score = named(attention.scores(attention.uniform(L), WORLD))
    for rows, dims in KEPT.items():
        seen = np.array([(T - 1) * K + i for i in dims])
        assert score[rows, "markov"] == pytest.approx((K / seen).mean())
        assert score[rows, "striated"] == pytest.approx(((T - 2) / seen).mean())
        assert score[rows, "current"] == pytest.approx((np.array(dims) / seen).mean())
    keys = [score["actions", f"past_{kind}_key"] for kind in ("action", "state")]
    assert keys == pytest.approx([(1 / seen).mean()] * 2)


@pytest.mark.parametrize("seed", range(3))
def test_scores_agree_with_their_definition_token_by_token(seed):
    weights = random_map(seed)
    values_of = attention.scores(weights, WORLD).set_index(["rows", "score", "head"]).value
    keys = {
        "markov": lambda i, u, j: u == T - 2,
        "striated": lambda i, u, j: u <= T - 3 and j == i,
        "past_actions": lambda i, u, j: u < T - 1 and j >= WORLD.N,
        "past_states": lambda i, u, j: u < T - 1 and j < WORLD.N,
    }
    for (rows, dims), head in itertools.product(KEPT.items(), (1, 2)):
        for score, chosen in keys.items():
            values = []
            for window, i in itertools.product(range(3), dims):
                row = weights[window, head - 1, (T - 1) * D + i - 1].tolist()  # the position before the token
                scored = {(k // D, k % D): w for k, w in enumerate(row) if k % D < K}
                values.append(sum(w for (u, j), w in scored.items() if chosen(i, u, j)) / sum(scored.values()))
            if (rows, score, head) in values_of:
                assert values_of[rows, score, head] == pytest.approx(np.mean(values))
    assert ("states", "past_actions", 1) not in values_of and ("actions", "past_actions", 1) in values_of


def test_weight_on_rewards_changes_only_the_score_of_rewards():
    weights = random_map()
    on_rewards = (torch.arange(L) % D >= K) & (torch.arange(L) < L - D)
    more = weights * torch.where(on_rewards, 7.0, 1.0)
    more = more / more.sum(-1, keepdim=True)
    before, after = named(attention.scores(weights, WORLD)), named(attention.scores(more, WORLD))
    for key in before:
        if key[1] == "rewards":
            assert after[key] > before[key] + 0.1
        else:
            assert after[key] == pytest.approx(before[key])


def test_the_table_is_the_mean_over_full_windows():
    loaded = checkpoint()
    exp = experiments.replace(experiment(), train=experiments.replace(experiment().train, seed=3))
    table = attention.score_table(exp, loaded)
    maps = attention.attention_maps(loaded.model, store.held_out(loaded)[0][:32])  # the last 5 of 37 are cut short
    for layer, (weights, _, _) in enumerate(maps, 1):
        wanted = attention.scores(weights, WORLD).set_index(["rows", "score", "head"]).value
        got = table[table.layer == layer].set_index(["rows", "score", "head"]).value
        for key in wanted.index:
            assert got[key] == pytest.approx(wanted[key], rel=1e-5), key
    even = named(attention.scores(attention.uniform(L), WORLD))
    assert all(row.uniform_value == pytest.approx(even[row.rows, row.score]) for row in table.itertuples())
    assert len(table) == 2 * 2 * len(even) and set(table.seed) == {3} and set(table.windows) == {32}


def test_the_summary_counts_heads_by_hand():
    table = attention.score_table(experiment(), checkpoint())
    rng = np.random.default_rng(0)
    table["value"] = rng.uniform(0, 1, len(table))
    both = pd.concat([table, table.assign(seed=1, value=rng.uniform(0, 1, len(table)))])
    summary = attention.summary(both).loc["v1"]
    heads = {key: part.set_index(["rows", "score"]) for key, part in both.groupby(["layer", "head", "seed"])}
    value = [part.value for part in heads.values()]
    limit = 3 * next(iter(heads.values())).uniform_value["states", "striated"]
    assert summary.heads == len(value) == 8
    assert summary.markov == sum(v["states", "markov"] > 0.5 for v in value)
    assert summary.striated == sum(v["states", "striated"] >= limit for v in value)
    assert summary["sum"] == sum(v["actions", "past_actions"] > v["actions", "past_states"] for v in value)
    assert summary.key == sum(v["actions", "past_action_key"] > v["actions", "past_state_key"] for v in value)
    assert summary.past_actions == pytest.approx(np.mean([v["actions", "past_actions"] for v in value]))
    assert all(0 < summary[c] < 8 for c in ("markov", "striated", "sum", "key"))


def test_without_a_full_window_there_are_no_scores():
    loaded = checkpoint(windows=4, cut=4)
    with pytest.raises(ValueError, match="hopper-long.* none of its held-out windows of 4 transitions is full"):
        attention.score_table(experiment(), loaded)


def test_figure_rows_are_the_renormalised_weights():
    loaded = checkpoint()
    rows = attention.figure_rows(experiment(), loaded, (2,), last=T)
    weights = attention.attention_maps(loaded.model, store.held_out(loaded)[0][:1])[1][0][0]
    place = {f"{name}@{t}": t * D + i for t in range(T) for i, name in enumerate(WORLD.names())}
    shown = {p for name, p in place.items() if p % D < K}
    assert {place[q] for q in rows["query"]} == shown - {0} and {place[k] for k in rows.key} <= shown
    for row in rows.itertuples():
        scores = weights[row.head - 1, place[row.query] - 1]
        total = sum(scores[p] for p in shown)
        assert row.weight == pytest.approx(float(scores[place[row.key]] / total), abs=0.0006)
    sums = rows.groupby(["head", "query"]).weight.sum()
    assert len(sums) == 2 * (len(shown) - 1)
    assert sums.between(1 - 0.0026 * len(shown), 1 + 0.0006 * len(shown)).all()
    later = attention.figure_rows(experiment(), loaded, (2,), last=2)  # a part of the same table
    both = rows.merge(later, on=["layer", "head", "query", "key"])
    assert len(both) == len(later) > 0 and (both.weight_x == both.weight_y).all()
    assert {int(k.split("@")[1]) for k in later.key} == {int(q.split("@")[1]) for q in later["query"]} == {2, 3}


@pytest.mark.parametrize("size", places.SIZES)
def test_models_of_the_page_are_among_those_needed(size):
    models = experiments.attention(size)
    assert all(exp in experiments.needed(size) for exp in models)
    assert {exp.profile for exp in models} == set(experiments.PROFILES)
    assert len({exp.label for exp in models}) == len(models) == 2 * (3 if size == "paper" else 1)


def test_a_hidden_token_changes_only_the_predictions_that_see_it():
    """In a model of one layer and one head, all other later predictions change."""
    model, ids, key = tiny_model(WORLD, T, n_layer=1, n_head=1), random_ids(1, L), 6
    hidden, blind = torch.zeros(L, L, dtype=torch.bool), [9, 14, 18]
    hidden[blind, key] = True
    attend = attention.masking(model, 1, 1, hidden)
    other = ids.clone()
    other[0, key] = key % D * V + (ids[0, key] + 2) % V
    with torch.inference_mode():
        # By position.  Each position predicts the next token.
        moved = (model(ids, attend) - model(other, attend)).abs().amax(-1)[0]
    assert [p for p in range(key + 1, L) if moved[p - 1] == 0] == blind
    assert (moved[:key] == 0).all()


def test_hiding_nothing_changes_nothing_and_hiding_everything_removes_the_head():
    model, ids = tiny_model(WORLD, T), random_ids(2, L)
    nothing, everything = (attention.masking(model, 2, 1, torch.full((L, L), hidden)) for hidden in (False, True))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids, nothing), model(ids))
        logits = model(ids, everything)[:, :-1]
        model.blocks[1].out.weight[:, : model.config.d_model // 2] = 0
        torch.testing.assert_close(logits, model(ids)[:, :-1])
