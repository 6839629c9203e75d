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
# **Claim** (abstract). Reinforcement learning can be treated as one big sequence modeling problem. A Transformer models
# states, actions and rewards as one sequence, and beam search replaces a planner {cite:p}`janner2021sequence`.
#
# This book is the paper as running code. Each page draws its own figures and computes its own numbers. It uses models
# that ship with the book, or models that you train yourself.
#
# After this page you can
#
# - find the page for each result, and say how long it takes to make;
# - follow a number from a file of trajectories to an action;
# - read the letters and words that all pages use.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ttlib.drawing import figures
from ttlib.pipeline import experiments, results, store
from ttlib.tokenizer import Transition

figures.style()

# %% [markdown]
# ## The pages
#
# | page | what it shows | in the paper |
# |---|---|---|
# | [Tokens](01_tokens.py) | how a trajectory becomes a sequence of integers, and back | Equation 1 |
# | [Model and training](02_model_and_training.py) | the Transformer, its loss, and what it has learned | Section 3.1, Appendix A |
# | [Search](03_search.py) | beam search, and how it becomes a planner | Algorithm 1, Section 3.2 |
# | [Four rooms](04_four_rooms.py) | how goals are reached without rewards | Figure 5 |
# | [Hopper](05_hopper.py) | how to plan for reward from mediocre data | Table 1, hopper mixed |
# | [Data](06_data.py) | each dataset beside the published one, two versions of the physics, the humanoid, time limits | Section 5 |
# | [Your own data](07_your_own_data.py) | the same method on arrays of yours | |
# | [Speed](08_speed.py) | what a plan and a training cost, and what is fast enough for real time | Section 5 |
# | [One step ahead](09_one_step.py) | a Transformer and an ensemble, before errors can compound | Section 4.1 |
# | [Long-horizon prediction](10_long_horizon.py) | predicted humanoids, beside an ensemble | Figures 1 and 2, Appendix B |
# | [Attention](11_attention.py) | where attention heads look, with a score for each head and a viewer | Figure 3 |
# | [Nine datasets](12_offline_rl.py) | offline reinforcement learning, ours beside published results | Figure 4, Table 1 |
# | [Imitation](13_imitation.py) | beams over likelihood, of several lengths | Section 4.2 |
# | [Ablations](14_ablations.py) | the planner with one change at a time | Sections 3.2, 4.2 |
# | [The sweep on a cluster](15_cluster.py) | Table 1 as jobs, on two cores or many GPUs | Table 1, Appendix A |
# | [The ledger](16_claims.py) | each claim of the paper, and whether it holds here | all sections |

# %% [markdown]
# Pages 01 to 03 explain the method, and pages 04 and 05 use it. Readers with data of their own may go to page 07 after
# them. Readers who want to know what holds may begin with the ledger.
#
# ## How the data flow
#
# Data change their form in three places only ({numref}`fig-flow`). A file becomes arrays, numbers become token ids, and
# ids become an action in an environment. Between these places there are only integers on one device.

# %% tags=["hide-input"]
once = {"trajectories": "HDF5 file", "episodes,\nreward-to-go": "data", "token ids": "tokenizer",
        "windows": "data", "Transformer": "model, train", "weights": "checkpoint"}  # fmt: skip
step = {"environment": "environments", "state\nas ids": "tokenizer", "context of\npast ids": "control",
        "beam search": "search", "first action\nof best plan": "control"}  # fmt: skip
WIDE, HIGH, APART = 1.62, 1.1, 2.0


def box(axes, x: float, y: float, text: str, module: str, colour: str) -> None:
    """Draw a box that names a thing and, below it, the module that makes it."""
    patch = FancyBboxPatch((x, y), WIDE, HIGH, "round,pad=0.06", fc=colour, ec="#444444", lw=1)
    axes.add_patch(patch)
    axes.text(x + WIDE / 2, y + 0.68, text, ha="center", va="center", fontsize=8)
    axes.text(x + WIDE / 2, y + 0.15, module, ha="center", va="center", fontsize=6.5, family="monospace")


def arrow(axes, start: tuple, end: tuple, bend: float = 0.0) -> None:
    """Draw an arrow between two points."""
    look = {"arrowstyle": "-|>", "mutation_scale": 10, "color": "#444444"}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **look))


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-flow", "caption": "The upper row happens once. The lower row happens at every step of control. The small names are modules of ttlib."}, "image": {"alt": "Flow chart of two rows. The upper row leads from trajectories to episodes, token ids, windows, the Transformer and its weights. The lower row leads from the environment to state ids, context, beam search and the first action, and back to the environment. An arrow leads from the weights to beam search."}}
figure, axes = plt.subplots(figsize=(7, 3.2))
for y, row, colour in ((2.6, once, "#dcebf7"), (0, step, "#fbe6d4")):
    for i, (text, module) in enumerate(row.items()):
        box(axes, APART * i, y, text, module, colour)
        if i:
            middle = y + HIGH / 2
            arrow(axes, (APART * (i - 1) + WIDE + 0.04, middle), (APART * i - 0.04, middle))
arrow(axes, (4 * APART + WIDE / 2, -0.1), (WIDE / 2, -0.1), bend=-0.12)
arrow(axes, (5 * APART + WIDE / 2, 2.5), (3 * APART + WIDE / 2 + 0.3, 1.2), bend=-0.2)
axes.text(0, 4.05, "once", weight="bold")
axes.text(0, 1.4, "at every step", weight="bold")
axes.set(xlim=(-0.2, 11.8), ylim=(-1.2, 4.4), aspect="equal")
axes.axis("off")
plt.show()

