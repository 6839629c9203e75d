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
# **Claims** (Sections 3.2, 4.2 and 5). Search without reward-to-go is myopic; search over likely sequences tolerates
# inaccurate values; coarse bins may be what holds halfcheetah's medium-expert data back.
#
# After this page you can
#
# - take a planner apart, one part at a time, and say what each part is worth;
# - tell an effect from the noise of a handful of rollouts.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from ttlib.drawing import figures
from ttlib.pipeline import statistics
from ttlib.studies import ablations

# %% [markdown]
# ## One change at a time
#
# All rollouts are of the profile `released`. The search is changed on hopper-medium-replay, with one model; the bins are
# changed on halfcheetah-medium-expert, with a model trained for each kind. Rollout seeds are the same for all rows of a
# dataset.
#
# | change | what it asks |
# |---|---|
# | no reward-to-go | is the heuristic needed? Plans are worth the rewards within the horizon alone |
# | noise in $R$ | does the search tolerate inaccurate values? Every $R$ that is read gets Gaussian noise |
# | $r$ and $R$ drawn | why expectations are read: a search over drawn values picks lucky draws |
# | independent dimensions | what is it worth that each dimension is predicted after the ones before it? Those of a state, and those of an action, are taken from marginals, estimated by 8 sampled sequences |
# | every action allowed, the authors' filter | should unlikely actions compete? The filter leaves of each action dimension the likeliest bins that hold 40% (the planner's at laptop size: 70%) |
# | horizon, plans | what search itself is worth |
# | no past | what is it worth to have seen the transitions before? Without them the window has room for a longer plan |
# | uniform bins, finer states | is it the discretisation? Eq. 1's bins, or 250 quantile bins for each state dimension |

# %% tags=["hide-output"]
rollouts = ablations.ablations(size)

# %% tags=["hide-input"]
rows = []
for (dataset, setting), part in rollouts.groupby(["dataset", "setting"], sort=False):
    low, high = statistics.bootstrap(part["return"])
    rows.append({"dataset": dataset, "setting": setting, "return": part["return"].mean(), "low": low, "high": high,
                 "length": part.length.mean(), "falls": part.fell.mean(), "n": len(part)})  # fmt: skip
table = pd.DataFrame(rows)
shown = table.assign(interval=[f"[{a:.0f}, {b:.0f}]" for a, b in zip(table.low, table.high)])
shown.set_index(["dataset", "setting"])[["n", "return", "interval", "length", "falls"]].style.format(
    {"return": "{:.0f}", "length": "{:.0f}", "falls": "{:.0%}"}
).set_properties(**{"white-space": "nowrap"})

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ablations", "caption": "Mean return with one change at a time and 90% bootstrap intervals; every rollout is a dot. The dashed line is the unchanged planner."}, "image": {"alt": "Dot plots of returns for each ablation."}}
counts = [len(part) for _, part in table.groupby("dataset", sort=False)]
figure, panels = plt.subplots(len(counts), 1, figsize=(8, 1 + 0.32 * sum(counts)), layout="constrained", height_ratios=counts, squeeze=False)
for axes, (dataset, part) in zip(panels[:, 0], table.groupby("dataset", sort=False)):
    for y, row in enumerate(part.itertuples()):
        runs = rollouts[(rollouts.dataset == dataset) & (rollouts.setting == row.setting)]["return"]
        colour = figures.COLOURS["transformer" if row.setting == "main" else "data"]
        axes.plot(runs, np.full(len(runs), y), ".", ms=5, alpha=0.4, color=colour)
        axes.errorbar(part["return"].iloc[y], y, xerr=[[part["return"].iloc[y] - row.low], [row.high - part["return"].iloc[y]]], fmt="|", ms=12, lw=3, color=colour)
    axes.axvline(part["return"].iloc[0], ls="--", lw=0.8, color=figures.COLOURS["other"])
    axes.set(yticks=range(len(part)), yticklabels=part.setting, xlabel="return")
    axes.set_title(dataset, fontsize=10)
    axes.set_ylim(len(part) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
figure.suptitle(f"Ablations of the released profile ({size})")
plt.show()

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
def said(part: pd.DataFrame) -> str:
    main, words = part[part.setting == "main"].iloc[0], []
    for row in part[part.setting != "main"].itertuples():
        mean = part.loc[row.Index, "return"]
        apart = row.high < main.low or row.low > main.high
        words.append(f"{row.setting} {mean / main['return'] - 1:+.0%}{'' if apart else ' (intervals overlap)'}")
    return f"Against {main['return']:.0f} [{main.low:.0f}, {main.high:.0f}] on {main.dataset}: " + "; ".join(words) + "."


Markdown("\n\n".join(said(part) for _, part in table.groupby("dataset", sort=False)))

# %% [markdown]
# ## Exercises
#
# ```{exercise} How much noise is too much?
# :label: ex-noise
#
# With noise in every $R$ the planner picks among its candidates partly at random. In the limit of infinite noise,
# which of this book's agents has it become?
# ```
#
# ````{solution-start} ex-noise
# :class: dropdown
# ````
#
# One that acts by a random candidate. Candidates are drawn from the model (`released`), so it has become sampling, the
# imitation without search of page 05. However bad the values are, its actions are those of the data.
#
# ````{solution-end}
# ````
