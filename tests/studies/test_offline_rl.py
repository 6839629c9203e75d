"""Table 1's comparisons on worlds small enough to know the answer."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORLD, V, random_steps, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ttlib import control, search, tokenizer
from ttlib.baselines import shooting
from ttlib.data import Episodes
from ttlib.environments import tasks
from ttlib.pipeline import experiments, places, rollouts, statistics
from ttlib.search import Plan
from ttlib.studies import offline_rl


def episodes(returns):
    """Episodes of two steps with the returns given."""
    n = len(returns)
    rewards = np.repeat(np.array(returns, float) / 2, 2)
    states = np.arange(2 * n, dtype=float)[:, None]
    return Episodes(states, states[:, :1] * 0, rewards, np.arange(0, 2 * n + 1, 2), np.zeros(n, bool))


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12), st.floats(0.05, 1))
def test_the_best_share_has_the_greatest_returns(returns, share):
    kept = rollouts.top_episodes(episodes(returns), share)
    count = max(1, round(share * len(returns)))
    assert sorted(kept.returns.tolist()) == sorted(returns)[-count:]


class Known:
    """Two members that know s' = s + a and r = -|s + a|, so that sampling changes nothing."""

    def predict(self, states, actions):
        s = states + actions
        found = np.hstack([s, -np.abs(s).sum(1, keepdims=True)])
        return np.stack([found, found]), np.zeros((2, *found.shape))


def test_shooting_takes_the_sequence_of_greatest_discounted_value():
    plan, states = Plan(horizon=3, plans=5, candidates=4, gamma=0.9), np.array([[2.0], [-1.0], [0.3]])
    value = SimpleNamespace(act=lambda s: 3 - np.abs(s))
    agent = shooting.RandomShooting(Known(), value, plan, np.array([-1.0]), np.array([1.0]), seed=0)
    actions, record = agent.act(states)
    drawn = np.random.default_rng(0).uniform([-1.0], [1.0], (3, 3 * 20, 1)).reshape(3, 3, 20)
    for i, s in enumerate(states[:, 0]):
        worth = []
        for k in range(20):
            at = s + np.cumsum(drawn[:, i, k])
            worth.append(sum(0.9**t * -abs(x) for t, x in enumerate(at)) + 0.9**3 * (3 - abs(at[-1])))
        assert record["value"][i] == pytest.approx(max(worth))
        assert actions[i, 0] == drawn[0, i, int(np.argmax(worth))]


def test_a_sequence_that_diverges_is_never_chosen():
    def predict(states, actions):
        mean, std = Known().predict(states, actions)
        mean[:, actions[:, 0] > 0] = np.inf
        return mean, std

    value = SimpleNamespace(act=lambda s: np.zeros_like(s))
    plan = Plan(horizon=1, plans=16, candidates=2)
    agent = shooting.RandomShooting(SimpleNamespace(predict=predict), value, plan, np.array([-1.0]), np.array([1.0]), 0)
    assert (agent.act(np.ones((4, 1)))[0] < 0).all()


def test_values_of_states_are_fitted_on_their_own_scale():
    """Reward-to-go of a constant reward is known: V must be near it, although the network fits it scaled."""
    rng = np.random.default_rng(0)
    lengths = np.array([50] * 12)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    time = np.concatenate([np.arange(n) for n in lengths])
    states = np.stack([time / 50, rng.standard_normal(len(time))], 1)
    made = Episodes(states, rng.uniform(-1, 1, (len(time), 1)), np.full(len(time), 100.0), starts, np.zeros(12, bool))
    config = replace(experiments.SHOOTING, members=1, width=4, layers=1, updates=2)
    _, value = shooting.fit(made, made, config, gamma=1.0, updates=2000)
    expected = 100.0 * (50 - time)
    assert np.abs(value.act(states)[:, 0] - expected).mean() < 0.05 * expected.max()


