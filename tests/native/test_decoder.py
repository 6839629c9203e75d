"""Tests that the native decoder is PyTorch's: the same probabilities, plans and refusals."""

import gc
import itertools

import numpy as np
import pytest
import torch
from conftest import V, random_ids, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from ttlib import control, search, tokenizer
from ttlib.control import ByLikelihood, ByReward, Streams, TransformerAgent
from ttlib.native import compiling, decoder
from ttlib.native.decoder import NativeDecoder, decoder_for
from ttlib.pipeline import experiments, provenance, store
from ttlib.search import Plan
from ttlib.tokenizer import Transition

pytestmark = [
    pytest.mark.usefixtures("without_gradients"),
    pytest.mark.skipif(bool(compiling.failure()), reason=f"no native planner: {compiling.failure()}"),
]
WORLD, BARE = Transition(2, 1), Transition(2, 1, rewards=False)
BOTH = (control.Decoder, NativeDecoder)
SHAPES = {  # widths of heads are 16, 32 and 48; sizes that are no whole number of panels are among them
    16: dict(d_model=48, n_head=3, n_layer=2), 32: dict(d_model=64, n_head=2, n_layer=3),
    48: dict(d_model=96, n_head=2, n_layer=1),
}  # fmt: skip


def model_of(d_head=16, transition=WORLD, T=7, **options):
    """Return a tiny model, with matrices that do not make activations larger."""
    model = tiny_model(transition, T, **SHAPES[d_head] | options)
    for block in model.blocks:
        for module in (block.qkv, block.out, block.up, block.down):
            module.weight.data *= 2 / module.in_features**0.5
    return model


def near(a, b):
    """Return whether probabilities agree to 1e-5, and the likeliest bin does too but for ties."""
    p, q = a.exp(), b.exp()
    likeliest = q.gather(-1, p.argmax(-1, keepdim=True))[..., 0]
    return bool(((p - q).abs() <= 1e-5).all() and (likeliest >= q.amax(-1) - 2e-5).all())


@pytest.mark.parametrize("d_head", SHAPES)
@pytest.mark.parametrize("transition, prefix, masked", [
    (WORLD, 0, False), (WORLD, 2, False), (WORLD, 0, True), (BARE, 2, False)])  # fmt: skip
