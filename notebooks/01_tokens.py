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
# # A trajectory as a sequence of tokens
#
# **Claim** (Section 3.1, Equation 1). If each dimension of states, actions and rewards is cut into bins, a trajectory
# becomes a sequence of tokens from a small vocabulary. Decoding returns each number with an error of at most half a
# bin.
#
# After this page you can
#
# - turn a step into token ids and back by hand, and read dimension and bin off an id;
# - choose between uniform and quantile bins, and recognise data on which uniform bins fail;
# - add up reward-to-go so that no reward is counted twice;
# - cut episodes into windows without losing their ends.

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

from ttlib import data, search, tokenizer
from ttlib.drawing import figures
from ttlib.environments import tasks
from ttlib.pipeline import experiments, store
from ttlib.tokenizer import Transition

figures.style()
exp = experiments.get("hopper-long", size)
transition, V, gamma = exp.model.transition, exp.bins.V, exp.bins.gamma

# %% [markdown]
# ## By hand
#
# A toy world has $N = 2$ state dimensions, $M = 1$ action dimension and $V = 5$ bins. One step is five numbers: $s^0,
# s^1, a$, the reward $r$ and the reward-to-go $R$, which is explained below. Number them $i = 0, \dots, 4$, and let
# $x^i$ lie in $[\ell^i, u^i)$. The token of $x^i$ is
#
# $$\bar{x}^i = \left\lfloor V \, \frac{x^i - \ell^i}{u^i - \ell^i} \right\rfloor + V i.$$ (eq-tokens)
#
# The paper writes $r^i$ for the upper edge. We write $u^i$, because $r$ is also the reward.

# %%
low = torch.tensor([0.0, -1.0, -1.0, 0.0, 0.0])
high = torch.tensor([10.0, 1.0, 1.0, 2.0, 20.0])
x = torch.tensor([3.7, 0.95, -0.3, 0.6, 13.0])
ids = (5 * (x - low) / (high - low)).floor().long() + 5 * torch.arange(5)
print(ids.tolist())

# %% [markdown]
# The offset $V i$ gives different ids to different dimensions: ids 0 to 4 are values of $s^0$, ids 5 to 9 are values of
# $s^1$, and so on. So an id carries its meaning. The dimension is `id // V`, and the bin $b$ is `id % V`. The token
# decodes to the middle of its bin:
#
# $$\hat{x}^i = \ell^i + \frac{u^i - \ell^i}{V} \left( b + \tfrac{1}{2} \right), \qquad b = \bar{x}^i \bmod V.$$ (eq-decode)

# %%
dimension, bin_ = ids // 5, ids % 5
decoded = low + (high - low) / 5 * (bin_ + 0.5)
columns = {"value": x, "id": ids, "id // V": dimension, "id % V": bin_}
names = Transition(N=2, M=1).names()
toy = pd.DataFrame(columns | {"decoded": decoded}, index=names)
toy.T.style.format("{:.4g}")

# %% [markdown]
# `ttlib.tokenizer` does the same, and it fits $\ell$ and $u$ to data. The interval is half open, so the fitted $u$ is
# just above the largest value.

# %%
fitted = tokenizer.fit(torch.stack([low, high]).T, Transition(N=2, M=1), V=5)
assert torch.equal(fitted.encode(x, slice(None)), ids)
assert torch.allclose(fitted.decode(ids).float(), decoded, atol=1e-4)

# %% [markdown]
# ## A step of hopper
#
# Hopper is a one-legged robot in a simulator {cite:p}`todorov2012mujoco`. It has $N = 11$ and $M = 3$, so a step has $D
# = N + M + 2 = 16$ tokens. The data are episodes from policies of mixed quality. We made them in the manner of D4RL's
# `hopper-medium-replay` {cite:p}`fu2020d4rl`. The bins are fitted to the training episodes alone. The paper does not
# state the number of bins; $V = 100$ is our choice.

