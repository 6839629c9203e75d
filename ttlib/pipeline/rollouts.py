"""Sets of rollouts: who acts, for which seeds, and the rows that are kept of them."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ttlib import control, data, train
from ttlib.baselines import shooting
from ttlib.baselines.cloning import MLP, fit
from ttlib.data import Episodes
from ttlib.datasets import regenerated
from ttlib.environments import tasks
from ttlib.environments.policies import policy
from ttlib.pipeline import experiments, places, results, store
from ttlib.pipeline.experiments import DataConfig, Experiment

BY_TRANSFORMER = ("tto", "sampling", "imitation")


METHODS = (*BY_TRANSFORMER, "bc", "bc10", "behaviour", "random_shooting")


def run_rollouts(
    exp: Experiment, method: str, seeds: tuple[int, ...], model_seed: int = 0, progress=None, make=None
) -> list[control.Rollout]:
    """Rollouts of a task by a method of `table1_rollouts.csv`, all in one batch: tto plans for reward, sampling
    draws the model's actions, imitation searches for likelihood, bc is the cloned MLP, bc10 that of the tenth of
    episodes of greatest return, behaviour the data's own policies in turn, random_shooting plans through a Gaussian
    ensemble.  make() is the environment where the data are not of one of our tasks."""
    make = make or (lambda: simulator(exp.data, exp.size))
    if method in BY_TRANSFORMER:
        agent = transformer_agent(exp, method, seeds[0])
    elif method in ("bc", "bc10"):
        policy = cloned(exp, model_seed, 1.0 if method == "bc" else 0.1)
        agent = control.FunctionAgent(lambda s, rows: policy.act(s), len(seeds))
    elif method == "behaviour":
        agent = control.FunctionAgent(behaviour(exp, seeds), len(seeds))
    elif method == "random_shooting":
        space = make().action_space
        agent = shooting.RandomShooting(*fit_shooting_models(exp), exp.plan, space.low, space.high, seeds[0])
    else:
        raise ValueError(f"unknown method {method!r}; expected one of {METHODS}")
    return control.rollouts(make, agent, list(seeds), progress=progress)


def transformer_agent(exp: Experiment, method: str, seed: int) -> control.TransformerAgent:
    """The experiment's model acting by a method of BY_TRANSFORMER."""
    loaded, rng = store.load_or_train(exp), torch.Generator(store.device()).manual_seed(seed)
    if method == "tto":
        choose, horizon = control.by_reward(exp.plan, rng), exp.plan.horizon
    elif method == "sampling":
        choose, horizon = control.by_sampling(rng), 1
    else:
        choose, horizon = control.by_likelihood(exp.horizon, exp.width), max(exp.horizon, 1)
    return control.TransformerAgent(loaded.model, loaded.tokenizer, choose, exp.past, horizon)


def simulator(config: DataConfig, size: str):
    """The task that a dataset is of, with the physics it was recorded under; smoke episodes are cut short."""
    env = tasks.make(config.task, "d4rl" if config.official else config.physics)
    return gymnasium.wrappers.TimeLimit(env, 20) if size == "smoke" else env


def cloned(exp: Experiment, seed: int, share: float = 1.0) -> MLP:
    """Behaviour cloning on the experiment's data, or on the share of its episodes of greatest return."""
    parts = [top_episodes(part, share) for part in store.dataset(exp.data).split(exp.data.held_out, exp.data.seed)]
    (x, y), (held_x, held_y) = ((part.states, part.actions) for part in parts)
    return fit(x, y, held_x, held_y, seed, 200 if exp.size == "smoke" else 20_000)[0]


def top_episodes(episodes: Episodes, share: float) -> Episodes:
    """The share of the episodes, at least one, of greatest return."""
    count = max(1, round(share * len(episodes)))
    return episodes.select(np.sort(np.argsort(-episodes.returns, kind="stable")[:count]))


@functools.lru_cache(maxsize=1)
def fit_shooting_models(exp: Experiment):
    """What random shooting plans with: the ensemble and V(s), fitted to the experiment's data."""
    parts = store.dataset(exp.data).split(exp.data.held_out, exp.data.seed)
    smoke = exp.size == "smoke"
    config = replace(experiments.SHOOTING, updates=20) if smoke else experiments.SHOOTING
    return shooting.fit(*parts, config, exp.plan.gamma, 200 if smoke else 20_000)


