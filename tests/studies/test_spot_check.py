"""Tests of the spot check: records of this machine hold; changed weights, records and searches show."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ttlib import cpu, search
from ttlib.commands.__main__ import check as command
from ttlib.pipeline import experiments, places, provenance, rollouts, store
from ttlib.studies import jobs, spot_check

PLANNED = rollouts.planning(experiments.get("hopper-medium", "smoke", "released"))
OTHERS = [
    replace(PLANNED, method="sampling", setting="sampling"),
    rollouts.RolloutSet(PLANNED.exp, "behaviour", "the policies", (0, 1)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checked")


@pytest.fixture(autouse=True)
def elsewhere(folder, monkeypatch):
    """Keep the build of all tests in one folder, and make the record of it where it is missing."""
    monkeypatch.setattr(places, "BUILD", folder)
    monkeypatch.setattr(places, "TABLES", folder / "tables")
    monkeypatch.setattr(places, "records", lambda size: folder / "records" / size)
    monkeypatch.setattr(store, "TRAINED", folder / "checkpoints")
    monkeypatch.setattr(store, "REGENERATED", folder / "regenerated")
    monkeypatch.setattr(provenance, "commit", lambda: "abc")
    monkeypatch.setattr(cpu, "fast_dtype", lambda device: torch.float32)  # the same model whatever a machine measures
    monkeypatch.setattr(jobs, "checkable", lambda size: {"table1_rollouts": [PLANNED], "others": OTHERS})
    store.dataset.cache_clear()
    rollouts.table("table1_rollouts", "smoke", [PLANNED])
    rollouts.table("others", "smoke", OTHERS)


def edit(path, column, change):
    """Change a column of a record, as somebody would who also mends its digest."""
    table, beside = pd.read_csv(path), path.with_suffix(".json")
    table[column] = table[column].map(change)
    path.write_text(table.to_csv(index=False))
    about = json.loads(beside.read_text()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    beside.write_text(json.dumps(about))


def test_records_of_this_machine_hold(folder, capsys):
    sentence, wrong = spot_check.check("smoke", share=1.0)
    assert wrong == [] and sentence.startswith("checked 6 of 6 recorded rollouts on this machine: 6 equal (")
    assert json.loads((folder / "spot-check-smoke.json").read_text())["sentence"] == sentence
    assert command("smoke", 0.0) == 0  # one of each record, of which one to its end
    assert "checked 2 of 6" in capsys.readouterr().out


def test_a_weight_that_changed_by_a_hundredth_shows(monkeypatch, capsys):
    real = store.load_or_train

    def changed(exp):
        loaded = real(exp)
        with torch.no_grad():
            channel = loaded.model.head.weight.norm(dim=0).argmax()
            loaded.model.norm.weight[channel] *= 1.01
        return loaded

    monkeypatch.setattr(store, "load_or_train", changed)
    assert command("smoke", 1.0) == 1
    said = capsys.readouterr().out
    assert "table1_rollouts, hopper-medium-released, tto, horizon" in said and ", seed 0, step " in said
    assert "make SIZE=smoke recompute" in said


def test_another_search_shows(monkeypatch):
    real = search.plan_value
    monkeypatch.setattr(search, "plan_value", lambda r, R, gamma, *rest: real(r, R, 0.9 * gamma, *rest))
    assert spot_check.check("smoke", 1.0)[1]


@pytest.mark.parametrize("column, change", [
    ("actions", lambda text: json.dumps([[50, *row[1:]] if t == 3 else row for t, row in enumerate(json.loads(text))])),
    ("values", lambda text: json.dumps([x + 1 for x in json.loads(text)])),
    ("return", lambda x: 1.01 * x + 1)])  # fmt: skip
def test_a_record_that_was_edited_shows(folder, column, change):
    path = folder / "records" / "smoke" / "table1_rollouts.csv"
    kept = {p: p.read_bytes() for p in (path, path.with_suffix(".json"))}
    edit(path, column, change)
    wrong = spot_check.check("smoke", 1.0)[1]
    assert any("table1_rollouts" in line and ", seed " in line for line in wrong)
    for p, content in kept.items():
        p.write_bytes(content)


def test_actions_of_equal_value_are_excused_but_not_many():
    row = {"rollout_seed": 0, "actions": "[[1],[2],[3]]", "values": "[5.0,5.0,5.0]", "spreads": "[2.0,2.0,2.0]"}
    one = spot_check.Recorded("t", PLANNED, row)
    judge = lambda *pairs: [one.judge(t, np.array([a]), v) for t, (a, v) in enumerate(pairs)]  # noqa: E731
    assert judge((1, 5.0), (2, 5.0019), (3, 4.9981), (9, 0.0)) == [""] * 4
    assert judge((1, 5.0), (9, 5.0019), (3, 5.0)) == ["", spot_check.EXCUSED_WORD, ""]
    wrong = judge((1, 5.0021), (9, 5.0021), (3, 5.0))
    assert "step 0: value 5.0021" in wrong[0] and "step 1: action [9]" in wrong[1] and wrong[2] == ""


def test_a_decision_on_an_edge_is_excused_and_another_one_is_not(monkeypatch):
    """Where rounding moves all log-probabilities a little, decisions stay the record's or are found by noise."""
    every = spot_check.recorded("smoke")
    real = store.load_or_train

    def rounded(by):
        def load(exp):
            loaded = real(exp)
            with torch.no_grad():
                for parameter in loaded.model.parameters():
                    parameter.mul_(1 + by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            return loaded

        monkeypatch.setattr(store, "load_or_train", load)
        return [line for one in every for *_, lines in spot_check.again([one], False) for line in lines]

    assert rounded(1e-7) == [] and rounded(1e-2)


def test_another_commit_chooses_other_rollouts_and_each_record_has_one():
    every = [spot_check.Recorded(f"t{i % 3}", PLANNED, {"rollout_seed": i}) for i in range(300)]
    picked = {word: spot_check.chosen(every, 0.05, word) for word in ("a", "b")}
    for chosen in picked.values():
        assert len(chosen) == 15 and {one.record for one in chosen} == {"t0", "t1", "t2"}
    assert [one.row for one in picked["a"]] != [one.row for one in picked["b"]]
    assert len(spot_check.chosen(every, 1.0, "a")) == 300


def test_where_rounding_differs_only_recorded_decisions_count(folder, monkeypatch):
    path = folder / "records" / "smoke" / "table1_rollouts.csv"
    kept = {p: p.read_bytes() for p in (path, path.with_suffix(".json"))}
    edit(path, "return", lambda x: x + 1)
    assert spot_check.check("smoke", 0.0)[1]
    here = provenance.here() | {"instructions": "of another processor"}
    monkeypatch.setattr(provenance, "here", lambda: here)
    assert spot_check.check("smoke", 0.0)[1] == []
    for p, content in kept.items():
        p.write_bytes(content)
