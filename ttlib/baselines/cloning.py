"""Regression by an MLP with two hidden layers of 256 units: behaviour cloning, and the values that shooting uses."""

import copy

import numpy as np
import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """A network from inputs (B, n) to actions (B, M) in [-1, 1], or to any targets (B, M) if it is not bounded.

    mean, std: (n,) each; inputs are standardised with them.
    """

    def __init__(self, mean: Tensor, std: Tensor, M: int, bounded: bool = True):
        super().__init__()
        self.bounded = bounded
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.net = nn.Sequential(
            nn.Linear(len(mean), 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, M)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return actions or targets (B, M) for inputs (B, n)."""
        outputs = self.net((x - self.mean) / self.std)
        return outputs.tanh() if self.bounded else outputs

    @torch.inference_mode()
    def act(self, inputs: np.ndarray) -> np.ndarray:
        """Return actions or targets (B, M) float32 for inputs (B, n), as arrays."""
        return self(torch.as_tensor(inputs, dtype=torch.float32)).numpy()


def fit(
    inputs: np.ndarray,
    actions: np.ndarray,
    held_inputs: np.ndarray,
    held_actions: np.ndarray,
    seed: int,
    updates: int = 20_000,
    batch: int = 256,
    patience: int = 10,
    bounded: bool = True,
) -> tuple[MLP, list[float]]:
    """Fit an MLP to actions by least squares and Adam, and stop early on held-out data.

    inputs (n, k), actions (n, M), or other targets if the MLP is not bounded.  The held-out error is checked every 500
    updates (after the last one, if there are fewer).  Fitting stops when it has not fallen for `patience` checks.
    Returns the network of least held-out error, and the held-out errors (mean squares).  The result is determined by
    `seed`.  Raises ValueError for data that are not finite, and FloatingPointError if no held-out error is finite.
    """
    arrays = {"inputs": inputs, "actions": actions, "held_inputs": held_inputs, "held_actions": held_actions}
    x, y, held_x, held_y = (_finite(name, array) for name, array in arrays.items())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = MLP(x.mean(0), x.std(0).clamp(min=1e-3), y.shape[1], bounded)
        errors, best_state = _train(policy, (x, y), (held_x, held_y), updates, batch, patience)
    if not np.isfinite(min(errors)):
        raise FloatingPointError(f"held-out errors {errors}; expected finite numbers: scale the targets to about 1")
    policy.load_state_dict(best_state)
    return policy.eval(), errors


def _finite(name: str, array: np.ndarray) -> Tensor:
    """Return an array as float32.  Raise ValueError with its name if it is not finite."""
    x = torch.as_tensor(array, dtype=torch.float32)
    if count := (~x.isfinite()).sum().item():
        raise ValueError(f"{name} holds {count} numbers that are not finite in float32: repair or remove those rows")
    return x


def _train(
    policy: MLP,
    training: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    updates: int,
    batch: int,
    patience: int,
) -> tuple[list[float], dict]:
    """Train the network in place.  Return its held-out errors and its weights at the least of them."""
    optimiser = torch.optim.Adam(policy.parameters(), lr=1e-3)
    errors, best_state, check = [], None, min(500, updates)
    for update in range(1, updates + 1):
        _step(policy, optimiser, *training, batch)
        if update % check:
            continue
        with torch.inference_mode():
            errors.append((policy(held_out[0]) - held_out[1]).square().mean().item())
        if errors[-1] == min(errors):
            best_state = copy.deepcopy(policy.state_dict())
        if len(errors) - 1 - int(np.argmin(errors)) >= patience:
            break
    return errors, best_state


def _step(policy: MLP, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, batch: int) -> None:
    """Take one step on the mean squared error of a random batch."""
    rows = torch.randint(len(x), (batch,))
    optimiser.zero_grad()
    (policy(x[rows]) - y[rows]).square().mean().backward()
    optimiser.step()
