"""Sets of rollouts: who acts, for which seeds, and the row that is kept of each."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ttlib import control, data
from ttlib.baselines import agents, cross_entropy, shooting
from ttlib.baselines.agents import FunctionAgent
from ttlib.checkpoint import Checkpoint
from ttlib.datasets import regenerated
from ttlib.environments import policies, stepping, tasks
from ttlib.model import token_nats
from ttlib.native.decoder import decoder_for
from ttlib.pipeline import experiments, places, released, results, store
from ttlib.pipeline.experiments import DataConfig, Experiment, Fit

# Raised by hand when search, control, cloning or shooting change what a rollout does.  2: each environment has its
# own random numbers, empty bins have no mass, and values end 500 steps before a time limit.
ROLLOUT_STAGE = 2
BY_TRANSFORMER = ("tto", "sampling", "imitation")
BY_ENSEMBLE = ("random_shooting", *experiments.CEM)
METHODS = (*BY_TRANSFORMER, "bc", "bc10", "behaviour", *BY_ENSEMBLE)
UNKNOWN_STEPS = 500  # before a time limit: at gamma 0.99 the missing tail weighs less than 1%


def run_rollouts(
    exp: Experiment, method: str, seeds: Sequence[int], model_seed: int = 0, progress=None, make=None, hooks=None
) -> list[stepping.Rollout]:
    """Roll out a method of `table1_rollouts.csv`, all seeds in one batch.

    tto plans for reward, sampling draws the model's actions, imitation searches for likelihood; bc is the cloned MLP,
    bc10 that of the tenth of episodes of greatest return; behaviour is the data's own policies in turn;
    random_shooting, cem and cem_penalised plan through a Gaussian ensemble.  make() is the environment where the data
    are not of one of our tasks; hooks are those of `control.ByReward`.  Raises ValueError for an unknown method,
    MemoryError with the sizes.
    """
    make = make or (lambda: simulator(exp.data, exp.size))
    acts = agent(exp, method, seeds, model_seed, make, hooks)
    try:
        return stepping.rollouts(make, acts, list(seeds), progress=progress)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError(memory_needed(exp, method, len(seeds))) from error
        raise


def agent(exp: Experiment, method: str, seeds: Sequence[int], model_seed: int, make, hooks: dict | None = None):
    """Return the agent that acts by a method of METHODS; see `run_rollouts`."""
    fitted = [store.load_or_fit(fit)[0] for fit in fits(exp, method, model_seed)]
    if method in BY_TRANSFORMER:
        return transformer_agent(exp, method, hooks)
    if method in ("bc", "bc10"):
        return FunctionAgent(lambda states, rows: fitted[0].act(states))
    if method == "behaviour":
        return FunctionAgent(behaviour(exp, seeds))
    if method in BY_ENSEMBLE:
        space = make().action_space
        planned = (*fitted, exp.plan, space.low, space.high)
        config = experiments.CEM.get(method)
        return cross_entropy.CrossEntropy(config, *planned) if config else shooting.RandomShooting(*planned)
    raise ValueError(f"unknown method {method!r}; expected one of {METHODS}")


def memory_needed(exp: Experiment, method: str, environments: int) -> str:
    """Return a sentence about the memory that a plan needs, and the way out."""
    model, plan = exp.model, exp.plan
    beams = plan.beam_width * plan.expansions if method == "tto" and plan else max(1, exp.width)
    horizon = exp.planned if method == "tto" and plan else max(1, exp.horizon)
    tokens = (exp.context + horizon) * model.transition.D
    size = 2 * model.n_layer * model.d_model * tokens * 4 * beams * environments / 1e6
    return (
        f"out of memory with {beams} beams x {environments} environments: the keys and values of {tokens} tokens take "
        f"about {size:.4g} MB, attention a few times that; plan with fewer beams or a shorter horizon, or run fewer "
        "environments at once"
    )


def transformer_agent(
    exp: Experiment, method: str, hooks: dict | None = None, loaded: Checkpoint | None = None
) -> control.TransformerAgent:
    """Return the experiment's model acting by a method of BY_TRANSFORMER; loaded: another model than the store's."""
    loaded = loaded or store.load_or_train(exp)
    reader = decoder_for(loaded.model)
    if method == "tto":
        likeliest = {"propose": released.LikeliestBins(exp.likeliest)} if exp.likeliest else {}
        by_reward = released.ByRewardSliding if exp.plan_window else control.ByReward
        choose = by_reward(exp.plan, **likeliest | (hooks or {}))
        reader = released.sliding(reader, exp.plan_window) if exp.plan_window else reader
    elif method == "sampling":
        choose = agents.BySampling()
    else:
        choose = control.ByLikelihood(exp.horizon, exp.width)
    return control.TransformerAgent(loaded.model, loaded.tokenizer, choose, exp.context, decoder=reader)


def simulator(config: DataConfig, size: str) -> gymnasium.Env:
    """Return the task that a dataset is of, with the physics it was recorded under; smoke episodes are cut short."""
    env = tasks.make(config.task, "d4rl" if config.official else config.physics)
    return gymnasium.wrappers.TimeLimit(env, 20) if size == "smoke" else env


def fits(exp: Experiment, method: str, model_seed: int = 0) -> list[Fit]:
    """Return the fitted baselines that a method needs, which know the experiment's data."""
    if method in ("bc", "bc10"):
        return [experiments.baseline(method, exp.data, exp.size, seed=model_seed)]
    if method in BY_ENSEMBLE:
        values = experiments.baseline("values", exp.data, exp.size, gamma=exp.plan.gamma)
        return [experiments.baseline("dynamics", exp.data, exp.size), values]
    return []


