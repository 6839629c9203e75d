"""Causality, what is not seen, and a cache that changes nothing."""

import math

import pytest
import torch
from conftest import NO_REWARDS, WORLD, V, dims_of, random_ids, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from ttlib.cache import Cache, read
from ttlib.cpu import Dropout
from ttlib.model import GPT, ModelConfig, heads

L = 4 * WORLD.D  # tokens of tiny_model's window
seeds = st.integers(0, 10_000)


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


# -- what depends on what ----------------------------------------------------------------------------------

@pytest.mark.parametrize("position", range(L))
def test_changing_a_token_leaves_earlier_logits_alone(position):
    model, ids = tiny_model(), random_ids(3, L)
    changed = ids.clone()
    changed[:, position] += torch.where(ids[:, position] % V == V - 1, -1, 1)
    before, after = model(ids), model(changed)
    assert torch.allclose(before[:, :position], after[:, :position], atol=1e-6)
    moved = (before - after).abs().amax((0, 2))[position:]
    if position % WORLD.D == WORLD.reward_to_go:
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


def test_without_rewards_every_token_is_an_input():
    model, ids = tiny_model(NO_REWARDS), random_ids(2, 12, NO_REWARDS)
    for position in range(12):
        changed = ids.clone()
        changed[:, position] += torch.where(ids[:, position] % V == V - 1, -1, 1)
        assert ((model(changed) - model(ids))[:, position].abs().amax(-1) > 1e-4).all()


