"""Figure 3: attention maps whose rows are named by what they predict, and scores of the patterns in them."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ttlib.checkpoint import Checkpoint
from ttlib.model import GPT, Attend, causal_mask, heads
from ttlib.pipeline import store
from ttlib.pipeline.experiments import Experiment
from ttlib.tokenizer import Transition

# The thresholds are ours.  A head is Markovian if states give more than this fraction of their weight to the transition
# before, and striated if they give their own dimension, two or more transitions back, at least so many times the weight
# that uniform attention gives it.
MARKOV, STRIATED = 0.5, 3.0


@torch.inference_mode()
def attention_maps(model: GPT, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return weights (B, H, L, L), and values and outputs of heads (B, H, L, d_head), of each layer for ids (B, L)."""
    maps = []

    def attend(layer: int, qkv: Tensor) -> Tensor:
        q, k, v = heads(qkv, model.config.n_head)
        weights = (q @ k.mT / math.sqrt(q.shape[-1]) + causal_mask(q.shape[2], q)).softmax(-1)
        maps.append((weights, v, weights @ v))
        return maps[-1][2].transpose(1, 2).flatten(2)

    model(ids, attend)
    return maps


def predicted(weights: Tensor) -> Tensor:
    """Move each row of the maps (..., L, L) to the token that it predicts, the next one; row 0 becomes zero."""
    return F.pad(weights[..., :-1, :], (0, 0, 1, 0))


def patterns(transition: Transition, T: int) -> dict[str, Tensor]:
    """Return the keys (columns) of each pattern, for each predicted token (row): (L, L) bool, L = T * D.

    For a token of transition t, `markov` holds the keys of transition t - 1, `current` those of t before the token,
    `same_before` the same dimension at t - 1, `striated` the same dimension before that, `past_actions` and
    `past_states` those of earlier transitions, and `rewards`, which alone holds any r or R, those before the token.
    """
    dim, step = _dimensions(transition, T * transition.D), torch.arange(T * transition.D) // transition.D
    lag, same = step[:, None] - step, dim[:, None] == dim
    is_state, is_action = dim < transition.state.stop, (dim >= transition.action.start) & (dim < transition.action.stop)
    scored, before = is_state | is_action, torch.ones_like(lag).tril(-1).bool()
    return {
        "markov": (lag == 1) & scored,
        "current": (lag == 0) & scored & before,
        "same_before": (lag == 1) & same & scored,
        "striated": (lag >= 2) & same & scored,
        "past_actions": (lag >= 1) & is_action,
        "past_states": (lag >= 1) & is_state,
        "rewards": ~scored & before,
    }


def _dimensions(transition: Transition, L: int) -> Tensor:
    """Return the dimension of each of L tokens, (L,)."""
    return torch.tensor([transition.dimension(i) for i in range(L)])


def without_rewards(weights: Tensor, transition: Transition) -> Tensor:
    """Set the weights (..., rows, L) on r and R to zero, and rescale each row to sum to one (NaN if it cannot)."""
    weights = weights * (_dimensions(transition, weights.shape[-1]) < transition.action.stop).to(weights.device)
    return weights / weights.sum(-1, keepdim=True)


def scores(weights: Tensor, transition: Transition) -> pd.DataFrame:
    """Score each head of one layer's maps (B, H, L, L) of full windows.

    Returns a table with the columns rows, score, head (from 1) and value: the mean weight on the keys of a pattern over
    windows and over the states or the actions (`rows`) of the last transition.  Weights on r and R are left out and the
    others rescaled, except for the score `rewards`.  `past_action_key` and `past_state_key` are the mean weights on one
    past action or state dimension.
    """
    L = weights.shape[-1]
    T, last = L // transition.D, L - transition.D
    weights = predicted(weights)[:, :, last : last + transition.action.stop].double()
    rescaled, table = without_rewards(weights, transition), []
    for name, keys in patterns(transition, T).items():
        keys = keys[last : last + transition.action.stop].to(weights.device)
        value = ((weights if name == "rewards" else rescaled) * keys).sum(-1)  # (B, H, rows)
        for rows, dims in (("states", transition.state), ("actions", transition.action)):
            if name.startswith("past") and rows == "states":
                continue
            mean = value[..., dims].transpose(0, 1).flatten(1).nanmean(1).tolist()
            table += [(rows, name, head + 1, x) for head, x in enumerate(mean)]
            if name.startswith("past"):
                count = int(keys[dims].sum(1)[0])
                table += [(rows, f"{name[:-1]}_key", head + 1, x / count) for head, x in enumerate(mean)]
    return pd.DataFrame(table, columns=["rows", "score", "head", "value"])


def uniform(L: int) -> Tensor:
    """Return an attention map (1, 1, L, L) with equal weight on every visible token."""
    return (torch.ones(L, L).tril() / torch.arange(1, L + 1)[:, None])[None, None]


