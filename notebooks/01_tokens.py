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
# **Claim** (Section 3.1, Equation 1). Cut each dimension of states, actions and rewards into bins, and a
# trajectory becomes a sentence over a small vocabulary. What is lost is at most half a bin.
#
# After this page you can
#
# - turn a step into token ids and back by hand, and read dimension and bin off an id;
# - choose between uniform and quantile bins, and recognise data on which uniform ones fail;
# - sum reward-to-go so that no reward is counted twice;
# - cut episodes into windows without losing their ends.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ttlib import data, search, tokenizer
from ttlib.drawing import figures
from ttlib.environments import tasks
from ttlib.pipeline import experiments, results, store
from ttlib.tokenizer import Transition

exp = experiments.get("hopper-long", size)
transition, V, gamma = exp.model.transition, exp.bins.V, exp.bins.gamma

# %% [markdown]
# ## By hand
#
# A toy world has $N = 2$ state dimensions, $M = 1$ action and $V = 5$ bins. One step is five numbers:
# $s^0, s^1, a$, the reward $r$ and the reward-to-go $R$ (explained below). Number them $i = 0, \dots, 4$, and let
# $x^i$ lie in $[\ell^i, r^i)$. Its token is
#
# $$\bar{x}^i = \left\lfloor V \, \frac{x^i - \ell^i}{r^i - \ell^i} \right\rfloor + V i.$$ (eq-tokens)

# %%
low = torch.tensor([0.0, -1.0, -1.0, 0.0, 0.0])
high = torch.tensor([10.0, 1.0, 1.0, 2.0, 20.0])
x = torch.tensor([3.7, 0.95, -0.3, 0.6, 13.0])
ids = (5 * (x - low) / (high - low)).floor().long() + 5 * torch.arange(5)
print(ids.tolist())

# %% [markdown]
# The offset $V i$ gives each dimension ids of its own: 0 to 4 are values of $s^0$, 5 to 9 of $s^1$, and so on. So
# an id carries its meaning. `id // V` is the dimension, `id % V` the bin, and the middle of that bin is what the
# token decodes to:
#
# $$\hat{x}^i = \ell^i + \frac{r^i - \ell^i}{V} \left( b + \tfrac{1}{2} \right), \qquad b = \bar{x}^i \bmod V.$$ (eq-decode)

# %%
dimension, bin_ = ids // 5, ids % 5
decoded = low + (high - low) / 5 * (bin_ + 0.5)
columns = {"value": x, "id": ids, "id // V": dimension, "id % V": bin_, "decoded": decoded}
names = Transition(N=2, M=1).names()
pd.DataFrame(columns, index=names).T.style.format("{:.4g}")

# %% [markdown]
# `ttlib.tokenizer` does the same, and fits $\ell$ and $r$ to data; $r$ is set just above the largest value, because
# the interval is half open.

# %%
fitted = tokenizer.fit(torch.stack([low, high]), Transition(N=2, M=1), V=5)
assert torch.equal(fitted.encode(x, slice(None)), ids)
assert torch.allclose(fitted.decode(ids).float(), decoded, atol=1e-4)

# %% [markdown]
# ## A step of hopper
#
# Hopper is a one-legged robot in a simulator {cite:p}`todorov2012mujoco`: $N = 11$, $M = 3$, so a step is
# $D = N + M + 2 = 16$ tokens. The data are episodes of policies of mixed quality, regenerated after
# D4RL's `hopper-medium-replay` {cite:p}`fu2020d4rl`. Bins are fitted to the training episodes alone. $V = 100$ is
# our choice; the paper does not say.

# %%
episodes, unseen = store.dataset(exp.data).split(exp.data.held_out, exp.data.seed)
steps = data.steps_table(episodes, transition, gamma, include_current=True)
uniform = tokenizer.fit(steps, transition, V)
print(f"{len(episodes)} episodes, {len(steps):,} steps of D = {transition.D} numbers; {V * transition.D} token ids")

# %% tags=["hide-input"]
MEANING = tasks.MEANING["hopper"]
assert len(MEANING) == transition.D

# %%
row = episodes.starts[0] + 20
x = steps[row]
ids = uniform.encode(x, slice(None))
decoded = uniform.decode(ids)
columns = {"name": MEANING, "value": x, "bin": ids % V, "id": ids, "decoded": decoded, "error": decoded - x}
table = pd.DataFrame(columns, index=transition.names())
table.style.format({"value": "{:.3f}", "decoded": "{:.3f}", "error": "{:+.3f}"})

