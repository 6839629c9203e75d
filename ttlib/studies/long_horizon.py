"""Figures 1 and 2: the models that predict the humanoid, and their scores."""

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ttlib import control, data, tokenizer
from ttlib.baselines import ensemble
from ttlib.data import Episodes
from ttlib.datasets import regenerated
from ttlib.environments import bodies, policies
from ttlib.model import token_nats
from ttlib.pipeline import experiments, results, store
from ttlib.pipeline.experiments import DataConfig, Experiment, Fit, LongHorizon
from ttlib.studies import horizon_metrics, prediction
from ttlib.tokenizer import Transition

PREDICTION_STAGE = 2  # raised by hand when predictions or their scores change their meaning
TRANSFORMERS = ("transformer", "markov")
ENSEMBLES = {"ensemble_ts1": "ts1", "ensemble_tsinf": "tsinf"}
MODELS = (*TRANSFORMERS, *ENSEMBLES, "simulator")


def transformer(protocol: LongHorizon, model: str, seed: int) -> Experiment:
    """Return the experiment behind the model `transformer` or `markov` of a panel."""
    name = "humanoid" + "-masked" * (protocol.panel == "masked") + "-markov" * (model == "markov")
    exp = experiments.get(name, protocol.size)
    return replace(exp, train=replace(exp.train, seed=seed))


def ensemble_fit(protocol: LongHorizon, seed: int) -> Fit:
    """Return the ensemble of a panel."""
    name = "humanoid-ensemble" + "-masked" * (protocol.panel == "masked")
    config = transformer(protocol, "transformer", seed).data
    return Fit(name, protocol.size, config, replace(protocol.ensemble, seed=seed))


def observed(protocol: LongHorizon) -> Experiment:
    """Return the experiment whose data and bins every model of either panel is scored on."""
    return experiments.get("humanoid", protocol.size)