# %%
episodes, unseen = store.split(exp.data)
steps = data.steps(episodes, transition, gamma, reward_in_R=True)[:]
uniform = tokenizer.fit(steps.T, transition, V)
count = V * transition.D
print(f"{len(episodes)} episodes, {len(steps):,} steps, {count} token ids")

# %% tags=["hide-input"]
MEANING = tasks.MEANING["hopper"]
SHORT = [name.split(" (")[0] for name in MEANING]
assert len(MEANING) == transition.D

# %%
x = steps[episodes.starts[0] + 20]
ids = uniform.encode(x, slice(None))
decoded = uniform.decode(ids)
columns = {"name": MEANING, "value": x, "bin": ids % V, "id": ids}
columns |= {"decoded": decoded, "error": decoded - x}
formats = {"value": "{:.3f}", "decoded": "{:.3f}", "error": "{:+.3f}"}
pd.DataFrame(columns, index=transition.names()).style.format(formats)

# %% [markdown]
# The paper's offsets end with that of the reward, $V (N + M)$. The paper introduces reward-to-go later, and here it
# follows as one more dimension.
#
# ## What is lost
#
# A value inside the fitted range is at most half a bin away from the middle of its bin:
#
# $$|\hat{x}^i - x^i| \le \frac{u^i - \ell^i}{2 V}.$$ (eq-half-bin)


# %%
def errors(fitted: tokenizer.Tokenizer, steps: torch.Tensor) -> torch.Tensor:
    """Return the absolute rounding error of every value, (n, D)."""
    return (fitted.decode(fitted.encode(steps, slice(None))) - steps).abs()


error = errors(uniform, steps)
width = uniform.high - uniform.low
assert (error <= width / (2 * V) * (1 + 1e-9)).all()


# %% tags=["hide-input"]
def round_trip() -> pd.DataFrame:
    """Return the largest error of each dimension in half bins, which the ledger of claims reads."""
    largest = error.amax(0) / (width / (2 * V))
    columns = {"dimension": transition.names(), "largest_error": largest, "steps": len(steps)}
    return pd.DataFrame({"bins": "uniform"} | columns)


largest = store.table("round_trip", size, round_trip, [exp.data], {"bins": exp.bins}).largest_error.max()
others = data.steps(unseen, transition, gamma, reward_in_R=True)[:]
outside = ((others < uniform.low) | (others >= uniform.high)).double().mean(0)
worst = MEANING[outside.argmax()]
print(f"The largest error is {largest:.4f} half bins.")
print(f"At most {outside.max():.2%} of a dimension's held-out values lie outside the fitted range: {worst}.")

