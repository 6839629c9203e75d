"""The decoder is the model, contexts hold what was seen, and rollouts do not depend on their company."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    NO_REWARDS,
    WORLD,
    Table,
    V,
    algorithm_1,
    dims_of,
    random_ids,
    random_row,
    tiny_model,
    tiny_tokenizer,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from ttlib import checkpoint, control, search
from ttlib.cache import Cache, read
from ttlib.control import Decoder, FunctionAgent, TransformerAgent
from ttlib.pipeline import store
from ttlib.search import Plan
from ttlib.tokenizer import Transition


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


class Uncached(Table):
    """The same verbs as the decoder, by reading whole sequences anew."""

    def __init__(self, model, ids, bins=V):
        super().__init__(None, (ids % bins).tolist())
        self.model, self.V = model, bins

    @property
    def log_p(self):
        bins = torch.tensor(self.groups)
        ids = bins + self.V * dims_of(bins.shape[2], self.model.config.transition, self.model.config.prefix)
        logits = self.model(ids.flatten(0, 1))[:, -1]
        return logits.log_softmax(-1).view(*bins.shape[:2], self.V)


# -- decoder -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("transition, prefix", [(WORLD, 0), (WORLD, 2), (NO_REWARDS, 2)])
@given(draw=st.data())
def test_decoder_is_the_uncached_model(dtype, tolerance, transition, prefix, draw):
    """Any tokens after any parents, and kept sequences that become problems of their own."""
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
            kept = torch.randint(G // E * K, (E, choose(1, 3)), generator=rng)
            decoder.keep(kept)
            slow.keep(kept)
            (G, K), fed = (kept.numel(), 1), 0
        parents = torch.randint(K, (G, choose(1, 3)), generator=rng)
        if choose(0, 2) == 0:
            parents = torch.arange(K).expand(G, K)
        given_parents = None if parents.shape[1] == K and (parents == torch.arange(K)).all() else parents
        bins = torch.randint(V, parents.shape, generator=rng)
        found = decoder.advance(bins, given_parents)
        assert torch.allclose(found, slow.advance(bins, parents), atol=tolerance)
        fed += 1


def test_whatever_reward_to_go_is_given_the_same_is_read():
    model, bins, ids = tiny_model(), tiny_tokenizer(), random_ids(2, WORLD.N + WORLD.M)
    r = torch.tensor([[1], [4]])
    for R in range(V):
        decoder = Decoder(model, bins, ids)
        log_p = [decoder.advance(r, None), decoder.advance(torch.full((2, 1), R), None)]
        whole = torch.cat([ids, r + V * WORLD.reward, torch.full((2, 1), V * WORLD.reward_to_go)], 1)
        expected = model(whole).log_softmax(-1)
        assert all(torch.allclose(p[:, 0], expected[:, i], atol=1e-5) for p, i in zip(log_p, (-2, -1)))
        assert decoder.cache.length == 5


def test_a_search_reads_no_token_that_it_does_not_need():
    """Candidates are read up to r, plans that are kept from R on; a last R has no successor."""
    model, bins, ids = tiny_model(), tiny_tokenizer(), random_ids(2, WORLD.N)
    read, plan = [], Plan(3, 4, 2, proposal="sample")
    model.register_forward_pre_hook(lambda model, inputs: read.append(inputs[0].numel()))
    decoder = Decoder(model, bins, ids)
    search.maximise(decoder.advance, decoder.keep, decoder.log_p, bins, plan)
    candidates = 3 * 4 * 2 * (WORLD.M + 1)
    assert sum(read) == 2 * (WORLD.N + candidates + 2 * 4 * (1 + WORLD.N))


@given(st.integers(0, 99), st.integers(0, 3))
def test_past_rewards_to_go_change_no_prediction(seed, past):
    model, bins = tiny_model(), tiny_tokenizer()
    length = past * WORLD.D + WORLD.N
    ids = random_ids(2, length, seed=seed)
    others = torch.where(dims_of(length) == WORLD.reward_to_go, random_ids(2, length, seed=seed + 1), ids)
    plans = [search.maximise(d.advance, d.keep, d.log_p, bins, Plan(1, 3, 2))
             for d in (Decoder(model, bins, x) for x in (ids, others))]
    assert all((a == b).all() for a, b in zip(*plans))


@pytest.mark.parametrize("proposal", ["beam", "sample"])
def test_plans_of_the_cached_model_are_plans_of_the_model(proposal):
    model, bins, ids = tiny_model(dtype=torch.float64), tiny_tokenizer(), random_ids(3, WORLD.D + WORLD.N)
    plan = Plan(3, 4, 3, proposal=proposal)
    plans = [search.maximise(d.advance, d.keep, d.log_p, bins, plan, torch.Generator().manual_seed(0))
             for d in (Decoder(model, bins, ids), Uncached(model, ids))]
    assert (plans[0].bins == plans[1].bins).all()
    assert torch.allclose(plans[0].value, plans[1].value, atol=1e-9)


# -- a trained model ---------------------------------------------------------------------------------------

TRAINED = store.SHIPPED / "hopper-long-released-laptop"
trained = pytest.mark.skipif(not TRAINED.exists(), reason=f"{TRAINED} is not there: `make ship` puts it there")


@trained
@pytest.mark.parametrize("past", [0, 1])
def test_a_trained_model_plans_alike_with_and_without_a_cache(past):
    """200 decisions in two halves, from held-out states after `past` transitions."""
    made, plan = checkpoint.load(TRAINED), Plan(2, 2, 2, proposal="sample", cdf=0.0, include_current=False)
    D, N = made.tokenizer.transition.D, made.tokenizer.transition.N
    ids = torch.cat([made.held_out[:50, t * D : (t + past) * D + N] for t in (0, 5)])
    ids = made.model.model_input(ids)
    plans = [search.maximise(d.advance, d.keep, d.log_p, made.tokenizer, plan, torch.Generator().manual_seed(0))
             for d in (Decoder(made.model, made.tokenizer, ids), Uncached(made.model, ids, made.tokenizer.V))]
    assert len(ids) == 100 and (plans[0].bins == plans[1].bins).all()
    scale = float(plans[1].value.std())  # a value near zero is a difference of large ones
    assert torch.allclose(plans[0].value, plans[1].value, rtol=0, atol=1e-5 * scale)
    actions = plans[0].bins[:, 0, : made.tokenizer.transition.M]
    assert len(actions.unique(dim=0)) > 50  # they do differ


@trained
def test_in_bf16_a_trained_model_s_predictions_stay_close():
    """Mean KL of next-token distributions, fp32 from bf16: 0.8e-4 nats, and the cache adds nothing to it."""
    made, ids = checkpoint.load(TRAINED), checkpoint.load(TRAINED).held_out[:4]
    exact, model, cache = made.model(ids).log_softmax(-1), made.model.in_bf16(), Cache()
    logits = [read(model, ids[:, :16], cache), *(read(model, token, cache) for token in ids[:, 16:].split(1, 1))]
    found = [x.log_softmax(-1, torch.float32) for x in (model(ids), torch.cat(logits, 1))]
    nats = [F.kl_div(x, exact, reduction="none", log_target=True).sum(-1).mean() for x in found]
    assert min(nats) > 1e-6 and max(nats) < 1e-4 and nats[1] < 1.2 * nats[0]


# -- ways to choose ----------------------------------------------------------------------------------------

def table_decoder(transition, starts, bins=3, seed=0):
    table = Table(random_row(seed, bins), starts)
    table.tokenizer = tiny_tokenizer(transition, bins)
    return table


@given(st.integers(0, 999), st.integers(1, 12))
def test_a_length_of_one_action_is_algorithm_1_over_its_tokens(seed, width):
    transition, starts = Transition(1, 3, rewards=False), [(0,), (1,)]
    table = table_decoder(transition, starts, seed=seed)
    actions, record = control.by_likelihood(1, width)(table)
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
    actions, record = control.by_likelihood(2, 3**length)(table)
    best = max(every, key=every.get)
    assert actions[0].tolist() == [best[0]] and record["log_p"][0].item() == pytest.approx(every[best])


def test_sampled_actions_have_the_models_probabilities():
    transition, n = Transition(1, 2), 3000
    table = table_decoder(transition, [(0,)] * n)
    actions, record = control.by_sampling(torch.Generator().manual_seed(0))(table)
    p = {(a, b): (table.row((0,))[a] + table.row((0, a))[b]).item() for a in range(3) for b in range(3)}
    counts = dict.fromkeys(p, 0)
    for pair, q in zip(actions.tolist(), record["log_p"].tolist()):
        counts[tuple(pair)] += 1
        assert q == pytest.approx(p[tuple(pair)])
    expected = n * np.exp(list(p.values()))
    assert chisquare(list(counts.values()), expected / expected.sum() * n).pvalue > 1e-3


# -- the agent ---------------------------------------------------------------------------------------------

def refuses_to_work(*_):
    raise AssertionError("the model was read")


def test_plans_longer_than_the_window_are_refused_before_any_work(monkeypatch):
    model, bins = tiny_model(T=4), tiny_tokenizer()
    monkeypatch.setattr(model, "forward", refuses_to_work)
    monkeypatch.setattr(control, "Decoder", refuses_to_work)
    for past, horizon in ((2, 3), (4, 1), (0, 5), (-1, 1)):
        with pytest.raises(ValueError, match=rf"{past} past \+ {horizon} planned transitions > window of 4"):
            TransformerAgent(model, bins, refuses_to_work, past, horizon)
    TransformerAgent(model, bins, refuses_to_work, 2, 2)
    with pytest.raises(ValueError, match="goals given: True, .*0 goal tokens"):
        TransformerAgent(model, bins, refuses_to_work, 1, 1, goals=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="goals given: False, .*2 goal tokens"):
        TransformerAgent(tiny_model(prefix=2), bins, refuses_to_work, 1, 1)


@pytest.mark.parametrize("transition", [WORLD, NO_REWARDS])
@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("past", range(4))
def test_the_context_is_the_last_transitions_and_slides_whole(monkeypatch, transition, goal, past):
    model, bins = tiny_model(transition, T=5, prefix=2 * goal), tiny_tokenizer(transition)
    rng, E, seen = np.random.default_rng(0), 3, []
    monkeypatch.setattr(control, "Decoder", lambda _, __, ids: SimpleNamespace(ids=ids, log_p=torch.zeros(())))

    def choose(decoder):
        ids = decoder.ids
        seen.append(ids.tolist())
        return torch.from_numpy(rng.integers(V, size=(len(ids), 1))), {"first": ids[:, 0]}

    goals = rng.normal(size=(E, 2)) if goal else None
    agent = TransformerAgent(model, bins, choose, past, 1, goals)
    ids_of = lambda x, dims: bins.encode(torch.as_tensor(x)[None], dims)[0].tolist()  # noqa: E731
    live, history = list(range(E)), {e: [] for e in range(E)}
    for step in range(8):
        states, rewards = rng.normal(size=(len(live), 2)), rng.normal(size=len(live))
        actions, record = agent.act(states)
        for row, e in enumerate(live):
            prefix = ids_of(goals[e], transition.state) if goal else []
            state = ids_of(states[row], transition.state)
            context = history[e][len(history[e]) - past :] if len(history[e]) >= past else history[e]
            assert seen[-1][row] == prefix + sum(context, []) + state, f"step {step}"
            assert record["first"][row] == seen[-1][row][0]
            history[e].append(state + ids_of(actions[row], transition.action))
            if transition.rewards:
                history[e][-1] += ids_of(rewards[row : row + 1], transition.reward)
                history[e][-1] += [V * transition.reward_to_go]
        going_on = np.array([not (step == 2 and e == 1) for e in live])  # one leaves
        agent.observe(rewards, going_on)
        live = [e for e, on in zip(live, going_on) if on]
    assert live == [0, 2]


@pytest.mark.parametrize("proposal", ["beam", "sample"])
def test_the_action_is_the_first_of_the_best_plan_decoded(proposal):
    model, bins, states = tiny_model(), tiny_tokenizer(), np.random.default_rng(0).normal(size=(3, 2))
    plan, seeded = Plan(2, 4, 3, proposal=proposal), lambda: torch.Generator().manual_seed(0)
    actions, record = TransformerAgent(model, bins, control.by_reward(plan, seeded()), 1, 2).act(states)
    decoder = Decoder(model, bins, bins.encode(torch.from_numpy(states), WORLD.state))
    found = search.maximise(decoder.advance, decoder.keep, decoder.log_p, bins, plan, seeded())
    best = found.value.argmax(1)
    for e in range(3):
        assert actions[e, 0] == bins.centres[WORLD.N, found.bins[e, best[e], 0]]
        assert record["value"][e] == found.value[e].max()


# -- what is refused ---------------------------------------------------------------------------------------

def agent_of(model, choose=None):
    choose = choose or control.by_reward(Plan(2, 4, 3), None)
    return TransformerAgent(model, tiny_tokenizer(), choose, 1, 2)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None])
def test_out_of_memory_names_beams_environments_and_an_estimate(error):
    def choose(decoder):
        decoder.advance(torch.zeros(5, 3, dtype=torch.long), torch.zeros(5, 3, dtype=torch.long))
        if error:
            raise error
        torch.empty(2**60)

    model = tiny_model()
    tokens = WORLD.N + 2 * WORLD.D  # the state, two planned transitions
    megabytes = 15 * tokens * model.config.n_layer * 2 * model.config.d_model * 4 / 1e6
    with pytest.raises(MemoryError, match=f"3 beams x 5 environments.*about {megabytes:.4g} MB"):
        agent_of(model, choose).act(np.zeros((5, 2)))


def test_other_errors_stay_what_they_are():
    def choose(decoder):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        agent_of(tiny_model(), choose).act(np.zeros((5, 2)))


@pytest.mark.parametrize("damage", ["everywhere", "rewards alone"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_predictions_that_are_not_numbers_are_refused(damage, value):
    """Those of the first token, and those read on the way, which no step of the search looks at."""
    model = tiny_model()
    if damage == "everywhere":
        model.head.bias.data[2] = value
    else:
        model.token.weight.data[V * WORLD.N] = value  # actions of bin 0: not in the context
    with pytest.raises(FloatingPointError, match="not finite numbers.*float32"):
        agent_of(model).act(np.zeros((2, 2)))


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers read from tensors, shapes that depend on them."""

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
        search.maximise(decoder.advance, decoder.keep, decoder.log_p, bins, plan)
        assert not waits.seen
        assert decoder.log_p.isfinite().all() and waits.seen  # this does


