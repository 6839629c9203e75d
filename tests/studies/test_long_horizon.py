"""Figures 1 and 2: what their tables depend on, their rows by brute force, and bodies where the simulator had them."""

import dataclasses
import functools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import WORLD, V, random_ids, tiny_model, tiny_tokenizer
from scipy.stats import norm

from ttlib.baselines.ensemble import Ensemble, EnsembleConfig, Transitions
from ttlib.datasets import hdf5, regenerated
from ttlib.datasets.arrays import episodes
from ttlib.environments import bodies
from ttlib.pipeline import experiments, places, store
from ttlib.pipeline.experiments import Fit, LongHorizon
from ttlib.studies import horizon_metrics, long_horizon
from ttlib.studies.horizon_metrics import Grid

PROTOCOL = LongHorizon("smoke", "observed", steps=3, samples=4, kept=1, seeds=(0, 1), ensemble=EnsembleConfig())
ON = Grid(np.linspace([-1.0, 0.0], [1.0, 3.0], V + 1, axis=1), np.array([True, True]))
MASKED = replace(PROTOCOL, panel="masked", ensemble=EnsembleConfig(mask_probability=0.5))


def other(value):
    return not value if isinstance(value, bool) else value / 2 if isinstance(value, float) else value + 1


def test_an_ensemble_is_found_by_every_choice_that_made_it():
    made = EnsembleConfig(mask_probability=0.5)
    changed = [replace(made, **{f.name: other(getattr(made, f.name))}) for f in dataclasses.fields(made)]
    changed = [replace(MASKED, ensemble=config) for config in [made, *changed] if config.seed == 0]
    fits = [(p, 0) for p in changed] + [(MASKED, 1), (replace(MASKED, panel="observed"), 0)]
    keys = [store.fit_key(long_horizon.ensemble_fit(*fit)) for fit in fits]
    assert len(set(keys)) == len(keys) == len(dataclasses.fields(made)) + 2


@pytest.mark.parametrize("model", [*long_horizon.MODELS, "bounds"])
def test_a_curve_is_recomputed_when_what_it_is_made_of_changes(model, monkeypatch):
    """It follows the weights of the model of each seed, those whose bins it is scored on, and the true rollouts."""
    marks = {}

    def weights(e):
        return store.fit_key(e) if isinstance(e, Fit) else marks.get((e.name, e.train.seed), "as it was")

    def inputs(protocol):
        return store.inputs(long_horizon.made_of(protocol, model))

    monkeypatch.setattr(store, "weights_key", weights)
    monkeypatch.setattr(store, "data_key", lambda c: marks.get(c.quality, c.quality))
    before = inputs(MASKED)
    names = {"transformer": "humanoid-masked", "markov": "humanoid-masked-markov"}
    others = {(name, seed) for name in names.values() for seed in MASKED.seeds}
    own = {(name, seed) for name, seed in others if name == names.get(model)}
    for mark in [("humanoid", 0), "reference", "simulator", *own]:
        marks = {mark: "changed"}
        assert inputs(MASKED) != before, mark
    for mark in others - own:
        marks = {mark: "changed"}
        assert inputs(MASKED) == before, mark
    marks = {"expert": "changed"}  # what an ensemble is fitted to
    assert (inputs(MASKED) != before) == (model in long_horizon.ENSEMBLES)
    fewer = inputs(replace(MASKED, seeds=(0,)))
    assert (fewer != before) == (model in names or model in long_horizon.ENSEMBLES)


