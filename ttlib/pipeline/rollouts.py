"""Sets of rollouts: who acts, for which seeds, and the rows that are kept of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ttlib import control, data
from ttlib.baselines import agents, shooting
from ttlib.baselines.agents import FunctionAgent
from ttlib.datasets import regenerated
from ttlib.environments import policies, stepping, tasks
from ttlib.model import token_nats
from ttlib.pipeline import experiments, results, store
from ttlib.pipeline.experiments import DataConfig, Experiment, Fit

# Raised by hand when search, control, cloning or shooting change what a rollout does.  2: each environment has its
# own random numbers, empty bins have no mass, and values end 500 steps before a time limit.
ROLLOUT_STAGE = 2
BY_TRANSFORMER = ("tto", "sampling", "imitation")
METHODS = (*BY_TRANSFORMER, "bc", "bc10", "behaviour", "random_shooting")
UNKNOWN_STEPS = 500  # before a time limit: at gamma 0.99 the missing tail weighs less than 1%


def run_rollouts(
    exp: Experiment, method: str, seeds: Sequence[int], model_seed: int = 0, progress=None, make=None, hooks=None
) -> list[stepping.Rollout]:
    """Roll out a method of `table1_rollouts.csv`, all seeds in one batch.

    tto plans for reward, sampling draws the model's actions, imitation searches for likelihood; bc is the cloned MLP,
    bc10 that of the tenth of episodes of greatest return; behaviour is the data's own policies in turn;
    random_shooting plans through a Gaussian ensemble.  make() is the environment where the data are not of one of our
    tasks; hooks are those of `control.ByReward`.  Raises ValueError for an unknown method, MemoryError with the sizes.
    """
    make = make or (lambda: simulator(exp.data, exp.size))
    fitted = [store.load_or_fit(fit)[0] for fit in fits(exp, method, model_seed)]
    if method in BY_TRANSFORMER:
        agent = transformer_agent(exp, method, hooks)
    elif method in ("bc", "bc10"):
        agent = FunctionAgent(lambda states, rows: fitted[0].act(states))
    elif method == "behaviour":
        agent = FunctionAgent(behaviour(exp, seeds))
    elif method == "random_shooting":
        space = make().action_space
        agent = shooting.RandomShooting(*fitted, exp.plan, space.low, space.high)
    else:
        raise ValueError(f"unknown method {method!r}; expected one of {METHODS}")
    try:
        return stepping.rollouts(make, agent, list(seeds), progress=progress)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError(memory_needed(exp, method, len(seeds))) from error
        raise


def memory_needed(exp: Experiment, method: str, environments: int) -> str:
    """Return a sentence about the memory that a plan needs, and the way out."""
    model, plan = exp.model, exp.plan
    beams = plan.beam_width * plan.expansions if method == "tto" and plan else max(1, exp.width)
    horizon = plan.horizon if method == "tto" and plan else max(1, exp.horizon)
    tokens = (exp.context + horizon) * model.transition.D
    size = 2 * model.n_layer * model.d_model * tokens * 4 * beams * environments / 1e6
    return (
        f"out of memory with {beams} beams x {environments} environments: the keys and values of {tokens} tokens take "
        f"about {size:.4g} MB, attention a few times that; plan with fewer beams or a shorter horizon, or run fewer "
        "environments at once"
    )


def transformer_agent(exp: Experiment, method: str, hooks: dict | None = None) -> control.TransformerAgent:
    """Return the experiment's model acting by a method of BY_TRANSFORMER."""
    if method == "tto":
        choose = control.ByReward(exp.plan, **(hooks or {}))
    elif method == "sampling":
        choose = agents.BySampling()
    else:
        choose = control.ByLikelihood(exp.horizon, exp.width)
    loaded = store.load_or_train(exp)
    return control.TransformerAgent(loaded.model, loaded.tokenizer, choose, exp.context)


def simulator(config: DataConfig, size: str) -> gymnasium.Env:
    """Return the task that a dataset is of, with the physics it was recorded under; smoke episodes are cut short."""
    env = tasks.make(config.task, "d4rl" if config.official else config.physics)
    return gymnasium.wrappers.TimeLimit(env, 20) if size == "smoke" else env


def fits(exp: Experiment, method: str, model_seed: int = 0) -> list[Fit]:
    """Return the fitted baselines that a method needs, which know the experiment's data."""
    if method in ("bc", "bc10"):
        return [experiments.baseline(method, exp.data, exp.size, seed=model_seed)]
    if method == "random_shooting":
        values = experiments.baseline("values", exp.data, exp.size, gamma=exp.plan.gamma)
        return [experiments.baseline("dynamics", exp.data, exp.size), values]
    return []


def behaviour(exp: Experiment, seeds: Sequence[int]) -> Callable:
    """Return the data's behaviour policies: rollout i acts by the i-th snapshot, then from the first again.

    -> a function (states (E, N), rows (E,)) -> actions (E, M).  Each rollout has random numbers from its own seed.
    """
    snapshots = regenerated.recipe(exp.data.task, exp.data.quality).snapshots
    acts = [policies.policy(exp.data.task, snapshots[i % len(snapshots)]) for i in range(len(seeds))]
    rngs = [np.random.default_rng([exp.data.seed, seed]) for seed in seeds]
    return lambda states, rows: np.concatenate(
        [acts[row](state[None], rngs[row]) for row, state in zip(rows, states, strict=True)]
    )


