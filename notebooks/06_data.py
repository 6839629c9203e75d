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
# # The data
#
# **What this page shows.** Fifteen datasets of three robots replace those that the paper learns from. Our own policies
# made them on this machine, in the same format. Their returns are compared with those of D4RL's files.
#
# After this page you can
#
# - read any file in D4RL's format, with d4rl or with our reader, and say where each dataset of this book comes from;
# - judge a dataset by its returns, lengths and falls before any model sees it;
# - find out with which physics a file was recorded, and why scores depend on it;
# - turn the humanoid's 45 numbers back into a body in space.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import functools
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from ttlib import data
from ttlib.baselines.agents import FunctionAgent
from ttlib.datasets import arrays, hdf5, official, regenerated
from ttlib.drawing import figures
from ttlib.environments import bodies, policies, stepping, tasks
from ttlib.pipeline import experiments, keys, places, results, statistics, store
from ttlib.tokenizer import Transition

figures.style()
QUALITIES = tuple(regenerated.RECIPES["hopper"])
robots = [f"{task}-{quality}" for task in tasks.D4RL_TASKS for quality in QUALITIES]
names = [*robots, "humanoid-expert", "humanoid-reference"]
configs = {name: experiments.regenerated(*name.split("-", 1), size) for name in names}

# %% [markdown]
# ## One format
#
# All datasets are HDF5 files with the keys of D4RL {cite:p}`fu2020d4rl`: $n$ steps, one episode after the other.
#
# | key | shape | type | meaning |
# |---|---|---|---|
# | `observations` | $(n, N)$ | float32 | the state before the action |
# | `actions` | $(n, M)$ | float32 | the action, within its limits |
# | `rewards` | $(n,)$ | float32 | the reward for it |
# | `terminals` | $(n,)$ | bool | the environment ended the episode here: a fall |
# | `timeouts` | $(n,)$ | bool | the time limit or the recording ended the episode here |
# | `infos/qpos` | $(n, n_q)$ | float64 | positions of all joints and of the root (m, rad) |
# | `infos/qvel` | $(n, n_v)$ | float64 | velocities of all joints and of the root (m/s, rad/s) |
#
# A model learns from the first five. The last two are the whole state of the simulator. With them a step can be
# simulated again, and a body can be drawn. We write these types, and our reader accepts others too. It reads in chunks,
# so a file may be larger than the memory. [The tokens](01_tokens.py) shows what becomes of the numbers.
#
# ## Four sources
#
# - **Regenerated** files are the default. `make data` rolls out the policies in `data/policies` and needs no network.
#   The files are named like D4RL's but without its version, as in `hopper-medium`. They are not D4RL's data. All
#   results on this page come from them.
# - **Official** D4RL files have version `-v2`, as in `hopper-medium-v2`, and the licence CC BY 4.0. The paper names no
#   version, so `-v2` is our choice. The paper's *mixed* is their `medium-replay`.
# - **The humanoid** is no part of D4RL. Its files were made for the paper's Figures 1 and 2; see below.
# - **Your own** data are five arrays; see [the next page](07_your_own_data.py).
#
# ## An official task, opened as d4rl does it
#
# The package `d4rl` gives its tasks the class `OfflineEnv`: an environment of the old package `gym` that knows its
# dataset. Its simulator, `mujoco_py`, cannot be installed beside today's packages. `official.make` returns the same
# interface on today's simulator, with the physics of D4RL's time, and reads files with d4rl's own code.

# %%
d4rl, env = tasks.d4rl(), official.make("hopper-medium-v2")
original = d4rl.offline_env.OfflineEnv(env.dataset_url, 1.0, 0.0)
of_gym = dir(d4rl.offline_env.gym.Env)
interface = {name for name in dir(original) if name[0] != "_"} - set(of_gym)
print("shared: ", *sorted(name for name in interface if hasattr(env, name)))
print("missing:", *sorted(name for name in interface if not hasattr(env, name)))