def test_states_of_another_task_are_refused():
    with pytest.raises(ValueError, match=r"states of shape \(4, 3\); the model knows states of 2 numbers"):
        agent_of(tiny_model()).act(np.zeros((4, 3)))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_environments_of_different_tasks_are_refused_before_a_step(dimensions):
    class Wide(Drift):
        def reset(self, seed, options):
            return np.zeros(dimensions), {}

        def step(self, action):
            raise AssertionError("stepped")

    made = iter([Wide(), Drift()])
    with pytest.raises(ValueError, match="different tasks in one batch: .*Drift with 2.*Wide with"):
        control.rollouts(lambda: next(made), FunctionAgent(refuses_to_work, 2), [0, 1])


# -- rollouts ----------------------------------------------------------------------------------------------

class Drift:
    """A noisy state that actions push.  It ends at |state| > 1.5, or, by a time limit, after 3 to 6 steps."""

    action_space = SimpleNamespace(low=np.float32([-0.7]), high=np.float32([0.7]))
    closed = 0

    def reset(self, seed, options):
        self.rng, self.t, self.steps = np.random.default_rng(seed), 0, 3 + seed % 4
        self.state = self.rng.normal(size=2) / 2 if options is None else np.array(options["start"])
        return self.state.copy(), {}

    def step(self, action):
        assert action.dtype == np.float32 and np.abs(action).max() <= np.float32(0.7)
        self.state = 0.7 * self.state + 0.4 * self.rng.normal(size=2) + 0.5 * action
        self.t += 1
        return self.state.copy(), self.state.sum(), np.abs(self.state).max() > 1.5, self.t == self.steps, {}

    def close(self):
        Drift.closed += 1