# -- rows --------------------------------------------------------------------------------------------------


def step_rows(runs: list[stepping.Rollout], log_density: list | None = None) -> pd.DataFrame:
    """Return one row for each step of each rollout.

    Columns: rollout_seed, t, reward, terminal, diverged, predicted (the plan's value), log_density (of the action, in
    nats).
    """
    log_density = log_density or [np.nan] * len(runs)
    return pd.concat([
        pd.DataFrame({"rollout_seed": run.seed, "t": np.arange(len(run.rewards)), "reward": run.rewards,
                      "terminal": run.terminal, "diverged": run.diverged,
                      "predicted": run.record.get("value", np.nan), "log_density": density})
        for run, density in zip(runs, log_density, strict=True)
    ])  # fmt: skip


def rollout_rows(
    steps: pd.DataFrame, exp: Experiment, method: str, setting: str, model_seed: int = 0, **columns
) -> list[dict]:
    """Return rows of `table1_rollouts.csv` from `step_rows`, one for each rollout."""
    rows = []
    for seed, part in steps.groupby("rollout_seed", sort=False):
        total = float(part.reward.sum())
        rows.append(
            {"dataset": exp.data.name, "source": exp.data.source, "method": method, "profile": exp.profile,
             "setting": setting, "model_seed": model_seed, "rollout_seed": seed, "return": total,
             "score": tasks.score(exp.data.task, total), "length": len(part), "fell": bool(part.terminal.iloc[0]),
             "diverged": bool(part.diverged.iloc[0])} | columns
        )  # fmt: skip
    return rows


def value_rows(steps: pd.DataFrame, exp: Experiment, method: str = "tto", **columns) -> list[dict]:
    """Return the value that each plan predicted beside the discounted return that followed, for every fifth step.

    A fall counts what the model was told that it costs.  Where the time limit ended the episode, its last
    UNKNOWN_STEPS steps are left out: the return that would have followed is not known there.
    """
    rows = []
    for seed, part in steps.groupby("rollout_seed", sort=False):
        rewards, terminal = part.reward.to_numpy(copy=True), bool(part.terminal.iloc[0])
        if terminal and exp.bins.terminal_reward is not None and method == "tto":
            rewards[-1] = exp.bins.terminal_reward
        achieved = data.reward_to_go(rewards, np.array([0, len(rewards)]), exp.bins.gamma)
        known = len(rewards) - (0 if terminal else UNKNOWN_STEPS if exp.size != "smoke" else 4)
        rows += [
            {"dataset": exp.data.name, "method": method, "profile": exp.profile, "rollout_seed": seed, "t": t,
             "predicted": part.predicted.iloc[t], "achieved": achieved[t]} | columns
            for t in range(0, max(known, 0), 5)
        ]  # fmt: skip
    return rows


def action_log_density(exp: Experiment, runs: list[stepping.Rollout]) -> list[np.ndarray]:
    """Return log p(a | s) of the actions taken, as densities in nats, (T,) for each rollout.

    The experiment's model scores them, which sees the current state alone.
    """
    loaded = store.load_or_train(exp)
    tokens, transition = loaded.tokenizer.to("cpu"), exp.model.transition
    log_width, densities = tokens.width[transition.action].log(), []
    for run in runs:
        states, actions = (torch.as_tensor(np.array(x)) for x in (run.states[: len(run.actions)], run.actions))
        ids = torch.cat([tokens.encode(states, transition.state), tokens.encode(actions, transition.action)], 1)
        with torch.inference_mode():
            nats = torch.cat([token_nats(loaded.model, part.to(store.device())) for part in ids.split(256)]).cpu()
        bins = ids[:, transition.action] - tokens.offset[transition.action]
        widths = log_width.gather(1, bins.T).T
        densities.append((-nats[:, transition.N - 1 :] - widths).sum(1).numpy())
    return densities


