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
# # One step ahead
#
# **What this page shows.** [The next page](10_long_horizon.py) compares a Transformer with an ensemble of single-step
# models over 100 steps. If the ensemble were a poor model of a single step, its failure over many steps would say
# nothing. So we first compare both one step ahead, before errors can compound.
#
# After this page you can
#
# - compare models of different kinds by one number, the log-density of held-out next states;
# - check whether the doubts of a probabilistic model are right;
# - say which precision bins can show, and what a longer context is worth.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown

from ttlib.baselines import ensemble
from ttlib.drawing import figures
from ttlib.pipeline import experiments, places, store
from ttlib.studies import horizon_metrics, long_horizon

figures.style()
protocols = {panel: experiments.long_horizon(size, panel) for panel in experiments.PANELS}
observed, masked = protocols.values()
exp = long_horizon.transformer(observed, "transformer", observed.seeds[0])
markov = long_horizon.transformer(observed, "markov", observed.seeds[0])

# %% [markdown]
# ## Data and models
#
# One policy walks the humanoid of [the data page](06_data.py). A state has 45 numbers, and an action has 17. All models
# learn from the same episodes.
#
# - The **Transformer** predicts states, actions and rewards token by token, as in
#   [the model's page](02_model_and_training.py).
# - The **Markovian Transformer** has the same architecture, but it reads only the previous and the current transition.
#   (We shorten its window. A mask over a longer window would not be enough, because information from further back could
#   pass through the layers.)
# - The **ensemble** is that of PETS {cite:p}`chua2018pets`. It consists of several networks. Each of them maps a state and
#   an action to a Gaussian of the next state.
#
# There are two panels, as in the paper's Figure 2. In the panel *observed*, models read the whole state. In the panel
# *masked*, half of its dimensions are hidden at every step, drawn anew each time.

# %% tags=["hide-input"]
config = observed.ensemble
pd.Series(
    {
        "window of the Transformer (transitions)": exp.model.T,
        "window of the Markovian Transformer (transitions)": markov.model.T,
        "Transformers: layers, heads, width": f"{exp.model.n_layer}, {exp.model.n_head}, {exp.model.d_model}",
        "ensemble: members, hidden layers, width": f"{config.members}, {config.layers}, {config.width}",
        "models trained of each kind": len(observed.seeds),
        "mask probability in the panel masked": f"{masked.ensemble.mask_probability:.0%}",
    },
    name=f"size {size}",
).to_frame()

# %% [markdown]
# ## The score
#
# For a state $s$, an action $a$ and members $e = 1, \dots, E$, the ensemble predicts the density
#
# $$p(s' \mid s, a) = \frac{1}{E} \sum_{e=1}^{E} \prod_{i=1}^{N}
#   \mathcal{N}\big(s'_i;\; s_i + \mu_{e,i}(s, a),\; \sigma_{e,i}^2(s, a)\big).$$ (eq-ensemble-density)
#
# A Transformer predicts bins. The next state falls into the bins $v_i$, whose widths are $w_i = (r_i - l_i)/V$. A model
# that gives them the probabilities $P_i(v_i)$ has the log-density
#
# $$\sum_{i=1}^{N} \log \frac{P_i(v_i)}{w_i} \;\le\; \sum_{i=1}^{N} \log \frac{V}{r_i - l_i}.$$ (eq-one-step-oracle)
#
# The right side is the *oracle* of the paper's Appendix B, with all probability in the right bin. No model can score
# more on bins. A Gaussian can, if it is narrower than a bin. Here is one dimension with five bins, each 0.4 wide:

# %%
edges = np.linspace([0.0], [2.0], 6, axis=1)  # (N, V + 1)
for std in (0.5, 0.05):
    mean, spread = np.array([[1.0]]), np.array([[std]])
    density = ensemble.log_normal(1.0, 1.0, std)
    mass = horizon_metrics.bin_mass(edges, mean, spread)[0, 2]  # of the middle bin
    print(f"standard deviation {std}: {density:.2f} nats as a density,")
    print(f"    {np.log(mass / 0.4):.2f} on the bins; oracle {np.log(5 / 2):.2f}")