# %% [markdown]
# A value outside the range goes to the first or the last bin. Relative to its *range*, every dimension loses the same.
# Relative to how much it usually *varies*, it does not. Where a few extreme values stretch the range, the bins are
# coarse for all other values ({numref}`fig-rounding`). The authors suspect that this explains their weak result on
# halfcheetah's medium-expert data (Section 4.2).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-rounding", "caption": "Rounding error of each dimension with uniform bins. Above: the mean and the largest error in percent of the range, and the bound of half a bin. Below: the mean error in percent of the standard deviation."}, "image": {"alt": "Two bar charts over sixteen dimensions. In the upper chart all largest errors lie on the line of half a bin. In the lower chart the bars differ by a factor of four. Joint speeds have the highest bars and actions the lowest."}}
percent = pd.DataFrame({
    "dimension": SHORT, "mean": 100 * error.mean(0) / width, "largest": 100 * error.amax(0) / width,
    "relative": 100 * error.mean(0) / steps.std(0),
})  # fmt: skip
figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
sns.barplot(percent, x="dimension", y="mean", saturation=1, ax=upper, label="mean")
sns.scatterplot(percent, x="dimension", y="largest", ax=upper, color=figures.COLOURS["other"], label="largest")
upper.axhline(50 / V, ls="--", lw=1, color=figures.COLOURS["data"], label="half a bin")
title = f"Rounding error of hopper's {transition.D} dimensions ({size})"
upper.set(ylabel="% of the range", ylim=(0, 75 / V), title=title)
upper.legend(ncol=3, loc="upper center")
sns.barplot(percent, x="dimension", y="relative", saturation=1, ax=lower)
lower.set(xlabel="", ylabel="% of the\nstandard deviation")
plt.setp(lower.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
plt.show()

# %% [markdown]
# ## Uniform or quantile bins
#
# The authors' later code puts the edges at quantiles, so that each bin holds equally many training values. Equal edges
# are merged, so that every bin has a width. {numref}`fig-edges` shows both kinds on the state dimension with the
# largest skewness.

# %%
quantile = tokenizer.fit(steps.T, transition, V, kind="quantile")
standard = (steps - steps.mean(0)) / steps.std(0)
skewness = (standard**3).mean(0)
skewed = int(skewness[transition.state].abs().argmax())
rows = {}
for fitted in (uniform, quantile):
    e = errors(fitted, steps)[:, skewed]
    rows[fitted.kind] = [e.median().item(), e.mean().item(), e.max().item()]
names = ["median error", "mean error", "largest error"]
comparison = pd.DataFrame(rows, index=names)
print(f"{MEANING[skewed]}, skewness {skewness[skewed]:.1f}")
comparison.style.format("{:.4f}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-edges", "caption": "Every fifth bin edge over a histogram of the values. Quantile bins are narrow where there are many values, and wide in the tail."}, "image": {"alt": "The same skewed histogram twice. Above, vertical lines are evenly spaced. Below, the lines are crowded under the peak and sparse in the long left tail."}}
figure, panels = plt.subplots(2, 1, figsize=(7, 3.8), sharex=True, sharey=True, layout="constrained")
values = steps[:, skewed].numpy()
thousands = np.full(len(values), 1 / 1000)
for axes, fitted in zip(panels, (uniform, quantile)):
    sns.histplot(x=values, weights=thousands, bins=120, color=figures.COLOURS["data"], ax=axes)
    edges = fitted.edges[skewed]
    across = {"transform": axes.get_xaxis_transform(), "lw": 0.9, "color": figures.COLOURS["transformer"]}
    axes.vlines(edges[edges.isfinite()][::5], 0, 1, **across)
    axes.set_title(f"{fitted.kind} bins ({size})", loc="left")
    axes.set_ylabel("thousand steps")
panels[1].set_xlabel(MEANING[skewed])
plt.show()

# %% [markdown]
# Quantile bins are precise for common values and coarse for rare ones. Their largest error is many times that of
# uniform bins, and the *mean* error need not be smaller. In this book, profile `v1` has the paper's uniform bins and
# profile `released` has quantile bins.
#
# ## Reward-to-go
#
# Each step also carries the discounted sum of the rewards from now to the end of its episode:
#
# $$R_t = \sum_{t'=t}^{T-1} \gamma^{t'-t} \, r_{t'}.$$ (eq-reward-to-go)

# %%
rewards, starts = np.array([1.0, 2.0, 3.0]), np.array([0, 3])
toy = data.reward_to_go(rewards, starts, gamma=0.5)
print(toy, "by hand:", [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3])

# %% [markdown]
# As the paper prints it, $R_t$ *contains* $r_t$. The value of a plan of $h$ steps is the sum of its rewards plus the
# reward-to-go at its end. So the last reward must enter only once, through $R$:
#
# $$v_h = \sum_{k=0}^{h-2} \gamma^k r_k + \gamma^{h-1} R_{h-1}.$$ (eq-value)
#
# With true rewards this is $R_0$ for every $h$. A value that changes with the horizon counts something twice:

# %%
first = slice(episodes.starts[0], episodes.starts[1])
r, R = steps[first, transition.reward], steps[first, transition.reward_to_go]
rows = []
for h in range(1, len(r) + 1):
    value = search.plan_value(r[:h], R[:h], gamma).item()
    twice = value + gamma ** (h - 1) * r[h - 1].item()
    rows.append({"h": h, "value": value, "last reward counted twice": twice})
values = pd.DataFrame(rows).set_index("h")
assert np.allclose(values["value"], R[0])
print(f"R_0 = {R[0]:.3f}")
values.loc[[1, 2, 5, 20]].T.style.format("{:.3f}")

# %% [markdown]
# The authors' later code leaves $r_t$ out of $R_t$. Then all $h$ rewards are added, and $R_{h-1}$ counts with
# $\gamma^h$:

# %%
rewards, starts = episodes.rewards, episodes.starts
later = data.reward_to_go(rewards, starts, gamma, reward_in_R=False)
later = torch.from_numpy(later[first])
for h in (1, 5, len(r)):
    value = search.plan_value(r[:h], later[:h], gamma, reward_in_R=False)
    assert torch.isclose(value, R[0])

# %% [markdown]
# The paper says "cumulative reward plus reward-to-go". We read this as a discounted sum, and $\gamma = 0.99$ is our
# choice too.
#
# :::{admonition} A departure from the paper
# The true $R_t$ is unknown while an agent acts, and a guess in its place would influence every later prediction. Here
# reward-to-go is a *target* and never an *input*: at its position the model always reads bin 0. [The next
# page](02_model_and_training.py) checks this.
# :::
#
# ## One reward that ruins the bins
#
# The later code replaces the reward of a fall by -100, as a warning to the planner. With uniform bins the range must
# then reach down to -100, and hardly any bins are left for real rewards:

# %%
fell = torch.zeros(len(steps), dtype=torch.bool)
fell[episodes.starts[1:][episodes.terminal] - 1] = True
dim, rows = transition.reward, []
for kind in ("uniform", "quantile"):
    for label, reward in (("as it is", None), ("-100", -100.0)):
        changed = data.steps(episodes, transition, gamma, terminal_reward=reward)[:]
        fitted = tokenizer.fit(changed.T, transition, V, kind)
        used = len(fitted.bins(changed, slice(None))[~fell, dim].unique())
        e = errors(fitted, changed)[~fell, dim]
        rows.append([kind, label, used, e.median().item(), e.max().item()])
names = ["bins", "reward of a fall", "bins for real rewards"]
crowded = pd.DataFrame(rows, columns=[*names, "median error", "largest error"])
crowded.style.hide(axis="index").format(precision=3)

# %% [markdown]
# Quantile bins lose no bins to the fall. But their lowest bin now reaches from -100 up to the real rewards and decodes
# to its middle. So the lowest real rewards are read as something near -50. In this book only profile `released`, which
# has quantile bins, uses the -100.
#
# ## Windows
#
# The model reads windows of $T$ successive steps. The paper's limit is 512 tokens, so that $T = \lfloor 512 / D
# \rfloor$; at smaller sizes $T$ is smaller. The paper prints $512 / (N + M + 1)$, because it does not count $R$. Every
# step begins a window. If the episode ends inside the window, the rest is padding without loss. So no step and no short
# episode is dropped ({numref}`fig-windows`).

