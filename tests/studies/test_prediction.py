"""Tests of rollouts: they agree with the uncached model on the windows of `context_length`, and follow its law."""


import numpy as np
import pytest
import torch
from conftest import NO_REWARDS, WORLD, V, dims_of, random_ids, tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ttlib.control import Streams
from ttlib.studies import prediction
from ttlib.studies.prediction import WindowReader

pytestmark = pytest.mark.usefixtures("without_gradients")
START = np.array([[0.3, -0.2], [1.1, 0.4], [-0.6, 0.9]])


def window_of(t, kept_transitions, T):
    """Return the first transition in the window of transition t, by moving a list along."""
    window = []
    for i in range(t + 1):
        if len(window) == T:
            window = window[-kept_transitions:]
        window.append(i)
    return window[0]


def uncached(model, ids, kept):
    """Return the logits (S, V) of the token after ids (S, n): the window of its transition is read at once."""
    t, D = ids.shape[1] // model.config.transition.D, model.config.transition.D
    return model(ids[:, window_of(t, kept, model.config.T) * D :])[:, -1]


def mask_some(ids, probability, bins=V):
    """Mask some state dimensions of a window of WORLD."""
    dims = dims_of(ids.shape[1])
    masked = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < probability) & (dims < WORLD.N)
    return torch.where(masked, bins * WORLD.D + dims, ids)


@given(T=st.integers(2, 6), t=st.integers(0, 30), draw=st.data())
def test_the_context_is_what_cutting_a_full_window_leaves(T, t, draw):
    kept = draw.draw(st.integers(1, T - 1))
    assert prediction.context_length(t, T, kept) == t - window_of(t, kept, T)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("transition, masked", [(WORLD, False), (WORLD, True), (NO_REWARDS, False)])
@pytest.mark.parametrize("T, kept", [(2, 1), (3, 1), (4, 3), (5, 2)])
def test_a_reader_agrees_with_the_uncached_model_on_its_windows(dtype, tolerance, transition, masked, T, kept):
    """The tokens come in pieces of any length, and log-probabilities are compared after each piece."""
    model, D, count = tiny_model(transition, T, dtype=dtype, masked=masked), transition.D, 9
    ids = random_ids(2, count * D, transition)
    ids = mask_some(ids, 0.5) if masked else ids
    slow = {}  # by the number of earlier tokens
    for t in range(count):
        log_p = model(ids[:, window_of(t, kept, T) * D : (t + 1) * D]).log_softmax(-1)
        slow |= {t * D + i: log_p[:, i - D - 1] for i in range(D) if t or i}
    reader, at, rng = WindowReader(model, kept), 0, np.random.default_rng(0)
    while at < (count - 1) * D:
        n = int(rng.integers(1, D - at % D + 1))
        logits, at = reader.read(ids[:, at : at + n]), at + n
        assert torch.allclose(logits.log_softmax(-1), slow[at], atol=tolerance, rtol=0)


def slow_rollout(model, tokenizer, start, steps, kept, rng, mask_probability):
    """Sample token by token without a cache; return the drawn bins and every predictive distribution."""
    transition, bins = model.config.transition, tokenizer.V
    shown, drawn, laws = torch.zeros(len(start), 0, dtype=torch.long), [], []
    for t in range(steps + 1):
        masked = torch.zeros(start.shape, dtype=bool)
        if mask_probability:
            masked = torch.rand(start.shape, generator=rng) < mask_probability
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
            drawn.append((t, dim, new))
            fed = new + bins * dim
            if dim < transition.N:
                fed = torch.where(masked[:, dim], bins * transition.D + dim, fed)
            shown = torch.cat([shown, fed[:, None]], 1)
            if t == steps and dim == transition.N - 1:
                return drawn, laws


@pytest.mark.parametrize("transition, mask_probability", [(WORLD, 0.0), (WORLD, 0.5), (NO_REWARDS, 0.0)])
@pytest.mark.parametrize("T, kept", [(2, 1), (4, 3), (5, 2)])
@pytest.mark.parametrize("S", [1, 3])
def test_rollouts_agree_with_the_uncached_model(transition, mask_probability, T, kept, S):
    """With one sample its distributions are the predictive ones; with several these are their mean."""
    model, tokenizer, steps = tiny_model(transition, T, masked=mask_probability > 0), tiny_tokenizer(transition), 9
    args, done = (model, tokenizer, START[:S], steps, kept), []
    sampled = prediction.rollout(*args, Streams([5]), mask_probability, progress=done.append)
    assert done == list(range(1, steps + 1))
    drawn, laws = slow_rollout(*args, torch.Generator().manual_seed(5), mask_probability)
    centres = tokenizer.centres.numpy()
    assert sampled.states.shape == (S, steps + 1, 2) and sampled.actions.shape == (S, steps, 1)
    assert (sampled.states[:, 0] == START[:S]).all()
    for t, dim, bins in drawn:
        if t and dim < transition.N:
            assert (sampled.states[:, t, dim] == centres[dim, bins]).all()
        elif transition.N <= dim < transition.N + transition.M:
            assert (sampled.actions[:, t, dim - transition.N] == centres[dim, bins]).all()
    states = [(t, dim, p) for t, dim, p in laws if dim < transition.N]
    assert len(states) == steps * transition.N
    for t, dim, p in states:
        assert sampled.predictive[t - 1, dim] == pytest.approx(p.numpy(), abs=1e-5)


@pytest.mark.parametrize("model, kept, mask_probability, start, complaint", [
    (tiny_model(T=4), 0, 0.0, START, "kept_transitions=0 in a window of 4 transitions; expected 1 to 3"),
    (tiny_model(T=4), 4, 0.0, START, "kept_transitions=4 in a window of 4 transitions; expected 1 to 3"),
    (tiny_model(T=4, prefix=2), 2, 0.0, START, "reads 2 goal tokens; expected none"),
    (tiny_model(T=4), 2, 0.5, START, "mask_probability=0.5, but the model's config has masked=False"),
    (tiny_model(T=4, masked=True), 2, 0.0, START, "mask_probability=0.0, but the model's config has masked=True"),
    (tiny_model(T=4), 2, 0.0, np.array([[0.0, np.nan]]), "cannot tokenize nan in dimension s1"),
])
def test_what_cannot_be_predicted_is_refused(model, kept, mask_probability, start, complaint):
    with pytest.raises(ValueError, match=complaint):
        prediction.rollout(model, tiny_tokenizer(), start, 3, kept, Streams([0]), mask_probability)
