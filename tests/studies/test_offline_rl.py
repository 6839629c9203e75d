"""Tests of Table 1's comparisons on worlds small enough to know the answer."""

import hashlib

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttlib.datasets import official
from ttlib.environments import tasks
from ttlib.pipeline import experiments, keys, places, statistics, store
from ttlib.studies import offline_rl


@given(st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_stratified_bootstrap_of_means(groups):
    groups = [np.array(g, float) for g in groups]
    low, high = statistics.bootstrap(*groups, samples=300)
    means = [g.mean() for g in groups]
    assert np.mean([g.min() for g in groups]) - 1e-9 <= low <= high <= np.mean([g.max() for g in groups]) + 1e-9
    if all(len(set(g)) == 1 for g in groups):
        assert low == pytest.approx(np.mean(means)) == pytest.approx(high)
    with pytest.raises(ValueError, match="at least one is needed in each group"):
        statistics.bootstrap(*groups, [])


def test_the_bootstrap_of_two_groups_has_the_variance_of_a_mean_of_means():
    rng = np.random.default_rng(0)
    groups = [rng.standard_normal(40), 10 + 3 * rng.standard_normal(20)]
    low, high = statistics.bootstrap(*groups, level=0.6827)
    deviation = 0.5 * np.sqrt(sum(g.var() / len(g) for g in groups))
    assert (high - low) / 2 == pytest.approx(deviation, rel=0.05)


def test_the_mean_row_of_figure_4_is_the_mean_of_means(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(places, "folder", lambda size: tmp_path / size)
    scores = {"hopper-medium": [1.0, 3.0, 5.0], "walker2d-medium": [10.0]}
    known = {"method": "tto", "profile": "v1", "setting": ""}
    rows = [known | {"dataset": d, "score": s} for d in scores for s in scores[d]]
    found = offline_rl.figure_4("smoke", pd.DataFrame(rows))
    ours = found[found.source == "ours"].set_index("dataset")
    assert ours["mean"].to_dict() == {"hopper-medium": 3.0, "walker2d-medium": 10.0, "mean": 6.5}
    assert ours.loc["mean", "low"] == pytest.approx((ours.loc["hopper-medium", "low"] + 10) / 2)
    assert ours.loc["hopper-medium", "stderr"] == pytest.approx(2 / 3**0.5)
    paper, mean = (found[(found.method == "TTO") & (found.dataset.eq("mean") == which)] for which in (False, True))
    assert len(paper) == 9 and mean["mean"].item() == pytest.approx(paper["mean"].mean(), abs=1e-3)


def test_every_comparison_of_every_dataset_is_a_run_of_its_own(monkeypatch):
    monkeypatch.setattr(offline_rl, "TABLE1_CEM", tuple(experiments.CEM))
    for name in experiments.TABLE1:
        runs = offline_rl.comparison(name, "laptop")
        assert {run.exp.data.name for run in runs} == {name}
        assert {run.method for run in runs} == {"tto", "bc", "bc10", "behaviour", "random_shooting", *experiments.CEM}
        assert {run.scorer.profile for run in runs if run.method == "tto" and run.profile == "v1"} == {"released"}
        assert all(tasks.score(run.exp.data.task, 0.0) < 10 for run in runs)
        assert len({(run.method, run.profile, run.setting, run.model_seed) for run in runs}) == len(runs)
        assert len({keys.key(*run.recipe()) for run in runs}) == len(runs)


def test_an_official_file_goes_through_to_table_1_under_the_old_physics(monkeypatch, tmp_path):
    """The file is made here, in D4RL's layout: episodes of random actions that end by a fall or a timeout."""
    name, file = "hopper-medium-v2", "hopper_medium-v2.hdf5"
    rng, env, rows = np.random.default_rng(0), tasks.make("hopper", "d4rl"), []
    for episode in range(40):
        state, _ = env.reset(seed=episode)
        for t in range(20):
            action = rng.uniform(-1, 1, 3).astype(np.float32)
            following, reward, terminal, *_ = env.step(action)
            rows.append((state, action, reward, terminal, t == 19 and not terminal, following))
            state = following
            if terminal:
                break
    keys_ = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    with h5py.File(tmp_path / file, "w") as written:
        for key, column in zip(keys_, zip(*rows), strict=True):
            array = np.array(column)
            written[key] = array if array.dtype == bool else array.astype(np.float32)
        written["metadata/algorithm"] = np.bytes_("SAC")
    content = (tmp_path / file).read_bytes()
    checksums = tmp_path / "checksums.tsv"
    checksums.write_text(f"file\tbytes\tsha256\n{file}\t{len(content)}\t{hashlib.sha256(content).hexdigest()}\n")
    monkeypatch.setattr(official, "CHECKSUMS", checksums)
    monkeypatch.setattr(official, "FOLDER", tmp_path)
    monkeypatch.setattr(tasks.d4rl().offline_env, "DATASET_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(store, "TRAINED", tmp_path / "checkpoints")
    monkeypatch.setattr(places, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(places, "records", lambda size: tmp_path / "records" / size)
    monkeypatch.setattr(places, "folder", lambda size: tmp_path / "figures" / size)
    monkeypatch.setattr(offline_rl, "names", lambda size, official=False: [name] if official else [])
    made, make = [], tasks.make
    monkeypatch.setattr(tasks, "make", lambda task, physics="modern": made.append(physics) or make(task, physics))
    table = offline_rl.table1("smoke", official=True)
    assert set(table.source) == {"official"} and set(table.dataset) == {name} and set(made) == {"d4rl"}
    assert set(table.method) == {"tto", "bc", "bc10", "random_shooting"}  # nobody knows the data's policies
    returns = [sum(rows[i][2] for i in part) for part in _episodes(rows)]
    assert np.allclose(table.demonstrator, np.mean(returns), rtol=1e-5) and (table.length <= 20).all()
    store.dataset.cache_clear()


def _episodes(rows):
    """Return the row numbers of each episode."""
    ends = [i + 1 for i, row in enumerate(rows) if row[3] or row[4]]
    return [range(start, end) for start, end in zip([0, *ends], ends)]
