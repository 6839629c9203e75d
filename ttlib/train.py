"""The loss of Section 3.1, the training loop, and checkpoints: config + weights + bin edges."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ttlib import files
from ttlib.data import Windows
from ttlib.model import GPT, Attend, ModelConfig


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the defaults are profile v1 (Section 3.1, Appendix A)."""

    updates: int
    batch: int = 64
    optimiser: str = "adam"  # adam, adamw, muon (Muon for the matrices inside blocks, AdamW for the rest)
    lr: float = 2.5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 0.0  # largest norm of the gradient; 0 = never clipped
    warmup: int = 2000
    final_lr: float = 0.0  # where the cosine ends, as a share of lr
    seed: int = 0

    def __post_init__(self):
        if self.optimiser not in ("adam", "adamw", "muon"):
            raise ValueError(f"optimiser {self.optimiser!r}; expected 'adam', 'adamw' or 'muon'")
        if self.updates < 1 or self.batch < 1:
            raise ValueError(f"updates={self.updates}, batch={self.batch}; expected at least 1 of each")

    def lr_at(self, update: int) -> float:
        """Linear warm-up, then cosine (Radford et al. 2018), as a share of lr; at most 5% of updates warm up."""
        warmup = min(self.warmup, math.ceil(0.05 * self.updates))
        if update < warmup:
            return (update + 1) / warmup
        cosine = 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, self.updates - warmup)))
        return self.final_lr + (1 - self.final_lr) * cosine