# -- the cache ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("transition, prefix", [(WORLD, 0), (WORLD, 2), (NO_REWARDS, 2)])
@given(draw=st.data())
def test_cached_logits_are_uncached_logits(dtype, tolerance, transition, prefix, draw):
    """Reads of any length, forks, reorders and sequences kept at random, beside whole sequences."""
    model = tiny_model(transition, T=5, dtype=dtype, prefix=prefix)
    choose = lambda *a: draw.draw(st.integers(*a))  # noqa: E731
    window, cache = model.config.max_tokens, Cache()
    E, first = choose(1, 2), choose(1, window - 6)
    rng = torch.Generator().manual_seed(choose(0, 99))
    sequences = random_ids(E, first, transition, prefix, seed=choose(0, 99))
    assert torch.allclose(read(model, sequences, cache), model(sequences), atol=tolerance)
    groups = E  # successive rows that share a tree are one group
    while sequences.shape[1] < window:
        rows = len(sequences)
        cache.room = choose(0, 9)
        op = draw.draw(st.sampled_from(["read", "read", "reorder", "keep"]))
        if op == "read" or (op == "keep" and sequences.shape[1] == first):
            t = min(choose(1, 3), window - sequences.shape[1])
            dims = dims_of(window, transition, prefix)[sequences.shape[1] :][:t]
            new = torch.randint(V, (rows, t), generator=rng) + V * dims
            sequences = torch.cat([sequences, new], 1)
            logits = read(model, new, cache)
            assert torch.allclose(logits, model(sequences)[:, -t:], atol=tolerance)
        elif op == "reorder":  # where a group has one sequence, this is a fork
            parents = torch.randint(rows // groups, (groups, choose(1, 3)), generator=rng)
            picked = (parents + torch.arange(groups)[:, None] * (rows // groups)).flatten()
            cache.select(picked)
            sequences = sequences[picked]
        else:  # the same number of sequences for each of the E contexts; each is a group of its own
            picked = torch.randint(rows // E, (E, choose(1, 3)), generator=rng)
            picked = (picked + torch.arange(E)[:, None] * (rows // E)).flatten()
            cache.keep(picked)
            sequences, groups = sequences[picked], len(picked)
        assert cache.length == sequences.shape[1]


def test_keys_seen_from_another_path_would_be_noticed():
    model, ids, swap = tiny_model(), random_ids(1, 6).repeat(2, 1), torch.tensor([1, 0])
    ids[:, 3] = torch.tensor([0, 4]) + V * 3  # two sequences that share three tokens
    logits = {}
    for reordered in (True, False):
        cache = Cache()
        read(model, ids[:1, :3], cache)
        cache.select(torch.tensor([0, 0]))
        read(model, ids[:, 3:5], cache)
        if reordered:
            cache.select(swap)
        logits[reordered] = read(model, ids[:, 5:], cache)
    right = model(torch.cat([ids[swap, :5], ids[:, 5:]], 1))[:, 5:]
    assert torch.allclose(logits[True], right, atol=1e-5)
    assert ((logits[False] - right).abs().amax((1, 2)) > 1e-2).all()


def test_in_bf16_the_cache_gives_the_model_s_probabilities_within_its_rounding():
    exact, ids = tiny_model(), random_ids(6, L)
    model = tiny_model(dtype=torch.bfloat16)
    cache = Cache()
    logits = [read(model, ids[:1, :5], cache)]
    cache.select(torch.zeros(6, dtype=torch.long))
    ids[:, :5] = ids[0, :5]
    logits += [read(model, ids[:, i : i + 1], cache) for i in range(5, L - 2)] + [read(model, ids[:, L - 2 :], cache)]
    found = torch.cat([logits[0].expand(6, -1, -1), *logits[1:]], 1).float()
    for slow in (model(ids).float(), exact(ids)):
        assert (found.softmax(-1) - slow.softmax(-1)).abs().max() < 0.1


def test_a_full_window_is_refused_with_and_without_a_cache():
    model, cache = tiny_model(), Cache()
    with pytest.raises(ValueError, match="0 [+] 21 tokens do not fit the window of 20"):
        model(random_ids(1, L + 1))
    read(model, random_ids(1, L - 1), cache)
    with pytest.raises(ValueError, match="19 [+] 2 tokens do not fit the window of 20"):
        read(model, random_ids(1, 2), cache)
    assert torch.isfinite(read(model, random_ids(1, L)[:, -1:], cache)).all()


# -- attention maps ----------------------------------------------------------------------------------------

def test_attention_maps_are_causal_distributions_that_give_the_attention_output():
    model, ids = tiny_model(), random_ids(3, L)
    seen = []

    def causal_and_recorded(layer, qkv):
        y = model.causal(layer, qkv)
        seen.append((*heads(qkv, 2), y.unflatten(2, (2, 8)).transpose(1, 2)))
        return y

    model(ids, causal_and_recorded)
    maps = model.attention_maps(ids)
    assert len(maps) == model.config.n_layer
    for (weights, values, outputs), (q, k, v, y) in zip(maps, seen):
        assert weights.shape == (3, 2, L, L) and (weights.triu(1) == 0).all() and (weights >= 0).all()
        assert torch.allclose(weights.sum(-1), torch.ones(3, 2, L), atol=1e-6)
        assert torch.allclose(values, v, atol=1e-5) and torch.allclose(weights @ v, y, atol=1e-5)
        assert torch.allclose(outputs, y, atol=1e-5)
        for i in (0, 7, L - 1):  # one softmax by hand
            scores = (k[:, :, : i + 1] @ q[:, :, i, :, None])[..., 0] / math.sqrt(q.shape[-1])
            assert torch.allclose(weights[:, :, i, : i + 1], scores.softmax(-1), atol=1e-5)
        assert weights[:, :, -1].amax() > 5 / L  # far from uniform


# -- dropout -----------------------------------------------------------------------------------------------

def ratio_in_training(model, module, ids):
    """(output of the module while training) / (the same in evaluation), element by element."""
    outputs = []
    hook = module.register_forward_hook(lambda *a: outputs.append(a[2]))
    for mode in (False, True):
        model.train(mode)(ids)
    hook.remove()
    return outputs[1] / outputs[0]


def dropped(ratio, p=0.4):
    """True if what is left after dropout at p stands here, and nothing else random came before."""
    kept = torch.isclose(ratio, torch.tensor(1 / (1 - p)), rtol=1e-3)
    return bool((kept | (ratio == 0)).all() and abs((ratio == 0).float().mean() - p) < 0.1)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_leaves_each_element_out_with_its_probability(p):
    n, drop = 40_000, Dropout(p)
    left = torch.stack([drop(torch.ones(n + 1)) for _ in range(4)])[:, :n]  # a number gives four draws
    values = left.unique()
    assert values.tolist() == [0, pytest.approx(1 / (1 - p))]
    share = (left == 0).float().view(4, -1, 4).mean((0, 1))
    assert torch.allclose(share, torch.tensor(p), atol=4.5 * math.sqrt(p * (1 - p) / n))
    together = [(left[:, i::4] == 0) & (left[:, i + 1 :: 4] == 0) for i in range(3)]
    assert torch.stack(together).float().mean().item() == pytest.approx(p * p, abs=4.5 * p / math.sqrt(3 * n))
    assert (drop.eval()(left) == left).all()


@pytest.mark.parametrize("t", [5, 32, 37])
def test_attention_in_products_is_the_fused_attention(t):
    """What is used on a CPU in bf16, or where weights are dropped: here with next to no dropout."""
    model = tiny_model(T=8, dropout_where="everywhere", dropout=1e-9).train()
    x = torch.randn(3, t, 3 * 16, requires_grad=True)
    found, gradients = [], []
    with torch.enable_grad():
        for mode in (True, False):
            found.append(model.train(mode).causal(0, x))
            gradients.append(torch.autograd.grad(found[-1].square().sum(), x)[0])
    assert torch.allclose(*found, atol=1e-6) and torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("where", ["block", "everywhere"])
def test_evaluation_is_deterministic_and_training_is_not(where):
    model, ids = tiny_model(dropout=0.4, dropout_where=where), random_ids(2, L)
    assert (model(ids) == model(ids)).all() and (tiny_model()(ids) == model(ids)).all()
    model.train()
    assert (model(ids) != model(ids)).any()


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
        kept = [p.data.clone() for p in silent.parameters()]
        for p in silent.parameters():
            p.data.zero_()
        added = [block.train(mode)(x, 0, attend) - x for mode in (True, False)]
        assert dropped(added[0] / added[1])
        for p, old in zip(silent.parameters(), kept):
            p.data = old


# -- configuration -----------------------------------------------------------------------------------------

def test_projections_onto_the_residual_stream_start_smaller():
    model = GPT(ModelConfig(WORLD, 4, n_layer=8, n_head=2, d_model=64))
    std = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    assert len(std) == 3 + 4 * 8  # token, position, head; qkv, out, up, down
    for name, found in std.items():
        expected = 0.02 / 4 if name.endswith(("out.weight", "down.weight")) else 0.02
        assert found == pytest.approx(expected, rel=0.1), name


def test_smooth_embeddings_are_as_alike_as_bins_are_close():
    """Over the channels, cov(E[v], E[w]) = 0.3^2 exp(-(v - w)^2 / (2 * length^2)), and none across dimensions."""
    config = ModelConfig(WORLD, 4, V=12, n_layer=1, n_head=1, d_model=20_000, smooth=3.0)
    model = GPT.__new__(GPT)
    torch.nn.Module.__init__(model)
    model.config, model.token = config, torch.nn.Embedding(12 * WORLD.D, config.d_model)
    torch.manual_seed(0)
    model._initialise()
    E = model.token.weight.detach()
    found = E @ E.T / config.d_model
    bins, dims = torch.arange(len(E)) % 12, torch.arange(len(E)) // 12
    expected = 0.09 * (-0.5 * ((bins[:, None] - bins) / 3.0) ** 2).exp() * (dims[:, None] == dims)
    assert (found - expected).abs().max() < 5 * 0.09 / math.sqrt(config.d_model)  # five deviations of an average


def test_smooth_embeddings_change_no_other_weight_s_distribution_and_none_by_default():
    torch.manual_seed(0)
    plain = GPT(ModelConfig(WORLD, 4, n_layer=1, n_head=2, d_model=32))
    torch.manual_seed(0)
    smooth = GPT(ModelConfig(WORLD, 4, n_layer=1, n_head=2, d_model=32, smooth=3.0))
    for (name, p), q in zip(plain.named_parameters(), smooth.parameters()):
        assert torch.equal(p, q) == (name != "token.weight"), name


@pytest.mark.parametrize("options, match", [
    ({"smooth": -1.0}, "smooth=-1.0; expected a length"),
    ({"d_model": 20, "n_head": 6}, "d_model=20 .*multiple of n_head=6"),
    ({"dropout_where": "all"}, "dropout_where='all'; expected 'block' or 'everywhere'"),
    ({"T": 0}, "T=0, .*expected T >= 1"),
    ({"dropout": 1.0}, "dropout=1.0; expected .*< 1"),
    ({"dropout": -0.1}, "dropout=-0.1; expected .*0 <= dropout"),
])
def test_bad_configs_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ModelConfig(**{"transition": WORLD, "T": 4} | options)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.sampled_from([0, 2]))
def test_the_window_holds_prefix_and_whole_transitions(N, M, T, prefix):
    config = ModelConfig(type(WORLD)(N, M), T, prefix=prefix)
    assert config.max_tokens == prefix + T * (N + M + 2)
