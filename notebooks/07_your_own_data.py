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
# # Your own data
#
# **What this page shows.** Nothing in the method is special to hopper or rooms. Five arrays go in; bins, a model and
# plans come out. Here the arrays come from a controller that swings a pendulum up clumsily and never holds it. The
# plans hold it.
#
# After this page you can
#
# - bring arrays, an HDF5 file or a Minari dataset into the form that every page of this book reads;
# - understand what is refused, and check four things before you train;
# - train, sample and plan on data of your own, and know where to look when that does not work.

# %% tags=["parameters"]
size = "laptop"
path = ""  # the full path of an HDF5 file of yours, with D4RL's keys
environment = ""  # where to act: an id that gymnasium knows, such as Pendulum-v1; as module:Id-v0 if it is yours

# %% tags=["hide-input"]
import functools
import inspect
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown
from tqdm import tqdm

from ttlib import data, tokenizer
from ttlib.datasets import arrays, hdf5, own
from ttlib.drawing import figures
from ttlib.environments import stepping
from ttlib.pipeline import experiments, results, statistics, store
from ttlib.pipeline.rollouts import ROLLOUT_STAGE, run_rollouts
from ttlib.tokenizer import Transition

# %% tags=["hide-input"]
# What is wrong with your data, or does not fit your environment, is said here, before anything is trained.
if path:
    mine = hdf5.read(path, arrays.KEYS)
    my_episodes, my_environment = own.check(mine, environment)

figures.style()
exp = experiments.get("pendulum", size)
transition, V = exp.model.transition, exp.bins.V
make = functools.partial(gymnasium.make, "Pendulum-v1")

# %% [markdown]
# ## Collecting data
#
# Any loop will do that records five things for every step: the state *before* the action, the action, the reward,
# whether the environment ended the episode, and whether a time limit did. This is `own.collect` from `ttlib`:

# %% tags=["hide-input"]
Markdown(f"```python\n{inspect.getsource(own.collect)}```")

# %% [markdown]
# The keys are D4RL's {cite:p}`fu2020d4rl`: `observations` $(n, N)$, `actions` $(n, M)$, `rewards` $(n,)$, `terminals`
# $(n,)$ and `timeouts` $(n,)$, with one episode after the other. [The page before](06_data.py) has the types. The last
# two both say that an episode ends here, but they differ. A fall is part of the world; a time limit is not.
#
# The world is gymnasium's `Pendulum-v1` {cite:p}`towers2024gymnasium`. Its state has three numbers: $\cos\theta$,
# $\sin\theta$ and $\dot\theta$, with $\theta = 0$ upright. Its action is one torque in $[-2, 2]$, too weak to lift the
# pendulum in one go. Its reward is
#
# $$r = -(\theta^2 + 0.1\, \dot\theta^2 + 0.001\, a^2).$$ (eq-pendulum)
#
# Episodes start at a random angle and are timed out after 200 steps of 0.05 s. The controller can pump energy into the
# pendulum, but it cannot hold it up. Half of its torques are random:

# %% tags=["hide-input"]
Markdown(f"```python\n{inspect.getsource(own.clumsy)}```")

# %%
recorded = hdf5.read(store.dataset_file(exp.data))  # from own.swing_up
episodes = arrays.episodes(recorded, action_range=(-2.0, 2.0))
returns = episodes.returns
print({name: array.shape for name, array in recorded.items()})
shortest, longest = episodes.lengths.min(), episodes.lengths.max()
print(f"{len(episodes)} episodes of {shortest} to {longest} steps")
print(f"{episodes.terminal.sum()} of them were ended by the environment")
print(f"mean return {returns.mean():.0f}, standard deviation {returns.std():.0f}")
print(f"best return {returns.max():.0f}")


# %%
def longest_stay(states: np.ndarray) -> float:
    """Return the longest stay within 20 degrees of upright, in seconds.  (T, 3)"""
    upright = states[:, 0] > np.cos(np.radians(20))
    stays = [len(list(stay)) for is_up, stay in itertools.groupby(upright) if is_up]
    return 0.05 * max(stays, default=0)