# %% [markdown]
# The missing method is for files in several parts, which the files here are not. `env.get_dataset()` reads the official
# file from d4rl's folder or `data/d4rl`, or downloads it, and checks its size and sha256. Here d4rl and our reader read
# a small file of 500 steps instead, which needs no network:

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "small.hdf5"
    regenerated.regenerate(file, "hopper", "random", steps=500, seed=0)
    ours, theirs = hdf5.read(file), env.get_dataset(str(file))
    sequences = list(d4rl.sequence_dataset(env, h5path=str(file)))
    transitions = d4rl.qlearning_dataset(env, h5path=str(file))
episodes = arrays.episodes(ours)
assert ours.keys() == theirs.keys()
assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
spans = zip(episodes.starts[:-1], episodes.starts[1:], sequences, strict=True)
for start, end, sequence in spans:
    assert np.array_equal(episodes.states[start:end], sequence["observations"])
    assert np.array_equal(episodes.rewards[start:end], sequence["rewards"])
next_known = ~ours["timeouts"][:-1]  # d4rl leaves out the other steps
assert np.array_equal(episodes.states[:-1][next_known], transitions["observations"])
print("equal arrays:", *ours)
print(f"{len(episodes)} equal episodes, {next_known.sum()} equal transitions")

# %% [markdown]
# ## Who made what
#
# For each robot we saved snapshots of the policy during one training run. A dataset is made by rolling some of them
# out, with all the noise in their actions. `medium` has the snapshot whose return is nearest to that of D4RL's medium
# file, and `expert` has the last one. `medium-replay` has all snapshots up to medium, each for the same number of
# steps. `medium-expert` is half medium and half expert. D4RL's own `medium-replay` is the replay buffer of a training
# run, with all that the agent did on its way to medium.
#
# Episodes have at most 1000 steps. A halfcheetah cannot fall; its episodes are shorter only where a snapshot had used
# up its number of steps, which counts as a timeout. The table gives the training steps of the snapshots.

# %% tags=["hide-input"]
published = pd.read_csv(places.ROOT / "data" / "d4rl_returns.tsv", sep="\t").set_index("dataset")
published = published.rename(lambda name: name.removesuffix("-v2"))


def snapshots(task: str, quality: str) -> str:
    steps = regenerated.recipe(task, quality).snapshots
    if len(steps) > 2:
        return f"{len(steps)} from {steps[0]:,} to {steps[-1]:,}"
    return " and ".join(f"{step:,}" for step in steps) if any(steps) else "uniform actions"


pd.DataFrame({task: {quality: snapshots(task, quality) for quality in QUALITIES} for task in tasks.D4RL_TASKS})


# %% tags=["hide-input"]
def describe() -> pd.DataFrame:
    rows = []
    for name, config in configs.items():
        episodes, d4rl_file = store.dataset(config), published.reindex([name]).iloc[0]
        rows.append({
            "dataset": name, "source": config.source, "episodes": len(episodes), "steps": episodes.lengths.sum(),
            "mean": episodes.returns.mean(), "std": episodes.returns.std(), "max": episodes.returns.max(),
            "published_mean": d4rl_file["mean"], "published_std": d4rl_file["std"],
            "mean_length": episodes.lengths.mean(), "fell": episodes.terminal.mean(),
        })  # fmt: skip
    return pd.DataFrame(rows)


published_key = {"d4rl_returns.tsv": keys.file_key(places.ROOT / "data" / "d4rl_returns.tsv")}
table = store.table("datasets", size, describe, configs.values(), published_key, record=True).set_index("dataset")
table["ratio"] = table["mean"] / table.published_mean
columns = {"episodes": "episodes", "mean": "mean return", "std": "standard deviation", "published_mean": "D4RL's mean",
           "published_std": "D4RL's standard deviation", "ratio": "mean / D4RL's mean", "mean_length": "mean length",
           "fell": "falls"}  # fmt: skip