def same(a, b):
    return (np.array_equal(a.states, b.states) and np.array_equal(a.actions, b.actions)
            and a.rewards == b.rewards and a.terminal == b.terminal and a.record.keys() == b.record.keys()
            and all(values == pytest.approx(b.record[name], rel=1e-4) for name, values in a.record.items()))


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("goal", [False, True])
def test_rollouts_in_a_batch_are_rollouts_alone(past, goal):
    """Environments that end leave the batch and leave the others as they would have been."""
    model, bins, seeds = tiny_model(T=5, prefix=2 * goal), tiny_tokenizer(), [*range(8)]
    goals = np.random.default_rng(1).normal(size=(8, 2)) if goal else None

    def run(rows):
        chosen = None if goals is None else goals[rows]
        agent = TransformerAgent(model, bins, control.by_reward(Plan(2, 3, 2), None), past, 2, chosen)
        return control.rollouts(Drift, agent, rows)

    together = run(seeds)
    lengths = [len(r.rewards) for r in together]
    assert len(set(lengths)) > 2 and {r.terminal for r in together} == {True, False}
    assert len({float(a[0]) for r in together for a in r.actions}) > 1
    assert all(same(run([i])[0], together[i]) for i in seeds)
    assert all(same(a, together[i]) for a, i in zip(run([5, 2]), (5, 2)))


