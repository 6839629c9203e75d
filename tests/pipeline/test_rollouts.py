"""Tests of sets of rollouts: values beside the returns that followed, the best episodes, and memory by its sizes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttlib.baselines import cloning
from ttlib.data import Episodes
from ttlib.environments import stepping
from ttlib.pipeline import experiments, rollouts
from ttlib.studies import offline_rl


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12), st.floats(0.05, 1))
def test_the_best_fraction_has_the_greatest_returns(returns, fraction):
    n, rewards = len(returns), np.repeat(np.array(returns, float) / 2, 2)
    states = np.arange(2 * n, dtype=float)[:, None]
    made = Episodes(states, 0 * states, rewards, np.arange(0, 2 * n + 1, 2), np.zeros(n, bool))
    best, count = cloning.best(made, fraction), max(1, round(fraction * n))
    assert sorted(best.returns.tolist()) == sorted(returns)[-count:]


def promises(terminal, method="tto", size="smoke"):
    exp = replace(experiments.get("hopper-medium", "smoke", "released"), size=size)
    run = stepping.Rollout(7, [], [], [1.0] * 600, {"value": [float(t) for t in range(600)]}, terminal)
    return exp.bins.gamma, *rollouts.promises(run, exp, method)


@pytest.mark.parametrize("terminal", [True, False])
def test_values_of_plans_are_beside_the_returns_that_followed(terminal):
    g, promised, achieved = promises(terminal)
    assert promised.tolist() == list(range(0, 600 if terminal else 596, 5))
    for t, found in zip(promised.astype(int), achieved, strict=True):
        told = [1.0] * (599 - t) + [-100.0 if terminal else 1.0]  # a fall costs what the model was told
        assert found == pytest.approx(sum(g**k * r for k, r in enumerate(told)))
    assert promises(terminal, "random_shooting")[2][0] == pytest.approx(sum(g**k for k in range(600)))


def test_returns_whose_tail_is_unknown_are_left_out():
    assert promises(terminal=False, size="laptop")[1].max() < 600 - rollouts.UNKNOWN_STEPS
    assert promises(terminal=True, size="laptop")[1].max() == 595


def test_a_row_of_a_rollout_says_what_it_decided_first_and_what_its_plans_promised():
    exp = experiments.get("hopper-medium", "smoke", "released")
    record = {"bins": [np.array([t, 1]) for t in range(40)], "value": list(np.arange(40) / 3), "spread": [0.5] * 40}
    row = rollouts.measured(stepping.Rollout(7, [], [], [1.0] * 40, record), exp, "tto")
    assert tuple(row) == rollouts.MEASURED and row["length"] == 40
    actions, values = json.loads(row["actions"]), json.loads(row["values"])
    assert actions == [[t, 1] for t in range(25)] and np.allclose(values, np.arange(25) / 3)
    table = offline_rl.promised(pd.DataFrame([row, row | {"promised": "[]"}]).reindex(columns=[*row, *NAMED]))
    assert table.t.tolist() == list(range(0, 36, 5)) and np.allclose(table.predicted, table.t / 3)
    assert np.allclose(table.achieved, rollouts.promises(stepping.Rollout(7, [], [], [1.0] * 40, record), exp)[1])


NAMED = ("dataset", "method", "profile", "setting", "variant", "model_seed", "horizon", "sequences")


def run_out(error, monkeypatch, method="tto"):
    """Run rollouts of an agent that raises an error, or asks for too much memory."""

    def act(states):
        raise error or torch.empty(2**60)

    agent = SimpleNamespace(reset=lambda seeds: None, act=act)
    space = SimpleNamespace(low=np.zeros(3), high=np.ones(3))
    env = SimpleNamespace(reset=lambda seed, options: (np.zeros(11), {}), action_space=space)
    monkeypatch.setattr(rollouts, "transformer_agent", lambda *_: agent)
    exp = experiments.get("hopper-medium", "smoke", "released")
    rollouts.run_rollouts(exp, method, range(5), make=lambda: env)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None])
def test_out_of_memory_names_beams_environments_and_an_estimate(error, monkeypatch):
    exp = experiments.get("hopper-medium", "smoke", "released")
    plan, model = exp.plan, exp.model
    searches = {"tto": (plan.beam_width * plan.expansions, plan.horizon), "imitation": (exp.width, exp.horizon)}
    for method, (beams, horizon) in searches.items():
        tokens = (exp.context + horizon) * model.transition.D
        megabytes = 5 * beams * tokens * model.n_layer * 2 * model.d_model * 4 / 1e6  # keys and values in fp32
        sizes = f"{beams} beams x 5 environments: .* {tokens} tokens take about {megabytes:.4g} MB"
        with pytest.raises(MemoryError, match=sizes):
            run_out(error, monkeypatch, method)


def test_other_errors_stay_what_they_are(monkeypatch):
    with pytest.raises(RuntimeError, match="something else"):
        run_out(RuntimeError("something else"), monkeypatch)
