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
# # Long-horizon prediction: Figures 1 and 2
#
# **Claim** (Section 4.1, Figures 1 and 2). Predict a humanoid for 100 steps from the model alone, each step from what
# was predicted before. The Transformer's trajectories still look like the real ones at the end; those of an ensemble of
# single-step models, the standard choice, fall apart after a few dozen steps. A Transformer that sees one transition of
# the past does about as well, unless half of what it sees is hidden.
#
# After this page you can
#
# - compare models of different kinds by one number, the log-likelihood of held-out states at each step of a horizon;
# - say what that number can reach at best, and what a histogram of samples adds to it or takes away;
# - tell a good single-step model from a good simulator, and check the first before you speak of the second;
# - turn predicted numbers into bodies, and look.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from ttlib.baselines import ensemble
from ttlib.drawing import figures
from ttlib.environments import tasks
from ttlib.environments.bodies import capsules
from ttlib.pipeline import experiments, places, results, store
from ttlib.studies import horizon_metrics, long_horizon, prediction

protocols = {panel: experiments.long_horizon(size, panel) for panel in experiments.PANELS}
observed, masked = protocols.values()
exp = long_horizon.transformer(observed, "transformer", observed.seeds[0])
markov = long_horizon.transformer(observed, "markov", observed.seeds[0])

# %% [markdown]
# ## What is predicted
#
# One policy walks the humanoid of [the data page](06_data.py): 45 numbers a state, 17 an action. All models learn from
# the same episodes of that policy. Then every trajectory, real or predicted, begins in one and the same state.
#
# - The **Transformer** predicts states, actions and rewards token by token, as in [the model's page](02_model_and_training.py).
#   It never asks the policy.
# - The **Markovian Transformer** has the same architecture, but its input is cut to the previous and the current transition.
#   (A mask over a longer window would not do: through the layers, information from further back would leak.)
# - The **ensemble** is that of PETS {cite:p}`chua2018pets`: several networks, each of which maps state and action to a
#   Gaussian of the next state. Its actions come from the policy itself, which acts on the predicted state. *TS-1* draws a
#   member anew at every step, *TS-∞* one for a whole trajectory.
#
# Beside the models stand three lines that no model can move: true trajectories of the simulator, which are what a perfect
# model would sample, and whose marginals are broad, since the policy's actions are random; equal probability for all bins;
# and the oracle.

# %% tags=["hide-input"]
pd.Series(
    {
        "steps predicted": observed.steps,
        "trajectories sampled from each model": observed.samples,
        "window of the Transformer (transitions)": exp.model.T,
        "a full window is cut to its last": observed.kept,
        "window of the Markovian Transformer": markov.model.T,
        "Transformer: layers x heads, width": f"{exp.model.n_layer} x {exp.model.n_head}, {exp.model.d_model}",
        "ensemble: members, layers x width": f"{observed.ensemble.members}, {observed.ensemble.layers} x {observed.ensemble.width}",
        "models trained of each kind": len(observed.seeds),
        "masked: hidden at every step, drawn anew": f"{masked.ensemble.hidden:.0%} of the state",
    },
    name=f"size {size}",
).to_frame()

# %% [markdown]
# ## The score
#
# At step $t$ each sampled trajectory $j = 1, \dots, n$ has a predictive distribution for every dimension $i$ of the next
# state, given all that this sample had drawn before. Their mean is the model's marginal,
#
# $$m_{t,i}(v) = \frac{1}{n} \sum_{j=1}^{n} P\big(\text{bin } v \mid \text{sample } j\big), \qquad
#   p_{t,i}(v) = \frac{n \, m_{t,i}(v) + 1/V}{n + 1},$$ (eq-horizon-mixture)
#
# where one more sample, spread over all $V$ bins, keeps every bin from being empty. A held-out state $s$ that falls into
# the bins $v_i$ of widths $w_i = (r_i - l_i)/V$ then has the log-likelihood, as a density,
#
# $$\ell_t(s) = \sum_{i=1}^{N} \log \frac{p_{t,i}(v_i)}{w_i} \;\le\; \sum_{i=1}^{N} \log \frac{V}{r_i - l_i}.$$ (eq-horizon-oracle)
#
# The right side is the oracle of the paper's Appendix B: all mass in the right bin. In one dimension with five bins,
# two samples and a reference in the bin they agree on:

# %%
toy = horizon_metrics.Grid(np.linspace([0.0], [2.0], 6, axis=1), np.array([True]))
predictive = np.array([[0.0, 0.1, 0.8, 0.1, 0.0], [0.0, 0.0, 0.6, 0.4, 0.0]])
mass = predictive.mean(0).reshape(1, 1, 5)  # (steps, N, V)
reference = np.array([[[1.0]]])  # (references, steps, N)
found = horizon_metrics.log_likelihood(toy, mass, len(predictive), reference)[0, 0]
by_hand = np.log((2 * 0.7 + 1 / 5) / (2 + 1)) - np.log(2 / 5)
print(f"{found:.4f} nats, by hand {by_hand:.4f}; oracle {horizon_metrics.oracle(toy):.4f}, uniform {horizon_metrics.uniform(toy):.4f}")

