# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The model and its training
#
# **Claim** (Section 3.1, Appendix A). A small GPT, unchanged and trained to predict the next token, is at once a model
# of the dynamics, a policy and an estimate of values. Nothing in it is made for states, actions or rewards.
#
# After this page you can
#
# - say which token is predicted where, and write down the loss and compute it;
# - check any such model for three common faults: it sees the future, it sees reward-to-go, or its cache is wrong;
# - read a learning curve in nats, and tell from two baselines what was learned.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown

from ttlib import train
from ttlib.cache import Cache, decode
from ttlib.checkpoint import round_weights
from ttlib.drawing import figures
from ttlib.model import GPT, ModelConfig, loss
from ttlib.pipeline import experiments, store

figures.style()
NAME = "hopper-long"
exp = experiments.get(NAME, size)
transition, V = exp.model.transition, exp.bins.V

# %% [markdown]
# ## The network
#
# The network is a Transformer decoder {cite:p}`vaswani2017attention` in the manner of GPT
# {cite:p}`radford2018improving`. It has embeddings of token and position, blocks of causal self-attention and an MLP,
# and one linear layer at the end. It reads ids from a vocabulary of $V \cdot D$. It answers with logits over only $V$
# bins, because the position already tells which dimension comes next.


# %% tags=["hide-input"]
def specification(e: experiments.Experiment) -> dict:
    """Return the sizes of a model and of its training in words."""
    with torch.device("meta"):  # this makes shapes without taking memory
        parameters = sum(p.numel() for p in GPT(e.model).parameters())
    m, t = e.model, e.train
    return {
        "layers x heads, width": f"{m.n_layer} x {m.n_head}, {m.d_model}",
        "parameters": f"{parameters:,}",
        "window in transitions (tokens)": f"{m.T} ({m.max_tokens})",
        "vocabulary in, out": f"{V * transition.D}, {V}",
        "dropout": f"{m.dropout}, {m.dropout_where}" if m.dropout else "no",
        "optimiser, learning rate": f"{t.optimiser}, {t.lr:g}",
        "updates x windows": f"{t.updates:,} x {t.batch}",
        "training tokens (millions)": f"{t.updates * t.batch * m.max_tokens / 1e6:,.1f}",
    }


released = experiments.get(NAME, size, "released")
models = {
    "the paper, as we read it": experiments.get(NAME, "paper"),
    "the released code": experiments.get(NAME, "paper", "released"),
    f"here ({size})": exp,
}
pd.DataFrame({name: specification(e) for name, e in models.items()})

# %% [markdown]
# The first column is our reading of Section 3.1 and Appendix A. The paper states 80 epochs but not what an epoch is. We
# take it as every start of a window once, in a million steps. To train on so many tokens in the 6 to 12 hours of
# Appendix A would need about the full speed of the paper's GPU, as [page 15](15_cluster.py) calculates.
#
# :::{admonition} Departures from the paper
# LayerNorm is *before* each sublayer, as in the authors' code, and not after it as in GPT. The model of this page is
# smaller than the paper's and has no dropout.
# :::
#
# Almost all parameters are in the blocks, about $12\, d^2$ in each:

# %%
with torch.device("meta"):
    parts = dict(GPT(exp.model).named_children())
for name in ("token", "position", "blocks", "norm", "head"):
    print(f"{name:9} {sum(p.numel() for p in parts[name].parameters()):>9,}")
layers, d = exp.model.n_layer, exp.model.d_model
print(f"12 d^2 in {layers} blocks: {12 * layers * d**2:,}")