# %% [markdown]
# The paper's offsets end with the reward's, $V (N + M)$. Reward-to-go, introduced later in the paper, follows as one
# more dimension.
#
# ## What is lost
#
# A value inside the fitted range is at most half a bin from its centre:
#
# $$|\hat{x}^i - x^i| \le \frac{r^i - \ell^i}{2 V}.$$ (eq-half-bin)


# %%
def errors(fitted: tokenizer.Tokenizer, steps: torch.Tensor) -> torch.Tensor:
    """(n, D) absolute rounding error of every value."""
    return (fitted.decode(fitted.encode(steps, slice(None))) - steps).abs()


error = errors(uniform, steps)
width = uniform.high - uniform.low
assert (error <= width / (2 * V) * (1 + 1e-9)).all()


def returned() -> pd.DataFrame:
    """The largest error of each dimension, in half bins: what the ledger of claims is shown."""
    largest = error.amax(0) / (width / (2 * V))
    return pd.DataFrame({"bins": "uniform", "dimension": transition.names(), "largest_error": largest, "steps": len(steps)})


made_of = {"config": {"data": exp.data, "bins": exp.bins}, "inputs": {exp.data.name: store.data_key(exp.data)}}
print(f"largest error: {results.table('round_trip', size, returned, **made_of).largest_error.max():.4f} half bins")
others = data.steps_table(unseen, transition, gamma, include_current=True)
outside = uniform.out_of_range(others, slice(None))
print(f"held-out values outside the fitted range: {outside.max():.2%} at most ({MEANING[outside.argmax()]})")

# %% [markdown]
# A value outside the range goes to the first or last bin. Relative to its *range* every dimension loses the same.
# Relative to how much a dimension usually *varies* it does not: where a few extreme values stretch the
# range, a bin is coarse for all the others ({numref}`fig-rounding`). The authors suspect this behind their weak
# result on halfcheetah's medium-expert data (Section 4.2).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-rounding", "caption": "Rounding error of each dimension, uniform bins. Above, as a share of the range: mean and largest, and the bound of half a bin. Below, the mean as a share of the standard deviation."}, "image": {"alt": "Two bar charts over sixteen dimensions. Above all largest errors lie on the line of half a bin. Below the bars differ by a factor of four; joint speeds are highest, actions lowest."}}
figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True, layout="constrained")
at = np.arange(transition.D)
upper.bar(at, 100 * error.mean(0) / width, color=figures.COLOURS["transformer"], label="mean")
upper.plot(at, 100 * error.amax(0) / width, "o", color=figures.COLOURS["other"], label="largest")
upper.axhline(50 / V, ls="--", lw=1, color=figures.COLOURS["data"], label="half a bin")
upper.set(ylabel="% of the range", ylim=(0, 75 / V), title=f"Rounding error of hopper's {transition.D} dimensions ({size})")
upper.legend(frameon=False, ncol=3, loc="upper center")
lower.bar(at, 100 * error.mean(0) / steps.std(0), color=figures.COLOURS["transformer"])
lower.set(ylabel="% of the std. deviation", xticks=at)
lower.set_xticklabels([name.split(" (")[0] for name in MEANING], rotation=40, ha="right")
for axes in (upper, lower):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Uniform or quantile bins
#
# The authors' later code puts the edges at quantiles, so that each bin holds equally many training values; equal
# edges are merged, so that every bin has a width. {numref}`fig-edges` shows both on the state dimension of
# largest skewness.

