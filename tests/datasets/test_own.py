"""Collected data are what the environment did, Minari's episodes are converted exactly, and own data are stored."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttlib.datasets import own
from ttlib.datasets.arrays import KEYS, episodes
from ttlib.pipeline import experiments, store
from ttlib.tokenizer import Transition


class Counter:
    """The state is the episode i and the step.  It has lengths[i % 3] steps; odd ones end in a terminal."""

    def __init__(self, lengths):
        self.lengths, self.episode, self.seeds = lengths, -1, []

    def reset(self, seed):
        self.episode, self.t = self.episode + 1, 0
        self.seeds.append(seed)
        return np.array([self.episode, 0.0]), {}

    def step(self, action):
        self.t += 1
        last = self.t == self.lengths[self.episode % 3]
        ends = (last, False) if self.episode % 2 else (False, last)
        return np.array([self.episode, float(self.t)]), 10.0 * action[0], *ends, {}


@given(st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(1, 30), st.integers(0, 9))
def test_collected_arrays_are_what_the_environment_did(lengths, steps, seed):
    env = Counter(lengths)
    arrays = own.collect(env, lambda state, rng: np.array([state[1] + rng.random()]), steps, seed)
    assert tuple(arrays) == KEYS and all(len(array) == steps for array in arrays.values())
    expected = [(episode, t) for episode in range(steps) for t in range(lengths[episode % 3])][:steps]
    assert arrays["observations"].tolist() == [list(map(float, pair)) for pair in expected]
    assert (np.floor(arrays["actions"][:, 0]) == arrays["observations"][:, 1]).all()  # the state before the action
    assert (arrays["rewards"] == 10 * arrays["actions"][:, 0]).all()
    for row, (episode, t) in enumerate(expected):
        last = t == lengths[episode % 3] - 1
        terminal = last and episode % 2 == 1
        assert arrays["terminals"][row] == terminal
        assert arrays["timeouts"][row] == ((last or row == steps - 1) and not terminal)
    assert len(set(env.seeds)) == len(env.seeds)


def test_infos_are_taken_before_each_action_and_resets_can_have_one_seed():
    env = Counter([2, 3, 1])
    infos = lambda env: {"infos/t": env.t, "infos/place": np.array([env.episode, env.t])}  # noqa: E731
    arrays = own.collect(env, lambda state, rng: np.zeros(1), 9, seed=[0, 1], reset_seed=7, infos=infos)
    assert tuple(arrays) == (*KEYS, "infos/t", "infos/place")
    assert (arrays["infos/place"] == arrays["observations"]).all()
    assert (arrays["infos/t"] == arrays["observations"][:, 1]).all() and set(env.seeds) == {7}


def test_the_clumsy_controller_pumps_energy_towards_that_of_standing_upright():
    rng = np.random.default_rng(0)
    for angle, velocity in [(3.0, 1.0), (3.0, -1.0), (2.0, 4.0), (0.0, 3.0), (0.5, -5.0), (3.0, 8.0)]:
        missing = 15 - (velocity**2 / 2 + 15 * np.cos(angle))
        state = np.array([np.cos(angle), np.sin(angle), velocity])
        torques = np.array([own.clumsy(state, rng) for _ in range(2000)])
        assert torques.shape == (2000, 1) and np.abs(torques).max() <= 2 and np.abs(torques).max() > 1.9
        assert np.sign(torques.mean()) == np.sign(missing * velocity)  # dE/dt is torque times velocity


def test_swing_up_is_a_recipe():
    """The same seed gives the same arrays.  Rewards are the pendulum's, actions exceed [-1, 1], episodes time out."""
    a, again, other = own.swing_up(450, 0), own.swing_up(450, 0), own.swing_up(450, 1)
    assert all((a[name] == again[name]).all() for name in KEYS)
    assert not (a["observations"] == other["observations"]).all()
    assert np.flatnonzero(a["timeouts"]).tolist() == [199, 399, 449] and not a["terminals"].any()
    angle = np.arctan2(*a["observations"].astype(float).T[[1, 0]])
    cost = angle**2 + 0.1 * a["observations"][:, 2].astype(float) ** 2 + 0.001 * a["actions"][:, 0].astype(float) ** 2
    assert np.abs(a["rewards"] + cost).max() < 1e-4
    assert 1 < np.abs(a["actions"]).max() <= 2


def episode(number, states, actions, rewards, terminal, truncated):
    """Return an episode like Minari's EpisodeData, with T + 1 observations and T flags."""
    ends = np.zeros((2, len(rewards)), bool)
    ends[:, -1] = terminal, truncated
    return SimpleNamespace(id=number, observations=states, actions=actions, rewards=rewards,
                           terminations=ends[0], truncations=ends[1], infos={})  # fmt: skip


def dataset(episodes):
    return SimpleNamespace(iterate_episodes=lambda: iter(episodes))


ways = st.sampled_from([(True, False), (False, True), (False, False)])


