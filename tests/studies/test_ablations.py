"""Tests of the ablations' hooks where every distribution is known."""

import pytest
import torch
from conftest import WORLD, Table, V, tiny_tokenizer

from ttlib import search
from ttlib.control import Streams
from ttlib.search import Beams, Plan
from ttlib.studies.ablations import Independent, Noisy, Sampled
from ttlib.tokenizer import Transition


def reading(read, count=4000):
    """Return a tokenizer, and the E[r], E[R] and bin of r that are read where all distributions are one."""
    bins = tiny_tokenizer()
    log_p = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]).log().expand(1, count, V)
    beams = Beams(torch.zeros(1, count, 1, dtype=torch.long), torch.zeros(1, count), None)
    return bins, read(lambda *_: log_p, beams, bins, Streams([0]))


def test_noise_in_R_has_the_standard_deviation_asked_for_and_r_has_none():
    (bins, (r, R, _)), (_, (r_noisy, R_noisy, _)) = reading(search.read_rewards), reading(Noisy(0.5))
    assert torch.equal(r, r_noisy) and R.std() < 1e-6
    assert R_noisy.std().item() == pytest.approx(0.5 * bins.centres[-1].std().item(), rel=0.05)
    assert R_noisy.mean().item() == pytest.approx(R.mean().item(), abs=0.05 * bins.centres[-1].std().item())


def test_drawn_rewards_are_bin_centres_whose_mean_is_the_expectation():
    (bins, (r, R, _)), (_, (r_drawn, R_drawn, bin_r)) = reading(search.read_rewards), reading(Sampled())
    for expected, drawn, dim in ((r, r_drawn, WORLD.reward), (R, R_drawn, WORLD.reward_to_go)):
        assert torch.isin(drawn.double(), bins.centres[dim].float().double()).all() and len(drawn.unique()) == V
        assert drawn.mean().item() == pytest.approx(expected.mean().item(), abs=0.06 * drawn.std().item())
    assert torch.equal(bins.centres[WORLD.reward][bin_r].float(), r_drawn)


def test_chains_take_dimensions_independently():
    """Without chains the second dimension depends on the first.  With chains the pairs are a product."""
    transition = Transition(2, 2)

    def row(history):
        dim, last = (len(history) + 2) % transition.D, (0, *history)[-1]
        p = {0: (0.4, 0.6), 1: ((1.0, 0.0), (0.4, 0.6))[last], 2: (0.5, 0.5), 3: ((0.9, 0.1), (0.1, 0.9))[last]}
        return torch.tensor(p.get(dim, (0.5, 0.5)), dtype=torch.float64).log()

    plan, bins = Plan(2, beam_width=8, expansions=2, proposal="sample", drop_probability=0.0), {}
    for chains, propose in ((0, search.propose), (200, Independent(200))):
        table, streams = Table(row, [()] * 50), Streams(range(50))
        args = (table.advance, table.select_plans, table.log_p, tiny_tokenizer(transition, 2), plan, streams)
        bins[chains] = search.maximise(*args, propose=propose).bins.flatten(0, 1)
    action, state = slice(0, 2), slice(4, 6)
    assert (bins[0][:, state] == torch.tensor([1, 1])).all()  # 0.6 * 0.6 against 0.4
    assert (bins[200][:, state] == torch.tensor([1, 0])).all()  # 0.6 against 0.4, 0.4 + 0.6 * 0.4 against 0.36
    for chains, alike in ((0, 0.9), (200, 0.5)):
        pairs = bins[chains][:, action]
        assert (pairs[:, 0] == pairs[:, 1]).double().mean().item() == pytest.approx(alike, abs=0.1)
        assert pairs.double().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.1)
