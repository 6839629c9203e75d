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
# **Claim.** Nothing in the method knows about hopper or rooms. Five arrays go in; bins, a model and plans come out.
# On this page the arrays come from a pendulum that is swung up clumsily and never held, and the plans hold it.
#
# After this page you can
#
# - bring arrays, an HDF5 file or a Minari dataset into the form that every page of this book reads;
# - understand what is refused, and look at the right four things before you train;
# - train, sample and plan on data of your own, and know where to look when that does not work.

# %% tags=["parameters"]
size = "laptop"
path = ""  # an HDF5 file of yours with D4RL's keys: its full path
environment = ""  # where to act: an id that gymnasium knows

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
from IPython.display import Markdown
from tqdm import tqdm

from ttlib import control, data, tokenizer
from ttlib.datasets import hdf5, own
from ttlib.drawing import figures
from ttlib.pipeline import experiments, results, statistics, store
from ttlib.pipeline.rollouts import run_rollouts
from ttlib.tokenizer import Transition

exp = experiments.get("pendulum", size)
transition, V = exp.model.transition, exp.bins.V
make = functools.partial(gymnasium.make, "Pendulum-v1")

# %% [markdown]
# ## Collecting data
#
# Any loop will do that keeps, for every step, the state *before* the action, the action, the reward, and whether the
# episode ended, and why. This is `own.collect`, as it stands in `ttlib`:

# %% tags=["hide-input"]
Markdown(f"```python\n{inspect.getsource(own.collect)}```")

# %% [markdown]
# The keys are D4RL's {cite:p}`fu2020d4rl`: `observations` $(n, N)$, `actions` $(n, M)$, `rewards` $(n,)$, `terminals` $(n,)$
# and `timeouts` $(n,)$, all episodes one after the other ([the page before](06_data.py) has the types). The last two
# both say that an episode ends here, but not the same: a fall is part of the world, a time limit is not.
#
# The world is gymnasium's `Pendulum-v1` {cite:p}`towers2024gymnasium`. Its state is three numbers ($\cos\theta$,
# $\sin\theta$ and $\dot\theta$, with $\theta = 0$ upright), its action one torque in $[-2, 2]$, too weak to lift the
# pendulum in one go, and its reward
#
# $$r = -(\theta^2 + 0.1\, \dot\theta^2 + 0.001\, a^2).$$ (eq-pendulum)
#
# Episodes start at a random angle and are timed out after 200 steps of 0.05 s. The controller knows how to
# pump energy in, not how to stay up, and half of its torques are random:

# %% tags=["hide-input"]
Markdown(f"```python\n{inspect.getsource(own.clumsy)}```")

# %%
arrays = hdf5.read(store.dataset_file(exp.data))  # made by own.swing_up, the two functions above, if it is not there
episodes = data.episodes(arrays, action_range=(-2.0, 2.0))
returns = episodes.returns
print({name: array.shape for name, array in arrays.items()})
print(f"{len(episodes)} episodes of {episodes.lengths.min()} to {episodes.lengths.max()} steps, {episodes.terminal.sum()} ended by themselves")
print(f"return {returns.mean():.0f} on average, deviation {returns.std():.0f}, best {returns.max():.0f}")


# %%
def longest(states: np.ndarray) -> float:
    """(T, 3) -> seconds of the longest stay within 20 degrees of upright."""
    stays = [len(list(stay)) for upright, stay in itertools.groupby(states[:, 0] > np.cos(np.radians(20))) if upright]
    return 0.05 * max(stays, default=0)


held = np.array([longest(states) for states in np.split(episodes.states, episodes.starts[1:-1])])
print(f"longest stay within 20 degrees of upright: {held.mean():.1f} s on average, at most {held.max():.1f} s")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-data", "caption": "Returns of all episodes of the data, and the height of the tip during the episode of median return. On the dashed line the pendulum stands upright."}, "image": {"alt": "Left: histogram of returns. Right: the height of a pendulum's tip over ten seconds, which comes up again and again and falls each time."}}
def trace(axes, heights: np.ndarray, colour: str) -> None:
    """The height of the tip over time: the cosine of the angle, since the pendulum is 1 m long."""
    axes.plot(np.arange(len(heights)) * 0.05, heights, color=colour, lw=1.4)
    axes.axhline(1, ls="--", lw=1, color=figures.COLOURS["other"])
    axes.set(ylim=(-1.1, 1.1), yticks=[-1, 0, 1], xlabel="time (s)", ylabel="height of the tip (m)")