# %% [markdown]
# The paper's own estimate is the *histogram* of its samples. Ours is the mean of their distributions, because a histogram
# has empty bins; we show both. A value outside $[l_i, r_i)$ counts in the first or last bin, for all models alike.
#
# The ensemble has no bins. For a state, an action and members $e = 1, \dots, E$ it says
#
# $$p(s' \mid s, a) = \frac{1}{E} \sum_{e=1}^{E} \prod_{i=1}^{N}
#   \mathcal{N}\big(s'_i;\; s_i + \mu_{e,i}(s, a),\; \sigma_{e,i}^2(s, a)\big),$$ (eq-horizon-ensemble)
#
# and for {eq}`eq-horizon-mixture` each Gaussian is integrated over each bin.
#
# ## First, a single step
#
# If the ensemble were a poor model of one step, its failure over many would say nothing. So here is the mean
# log-density of held-out next states given the true state and action, before any error can compound.

# %%
step = long_horizon.one_step(size)

# %% tags=["hide-input"]
ONE_STEP = {
    "ensemble": "ensemble, density",
    "linear": "linear Gaussian, density",
    "ensemble_binned": "ensemble, on the bins",
    "transformer": "Transformer, on the bins",
    "markov": "Transformer, Markovian, on the bins",
    "oracle": "oracle of the bins",
}
single = step.set_index(["panel", "model"]).log_density
single.unstack("panel").loc[list(ONE_STEP), list(protocols)].rename(index=ONE_STEP).rename_axis(
    index="one step ahead", columns="nats"
).style.format("{:.1f}")

# %% [markdown]
# Nats, higher is better. Binned and unbinned numbers cannot be compared with each other: a Gaussian narrower than a
# bin is worth more than the oracle as a density, and nothing more than it on the bins. A Transformer's number is the sum
# over its tokens, each given those before it in the same state; *on the bins* the ensemble's dimensions count each for
# itself. In the masked panel the models are given half of the state.

# %% tags=["hide-input"]
gaussians = step[step.model == "ensemble"].set_index("panel")
calibration = gaussians[["coverage", "coverage_low", "coverage_high", "rmse_share"]]
calibration.columns = ["inside the 90% interval", "least of a dimension", "most of a dimension", "error / change"]
calibration.style.format("{:.1%}", subset=list(calibration.columns[:3])).format("{:.2f}", subset=["error / change"])

# %% [markdown]
# The share of held-out next states that lie inside the central 90% interval of the ensemble should be near 90%. The last
# column is the mean prediction's root mean square error, as a share of how much that dimension changes in a step.

# %% tags=["hide-input"]
good = []
for panel, row in gaussians.iterrows():
    covered, linear = 0.85 <= row.coverage <= 0.95, single[panel, "linear"]
    good.append(
        f"{panel}: its 90% interval holds {row.coverage:.1%} of held-out next states, {'within' if covered else '**outside**'} "
        f"85 to 95%; its log-density of {row.log_density:.1f} nats is {'above' if row.log_density > linear else '**not above**'} "
        f"a linear Gaussian's {linear:.1f}"
    )
Markdown(f"Is the ensemble a fair opponent? {'; '.join(good)}.")

# %% [markdown]
# What is a memory worth, before any error compounds? The full Transformer predicts every transition of its window, the
# second after one of the past and the last after all the others, so it can be compared with itself:

# %%
memory = long_horizon.one_step_by_past(size)

# %% tags=["hide-input"]
seen = memory[memory.model == "transformer"].pivot(index="past", columns="panel", values="log_density")[list(protocols)]
for panel in protocols:
    markovian = memory[(memory.panel == panel) & (memory.model == "markov")].set_index("past")
    seen[f"{panel}, Markovian"] = markovian.log_density
seen.rename_axis(index="transitions seen", columns="nats").style.format("{:.1f}", na_rep="")

# %% tags=["hide-input"]
worth = {panel: seen[panel].iloc[-1] - seen[panel].iloc[0] for panel in protocols}
markovian_lead = {panel: seen[f"{panel}, Markovian"].iloc[0] - seen[panel].iloc[0] for panel in protocols}
Markdown(
    f"From one transition to {seen.index.max()}, the next state's log-density grows by {worth['observed']:.1f} nats where the whole state is "
    f"seen and by {worth['masked']:.1f} where half is hidden. After a single transition the Markovian models differ from the full ones by "
    f"{markovian_lead['observed']:+.1f} and {markovian_lead['masked']:+.1f} nats. Both kinds read as many tokens in training; of a full model's scored "
    f"tokens one in {exp.model.T} stands after a single transition, of a Markovian one's all."
)

# %% [markdown]
# The paper tuned members, layers and widths of its ensemble. So did we, and this is all that was tried.

# %% tags=["hide-input"]
path = places.ROOT / "data" / "tried_ensemble.csv"
tried = pd.read_csv(path) if path.exists() else pd.DataFrame()
if len(tried):
    names = {"held_out_log_likelihood": "one step", "coverage90": "in 90%", "stopped": "updates"}
    names |= {f"binned_{t}": f"at {t}" for t in (1, 5, 20, 50, 100)} | {"not_finite_100": "lost"}
    keep = [c for c in ("members", "layers", "width", "batch", "lr", *names) if c in tried and (c != "not_finite_100" or tried[c].any())]
    tried = tried[keep].rename(columns=names)
small = {"font-size": "85%", "padding": "2px 5px"}
shown = tried.style.hide(axis="index").format(precision=1, na_rep="").set_properties(**small)
shown = shown.map_index(lambda _: "; ".join(f"{name}: {value}" for name, value in small.items()), axis=1)
shares = [c for c in ("in 90%", "lost") if c in tried]
shown.format("{:.0%}", subset=shares, na_rep="").format("{:.2g}", subset=[c for c in ["lr"] if c in tried])

