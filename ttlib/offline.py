"""Figure 4, Table 1, imitation and ablations: every number from rollouts, every rollout kept step by step."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ttlib import control, envs, experiments, results, stages, train
from ttlib.experiments import PROFILES, Experiment


@dataclass(frozen=True)
class Run:
    """Rollouts of one method with one setting.  scorer: the model whose density of the chosen actions is wanted."""

    exp: Experiment
    method: str  # of `stages.act`
    setting: str
    seeds: tuple[int, ...]
    model_seed: int = 0
    scorer: Experiment | None = None

    @property
    def transformer(self) -> bool:
        return self.method in stages.BY_TRANSFORMER

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
            runs = stages.act(self.exp, self.method, self.seeds, self.model_seed)
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
        if any(stages.checkpoint_folder(exp) is None for exp in self.models):
            return None
        name, config = self.recipe()
        return results.table_file(name, self.exp.size, config, keys([self]))

    def inputs(self) -> dict[str, str]:
        return {e.label: stages.weights_key(e) for e in self.models} or {"data": stages.data_key(self.exp.data)}

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
        rows = stages.rollout_rows(self.rollouts(), self.exp, method, self.setting, self.model_seed)
        return [row | {"profile": self.profile} for row in rows]

    def rows(self) -> list[dict]:
        """Rows of `table1_rollouts.csv`; demonstrator: the mean return of the dataset's episodes."""
        demonstrator = stages.dataset(self.exp.data).returns.mean()
        return [row | {"demonstrator": demonstrator} for row in self.scores()]


def action_log_density(exp: Experiment, runs: list[control.Rollout]) -> list[np.ndarray]:
    """log p(a | s) of the actions taken, as densities in nats, by a model that sees the current state alone."""
    loaded = stages.load_or_train(exp)
    fitted, transition = loaded.tokenizer.to("cpu"), exp.model.transition
    width, found = fitted.width[transition.action].log(), []
    for run in runs:
        states, actions = (torch.as_tensor(np.array(x)) for x in (run.states[: len(run.actions)], run.actions))
        ids = torch.cat([fitted.encode(states, transition.state), fitted.encode(actions, transition.action)], 1)
        with torch.inference_mode():  # not around all of it: the model may have to be trained first
            parts = [train.token_nats(loaded.model, part.to(stages.device())) for part in ids.split(256)]
        bins = ids[:, transition.action] - fitted.offset[transition.action]
        widths = width.gather(1, bins.T).T
        found.append((-torch.cat(parts).cpu()[:, transition.N - 1 :] - widths).sum(1).numpy())
    return found


def planning(exp: Experiment, name: str = "", **options) -> Run:
    plan = exp.plan
    setting = name or f"horizon {plan.horizon}, {plan.plans} x {plan.candidates}"
    return Run(exp, "tto", setting, exp.seeds, exp.train.seed, **options)


def cloning(exp: Experiment, method: str, setting: str) -> list[Run]:
    return [Run(exp, method, setting, e.seeds, e.train.seed) for e in experiments.models(exp)]


def comparison(name: str, size: str) -> list[Run]:
    """All rollouts of one dataset of Table 1: the planner in both profiles and what it is compared with."""
    v1, released = (experiments.get(name, size, profile) for profile in ("v1", "released"))
    runs = []
    for ours, theirs in zip(experiments.models(released), experiments.models(v1)):
        runs += [planning(ours, scorer=theirs), planning(theirs, scorer=ours)]
    runs += cloning(v1, "bc", "MLP 2 x 256") + cloning(v1, "bc10", "MLP 2 x 256, best tenth of episodes")
    if not v1.data.official:
        many = tuple(range(2 if size == "smoke" else 12))
        runs.append(Run(v1, "behaviour", "the data's policies in turn", many))
    # The same horizon and as many transitions of the model as the planner.
    setting = f"horizon {released.plan.horizon}, {released.plan.plans * released.plan.candidates} sequences"
    runs.append(Run(released, "random_shooting", setting, v1.seeds, scorer=v1))
    return runs


def names(size: str, official: bool = False) -> list[str]:
    return [f"{name}-v2" if official else name for name in experiments.table1(size)]