# %% [markdown]
# ## Letters and words
#
# | letter | meaning |
# |---|---|
# | $N$, $M$ | number of dimensions of a state, of an action |
# | $D = N + M + 2$ | tokens per step: state, action, reward, reward-to-go; $N + M$ in data without rewards |
# | $V$ | number of bins per dimension, here 100; a token id is bin + $V \cdot$ dimension |
# | $T$ | number of transitions in a window |
# | $B$, $K$ | beam width, which is the number of plans kept; expansions, which are the candidates per plan |
# | $h$ | horizon: the number of transitions in a plan, the current one included |
# | $r_t$, $R_t$ | reward; reward-to-go $\sum_{t' \ge t} \gamma^{t'-t} r_{t'}$ with $\gamma = 0.99$ |
#
# | word | meaning |
# |---|---|
# | transition | one step: a state, an action, a reward and a reward-to-go |
# | window | the successive transitions of one episode that the model reads at once |
# | context | the transitions that the model reads before the current one while it acts |
# | nat | the unit of the loss; a loss of $x$ nats is the uncertainty of a choice among $e^x$ equally likely bins |
# | drop probability | before sampling, the least likely bins that together hold less than this are dropped |
# | overestimation | by how much a plan promises more than follows |
# | mean ± standard error | the standard error is the standard deviation over $\sqrt{n}$, for $n$ rollouts |

# %% [markdown]
# Two *profiles* run through the same code. `v1` follows the text of the paper, and `released` follows the authors'
# later code. The profiles differ in their bins, in their rewards and in how the search proposes actions.
# [Hopper](05_hopper.py) lists the differences, and [Nine datasets](12_offline_rl.py) compares the scores.
#
# There are three *sizes*. `smoke` tells whether everything runs, and its numbers mean nothing. `laptop`, the default,
# tells whether an effect shows. `paper` has the paper's models and needs a GPU. Every figure that is not of size
# `paper` says so in its title.

# %% [markdown]
# ## What the commands cost
#
# | command | what it does |
# |---|---|
# | `make all` | makes every figure, every page and this book from shipped models and records, and checks some records |
# | `make check` | makes recorded rollouts again and compares them |
# | `make recompute` | computes every result anew from the shipped models |
# | `make scratch` | does the same, but first trains every model |
# | `make book` | makes this book from results that are already there |
# | `make SIZE=smoke all` | runs every cell in a few minutes, with results that mean nothing |
# | `make lab` | opens the pages in Jupyter |
# | `make sweep` | makes the rollouts that no record holds, as jobs, here or on a cluster; it is a part of `make all` |
# | `make table1` | shows the part of Table 1 that is finished |
# | `make bench` | measures how fast this machine plans and trains, for the page on speed |
#
# Results that cost more than a minute are kept in `data/records/`. `make all` takes a record while its models, its
# settings and the code are the present ones. Otherwise it computes the result anew and says so.
#
# Before they begin, `make all`, `make recompute` and `make scratch` print an estimate for your machine. The table below
# says how long it took to train the shipped models and to compute the results of this book. The folder of each model
# and the JSON file of each result hold their own times.


# %% tags=["hide-input"]
def costs() -> pd.DataFrame:
    """Return the minutes that the models and the results of this size took."""
    models = {}
    for exp in experiments.needed(size):
        if folder := store.checkpoint_folder(exp):
            models[exp.label] = store.about(folder)["seconds"] / 60
    computed = {about["name"]: about["wall_seconds"] / 60 for _, about in results.every(size)}
    rows = []
    for what, minutes in {"trained models": models, "computed results": computed}.items():
        if minutes:
            longest = max(minutes, key=minutes.get)
            longest = f"{longest}, {minutes[longest]:.1f} minutes"
            rows.append([what, len(minutes), sum(minutes.values()), longest])
    return pd.DataFrame(rows, columns=["what", "number", "minutes in all", "the longest"])


costs().style.hide(axis="index").format({"minutes in all": "{:.0f}"})

# %% [markdown]
# ## Exercises
#
# ```{exercise} How long is a trajectory?
# :label: ex-length
#
# Hopper has 11 state and 3 action dimensions, and the humanoid of this book has 45 and 17. How many tokens are ten
# steps of each? How many whole transitions fit into the paper's 512 tokens?
# ```
#
# ````{solution-start} ex-length
# :class: dropdown
# ````

# %%
robots = {"hopper": Transition(11, 3), "humanoid": Transition(45, 17)}
for name, transition in robots.items():
    D = transition.D
    print(f"{name}: D = {D}; ten steps are {10 * D} tokens")
    print(f"  {512 // D} whole transitions fit into 512 tokens")

# %% [markdown]
# The paper prints $512 / (N + M + 1)$, because it does not count the token of reward-to-go.
#
# ````{solution-end}
# ````
#
# ```{exercise} Which id?
# :label: ex-which-id
#
# What does token id 1399 mean in hopper, with $V = 100$?
# ```
#
# ````{solution-start} ex-which-id
# :class: dropdown
# ````

# %%
dimension, bin_ = divmod(1399, 100)
name = Transition(11, 3).names()[dimension]
print(f"bin {bin_} of dimension {dimension}, {name}")

# %% [markdown]
# Dimension 13 is the last dimension of the action, and bin 99 is the last bin. So this token says that the last action
# has its largest value.
#
# ````{solution-end}
# ````
