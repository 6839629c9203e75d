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
# # Ablations
#
# **Claims.** A search for reward alone "has the risk of leading to myopic behavior", which reward-to-go prevents
# (Section 3.2). Reward-to-go is only a heuristic, so the method "does not require the estimated values to be
# particularly accurate" (Section 3.2). On halfcheetah's medium-expert data, the bins for states are "possibly" "too
# coarse" (Section 4.2).
#
# After this page you can
#
# - take a planner apart, one part at a time, and say what each part is worth;
# - tell an effect from the noise of a handful of rollouts.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown

from ttlib.drawing import figures
from ttlib.pipeline import experiments, places, statistics
from ttlib.studies import ablations, scaling

figures.style()
plan = experiments.get("hopper-medium-replay", size, "released").plan

# %% [markdown]
# ## One change at a time
#
# All rollouts are of the profile `released`. The search is changed on hopper-medium-replay, with one model. The bins
# are changed on halfcheetah-medium-expert, with one new model for each kind. All rows of a dataset have the same
# rollout seeds.

# %% tags=["hide-input"]
QUESTIONS = {
    "Does reward-to-go matter?": "Without it, a plan is worth only the rewards within its horizon.",
    "Do accurate values matter?": "Every $R$ that the search reads gets Gaussian noise. Or the search reads a drawn "
    "$r$ and $R$, so that it picks lucky draws.",
    "Does it matter that dimensions depend on each other?": "The dimensions of a state, and those of an action, are "
    "drawn independently, from marginals that 8 sampled sequences estimate.",
    "Does the filter of unlikely actions matter?": "The planner's filter drops the least likely bins that together "
    f"hold {plan.drop_probability:.0%}. Here it drops none, or 60% as the authors do.",
    "Does the size of the search matter?": "The search has a shorter horizon, or a smaller or greater beam width.",
    "Does context matter?": "The model reads no transition before the current one. This leaves room for longer plans.",
    "Do the bins matter?": "All bins are uniform (Equation 1), or each state dimension has 250 quantile bins.",
}
rows = "\n".join(f"| {question} | {change} |" for question, change in QUESTIONS.items())
Markdown(f"| question | what is changed |\n|---|---|\n{rows}")

# %% tags=["hide-output"]
runs = ablations.ablations(size)

# %% tags=["hide-input"]
CHANGES = {
    "main": "unchanged",
    "no_reward_to_go": "no reward-to-go",
    "rewards_drawn": "r and R drawn",
    "independent_dimensions": "independent dimensions",
    "all_actions": "every action allowed",
    "authors_filter": "the authors' filter",
    "horizon_1": "horizon 1",
    "quarter_beam": "a quarter of the beam width",
    "double_beam": "twice the beam width",
    "no_context": "no context",
    "no_context_long_horizon": "no context, long horizon",
    "uniform_bins": "uniform bins",
    "finer_states": "finer bins for states",
}
runs["change"] = [CHANGES.get(row.variant, f"noise in R, {row.noise:g} SD") for row in runs.itertuples()]
rows = []
for (dataset, variant, noise, change), part in runs.groupby(["dataset", "variant", "noise", "change"], sort=False):
    low, high = statistics.bootstrap(part["return"])
    rows.append({"dataset": dataset, "variant": variant, "noise": noise, "change": change,
                 "rollouts": len(part), "return": part["return"].mean(), "low": low, "high": high,
                 "length": part.length.mean(), "falls": part.fell.mean()})  # fmt: skip
table = pd.DataFrame(rows)

# %% tags=["hide-input"]
shown = table.assign(interval=[f"[{a:.0f}, {b:.0f}]" for a, b in zip(table.low, table.high)])
shown = shown.set_index(["dataset", "change"])[["rollouts", "return", "interval", "length", "falls"]]
shown = shown.rename(columns={"return": "mean return", "interval": "90% interval", "length": "mean length"})
shown.style.format({"mean return": "{:.0f}", "mean length": "{:.0f}", "falls": "{:.0%}"}).set_properties(
    **{"white-space": "nowrap"}
)

# %% [markdown]
# The intervals are bootstrap intervals over rollouts. SD is the standard deviation of the centres of the bins of $R$.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ablations", "caption": "Return with one change at a time: every rollout (dots), means (bars) and 90% bootstrap intervals (lines). The dashed line is the mean of the unchanged planner."}, "image": {"alt": "Dot plots of returns for each ablation, with means and intervals."}}
counts = [len(part) for _, part in table.groupby("dataset", sort=False)]
figure, panels = plt.subplots(
    len(counts), 1, figsize=(7, 1 + 0.3 * sum(counts)), layout="constrained", height_ratios=counts, squeeze=False
)
for axes, (dataset, part) in zip(panels[:, 0], table.groupby("dataset", sort=False)):
    own = {name: figures.COLOURS["transformer" if name == "unchanged" else "data"] for name in part.change}
    rows = runs[runs.dataset == dataset]
    shown = {"x": "return", "y": "change", "hue": "change", "order": list(own), "palette": own, "ax": axes}
    sns.stripplot(rows, **shown, jitter=False, alpha=0.4)
    sns.pointplot(rows, **shown, errorbar=None, marker="|", markersize=12, markeredgewidth=3, linestyle="none")
    for y, row in enumerate(part.itertuples()):
        axes.plot([row.low, row.high], [y, y], color=own[row.change], lw=3, alpha=0.6)
    axes.axvline(part["return"].iloc[0], ls="--", lw=0.8, color=figures.COLOURS["other"])
    axes.set(xlabel="return", ylabel="", title=dataset, ylim=(len(part) - 0.5, -0.5))