# %% [markdown]
# `one step` is the held-out density above, and `at t` what Figure 2 would show for TS-1 at step $t$. A column `lost` would
# have the share of its trajectories that are no longer finite at the end, if there were any.

# %% tags=["hide-input"]
used, raw = experiments.long_horizon("laptop", "observed").ensemble, pd.read_csv(path)
best = raw.loc[raw.binned_100.idxmax()]
own = raw[(raw.members == used.members) & (raw.layers == used.layers) & (raw.width == used.width) & (raw.updates == used.updates)].iloc[0]
spent = store.load_or_train(experiments.get("humanoid", size)).about["seconds"]
Markdown(
    f"Figure 2 at laptop size has {used.members} members with {used.layers} layers of {used.width}, after {used.updates} updates: "
    f"{own.seconds / 60:.0f} minutes of one processor, and {own.binned_100:.0f} nats one hundred steps ahead. The best there of all that was tried "
    f"has {best.members:.0f} members with {best.layers:.0f} layers of {best.width:.0f}, after {best.updates:.0f} updates, and stands at "
    f"{best.binned_100:.0f} nats. The Transformer of this page was trained for {spent / 60:.0f} minutes. So a longer training narrows the "
    "gap between them: read the one below as that of these two models and not as one of kinds."
)

# %% [markdown]
# Which dimensions can bins not follow? A dimension's oracle is $\log(V / (r_i - l_i))$, whatever the model.

# %%
parts = long_horizon.one_step_by_dimension(size)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-dimensions", "caption": "One step ahead, dimension by dimension, observed: what the oracle of the bins leaves (0 is the oracle). Above 0 the ensemble's density is sharper than a bin, which no binned score can show."}, "image": {"alt": "Dots over 45 state dimensions: positions on the left, velocities on the right. The ensemble's densities reach above the oracle's line for some positions; its binned scores and the Transformer's stay below it."}}
figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
part = parts[parts.panel == "observed"]
for model, label, colour, marker in (
    ("ensemble", "ensemble, density", "other", "^"),
    ("ensemble_binned", "ensemble, on the bins", "fourth", "o"),
    ("transformer", "Transformer", "transformer", "s"),
):
    axes.plot(part.dimension, part[model] - part.oracle, marker, ms=5, color=figures.COLOURS[colour], label=label)
axes.axhline(0, color=figures.COLOURS["data"], lw=1)
axes.axvline(21.5, color="#aaaaaa", lw=1)
axes.set(xlabel="state dimension: 22 positions, then 23 velocities", ylabel="nats above the oracle", title=f"One step ahead ({size})")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Figure 2
#
# The score {eq}`eq-horizon-oracle` of held-out trajectories at every step, mean and 95% interval.

# %%
table = long_horizon.figure_2(size)

# %% tags=["hide-input"]
NAMES = {
    "transformer": "Transformer",
    "markov": "Transformer, Markovian",
    "ensemble_ts1": "ensemble, TS-1",
    "ensemble_tsinf": "ensemble, TS-∞",
    "simulator": "simulator",
    "uniform": "uniform",
    "oracle": "oracle",
}
LOOKS = [("transformer", "-"), ("third", "--"), ("other", "-"), ("fourth", "-."), ("data", "-"), ("data", ":"), ("data", (0, (8, 3)))]
STYLES = {model: {"color": figures.COLOURS[c], "ls": ls, "lw": 1.6} for model, (c, ls) in zip(NAMES, LOOKS)}
# All training seeds together where there are several: they stand under the smallest number.
KEYS = ["panel", "model", "scoring", "t"]
main = table.sort_values("seed").drop_duplicates(KEYS).sort_values(KEYS)
last = int(main.t.max())
times = sorted({min(t, last) for t in (1, 5, 20, 50, 100)})
bounds = main[main.model.isin(("oracle", "uniform"))].groupby("model").log_likelihood.mean()
LOWEST = bounds.uniform - 0.6 * (bounds.oracle - bounds.uniform)


def curve(panel: str, model: str, scoring: str = "mixture") -> pd.DataFrame:
    """Rows by t; what does not come from a model has a single scoring."""
    scoring = scoring if model in (*long_horizon.TRANSFORMERS, *long_horizon.ENSEMBLES) else "histogram"
    return main[(main.panel == panel) & (main.model == model) & (main.scoring == scoring)].set_index("t")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-2", "caption": "Figure 2 of the paper, ours: log-likelihood of held-out states under the marginals that each model predicts from a fixed start. Left: the whole state is seen. Right: half of its dimensions are hidden at every step. Bands are 95% bootstrap intervals over held-out trajectories; a triangle marks where a curve leaves the picture below."}, "image": {"alt": "Two panels of falling curves over the prediction horizon, one per model, below the oracle's horizontal line and beside that of the simulator; the uniform floor is a dotted horizontal line."}}
