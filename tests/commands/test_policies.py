"""Tests of the shipped behaviour policies against their records, and of the command that trains them anew."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ttlib import files
from ttlib.commands import policies as command
from ttlib.datasets import regenerated
from ttlib.environments import policies, tasks

RUNS = command.RUNS
each_task = pytest.mark.parametrize("task", sorted(RUNS))


def record_of(task):
    return json.loads((policies.POLICIES / task / "record.json").read_text())


def snapshots(task):
    return {int(path.stem[5:]): dict(np.load(path)) for path in (policies.POLICIES / task).glob("step_*.npz")}


@each_task
def test_snapshots_are_those_that_the_record_names(task):
    record, shipped = record_of(task), snapshots(task)
    assert sorted(shipped) == record.get("shipped", record["steps"])
    assert set(shipped) <= set(record["steps"])
    assert {str(step) for step in shipped} <= set(record["stochastic_return"])
    made = [(robot, recipe) for robot in tasks.TASKS for recipe in regenerated.RECIPES[robot].values()]
    steps = {n for robot, r in made if regenerated.folder(robot, r).name == task for n in r.snapshots} - {0}
    assert steps and steps <= set(shipped)
    weights = [w["hidden1_weight"].tobytes() for w in shipped.values()]
    assert len(set(weights)) == len(weights), "one snapshot under two names"


@each_task
def test_arrays_fit_each_other_and_the_task(task):
    env, (first, second) = command.environment(task, RUNS[task]), record_of(task)["hyperparameters"]["hidden"]
    N, M = env.observation_space.shape[0], env.action_space.shape[0]
    shapes = {"hidden0": (N, first), "hidden1": (first, second), "mean": (second, M), "log_std": (second, M)}
    expected = {f"{name}_weight": shape for name, shape in shapes.items()}
    expected |= {f"{name}_bias": shape[1:] for name, shape in shapes.items()}
    for step, arrays in snapshots(task).items():
        assert {name: array.shape for name, array in arrays.items()} == expected, step
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()), step


# Snapshots that never fall, or always at once, so that a single episode says enough.
@pytest.mark.parametrize(("task", "step"), [("hopper", 20_000), ("walker2d", 720_000), ("halfcheetah", 1_000_000)])
def test_a_snapshot_earns_what_its_record_says(task, step):
    env, act, rng = tasks.make(task), policies.policy(task, step), np.random.default_rng(0)
    state, _ = env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        state, reward, terminal, timeout, _ = env.step(act(state[None], rng)[0])
        total, over = total + reward, terminal or timeout
    said = record_of(task)["stochastic_return"][str(step)]
    assert abs(total - said["mean"]) < 6 * said["std"]


@each_task
def test_the_recipe_is_the_records(task):
    run, record = RUNS[task], record_of(task)
    spec = command.environment(task, run).spec
    assert record["task"] == (run.task or task)
    assert record["algorithm"].split()[0] == run.algorithm
    assert record["hyperparameters"] == run.hyperparameters | {"activation": "relu"}
    assert (record["seed"], record["steps"][-1]) == (run.seed, run.steps)
    assert (record["environment"], record["environment_options"]) == (spec.id, spec.kwargs)
    assert not [step for step in record["steps"] if step % run.every], "a snapshot that would not be taken"
    assert run.every % run.hyperparameters["train_freq"] == 0 and run.steps % run.every == 0


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="'waker2d'.*'walker2d'"):
        command.main(["waker2d"])


def test_a_policy_that_has_to_walk_is_refused_where_it_stands_or_falls(monkeypatch):
    """The message has the speed and the way out; without forces the body falls at once, and it is slow too."""
    run, stands = RUNS["humanoid_walk"], policies.policy("humanoid", 825_000)
    falls = lambda states, rng: np.zeros((len(states), 17))  # noqa: E731
    for act, found in ((stands, r"0\.[0-4]\d m/s"), (falls, "a fall in 100% of 2 episodes")):
        with pytest.raises(ValueError, match=f"humanoid_walk: .*{found}.*at least 1 m/s.*more steps.*another seed"):
            command.check_walks("humanoid_walk", run, act, episodes=2)
    leans = replace(run, min_speed=-9.0)
    with pytest.raises(ValueError, match="a fall in 100%"):
        command.check_walks("humanoid_walk", leans, falls, episodes=2)
    walks = policies.policy("humanoid", run.steps, policies.POLICIES / "humanoid_walk")
    monkeypatch.setattr(command, "MAX_FALLS", 1.0)  # it falls in a third of the episodes
    assert " m/s, and a fall in " in command.check_walks("humanoid_walk", run, walks, episodes=2)


def tiny(algorithm="SAC", **changes):
    """Three snapshots of a small agent; updates begin before the first."""
    small = {"batch_size": 4, "learning_starts": 40, "hidden": [6, 5]}
    return command.Run(algorithm, 600, every=200, hyperparameters=command.HYPERPARAMETERS | small | changes)


@pytest.mark.parametrize("algorithm", ["SAC", "TQC"])
def test_exported_arrays_act_as_the_librarys_actor(algorithm, tmp_path, monkeypatch):
    pytest.importorskip("sbx")
    agent, states = command.new_agent("humanoid", tiny(algorithm)), np.random.default_rng(0).normal(size=(7, 45))
    layers = agent.policy.actor_state.params["params"]
    layers["Dense_3"]["bias"] = np.linspace(-25, 5, 17)  # log_std is clipped on both sides
    layers["Dense_0"]["bias"] = np.linspace(-1, 1, 6)
    monkeypatch.setattr(policies, "POLICIES", tmp_path)
    command.write_npz(tmp_path / "humanoid" / "step_0000001.npz", command.actor_arrays(agent))
    act = policies.policy("humanoid", 1)

    class Drawn:
        """A generator that draws known numbers."""

        def __init__(self, noise):
            self.standard_normal = lambda shape: np.broadcast_to(noise, shape)

    best, _ = agent.predict(states, deterministic=True)
    np.testing.assert_allclose(act(states, Drawn(0.0)), best, atol=1e-6)
    normal = agent.policy.actor_state.apply_fn(agent.policy.actor_state.params, states).distribution
    noise = np.random.default_rng(1).normal(size=(7, 17))
    drawn = 0.4 * np.tanh(normal.mean() + normal.stddev() * noise)  # the humanoid's actions are in [-0.4, 0.4]
    np.testing.assert_allclose(act(states, Drawn(noise)), drawn, atol=1e-6)


def test_diverged_training_is_not_exported():
    pytest.importorskip("sbx")
    agent = command.new_agent("hopper", tiny())
    agent.policy.actor_state.params["params"]["Dense_2"]["bias"] = np.array([0, np.nan, 0])
    with pytest.raises(ValueError, match="mean_bias.*not finite"):
        command.actor_arrays(agent)


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    pytest.importorskip("sbx")
    run, killed, whole = tiny(), tmp_path / "killed", tmp_path / "whole"
    command.train("hopper", run, whole)
    write_aside = files.write_aside

    def dies(path, write):
        if path.name == "agent_0000400.zip":  # the second snapshot's arrays are written, its agent is not
            raise KeyboardInterrupt
        write_aside(path, write)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_aside", dies)
        command.train("hopper", run, killed)
    assert command.steps_done(killed) == 200
    with pytest.raises(ValueError, match="seed 0, now 1"):
        command.train("hopper", replace(run, seed=1), killed)
    command.train("hopper", run, killed)
    assert (killed / "record.json").read_text() == (whole / "record.json").read_text()
    for name in ("step_0000400.npz", "step_0000600.npz"):
        one, other = (np.load(folder / name) for folder in (killed, whole))
        assert all((one[key] == other[key]).all() for key in one)
    changed = np.load(whole / "step_0000200.npz")["mean_weight"] - np.load(whole / "step_0000600.npz")["mean_weight"]
    assert np.abs(changed).max() > 0.01, "nothing was learned between the snapshots"
