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
# # Nine datasets: Figure 4 and Table 1
#
# **Claim** (Section 4.2). "On the hopper and walker benchmarks, across all dataset types, TTO performs on par with or
# better than the best prior offline RL methods"; TTO is the paper's planner. On halfcheetah it "matches the performance
# of prior methods except on the medium-expert dataset". Section 2 adds that the joint model of states and actions
# "avoids the need for explicit pessimism".
#
# After this page you can
#
# - read Table 1 with the right questions: which data, which simulator, how many rollouts, which interval;
# - say on which datasets the planner is better than the data it was trained on;
# - compare the return that a plan predicts with the return that follows.

# %% tags=["parameters"]
size = "laptop"
source = "regenerated"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown

from ttlib.data import reward_to_go
from ttlib.drawing import figures
from ttlib.environments import tasks
from ttlib.pipeline import experiments, places, results, rollouts, store
from ttlib.studies import offline_rl

if source not in ("regenerated", "official"):
    raise ValueError(f"source={source!r}; expected 'regenerated' or 'official', which means D4RL's own files")
official = source == "official"
NAMES = offline_rl.names(size, official)
v1, released = ({name: experiments.get(name, size, profile) for name in NAMES} for profile in experiments.PROFILES)
COLOURS = figures.COLOURS
figures.style()

# %% [markdown]
# ## Data and settings
#
# There are three robots with three datasets each. `medium` comes from one policy halfway through its training.
# `medium-replay`, which the paper calls *mixed*, comes from a series of snapshots up to that point. `medium-expert` is
# half medium and half expert. We regenerated these files ([page 06](06_data.py)). To use D4RL's own files, set the
# parameter `source = "official"`.
#
# The score is D4RL's, $100\,(\text{return} - \text{random}) / (\text{expert} - \text{random})$. D4RL measured the two
# constants with the physics of its time. On today's MuJoCo a score is only approximately comparable.

# %% tags=["hide-input"]
data = offline_rl.described(size, [exp.data for exp in v1.values()])
data["score"] = [tasks.score(v1[name].data.task, data.loc[name, "mean"]) for name in NAMES]
HEADS = {"episodes": "episodes", "mean": "mean return", "max": "best return", "score": "score of the mean return",
         "fell": "episodes that end in a fall"}  # fmt: skip
formats = dict(zip(HEADS.values(), ("{}", "{:.0f}", "{:.0f}", "{:.1f}", "{:.0%}")))
data[list(HEADS)].rename(columns=HEADS).rename_axis(None).style.format(formats)

# %% [markdown]
# Each profile has one setting for all datasets; that is our choice. The settings were chosen on rollout seeds from 100
# on, which no result uses.

# %% tags=["hide-input"]
settings = {}
for profile in (v1, released):
    exp = profile[NAMES[0]]
    updates = " to ".join(f"{n:,}" for n in sorted({e.train.updates for e in profile.values()}))
    models = experiments.models(exp)
    settings[exp.profile] = {
        "bins": exp.bins.kind,
        "layers x heads, width": f"{exp.model.n_layer} x {exp.model.n_head}, {exp.model.d_model}",
        "window (transitions)": exp.model.T,
        "updates x windows per update": f"{updates} x {exp.train.batch}",
        "context (transitions)": exp.context,
        "horizon (transitions)": exp.plan.horizon,
        "beam width x expansions": f"{exp.plan.beam_width} x {exp.plan.expansions}",
        "candidates come from": {"beam": "beam search", "sample": "sampled actions"}[exp.plan.proposal],
        "models x rollouts": f"{len(models)} x {len(models[0].seeds)}",
    }
pd.DataFrame(settings)

# %% [markdown]
# ## The methods
#
# - **Planning** in both profiles (Section 3.2).
# - **Behaviour cloning**: an MLP with two layers of 256 units, as it was at its least held-out error. It is trained on
#   all episodes, and again on the tenth of the episodes with the greatest return.
# - **The data's policies**: each rollout follows one of the snapshots that made the data.
# - **Random shooting**: the classical planner with a single-step model. An ensemble of five Gaussian networks predicts
#   states and rewards, and an MLP predicts the value of the last state. The planner draws action sequences uniformly
#   and takes the first action of the best one. Its horizon and its number of sequences are those of `released`.

# %% tags=["hide-output"]
recorded = offline_rl.table1(size, official)
scores = offline_rl.figure_4(size, recorded)

