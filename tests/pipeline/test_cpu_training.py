"""Tests of training on a CPU: faster dropout and attention compute what the model's own do."""

import math

import pytest
import torch
from conftest import tiny_model

from ttlib.pipeline import cpu_training


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_leaves_each_element_out_with_its_probability(p):
    n, drop = 40_000, cpu_training.Dropout(p)
    torch.manual_seed(0)
    left = torch.stack([drop(torch.ones(n + 1)) for _ in range(4)])[:, :n]  # a number gives four draws
    assert left.unique().tolist() == [0, pytest.approx(1 / (1 - p))]
    fraction = (left == 0).float().view(4, -1, 4).mean((0, 1))
    assert torch.allclose(fraction, torch.tensor(p), atol=4.5 * math.sqrt(p * (1 - p) / n))
    together = [(left[:, i::4] == 0) & (left[:, i + 1 :: 4] == 0) for i in range(3)]
    assert torch.stack(together).float().mean().item() == pytest.approx(p * p, abs=4.5 * p / math.sqrt(3 * n))
    assert (drop.eval()(left) == left).all()


@pytest.mark.parametrize("t", [5, 32, 37])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.05)])
def test_attention_in_products_is_the_models_own(t, dtype, tolerance):
    """It is used in bf16, or where attention weights are dropped: here with next to no dropout."""
    model = tiny_model(T=8, dropout_where="everywhere", dropout=1e-9)
    x = torch.randn(3, t, 3 * 16, generator=torch.Generator().manual_seed(0))
    outputs, gradients = [], []
    for attend, number in ((model.causal, x), (cpu_training.faster(model.train()), x.to(dtype))):
        number = number.clone().requires_grad_()
        outputs.append(attend(0, number).float())
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), number)[0].float())
    assert torch.allclose(*outputs, atol=tolerance) and torch.allclose(*gradients, atol=10 * tolerance)


def test_attention_in_products_drops_weights_while_training_alone():
    L, p = 20, 0.4
    model = tiny_model(dropout=p, dropout_where="everywhere", n_head=1, d_model=L)
    torch.manual_seed(0)
    qkv = torch.randn(4, L, 3 * L)
    qkv[..., 2 * L :] = torch.eye(L)  # the values are the identity, so that attention returns its weights
    attend = cpu_training.faster(model)
    assert (attend(0, qkv) == model.causal(0, qkv)).all()
    model.train()
    ratio = (attend(0, qkv) / model.eval().causal(0, qkv))[:, *torch.tril_indices(L, L)]
    scaled = torch.isclose(ratio, torch.tensor(1 / (1 - p)), rtol=1e-3)
    assert (scaled | (ratio == 0)).all() and (ratio == 0).float().mean().item() == pytest.approx(p, abs=0.1)