# %% [markdown]
# We therefore score the ensemble twice: by {eq}`eq-ensemble-density`, and on the bins that the Transformers use. For
# the second score, we integrate its Gaussians over each bin.
#
# ## Is the ensemble a fair opponent?
#
# The table shows the mean log-density of held-out next states, given the true state and action. Numbers on bins can be
# compared with each other, and so can densities. A *linear Gaussian* model is the simplest opponent.

# %% tags=["hide-input"]
step = long_horizon.one_step(size)
ONE_STEP = {
    "ensemble": "ensemble, density",
    "linear": "linear Gaussian, density",
    "ensemble_binned": "ensemble, on the bins",
    "transformer": "Transformer, on the bins",
    "markov": "Markovian Transformer, on the bins",
    "oracle": "oracle of the bins",
}
single = step.set_index(["panel", "model"]).log_density
wide = single.unstack("panel").loc[list(ONE_STEP), list(protocols)].rename(index=ONE_STEP)
wide.rename_axis(index="one step ahead", columns="nats").style.format("{:.1f}")

# %% [markdown]
# A Transformer's score is the sum over its tokens, each predicted from those before it in the same state. The binned
# score of the ensemble takes every dimension alone.
#
# A model's doubts are right if 90% of the held-out next states lie inside its central 90% interval. The next table shows
# this percentage, and the range over dimensions. Its last row is the root mean squared error of the mean prediction,
# divided by the standard deviation of the change in a step.

# %% tags=["hide-input"]
COLUMNS = {
    "coverage": "inside the 90% interval",
    "coverage_low": "lowest dimension",
    "coverage_high": "highest dimension",
    "rmse_share": "error / change in a step",
}
gaussians = step[step.model == "ensemble"].set_index("panel")
calibration = gaussians[list(COLUMNS)].rename(columns=COLUMNS).T
percent = pd.IndexSlice[list(COLUMNS.values())[:3], :]
calibration.style.format("{:.2f}").format("{:.1%}", subset=percent)

# %% tags=["hide-input"]
sentences = []
for panel, row in gaussians.iterrows():
    linear = single[panel, "linear"]
    inside = "within" if 0.85 <= row.coverage <= 0.95 else "**not within**"
    above = "above" if row.log_density > linear else "**not above**"
    sentences.append(
        f"In the panel {panel}, the 90% interval contains {row.coverage:.1%} of the next states. This is {inside} 85 "
        f"to 95%. The ensemble's log-density of {row.log_density:.1f} nats is {above} the linear Gaussian's "
        f"{linear:.1f} nats."
    )
Markdown(" ".join(sentences))

# %% [markdown]
# ### How we tuned the ensemble
#
# The paper tuned the members, layers and widths of its ensemble, and so did we. The folded table shows all settings that
# we tried. `one step` is the density above, `in 90%` is the coverage, and `at t` is the score of Figure 2 at step $t$.

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Table: every ensemble that we tried (observed, size laptop)", "code_prompt_hide": "Hide the table"}
tried = pd.read_csv(places.ROOT / "data" / "tried_ensemble.csv")
PRINTED = {"members": "members", "layers": "layers", "width": "width", "batch": "batch"}
PRINTED |= {"lr": "learning rate", "stopped": "updates"}
PRINTED |= {"held_out_log_likelihood": "one step", "coverage90": "in 90%"}
PRINTED |= {f"binned_{t}": f"at {t}" for t in (1, 5, 20, 50, 100)}
small = [{"selector": "th, td", "props": "font-size: 80%; padding: 2px 5px"}]
shown = tried[list(PRINTED)].rename(columns=PRINTED).style.hide(axis="index")
shown = shown.format(precision=1).format("{:.0%}", subset=["in 90%"])
shown.format("{:g}", subset=["learning rate"]).set_table_styles(small)

