"""The loss by hand, the schedule in closed form, stops that change nothing, checkpoints whole or refused."""

import json
import math
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import NO_REWARDS, WORLD, V, random_ids, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ttlib import checkpoint, data, files, tokenizer, train
from ttlib.data import Windows
from ttlib.train import TrainConfig

OPTIMISERS = ("adam", "adamw", "muon")
FP32 = {"dtype": torch.float32}


def tiny_windows(lengths=(3, 7, 5), T=4, transition=WORLD, **options):
    rng, n = np.random.default_rng(0), sum(lengths)
    last = np.cumsum(lengths) - 1
    ended = np.isin(np.arange(n), last)
    arrays = {"observations": rng.normal(size=(n, 2)), "actions": rng.normal(size=(n, 1)),
              "rewards": rng.normal(size=n), "terminals": ended, "timeouts": ~ended & False}
    episodes = data.episodes(arrays)
    steps = data.steps_table(episodes, transition, 0.9, True)
    return data.windows(episodes, steps, tokenizer.fit(steps, transition, V), T, **options)


def everything(windows):
    return windows.batch(torch.arange(len(windows)))


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -- loss --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("goal", [False, True])
def test_loss_is_the_weighted_mean_of_minus_log_p(goal):
    windows = tiny_windows(goal=goal, action_weight=5.0)
    ids, weight = everything(windows)
    assert (weight == 0).any() and (weight == 5).any()
    model = tiny_model(prefix=windows.prefix)
    log_p = model(ids).log_softmax(-1).tolist()
    above = below = 0.0
    for row, (tokens, weights) in enumerate(zip(ids.tolist(), weight.tolist())):
        for i in range(1, len(tokens)):  # log_p[i - 1] is of token i, after the tokens before it
            above -= weights[i] * log_p[row][i - 1][tokens[i] % V]
            below += weights[i]
    assert train.loss(model, ids, weight).item() == pytest.approx(above / below, rel=1e-5)
    assert train.loss(model, ids, 3 * weight).item() == pytest.approx(above / below, rel=1e-5)


def test_padding_contributes_nothing():
    ids, weight = everything(tiny_windows())
    others, model = random_ids(*ids.shape), tiny_model()
    padded = torch.where(weight == 0, others, ids)
    assert (padded != ids).any()
    value = train.loss(model, ids, weight)
    assert torch.allclose(train.loss(model, padded, weight), value, atol=1e-6)
    assert (train.loss(model, torch.where(weight > 0, others, ids), weight) - value).abs() > 1e-2


