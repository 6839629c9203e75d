"""Ablations: the planner with one change at a time."""

from dataclasses import replace

import pandas as pd

from ttlib.pipeline import experiments, rollouts


def ablations_runs(size: str) -> list[rollouts.RolloutSet]:
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
    runs = [rollouts.planning(replace(exp, plan=replace(plan, **change)), name) for name, change in changes.items()]
    blind = replace(exp, past=0)  # which leaves the whole window for a plan
    longest = replace(blind, plan=replace(plan, horizon=exp.model.T))
    runs += [rollouts.planning(blind, "no past"), rollouts.planning(longest, f"no past, horizon {exp.model.T}")]
    v1, released = (experiments.get("halfcheetah-medium-expert", size, profile) for profile in experiments.PROFILES)
    runs.append(rollouts.planning(released, "main", scorer=v1))  # with which these are rollouts of Table 1
    for name in experiments.BINS:
        runs.append(rollouts.planning(experiments.get(name, size, "released"), " ".join(name.split("-")[-2:])))
    return runs


def ablations(size: str) -> pd.DataFrame:
    """`ablations_rollouts.csv`."""
    return rollouts.table("ablations_rollouts", size, ablations_runs(size))