@given(st.lists(st.tuples(st.integers(1, 5), ways), min_size=1, max_size=6))
def test_minari_episodes_are_the_episodes_of_the_arrays(shapes):
    rng = np.random.default_rng(0)
    originals = [episode(i, rng.normal(size=(T + 1, 2)), rng.normal(size=(T, 3)), rng.normal(size=T), *ends)
                 for i, (T, ends) in enumerate(shapes)]
    converted = episodes(own.from_minari(dataset(originals)))
    assert len(converted) == len(originals)
    for i, e in enumerate(originals):
        rows = slice(converted.starts[i], converted.starts[i + 1])
        assert (converted.states[rows] == e.observations[:-1]).all() and (converted.actions[rows] == e.actions).all()
        assert (converted.rewards[rows] == e.rewards).all() and converted.terminal[i] == shapes[i][1][0]
    for e, (_, ends) in zip(originals, shapes):
        assert e.truncations[-1] == ends[1]  # the dataset itself is not changed


def test_without_minari_the_error_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match="'pen/human-v2' .*not installed.*pip install minari"):
        own.from_minari("pen/human-v2")


def test_a_name_is_looked_up_by_minari(monkeypatch):
    whole = dataset([episode(0, np.zeros((3, 2)), np.ones((2, 1)), np.ones(2), True, False)])
    load = {"my/data-v0": whole}.__getitem__
    monkeypatch.setitem(sys.modules, "minari", SimpleNamespace(load_dataset=lambda name, download: load(name)))
    assert own.from_minari("my/data-v0")["actions"].tolist() == [[1.0], [1.0]]


def test_entries_that_are_not_arrays_are_refused():
    image = {"image": np.zeros((3, 8, 8)), "speed": np.zeros((3, 1))}
    for states, actions, name in [(image, np.ones((2, 1)), "observations"), (np.zeros((3, 2)), (1, 2), "actions")]:
        broken = dataset([episode(7, states, actions, np.ones(2), True, False)])
        with pytest.raises(ValueError, match=f"{name} of episode 7 are a (dict|tuple); expected an array"):
            own.from_minari(broken)


def some_arrays(n=40, seed=0):
    rng = np.random.default_rng(seed)
    states, actions, t = rng.normal(size=(n, 2)).astype(np.float32), rng.uniform(-5, 5, (n, 1)), np.arange(n) % 8
    return dict(zip(KEYS, (states, actions, rng.normal(size=n), t == 3, t == 7)))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "REGENERATED", tmp_path)
    store.dataset.cache_clear()
    return tmp_path


def test_stored_data_are_found(elsewhere):
    arrays = some_arrays()
    stored = store.dataset(store.keep("mine", arrays | {"infos/extra": np.zeros(3)}, action_range=(-5, 5)))
    assert (stored.states == arrays["observations"]).all() and (stored.actions == arrays["actions"]).all()
    assert (stored.rewards == arrays["rewards"]).all()
    assert stored.starts.tolist() == [*range(0, 41, 4)] and stored.terminal.tolist() == [True, False] * 5


def test_data_are_known_by_their_content(elsewhere):
    arrays = some_arrays()
    config = store.keep("mine", arrays)
    assert store.keep("mine", {k: v.copy() for k, v in arrays.items()}) == config
    keys = {store.data_key(config)}
    for name in KEYS:
        changed = {k: v.copy() for k, v in arrays.items()}
        changed[name][5] = 1 - changed[name][5]
        keys.add(store.data_key(store.keep("mine", changed)))
    assert len(keys) == 6
    e = experiments.own("mine", config, Transition(2, 1), "smoke")
    assert store.model_key(e) != store.model_key(replace(e, data=store.keep("mine", changed)))


def test_refused_data_leave_no_file(elsewhere):
    arrays = some_arrays()
    for name, bad, options in [("mine", arrays | {"rewards": np.full(40, np.nan)}, {}), ("../mine", arrays, {}),
                               ("mine", arrays, {"action_range": (-1, 1)})]:  # fmt: skip
        with pytest.raises(ValueError, match=r"rewards, row 0|name '\.\./mine'|actions, row"):
            store.keep(name, bad, **options)
    assert not list(elsewhere.iterdir())


def test_missing_own_data_are_an_error(elsewhere):
    config = store.keep("mine", some_arrays())
    next(elsewhere.iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match="own-mine-.* is missing: .*store.keep"):
        store.dataset(config)


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_windows_of_own_data_hold_their_numbers(elsewhere, profile):
    """Decoded values are within half a bin, also for actions beyond [-1, 1]."""
    e = experiments.own("mine", store.keep("mine", some_arrays(400)), Transition(2, 1), "smoke", profile)
    training, _ = store.windows(e)
    t, part = training.tokenizer, store.split(e.data)[0]
    ids = training.batch(torch.arange(len(training)))[0][:, : t.transition.D]
    half = t.width.gather(1, ids.T - t.offset[:, None]).T / 2
    values = torch.from_numpy(np.hstack([part.states, part.actions]))
    assert ((t.decode(ids)[:, :3] - values).abs() <= half[:, :3] * (1 + 1e-6)).all()
    assert values[:, 2].abs().max() > 4


def test_training_on_one_long_episode_holds_out_its_end_and_says_so(elsewhere, capsys):
    arrays = some_arrays(200)
    whole = arrays | {"terminals": np.zeros(200, bool), "timeouts": np.arange(200) == 199}
    e = experiments.own("mine", store.keep("mine", whole), Transition(2, 1), "smoke")
    parts, windows = store.split(e.data), store.windows(e)
    assert [len(part.states) for part in parts] == [len(part) for part in windows] == [190, 10]
    assert (parts[1].states == arrays["observations"][190:]).all()
    assert "is one episode: its last steps, 5% of them, are held out" in capsys.readouterr().err
