"""Tests of the sweep: it makes what one process makes, once, whatever fails on the way."""

import errno
import functools
import json
import os
import signal
import socket
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refuses_to_work
from damage import cut
from hypothesis import given
from hypothesis import strategies as st

from ttlib import cpu, files
from ttlib.commands import sweep as sweep_command
from ttlib.commands.__main__ import table1
from ttlib.model import ModelConfig
from ttlib.pipeline import executors, experiments, keys, packing, places, provenance, rollouts, store, sweep
from ttlib.pipeline.sweep import Sweep
from ttlib.search import Plan
from ttlib.studies import jobs, offline_rl

EXPERT = experiments.get("hopper-expert", "smoke")
MODEL = EXPERT
BEHAVIOUR = rollouts.RolloutSet(EXPERT, "behaviour", "the expert", (0, 1))
CLONED = rollouts.RolloutSet(EXPERT, "bc", "MLP 2 x 256", (0, 1))
PLANNED = rollouts.RolloutSet(replace(EXPERT, horizon=0), "imitation", "action alone", (0, 1))
IMPOSSIBLE = replace(CLONED, method="by magic")


def put(monkeypatch, folder):
    """Make this process, and those that it starts, write to a folder."""
    monkeypatch.setenv("TTLIB_BUILD", str(folder))
    monkeypatch.setattr(places, "BUILD", folder)
    monkeypatch.setattr(places, "TABLES", folder / "tables")
    monkeypatch.setattr(store, "TRAINED", folder / "checkpoints")
    monkeypatch.setattr(store, "REGENERATED", folder / "regenerated")
    store.dataset.cache_clear()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    put(monkeypatch, tmp_path / "build")
    # The bits of results must not depend on which number format a busy machine measures as faster.
    monkeypatch.setattr(cpu, "fast_dtype", lambda device: torch.float32)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    yield tmp_path / "build"
    store.dataset.cache_clear()


def swept(*todo, executor=None, said=None):
    """Run a sweep -> {label: why} of the jobs that failed."""
    say = (said if said is not None else []).append
    failed = Sweep(list(todo), executor or executors.Inline(), gflops=50.0, say=say).run()
    return {sweep.label(job): why for job, why in failed.items()}


def numbers(folder):
    """Return the content of tables and weights, without records, which contain times."""
    patterns = ("tables/*.csv", "checkpoints/*/model.safetensors")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for pattern in patterns for p in folder.glob(pattern)}


def test_processes_make_what_one_process_makes(elsewhere, tmp_path, monkeypatch):
    todo = (MODEL, PLANNED, CLONED)
    # A new process is needed, since torch may have chosen kernels with other instructions in this one.
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as alone:
        assert alone.submit(Sweep(list(todo), executors.Inline(), gflops=50.0).run).result() == {}
    put(monkeypatch, tmp_path / "other")
    pool = executors.Processes(2)
    try:
        assert swept(*todo, executor=pool) == {}
    finally:
        pool.close()
    assert numbers(tmp_path / "other") == numbers(elsewhere) and len(numbers(elsewhere)) == 4


def test_a_worker_without_the_folder_is_given_models_and_gives_back_files(elsewhere, tmp_path, monkeypatch):
    class Nodes(executors.Inline):
        """An executor that runs every call on another machine."""

        count = 0

        def result(self, future):
            self.count += 1
            with monkeypatch.context() as there:
                put(there, tmp_path / f"node{self.count}")
                return super().result(future)

    said, todo = [], (MODEL, PLANNED, BEHAVIOUR)
    assert swept(*todo, executor=Nodes(), said=said) == {}
    gathered = numbers(elsewhere)
    assert len(gathered) == 3 and not (elsewhere / "regenerated").exists()
    assert "3 of 3 jobs done, 0 running, 0 waiting, 0 failed" in said[-1]
    put(monkeypatch, tmp_path / "alone")
    assert swept(*todo) == {} and numbers(tmp_path / "alone") == gathered
    # One node made data and trained on them.  Another was given the model.
    nodes = [{p.name for p in (tmp_path / f"node{i}").iterdir()} for i in (1, 2, 3)]
    assert sorted(map(sorted, nodes)) == [["checkpoints", "regenerated"], ["checkpoints", "tables"], ["tables"]]


