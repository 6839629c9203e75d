"""Tests of the bench: it counts and compares correctly, and measures a row once."""

import subprocess
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORLD, random_ids, tiny_model, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from ttlib import control, search
from ttlib.commands import bench
from ttlib.pipeline import experiments, keys, places
from ttlib.search import Plan


@pytest.mark.parametrize("split", [1, 7, 19])
def test_operations_do_not_depend_on_how_tokens_are_read(split):
    model, ids = tiny_model(), random_ids(3, 20)

    def in_two():
        model(ids[:, :split])
        model(ids[:, split:], None, split)  # counted as if it attended to the tokens before

    count = bench.count_operations
    assert count(model, in_two) == pytest.approx(count(model, lambda: model(ids)))


@torch.inference_mode()
def test_operations_of_a_plan_are_those_of_its_matrices_and_attention():
    """Torch counts the same where every token is a row of every matrix: without a context, and in the first step."""
    model, bins, ids = tiny_model(), tiny_tokenizer(), random_ids(2, WORLD.N)

    def plan():
        decoder = control.Decoder(model, bins, ids)
        plan_ = Plan(2, 3, 2, proposal="sample")
        search.maximise(decoder.advance, decoder.select_plans, decoder.log_p, bins, plan_, control.Streams([0, 1]))

    with FlopCounterMode(display=False) as counter:
        plan()
    operations = counter.get_flop_counts()["Global"]
    matrices = operations[torch.ops.aten.addmm]
    attention = sum(n for kind, n in operations.items() if kind != torch.ops.aten.addmm)
    counted = bench.count_operations(model, plan)
    assert matrices < counted < matrices + attention  # torch counts masked slots too, which nobody needs


def test_operations_of_random_shooting_are_those_of_one_member_for_each_sequence():
    job = bench.Planning("hopper", "ensemble", plans=3, horizon=2, environments=2)
    needed, work = bench.shooting_through(job)
    with FlopCounterMode(display=False) as counter:
        work()
    counted = counter.get_flop_counts()["Global"]
    members = experiments.SHOOTING.members
    assert needed == counted[torch.ops.aten.baddbmm] / members + counted[torch.ops.aten.addmm]


@pytest.mark.parametrize("proposal", ["beam", "sample"])
@torch.inference_mode()
def test_the_planner_without_a_cache_finds_the_same_plans(proposal):
    model, bins, ids = tiny_model(dtype=torch.float64), tiny_tokenizer(), random_ids(3, WORLD.N)
    plans, plan = [], Plan(3, 4, 3, proposal=proposal)
    for decoder in (bench.Uncached(model, bins, ids), control.Decoder(model, bins, ids)):
        streams = control.Streams(range(3))
        plans.append(search.maximise(decoder.advance, decoder.select_plans, decoder.log_p, bins, plan, streams))
    assert (plans[0].bins == plans[1].bins).all() and torch.allclose(*(p.value.float() for p in plans), atol=1e-5)


@pytest.mark.parametrize("kind", ["planning", "training"])
def test_ratios_are_one_for_the_same_code_on_a_machine_of_another_speed(kind):
    column, sign = ("seconds_per_decision", 1) if kind == "planning" else ("tokens_per_second", -1)
    published = pd.read_csv(places.ROOT / "data" / "published_speed.csv").query("kind == @kind")
    rows = published[["task", "model", "setting", "figure", "gflops_ceiling"]].rename(columns={"figure": column})
    best = rows.groupby(["task", "model", "setting"], as_index=False)
    best = best.min() if kind == "planning" else best.max()
    for faster in (1, 3):
        table = best.assign(gflops_fp32=faster * best.gflops_ceiling, profile="released")
        table[column] *= faster ** -sign
        compared = bench.beside_published(table, kind)
        assert compared.ratio_scaled.to_numpy() == pytest.approx(1) and compared.published_peer.notna().all()
        table[column] *= 2.0**-sign  # twice as fast
        assert bench.beside_published(table, kind).ratio_scaled.to_numpy() == pytest.approx(2)