# %%
quantile = tokenizer.fit(steps, transition, V, kind="quantile")
standard = (steps - steps.mean(0)) / steps.std(0)
skewness = (standard**3).mean(0)
skewed = int(skewness[transition.state].abs().argmax())
comparison = pd.DataFrame(
    {
        kind: {"median error": e.median().item(), "mean error": e.mean().item(), "largest error": e.max().item()}
        for kind, e in (("uniform", error[:, skewed]), ("quantile", errors(quantile, steps)[:, skewed]))
    }
)
print(f"{MEANING[skewed]}, skewness {skewness[skewed]:.1f}")
comparison.style.format("{:.4f}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-edges", "caption": "Every fifth bin edge over a histogram of the values. Quantile bins are narrow where the data are and wide in the tail."}, "image": {"alt": "The same skewed histogram twice: above with evenly spaced vertical lines, below with lines crowded under the peak and sparse in the long left tail."}}
figure, panels = plt.subplots(2, 1, figsize=(7.5, 3.8), sharex=True, sharey=True, layout="constrained")
values = steps[:, skewed].numpy()
for axes, fitted in zip(panels, (uniform, quantile)):
    axes.hist(values, bins=120, color=figures.COLOURS["data"], alpha=0.55, lw=0, weights=np.full(len(values), 1 / 1000))
    edges = fitted.edges[skewed]
    axes.vlines(edges[edges.isfinite()][::5], 0, 1, transform=axes.get_xaxis_transform(), lw=0.9,
                color=figures.COLOURS["transformer"])  # fmt: skip
    axes.set_title(f"{fitted.kind} ({size})", loc="left")
    axes.set_ylabel("thousand steps")
    axes.spines[["top", "right"]].set_visible(False)
panels[1].set_xlabel(MEANING[skewed])
plt.show()

# %% [markdown]
# Quantile bins spend their precision on common values and pay with rare ones: the largest error is many times a
# uniform bin's, and the *mean* error need not fall at all. Profile `v1` of this book has the paper's uniform
# bins, profile `released` quantile bins.
#
# ## Reward-to-go
#
# Each step also carries the discounted sum of the rewards from now to the end of its episode:
#
# $$R_t = \sum_{t'=t}^{T-1} \gamma^{t'-t} \, r_{t'}.$$ (eq-reward-to-go)

# %%
toy = data.reward_to_go(rewards=np.array([1.0, 2.0, 3.0]), starts=np.array([0, 3]), gamma=0.5)
print(toy, "by hand:", [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3])

# %% [markdown]
# As printed, $R_t$ *contains* $r_t$. So when a plan of $h$ steps is worth its rewards plus the reward-to-go at its
# end, the last reward must enter once, through $R$:
#
# $$v_h = \sum_{k=0}^{h-2} \gamma^k r_k + \gamma^{h-1} R_{h-1}.$$ (eq-value)
#
# With true rewards this is $R_0$ for every $h$. A value that drifts with the horizon counts something twice:

# %%
first = slice(episodes.starts[0], episodes.starts[1])
r, R = steps[first, transition.reward], steps[first, transition.reward_to_go]
rows = []
for h in range(1, len(r) + 1):
    value = search.plan_value(r[:h], R[:h], gamma).item()
    rows.append({"h": h, "value": value, "last reward counted twice": value + gamma ** (h - 1) * r[h - 1].item()})
values = pd.DataFrame(rows).set_index("h")
assert np.allclose(values["value"], R[0])
print(f"R_0 = {R[0]:.3f}")
values.loc[[1, 2, 5, 20]].T.style.format("{:.3f}")

# %% [markdown]
# The authors' later code leaves $r_t$ out of $R_t$; then all $h$ rewards are summed and $R_{h-1}$ is worth $\gamma^h$:

# %%
later = data.reward_to_go(episodes.rewards, episodes.starts, gamma, include_current=False)[first]
for h in (1, 5, len(r)):
    value = search.plan_value(r[:h], torch.from_numpy(later)[:h], gamma, include_current=False)
    assert torch.isclose(value, R[0])

# %% [markdown]
# Discounting inside a plan and this reading of "cumulative reward plus reward-to-go" are ours, and so is
# $\gamma = 0.99$.
#
# **A departure.** While acting, the true $R_t$ is unknown, and a guess in its place would leak into every later
# prediction. Here reward-to-go is a *target* and never an *input*: at its position the model always reads bin 0.
# [The next page](02_model_and_training.py) checks it.
#
# ## One reward that ruins the bins
#
# The later code replaces the reward of a fall by -100, as a warning to the planner. With uniform bins the range must
# stretch to -100, and hardly any bins are left for real rewards:

# %%
fell = torch.zeros(len(steps), dtype=torch.bool)
fell[episodes.starts[1:][episodes.terminal] - 1] = True
dim, rows = transition.reward, []
for kind in ("uniform", "quantile"):
    for terminal_reward in (None, -100.0):
        changed = data.steps_table(episodes, transition, gamma, True, terminal_reward)
        fitted = tokenizer.fit(changed, transition, V, kind)
        bins, error_r = fitted.bins(changed, slice(None))[~fell, dim], errors(fitted, changed)[~fell, dim]
        rows.append({"bins": kind, "reward of a fall": terminal_reward or "as it is",
                     "bins with real rewards": len(bins.unique()), "median error": error_r.median().item(),
                     "largest error": error_r.max().item()})  # fmt: skip