@pytest.fixture
def world(monkeypatch):
    """References, simulator and samples of a process in the bins ON; one sample of seed 0 is lost from t = 2 on."""
    rng = np.random.default_rng(0)

    def walk(n, steps):
        return np.cumsum(rng.normal(scale=0.4, size=(n, steps, 2)), axis=1) + [0.0, 1.5]

    held, true, start = walk(6, 3), walk(5, 4), np.zeros(2)
    true[2, 3:] = np.nan  # an episode that ended
    states = {seed: np.concatenate([np.zeros((4, 1, 2)), walk(4, 3)], 1) for seed in PROTOCOL.seeds}
    states[0][1, 2:] = np.inf
    mass = {seed: rng.dirichlet(np.ones(V), size=(3, 2)) for seed in PROTOCOL.seeds}
    density = rng.normal(size=(6, 3))
    ends = np.where(np.isnan(true[:, :, 0]).any(1), 3, 4)
    arrays = {"actions": np.zeros((ends.sum(), 1)), "rewards": np.zeros(ends.sum())}
    arrays["observations"] = np.concatenate([x[:n] for x, n in zip(true, ends)])
    last = np.isin(np.arange(ends.sum()), np.cumsum(ends) - 1)
    arrays |= {"terminals": last, "timeouts": np.zeros_like(last)}
    monkeypatch.setattr(horizon_metrics, "interval", functools.partial(horizon_metrics.interval, samples=10))
    monkeypatch.setattr(long_horizon, "references", lambda size, steps: (held, start))
    monkeypatch.setattr(long_horizon, "grid", lambda exp: ON)
    monkeypatch.setattr(store, "dataset", lambda config: episodes(arrays))
    with_density = {"ensemble_ts1": density}
    sampled = lambda p, model, seed: (states[seed], mass[seed], with_density.get(model))  # noqa: E731
    monkeypatch.setattr(long_horizon, "sampled", sampled)
    return SimpleNamespace(held=held, true=true, states=states, mass=mass, density=density)


def bin_of(i, x):
    """By looking at one bin after the other; the outer ones reach to infinity."""
    return next(b for b in range(V) if b == V - 1 or x < ON.edges[i, b + 1])


def by_hand(held, p, t):
    """Mean over references of the log-density at step t, 0-based; p(i, b): probability of a bin."""
    return np.mean([sum(math.log(p(i, bin_of(i, s[t, i])) / ON.width[i, 0]) for i in range(2)) for s in held])


def counted(samples, n, t):
    """p(i, b) of a histogram of samples (S, steps, 2): the share of n, with one more sample spread over all bins."""
    kept = [s[t] for s in samples if np.isfinite(s[t]).all()]
    return lambda i, b: (sum(bin_of(i, s[i]) == b for s in kept) + 1 / V) / (n + 1)


def test_the_simulator_is_the_histogram_of_the_rollouts_that_live(world):
    table = long_horizon.curves(PROTOCOL, "simulator").set_index("t")
    after = world.true[:, 1:]  # their first state is the start
    for t, alive in ((1, 5), (2, 5), (3, 4)):
        expected = by_hand(world.held, counted(after, alive, t - 1), t - 1)
        assert table.log_likelihood[t] == pytest.approx(expected, abs=1e-12)
    assert (table.scoring == "histogram").all() and (table.alive == 6).all()


def test_a_model_has_rows_of_every_scoring_and_seed(world):
    """Mixture and histogram by hand; a lost sample stays among the n; all seeds together are their mean."""
    table = long_horizon.curves(PROTOCOL, "ensemble_ts1").set_index(["scoring", "seed", "t"]).sort_index()
    for seed in PROTOCOL.seeds:
        for t in (1, 2, 3):
            mass, samples = world.mass[seed][t - 1], world.states[seed][:, 1:]
            mixture = by_hand(world.held, lambda i, b, m=mass: (4 * m[i, b] + 1 / V) / 5, t - 1)
            assert table.log_likelihood["mixture", seed, t] == pytest.approx(mixture, abs=1e-12)
            histogram = by_hand(world.held, counted(samples, 4, t - 1), t - 1)
            assert table.log_likelihood["histogram", seed, t] == pytest.approx(histogram, abs=1e-12)
            assert table.log_likelihood["density", seed, t] == pytest.approx(world.density[:, t - 1].mean())
            assert table.diverged["mixture", seed, t] == (0.25 if seed == 0 and t >= 2 else 0)
    together = table.xs(horizon_metrics.EVERY_SEED, level="seed")
    each = table.drop(horizon_metrics.EVERY_SEED, level="seed").groupby(["scoring", "t"])
    for column in ("log_likelihood", "diverged"):
        assert np.allclose(together[column], each[column].mean())


