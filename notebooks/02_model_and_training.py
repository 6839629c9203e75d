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
# **Claim** (Section 3.1, Appendix A). A small GPT, taken as it is and trained to predict the next token, is dynamics
# model, behaviour policy and value estimate at once. Nothing in it knows what a state, an action or a reward
# is.
#
# After this page you can
#
# - say which token is predicted where, and write the loss down and compute it;
# - check any such model for the three usual faults: seeing the future, seeing reward-to-go, a wrong cache;
# - read a learning curve in nats, and tell what has been learned by comparing it with two baselines.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ttlib import train
from ttlib.cache import Cache, read
from ttlib.checkpoint import round_weights
from ttlib.drawing import figures
from ttlib.model import GPT, ModelConfig
from ttlib.pipeline import experiments, results, store

NAME = "hopper-long"
exp = experiments.get(NAME, size)
transition, V = exp.model.transition, exp.bins.V

# %% [markdown]
# ## The network
#
# The network is a Transformer decoder {cite:p}`vaswani2017attention` in the manner of GPT
# {cite:p}`radford2018improving`: embeddings of token and position, blocks of causal self-attention and MLP, one linear
# layer at the end. It reads ids from a vocabulary of $V \cdot D$ and answers with logits over only $V$ bins, because
# the position already says which dimension comes next.


# %% tags=["hide-input"]
def specification(e: experiments.Experiment) -> dict:
    with torch.device("meta"):  # shapes only, no memory
        parameters = sum(p.numel() for p in GPT(e.model).parameters())
    m, t = e.model, e.train
    return {
        "layers x heads, width": f"{m.n_layer} x {m.n_head}, {m.d_model}",
        "parameters": f"{parameters:,}",
        "window: transitions (tokens)": f"{m.T} ({m.max_tokens})",
        "vocabulary in, out": f"{V * transition.D}, {V}",
        "dropout": f"{m.dropout}, {m.dropout_where}" if m.dropout else "none",
        "optimiser, learning rate": f"{t.optimiser}, {t.lr:g}",
        "updates x windows": f"{t.updates:,} x {t.batch}",
        "training tokens (millions)": f"{t.updates * t.batch * m.max_tokens / 1e6:,.1f}",
    }


released = experiments.get(NAME, size, "released")
chosen = {"the paper": experiments.get(NAME, "paper"), "released code": experiments.get(NAME, "paper", "released")}
specifications = pd.DataFrame({name: specification(e) for name, e in (chosen | {f"here ({size})": exp}).items()})
specifications

# %% [markdown]
# The paper's column follows Section 3.1 and Appendix A, with 80 epochs over a million steps. Two departures:
# LayerNorm stands *before* each sublayer, as in the authors' code, not after it as in GPT; and the model of this
# page's size is smaller and without dropout. Almost all parameters sit in the blocks, about
# $12\, d^2$ in each:

# %%
with torch.device("meta"):
    parts = dict(GPT(exp.model).named_children())
for name in ("token", "position", "blocks", "norm", "head"):
    print(f"{name:9} {sum(p.numel() for p in parts[name].parameters()):>9,}")
print(f"12 d^2 in {exp.model.n_layer} blocks: {12 * exp.model.n_layer * exp.model.d_model**2:,}")