# %% tags=["hide-input"]
LABELS = {"bc": "behaviour cloning", "bc10": "cloning, best tenth", "behaviour": "the data's policies",
          "random_shooting": "random shooting", "TTO": "TTO, the paper's planner"}  # fmt: skip


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a label for the method of each row."""
    pairs = zip(table.method, table.profile)
    return table.assign(label=[f"planning, {p}" if m == "tto" else LABELS.get(m, m) for m, p in pairs])


runs, scores = labelled(recorded), labelled(scores)
planner, ours = scores.method.str.lower() == "tto", scores.source == "ours"
groups = {(True, True): "our planner", (True, False): "our comparisons",
          (False, True): "the paper's planner", (False, False): "published comparisons"}  # fmt: skip
scores["group"] = [groups[key] for key in zip(ours, planner)]
mean = scores[scores.dataset == "mean"].set_index("label")

# %% [markdown]
# ## Figure 4
#
# The paper's figure has the published bars; ours are above them. The two groups differ in data, physics and training
# time, so compare within a group first. Our intervals cover the luck of rollouts. They do not cover the luck of
# training, because each dataset has few models.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-offline", "caption": "Mean score over nine datasets. The black intervals of our methods are 90% bootstrap intervals over rollouts, stratified by dataset. The sources of the published numbers are cited under Table 1."}, "image": {"alt": "Horizontal bars of mean scores: our methods with intervals, and the published methods below them."}}
figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
palette = dict(zip(groups.values(), (COLOURS["transformer"], COLOURS["data"], COLOURS["third"], COLOURS["other"])))
sns.barplot(mean.reset_index(), x="mean", y="label", hue="group", palette=palette, ax=axes)
for y, row in enumerate(mean.itertuples()):
    end = row.mean
    if row.source == "ours":
        end = row.high
        axes.plot([row.low, row.high], [y, y], color="black", lw=1.5)
    axes.text(max(end, 0) + 1.5, y, f"{row.mean:.1f}", va="center")
axes.axhline((mean.source == "ours").sum() - 0.5, color="black", lw=0.6)
axes.set(xlabel="mean score over nine datasets (100 = D4RL's expert)", ylabel="")
axes.set_title(f"Figure 4, {source} data ({size})")
axes.set_xlim(right=1.1 * mean["mean"].max())  # room for the number at the longest bar
handles = axes.get_legend_handles_labels()
axes.get_legend().remove()
figure.legend(*handles, loc="outside lower center", ncols=4)
results.save_figure(figure, "fig4_offline_rl", size)
plt.show()

# %% [markdown]
# ## Table 1
#
# The first table has our mean scores ± standard deviation over rollouts. The second table has the numbers that the
# papers print; the ± of TTO is the standard deviation over 15 runs. The paper takes BC and CQL from
# {cite:t}`kumar2020cql`, MOPO from {cite:t}`yu2020mopo` and MBOP from {cite:t}`argenson2021mbop`. To our knowledge
# these four were measured on D4RL's older files, version `-v0`.

# %% tags=["hide-input"]
cells = [f"{m:.1f}" + (f" ± {s:.1f}" if np.isfinite(s) else "") for m, s in zip(scores["mean"], scores["std"])]
official_name = {name.removesuffix("-v2"): name for name in NAMES}
table = scores.assign(cell=cells, dataset=scores.dataset.replace(official_name))
table = table.pivot(index="dataset", columns="label", values="cell").loc[[*NAMES, "mean"]]
table = table.rename_axis(index=None, columns=None)
one_line = [{"selector": "th, td", "props": "font-size: 76%; padding: 2px 3px"},
            {"selector": "td, .row_heading", "props": "white-space: nowrap"}]  # fmt: skip
table[mean.index[mean.source == "ours"]].style.set_table_styles(one_line)

# %% tags=["hide-input"]
table[mean.index[mean.source != "ours"]].style.set_table_styles(one_line)

# %% [markdown]
# ## Every rollout
#
# A mean hides how a robot fails. Hopper and walker end an episode when they fall. Halfcheetah cannot fall; it can only
# be slow.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-offline-rollouts", "caption": "Return against length of every rollout: planning in both profiles, behaviour cloning and the data's policies. The dashed line is the mean return of the data. A point to the left of 1000 steps is a fall."}, "image": {"alt": "Nine scatter plots of return against episode length, one for each dataset."}}
STYLES = {"planning, released": (COLOURS["transformer"], "o"), "planning, v1": (COLOURS["third"], "s"),
          "behaviour cloning": (COLOURS["other"], "X"), "the data's policies": (COLOURS["data"], "^")}  # fmt: skip
colours, markers = ({name: style[i] for name, style in STYLES.items()} for i in (0, 1))
rows = -(-len(NAMES) // 3)
figure, panels = plt.subplots(rows, 3, figsize=(7, 0.8 + 2 * rows), layout="constrained", sharex=True, squeeze=False)
for axes, name in zip(panels.flat, NAMES):
    part = runs[(runs.dataset == name) & runs.label.isin(STYLES)]
    shown = {"hue": "label", "hue_order": STYLES, "palette": colours, "style": "label", "style_order": STYLES}
    sns.scatterplot(part, x="length", y="return", **shown, markers=markers, s=25, alpha=0.7, linewidth=0, ax=axes)
    axes.axhline(data.loc[name, "mean"], ls="--", lw=0.8, color="black")
    axes.set(title=name, xlabel="length (steps)", ylabel="return" if axes in panels[:, 0] else "")
    handles = axes.get_legend_handles_labels()
    axes.get_legend().remove()
figure.legend(*handles, loc="outside lower center", ncols=4)
figure.suptitle(f"Rollouts ({size})")
plt.show()

# %% [markdown]
# ## Predicted and achieved return
#
# Both planners predict the discounted return that follows the start of their plan. The return that really follows is
# known when the episode is over. The difference, predicted minus achieved, is the planner's *overestimation*. A
# planner that exploits errors of its model chooses plans that are only predicted to be good. It overestimates, and
# its actions are unlike those of the data.

# %% tags=["hide-output"]
values = labelled(offline_rl.values(size, recorded))
likelihoods = labelled(offline_rl.likelihoods(size, recorded, official))

# %% tags=["hide-input"]
values["gap"] = values.predicted - values.achieved
gap = values.groupby(["label", "dataset"], sort=False, as_index=False).gap.mean()
held_out = likelihoods[likelihoods.method == "data"].set_index(["dataset", "scorer"]).log_likelihood
keys = pd.MultiIndex.from_frame(likelihoods[["dataset", "scorer"]])
likelihoods["excess"] = likelihoods.log_likelihood - held_out.loc[keys].to_numpy()
excess = likelihoods[likelihoods.method != "data"]
excess = excess.groupby(["label", "dataset"], sort=False, as_index=False).excess.mean()

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-promises", "caption": "Dots are means over one dataset, bars are means over all. Left: predicted minus achieved discounted return. Right: log-density of the actions taken, under the model of the other profile, minus that of the data's held-out actions."}, "image": {"alt": "Two dot plots: overestimation and action likelihood of planning in two profiles and of random shooting."}}
figure, panels = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained", sharey=True)
titles = ("predicted - achieved (discounted return)", "log-density of actions - the data's (nats)")
palette = {name: COLOURS["transformer" if "planning" in name else "other"] for name in gap.label.unique()}
for axes, rows, column, title in zip(panels, (gap, excess), ("gap", "excess"), titles):
    shown = {"x": column, "y": "label", "hue": "label", "palette": palette, "order": list(palette), "ax": axes}
    sns.stripplot(rows, **shown, jitter=False, alpha=0.5)
    sns.pointplot(rows, **shown, errorbar=None, marker="|", markersize=18, markeredgewidth=3, linestyle="none")
    axes.axvline(0, color="black", lw=0.6)
    axes.set(xlabel=title, ylabel="")
figure.suptitle(f"Overestimation and likelihood of the planners ({size})")
plt.show()

# %% [markdown]
# The comparison has two limits. Random shooting draws uniform actions, but it values the last state of a plan by the
# return of the data's policies. So it would overestimate even if it did not search. And each planner is scored in the
# states of its own rollouts.
#
# ### Whose return does the plan predict?
#
# Medium-expert data come from two policies. The value of the best plan tells which of the two the model expects to
# follow. Both policies begin in the same states. In the data no episode changes its policy, so in a state that only
# the medium policy visits, no likely action is the expert's.

# %% tags=["hide-input"]
mixed = [name for name in NAMES if "medium-expert" in name]
gamma = released[mixed[0]].bins.gamma
parents = [(released[name].data.task, quality) for name in mixed for quality in ("expert", "medium")]
parents = [experiments.regenerated(*parent, size) for parent in parents]


def mean_returns() -> pd.DataFrame:
    """Return the mean discounted return that follows every fifth step of each policy's own episodes."""
    parts = []
    for config in parents:
        episodes = store.dataset(config)
        after = reward_to_go(episodes.rewards, episodes.starts, gamma)
        t, left = (np.concatenate([np.arange(n)[::way] for n in episodes.lengths]) for way in (1, -1))
        known = (left >= min(200, left.max())) & (t % 5 == 0)
        mean = pd.Series(after[known]).groupby(t[known]).mean()
        parts.append(pd.DataFrame({"task": config.task, "policy": config.quality, "t": mean.index, "mean": mean}))
    return pd.concat(parts)