shown = table.loc[robots, list(columns)].rename(columns=columns).rename_axis(None)
form = dict.fromkeys(shown.columns, "{:,.0f}") | {"mean / D4RL's mean": "{:.2f}", "falls": "{:.0%}"}
shown.style.format(form, na_rep="not listed")

# %% [markdown]
# Returns are undiscounted sums of rewards, one for each episode. Lengths are in steps. `falls` is the percentage of
# episodes that end by a fall. D4RL's columns are computed from its files (`data/d4rl_returns.tsv`), and that list has
# no `medium-expert` file. Half of each such dataset comes from either parent, so the figure shows both parents.

# %% tags=["hide-input"]
def histograms() -> pd.DataFrame:
    rows = []
    for task in tasks.D4RL_TASKS:
        episodes = {f"{task}-{quality}": store.dataset(configs[f"{task}-{quality}"]) for quality in QUALITIES}
        returns = np.concatenate([part.returns for part in episodes.values()])
        for quantity, low, high in (("return", returns.min(), returns.max()), ("length", 0, tasks.MAX_STEPS)):
            edges = np.linspace(np.floor(low), np.ceil(high), BINS[quantity] + 1)
            for name, part in episodes.items():
                counts, _ = np.histogram(getattr(part, f"{quantity}s"), edges)
                columns = {"dataset": name, "quantity": quantity, "low": edges[:-1], "high": edges[1:], "count": counts}
                rows.append(pd.DataFrame(columns)[counts > 0])
    return pd.concat(rows)


BINS = {"return": 60, "length": 50}
counted = store.table("dataset_histograms", size, histograms, configs.values(), {"bins": BINS}, record=True)
counted[["task", "quality"]] = counted.dataset.str.split("-", n=1, expand=True).to_numpy()
episodes_each = counted.groupby(["dataset", "quantity"])["count"].transform("sum")
counted["percent"], counted["middle"] = 100 * counted["count"] / episodes_each, (counted.low + counted.high) / 2


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dataset-returns", "caption": "Returns of the episodes of each regenerated dataset (bars). The line is the mean of D4RL's file of that name, and the band one standard deviation to both sides. For medium-expert both parents are drawn."}, "image": {"alt": "Fifteen histograms, three robots side by side and five qualities one below the other. Returns move to the right from random to expert. Most bands overlap the bars, but the experts' bars are at the left edge of their bands or left of them."}}
def histogram(data: pd.DataFrame, color) -> None:
    task, quality = data[["task", "quality"]].iloc[0]
    every = returns[returns.task == task]
    width, span = (data.high - data.low).iloc[0], (every.low.min(), every.high.max())
    sns.histplot(data, x="middle", weights="percent", binwidth=width, binrange=span, alpha=1, linewidth=0)
    for parent in quality.split("-") if quality == "medium-expert" else [quality]:
        mean, std = published.loc[f"{task}-{parent}", ["mean", "std"]]
        plt.axvspan(mean - std, mean + std, color=figures.COLOURS["other"], alpha=0.25, lw=0, zorder=0)
        plt.axvline(mean, color=figures.COLOURS["other"], lw=1.2)


returns = counted[counted.quantity == "return"]
shape = {"sharex": "col", "sharey": False, "height": 1.15, "aspect": 2, "margin_titles": True}
grid = sns.FacetGrid(returns, row="quality", col="task", **shape)
grid.map_dataframe(histogram)
grid.set_titles(col_template="{col_name}", row_template="{row_name}").set_axis_labels("return", "")
grid.figure.supylabel("percentage of episodes", x=0)
grid.figure.suptitle(f"Returns, regenerated and published ({size})", y=1.02)
grid.figure.subplots_adjust(hspace=0.3)
results.save_figure(grid.figure, "dataset_returns", size)
plt.show()

