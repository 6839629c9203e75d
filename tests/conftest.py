"""A tiny world with two state dimensions, one action and five bins, and slow, obvious forms of what is tested."""

import functools
import os
import sys
import types
from pathlib import Path

from ttlib import data, tokenizer
from ttlib.datasets import arrays
from ttlib.model import GPT, ModelConfig
from ttlib.tokenizer import Transition

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("ttlib", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("ttlib")

V = 5
WORLD = Transition(2, 1)
NO_REWARDS = Transition(2, 1, rewards=False)


@pytest.fixture
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def refuses_to_work(*_, **__):
    raise AssertionError("this was called")


@pytest.fixture(autouse=True)
def as_if_run_by_hand(monkeypatch):
    """Remove what `make` and the pages set, so that it does not decide what is tested."""
    for name in ("TTLIB_MODE", "TTLIB_OUTPUTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plain_script(tmp_path, monkeypatch):
    """Do as a script without a main guard does: a worker that runs it again begins workers of its own, and dies."""
    main = types.ModuleType("__main__")
    main.__file__ = str(tmp_path / "script.py")
    Path(main.__file__).write_text("raise SystemExit('the caller runs again')")
    monkeypatch.setitem(sys.modules, "__main__", main)


def random_steps(n=60, transition=WORLD, seed=0):
    return torch.randn(n, transition.D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny_tokenizer(transition=WORLD, bins=V, kind="uniform"):
    return tokenizer.fit(random_steps(transition=transition).T, transition, bins, kind)


def tiny_model(transition=WORLD, T=4, bins=V, dtype=torch.float32, **options):
    """Return a model whose weights are large enough for every token, position and head to matter."""
    options = {"n_layer": 2, "n_head": 2, "d_model": 16, "dropout": 0.0} | options
    model = GPT(ModelConfig(transition, T, V=bins, **options)).to(dtype)
    rng = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = 0.3 * torch.randn(parameter.shape, generator=rng, dtype=dtype)
        parameter.data = noise + ("norm" in name and name.endswith("weight"))
    return model.eval()


def dims_of(length, transition=WORLD, prefix=0):
    """Return the dimension of the token at each position of a window."""
    return torch.tensor([i if i < prefix else (i - prefix) % transition.D for i in range(length)])


def random_ids(rows, length, transition=WORLD, prefix=0, bins=V, seed=0):
    random = torch.randint(bins, (rows, length), generator=torch.Generator().manual_seed(seed))
    return random + bins * dims_of(length, transition, prefix)


class Table:
    """The verbs `advance` and `select_plans` on tuples of bins; row: such a history -> (V,) log-probabilities."""

    def __init__(self, row, starts):
        self.row, self.E = row, len(starts)
        self.groups = [[tuple(start)] for start in starts]

    @property
    def log_p(self):
        return torch.stack([torch.stack([self.row(history) for history in group]) for group in self.groups])

    def advance(self, bins, parents):
        if parents is None:
            parents = torch.arange(bins.shape[1]).expand_as(bins)
        triples = zip(self.groups, bins.tolist(), parents.tolist(), strict=True)
        self.groups = [[group[p] + (b,) for b, p in zip(bs, ps, strict=True)] for group, bs, ps in triples]
        return self.log_p

    def select_plans(self, rows):
        each = len(self.groups) // self.E
        whole = [sum(self.groups[e * each : (e + 1) * each], []) for e in range(self.E)]
        self.groups = [[whole[e][row]] for e, chosen in enumerate(rows.tolist()) for row in chosen]


def flat(lengths, terminal=None, seed=0):
    """Return D4RL's arrays of episodes of these lengths; terminal[i]: the environment ended episode i."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    last, ended = np.cumsum(lengths) - 1, np.zeros((2, n), bool)
    for i, row in enumerate(last):
        ended[0 if terminal is None or terminal[i] else 1, row] = True
    return {"observations": rng.normal(size=(n, 2)), "actions": rng.normal(size=(n, 1)),
            "rewards": rng.normal(size=n), "terminals": ended[0], "timeouts": ended[1]}  # fmt: skip


def tiny_windows(lengths=(3, 7, 5), T=4, transition=WORLD, masked=0.0, **options):
    """Return the windows of all steps of episodes of these lengths."""
    episodes = arrays.episodes(flat(lengths))
    episodes = arrays.mask_states(episodes, masked, 3) if masked else episodes
    steps = data.steps(episodes, transition, 0.9)[:]
    return data.windows(episodes, steps, tokenizer.fit(steps.T, transition, V), T, **options)[0]


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def random_row(seed, bins):
    """Return a `row` whose log-probabilities depend on every token of the history."""

    @functools.cache
    def row(history):
        logits = np.random.default_rng([seed, *history]).normal(scale=2, size=bins)
        return torch.from_numpy(logits).log_softmax(-1)

    return row


def algorithm_1(row, start, length, width, bins, skip=()):
    """Run the paper's listing -> [(tokens, log-probability)], best first; a skipped step has one token, 0, for free."""
    beams = [(tuple(start), 0.0)]  # line 4
    for step in range(length):  # 5
        longer = []
        for sequence, q in beams:  # 6
            for v in (0,) if step in skip else range(bins):
                gain = 0.0 if step in skip else row(sequence)[v].item()
                longer.append((sequence + (v,), q + gain))  # 7-9
        beams = sorted(longer, key=lambda pair: -pair[1])[:width]  # 11
    return [(sequence[len(start) :], q) for sequence, q in beams]
