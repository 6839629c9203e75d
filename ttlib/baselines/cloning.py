"""Regression by an MLP with two hidden layers of 256 units: behaviour cloning, and the values that shooting uses."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ttlib import data
from ttlib.data import Episodes

CHECK = 250  # updates between two checks on the held-out data


@dataclass(frozen=True)
class MLPConfig:
    """The targets of an MLP, actions or values of states of episodes, and how it is fitted."""

    updates: int
    lr: float  # of the first update; it falls to 0 as a cosine
    batch: int = 256
    share: float = 1.0  # of the episodes, those of greatest return
    goal: bool = False  # actions depend on the last state of the episode too
    gamma: float | None = None  # of values, which are discounted returns; None for actions
    seed: int = 0


class MLP(nn.Module):
    """A network from inputs (B, n) to actions (B, M) in [-1, 1], or to any targets (B, M) if it is not bounded.

    mean, std: (n,) each; inputs are standardised with them.  Targets that are not bounded have a scale, ().
    """

    def __init__(self, mean: Tensor, std: Tensor, M: int, bounded: bool = True):
        super().__init__()
        self.bounded = bounded
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("scale", torch.ones(()))
        self.net = nn.Sequential(
            nn.Linear(len(mean), 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, M)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return actions or targets (B, M) for inputs (B, n)."""
        outputs = self.net((x - self.mean) / self.std)
        return outputs.tanh() if self.bounded else self.scale * outputs

    @torch.inference_mode()
    def act(self, inputs: np.ndarray) -> np.ndarray:
        """Return actions or targets (B, M) float32 for inputs (B, n), as arrays."""
        return self(torch.as_tensor(inputs, dtype=torch.float32, device=self.mean.device)).cpu().numpy()


def fit(training: Episodes, held_out: Episodes, config: MLPConfig) -> tuple[MLP, list[float]]:
    """Fit an MLP to episodes; return it and its held-out errors, those of values in units of their variance."""
    (x, y), (held_x, held_y) = (examples(part, config) for part in (training, held_out))
    scale = 1.0 if config.gamma is None else y.std() + 1e-6
    made, errors = regress(x, y / scale, held_x, held_y / scale, config)
    made.scale.fill_(scale)
    return made, errors


def examples(episodes: Episodes, config: MLPConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (n, k) and targets (n, M) of the best episodes' steps."""
    episodes = best(episodes, config.share)
    if config.gamma is not None:
        return episodes.states, data.reward_to_go(episodes.rewards, episodes.starts, config.gamma)[:, None]
    goals = np.repeat(episodes.states[episodes.starts[1:] - 1], episodes.lengths, axis=0)
    return np.hstack([episodes.states, goals]) if config.goal else episodes.states, episodes.actions


def best(episodes: Episodes, share: float) -> Episodes:
    """Return the fraction of the episodes, at least one, of greatest return."""
    count = max(1, round(share * len(episodes)))
    return episodes.select(np.sort(np.argsort(-episodes.returns, kind="stable")[:count]))


@torch.random.fork_rng(devices=[])
def regress(
    inputs: np.ndarray, targets: np.ndarray, held_inputs: np.ndarray, held_targets: np.ndarray, config: MLPConfig
) -> tuple[MLP, list[float]]:
    """Fit an MLP to targets (n, M) of inputs (n, k) by least squares and Adam.

    The held-out error is checked every CHECK updates (after the last one, if there are fewer).  Returns the network of
    least held-out error, and the held-out errors (mean squares).  The result is determined by config.seed.
    Raises ValueError for data that are not finite, and FloatingPointError if no held-out error is finite.
    """
    arrays = {"inputs": inputs, "targets": targets, "held_inputs": held_inputs, "held_targets": held_targets}
    x, y, held_x, held_y = (_finite(name, array) for name, array in arrays.items())
    torch.manual_seed(config.seed)
    made = MLP(x.mean(0), x.std(0).clamp(min=1e-3), y.shape[1], bounded=config.gamma is None)
    optimiser = torch.optim.Adam(made.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.updates)  # down to 0
    errors, best_state = [], None
    for update in range(1, config.updates + 1):
        rows = torch.randint(len(x), (config.batch,))
        optimiser.zero_grad()
        (made(x[rows]) - y[rows]).square().mean().backward()
        optimiser.step()
        schedule.step()
        if update % min(CHECK, config.updates):
            continue
        with torch.inference_mode():
            errors.append((made(held_x) - held_y).square().mean().item())
        if errors[-1] == min(errors):
            best_state = copy.deepcopy(made.state_dict())
    if not np.isfinite(min(errors)):
        raise FloatingPointError(f"held-out errors {errors}; expected finite numbers: scale the targets to about 1")
    made.load_state_dict(best_state)
    return made.eval(), errors


def _finite(name: str, array: np.ndarray) -> Tensor:
    """Return an array as float32.  Raise ValueError with its name if it is not finite."""
    x = torch.as_tensor(array, dtype=torch.float32)
    if count := (~x.isfinite()).sum().item():
        raise ValueError(f"{name} holds {count} numbers that are not finite in float32: repair or remove those rows")
    return x
