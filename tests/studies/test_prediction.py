"""Rollouts of the model alone are the uncached model on the windows that `past` says, and follow its law."""

import itertools

import numpy as np
import pytest
import torch
from conftest import NO_REWARDS, WORLD, V, dims_of, random_ids, tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ttlib.studies import prediction
from ttlib.studies.prediction import Stream
from ttlib.tokenizer import Transition

START = np.array([[0.3, -0.2], [1.1, 0.4], [-0.6, 0.9]])


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def window_of(t, kept, T):
    """First transition that transition t is read after: by moving a list along."""
    window = []
    for i in range(t + 1):
        if len(window) == T:
            window = window[-kept:]
        window.append(i)
    return window[0]


def uncached(model, ids, kept):
    """ids (S, n) -> logits (S, V) of token n: its transition's window read whole."""
    t, D = ids.shape[1] // model.config.transition.D, model.config.transition.D
    return model(ids[:, window_of(t, kept, model.config.T) * D :])[:, -1]


def hide(ids, share, bins=V):
    """Some state dimensions of a window of WORLD as missing."""
    dims = dims_of(ids.shape[1])
    hidden = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < share) & (dims < WORLD.N)
    return torch.where(hidden, bins * WORLD.D + dims, ids)


@given(T=st.integers(2, 6), t=st.integers(0, 30), draw=st.data())
def test_past_is_what_cutting_a_full_window_leaves(T, t, draw):
    kept = draw.draw(st.integers(1, T - 1))
    assert prediction.past(t, T, kept) == t - window_of(t, kept, T)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("transition, missing", [(WORLD, False), (WORLD, True), (NO_REWARDS, False)])
@pytest.mark.parametrize("T, kept", [(2, 1), (3, 1), (4, 3), (5, 2)])
def test_a_stream_is_the_uncached_model_on_its_windows(dtype, tolerance, transition, missing, T, kept):
    """Tokens handed over in pieces of any length; log-probabilities after each."""
    model, D, count = tiny_model(transition, T, dtype=dtype, missing=missing), transition.D, 9
    ids = random_ids(2, count * D, transition)
    ids = hide(ids, 0.5) if missing else ids
    slow = {}  # by the number of tokens before
    for t in range(count):
        log_p = model(ids[:, window_of(t, kept, T) * D : (t + 1) * D]).log_softmax(-1)
        slow |= {t * D + i: log_p[:, i - D - 1] for i in range(D) if t or i}
    stream, at, rng = Stream(model, kept), 0, np.random.default_rng(0)
    while at < (count - 1) * D:
        n = int(rng.integers(1, D - at % D + 1))
        found, at = stream.read(ids[:, at : at + n]), at + n
        assert torch.allclose(found.log_softmax(-1), slow[at], atol=tolerance, rtol=0)


def slow_rollout(model, tokenizer, start, steps, kept, rng, hidden):
    """Token by token, nothing cached: true bins, what the model is shown, every predictive distribution."""
    transition, bins = model.config.transition, tokenizer.V
    shown, true, laws = torch.zeros(len(start), 0, dtype=torch.long), [], []
    for t in range(steps + 1):
        unseen = torch.rand(start.shape, generator=rng) < hidden if hidden else torch.zeros(start.shape, dtype=bool)
        for dim in range(transition.D):
            if dim == transition.D - 1 and transition.rewards:
                shown = torch.cat([shown, torch.full((len(start), 1), bins * dim)], 1)
                continue
            if t == 0 and dim < transition.N:
                new = tokenizer.bins(torch.from_numpy(start), transition.state)[:, dim]
            else:
                p = uncached(model, shown, kept).softmax(-1)
                new = (p.cumsum(-1) <= torch.rand(len(p), 1, generator=rng)).sum(-1)  # the first bin that u is below
                laws.append((t, dim, p.mean(0)))
            true.append((t, dim, new))
            fed = new + bins * dim
            if dim < transition.N:
                fed = torch.where(unseen[:, dim], bins * transition.D + dim, fed)
            shown = torch.cat([shown, fed[:, None]], 1)
            if t == steps and dim == transition.N - 1:
                return true, laws