crowded = pd.DataFrame(rows)
crowded.style.hide(axis="index").format(precision=3)

# %% [markdown]
# Quantile bins keep their number. But their lowest bin now reaches from -100 into the real rewards and decodes to
# the middle: the poorest real rewards are read as something near -50. Here only profile `released`, with its
# quantile bins, uses the -100.
#
# ## Windows
#
# The model reads windows of $T$ successive steps: $T = \lfloor 512 / D \rfloor$ for the paper's limit of 512 tokens (it
# prints $512 / (N + M + 1)$, without counting $R$), fewer at smaller sizes. Every step begins one. Where the episode
# ends inside the window, the rest is padding without loss, so that no step and no short episode is dropped
# ({numref}`fig-windows`).

# %%
short = data.Episodes(np.random.default_rng(0).random((6, 2)), np.zeros((6, 1)), np.ones(6), np.array([0, 6]), np.array([True]))
table = data.steps_table(short, Transition(2, 1), gamma, include_current=True)
cut = data.windows(short, table, tokenizer.fit(table, Transition(2, 1), V=5), T=4)
ids, weight = cut.batch(torch.arange(len(cut)))
real = weight.view(len(cut), 4, -1)[..., 0] > 0
print(f"{len(cut)} windows of {cut.length} tokens, {1 - real.float().mean():.0%} padding")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-windows", "caption": "The windows of T = 4 of an episode of six steps. Each box is a step of D tokens; hatched boxes are padding."}, "image": {"alt": "A staircase of six rows of four boxes, each row shifted one step to the right. Boxes past step five are hatched."}}
figure, axes = plt.subplots(figsize=(7, 3.1))
box = {"width": 0.92, "height": 0.78, "ec": "white"}
for t in range(len(cut)):
    axes.add_patch(plt.Rectangle((t, 0), fc=figures.COLOURS["data"], **box))
    axes.text(t + 0.46, 0.38, f"$t={t}$", ha="center", va="center", color="white")
    for k, is_real in enumerate(real[t].tolist()):
        look = {"fc": figures.COLOURS["transformer"]} if is_real else {"fc": "white", "ec": "#999999", "hatch": "////"}
        axes.add_patch(plt.Rectangle((t + k, t + 1.4), **{**box, **look}))
        if is_real:
            axes.text(t + k + 0.46, t + 1.78, str(t + k), ha="center", va="center", color="white")
labels = ["episode", *(f"window {t}" for t in range(len(cut)))]
axes.set(xlim=(-0.1, 9.1), ylim=(7.4, -0.2), xticks=[])
axes.set_yticks([0.38, *(t + 1.78 for t in range(len(cut)))], labels)
axes.axvline(6 - 0.04, color=figures.COLOURS["other"], lw=2)
axes.text(6.1, 0.38, "end of the episode", va="center", color=figures.COLOURS["other"])
axes.tick_params(length=0)
axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# How much is at stake? Windows that must be full leave out whole episodes where these are shorter than $T$, and
# show the steps just before an end only late in a window.

# %%
rows = []
for name in ("hopper-long", "four-rooms"):
    e = experiments.get(name, size)
    lengths, T = store.dataset(e.data).lengths, e.model.T
    padding = sum(np.maximum(T - np.arange(1, length + 1), 0).sum() for length in lengths) / (T * lengths.sum())
    rows.append({"dataset": e.data.name, "T": T, "shortest episode": lengths.min(), "episodes shorter than T": (lengths < T).sum(),
                 "of": len(lengths), "padding in all windows": padding})  # fmt: skip
at_stake = pd.DataFrame(rows)
at_stake.style.hide(axis="index").format({"padding in all windows": "{:.1%}"})

# %% [markdown]
# Where a goal is to be reached, its state goes in front of every window as $N$ more tokens with ordinary ids: see
# [Four rooms](04_four_rooms.py).
#
# ## What we saw

# %% tags=["hide-input"]
from IPython.display import Markdown

