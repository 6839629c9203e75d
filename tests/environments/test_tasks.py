"""Simulators and their two physics, behaviour policies and the datasets that they make."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from ttlib.datasets import hdf5, regenerated
from ttlib.datasets.arrays import KEYS, episodes
from ttlib.datasets.regenerated import Recipe
from ttlib.environments import bodies, policies, tasks
from ttlib.pipeline import experiments, store


def simulated(env, actions, seed=0):
    """Return the joint positions and velocities after each action."""
    env.reset(seed=seed)
    rows = []
    for action in actions:
        env.step(action)
        rows.append(np.concatenate([env.unwrapped.data.qpos, env.unwrapped.data.qvel]))
    return np.array(rows)


def random_actions(env, steps, seed=0):
    low, high = env.action_space.low, env.action_space.high
    return np.random.default_rng(seed).uniform(low, high, (steps, len(low))).astype(np.float32)


def test_the_old_hopper_masses():
    mass = tasks.make("hopper", "d4rl").unwrapped.model.body_mass
    assert mass[1:] == pytest.approx([3.53429174, 3.92699082, 2.71433605, 5.0893801], abs=1e-8)
    # Cylinders with the density of water, longer by half a radius at both ends: torso, thigh, leg, foot.
    radius, length = np.array([0.05, 0.05, 0.04, 0.06]), np.array([0.4, 0.45, 0.5, 0.39])
    assert mass[1:] == pytest.approx(1000 * np.pi * radius**2 * (length + radius))


@pytest.mark.parametrize("task", tasks.D4RL_TASKS)
def test_old_physics_are_a_capsules_own_but_for_mass_inertia_and_margin(task):
    now, old = (tasks.make(task, physics).unwrapped.model for physics in tasks.PHYSICS)
    assert not np.allclose(now.body_mass, old.body_mass) or task == "halfcheetah"
    assert not np.allclose(now.body_inertia, old.body_inertia)
    assert (old.geom_margin == now.geom_margin / 2).all()
    for same in ("geom_type", "geom_size", "geom_friction", "jnt_range", "actuator_gear", "opt"):
        a, b = getattr(now, same), getattr(old, same)
        assert a.timestep == b.timestep if same == "opt" else (a == b).all()
    if task == "halfcheetah":  # its file fixes the total mass, so that only its distribution changes
        assert old.body_mass.sum() == pytest.approx(now.body_mass.sum()) == pytest.approx(14)


@pytest.mark.parametrize("name", ["Hopper", "HalfCheetah", "Walker2d"])
def test_v4_and_v5_move_alike_but_for_walker2d(name):
    """The feet of Walker2d-v5 have another friction, which is why TASKS has -v4."""
    v4, v5 = tasks.make(name.lower()), gymnasium.make(f"{name}-v5")
    actions = random_actions(v4, 100)
    now, new = simulated(v4, actions), simulated(v5, actions)
    assert np.array_equal(now, new) != (name == "Walker2d")


@pytest.mark.parametrize("physics", tasks.PHYSICS)
def test_a_replay_names_the_physics_a_file_was_made_with(tmp_path, physics):
    arrays = regenerated._roll_out("hopper", 0, 150, [0], Recipe((0,)), physics)
    right = tasks.replay_error("hopper", arrays, physics)
    wrong = tasks.replay_error("hopper", arrays, next(p for p in tasks.PHYSICS if p != physics))
    has_next = ~(arrays["terminals"] | arrays["timeouts"])
    assert len(right) == has_next.sum()
    assert right.max() < 1e-6 < 1e-3 < np.median(wrong)


def test_a_file_without_the_simulators_state_cannot_be_replayed():
    with pytest.raises(ValueError, match=r"\['infos/qpos', 'infos/qvel'\] are missing"):
        tasks.replay_error("hopper", {"terminals": [], "timeouts": []}, "modern")


def test_the_humanoids_state_is_its_joints_without_the_roots_place():
    env = tasks.make("humanoid")
    state, _ = env.reset(seed=3)
    simulator = env.unwrapped.data
    assert state.shape == (45,)
    assert np.array_equal(state, np.concatenate([simulator.qpos[2:], simulator.qvel]))


@pytest.mark.parametrize(("task", "snapshot"), [("humanoid", 825_000), ("hopper", 240_000), ("walker2d", 720_000)])
def test_poses_are_recovered_from_states_to_a_centimetre(task, snapshot):
    env, act, rng = tasks.make(task), policies.policy(task, snapshot), np.random.default_rng(0)
    state, _ = env.reset(seed=1)
    states, qpos = [state], [env.unwrapped.data.qpos.copy()]
    while len(states) < 101:
        state, _, terminal, _, _ = env.step(act(states[-1][None], rng)[0])
        states.append(state)
        qpos.append(env.unwrapped.data.qpos.copy())
        assert not terminal
    recovered = bodies.pose(task, np.array(states), root=qpos[0][:2])
    truth, _, _ = bodies.capsules(task, np.array(qpos))
    ends, _, _ = bodies.capsules(task, recovered)
    assert np.abs(ends - truth).max() < 0.01
    assert np.abs(ends[..., 0] - ends[0, ..., 0]).max() > 0.1  # the robot has moved


@pytest.mark.parametrize("task", tasks.TASKS)
def test_actions_are_the_tasks_own(task):
    """Snapshot 0 is uniform over the action space, and the tanh of a trained policy is scaled to it."""
    space = tasks.make(task).action_space
    rng, states = np.random.default_rng(0), np.zeros((4000, tasks.make(task).observation_space.shape[0]))
    random = policies.policy(task, 0)(states, rng)
    assert random.mean(0) == pytest.approx((space.low + space.high) / 2, abs=0.05)
    assert random.std(0) == pytest.approx((space.high - space.low) / np.sqrt(12), rel=0.05)
    for recipe in regenerated.RECIPES[task].values():
        for step in recipe.snapshots:
            act = policies.policy(task, step, regenerated.folder(task, recipe))
            wild = act(states[:100] + 10 * rng.standard_normal(states[:100].shape), rng)
            assert (wild >= space.low).all() and (wild <= space.high).all()
            if step:
                assert np.abs(wild).max() == pytest.approx(space.high.max(), rel=1e-3)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'hoper' .did you mean 'hopper'"):
        tasks.make("hoper")
    with pytest.raises(ValueError, match="unknown physics 'D4RL'"):
        tasks.make("hopper", "D4RL")
    with pytest.raises(ValueError, match="did you mean 'walker2d-medium'"):
        regenerated.recipe("walker2d", "mediun")
    with pytest.raises(ValueError, match="unknown task of D4RL 'humanoid'"):
        tasks.score("humanoid", 1.0)
    with pytest.raises(FileNotFoundError, match="step_0000007.npz is missing; the snapshots of 'hopper' are"):
        policies.policy("hopper", 7)


def test_a_regenerated_file_is_its_parts_whatever_the_processes(tmp_path, monkeypatch, plain_script):
    """Two snapshots with two parts each give the same bytes in a pool of processes and one after the other."""
    monkeypatch.setattr(regenerated, "WORTH_PROCESSES", 0)
    regenerated.regenerate(tmp_path / "pool", "hopper", "medium-expert", steps=203, seed=5)
    recipe = regenerated.recipe("hopper", "medium-expert")
    runs, cut = [(s, part) for s in recipe.snapshots for part in range(2)], [203 * i // 4 for i in range(5)]
    seeds = [[5, s] + [part] * (part > 0) for s, part in runs]
    parts = [regenerated._roll_out("hopper", s, to - at, seed, recipe, "modern")
             for (s, _), at, to, seed in zip(runs, cut[:-1], cut[1:], seeds, strict=True)]
    hdf5.write(tmp_path / "here", {k: np.concatenate([part[k] for part in parts]) for k in parts[0]})
    assert (tmp_path / "pool").read_bytes() == (tmp_path / "here").read_bytes()
    arrays = hdf5.read(tmp_path / "pool")
    assert set(arrays) == {*KEYS, "infos/qpos", "infos/qvel"}
    assert all(len(column) == 203 for column in arrays.values())
    assert (arrays["timeouts"] | arrays["terminals"])[np.array(cut[1:]) - 1].all()
    first = episodes(arrays).starts[:-1]
    assert len(np.unique(arrays["observations"][first], axis=0)) == len(first)  # all starts differ
    for (snapshot, _), at, seed in zip(runs, cut, seeds, strict=False):
        rng, act = np.random.default_rng(seed), policies.policy("hopper", snapshot)
        rng.integers(2**31)  # this is the seed of the reset
        for t in range(at, at + 3):  # draw the actions again, from the states in the file
            expected = act(arrays["observations"][t][None], rng)[0]
            assert arrays["actions"][t] == pytest.approx(expected, abs=1e-4)


def test_references_begin_in_one_state_and_separate(tmp_path):
    recipe = Recipe((825_000,), episode_steps=6, fixed_start=True)
    arrays = regenerated._roll_out("humanoid", 825_000, 18, [0], recipe, "modern")
    e = episodes(arrays)
    assert e.lengths.tolist() == [6, 6, 6]
    first = arrays["infos/qpos"][e.starts[:-1]]
    assert (first == first[0]).all()
    assert len(np.unique(arrays["actions"][e.starts[:-1]], axis=0)) == 3
    assert np.abs(np.diff(e.states[e.starts[1:] - 1], axis=0)).max() > 1e-3


def test_episodes_begin_in_given_states_of_the_simulator(tmp_path):
    """Each part of a dataset in one of them, to the last bit; what follows differs."""
    walk = regenerated._roll_out("humanoid", 750_000, 60, [0], regenerated.recipe("humanoid", "walk"), "modern")
    starts = [(walk["infos/qpos"][row], walk["infos/qvel"][row]) for row in range(0, 60, 3)]
    regenerated.regenerate(tmp_path / "f", "humanoid", "walk-futures", 20 * 2 * 101, seed=0, starts=starts)
    arrays = hdf5.read(tmp_path / "f")
    e = episodes(arrays)
    parts = [e.starts[:-1][(e.starts[:-1] >= i * 202) & (e.starts[:-1] < (i + 1) * 202)] for i in range(20)]
    for i, (part, (qpos, qvel)) in enumerate(zip(parts, starts, strict=True)):
        assert len(part) >= 2 and (arrays["infos/qpos"][part] == qpos).all(), i
        assert (arrays["infos/qvel"][part] == qvel).all()
        assert (e.states[part] == walk["observations"][3 * i]).all()
        assert len(np.unique(e.actions[part], axis=0)) == len(part)


def test_starts_are_steps_in_mid_walk_and_fewer_are_the_first_of_more():
    age, speed = np.tile(np.arange(1000), 3), np.where(np.arange(3000) % 2, 1.0, 0.8)
    rows = regenerated.draw_starts(age, speed, 20)
    assert len(set(rows)) == 20 and (rows % 2 == 1).all() and (age[rows] >= 200).all() and (age[rows] <= 800).all()
    assert regenerated.draw_starts(age, speed, 1) == rows[:1]
    with pytest.raises(ValueError, match="^3 held-out steps of age 200 to 800 .* expected at least 4: take more steps"):
        regenerated.draw_starts(np.array([199, 200, 500, 800, 801, 300]), np.array([9, 9, 9, 9, 9, 0.8]), 4)


def test_starts_lie_in_held_out_episodes_and_know_their_age(monkeypatch):
    config, n = experiments.regenerated("humanoid", "walk-futures", "laptop"), 40 * 500
    states = np.random.default_rng(0).normal(1.0, 0.3, size=(n, 45)).astype(np.float32)
    ends = np.arange(n) % 500 == 499
    walk = episodes({"observations": states, "actions": np.zeros((n, 1)), "rewards": np.zeros(n), "terminals": ends,
                     "timeouts": np.zeros(n, bool)})  # fmt: skip
    monkeypatch.setattr(store, "dataset", {config.starts_from: walk}.get)
    found, rows, ages = store.starts(config)
    assert found is walk and (ages == rows % 500).all() and (ages >= 200).all()
    assert len(set(rows)) == 20 and (states[rows, store.FORWARD] > 0.8).all()
    assert set(rows // 500) <= set(walk.split(0.05, 0)[1])
    assert tasks.make("humanoid").unwrapped.observation_structure["qpos"] == store.FORWARD  # the first speed


def test_the_key_of_a_dataset_depends_on_its_recipe(monkeypatch):
    keys = {q: store.policy_keys("humanoid", q) for q in regenerated.RECIPES["humanoid"]}
    assert keys["expert"][0] == keys["reference"][0]  # the policy is the same
    assert keys["expert"] != keys["reference"]  # its episodes are not
    assert keys["walk"][0] == keys["walk-futures"][0] != keys["expert"][0]
    futures = experiments.regenerated("humanoid", "walk-futures", "laptop")
    other = replace(futures, starts_from=replace(futures.starts_from, steps=1))
    found = {store.data_key(futures), store.data_key(other)}
    monkeypatch.setattr(regenerated, "MIN_SPEED", 0.5)
    assert len(found | {store.data_key(futures)}) == 3
