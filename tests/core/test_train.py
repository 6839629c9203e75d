"""Tests of the loss by hand, of the schedule in closed form, of the loop, and of checkpoints, whole or refused."""

import math
import os
import re

import numpy as np
import pytest
import torch
from conftest import NO_REWARDS, WORLD, V, parameters, tiny_model, tiny_windows
from damage import cut, edit_config, edit_tensors, fill_disk
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ttlib import checkpoint, cpu, data, files, tokenizer, train
from ttlib.data import Windows
from ttlib.datasets import arrays
from ttlib.model import loss, token_nats
from ttlib.train import TrainConfig

OPTIMISERS = ("adam", "adamw", "muon")
FP32 = {"dtype": "float32"}


def everything(windows):
    return windows.batch(torch.arange(len(windows)))


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
    assert loss(model, ids, weight).item() == pytest.approx(above / below, rel=1e-5)
    assert loss(model, ids, 3 * weight).item() == pytest.approx(above / below, rel=1e-5)


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
    slow = token_nats(model.eval(), ids).tolist()
    for row, tokens, weights in zip(slow, ids.tolist(), weight.tolist()):
        for i in range(1, len(tokens)):
            if weights[i]:
                nats[tokens[i] // V].append(row[i - 1])
    assert [count for _, count in found] == [len(dim) for dim in nats]
    assert [mean for mean, _ in found] == pytest.approx([np.mean(dim) for dim in nats], rel=1e-4)
    assert value == pytest.approx(np.mean([mean for mean, _ in found]), rel=1e-5)


@pytest.mark.parametrize("goal", [False, True])
def test_windows_of_one_transition_are_evaluated(goal):
    """A first token without a goal before it is never predicted, and does not count."""
    windows = tiny_windows(T=1, goal=goal)
    model = tiny_model(T=1, prefix=windows.prefix)
    nats = token_nats(model, everything(windows)[0])[:, max(0, windows.prefix - 1) :]
    assert train.evaluate(model, windows) == pytest.approx(nats.mean().item(), rel=1e-5)
    assert [tokens > 0 for _, tokens in train.by_dimension(model, windows)] == [goal] + [True] * (WORLD.D - 1)


@given(st.integers(1, 5000), st.integers(0, 3000), st.sampled_from([0.0, 0.1]))
def test_learning_rate_warms_up_linearly_then_follows_a_cosine(updates, warmup, final):
    config = TrainConfig(updates, warmup=warmup, final_lr=final)
    w = min(warmup, math.ceil(updates / 20))
    lr = [config.lr_at(u) for u in range(updates)]
    assert lr[:w] == pytest.approx([(u + 1) / w for u in range(w)])
    left = updates - w
    cosine = [final + (1 - final) * math.cos(math.pi * k / 2 / left) ** 2 for k in range(left)]
    assert lr[w:] == pytest.approx(cosine, abs=1e-12)
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
    first = "Muon" if name == "muon" else "AdamW"  # without weight decay AdamW is Adam
    assert {kinds[n] for n in matrices} == {first}
    assert {kinds[n] for n in kinds.keys() - matrices} == {"AdamW"}


def test_updates_use_the_schedule_and_the_clipped_gradient():
    seen = []

    def record(optimiser, *_):
        groups = optimiser.param_groups
        assert len({group["lr"] for group in groups}) == 1
        gradient = torch.cat([p.grad.flatten() for group in groups for p in group["params"]])
        seen.append((groups[0]["lr"], gradient.norm().item()))

    hook = register_optimizer_step_pre_hook(record)
    try:
        for clip in (0.0, 1e-3):
            config = TrainConfig(40, 4, lr=0.02, warmup=10, clip=clip, **FP32)
            train.fit(tiny_model(), tiny_windows(), config)
    finally:
        hook.remove()
    assert [lr for lr, _ in seen] == pytest.approx([0.02 * config.lr_at(u) for u in range(40)] * 2)
    norms = np.array([norm for _, norm in seen])
    assert norms[:40].min() > 0.1 and norms[40:].max() <= 1.001e-3


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_a_batch_in_parts_gives_the_gradient_of_the_loss(monkeypatch, dtype, tolerance):
    ids, weight = everything(tiny_windows(action_weight=5.0))  # padded windows weigh less
    model = tiny_model()
    loss(model, ids, weight).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    seen = {}
    hook = register_optimizer_step_pre_hook(lambda *_: seen.update(
        {name: p.grad.clone() for name, p in model.named_parameters()}))
    try:
        for part in (1, 45, 60, 10_000):  # tokens: 1, 2, 3 and 15 windows at a time
            model, seen = tiny_model(), {}
            config = TrainConfig(10, 15)
            monkeypatch.setattr(train, "CHUNK_TOKENS", part)
            value = train.step(model, train.optimisers(model, config), (ids, weight), config, 0, dtype)
            assert value.item() == pytest.approx(loss(tiny_model(), ids, weight).item(), rel=tolerance / 10)
            for name, gradient in expected.items():
                assert (seen[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name
    finally:
        hook.remove()


def test_an_epoch_takes_every_window_once(monkeypatch):
    batch, starts = Windows.batch, []
    monkeypatch.setattr(Windows, "batch", lambda self, at: starts.append(at.tolist()) or batch(self, at))
    train.fit(tiny_model(), tiny_windows(), TrainConfig(10, batch=3, **FP32))
    epochs = [sum(starts[:5], []), sum(starts[5:], [])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(15))] * 2 and epochs[0] != epochs[1]


def test_streams_of_updates_of_different_seeds_do_not_overlap():
    """Neither the dropout of an update nor the order of an epoch is that of another update, epoch or seed."""
    seen = set()
    for seed, purpose, update in np.ndindex(30, 2, 100):
        rng = torch.Generator().manual_seed(train._stream(seed, purpose, update))
        seen.add(tuple(torch.rand(2, generator=rng, dtype=torch.float64).tolist()))
    assert len(seen) == 30 * 2 * 100


def test_every_update_has_random_numbers_of_its_own(monkeypatch):
    drawn = []
    monkeypatch.setattr(train, "step", lambda *args, **options: drawn.append(torch.rand(()).item()) or torch.zeros(()))
    for seed in (0, 1):
        train.fit(tiny_model(), tiny_windows(), TrainConfig(6, 4, seed=seed, **FP32))
    assert len(set(drawn)) == len(drawn) == 12


def test_a_diverging_run_is_stopped():
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at update \d: lower lr=1e\+30"):
        train.fit(tiny_model(), tiny_windows(), TrainConfig(9, 4, lr=1e30, warmup=0, **FP32))


@pytest.mark.parametrize("options, match", [
    ({"optimiser": "sgd"}, "'sgd'; expected .*adam.*adamw.*muon"),
    ({"dtype": "float16"}, "'float16'; expected .*fast.*float32.*bfloat16"),
    ({"updates": 0}, "updates=0, batch=64, lr=.*; expected"), ({"batch": 0}, "batch=0, lr=.*; expected"),
])  # fmt: skip
def test_bad_configs_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(**{"updates": 10} | options)


def test_a_deterministic_world_is_learned_to_zero_nats():
    phase = np.arange(60) % 5
    columns = np.stack([phase, 2 * phase % 5, 3 * phase % 5, phase**2 % 5], 1).astype(float)
    ended = np.arange(60) == 59
    columns = {"observations": columns[:, :2], "actions": columns[:, 2:3], "rewards": columns[:, 3]}
    episodes = arrays.episodes(columns | {"terminals": ended, "timeouts": ended})
    steps = data.steps(episodes, WORLD, 0.0)[:]
    windows = data.windows(episodes, steps, tokenizer.fit(steps.T, WORLD, V), 3)[0]
    model = tiny_model(T=3, d_model=32)
    assert train.evaluate(model, windows) > 1
    curve = train.fit(model, windows, TrainConfig(150, 16, lr=1e-2, **FP32), windows)
    assert max(nats for nats, _ in train.by_dimension(model, windows)) < 0.02
    assert curve[-1]["held_out"] == pytest.approx(train.evaluate(model, windows)) and curve[-1]["loss"] < 0.02
    assert not model.training


def saved(folder, **options):
    """Return a rounded model that was saved in the folder, its tokenizer, and some ids."""
    windows = tiny_windows(**options)
    model = tiny_model(windows.tokenizer.transition, prefix=windows.prefix)
    checkpoint.round_weights(model)
    extras = {"held_out.bins": torch.arange(6, dtype=torch.uint8).view(2, 3)}
    checkpoint.save(folder, model, windows.tokenizer, {"key": "k", "curve": [{"loss": 1.5}]}, extras)
    return model, windows.tokenizer, windows.batch(torch.tensor([1, 12, 14]))[0]


def test_rounded_weights_are_bf16_numbers_nearby():
    model, before = tiny_model(), parameters(tiny_model())
    checkpoint.round_weights(model)
    after = parameters(model)
    assert (after == after.bfloat16().float()).all() and (after != before).any()
    assert ((after - before).abs() <= before.abs() * 2**-8).all()


@pytest.mark.parametrize("options", [{}, {"goal": True}, {"goal": True, "transition": NO_REWARDS}])
def test_a_checkpoint_gives_back_what_was_saved(tmp_path, options):
    model, bins, ids = saved(tmp_path / "deep" / "c", **options)
    c = checkpoint.load(tmp_path / "deep" / "c")
    assert c.model.config == model.config and not c.model.training
    with torch.no_grad():
        assert (c.model(ids) == model(ids)).all()
    assert c.about == {"key": "k", "curve": [{"loss": 1.5}]}
    assert (c.tokenizer.transition, c.tokenizer.V, c.tokenizer.kind) == (bins.transition, V, "uniform")
    assert (c.tokenizer.edges == bins.edges).all() and (c.tokenizer.centres == bins.centres).all()
    assert c.extras.keys() == {"held_out.bins"} and c.extras["held_out.bins"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert sorted(p.name for p in (tmp_path / "deep" / "c").iterdir()) == ["config.json", "model.safetensors"]
    weights = (tmp_path / "deep" / "c" / "model.safetensors").read_bytes()
    (tmp_path / "deep" / "c" / "model.safetensors").unlink()  # weights may come from elsewhere
    assert (parameters(checkpoint.load(tmp_path / "deep" / "c", weights=weights).model) == parameters(model)).all()


UNREADABLE = "is not a readable checkpoint .*: delete it"


@pytest.mark.parametrize("damage, match", [
    *[(cut(fraction), UNREADABLE) for fraction in (0, 0.001, 0.5, 0.999)],
    (lambda f: (f / "config.json").write_text('{"model": '), UNREADABLE),
    (lambda f: (f / "config.json").write_text("[]"), UNREADABLE),
    (edit_config(lambda c: c.pop("about")), "KeyError.*about.*delete it"),
    (edit_config(lambda c: c["model"].pop("transition")), "KeyError.*transition.*delete it"),
    (edit_config(lambda c: c["model"].update(heads=3)), "heads.*delete it"),
    (edit_config(lambda c: c["tokenizer"].pop("V")), "KeyError.*V.*delete it"),
    (edit_config(lambda c: c["model"].update(d_model=32)), r"blocks.*found .*16.*expected .*32.*delete"),
    (edit_config(lambda c: c["model"].update(T=5)), r"position.weight.*found \(20, 16\), .* \(25, 16\)"),
    (edit_config(lambda c: c["model"].update(n_layer=3)), r"blocks.2.*found None, expected \(16,\)"),
    (edit_config(lambda c: c["model"].update(n_layer=1)), "blocks.1"),
    (edit_tensors(lambda t: t.pop("tokenizer.edges")), "tokenizer.edges.*found None"),
    (edit_tensors(lambda t: t.update({"tokenizer.edges": t["tokenizer.edges"][1:].clone()})),
     r"edges \(4, 6\); .*\(5, 6\)"),
])  # fmt: skip
def test_damaged_checkpoints_are_refused(tmp_path, damage, match):
    saved(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(ValueError, match=match) as error:
        checkpoint.load(tmp_path / "c")
    assert str(tmp_path / "c") in str(error.value) or "bin edges (4" in str(error.value)


def test_a_missing_device_is_named(tmp_path):
    saved(tmp_path / "c")
    with pytest.raises(ValueError, match=rf"cuda:99 is missing; .*{torch.cuda.device_count()} GPUs"):
        checkpoint.load(tmp_path / "c", "cuda:99")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_checkpoints_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none" / "config.json"))):
        checkpoint.load(tmp_path / "none")
    saved(tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path / 'c' / name))} is missing; .*"):
        checkpoint.load(tmp_path / "c")


def test_a_name_appears_when_its_content_is_on_the_disk(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file), path.exists())))
    files.write_aside(path, lambda aside: aside.write_bytes(b"content"))
    [(synced, there)] = seen
    assert (synced.st_ino, synced.st_size, there) == (path.stat().st_ino, len(b"content"), False)


def test_a_failed_save_leaves_no_half_file(tmp_path, monkeypatch):
    model, bins, _ = saved(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    fill_disk(monkeypatch)
    for name in ("new", "old"):
        with pytest.raises(OSError, match="no space left"):
            checkpoint.save(tmp_path / name, model, bins, {"key": "other"})
    assert not list((tmp_path / "new").iterdir())
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before


def test_muon_takes_the_steps_of_torchs_muon():
    """They agree to the rounding of torch's, which is in bf16; the states have the same names."""
    rng = torch.Generator().manual_seed(0)
    start = [0.02 * torch.randn(shape, generator=rng) for shape in ((24, 8), (8, 8), (32, 8), (8, 32), (8, 32))]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    options = {"lr": 5e-3, "weight_decay": 0.1}
    optimisers = (cpu.Muon(ours, **options, dtype=torch.float32),
                  torch.optim.Muon(theirs, **options, adjust_lr_fn="match_rms_adamw"))  # fmt: skip
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = torch.randn(p.shape, generator=rng)
        for optimiser in optimisers:
            optimiser.step()
    for p, q, x in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.03 * (q - x).norm()
    assert optimisers[0].state_dict()["state"].keys() == optimisers[1].state_dict()["state"].keys()
