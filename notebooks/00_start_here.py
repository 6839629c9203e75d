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
# # Start here
#
# **Claim** (abstract). Reinforcement learning can be treated as one big sequence modeling problem: a
# Transformer over states, actions and rewards, and beam search in place of a planner
# {cite:p}`janner2021sequence`.
#
# This book is the paper as running code. Every figure in it was drawn, and every number computed, by the page
# it stands on, from models that ship with the book or that you train yourself.
#
# After this page you can
#
# - find the page for each result and say what it costs to make;
# - follow a number from a file of trajectories to an action;
# - read the letters that all pages share.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import json

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ttlib import checkpoint
from ttlib.pipeline import experiments, places, store
from ttlib.tokenizer import Transition

# %% [markdown]
# ## The pages
#
# | page | what it shows | in the paper |
# |---|---|---|
# | [Tokens](01_tokens.py) | a trajectory as a sequence of integers, and back | Equation 1 |
# | [Model and training](02_model_and_training.py) | the Transformer, its loss, what it has learned | Section 3.1, Appendix A |
# | [Search](03_search.py) | beam search, and how it comes to plan | Algorithm 1, Section 3.2 |
# | [Four rooms](04_four_rooms.py) | goals reached without rewards | Figure 5 |
# | [Hopper](05_hopper.py) | planning for reward from mediocre data | Table 1, hopper mixed |
# | [Data](06_data.py) | every dataset beside the published one, two physics, the humanoid, what a time limit is not | Section 5 |
# | [Your own data](07_your_own_data.py) | the same method on arrays of yours | |
# | [Speed](08_speed.py) | what a plan and a training cost, and what keeps up in real time | Section 5 |
# | [Long-horizon prediction](09_long_horizon.py) | predicted humanoids, beside an ensemble | Figures 1 and 2, Appendix B |
# | [Attention](10_attention.py) | where heads look, scores of every head, a viewer | Figure 3 |
# | [Nine datasets](11_offline_rl.py) | offline reinforcement learning, ours beside what is published | Figure 4, Table 1 |
# | [Imitation](12_imitation.py) | likelihood beams of several lengths | Section 4.2 |
# | [Ablations](13_ablations.py) | the planner with one change at a time | Sections 3.2, 4.2 |
# | [The sweep on a cluster](14_cluster.py) | Table 1 as jobs, on two cores or many GPUs, and what it costs | Table 1, Appendix A |
# | [The ledger](15_claims.py) | each claim of the paper, and whether it holds here | all sections |

# %% [markdown]
# ## How the data flow
#
# Three crossings only: a file becomes arrays, floats become token ids, ids become an action in an
# environment. Everything between them is integers on one device.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-flow", "caption": "Above, what happens once; below, what happens at every step of control. The names are modules of ttlib."}, "image": {"alt": "Flow chart. Once: trajectories to episodes to token ids to windows to model to checkpoint. Every step: state to context ids to search to action to environment and back."}}
figure, axes = plt.subplots(figsize=(10, 3.9))
once = ["trajectories\n(HDF5)", "episodes,\nreward-to-go\ndata", "token ids\ntokenizer", "windows\ndata", "Transformer\nmodel, train", "checkpoint"]
step = ["environment\nenvs", "state as ids\ntokenizer", "context of\npast ids\ncontrol", "beam search\nsearch", "first action\nof best plan\ncontrol"]
WIDE, HIGH = 1.5, 1.0


def box(x, y, text, colour):
    axes.add_patch(FancyBboxPatch((x, y), WIDE, HIGH, "round,pad=0.06", fc=colour, ec="#444", lw=1))
    axes.text(x + WIDE / 2, y + HIGH / 2, text, ha="center", va="center", fontsize=9)


def arrow(a, b, **style):
    axes.add_patch(FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=12, color="#444", **style))


for i, text in enumerate(once):
    box(2 * i, 2.4, text, "#dcebf7")
    if i:
        arrow((2 * i - 2 + WIDE + 0.08, 2.9), (2 * i - 0.08, 2.9))
