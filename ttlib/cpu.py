"""Number formats that suit the machine, and an optimiser that uses them."""

import math
import time

import torch
from torch import Tensor


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where this machine multiplies matrices 1.5 times faster with it.

    Else fp32: many processors have no bf16 instructions and are 60 times slower
    with it.  On a CPU this takes a few milliseconds of measurement.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for dtype in 10 * list(seconds):
        x, w = torch.ones(256, 128, dtype=dtype), torch.ones(128, 512, dtype=dtype)
        start = time.perf_counter()
        x @ w
        seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    fast = seconds[torch.float32] > 1.5 * seconds[torch.bfloat16]
    return torch.bfloat16 if fast else torch.float32


class Muon(torch.optim.Optimizer):
    """Make the momentum of each matrix orthogonal (Jordan et al. 2024).

    It takes the steps of torch.optim.Muon with adjust_lr_fn="match_rms_adamw", but
    stacks matrices of equal shape and computes in `dtype`, where torch takes bf16.
    """

    def __init__(self, params, lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            stacks = {}
            for p in group["params"]:
                state = self.state[p]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 0.05)
                update = p.grad.lerp(buffer, 0.95)  # Nesterov's momentum
                stacks.setdefault(tuple(sorted(p.shape)), []).append((p, update))
            for shape, stack in stacks.items():
                wide = [u if u.shape == shape else u.mT for _, u in stack]
                directions = orthogonal(torch.stack(wide).to(self.dtype))
                for (p, u), direction in zip(stack, directions):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    direction = direction if u.shape == shape else direction.mT
                    size = 0.2 * math.sqrt(shape[1])  # as an update of AdamW
                    p.add_(direction, alpha=-group["lr"] * size)


def orthogonal(x: Tensor) -> Tensor:
    """Bring singular values near 1 by Newton-Schulz.  (n, a, b), a <= b -> same"""
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x