# -- sets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutSet:
    """Rollouts of one method of METHODS on one dataset, for `seeds`, made in one batch.

    setting: a label for readers; variant: what rules of the ledger ask for ("main", "no_reward_to_go", ...);
    scorer: the experiment whose model scores the actions taken; noise: as in `ablations.Noisy`.
    """

    exp: Experiment
    method: str
    setting: str
    seeds: tuple[int, ...]
    model_seed: int = 0
    scorer: Experiment | None = None
    variant: str = "main"
    propose: Callable | None = None
    read: Callable | None = None

    @property
    def transformer(self) -> bool:
        return self.method in BY_TRANSFORMER

    @property
    def models(self) -> list[Experiment]:
        """The experiments whose models it needs."""
        return [self.exp] * self.transformer + [self.scorer] * (self.scorer is not None)

    @property
    def profile(self) -> str:
        return self.exp.profile if self.transformer else "any"

    @property
    def hooks(self) -> dict:
        """The hooks of `search.maximise` that differ from its own."""
        given = {"propose": self.propose, "read": self.read}
        return {name: hook for name, hook in given.items() if hook is not None}

    def recipe(self) -> tuple[str, dict]:
        """Return name and config of the table of its steps."""
        known = self.exp if self.transformer else [self.exp.data, self.exp.size]
        if self.method == "random_shooting":
            known = [*known, replace(self.exp.plan, drop_probability=0.0)]  # it filters nothing
        config = {"of": known, "method": self.method, "seeds": self.seeds, "model_seed": self.model_seed}
        config |= {name: [type(hook).__name__, hook] for name, hook in self.hooks.items()}
        return "-".join(("rollouts", self.exp.data.name, self.method, self.profile)), config

    def inputs(self) -> dict[str, str]:
        """Return the keys of the models' weights and the baselines' recipes, or else of the data, behind it."""
        fitted = {fit.label: store.fit_key(fit) for fit in fits(self.exp, self.method, self.model_seed)}
        return store.inputs(self.models) | fitted or store.inputs([self.exp.data])

    def file(self) -> Path | None:
        """Return where its steps are kept; None while a model is missing, whose weights are in the file's name."""
        if any(store.checkpoint_folder(exp) is None for exp in self.models):
            return None
        name, config = self.recipe()
        return results.table_file(name, self.exp.size, config, self.inputs(), ROLLOUT_STAGE)

    def steps(self) -> pd.DataFrame:
        """Return `step_rows` of its rollouts.  They are kept, so a killed run loses at most one of these sets."""

        def make() -> pd.DataFrame:
            runs = run_rollouts(self.exp, self.method, self.seeds, self.model_seed, hooks=self.hooks)
            return step_rows(runs, action_log_density(self.scorer, runs) if self.scorer else None)

        name, config = self.recipe()
        return results.table(name, self.exp.size, make, config, self.inputs(), ROLLOUT_STAGE, public=False)

    def settings(self) -> dict:
        """Return the columns that say how it acts; NaN where one does not apply."""
        plan, planned = self.exp.plan, self.method == "tto"
        shot = self.method == "random_shooting"
        return {
            "variant": self.variant,
            "context": self.exp.context if self.transformer else np.nan,
            "horizon": plan.horizon if planned or shot else self.exp.horizon if self.transformer else np.nan,
            "beam_width": plan.beam_width if planned else self.exp.width if self.method == "imitation" else np.nan,
            "expansions": plan.expansions if planned else np.nan,
            "sequences": plan.beam_width * plan.expansions if shot else np.nan,
            "noise": getattr(self.read, "noise", 0.0) if planned else np.nan,
        }

    def rows(self) -> list[dict]:
        """Return rows of `table1_rollouts.csv`."""
        method = "tto" if self.transformer else self.method
        columns = self.settings() | {"profile": self.profile}
        return rollout_rows(self.steps(), self.exp, method, self.setting, self.model_seed, **columns)


def planning(exp: Experiment, setting: str = "", **options) -> RolloutSet:
    """Return the rollouts of planning for reward."""
    plan = exp.plan
    label = setting or f"horizon {plan.horizon}, beam width {plan.beam_width}, {plan.expansions} expansions"
    return RolloutSet(exp, "tto", label, exp.seeds, exp.train.seed, **options)


def cloning(exp: Experiment, method: str, setting: str) -> list[RolloutSet]:
    """Return the rollouts of behaviour cloning, one set for each model seed."""
    return [RolloutSet(exp, method, setting, e.seeds, e.train.seed) for e in experiments.models(exp)]


def table(name: str, size: str, sets: list[RolloutSet]) -> pd.DataFrame:
    """Return a public table of rollouts, one row each.  An estimate is printed first, and progress is shown.

    demonstrator: the mean return of the dataset's episodes.
    """

    def make() -> pd.DataFrame:
        results.say(f"the Transformers' rollouts take {expected_minutes(sets):.0f} minutes here if no robot falls")
        rows = []
        for rollout_set in tqdm(sets, desc=name, unit="setting"):
            demonstrator = store.dataset(rollout_set.exp.data).returns.mean()
            rows += [row | {"demonstrator": demonstrator} for row in rollout_set.rows()]
        return pd.DataFrame(rows)

    return store.table(name, size, make, sets, stage=ROLLOUT_STAGE)


def expected_minutes(sets: list[RolloutSet]) -> float:
    """Return what the Transformers' rollouts that are missing take, from one timed decision of each set."""
    seconds = 0.0
    for rollout_set in sets:
        if not rollout_set.transformer or rollout_set.file().exists():
            continue
        env = simulator(rollout_set.exp.data, rollout_set.exp.size)
        states = np.stack([env.reset(seed=seed)[0] for seed in rollout_set.seeds])
        agent = transformer_agent(rollout_set.exp, rollout_set.method, rollout_set.hooks)
        agent.reset(rollout_set.seeds)
        start = time.perf_counter()
        agent.act(states)
        seconds += tasks.MAX_STEPS * (time.perf_counter() - start)
    return seconds / 60
