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
# **Claim** (Section 4.1, Figures 1 and 2). Predict a humanoid for 100 steps from the model alone, each step from the
# predictions before it. The Transformer's trajectories still look real at the end. Those of an ensemble of single-step
# models, the standard choice, fall apart after a few dozen steps. A Transformer that reads only the previous transition
# does about as well, unless half of each state is masked.
#
# After this page you can
#
# - turn predicted numbers into bodies, and look at them;
# - score a model by the log-likelihood of held-out states at each step of a horizon;
# - say how high this score can be, and how a histogram of samples changes it.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown

from ttlib.baselines import ensemble
from ttlib.control import Streams
from ttlib.drawing import figures, viewers
from ttlib.environments import tasks
from ttlib.environments.bodies import capsules
from ttlib.pipeline import experiments, results, store
from ttlib.studies import horizon_metrics, long_horizon, prediction

figures.style()
protocols = {panel: experiments.long_horizon(size, panel) for panel in experiments.PANELS}
observed, masked = protocols.values()
exp = long_horizon.transformer(observed, "transformer", observed.seeds[0])
last = observed.steps

# %% [markdown]
# The models are those of [the page before](09_one_step.py). Every trajectory, real or predicted, begins in the same
# state.
#
# - The **Transformer** and the **Markovian Transformer** draw states, actions and rewards token by token. They never ask
#   the policy. A full window is cut to its last transitions (their number is `observed.kept`).
# - The **ensemble** gets its actions from the policy, which acts on the predicted state. With *TS-1*, a trajectory draws
#   a new member at every step. With *TS-∞*, it has one member for all steps.

# %% tags=["hide-input"]
Markdown(f"At size `{size}`, we sample {observed.samples} trajectories of {last} steps from each model.")

# %% [markdown]
# ## Figure 1: look first
#
# The player shows the first trajectory of each model, at a quarter of the true speed. We did not choose them. Press
# Play, or move the slider. (The arrow keys move it step by step.)

# %% tags=["hide-input"]
poses = long_horizon.poses(size)
paths = long_horizon.figure_1(size, poses)
DT = 0.015  # seconds of a step
ROWS = {"reference": "true trajectory", "transformer": "Transformer", "ensemble_ts1": "ensemble, TS-1"}
COLOURS = dict(zip(ROWS, map(figures.COLOURS.get, ("data", "transformer", "other"))))