for i, text in enumerate(step):
    box(2 * i, 0, text, "#fbe6d4")
    if i:
        arrow((2 * i - 2 + WIDE + 0.08, 0.5), (2 * i - 0.08, 0.5))
arrow((8 + WIDE / 2, -0.1), (WIDE / 2, -0.1), connectionstyle="arc3,rad=-0.12")
arrow((10 + WIDE / 2, 2.3), (6 + WIDE + 0.05, 1.05), connectionstyle="arc3,rad=-0.15")
axes.text(0, 3.75, "once", fontsize=11, weight="bold")
axes.text(0, 1.35, "at every step", fontsize=11, weight="bold")
axes.set(xlim=(-0.2, 11.8), ylim=(-1.1, 4.1), aspect="equal")
axes.axis("off")
plt.show()

# %% [markdown]
# ## Letters
#
# | letter | meaning |
# |---|---|
# | $N$, $M$ | dimensions of a state, of an action |
# | $D = N + M + 2$ | tokens of a step: state, action, reward, reward-to-go ($N + M$ where there are no rewards) |
# | $V$ | bins of a dimension, 100; a token id is bin + $V \cdot$ dimension |
# | $T$ | transitions in a window |
# | $B$ | plans kept by a search; $K$ candidates each |
# | $h$ | horizon: transitions that a plan looks ahead, the current one included |
# | $r_t$, $R_t$ | reward, reward-to-go $\sum_{t' \ge t} \gamma^{t'-t} r_{t'}$ with $\gamma = 0.99$ |
#
# Two *profiles* run through one code: `v1` is the paper's text, `released` the authors' later code. Three
# *sizes*: `smoke` (does it run), `laptop` (does the effect show; the default), `paper` (a GPU). Every figure
# that is not of paper size says so in its title.

# %% [markdown]
# ## What the commands cost
#
# | command | what it does |
# |---|---|
# | `make all` | data, results and figures computed anew from the shipped models, pages, this book |
# | `make scratch` | the same, but every model is trained first |
# | `make book` | this book from results that are already there |
# | `make SIZE=smoke all` | every cell in a few minutes, with results that mean nothing |
# | `make lab` | the pages in Jupyter |
# | `make sweep` | a part of `make all`: Table 1, imitation and ablations as jobs, here or on a cluster; `make table1`: what is finished |
# | `make bench` | how fast this machine plans and trains, for the speed page |
#
# `make all` and `make scratch` print an estimate for your machine before they begin. The shipped models were
# trained, and the results of this book computed, in the times below:


# %% tags=["hide-input"]
def costs() -> pd.DataFrame:
    rows = []
    for exp in experiments.needed(size):
        if folder := store.checkpoint_folder(exp):
            about = checkpoint.about(folder)
            rows.append({"what": f"model {exp.label}", "minutes": about["seconds"] / 60, "threads": about["threads"]})
    for path in sorted(places.folder(size).glob("*.json")):
        about = json.loads(path.read_text())
        rows.append({"what": f"result {about['name']}", "minutes": about["wall_seconds"] / 60, "threads": about["threads"]})
    return pd.DataFrame(rows, columns=["what", "minutes", "threads"])


costs().style.hide(axis="index").format({"minutes": "{:.1f}"})

for name, transition in {"hopper": Transition(11, 3), "humanoid": Transition(45, 17)}.items():
    print(f"{name}: D = {transition.D}, ten steps are {10 * transition.D} tokens, 512 hold {512 // transition.D} transitions")

# %% [markdown]
# The paper prints $512 / (N + M + 1)$ because it does not count the reward-to-go token.
#
# ````{solution-end}
# ````
#
# ```{exercise} Which id?
# :label: ex-which-id
#
# What does token id 1399 stand for in hopper, with $V = 100$?
# ```
#
# ````{solution-start} ex-which-id
# :class: dropdown
# ````

# %%
dimension, bin_ = divmod(1399, 100)
print(f"bin {bin_} of dimension {dimension}, which is {Transition(11, 3).names()[dimension]}: the last action at its largest")

# %% [markdown]
# ````{solution-end}
# ````