def lines(axes, panel: str, scoring: str, bottom: float) -> None:
    for model, label in NAMES.items():
        rows = curve(panel, model, scoring)
        score, low, high = (rows[c].clip(lower=bottom) for c in ("log_likelihood", "low", "high"))
        axes.plot(rows.index, score, **STYLES[model], label=label)
        axes.fill_between(rows.index, low, high, color=STYLES[model]["color"], alpha=0.2, lw=0)
        if (lost := rows.index[rows.log_likelihood < bottom]).size:
            axes.plot(lost[0], bottom, "v", ms=7, color=STYLES[model]["color"], clip_on=False, zorder=5)
    axes.set(ylim=(bottom, bounds.oracle + 12), xlim=(0, last + 1))
    axes.spines[["top", "right"]].set_visible(False)


figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
bottom = max(LOWEST, min(main[main.scoring == "mixture"].low.min(), bounds.uniform) - 10)
for axes, panel in zip(panels, protocols):
    lines(axes, panel, "mixture", bottom)
    axes.set(title=panel, xlabel="prediction horizon (steps)")
panels[0].set_ylabel("log-likelihood (nats)")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False)
figure.suptitle(f"Compounding model errors ({size})")
results.save_figure(figure, "fig2_error_compounding", size)
plt.show()

# %% tags=["hide-input"]
wide = pd.DataFrame(
    {(panel, t): {label: curve(panel, m).log_likelihood.get(t) for m, label in NAMES.items()} for panel in protocols for t in times}
)
wide.rename_axis(columns=["", "t"]).style.format("{:.0f}")

# %% [markdown]
# The simulator falls too: the policy's noise spreads its trajectories, and a broad marginal gives no single state much
# density. So the distance to the simulator counts. Its score is that of a histogram of its rollouts, many but not
# infinitely many, so a model whose marginals are smoother may touch its line or pass it by a little. How soon does each model lose 10, 50 and 100 nats against it?

# %% tags=["hide-input"]
lost = horizon_metrics.horizons(main)
lost = lost[(lost.scoring == "mixture") & lost.model.isin(NAMES)]
spent = lost.assign(model=lost.model.map(NAMES)).pivot(index="model", columns=["panel", "lost"], values="t")
spent = spent.reindex([NAMES[m] for m in (*long_horizon.TRANSFORMERS, *long_horizon.ENSEMBLES)])[list(protocols)]
spent.rename_axis(index=None, columns=["first step with a loss of", "nats"]).style.format("{:.0f}", na_rep=f"not in {last}")

# %% [markdown]
# All models are scored on the same held-out trajectories, some of which are hard for every model. So two curves whose bands
# overlap may still differ clearly: the interval of a *difference* is taken over the differences on each trajectory.

# %%
leads = long_horizon.figure_2_leads(size)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-leads", "caption": "The full Transformer's lead over its Markovian variant, with 95% bootstrap intervals of the difference over held-out trajectories. They say nothing of what another training would change."}, "image": {"alt": "Two curves over the prediction horizon around a line at zero, one for the observed panel and one for the masked one."}}
ahead_of = leads.set_index(["panel", "other", "first", "last"])[["lead", "low", "high"]].sort_index()
stepwise = {panel: ahead_of.loc[panel, "markov"].reset_index().query("first == last") for panel in protocols}
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for panel, (colour, ls) in zip(protocols, (("transformer", "-"), ("other", "--"))):
    rows = stepwise[panel]
    axes.plot(rows["first"], rows.lead, ls, color=figures.COLOURS[colour], lw=1.6, label=panel)
    axes.fill_between(rows["first"], rows.low, rows.high, color=figures.COLOURS[colour], alpha=0.2, lw=0)
axes.axhline(0, color="#555555", lw=0.8)
axes.set(xlabel="prediction horizon (steps)", ylabel="full minus Markovian (nats)", title=f"What the past adds ({size})", xlim=(0, last + 1))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ### Other ways to count
#
# Three scorings of the same trajectories. `mixture` is the one above. A `histogram` counts samples: where the marginal is
# broad and the samples are few, many bins are empty, and a reference that falls into one is punished as if the model had
# excluded it. `density` is the ensemble's plain mixture of Gaussians, which the paper plots: it has no bins, so the
# oracle is no bound for it, and a reference far from all samples costs without limit.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-scorings", "caption": "Both panels of Figure 2 under three scorings. The lines of simulator (a histogram of its own), uniform and oracle are the same in all. A triangle marks where a curve leaves the picture below, and after it the curve runs along the edge."}, "image": {"alt": "Six small panels: observed above, masked below, and from left to right scored as mixture, histogram and density."}}
figure, grid = plt.subplots(2, 3, figsize=(10, 6), layout="constrained", sharex=True, sharey=True)
for row, panel in zip(grid, protocols):
    for axes, scoring in zip(row, ("mixture", "histogram", "density")):
        lines(axes, panel, scoring, LOWEST)
        axes.set_title(f"{panel}, {scoring}", fontsize="medium")
    row[0].set_ylabel("log-likelihood (nats)")
for axes in grid[-1]:
    axes.set_xlabel("prediction horizon (steps)")
figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False)
figure.suptitle(f"Three scorings ({size})")
results.save_figure(figure, "fig2_scorings", size)
plt.show()

# %% [markdown]
# Two more numbers belong to those curves: the share of values of the references outside all bins, which count in the edge
# bins, and the share of the ensemble's trajectories with a value that is not finite. Those give no mass, but they count among
# the $n$.

# %% tags=["hide-input"]
extra = {("outside the bins", "references"): curve("observed", "simulator").out_of_range}
for panel in protocols:
    for model in long_horizon.ENSEMBLES:
        extra["not finite", f"{NAMES[model]}, {panel}"] = curve(panel, model).diverged