median = np.argsort(returns)[len(returns) // 2]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.hist(returns, bins=30, color=figures.COLOURS["data"])
left.axvline(returns.mean(), color=figures.COLOURS["other"], label="mean")
left.set(xlabel="return (sum of rewards)", ylabel="episodes")
left.legend(frameon=False)
trace(right, episodes.states[episodes.starts[median] : episodes.starts[median + 1], 0], figures.COLOURS["data"])
figure.suptitle(f"The clumsy controller ({size})")
plt.show()

# %% [markdown]
# ## Three ways in
#
# **A dictionary of arrays** goes through `data.episodes`, as above. **An HDF5 file** with the same keys, D4RL's own or
# any other, is read by `data.load(path)`:

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "mine.hdf5"
    hdf5.write(file, arrays)
    loaded_file = hdf5.load(file, action_range=(-2.0, 2.0))
print((loaded_file.states == episodes.states).all() and (loaded_file.starts == episodes.starts).all())

# %% [markdown]
# **A Minari dataset** is named, or handed over as an object:
#
# ```python
# arrays = own.from_minari("D4RL/pen/human-v2")
# ```
#
# That takes the package `minari`, which does not come with this project: `pip install "minari[hf]"` into its environment.
# Minari keeps one observation more than steps in each episode, the one after the last action, and calls a time limit
# `truncations`. Two made-up episodes of such a form, the second of which just stops:

# %%
minari_like = [
    SimpleNamespace(id=i, observations=np.arange(T + 1.0)[:, None] + 10 * i, actions=np.zeros((T, 1)), rewards=np.ones(T),
                    terminations=np.arange(T) == ended, truncations=np.zeros(T, bool))
    for i, (T, ended) in enumerate([(3, 2), (2, -1)])
]  # fmt: skip
converted = own.from_minari(SimpleNamespace(iterate_episodes=lambda: minari_like))
pd.DataFrame({name: array.squeeze() for name, array in converted.items()})

# %% [markdown]
# ## What is refused
#
# Four mistakes that are easily made, and what is said about each. Most of them would otherwise stop nothing: training
# would go through, and the plans would be bad.


# %%
def wrong(what: str, **changed: np.ndarray) -> None:
    try:
        data.episodes(arrays | changed, action_range=(-2.0, 2.0))
    except ValueError as error:
        print(f"{what}\n    {error}\n")


gap = arrays["observations"].copy()
gap[[700, 701], 2] = np.nan
wrong("rewards as a column", rewards=arrays["rewards"][:, None])
wrong("a sensor that failed", observations=gap)
wrong("no ends", timeouts=np.zeros(len(arrays["rewards"]), bool))
wrong("another unit", actions=10 * arrays["actions"])

# %% [markdown]
# ## Look at it before you train
#
# Four things decide more than the model does.
#
# 1. **The range of the bins.** Each dimension is cut into $V$ bins between its lowest and highest value. One
#    outlier makes *uniform* bins so wide that all else shares a few. *Quantile* bins hold equal counts; there a value
#    that is repeated often leaves fewer bins for the rest.
# 2. **The rewards.** Their scale is of no importance, since bins follow it; their share of zeros is: where nearly all
#    rewards are equal, so are nearly all plans.
# 3. **The ends of the episodes.** Reward-to-go is summed up to them. Lengths that you did not expect mean
#    ends in the wrong place.
# 4. **The discount against the lengths.** A time limit cuts reward-to-go off as if nothing came after it. With
#    $1 / (1 - \gamma)$ steps well below the episodes' length that touches few steps.

# %%
training, held_out = store.windows(exp)
steps = data.steps_table(episodes, transition, exp.bins.gamma, exp.bins.include_current)
counts = np.stack([np.bincount(column, minlength=V) for column in training.bins.T])
pd.DataFrame(
    {
        "lowest": steps.amin(0),
        "mean": steps.mean(0),
        "highest": steps.amax(0),
        "bins in use": (counts > 0).sum(1),
        "in the fullest bin": [f"{share:.1%}" for share in counts.max(1) / counts.sum(1)],
    },
    index=["cos", "sin", "angular velocity", "torque", "r", "R"],
).round(2)

# %%
zero, beyond = (episodes.rewards == 0).mean(), 1 / (1 - exp.bins.gamma)
print(f"{zero:.0%} of rewards are zero; discount {exp.bins.gamma}: {beyond:.0f} steps, in episodes of {np.median(episodes.lengths):.0f}")

# %% [markdown]
# The fullest bin of the torque holds a tenth of all steps because the controller often pushes as hard as it can, to either
# side; that of $r$, because no reward is above zero and upright they are all near it. Both are as they should be.
#
# ## Train
#
# The experiment `pendulum` is `experiments.own`, the settings below, on these data: small enough for minutes on
# one core. The window is short, since the state says all about the past and a plan of five steps has to fit.

# %%
pd.Series(
    {
        "profile": exp.profile,
        "bins": exp.bins.kind,
        "discount": exp.bins.gamma,
        "window (transitions)": exp.model.T,
        "layers x heads, width": f"{exp.model.n_layer} x {exp.model.n_head}, {exp.model.d_model}",
        "updates x windows": f"{exp.train.updates:,} x {exp.train.batch}",
        "horizon": exp.plan.horizon,
        "plans kept x candidates each": f"{exp.plan.plans} x {exp.plan.candidates}",
    }
).to_frame(size)

# %%
loaded = store.load_or_train(exp)

# %% [markdown]
# Then the held-out loss, dimension by dimension, beside what one would pay without a model: the entropy of the
# bins. A bar as long as its baseline has learned nothing. Torques are half random, so they cannot be
# predicted well, and need not be. States must be: they are what plans are made of.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-loss", "caption": "Held-out loss of each dimension of a step, and the entropy of its bins, which is what a model pays that knows how often each bin occurs and nothing else."}, "image": {"alt": "Six pairs of horizontal bars, one pair per dimension; the model's bars of the states and the reward are far shorter than those of the entropy, that of the torque is nearly as long."}}
p = counts / counts.sum(1, keepdims=True)
entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
nats = np.array(loaded.about["held_out_by_dimension"])
figure, axes = plt.subplots(figsize=(7.5, 3))
y = np.arange(transition.D)
axes.barh(y - 0.19, nats, 0.36, color=figures.COLOURS["transformer"], label="model, held-out")
axes.barh(y + 0.19, entropy, 0.36, color=figures.COLOURS["data"], label="entropy of the bins")
axes.set(yticks=y, yticklabels=["cos", "sin", "velocity", "torque", "$r$", "$R$"], xlabel="nats a token", title=f"What has been learned ({size})")
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Sample first, then plan
#
# A model that has learned the data, when its actions are *sampled*, behaves as the data do and earns what they
# earn. If it does not, no planner will save it, and there is no point in tuning one. Here both, on starts that no
# setting was chosen on:


# %%
@functools.lru_cache
def rolled_out(method: str) -> list[control.Rollout]:
    with tqdm(total=200, desc=method) as bar:
        return run_rollouts(exp, method, exp.seeds, progress=lambda going: bar.update(), make=make)


METHODS = {"tto": "planning", "sampling": "sampling"}


def returns_of_all() -> pd.DataFrame:
    rows = [(m, run.seed, run.total, longest(np.array(run.states))) for m in METHODS for run in rolled_out(m)]
    return pd.DataFrame(rows, columns=["method", "seed", "return", "upright"])


common = {"config": {"experiment": exp, "methods": METHODS, "seeds": exp.seeds, "profile": exp.profile}, "inputs": {exp.label: store.weights_key(exp)}}
rollouts = results.table("own_rollouts", size, returns_of_all, **common)

# %% tags=["hide-input"]
rows = {label: rollouts[rollouts.method == method]["return"].to_numpy() for method, label in METHODS.items()} | {"the data": returns}
table = pd.DataFrame(
    [(label, len(x), x.mean(), *statistics.bootstrap(x), x.std(), x.max()) for label, x in rows.items()],
    columns=["method", "n", "mean", "low", "high", "deviation", "best"],
).set_index("method")
stays = rollouts.groupby("method").upright.mean()
table["upright (s)"] = [*stays[list(METHODS)], held.mean()]
shown = table.assign(interval=[f"[{a:.0f}, {b:.0f}]" for a, b in zip(table.low, table.high)])
shown = shown[["n", "mean", "interval", "deviation", "best", "upright (s)"]]
shown.style.format("{:.0f}", subset=["mean", "deviation", "best"]).format("{:.1f}", subset=["upright (s)"])

# %% [markdown]
# Intervals are 90% bootstrap intervals of the mean over episodes; `upright` is the longest stay within 20 degrees, on average.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-returns", "caption": "Every episode (dots), means and 90% bootstrap intervals (bars). The dashed line is the best episode of the data."}, "image": {"alt": "Dot plot of returns. Planning lies far to the right of sampling and the data, and beyond the data's best episode."}}
figure, axes = plt.subplots(figsize=(8, 2.6))
rng = np.random.default_rng(0)
for y, (x, row, colour) in enumerate(zip(rows.values(), table.itertuples(), ("transformer", "third", "data"))):
    axes.plot(x, y + rng.uniform(-0.22, 0.22, len(x)), ".", ms=5, color=figures.COLOURS[colour], alpha=0.5 if len(x) < 50 else 0.2)
    axes.errorbar(row.mean, y, xerr=[[row.mean - row.low], [row.high - row.mean]], fmt="|", ms=14, lw=4, color=figures.COLOURS[colour])
axes.axvline(returns.max(), ls="--", lw=1, color=figures.COLOURS["other"])
axes.set(yticks=range(len(rows)), yticklabels=rows, xlabel="return", title=f"Pendulum ({size})")
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
plt.show()


# %%
def heights() -> pd.DataFrame:
    """Of three planned episodes: the worst, the median and the best."""
    runs = sorted(rolled_out("tto"), key=lambda run: run.total)
    chosen = {"worst": runs[0], "median": runs[len(runs) // 2], "best": runs[-1]}
    return pd.concat(
        pd.DataFrame({"which": which, "seed": run.seed, "total": run.total, "height": np.array(run.states)[:, 0]})
        for which, run in chosen.items()
    )


planned = results.table("own_heights", size, heights, **common)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-heights", "caption": "The worst, the median and the best of the planned episodes. On the dashed line the pendulum stands upright."}, "image": {"alt": "Three plots of the height of the tip against time; after at most a few swings it comes up to one metre and stays there."}}
figure, panels = plt.subplots(1, 3, figsize=(11, 3), layout="constrained", sharey=True)
for axes, (which, run) in zip(panels, planned.groupby("which", sort=False)):
    trace(axes, run.height.to_numpy(), figures.COLOURS["transformer"])
    axes.set_title(f"{which}, return {run.total.iloc[0]:.0f}")
for axes in panels[1:]:
    axes.set_ylabel("")
figure.suptitle(f"Planned episodes ({size})")
results.save_figure(figure, "own_heights", size)
plt.show()

# %% [markdown]
# ## When it does not work
#
# In this order: each line assumes that those above it are in order.
#
# | what you see | where to look | what to do |
# |---|---|---|
# | a dimension uses few bins, or one bin holds most steps | outliers, units, constants | cut outliers off, leave constants out, take quantile bins |
# | lengths that you did not expect | `terminals`, `timeouts` | set them at the *last* step of each episode |
# | states' loss near their entropy | is the state the whole state? | more updates, a wider model; else add what is missing (velocities!), or act with `past` > 0 |
# | held-out loss rises while training loss falls | the learning curve in `loaded.about["curve"]` | fewer updates, more data |
# | sampling earns less than the data | the two lines above; action range; is it the same environment? | nothing about the planner yet |
# | sampling is right, plans are worse than sampling | value promised against value achieved, as on [the hopper page](05_hopper.py) | more updates; fewer candidates; a shorter horizon; `cdf` > 0, which drops unlikely actions |
# | plans promise all the same | rewards: nearly all equal? $R$: hardly better than its entropy? | a larger discount if reward comes late; a smaller one if $R$ is noise |
# | a plan earns what the data earn, no more | do the data ever do better for a while? | data with more variety: plans recombine what was shown, they do not invent |
#
# ## What it cannot take
#
# - **Discrete actions**, as they are: what acts is the centre of a bin, clipped to a `Box`. Give `actions` as an $(n, 1)$ array
#   of numbers 0, 1, 2, ..., fewer than $V$, keep the bins uniform, and wrap the environment so that its action space is
#   a `Box` of shape $(1,)$ and what comes in is rounded.
# - **Images**: a step of 64 x 64 pixels would be more than 4,000 tokens, and attention costs the square. Encode
#   them first, by a model of their own, into a few numbers.
# - **Long memory**: what lies further back than the window of $T$ steps is not there.
# - **Hundreds of dimensions**: a step of $D$ tokens takes nearly $D$ evaluations of the network *per planned step*, one after the
#   other. The largest here, the humanoid, has $D = 64$.
# - **Precision**: an action is one of $V$ values in each dimension, a state too. What happens
#   within a bin is not seen.
# - **No rewards** are no obstacle: [four rooms](04_four_rooms.py) has none and reaches goals.
#
# ## Your turn
#
# 1. Write down $N$, $M$ and the range of the actions. Put your data into the five arrays.
# 2. `data.episodes(arrays, action_range)`; do what it says until it is silent.
# 3. `store.keep` stores them, by their content: change one number and the model is trained anew, change none and
#    it is found again. `experiments.own` gives the settings of this page. Change them with `replace`: for a robot
#    with ten or more dimensions take four layers, a width of 128 and three times the updates.
# 4. Look at the table of bins, train, look at the loss of each dimension.
# 5. Sample, compare with the data. Only then plan. Choose settings on seeds from 1000 on, report on others.
#
# All of that is the next cell. Run it on a file of yours in `make lab`, or with
#
# ```sh
# make clean own ARGS="-p path=/full/path/mine.hdf5 -p environment=MyEnv-v0"
# ```
#
# where `clean` has the page run again though nothing but your file has changed. Models are kept.


# %%
def on_your_own(arrays: dict[str, np.ndarray], environment: str) -> None:
    found = data.episodes(arrays)
    config = store.keep("mine", arrays)  # data/regenerated/own-mine-...
    mine = experiments.own("mine", config, Transition(found.states.shape[1], found.actions.shape[1]), size)
    store.load_or_train(mine)
    print(f"data: return {found.returns.mean():.1f} on average, best {found.returns.max():.1f}")
    for method in ("sampling", "tto") if environment else ():
        runs = run_rollouts(mine, method, tuple(range(1000, 1005)), make=lambda: gymnasium.make(environment))
        print(f"{method}: return {np.mean([run.total for run in runs]):.1f}, over {len(runs)} episodes")


if path:
    on_your_own(hdf5.read(path), environment)
else:
    print("no path given: nothing to do")

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
plan, best = table.loc["planning"], returns.max()
beyond_best = (rows["planning"] > best).sum()
Markdown(
    f"The data earn {table.loc['the data', 'mean']:.0f} on average and {best:.0f} at best, over {len(returns)} episodes. "
    f"Sampling the model's actions earns {table.loc['sampling', 'mean']:.0f}, 90% interval "
    f"[{table.loc['sampling', 'low']:.0f}, {table.loc['sampling', 'high']:.0f}]: the model "
    f"{'behaves as the data do' if table.loc['sampling', 'low'] <= table.loc['the data', 'mean'] <= table.loc['sampling', 'high'] else 'does **not** quite behave as the data do'}. "
    f"Planning with the same model earns {plan['mean']:.0f} [{plan.low:.0f}, {plan.high:.0f}] over {plan.n:.0f} episodes, "
    f"{'better' if plan.low > table.loc['the data', 'high'] else '**not better**'} than the data's mean; "
    f"{beyond_best} of {plan.n:.0f} planned episodes earn more than the best of the data. The pendulum stays upright for "
    f"{plan['upright (s)']:.1f} s at a stretch, in the data for {held.max():.1f} s at most. The model was trained in {loaded.about['seconds'] / 60:.1f} minutes on "
    f"{loaded.about['threads']} thread{'s' if loaded.about['threads'] > 1 else ''}."
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
# Multiply all rewards by 1000. Which tokens change, which plans?
# ```
#
# ````{solution-start} ex-own-scale
# :class: dropdown
# ````

# %%
richer = replace(episodes, rewards=1000 * episodes.rewards)
tokens = []
for version in (episodes, richer):
    rows_ = data.steps_table(version, transition, exp.bins.gamma, exp.bins.include_current)
    tokens.append(tokenizer.fit(rows_, transition, V, exp.bins.kind).bins(rows_, slice(None)))
print(f"{(tokens[0] != tokens[1]).double().mean():.2%} of all tokens differ")

# %% [markdown]
# None, but for rounding: $r$ and $R$ are stretched together with their bins. So the model is the same, the value of every plan is
# a thousandfold, and the best plan stays the best. It is otherwise with an *added* constant $c$: it puts
# up to $c / (1 - \gamma)$ into $R$, less near the end of an episode, and bins are spent on that.
#
# ````{solution-end}
# ````
#
# ```{exercise} Where does an episode end?
# :label: ex-own-ends
#
# Forget all timeouts but the last. Nothing is refused, since one long episode is allowed. At how many steps does $R$ change by
# more than the width of an average bin? What would change it at more of them?
# ```
#
# ````{solution-start} ex-own-ends
# :class: dropdown
# ````

# %%
joined = data.episodes(arrays | {"timeouts": np.arange(len(arrays["rewards"])) == len(arrays["rewards"]) - 1})
R = [data.reward_to_go(e.rewards, e.starts, exp.bins.gamma, exp.bins.include_current) for e in (episodes, joined)]
changed = np.abs(R[0] - R[1]) > (R[0].max() - R[0].min()) / V
print(f"{changed.mean():.0%} of steps, {changed.sum() / len(episodes):.0f} at the end of each episode")

# %% [markdown]
# Rewards of the *next* episode leak into the end of this one, as far back as the discount reaches: with a discount
# nearer to one, further. In a world with falls it would be far worse: the model would learn that a fall is followed by a fresh
# start.
#
# ````{solution-end}
# ````