# %% [markdown]
# ## Which token predicts which
#
# The output at each position is a distribution over the *next* token ({numref}`fig-predicts`). So the last action token
# predicts the reward, and the reward predicts the reward-to-go. The position of $R_t$ predicts the first dimension of
# the next state. For this reason $R_t$ must not be read there: its input is always bin 0.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-predicts", "caption": "Two steps of a world with N = 2 and M = 1. The lower row is read, and the upper row is predicted there. Grey lines mark all that the prediction of the second action may use. Reward-to-go is predicted, but its input is blank."}, "image": {"alt": "Two rows of ten coloured boxes, joined by vertical arrows. Each upper box shows the token one place after the box below it. Grey lines lead from seven lower boxes to one upper box."}}
KINDS = dict(zip("sarR", figures.COLOURS.values()))
names = [("s", "^0"), ("s", "^1"), ("a", ""), ("r", ""), ("R", "")]
tokens = [(kind, f"${kind}{dim}_{{{t}}}$") for t in ("t", "t+1", "t+2") for kind, dim in names]
middle = {"ha": "center", "va": "center", "color": "white"}
figure, axes = plt.subplots(figsize=(7, 2.7))
for k in range(10):
    for y, (kind, text) in ((0, tokens[k]), (2, tokens[k + 1])):
        blank = kind == "R" and y == 0
        look = {"fc": "white", "hatch": "////", "ec": "#999999"} if blank else {"fc": KINDS[kind], "ec": "white"}
        axes.add_patch(plt.Rectangle((k, y), 0.86, 0.7, **look))
        axes.text(k + 0.43, y + 0.35, "" if blank else text, **middle)
    axes.annotate("", (k + 0.43, 1.95), (k + 0.43, 0.75), arrowprops={"arrowstyle": "-|>", "color": "#444444"})
for k in range(6):
    axes.plot([k + 0.43, 6.4], [0.73, 1.85], color="#aaaaaa", lw=1, zorder=0)
axes.text(-0.2, 0.35, "read", ha="right", va="center")
axes.text(-0.2, 2.35, "predicted", ha="right", va="center")
axes.set(xlim=(-1.6, 10), ylim=(-0.1, 2.8))
axes.axis("off")
plt.show()

# %% [markdown]
# ## The loss
#
# Training maximises the log-likelihood of each token, given all tokens before it:
#
# $$\begin{aligned}
# \mathcal{L}(\bar{\tau}) = \sum_{t=0}^{T-1} \Big( & \sum_{i=0}^{N-1} \log P_\theta(\bar{s}_t^i \mid \bar{s}_t^{<i}, \bar{\tau}_{<t}) + \sum_{j=0}^{M-1} \log P_\theta(\bar{a}_t^j \mid \bar{a}_t^{<j}, \bar{s}_t, \bar{\tau}_{<t}) \\
# & + \log P_\theta(\bar{r}_t \mid \bar{a}_t, \bar{s}_t, \bar{\tau}_{<t}) + \log P_\theta(\bar{R}_t \mid \bar{r}_t, \bar{a}_t, \bar{s}_t, \bar{\tau}_{<t}) \Big).
# \end{aligned}$$ (eq-loss)
#
# The last term is for reward-to-go, which the paper adds in Section 3.2. Below, each of the four terms is an average
# over windows of held-out data:

# %%
loaded = store.load_or_train(exp)
model = loaded.model.cpu()
training, held_out = store.windows(exp)
start = torch.arange(0, len(held_out), max(1, len(held_out) // 16))[:16]
ids, weight = held_out.batch(start)
with torch.inference_mode():
    log_p = model(ids[:, :-1]).log_softmax(-1)  # position k predicts token k + 1
token_log_p = log_p.gather(-1, (ids[:, 1:] % V)[..., None])[..., 0]
token_log_p *= weight[:, 1:] > 0  # padding does not count
D, r, R = transition.D, transition.reward, transition.reward_to_go
KIND = {"states": transition.state, "actions": transition.action}
KIND |= {"reward": slice(r, r + 1), "reward-to-go": slice(R, R + 1)}
dim = ids[:, 1:] // V
for name, dims in KIND.items():
    inside = (dim >= dims.start) & (dim < dims.stop)
    term = (token_log_p * inside).sum(1).mean()
    print(f"{name:13} {term:8.1f} nats per window")
print(f"{'L':13} {token_log_p.sum(1).mean():8.1f}")

# %% [markdown]
# Training minimises the negative of this, averaged over tokens. In profile `released`, action tokens count five times.
# The first token of a window has nothing before it, and it is not predicted.

# %%
with torch.inference_mode():
    by_hand = -(token_log_p * weight[:, 1:]).sum() / weight[:, 1:].sum()
    assert torch.isclose(by_hand, loss(model, ids, weight), atol=1e-5)
print(f"{by_hand:.4f} nats per token")

# %% [markdown]
# ## Three checks
#
# **Causality.** If one token changes, all earlier predictions must stay the same.
#
# **No reward-to-go.** If every $R_t$ changes, nothing at all may change. This is a departure: the paper hides nothing.
#
# **Cache.** During planning, tokens are read one by one, and the keys and values of earlier tokens are stored. The
# answers must be the same as if everything were read at once, but for rounding, because numbers are added in another
# order.

# %%
rng = torch.Generator().manual_seed(0)
other_bins = torch.randint(V, ids.shape, generator=rng)
other_ids = ids // V * V + other_bins  # the dimensions stay the same
middle = ids.shape[1] // 2 // D * D  # the first state token of a step
at = torch.arange(ids.shape[1])
is_R = ids // V == transition.reward_to_go
with torch.inference_mode():
    logits = model(ids)
    changed = model(torch.where(at == middle, other_ids, ids))
    one = (changed - logits).abs().amax((0, 2))
    every_R = (model(torch.where(is_R, other_ids, ids)) - logits).abs().max()
    cache = Cache()
    one_by_one = [decode(model, ids[:, k : k + 1], cache) for k in at.tolist()]
cached = (torch.cat(one_by_one, 1) - logits).abs().max()
print(f"token {middle} changes:")
print(f"  earlier logits change by {one[:middle].max():.1g}")
print(f"  later logits change by {one[middle:].max():.2g}")
print(f"all {int(is_R.sum())} rewards-to-go change: logits change by {every_R:.1g}")
print(f"tokens are read one by one: logits differ by {cached:.1g}")
print(f"  (logits have a range of {logits.max() - logits.min():.0f})")

# %% tags=["remove-input"]
assert one[:middle].max() == 0, "a token changes earlier predictions"
assert one[middle:].max() > 0, "a token does not change later predictions"
assert every_R == 0, "reward-to-go changes the predictions"
assert cached < 1e-3, "the cache gives other logits"

# %% [markdown]
# ## A tiny model
#
# A model with one layer, width 64 and windows of two transitions is small enough to train in seconds. Two baselines
# help to read its loss. A model that knows nothing has a loss of $\log V$ nats. A model that knows only how often each
# bin of each dimension occurs has the entropy of that histogram as its loss:
#
# $$H = -\frac{1}{D} \sum_{i=0}^{D-1} \sum_{b=0}^{V-1} f_{ib} \log f_{ib}.$$ (eq-entropy)


# %%
TINY = ModelConfig(transition, 2, V, n_layer=1, n_head=2, d_model=64, dropout=0.0)


def entropies(bins: torch.Tensor) -> np.ndarray:
    """Return the entropy of each dimension's histogram in nats.  (n, D) -> (D,)"""
    counts = [torch.bincount(column.long(), minlength=V) for column in bins.T]
    f = torch.stack(counts) / len(bins)
    return -(f * f.clamp(min=1e-30).log()).sum(1).numpy()


def tiny_curve(windows, unseen, config, positions: bool = True) -> pd.DataFrame:
    """Train the tiny model and return its learning curve.

    The last row also has `rounded`: the loss of unseen episodes after rounding.
    """
    torch.manual_seed(config.seed)
    tiny = GPT(replace(TINY, T=windows.T))
    if not positions:
        tiny.position.weight.requires_grad_(False).zero_()
    curve = pd.DataFrame(train.fit(tiny, windows, config, unseen))
    round_weights(tiny)
    curve.loc[len(curve) - 1, "rounded"] = train.evaluate(tiny, unseen)
    return curve.drop(columns=["dtype", "seconds"])


# %% tags=["hide-input"]
H = entropies(training.bins)
short, short_unseen = replace(training, T=TINY.T), replace(held_out, T=TINY.T)


def trained(name: str, windows, updates: int, **options) -> pd.DataFrame:
    """Return the learning curve of a tiny model, read from a file where it is there."""
    config = replace(
        exp.train,
        updates=40 if size == "smoke" else updates,
        batch=min(32, len(windows)),
        warmup=10,
        dtype="float32",
    )
    decided_by = {"bins": exp.bins, "model": TINY, "train": config, **options}

    def make() -> pd.DataFrame:
        return tiny_curve(windows, short_unseen, config, **options)

    return store.table(f"live_{name}", size, make, [exp.data], decided_by)


# %%
curve = trained("tiny", short, updates=600)

# %% [markdown]
# In Jupyter, this cell trains the model when it is run for the first time. In this book, the curve of
# {numref}`fig-live` is read from the file that such a run wrote, `live_tiny.csv`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-live", "caption": "Loss of the tiny model during training, and its loss on unseen episodes. Below the line H the model has learned how dimensions depend on each other."}, "image": {"alt": "A loss curve starts at the line log V, crosses the line of the histograms' entropy and falls further."}}
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
sns.lineplot(curve, x="update", y="loss", ax=axes, label="training")
unseen_look = {"color": figures.COLOURS["other"], "label": "unseen episodes", "zorder": 3}
sns.scatterplot(curve, x="update", y="held_out", ax=axes, **unseen_look)
for y, text in ((np.log(V), "knows nothing: $\\log V$"), (H.mean(), "knows the histograms: $H$")):
    axes.axhline(y, ls="--", lw=1, color=figures.COLOURS["data"])
    axes.text(curve["update"].max(), y, text, ha="right", va="bottom", color=figures.COLOURS["data"])
axes.set(ylabel="nats per token", ylim=(None, np.log(V) + 0.2), title=f"A tiny model of hopper ({size})")
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# ## How it is trained at full size
#
# The paper uses Adam with a linear warm-up over 2000 updates and then a cosine, which is the schedule of
# {cite:t}`radford2018improving`. The later code uses AdamW {cite:p}`loshchilov2019adamw`, and its learning rate ends at
# a tenth of the peak ({numref}`fig-schedules`).
#
# :::{admonition} Departures from the paper
# At sizes `smoke` and `laptop`, Muon {cite:p}`jordan2024muon` trains the matrices inside the blocks, and AdamW trains
# the rest. On a processor the loss then falls much faster per minute.
#
# At size `laptop` some models also start with smooth embeddings: those of profile `released` on the nine datasets, and
# the imitators. An ordinary embedding table does not know that bin 41 is between bins 40 and 42, because every row
# starts at random. In a smooth table each channel is a cosine of the bin, with a random frequency and phase. So the
# rows of neighbouring bins are alike, and fewer tokens give the same loss. `ttlib/commands/tuning.py` compares
# both at equal minutes.
# :::

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-schedules", "caption": "Learning rate as a fraction of its peak. Left: the first updates. Right: the whole training."}, "image": {"alt": "Three schedules. Each is a short linear rise followed by a cosine, which falls to zero or, in the released code, to a tenth."}}
fractions = np.linspace(0, 1, 200)
early, whole = [], []
for name, config in ((name, e.train) for name, e in models.items()):
    label = f"{name}: {config.optimiser}, peak {config.lr:g}"
    first, last = min(3000, config.updates), config.updates - 1
    early += [{"model": label, "update": u, "rate": config.lr_at(u)} for u in range(0, first, 10)]
    whole += [{"model": label, "% of training": 100 * x, "rate": config.lr_at(int(x * last))} for x in fractions]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.9), sharey=True, layout="constrained")