@pytest.mark.parametrize("transition, hidden", [(WORLD, 0.0), (WORLD, 0.5), (NO_REWARDS, 0.0)])
@pytest.mark.parametrize("T, kept", [(2, 1), (4, 3), (5, 2)])
@pytest.mark.parametrize("S", [1, 3])
def test_rollouts_are_the_uncached_model_s(transition, hidden, T, kept, S):
    """One sample, whose distributions are the predictive itself; and several, whose mean it is."""
    model, tokenizer, steps = tiny_model(transition, T, missing=hidden > 0), tiny_tokenizer(transition), 9
    args = (model, tokenizer, START[:S], steps, kept)
    found = prediction.rollout(*args, torch.Generator().manual_seed(5), hidden)
    true, laws = slow_rollout(*args, torch.Generator().manual_seed(5), hidden)
    centres = tokenizer.centres.numpy()
    assert found.states.shape == (S, steps + 1, 2) and found.actions.shape == (S, steps, 1)
    assert (found.states[:, 0] == START[:S]).all()
    for t, dim, bins in true:
        if t and dim < transition.N:
            assert (found.states[:, t, dim] == centres[dim, bins]).all()
        elif transition.N <= dim < transition.N + transition.M:
            assert (found.actions[:, t, dim - transition.N] == centres[dim, bins]).all()
    states = [(t, dim, p) for t, dim, p in laws if dim < transition.N]
    assert len(states) == steps * transition.N
    for t, dim, p in states:
        assert found.predictive[t - 1, dim] == pytest.approx(p.numpy(), abs=1e-5)


def test_a_markovian_model_knows_nothing_of_the_transition_before_last():
    model, D = tiny_model(T=2), WORLD.D
    one, other, recent = (random_ids(2, 7 * D, seed=seed) for seed in (0, 1, 2))
    for t in range(2, 6):
        logits = []
        for history in (one, other):
            ids, stream = torch.cat([history[:, : (t - 1) * D], recent[:, (t - 1) * D :]], 1), Stream(model, 1)
            logits.append([stream.read(ids[:, i : i + 1]) for i in range((t + 1) * D)])
        same = [torch.equal(a, b) for a, b in zip(*logits, strict=True)]
        # Token i is predicted from the one before it: transition t from its first token on, and never t - 1.
        assert all(same[t * D - 1 :]) and not any(same[(t - 2) * D : t * D - 1])


@pytest.mark.parametrize("T, kept, t", [(3, 2, 5), (4, 1, 5), (5, 2, 7), (5, 2, 8)])
def test_what_lies_before_the_window_is_forgotten_and_its_first_token_is_not(T, kept, t):
    model, D, start = tiny_model(T=T), WORLD.D, window_of(t, kept, T) * WORLD.D
    ids = random_ids(1, (t + 1) * D)
    earlier, inside = ids.clone(), ids.clone()
    earlier[:, :start] = random_ids(1, start, seed=3)
    inside[:, start] = (ids[:, start] + 1) % V

    def within(ids):  # logits of every token of transition t
        stream = Stream(model, kept)
        return torch.stack([stream.read(ids[:, i : i + 1]) for i in range((t + 1) * D - 1)])[t * D - 1 :]

    assert torch.equal(within(earlier), within(ids))
    assert not (within(inside) == within(ids)).all(-1).any()