# %% tags=["hide-input"]
judged = table.ratio[[f"{task}-{quality}" for task in tasks.D4RL_TASKS for quality in ("medium", "expert")]]
near, less = ((judged - 1).abs() <= 0.3).sum(), (table.ratio[[f"{task}-expert" for task in tasks.D4RL_TASKS]] < 1).sum()
Markdown(
    f"**In {near} of {len(judged)} medium and expert datasets, the mean return is within 30% of D4RL's.** "
    f"{less} of our {len(tasks.D4RL_TASKS)} experts earn less than D4RL's. Each is the last snapshot of a training run."
)

# %% [markdown]
# ## Two physics
#
# D4RL was recorded with MuJoCo {cite:p}`todorov2012mujoco` 2.1 or older. These versions computed the mass of a capsule
# as that of a cylinder. For a radius $r$, a length $L$ between the centres of the ends, and a density $\rho$,
#
# $$m_\text{modern} = \rho \pi r^2 \left(L + \tfrac{4}{3} r\right), \qquad m_\text{old} = \rho \pi r^2 (L + r).$$ (eq-data-mass)
#
# The old cylinder is longer by half a radius at each end. The hopper's four limbs have the density of water:

# %%
modern, old = (tasks.make("hopper", x).unwrapped.model for x in tasks.PHYSICS)
r, L = modern.geom_size[1:, 0], 2 * modern.geom_size[1:, 1]  # geom 0 is the floor
masses = {
    "capsule (kg)": 1000 * np.pi * r**2 * (L + 4 * r / 3),
    "modern (kg)": modern.body_mass[1:],
    "cylinder (kg)": 1000 * np.pi * r**2 * (L + r),
    "d4rl (kg)": old.body_mass[1:],
}
assert np.allclose(masses["capsule (kg)"], masses["modern (kg)"])
assert np.allclose(masses["cylinder (kg)"], masses["d4rl (kg)"])
limbs = [modern.body(i).name for i in range(1, modern.nbody)]
pd.DataFrame(masses, index=limbs).style.format("{:.4f}")

# %% [markdown]
# The inertias change with the masses. Contacts differ too: since MuJoCo 3.5 the margins of two bodies are added, and
# before it the larger one counted. `tasks.make(task, physics="d4rl")` restores all three. `physics="modern"` is MuJoCo
# as installed, and made the regenerated files.
#
# **The replay check.** `infos/qpos` and `infos/qvel` reveal with which physics a file was recorded. Put the simulator
# into a recorded state, take the recorded action, and compare with the next state in the file:


# %%
def replayed() -> pd.DataFrame:
    rows = []
    for config in mediums:
        recorded = hdf5.read(store.dataset_file(config))
        for physics in tasks.PHYSICS:
            gap = tasks.replay_error(config.task, recorded, physics)
            rows.append([config.name, physics, np.median(gap), gap.max(), len(gap)])
    columns = ["dataset", "physics", "median", "max", "steps"]
    return pd.DataFrame(rows, columns=columns)


mediums = [configs[f"{task}-medium"] for task in tasks.D4RL_TASKS]
replay = store.table("replay_check", size, replayed, mediums, record=True)
replay.style.hide(axis="index").format("{:.1e}", subset=["median", "max"])

# %% [markdown]
# The error of a step is the largest over all joints, in m, rad, m/s or rad/s. For an official file the check is
# `tasks.replay_error("hopper", env.get_dataset(), physics)`.
#
# Does a policy notice a few per cent of mass? Our experts, trained on modern physics, act from the same starts in both.


# %% tags=["hide-input"]
def expert_runs(task: str, physics: str) -> list[stepping.Rollout]:
    act, rng = policies.policy(task, last_snapshot[task]), np.random.default_rng(0)
    agent = FunctionAgent(lambda states, rows: act(states, rng))
    return stepping.rollouts(functools.partial(tasks.make, task, physics), agent, seeds)


