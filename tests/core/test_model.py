"""Tests of causality, of what is not seen, and of a cache that changes nothing."""

import math

import pytest
import torch
from conftest import NO_REWARDS, WORLD, V, dims_of, random_ids, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from ttlib.cache import Cache, decode
from ttlib.model import GPT, ModelConfig

L = 4 * WORLD.D  # tokens of tiny_model's window
seeds = st.integers(0, 10_000)
pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("transition, position", [(t, i) for t in (WORLD, NO_REWARDS) for i in range(4 * t.D)])
def test_changing_a_token_leaves_earlier_logits_alone(transition, position):
    model, ids = tiny_model(transition), random_ids(3, 4 * transition.D, transition)
    changed = ids.clone()
    changed[:, position] += torch.where(ids[:, position] % V == V - 1, -1, 1)
    before, after = model(ids), model(changed)
    assert torch.allclose(before[:, :position], after[:, :position], atol=1e-6)
    moved = (before - after).abs().amax((0, 2))[position:]
    if transition.rewards and position % WORLD.D == WORLD.reward_to_go:
        assert (moved == 0).all()
    else:
        assert (moved > 1e-4).all()


@given(seeds, st.sampled_from([0, WORLD.N]))
def test_changing_any_reward_to_go_changes_no_logit(seed, prefix):
    model = tiny_model(prefix=prefix)
    ids, others = (random_ids(2, prefix + L, prefix=prefix, seed=s) for s in (seed, seed + 1))
    is_R = dims_of(prefix + L, prefix=prefix) == WORLD.reward_to_go
    assert is_R.sum() == 4
    assert (model(torch.where(is_R, others, ids)) == model(ids)).all()
    assert (model(torch.where(is_R, ids, others)) != model(ids)).any()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("transition, prefix", [(WORLD, 0), (WORLD, 2), (NO_REWARDS, 2)])