@pytest.mark.parametrize("goal, transition", [(False, WORLD), (True, NO_REWARDS)])
def test_by_dimension_is_a_mean_over_real_tokens_and_averages_to_evaluate(goal, transition):
    windows = tiny_windows((30, 50, 1), transition=transition, goal=goal, action_weight=5.0)
    assert len(windows) > 64  # parts
    model = tiny_model(transition, prefix=windows.prefix, dropout=0.3).train()
    ids, weight = everything(windows)
    nats = [[] for _ in range(transition.D)]
    found = train.by_dimension(model, windows)
    value = train.evaluate(model, windows)
    assert model.training
    slow = train.token_nats(model.eval(), ids).tolist()
    for row, tokens, weights in zip(slow, ids.tolist(), weight.tolist()):
        for i in range(1, len(tokens)):
            if weights[i]:
                nats[tokens[i] // V].append(row[i - 1])
    assert [count for _, count in found] == [len(dim) for dim in nats]
    assert [mean for mean, _ in found] == pytest.approx([np.mean(dim) for dim in nats], rel=1e-4)
    assert value == pytest.approx(np.mean([mean for mean, _ in found]), rel=1e-5)


# -- schedule and optimisers -------------------------------------------------------------------------------

@given(st.integers(1, 5000), st.integers(0, 3000), st.sampled_from([0.0, 0.1]))
def test_learning_rate_warms_up_linearly_then_follows_a_cosine(updates, warmup, final):
    config = TrainConfig(updates, warmup=warmup, final_lr=final)
    w = min(warmup, math.ceil(updates / 20))
    lr = [config.lr_at(u) for u in range(updates)]
    assert lr[:w] == pytest.approx([(u + 1) / w for u in range(w)])
    left = updates - w
    assert lr[w:] == pytest.approx(
        [final + (1 - final) * math.cos(math.pi * k / 2 / left) ** 2 for k in range(left)], abs=1e-12)
    if left:
        assert lr[w] == 1 and config.lr_at(updates) == pytest.approx(final)
        assert config.lr_at(w + left / 2) == pytest.approx((1 + final) / 2)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_parameter_has_one_optimiser_and_only_inner_matrices_decay(name):
    model, config = tiny_model(), TrainConfig(10, optimiser=name, weight_decay=0.1)
    groups = [group for o in train.optimisers(model, config) for group in o.param_groups]
    owned = [id(p) for group in groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    matrices = {n for n, p in model.named_parameters() if n.startswith("blocks") and p.ndim == 2}
    assert names == {"adam": set(), "adamw": matrices | {"head.weight"}, "muon": matrices}[name]
    kinds = {n: type(o).__name__ for o in train.optimisers(model, config) for g in o.param_groups
             for n, p in model.named_parameters() if any(p is q for q in g["params"])}
    first = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon"}[name]
    assert {kinds[n] for n in matrices} == {first}
    assert {kinds[n] for n in kinds.keys() - matrices} == {"AdamW" if name == "muon" else first}


def test_updates_use_the_schedule_and_the_clipped_gradient(tmp_path):
    seen = []

    def record(optimiser, *_):
        group = optimiser.param_groups[0]
        seen.append((group["lr"], torch.cat([p.grad.flatten() for p in group["params"]]).norm().item()))

    hook = register_optimizer_step_pre_hook(record)
    try:
        for clip in (0.0, 1e-3):
            config = TrainConfig(40, 4, lr=0.02, warmup=10, clip=clip)
            train.fit(tiny_model(), tiny_windows(), config, tmp_path / str(clip), **FP32)
    finally:
        hook.remove()
    assert [lr for lr, _ in seen] == pytest.approx([0.02 * config.lr_at(u) for u in range(40)] * 2)
    norms = np.array([norm for _, norm in seen])
    assert norms[:40].min() > 0.1 and norms[40:].max() <= 1.001e-3


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_a_batch_in_parts_gives_the_gradient_of_the_loss(monkeypatch, dtype, tolerance):
    ids, weight = everything(tiny_windows(action_weight=5.0))  # padded windows weigh less
    model = tiny_model()
    train.loss(model, ids, weight).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    seen = {}
    hook = register_optimizer_step_pre_hook(lambda *_: seen.update(
        {name: p.grad.clone() for name, p in model.named_parameters()}))
    try:
        for part in (1, 45, 60, 10_000):  # tokens: 1, 2, 3 and 15 windows at a time
            model, seen = tiny_model(), {}
            config = TrainConfig(10, 15)
            monkeypatch.setattr(train, "PART", part)
            value = train.step(model, train.optimisers(model, config), (ids, weight), config, 0, dtype)
            assert value.item() == pytest.approx(train.loss(tiny_model(), ids, weight).item(), rel=tolerance / 10)
            for name, gradient in expected.items():
                assert (seen[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name
    finally:
        hook.remove()


def test_an_epoch_takes_every_window_once(tmp_path, monkeypatch):
    batch, starts = Windows.batch, []
    monkeypatch.setattr(Windows, "batch", lambda self, at: starts.append(at.tolist()) or batch(self, at))
    train.fit(tiny_model(), tiny_windows(), TrainConfig(10, batch=3), tmp_path, **FP32)
    epochs = [sum(starts[:5], []), sum(starts[5:], [])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(15))] * 2 and epochs[0] != epochs[1]


def test_a_diverging_run_is_stopped(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at update \d: lower lr=1e\+30"):
        train.fit(tiny_model(), tiny_windows(), TrainConfig(9, 4, lr=1e30, warmup=0), tmp_path, **FP32)


@pytest.mark.parametrize("options, match", [
    ({"optimiser": "sgd"}, "'sgd'; expected 'adam', 'adamw' or 'muon'"),
    ({"updates": 0}, "updates=0, .*at least 1"),
    ({"batch": 0}, "batch=0; expected at least 1"),
])
def test_bad_configs_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(**{"updates": 10} | options)


# -- the loop ----------------------------------------------------------------------------------------------

def test_a_deterministic_world_is_learned_to_zero_nats(tmp_path):
    phase = np.arange(60) % 5
    columns = np.stack([phase, 2 * phase % 5, 3 * phase % 5, phase**2 % 5], 1).astype(float)
    ended = np.arange(60) == 59
    columns = {"observations": columns[:, :2], "actions": columns[:, 2:3], "rewards": columns[:, 3]}
    episodes = data.episodes(columns | {"terminals": ended, "timeouts": ended})
    steps = data.steps_table(episodes, WORLD, 0.0, True)
    windows = data.windows(episodes, steps, tokenizer.fit(steps, WORLD, V), 3)
    model = tiny_model(T=3, d_model=32)
    assert train.evaluate(model, windows) > 1
    curve = train.fit(model, windows, TrainConfig(150, 16, lr=1e-2), tmp_path, windows, **FP32)
    assert max(nats for nats, _ in train.by_dimension(model, windows)) < 0.02
    assert curve[-1]["held_out"] == pytest.approx(train.evaluate(model, windows)) and curve[-1]["loss"] < 0.02
    assert not model.training


@pytest.mark.parametrize("optimiser, where", [*zip(OPTIMISERS, ("block", "everywhere", "everywhere"))])
def test_stopping_and_going_on_changes_no_bit(tmp_path, optimiser, where):
    windows = tiny_windows()
    config = TrainConfig(12, 4, optimiser, lr=1e-2, weight_decay=0.1, clip=1.0, seed=3)
    make = lambda: tiny_model(dropout=0.3, dropout_where=where)  # noqa: E731
    whole = make()
    state = torch.get_rng_state()
    curve = train.fit(whole, windows, config, tmp_path / "whole", windows, **FP32)
    assert (torch.get_rng_state() == state).all()  # the caller's randomness is the caller's
    for stop in (2, 7, None):  # each time another process with other weights
        model = make()
        for p in model.parameters():
            p.data.zero_()
        model = make() if stop == 2 else model
        pieces = train.fit(model, windows, config, tmp_path / "pieces", windows, stop_at=stop, **FP32)
    assert (parameters(model) == parameters(whole)).all()
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows] for rows in (curve, pieces)]
    assert untimed[0] == untimed[1] and [row["update"] for row in curve] == list(range(1, 13))


def test_the_learning_curve_is_the_same_after_a_stop(tmp_path):
    windows, config = tiny_windows((4,), T=2), TrainConfig(200, 4, lr=1e-3)  # a row every 2 updates
    make = lambda: tiny_model(T=2, n_layer=1)  # noqa: E731
    curves = [train.fit(make(), windows, config, tmp_path / "whole", **FP32)]
    train.fit(make(), windows, config, tmp_path / "pieces", stop_at=101, **FP32)
    curves.append(train.fit(make(), windows, config, tmp_path / "pieces", **FP32))
    losses = [[(row["update"], row["loss"]) for row in curve] for curve in curves]
    assert len(losses[0]) == 100 and losses[0] == losses[1]


def test_a_run_of_another_config_is_not_continued(tmp_path):
    windows, first, other = tiny_windows(), TrainConfig(6, 4, seed=0), TrainConfig(6, 4, seed=1)
    train.fit(tiny_model(dropout=0.3), windows, first, tmp_path / "used", stop_at=3, **FP32)
    models = [tiny_model(dropout=0.3) for _ in range(2)]
    curves = [train.fit(model, windows, other, tmp_path / name, **FP32)
              for model, name in zip(models, ("used", "fresh"))]
    assert len(curves[0]) == 6 and (parameters(models[0]) == parameters(models[1])).all()


# -- checkpoints -------------------------------------------------------------------------------------------

def saved(folder, **options):
    """A rounded model, what was saved with it, and the folder."""
    windows = tiny_windows(action_weight=5.0, **options)
    model = tiny_model(windows.tokenizer.transition, prefix=windows.prefix)
    checkpoint.round_weights(model)
    batch = windows.batch(torch.tensor([1, 12, 14]))
    checkpoint.save(folder, model, windows.tokenizer, {"key": "k", "curve": [{"loss": 1.5}]}, *batch)
    return model, windows.tokenizer, batch


def test_rounded_weights_are_bf16_numbers_nearby():
    model, before = tiny_model(), parameters(tiny_model())
    checkpoint.round_weights(model)
    after = parameters(model)
    assert (after == after.bfloat16().float()).all() and (after != before).any()
    assert ((after - before).abs() <= before.abs() * 2**-8).all()


@pytest.mark.parametrize("options", [{}, {"goal": True}, {"goal": True, "transition": NO_REWARDS}])
def test_a_checkpoint_gives_back_what_was_saved(tmp_path, options):
    model, bins, (ids, weight) = saved(tmp_path / "deep" / "c", **options)
    c = checkpoint.load(tmp_path / "deep" / "c")
    assert c.model.config == model.config and not c.model.training
    with torch.no_grad():
        assert (c.model(ids) == model(ids)).all()
        nats = train.loss(model, ids, weight).item()
    assert c.about == {"key": "k", "curve": [{"loss": 1.5}], "held_out_nats": nats}
    assert (c.tokenizer.transition, c.tokenizer.V, c.tokenizer.kind) == (bins.transition, V, "uniform")
    assert (c.tokenizer.edges == bins.edges).all() and (c.tokenizer.centres == bins.centres).all()
    assert (c.held_out == ids).all() and (c.weight == weight).all()
    assert sorted(p.name for p in (tmp_path / "deep" / "c").iterdir()) == ["config.json", "model.safetensors"]


def edit_config(change):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def edit_tensors(change):
    def damage(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return damage


def cut(share):
    def damage(folder):
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: int(share * len(content))])

    return damage


UNREADABLE = "is not a readable checkpoint .*; delete it and run `make all`"


@pytest.mark.parametrize("damage, match", [
    *[(cut(share), UNREADABLE) for share in (0, 0.001, 0.5, 0.999)],
    (lambda f: (f / "config.json").write_text('{"model": '), UNREADABLE),
    (lambda f: (f / "config.json").write_text("[]"), UNREADABLE),
    (edit_config(lambda c: c.pop("about")), "KeyError.*about.*make all"),
    (edit_config(lambda c: c["model"].pop("transition")), "KeyError.*transition.*make all"),
    (edit_config(lambda c: c["model"].update(heads=3)), "heads.*make all"),
    (edit_config(lambda c: c["tokenizer"].pop("V")), "KeyError.*V.*make all"),
    (edit_config(lambda c: c["model"].update(d_model=32)), r"blocks.*found .*16.*expected .*32.*make all"),
    (edit_config(lambda c: c["model"].update(T=5)), r"position.weight.*found \(20, 16\), .* \(25, 16\)"),
    (edit_config(lambda c: c["model"].update(n_layer=3)), r"blocks.2.*found None, expected \(16,\)"),
    (edit_config(lambda c: c["model"].update(n_layer=1)), r"blocks.1.*found \(16,\), expected None"),
    (edit_tensors(lambda t: t.pop("tokenizer.edges")), "tokenizer.edges.*found None"),
    (edit_tensors(lambda t: t.update({"tokenizer.edges": t["tokenizer.edges"][1:].clone()})),
     r"shape \(4, 6\); .*\(5, 6\)"),
])
def test_damaged_checkpoints_are_refused(tmp_path, damage, match):
    saved(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(ValueError, match=match) as error:
        checkpoint.load(tmp_path / "c")
    assert str(tmp_path / "c") in str(error.value) or "edges of shape" in str(error.value)


def test_a_device_that_is_not_there_is_named(tmp_path):
    saved(tmp_path / "c")
    with pytest.raises(ValueError, match=rf"device cuda:99 is not there, {torch.cuda.device_count()} GPUs are"):
        checkpoint.load(tmp_path / "c", "cuda:99")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_checkpoints_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none" / "config.json"))):
        checkpoint.load(tmp_path / "none")
    saved(tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path / 'c' / name))} is missing; .*"):
        checkpoint.load(tmp_path / "c")