every = np.split(episodes.states, episodes.starts[1:-1])
held = np.array([longest_stay(states) for states in every])
print(f"longest stay: {held.mean():.1f} s on average, {held.max():.1f} s at most")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-data", "caption": "Left: returns of all episodes of the data; the line is the mean. Right: the height of the tip during the episode of median return. On the dashed line the pendulum stands upright."}, "image": {"alt": "Left: histogram of returns. Right: the height of a pendulum's tip over ten seconds, which comes up again and again and falls each time."}}
def trace(axes, heights: np.ndarray, colour: str) -> None:
    """Draw the height of the tip over time: the cosine of the angle, since the pendulum is 1 m long."""
    sns.lineplot(x=np.arange(len(heights)) * 0.05, y=heights, color=colour, ax=axes)
    axes.axhline(1, ls="--", lw=1, color=figures.COLOURS["other"])
    axes.set(ylim=(-1.1, 1.1), yticks=[-1, 0, 1], xlabel="time (s)", ylabel="height of the tip (m)")


median = np.argsort(returns)[len(returns) // 2]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
sns.histplot(x=returns, bins=30, color=figures.COLOURS["data"], ax=left)
left.axvline(returns.mean(), color=figures.COLOURS["other"])
left.set(xlabel="return (sum of rewards)", ylabel="episodes")
trace(right, every[median][:, 0], figures.COLOURS["data"])
figure.suptitle(f"The clumsy controller ({size})")
plt.show()

# %% [markdown]
# ## Three ways in
#
# **A dictionary of arrays** goes through `arrays.episodes`, as above. **An HDF5 file** with the same keys, D4RL's own
# or any other, is read by `hdf5.load(path)`. Other arrays in it are left alone. Files of numpy, Minari, robomimic,
# d3rlpy and LeRobot are recognised, and the error shows the lines that convert them.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "mine.hdf5"
    hdf5.write(file, recorded)
    from_file = hdf5.load(file, action_range=(-2.0, 2.0))
assert (from_file.states == episodes.states).all()
assert (from_file.starts == episodes.starts).all()

# %% [markdown]
# **A Minari dataset** is given by its name, or as an object:
#
# ```python
# recorded = own.from_minari("D4RL/pen/human-v2")
# ```
#
# This needs the package `minari`, which does not come with this project. Install it into the project's environment
# with `pip install "minari[hf]"`.
#
# In Minari an episode has one observation more than steps: the one after the last action. A time limit is called
# `truncations`. Here are two invented episodes of this form. The second one ends without a flag:

# %%
minari_like = [
    SimpleNamespace(
        id=i,
        observations=np.arange(T + 1.0)[:, None] + 10 * i,
        actions=np.zeros((T, 1)),
        rewards=np.ones(T),
        terminations=np.arange(T) == ended,
        truncations=np.zeros(T, bool),
    )
    for i, (T, ended) in enumerate([(3, 2), (2, -1)])
]
dataset = SimpleNamespace(iterate_episodes=lambda: minari_like)
converted = own.from_minari(dataset)
pd.DataFrame({name: array.squeeze() for name, array in converted.items()})

# %% [markdown]
# ## What is refused
#
# Here are four common mistakes and the message for each. Several mistakes are listed at once. Without the message,
# training would go through in most of these cases, and the plans would be bad.


# %% tags=["shows-raw"]
def wrong(mistake: str, **changed: np.ndarray) -> None:
    try:
        arrays.episodes(recorded | changed, action_range=(-2.0, 2.0))
    except ValueError as error:
        print(f"{mistake}\n    {error}\n")


gap = recorded["observations"].copy()
gap[[700, 701], 2] = np.nan
wrong("an action too few", actions=recorded["actions"][1:])
wrong("a sensor that failed", observations=gap)
wrong("no ends", timeouts=np.zeros(len(recorded["rewards"]), bool))
wrong("another unit", actions=10 * recorded["actions"])

# %% [markdown]
# ## Look at the data before you train
#
# Four things decide more than the model does.
#
# 1. **The range of the bins.** Each dimension is cut into $V$ bins between its lowest and its highest value. One
#    outlier makes *uniform* bins so wide that all other values fall into a few. *Quantile* bins hold equal counts, but
#    a value that is repeated often leaves fewer bins for the rest.
# 2. **The rewards.** Their scale does not matter, since the bins follow it. The fraction of zeros does matter: where
#    nearly all rewards are equal, nearly all plans are equal too.
# 3. **The ends of the episodes.** Reward-to-go is summed up to them. Lengths that you did not expect mean ends in the
#    wrong place.
# 4. **The discount and the lengths.** A time limit cuts reward-to-go off as if nothing came after it. Few steps are
#    affected if $1 / (1 - \gamma)$ steps are much fewer than an episode has.

# %%
training, _ = store.windows(exp)
R = {"gamma": exp.bins.gamma, "reward_in_R": exp.bins.reward_in_R}
steps = data.steps(episodes, transition, **R)[:]
counts = np.stack([np.bincount(column, minlength=V) for column in training.bins.T])
fullest = counts.max(1) / counts.sum(1)
columns = {"lowest": steps.amin(0), "mean": steps.mean(0), "highest": steps.amax(0)}
DIMENSIONS = ["cos", "sin", "angular velocity", "torque", "r", "R"]
table = pd.DataFrame(columns, index=DIMENSIONS).round(2) + 0.0  # no -0.0
table["bins in use"] = (counts > 0).sum(1)
table["steps in the fullest bin"] = [f"{fraction:.1%}" for fraction in fullest]
table

# %%
zeros, reach = (episodes.rewards == 0).mean(), 1 / (1 - exp.bins.gamma)
print(f"{zeros:.0%} of the rewards are zero")
print(f"discount {exp.bins.gamma}: it reaches about {reach:.0f} steps ahead,")
print(f"in episodes of {np.median(episodes.lengths):.0f} steps")

# %% [markdown]
# The fullest bin of the torque holds many steps because the controller often pushes as hard as it can, to either side.
# The fullest bin of $r$ does too, because no reward is above zero, and all rewards near upright are close to zero. Both
# are as they should be.
#
# ## Train
#
# The experiment `pendulum` has the settings of `experiments.own`, below. They are small enough for minutes on one core.
# The window is short, because the state tells all about the past, and it only has to hold a plan of five steps.

# %% tags=["hide-input"]
settings = {
    "profile": exp.profile,
    "bins": exp.bins.kind,
    "discount": exp.bins.gamma,
    "window (transitions)": exp.model.T,
    "layers x heads, width": f"{exp.model.n_layer} x {exp.model.n_head}, {exp.model.d_model}",
    "updates x windows": f"{exp.train.updates:,} x {exp.train.batch}",
    "horizon (transitions)": exp.plan.horizon,
    "beam width x expansions": f"{exp.plan.beam_width} x {exp.plan.expansions}",
}
pd.Series(settings).to_frame(size)

# %%
loaded = store.load_or_train(exp)

# %% [markdown]
# Then look at the held-out loss of each dimension, beside the entropy of its bins. The entropy is the loss of a model
# that only knows how often each bin occurs. A dimension whose loss equals its entropy has not been learned. Torques are
# half random, so they cannot be predicted well, and need not be. States must be predicted well, because plans are made
# of them.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-loss", "caption": "Held-out loss of each dimension of a step, and the entropy of its bins, in nats per token."}, "image": {"alt": "Six pairs of horizontal bars, one pair for each dimension. The model's bars of the states and the reward are far shorter than those of the entropy; that of the torque is nearly as long."}}
p = counts / counts.sum(1, keepdims=True)
entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
losses = pd.DataFrame(
    {"model, held-out": loaded.about["held_out_by_dimension"], "entropy of the bins": entropy}, index=DIMENSIONS
)
rows = losses.rename_axis("dimension").reset_index().melt("dimension", value_name="nats per token", var_name="loss")
plt.figure(figsize=(7, 3), layout="constrained")
bars = {"saturation": 1, "palette": [figures.COLOURS["transformer"], figures.COLOURS["data"]]}
axes = sns.barplot(rows, x="nats per token", y="dimension", hue="loss", **bars)
axes.set(ylabel=None, title=f"What has been learned ({size})")
sns.move_legend(axes, "upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, title=None)
plt.show()

# %% [markdown]
# ## Sample first, then plan
#
# Draw actions from the model. If it has learned the data, they behave as the data do and earn the same. If they do
# not, no planner will help, and there is no point in tuning one. Here are both, on starts on which no setting was
# chosen:


# %% tags=["hide-input"]
@functools.lru_cache
def rolled_out(method: str) -> list[stepping.Rollout]:
    with tqdm(total=200, desc=method) as bar:
        return run_rollouts(exp, method, exp.seeds, progress=lambda going: bar.update(), make=make)


def all_returns() -> pd.DataFrame:
    rows = [(m, run.seed, run.total, longest_stay(np.array(run.states))) for m in METHODS for run in rolled_out(m)]
    return pd.DataFrame(rows, columns=["method", "seed", "return", "upright"])


METHODS = {"tto": "planning", "sampling": "sampling"}
rollouts = store.table("own_rollouts", size, all_returns, [exp], stage=ROLLOUT_STAGE)

# %% tags=["hide-input"]
of_data = pd.DataFrame({"method": "the data", "return": returns, "upright": held})
everything = pd.concat([rollouts.assign(method=rollouts.method.map(METHODS)), of_data])
groups = everything.groupby("method")
table = groups.agg(
    n=("return", "size"), mean=("return", "mean"), std=("return", lambda x: x.std(ddof=0)), best=("return", "max"),
    upright=("upright", "mean"),
).loc[[*METHODS.values(), "the data"]]  # fmt: skip
table[["low", "high"]] = [statistics.bootstrap(groups.get_group(method)["return"]) for method in table.index]
pd.DataFrame({
    "episodes": table.n, "mean return": table["mean"].map("{:.0f}".format),
    "90% interval": [f"{low:.0f} to {high:.0f}" for low, high in zip(table.low, table.high)],
    "standard deviation": table["std"].map("{:.0f}".format), "best return": table.best.map("{:.0f}".format),
    "longest stay (s)": table.upright.map("{:.1f}".format),
}).rename_axis(None)  # fmt: skip

# %% [markdown]
# Intervals are 90% bootstrap intervals of the mean over episodes. The longest stay within 20 degrees of upright is a
# mean over episodes.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-returns", "caption": "Every episode (dots), with means and 90% bootstrap intervals (black). The dashed line is the best episode of the data."}, "image": {"alt": "Dot plot of returns. Planning lies far to the right of sampling and the data, and beyond the data's best episode."}}
figure, axes = plt.subplots(figsize=(7, 2.4))
columns = {"x": "return", "y": "method", "order": table.index, "ax": axes}
sns.stripplot(everything, hue="method", hue_order=table.index, size=4, alpha=0.4, jitter=0.22, legend=False, **columns)
sns.pointplot(everything, errorbar=statistics.bootstrap, linestyle="none", marker="|", color="black", **columns)
axes.axvline(returns.max(), ls="--", lw=1, color=figures.COLOURS["data"])
axes.set(ylabel=None, title=f"Pendulum ({size})")
plt.show()


# %% tags=["hide-input"]
def heights() -> pd.DataFrame:
    """Return the height of the tip in the worst, the median and the best planned episode."""
    runs = sorted(rolled_out("tto"), key=lambda run: run.total)
    chosen = {"worst": runs[0], "median": runs[len(runs) // 2], "best": runs[-1]}
    return pd.concat(
        pd.DataFrame({"which": which, "seed": run.seed, "total": run.total, "height": np.array(run.states)[:, 0]})
        for which, run in chosen.items()
    )


planned = store.table("own_heights", size, heights, [exp], stage=ROLLOUT_STAGE)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-heights", "caption": "The worst, the median and the best of the planned episodes. On the dashed line the pendulum stands upright."}, "image": {"alt": "Three plots of the height of the tip against time. After at most a few swings it comes up to one metre and stays there."}}
figure, panels = plt.subplots(1, 3, figsize=(7, 2.4), layout="constrained", sharey=True)
for axes, (which, run) in zip(panels, planned.groupby("which", sort=False)):
    trace(axes, run.height.to_numpy(), figures.COLOURS["transformer"])
    axes.set_title(f"{which}, return {run.total.iloc[0]:.0f}")
figure.suptitle(f"Planned episodes ({size})")
results.save_figure(figure, "own_heights", size)
plt.show()

# %% [markdown]
# ## When it does not work
#
# Go through this table in its order, because each line assumes that the lines above it are settled.
#
# | what you see | where to look | what to do |
# |---|---|---|
# | a dimension uses few bins, or one bin holds most steps | outliers, units, constants | cut outliers off, leave constants out, use quantile bins |
# | lengths that you did not expect | `terminals`, `timeouts` | set them at the *last* step of each episode |
# | the loss of states is near their entropy | does the state hold all that matters? | train longer, use a wider model; add what is missing, such as velocities; or act with `context` > 0 |
# | the held-out loss rises while the training loss falls | the learning curve in `loaded.about["curve"]` | fewer updates, more data |
# | sampling earns less than the data | the two lines above; the action range; is it the same environment? | change nothing in the planner yet |
# | sampling is right, but plans are worse | the predicted value against the achieved one, as on [the hopper page](05_hopper.py) | train longer; fewer expansions; a shorter horizon; `drop_probability` > 0, which drops unlikely actions |
# | all plans have the same value | are nearly all rewards equal? is the loss of $R$ near its entropy? | a larger discount if rewards come late; a smaller one if $R$ is noise |
# | a plan earns what the data earn, and no more | do the data ever do better for a while? | more varied data: plans recombine what was shown and invent nothing |
#
# ## What it cannot take
#
# - **Discrete actions** need a wrapper, because an action is the centre of a bin, clipped to a `Box`. Give `actions` as
#   an $(n, 1)$ array of numbers 0, 1, 2, ... below $V$, and keep the bins uniform. Wrap the environment so that its
#   action space is a `Box` of shape $(1,)$, and round the action.
# - **Images** are too long: a step of 64 x 64 pixels would have more than 4,000 tokens, and attention costs the square.
#   Encode them into a few numbers first, with another model.
# - **Long memory** is not there: the model sees only its window of $T$ steps.
# - **Hundreds of dimensions** are slow. A planned step of $D$ tokens needs nearly $D$ evaluations of the network, one
#   after the other. The largest here, the humanoid, has $D = 64$.
# - **Precision** is limited: each dimension of a state or an action has one of $V$ values.
# - **Missing rewards** are no obstacle: [four rooms](04_four_rooms.py) has none and reaches goals.
#
# ## Your turn
#
# 1. Write down $N$, $M$ and the range of the actions. Put your data into the five arrays.
# 2. Call `own.check(recorded, environment)` and correct the data until it raises no error. It compares the data with the
#    environment: dimensions, the range of the actions, the kinds of spaces, what a reset and a few steps give.
# 3. Store them with `store.keep`. It names them by their content: if one number changes, the model is trained anew.
#    `experiments.own` gives the settings of this page, and `replace` changes them. For a robot with ten or more
#    dimensions use four layers, a width of 128 and three times the updates.
# 4. Look at the table of bins, train, and look at the loss of each dimension.
# 5. Sample, and compare with the data. Only then plan. Choose settings on seeds from 1000 on, and report on others.
#
# The next cell does all of that. Run it on a file of yours in `make lab`, or with
#
# ```sh
# make own ARGS="-p path=/full/path/mine.hdf5 -p environment=MyEnv-v0"
# ```
#
# The page runs again whenever your file has changed. Step 2 comes first of all, so you need not wait for its answer.


# %%
def on_your_own(recorded: dict, episodes: data.Episodes, make) -> None:
    config = store.keep("mine", recorded)
    N, M = episodes.states.shape[1], episodes.actions.shape[1]
    mine = experiments.own("mine", config, Transition(N, M), size)
    store.load_or_train(mine)
    mean, best = episodes.returns.mean(), episodes.returns.max()
    print(f"data: mean return {mean:.1f}, best return {best:.1f}")
    for method in ("sampling", "tto") if make else ():
        runs = run_rollouts(mine, method, tuple(range(1000, 1005)), make=make)
        mean = np.mean([run.total for run in runs])
        print(f"{method}: mean return {mean:.1f} over {len(runs)} episodes")


if path:
    on_your_own(mine, my_episodes, my_environment)
else:
    print("no path was given, so there is nothing to do")

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
plan, sampled, of_all = table.loc["planning"], table.loc["sampling"], table.loc["the data"]
better = (rollouts[rollouts.method == "tto"]["return"] > of_all.best).sum()
finding = "Plans do better than the data" if plan.low > of_all.high else "Plans do not do better than the data"
alike = sampled.low <= of_all["mean"] <= sampled.high
behaves = "behaves as the data do" if alike else "does not quite behave as the data do"
threads = f"{loaded.about['threads']} thread{'s' if loaded.about['threads'] > 1 else ''}"
Markdown(
    f"**{finding}: {better} of {plan.n:.0f} planned episodes earn more than the best of {of_all.n:.0f} episodes of the "
    f"data.** The planned pendulum stays upright for {plan.upright:.1f} s on average; in the data the longest stay is "
    f"{held.max():.1f} s. Without planning, the model {behaves}. The training took "
    f"{loaded.about['seconds'] / 60:.1f} minutes on {threads}."
)

# %% tags=["remove-input"]
if size != "smoke":
    assert plan.low > table.loc["the data", "high"], "planning does not beat the data"

# %% [markdown]
# ## Exercises
#
# ```{exercise} Another currency
# :label: ex-own-scale
#
# Multiply all rewards by 1000. Which tokens change, and which plans?
# ```
#
# ````{solution-start} ex-own-scale
# :class: dropdown
# ````

# %%
richer = replace(episodes, rewards=1000 * episodes.rewards)
bins = []
for version in (episodes, richer):
    steps = data.steps(version, transition, **R)[:]
    fitted = tokenizer.fit(steps.T, transition, V, exp.bins.kind)
    bins.append(fitted.bins(steps, slice(None)))
print(f"{(bins[0] != bins[1]).double().mean():.2%} of all tokens differ")

# %% [markdown]
# No tokens change, except for rounding: the bins of $r$ and $R$ are stretched together with the values. So the model is
# the same, the value of every plan is 1000 times as large, and the best plan stays the best. An *added* constant $c$
# is different. It adds up to $c / (1 - \gamma)$ to $R$, less near the end of an episode, and bins are spent on that.
#
# ````{solution-end}
# ````
#
# ```{exercise} Where does an episode end?
# :label: ex-own-ends
#
# Delete all timeouts but the last. Nothing is refused, since one long episode is allowed. At how many steps does $R$
# change by more than the width of an average bin? What would change it at more steps?
# ```
#
# ````{solution-start} ex-own-ends
# :class: dropdown
# ````

# %%
n = len(recorded["rewards"])
joined = arrays.episodes(recorded | {"timeouts": np.arange(n) == n - 1})
right, wrong_ends = (
    data.reward_to_go(part.rewards, part.starts, **R) for part in (episodes, joined)
)
changed = np.abs(right - wrong_ends) > (right.max() - right.min()) / V
print(f"{changed.mean():.0%} of the steps change,")
print(f"{changed.sum() / len(episodes):.0f} at the end of each episode")

# %% [markdown]
# Rewards of the *next* episode leak into the end of this one, as far back as the discount reaches. With a discount
# nearer to one they would leak further. In a world with falls it would be far worse: the model would learn that a fall
# is followed by a fresh start.
#
# ````{solution-end}
# ````
