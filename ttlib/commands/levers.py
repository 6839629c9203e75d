"""Changes of the profile `released` that cost little, compared by held-out loss after equally many tokens.

Each training is that of the scaling curve, on a million steps, with one change.  What wins moves into the core; what
does not stays here, so that `make tune ARGS=levers` can try it again.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from ttlib import model, train
from ttlib.model import GPT, ModelConfig
from ttlib.pipeline import cpu_training, experiments, provenance, store
from ttlib.pipeline.experiments import Experiment

DATASETS = ("walker2d-medium-expert", "hopper-medium-expert")
# What is tried on which datasets: a change that loses on the first is not tried on the second.
LEVERS = {"unchanged": DATASETS, "one output map per dimension": DATASETS[:1], "soft targets": DATASETS[:1]}
LAST = (0.1, 0.2, 0.4)  # parts of a training whose weights are averaged


class Heads(nn.Module):
    """One output map for each dimension, as in the authors' code, for whole windows."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D, d, V = config.transition.D, config.d_model, config.V
        self.weight = nn.Parameter(0.02 * torch.randn(D, d, V))
        self.bias = nn.Parameter(torch.zeros(D, 1, V))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T * D, V) for x (B, T * D, d): the map at a position is that of the token after it."""
        D, (B, L, d) = len(self.weight), x.shape
        by_dimension = x.view(B, L // D, D, d).permute(2, 0, 1, 3).reshape(D, -1, d)
        y = torch.baddbmm(self.bias.to(x.dtype), by_dimension, self.weight.to(x.dtype))
        return y.view(D, B, L // D, -1).permute(1, 2, 0, 3).reshape(B, L, -1)


def soft_nats(made: GPT, ids: Tensor, attend=None, share: float = 0.1) -> Tensor:
    """Return the cross-entropy with targets that give `share` to the two bins on each side.  (B, L) -> (B, L - 1)

    The weights of the neighbours fall like a Gaussian of one bin.  A model that is not in training is scored as usual.
    """
    if not made.training:
        return model.token_nats(made, ids, attend)
    bins, V = ids[:, 1:] % made.config.V, made.config.V
    log_p = made(ids, attend)[:, :-1].float().log_softmax(-1)
    weights = {k: math.exp(-k * k / 2) for k in (-2, -1, 1, 2)}
    nats = -(1 - share) * log_p.gather(-1, bins[..., None])[..., 0]
    for k, weight in weights.items():
        at = (bins + k).clamp(0, V - 1)[..., None]
        nats = nats - share * weight / sum(weights.values()) * log_p.gather(-1, at)[..., 0]
    return nats


class Averages:
    """The means of the weights over the last parts of a training, in the place of a file to resume from."""

    def __init__(self, updates: int):
        self.updates, self.seen = updates, {part: [] for part in LAST}

    def resume(self, made: GPT, config, windows):
        """Begin anew."""
        return train.begin(made, config)

    def write(self, made: GPT, optimisers: list, update: int, curve: list, dtype: str) -> None:
        """Take the weights of now, which `train.fit` shows a hundred times."""
        for part, seen in self.seen.items():
            if update >= self.updates * (1 - part):
                seen.append([p.detach().clone() for p in made.parameters()])

    @torch.no_grad()
    def put(self, made: GPT, part: float) -> None:
        """Set the weights of a model to their means over the last part."""
        for p, values in zip(made.parameters(), zip(*self.seen[part], strict=True), strict=True):
            p.copy_(torch.stack(values).double().mean(0))


def settings(size: str) -> list[tuple[dict, tuple]]:
    """Return what `tuning.grid_search` runs: the columns that name a training, and the arguments of `compare`."""
    made = []
    for lever, datasets in LEVERS.items():
        for name in datasets:
            exp = experiments.get(f"{name}-1000k-10m" if size == "laptop" else name, size, "released")
            made.append(({"dataset": name, "lever": lever, "seed": exp.train.seed}, (exp, lever)))
    return made


def compare(exp: Experiment, lever: str) -> list[dict]:
    """Train with one change -> rows: held-out nats per token at the end, and with averaged weights."""
    training, held_out = store.windows(exp)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(exp.train.seed)
        made = GPT(exp.model)
        if lever == "one output map per dimension":
            made.head = Heads(exp.model)
    averages, usual = Averages(exp.train.updates), train.token_nats
    train.token_nats = soft_nats if lever == "soft targets" else usual
    try:
        curve = train.fit(made, training, exp.train, None, averages, attend=cpu_training.faster(made))
    finally:
        train.token_nats = usual
    rows, transition = [], exp.model.transition
    for part in (0.0, *LAST):
        if part:
            averages.put(made, part)
        nats = np.array([x for x, _ in train.by_dimension(made, held_out, 2048)])
        row = {"weights": f"mean of the last {part:.0%}" if part else "last", "nats": nats.mean()}
        row |= {"states": nats[transition.state].mean(), "actions": nats[transition.action].mean()}
        rows.append(row | {"reward": nats[-2], "R": nats[-1]})
    about = {"million_tokens": exp.train.updates * exp.train.batch * exp.model.max_tokens / 1e6}
    about |= {"minutes": sum(row["seconds"] for row in curve) / 60, "commit": provenance.here()["commit"]}
    return [row | about for row in rows]
