"""python -m ttlib.commands.gpu_check: try both profiles of size paper on a GPU for a few minutes before hours of it.

Each profile trains for 200 updates on a small dataset of hopper, which gives the hours of a whole training, and then
decides 25 times with an eighth of its plans, on the GPU and on the CPU.  The two must agree: the same action, or
another of equal value where numbers are rounded differently.  The exit status is 1 where they do not, and 0 without a
GPU.
"""

import copy
import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ttlib import train
from ttlib.checkpoint import Checkpoint
from ttlib.control import Streams
from ttlib.model import GPT
from ttlib.pipeline import cpu_training, experiments, rollouts, store
from ttlib.pipeline.experiments import Experiment
from ttlib.studies.spot_check import NEAR, ROUNDING

NAME, UPDATES, DECISIONS, SHARE_OF_PLANS = "hopper-medium-replay", 200, 25, 8


class AlikeEverywhere(Streams):
    """Random numbers that are drawn on the CPU, so that they are the same on every device."""

    def __init__(self, seeds, device: torch.device):
        super().__init__(seeds)
        self.device = device

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uniform numbers, as `Streams` does, on the device."""
        return super().uniform(*shape, dtype=dtype).to(self.device)


def experiment(profile: str, updates: int = UPDATES, **training) -> Experiment:
    """Return a profile's experiment at size paper with little data, few updates and few plans."""
    exp = experiments.get(NAME, "paper", profile)
    data = replace(exp.data, steps=experiments.STEPS["smoke"])
    plan = replace(exp.plan, beam_width=exp.plan.beam_width // SHARE_OF_PLANS)
    return replace(exp, data=data, plan=plan, train=replace(exp.train, updates=updates, **training))


def trained(exp: Experiment, device: torch.device) -> tuple[Checkpoint, float]:
    """Return the experiment's model, which is not kept, and the tokens a second of the second half of its training."""
    training, _ = store.windows(exp)
    with torch.random.fork_rng():
        torch.manual_seed(exp.train.seed)
        model = GPT(exp.model).to(device)
    curve = train.fit(model, training, exp.train, attend=cpu_training.faster(model))
    half = curve[len(curve) // 2 :]
    updates = half[-1]["update"] - curve[len(curve) // 2 - 1]["update"]
    seconds = max(sum(row["seconds"] for row in half), 1e-2)  # the curve's resolution
    return Checkpoint(model, training.tokenizer, {}, {}), updates * exp.train.batch * training.length / seconds


def decisions(exp: Experiment, loaded: Checkpoint, device: str, states: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a model records of its decisions in states (E, N) on a device: bins (E, M), value and spread (E,)."""
    there = replace(loaded, model=copy.deepcopy(loaded.model).to(device), tokenizer=loaded.tokenizer.to(device))
    agent = rollouts.transformer_agent(exp, "tto", loaded=there)
    agent.reset(range(len(states)))
    agent.streams = AlikeEverywhere(range(len(states)), agent.device)
    return agent.act(states)[1]


def agree(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> tuple[int, int]:
    """Return how many decisions are equal, and how many more have another action of equal value."""
    same = (one["bins"] == other["bins"]).all(1)
    near = np.maximum(NEAR * one["spread"], ROUNDING * np.abs(one["value"]))
    worth = np.abs(one["value"] - other["value"]) <= near
    return int(same.sum()), int((~same & worth).sum())


def check(profile: str, device: torch.device, updates: int = UPDATES, count: int = DECISIONS, **training) -> bool:
    """Try a profile on a device; print two sentences -> whether its decisions agree with those of the CPU."""
    exp, whole = experiment(profile, updates, **training), experiments.get(NAME, "paper", profile)
    loaded, rate = trained(exp, device)
    hours = whole.train.updates * whole.train.batch * whole.model.max_tokens / rate / 3600
    print(f"{profile}: {rate:,.0f} tokens a second in {updates} updates: {hours:.1f} hours for {whole.label}")
    states = store.dataset(exp.data).states
    states = states[np.linspace(0, len(states) - 1, count).astype(int)]
    same, near = agree(*(decisions(exp, loaded, where, states) for where in ("cpu", device)))
    print(f"{profile}: {same} of {count} decisions are equal to the CPU's, and {near} more have equal value")
    return same + near == count


def main() -> int:
    """Check both profiles -> the exit status."""
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use, so nothing is checked.")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    agreed = {profile: check(profile, store.device()) for profile in experiments.PROFILES}
    return int(not all(agreed.values()))


if __name__ == "__main__":
    sys.exit(main())