@settings(max_examples=12)
@given(draw=st.data())
def test_it_is_the_pytorch_decoder(d_head, transition, prefix, masked, draw):
    """It holds for any tokens after any parents, selections at any time, and both kinds of bins."""
    choose = lambda *a: draw.draw(st.integers(*a))  # noqa: E731
    model = model_of(d_head, transition, prefix=prefix, masked=masked)
    bins_of = tiny_tokenizer(transition, kind=draw.draw(st.sampled_from(["uniform", "quantile"])))
    E, rng = choose(1, 3), torch.Generator().manual_seed(choose(0, 99))
    length = prefix + choose(0, 3) * transition.D + choose(1, transition.N + transition.M)
    ids = random_ids(E, length, transition, prefix, seed=choose(0, 99))
    if masked:  # some states are not observed
        dims = torch.arange(length) % transition.D
        unseen = (torch.rand(ids.shape, generator=rng) < 0.5) & (dims < transition.N)
        ids = torch.where(unseen, bins_of.mask_ids[dims], ids)
    expected, found = (made(model, bins_of, ids) for made in BOTH)
    assert near(expected.log_p, found.log_p) and found.dim == expected.dim
    G, K, fed = E, 1, 0
    for _ in range(length, model.config.max_tokens):
        if fed and choose(0, 4) == 0:
            rows = torch.randint(G // E * K, (E, choose(1, 6)), generator=rng)
            for each in (expected, found):
                each.select_plans(rows)
            G, K, fed = rows.numel(), 1, 0
        parents = torch.randint(K, (G, choose(1, 6)), generator=rng)
        if choose(0, 2) == 0:
            parents = None
        K = K if parents is None else parents.shape[1]
        bins = torch.randint(V, (G, K), generator=rng)
        assert near(expected.advance(bins, parents), found.advance(bins, parents)) and found.dim == expected.dim
        fed += 1


def test_many_sequences_and_contexts_of_many_lengths():
    """Chunks of rows and pages of tokens are full, begun and exceeded."""
    model, bins_of = model_of(32, T=30), tiny_tokenizer()
    rng = torch.Generator().manual_seed(0)
    for length in (1, 15, 16, 17, 31, 32, 33, 64, 97):
        ids = random_ids(2, length)
        pair = [made(model, bins_of, ids) for made in BOTH]
        for K in (150, 1, 97, 97, *[40] * 18):
            before = pair[0].rows // 2
            bins, parents = torch.randint(V, (2, K), generator=rng), torch.randint(before, (2, K), generator=rng)
            assert near(*(each.advance(bins, parents) for each in pair))


def test_empty_bins_have_no_mass():
    steps = torch.randn(60, WORLD.D, generator=torch.Generator().manual_seed(0)).double().round().clamp(0, 2)
    bins_of = tokenizer.fit(steps.T, WORLD, V, "quantile")
    assert bins_of.empty.any(1).all()
    pair = [made(model_of(), bins_of, random_ids(2, WORLD.N)) for made in BOTH]
    log_ps = [each.log_p for each in pair]
    for _ in range(2 * WORLD.D):
        assert (log_ps[1][..., bins_of.empty[pair[1].dim]] == -torch.inf).all() and near(*log_ps)
        assert torch.allclose(log_ps[1].exp().sum(-1), torch.tensor(1.0))
        bins = log_ps[0].argmax(-1)
        log_ps = [each.advance(bins, None) for each in pair]


@pytest.mark.parametrize("proposal", ["beam", "sample"])
@pytest.mark.parametrize("d_head", SHAPES)
def test_searches_find_the_same_plans(proposal, d_head):
    """Both see the same random numbers."""
    model, bins_of, ids = model_of(d_head), tiny_tokenizer(), random_ids(4, WORLD.D + WORLD.N)
    plan, plans, beams = Plan(3, 8, 3, proposal=proposal, drop_probability=0.0), [], []
    for made in BOTH:
        found = made(model, bins_of, ids)
        verbs = found.advance, found.select_plans, found.log_p
        plans.append(search.maximise(*verbs, bins_of, plan, Streams(range(4))))
        found = made(model, bins_of, ids)
        beams.append(search.beam_search(found.advance, found.log_p, 9, 8))
    assert (plans[0].bins == plans[1].bins).all() and torch.allclose(plans[0].value, plans[1].value, atol=1e-4)
    assert (beams[0].bins == beams[1].bins).all() and torch.allclose(beams[0].log_p, beams[1].log_p, atol=1e-4)


def test_changed_weights_are_packed_again():
    model, bins_of, ids = model_of(), tiny_tokenizer(), random_ids(2, WORLD.N)
    read = lambda: [made(model, bins_of, ids).log_p for made in BOTH]  # noqa: E731
    first = read()
    for change in (lambda: model.head.weight.mul_(2), lambda: model.token.weight[:V].add_(1)):
        change()  # in place
        assert near(*read()) and not near(first[0], read()[1])
    model.blocks[0].up.bias.data = torch.ones(4 * model.config.d_model)
    assert near(*read())
    model.load_state_dict({name: 0.5 * x for name, x in model.state_dict().items()})
    assert near(*read())
    with torch.inference_mode():
        model = model_of()
        read()
        model.head.weight.mul_(2)
        assert near(*read())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("damaged", ["token.weight", "position.weight", "blocks.0.qkv.weight", "blocks.0.qkv.bias",
                                     "blocks.0.norm_attention.weight", "blocks.1.up.bias", "head.bias"])  # fmt: skip
def test_damaged_weights_show(value, damaged):
    """They give NaN, never a number, and the agent refuses to act."""
    model = model_of()
    model.state_dict()[damaged].view(-1)[0] = value
    ids = torch.zeros(1, 1, dtype=torch.long)
    assert NativeDecoder(model, tiny_tokenizer(), ids).log_p.isnan().all()
    for choose in (ByReward(Plan(2, 4, 3, proposal="sample")), ByLikelihood(2, 4)):
        agent = TransformerAgent(model, tiny_tokenizer(), choose, decoder=NativeDecoder)
        agent.reset([0])
        with pytest.raises(FloatingPointError, match="not finite"):
            agent.act(np.full((1, 2), -9.0))  # the first bins


def test_positions_beyond_the_window_are_refused_as_by_the_model():
    model, bins_of = model_of(T=2), tiny_tokenizer()
    L = model.config.max_tokens
    for made in BOTH:
        with pytest.raises(ValueError, match=rf"0 \+ {L + 1} tokens do not fit the window of {L}: plan less far"):
            made(model, bins_of, random_ids(1, L + 1))
        full = made(model, bins_of, random_ids(1, L))
        with pytest.raises(ValueError, match=rf"{L} \+ 1 tokens do not fit the window of {L}: plan less far"):
            full.advance(torch.zeros(1, 1, dtype=torch.long), None)


def test_impossible_bins_and_parents_are_refused():
    one = lambda x: torch.tensor([[x]])  # noqa: E731
    two = one(0).expand(1, 2)
    for bins, parents in ((one(V), None), (one(-1), None), (one(0), one(1)), (one(0), one(-1)), (two, None)):
        made = NativeDecoder(model_of(), tiny_tokenizer(), random_ids(1, WORLD.N))
        with pytest.raises(IndexError, match="out of range"):
            made.advance(bins, parents)
        with pytest.raises(IndexError, match="out of range"):
            made.select_plans(one(1))
    with pytest.raises(IndexError, match="out of range"):
        NativeDecoder(model_of(), tiny_tokenizer(), one(-1))


def test_decoders_of_one_model_do_not_disturb_each_other():
    """They live at once, die in any order, and leave memory of one of them to the next."""
    model, bins_of = model_of(), tiny_tokenizer()
    ids = [random_ids(n, 3, seed=n) for n in (3, 1, 2)]
    pairs = [[made(model, bins_of, x) for made in BOTH] for x in ids]
    for step in range(9):
        for n, pair in enumerate(pairs):
            bins = torch.full((len(pair[0].log_p), 1), (step + n) % V)
            assert near(*(each.advance(bins, None) for each in pair))
        if step == 4:
            pairs[0] = [made(model, bins_of, ids[0]) for made in BOTH]
    del pairs, pair
    gc.collect()
    assert len(decoder.packed(model).spare) == 1


def test_large_memory_is_freed(monkeypatch):
    model = model_of()
    monkeypatch.setattr(decoder, "POOLED_BYTES", 0)
    NativeDecoder(model, tiny_tokenizer(), random_ids(1, 2)).advance(torch.zeros(1, 1, dtype=torch.long), None)
    gc.collect()
    assert not decoder.packed(model).spare


def test_other_models_are_read_by_pytorch(monkeypatch, capsys):
    """The reason is said once."""
    decoder._say.cache_clear()
    narrow, training = tiny_model(), model_of(dropout=0.1).train()
    for model, reason in ((narrow, "the model's are 8"), (model_of(dtype=torch.float64), "float64"),
                          (training, "in training")):  # fmt: skip
        assert decoder_for(model) is decoder_for(model) is control.Decoder
        said = capsys.readouterr().err
        assert said.startswith("PyTorch plans instead of the native planner: ") and said.count("\n") == 1
        assert reason in said
        monkeypatch.setenv("TTLIB_PLANNER", "native")
        with pytest.raises(compiling.NotCompiledError, match=reason):
            decoder_for(model)
        monkeypatch.delenv("TTLIB_PLANNER")
    assert decoder_for(training.eval()) is decoder_for(model_of()) is NativeDecoder


def test_the_user_chooses(monkeypatch):
    model = model_of()
    for choice, made, name in (("torch", control.Decoder, "torch"), ("auto", NativeDecoder, "native"),
                               ("native", NativeDecoder, "native"), ("", NativeDecoder, "native")):  # fmt: skip
        monkeypatch.setenv("TTLIB_PLANNER", choice)
        assert decoder_for(model) is made and provenance.here()["planner"] == decoder.planner() == name
    monkeypatch.setenv("TTLIB_PLANNER", "fast")
    with pytest.raises(ValueError, match="TTLIB_PLANNER=fast; expected one of auto, native, torch"):
        decoder_for(model)


def shipped():
    """Return the experiments whose models are shipped and plan for reward."""
    pairs = itertools.product(experiments.NAMES, experiments.PROFILES)
    found = [experiments.get(name, "laptop", profile) for name, profile in pairs] + experiments.curve("laptop")
    return [exp for exp in found if exp.plan and (store.SHIPPED / f"{exp.label}-laptop").exists()]


def equal_first_actions(exp, count):
    """Return in how many of `count` decisions from held-out states both planners act alike.

    The past is the experiment's context, and then other ones.
    """
    loaded = store.load_or_train(exp)
    model, (N, D) = loaded.model, (loaded.tokenizer.transition.N, loaded.tokenizer.transition.D)
    windows, T = model.model_input(store.held_out(loaded)[0]), model.config.T
    pasts = dict.fromkeys((exp.context, *range(T - exp.plan.horizon + 1)))
    parts = [part for past in pasts for t in range(T - past)
             for part in windows[:, t * D : (t + past) * D + N].split(20)]  # fmt: skip
    equal = made = 0
    for part in parts:
        part = part[: count - made]
        streams = [Streams(range(len(part))) for _ in BOTH]
        acted = [ByReward(exp.plan)(each(model, loaded.tokenizer, part), s)[0] for each, s in zip(BOTH, streams)]
        equal, made = equal + int((acted[0] == acted[1]).all(1).sum()), made + len(part)
        if made == count:
            return equal
    raise AssertionError(f"{exp.label} has only {made} held-out states")


@pytest.mark.parametrize("name, profile", [("hopper-medium-expert", "released"), ("walker2d-medium", "v1")])
def test_shipped_models_choose_the_same_first_action(name, profile):
    assert equal_first_actions(experiments.get(name, "laptop", profile), 10) == 10


@pytest.mark.slow
@pytest.mark.parametrize("exp", shipped(), ids=lambda exp: exp.label)
def test_every_shipped_model_chooses_the_same_first_actions(exp):
    """One decision in a hundred may differ: a draw, or the limit below which bins are dropped, lies between both."""
    assert equal_first_actions(exp, 200) >= 198
