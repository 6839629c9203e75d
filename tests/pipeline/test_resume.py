"""Tests of resumed trainings: a stop changes no bit, and another run's state is not taken up."""

from dataclasses import replace

import pytest
import torch
from conftest import V, parameters, tiny_model, tiny_windows
from damage import fill_disk

from ttlib import cpu, train
from ttlib.pipeline.resume import Resume
from ttlib.train import TrainConfig

FP32 = {"dtype": "float32"}


def fit(model, windows, config, folder, held_out=None, stop_at=None):
    """Train, and write the state after each row of the curve."""
    return train.fit(model, windows, config, held_out, Resume(folder, seconds=0), stop_at)


def losses(curve):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in curve]


@pytest.mark.parametrize("optimiser, where", [("adam", "block"), ("adamw", "everywhere"), ("muon", "everywhere")])
def test_stopping_and_going_on_changes_no_bit(tmp_path, optimiser, where):
    windows = tiny_windows()
    config = TrainConfig(12, 4, optimiser, lr=1e-2, weight_decay=0.1, clip=1.0, seed=3, **FP32)
    make = lambda: tiny_model(dropout=0.3, dropout_where=where)  # noqa: E731
    whole = make()
    state = torch.get_rng_state()
    curve = train.fit(whole, windows, config, windows)
    assert (torch.get_rng_state() == state).all()  # the caller's random numbers are as before
    for stop in (2, 7, None):  # each time in another process, with other weights
        model = make()
        if stop != 2:
            torch.nn.utils.vector_to_parameters(0 * parameters(model), model.parameters())
        pieces = fit(model, windows, config, tmp_path, windows, stop)
    assert (parameters(model) == parameters(whole)).all()
    assert losses(curve) == losses(pieces) and [row["update"] for row in curve] == list(range(1, 13))


@pytest.mark.parametrize("killed", [False, True])
def test_the_learning_curve_is_the_same_after_a_stop_and_after_a_kill(tmp_path, monkeypatch, killed):
    windows, config = tiny_windows((4,), T=2), TrainConfig(200, 4, lr=1e-3, **FP32)  # a row for every 2 updates
    make = lambda: tiny_model(T=2, n_layer=1)  # noqa: E731
    whole, step = train.fit(make(), windows, config), train.step

    def until_101(*args):
        if args[4] == 101:  # in the middle of a row
            raise KeyboardInterrupt
        return step(*args)

    if killed:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train, "step", until_101)
            fit(make(), windows, config, tmp_path)
    else:
        assert fit(make(), windows, config, tmp_path, stop_at=101)[-1]["update"] == 102
    assert len(whole) == 100 and losses(fit(make(), windows, config, tmp_path)) == losses(whole)


def test_the_state_is_written_at_most_every_so_many_seconds(tmp_path):
    train.fit(tiny_model(), tiny_windows(), TrainConfig(3, 4, **FP32), saved=Resume(tmp_path, seconds=1000))
    assert not list(tmp_path.iterdir())


WINDOWS = tiny_windows()
MODEL = {"dropout": 0.3, "n_head": 2}


@pytest.mark.parametrize("model, windows, change", [
    (MODEL, WINDOWS, {"seed": 1}), (MODEL, WINDOWS, {"lr": 1e-3}),
    (MODEL | {"n_head": 4}, WINDOWS, {}), (MODEL | {"dropout": 0.2}, WINDOWS, {}),  # all weights have equal shapes
    (MODEL, replace(WINDOWS, bins=(WINDOWS.bins + 1) % V), {}),
    (MODEL, replace(WINDOWS, action_weight=5.0), {}), (MODEL, replace(WINDOWS, end=torch.full((15,), 15)), {}),
])  # fmt: skip
def test_a_run_of_another_config_model_or_data_is_not_continued(tmp_path, model, windows, change):
    config = TrainConfig(6, 4, **FP32)
    fit(tiny_model(**MODEL), WINDOWS, config, tmp_path / "used", stop_at=3)
    models = [tiny_model(**model) for _ in range(2)]
    curves = [fit(m, windows, replace(config, **change), tmp_path / name) for m, name in zip(models, ("used", "fresh"))]
    assert len(curves[0]) == 6 and losses(curves[0]) == losses(curves[1])
    assert (parameters(models[0]) == parameters(models[1])).all()


def test_a_resumed_run_keeps_the_number_format_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "fast_dtype", lambda device: torch.float32)
    windows, config, models = tiny_windows(), TrainConfig(6, 4, "muon", lr=1e-2), [tiny_model() for _ in range(3)]
    whole = train.fit(models[0], windows, config)
    fit(models[1], windows, config, tmp_path, stop_at=3)
    monkeypatch.setattr(cpu, "fast_dtype", lambda device: torch.bfloat16)  # it goes on on another machine
    assert train.fit(tiny_model(), windows, config, stop_at=1)[0]["dtype"] == "bfloat16"
    curve = fit(models[2], windows, config, tmp_path)
    assert [row["dtype"] for row in curve] == 6 * ["float32"] and losses(curve) == losses(whole)
    assert (parameters(models[2]) == parameters(models[0])).all()


@pytest.mark.parametrize("damage", ["cut", "changed"])
@pytest.mark.parametrize("at", [0.0, 0.3, 0.6, 0.95])
def test_a_damaged_state_is_named_and_the_training_ends_the_same(tmp_path, capsys, damage, at):
    windows, config, models = tiny_windows(), TrainConfig(6, 4, **FP32), [tiny_model() for _ in range(3)]
    train.fit(models[0], windows, config)
    fit(models[1], windows, config, tmp_path, stop_at=3)
    content = bytearray((tmp_path / "resume.pt").read_bytes())
    place = int(at * len(content))
    content[place:] = b"" if damage == "cut" else bytes([content[place] ^ 1]) + content[place + 1 :]
    (tmp_path / "resume.pt").write_bytes(content)
    fit(models[2], windows, config, tmp_path)
    assert (parameters(models[2]) == parameters(models[0])).all()
    assert damage == "changed" or f"{tmp_path / 'resume.pt'} is damaged" in capsys.readouterr().err


def test_a_failed_write_leaves_no_half_file(tmp_path, monkeypatch):
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        fit(tiny_model(), tiny_windows(), TrainConfig(3, 4, **FP32), tmp_path)
    assert not list(tmp_path.iterdir())