@functools.lru_cache
def references(size: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return held-out trajectories (k, steps, N) and their common start (N,), which they do not contain."""
    episodes = store.dataset(experiments.regenerated("humanoid", "reference", size))
    return horizon_metrics.trajectories(episodes, steps), episodes.states[0]


@functools.lru_cache
def grid(exp: Experiment) -> horizon_metrics.Grid:
    """Return the bins of the observed model; the masked one has the same, fitted to the same values."""
    return horizon_metrics.grid(store.load_or_train(exp).tokenizer, store.split(exp.data)[0].states)


def policy():
    """Return the humanoid's behaviour policy: (states (S, N), rng) -> actions (S, M)."""
    return policies.policy("humanoid", *regenerated.recipe("humanoid", "expert").snapshots)


@functools.lru_cache(maxsize=8)
def sampled(protocol: LongHorizon, model: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return trajectories (S, steps + 1, N), marginals (steps, N, V), and an ensemble's log-densities (k, steps)."""
    held, start = references(protocol.size, protocol.steps)
    starts = np.repeat(start[None].astype(np.float64), protocol.samples, axis=0)
    if model in ENSEMBLES:
        made, _ = store.load_or_fit(ensemble_fit(protocol, seed))
        marginals, rng = horizon_metrics.GaussianMarginals(grid(observed(protocol)), held), np.random.default_rng(seed)
        states, _ = ensemble.sample(made, policy(), starts, protocol.steps, ENSEMBLES[model], rng, marginals.visit)
        return states, marginals.mass, marginals.log_density
    exp = transformer(protocol, model, seed)
    loaded = store.load_or_train(exp)
    streams = control.Streams([seed], store.device())
    kept = min(protocol.kept, exp.model.T - 1)
    with tqdm(total=protocol.steps, unit="step", mininterval=2.0, desc=f"{protocol.panel}, {model}") as bar:
        how = {"mask_probability": exp.data.mask_probability, "progress": lambda t: bar.update()}
        found = prediction.rollout(loaded.model, loaded.tokenizer, starts, protocol.steps, kept, streams, **how)
    return found.states, found.predictive, None


def scores(protocol: LongHorizon, model: str) -> pd.DataFrame:
    """Return the log-likelihood of each held-out trajectory at each step by one model of a panel.

    `diverged` is the fraction of sampled trajectories with a value that is not finite.
    """
    held, _ = references(protocol.size, protocol.steps)
    on, (k, steps), made = grid(observed(protocol)), held.shape[:2], []

    def add(scoring: str, seed: int, score: np.ndarray, diverged: np.ndarray) -> None:
        columns = {"scoring": scoring, "seed": seed, "reference": np.repeat(np.arange(k), steps)}
        columns |= {"t": np.tile(np.arange(1, steps + 1), k), "log_likelihood": score.ravel()}
        made.append(pd.DataFrame(columns | {"diverged": np.tile(diverged, k)}))

    def histogram(states: np.ndarray, n: int | np.ndarray) -> np.ndarray:
        return horizon_metrics.log_likelihood(on, horizon_metrics.histogram(on, states, n), n, held)

    if model == "simulator":
        episodes = store.dataset(experiments.regenerated("humanoid", "simulator", protocol.size))
        true = horizon_metrics.trajectories(episodes, protocol.steps)
        add("histogram", 0, histogram(true, horizon_metrics.alive(true)), np.full(steps, np.nan))
        return made[0]
    for seed in protocol.seeds:
        states, mass, density = sampled(protocol, model, seed)
        diverged = (~np.isfinite(states[:, 1:]).all(2)).mean(0)
        add("mixture", seed, horizon_metrics.log_likelihood(on, mass, protocol.samples, held), diverged)
        add("histogram", seed, histogram(states[:, 1:], protocol.samples), diverged)
        if density is not None:
            add("density", seed, density, diverged)
    return pd.concat(made, ignore_index=True)


def by_seed(found: pd.DataFrame, scoring: str, column: str = "log_likelihood") -> dict[int, np.ndarray]:
    """Return `scores` of one scoring as arrays (k, steps) by training seed."""
    groups = found[found.scoring == scoring].groupby("seed")
    return {seed: rows.pivot(index="reference", columns="t", values=column).to_numpy() for seed, rows in groups}


def curves(protocol: LongHorizon, model: str, found: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return rows of `fig2_error_compounding.csv` for a model of a panel; model "bounds": oracle and uniform."""
    held, _ = references(protocol.size, protocol.steps)
    on, columns = grid(observed(protocol)), {"panel": protocol.panel, "model": model}
    if model == "bounds":
        return pd.DataFrame(horizon_metrics.bounds(on, held, panel=protocol.panel, scoring="histogram"))
    found, rows = scores(protocol, model) if found is None else found, []
    for scoring in found.scoring.unique():
        share = {seed: values[0] for seed, values in by_seed(found, scoring, "diverged").items()}
        share[horizon_metrics.EVERY_SEED] = np.mean(list(share.values()), axis=0)
        table = horizon_metrics.rows(by_seed(found, scoring), on, held, scoring=scoring, **columns)
        rows += [row | {"diverged": share[row["seed"]][row["t"] - 1]} for row in table]
    return pd.DataFrame(rows)


def made_of(protocol: LongHorizon, model: str) -> list:
    """Return what a model's curves are computed from: true trajectories, the grid's model, the model of each seed."""
    true = [experiments.regenerated("humanoid", quality, protocol.size) for quality in ("reference", "simulator")]
    items = [*true, observed(protocol)]
    for seed in protocol.seeds:
        if model in TRANSFORMERS:
            items.append(transformer(protocol, model, seed))
        elif model in ENSEMBLES:
            items.append(ensemble_fit(protocol, seed))
    return items


def _scores(protocol: LongHorizon, model: str) -> pd.DataFrame:
    """Return `scores`, which are kept."""
    return store.table(
        f"fig2-{protocol.panel}-{model}", protocol.size, lambda: scores(protocol, model), made_of(protocol, model),
        {"protocol": protocol, "model": model}, PREDICTION_STAGE, public=False,
    )  # fmt: skip


def _both_panels(
    name: str, size: str, make: Callable[[LongHorizon], list[pd.DataFrame]], models: tuple[str, ...] = MODELS
) -> pd.DataFrame:
    """Return a table of what `make` gives for each panel, computed from these models of both."""
    protocols = [experiments.long_horizon(size, panel) for panel in experiments.PANELS]
    items = [item for p in protocols for model in models for item in made_of(p, model)]
    return store.table(
        name, size, lambda: pd.concat([table for p in protocols for table in make(p)], ignore_index=True),
        items, {"protocols": protocols}, PREDICTION_STAGE, record=True,
    )  # fmt: skip


def figure_2(size: str) -> pd.DataFrame:
    """Return the table of Figure 2: every model of both panels, from the scores of each, which are kept."""
    return _both_panels(
        "fig2_error_compounding", size,
        lambda p: [*(curves(p, model, _scores(p, model)) for model in MODELS), curves(p, "bounds")],
    )  # fmt: skip


def figure_2_leads(size: str) -> pd.DataFrame:
    """Return the Transformer's lead over each other model of its panel: `horizon_metrics.leads` of their scores."""

    def values(p: LongHorizon, model: str) -> np.ndarray:
        return np.stack(list(by_seed(_scores(p, model), "histogram" if model == "simulator" else "mixture").values()))

    def make(p: LongHorizon) -> list[pd.DataFrame]:
        ours, columns = values(p, "transformer"), {"panel": p.panel, "model": "transformer"}
        return [
            pd.DataFrame(horizon_metrics.leads(ours, values(p, other), **columns, other=other)) for other in MODELS[1:]
        ]

    return _both_panels("fig2_leads", size, make)


# -- the humanoid that walks ---------------------------------------------------------------------------------

WITHOUT_MODEL = ("constant", "clock", "analog")  # lines that a model has to be above
TRUE_STEPS = (1, 5, 10, 20, 50, 100)


def walk_grid(training: Episodes) -> horizon_metrics.Grid:
    """Return the bins that a model of these training episodes has."""
    transition = Transition(training.states.shape[1], training.actions.shape[1], rewards=False)
    columns = data.steps(training, transition, experiments.GAMMA).columns(np.ones(len(training.states), bool))
    return horizon_metrics.grid(tokenizer.fit(columns, transition), training.states)


def true_scores(truth: DataConfig, others: DataConfig, steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the scores of the simulator and of the three lines that know no model, (k, steps) each, and k starts.

    truth: the dataset with the k references; others: the one with the simulator's rollouts from the same starts.
    """
    walk, rows, ages = store.starts(truth)
    training = store.split(truth.starts_from)[0]
    on, references, rollouts = walk_grid(training), store.dataset(truth), store.dataset(others)
    counts = horizon_metrics.counts_by_age(on, training)
    scores, start = {}, _begins(references, walk.states[rows])
    held, true = (horizon_metrics.trajectories(x, steps) for x in (references, rollouts))
    begins = _begins(rollouts, walk.states[rows])
    for i, (row, age) in enumerate(zip(rows, ages, strict=True)):
        own = true[begins == i]
        n = horizon_metrics.alive(own)
        lines = {"simulator": (horizon_metrics.histogram(on, own, n), n),
                 "constant": horizon_metrics.constant(counts, steps),
                 "clock": horizon_metrics.clock(counts, age, steps),
                 "analog": horizon_metrics.analog(on, training, walk.states[row], steps)}  # fmt: skip
        for name, (mass, n) in lines.items():
            score = scores.setdefault(name, np.full(held.shape[:2], np.nan))
            score[start == i] = horizon_metrics.log_likelihood(on, mass, n, held[start == i])
    return scores, start


def _begins(episodes: Episodes, starts: np.ndarray) -> np.ndarray:
    """Return the index among starts (k, N) of the state in which each episode begins."""
    return (episodes.states[episodes.starts[:-1], None] == starts).all(2).argmax(1)


def true_leads(size: str) -> pd.DataFrame:
    """Return how far the simulator is above each line that knows no model, in nats, with 95% intervals.

    start is `fixed` (Figure 2: one start, intervals over references) or `conditional` (each of twenty starts by itself,
    intervals over starts).  `simulator` and `alive` are its mean score and the fraction of references at that step.

    Written before anything was measured: the policy, with these starts and its entropy, is refuted as the subject of
    Figures 1 and 2 if at step 100 the conditional score of the simulator is less than 5 nats above `clock`, or if more
    than a tenth of the references have ended by then.
    """
    steps = 4 if size == "smoke" else 100
    pairs = {"fixed": ("walk-reference", "walk-simulator"),
             "conditional": ("walk-futures", "walk-futures-simulator")}  # fmt: skip
    configs = {s: [experiments.regenerated("humanoid", q, size) for q in pair] for s, pair in pairs.items()}

    def make() -> pd.DataFrame:
        rows = []
        for name, pair in configs.items():
            scores, start = true_scores(*pair, steps)
            living = np.isfinite(scores["simulator"]).mean(0)
            if name == "conditional":
                scores = {line: horizon_metrics.by_start(score, start) for line, score in scores.items()}
            level = np.nanmean(scores["simulator"], 0)
            for line in WITHOUT_MODEL:
                found = horizon_metrics.leads(scores["simulator"][None], scores[line][None], start=name, over=line)
                rows += [
                    {"start": name, "t": row["first"], "simulator": level[row["first"] - 1], "over": line}
                    | {key: row[key] for key in ("lead", "low", "high")} | {"alive": living[row["first"] - 1]}
                    for row in found if row["first"] == row["last"] and row["last"] in TRUE_STEPS
                ]  # fmt: skip
        return pd.DataFrame(rows)

    used = [config for pair in configs.values() for config in pair]
    return store.table("fig2_true_leads", size, make, used, {"steps": steps}, PREDICTION_STAGE, record=True)


FIGURE_1 = ("transformer", "ensemble_ts1")  # beside the reference


def poses(size: str, count: int = 3) -> pd.DataFrame:
    """Return joint positions for Figure 1, one column for each joint: the first `count` trajectories of each model."""
    protocol = experiments.long_horizon(size, "observed")

    def make() -> pd.DataFrame:
        held, start = references(size, protocol.steps)
        trajectories = {"reference": np.concatenate([np.repeat(start[None, None], len(held), axis=0), held], 1)}
        trajectories |= {model: sampled(protocol, model, protocol.seeds[0])[0] for model in FIGURE_1}
        return pd.DataFrame(
            {"model": model, "rollout": i, "t": t} | {f"q{j}": x for j, x in enumerate(q)}
            for model, states in trajectories.items()
            for i, trajectory in enumerate(states[:count])
            for t, q in enumerate(bodies.pose("humanoid", trajectory))
        )

    items = [item for model in FIGURE_1 for item in made_of(protocol, model)]
    config = {"protocol": protocol, "count": count}
    return store.table("fig1_poses", size, make, items, config, PREDICTION_STAGE, record=True)


TRACED = ("head", "left_foot", "right_foot")


def figure_1(size: str, found: pd.DataFrame) -> pd.DataFrame:
    """Return `fig1_humanoid.csv` from `poses`: where head and feet are, in metres."""

    def make() -> pd.DataFrame:
        ends, _, names = bodies.capsules("humanoid", found.filter(regex=r"^q\d").to_numpy())
        place = {body: ends[:, names.index(body)].mean(1) for body in TRACED}
        parts = [
            found[["model", "rollout", "t"]].assign(body=body, x=p[:, 0], y=p[:, 1], z=p[:, 2])
            for body, p in place.items()
        ]
        return pd.concat(parts, ignore_index=True)

    return results.drawn("fig1_humanoid", size, make, found, traced=TRACED)


@functools.lru_cache(maxsize=8)  # two tables of a page are made of it
def next_state_nats(exp: Experiment, count: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Return -log P and number of the next state's held-out tokens by transitions seen and dimension, (T - 1, N)."""
    loaded, (_, held_out) = store.load_or_train(exp), store.windows(exp)
    D, N = exp.model.transition.D, exp.model.transition.N
    total, tokens = torch.zeros(2, exp.model.T - 1, D, dtype=torch.float64)
    start = torch.from_numpy(np.random.default_rng(0).permutation(len(held_out))[:count])
    for part in start.split(64):
        ids, weight = held_out.batch(part)
        with torch.inference_mode():  # not around all of it: the model may have to be trained first
            nats = token_nats(loaded.model, ids.to(store.device()))[:, D - 1 :].cpu()
        weight = weight[:, D:]
        total += (nats * weight).sum(0).view_as(total)
        tokens += weight.sum(0).view_as(tokens)
    return (total / tokens)[:, :N].numpy(), tokens[:, :N].numpy()


def binned_log_density(made: ensemble.Ensemble, held_out: ensemble.Transitions, on: horizon_metrics.Grid) -> np.ndarray:
    """Return the log of the mixture's mass in the bin of s' as a density, (n, N) nats, each dimension by itself."""
    mean, std = (x[..., : made.N] for x in made.predict(held_out.states, held_out.actions, held_out.mask))
    found = np.empty(held_out.next_states.shape)
    for i, bins in enumerate(on.bins(held_out.next_states)):
        density = horizon_metrics.bin_mass(on.edges, mean[:, i], std[:, i]) / on.width
        found[i] = np.log(density[np.arange(made.N), bins])
    return found


def _first(data: ensemble.Transitions, seed: int, count: int = 1000) -> ensemble.Transitions:
    """Return a random subset of `count` transitions."""
    rows = np.random.default_rng(seed).permutation(len(data))[:count]
    return replace(data, **{name: x[rows] for name, x in vars(data).items() if x is not None})


def one_step_by_dimension(size: str) -> pd.DataFrame:
    """Return the mean held-out log-density of each dimension of the next state in nats, for each model of a panel.

    low and high bound the bins in raw units.  `ensemble` is the mixture's marginal density without bins,
    `ensemble_binned` that of its bin masses, and `oracle` Appendix B's bound.  Constant dimensions are left out.
    """

    def make(p: LongHorizon) -> list[pd.DataFrame]:
        on, seed, config = grid(observed(p)), p.seeds[0], transformer(p, "transformer", p.seeds[0]).data
        width = on.width.mean(1)
        columns = {"panel": p.panel, "dimension": np.arange(len(width))}
        columns |= {"low": on.edges[:, 0], "high": on.edges[:, -1], "oracle": -np.log(width)}
        for model in TRANSFORMERS:
            nats, tokens = next_state_nats(transformer(p, model, seed))
            columns[model] = -np.average(nats, axis=0, weights=tokens) - np.log(width)
        made, _ = store.load_or_fit(ensemble_fit(p, seed))
        held = _first(ensemble.transitions(store.split(config)[1]), seed)
        mean, std = (x[..., : made.N] for x in made.predict(held.states, held.actions, held.mask))
        columns["ensemble"] = ensemble.mixture(ensemble.log_normal(held.next_states, mean, std)).mean(0)
        columns["ensemble_binned"] = binned_log_density(made, held, on).mean(0)
        return [pd.DataFrame(columns)[on.varies]]

    return _both_panels("humanoid_one_step_by_dimension", size, make)


def one_step(size: str) -> pd.DataFrame:
    """Return the held-out log-density of the next state in nats, one row for each model of a panel.

    A Transformer's is the sum of `one_step_by_dimension`, and so is `ensemble_binned`.  `ensemble`, and `linear`, a
    linear Gaussian, are densities without bins.
    """
    parts = one_step_by_dimension(size)

    def make(p: LongHorizon) -> list[pd.DataFrame]:
        on, part = grid(observed(p)), parts[parts.panel == p.panel]
        sums = part[[*TRANSFORMERS, "ensemble_binned", "oracle"]].sum()
        rows = [{"panel": p.panel, "model": model, "log_density": total} for model, total in sums.items()]
        about = store.load_or_fit(ensemble_fit(p, p.seeds[0]))[1]["held_out"]
        coverage, rmse_share = (np.array(about[name])[on.varies] for name in ("coverage", "rmse_share"))
        rows.append({"panel": p.panel, "model": "ensemble", "log_density": about["log_likelihood"],
                     "coverage": coverage.mean(), "coverage_low": coverage.min(), "coverage_high": coverage.max(),
                     "rmse_share": rmse_share.mean()})  # fmt: skip
        rows.append({"panel": p.panel, "model": "linear", "log_density": about["linear_log_likelihood"]})
        return [pd.DataFrame(rows)]

    return _both_panels("humanoid_one_step", size, make)


def one_step_by_past(size: str) -> pd.DataFrame:
    """Return the held-out log-density of the next state in nats by `past`, the transitions that a model has read."""

    def make(p: LongHorizon) -> list[pd.DataFrame]:
        on, tables = grid(observed(p)), []
        for model in TRANSFORMERS:
            nats, _ = next_state_nats(transformer(p, model, p.seeds[0]))
            density = (-nats - np.log(on.width.mean(1)))[:, on.varies].sum(1)
            columns = {"panel": p.panel, "model": model, "past": np.arange(1, len(nats) + 1)}
            tables.append(pd.DataFrame(columns | {"log_density": density}))
        return tables

    return _both_panels("humanoid_one_step_by_past", size, make, TRANSFORMERS)
