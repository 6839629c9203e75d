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
# **Claim** (Section 5). Planning with a Transformer is slower than with single-step models, and not yet fit for
# real-time control.
#
# After this page you can
#
# - say how much arithmetic a plan needs, and how close to that a machine comes;
# - name what makes planning and training fast, and what each step gives;
# - tell at which beam width and horizon a robot could be controlled in real time.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input", "reads-results"]
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.ticker import LogLocator

from ttlib.drawing import figures
from ttlib.pipeline import places, results

FOLDER = places.folder(size)


def plain_ticks(axis) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis, without powers."""
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_major_formatter("{x:g}")


planning, training, scaling, profile = (results.bench(name, size) for name in ("planning", "training", "scaling", "profile"))
about = json.loads((FOLDER / "bench_planning.json").read_text())
published = pd.read_csv(places.ROOT / "data" / "published_speed.csv")
MODEL = planning.model[0]
TASKS = {"hopper": figures.COLOURS["transformer"], "halfcheetah": figures.COLOURS["other"]}
Markdown(f"Measured on: {about['machine']}, torch {about['versions']['torch']}, size `{size}`.")

# %% [markdown]
# Nothing is timed while this page is made: it draws the tables that `make bench` wrote. Run that, and the page is
# about your machine. With one thread the clock counts the time of the process alone, and the shortest of several runs
# is kept, so other work on the machine disturbs little, but it does disturb: it fills the caches.
#
# ## The limit
#
# Reading one token that sees $n$ tokens takes a model of $L$ layers and width $d$
#
# $$2\left(L\,(12\,d^2 + 2\,d\,n) + d\,V\right)$$ (eq-operations)
#
# multiplications and additions: the matrices of attention and MLP, the attention itself, and one set of $V$ logits.
# A search must read the context once, then one token of every sequence at every step. The sum of {eq}`eq-operations`
# over these tokens, over the rate at which the machine multiplies large matrices, is a floor under the time of a plan.
# The table gives the share of that rate which the planner reaches.

# %% tags=["hide-input"]
rates = pd.concat([planning, training]).groupby(["threads", "dtype"]).gflops_ceiling.max().unstack()
rates.style.format("{:.0f} GFLOP/s", na_rep="")

# %% [markdown]
# ## Planning
#
# A decision in the steady state: five past transitions and the current state are the context. *fast* keeps 32 plans
# over 5 transitions, *default* 128 over 15, with two candidates each. `O` is the size of the authors' code (4 layers, 4 heads,
# 128 wide), `P` the paper's (4, 6, 192). Many environments are planned for in one batch; times are per decision. *Random
# shooting* tries as many transitions as the fast search, of the single-step `ensemble` of [page 11](11_offline_rl.py).


# %% tags=["hide-input"]
def digits(x: float) -> str:
    """Three digits, without powers of ten."""
    return f"{float(f'{x:.3g}'):,.0f}" if x >= 100 else f"{x:.3g}"


def shown(table: pd.DataFrame, by: list[str], columns: dict[str, str]):
    """Chosen columns under their printed names, numbers with three digits, in type that lets all of them fit."""
    rows = table.set_index(by)[[c for c in columns if c in table and table[c].notna().any()]].rename(columns=columns)
    cells = rows.map(lambda x: digits(x) if isinstance(x, float) and x == x else "" if x != x else x)
    return cells.style.set_table_styles([{"selector": "th, td", "props": "font-size: 66%; padding: 2px 2px"}])


timed = planning[planning.setting != "uncached"].assign(floor=planning.gflop_per_decision / planning.gflops_ceiling)
shown(
    timed,
    ["profile", "setting", "task", "model", "dtype", "threads", "environments"],
    {
        "seconds_per_decision": "s / decision",
        "floor": "floor (s)",
        "share_of_ceiling": "share of the rate",
        "peak_mb": "memory (MB)",
        "ratio_scaled": "times the fastest peer",
    },
)

# %% [markdown]
# The peers are the original code, its faster fork, and the Transformers library's model. Their figures below are
# *published with this book, not measured on your machine*: one thread of a processor with a rate of 100 GFLOP/s in fp32, the
# released search. The last column above compares with the fastest of them after scaling both machines by that rate.
# The fork's planner is not exact: it attends to value tokens that training masks.

# %% tags=["hide-input"]
peers = published[published.kind == "planning"].pivot(index=["setting", "task", "model"], columns="peer", values="figure")
peers.style.format("{:.3g} s", na_rep="")

# %% [markdown]
# ## Where the time goes

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-speed-profile", "caption": "One fast decision for hopper by kind of operation, as the profiler sees it, which makes small operations look a little dearer than they are."}, "image": {"alt": "Stacked horizontal bars of shares of time by kind of operation, one bar for each number of environments and number type."}}
KINDS = ["matrix products", "attention products", "softmax, GELU, LayerNorm", "copies and indexing", "choosing: sort, top-k, draws", "all else, dispatch"]
SHADES = [*(figures.COLOURS[c] for c in ("transformer", "third", "other", "fourth")), "#E69F00", "#999999"]
shares = profile.pivot_table(index=["dtype", "environments"], columns="kind", values="share", sort=False).fillna(0)
figure, axes = plt.subplots(figsize=(8, 0.9 + 0.5 * len(shares)), layout="constrained")
left = np.zeros(len(shares))
for kind, colour in zip(KINDS, SHADES):
    if kind in shares:
        axes.barh(range(len(shares)), 100 * shares[kind], left=left, color=colour, label=kind)
        left = left + 100 * shares[kind].to_numpy()
axes.set(yticks=range(len(shares)), yticklabels=[f"{dtype}, {n} environment{'s' * (n > 1)}" for dtype, n in shares.index])
axes.set(xlabel="share of time (%)", xlim=(0, 100), title=f"A fast decision by kind of operation ({size})")
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# ## What each lever gives
#
# From the planner that reads every sequence anew for every token, for hopper, one lever after the other. The *cache*
# keeps keys and values: the context is read once and shared by all plans of an environment; what follows grows as a tree,
# in which plans fork by index and no key is ever moved. Planning for *many environments in one batch* makes operations larger and
# fewer. *bf16* halves the numbers of the blocks' matrices, but only some processors multiply them faster; others are sixty
# times slower, so it is used only where a few milliseconds of measurement say so. Attention's scores, the residual stream and
# the head stay in float32, which keeps a trained model's next-token distributions within 1e-4 nats of float32's (a test
# holds it; with all in bf16 they are 3e-4 to 4e-4 nats off).

# %% tags=["hide-input"]
fast = planning.query("task == 'hopper' and model == @MODEL and profile == 'released' and threads == 1")
steps = [("every sequence read anew", "uncached", "float32", 1)]
many = int(fast.query("setting == 'fast'").environments.max())
steps += [("cache, shared context", "fast", "float32", 1), (f"{many} environments together", "fast", "float32", many)]
steps += [("bf16, one environment", "fast", "bfloat16", 1), (f"bf16, {many} environments", "fast", "bfloat16", many)]
rows = []
for name, setting, dtype, n in steps:
    found = fast[(fast.setting == setting) & (fast.dtype == dtype) & (fast.environments == n)].seconds_per_decision
    rows += [{"lever": name, "s / decision": found.min()}] * len(found)
levers = pd.DataFrame(rows).drop_duplicates("lever").set_index("lever")
levers["times the first"] = levers["s / decision"].iloc[0] / levers["s / decision"]
levers.style.format("{:.3g}")

# %% tags=["hide-input"]
kernel = {}
for n in sorted(set(profile.environments) & set(fast.environments)):
    row = fast[(fast.setting == "fast") & (fast.dtype == "float32") & (fast.environments == n)].iloc[0]
    found = profile[(profile.environments == n) & (profile.dtype == "float32")].set_index("kind").share
    kernel[n] = (1 / found[["matrix products", "attention products"]].sum(), 1 / row.share_of_ceiling)
Markdown(
    "**A kernel of our own?** If all but the products cost nothing, a fast decision in fp32 would be "
    + " and ".join(f"{only:.1f} times faster with {n} environment{'s' * (n > 1)} ({best:.1f} if products reached the machine's rate too)" for n, (only, best) in kernel.items())
    + ". That is the most that a kernel compiled on the reader's machine could give. It would be a second model, attention and search in another "
    "language, and needs a compiler: this book does without."
)

# %% [markdown]
# ## How the cost grows

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-speed-scaling", "caption": "Time of a batch of decisions (hopper, fp32, one thread) against one quantity at a time, the others as in the fast search; lines are power laws fitted to the points, with their exponents."}, "image": {"alt": "Four log-log plots of time against beam width, horizon, past transitions and environments, each with a fitted line."}}
AXES = {"beam width": "plans", "horizon": "horizon", "past": "past", "environments": "environments"}
figure, panels = plt.subplots(1, 4, figsize=(10, 2.9), sharey=True, layout="constrained")
for axes, (axis, column) in zip(panels, AXES.items()):
    rows = scaling[(scaling.axis == axis) & (scaling[column] > 0)]
    x, y = rows[column].to_numpy(float), (rows.seconds_per_decision * rows.environments).to_numpy()
    axes.loglog(x, y, "o", ms=5, color=figures.COLOURS["transformer"])
    exponent = rows.exponent.iloc[0]
    axes.loglog(x, np.exp(np.log(y).mean()) * (x / np.exp(np.log(x).mean())) ** exponent, color=figures.COLOURS["other"], lw=1)
    label = {"horizon": "horizon (transitions)", "past": "past (transitions)"}.get(axis, axis)
    axes.set(xlabel=label, title=f"exponent {exponent:.2f}")
    axes.set_xticks(x, [f"{v:.0f}" for v in x])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("time of a batch (s)")
plain_ticks(panels[0].yaxis)
figure.suptitle(f"Cost of planning ({size})")
plt.show()

# %% [markdown]
# An exponent below one means that a larger batch is cheaper per plan: the many small operations of a step cost the same
# for few sequences as for many. A longer past costs only attention, since it is read once.
#
# ## Real time
#
# The hopper acts 125 times a second, the halfcheetah 20 times: a decision may take 8 ms and 50 ms. Each further
# transition of a plan adds $N + M + 2$ steps that wait for each other, so the horizon decides, not the beam.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-real-time", "caption": "Time of one decision against the number of plans, for several horizons $h$, with three past transitions as Table 1's planner has, one thread, the faster number type at each point. Below the dashed line the robot can be controlled in real time."}, "image": {"alt": "Two log-log plots, hopper and halfcheetah, of decision time against plans, a curve for each horizon, and a dashed line at 8 and 50 milliseconds."}}
LIMITS = {"hopper": 8.0, "halfcheetah": 50.0}  # ms
live = scaling[scaling.axis == "real time"]
live = live.groupby(["task", "horizon", "plans"], as_index=False).seconds_per_decision.min()
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
for axes, task in zip(panels, TASKS):
    for (h, rows), colour, marker in zip(live[live.task == task].groupby("horizon"), SHADES, "osD^"):
        axes.loglog(rows.plans, 1e3 * rows.seconds_per_decision, marker=marker, ms=5, color=colour, label=f"$h = {h}$")
    axes.axhline(LIMITS[task], ls="--", lw=1, color=figures.COLOURS["data"])
    plans = sorted(live.plans.unique())
    axes.set_xticks(plans, [str(n) for n in plans])
    axes.minorticks_off()
    axes.set(xlabel="plans kept", title=f"{task} (dashed: {1e3 / LIMITS[task]:.0f} decisions a second)")
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("time of a decision (ms)")
plain_ticks(panels[0].yaxis)
panels[1].legend(frameon=False, loc="lower right", ncols=2)
figure.suptitle(f"Can it keep up? ({size})")
plt.show()

# %% tags=["hide-input"]
sentences = []
for task, limit in LIMITS.items():
    met = live[(live.task == task) & (1e3 * live.seconds_per_decision < limit)]
    widest = [f"{rows.plans.max()} plans over {h} transition{'s' * (h > 1)}" for h, rows in met.groupby("horizon")]
    sentences.append(f"{task}, {limit:.0f} ms: {', or '.join(widest) or 'none of these searches'}")
Markdown(f"What keeps up on this machine, of the searches that were timed: {'; '.join(sentences)}.")

# %% [markdown]
# On a GPU a decision is a chain of small kernels. The bench runs there as it is, with times taken after the device has
# finished; no GPU was at hand for the tables of this book, and nothing here says how fast it is.
#
# ## Training
#
# Batches of 64 windows of ten transitions, AdamW. *block* is the paper's dropout, at the end of each block; *everywhere*
# is the authors' code's, on attention weights too. The peers train with the latter, in fp32.

# %% tags=["hide-input"]
shown(
    training,
    ["task", "model", "setting", "dtype", "threads"],
    {"tokens_per_second": "tokens / s", "share_of_ceiling": "share of the rate", "ratio_scaled": "times the fastest peer"},
)

# %% tags=["hide-input"]
peers = published[published.kind == "training"].pivot(index=["task", "model"], columns="peer", values="figure")
peers.style.format("{:,.0f} tokens / s").set_caption("published, not measured here")

# %% [markdown]
# ## Time to quality
#
# Tokens per second are not what a laptop's owner pays for. The curves below (`ttlib/commands/tune_training.py`) are held-out
# loss against minutes of one processor; every setting differs in one thing from the training in use, Muon
# without dropout in small batches, and has its learning rate fall to zero over its own minutes. All are scored on the
# same windows of five transitions.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-time-to-quality", "caption": "Held-out loss against processor minutes of training (a logarithmic scale), one curve per setting. The highest losses, in the first minute, are cut off."}, "image": {"alt": "Curves of loss falling with minutes of training, a panel for each dataset."}}
curves = pd.read_csv(places.ROOT / "data" / "tried_training.csv")
figure, panels = plt.subplots(1, curves.task.nunique(), figsize=(9, 4.8), layout="constrained", squeeze=False)
every = list(dict.fromkeys(zip(curves.setting, curves.budget)))
for axes, (task, rows) in zip(panels[0], curves.groupby("task", sort=False)):
    for (name, budget), curve in rows.groupby(["setting", "budget"], sort=False):
        i = every.index((name, budget))
        style = {"color": SHADES[i % 6], "ls": ["-", "--", ":"][i // 6 % 3], "lw": 1.5}
        axes.plot(curve.minutes, curve.held_out_nats, label=f"{name} ({budget} min)", **style)
    low, high, ticks = rows.held_out_nats.min(), rows.held_out_nats.max(), [m for m in (0.5, 1, 2, 5, 10, 20) if m < 1.2 * rows.minutes.max()]
    axes.set(xlabel="minutes of one processor", ylabel="held-out loss (nats a token)", title=task, xscale="log")
    axes.set_xticks(ticks, [f"{m:g}" for m in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set(xlim=(0.4, 1.1 * rows.minutes.max()), ylim=(low - 0.02 * (high - low), low + 0.6 * (high - low)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
figure.suptitle(f"Loss for minutes ({size})")
plt.show()


# %% tags=["hide-input"]
def reached(rows: pd.DataFrame, target: float) -> float:
    """Minutes at which a curve first comes to the target, between its points by a straight line; NaN if never."""
    below = np.flatnonzero(rows.held_out_nats <= target)
    if not len(below):
        return np.nan
    i = below[0]
    if i == 0:
        return rows.minutes.iloc[0]
    return float(np.interp(-target, -rows.held_out_nats.iloc[[i - 1, i]], rows.minutes.iloc[[i - 1, i]]))


rows = []
for task, tried in curves.groupby("task", sort=False):
    adam = tried[tried.setting.str.startswith("AdamW")]
    baseline = adam[adam.budget == adam.budget.max()]
    baseline = baseline[baseline.held_out_nats >= baseline.held_out_nats.min()].sort_values("held_out_nats").iloc[0]
    for (name, budget), curve in tried.groupby(["setting", "budget"], sort=False):
        when = reached(curve, baseline.held_out_nats)
        rows.append({"task": task, "setting": name, "minutes": budget, "last loss": curve.held_out_nats.iloc[-1],
                     "target": baseline.held_out_nats, "reached after (min)": when, "times AdamW": baseline.budget / when})  # fmt: skip
quality = pd.DataFrame(rows)
quality.set_index(["task", "setting"]).style.format(
    {"last loss": "{:.3f}", "target": "{:.3f}", "reached after (min)": "{:.1f}", "times AdamW": "{:.1f}"}, na_rep="–"
)

# %% [markdown]
# The target is what AdamW had reached at the end of its longest run; a dash: not reached.
#
# ## What we saw

# %% tags=["hide-input"]
one = planning.query("profile == 'released' and setting == 'fast' and environments == 1 and threads == 1")
share = one.share_of_ceiling
said = [f"One fast decision reaches {share.min():.0%} to {share.max():.0%} of the machine's rate, and takes "
        f"{1e3 * one.seconds_per_decision.min():.0f} to {1e3 * one.seconds_per_decision.max():.0f} ms."]  # fmt: skip
if "ratio_scaled" in one and one.ratio_scaled.notna().any():
    said.append(f"That is {one.ratio_scaled.min():.1f} to {one.ratio_scaled.max():.1f} times as fast as the fastest published peer.")
single = planning[planning.model == "ensemble"].set_index("task").seconds_per_decision
apart = (one.set_index(["task", "dtype"]).seconds_per_decision.unstack("dtype").min(axis=1) / single).dropna()
if len(apart):
    said.append("Through single-step models it takes " + " and ".join(f"{1e3 * single[task]:.1f} ms for {task}, 1/{x:.0f} of the time" for task, x in apart.items()) + ".")
said.append(f"The cache alone gives a factor of {levers['times the first'].iloc[1]:.0f} for hopper.")
keeps = {task: (1e3 * live[live.task == task].seconds_per_decision < limit).any() for task, limit in LIMITS.items()}
said += [f"The {task} can be controlled in real time by {'some' if met else 'none'} of the searches timed." for task, met in keeps.items()]
quickest = quality[~quality.setting.str.startswith("AdamW")].dropna().sort_values("reached after (min)")
for row in quickest.drop_duplicates("task").itertuples():
    said.append(f"On {row.task}, `{row.setting}` reaches AdamW's loss of {row.target:.2f} nats in {row[6]:.1f} minutes.")
Markdown(" ".join(said))

# %% [markdown]
# ## Exercises
#
# ```{exercise} How many tokens?
# :label: ex-plan-tokens
#
# How many tokens does the fast search of profile `released` read for one hopper decision, context included? And with the
# context read anew by each of its 64 candidates?
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
# Candidates are read up to $r$; the reward-to-go and the next state only of the plans that are kept, and the last
# reward-to-go not at all.
#
# ````{solution-end}
# ````
#
# ```{exercise} How far from the floor?
# :label: ex-floor
#
# If matrix products reached the machine's rate and all else stayed as it is, how much faster would a fast decision be?
# Use the shares of {numref}`fig-speed-profile`.
# ```
#
# ````{solution-start} ex-floor
# :class: dropdown
# ````

# %%
first = profile[(profile.environments == 1) & (profile.dtype == "float32")].set_index("kind").share
row = one[(one.task == "hopper") & (one.model == MODEL) & (one.dtype == "float32")].iloc[0]
products = first[["matrix products", "attention products"]].sum()
print(f"products take {products:.0%}, and would take {row.share_of_ceiling:.0%}: {1 / (1 - products + row.share_of_ceiling):.2f} times faster")

# %% [markdown]
# What is left is small operations, each with its fixed cost: fewer and larger ones are the only way on, such as more
# environments in one batch.
#
# ````{solution-end}
# ````
