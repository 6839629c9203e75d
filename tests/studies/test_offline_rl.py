"""Tests of Table 1's comparisons on worlds small enough to know the answer."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttlib.environments import tasks
from ttlib.pipeline import experiments, keys, places, statistics
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
