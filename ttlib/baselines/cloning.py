"""Regression by an MLP of 2 x 256, early stopped on held-out episodes: behaviour cloning, and values for shooting."""

import copy

import numpy as np
import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Inputs (B, n) -> actions (B, M) in [-1, 1], or any targets (B, M) if not bounded; inputs are standardised
    inside."""

    def __init__(self, inputs: Tensor, M: int, bounded: bool = True):
        super().__init__()
        n, self.bounded = inputs.shape[1], bounded
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("std", inputs.std(0).clamp(min=1e-3))
        self.net = nn.Sequential(nn.Linear(n, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, M))

    def forward(self, x: Tensor) -> Tensor:
        found = self.net((x - self.mean) / self.std)
        return found.tanh() if self.bounded else found

    @torch.inference_mode()
    def act(self, inputs: np.ndarray) -> np.ndarray:
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
    """Least squares on actions (other targets where not bounded) by Adam; stops when the held-out error has not
    fallen for `patience` checks of at most 500 updates, and returns the best network and its held-out errors."""
    x, y, held_x, held_y = (
        torch.as_tensor(a, dtype=torch.float32) for a in (inputs, actions, held_inputs, held_actions)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = MLP(x, y.shape[1], bounded)
        optimiser = torch.optim.Adam(policy.parameters(), lr=1e-3)
        errors, best, check = [], None, min(500, updates)
        for update in range(1, updates + 1):
            rows = torch.randint(len(x), (batch,))
            optimiser.zero_grad()
            (policy(x[rows]) - y[rows]).square().mean().backward()
            optimiser.step()
            if update % check == 0:
                with torch.inference_mode():
                    errors.append((policy(held_x) - held_y).square().mean().item())
                if errors[-1] == min(errors):
                    best = copy.deepcopy(policy.state_dict())
                if len(errors) - 1 - int(np.argmin(errors)) >= patience:
                    break
    policy.load_state_dict(best)
    return policy.eval(), errors