look = {"y": "rate", "hue": "model", "style": "model"}
sns.lineplot(pd.DataFrame(early), x="update", **look, ax=left, legend=False)
sns.lineplot(pd.DataFrame(whole), x="% of training", **look, ax=right)
left.set(ylabel="fraction of the peak", ylim=(0, 1.05))
handles = right.get_legend_handles_labels()
right.get_legend().remove()
figure.legend(*handles, loc="outside upper center", ncol=2)
plt.show()

# %% [markdown]
# Weights are rounded to bf16, which has 8 significant bits, before anything is measured. So a shipped model and a model
# that you train are treated alike. The tiny model shows how little this costs:

# %%
before, after = curve[["held_out", "rounded"]].iloc[-1]
print(f"unseen episodes: {before:.4f} nats per token, rounded {after:.4f}")

# %% [markdown]
# ## What the hopper models learned
#
# A checkpoint carries its learning curve ({numref}`fig-curves`) and its held-out loss of every dimension
# ({numref}`fig-kinds`). The losses of the two profiles cannot be compared with each other, because their bins differ.
# Each must be compared with its own $H$. The training loss of `released` counts action tokens five times, and the
# held-out loss counts all tokens once.

# %%
profiles = {"v1": loaded, "released": store.load_or_train(released)}
for name, checkpoint in profiles.items():
    about = checkpoint.about
    cost = f"{about['seconds'] / 60:.1f} minutes on {about['threads']} thread(s)"
    print(f"{name}: {about['tokens'] / 1e6:.1f} million tokens, {cost}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-curves", "caption": "Learning curves of the models of pages 3 and 5."}, "image": {"alt": "Two panels, one for each profile. Training loss and held-out loss fall below the line log V."}}
