"""Train a model: optimisers, schedule, a loop that can be resumed, evaluation."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ttlib import cpu
from ttlib.data import Windows
from ttlib.model import GPT, Attend, token_nats

CHUNK_TOKENS = 4096  # tokens of a batch that a CPU reads at a time


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; by default as in Section 3.1 and Appendix A."""

    updates: int
    batch: int = 64
    optimiser: str = "adam"  # adam, adamw, muon (for matrices inside blocks)
    lr: float = 2.5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 0.0  # the largest norm of the gradient; 0: it is never clipped
    warmup: int = 2000
    final_lr: float = 0.0  # where the cosine ends, as a fraction of lr
    seed: int = 0
    dtype: str = "fast"  # what `cpu.fast_dtype` measures; float32; bfloat16

    def __post_init__(self):
        known = {"optimiser": ("adam", "adamw", "muon")}
        known["dtype"] = ("fast", "float32", "bfloat16")
        for name, names in known.items():
            if (value := getattr(self, name)) not in names:
                raise ValueError(f"{name} {value!r}; expected one of {names}")
        if min(self.updates, self.batch) < 1 or not 0 < self.lr < math.inf:
            found = f"updates={self.updates}, batch={self.batch}, lr={self.lr}"
            raise ValueError(f"{found}; expected at least 1 of each, and lr > 0")

    def lr_at(self, update: int) -> float:
        """Return the learning rate as a fraction of lr: a linear rise, over at most
        5% of updates, then a cosine (Radford et al. 2018)."""
        warmup = min(self.warmup, math.ceil(0.05 * self.updates))
        if update < warmup:
            return (update + 1) / warmup
        done = (update - warmup) / max(1, self.updates - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return self.final_lr + (1 - self.final_lr) * cosine


def optimisers(
    model: GPT, config: TrainConfig, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Return the optimisers.  Weight decay falls on matrices of linear layers only,
    as in the authors' code; without it AdamW is Adam."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if p.ndim == 2 and name.startswith("blocks")]
    decayed = inner if config.optimiser == "muon" else [model.head.weight, *inner]
    rest = [p for _, p in named if not any(p is q for q in decayed)]
    adam = dict(lr=config.lr, betas=config.betas, fused=True)
    groups = [{"params": rest, "weight_decay": 0.0}]
    if config.optimiser == "muon":
        muon = cpu.Muon(decayed, config.lr, config.weight_decay, dtype)
        return [muon, torch.optim.AdamW(groups, **adam)]
    decay = config.weight_decay if config.optimiser == "adamw" else 0.0
    groups.insert(0, {"params": decayed, "weight_decay": decay})
    return [torch.optim.AdamW(groups, **adam)]


def step(
    model: GPT, optimisers: list, batch: tuple[Tensor, Tensor], config: TrainConfig,
    update: int, dtype: torch.dtype, attend: Attend | None = None,
) -> Tensor:  # fmt: skip
    """Make update number `update` on ids and weights, (B, L) each -> its loss."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = config.lr * config.lr_at(update)
    ids, weight = batch
    # A CPU reads a batch in parts that fit its caches.  Their gradients add up.
    on_cpu = ids.device.type == "cpu"
    rows = max(1, CHUNK_TOKENS // ids.shape[1]) if on_cpu else len(ids)
    total, loss = weight[:, 1:].sum(), torch.zeros((), device=ids.device)
    for part, part_weight in zip(ids.split(rows), weight.split(rows), strict=True):
        with torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
            nats = token_nats(model, part, attend)
        part_loss = (nats * part_weight[:, 1:]).sum() / total
        part_loss.backward()
        loss += part_loss.detach()
    if config.clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return loss


def _stream(*numbers: int) -> int:
    """Return a seed whose stream does not overlap with those of other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def batches(count: int, config: TrainConfig, update: int) -> Iterator[Tensor]:
    """Return the windows of update `update` and of those after it, (B,) each.

    An epoch is all `count` windows once, in an order that the seed decides.
    """
    per_epoch = max(1, count // config.batch)
    epoch, at = divmod(update, per_epoch)
    while True:
        rng = torch.Generator().manual_seed(_stream(config.seed, 0, epoch))
        rows = torch.randperm(count, generator=rng).split(config.batch)
        yield from rows[at:per_epoch]
        epoch, at = epoch + 1, 0


def begin(model: GPT, config: TrainConfig) -> tuple[str, list, int, list[dict]]:
    """Return number format, optimisers, updates done and curve of a new run."""
    dtype, device = config.dtype, next(model.parameters()).device
    if dtype == "fast":
        dtype = str(cpu.fast_dtype(device)).removeprefix("torch.")
    return dtype, optimisers(model, config, getattr(torch, dtype)), 0, []


def fit(
    model: GPT, windows: Windows, config: TrainConfig,
    held_out: Windows | None = None, saved=None, stop_at: int | None = None,
    attend: Attend | None = None,
) -> list[dict]:  # fmt: skip
    """Train in place -> the curve: rows of update, dtype, seconds, loss, held_out.

    Losses are in nats per token.  The windows and the dropout of an update depend
    only on the seed and its number, so a run whose state is `saved`, such as
    `pipeline.resume`, continues to the same weights after a kill.  `attend`
    replaces attention.  Raises FloatingPointError on a loss that is not finite.
    """
    device = next(model.parameters()).device
    windows = windows.to(device)
    state = saved.resume(model, config, windows) if saved else begin(model, config)
    dtype, optimisers_, update, curve = state
    every = max(1, config.updates // 100)  # updates per row of the curve
    last = -(-(stop_at or config.updates) // every) * every  # rows are whole
    bar = tqdm(total=config.updates, initial=update, desc=f"train, {dtype}",
               unit="update", mininterval=2.0)  # fmt: skip
    order = batches(len(windows), config, update)
    seen, began = 0.0, time.monotonic()
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while update < min(config.updates, last):
            torch.manual_seed(_stream(config.seed, 1, update))
            batch = windows.batch(next(order).to(device))
            how = (config, update, getattr(torch, dtype), attend)
            seen += step(model, optimisers_, batch, *how)
            update += 1
            bar.update()
            if update % every and update < config.updates:
                continue
            row = {"update": update, "dtype": dtype}
            row["loss"] = float(seen) / ((update - 1) % every + 1)
            row["seconds"] = round(time.monotonic() - began, 2)
            if not math.isfinite(row["loss"]):
                why = f"the loss is {row['loss']} at update {update}"
                raise FloatingPointError(f"{why}: lower lr={config.lr}")
            tenth = update % (10 * every) == 0 or update == config.updates
            if held_out is not None and tenth:
                row["held_out"] = evaluate(model, held_out)
            curve.append(row)
            bar.set_postfix_str(f"{row['loss']:.3f} nats per token")
            seen, began = 0.0, time.monotonic()
            if saved:
                saved.write(model, optimisers_, update, curve, dtype)
    bar.close()
    model.eval()
    return curve


def evaluate(model: GPT, windows: Windows, count: int = 512, seed=0) -> float:
    """Return nats per token, unweighted, over `count` windows drawn with a seed."""
    nats = [x for x, tokens in by_dimension(model, windows, count, seed) if tokens]
    return sum(nats) / len(nats)


@torch.inference_mode()
def by_dimension(
    model: GPT, windows: Windows, count: int = 512, seed: int = 0
) -> list[tuple[float, int]]:
    """Return (nats per token, tokens) of each of the D dimensions of a step.

    Nats are NaN for a dimension that is never predicted.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    rng = torch.Generator().manual_seed(seed)
    start = torch.randperm(len(windows), generator=rng)[:count].to(device)
    total, tokens = torch.zeros(2, model.config.transition.D, device=device)
    for part in start.split(64):
        ids, weight = windows.to(device).batch(part)
        dim, scored = ids[:, 1:] // model.config.V, weight[:, 1:] > 0
        total.index_add_(0, dim[scored], token_nats(model, ids)[scored])
        tokens += torch.bincount(dim[scored], minlength=len(tokens))
    model.train(training)
    return list(zip((total / tokens).tolist(), tokens.int().tolist(), strict=True))