figure.suptitle(f"Ablations of the released profile ({size})")
plt.show()

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
VARIANTS = (("no_reward_to_go",), ("noise", "rewards_drawn"), ("independent_dimensions",),
            ("all_actions", "authors_filter"), ("horizon_1", "quarter_beam", "double_beam"),
            ("no_context", "no_context_long_horizon"), ("uniform_bins", "finer_states"))  # fmt: skip
main = table[table.variant == "main"].set_index("dataset").loc[table.dataset]
table["against"] = table["return"] / main["return"].to_numpy() - 1
table["clear"] = (table.high < main.low.to_numpy()) | (table.low > main.high.to_numpy())
lines = []
for question, variants in zip(QUESTIONS, VARIANTS, strict=True):
    part = table[table.variant.isin(variants)]
    answer = "yes" if part.clear.all() else "in part" if part.clear.any() else "not clearly"
    numbers = [f"{row.change} {row.against:+.0%}" for row in part.itertuples()]
    numbers = [f"**{text}**" if clear else text for text, clear in zip(numbers, part.clear)]
    lines.append(f"| {question} | {answer} | {'; '.join(numbers)} |")
changed = table[table.variant != "main"]
worst = changed.loc[changed.against.idxmin()]
Markdown(
    f"**{changed.clear.sum()} of {len(changed)} changes alter the return clearly. The worst is this one: "
    f"{worst.change} ({worst.against:+.0%}).**\n\n"
    "| question | answer | return against the unchanged planner |\n|---|---|---|\n" + "\n".join(lines)
    + "\n\nA change is clear, and in bold, if its 90% interval does not overlap that of the unchanged planner."
)  # fmt: skip

# %% tags=["hide-input"]
small, large = table[table.variant == "noise"].sort_values("noise").against
bins = table.drop_duplicates("variant").set_index("variant").against
worth = "does not need accurate values" if small > -0.1 else "does need accurate values"
finer = "raise" if bins.finer_states > 0 else "do not raise"
Markdown(
    f"- **Values.** With the smaller noise the return changes by {small:+.0%}, and with the larger by {large:+.0%}. So "
    f"this planner {worth}. The noise is independent for each candidate. A value that is wrong in the same way for all "
    "candidates was not tested.\n"
    f"- **Bins.** Finer bins for states {finer} the return ({bins.finer_states:+.0%}). The paper's guess is about "
    "these bins. Uniform bins also change those for actions and rewards.\n"
    "- **Models.** Each kind of bins has one model. Two models of one setting differ as well, so the answer about bins "
    "is the weakest.\n"
    f"- **Horizon.** The unchanged planner has horizon {plan.horizon}. Without reward-to-go it therefore sums only "
    f"{plan.horizon} rewards."
)

# %% [markdown]
# ## How much training?
#
# Before we change a search, we ask what more training gives. The next table has the loss on held-out episodes for models
# that have read more data or more tokens, with nothing else changed. `make curve` trains what is missing here, cheap
# models first; the largest takes hours.

# %% tags=["hide-input"]
scaling_table = scaling.table(size)
NATS = {"nats": "all tokens", "nats_state": "states", "nats_action": "actions", "nats_reward": "rewards",
        "nats_R": "rewards-to-go"}  # fmt: skip
shown = scaling_table.rename(columns=NATS | {"million_tokens": "million tokens", "steps": "steps of data"})
shown = shown.set_index(["dataset", "steps of data", "million tokens"])[["minutes", *NATS.values()]]
shown.rename_axis(columns="nats per token").style.format("{:.3f}").format("{:.0f}", subset=["minutes"]).format_index(
    "{:,.0f}", level=1
).format_index("{:.0f}", level=2)

# %% [markdown]
# The minutes were measured on machines that did other work as well. More data alone changes little; more tokens on more
# data lower the loss of states most, and that of actions least.
#
# ### Cheap changes of the model
#
# Some changes cost no time. We tried each with 10 million tokens on a million steps. A change is kept if it lowers the
# held-out loss by 0.01 nats per token or more on both datasets. `make tune ARGS=levers` makes this table.

# %% tags=["hide-input"]
tried = pd.read_csv(places.ROOT / "data" / "tried_levers.csv")
usual = tried[(tried.lever == "unchanged") & (tried.weights == "last")].set_index("dataset").nats
tried["gain"] = tried.dataset.map(usual) - tried.nats
tried["change"] = tried.lever.where(tried.weights == "last", tried.lever + ", " + tried.weights)
gains = tried.pivot_table(index="change", columns="dataset", values="gain", sort=False).drop("unchanged")
gains.rename_axis(index=None, columns="nats per token gained").style.format("{:+.3f}", na_rep="not tried")

# %% tags=["hide-input"]
kept = gains.index[(gains >= 0.01).all(axis=1)]
Markdown(
    f"**Of {len(gains)} cheap changes, {len(kept)} gain at least 0.01 nats on both datasets"
    + (f": {'; '.join(kept)}.**" if len(kept) else ".**")
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} How much noise is too much?
# :label: ex-noise
#
# With noise in every $R$, the planner picks among its candidates partly at random. Which of this book's agents does it
# become when the noise grows without limit?
# ```
#
# ````{solution-start} ex-noise
# :class: dropdown
# ````
#
# It becomes an agent that takes a random candidate. The candidates of `released` are drawn from the model, so this
# agent is *sampling*, the imitation without search of [page 05](05_hopper.py). However wrong the values are, its
# actions are like those of the data.
#
# ````{solution-end}
# ````