figure, panels = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
for axes, (name, checkpoint) in zip(panels, profiles.items()):
    rows = pd.DataFrame(checkpoint.about["curve"])
    sns.lineplot(rows, x="update", y="loss", ax=axes, label="training")
    sns.scatterplot(rows, x="update", y="held_out", ax=axes, **unseen_look)
    axes.axhline(np.log(V), ls="--", lw=1, color=figures.COLOURS["data"], label="$\\log V$")
    axes.set(title=f"{name} ({size})", ylabel="nats per token", ylim=(0, 1.1 * np.log(V)))
panels[0].legend(loc="lower left")
panels[1].get_legend().remove()
plt.show()

# %%
H_of = {"v1": H, "released": entropies(store.windows(released)[0].bins)}
rows = []
for name, checkpoint in profiles.items():
    nats = np.array(checkpoint.about["held_out_by_dimension"])
    for kind, dims in KIND.items():
        mean = nats[dims].mean()
        rows.append([name, kind, mean, H_of[name][dims].mean(), np.exp(mean)])
names = ["profile", "kind", "nats", "H", "equally likely bins"]
kinds = pd.DataFrame(rows, columns=names)
kinds.style.hide(axis="index").format(precision=2)

# %% [markdown]
# The last column is $e^x$ for a loss of $x$ nats: the model is as uncertain as if it chose among so many equally likely
# bins.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-kinds", "caption": "Held-out loss of each kind of token (bars), the entropy H of the bins' histogram (black marks) and log V (dashed)."}, "image": {"alt": "Grouped bars for states, actions, reward and reward-to-go in two profiles. The bars of actions are closest to their marks."}}
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
sns.barplot(kinds, x="kind", y="nats", hue="profile", saturation=1, ax=axes)
marks = {"marker": "_", "s": 22, "linewidth": 2, "jitter": False, "palette": ["black"] * 2, "legend": False}
sns.stripplot(kinds, x="kind", y="H", hue="profile", dodge=True, **marks, ax=axes)
axes.plot([], [], "_", color="black", ms=12, mew=2, label="histogram, $H$")
axes.axhline(np.log(V), ls="--", lw=1, color=figures.COLOURS["data"], label="$\\log V$")
axes.set(xlabel="", ylabel="nats per token", title=f"Unseen episodes ({size})", ylim=(0, 1.32 * np.log(V)))
axes.legend(ncol=4, loc="upper center")
plt.show()