def test_a_finished_sweep_leaves_nothing_for_the_table_to_compute(monkeypatch, tmp_path):
    runs = [PLANNED, BEHAVIOUR]
    assert swept(MODEL, *runs) == {}
    rows = pd.concat([run.rows() for run in runs])

    monkeypatch.setattr(rollouts, "run_rollouts", refuses_to_work)
    monkeypatch.setattr(store, "train_model", refuses_to_work)
    monkeypatch.setattr(places, "records", lambda size: tmp_path / "records" / size)
    table = rollouts.table("t", "smoke", runs)
    assert len(table) == 4 and np.allclose(table["return"], rows["return"], rtol=1e-5)


def test_what_is_finished_is_not_run_again(elsewhere, monkeypatch):
    ran, real = [], sweep.run
    monkeypatch.setattr(sweep, "run", lambda job: (ran.append(job), real(job)))
    swept(BEHAVIOUR, CLONED)
    before = numbers(elsewhere)
    assert Counter(ran) == {BEHAVIOUR: 1, CLONED: 1}
    said = []
    swept(BEHAVIOUR, CLONED, said=said)
    assert len(ran) == 2 and said[-1].startswith("2 of 2 jobs done")
    CLONED.file().unlink()
    swept(BEHAVIOUR, CLONED)
    assert ran[2:] == [CLONED] and numbers(elsewhere) == before


def test_baselines_act_alike_fresh_and_shipped_and_without_data(monkeypatch, tmp_path):
    exp, methods = experiments.get("hopper-expert", "smoke", "released"), ("bc", "bc10", "random_shooting", "cem")
    returns = lambda: [sum(run.rewards) for m in methods for run in rollouts.run_rollouts(exp, m, (0, 1))]  # noqa: E731
    fresh = returns()
    monkeypatch.setattr(store, "split", refuses_to_work)
    assert returns() == fresh
    monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
    for fit in (fit for method in methods for fit in rollouts.fits(exp, method)):
        assert (store.ship(fit) / packing.PACKED).stat().st_size < (1.2e6 if "dynamics" in fit.name else 160e3)
    monkeypatch.setattr(store, "TRAINED", tmp_path / "empty")
    assert returns() == fresh
    monkeypatch.setenv("TTLIB_MODE", "scratch")
    with pytest.raises(AssertionError, match="this was called"):
        returns()


def test_a_cut_baseline_is_refused_and_another_recipe_is_another_one():
    (fit,) = rollouts.fits(EXPERT, "bc", 7)
    others = [replace(fit.config, **{name: 0.5}) for name in ("updates", "lr", "share", "gamma", "seed")]
    found = {store.fit_key(replace(fit, config=config)) for config in (fit.config, *others)}
    assert len(found) == 6 and store.fit_key(replace(fit, data=replace(fit.data, seed=9))) not in found
    store.load_or_fit(fit)
    assert store.checkpoint_folder(replace(fit, config=others[0])) is None
    cut(0.7)(store.checkpoint_folder(fit))
    with pytest.raises(ValueError, match="hopper-expert-bc-seed7-smoke.* not a readable baseline.*; delete it and run"):
        store.load_or_fit(fit)


def test_the_hopper_page_clones_the_policy_of_table_1():
    for size in places.SIZES:
        page, table1 = (experiments.get(name, size) for name in ("hopper-long", "hopper-medium-replay"))
        labels = [fit.label for fit in jobs.fits(size)]
        assert rollouts.fits(page, "bc") == rollouts.fits(table1, "bc") and len(set(labels)) == len(labels)
        assert {f"hopper-medium-replay-bc{seed}" for seed in ("", "-seed1", "-seed2")} <= set(labels)


def test_every_job_is_there_once_after_its_models():
    for size in places.SIZES:
        todo = jobs.jobs(size)
        runs = [run for sets in jobs.tables(size).values() for run in sets]
        place = {sweep.identity(job): i for i, job in enumerate(todo)}
        assert len(place) == len(todo) and {sweep.identity(run) for run in runs} <= place.keys()
        files_of_runs = {keys.key(*run.recipe(), [e.label for e in run.models]) for run in runs}
        assert len(files_of_runs) == sum(isinstance(job, rollouts.RolloutSet) for job in todo)
        assert all(place[need] < i for i, job in enumerate(todo) for need in sweep.needs(job))
        assert len({sweep.label(job) for job in todo}) == len(todo)
    only = jobs.jobs("laptop", "walker2d-medium-replay")
    names = {(job if isinstance(job, experiments.Experiment) else job.exp).data.name for job in only}
    assert names == {"walker2d-medium-replay"}
    with pytest.raises(ValueError, match="'ant'.*hopper-medium"):
        jobs.jobs("laptop", "ant")