pd.DataFrame({name: values.loc[times] for name, values in extra.items()}).T.rename_axis(columns="t").style.format("{:.2%}")

# %% [markdown]
# ## Figure 1
#
# The first trajectory of each, not chosen. To draw a body, the root's path is integrated from its predicted velocity,
# starting at the origin, and the quaternion normalised. In 1.5 seconds this policy takes its humanoid some tens of
# centimetres ahead, so the poses would cover each other: each is set further to the right than the last, by the same
# distance, and so are the traced paths of head and feet.

# %%
poses = long_horizon.poses(size)
paths = long_horizon.figure_1(size, poses)
DT = 0.015  # seconds a step

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-1", "caption": "Figure 1 of the paper, ours: a true trajectory, the Transformer's and the ensemble's (TS-1), the first of each. All three rows have one scale; a picture ends where its frame does, so limbs or whole bodies that a model sends away are cut off there. Lines trace head and feet."}, "image": {"alt": "Three rows of nine humanoid bodies from left to right: the reference in grey, the Transformer's prediction in blue, the ensemble's in orange, with traced paths of head and feet."}}
ROWS = {"reference": ("true trajectory", "data"), "transformer": ("Transformer", "transformer"), "ensemble_ts1": ("ensemble, TS-1", "other")}
SPACING = 0.75  # metres from one pose to the next
every = max(1, last // 8)
bodies = {}
for model in ROWS:
    ends, radii, _ = capsules("humanoid", poses[(poses.model == model) & (poses.rollout == 0)].filter(regex=r"^q\d").to_numpy())
    bodies[model] = ends

figure, grid = plt.subplots(3, 1, figsize=(9, 8.2), layout="constrained", sharex=True)
for axes, (model, (label, colour)) in zip(grid, ROWS.items()):
    axes.axhspan(-1, 0, color="#ececec", lw=0, zorder=0)
    for _, path in paths[(paths.model == model) & (paths.rollout == 0)].groupby("body"):
        flat, _ = figures.project(path[["x", "y", "z"]].to_numpy())
        axes.plot(flat[:, 0] + path.t * SPACING / every, flat[:, 1], lw=1, color=figures.COLOURS[colour], zorder=0.5)
    for t in range(0, last + 1, every):
        if np.isfinite(bodies[model][t]).all():
            figures.body(axes, bodies[model][t], radii, figures.COLOURS[colour], shift=(t * SPACING / every, 0))
    for shapes in axes.collections:
        shapes.set_rasterized(True)
    at = np.arange(0, last + 1, every)
    axes.set(xlim=(-0.6, at[-1] * SPACING / every + 1.1), ylim=(-0.2, 2.0), aspect="equal", ylabel=f"{label}\nheight (m)")
    axes.set_xticks(at * SPACING / every, [f"{t}\n{DT * t:.2f} s" for t in at])
    axes.spines[["top", "right"]].set_visible(False)
grid[-1].set_xlabel(f"step; each pose is set {SPACING} m further to the right, else both axes have one scale")
figure.suptitle(f"Predicted trajectories ({size})")
results.save_figure(figure, "fig1_humanoid", size)
plt.show()

# %% tags=["hide-input"]
outside = {}
for model, ends in bodies.items():
    centres, finite = figures.project(ends.mean(2))[0], np.isfinite(ends).all((1, 2, 3))
    seen = (centres[finite][..., 1] > -0.2) & (centres[finite][..., 1] < 2.0)
    outside[ROWS[model][0]] = f"{(~finite).sum()} of {len(ends)} poses not finite and not drawn, {1 - seen.mean():.1%} of limbs above or below the frame"
Markdown("In this trajectory, " + "; ".join(f"{label}: {found}" for label, found in outside.items()) + ".")

# %% [markdown]
# The same three, moving, at a quarter of the true speed. Play, or take hold of the slider (arrow keys move it step by step):

# %% tags=["hide-input"]
HTML(figures.player({label: (bodies[m], figures.COLOURS[c]) for m, (label, c) in ROWS.items()}, radii, DT, "humanoid-player"))

# %% [markdown]
# And where head and feet truly went, without the spacing: three trajectories of each, seen from the side.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-paths", "caption": "Paths of head (above) and feet (below) in the first three trajectories of each, from the side, in metres; both axes have one scale. What leaves the frame is cut off."}, "image": {"alt": "Three panels, true trajectory, Transformer and ensemble, with thin lines at head height and near the ground that run to the right."}}
figure, grid = plt.subplots(1, 3, figsize=(9, 4.6), layout="constrained", sharex=True, sharey=True)
for axes, (model, (label, colour)) in zip(grid, ROWS.items()):
    axes.axhspan(-1, 0, color="#ececec", lw=0, zorder=0)
    for _, path in paths[paths.model == model].groupby(["rollout", "body"]):
        axes.plot(path.x, path.z, lw=1, color=figures.COLOURS[colour])
    axes.set(xlim=(-0.5, 0.9), ylim=(-0.2, 2.0), aspect="equal", title=label, xlabel="forward (m)")
    axes.spines[["top", "right"]].set_visible(False)
grid[0].set_ylabel("height (m)")
figure.suptitle(f"Head and feet ({size})")
plt.show()

# %% [markdown]
# And where those three ended:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-ends", "caption": "The last pose of the first three trajectories of each, set side by side. One that is not finite or has left the frame is missing."}, "image": {"alt": "Three groups of three bodies: true ones and the Transformer's stand, the ensemble's may lie, float or be missing."}}
figure, grid = plt.subplots(1, 3, figsize=(9, 3), layout="constrained", sharey=True)
for axes, (model, (label, colour)) in zip(grid, ROWS.items()):
    final = poses[(poses.model == model) & (poses.t == last)].filter(regex=r"^q\d").to_numpy()
    ends, radii, _ = capsules("humanoid", final)
    axes.axhspan(-1, 0, color="#ececec", lw=0, zorder=0)
    for i, body in enumerate(ends):
        if np.isfinite(body).all():
            figures.body(axes, body, radii, figures.COLOURS[colour], shift=(1.1 * i - body[..., 0].mean(), 0))
    for shapes in axes.collections:
        shapes.set_rasterized(True)
    axes.set(xlim=(-0.7, 2.9), ylim=(-0.4, 2.2), aspect="equal", xticks=[], title=label)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
grid[0].set_ylabel("height (m)")
figure.suptitle(f"After {last} steps ({size})")
plt.show()

# %% [markdown]
# Numbers help the eye. Bodies are drawn by the simulator's kinematics, so limbs keep their lengths whatever is predicted;
# what can go wrong are heights, the ground, joints that are bent further than they can be, and jumps.


# %% tags=["hide-input"]
def looks(model: str) -> dict:
    """Of the poses of all its trajectories."""
    rows = poses[poses.model == model]
    q = rows.filter(regex=r"^q\d").to_numpy()
    finite = np.isfinite(q).all(1)
    ends, radii, names = capsules("humanoid", q[finite])
    angle, (low, high) = q[finite][:, 7:], hinges.T
    head = ends[:, names.index("head"), 0, 2]
    follows = (rows.t.diff() == 1).to_numpy()[1:]  # the row before is of the same trajectory
    alike = np.abs((q[1:, 3:7] * q[:-1, 3:7]).sum(1))[follows]
    turn = np.degrees(2 * np.arccos(alike[np.isfinite(alike)].clip(0, 1)))
    return {
        "head, lowest (m)": head.min(),
        "head, highest (m)": head.max(),
        "head, at the end (m)": head[rows.t[finite] == last].mean() if (rows.t[finite] == last).any() else np.nan,
        "lowest point of a body (m)": (ends[..., 2] - radii[:, None]).min(),
        "largest turn in a step (°)": turn.max(),
        "bent too far": ((angle < low - 0.1) | (angle > high + 0.1)).mean(),
        "not finite": 1 - finite.mean(),
    }


env = tasks.make("humanoid")
hinges = env.unwrapped.model.jnt_range[1:]  # radians; joint 0 is the root
env.close()
looked = pd.DataFrame({label: looks(model) for model, (label, _) in ROWS.items()}).T
looked.style.format("{:.2f}").format("{:.1%}", subset=["bent too far", "not finite"], na_rep="")

# %% [markdown]
# `bent too far` is the share of joint angles more than 0.1 rad beyond their limits, over all poses of three trajectories;
# heights are of the head's centre, and a foot that sinks into the ground has a lowest point below zero. The `turn` is that
# of the torso. A Transformer draws the four numbers of its orientation one after the other, and a single unlikely bin turns
# the whole body in one step, as no body can. The score {eq}`eq-horizon-oracle` does not see that: it looks at one step and one
# dimension at a time, and a marginal says nothing of what came before.
#
# ## What we saw

# %% tags=["hide-input"]
better = max(long_horizon.ENSEMBLES, key=lambda m: curve("observed", m).log_likelihood.mean())
middle = min(50, last)


def lead(panel: str, other: str, first: int, last: int) -> str:
    """The Transformer's lead, mean of some steps."""
    row = ahead_of.loc[panel, other, first, last]
    return f"{row.lead:+.1f} nats [{row.low:.1f}, {row.high:.1f}]"


def compared(panel: str, other: str, t: int) -> str:
    one, two = curve(panel, "transformer").loc[t], curve(panel, other).loc[t]
    apart = one.low > two.high or two.low > one.high
    return f"{lead(panel, other, t, t)} at step {t} (the curves' bands {'are disjoint' if apart else 'overlap'})"


def order(panel: str, t: int) -> str:
    models = [*long_horizon.TRANSFORMERS, *long_horizon.ENSEMBLES, "simulator", "uniform"]
    scores = {m: curve(panel, m).log_likelihood[t] for m in models}
    return ", ".join(f"{NAMES[m]} {scores[m]:.0f}" for m in sorted(scores, key=scores.get, reverse=True))


full, ahead = curve("observed", "transformer"), curve("observed", better)
over = full.log_likelihood > ahead.log_likelihood
behind = over.index[~over].max() if (~over).any() else 0
never = f"is above {NAMES[better]} at every step from {behind + 1} on" if behind < last else f"is not above {NAMES[better]} at the end"
failing = lost[(lost.panel == "observed") & (lost.model == better) & (lost.lost == 50)].t.min()
Markdown(
    f"**Order of the models, observed.** At step {last}: {order('observed', last)}. At step {middle}: {order('observed', middle)}. "
    f"The paper: the Transformer far above the ensemble, its Markovian variant close to it.\n\n"
    f"**Transformer minus {NAMES[better]}**, the better of the two ways to sample the ensemble: "
    f"{compared('observed', better, middle)}, {compared('observed', better, last)}. The Transformer {never}. "
    + (f"The ensemble is 50 nats below the simulator from step {failing:.0f} on." if failing == failing else f"The ensemble never loses 50 nats within {last} steps.")
    + " The paper's ensemble predicts for \"a few dozen\" steps."
)

# %% tags=["hide-input"]
cut = curve("observed", "markov")
difference = (full.log_likelihood - cut.log_likelihood).abs().mean()
gain = (full.log_likelihood - ahead.log_likelihood).replace(-np.inf, np.nan).mean()
overlap = ((full.low <= cut.high) & (cut.low <= full.high)).mean()
close = difference <= 0.1 * gain or overlap == 1
both = {panel: ahead_of.loc[panel, "markov"] for panel in protocols}
masked_better = max(long_horizon.ENSEMBLES, key=lambda m: curve("masked", m).log_likelihood.mean())
said = {
    panel: f"{lead(panel, 'markov', 1, last)} on average over the steps, above zero by its interval at {(rows.low > 0).mean():.0%} of them and below at {(rows.high < 0).mean():.0%}"
    for panel, rows in stepwise.items()
}
larger = both["masked"].low[1, last] > max(0, both["observed"].high[1, last])
left = curve("masked", "simulator").log_likelihood[last] - curve("masked", "markov").log_likelihood[last]
Markdown(
    f"**Does the past matter?** Observed, the curves of the full and the Markovian Transformer are {difference:.1f} nats apart on average over the steps, "
    f"those of the full one and the ensemble {gain:.1f}; bands overlap at {overlap:.0%} of the steps. By the rule that a tenth of the gap to "
    f"the ensemble, or overlap at every step, is close, the two are {'close' if close else '**not close**'}.\n\n"
    f"The full Transformer's lead over the Markovian: observed {said['observed']}; masked {said['masked']}, and {compared('masked', 'markov', 1)}, "
    f"{compared('masked', 'markov', min(20, last))}, {compared('masked', 'markov', last)}. "
    f"One step ahead the past {'plays' if worth['masked'] > max(0, worth['observed']) else '**does not play**'} a larger role when half of the state is hidden (above: {worth['masked']:.1f} nats against {worth['observed']:.1f}); "
    f"over the whole horizon {'so it does' if larger else '**it does not clearly**'}. The paper finds the two alike when all is seen, and the past to play "
    f"a larger role when half is hidden. Against {NAMES[masked_better]} the masked Transformer has {compared('masked', masked_better, last)}. "
    f"At step {last} the masked Markovian model is {abs(left):.1f} nats {'below' if left > 0 else 'above'} the simulator's own rollouts"
    + (": about that much is left there for a memory to gain." if left > 0 else ".")
)

# %% tags=["hide-input"]
sharp = part.assign(more=part.ensemble - part.oracle).query("more > 0").sort_values("more", ascending=False)
gap, bins_gap = single["observed", "ensemble"] - single["observed", "transformer"], single["observed", "ensemble_binned"] - single["observed", "transformer"]
finer = part.ensemble.sum() - part.ensemble_binned.sum()
ordered = part[part.markov > part.ensemble_binned].dimension
why = (
    f"Of that, {finer:.0f} nats are the bins': a bin of width $w$ cannot hold more density than $1/w$, and the ensemble's "
    f"is finer than the oracle in {len(sharp)} of {len(part)} dimensions"
    + (f" (most in {', '.join(f'{d:.0f}' for d in sharp.dimension[:3])}, of widths {', '.join(f'{w:.2g}' for w in ((sharp.high - sharp.low) / exp.bins.V)[:3])})" if len(sharp) else "")
    + f". What is left, {bins_gap:.0f} nats on the same bins, is the Transformer's own. "
    f"Its Markovian variant is {single['observed', 'markov'] - single['observed', 'transformer']:+.0f} nats from it, "
    f"and above the ensemble on the bins in {len(ordered)} dimensions"
    + (f", in the middle number {ordered.median():.0f} of {len(part)}: late ones know the dimensions before them." if len(ordered) else ".")
)
Markdown(
    f"**One step against many.** One step ahead the ensemble is {gap:+.0f} nats from the Transformer as a density, {bins_gap:+.0f} on equal bins. "
    + (why if gap > 15 else "")
    + "\n\n**Figure 1.** "
    + "; ".join(
        f"{label}: head between {row['head, lowest (m)']:.2f} and {row['head, highest (m)']:.2f} m, the torso turns by at most "
        f"{row['largest turn in a step (°)']:.0f}° in a step, {row['bent too far']:.1%} of joint angles bent too far, {row['not finite']:.0%} of poses not finite"
        for label, row in looked.iterrows()
    )
    + f". The paper calls its Transformer's trajectories visually indistinguishable from true ones. Ours come from a model of size {size}."
)

# %% tags=["remove-input"]
binned = main[(main.scoring != "density") & (main.model != "oracle")].merge(main[main.model == "oracle"], on=["panel", "t"], suffixes=("", "_oracle"))
assert (binned.log_likelihood <= binned.log_likelihood_oracle + 1e-3).all(), "a binned score passed the oracle"

# %% [markdown]
# ## Exercises
#
# ```{exercise} The oracle
# :label: horizon-oracle
#
# The table of dimensions above has the bounds $l_i$ and $r_i$ of the bins. Write Appendix B by hand and hold it against the
# line in Figure 2. By how much would the oracle rise with 1000 bins instead of 100?
# ```
#
# ````{solution-start} horizon-oracle
# :class: dropdown
# ````

# %%
dims = parts[parts.panel == "observed"]
by_hand = np.log(exp.bins.V / (dims.high - dims.low)).sum()
drawn = curve("observed", "oracle").log_likelihood[1]
print(f"{by_hand:.3f} by hand, {drawn:.3f} in the figure; ten times the bins: {len(dims) * np.log(10):.1f} nats more")
assert abs(by_hand - drawn) < 0.01

# %% [markdown]
# Finer bins raise the bound by $N \log 10$, and no model by that much: those gain only where they are sharper than a bin.
#
# ````{solution-end}
# ````
#
# ```{exercise} Variance without bounds
# :label: horizon-bounds
#
# PETS keeps each log-variance between two learned bounds, softly. Take a fitted ensemble, lift both bounds, and sample
# again. Does the first step change? The last?
# ```
#
# ````{solution-start} horizon-bounds
# :class: dropdown
# ````


# %%
def lifted() -> pd.DataFrame:
    made, _ = long_horizon.load_or_fit(observed, observed.seeds[0])
    held, start = long_horizon.references(size, observed.steps)
    free = ensemble.Ensemble(made.N, made.M, made.config)
    free.load_state_dict(made.state_dict())
    free.max_log_var.data.fill_(50.0)  # in standardised units: e^50 is no bound
    free.min_log_var.data.fill_(-50.0)
    rows, several = [], np.repeat(start[None].astype(np.float64), 20, axis=0)
    for name, model in (("bounded", made), ("lifted", free.to(made.max_log_var.device))):
        visited, rng = [], np.random.default_rng(0)
        policy, how = long_horizon.policy(), {"visit": lambda t, mean, std, visited=visited: visited.append(std)}
        states, lost = ensemble.sample(model, policy, several, observed.steps, "ts1", rng, **how)
        for t, std in enumerate(visited, 1):
            speed = np.median(np.abs(states[:, t, 22:]).max(1))
            rows.append({"bounds": name, "t": t, "std": np.median(std), "speed": speed, "not_finite": lost[t] / 20})
    return pd.DataFrame(rows)


keys = long_horizon.inputs(observed, "ensemble_ts1")
bounded = results.table("exercise_variance_bounds", size, lifted, {"protocol": observed, "samples": 20}, keys)
bounded[bounded.t.isin(times)].pivot(index="bounds", columns="t").style.format("{:.2g}")

# %% [markdown]
# `std` is the median predicted deviation, `speed` the median over trajectories of the largest velocity (m/s or rad/s), and
# `not_finite` the share of trajectories lost.

# %% tags=["hide-input"]
end = bounded[bounded.t == last].set_index("bounds")
begin = bounded[bounded.t == 1].set_index("bounds")
Markdown(
    f"Near the data the bounds hardly matter: after one step the median deviation is {begin['std'].bounded:.2g} with them and "
    f"{begin['std'].lifted:.2g} without. After {last} steps the largest velocity of half of the trajectories is above "
    f"{end.speed.bounded:.2g} with them and {end.speed.lifted:.2g} without, and {end.not_finite.lifted:.0%} of the latter are not finite "
    f"({end.not_finite.bounded:.0%}). A network asked far from its data may answer anything; a bound limits what it can say of its doubts, not its means."
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} A shorter memory
# :label: horizon-window
#
# Half of each state is hidden, and the masked Transformer's window holds `exp.model.T` transitions. When it is full, it is cut
# to its last `kept`. Predict a few steps with `kept` at its smallest and at its largest. Which is better, and what does it cost?
# ```
#
# ````{solution-start} horizon-window
# :class: dropdown
# ````


# %%
def shorter() -> pd.DataFrame:
    import torch

    model = store.load_or_train(long_horizon.transformer(masked, "transformer", masked.seeds[0]))
    held, start = long_horizon.references(size, masked.steps)
    on, steps, n = long_horizon.grid(long_horizon.observed(masked)), min(12, masked.steps), 32
    rows, starts = [], np.repeat(start[None].astype(np.float64), n, axis=0)
    for kept in (1, exp.model.T - 1):
        rng = torch.Generator(store.device()).manual_seed(0)
        found = prediction.rollout(model.model, model.tokenizer, starts, steps, kept, rng, hidden=masked.ensemble.hidden)
        score = horizon_metrics.log_likelihood(on, found.predictive, n, held[:, :steps])
        rows += [{"kept": kept, "t": t + 1, "log_likelihood": x} for t, x in enumerate(np.nanmean(score, 0))]
        rows[-1]["read"] = sum(prediction.past(t, exp.model.T, kept) for t in range(steps + 1)) / (steps + 1)
    return pd.DataFrame(rows)


keys = long_horizon.inputs(masked, "transformer")
memories = results.table("exercise_window", size, shorter, {"protocol": masked, "samples": 32, "steps": 12}, keys)
for kept, rows in memories.groupby("kept"):
    end = rows.iloc[-1]
    print(f"cut to {kept}: {end.read:.1f} transitions of the past on average, {end.log_likelihood:.1f} nats at step {end.t:.0f}, {rows.log_likelihood.mean():.1f} on average")

# %% [markdown]
# A window that is cut to one transition holds two and a half on average, since it fills again: that is cheap, because a full
# window has to be read anew after every cut, and with the largest `kept` it is cut at every step.
#
# ````{solution-end}
# ````