@given(draw=st.data())
def test_cached_logits_are_uncached_logits(dtype, tolerance, transition, prefix, draw):
    """Reads of any length, forks, reorders and regroupings at random agree with whole sequences."""
    model = tiny_model(transition, T=5, dtype=dtype, prefix=prefix)
    choose = lambda *a: draw.draw(st.integers(*a))  # noqa: E731
    window, cache = model.config.max_tokens, Cache()
    E, first = choose(1, 2), choose(1, window - 6)
    rng = torch.Generator().manual_seed(choose(0, 99))
    sequences = random_ids(E, first, transition, prefix, seed=choose(0, 99))
    assert torch.allclose(decode(model, sequences, cache), model(sequences), atol=tolerance)
    groups = E  # successive rows of one tree are a group
    while sequences.shape[1] < window:
        rows = len(sequences)
        cache.reserve(choose(0, 9))
        op = draw.draw(st.sampled_from(["read", "read", "reorder", "regroup"]))
        if op == "read" or (op == "regroup" and sequences.shape[1] == first):
            t = min(choose(1, 3), window - sequences.shape[1])
            dims = dims_of(window, transition, prefix)[sequences.shape[1] :][:t]
            new = torch.randint(V, (rows, t), generator=rng) + V * dims
            sequences = torch.cat([sequences, new], 1)
            logits = decode(model, new, cache)
            assert torch.allclose(logits, model(sequences)[:, -t:], atol=tolerance)
        elif op == "reorder":  # where a group has one sequence, this is a fork
            parents = torch.randint(rows // groups, (groups, choose(1, 3)), generator=rng)
            picked = (parents + torch.arange(groups)[:, None] * (rows // groups)).flatten()
            cache.reorder(picked)
            sequences = sequences[picked]
        else:  # equally many sequences of each of the E contexts; each becomes a group
            picked = torch.randint(rows // E, (E, choose(1, 3)), generator=rng)
            picked = (picked + torch.arange(E)[:, None] * (rows // E)).flatten()
            cache.regroup(picked)
            sequences, groups = sequences[picked], len(picked)
        assert cache.length == sequences.shape[1]


def test_a_full_window_is_refused_with_and_without_a_cache():
    model, cache = tiny_model(), Cache()
    with pytest.raises(ValueError, match="0 [+] 21 tokens do not fit the window of 20"):
        model(random_ids(1, L + 1))
    decode(model, random_ids(1, L - 1), cache)
    with pytest.raises(ValueError, match="19 [+] 2 tokens do not fit the window of 20"):
        decode(model, random_ids(1, 2), cache)
    assert torch.isfinite(decode(model, random_ids(1, L)[:, -1:], cache)).all()


def ratio_in_training(model, module, ids):
    """Return the output of the module while training over that in evaluation, element by element."""
    outputs = []
    hook = module.register_forward_hook(lambda *a: outputs.append(a[2]))
    for mode in (False, True):
        model.train(mode)(ids)
    hook.remove()
    return outputs[1] / outputs[0]


def dropped(ratio, p=0.4):
    """Return whether these are ratios after dropout at p, with nothing else random before it."""
    scaled = torch.isclose(ratio, torch.tensor(1 / (1 - p)), rtol=1e-3)
    return bool((scaled | (ratio == 0)).all() and abs((ratio == 0).float().mean() - p) < 0.1)


def test_dropout_at_block_ends_is_the_only_one():
    model, ids = tiny_model(dropout=0.4, dropout_where="block", n_layer=1), random_ids(4, L)
    qkv = torch.randn(4, L, 3 * 16)
    assert dropped(ratio_in_training(model, model.blocks[0], ids))
    block, x = tiny_model(dropout=0.4, dropout_where="block").blocks[1], torch.randn(4, L, 16)
    evaluated = block(x, 1, model.causal)
    assert dropped(block.train()(x, 1, model.causal) / evaluated)
    assert (model.train().causal(0, qkv) == model.eval().causal(0, qkv)).all()


def test_dropout_everywhere_is_on_embedding_attention_and_residual():
    model, ids = tiny_model(dropout=0.4, dropout_where="everywhere", n_layer=1), random_ids(4, L)
    assert dropped(ratio_in_training(model, model.drop, ids))
    # One head whose values are the identity: attention returns its weights.
    alone, qkv = tiny_model(dropout=0.4, dropout_where="everywhere", n_head=1, d_model=L), torch.randn(4, L, 3 * L)
    qkv[..., 2 * L :] = torch.eye(L)
    ratio = alone.train().causal(0, qkv) / alone.eval().causal(0, qkv)
    assert dropped(ratio[:, *torch.tril_indices(L, L)])
    block, x, attend = model.blocks[0], torch.randn(4, L, 16), tiny_model().causal
    for silent in (block.down, block.out):  # what the other sublayer adds
        weights = [p.data.clone() for p in silent.parameters()]
        for p in silent.parameters():
            p.data.zero_()
        added = [block.train(mode)(x, 0, attend) - x for mode in (True, False)]
        assert dropped(added[0] / added[1])
        for p, old in zip(silent.parameters(), weights):
            p.data = old


def test_projections_onto_the_residual_stream_start_smaller():
    model = GPT(ModelConfig(WORLD, 4, n_layer=8, n_head=2, d_model=64))
    std = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    assert len(std) == 3 + 4 * 8  # token, position, head; qkv, out, up, down
    for name, found in std.items():
        expected = 0.02 / 4 if name.endswith(("out.weight", "down.weight")) else 0.02
        assert found == pytest.approx(expected, rel=0.1), name


def test_smooth_embeddings_are_as_alike_as_bins_are_close():
    """Over the channels, cov(E[v], E[w]) = 0.3^2 exp(-(v - w)^2 / (2 * length^2)); it is 0 across dimensions."""
    config = ModelConfig(WORLD, 4, V=12, n_layer=1, n_head=1, d_model=20_000, embedding_length_scale=3.0)
    model = GPT.__new__(GPT)
    torch.nn.Module.__init__(model)
    model.config, model.token = config, torch.nn.Embedding(12 * WORLD.D, config.d_model)
    torch.manual_seed(0)
    model._initialise()
    E = model.token.weight.detach()
    found = E @ E.T / config.d_model
    bins, dims = torch.arange(len(E)) % 12, torch.arange(len(E)) // 12
    expected = 0.09 * (-0.5 * ((bins[:, None] - bins) / 3.0) ** 2).exp() * (dims[:, None] == dims)
    assert (found - expected).abs().max() < 5 * 0.09 / math.sqrt(config.d_model)  # five standard errors


def test_smooth_embeddings_change_no_other_weight_s_distribution_and_none_by_default():
    torch.manual_seed(0)
    plain = GPT(ModelConfig(WORLD, 4, n_layer=1, n_head=2, d_model=32))
    torch.manual_seed(0)
    smooth = GPT(ModelConfig(WORLD, 4, n_layer=1, n_head=2, d_model=32, embedding_length_scale=3.0))
    for (name, p), q in zip(plain.named_parameters(), smooth.parameters()):
        assert torch.equal(p, q) == (name != "token.weight"), name


@pytest.mark.parametrize("options, match", [
    ({"embedding_length_scale": -1.0}, "embedding_length_scale=-1.0; expected .*at least 0"),
    ({"d_model": 20, "n_head": 6}, "d_model=20 .*n_head=6"), ({"T": 0}, "T=0, .*expected T, n_layer >= 1"),
    ({"dropout_where": "all"}, "dropout_where.*'all'; expected .*block.*everywhere"),
    ({"dropout": 1.0}, "dropout=1.0; expected .*< 1"), ({"dropout": -0.1}, "dropout=-0.1; expected .*0 <= dropout"),
])  # fmt: skip
def test_bad_configs_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ModelConfig(**{"transition": WORLD, "T": 4} | options)