def bodies_of(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the bodies of rows of poses: ends (poses, capsules, 2, 3) and radii (capsules,), in metres."""
    return capsules("humanoid", rows.filter(regex=r"^q\d").to_numpy())[:2]


first = {model: bodies_of(poses[(poses.model == model) & (poses.rollout == 0)]) for model in ROWS}
moving = {label: (first[model][0], COLOURS[model]) for model, label in ROWS.items()}
radii = first["reference"][1]
HTML(viewers.body_player(moving, radii, DT, "humanoid-player"))

# %% [markdown]
# To draw a body, we integrate the path of its root from the predicted velocity, starting at the origin, and normalise the
# quaternion. In 1.5 seconds the policy moves its humanoid only some tens of centimetres. The poses of the figure would
# cover each other, so we move each of them to the right of the one before, by the same distance.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-1", "caption": "Our version of the paper's Figure 1: the first true trajectory, the first of the Transformer and the first of the ensemble (TS-1). All rows have the same scale. Lines trace head and feet. Bodies that leave the frame are cut off."}, "image": {"alt": "Three rows of nine humanoid bodies with traced paths of head and feet. The true trajectory is grey, the Transformer's prediction is blue, and the ensemble's is orange."}}
SPACING = 0.75  # metres from one pose to the next
every = max(1, last // 8)
shown = np.arange(0, last + 1, every)
figure, grid = plt.subplots(3, 1, figsize=(7, 6.6), layout="constrained", sharex=True)
for axes, model in zip(grid, ROWS):
    axes.axhspan(-1, 0, color="#ececec", lw=0, zorder=0)
    for _, path in paths[(paths.model == model) & (paths.rollout == 0)].groupby("body"):
        flat, _ = figures.project(path[["x", "y", "z"]].to_numpy())
        axes.plot(flat[:, 0] + path.t * SPACING / every, flat[:, 1], lw=1, color=COLOURS[model], zorder=0.5)
    for t in shown:
        if np.isfinite(first[model][0][t]).all():
            figures.body(axes, first[model][0][t], radii, COLOURS[model], shift=(t * SPACING / every, 0))
    for shapes in axes.collections:
        shapes.set_rasterized(True)
    axes.set(xlim=(-0.6, shown[-1] * SPACING / every + 1.1), ylim=(-0.2, 2.0), aspect="equal")
    axes.set_ylabel(f"{ROWS[model]}\nheight (m)")
    axes.set_xticks(shown * SPACING / every, [f"{t}\n{DT * t:.2f} s" for t in shown])
grid[-1].set_xlabel(f"step (each pose is moved {SPACING} m to the right of the one before)")
figure.suptitle(f"Predicted trajectories ({size})")
results.save_figure(figure, "fig1_humanoid", size)
plt.show()

# %% [markdown]
# The next figure shows the true paths, without this spacing, and where the trajectories ended.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-paths", "caption": "The first three trajectories of each model. Above: paths of head and feet from the side; both axes have the same scale. Below: the last poses, side by side. Poses outside the frame, or with values that are not finite, are missing."}, "image": {"alt": "Two rows of three panels for the true trajectory, the Transformer and the ensemble. Above, thin lines at head height and near the ground run to the right. Below, three bodies each: true ones and the Transformer's stand, the ensemble's may lie, float or be missing."}}
figure, grid = plt.subplots(2, 3, figsize=(7, 5.6), layout="constrained", sharey="row", sharex="row")
for (above, below), (model, label) in zip(grid.T, ROWS.items()):
    for axes in (above, below):
        axes.axhspan(-1, 0, color="#ececec", lw=0, zorder=0)
    for _, path in paths[paths.model == model].groupby(["rollout", "body"]):
        above.plot(path.x, path.z, lw=1, color=COLOURS[model])
    above.set(xlim=(-0.5, 0.9), ylim=(-0.2, 2.0), aspect="equal", title=label, xlabel="forward (m)", yticks=range(3))
    for i, body in enumerate(bodies_of(poses[(poses.model == model) & (poses.t == last)])[0]):
        if np.isfinite(body).all():
            figures.body(below, body, radii, COLOURS[model], shift=(1.1 * i - body[..., 0].mean(), 0))
    for shapes in below.collections:
        shapes.set_rasterized(True)
    below.set(xlim=(-0.7, 2.9), ylim=(-0.4, 2.2), aspect="equal", xticks=[])
for axes in grid[:, 0]:
    axes.set_ylabel("height (m)")
figure.suptitle(f"Paths of head and feet, and poses after {last} steps ({size})")
plt.show()

# %% [markdown]
# Numbers help the eye. The simulator's kinematics draw the bodies, so limbs keep their lengths. But a prediction can get
# heights wrong, sink into the ground, bend joints too far, or jump.


# %% tags=["hide-input"]
def looks(model: str) -> dict:
    """Return measures of all poses of a model's trajectories."""
    rows = poses[poses.model == model]
    q = rows.filter(regex=r"^q\d").to_numpy()
    finite = np.isfinite(q).all(1)
    ends, radii, names = capsules("humanoid", q[finite])
    angle, (low, high) = q[finite][:, 7:], hinges.T
    head = ends[:, names.index("head"), 0, 2]
    follows = (rows.t.diff() == 1).to_numpy()[1:]  # the row before belongs to the same trajectory
    alike = np.abs((q[1:, 3:7] * q[:-1, 3:7]).sum(1))[follows]
    turn = np.degrees(2 * np.arccos(alike[np.isfinite(alike)].clip(0, 1)))
    at_end = head[rows.t[finite] == last]
    return {
        "head, lowest to highest (m)": f"{head.min():.2f} to {head.max():.2f}",
        "head, mean at the end (m)": f"{at_end.mean():.2f}" if len(at_end) else "–",
        "lowest point of a body (m)": f"{(ends[..., 2] - radii[:, None]).min():.2f}",
        "largest turn of the torso in a step": f"{turn.max():.0f}°",
        "joint angles bent too far": f"{((angle < low - 0.1) | (angle > high + 0.1)).mean():.1%}",
        "poses that are not finite": f"{1 - finite.mean():.0%}",
    }


# %% tags=["hide-input"]
env = tasks.make("humanoid")
hinges = env.unwrapped.model.jnt_range[1:]  # radians; joint 0 is the root
env.close()
pd.DataFrame({label: looks(model) for model, label in ROWS.items()})

# %% [markdown]
# The table covers all poses of three trajectories. Heights are of the head's centre. A joint angle is bent too far if it
# is more than 0.1 rad beyond its limits. A foot that sinks into the ground has a lowest point below zero.
#
# The Transformer draws the four numbers of the torso's orientation one after the other. So a single unlikely bin can turn
# the whole body in one step. The score below would not notice: it looks at one step and one dimension at a time.
#
# ## The score
#
# At step $t$, each sampled trajectory $j = 1, \dots, n$ gives a predictive distribution for every dimension $i$ of the
# next state. It depends on everything that this sample drew before. The mean of these distributions is the model's
# marginal,
#
# $$m_{t,i}(v) = \frac{1}{n} \sum_{j=1}^{n} P\big(\text{bin } v \mid \text{sample } j\big), \qquad
#   p_{t,i}(v) = \frac{n \, m_{t,i}(v) + 1/V}{n + 1}.$$ (eq-horizon-mixture)
#
# One more sample, spread over all $V$ bins, keeps every bin from being empty. Let a held-out state $s$ fall into the bins
# $v_i$ of widths $w_i = (r_i - l_i)/V$. Its log-likelihood, as a density, is

# %% [markdown]
# $$\ell_t(s) = \sum_{i=1}^{N} \log \frac{p_{t,i}(v_i)}{w_i} \;\le\; \sum_{i=1}^{N} \log \frac{V}{r_i - l_i}.$$ (eq-horizon-oracle)
#
# The right side is the oracle of the paper's Appendix B, with all mass in the right bin. Here is one dimension with five
# bins, two samples, and a reference in the bin on which they agree:

# %%
edges = np.linspace([0.0], [2.0], 6, axis=1)  # (N, V + 1)
toy = horizon_metrics.Grid(edges, np.array([True]))
predictive = [[0.0, 0.1, 0.8, 0.1, 0.0], [0.0, 0.0, 0.6, 0.4, 0.0]]
mass = np.mean(predictive, axis=0).reshape(1, 1, 5)  # (steps, N, V)
reference = np.array([[[1.0]]])  # (references, steps, N)
score = horizon_metrics.log_likelihood(toy, mass, 2, reference)[0, 0]
by_hand = np.log((2 * 0.7 + 1 / 5) / (2 + 1)) - np.log(2 / 5)
oracle, uniform = horizon_metrics.oracle(toy), horizon_metrics.uniform(toy)
print(f"{score:.4f} nats, by hand {by_hand:.4f}")
print(f"oracle {oracle:.4f}, uniform {uniform:.4f}")

# %% [markdown]
# For the ensemble, we integrate each Gaussian over each bin. A value outside $[l_i, r_i)$ counts in the first or last
# bin, for all models. The paper estimates marginals by a *histogram* of samples. We use the mean of their distributions,
# because a histogram has empty bins, and show both below.
#
# ## Figure 2
#
# Three lines do not come from models. The *simulator* is a histogram of many true trajectories: no model can know more.
# It falls too, because the policy's actions are random, and they spread its trajectories. *Uniform* gives all bins the
# same probability. The *oracle* is the bound of {eq}`eq-horizon-oracle`.

# %% tags=["hide-input"]
table = long_horizon.figure_2(size)
NAMES = {"transformer": "Transformer", "markov": "Markovian Transformer"}
NAMES |= {"ensemble_ts1": "ensemble, TS-1", "ensemble_tsinf": "ensemble, TS-∞"}
NAMES |= {name: name for name in ("simulator", "uniform", "oracle")}
LOOKS = {"transformer": "", "third": (4, 2), "other": "", "fourth": (5, 2, 1, 2)}  # colours and dashes of the models
PALETTE = dict(zip(NAMES.values(), [*map(figures.COLOURS.get, LOOKS), *3 * [figures.COLOURS["data"]]]))
DASHES = dict(zip(NAMES.values(), [*LOOKS.values(), "", (1, 2), (8, 3)]))
KEYS, SCORE = ["panel", "model", "scoring", "t"], ["low", "log_likelihood", "high"]
# Rows that pool several training seeds have the smallest seed.
main = table.sort_values("seed").drop_duplicates(KEYS).sort_values(KEYS)
bounds = main[main.model.isin(("oracle", "uniform"))].groupby("model").log_likelihood.mean()
LOWEST = bounds.uniform - 0.6 * (bounds.oracle - bounds.uniform)


def curves(panel: str, scoring: str = "mixture") -> pd.DataFrame:
    """Return the curves of a panel; those that do not come from a model have the same values in every scoring."""
    models = main.model.isin((*long_horizon.TRANSFORMERS, *long_horizon.ENSEMBLES))
    return main[(main.panel == panel) & ((main.scoring == scoring) | ~models)]


# %% tags=["hide-input"]
def draw(axes, rows: pd.DataFrame, lowest: float, legend: bool = False) -> None:
    """Draw curves with their intervals; what is below `lowest` is drawn there."""
    tall = rows.replace({"model": NAMES}).melt(["model", "t"], SCORE)
    tall["value"] = tall.value.clip(lower=lowest)  # low, mean and high: the mean is the median of the three
    present = [name for name in NAMES.values() if name in set(tall.model)]
    sns.lineplot(tall, x="t", y="value", hue="model", style="model", hue_order=present, style_order=present, ax=axes,
                 palette=PALETTE, dashes=DASHES, estimator="median", errorbar=("pi", 100), legend=legend)  # fmt: skip
    axes.set(xlim=(0, last + 1), xlabel="prediction horizon (steps)", ylabel="")


def above_simulator(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the models' curves minus the simulator's."""
    simulator = rows[rows.model == "simulator"].set_index("t").log_likelihood
    rows = rows[~rows.model.isin(("simulator", "oracle", "uniform"))]
    return rows[["model", "t"]].join(rows[SCORE].sub(rows.t.map(simulator), axis=0))


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-2", "caption": "Our version of the paper's Figure 2. Above: log-likelihood of held-out states under the marginals that each model predicts from a fixed start. Below: the same scores minus the simulator's, on a larger scale. Left: the whole state is seen. Right: half of its dimensions are hidden at every step. Bands are 95% bootstrap intervals over held-out trajectories."}, "image": {"alt": "Four panels over the prediction horizon. Above, the curves of all models fall, below the oracle's horizontal line and beside the simulator's line; uniform is a dotted horizontal line. Below, the two Transformers stay near zero, and the ensembles fall away from it in the left panel."}}
figure, grid = plt.subplots(2, 2, figsize=(7, 5.4), layout="constrained", sharex=True, sharey="row")
lowest = max(LOWEST, min(main[main.scoring == "mixture"].low.min(), bounds.uniform) - 10)
for (above, below), panel in zip(grid.T, protocols):
    draw(above, curves(panel), lowest, legend="full" if panel == "observed" else False)
    above.set(title=panel, ylim=(lowest, bounds.oracle + 12))
    draw(below, above_simulator(curves(panel)), -80)
    below.axhline(0, lw=0.8, color=figures.COLOURS["data"])
grid[0, 0].set_ylabel("log-likelihood (nats)")
grid[1, 0].set_ylabel("minus the simulator's (nats)")
legend = grid[0, 0].get_legend_handles_labels()
grid[0, 0].get_legend().remove()
figure.legend(*legend, loc="outside lower center", ncols=3)
figure.suptitle(f"Compounding model errors ({size})")
results.save_figure(figure, "fig2_error_compounding", size)
plt.show()

# %% [markdown]
# The distance to the simulator counts. The simulator's histogram has many samples, but not infinitely many. A model with
# smoother marginals may therefore touch its line, or pass it by a little.

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Table: the scores of Figure 2 at some steps (nats)", "code_prompt_hide": "Hide the table"}
times = sorted({min(t, last) for t in (1, 5, 20, 50, 100)})
score = {panel: curves(panel).set_index(["model", "t"]).log_likelihood for panel in protocols}
wide = {panel: score[panel].unstack()[times] for panel in protocols}
wide = pd.concat(wide, axis=1).loc[list(NAMES)].rename(index=NAMES)
wide.rename_axis(index=None, columns=["", "step"]).style.format("{:.0f}")

# %% tags=["hide-input"]
MODELS = [NAMES[model] for model in (*long_horizon.TRANSFORMERS, *long_horizon.ENSEMBLES)]
lost = horizon_metrics.horizons(main, losses=(10,))
lost = lost[(lost.scoring == "mixture") & lost.model.isin(NAMES)]
lost = lost.assign(model=lost.model.map(NAMES)).pivot(index="model", columns="panel", values="t")
lost = lost.loc[MODELS, list(protocols)].rename_axis(index=None, columns="first step 10 nats below the simulator")
lost.style.format("{:.0f}", na_rep="never")

# %% [markdown]
# All models are scored on the same held-out trajectories, and some of these are hard for every model. Two curves may
# therefore differ clearly although their bands overlap. So we also take the interval of a *difference*: over the
# differences on each trajectory.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-leads", "caption": "The full Transformer's score minus its Markovian variant's, with 95% bootstrap intervals of the difference over held-out trajectories. The intervals do not say what another training would change."}, "image": {"alt": "Two curves over the prediction horizon around a line at zero, one for the observed panel and one for the masked panel."}}
leads = long_horizon.figure_2_leads(size)
by_span = leads.set_index(["panel", "other", "first", "last"])[["lead", "low", "high"]].sort_index()
stepwise = leads[(leads["other"] == "markov") & (leads["first"] == leads["last"])]
tall = stepwise.melt(["panel", "first"], ["low", "lead", "high"])
figure, axes = plt.subplots(layout="constrained")
sns.lineplot(tall, x="first", y="value", hue="panel", style="panel", estimator="median", errorbar=("pi", 100), ax=axes)
axes.axhline(0, color=figures.COLOURS["data"], lw=0.8)
axes.set(xlabel="prediction horizon (steps)", ylabel="full minus Markovian (nats)", xlim=(0, last + 1))
axes.set_title(f"What the past adds ({size})")
sns.move_legend(axes, "best", title=None)
plt.show()

# %% [markdown]
# ### Other ways to score
#
# The same trajectories can be scored in three ways.
#
# - `mixture` is the score above.
# - `histogram` counts samples. Many bins are empty if the marginal is broad and the samples are few. A reference in an
#   empty bin is punished as if the model had excluded it.
# - `density` is the ensemble's mixture of Gaussians without bins, which the paper plots. The oracle is no bound for it. A
#   reference far from all samples can cost any number of nats.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-scorings", "caption": "Both panels of Figure 2 in three scorings. The lines of simulator (a histogram of true trajectories), uniform and oracle are the same in all."}, "image": {"alt": "Six small panels: observed above, masked below, and from left to right scored as mixture, histogram and density."}}
figure, grid = plt.subplots(2, 3, figsize=(7, 5), layout="constrained", sharex=True, sharey=True)
for row, panel in zip(grid, protocols):
    for axes, scoring in zip(row, ("mixture", "histogram", "density")):
        draw(axes, curves(panel, scoring), LOWEST)
        axes.set(title=f"{panel}, {scoring}", xlabel="horizon (steps)", ylim=(lowest, bounds.oracle + 12))
    row[0].set_ylabel("log-likelihood (nats)")
figure.legend(*legend, loc="outside lower center", ncols=3)
figure.suptitle(f"Three scorings ({size})")
results.save_figure(figure, "fig2_scorings", size)
plt.show()

# %% tags=["remove-input"]
bound = main[main.model == "oracle"].set_index(["panel", "t"]).log_likelihood.rename("bound")
binned = main[main.scoring != "density"].join(bound, on=["panel", "t"])
assert (binned.log_likelihood <= binned.bound + 1e-3).all(), "a binned score is above the oracle"

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
better = {panel: max(long_horizon.ENSEMBLES, key=lambda m, p=panel: score[p][m].mean()) for panel in protocols}
ahead = {panel: score[panel]["transformer"] - score[panel][better[panel]] for panel in protocols}
gap = (score["observed"]["transformer"] - score["observed"]["markov"]).abs().mean()
bands = curves("observed").set_index(["model", "t"])[SCORE]
full, cut = bands.loc["transformer"], bands.loc["markov"]
overlap = ((full.low <= cut.high) & (cut.low <= full.high)).mean()
close = gap <= 0.1 * ahead["observed"].replace(-np.inf, np.nan).mean() or overlap == 1
behind = ahead["observed"].index[ahead["observed"] <= 0]
start = behind.max() + 1 if len(behind) else 1
wins = f"is above the ensemble from step {start} on" if start <= last else "is not above the ensemble at the end"
alike = "The Markovian Transformer is close to the full one" if close else "The Markovian Transformer is **not** close"
Markdown(f"**With the whole state observed, the Transformer {wins}. {alike}.**".replace("****", ""))

# %% tags=["hide-input"]
ROW = {f"Transformer minus ensemble, step {t}": (None, t, t) for t in sorted({min(50, last), last})}
ROW |= {f"full minus Markovian, step {t}": ("markov", t, t) for t in sorted({1, min(20, last), last})}
ROW["full minus Markovian, mean over the steps"] = ("markov", 1, last)
cells = {}
for panel in protocols:
    rows = {name: by_span.loc[(panel, other or better[panel], a, b)] for name, (other, a, b) in ROW.items()}
    cells[panel] = {name: f"{row.lead:+.1f} [{row.low:.1f}, {row.high:.1f}]" for name, row in rows.items()}
pd.DataFrame(cells).rename_axis(columns="nats, with 95% interval")

# %% tags=["hide-input"]
by_context = long_horizon.one_step_by_past(size).query("model == 'transformer'").sort_values(["panel", "past"])
worth = by_context.groupby("panel").log_density.agg(lambda nats: nats.iloc[-1] - nats.iloc[0])
mean = by_span.xs(("markov", 1, last), level=("other", "first", "last"))
more = worth.masked > max(0, worth.observed) and mean.low.masked > max(0, mean.high.observed)
failing = horizon_metrics.horizons(main, losses=(50,))
failing = failing.query("panel == 'observed' and scoring == 'mixture' and model == @better['observed']").t.min()
early = (
    " At the first step, though, the Markovian model is ahead: it was trained to predict from a single transition."
    if (by_span.xs(("markov", 1, 1), level=("other", "first", "last")).high < 0).all() else ""
)  # fmt: skip
when = "never" if np.isnan(failing) else f"from step {failing:.0f} on"
Markdown(
    f"- \"The ensemble\" is the better of its two ways to sample ({NAMES[better['observed']]} in the panel observed). "
    f"Within {last} steps, it is {when} 50 nats below the simulator. The paper's ensemble predicts accurately for \"a "
    "few dozen\" steps.\n"
    "- We call two curves close if they differ by less than a tenth of the gap to the ensemble, or if their bands "
    f"overlap at every step. The full and the Markovian Transformer differ by {gap:.1f} nats on average.\n"
    f"- Memory {'helps more' if more else 'does **not** clearly help more'} when half of the state is hidden: by "
    f"{worth.masked:.1f} nats instead of {worth.observed:.1f} one step ahead, and by {mean.lead.masked:.1f} instead of "
    f"{mean.lead.observed:.1f} on average over {last} steps. The paper finds that memory matters more with masks."
    f"{early}\n"
    "- The paper calls its Transformer's trajectories visually indistinguishable from true ones. The table of heads, "
    "torsos and joints above is our check."
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} Variance without bounds
# :label: horizon-bounds
#
# PETS keeps each log-variance between two learned bounds, softly. Take a fitted ensemble, remove both bounds, and sample
# again. Does the first step change? Does the last step change?
# ```
#
# ````{solution-start} horizon-bounds
# :class: dropdown
# ````


# %%
def without_bounds() -> pd.DataFrame:
    """Sample from an ensemble with and without bounds of its variances."""
    fit = long_horizon.ensemble_fit(observed, observed.seeds[0])
    bounded, _ = store.load_or_fit(fit)
    lifted = copy.deepcopy(bounded)
    lifted.max_log_var.data.fill_(50.0)  # standardised units: e^50 is no bound
    lifted.min_log_var.data.fill_(-50.0)
    _, start = long_horizon.references(size, observed.steps)
    starts, rows = np.repeat(start[None].astype(np.float64), 20, axis=0), []
    for name, model in (("bounded", bounded), ("lifted", lifted)):
        stds, rng = [], np.random.default_rng(0)
        states, lost = ensemble.sample(
            model, long_horizon.policy(), starts, observed.steps, "ts1", rng,
            visit=lambda t, mean, std, stds=stds: stds.append(np.median(std)),
        )  # fmt: skip
        for t, std in enumerate(stds, 1):
            speed = np.median(np.abs(states[:, t, 22:]).max(1))
            row = {"bounds": name, "t": t, "std": std, "speed": speed}
            rows.append(row | {"not_finite": lost[t] / 20})
    return pd.DataFrame(rows)


# %% tags=["hide-input"]
items = long_horizon.made_of(observed, "ensemble_ts1")
config = {"protocol": observed, "samples": 20}
bounded = store.table("exercise_variance_bounds", size, without_bounds, items, config, record=True)
columns = {"std": "median predicted standard deviation", "speed": "median largest velocity (m/s, rad/s)"}
ends = bounded[bounded.t.isin((1, last))].set_index(["t", "bounds"])[list(columns)].rename(columns=columns)
ends.rename_axis(index=["step", "bounds"]).sort_index().style.format("{:.2g}")

# %% [markdown]
# The largest velocity is taken within a state, and the median over trajectories. Near the data, the velocities hardly
# change, although the predicted standard deviations are smaller without the lower bound. Far from its data, a network
# may answer anything. A bound limits the variances that it can predict, but not the means.
#
# ````{solution-end}
# ````
#
# ```{exercise} A shorter memory
# :label: horizon-window
#
# Half of each state is hidden, and the masked Transformer's window holds `exp.model.T` transitions. A full window is cut
# to its last `kept` transitions. Predict a few steps with the smallest and with the largest possible `kept`. Which is
# better, and what does it cost?
# ```
#
# ````{solution-start} horizon-window
# :class: dropdown
# ````


# %%
def both_windows() -> pd.DataFrame:
    """Score predictions with the shortest and with the longest memory."""
    trained = long_horizon.transformer(masked, "transformer", masked.seeds[0])
    loaded, T = store.load_or_train(trained), exp.model.T
    held, start = long_horizon.references(size, masked.steps)
    grid = long_horizon.grid(long_horizon.observed(masked))
    steps, n, rows = min(12, masked.steps), 32, []
    starts = np.repeat(start[None].astype(np.float64), n, axis=0)
    for kept in (1, T - 1):
        predicted = prediction.rollout(
            loaded.model, loaded.tokenizer, starts, steps, kept,
            Streams([0], store.device()), masked.ensemble.mask_probability,
        ).predictive  # fmt: skip
        held_out = held[:, :steps]
        nats = horizon_metrics.log_likelihood(grid, predicted, n, held_out)
        read = [prediction.context_length(t, T, kept) for t in range(steps + 1)]
        for t, value in enumerate(np.nanmean(nats, 0), 1):
            rows.append({"kept": kept, "t": t, "log_likelihood": value})
        rows[-1]["read"] = np.mean(read)
    return pd.DataFrame(rows)


# %% tags=["hide-input"]
items = long_horizon.made_of(masked, "transformer")
config = {"protocol": masked, "samples": 32, "steps": 12}
memories = store.table("exercise_window", size, both_windows, items, config, record=True).groupby("kept")
columns = {"read": "transitions read, on average", "log_likelihood": "nats at the last step"}
scores = memories[list(columns)].last().rename(columns=columns)
scores.assign(**{"nats, mean over the steps": memories.log_likelihood.mean()}).style.format("{:.1f}")

# %% [markdown]
# After a cut to one transition, the window fills again, so it contains more than one on average. A short memory is cheap.
# After every cut, the model must read the rest of the window anew, and with the largest `kept` it must do so at every
# step.
#
# ````{solution-end}
# ````