# %%
rng = np.random.default_rng(0)
states, actions, rewards = rng.random((6, 2)), np.zeros((6, 1)), np.ones(6)
walk = data.Episodes(states, actions, rewards, np.array([0, 6]), np.array([True]))
table = data.steps(walk, Transition(2, 1), gamma)[:]
fitted = tokenizer.fit(table.T, Transition(2, 1), V=5)
cut = data.windows(walk, table, fitted, T=4)[0]
ids, weight = cut.batch(torch.arange(len(cut)))
real = weight.view(len(cut), 4, -1)[..., 0] > 0
padding = 1 - real.float().mean()
print(f"{len(cut)} windows of {cut.length} tokens, {padding:.0%} of them padding")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-windows", "caption": "The windows with T = 4 of an episode of six steps. Each box is a step of D tokens, and hatched boxes are padding."}, "image": {"alt": "A staircase of six rows of four boxes. Each row is shifted one step to the right. Boxes after step five are hatched."}}
figure, axes = plt.subplots(figsize=(7, 3.1))
box = {"width": 0.92, "height": 0.78, "ec": "white"}
middle = {"ha": "center", "va": "center", "color": "white"}
for t in range(len(cut)):
    axes.add_patch(plt.Rectangle((t, 0), fc=figures.COLOURS["data"], **box))
    axes.text(t + 0.46, 0.39, f"$t={t}$", **middle)
    axes.text(-0.15, t + 1.79, f"window {t}", ha="right", va="center")
    for k, is_real in enumerate(real[t].tolist()):
        look = {"fc": figures.COLOURS["transformer"]} if is_real else {"fc": "white", "ec": "#999999", "hatch": "////"}
        axes.add_patch(plt.Rectangle((t + k, t + 1.4), **{**box, **look}))
        if is_real:
            axes.text(t + k + 0.46, t + 1.79, str(t + k), **middle)
axes.text(-0.15, 0.39, "episode", ha="right", va="center")
axes.axvline(6 - 0.04, color=figures.COLOURS["other"], lw=2)
axes.text(6.1, 0.39, "end of the episode", va="center", color=figures.COLOURS["other"])
axes.set(xlim=(-1.4, 9.1), ylim=(7.4, -0.2))
axes.axis("off")
plt.show()

# %% [markdown]
# How much would full windows lose? If every window had to be full, episodes that are shorter than $T$ would be left
# out. The steps just before an end would appear only late in a window.

# %% tags=["hide-input"]
rows = []
for name in ("hopper-long", "four-rooms"):
    e = experiments.get(name, size)
    lengths, T = store.dataset(e.data).lengths, e.model.T
    padding = sum(np.maximum(T - np.arange(1, length + 1), 0).sum() for length in lengths) / (T * lengths.sum())
    rows.append({"dataset": e.data.name, "T": T, "episodes": len(lengths), "shortest episode": lengths.min(),
                 "episodes shorter than T": (lengths < T).sum(), "padding in all windows": padding})  # fmt: skip
full_windows = pd.DataFrame(rows)
full_windows.style.hide(axis="index").format({"padding in all windows": "{:.1%}"})

# %% [markdown]
# Where a goal is to be reached, the goal state goes in front of every window as $N$ more tokens with ordinary ids. See
# [Four rooms](04_four_rooms.py).
#
# ## What we saw

# %% tags=["hide-input"]
left = crowded[(crowded["bins"] == "uniform") & (crowded["reward of a fall"] == "-100")].iloc[0]
times = comparison["quantile"] / comparison["uniform"]
median = "smaller" if times["median error"] < 1 else "no smaller"
most = "larger" if times["largest error"] > 1 else "no larger"
walks = full_windows.set_index("dataset").loc["four-rooms-all"]
found = {
    f"largest rounding error in {len(steps):,} steps, uniform bins": f"{(error / width).max():.2%} of the range",
    f"median error of the {SHORT[skewed]}, quantile bins": f"{times['median error']:.2f} times that of uniform bins",
    f"largest error of the {SHORT[skewed]}, quantile bins": f"{times['largest error']:.0f} times that of uniform bins",
    "uniform bins left for real rewards if a fall costs 100": f"{left['bins for real rewards']} of {V}",
    "walks in four rooms that full windows would drop": f"{walks['episodes shorter than T'] / walks['episodes']:.0%}",
}
Markdown(
    f"**Uniform bins lose at most half a bin. Quantile bins make the median error {median} and the largest error {most}.**"
    "\n\n| what | result |\n|---|---|\n" + "\n".join(f"| {what} | {result} |" for what, result in found.items())
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} How many bins?
# :label: ex-vocabulary
#
# Let $V$ run from 5 to 200. Plot the mean rounding error, relative to the standard deviation, of uniform and of
# quantile bins. Which slope do you expect on logarithmic axes? What does a larger $V$ cost?
# ```
#
# ````{solution-start} ex-vocabulary
# :class: dropdown
# ````