def test_the_first_predicted_state_follows_the_model_s_law():
    """All actions and rewards enumerated: the mean predictive and the samples' frequencies are its marginal."""
    transition, bins, n = Transition(1, 1), 2, 20_000
    model, tokenizer = tiny_model(transition, T=3, bins=bins), tiny_tokenizer(transition, bins)
    s = tokenizer.encode(torch.zeros(1, 1), 0)
    exact = torch.zeros(bins)
    for a, r in itertools.product(range(bins), repeat=2):
        ids = torch.cat([s, torch.tensor([[a + bins, r + 2 * bins, 3 * bins]])], 1)
        p = model(ids)[0].softmax(-1)
        exact += p[0, a] * p[1, r] * p[3]
    found = prediction.rollout(model, tokenizer, np.zeros((n, 1)), 1, 1, torch.Generator().manual_seed(0))
    share = (found.states[:, 1, 0] == tokenizer.centres[0, 0].item()).mean()
    tolerance = 4 / n**0.5 / 2  # four deviations of a share
    assert 0.1 < exact[0] < 0.9
    assert found.predictive[0, 0] == pytest.approx(exact.numpy(), abs=tolerance)
    assert share == pytest.approx(exact[0].item(), abs=tolerance)


def test_a_model_that_is_shown_no_state_predicts_the_same_from_any_start():
    model, tokenizer = tiny_model(missing=True), tiny_tokenizer()
    run = lambda start, hidden: prediction.rollout(  # noqa: E731
        model, tokenizer, start, 6, 2, torch.Generator().manual_seed(0), hidden
    )
    blind = [run(start, 1.0) for start in (START[:1], START[1:2])]
    assert (blind[0].states[:, 1:] == blind[1].states[:, 1:]).all()
    assert (blind[0].predictive == blind[1].predictive).all()
    assert not np.allclose(*(run(start, 0.5).predictive for start in (START[:1], START[1:2])))


def test_every_sample_and_step_has_a_mask_of_its_own():
    """Seen in what the model is fed."""
    model, tokenizer, fed = tiny_model(missing=True), tiny_tokenizer(), []
    model.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    S, steps = 400, 4
    prediction.rollout(model, tokenizer, START[:1].repeat(S, 0), steps, 2, torch.Generator().manual_seed(0), 0.5)
    single = torch.cat([ids for ids in fed if ids.shape[1] == 1], 1)  # r and R, and windows, are longer
    hidden = (single >= V * WORLD.D).float()
    columns = [i for i in range(hidden.shape[1]) if hidden[:, i].any()]
    assert len(columns) == (steps + 1) * WORLD.N  # all states, the first included, and nothing but states
    assert ((hidden[:, columns].mean(0) - 0.5).abs() < 4 * 0.5 / S**0.5).all()
    correlation = torch.corrcoef(hidden[:, columns].T) - torch.eye(len(columns))
    assert correlation.abs().max() < 4 / S**0.5


def test_progress_counts_the_steps():
    done = []
    rng = torch.Generator().manual_seed(0)
    prediction.rollout(tiny_model(), tiny_tokenizer(), START, 5, 3, rng, progress=done.append)
    assert done == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "model, kept, hidden, start, complaint",
    [
        (tiny_model(T=4), 0, 0.0, START, "kept=0 transitions of a window of 4"),
        (tiny_model(T=4), 4, 0.0, START, "kept=4 transitions of a window of 4"),
        (tiny_model(T=4, prefix=2), 2, 0.0, START, "after 2 goal tokens"),
        (tiny_model(T=4), 2, 0.5, START, "hidden=0.5, but the model is of partly hidden states: False"),
        (tiny_model(T=4, missing=True), 2, 0.0, START, "hidden=0.0, but the model is of partly hidden states: True"),
        (tiny_model(T=4), 2, 0.0, np.array([[0.0, np.nan]]), "cannot tokenize nan in dimension s1"),
    ],
)
def test_what_cannot_be_predicted_is_refused(model, kept, hidden, start, complaint):
    with pytest.raises(ValueError, match=complaint):
        prediction.rollout(model, tiny_tokenizer(), start, 3, kept, torch.Generator(), hidden)