curves = pd.DataFrame(columns=["task", "policy", "t", "mean"])
if not official:
    curves = store.table("policy_returns", size, mean_returns, parents, {"gamma": gamma, "every": 5}, record=True)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-whose-return", "caption": "Value of the best plan along every rollout of `released` on medium-expert data (blue), and the mean discounted return that follows each step of the two policies' own episodes (black). The last steps before a time limit are left out: 500 of a rollout, 200 of a policy's episodes."}, "image": {"alt": "A panel for each robot: lines of predicted value against the step, between two curves."}}
planned = values[(values.method == "tto") & (values.profile == "released")]
figure, panels = plt.subplots(1, len(mixed), figsize=(7, 2.8), layout="constrained", squeeze=False)
for axes, name in zip(panels[0], mixed):
    part = planned[planned.dataset == name]
    lines = {"units": "rollout_seed", "estimator": None, "lw": 0.8, "color": COLOURS["transformer"]}
    sns.lineplot(part, x="t", y="predicted", **lines, ax=axes)
    for policy, style in (("expert", "--"), ("medium", ":")):
        curve = curves[(curves.task == released[name].data.task) & (curves.policy == policy)]
        axes.plot(curve.t, curve["mean"], style, lw=1.2, color="black", label=f"the {policy} policy's mean")
    axes.set(title=name, xlabel="step", ylim=(0, None), ylabel="value" if axes is panels[0, 0] else "")