# %% tags=["hide-input"]
used = experiments.long_horizon("laptop", "observed").ensemble
chosen = tried.query("members == @used.members and layers == @used.layers and width == @used.width")
chosen = chosen[chosen.updates == used.updates].iloc[0]
best = tried.loc[tried.binned_100.idxmax()]
spent = store.load_or_train(experiments.get("humanoid", size)).about["seconds"]


def described(row) -> str:
    """Describe an ensemble of the table in words."""
    return f"{row.members:.0f} members with {row.layers:.0f} layers of {row.width:.0f}, after {row.updates:.0f} updates"


still = "So the ensemble would still improve with more training. " if best.updates > chosen.updates else ""
Markdown(
    f"At size laptop, Figure 2 uses {described(chosen)}. They took {chosen.seconds / 60:.0f} minutes of one processor, "
    f"and their score 100 steps ahead is {chosen.binned_100:.0f} nats. The best ensemble that we tried reaches "
    f"{best.binned_100:.0f} nats: {described(best)}. The Transformer of this page was trained for {spent / 60:.0f} "
    f"minutes. {still}Read its gap to the Transformer as the gap between these two models, and not between two kinds "
    "of models."
)

# %% [markdown]
# ## Dimension by dimension
#
# In some dimensions, bins are too coarse for a precise model. The oracle of dimension $i$ is $\log(V / (r_i - l_i))$ for
# every model.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-horizon-dimensions", "caption": "One step ahead, dimension by dimension, panel observed: log-density minus the oracle's. Above 0, the ensemble's density is sharper than a bin, which no binned score can show."}, "image": {"alt": "Dots over 45 state dimensions, with positions on the left and velocities on the right. The ensemble's densities lie above the oracle's line for some positions. Its binned scores and the Transformer's stay below the line."}}
parts = long_horizon.one_step_by_dimension(size)
part = parts[parts.panel == "observed"]
LABELS = {key: ONE_STEP[key] for key in ("ensemble", "ensemble_binned", "transformer")}
gaps = part.set_index("dimension")[list(LABELS)].sub(part.oracle.to_numpy(), axis=0).rename(columns=LABELS)
palette = [figures.COLOURS[name] for name in ("other", "fourth", "transformer")]
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
sns.scatterplot(gaps, palette=palette, markers=["^", "o", "s"], ax=axes)
axes.axhline(0, color=figures.COLOURS["data"], lw=1)
axes.axvline(21.5, color="#aaaaaa", lw=1)
axes.set(xlabel="state dimension: 22 positions, then 23 velocities", ylabel="nats above the oracle")
axes.set_title(f"One step ahead ({size})")
sns.move_legend(axes, "upper right", title=None)
plt.show()

# %% [markdown]
# ## What is memory worth?
#
# The full Transformer predicts every transition of its window. It predicts the second after reading one transition, and
# the last after reading all the others. So we can compare it with itself.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-one-step-context", "caption": "Log-density of the next state against the number of transitions that the model has read. The Markovian model always reads one."}, "image": {"alt": "Two rising curves for the full Transformer, one for each panel. The curve of the panel masked rises much more. One point per panel shows the Markovian Transformer."}}
memory = long_horizon.one_step_by_past(size)
names = {"transformer": "full", "markov": "Markovian"}
drawn = memory.assign(model=memory.model.map(names)).rename(columns={"past": "context"})
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
sns.lineplot(drawn, x="context", y="log_density", hue="panel", style="model", markers=True, dashes=False, ax=axes)
axes.set(xlabel="context (transitions)", ylabel="log-density (nats)", xticks=sorted(drawn.context.unique()))
axes.set_title(f"What a longer context adds ({size})")
sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% tags=["hide-input"]
by_context = memory.set_index(["panel", "model", "past"]).log_density.sort_index()
worth, ahead = {}, {}
for panel in protocols:
    curve = by_context[panel, "transformer"]
    worth[panel] = curve.iloc[-1] - curve.iloc[0]
    ahead[panel] = by_context[panel, "markov", 1] - curve.iloc[0]
