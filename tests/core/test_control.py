"""Tests that the decoder is the model, and that contexts hold what was seen."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Table, V, algorithm_1, dims_of, random_ids, random_row, random_steps, tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from ttlib import checkpoint, control, search, tokenizer
from ttlib.baselines.agents import BySampling
from ttlib.control import ByLikelihood, ByReward, Decoder, Streams, TransformerAgent
from ttlib.pipeline import packing, store
from ttlib.search import Plan
from ttlib.tokenizer import Transition

pytestmark = pytest.mark.usefixtures("without_gradients")
TRAINED = store.SHIPPED / "hopper-long-released-laptop"
WORLD, BARE = Transition(2, 1), Transition(2, 1, rewards=False)


class Uncached(Table):
    """The same verbs as the decoder has, by reading whole sequences anew."""

    def __init__(self, model, ids, bins=V):
        super().__init__(None, (ids % bins).tolist())
        self.model, self.V = model, bins

    @property
    def log_p(self):
        bins = torch.tensor(self.groups)
        ids = bins + self.V * dims_of(bins.shape[2], self.model.config.transition, self.model.config.prefix)
        logits = self.model(ids.flatten(0, 1))[:, -1]
        return logits.float().log_softmax(-1).view(*bins.shape[:2], self.V)


def maximise(decoder, bins, plan, seeds=range(100)):
    streams = Streams(list(seeds)[: len(decoder.log_p)])
    return search.maximise(decoder.advance, decoder.select_plans, decoder.log_p, bins, plan, streams)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("transition, prefix", [(WORLD, 0), (WORLD, 2), (BARE, 2)])
@given(draw=st.data())
def test_decoder_is_the_uncached_model(dtype, tolerance, transition, prefix, draw):
    """It holds for any tokens after any parents, and for selected sequences that become problems."""
    choose = lambda *a: draw.draw(st.integers(*a))  # noqa: E731
    model = tiny_model(transition, T=5, dtype=dtype, prefix=prefix)
    E, past = choose(1, 3), choose(0, 2)
    rng = torch.Generator().manual_seed(choose(0, 99))
    context = prefix + past * transition.D + choose(1, transition.N + transition.M)
    ids = random_ids(E, context, transition, prefix, seed=choose(0, 99))
    decoder, slow = Decoder(model, tiny_tokenizer(transition), ids), Uncached(model, ids)
    assert torch.allclose(decoder.log_p, slow.log_p, atol=tolerance)
    fed = 0
    for _ in range(context, model.config.max_tokens):
        G, K = len(slow.groups), len(slow.groups[0])
        if fed and choose(0, 4) == 0:
            rows = torch.randint(G // E * K, (E, choose(1, 3)), generator=rng)
            decoder.select_plans(rows)
            slow.select_plans(rows)
            (G, K), fed = (rows.numel(), 1), 0
        parents = torch.randint(K, (G, choose(1, 3)), generator=rng)
        if choose(0, 2) == 0:
            parents = torch.arange(K).expand(G, K)
        given_parents = None if parents.shape[1] == K and (parents == torch.arange(K)).all() else parents
        bins = torch.randint(V, parents.shape, generator=rng)
        found = decoder.advance(bins, given_parents)
        assert torch.allclose(found, slow.advance(bins, parents), atol=tolerance)
        fed += 1


@pytest.mark.skipif(not TRAINED.exists(), reason=f"{TRAINED} is not there: `make ship` puts it there")
@pytest.mark.parametrize("past", [0, 1])
def test_a_trained_model_plans_alike_with_and_without_a_cache(past):
    """The 100 decisions start at held-out states after `past` transitions."""
    made = checkpoint.load(TRAINED, "cpu", packing.weights(TRAINED))
    plan = Plan(2, 2, 2, proposal="sample", drop_probability=0.0, reward_in_R=False)
    D, N, bins = made.tokenizer.transition.D, made.tokenizer.transition.N, made.tokenizer
    ids = torch.cat([store.held_out(made)[0][:50, t * D : (t + past) * D + N] for t in (0, 5)])
    ids = made.model.model_input(ids)
    plans = [maximise(d, bins, plan) for d in (Decoder(made.model, bins, ids), Uncached(made.model, ids, bins.V))]
    assert len(ids) == 100 and (plans[0].bins == plans[1].bins).all()
    scale = float(plans[1].value.std())  # a value near zero is a difference of large ones
    assert torch.allclose(plans[0].value, plans[1].value, rtol=0, atol=1e-5 * scale)
    assert len(plans[0].bins[:, 0, : made.tokenizer.transition.M].unique(dim=0)) > 50  # they do differ


def test_a_search_reads_no_token_that_it_does_not_need():
    """Candidates are read up to r, and plans that stay from R on; a last R has no successor."""
    model, bins, ids = tiny_model(), tiny_tokenizer(), random_ids(2, WORLD.N)
    read, plan = [], Plan(3, 4, 2, proposal="sample")
    model.register_forward_pre_hook(lambda model, inputs: read.append(inputs[0].numel()))
    decoder = Decoder(model, bins, ids)
    maximise(decoder, bins, plan)
    candidates = 3 * 4 * 2 * (WORLD.M + 1)
    assert sum(read) == 2 * (WORLD.N + candidates + 2 * 4 * (1 + WORLD.N))


@pytest.mark.parametrize("few", [2, 4])
def test_empty_bins_carry_no_mass(few):
    """The rest is renormalised, in log-probabilities, samples, expectations and plans."""
    steps = random_steps().mul(1.5).round().clamp(0, few - 1)  # at most `few` numbers in each dimension
    bins, model, ids = tokenizer.fit(steps.T, WORLD, V, "quantile"), tiny_model(), random_ids(2, WORLD.N)
    assert bins.empty.any(1).all() and not bins.empty[:, 0].any()
    decoder, slow, streams = Decoder(model, bins, ids), Uncached(model, ids), Streams([0, 1])
    log_p, raw = decoder.log_p, slow.log_p
    for dim in [*range(WORLD.N, WORLD.D), *range(WORLD.D)]:
        expected = raw.exp() * ~bins.empty[dim]
        expected /= expected.sum(-1, keepdim=True)
        assert torch.allclose(log_p.exp(), expected, atol=1e-5) and (log_p.exp()[..., bins.empty[dim]] == 0).all()
        mean = (expected.double() * bins.centres[dim]).sum(-1).float()
        assert torch.allclose(bins.expected(log_p, dim), mean, atol=1e-4)
        drawn = search.sample(log_p[..., None, :].expand(*log_p.shape[:-1], 500, V), streams)
        assert not bins.empty[dim][drawn].any()
        log_p, raw = decoder.advance(drawn[..., 0], None), slow.advance(drawn[..., 0], None)


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("proposal", ["beam", "sample"])
def test_the_best_plan_is_possible_also_where_a_beam_has_room_for_more(proposal, width):
    """With three bins for each dimension that are not empty there are three first actions."""
    bins = tokenizer.fit(random_steps().round().clamp(-1, 1).T, WORLD, V, "quantile")
    plans = maximise(Decoder(tiny_model(), bins, random_ids(40, WORLD.N)), bins, Plan(2, width, 3, proposal=proposal))
    dims = (torch.arange(plans.bins.shape[2]) + WORLD.N) % WORLD.D
    assert not bins.empty[dims, plans.bins[:, 0]].any()


def table_decoder(transition, starts, bins=3, seed=0):
    table = Table(random_row(seed, bins), starts)
    table.tokenizer = tiny_tokenizer(transition, bins)
    return table


@given(st.integers(0, 999), st.integers(1, 12))
def test_a_length_of_one_action_is_algorithm_1_over_its_tokens(seed, width):
    """Without rewards these are a horizon of one transition, and horizon 0, which is behaviour cloning."""
    starts = [(0,), (1,)]
    for horizon in (0, 1):
        table = table_decoder(Transition(1, 3, rewards=horizon == 0), starts, seed=seed)
        actions, record = ByLikelihood(horizon, width)(table, None)
        for e, start in enumerate(starts):
            tokens, q = algorithm_1(table.row, start, 3, width, 3)[0]
            assert tuple(actions[e].tolist()) == tokens and record["log_p"][e].item() == pytest.approx(q)


@pytest.mark.parametrize("transition", [Transition(1, 1), Transition(1, 1, rewards=False)])
def test_likelihood_counts_every_token_but_reward_to_go(transition):
    table = table_decoder(transition, [(0,)])
    every = {}
    length = 2 * transition.D - 1 - transition.rewards  # two transitions from the action on, but the last R
    names = (transition.names() * 2)[1:][:length]
    for tokens in itertools.product(*[range(1 if name == "R" else 3) for name in names]):
        every[tokens] = sum(table.row((0, *tokens[:i]))[v].item()
                            for i, (v, name) in enumerate(zip(tokens, names)) if name != "R")
    actions, record = ByLikelihood(2, 3**length)(table, None)
    best = max(every, key=every.get)
    assert actions[0].tolist() == [best[0]] and record["log_p"][0].item() == pytest.approx(every[best])


def test_sampled_actions_have_the_models_probabilities():
    transition, n = Transition(1, 2), 3000
    table = table_decoder(transition, [(0,)] * n)
    actions, record = BySampling()(table, Streams([0]))
    p = {(a, b): (table.row((0,))[a] + table.row((0, a))[b]).item() for a in range(3) for b in range(3)}
    counts = dict.fromkeys(p, 0)
    for pair, q in zip(actions.tolist(), record["log_p"].tolist()):
        counts[tuple(pair)] += 1
        assert q == pytest.approx(p[tuple(pair)])
    expected = n * np.exp(list(p.values()))
    assert chisquare(list(counts.values()), expected / expected.sum() * n).pvalue > 1e-3


def test_plans_longer_than_the_window_are_refused_before_any_work(monkeypatch):
    model, bins = tiny_model(T=4), tiny_tokenizer()
    monkeypatch.setattr(model, "forward", None)
    monkeypatch.setattr(control.Decoder, "__init__", None)
    for context, horizon in ((2, 3), (4, 1), (0, 5), (-1, 1)):
        with pytest.raises(ValueError, match=rf"{context} context \+ {horizon} planned transitions > window of 4"):
            TransformerAgent(model, bins, ByLikelihood(horizon, 1), context)
    TransformerAgent(model, bins, ByReward(Plan(2, 1, 1)), 2)
    TransformerAgent(model, bins, ByLikelihood(0, 1), 3)
    with pytest.raises(ValueError, match="^goals are given.* 0 goal tokens"):
        TransformerAgent(model, bins, BySampling(), 1, goals=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="no goals are given.* 2 goal tokens"):
        TransformerAgent(tiny_model(prefix=2), bins, BySampling(), 1)


@pytest.mark.parametrize("transition", [WORLD, BARE])
@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("context", range(4))
def test_the_context_is_the_last_transitions_and_slides_whole(transition, goal, context):
    model, bins = tiny_model(transition, T=5, prefix=2 * goal), tiny_tokenizer(transition)
    rng, E, seen = np.random.default_rng(0), 3, []

    def decoder(model, tokenizer_, ids):
        return SimpleNamespace(ids=ids, log_p=torch.zeros(()))

    def choose(decoder, streams):
        ids = decoder.ids
        seen.append(ids.tolist())
        return torch.from_numpy(rng.integers(V, size=(len(ids), 1))), {"first": ids[:, 0]}

    choose.horizon, goals = 1, rng.normal(size=(E, 2)) if goal else None
    agent = TransformerAgent(model, bins, choose, context, goals, decoder)
    agent.reset(range(E))
    ids_of = lambda x, dims: bins.encode(torch.as_tensor(x)[None], dims)[0].tolist()  # noqa: E731
    live, history = list(range(E)), {e: [] for e in range(E)}
    for step in range(8):
        states, rewards = rng.normal(size=(len(live), 2)), rng.normal(size=len(live))
        actions, record = agent.act(states)
        for row, e in enumerate(live):
            prefix = ids_of(goals[e], transition.state) if goal else []
            state = ids_of(states[row], transition.state)
            read = history[e][max(0, len(history[e]) - context) :]
            assert seen[-1][row] == prefix + sum(read, []) + state, f"step {step}"
            assert record["first"][row] == seen[-1][row][0]
            history[e].append(state + ids_of(actions[row], transition.action))
            if transition.rewards:
                history[e][-1] += ids_of(rewards[row : row + 1], slice(transition.reward, transition.reward + 1))
                history[e][-1] += [V * transition.reward_to_go]
        going_on = np.array([not (step == 2 and e == 1) for e in live])  # one leaves
        agent.observe(rewards, going_on)
        live = [e for e, on in zip(live, going_on) if on]
    assert live == [0, 2]


@pytest.mark.parametrize("proposal", ["beam", "sample"])
def test_the_action_is_the_first_of_the_best_plan_decoded(proposal):
    model, bins, states = tiny_model(), tiny_tokenizer(), np.random.default_rng(0).normal(size=(3, 2))
    plan = Plan(2, 4, 3, proposal=proposal)
    agent = TransformerAgent(model, bins, ByReward(plan), 1)
    agent.reset([5, 3, 8])
    actions, record = agent.act(states)
    decoder = Decoder(model, bins, bins.encode(torch.from_numpy(states), WORLD.state))
    plans = maximise(decoder, bins, plan, [5, 3, 8])
    best = plans.value.argmax(1)
    for e in range(3):
        assert actions[e, 0] == bins.centres[WORLD.N, plans.bins[e, best[e], 0]]
        assert record["value"][e] == plans.value[e].max()


def act(model, states):
    agent = TransformerAgent(model, tiny_tokenizer(), ByReward(Plan(2, 4, 3)), 1)
    agent.reset(range(len(states)))
    return agent.act(states)


@pytest.mark.parametrize("damage", ["everywhere", "rewards alone"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_predictions_that_are_not_numbers_are_refused(damage, value):
    """They may be those of the first token, or those on the way, which no step of the search looks at."""
    model = tiny_model()
    if damage == "everywhere":
        model.head.bias.data[2] = value
    else:
        model.token.weight.data[V * WORLD.N] = value  # actions of bin 0: not in the context
    with pytest.raises(FloatingPointError, match="not finite.*weights are damaged"):
        act(model, np.zeros((2, 2)))


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for a device: numbers read from tensors, and shapes that depend on them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.seen.append(function)
        return function(*arguments, **keywords or {})


@pytest.mark.parametrize("proposal", ["beam", "sample"])
def test_a_search_never_waits_for_the_device(proposal):
    model, bins, plan = tiny_model(), tiny_tokenizer(), Plan(3, 4, 2, proposal=proposal)
    with Waits() as waits:
        decoder = Decoder(model, bins, random_ids(2, WORLD.N))
        maximise(decoder, bins, plan)
        assert not waits.seen
        assert decoder.log_p.isfinite().all() and waits.seen  # this does


def test_states_of_another_task_are_refused():
    with pytest.raises(ValueError, match=r"states \(4, 3\); expected \(E, 2\)"):
        act(tiny_model(), np.zeros((4, 3)))