left = crowded[(crowded["bins"] == "uniform") & (crowded["reward of a fall"] == -100.0)].iloc[0]
gain = comparison.loc["median error", "uniform"] / comparison.loc["median error", "quantile"]
walks = at_stake.set_index("dataset").loc["four-rooms-all"]
Markdown(
    f"With V = {V}, the largest rounding error of any of {len(steps):,} steps is {(error / width).max():.2%} of the range, "
    f"half a bin. On {MEANING[skewed].split(' (')[0]}, quantile bins change the median error by a factor of {1 / gain:.2f} and "
    f"the largest by {comparison.loc['largest error', 'quantile'] / comparison.loc['largest error', 'uniform']:.0f}. A reward "
    f"of -100 leaves uniform bins {left['bins with real rewards']} bins for all real rewards. Windows that must be "
    f"full would drop {walks['episodes shorter than T'] / walks['of']:.0%} of the walks in four rooms."
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} How many bins?
# :label: ex-vocabulary
#
# Let $V$ run from 5 to 200 and plot the mean rounding error, relative to the standard deviation, of
# uniform and quantile bins. Which slope do you expect on logarithmic axes? What does a larger $V$ cost?
# ```
#
# ````{solution-start} ex-vocabulary
# :class: dropdown
# ````

# %% mystnb={"figure": {"name": "fig-vocabulary", "caption": "Mean rounding error against the number of bins."}, "image": {"alt": "Two lines falling on logarithmic axes; the uniform one is straight."}}
sample, counts = steps[:: max(1, len(steps) // 5000)], [5, 10, 20, 50, 100, 200]
figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for kind, colour in (("uniform", "transformer"), ("quantile", "other")):
    loss = [(errors(tokenizer.fit(sample, transition, v, kind), sample) / sample.std(0)).mean().item() for v in counts]
    axes.loglog(counts, loss, "o-", color=figures.COLOURS[colour], label=kind)
axes.set(xlabel="bins V", ylabel="error / std. deviation", title=f"Hopper ({size})")
axes.set_xticks(counts, counts)
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The slope is -1: twice the bins, half the error. But a token then has twice as many values to choose from, with
# the same data to learn from: embeddings and output layer grow with $V$, and at equal accuracy every factor of two
# adds $\log 2$ nats of loss for each token.
#
# ````{solution-end}
# ````
#
# ```{exercise} Where do quantile bins help?
# :label: ex-quantile
#
# Find the dimension whose *median* rounding error falls most with quantile bins, and the one where they help
# least. Why these?
# ```
#
# ````{solution-start} ex-quantile
# :class: dropdown
# ````

# %%
ratio = errors(quantile, steps).median(0).values / error.median(0).values
tails = (standard**4).mean(0)
order = ratio.argsort()
columns = {"median error, quantile / uniform": ratio[order], "kurtosis": tails[order]}
pd.DataFrame(columns, index=[MEANING[i] for i in order]).style.format("{:.2f}")

# %% [markdown]
# Kurtosis measures tails: 3 for a Gaussian, less for values spread evenly. Heavy tails stretch a uniform range, and
# there quantile bins gain most. Actions crowd at their limits, where both kinds of bins have an edge.
#
# ````{solution-end}
# ````
#
# ```{exercise} A time limit is not a fall
# :label: ex-timeout
#
# Episodes end by a fall (`terminals`) or by the time limit (`timeouts`). Suppose that the -100 is given at both.
# Which hoppers are punished, and what does the model then learn about their states?
# ```
#
# ````{solution-start} ex-timeout
# :class: dropdown
# ````

# %%
from dataclasses import replace

confused = replace(episodes, terminal=np.ones_like(episodes.terminal))
standing = np.flatnonzero(~episodes.terminal)
before_end = [slice(max(episodes.starts[i], episodes.starts[i + 1] - 20), episodes.starts[i + 1]) for i in standing]
print(f"mean R over the last 20 steps of {len(standing)} episodes that did not end in a fall, with -100 at")
for name, which in (("falls only", episodes), ("falls and time limits", confused)):
    R = data.steps_table(which, transition, gamma, True, terminal_reward=-100.0)[:, transition.reward_to_go]
    mean = np.mean([R[rows].mean().item() for rows in before_end])
    print(f"{name:22} {mean:6.1f}")

# %% [markdown]
# The best hoppers are punished, those that stood until the end. Their states then look like states before a fall,
# and nothing in a state tells when the clock runs out. Even without the -100, $R$ shrinks towards a time limit,
# because the sum stops there.
#
# ````{solution-end}
# ````