def test_an_action_alone_is_the_likeliest_action():
    """Horizon 0 searches the M action tokens: behaviour cloning."""
    log_p = torch.randn(3, 1, V, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    decoder = SimpleNamespace(tokenizer=tiny_tokenizer(), log_p=log_p, advance=None)  # M = 1: nothing is read
    bins, record = control.by_likelihood(0, 2)(decoder)
    assert (bins[:, 0] == log_p[:, 0].argmax(-1)).all()
    assert torch.equal(record["log_p"], log_p[:, 0].amax(-1))


class Breaking:
    """Rewards 1 until its third step, whose state is not a number."""

    action_space = SimpleNamespace(low=np.array([-1.0]), high=np.array([1.0]))

    def __init__(self, what):
        self.t, self.what = 0, what

    def reset(self, seed, options):
        return np.zeros(2), {}

    def step(self, action):
        self.t += 1
        bad = np.nan if self.t == 3 else 0.0
        return np.full(2, bad * (self.what == "state")), 1.0 + bad * (self.what == "reward"), self.t == 3, False, {}

    def close(self):
        pass


@pytest.mark.parametrize("what", ["state", "reward"])
def test_a_simulation_that_diverges_counts_what_it_had_earned(what):
    agent = control.FunctionAgent(lambda s, rows: np.zeros((len(s), 1)), 2)
    for run in control.rollouts(lambda: Breaking(what), agent, [0, 1]):
        assert (run.total, run.diverged, run.terminal, len(run.rewards)) == (2.0, True, False, 3)
        assert np.isfinite(run.states).all()


def test_no_rollouts_are_refused():
    with pytest.raises(ValueError, match="at least one rollout"):
        control.rollouts(lambda: Breaking("state"), None, [])


def test_a_typo_is_answered_with_the_nearest_dataset():
    with pytest.raises(ValueError, match="did you mean 'walker2d-medium-expert'"):
        experiments.get("walker2d-medium-exprt")


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


def test_fewer_bins_for_all_but_states():
    steps = random_steps(500)
    some = tokenizer.fit_columns(steps.T, WORLD, 40, "quantile", V_rest=7)
    every = tokenizer.fit_columns(steps.T, WORLD, 40, "quantile")
    few = tokenizer.fit_columns(steps.T, WORLD, 7, "quantile")
    assert torch.equal(some.edges[: WORLD.N], every.edges[: WORLD.N])
    assert torch.equal(some.edges[WORLD.N :, :8], few.edges[WORLD.N :]) and some.edges[WORLD.N :, 8:].isinf().all()
    ids = some.encode(steps, slice(0, WORLD.D))
    assert torch.equal(some.encode(some.decode(ids), slice(0, WORLD.D)), ids)
    for kind, count in (("uniform", 7), ("quantile", 41), ("quantile", 1)):
        with pytest.raises(ValueError, match=f"V_rest = {count} of 40 {kind} bins"):
            tokenizer.fit_columns(steps.T, WORLD, 40, kind, V_rest=count)


def read(plan, count=4000):
    """E[r], E[R] and the bin of r that a search reads where every next-token distribution is the same."""
    bins = tiny_tokenizer()
    log_p = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]).log().expand(1, count, V)
    found = search.Beams(torch.zeros(1, count, 1, dtype=torch.long), torch.zeros(1, count), None)
    plan = Plan(1, 1, 1, **plan)
    return bins, search.read_rewards(lambda *_: log_p, found, bins, plan, torch.Generator().manual_seed(0))


def test_noise_in_R_has_the_deviation_asked_for_and_none_in_r():
    (bins, (r, R, _)), (_, (r_noisy, R_noisy, _)) = read({}), read({"noise": 0.5})
    assert torch.equal(r, r_noisy) and R.std() < 1e-6
    assert R_noisy.std().item() == pytest.approx(0.5 * bins.centres[-1].std().item(), rel=0.05)
    assert R_noisy.mean().item() == pytest.approx(R.mean().item(), abs=0.05 * bins.centres[-1].std().item())


def test_drawn_rewards_are_bin_centres_whose_mean_is_the_expectation():
    (bins, (r, R, _)), (_, (r_drawn, R_drawn, bin_r)) = read({}), read({"lucky": True})
    for expected, drawn, dim in ((r, r_drawn, WORLD.reward), (R, R_drawn, WORLD.reward_to_go)):
        assert torch.isin(drawn.double(), bins.centres[dim].float().double()).all() and len(drawn.unique()) == V
        assert drawn.mean().item() == pytest.approx(expected.mean().item(), abs=0.06 * drawn.std().item())
    assert torch.equal(bins.centres[WORLD.reward][bin_r].float(), r_drawn)


def test_values_of_plans_are_beside_the_returns_that_followed():
    exp = experiments.get("hopper-medium", "smoke", "released")
    run = control.Rollout(7, rewards=[1.0] * 12, record={"value": [float(t) for t in range(12)]}, terminal=True)
    rows = pd.DataFrame(rollouts.value_rows([run], exp))
    g = exp.bins.gamma
    for row in rows.itertuples():
        told = [1.0] * (11 - row.t) + [-100.0]  # what the model was told of a fall
        assert row.achieved == pytest.approx(sum(g**k * r for k, r in enumerate(told)))
        assert row.predicted == row.t
    shooting_rows = pd.DataFrame(rollouts.value_rows([run], exp, "random_shooting"))
    assert shooting_rows.achieved.iloc[0] == pytest.approx(sum(g**k for k in range(12)))


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


def test_every_comparison_of_every_dataset_is_a_run_of_its_own():
    for name in experiments.TABLE1:
        runs = offline_rl.comparison(name, "laptop")
        assert {run.exp.data.name for run in runs} == {name}
        assert {run.method for run in runs} == {"tto", "bc", "bc10", "behaviour", "random_shooting"}
        assert {run.scorer.profile for run in runs if run.method == "tto" and run.profile == "v1"} == {"released"}
        assert all(tasks.score(run.exp.data.task, 0.0) < 10 for run in runs)
        assert len({(run.method, run.profile, run.setting, run.model_seed) for run in runs}) == len(runs)