def test_only_sets_that_are_not_recorded_are_made(monkeypatch, tmp_path):
    exp, made = experiments.get("hopper-expert", "laptop"), []
    a, b, c = (rollouts.RolloutSet(exp, "behaviour", "the expert", seeds) for seeds in ((0,), (1, 2), (3,)))

    def rows(run):
        made.append(run)
        return pd.DataFrame([dict.fromkeys(rollouts.MEASURED, seed) for seed in run.seeds])

    monkeypatch.setattr(rollouts.RolloutSet, "made", rows)
    data = functools.lru_cache(lambda config: SimpleNamespace(returns=np.ones(1)))
    monkeypatch.setattr(rollouts.store, "dataset", data)
    monkeypatch.setattr(places, "records", lambda size: tmp_path / "records" / size)
    first = rollouts.table("t", "laptop", [a, b])
    for path in places.TABLES.glob("t-*"):
        path.unlink()
    monkeypatch.setattr(jobs, "tables", lambda size: {"t": [a, b, c]})
    assert made == [a, b] and jobs.unrecorded("laptop") == [c] and jobs.jobs("laptop") == [a, b, c]
    both = rollouts.table("t", "laptop", [a, b, c])
    assert made == [a, b, c] and both.rollout_seed.tolist() == [0, 1, 2, 3] and both.iloc[:3].equals(first)
    assert jobs.unrecorded("laptop") == []
    monkeypatch.setenv("TTLIB_MODE", "recompute")
    assert jobs.unrecorded("laptop") == [a, b, c]


def test_fifteen_runs_of_paper_size_are_five_models_with_three_rollouts_each():
    runs = [run for run in offline_rl.table1_runs("paper") if run.method in ("tto", "bc", "bc10")]
    for kind in {(run.exp.data.name, run.method, run.profile) for run in runs}:
        same = [run for run in runs if (run.exp.data.name, run.method, run.profile) == kind]
        assert [len(run.seeds) for run in same] == [3] * 5
        assert sorted(seed for run in same for seed in run.seeds) == list(range(15))
        assert [run.model_seed for run in same] == list(range(5))
        if kind[1] == "tto":
            assert [run.exp.train.seed for run in same] == [run.scorer.train.seed for run in same] == list(range(5))


def test_the_published_table_of_this_book_is_whole():
    table, missing = jobs.table1("laptop")
    assert missing == [] and (table.n == table.expected).all() and len(table) == 9 * 6


def test_table_1_of_what_is_finished_is_printed_and_written(elsewhere, capsys):
    runs = [run for run in offline_rl.table1_runs("smoke") if run.method == "behaviour"]
    assert swept(runs[0]) == {}
    table1("smoke")
    written = pd.read_csv(elsewhere / "table1-smoke.csv")
    there = written[written.n > 0]
    assert there[["dataset", "method", "n"]].values.tolist() == [[runs[0].exp.data.name, "behaviour", 2]]
    scores = runs[0].rows().score
    assert there["mean"].item() == pytest.approx(np.mean(scores), rel=1e-5)
    assert there["std"].item() == pytest.approx(np.std(scores, ddof=1), rel=1e-4)
    said, missing = capsys.readouterr().out, len(offline_rl.table1_runs("smoke")) - 1
    assert f"{missing} of {missing + 1} sets of rollouts are missing: `make SIZE=smoke sweep`" in said
    assert said.count("missing: rollouts") == missing and f"missing: {sweep.label(runs[1])}: it is not there" in said


def command(monkeypatch, todo, *arguments):
    monkeypatch.setattr(jobs, "unrecorded", lambda size, only="": list(todo))
    monkeypatch.setattr("sys.argv", ["sweep.py", "--size", "smoke", *arguments])
    return sweep_command.main()