def behaviour(exp: Experiment, seeds: Sequence[int]) -> Callable:
    """Return the data's behaviour policies: the seed of a rollout says by which snapshot it acts.

    -> a function (states (E, N), rows (E,)) -> actions (E, M).  Each rollout has random numbers from its own seed.
    """
    snapshots = regenerated.recipe(exp.data.task, exp.data.quality).snapshots
    acts = [policies.policy(exp.data.task, snapshots[seed % len(snapshots)]) for seed in seeds]
    rngs = [np.random.default_rng([exp.data.seed, seed]) for seed in seeds]
    return lambda states, rows: np.concatenate(
        [acts[row](state[None], rngs[row]) for row, state in zip(rows, states, strict=True)]
    )


# -- rows --------------------------------------------------------------------------------------------------

DECISIONS = 25  # of each rollout that are recorded, so that another machine can check them
EVERY = 5  # steps between two values of plans that are kept
MEASURED = (
    "rollout_seed", "return", "score", "length", "fell", "diverged", "log_density", "actions",
     "values", "spreads", "promised", "achieved",
)  # fmt: skip


def measured(run: stepping.Rollout, exp: Experiment, method: str, log_density: np.ndarray | None = None) -> dict:
    """Return the columns MEASURED of a rollout.

    log_density: the mean of the actions taken, in nats; promised, achieved: as `promises`, as JSON.
    """
    promised = promises(run, exp, method)
    return {
        "rollout_seed": run.seed, "return": run.total, "score": tasks.score(exp.data.task, run.total),
        "length": len(run.rewards), "fell": run.terminal, "diverged": run.diverged,
        "log_density": np.nan if log_density is None else log_density.mean(),
        **decisions(run),
        "promised": _as_json(promised[0]), "achieved": _as_json(promised[1]),
    }  # fmt: skip


def decisions(run: stepping.Rollout) -> dict[str, str]:
    """Return the first DECISIONS decisions of a rollout, as JSON.

    actions: their bins, or where there are no bins the actions; values: of the chosen plans (log-probabilities where
    nothing else was maximised); spreads: the standard deviations of the candidates' values.
    """
    actions, values = run.record.get("bins", run.actions), run.record.get("value", run.record.get("log_p", []))
    lists = {"actions": actions, "values": values, "spreads": run.record.get("spread", [])}
    return {name: _as_json(numbers[:DECISIONS]) for name, numbers in lists.items()}


def _as_json(numbers: Iterable) -> str:
    """Return numbers, or rows of them, as JSON; floats have eight digits."""
    array = np.array(numbers)
    if array.dtype.kind == "f":
        array = np.char.mod("%.8g", array).astype(float)
    return json.dumps(array.tolist(), separators=(",", ":"))