def test_exponents_are_those_of_power_laws():
    n = np.array([1, 2, 4, 8])
    one = {"plans": 8, "horizon": 5, "past": 5, "environments": 1}
    beams = pd.DataFrame(one | {"axis": "beam width", "plans": n, "seconds_per_decision": 3 * n**1.5})
    together = pd.DataFrame(one | {"axis": "environments", "environments": n, "seconds_per_decision": 2.0 / n})
    exponent = bench.exponents(pd.concat([beams, together], ignore_index=True)).groupby("axis").exponent.mean()
    assert exponent["beam width"] == pytest.approx(1.5) and exponent["environments"] == pytest.approx(0)


def test_a_row_is_measured_once_for_each_code(tmp_path, monkeypatch):
    measured, codes = [], iter(["old", "old", "old", "new"])
    monkeypatch.setattr(places, "folder", lambda size: tmp_path)
    monkeypatch.setattr(keys, "key", lambda _: next(codes))
    monkeypatch.setattr(bench, "record", lambda *_: None)

    def measure(job, budget):
        measured.append(job)
        return {"seconds_per_decision": 1.0, "gflops_fp32": 50.0}

    monkeypatch.setattr(bench, "measure", measure)
    first, second = bench.Planning("hopper", "O"), bench.Planning("hopper", "O", environments=4)
    for jobs, expected in (([first], 1), ([first, second], 2), ([first], 2), ([first], 3)):
        bench.fill("planning", "smoke", jobs)
        assert len(measured) == expected
    table = pd.read_csv(tmp_path / "bench_planning.csv")
    assert table.code.tolist() == ["new"] and table.ratio_scaled[0] == pytest.approx(1.84 * 100 / 50)


@pytest.mark.parametrize("size", places.SIZES)
@pytest.mark.parametrize("whole", [False, True])
def test_rows_are_different_and_planned_in_fp32(size, whole):
    for name, jobs in bench.JOBS.items():
        rows = jobs(size, whole)
        assert rows and (size == "smoke" or len(set(rows)) == len(rows))
        assert name == "training" or {row.dtype for row in rows} == {"float32"}
    assert all((places.ROOT / "ttlib" / part).exists() for part in bench.CODE)


def test_a_missing_table_is_measured_but_not_in_mode_book(tmp_path, monkeypatch):
    commands, path = [], tmp_path / "bench_planning.csv"
    monkeypatch.setattr(places, "folder", lambda size: tmp_path)

    def run(command, check):
        commands.append(command[1:])
        path.write_text("task\nhopper\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("TTLIB_MODE", "book")
    with pytest.raises(FileNotFoundError, match="bench_planning.csv is missing.*make SIZE=smoke bench"):
        bench.table("planning", "smoke")
    monkeypatch.setenv("TTLIB_MODE", "all")
    for _ in range(2):
        assert bench.table("planning", "smoke").task.tolist() == ["hopper"]
    assert commands == [["-m", "ttlib.commands.bench", "--size", "smoke"]]


def test_the_native_planner_stands_for_a_search_where_it_was_timed():
    jobs = [bench.Planning("hopper", "O", planner=name, environments=n) for n in (1, 4) for name in ("torch", "native")]
    table = pd.DataFrame([asdict(job) for job in jobs[:3]]).assign(seconds_per_decision=[3.0, 1.0, 2.0])
    assert bench.as_planned(table).seconds_per_decision.tolist() == [1, 2]
    assert bench.as_planned(table[::2].drop(columns="planner")).planner.tolist() == ["torch"] * 2


def test_both_planners_are_timed_on_the_same_searches(monkeypatch):
    monkeypatch.setattr(bench.decoder, "planner", lambda: "native")
    jobs = [job for job in bench.planning_jobs("laptop", True) if job.threads == 1]
    searches = {name: {replace(job, planner="") for job in jobs if job.planner == name} for name in bench.READERS}
    others = {"uncached", "random shooting"}
    assert searches["native"] == {job for job in searches["torch"] if job.setting not in others}
    rows = {(job.profile, job.environments) for job in searches["native"] if job.setting == bench.TABLE1}
    assert rows == {("released", 6), ("released", 1), ("v1", 3)}
    for job in searches["native"]:
        if job.setting == bench.TABLE1:
            assert job.plan == experiments.get("hopper-medium", profile=job.profile).plan