def behaviour(exp: Experiment, seeds: tuple[int, ...]) -> Callable:
    """The data's behaviour policies: rollout i acts by the i-th snapshot, from the first again after the last."""
    chosen = regenerated.recipe(exp.data.task, exp.data.quality).snapshots
    policies = [policy(exp.data.task, chosen[i % len(chosen)]) for i in range(len(seeds))]
    rng = np.random.default_rng([exp.data.seed, *seeds])
    return lambda states, rows: np.concatenate([policies[r](s[None], rng) for r, s in zip(rows, states, strict=True)])


def rollout_rows(
    runs: list[control.Rollout], exp: Experiment, method: str, setting: str, model_seed: int = 0
) -> list[dict]:
    """Rows of `table1_rollouts.csv`."""
    return [
        {"dataset": exp.data.name, "source": exp.data.source, "method": method, "profile": exp.profile,
         "setting": setting, "model_seed": model_seed, "rollout_seed": run.seed, "return": run.total,
         "score": tasks.score(exp.data.task, run.total), "length": len(run.rewards), "fell": run.terminal,
         "diverged": run.diverged}
        for run in runs
    ]  # fmt: skip


def value_rows(runs: list[control.Rollout], exp: Experiment, method: str = "tto") -> list[dict]:
    """The value each plan predicted beside the discounted return that followed, per rollout and step.

    A fall counts what the model was told it costs.  Where the time limit ended the episode its last 200 steps are
    left out: the return that would have followed is not known there.
    """
    rows, told = [], exp.bins.terminal_reward
    for run in runs:
        rewards = np.array(run.rewards)
        if run.terminal and told is not None and method == "tto":
            rewards[-1] = told
        achieved = data.reward_to_go(rewards, np.array([0, len(rewards)]), exp.bins.gamma)
        known = len(rewards) - (0 if run.terminal else 200 if exp.size != "smoke" else 4)
        rows += [
            {"dataset": exp.data.name, "method": method, "profile": exp.profile, "rollout_seed": run.seed, "t": t,
             "predicted": run.record["value"][t], "achieved": achieved[t]}
            for t in range(0, max(known, 0), 5)
        ]  # fmt: skip
    return rows


@dataclass(frozen=True)
class RolloutSet:
    """Rollouts of one method with one setting.  scorer: the model whose density of the chosen actions is wanted."""

    exp: Experiment
    method: str  # of `stages.act`
    setting: str
    seeds: tuple[int, ...]
    model_seed: int = 0
    scorer: Experiment | None = None

    @property
    def transformer(self) -> bool:
        return self.method in BY_TRANSFORMER

    @property
    def models(self) -> list[Experiment]:
        """Those that it needs."""
        return [self.exp] * self.transformer + [self.scorer] * (self.scorer is not None)

    @property
    def profile(self) -> str:
        return self.exp.profile if self.transformer else "any"

    def steps(self) -> pd.DataFrame:
        """One row a step of each rollout: rollout_seed, t, reward, terminal, diverged, predicted (value of the plan)
        and log_density (nats, of the action).  Kept by content, so that a killed run loses one of these at most."""

        def make() -> pd.DataFrame:
            runs = run_rollouts(self.exp, self.method, self.seeds, self.model_seed)
            density = action_log_density(self.scorer, runs) if self.scorer else [np.nan] * len(runs)
            return pd.concat([
                pd.DataFrame({"rollout_seed": run.seed, "t": np.arange(len(run.rewards)), "reward": run.rewards,
                              "terminal": run.terminal, "diverged": run.diverged,
                              "predicted": run.record.get("value", np.nan), "log_density": found})
                for run, found in zip(runs, density, strict=True)
            ])  # fmt: skip

        name, config = self.recipe()
        return results.table(name, self.exp.size, make, config, _inputs([self]), public=False)

    def recipe(self) -> tuple[str, dict]:
        """Name and config of the table of its steps."""
        known = self.exp if self.transformer else [self.exp.data, self.exp.size]
        if self.method == "random_shooting":
            known = [*known, experiments.SHOOTING, replace(self.exp.plan, cdf=0.0)]  # it filters nothing
        config = {"of": known, "method": self.method, "seeds": self.seeds, "model_seed": self.model_seed}
        return "-".join(("rollouts", self.exp.data.name, self.method, self.profile)), config

    def file(self) -> Path | None:
        """Where its steps are kept; None as long as a model is not there, whose weights are in the file's name."""
        if any(store.checkpoint_folder(exp) is None for exp in self.models):
            return None
        name, config = self.recipe()
        return results.table_file(name, self.exp.size, config, keys([self]))

    def inputs(self) -> dict[str, str]:
        return {e.label: store.weights_key(e) for e in self.models} or {"data": store.data_key(self.exp.data)}

    def rollouts(self) -> list[control.Rollout]:
        """The rollouts again, without their states and actions."""
        return [
            control.Rollout(seed, rewards=rows.reward.tolist(), record={"value": rows.predicted.tolist()},
                            terminal=bool(rows.terminal.iloc[0]), diverged=bool(rows.diverged.iloc[0]))
            for seed, rows in self.steps().groupby("rollout_seed", sort=False)
        ]  # fmt: skip

    def scores(self) -> list[dict]:
        """Rows of `table1_rollouts.csv`, but for their demonstrator."""
        method = "tto" if self.transformer else self.method
        rows = rollout_rows(self.rollouts(), self.exp, method, self.setting, self.model_seed)
        return [row | {"profile": self.profile} for row in rows]

    def rows(self) -> list[dict]:
        """Rows of `table1_rollouts.csv`; demonstrator: the mean return of the dataset's episodes."""
        demonstrator = store.dataset(self.exp.data).returns.mean()
        return [row | {"demonstrator": demonstrator} for row in self.scores()]