def test_a_failed_save_leaves_no_half_file(tmp_path, monkeypatch):
    model, bins, batch = saved(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}

    def half(tensors, path, **options):
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    for name in ("new", "old"):
        with pytest.raises(OSError, match="no space left"):
            checkpoint.save(tmp_path / name, model, bins, {"key": "other"}, *batch)
    assert not list((tmp_path / "new").iterdir())
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
    with pytest.raises(OSError, match="no space left"):
        train.fit(model, tiny_windows(), TrainConfig(3, 4), tmp_path / "run", stop_at=1, **FP32)
    assert not list((tmp_path / "run").iterdir())


@given(st.binary(max_size=200))
def test_packed_weights_come_back_byte_for_byte(content):
    assert files.unpack(files.pack(content)) == content


def test_packing_makes_checkpoints_smaller_and_changes_nothing_that_is_read(tmp_path):
    weights = {"w": torch.randn(300, 64).bfloat16(), "edges": torch.randn(5, 7, dtype=torch.float64)}
    content = safetensors.torch.save(weights)
    packed = files.pack(content)
    assert len(packed) < 0.75 * len(content)
    for name, stored in (("model.safetensors", content), (files.PACKED, packed)):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(stored)
        assert files.weights(folder) == content


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_packed_weights_that_end_too_early_are_refused(share):
    packed = files.pack(bytes(range(256)) * 20)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        files.unpack(packed[: int(share * len(packed))])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        files.unpack(b"no stream" + packed)


def test_muon_takes_the_steps_of_torchs_muon():
    """Stacked by shape and in fp32, where torch's takes bf16: equal to its rounding; momentum goes through a resume."""
    rng = torch.Generator().manual_seed(0)
    start = [0.02 * torch.randn(shape, generator=rng) for shape in ((24, 8), (8, 8), (32, 8), (8, 32), (8, 32))]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    options = {"lr": 5e-3, "weight_decay": 0.1}
    optimisers = (train.Muon(ours, **options, dtype=torch.float32),
                  torch.optim.Muon(theirs, **options, adjust_lr_fn="match_rms_adamw"))  # fmt: skip
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = torch.randn(p.shape, generator=rng)
        for optimiser in optimisers:
            optimiser.step()
    for p, q, x in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.03 * (q - x).norm()
    assert optimisers[0].state_dict()["state"].keys() == optimisers[1].state_dict()["state"].keys()


def test_newton_schulz_brings_singular_values_near_one():
    x = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(train.orthogonal(x))
    assert (values > 0.6).all() and (values < 1.25).all()