if not official:
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
figure.suptitle(f"The value of the best plan, as discounted return ({size})")
plt.show()


# %% tags=["hide-input"]
def nearer_the_expert(name: str) -> dict:
    """Return in how many rollouts the value is nearer the expert's mean than the medium policy's."""
    task = released[name].data.task
    both = curves[curves.task == task].pivot(index="t", columns="policy", values="mean")
    part = planned[planned.dataset == name]
    part = part.assign(middle=part.t.map((both.expert + both.medium) / 2)).dropna(subset="middle")
    above = part.predicted > part.middle
    early = above[part.t >= 20].groupby(part.rollout_seed).first()
    late = above.groupby(part.rollout_seed).last()
    return {"robot": task, "after 20 steps": early.sum(), "at the end": late.sum(), "rollouts": len(late)}


text = "The parameter `source` is `official`, so the two policies are not known."
if not official:
    nearer = pd.DataFrame([nearer_the_expert(name) for name in mixed])
    lines = [f"| {' | '.join(map(str, row))} |" for row in (nearer.columns, ["---"] * 4, *nearer.to_numpy())]
    text = "Rollouts whose predicted value is nearer the expert's mean than the medium policy's:\n\n" + "\n".join(lines)
Markdown(text)

# %% [markdown]
# ## Settings that were tried
#
# `data/tried_offline.csv` lists every setting that was tried, on rollout seeds from 100 on. The table compares pairs
# of settings of `released` that differ in one respect, over the datasets that were tried with both. A dataset has 2 to
# 28 rollouts of a setting, so ten points on one dataset are often chance.

# %% tags=["hide-input"]
tried = pd.read_csv(places.ROOT / "data" / "tried_offline.csv").query("profile == 'released'")
tried = tried.rename(columns={"past": "context"}).replace({"acting": {"cdf": "drop probability"}}, regex=True)
tried["window"] = tried.training.str.extract(r"windows of (\d+)")[0].astype(int)
tried["tokens"] = tried.training.str.extract(r"([0-9.]+)M tokens")[0].astype(float)
width = {exp.data.task: exp.model.transition.D for exp in released.values()}
tried["transitions"] = (tried.tokens / tried.dataset.str.split("-").str[0].map(width)).round(1)  # millions


def tried_scores(acting: str, window: int = 6, context: int = 3, **training) -> pd.Series:
    """Return the mean score on each dataset that was tried with this setting."""
    chosen = (tried.acting == acting) & (tried.window == window) & (tried.context == context)
    for column, value in training.items():
        chosen &= tried[column] == value
    rows = tried[chosen].assign(total=tried.score * tried.n).groupby("dataset")[["total", "n"]].sum()
    return rows.total / rows.n


