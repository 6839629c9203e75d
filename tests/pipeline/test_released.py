"""Tests of plans that are longer than the window, against the model without a cache, and of the likeliest bins."""

import numpy as np
import pytest
import torch
from conftest import Table, V, dims_of, random_ids, random_row, tiny_model, tiny_tokenizer

from ttlib import control, search
from ttlib.control import Decoder, Streams, TransformerAgent
from ttlib.native import compiling
from ttlib.native.decoder import NativeDecoder
from ttlib.pipeline import released
from ttlib.search import Plan
from ttlib.tokenizer import Transition

pytestmark = pytest.mark.usefixtures("without_gradients")
WORLD = Transition(2, 1)
READERS = [Decoder] + [NativeDecoder] * (not compiling.failure())


def cropping(model, window):
    """Return the `row` of a table that crops as the authors' code does: a token sees window * D - 1 tokens at most."""

    def row(history):
        D = WORLD.D
        too_many = max(0, len(history) - (window * D - 1))
        bins = torch.tensor(history[-(-too_many // D) * D :])
        logits = model((bins + V * dims_of(len(bins)))[None])[0, -1]
        return logits.float().log_softmax(-1)

    return row


def maximise(decoder, plan, E, propose=search.propose):
    verbs = (decoder.advance, decoder.select_plans, decoder.log_p)
    return search.maximise(*verbs, tiny_tokenizer(), plan, Streams(range(E)), propose)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("proposal", ["beam", "sample"])
@pytest.mark.parametrize("window, context", [(2, 0), (2, 1), (3, 2)])
def test_plans_longer_than_the_window_are_those_of_the_uncached_model(reader, proposal, window, context):
    E, plan = 2, Plan(5, 3, 2, proposal=proposal, drop_probability=0.3)
    model = tiny_model(T=window, n_head=1, d_model=32)
    for parameter in model.parameters():
        parameter.data *= 0.7 if parameter.ndim == 2 else 1.0  # no bin is all but certain
    ids = random_ids(E, context * WORLD.D + WORLD.N)
    slow = maximise(Table(cropping(model, window), (ids % V).tolist()), plan, E)
    fast = maximise(released.sliding(reader, window)(model, tiny_tokenizer(), ids), plan, E)
    assert fast.bins.shape == (E, 3, 5 * WORLD.D - WORLD.N)
    assert torch.equal(fast.bins, slow.bins) and torch.allclose(fast.value, slow.value, atol=1e-4)


def test_a_plan_within_the_window_slides_nowhere():
    model, ids, plan = tiny_model(T=4), random_ids(2, WORLD.D + WORLD.N), Plan(3, 3, 2)
    sliding, plain = (make(model, tiny_tokenizer(), ids) for make in (released.sliding(Decoder, 4), Decoder))
    assert torch.equal(maximise(sliding, plan, 2).bins, maximise(plain, plan, 2).bins)


def test_an_agent_plans_farther_than_its_window():
    model, plan = tiny_model(T=2), Plan(6, 2, 2, proposal="sample")
    choices = control.ByReward(plan), released.ByRewardSliding(plan)
    with pytest.raises(ValueError, match=r"1 context \+ 6 planned transitions > window of 2"):
        TransformerAgent(model, tiny_tokenizer(), choices[0], 1)
    agent = TransformerAgent(model, tiny_tokenizer(), choices[1], 1, decoder=released.sliding(Decoder, 2))
    agent.reset((0, 1))
    for _ in range(3):
        assert np.isfinite(agent.act(np.zeros((2, 2)))[1]["value"]).all()
        agent.observe(np.zeros(2), np.ones(2, bool))


@pytest.mark.parametrize("count", [1, 2, V])
def test_actions_are_among_the_likeliest_bins(count):
    row, starts = random_row(0, V), [(1, 2), (3, 0)]
    plan = Plan(3, 4, 8, proposal="sample", drop_probability=0.0)
    plans = maximise(Table(row, starts), plan, 2, released.LikeliestBins(count))
    if count == V:
        assert torch.equal(plans.bins, maximise(Table(row, starts), plan, 2).bins)
    for e, start in enumerate(starts):
        for bins in plans.bins[e].tolist():
            history, drawn = start, set()
            for i, b in enumerate(bins):
                dim = WORLD.dimension(WORLD.N + i)
                rank = (row(history) > row(history)[b]).sum().item()
                if dim == WORLD.N:
                    drawn.add(rank)
                    assert rank < count
                assert dim >= WORLD.N or rank == 0
                history = (*history, 0 if dim == WORLD.reward_to_go else b)
