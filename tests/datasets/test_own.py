"""Collected data are what the environment did; Minari's episodes come out as they went in; own data are found again."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttlib import data, tokenizer
from ttlib.datasets import own
from ttlib.pipeline import experiments, store
from ttlib.tokenizer import Transition


class Counter:
    """state (2,): episode and step.  Episode i has lengths[i % 3] steps; every second one ends by itself."""

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
    assert tuple(arrays) == data.KEYS and all(len(array) == steps for array in arrays.values())
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


def test_the_clumsy_controller_pumps_energy_towards_that_of_standing_upright():
    rng = np.random.default_rng(0)
    for angle, velocity in [(3.0, 1.0), (3.0, -1.0), (2.0, 4.0), (0.0, 3.0), (0.5, -5.0), (3.0, 8.0)]:
        missing = 15 - (velocity**2 / 2 + 15 * np.cos(angle))
        state = np.array([np.cos(angle), np.sin(angle), velocity])
        torques = np.array([own.clumsy(state, rng) for _ in range(2000)])
        assert torques.shape == (2000, 1) and np.abs(torques).max() <= 2 and np.abs(torques).max() > 1.9
        assert np.sign(torques.mean()) == np.sign(missing * velocity)  # dE/dt is torque times velocity


def test_swing_up_is_a_recipe():
    """Same seed, same arrays; the rewards are the pendulum's, its actions leave [-1, 1], its episodes time out."""
    a, again, other = own.swing_up(450, 0), own.swing_up(450, 0), own.swing_up(450, 1)
    assert all((a[name] == again[name]).all() for name in data.KEYS)
    assert not (a["observations"] == other["observations"]).all()
    assert np.flatnonzero(a["timeouts"]).tolist() == [199, 399, 449] and not a["terminals"].any()
    angle = np.arctan2(*a["observations"].astype(float).T[[1, 0]])
    cost = angle**2 + 0.1 * a["observations"][:, 2].astype(float) ** 2 + 0.001 * a["actions"][:, 0].astype(float) ** 2
    assert np.abs(a["rewards"] + cost).max() < 1e-4
    assert 1 < np.abs(a["actions"]).max() <= 2


# -- Minari ------------------------------------------------------------------------------------------------


def episode(number, states, actions, rewards, terminal, truncated):
    """Minari's EpisodeData: T + 1 observations, flags of length T."""
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
    given_ = [
        episode(i, rng.normal(size=(T + 1, 2)), rng.normal(size=(T, 3)), rng.normal(size=T), *ends)
        for i, (T, ends) in enumerate(shapes)
    ]
    found = data.episodes(own.from_minari(dataset(given_)))
    assert len(found) == len(given_)
    for i, e in enumerate(given_):
        rows = slice(found.starts[i], found.starts[i + 1])
        assert (found.states[rows] == e.observations[:-1]).all() and (found.actions[rows] == e.actions).all()
        assert (found.rewards[rows] == e.rewards).all() and found.terminal[i] == shapes[i][1][0]
    assert not any(e.truncations[-1] for e, (_, ends) in zip(given_, shapes) if not ends[1])  # not changed in place


def test_without_minari_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match="'pen/human-v2' .*not installed.*pip install minari"):
        own.from_minari("pen/human-v2")


def test_a_name_is_looked_up_by_minari(monkeypatch):
    whole = dataset([episode(0, np.zeros((3, 2)), np.ones((2, 1)), np.ones(2), True, False)])
    load = {"my/data-v0": whole}.__getitem__
    monkeypatch.setitem(sys.modules, "minari", SimpleNamespace(load_dataset=lambda name, download: load(name)))
    assert own.from_minari("my/data-v0")["actions"].tolist() == [[1.0], [1.0]]