def table(name: str, size: str, runs: list[Run]) -> pd.DataFrame:
    """A public table of rollouts, one row each; an estimate is printed first, and progress is shown."""

    def make() -> pd.DataFrame:
        print(f"Transformers' rollouts take {expected_minutes(runs):.0f} minutes here if no robot falls", flush=True)
        return pd.DataFrame([row for run in tqdm(runs, desc=name, unit="setting") for row in run.rows()])

    return results.table(name, size, make, {"runs": runs}, _inputs(runs))


def _inputs(runs: list[Run]) -> dict[str, str]:
    """`keys`, for which models that are missing are trained first."""
    for run in runs if results.mode() != "book" else []:
        for exp in run.models:
            if stages.checkpoint_folder(exp) is None:
                stages.load_or_train(exp)
    return keys(runs)


def keys(runs: list[Run]) -> dict[str, str]:
    """Of the weights that runs are computed from."""
    return {key: value for run in runs for key, value in run.inputs().items() if key != "data"}


def table1_runs(size: str, official: bool = False) -> list[Run]:
    return [run for name in names(size, official) for run in comparison(name, size)]


def table1(size: str, official: bool = False) -> pd.DataFrame:
    """`table1_rollouts.csv`."""
    return table("table1_rollouts", size, table1_runs(size, official))


def planners(size: str, official: bool = False) -> list[Run]:
    return [run for run in table1_runs(size, official) if run.scorer]


def values(size: str, official: bool = False) -> pd.DataFrame:
    """`planner_values.csv`: what plans promised and what followed, for the planner and for random shooting."""
    runs = planners(size, official)

    def make() -> pd.DataFrame:
        parts = [pd.DataFrame(stages.value_rows(run.rollouts(), run.exp, run.method)).assign(
            setting=run.setting, profile=run.profile, model_seed=run.model_seed) for run in runs]  # fmt: skip
        return pd.concat([part for part in parts if len(part)], ignore_index=True)

    return results.table("planner_values", size, make, {"runs": runs}, _inputs(runs))


def likelihoods(size: str, official: bool = False) -> pd.DataFrame:
    """`action_likelihood.csv`: mean log-density in nats of the actions taken, one row a rollout, under the model of
    the other profile, which did not plan them; `data`: of held-out episodes' own actions, under both."""
    runs = planners(size, official)

    def make() -> pd.DataFrame:
        rows = []
        for run in runs:
            for seed, steps in run.steps().groupby("rollout_seed"):
                rows.append({"dataset": run.exp.data.name, "method": run.method, "profile": run.profile, "setting":
                             run.setting, "scorer": run.scorer.profile, "model_seed": run.model_seed,
                             "rollout_seed": seed, "log_likelihood": steps.log_density.mean()})  # fmt: skip
        for name in names(size, official):
            for profile in PROFILES:
                rows.append(_held_out(experiments.get(name, size, profile)))
        return pd.DataFrame(rows)

    return results.table("action_likelihood", size, make, {"runs": runs}, _inputs(runs))


def _held_out(exp: Experiment, count: int = 5000) -> dict:
    held = stages.dataset(exp.data).split(exp.data.held_out, exp.data.seed)[1]
    rows = np.random.default_rng(0).permutation(len(held.states))[:count]
    data = control.Rollout(-1, states=list(held.states[rows]), actions=list(held.actions[rows]))
    found = action_log_density(exp, [data])[0].mean()
    return {"dataset": exp.data.name, "method": "data", "profile": "any", "setting": "held-out episodes", "scorer":
            exp.profile, "model_seed": exp.train.seed, "rollout_seed": -1, "log_likelihood": found}  # fmt: skip