def action_log_density(exp: Experiment, runs: list[control.Rollout]) -> list[np.ndarray]:
    """log p(a | s) of the actions taken, as densities in nats, by a model that sees the current state alone."""
    loaded = store.load_or_train(exp)
    fitted, transition = loaded.tokenizer.to("cpu"), exp.model.transition
    width, found = fitted.width[transition.action].log(), []
    for run in runs:
        states, actions = (torch.as_tensor(np.array(x)) for x in (run.states[: len(run.actions)], run.actions))
        ids = torch.cat([fitted.encode(states, transition.state), fitted.encode(actions, transition.action)], 1)
        with torch.inference_mode():  # not around all of it: the model may have to be trained first
            parts = [train.token_nats(loaded.model, part.to(store.device())) for part in ids.split(256)]
        bins = ids[:, transition.action] - fitted.offset[transition.action]
        widths = width.gather(1, bins.T).T
        found.append((-torch.cat(parts).cpu()[:, transition.N - 1 :] - widths).sum(1).numpy())
    return found


def planning(exp: Experiment, name: str = "", **options) -> RolloutSet:
    plan = exp.plan
    setting = name or f"horizon {plan.horizon}, {plan.plans} x {plan.candidates}"
    return RolloutSet(exp, "tto", setting, exp.seeds, exp.train.seed, **options)


def cloning(exp: Experiment, method: str, setting: str) -> list[RolloutSet]:
    return [RolloutSet(exp, method, setting, e.seeds, e.train.seed) for e in experiments.models(exp)]


def table(name: str, size: str, runs: list[RolloutSet]) -> pd.DataFrame:
    """A public table of rollouts, one row each; an estimate is printed first, and progress is shown."""

    def make() -> pd.DataFrame:
        print(f"Transformers' rollouts take {expected_minutes(runs):.0f} minutes here if no robot falls", flush=True)
        return pd.DataFrame([row for run in tqdm(runs, desc=name, unit="setting") for row in run.rows()])

    return results.table(name, size, make, {"runs": runs}, _inputs(runs))


def _inputs(runs: list[RolloutSet]) -> dict[str, str]:
    """`keys`, for which models that are missing are trained first."""
    for run in runs if places.mode() != "book" else []:
        for exp in run.models:
            if store.checkpoint_folder(exp) is None:
                store.load_or_train(exp)
    return keys(runs)


def keys(runs: list[RolloutSet]) -> dict[str, str]:
    """Of the weights that runs are computed from."""
    return {key: value for run in runs for key, value in run.inputs().items() if key != "data"}


def expected_minutes(runs: list[RolloutSet]) -> float:
    """What the Transformers' rollouts take: one decision of each timed, for episodes of full length."""
    seconds = 0.0
    for run in (run for run in runs if run.transformer):
        env = simulator(run.exp.data, run.exp.size)
        states = np.stack([env.reset(seed=seed)[0] for seed in run.seeds])
        agent = transformer_agent(run.exp, run.method, run.seeds[0])
        start = time.perf_counter()
        agent.act(states)
        seconds += tasks.MAX_STEPS * (time.perf_counter() - start)
    return seconds / 60