# %% [markdown]
# ## Which token predicts which
#
# The output at each position is a distribution over the *next* token ({numref}`fig-predicts`). So the last action
# token predicts the reward, the reward predicts the reward-to-go, and the position of $R_t$ predicts the first
# dimension of the next state. That is why $R_t$ must not be read there: its input is always bin 0.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-predicts", "caption": "Two steps of a world with N = 2, M = 1. Below, what is read; above, what is predicted there. Grey lines: all that the prediction of the second action may use. Reward-to-go is predicted but its input is blank."}, "image": {"alt": "Two rows of ten coloured boxes joined by vertical arrows; each upper box shows the token one place further than the box below it. Grey lines fan from seven lower boxes to one upper box."}}
KINDS = {"s": figures.COLOURS["transformer"], "a": figures.COLOURS["other"], "r": figures.COLOURS["third"], "R": figures.COLOURS["fourth"]}
names = [("s", "^0"), ("s", "^1"), ("a", ""), ("r", ""), ("R", "")]
tokens = [(kind, f"${kind}{dim}_{{{t}}}$") for t in ("t", "t+1", "t+2") for kind, dim in names]
figure, axes = plt.subplots(figsize=(7.5, 2.9))
for k in range(10):
    for y, (kind, text) in ((0, tokens[k]), (2, tokens[k + 1])):
        blank = kind == "R" and y == 0
        look = {"fc": "white", "hatch": "////", "ec": "#999999"} if blank else {"fc": KINDS[kind], "ec": "white"}
        axes.add_patch(plt.Rectangle((k, y), 0.86, 0.7, **look))
        axes.text(k + 0.43, y + 0.35, "" if blank else text, ha="center", va="center", color="white", fontsize=11)
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
# Training maximises the log-likelihood of each token given all before it,
#
# $$\begin{aligned}
# \mathcal{L}(\bar{\tau}) = \sum_{t=0}^{T-1} \Big( & \sum_{i=0}^{N-1} \log P_\theta(\bar{s}_t^i \mid \bar{s}_t^{<i}, \bar{\tau}_{<t}) + \sum_{j=0}^{M-1} \log P_\theta(\bar{a}_t^j \mid \bar{a}_t^{<j}, \bar{s}_t, \bar{\tau}_{<t}) \\
# & + \log P_\theta(\bar{r}_t \mid \bar{a}_t, \bar{s}_t, \bar{\tau}_{<t}) + \log P_\theta(\bar{R}_t \mid \bar{r}_t, \bar{a}_t, \bar{s}_t, \bar{\tau}_{<t}) \Big),
# \end{aligned}$$ (eq-loss)
#
# the last term for the reward-to-go, which the paper adds in Section 3.2. The four terms below are averages
# over windows of held-out data:

# %%
loaded = store.load_or_train(exp)
model = loaded.model.cpu()  # the checks are small work
training, held_out = store.windows(exp)
ids, weight = held_out.batch(torch.arange(0, len(held_out), max(1, len(held_out) // 16))[:16])
with torch.inference_mode():
    log_p = model(ids[:, :-1]).log_softmax(-1)  # (B, L - 1, V): position k predicts token k + 1
token_log_p = log_p.gather(-1, (ids[:, 1:] % V)[..., None])[..., 0] * (weight[:, 1:] > 0)  # padding counts nothing
D, reward = transition.D, transition.reward
KIND = {"states": transition.state, "actions": transition.action, "reward": slice(reward, D - 1), "reward-to-go": slice(D - 1, D)}
dim = ids[:, 1:] // V
for name, dims in KIND.items():
    term = (token_log_p * ((dim >= dims.start) & (dim < dims.stop))).sum(1).mean()
    print(f"{name:13} {term:8.1f} nats a window")
print(f"{'L':13} {token_log_p.sum(1).mean():8.1f}")

# %% [markdown]
# What is minimised is the same with its sign turned, as a mean over tokens; profile `released` weighs action tokens
# five times. The first token of a window has nothing before it and is not predicted.

# %%
with torch.inference_mode():
    by_hand = -(token_log_p * weight[:, 1:]).sum() / weight[:, 1:].sum()
    assert torch.isclose(by_hand, train.loss(model, ids, weight), atol=1e-5)
print(f"{by_hand:.4f} nats a token")

# %% [markdown]
# ## Three checks
#
# **Causality.** Changing a token must leave all earlier predictions alone.
#
# **No reward-to-go.** Changing every $R_t$ must change nothing at all. (A departure: the paper hides nothing.)
#
# **Cache.** While planning, tokens are read one by one, and the keys and values of those before are kept. The answers
# must be those of reading everything at once; only the order of additions differs.

# %%
rng = torch.Generator().manual_seed(0)
random_ids = ids // V * V + torch.randint(V, ids.shape, generator=rng)  # other bins, same dimensions
middle = ids.shape[1] // 2 // D * D  # the first state token of a step
at = torch.arange(ids.shape[1])
with torch.inference_mode():
    logits = model(ids)
    one = (model(torch.where(at == middle, random_ids, ids)) - logits).abs().amax((0, 2))
    is_R = ids // V == transition.reward_to_go
    every_R = (model(torch.where(is_R, random_ids, ids)) - logits).abs().max()
    cache = Cache()
    steps = torch.cat([read(model, ids[:, k : k + 1], cache) for k in at.tolist()], 1)
cached = (steps - logits).abs().max()
print(f"token {middle} changed: logits before it by {one[:middle].max():.1g}, from there on by {one[middle:].max():.2g}")
print(f"all {int(is_R.sum())} rewards-to-go changed: logits by {every_R:.1g}")
print(f"read one by one: logits by {cached:.1g}; they range over {logits.max() - logits.min():.0f}")

# %% tags=["remove-input"]
assert one[:middle].max() == 0 and one[middle:].max() > 0, "a token changes what came before it"
assert every_R == 0, "reward-to-go leaks into the predictions"
assert cached < 1e-3, "the cache gives other logits"

# %% [markdown]
# ## A model trained while you wait
#
# One layer, width 64, two transitions to look at: small enough to train in seconds. Two baselines are worth knowing.
# A model that knows nothing has a loss of $\log V$ nats. One that knows how often each bin of each
# dimension occurs, and nothing else, has the entropy of that histogram:
#
# $$H = -\frac{1}{D} \sum_{i=0}^{D-1} \sum_{b=0}^{V-1} f_{ib} \log f_{ib}.$$ (eq-entropy)


# %%
def entropies(bins: torch.Tensor) -> np.ndarray:
    """(n, D) bins -> (D,) nats: the loss of a model that knows each dimension's histogram."""
    share = torch.stack([torch.bincount(column.long(), minlength=V) / len(bins) for column in bins.T])
    return -(share * share.clamp(min=1e-30).log()).sum(1).numpy()


def train_tiny(name: str, windows, unseen, updates: int, seed: int = 0, positions: bool = True) -> pd.DataFrame:
    """Learning curve; `rounded`, in its last row, is the loss of unseen episodes with weights rounded to bf16."""
    sizes = ModelConfig(transition, windows.T, V=V, n_layer=1, n_head=2, d_model=64, dropout=0.0)
    config = replace(exp.train, updates=updates, batch=min(32, len(windows)), warmup=10, seed=seed)

    def make() -> pd.DataFrame:
        torch.manual_seed(seed)
        tiny = GPT(sizes)
        if not positions:
            tiny.position.weight.requires_grad_(False).zero_()
        with tempfile.TemporaryDirectory() as folder:
            curve = pd.DataFrame(train.fit(tiny, windows, config, Path(folder), unseen, dtype=torch.float32))
        round_weights(tiny)
        curve.loc[len(curve) - 1, "rounded"] = train.evaluate(tiny, unseen)
        return curve.drop(columns="seconds")

    settings = {"model": sizes, "train": config, "positions": positions, "seeds": [seed], "data": store.data_key(exp.data)}
    return results.table(f"live_{name}", size, make, settings)


H = entropies(training.bins)
short, short_unseen = replace(training, T=2), replace(held_out, T=2)
curve = train_tiny("tiny", short, short_unseen, updates=40 if size == "smoke" else 600)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-live", "caption": "Loss of the tiny model while it is trained, and of unseen episodes. Below the line H it has learned how dimensions hang together."}, "image": {"alt": "A loss curve that starts at the line log V, crosses the line of the histograms' entropy and falls on."}}
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.plot(curve["update"], curve.loss, color=figures.COLOURS["transformer"], label="training")
axes.plot(curve["update"], curve.held_out, "o", color=figures.COLOURS["other"], label="unseen episodes")
for y, text in ((np.log(V), "knows nothing: $\\log V$"), (H.mean(), "knows the histograms: $H$")):
    axes.axhline(y, ls="--", lw=1, color=figures.COLOURS["data"])
    axes.text(curve["update"].max(), y, text, ha="right", va="bottom", color=figures.COLOURS["data"])
axes.set(xlabel="update", ylabel="nats a token", ylim=(None, np.log(V) + 0.2), title=f"A tiny model of hopper ({size})")
axes.legend(frameon=False, loc="lower left")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## How it is trained at full size
#
# The paper uses Adam with a linear warm-up over 2000 updates and then a cosine, the schedule of
# {cite:t}`radford2018improving`; the later code AdamW {cite:p}`loshchilov2019adamw`, ending at a tenth. At sizes
# smoke and laptop we *depart* from both: matrices inside the blocks are trained by Muon {cite:p}`jordan2024muon`, the rest
# by AdamW, because the loss falls much faster per minute on a processor.
#
# The nine datasets' models of profile released, and the imitators, depart once more at laptop size. An embedding table
# does not know that bin 41 lies between 40 and 42: every row starts at random, and the order has to be learned from
# data. Theirs start smooth instead, each channel a cosine of the bin with a random frequency and phase, so that rows of
# neighbouring bins are alike, and the same loss takes fewer tokens (`ttlib/commands/tune_training.py` compares the two at equal
# minutes).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-schedules", "caption": "Learning rate as a share of its peak. Left, the first updates; right, the whole training."}, "image": {"alt": "Three schedules, each a short linear rise followed by a cosine that falls to zero or, in the released code, to a tenth."}}
configs = {name: e.train for name, e in (chosen | {f"here ({size})": exp}).items()}
figure, (start, whole) = plt.subplots(1, 2, figsize=(7.5, 2.9), sharey=True, layout="constrained")
share, looks = np.linspace(0, 1, 200), (("transformer", "-"), ("other", "--"), ("third", "-"))
for (name, config), (colour, ls) in zip(configs.items(), looks):
    look = {"color": figures.COLOURS[colour], "ls": ls, "label": f"{name}: {config.optimiser}, peak {config.lr:g}"}
    early = np.arange(min(3000, config.updates))
    start.plot(early, [config.lr_at(u) for u in early], **look)
    whole.plot(100 * share, [config.lr_at(int(s * (config.updates - 1))) for s in share], **look)
start.set(xlabel="update", ylabel="share of the peak", ylim=(0, 1.05))
whole.set(xlabel="% of training")
for axes in (start, whole):
    axes.spines[["top", "right"]].set_visible(False)
figure.legend(*whole.get_legend_handles_labels(), loc="outside upper center", ncol=2, frameon=False)
plt.show()

# %% [markdown]
# Weights are rounded to bf16 (8 significant bits) before anything is measured, so that a shipped model and one
# trained by you are treated alike. The tiny model shows the price:

# %%
before, after = curve[["held_out", "rounded"]].iloc[-1]
print(f"unseen episodes: {before:.4f} nats a token, rounded {after:.4f}")

# %% [markdown]
# ## What the hopper models learned
#
# A checkpoint carries its learning curve ({numref}`fig-curves`) and its held-out loss of every dimension
# ({numref}`fig-kinds`). Nats of the two profiles cannot be compared with each other, because their bins differ;
# each is to be read against its own $H$. The training loss of `released` counts action tokens five times,
# the held-out loss counts all tokens once.

# %%
profiles = {"v1": loaded, "released": store.load_or_train(released)}
for name, checkpoint in profiles.items():
    about = checkpoint.about
    print(f"{name}: {about['tokens'] / 1e6:.1f} million tokens, {about['seconds'] / 60:.1f} minutes on {about['threads']} thread(s)")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-curves", "caption": "Learning curves of the models of pages 3 and 5."}, "image": {"alt": "Two panels, one per profile, with training and held-out loss falling below the line log V."}}
figure, panels = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True, layout="constrained")
for axes, (name, checkpoint) in zip(panels, profiles.items()):
    rows = pd.DataFrame(checkpoint.about["curve"])
    axes.plot(rows["update"], rows.loss, color=figures.COLOURS["transformer"], label="training")
    axes.plot(rows["update"], rows.held_out, "o", ms=4, color=figures.COLOURS["other"], label="unseen episodes")
    axes.axhline(np.log(V), ls="--", lw=1, color=figures.COLOURS["data"], label="$\\log V$")
    axes.set(xlabel="update", title=f"{name} ({size})", ylim=(0, 1.1 * np.log(V)))
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("nats a token")
panels[0].legend(frameon=False, loc="lower left")
plt.show()

# %%
H_of = {"v1": H, "released": entropies(store.windows(released)[0].bins)}
rows = []
for name, checkpoint in profiles.items():
    nats = np.array(checkpoint.about["held_out_by_dimension"])
    for kind, dims in KIND.items():
        loss, baseline = nats[dims].mean(), H_of[name][dims].mean()
        rows.append({"profile": name, "kind": kind, "nats": loss, "H": baseline, "bins it hesitates between": np.exp(loss)})
kinds = pd.DataFrame(rows)
kinds.style.hide(axis="index").format(precision=2)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-kinds", "caption": "Held-out loss per kind of token (bars), the entropy H of the bins' histogram (black marks) and log V (dashed)."}, "image": {"alt": "Grouped bars for states, actions, reward and reward-to-go in two profiles. Actions are closest to their marks."}}
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for k, (name, rows) in enumerate(kinds.groupby("profile", sort=False)):
    at = np.arange(len(rows)) + 0.36 * (k - 0.5)
    axes.bar(at, rows.nats, 0.34, color=figures.COLOURS[("other", "transformer")[name == "v1"]], label=name)
    axes.plot(at, rows.H, "_", ms=22, mew=2, color="black", label="histogram, $H$" if k else None)
axes.axhline(np.log(V), ls="--", lw=1, color=figures.COLOURS["data"], label="$\\log V$")
axes.set(ylabel="nats a token", title=f"Unseen episodes ({size})", ylim=(0, 1.32 * np.log(V)))
axes.set_xticks(range(len(KIND)), KIND)
axes.legend(frameon=False, ncol=4, loc="upper center")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# A state is nearly determined by the step before. Actions are not: the data come from stochastic policies of
# different quality, so much of an action is noise that no model can predict.
#
# ## What we saw

# %% tags=["hide-input"]
from IPython.display import Markdown

learned = kinds.set_index(["profile", "kind"])
by_gain = (learned.nats / learned.H).loc["v1"].sort_values()
Markdown(
    f"The tiny model went from {curve.loss.iloc[0]:.2f} to {curve.loss.iloc[-1]:.2f} nats a token ($\\log V$ is "
    f"{np.log(V):.2f}, $H$ {H.mean():.2f}), {curve.held_out.iloc[-1]:.2f} on unseen episodes; rounding to bf16 changed "
    f"that by {after - before:+.0e}. The model of profile v1 is at {loaded.about['held_out_all']:.2f}: for a state dimension it "
    f"hesitates between {np.exp(learned.loc[('v1', 'states'), 'nats']):.1f} of {V} bins, for an action between "
    f"{np.exp(learned.loc[('v1', 'actions'), 'nats']):.0f}. Measured against its histogram, {by_gain.index[0]} is learned "
    f"best and {by_gain.index[-1]} least. Changing every reward-to-go changed logits by {every_R:.0f}; reading "
    f"through the cache by {cached:.0e}."
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} What is a nat worth?
# :label: ex-nats
#
# A model's loss is $\log V$ nats a token. How many bins does it hesitate between? One that is a nat better?
# And what does $\log 2$ nats less for a uniform dimension say about the width of the prediction?
# ```
#
# ````{solution-start} ex-nats
# :class: dropdown
# ````

# %%
for nats in (np.log(V), np.log(V) - 1, np.log(V) - np.log(2), 0.0):
    print(f"{nats:.2f} nats: as uncertain as a choice between {np.exp(nats):.1f} equally likely bins")

# %% [markdown]
# All $V$; then $V / e$. Each $\log 2$ nats halve the number of bins, and with uniform bins the width of the
# interval that the prediction amounts to. A loss of zero is possible only where nothing is random.
#
# ````{solution-end}
# ````
#
# ```{exercise} Learn eight windows by heart
# :label: ex-overfit
#
# Train the tiny model on eight windows only. What should happen to its training loss, and to the loss of unseen
# episodes? This is the quickest test of any new training code.
# ```
#
# ````{solution-start} ex-overfit
# :class: dropdown
# ````

# %%
few = replace(short, bins=short.bins[:8], end=short.end[:8].clamp(max=8))
memorised = train_tiny("eight_windows", few, short_unseen, updates=40 if size == "smoke" else 300)
print(f"eight windows: {memorised.loss.iloc[0]:.2f} -> {memorised.loss.iloc[-1]:.2f} nats a token")
print(f"unseen episodes: {memorised.held_out.dropna().iloc[0]:.2f} -> {memorised.held_out.iloc[-1]:.2f}")

# %% [markdown]
# The eight windows are learned by heart, and unseen episodes get worse than $\log V$: the model is certain and
# wrong. Where the training loss stays up, the code has a fault.
#
# ````{solution-end}
# ````
#
# ```{exercise} Without positions
# :label: ex-positions
#
# Set the position embeddings to zero and keep them there. A token id already tells its dimension. What can the
# model still do, and what not?
# ```
#
# ````{solution-start} ex-positions
# :class: dropdown
# ````

# %%
without = train_tiny("without_positions", short, short_unseen, updates=40 if size == "smoke" else 600, positions=False)
print(f"unseen episodes: {curve.held_out.iloc[-1]:.3f} nats with positions, {without.held_out.iloc[-1]:.3f} without")

# %% [markdown]
# The id of the last token says which dimension comes next, so most of the task remains. What is lost is *when*: two
# tokens of the same dimension, one step apart, look alike to attention, which sees a set.
#
# ````{solution-end}
# ````