def both_physics() -> pd.DataFrame:
    return pd.DataFrame(
        {"task": task, "snapshot": last_snapshot[task], "physics": physics, "rollout_seed": run.seed,
         "return": run.total, "score": tasks.score(task, run.total), "length": len(run.rewards),
         "fell": int(run.terminal)}
        for task in last_snapshot for physics in tasks.PHYSICS for run in expert_runs(task, physics)
    )  # fmt: skip


seeds = list(range(2 if size == "smoke" else 20))
last_snapshot = {task: regenerated.recipe(task, "expert").snapshots[0] for task in tasks.D4RL_TASKS}
experts = [configs[f"{task}-expert"] for task in tasks.D4RL_TASKS]
runs = store.table("dataset_physics", size, both_physics, experts, {"seeds": seeds}, record=True)

# %% tags=["hide-input"]
score = runs.pivot(index=["task", "rollout_seed"], columns="physics", values="score")
score["change"] = score.d4rl - score.modern
shown = score.groupby("task")[["modern", "d4rl", "change"]].mean().loc[list(tasks.D4RL_TASKS)]
shown[["90% interval from", "to"]] = [statistics.bootstrap(score.change[task]) for task in shown.index]
noticed = shown.index[(shown["90% interval from"] > 0) | (shown.to < 0)]
own, other = (replay[replay.physics == physics] for physics in tasks.PHYSICS)
display(Markdown(
    f"**Replayed in its own physics, no step of a file is off by more than {own['max'].max():.0e}. In the other "
    f"physics, half of all steps are off by more than {other['median'].min():.0e}.** The old physics changes the "
    f"expert's score by more than chance for {' and '.join(noticed) or 'no robot'}. The table gives mean scores "
    f"over {len(seeds)} starts, and a 90% bootstrap interval of the change."
))  # fmt: skip
shown.rename_axis(None).style.format("{:.1f}")

# %% [markdown]
# D4RL's score of a return is $100\,(\text{return} - \text{random}) / (\text{expert} - \text{random})$. Both constants
# were measured with the old physics, so a score with modern physics is only approximately comparable. Models of
# official files are evaluated with the physics of those files.
#
# The version of the task matters more. This book uses `Hopper-v4`, `Walker2d-v4` and `HalfCheetah-v4` of gymnasium
# {cite:p}`towers2024gymnasium`, with the rewards, ends and friction of D4RL's tasks. `Walker2d-v5` is another task: one
# of its feet has another friction. Like `Hopper-v5`, it also pays no reward for being upright on the step that ends in
# a fall.
#
# ## The humanoid
#
# Figures 1 and 2 of the paper predict a humanoid. Its state here has 45 numbers: the joint positions without the
# root's $x$ and $y$, then all velocities (`qpos[2:]` and `qvel`). No model sees *where* the humanoid is. To draw it, we
# integrate the velocity of the root by the trapezoid rule,
#
# $$x_{t+1} = x_t + \tfrac{\Delta t}{2} \, (\dot x_t + \dot x_{t+1}), \qquad \Delta t = 0.015\ \text{s}.$$ (eq-data-trapezoid)
#
# There are two files, and one stochastic expert of ours acts in both. `humanoid-expert` is for training. Its episodes
# have 200 steps and random starts, because predictions begin at a start. `humanoid-reference` is what predictions are
# compared with. Its trajectories of 101 states all begin in one state, and only the noise in the actions differs.


# %% tags=["hide-input"]
def recovered() -> pd.DataFrame:
    recorded, paths = hdf5.read(store.dataset_file(reference)), []
    episodes = arrays.episodes(recorded)
    for i in range(several):
        rows = slice(episodes.starts[i], episodes.starts[i + 1])
        truth = recorded["infos/qpos"][rows]
        paths.append((truth, bodies.pose("humanoid", episodes.states[rows], root=truth[0, :2])))
    errors = pd.DataFrame([1000 * np.linalg.norm((pose - truth)[:, :2], axis=1) for truth, pose in paths])
    truth, pose = paths[0]
    columns = {"t": range(len(truth)), "x_true": truth[:, 0], "y_true": truth[:, 1]}
    columns |= {"error_mm": errors.loc[0], "largest_mm": errors.max()} | {f"q{i}": q for i, q in enumerate(pose.T)}
    return pd.DataFrame(columns).dropna()


