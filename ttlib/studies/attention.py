"""Figure 3: attention maps whose rows are named by what they predict, scores of their patterns, and a viewer."""

import base64
import json
import math
from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ttlib.checkpoint import Checkpoint
from ttlib.model import GPT, Attend, causal_mask, heads
from ttlib.pipeline.experiments import Experiment
from ttlib.tokenizer import Tokenizer, Transition

MARKOV = 0.5  # ours: a head is Markovian where states give the transition before more than this,


STRIATED = 3.0  # striated where they give their own dimension at lags >= 2 this many times what even attention does


def predicted(weights: Tensor) -> Tensor:
    """Maps (..., L, L) with row p moved to p + 1, whose token it predicts; row 0 is zero, for nothing predicts it."""
    return F.pad(weights[..., :-1, :], (0, 0, 1, 0))


def patterns(transition: Transition, T: int) -> dict[str, Tensor]:
    """Which keys (columns) each pattern has for a predicted token (row): (L, L) bool, L = T * D.

    markov        transition t-1, for a token of transition t
    current       transition t itself, as far as it is known
    same_before   the same dimension at t-1
    striated      the same dimension at t-2 and earlier
    past_actions, past_states   of strictly earlier transitions
    rewards       r and R, which the others leave out
    """
    dim, step = torch.arange(T * transition.D) % transition.D, torch.arange(T * transition.D) // transition.D
    lag, same = step[:, None] - step, dim[:, None] == dim
    is_state, is_action = dim < transition.state.stop, (dim >= transition.action.start) & (dim < transition.action.stop)
    kept = is_state | is_action
    return {
        "markov": (lag == 1) & kept,
        "current": (lag == 0) & kept & torch.ones_like(lag).tril(-1).bool(),
        "same_before": (lag == 1) & same & kept,
        "striated": (lag >= 2) & same & kept,
        "past_actions": (lag >= 1) & is_action,
        "past_states": (lag >= 1) & is_state,
        "rewards": ~kept & torch.ones_like(lag).tril(-1).bool(),
    }


def without_rewards(weights: Tensor, transition: Transition) -> Tensor:
    """Weights (..., rows, L) on r and R set to zero, the rest of each row renormalised; a row with no rest is NaN."""
    dim = torch.arange(weights.shape[-1], device=weights.device) % transition.D
    weights = weights * (dim < transition.action.stop)
    return weights / weights.sum(-1, keepdim=True)


def scores(weights: Tensor, transition: Transition) -> pd.DataFrame:
    """Of one layer's maps (B, H, L, L) of full windows: columns rows, score, head (from 1) and value.

    A value is the weight on the keys of a pattern, the mean over windows and over the predicted tokens of the last
    transition: its states or its actions (`rows`).  r and R are left out and the others renormalised; the score
    `rewards` is the weight they had.  `..._key` is per key: what one past action, one past state has on average.
    """
    L = weights.shape[-1]
    T, last = L // transition.D, L - transition.D
    weights = predicted(weights)[:, :, last : last + transition.action.stop].double()
    kept, found = without_rewards(weights, transition), []
    for name, keys in patterns(transition, T).items():
        keys = keys[last : last + transition.action.stop].to(weights.device)
        value = ((weights if name == "rewards" else kept) * keys).sum(-1)  # (B, H, rows)
        for rows, dims in (("states", transition.state), ("actions", transition.action)):
            if name.startswith("past") and rows == "states":
                continue
            mean = value[..., dims].transpose(0, 1).flatten(1).nanmean(1).tolist()
            found += [(rows, name, head + 1, x) for head, x in enumerate(mean)]
            if name.startswith("past"):
                count = int(keys[dims].sum(1)[0])
                found += [(rows, f"{name[:-1]}_key", head + 1, x / count) for head, x in enumerate(mean)]
    return pd.DataFrame(found, columns=["rows", "score", "head", "value"])


def uniform(L: int) -> Tensor:
    """(1, 1, L, L): every token looks alike at itself and all before it."""
    return (torch.ones(L, L).tril() / torch.arange(1, L + 1)[:, None])[None, None]