# %% mystnb={"figure": {"name": "fig-vocabulary", "caption": "Mean rounding error against the number of bins."}, "image": {"alt": "Two lines fall on logarithmic axes. The line of uniform bins is straight."}}
sample, counts = steps[:: max(1, len(steps) // 5000)], [5, 10, 20, 50, 100, 200]
rows = []
for kind in ("uniform", "quantile"):
    for v in counts:
        relative = errors(tokenizer.fit(sample.T, transition, v, kind), sample)
        relative = (relative / sample.std(0)).mean().item()
        rows.append({"bins V": v, "kind": kind, "error": relative})
figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
table = pd.DataFrame(rows)
sns.lineplot(table, x="bins V", y="error", hue="kind", marker="o", ax=axes)
axes.set(xscale="log", yscale="log", title=f"Hopper ({size})")
axes.set_ylabel("error / standard deviation")
axes.set_xticks(counts, counts)
axes.minorticks_off()
plt.show()

# %% [markdown]
# The slope is -1: twice as many bins halve the error. But then a token has twice as many possible values, and there are
# no more data to learn from. The embeddings and the output layer grow with $V$. At equal accuracy every factor of two
# adds $\log 2$ nats per token to the loss.
#
# ````{solution-end}
# ````
#
# ```{exercise} Where do quantile bins help?
# :label: ex-quantile
#
# Find the dimension whose *median* rounding error falls most with quantile bins, and the dimension where they help
# least. Why these two?
# ```
#
# ````{solution-start} ex-quantile
# :class: dropdown
# ````

# %%
ratio = errors(quantile, steps).median(0).values / error.median(0).values
kurtosis = (standard**4).mean(0)
order = ratio.argsort()
columns = {"median error, quantile / uniform": ratio, "kurtosis": kurtosis}
columns = {name: values[order] for name, values in columns.items()}
pd.DataFrame(columns, index=[MEANING[i] for i in order]).style.format("{:.2f}")

# %% [markdown]
# Kurtosis measures how heavy the tails are: it is 3 for a Gaussian, and less for values that are spread evenly. Heavy
# tails stretch a uniform range, and there quantile bins help most. Many actions are at their limits, where both kinds
# of bins have an edge.
#
# ````{solution-end}
# ````
#
# ```{exercise} A time limit is not a fall
# :label: ex-timeout
#
# Episodes end by a fall (`terminals`) or by the time limit (`timeouts`). Suppose that both give the reward -100. Which
# hoppers are punished? What does the model then learn about their states?
# ```
#
# ````{solution-start} ex-timeout
# :class: dropdown
# ````

# %%
confused = replace(episodes, terminal=np.ones_like(episodes.terminal))
punished = {"falls only": episodes, "falls and time limits": confused}
standing = np.flatnonzero(~episodes.terminal)
begins, ends = episodes.starts[standing], episodes.starts[standing + 1]
last_20 = [slice(max(begin, end - 20), end) for begin, end in zip(begins, ends)]
print(f"{len(standing)} episodes did not end in a fall.")
print("The mean R of their last 20 steps, if -100 is the reward of")
for name, which in punished.items():
    table = data.steps(which, transition, gamma, terminal_reward=-100.0)[:]
    R = table[:, transition.reward_to_go]
    mean = np.mean([R[rows].mean().item() for rows in last_20])
    print(f"  {name:22} {mean:6.1f}")

# %% [markdown]
# The best hoppers are punished, because they stood until the end. Their states then look like states before a fall, and
# nothing in a state tells when the time is over. Even without the -100, $R$ shrinks towards a time limit, because the
# sum stops there.
#
# ````{solution-end}
# ````