def long_plan(drop: float = 0.3, more: str = "", **training) -> pd.Series:
    """Return the scores of plans of horizon 3 with beam width 8 and 2 expansions."""
    return tried_scores(f"sample, horizon 3, 8 x 2, drop probability {drop}{more}", **training)


# %% tags=["hide-input"]
LAST = {"tokens": 21.6}  # millions of tokens that the models of the table above have read
wide_plan = tried_scores("sample, horizon 2, 16 x 2, drop probability 0.3", **LAST)
PAIRS = {
    "training on 0.9 instead of 0.6 million transitions": (long_plan(transitions=0.6), long_plan(transitions=0.9)),
    "training on 1.4 instead of 0.9 million transitions": (long_plan(transitions=0.9), long_plan(transitions=1.4)),
    "context of 1 instead of 0 transitions, filter 60%": (
        long_plan(0.6, window=4, context=0), long_plan(0.6, window=4, context=1)),
    "filter 30% instead of none": (long_plan(0.0, transitions=0.9), long_plan(transitions=0.9)),
    "filter 60% instead of 30%": (long_plan(**LAST), long_plan(0.6, **LAST)),
    "mean of the first actions of four plans": (
        long_plan(transitions=0.6), long_plan(0.3, ", mean of 4", transitions=0.6)),
    "horizon 2, beam width 16 instead of 3, 8": (long_plan(**LAST), wide_plan),
}  # fmt: skip
rows = []
for change, pair in PAIRS.items():
    both = pd.concat(pair, axis=1, keys=["before", "after"]).dropna()
    gained = (both.after > both.before).sum()
    rows.append({"change": change, **both.mean(), "gained": f"{gained} of {len(both)} datasets"})
heads = {"before": "score before", "after": "score after"}
table = pd.DataFrame(rows).rename(columns=heads).set_index("change").rename_axis(None)
table.style.format("{:.0f}", subset=list(heads.values()))

# %% [markdown]
# The *filter* drops the least likely bins that together hold this probability. The authors' filter is 60%. Without a
# filter, the search over an undertrained model finds the actions whose value is wrong. With 60% the planner keeps the
# bad habits of mixed data. We chose 30%. *Context* tells which policy acts, which a state alone does not. It helped
# most on the medium-expert data of halfcheetah and walker2d.
#
# `v1` proposes by beam search. Among a hundred narrow bins its likeliest sequences are near copies of one action, so
# the search has little to choose from. Sampled actions vary as much as those of the data's policies.
#
# ## What we saw

# %% tags=["hide-input"]
own = mean[mean.group == "our planner"]
best, other = own["mean"].idxmax(), own["mean"].idxmin()
beside = mean[mean.group == "our comparisons"]["mean"]
strongest, top = beside.idxmax(), mean.loc[best]
verdict = "above" if top.low > beside.max() else "not clearly above" if top["mean"] > beside.max() else "below"
cloned = "below" if own.loc[other, "mean"] < beside["behaviour cloning"] else "not below"
lines = {
    best: f"{top['mean']:.1f} [{top.low:.1f}, {top.high:.1f}]",
    other: f"{own.loc[other, 'mean']:.1f}, {cloned} plain behaviour cloning",
    f"{strongest}, the strongest comparison of ours": f"{beside.max():.1f}",
    "behaviour cloning": f"{beside['behaviour cloning']:.1f}",
    "the paper, on D4RL's files, after 6 to 12 GPU hours per model": f"{mean.loc[LABELS['TTO'], 'mean']:.1f}",
}
rows = "\n".join(f"| {name} | {value} |" for name, value in lines.items())
Markdown(
    f"**The better profile of our planner scores {top['mean']:.1f} on average, which is {verdict} the strongest "
    f"comparison, {strongest} ({beside.max():.1f}).**\n\n"
    f"| method | mean score, with a 90% interval |\n|---|---|\n{rows}"
)

# %% tags=["hide-input"]
one = scores[(scores.label == best) & (scores.dataset != "mean")].set_index("dataset")["mean"]
below = [name for name in NAMES if one[name] < data.loc[name, "score"]]
listed = ", ".join(below) or "no dataset"
parts = [f"**Against the data.** The planner's mean return is below that of its data on {listed}."]
if not official:
    experts = offline_rl.described(size, [parent for parent in parents if parent.quality == "expert"])
    returns = runs[runs.label == best].groupby("dataset")["return"].mean()
    reached = [f"{returns[name] / mean_return:.0%} on {name}" for name, mean_return in zip(mixed, experts["mean"])]
    parts.append(f"**Against the expert.** On medium-expert data the planner reaches these percentages of the "
                 f"expert's mean return: {', '.join(reached)}.")  # fmt: skip