def full_windows(loaded: Checkpoint) -> Tensor:
    """(B, L) ids of those held-out windows that a checkpoint carries which no episode's end cuts short."""
    return loaded.held_out[(loaded.weight > 0).all(1)]


def score_table(exp: Experiment, loaded: Checkpoint) -> pd.DataFrame:
    """Rows of `attention_scores.csv` of one model.  Layers and heads count from 1, as in the paper."""
    transition, ids = exp.model.transition, full_windows(loaded).to(next(loaded.model.parameters()).device)
    if not len(ids):
        raise ValueError(f"{exp.label}: none of its held-out windows of {exp.model.T} transitions is full")
    parts = []
    for part in ids.split(16):  # maps of long windows are large
        for layer, (weights, _, _) in enumerate(loaded.model.attention_maps(part), 1):
            parts.append(scores(weights, transition).assign(layer=layer, windows=len(part)))
    table = pd.concat(parts)
    columns, total = ["layer", "head", "rows", "score"], table.value * table.windows
    table = (total.groupby([table[c] for c in columns], sort=False).sum() / len(ids)).rename("value").reset_index()
    even = scores(uniform(ids.shape[1]), transition).drop(columns="head").rename(columns={"value": "uniform_value"})
    table = table.merge(even, on=["rows", "score"]).assign(profile=exp.profile, seed=exp.train.seed, windows=len(ids))
    return table[["profile", "layer", "head", "seed", "rows", "score", "value", "uniform_value", "windows"]]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Figure 3's three claims, from `attention_scores.csv`: a row for each profile.

    heads, and how many of them are Markovian (`markov`), striated, and look more at past actions than at past states
    when they predict actions, by `sum` and per `key`; past_actions and past_states: mean weights on both, all heads.
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
    """Rows of `fig3_attention.csv`: the first full window's maps in some layers (from 1), `last` transitions of them.

    Query and key are named by dimension and step, "s3@9"; a query is the token predicted.  r and R are left out and
    the rest is renormalised, earlier keys included; weights below 0.002 have no row.
    """
    transition, T = exp.model.transition, exp.model.T
    names = [f"{name}@{t}" for t in range(T) for name in transition.names()]
    chosen = [p for p in range((T - last) * transition.D, len(names)) if p % transition.D < transition.action.stop]
    maps, parts = loaded.model.attention_maps(full_windows(loaded)[:1].to(next(loaded.model.parameters()).device)), []
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
    """Attention as it is, but for one head of one layer (from 1), which does not see the keys hidden (L, L) bool from
    the row that predicts a token; what is left of its weights is renormalised, and where nothing is left it is zero."""
    hidden = F.pad(hidden[1:], (0, 0, 0, 1))  # rows by position again

    def attend(at: int, qkv: Tensor) -> Tensor:
        if at != layer - 1:
            return model.causal(at, qkv)
        q, k, v = heads(qkv, model.config.n_head)
        logits = q @ k.mT / math.sqrt(q.shape[-1]) + causal_mask(q.shape[2], q)
        logits[:, head - 1] = logits[:, head - 1].masked_fill(hidden.to(q.device), -torch.inf)
        return (logits.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(2)

    return attend


def viewer(maps: Sequence[Tensor], ids: Tensor, tokenizer: Tokenizer, meaning: Sequence[str], name: str) -> str:
    """HTML of one window's maps: choose layer, head and the token predicted, see what was looked at.  No network.

    maps: of each layer (H, L, L); ids (L,) of the window; meaning (D,): what each dimension of a step is, its unit in
    brackets; name: of the element, one of its own on a page.  Square roots of weights are kept in a byte each.
    """
    transition, L = tokenizer.transition, len(ids)
    below = torch.ones(L, L).tril(-1).bool()
    kept = torch.stack([predicted(m)[:, below] for m in maps]).sqrt().mul(255).round().to(torch.uint8)
    values = {
        "symbols": transition.names(),
        "meaning": [text.replace(")", "").split(" (") for text in meaning],
        "values": [f"{x:.3g}".replace("-", "−") for x in tokenizer.decode(ids).tolist()],
        "unread": transition.reward_to_go,
        "layers": len(maps),
        "heads": len(maps[0]),
        "weights": base64.b64encode(kept.cpu().numpy().tobytes()).decode(),
    }
    return VIEWER.replace("NAME", name).replace("VALUES", json.dumps(values, ensure_ascii=False, separators=(",", ":")))


VIEWER = """
<style>
#NAME { --look: 86 180 233; --mark: #D55E00; max-width: 52rem; line-height: 1.4; }
html[data-theme="dark"] #NAME, [data-jp-theme-light="false"] #NAME { --look: 0 114 178; --mark: #E69F00; }
#NAME .choices { display: flex; flex-wrap: wrap; gap: 0.4rem 1rem; margin-bottom: 0.5rem; }
#NAME select { font: inherit; color: inherit; background: Canvas; color: CanvasText; max-width: 100%; }
#NAME table { border-collapse: collapse; border: 0; table-layout: fixed; width: 100%; margin: 0; font-size: 0.75rem;
  display: table; color: inherit; }
#NAME tr, #NAME th, #NAME td { background: none; color: inherit; border: 0; }
#NAME th { font-weight: normal; padding: 0 0.3rem 0 0; text-align: left; vertical-align: middle;
  white-space: nowrap; overflow: hidden; }
#NAME th:first-child { width: 13.5rem; }
#NAME thead th + th { text-align: center; padding: 0; }
#NAME td { border: 1px solid rgb(128 128 128 / 0.35); height: 24px; padding: 0; text-align: center; cursor: pointer;
  font-variant-numeric: tabular-nums; background: rgb(var(--look) / var(--shade, 0)); }
html[data-theme="dark"] #NAME td, [data-jp-theme-light="false"] #NAME td { color: #fff; }
#NAME td.later { background: repeating-linear-gradient(45deg, transparent 0 4px, rgb(128 128 128 / 0.25) 4px 5px); }
#NAME td[aria-selected="true"] { outline: 3px solid var(--mark); outline-offset: -3px; font-weight: bold; }
#NAME td:focus-visible { box-shadow: inset 0 0 0 5px var(--mark); }
#NAME ol { margin: 0.2rem 0; padding-left: 1.6rem; }
#NAME p { margin: 0.6rem 0 0; }
@media (max-width: 700px) { #NAME th:first-child { width: 1.9rem; } #NAME th .meaning { display: none; } }
</style>
<div id="NAME" role="group" aria-label="Where each head looks">
<noscript>This viewer needs JavaScript.</noscript>
<div class="choices">
<label>Layer <select></select></label> <label>Head <select></select></label>
<label>Predicted <select></select></label> <label>at step <select></select></label>
</div>
<table role="grid" aria-label="Tokens of the window: steps from left to right, dimensions from top to bottom. Arrow keys
 choose the token that is predicted."><thead><tr></tr></thead><tbody></tbody></table>
<div aria-live="polite"><p></p><ol></ol><p></p></div>
</div>
<script>
(() => {
  const {symbols, meaning, values, unread, layers, heads, weights} = VALUES;
  const bytes = Uint8Array.from(atob(weights), c => c.charCodeAt(0));
  const D = symbols.length, L = values.length, T = L / D, pairs = L * (L - 1) / 2;
  const box = document.getElementById("NAME"), [layer, head, dim, step] = box.querySelectorAll("select");
  const [before, after] = box.querySelectorAll("p"), list = box.querySelector("ol"), cells = [];
  const make = (tag, parent, text = "") => {
    const element = parent.appendChild(document.createElement(tag)); element.textContent = text; return element;
  };
  const percent = w => w >= 0.1 ? `${Math.round(100 * w)}%` : `${(100 * w).toFixed(1)}%`;
  const title = k => `${symbols[k % D]}: ${meaning[k % D][0]}, step ${Math.floor(k / D)}`;
  const value = k => `${values[k]}${meaning[k % D][1] ? " " + meaning[k % D][1] : ""}`;
  const read = k => k % D === unread ? "never read by the model" : value(k);
  let p = L - D + 1;  // the token predicted
  function draw() {
    const start = (+layer.value * heads + +head.value) * pairs + p * (p - 1) / 2;
    const look = Array.from(bytes.subarray(start, start + p), b => (b / 255) ** 2);
    const sum = chosen => percent(look.reduce((total, w, k) => total + (chosen(k) ? w : 0), 0));
    cells.forEach((cell, k) => {
      const w = look[k] ?? 0;
      cell.style.setProperty("--shade", Math.sqrt(w).toFixed(3));
      cell.className = k > p ? "later" : "";
      cell.textContent = k === p ? "?" : w >= 0.005 ? Math.round(100 * w) : "";
      cell.title = k === p ? `${title(k)}: predicted, true value ${value(k)}`
        : k > p ? `${title(k)}: comes later` : `${title(k)}: ${read(k)}; weight ${percent(w)}`;
      cell.setAttribute("aria-label", cell.title);
      cell.setAttribute("aria-selected", k === p);
      cell.tabIndex = k === p ? 0 : -1;
    });
    dim.value = p % D; step.value = Math.floor(p / D);
    before.textContent = `Layer ${+layer.value + 1}, head ${+head.value + 1}. To predict ${title(p)} (true value ` +
      `${value(p)}) it looks most at:`;
    list.replaceChildren();
    look.map((w, k) => [w, k]).sort((a, b) => b[0] - a[0]).slice(0, 5).filter(([w]) => w >= 0.005)
      .forEach(([w, k]) => make("li", list, `${percent(w)} ${title(k)}: ${read(k)}`));
    const t = Math.floor(p / D), reward = k => ["r", "R"].includes(symbols[k % D]);
    const lag = k => t - Math.floor(k / D), same = k => k % D === p % D && !reward(k);
    after.textContent = `In all ${sum(k => lag(k) === 1 && !reward(k))} on the step before, ` +
      `${sum(k => lag(k) === 0 && !reward(k))} on this step, ${sum(k => lag(k) > 1 && same(k))} ` +
      `on the same dimension two or more steps back, ${sum(reward)} on rewards.`;
  }
  function choose(wanted, focus) {
    if (wanted > 0 && wanted < L) p = wanted;  // nothing predicts the first token
    draw();
    if (focus) cells[p].focus();
  }
  for (let i = 0; i < layers; i++) make("option", layer, i + 1).value = i;
  for (let i = 0; i < heads; i++) make("option", head, i + 1).value = i;
  symbols.forEach((s, i) => { make("option", dim, `${s}: ${meaning[i][0]}`).value = i; });
  const top = box.querySelector("thead tr"), body = box.querySelector("tbody");
  make("th", top, "step").scope = "col";
  for (let t = 0; t < T; t++) { make("option", step, t).value = t; make("th", top, t).scope = "col"; }
  symbols.forEach((s, i) => {
    const row = make("tr", body), label = make("th", row, s);
    label.scope = "row";
    make("span", label, ` ${meaning[i][0]}${meaning[i][1] ? ` (${meaning[i][1]})` : ""}`).className = "meaning";
    for (let t = 0; t < T; t++) {
      const k = t * D + i, cell = make("td", row);
      cell.setAttribute("role", "gridcell"); cell.onclick = () => choose(k, true); cells[k] = cell;
    }
  });
  body.onkeydown = event => {
    const i = p % D, t = Math.floor(p / D);
    const to = {ArrowLeft: [i, t - 1], ArrowRight: [i, t + 1], ArrowUp: [i - 1, t], ArrowDown: [i + 1, t],
      Home: [i, i ? 0 : 1], End: [i, T - 1]}[event.key];
    if (!to || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault(); event.stopPropagation();  // in the book the arrows turn pages
    if (to[0] >= 0 && to[0] < D && to[1] >= 0 && to[1] < T) choose(to[1] * D + to[0], true);
  };
  layer.onchange = head.onchange = draw;
  dim.onchange = step.onchange = () => choose(+step.value * D + +dim.value);
  draw();
})();
</script>"""
