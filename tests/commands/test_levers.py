"""Cheap changes of `released`: each is what it says, on tiny models."""

import numpy as np
import torch
from conftest import WORLD, V, random_ids, tiny_model

from ttlib.commands import levers
from ttlib.model import token_nats


def test_each_position_has_the_map_of_the_token_after_it():
    """The logits at a position are those of its own dimension's map; one map in all places is the usual head."""
    made, D = tiny_model(WORLD, 3), WORLD.D
    heads, x = levers.Heads(made.config), torch.randn(2, 3 * D, made.config.d_model)
    for i in range(3 * D):
        expected = x[:, i] @ heads.weight[i % D] + heads.bias[i % D, 0]
        assert torch.allclose(heads(x)[:, i], expected, atol=1e-6)
    with torch.no_grad():
        heads.weight[:], heads.bias[:] = made.head.weight.T, made.head.bias
    assert torch.allclose(heads(x), made.head(x), atol=1e-5)


def test_soft_targets_are_a_mean_of_cross_entropies():
    """Nine tenths are the usual loss and a tenth is that of the neighbours, held at the edges; scores stay as usual."""
    made, ids = tiny_model(WORLD, 3).train(), random_ids(4, 3 * WORLD.D)
    log_p = made(ids)[:, :-1].log_softmax(-1).detach().numpy()
    bins, found = (ids[:, 1:] % V).numpy(), levers.soft_nats(made, ids).detach().numpy()
    weight = {k: np.exp(-k * k / 2) for k in (-2, -1, 1, 2)}
    for row, i in ((0, 0), (1, 4), (3, 7)):
        b, p = bins[row, i], log_p[row, i]
        near = sum(w * p[np.clip(b + k, 0, V - 1)] for k, w in weight.items()) / sum(weight.values())
        assert np.isclose(found[row, i], -0.9 * p[b] - 0.1 * near, atol=1e-5)
    made.eval()
    assert torch.equal(levers.soft_nats(made, ids), token_nats(made, ids))


def test_averages_hold_the_last_part_of_a_training():
    made, averages = tiny_model(WORLD, 2), levers.Averages(100)
    for update in range(1, 101):
        with torch.no_grad():
            for p in made.parameters():
                p.fill_(float(update))
        averages.write(made, [], update, [], "float32")
    averages.put(made, 0.1)
    assert all(torch.allclose(p, torch.tensor(95.0)) for p in made.parameters())  # of 90, 91, ..., 100