def test_a_job_that_always_fails_leaves_the_others_alone(monkeypatch, capsys):
    assert command(monkeypatch, [IMPOSSIBLE, BEHAVIOUR, CLONED], "--executor", "inline") == 1
    assert sweep.finished(BEHAVIOUR) and sweep.finished(CLONED) and not sweep.finished(IMPOSSIBLE)
    said = capsys.readouterr()
    assert f"failed: {sweep.label(IMPOSSIBLE)}: ValueError: unknown method 'by magic'" in said.err
    assert "2 of 3 jobs done, 0 running, 0 waiting, 1 failed" in said.out
    assert command(monkeypatch, [BEHAVIOUR, CLONED], "--executor", "inline") == 0


def test_what_needs_a_model_that_failed_is_not_begun(monkeypatch):
    def fails(exp, folder):
        raise FloatingPointError("loss is nan")

    monkeypatch.setattr(store, "train_model", fails)
    monkeypatch.setattr(rollouts, "run_rollouts", fails)
    failed = swept(MODEL, PLANNED)
    assert list(failed.values()) == ["FloatingPointError: loss is nan", "its model failed"]


class Dying(executors.Inline):
    """An executor whose first `deaths` calls lose their worker."""

    def __init__(self, deaths):
        self.deaths = deaths

    def result(self, future):
        self.deaths -= 1
        if self.deaths >= 0:
            raise executors.LostError("its process was killed")
        return super().result(future)


@pytest.mark.parametrize("deaths", range(sweep.ATTEMPTS + 1))
def test_a_job_whose_worker_dies_is_run_again_but_not_for_ever(deaths):
    said = []
    failed = swept(BEHAVIOUR, executor=Dying(deaths), said=said)
    given_up = deaths >= sweep.ATTEMPTS
    assert sweep.finished(BEHAVIOUR) != given_up
    assert list(failed.values()) == ["its process was killed, 3 times"] * given_up
    assert sum(line.startswith("again: ") for line in said) == min(deaths, sweep.ATTEMPTS - 1)


def test_a_killed_process_takes_its_own_call_alone(plain_script):
    pool = executors.Processes(2)
    try:
        killed = pool.submit(functools.partial(signal.raise_signal, signal.SIGKILL), "", False)
        other = pool.submit(functools.partial(pow, 2, 5), "", False)
        killed.exception()
        with pytest.raises(executors.LostError, match="its process was killed"):
            pool.result(killed)
        again = pool.submit(functools.partial(pow, 2, 6), "", False)
        assert (other.result(), pool.result(again)) == (32, 64)
    finally:
        pool.close()


def test_results_of_another_version_are_named_and_not_mixed(monkeypatch, capsys):
    todo = [run for run in offline_rl.table1_runs("smoke") if run.method == "behaviour"]
    assert swept(*todo) == {}
    old, record = todo[0], todo[0].file().with_suffix(".json")
    about = json.loads(record.read_text())
    record.write_text(json.dumps(about | {"versions": about["versions"] | {"mujoco": "2.1.0"}}))
    before = old.file().read_bytes()
    stranger = old.file().with_name(f"{old.recipe()[0]}-smoke-{'0' * 16}.csv")
    stranger.write_bytes(before)  # another key: other settings, or another stage of the code
    assert command(monkeypatch, todo, "--executor", "inline") == 1
    said = capsys.readouterr()
    assert f"{old.file().name} was made with mujoco 2.1.0, not {provenance.versions()['mujoco']}" in said.err
    assert f"left out, since settings, weights or version differ: {stranger.name}" in said.out
    assert old.file().read_bytes() == before == stranger.read_bytes()
    table, missing = jobs.table1("smoke")
    table = table[table.method == "behaviour"].set_index("dataset")
    assert table.n.to_dict() == {run.exp.data.name: 0 if run is old else 2 for run in todo}
    assert [line for line in missing if "mujoco 2.1.0" in line and line.startswith(sweep.label(old))]
    record.unlink()
    assert not sweep.finished(old)  # nothing says what made it


def test_a_torch_for_another_device_is_the_same_version(monkeypatch):
    assert swept(BEHAVIOUR) == {}
    there = provenance.versions() | {"torch": provenance.versions()["torch"].split("+")[0] + "+cu130", "python": "3"}
    monkeypatch.setattr(provenance, "versions", lambda: there)
    assert sweep.finished(BEHAVIOUR)