excesses, gaps = (rows.groupby("label")[name].mean() for rows, name in ((excess, "excess"), (gap, "gap")))
shot = LABELS["random_shooting"]
direction = "more" if gaps[best] > 0 else "less"
parts.append(f"**Predictions.** Its plans predict {abs(gaps[best]):.0f} {direction} than the discounted return that "
             f"follows. Random shooting predicts {gaps[shot]:.0f} too much.")  # fmt: skip
parts.append(f"**Actions.** Their log-density differs from that of the data's actions by {excesses[best]:+.1f} nats "
             f"for our planner and by {excesses[shot]:+.1f} nats for random shooting.")  # fmt: skip
if size == "laptop" and not official and set(NAMES) <= set(wide_plan.index):
    parts.append(f"**Chosen settings.** On the seeds with which settings were chosen, the same planner scores "
                 f"{wide_plan[NAMES].mean():.1f}. A setting looks best where it was chosen.")  # fmt: skip
Markdown("\n\n".join(parts))

# %% [markdown]
# [The hopper page](05_hopper.py) has other numbers for hopper-medium-replay, because its models have longer windows and
# another training.
#
# ## Exercises
#
# ```{exercise} A wider beam
# :label: ex-beam
#
# Halve the beam width, then double it. Before you look, predict the return. What does a decision cost in each case?
# ```
#
# ````{solution-start} ex-beam
# :class: dropdown
# ````

# %%
exp = experiments.get("hopper-medium" + "-v2" * official, size, "released")
width = exp.plan.beam_width
for beam_width in (width // 2, 2 * width):
    label = f"{beam_width} plans"
    run = offline_rl.exercise(exp, label, beam_width=beam_width)
    table = rollouts.table(f"exercise_offline_{beam_width}_plans", size, [run])
    steps = f"{table.length.mean():.0f} steps, over {len(table)} rollouts"
    print(f"beam width {beam_width}: return {table['return'].mean():.0f}, {steps}")

# %% [markdown]
# A decision reads a number of tokens that is proportional to the beam width. So half the beam width costs about half as
# much, and twice the beam width about twice as much. More candidates also give the search more chances to find a wrong
# value, so a wider beam is not always better. Four rollouts of each are too few to settle it.
#
# ````{solution-end}
# ````
#
# ```{exercise} Read a failure
# :label: ex-failure
#
# Take the planned rollout that fell first. Did the predicted value drop before the fall, or only at the fall? What does
# that say about whether the planner expected to fall?
# ```
#
# ````{solution-start} ex-failure
# :class: dropdown
# ````

# %% tags=["hide-input"]
falls = runs[(runs.method == "tto") & runs.fell].sort_values("length")
text = "No rollout of the planner fell."
if len(falls):
    fall = falls.iloc[0]
    part = values[(values.label == fall.label) & (values.dataset == fall.dataset)]
    part = part[part.rollout_seed == fall.rollout_seed].rename(columns={"predicted": "value", "achieved": "return"})
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    for column, label in (("value", "predicted"), ("return", "achieved")):
        sns.lineplot(part, x="t", y=column, label=label, ax=axes)
    axes.set(xlabel="step", ylabel="discounted return")
    axes.set_title(f"{fall.dataset}, {fall.label}, seed {fall.rollout_seed}: fell at step {fall.length} ({size})")
    plt.show()
    last, most = part.iloc[-1], part.value.max()
    lowest = part.loc[part.value.loc[part.value.idxmax() :].idxmin()]
    expected = "had foreseen the fall" if last.value < most / 2 else "did not foresee the fall"
    text = (f"The highest value is {most:.0f}. Later the value goes down to {lowest.value:.0f}, at step "
            f"{lowest.t:.0f}. At step {last.t:.0f}, just before the fall, the best plan predicts {last.value:.0f}, "
            f"while {last['return']:.0f} follows. So at the end the planner {expected}.")  # fmt: skip
Markdown(text)

# %% [markdown]
# A high value just before a fall is an error of the model. For this state it predicts the return of episodes that
# went on.
#
# ````{solution-end}
# ````