def spread() -> pd.DataFrame:
    recorded = hdf5.read(store.dataset_file(reference))
    t = np.concatenate([np.arange(length) for length in arrays.episodes(recorded).lengths])
    roots = pd.DataFrame(recorded["infos/qpos"][:, :2], columns=["x", "y"]).groupby(t)
    quantiles = {f"{axis}_{q}": roots[axis].quantile(q / 100) for axis in "xy" for q in (5, 50, 95)}
    return pd.DataFrame({"t": range(len(roots)), "alive": roots.size(), **quantiles})


reference, several = configs["humanoid-reference"], 8 if size == "smoke" else 20
recovery = store.table("humanoid_pose", size, recovered, [reference], {"references": several}, record=True)
fan = store.table("humanoid_pose_spread", size, spread, [reference], record=True)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dataset-root", "caption": "Left: the place of the root over all references; the line is the median, and nine tenths lie in the band. Right: the distance of the integrated path from the true one, for the first reference and at most over several. Below: poses of the first reference, set side by side."}, "image": {"alt": "Left: two bands that start as a point and widen over 1.5 seconds. Right: two lines of error that stay within some millimetres. Below: nine poses of a humanoid that drops a little, leans forward and shuffles ahead."}}
figure, panels = plt.subplot_mosaic([["root", "error"], ["strip", "strip"]], figsize=(7, 4.4), layout="constrained")
root = fan.assign(seconds=0.015 * fan.t).melt(["seconds", "t", "alive"])
root["axis"] = root.variable.str[0].map({"x": "forward (x)", "y": "sideways (y)"})
band = {"estimator": "median", "errorbar": ("pi", 100)}  # of the quantiles 5%, 50% and 95%
sns.lineplot(root, x="seconds", y="value", hue="axis", ax=panels["root"], **band).legend(loc="upper left")
panels["root"].set(xlabel="time (s)", ylabel="root (m)", title=f"{fan.alive[0]} references, one start")
names = {"error_mm": "first reference", "largest_mm": f"largest of {several}"}
errors = recovery.set_index(0.015 * recovery.t)[list(names)].rename(columns=names)
sns.lineplot(errors, ax=panels["error"]).legend(loc="upper left")
panels["error"].set(xlabel="time (s)", ylabel="error of the root (mm)", ylim=(0, None), title="Path from 45 numbers")
some = recovery.iloc[:: (len(recovery) - 1) // 8 or 1]
ends, radii, _ = bodies.capsules("humanoid", some.filter(regex=r"q\d").to_numpy())
at = figures.strip(panels["strip"], ends, radii, figures.COLOURS["transformer"], spacing=1.0)
panels["strip"].set_xticks(at, [f"{0.015 * t:.2f}" for t in some.t])
panels["strip"].set(xlabel="time (s)", title="The first reference, drawn from its states")
figure.suptitle(f"Where the humanoid is ({size})")
results.save_figure(figure, "humanoid_pose", size)
plt.show()

# %% tags=["hide-input"]
end, expert = fan.iloc[-1], table.loc["humanoid-expert"]
standing = "all" if end.alive == fan.alive[0] else f"{end.alive:.0f}"
Markdown(
    f"**Over {len(recovery) - 1} steps the integrated path stays within {recovery.largest_mm.max():.1f} mm of the true "
    f"one, in all of {several} references.** `humanoid-expert` has {expert.episodes:,} episodes, and {expert.fell:.1%} "
    f"of them end in a fall. Of the {fan.alive[0]} references {standing} are on their feet at the end. Nine tenths of "
    f"those are then {end.x_5:.2f} to {end.x_95:.2f} m ahead and {end.y_5:.2f} to {end.y_95:.2f} m to the left. The "
    f"noise in the actions alone causes this spread, and it limits how sharply any model can predict."
)

# %% [markdown]
# For Figure 2, right, the humanoid is only partially observed: each dimension of each state is masked with a
# probability of one half, at every step. The acting policy sees everything. The model reads a special token for a
# masked value, and never predicts it.
#
# ## Exercises
#
# ```{exercise} Scores of the data
# :label: data-scores
#
# Compute D4RL's score of the mean return of every dataset. Which score does a method reach that imitates
# `medium-expert` perfectly?
# ```
#
# ````{solution-start} data-scores
# :class: dropdown
# ````

# %%
mean = table["mean"]
scores = {
    task: [tasks.score(task, mean[f"{task}-{quality}"]) for quality in QUALITIES]
    for task in tasks.D4RL_TASKS
}
pd.DataFrame(scores, index=QUALITIES).style.format("{:.1f}")

# %% [markdown]
# The row `medium-expert` is the answer, because imitation reproduces the mix of both policies. The mean is taken over
# episodes. A policy that falls early fills its half of the steps with many short episodes, and so pulls the mean down.
# Only a method that selects can reach the row `expert`.
#
# ````{solution-end}
# ````
#
# ```{exercise} Ends that are lost
# :label: data-timeouts
#
# An episode has five steps with reward 1 and is ended by the clock. Five more steps follow, ended by a fall. What is
# the reward-to-go ($\gamma = 0.9$) if the file has lost its `timeouts`? And what if timeouts are taken for falls, and a
# fall has a reward of -100?
# ```
#
# ````{solution-start} data-timeouts
# :class: dropdown
# ````

# %%
clock, fall, never = (np.arange(10) == step for step in (4, 9, -1))
zeros = np.zeros((10, 1))
variants = {
    "right": (fall, clock, None),
    "timeouts lost": (fall, never, None),
    "right, -100 for a fall": (fall, clock, -100),
    "timeouts taken for falls, -100 for a fall": (fall | clock, never, -100),
}
rows = {}
for name, (terminals, timeouts, reward) in variants.items():
    columns = [zeros, zeros, np.ones(10), terminals, timeouts]
    toy = arrays.episodes(dict(zip(arrays.KEYS, columns)))
    steps = data.steps(toy, Transition(1, 1), gamma=0.9, terminal_reward=reward)
    rows[name] = steps[:][:, -1].numpy()
pd.DataFrame(rows).T.style.format("{:.1f}")

# %% [markdown]
# Without its `timeouts`, the first episode collects rewards of the second, and learns of a fall that happens in
# another episode. Timeouts that are taken for falls turn every step before the time limit into a step before a fall.
# In the halfcheetah's files nobody falls, so every end would become one. [The tokens page](01_tokens.py) measures the
# effect on hopper.
#
# ````{solution-end}
# ````
#
# ```{exercise} Which physics?
# :label: data-physics
#
# A colleague rolls out the medium walker with one of the two physics and does not say which. Find out.
# ```
#
# ````{solution-start} data-physics
# :class: dropdown
# ````

# %%
secret = tasks.PHYSICS[np.random.default_rng(3).integers(2)]
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "walker.hdf5"
    regenerated.regenerate(file, "walker2d", "medium", 2000, seed=7, physics=secret)
    recorded = hdf5.read(file)
for physics in tasks.PHYSICS:
    error = np.median(tasks.replay_error("walker2d", recorded, physics))
    print(f"median error with the physics {physics}: {error:.1e}")
print(f"the truth is {secret}")

# %% [markdown]
# One step is enough, because both simulators start it in the same state. Over a whole episode any two simulations
# drift apart, and no error would be small.
#
# ````{solution-end}
# ````