def figure_4(size: str, rollouts: pd.DataFrame) -> pd.DataFrame:
    """`fig4_offline_rl.csv`: scores of ours and of others; low and high bound a 90% bootstrap interval over rollouts,
    stratified for the mean over all datasets."""

    def make() -> pd.DataFrame:
        rows = []
        for (method, profile), found in rollouts.groupby(["method", "profile"], sort=False):
            scores = {name: part.score.to_numpy() for name, part in found.groupby("dataset", sort=False)}
            for name, x in [*scores.items(), ("mean", None)]:
                low, high = results.bootstrap(*(scores.values() if x is None else [x]))
                means = np.array([part.mean() for part in scores.values()])
                n = sum(map(len, scores.values())) if x is None else len(x)
                std = x.std(ddof=1) if x is not None and n > 1 else np.nan
                rows.append({"dataset": name, "method": method, "profile": profile, "source": "ours",
                             "mean": means.mean() if x is None else x.mean(), "std": std, "stderr": std / n**0.5,
                             "low": low, "high": high, "n": n})  # fmt: skip
        published = pd.read_csv(results.ROOT / "data" / "published_table1.csv")
        for method, found in published.groupby("method", sort=False):
            for row in found.itertuples():
                rows.append({"dataset": row.dataset, "method": method, "profile": "published",
                             "source": row.source.split()[0], "mean": row.mean, "std": row.plus_minus})  # fmt: skip
            rows.append({"dataset": "mean", "method": method, "profile": "published",
                         "source": found.source.iloc[0].split()[0], "mean": found["mean"].mean()})  # fmt: skip
        return pd.DataFrame(rows)

    text = rollouts.to_csv(index=False, float_format="%.6g")
    return results.table("fig4_offline_rl", size, make, {"level": 0.9}, {"rollouts": results.key(text)})


LENGTHS = {0: "action alone", 1: "1 transition", 3: "3 transitions"}  # of a likelihood beam


def imitation_runs(size: str) -> list[Run]:
    runs = []
    for name in experiments.experts(size):
        exp = experiments.get(name, size)
        longest = exp.model.T - exp.past
        for horizon, setting in LENGTHS.items():
            if horizon <= longest:
                for e in experiments.models(exp):
                    runs.append(Run(replace(e, horizon=horizon), "imitation", setting, e.seeds, e.train.seed))
        runs += cloning(exp, "bc", "MLP 2 x 256")
        runs.append(Run(exp, "behaviour", "the expert", tuple(range(2 if size == "smoke" else 12))))
    return runs


def imitation(size: str) -> pd.DataFrame:
    """`imitation_rollouts.csv`: likelihood beams of several lengths on expert data, beside cloning and the expert."""
    return table("imitation_rollouts", size, imitation_runs(size))


def ablations_runs(size: str) -> list[Run]:
    """One change at a time to the released profile; of the search on hopper, of the bins on
    halfcheetah's medium-expert data, where the paper suspects coarse ones."""
    exp = experiments.get("hopper-medium-replay", size, "released")
    exp, plan = replace(exp, seeds=tuple(range(2 if size == "smoke" else 5))), exp.plan
    changes = {
        "main": {},
        "no reward-to-go": {"use_reward_to_go": False},
        "noise in R, 0.25 of its deviation": {"noise": 0.25},
        "noise in R, 1 of its deviation": {"noise": 1.0},
        "r and R drawn": {"lucky": True},
        "independent dimensions": {"chains": 8},
        "every action allowed": {"cdf": 0.0},
        **({} if plan.cdf == 0.6 else {"the authors' filter": {"cdf": 0.6}}),
        "horizon 1": {"horizon": 1},
        "a quarter of the plans": {"plans": max(1, plan.plans // 4)},
        "twice the plans": {"plans": plan.plans * 2},
    }
    runs = [planning(replace(exp, plan=replace(plan, **change)), name) for name, change in changes.items()]
    blind = replace(exp, past=0)  # which leaves the whole window for a plan
    longest = replace(blind, plan=replace(plan, horizon=exp.model.T))
    runs += [planning(blind, "no past"), planning(longest, f"no past, horizon {exp.model.T}")]
    v1, released = (experiments.get("halfcheetah-medium-expert", size, profile) for profile in PROFILES)
    runs.append(planning(released, "main", scorer=v1))  # with which these are rollouts of Table 1
    for name in experiments.BINS:
        runs.append(planning(experiments.get(name, size, "released"), " ".join(name.split("-")[-2:])))
    return runs


def ablations(size: str) -> pd.DataFrame:
    """`ablations_rollouts.csv`."""
    return table("ablations_rollouts", size, ablations_runs(size))


def expected_minutes(runs: list[Run]) -> float:
    """What the Transformers' rollouts take: one decision of each timed, for episodes of full length."""
    seconds = 0.0
    for run in (run for run in runs if run.transformer):
        env = stages.simulator(run.exp.data, run.exp.size)
        states = np.stack([env.reset(seed=seed)[0] for seed in run.seeds])
        agent = stages.transformer_agent(run.exp, run.method, run.seeds[0])
        start = time.perf_counter()
        agent.act(states)
        seconds += envs.MAX_STEPS * (time.perf_counter() - start)
    return seconds / 60