def test_leads_compare_the_scores_of_the_same_references(world, tmp_path, monkeypatch):
    """Against each model by hand, from tables that were written and read again; over itself the lead is zero."""
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(places, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(store, "inputs", lambda of: {})
    monkeypatch.setattr(experiments, "long_horizon", lambda size, panel: replace(PROTOCOL, panel=panel))
    table = long_horizon.figure_2_leads("smoke").set_index(["panel", "other", "first", "last"]).sort_index()
    curves = long_horizon.figure_2("smoke")
    assert set(table.index.get_level_values("other")) == set(long_horizon.MODELS[1:])
    assert np.allclose(table.loc["observed", "markov"][["lead", "low", "high"]], 0)  # one and the same in `world`
    for panel in experiments.PANELS:
        rows = curves.set_index(["panel", "model", "scoring", "seed", "t"]).log_likelihood
        for t in (1, 2, 3):
            gap = rows[panel, "transformer", "mixture", horizon_metrics.EVERY_SEED, t]
            gap -= rows[panel, "simulator", "histogram", 0, t]
            assert table.lead[panel, "simulator", t, t] == pytest.approx(gap, abs=1e-4)


def test_each_start_is_scored_with_its_own_rollouts_and_age(monkeypatch):
    """The references of two starts, whose trajectories are apart in time and in value, by hand."""
    rng = np.random.default_rng(0)

    def made(*parts):
        n = sum(map(len, parts))
        last = np.isin(np.arange(n), np.cumsum([len(part) for part in parts]) - 1)
        return episodes({"observations": np.concatenate(parts), "actions": np.zeros((n, 1)), "rewards": np.zeros(n),
                         "terminals": last, "timeouts": np.zeros(n, bool)})  # fmt: skip

    def after(first, n):
        return [np.concatenate([first[None], first + rng.normal(size=(3, 2))]) for _ in range(n)]

    walk, rows, ages = made(*rng.normal(size=(3, 8, 2))), np.array([2, 12]), np.array([2, 4])
    training, (one, other) = walk.select([0, 1]), walk.states[rows]
    references = made(*(x for pair in zip(after(one, 3), after(other, 3)) for x in pair))
    rollouts = made(*after(one, 2), *after(other, 4), *after(one, 1))
    truth, sampled = SimpleNamespace(starts_from="walk"), SimpleNamespace()
    monkeypatch.setattr(store, "starts", lambda config: (walk, rows, ages))
    monkeypatch.setattr(store, "split", lambda config: (training, None))
    monkeypatch.setattr(store, "dataset", lambda config: references if config is truth else rollouts)
    on = long_horizon.walk_grid(training)
    scores, start = long_horizon.true_scores(truth, sampled, steps=3)
    assert start.tolist() == [0, 1] * 3 and list(scores) == ["simulator", *long_horizon.WITHOUT_MODEL]
    counts = horizon_metrics.counts_by_age(on, training)
    for i, episodes_of in enumerate(([0, 1, 6], [2, 3, 4, 5])):
        own, held = (horizon_metrics.trajectories(x, 3) for x in (rollouts.select(episodes_of), references))
        expected = {"simulator": (horizon_metrics.histogram(on, own, len(own)), len(own)),
                    "constant": horizon_metrics.constant(counts, 3),
                    "clock": horizon_metrics.clock(counts, ages[i], 3),
                    "analog": horizon_metrics.analog(on, training, walk.states[rows[i]], 3)}  # fmt: skip
        for line, (mass, n) in expected.items():
            found = horizon_metrics.log_likelihood(on, mass, n, held[i::2])
            assert scores[line][start == i] == pytest.approx(found), line


def test_oracle_and_uniform_are_rows_like_those_of_models(world):
    bounds = long_horizon.curves(PROTOCOL, "bounds").set_index(["model", "t"])[["log_likelihood", "low", "high"]]
    assert np.allclose(bounds.loc["oracle"], math.log(V / 2) + math.log(V / 3)) and len(bounds) == 2 * 3
    assert np.allclose(bounds.loc["uniform"], -math.log(2 * 3))


def test_one_step_leaves_out_what_has_no_transition_before_it(monkeypatch):
    """Held-out nats of the next state by transitions seen, one token after the other, hidden ones left out."""
    model, T, D = tiny_model(WORLD, 3, masked=True), 3, WORLD.D
    ids, rng = random_ids(7, T * D), torch.Generator().manual_seed(1)
    weight = (torch.rand(ids.shape, generator=rng) < 0.6).float()
    windows = type("Windows", (), {"__len__": lambda self: 7, "batch": lambda self, start: (ids[start], weight[start])})
    loaded = SimpleNamespace(model=model, tokenizer=tiny_tokenizer())
    monkeypatch.setattr(store, "load_or_train", lambda exp: loaded)
    monkeypatch.setattr(store, "windows", lambda exp: (None, windows()))
    with torch.no_grad():
        log_p = model(ids).log_softmax(-1)
    exp = type("Experiment", (), {"model": SimpleNamespace(T=T, transition=WORLD)})  # hashable, as experiments are
    found, tokens = long_horizon.next_state_nats(exp)
    for t in range(1, T):
        for dim in range(WORLD.N):
            at = [(row, t * D + dim) for row in range(7) if weight[row, t * D + dim]]
            expected = np.mean([-log_p[row, i - 1, ids[row, i] % V].item() for row, i in at])
            assert found[t - 1, dim] == pytest.approx(expected, abs=1e-6) and tokens[t - 1, dim] == len(at)


def test_the_ensemble_on_bins_is_its_mass_in_the_right_one():
    """Against the normal distribution's own function; over all bins the masses are one."""
    rng, made = np.random.default_rng(0), Ensemble(2, 1, EnsembleConfig(members=3, width=4, layers=1))
    states, actions = rng.normal(size=(5, 2)), rng.normal(size=(5, 1))
    held = Transitions(states, actions, states + rng.normal(size=(5, 2)), np.zeros(5))
    mean, std = made.predict(states, actions)
    found = long_horizon.binned_log_density(made, held, ON)
    for n in range(5):
        for i in range(2):
            edges = np.concatenate([[-np.inf], ON.edges[i, 1:-1], [np.inf]])
            mass = np.diff(norm.cdf(edges[:, None], mean[:, n, i], std[:, n, i]), axis=0).mean(1)
            assert mass.sum() == pytest.approx(1)
            b = bin_of(i, held.next_states[n, i])
            assert found[n, i] == pytest.approx(math.log(mass[b] / ON.width[i, b]), abs=1e-9)


def test_bodies_are_where_the_simulator_had_them(tmp_path, monkeypatch):
    """Head and feet of a reference, drawn from 45 numbers alone, within a centimetre of the simulator's."""
    regenerated.regenerate(tmp_path / "reference.hdf5", "humanoid", "reference", 4 * 51, seed=0)
    arrays = hdf5.read(tmp_path / "reference.hdf5")
    truth = arrays["infos/qpos"][:51]
    truth[:, :2] -= truth[0, :2]
    found = episodes(arrays)
    held, protocol = horizon_metrics.trajectories(found, 50), replace(PROTOCOL, steps=50, seeds=(0,))
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(places, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(experiments, "long_horizon", lambda size, panel: protocol)
    monkeypatch.setattr(store, "inputs", lambda of: {})
    monkeypatch.setattr(long_horizon, "references", lambda size, steps: (held, found.states[0]))
    standing = np.repeat(found.states[:1][None], 51, axis=1)
    standing[:, :, 22:] = 0
    monkeypatch.setattr(long_horizon, "sampled", lambda p, model, seed: (standing, None, None))
    paths = long_horizon.figure_1("smoke", long_horizon.poses("smoke", count=1)).set_index(["model", "body"])
    ends, _, names = bodies.capsules("humanoid", truth)
    for body in long_horizon.TRACED:
        expected = ends[:, names.index(body)].mean(1)
        path = paths.loc[("reference", body), ["x", "y", "z"]].to_numpy()
        assert np.abs(path - expected).max() < 0.01
        assert np.abs(expected[-1] - expected[0]).max() > 0.1  # it did move
        still = paths.loc[("transformer", body), ["x", "y", "z"]].to_numpy()
        assert np.allclose(still, expected[0], atol=1e-4)