def test_what_is_not_an_array_is_refused():
    image = {"image": np.zeros((3, 8, 8)), "speed": np.zeros((3, 1))}
    for states, actions, name in [(image, np.ones((2, 1)), "observations"), (np.zeros((3, 2)), (1, 2), "actions")]:
        broken = dataset([episode(7, states, actions, np.ones(2), True, False)])
        with pytest.raises(ValueError, match=f"{name} of episode 7 are a (dict|tuple); expected an array"):
            own.from_minari(broken)


# -- found again by content --------------------------------------------------------------------------------


def some_arrays(n=40, seed=0):
    rng = np.random.default_rng(seed)
    states, actions, t = rng.normal(size=(n, 2)).astype(np.float32), rng.uniform(-5, 5, (n, 1)), np.arange(n) % 8
    return dict(zip(data.KEYS, (states, actions, rng.normal(size=n), t == 3, t == 7)))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "REGENERATED", tmp_path)
    store.dataset.cache_clear()
    return tmp_path


def test_what_is_kept_is_found(elsewhere):
    arrays = some_arrays()
    found = store.dataset(store.keep("mine", arrays | {"infos/extra": np.zeros(3)}, action_range=(-5, 5)))
    assert (found.states == arrays["observations"]).all() and (found.actions == arrays["actions"]).all()
    assert (found.rewards == arrays["rewards"]).all()
    assert found.starts.tolist() == [*range(0, 41, 4)] and found.terminal.tolist() == [True, False] * 5


def test_data_are_known_by_their_content(elsewhere):
    arrays = some_arrays()
    config = store.keep("mine", arrays)
    assert store.keep("mine", {k: v.copy() for k, v in arrays.items()}) == config
    keys = {store.data_key(config)}
    for name in data.KEYS:
        changed = {k: v.copy() for k, v in arrays.items()}
        changed[name][5] = 1 - changed[name][5]
        keys.add(store.data_key(store.keep("mine", changed)))
    assert len(keys) == 6
    e = experiments.own("mine", config, Transition(2, 1), "smoke")
    assert store.model_key(e) != store.model_key(replace(e, data=store.keep("mine", changed)))


def test_what_is_refused_leaves_no_file(elsewhere):
    arrays = some_arrays()
    for name, bad, options in [("mine", arrays | {"rewards": np.full(40, np.nan)}, {}), ("../mine", arrays, {}),
                               ("mine", arrays, {"action_range": (-1, 1)})]:  # fmt: skip
        with pytest.raises(ValueError, match=r"rewards, row 0|name '\.\./mine'|actions, row"):
            store.keep(name, bad, **options)
    assert not list(elsewhere.iterdir())


def test_own_data_that_are_gone_are_not_made_up(elsewhere):
    config = store.keep("mine", some_arrays())
    next(elsewhere.iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match="own-mine-.* is missing: .*store.keep"):
        store.dataset(config)


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_windows_of_own_data_hold_their_numbers(elsewhere, profile):
    """To half a bin, actions beyond [-1, 1] included."""
    e = experiments.own("mine", store.keep("mine", some_arrays(400)), Transition(2, 1), "smoke", profile)
    training, _ = store.windows(e)
    t, part = training.tokenizer, store.dataset(e.data).split(e.data.held_out, e.data.seed)[0]
    ids = training.batch(torch.arange(len(training)))[0][:, : t.transition.D]
    half = t.width.gather(1, ids.T - t.offset[:, None]).T / 2
    given_ = torch.from_numpy(np.hstack([part.states, part.actions]))
    assert ((t.decode(ids)[:, :3] - given_).abs() <= half[:, :3] * (1 + 1e-6)).all()
    assert given_[:, 2].abs().max() > 4


@given(st.integers(2, 100))
def test_whole_numbers_survive_uniform_bins_and_rounding(k):
    """Discrete actions of page 07: 0 .. k - 1 in at most V bins."""
    steps = torch.arange(k, dtype=torch.float64).repeat(5, 1).T.contiguous()
    t = tokenizer.fit(steps, Transition(2, 1), 100)
    assert (t.decode(t.encode(steps, slice(None))).round() == steps).all()