# %% [markdown]
# The step before nearly determines a state. It does not determine an action: the data come from stochastic policies of
# different quality, so much of an action is noise that no model can predict.
#
# ## What we saw

# %% tags=["hide-input"]
learned = kinds.set_index(["profile", "kind"])
by_gain = (learned.nats / learned.H).loc["v1"].sort_values().index
bins = learned["equally likely bins"].loc["v1"]
found = {
    "tiny model, first and last training loss": " and ".join(f"{curve.loss.iloc[i]:.2f}" for i in (0, -1)),
    "baselines": f"{np.log(V):.2f} ($\\log V$) and {H.mean():.2f} ($H$)",
    "tiny model, unseen episodes": f"{before:.2f}; rounding changes it by {after - before:+.0e}",
    "model of profile `v1`, unseen episodes": f"{loaded.about['held_out_all']:.2f}",
    f"its uncertainty, of {V} bins": f"{bins['states']:.1f} in states, {bins['actions']:.0f} in actions",
}
Markdown(
    f"**Compared with the histogram baseline, the model gains most on {by_gain[0]} and least on {by_gain[-1]}.**"
    "\n\n| what | nats per token, or bins |\n|---|---|\n"
    + "\n".join(f"| {what} | {result} |" for what, result in found.items())
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} What is a nat worth?
# :label: ex-nats
#
# A model's loss is $\log V$ nats per token. Among how many equally likely bins does it choose? How many are there if
# the loss is one nat lower? For a dimension with uniform bins, what do $\log 2$ nats less say about the width of the
# prediction?
# ```
#
# ````{solution-start} ex-nats
# :class: dropdown
# ````

# %%
for nats in (np.log(V), np.log(V) - 1, np.log(V) - np.log(2), 0.0):
    bins = np.exp(nats)
    print(f"{nats:.2f} nats: as uncertain as {bins:.1f} equally likely bins")

# %% [markdown]
# There are $V$ bins, and then $V / e$. Every $\log 2$ nats less halve the number of bins. With uniform bins they also
# halve the width of the interval that the prediction covers. A loss of zero is possible only where nothing is random.
#
# ````{solution-end}
# ````
#
# ```{exercise} Learn eight windows by heart
# :label: ex-overfit
#
# Train the tiny model on eight windows only. What should happen to its training loss, and to its loss on unseen
# episodes? This is the quickest test of any new training code.
# ```
#
# ````{solution-start} ex-overfit
# :class: dropdown
# ````

# %%
few = replace(short, bins=short.bins[:8], end=short.end[:8].clamp(max=8))
memorised = trained("eight_windows", few, updates=300)
for name, column in (("eight windows", "loss"), ("unseen episodes", "held_out")):
    nats = memorised[column].dropna()
    print(f"{name}: {nats.iloc[0]:.2f} -> {nats.iloc[-1]:.2f} nats per token")

# %% [markdown]
# The model learns the eight windows by heart. Unseen episodes get worse than $\log V$, because the model is certain and
# wrong. If the training loss does not fall, the code has a fault.
#
# ````{solution-end}
# ````
#
# ```{exercise} Without positions
# :label: ex-positions
#
# Set the position embeddings to zero and keep them there. A token id already tells its dimension. What can the model
# still do, and what can it not do?
# ```
#
# ````{solution-start} ex-positions
# :class: dropdown
# ````

# %%
without = trained("without_positions", short, updates=600, positions=False)
print("unseen episodes, nats per token:")
print(f"  with positions     {curve.held_out.iloc[-1]:.3f}")
print(f"  without positions  {without.held_out.iloc[-1]:.3f}")

# %% [markdown]
# The id of the last token tells which dimension comes next, so most of the task remains. The model can no longer tell
# *when* a token was read. Two tokens of the same dimension, one step apart, look alike to attention, which sees a set.
#
# ````{solution-end}
# ````