def full_windows(loaded: Checkpoint) -> Tensor:
    """Return the ids (B, L) of a checkpoint's held-out windows that no end of an episode cuts short."""
    ids, weight = store.held_out(loaded)
    return ids[(weight > 0).all(1)]


def score_table(exp: Experiment, loaded: Checkpoint) -> pd.DataFrame:
    """Return the rows of `attention_scores.csv` for one model.  Raises ValueError if no held-out window is full."""
    transition, ids = exp.model.transition, full_windows(loaded).to(next(loaded.model.parameters()).device)
    if not len(ids):
        raise ValueError(
            f"{exp.label}: none of its held-out windows of {exp.model.T} transitions is full; expected at least one, "
            "so hold out longer episodes or use a shorter window"
        )
    parts = []
    for part in ids.split(16):  # maps of long windows need much memory
        for layer, (weights, _, _) in enumerate(attention_maps(loaded.model, part), 1):
            parts.append(scores(weights, transition).assign(layer=layer, windows=len(part)))
    table = pd.concat(parts)
    columns, total = ["layer", "head", "rows", "score"], table.value * table.windows
    table = (total.groupby([table[c] for c in columns], sort=False).sum() / len(ids)).rename("value").reset_index()
    even = scores(uniform(ids.shape[1]), transition).drop(columns="head").rename(columns={"value": "uniform_value"})
    table = table.merge(even, on=["rows", "score"]).assign(profile=exp.profile, seed=exp.train.seed, windows=len(ids))
    return table[["profile", "layer", "head", "seed", "rows", "score", "value", "uniform_value", "windows"]]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each profile with the numbers behind Figure 3's three claims, from `attention_scores.csv`.

    `markov` and `striated` count such heads.  `sum` and `key` count heads that look more at past actions than at past
    states when they predict actions, by the whole weight and by the mean weight on one key.
    """
    wide = table.pivot(index=["profile", "layer", "head", "seed"], columns=["rows", "score"], values="value")
    even = table.groupby(["rows", "score"]).uniform_value.first()
    states, actions = wide["states"], wide["actions"]
    each = pd.DataFrame({
        "heads": 1,
        "markov": states.markov > MARKOV,
        "striated": states.striated >= STRIATED * even["states", "striated"],
        "sum": actions.past_actions > actions.past_states,
        "key": actions.past_action_key > actions.past_state_key,
    }).groupby("profile").sum()  # fmt: skip
    return each.join(actions[["past_actions", "past_states"]].groupby("profile").mean())


def figure_rows(exp: Experiment, loaded: Checkpoint, layers: Sequence[int], last: int) -> pd.DataFrame:
    """Return the rows of `fig3_attention.csv`: the maps of the first full window, cut to its `last` transitions.

    Layers count from 1.  A query is the token that is predicted.  Queries and keys are named by dimension and step,
    such as "s3@9".  Weights on r and R are left out as in `without_rewards`, and so are weights below 0.002.
    """
    transition, T = exp.model.transition, exp.model.T
    names = [f"{name}@{t}" for t in range(T) for name in transition.names()]
    shown = range((T - last) * transition.D, len(names))
    chosen = [p for p in shown if transition.dimension(p) < transition.action.stop]
    ids, parts = full_windows(loaded)[:1].to(next(loaded.model.parameters()).device), []
    maps = attention_maps(loaded.model, ids)
    for layer in layers:
        weights = without_rewards(predicted(maps[layer - 1][0][0].cpu()), transition).nan_to_num()
        weights = weights[:, chosen][:, :, chosen].mul(1000).round().div(1000)
        head, row, column = (weights >= 0.002).nonzero().T
        columns = {
            "profile": exp.profile, "layer": layer, "head": head + 1, "seed": exp.train.seed,
            "query": [names[chosen[i]] for i in row], "key": [names[chosen[i]] for i in column],
            "weight": weights[head, row, column].tolist(),
        }  # fmt: skip
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts)


def masking(model: GPT, layer: int, head: int, hidden: Tensor) -> Attend:
    """Return the model's attention with some keys hidden from one head of one layer, both counted from 1.

    hidden: (L, L) bool, true for keys (columns) that do not help to predict a token (row).  The other weights of a row
    are rescaled to sum to one; if no key remains, the head returns zero.
    """
    hidden = F.pad(hidden[1:], (0, 0, 0, 1))  # the row of a token becomes that of the position that predicts it

    def attend(at: int, qkv: Tensor) -> Tensor:
        if at != layer - 1:
            return model.causal(at, qkv)
        q, k, v = heads(qkv, model.config.n_head)
        logits = q @ k.mT / math.sqrt(q.shape[-1]) + causal_mask(q.shape[2], q)
        logits[:, head - 1] = logits[:, head - 1].masked_fill(hidden.to(q.device), -torch.inf)
        return (logits.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(2)

    return attend