def test_a_rollout_records_what_happened():
    seen = []

    def policy(states, rows):
        seen.append((states, rows))
        return 3 * states[:, :1] + rows[:, None]

    agent, Drift.closed, left = FunctionAgent(policy, 3), 0, []
    options = [{"start": [x, 0.1]} for x in (0.0, 1.4, -0.2)]
    runs = control.rollouts(Drift, agent, [0, 1, 2], options, left.append)
    assert Drift.closed == 3 and [r.seed for r in runs] == [0, 1, 2]
    assert [r.states[0].tolist() for r in runs] == [o["start"] for o in options]
    for i, run in enumerate(runs):
        env = Drift()
        env.reset(run.seed, options[i])
        for t, action in enumerate(run.actions):  # stepping again by hand gives the same
            assert action == pytest.approx(np.clip(3 * run.states[t][:1] + i, -0.7, 0.7))
            state, reward, terminal, timeout, _ = env.step(action.astype(np.float32))
            assert (state == run.states[t + 1]).all() and reward == run.rewards[t]
            assert (terminal or timeout) == (t == len(run.actions) - 1)
        assert len(run.states) == len(run.actions) + 1 == len(run.rewards) + 1
        assert run.terminal == terminal and run.total == pytest.approx(sum(run.rewards))
    lengths = [len(run.rewards) for run in runs]
    going = [[i for i in range(3) if lengths[i] > t] for t in range(max(lengths) + 1)]
    assert [rows.tolist() for _, rows in seen] == going[:-1] and left == [len(rows) for rows in going[1:]]
    assert len(set(lengths)) > 1


def test_no_seeds_are_refused_before_an_environment_is_made():
    with pytest.raises(ValueError, match="no seeds: at least one"):
        control.rollouts(refuses_to_work, FunctionAgent(refuses_to_work, 0), [])