def test_a_full_disk_ends_the_sweep_with_a_message(elsewhere, monkeypatch, capsys):
    store.dataset_file(EXPERT.data)

    def full(path, write):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as now:
        now.setattr(files, "write_aside", full)
        assert command(now, [BEHAVIOUR, CLONED], "--executor", "inline") == 1
    said = capsys.readouterr()
    assert "No space left on device" in said.err and "not begun: the disk is full" in said.err
    assert "the disk is full, 1 jobs are not begun: free some space, run this again" in said.out
    assert numbers(elsewhere) == {}
    assert command(monkeypatch, [BEHAVIOUR, CLONED], "--executor", "inline") == 0


def test_a_ray_address_where_nothing_answers_is_an_error_and_not_a_wait(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts a connection, and sends nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"no Ray cluster answered at {address} within 0.2 s"):
            executors.Cluster(address, patience=0.2)
    monkeypatch.setenv("RAY_ADDRESS", address)  # nothing listens there any more
    assert command(monkeypatch, [BEHAVIOUR], "--executor", "ray", "--patience", "0.2") == 2
    assert f"no Ray cluster answered at {address}" in capsys.readouterr().err
    for address in ("ray://head:10001", "head", "auto", ":6379", "head:x"):
        with pytest.raises(ValueError, match=rf"RAY_ADDRESS='{address}'; expected host:port"):
            executors.Cluster(address)
    monkeypatch.delenv("RAY_ADDRESS")
    assert command(monkeypatch, [BEHAVIOUR], "--executor", "ray") == 2
    assert "RAY_ADDRESS is not set" in capsys.readouterr().err


costs_and_needs = st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(0, 9)), min_size=1, max_size=12)


@given(costs_and_needs, st.integers(1, 5))
def test_a_schedule_is_between_its_bounds(rows, workers):
    """Graham (1969): a schedule without needless idling takes at most the mean load plus the longest chain."""
    cost = {i: float(c) for i, (c, _) in enumerate(rows)}
    needed = {i: frozenset({n}) if n is not None and n < i and rows[n][1] is None else frozenset()
              for i, (_, n) in enumerate(rows)}  # fmt: skip
    chain = max(cost[i] + sum(cost[n] for n in needed[i]) for i in cost)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "identity", lambda job: job)
        patch.setattr(sweep, "needs", needed.get)
        one, some, all_ = (sweep.makespan(list(cost), cost, n) for n in (1, workers, len(rows)))
    total = sum(cost.values())
    assert one == total and all_ == chain
    assert max(total / workers, chain) - 1e-9 <= some <= total / workers + chain + 1e-9


def measured(name):
    return pd.read_csv(places.ROOT / "figures" / "laptop" / f"bench_{name}.csv")


def test_operations_are_those_that_the_bench_counts():
    sizes = {"O": dict(n_layer=4, n_head=4, d_model=128)}
    rows = measured("planning")
    for row in rows[rows.setting.isin(["fast", "default"])].itertuples():
        exp = experiments.get(f"{row.task}-medium", "paper", row.profile)
        plan = Plan(row.horizon, row.plans, 2, proposal="beam" if row.profile == "v1" else "sample")
        model = ModelConfig(exp.model.transition, 20, **sizes[row.model])
        exp = replace(exp, model=model, plan=plan, context=row.past, plan_window=None)
        computed = sweep.operations(rollouts.RolloutSet(exp, "tto", "", (0,))) / 1000 / 1e9
        assert computed == pytest.approx(row.gflop_per_decision, rel=0.03), row
    for row in measured("training").itertuples():
        exp = experiments.get(f"{row.task}-medium", "paper", "released")
        model = ModelConfig(exp.model.transition, 10, **sizes[row.model])
        exp = replace(exp, model=model, context=0, plan=None, plan_window=None)
        computed = sweep.operations(exp) / (exp.train.updates * exp.train.batch * exp.model.max_tokens)
        counted = row.share_of_ceiling * row.gflops_ceiling * 1e9 / row.tokens_per_second
        assert computed == pytest.approx(counted, rel=0.03), row
