"""Tests of rollouts: they do not affect each other, they record what happened, and their ends are as they say."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refuses_to_work, tiny_model, tiny_tokenizer

from ttlib.baselines.agents import BySampling, FunctionAgent
from ttlib.control import ByReward, TransformerAgent
from ttlib.environments import stepping
from ttlib.search import Plan


class Drift:
    """A noisy state that actions push.  An episode ends at |state| > 1.5, or by a time limit after 3 to 6 steps."""

    action_space = SimpleNamespace(low=np.float32([-0.7]), high=np.float32([0.7]))
    closed = 0

    def reset(self, seed, options):
        self.rng, self.t, self.steps = np.random.default_rng(seed), 0, 3 + seed % 4
        self.state = self.rng.normal(size=2) / 2 if options is None else np.array(options["start"])
        return self.state.copy(), {}

    def step(self, action):
        assert action.dtype == np.float32 and np.abs(action).max() <= np.float32(0.7)
        self.state = 0.7 * self.state + 0.4 * self.rng.normal(size=2) + 0.5 * action
        self.t += 1
        return self.state.copy(), self.state.sum(), np.abs(self.state).max() > 1.5, self.t == self.steps, {}

    def close(self):
        Drift.closed += 1


def same(a, b):
    return (np.array_equal(a.states, b.states) and np.array_equal(a.actions, b.actions)
            and a.rewards == b.rewards and a.terminal == b.terminal and a.record.keys() == b.record.keys()
            and all(np.allclose(values, b.record[name], rtol=1e-4, atol=1e-6) for name, values in a.record.items()))


CHOICES = (ByReward(Plan(2, 3, 2)), ByReward(Plan(2, 3, 2, proposal="sample")), BySampling())


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("goal", [False, True])
def test_a_rollout_with_a_seed_is_the_same_whatever_runs_beside_it(choose, context, goal):
    """Environments that end leave the batch, and the others go on as they would have."""
    model, bins = tiny_model(T=5, prefix=2 * goal), tiny_tokenizer()
    goals = np.random.default_rng(1).normal(size=(8, 2)) if goal else None

    def run(*seeds):
        chosen = None if goals is None else goals[list(seeds)]
        return stepping.rollouts(Drift, TransformerAgent(model, bins, choose, context, chosen), seeds)

    together = run(*range(8))
    lengths = [len(r.rewards) for r in together]
    assert len(set(lengths)) > 2 and {r.terminal for r in together} == {True, False}
    assert len({float(a[0]) for r in together for a in r.actions}) > 1
    for seeds in (*((seed,) for seed in range(8)), (0, 1), (0, 1, 2), (5, 2)):
        assert all(same(alone, together[seed]) for alone, seed in zip(run(*seeds), seeds, strict=True))


def test_a_rollout_records_what_happened():
    seen = []

    def policy(states, rows):
        seen.append((states, rows))
        return 3 * states[:, :1] + rows[:, None]

    agent, Drift.closed, left = FunctionAgent(policy), 0, []
    options = [{"start": [x, 0.1]} for x in (0.0, 1.4, -0.2)]
    runs = stepping.rollouts(Drift, agent, [0, 1, 2], options, left.append)
    assert Drift.closed == 3 and [r.seed for r in runs] == [0, 1, 2]
    assert [r.states[0].tolist() for r in runs] == [o["start"] for o in options]
    for i, run in enumerate(runs):
        env = Drift()
        env.reset(run.seed, options[i])
        for t, action in enumerate(run.actions):  # stepping again by hand gives the same
            assert action == pytest.approx(np.clip(3 * run.states[t][:1] + i, -0.7, 0.7))
            state, reward, terminal, timeout, _ = env.step(action.astype(np.float32))
            assert (state == run.states[t + 1]).all() and reward == run.rewards[t]
            assert (terminal or timeout) == (t == len(run.actions) - 1)
        assert len(run.states) == len(run.actions) + 1 == len(run.rewards) + 1
        assert run.terminal == terminal and run.total == pytest.approx(sum(run.rewards))
    lengths = [len(run.rewards) for run in runs]
    going = [[i for i in range(3) if lengths[i] > t] for t in range(max(lengths) + 1)]
    assert [rows.tolist() for _, rows in seen] == going[:-1] and left == [len(rows) for rows in going[1:]]
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("what", ["state", "reward"])
@pytest.mark.parametrize("ends", [True, False])
def test_a_simulation_that_diverges_ends_and_counts_what_it_had_earned(what, ends):
    class Breaking(Drift):
        def step(self, action):
            self.t += 1
            bad = np.nan if self.t == 3 else 0.0
            state, reward = np.full(2, bad * (what == "state")), 1.0 + bad * (what == "reward")
            return state, reward, ends and self.t == 3, self.t == 5, {}

    for run in stepping.rollouts(Breaking, FunctionAgent(lambda s, rows: np.zeros((len(s), 1))), [0, 1]):
        assert (run.total, run.diverged, run.terminal, len(run.rewards)) == (2.0, True, False, 3)
        assert np.isfinite(run.states).all()


def test_environments_of_different_tasks_are_refused_before_a_step():
    class Wide(Drift):
        def reset(self, seed, options):
            return np.zeros(3), {}

        step = refuses_to_work

    made = iter([Wide(), Drift()])
    with pytest.raises(ValueError, match="environments with {2, 3} state dimensions; expected one"):
        stepping.rollouts(lambda: next(made), FunctionAgent(refuses_to_work), [0, 1])


def test_no_seeds_are_refused_before_an_environment_is_made():
    with pytest.raises(ValueError, match="no seeds; expected at least one"):
        stepping.rollouts(refuses_to_work, FunctionAgent(refuses_to_work), [])