def promises(run: stepping.Rollout, exp: Experiment, method: str = "tto") -> tuple[np.ndarray, np.ndarray]:
    """Return the value that each plan promised and the discounted return that followed, for every fifth step.

    A fall counts what the model was told that it costs.  Where the time limit ended the episode, its last
    UNKNOWN_STEPS steps are left out: the return that would have followed is not known there.  Both are empty for a
    rollout without plans.
    """
    rewards = np.array(run.rewards)
    if run.terminal and exp.bins.terminal_reward is not None and method == "tto":
        rewards[-1] = exp.bins.terminal_reward
    achieved = data.reward_to_go(rewards, np.array([0, len(rewards)]), exp.bins.gamma)
    known = len(rewards) - (0 if run.terminal else UNKNOWN_STEPS if exp.size != "smoke" else 4)
    promised = np.array(run.record.get("value", []), float)[: max(known, 0) : EVERY]
    return promised, achieved[: len(promised) * EVERY : EVERY]


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

    def __str__(self) -> str:
        model = self.exp.label if self.transformer else f"{self.exp.name} {self.model_seed}"
        return f"{model}, {self.method}, {self.setting}"

    @property
    def transformer(self) -> bool:
        return self.method in BY_TRANSFORMER

    @property
    def models(self) -> list[Experiment]:
        """The experiments whose models it needs."""
        return [self.exp] * self.transformer + [self.scorer] * (self.scorer is not None)

    @property
    def fits(self) -> list[Fit]:
        """The fitted baselines that it needs."""
        return fits(self.exp, self.method, self.model_seed)

    @property
    def profile(self) -> str:
        return self.exp.profile if self.transformer else "any"

    @property
    def sequences(self) -> int:
        """The number of action sequences that a decision through the ensemble tries."""
        cem = experiments.CEM.get(self.method)
        return cem.iterations * cem.sequences if cem else self.exp.plan.beam_width * self.exp.plan.expansions

    @property
    def hooks(self) -> dict:
        """The hooks of `search.maximise` that differ from its own."""
        given = {"propose": self.propose, "read": self.read}
        return {name: hook for name, hook in given.items() if hook is not None}

    def recipe(self) -> tuple[str, dict]:
        """Return name and config of the table of its rollouts."""
        known = self.exp if self.transformer else [self.exp.data, self.exp.size]
        if self.method in BY_ENSEMBLE:
            known = [*known, replace(self.exp.plan, drop_probability=0.0)]  # it filters nothing
        if self.method in experiments.CEM:
            known = [*known, experiments.CEM[self.method]]
        config = {"of": known, "method": self.method, "seeds": self.seeds, "model_seed": self.model_seed}
        config |= {name: [type(hook).__name__, hook] for name, hook in self.hooks.items()}
        return "-".join(("rollouts", self.exp.data.name, self.method, self.profile)), config

    def inputs(self) -> dict[str, str]:
        """Return the keys of the models' weights and the baselines' recipes, or else of the data, behind it."""
        fitted = {fit.label: store.fit_key(fit) for fit in self.fits}
        return store.inputs(self.models) | fitted or store.inputs([self.exp.data])

    def file(self) -> Path | None:
        """Return where its rollouts are kept; None while a model is missing, whose weights are in the file's name."""
        if any(store.checkpoint_folder(exp) is None for exp in self.models):
            return None
        name, config = self.recipe()
        return results.table_file(name, self.exp.size, config, self.inputs(), ROLLOUT_STAGE)

    @property
    def key(self) -> str | None:
        """The key of its rollouts: of its settings, its models' weights, and the stage of the code."""
        return (path := self.file()) and path.stem[-16:]

    def begin(self, seeds: Sequence[int]) -> tuple[Callable, object, None]:
        """Return how its environments are made, its agent, and the options of their resets."""

        def make() -> gymnasium.Env:
            return simulator(self.exp.data, self.exp.size)

        return make, agent(self.exp, self.method, seeds, self.model_seed, make, self.hooks), None

    def made(self) -> pd.DataFrame:
        """Return the columns MEASURED of its rollouts, which are kept, so a killed run loses at most one set."""

        def make() -> pd.DataFrame:
            runs = run_rollouts(self.exp, self.method, self.seeds, self.model_seed, hooks=self.hooks)
            densities = action_log_density(self.scorer, runs) if self.scorer else [None] * len(runs)
            pairs = zip(runs, densities, strict=True)
            return pd.DataFrame([measured(run, self.exp, self.method, density) for run, density in pairs])

        name, config = self.recipe()
        return results.table(name, self.exp.size, make, config, self.inputs(), ROLLOUT_STAGE, public=False)

    def settings(self) -> dict:
        """Return the columns that say how it acts; NaN where one does not apply."""
        plan, planned = self.exp.plan, self.method == "tto"
        shot = self.method in BY_ENSEMBLE
        return {
            "variant": self.variant,
            "context": self.exp.context if self.transformer else np.nan,
            "horizon": plan.horizon if planned or shot else self.exp.horizon if self.transformer else np.nan,
            "beam_width": plan.beam_width if planned else self.exp.width if self.method == "imitation" else np.nan,
            "expansions": plan.expansions if planned else np.nan,
            "sequences": self.sequences if shot else np.nan,
            "noise": getattr(self.read, "noise", 0.0) if planned else np.nan,
        }

    def about(self) -> dict:
        """Return what is known of how its rollouts were made here; nothing where they were recorded elsewhere."""
        path = self.file().with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else {}

    def found_in(self, recorded: pd.DataFrame | None) -> pd.DataFrame:
        """Return the rows of its key in what `recorded` returned; none where nothing may be taken."""
        return pd.DataFrame() if recorded is None else recorded[recorded.key == self.key]

    def rows(self, recorded: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return its rows of `table1_rollouts.csv`: those of its key that are recorded, or else made.

        demonstrator: the mean return of the dataset's episodes; planner: which code read the Transformer.
        """
        rows = self.found_in(recorded)
        if not len(rows):
            rows, demonstrator = self.made(), store.dataset(self.exp.data).returns.mean()
            planner = self.about().get("planner", "torch") if self.transformer else "none"
            rows = rows.assign(demonstrator=demonstrator, planner=planner)
        labels = {"dataset": self.exp.data.name, "source": self.exp.data.source, "method": self.method_shown,
                  "profile": self.profile, "setting": self.setting, "model_seed": self.model_seed}  # fmt: skip
        return rows[["demonstrator", "planner", *MEASURED]].assign(**labels, **self.settings(), key=self.key)

    @property
    def method_shown(self) -> str:
        """The method as tables name it: all that the Transformer does is "tto"."""
        return "tto" if self.transformer else self.method


def planning(exp: Experiment, setting: str = "", **options) -> RolloutSet:
    """Return the rollouts of planning for reward."""
    plan = exp.plan
    label = setting or f"horizon {plan.horizon}, beam width {plan.beam_width}, {plan.expansions} expansions"
    return RolloutSet(exp, "tto", label, exp.seeds, exp.train.seed, **options)


def cloning(exp: Experiment, method: str, setting: str) -> list[RolloutSet]:
    """Return the rollouts of behaviour cloning, one set for each model seed."""
    return [RolloutSet(exp, method, setting, e.seeds, e.train.seed) for e in experiments.models(exp)]


def recorded(name: str, size: str) -> pd.DataFrame | None:
    """Return the rows of an earlier record of this name, of whatever key; None where none may be taken."""
    if not results.takes_records(size):
        return None
    try:
        found, about = results.read(places.records(size) / f"{name}.csv")
    except (FileNotFoundError, ValueError):
        return None
    return found if about["stage"] == ROLLOUT_STAGE else None


def table(name: str, size: str, sets: list[RolloutSet]) -> pd.DataFrame:
    """Return a record of rollouts, one row each: only sets whose key is not in the record are made."""

    def make() -> pd.DataFrame:
        known = recorded(name, size)
        table = pd.concat([each.rows(known) for each in tqdm(sets, desc=name, unit="setting")], ignore_index=True)
        table.attrs["seconds"] = sum(each.about().get("wall_seconds", 0.0) for each in sets)
        return table

    return store.table(name, size, make, sets, stage=ROLLOUT_STAGE, record=True)
