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
# # Speed
#
# **Claim** (Section 5). Planning with a Transformer is slower than planning with single-step models. It is too slow
# to control most systems in real time.
#
# After this page you can
#
# - tell at which beam width and horizon a robot can be controlled in real time;
# - say how much arithmetic a plan needs, and how close a machine comes to that limit;
# - name what makes planning and training fast, and how much each step gives.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input", "reads-results"]
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown
from matplotlib.ticker import LogLocator

from ttlib.commands import bench
from ttlib.drawing import figures
from ttlib.pipeline import places

figures.style()
training = bench.table("training", size)
planning, scaling, profile = (  # the planner computes in fp32
    bench.table(name, size).query("dtype == 'float32'") for name in ("planning", "scaling", "profile")
)
every_planner, planning = planning, bench.as_planned(planning)
about = json.loads((places.folder(size) / "bench_planning.json").read_text())
published = pd.read_csv(places.ROOT / "data" / "published_speed.csv")
MODEL = planning.model.iloc[0]
Markdown(f"Measured on {about['machine']}, with torch {about['versions']['torch']}, at size `{size}`.")

# %% [markdown]
# This page measures nothing. It draws the tables that `make bench` wrote, so run `make bench` first if you want to
# see your own machine. With one thread, the clock counts the time of the benchmark's process only, and the shortest
# of several runs counts. Other programs therefore disturb the numbers little, but they still use the caches.
#
# The *native* planner is a program in C++ that is compiled on your machine when it is first needed. Where there is no
# compiler, or on a GPU, the *PyTorch* planner does the same. Times are those of the native planner where it was there,
# unless we say otherwise.
#
# All times are for models of the size of the authors' code: 4 layers, 4 heads, 128 wide. The *fast* search keeps 32
# plans over 5 transitions. The *default* search keeps 128 plans over 15 transitions. Both try two candidates per plan.
#
# ## Can it keep up with a robot?
#
# The hopper acts 125 times a second, and the halfcheetah acts 20 times. So a decision may take 8 ms for the hopper and
# 50 ms for the halfcheetah. Here the planner reads three past transitions, as it does in Table 1.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-real-time", "caption": "Time of one decision against the number of plans, with one curve for each horizon (in transitions). All times are for one thread. Below the dashed line, the planner keeps up with the robot."}, "image": {"alt": "Two plots with logarithmic axes, for the hopper and the halfcheetah. Each shows the time of a decision against the number of plans, with one rising curve for each horizon, and a dashed line at 8 or 50 milliseconds."}}
def plain_ticks(axis) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10, ... instead of powers of ten."""
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(plt.NullLocator())


LIMITS = {"hopper": 8.0, "halfcheetah": 50.0}  # ms per decision
live = scaling[scaling.axis == "real time"]
live = live.assign(ms=1e3 * live.seconds_per_decision)
grid = sns.relplot(
    live, x="plans", y="ms", col="task", hue="horizon", style="horizon", kind="line", markers=True, dashes=False,
    palette="viridis_r", legend="full", height=2.9, aspect=1.05,
)  # fmt: skip
grid.set(xscale="log", yscale="log", xlabel="plans kept", ylabel="time of a decision (ms)")
for task, axes in grid.axes_dict.items():
    axes.axhline(LIMITS[task], ls="--", lw=1, color=figures.COLOURS["data"])
    axes.set_xticks(plans := sorted(live.plans.unique()), map(str, plans))
    axes.xaxis.set_minor_locator(plt.NullLocator())
    axes.set_title(f"{task}, limit {LIMITS[task]:.0f} ms ({size})")
plain_ticks(grid.axes.flat[0].yaxis)
plt.show()

# %% tags=["hide-input"]
one = planning.query("profile == 'released' and setting == 'fast' and environments == 1 and threads == 1")
best = 1e3 * one.groupby("task").seconds_per_decision.min()
keeps_up = [f"the {task}" for task in LIMITS if (live[live.task == task].ms < LIMITS[task]).any()]
late = [f"the {task}" for task in LIMITS if best[task] > LIMITS[task]]
verdict = f"is too slow for {' and '.join(late)}" if late else "keeps up with both robots"
shorter = f"Shorter searches keep up with {' and '.join(keeps_up)}." if keeps_up else "No timed search keeps up."
answer = f"**On this machine, the fast search {verdict}.** {shorter}"
Markdown(answer)

# %% [markdown]
# The table shows the largest number of plans that keeps up, among the searches that were timed. A dash means that even
# one plan over that horizon takes too long.

# %% tags=["hide-input"]
met = live[live.ms < live.task.map(LIMITS)]
widest = met.pivot_table(index="task", columns="horizon", values="plans", aggfunc="max")
widest = widest.reindex(index=list(LIMITS), columns=sorted(live.horizon.unique()))
widest.style.format("{:.0f}", na_rep="–")

# %% [markdown]
# ## How the cost grows
#
# Each further transition of a plan adds $N + M + 2$ steps that wait for each other. The horizon therefore costs more
# than the beam width.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-speed-scaling", "caption": "Time of a batch of decisions for the hopper (fp32, one thread) against one quantity at a time. The other quantities are those of the fast search with a context of five transitions. The lines are power laws fitted to the points."}, "image": {"alt": "Four plots with logarithmic axes: time against beam width, horizon, context and environments. The points lie close to the fitted lines, and the line for the horizon is the steepest."}}
AXES = {"beam width": "plans", "horizon": "horizon", "past": "past", "environments": "environments"}
LABELS = {"horizon": "horizon (transitions)", "past": "context (transitions)"}
figure, panels = plt.subplots(1, 4, figsize=(7, 2.5), sharey=True, layout="constrained")
for axes, (axis, column) in zip(panels, AXES.items()):
    rows = scaling[(scaling.axis == axis) & (scaling[column] > 0)]
    x, y, exponent = rows[column], rows.seconds_per_decision * rows.environments, rows.exponent.iloc[0]
    fitted = np.exp(np.log(y).mean()) * (x / np.exp(np.log(x).mean())) ** exponent
    sns.scatterplot(x=x, y=y, ax=axes)
    sns.lineplot(x=x, y=fitted, ax=axes, color=figures.COLOURS["other"], lw=1)
    axes.set(xscale="log", yscale="log", xlabel=LABELS.get(axis, axis), title=f"exponent {exponent:.2f}")
    axes.set_xticks(x, map(str, x))
    axes.xaxis.set_minor_locator(plt.NullLocator())
panels[0].set_ylabel("time of a batch (s)")
plain_ticks(panels[0].yaxis)
figure.suptitle(f"Cost of planning ({size})")
plt.show()

# %% [markdown]
# With an exponent below one, a larger batch is cheaper per plan. A search step consists of many small operations, and
# each of them costs about the same for few sequences as for many. A longer context costs little, because the planner
# reads it only once.
#
# ## Where the time goes

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-speed-profile", "caption": "Time of one fast decision for the hopper by kind of operation. The profiler makes small operations look a little slower than they are."}, "image": {"alt": "Stacked horizontal bars of percentages of time by kind of operation, with one bar for each number of environments. Matrix products and attention products fill most of each bar."}}
KINDS = ["matrix products", "attention products", "softmax, GELU, LayerNorm"]
KINDS += ["copies and indexing", "choosing: sort, top-k, draws", "all else, dispatch"]
parts = profile.assign(percent=100 * profile.share)
parts["case"] = [f"{n} environment{'s' * (n > 1)}" for n in parts.environments]
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
sns.histplot(
    parts, y="case", weights="percent", hue="kind", hue_order=KINDS[::-1], multiple="stack", discrete=True, shrink=0.7,
    alpha=1, palette=sns.color_palette("colorblind", 6)[::-1], ax=axes,
)  # fmt: skip
axes.set(xlim=(0, 100), xlabel="percentage of time", ylabel="", title=f"A fast decision by kind of operation ({size})")
sns.move_legend(axes, "upper center", bbox_to_anchor=(0.35, -0.35), ncols=2, title=None, reverse=True)
plt.show()

# %% [markdown]
# ## The lower limit
#
# To read one token that attends to $n$ tokens, a model with $L$ layers of width $d$ needs
#
# $$2\left(L\,(12\,d^2 + 2\,d\,n) + d\,V\right)$$ (eq-operations)
#
# multiplications and additions. They belong to the matrices of attention and the MLP, to the attention itself, and to
# one set of $V$ logits. A search must read the context once, and then one token of every sequence at every step.
#
# Sum {eq}`eq-operations` over these tokens, and divide by the rate at which the machine multiplies large matrices. No
# plan can take less time than this lower limit. This is the machine's rate:

# %% tags=["hide-input"]
rates = pd.concat([planning, training]).groupby(["threads", "dtype"]).gflops_ceiling.max().unstack()
rates.rename_axis(columns="number type").style.format("{:.0f} GFLOP/s", na_rep="")

# %% [markdown]
# ## Other implementations
#
# We compare our code with three other implementations, which we call the *peers*. They are the authors' original code,
# a faster fork of it, and, for training only, a model of the Transformers library (`huggingface`). Their figures come
# with this book and were *not measured on your machine*.
#
# They are for the released search, on one thread of a processor that multiplies matrices at 100 GFLOP/s in fp32. To
# compare, we scale both machines by this rate. The fork's planner is not exact: it attends to value tokens that
# training masks.

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Table: seconds per decision of the peers", "code_prompt_hide": "Hide the table"}
peers = published[published.kind == "planning"]
peers = peers.pivot(index=["setting", "task", "model"], columns="peer", values="figure")
peers.style.format("{:.3g} s", na_rep="–")

# %% [markdown]
# In the tables, `O` is a model of the size of the authors' code, and `P` is one of the paper's size (6 heads, 192
# wide). With several environments, all of them plan in one batch, and times are per decision. *Random shooting* tries
# as many transitions as the fast search, in the single-step ensemble of [the Table 1 page](12_offline_rl.py).


# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Table: every search that was timed", "code_prompt_hide": "Hide the table"}
def digits(x: float) -> str:
    """Write a number with three digits and without powers of ten."""
    return f"{float(f'{x:.3g}'):,.0f}" if x >= 100 else f"{x:.3g}"


def shown(table: pd.DataFrame, index: list[str], columns: dict[str, str]):
    """Show the chosen columns under their printed names; columns that say nothing are left out."""
    index = [c for c in index if table[c].nunique() > 1]
    rows = table.set_index(index)[[c for c in columns if c in table and table[c].notna().any()]]
    small = [{"selector": "th, td", "props": "font-size: 75%; padding: 2px 3px"}]
    return rows.rename(columns=columns).style.format(digits, na_rep="").set_table_styles(small)


timed = every_planner.assign(planner=every_planner.get("planner", "torch"))
timed = timed[timed.setting != "uncached"].sort_values("profile", kind="stable")
timed = timed.assign(limit=timed.gflop_per_decision / timed.gflops_ceiling)
NUMBERS = {"seconds_per_decision": "time (s)", "limit": "lower limit (s)"}
NUMBERS |= {"share_of_ceiling": "fraction of the rate", "peak_mb": "memory (MB)"}
NUMBERS |= {"ratio_scaled": "times as fast as the fastest peer"}
WHO = ["profile", "setting", "task", "model", "threads", "environments", "planner"]
shown(timed, WHO, NUMBERS)

# %% [markdown]
# ## What makes planning fast
#
# The table begins with a planner that reads every sequence anew for every token, and then adds one improvement at a
# time.
#
# - The *cache* keeps keys and values. The planner reads the context once, and all plans of an environment use it. Within
#   a step, plans grow as a tree: they fork by index, and no key is moved.
# - *Many environments in one batch* make operations larger and fewer.
# - The *native planner* does in C++ what PyTorch does in many small operations. Its sequences are lists of pages of keys
#   and values, and the weights lie in the order in which it reads them.

# %% tags=["hide-input"]
fast = timed.query("task == 'hopper' and model == @MODEL and profile == 'released' and threads == 1")
by_planner = {name: rows[rows.setting == "fast"].set_index("environments") for name, rows in fast.groupby("planner")}
uncached = planning.query("task == 'hopper' and model == @MODEL and setting == 'uncached'").seconds_per_decision.iloc[0]
steps = {"every sequence read anew": uncached}
for name in sorted(by_planner, reverse=True):
    for n in (1, by_planner[name].index.max()):
        label = f"{'native planner' if name == 'native' else 'cache, shared context'}, {n} environment{'s' * (n > 1)}"
        steps[label] = by_planner[name].seconds_per_decision[n]
gains = pd.DataFrame({"s / decision": steps})
gains["times as fast"] = gains["s / decision"].iloc[0] / gains["s / decision"]
gains.style.format("{:.3g}")

# %% [markdown]
# Only products of matrices are arithmetic that no planner can avoid. How much does a compiled planner save of what
# PyTorch spends on all else?

# %% tags=["hide-input"]
sentences = []
for n in sorted(set(profile.environments) & set(fast.environments)):
    share = by_planner["torch"].share_of_ceiling[n]
    factor = 1 / profile[(profile.environments == n) & profile.kind.str.endswith("products")].share.sum()
    sentences.append(
        f"With {n} environment{'s' * (n > 1)}, a fast decision of PyTorch would be {factor:.1f} times as fast if "
        f"everything but the products were free. It would be {1 / share:.1f} times as fast if the products also "
        "reached the machine's rate."
    )
    if "native" in by_planner:
        gain = by_planner["torch"].seconds_per_decision[n] / by_planner["native"].seconds_per_decision[n]
        sentences.append(f"The native planner is {gain:.1f} times as fast.")
Markdown(" ".join(sentences))

# %% [markdown]
# On a GPU, a decision is a chain of small kernels. The benchmark also runs there, and it waits for the device before
# it reads the clock. We had no GPU for the tables of this book, so nothing here says how fast a GPU is.
#
# ## Training
#
# Training is timed on batches of 64 windows of ten transitions with AdamW. Dropout is either at the end of each block,
# as in the paper (`block`), or also on attention weights, as in the authors' code (`everywhere`). The peers train with
# the second kind, in fp32.
#
# Some processors multiply matrices faster in bf16, and others are sixty times slower. Training therefore uses bf16 only
# if a short measurement shows that it is faster.

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Table: training speed", "code_prompt_hide": "Hide the table"}
NUMBERS = {"tokens_per_second": "tokens / s", "share_of_ceiling": "fraction of the rate"}
NUMBERS |= {"ratio_scaled": "times as fast as the fastest peer"}
shown(training, ["task", "model", "setting", "dtype", "threads"], NUMBERS)

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Table: training speed of the peers, published and not measured here", "code_prompt_hide": "Hide the table"}
peers = published[published.kind == "training"]
peers = peers.pivot(index=["task", "model"], columns="peer", values="figure")
peers.style.format("{:,.0f} tokens / s", na_rep="–")

# %% [markdown]
# ### Minutes to a good model
#
# The owner of a laptop pays in minutes, not in tokens. The figure shows held-out loss against minutes of one
# processor. `make tune ARGS=training` made these curves. Our training uses Muon without dropout, in small batches.
#
# Every other setting differs from it in one thing. In each run the learning rate falls to zero over the run's own
# minutes. All runs are scored on the same windows of five transitions.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-time-to-quality", "caption": "Held-out loss against processor minutes of training, with a logarithmic time axis. Grey curves are other settings of Muon and AdamW, which the table below names. The highest losses, in the first minute, are cut off."}, "image": {"alt": "Curves of loss that fall with minutes of training, one panel for each dataset. The curves of Muon with smooth embeddings are the lowest, and the curves of AdamW are the highest of the three named ones."}}
curves = pd.read_csv(places.ROOT / "data" / "tried_training.csv")
NAMED = ["AdamW", "Muon", "Muon, smooth embeddings"]
curves["line"] = curves.setting.where(curves.setting.isin(NAMED), "other settings")
curves["run"] = curves.setting + curves.budget.astype(str)
PALETTE = {"other settings": "#cccccc"} | dict(zip(NAMED, map(figures.COLOURS.get, ("other", "transformer", "third"))))
grid = sns.relplot(
    curves, x="minutes", y="held_out_nats", col="task", hue="line", hue_order=list(PALETTE), palette=PALETTE,
    units="run", estimator=None, kind="line", height=2.8, aspect=1.25, facet_kws={"sharey": False, "sharex": False},
)  # fmt: skip
grid.set(xscale="log", xlabel="minutes of one processor", ylabel="")
grid.axes.flat[0].set_ylabel("held-out loss (nats per token)")
for task, axes in grid.axes_dict.items():
    rows = curves[curves.task == task]
    low, high = rows.held_out_nats.min(), rows.held_out_nats.max()
    axes.set(xlim=(0.4, 1.1 * rows.minutes.max()), ylim=(low - 0.02 * (high - low), low + 0.6 * (high - low)))
    plain_ticks(axes.xaxis)
    axes.set_title(f"{task} ({size})")
sns.move_legend(grid, "lower center", bbox_to_anchor=(0.4, 1), ncols=4, title=None)
plt.show()


# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Table: minutes that each setting takes to reach AdamW's loss", "code_prompt_hide": "Hide the table"}
def minutes_to(rows: pd.DataFrame, target: float) -> float:
    """Return when a curve first reaches the target, between points on a line; NaN if never."""
    below = np.flatnonzero(rows.held_out_nats <= target)
    if not len(below):
        return np.nan
    last = slice(max(below[0] - 1, 0), below[0] + 1)
    return float(np.interp(-target, -rows.held_out_nats.iloc[last], rows.minutes.iloc[last]))


rows = []
for task, tried in curves.groupby("task", sort=False):
    adam = tried[tried.setting.str.startswith("AdamW")]
    longest = adam[adam.budget == adam.budget.max()].sort_values("held_out_nats").iloc[0]
    target = longest.held_out_nats
    for (setting, minutes), curve in tried.groupby(["setting", "budget"], sort=False):
        taken, loss = minutes_to(curve, target), curve.held_out_nats.iloc[-1]
        rows.append([task, setting, minutes, loss, target, taken, longest.budget / taken])
TO_TARGET = ["target reached (min)", "times as fast as AdamW"]
columns = ["task", "setting", "minutes", "last loss", "target", *TO_TARGET]
quality = pd.DataFrame(rows, columns=columns)
losses = quality.set_index(["task", "setting"]).style.format("{:.3f}", subset=["last loss", "target"])
losses.format("{:.1f}", subset=TO_TARGET, na_rep="–")

# %% [markdown]
# The target is the lowest loss in AdamW's longest run. A dash means that a setting does not reach it.
#
# ## What we saw

# %% tags=["hide-input"]
Markdown(f"{answer} This page does not test which return such a short search earns.")

# %% tags=["hide-input"]
shooting = 1e3 * planning[planning.model == "ensemble"].set_index("task").seconds_per_decision
rate = one.groupby("task").share_of_ceiling.max()
rows = {
    "one fast decision": {task: f"{best[task]:.0f} ms" for task in LIMITS},
    "limit for control in real time": {task: f"{limit:.0f} ms" for task, limit in LIMITS.items()},
    "random shooting with single-step models": {task: f"{shooting[task]:.1f} ms" for task in LIMITS},
    "times as long as random shooting": {task: f"{best[task] / shooting[task]:.0f}" for task in LIMITS},
    "percentage of the machine's rate": {task: f"{rate[task]:.0%}" for task in LIMITS},
}
if "ratio_scaled" in one and one.ratio_scaled.notna().any():
    faster = one.groupby("task").ratio_scaled.max()
    rows["times as fast as the fastest peer, scaled"] = {task: f"{faster[task]:.0f}" for task in LIMITS}
pd.DataFrame(rows).T

# %% tags=["hide-input"]
quickest = quality[~quality.setting.str.startswith("AdamW")].dropna().sort_values(TO_TARGET[0])
sentences = [
    f"On {row.task}, the quickest setting is `{row.setting}`: it reaches AdamW's loss in {row[-2]:.1f} minutes instead "
    f"of {row[-2] * row[-1]:.0f}."
    for row in quickest.drop_duplicates("task").itertuples(index=False)
]
cached = gains["times as fast"].iloc[1]
Markdown(f"For the hopper, a decision with the cache is {cached:.0f} times as fast. {' '.join(sentences)}")

# %% [markdown]
# ## Exercises
#
# ```{exercise} How many tokens?
# :label: ex-plan-tokens
#
# How many tokens does the fast search of profile `released` read for one decision of the hopper, context included? How
# many would it read if each of its 64 candidates read the context anew?
# ```
#
# ````{solution-start} ex-plan-tokens
# :class: dropdown
# ````

# %%
N, M, plans, candidates, h, past = 11, 3, 32, 2, 5, 5
context = past * (N + M + 2) + N
tokens = context + h * plans * candidates * (M + 1) + (h - 1) * plans * (1 + N)
print(f"{tokens:,} tokens; with 64 contexts {tokens + 63 * context:,}")

# %% [markdown]
# The search reads every candidate up to $r$. It reads the reward-to-go and the next state only for the plans that it
# keeps. It never reads the last reward-to-go.
#
# ````{solution-end}
# ````
#
# ```{exercise} How far from the limit?
# :label: ex-floor
#
# Suppose that PyTorch's matrix products reached the machine's rate and all else stayed as it is. How much faster would a
# fast decision be? Use the percentages of {numref}`fig-speed-profile`.
# ```
#
# ````{solution-start} ex-floor
# :class: dropdown
# ````

# %%
first = profile[profile.environments == 1]
products = first[first.kind.str.endswith("products")].share.sum()
at_rate = by_planner["torch"].share_of_ceiling[1]
print(f"products take {products:.0%} of the time, and would take {at_rate:.0%}")
print(f"a decision would be {1 / (1 - products + at_rate):.2f} times as fast")

# %% [markdown]
# The rest consists of small operations, each with a fixed cost. Fewer and larger operations help further, such as more
# environments in one batch. The native planner goes the other way: it makes small operations cheap.
#
# ````{solution-end}
# ````