def loss(model: GPT, ids: Tensor, weight: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats a token (Section 3.1), each token with its weight.  (B, L) twice -> ()."""
    nats = token_nats(model, ids)
    return (nats * weight[:, 1:]).sum() / weight[:, 1:].sum()


def token_nats(model: GPT, ids: Tensor, attend: Attend | None = None) -> Tensor:
    """-log P(token | those before it).  (B, L) -> (B, L - 1): the first token of a window has no prediction."""
    bins = ids[:, 1:] % model.config.V
    logits = model(ids, attend)[:, :-1].float()  # the last token is read too: kernels like even lengths better
    return F.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none").view_as(bins)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), as torch.optim.Muon with adjust_lr_fn "match_rms_adamw".

    The momentum of each matrix is made orthogonal by five Newton-Schulz steps.  Matrices
    of equal shape are stacked and the steps are taken in `dtype`, the machine's fast type:
    torch's take bf16 everywhere, one matrix after the other.
    """

    def __init__(self, params, lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            stacks = {}
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 0.05)
                update = p.grad.lerp(buffer, 0.95)  # Nesterov
                stacks.setdefault(tuple(sorted(p.shape)), []).append((p, update))
            for shape, rows in stacks.items():
                wide = torch.stack([u if u.shape == shape else u.mT for _, u in rows])
                scale = 0.2 * math.sqrt(max(shape))
                for (p, u), direction in zip(rows, orthogonal(wide.to(self.dtype))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    direction = direction if u.shape == shape else direction.mT
                    p.add_(direction, alpha=-group["lr"] * scale)


def orthogonal(x: Tensor) -> Tensor:
    """Newton-Schulz: singular values of (n, a, b), a <= b, brought near 1.  Same shape."""
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x


def optimisers(model: GPT, config: TrainConfig, dtype: torch.dtype = torch.float32) -> list[torch.optim.Optimizer]:
    """Weight decay falls on matrices of linear layers only, as in the authors' code."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks")]
    ids = {id(p) for p in inner}
    decayed = [model.head.weight] + inner
    rest = [p for p in model.parameters() if not any(p is q for q in decayed)]
    adam = dict(lr=config.lr, betas=config.betas, fused=True)
    if config.optimiser == "adam":
        return [torch.optim.Adam(model.parameters(), **adam)]
    if config.optimiser == "adamw":
        groups = [dict(params=decayed, weight_decay=config.weight_decay), dict(params=rest, weight_decay=0.0)]
        return [torch.optim.AdamW(groups, **adam)]
    outer = [p for p in model.parameters() if id(p) not in ids]
    muon = Muon(inner, config.lr, config.weight_decay, dtype)
    return [muon, torch.optim.AdamW(outer, weight_decay=0.0, **adam)]


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where this machine multiplies matrices at least 1.5 times faster with it, else fp32: many processors
    have no bf16 instructions and are 60 times slower with it.  A few milliseconds of measurement."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for dtype in 10 * list(seconds):
        x, w = torch.ones(256, 128, dtype=dtype), torch.ones(128, 512, dtype=dtype)
        start = time.perf_counter()
        x @ w
        seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return torch.bfloat16 if seconds[torch.float32] > 1.5 * seconds[torch.bfloat16] else torch.float32


PART = 4096  # tokens


def step(
    model: GPT, optimisers_: list, batch: tuple[Tensor, Tensor], config: TrainConfig, update: int, dtype
) -> Tensor:
    """Update number `update` on ids and weights, (B, L) each -> its loss, without waiting for the device."""
    for optimiser in optimisers_:
        for group in optimiser.param_groups:
            group["lr"] = config.lr * config.lr_at(update)
    ids, weight = batch
    # On a CPU a batch is read in parts, whose activations fit its caches.  Their gradients add up.
    rows = max(1, PART // ids.shape[1]) if ids.device.type == "cpu" else len(ids)
    total, value = weight[:, 1:].sum(), torch.zeros((), device=ids.device)
    for ids_, weight_ in zip(ids.split(rows), weight.split(rows), strict=True):
        with torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
            part = (token_nats(model, ids_) * weight_[:, 1:]).sum() / total
        part.backward()
        value += part.detach()
    if config.clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    for optimiser in optimisers_:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return value


def fit(
    model: GPT,
    windows: Windows,
    config: TrainConfig,
    folder: Path,
    held_out: Windows | None = None,
    dtype: torch.dtype | None = None,
    save_every: float = 60.0,
    stop_at: int | None = None,
) -> list[dict]:
    """Train in place; returns the learning curve, rows of update, seconds, loss and held_out (nats a token).

    The order of windows and the dropout of an update depend only on the seed and its number, and state is
    kept in `folder` every `save_every` seconds: a killed run continues to the same weights.
    """
    device = next(model.parameters()).device
    dtype = dtype or fast_dtype(device)
    windows, resume = windows.to(device), folder / "resume.safetensors"
    optimisers_ = optimisers(model, config, dtype)
    update, curve = _resume(resume, model, optimisers_, config)
    per_epoch, last_save, epoch = max(1, len(windows) // config.batch), time.monotonic(), -1
    every = max(1, config.updates // 100)
    seen, last_row = torch.zeros((), device=device), time.monotonic()
    bar = tqdm(total=config.updates, initial=update, unit="update", mininterval=2.0, desc=f"train, {str(dtype)[6:]}")
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # At the end of a row of the curve, so that the row is whole.
        last = config.updates if stop_at is None else min(config.updates, -(-stop_at // every) * every)
        while update < last:
            if epoch != update // per_epoch:
                epoch = update // per_epoch
                rng = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
                order = torch.randperm(len(windows), generator=rng).to(device)
            at = update % per_epoch * config.batch
            torch.manual_seed(config.seed * 1_000_003 + update)
            seen += step(model, optimisers_, windows.batch(order[at : at + config.batch]), config, update, dtype)
            update += 1
            bar.update()
            if update % every == 0 or update == config.updates:
                row = {"update": update, "loss": seen.item() / ((update - 1) % every + 1)}
                row["seconds"], last_row = round(time.monotonic() - last_row, 2), time.monotonic()
                if not math.isfinite(row["loss"]):
                    raise FloatingPointError(f"loss is {row['loss']} at update {update}: lower lr={config.lr}")
                if held_out is not None and (update % (10 * every) == 0 or update == config.updates):
                    row["held_out"] = evaluate(model, held_out)
                curve.append(row)
                seen.zero_()
                rate = bar.format_dict["rate"] or 0
                bar.set_postfix_str(f"{row['loss']:.3f} nats, {rate * config.batch * windows.length:,.0f} tokens/s")
            if time.monotonic() - last_save > save_every and update % every == 0:
                _save_resume(resume, model, optimisers_, update, curve, config)
                last_save = time.monotonic()
    bar.close()
    if update < config.updates:
        _save_resume(resume, model, optimisers_, update, curve, config)
    model.eval()
    return curve


@torch.inference_mode()
def evaluate(model: GPT, windows: Windows, count: int = 512, seed: int = 0) -> float:
    """Nats a token, unweighted, over `count` windows drawn with a fixed seed."""
    return float(sum(nats for nats, _ in by_dimension(model, windows, count, seed)) / model.config.transition.D)


@torch.inference_mode()
def by_dimension(model: GPT, windows: Windows, count: int = 512, seed: int = 0) -> list[tuple[float, int]]:
    """(nats, tokens) of each of the D dimensions of a step: which kinds of token are hard to predict."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    rng = torch.Generator().manual_seed(seed)
    start = torch.randperm(len(windows), generator=rng)[:count].to(device)
    total, tokens = torch.zeros(model.config.transition.D), torch.zeros(model.config.transition.D)
    for part in start.split(64):
        ids, weight = windows.to(device).batch(part)
        dim, kept = ids[:, 1:] // model.config.V, (weight[:, 1:] > 0)
        nats = token_nats(model, ids)
        total += torch.zeros_like(total, device=device).index_add_(0, dim[kept], nats[kept]).cpu()
        tokens += torch.bincount(dim[kept], minlength=len(tokens)).cpu()
    model.train(training)
    return list(zip((total / tokens).tolist(), tokens.int().tolist(), strict=True))


def _save_resume(path: Path, model: GPT, optimisers_: list, update: int, curve: list, config: TrainConfig) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for i, optimiser in enumerate(optimisers_):
        for j, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{j}.{key}": value.clone() for key, value in state.items()}
    about = {"update": str(update), "curve": json.dumps(curve), "config": repr(config)}
    files.write_aside(path, lambda aside: safetensors.torch.save_file(tensors, aside, metadata=about))


def _resume(path: Path, model: GPT, optimisers_: list, config: TrainConfig) -> tuple[int, list]:
    """Read back what `_save_resume` wrote -> (updates done, curve); a file of another config is left alone."""
    if not path.exists():
        return 0, []
    with safetensors.safe_open(path, "pt", device=str(next(model.parameters()).device)) as file:
        about = file.metadata()
        if about["config"] != repr(config):
            return 0, []
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
    for i, optimiser in enumerate(optimisers_):
        whole, state = optimiser.state_dict(), {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimiser.{i}."):
                _, _, j, key = name.split(".")
                state.setdefault(int(j), {})[key] = tensor
        optimiser.load_state_dict({**whole, "state": state})
    return int(about["update"]), json.loads(about["curve"])


def offsets(config: ModelConfig, length: int) -> Tensor:
    """(length,) V * dimension of each position of a window, goal prefix included."""
    dims = torch.arange(length)
    return config.V * torch.where(dims < config.prefix, dims, (dims - config.prefix) % config.transition.D)