longest = memory.past.max()
Markdown(
    f"With {longest} transitions instead of one, the next state's log-density is {worth['observed']:.1f} nats higher "
    f"in the panel observed, and {worth['masked']:.1f} nats higher in the panel masked. After a single transition, the "
    f"Markovian model differs from the full one by {ahead['observed']:+.1f} and {ahead['masked']:+.1f} nats.\n\n"
    "Both models read as many tokens in training. But all scored tokens of the Markovian model come after a single "
    f"transition, and only one in {exp.model.T} of the full model's does."
)

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
lead = {panel: single[panel, "ensemble_binned"] - single[panel, "transformer"] for panel in protocols}
better = {panel: "the ensemble" if gap > 0 else "the Transformer" for panel, gap in lead.items()}
Markdown(
    f"**One step ahead and on the same bins, {better['observed']} is the better model where the whole state is "
    f"observed. Where half of it is masked, {better['masked']} is better. A longer context is worth "
    f"{'more' if worth['masked'] > worth['observed'] else 'less'} with masks.**"
)

# %% tags=["hide-input"]
rows = {}
for panel in protocols:
    score, columns = single[panel], parts[parts.panel == panel]
    rows[panel] = {
        "ensemble minus Transformer, as a density": score.ensemble - score.transformer,
        "ensemble minus Transformer, on the bins": lead[panel],
        "precision of the ensemble that the bins hide": columns.ensemble.sum() - columns.ensemble_binned.sum(),
        "Markovian minus full Transformer": score.markov - score.transformer,
        f"{longest} transitions of context instead of one": worth[panel],
    }
pd.DataFrame(rows).rename_axis(columns="nats").style.format("{:+.1f}")

# %% tags=["hide-input"]
sharp = part.assign(gap=part.ensemble - part.oracle).query("gap > 0").sort_values("gap", ascending=False)
ordered = part[part.markov > part.ensemble_binned].dimension
sentences = [
    f"A bin of width $w$ cannot hold more density than $1/w$. The ensemble's density is higher than that in "
    f"{len(sharp)} of {len(part)} dimensions."
]
if len(sharp):
    widths = ((sharp.high - sharp.low) / exp.bins.V)[:3]
    dimensions = ", ".join(f"{d:.0f} (bins {w:.2g} wide)" for d, w in zip(sharp.dimension, widths))
    sentences.append(f"The largest differences are in dimensions {dimensions}.")
sentences.append(f"On the bins, the Markovian Transformer is better than the ensemble in {len(ordered)} dimensions.")
if len(ordered) and ordered.median() > part.dimension.median():
    sentences.append(
        f"Most of them come late in the state (their median is dimension {ordered.median():.0f}). A late dimension is "
        "predicted from the dimensions before it, which the ensemble does not use."
    )
Markdown(" ".join(sentences))

# %% [markdown]
# ## Exercises
#
# ```{exercise} The oracle
# :label: horizon-oracle
#
# The table of dimensions, `parts`, contains the bounds $l_i$ and $r_i$ of the bins. Write Appendix B by hand, and compare
# it with the oracle of the first table. By how much would the oracle rise with 1000 bins instead of 100?
# ```
#
# ````{solution-start} horizon-oracle
# :class: dropdown
# ````

# %%
dims = parts[parts.panel == "observed"]
by_hand = np.log(exp.bins.V / (dims.high - dims.low)).sum()
oracle = single["observed", "oracle"]
print(f"{by_hand:.3f} by hand, {oracle:.3f} in the table")
print(f"ten times the bins: {len(dims) * np.log(10):.1f} nats more")
assert abs(by_hand - oracle) < 0.01

# %% [markdown]
# Finer bins raise the oracle by $N \log 10$. No model gains that much, because a model gains only in the dimensions
# where it is sharper than a bin.
#
# ````{solution-end}
# ````
