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
# **Claim.** Fifteen datasets of three robots, made on this machine by policies of ours, stand in for those the paper
# learns from: same format, same kinds of behaviour, returns close to the published ones. Where they are not close,
# this page says so.
#
# After this page you can
#
# - read any file of D4RL's format, and say where each dataset of this book comes from;
# - judge a dataset by its returns, lengths and poses before any model sees it;
# - find out with which physics a file was recorded, and why scores depend on it;
# - turn the humanoid's 45 numbers back into a body in space.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import functools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from ttlib import control, data
from ttlib.datasets import hdf5, regenerated
from ttlib.drawing import figures
from ttlib.environments import tasks
from ttlib.environments.bodies import capsules, pose
from ttlib.environments.policies import policy
from ttlib.pipeline import experiments, keys, places, results, statistics, store
from ttlib.tokenizer import Transition

QUALITIES = tuple(regenerated.RECIPES["hopper"])
used = ["humanoid-expert", "humanoid-reference", *(f"{task}-{quality}" for task in tasks.D4RL_TASKS for quality in QUALITIES)]
configs = {c.name: c for c in experiments.datasets(size) if c.name in used}


def made_from(*names: str, **more) -> dict:
    """What a table says of its parents: the datasets it is computed from, their keys, and what else decides it."""
    chosen = {name: configs[name] for name in names}
    return {"config": {"datasets": chosen, **more}, "inputs": {name: store.data_key(c) for name, c in chosen.items()}}


# %% [markdown]
# ## One format
#
# All datasets are HDF5 files with the keys of D4RL {cite:p}`fu2020d4rl`: the steps of all episodes one after the
# other, $n$ in all.
#
# | key | shape | type | meaning |
# |---|---|---|---|
# | `observations` | $(n, N)$ | float32 | the state before the action |
# | `actions` | $(n, M)$ | float32 | the action, within its limits |
# | `rewards` | $(n,)$ | float32 | what it gave |
# | `terminals` | $(n,)$ | bool | the environment ended the episode here: a fall |
# | `timeouts` | $(n,)$ | bool | the time limit, or the recording, ended it here |
# | `infos/qpos` | $(n, n_q)$ | float64 | positions of all joints, the root's place included (m, rad) |
# | `infos/qvel` | $(n, n_v)$ | float64 | velocities of all joints (m/s, rad/s) |
#
# The first five are what a model learns from. The last two are the simulator's whole state: with them a step can be
# simulated again, and a body drawn. The types are those that we write; others are read too.
#
# ## Four sources
#
# - **Regenerated**, the default: `make data` rolls out policies kept in `data/policies`, no network needed. These
#   files are named like D4RL's but without its version, `hopper-medium`, and they are not D4RL's data.
# - **Official** D4RL files, version `-v2`: `official.fetch("hopper-medium-v2")` of `ttlib/datasets/official.py` finds the file in
#   `D4RL_DATASET_DIR` or else `~/.d4rl/datasets`, or in `data/d4rl/`, or downloads it, and checks size and sha256. They are
#   licensed CC BY 4.0. The paper names no version; `-v2` is our choice. Its `mixed` is their `medium-replay`.
# - **The humanoid**, further down: no part of D4RL; made for the paper's Figures 1 and 2.
# - **Your own**: five arrays are enough, see [the next page](07_your_own_data.py).
#
# This page shows the regenerated files alone, so that it says the same on every machine.
#
# ## Who made what
#
# For each robot one training run was recorded in snapshots, and a dataset is made by rolling out some of them, with
# all the noise that they act with: `medium` by the one whose return is nearest to that of D4RL's medium file,
# `expert` by the last, `medium-replay` by all snapshots up to medium in equal shares, `random` by uniform actions.

# %% tags=["hide-input"]
published = pd.read_csv(places.ROOT / "data" / "d4rl_returns.tsv", sep="\t").set_index("dataset")
published.index = published.index.str.removesuffix("-v2")


def policies(task: str, quality: str) -> str:
    """The training steps at which the snapshots behind a dataset were taken."""
    steps = regenerated.recipe(task, quality).snapshots
    if len(steps) > 2:
        return f"{len(steps)} from {steps[0]:,} to {steps[-1]:,}"
    return " and ".join(f"{step:,}" for step in steps) if any(steps) else "uniform actions"


pd.DataFrame({task: {q: policies(task, q) for q in QUALITIES} for task in tasks.D4RL_TASKS})

# %% [markdown]
# The numbers are training steps. D4RL's own `medium-replay` is something else: the replay buffer of a training run,
# with everything the agent did on its way to medium. Episodes have at most 1000 steps. The halfcheetah cannot fall: its
# episodes are shorter only where a snapshot's share of the steps was used up, which counts as a timeout.
#
# Each file is read once; all that is shown of it comes from this:


# %%
SPAN = 1.4  # seconds over which poses are spread


@functools.cache
def survey(name: str) -> dict:
    """Returns, lengths and ends of the episodes (E,), and eight poses of the one of median return."""
    c = configs[name]
    arrays = hdf5.read(store.dataset_file(c))
    e = data.episodes(arrays, store.ACTION_RANGE)
    env = tasks.make(c.task)
    dt = env.unwrapped.dt
    env.close()
    middle = np.argsort(e.returns, kind="stable")[len(e) // 2]
    steps = np.linspace(0, min(SPAN / dt, e.lengths[middle] - 1), 8).astype(int)
    qpos = arrays["infos/qpos"][e.starts[middle] + steps]
    poses = pd.DataFrame(qpos, columns=[f"q{i}" for i in range(qpos.shape[1])])
    poses = poses.assign(t=steps, total=e.returns[middle], length=e.lengths[middle])
    poses = poses.rename_axis("pose").reset_index()
    return {"returns": e.returns, "lengths": e.lengths, "terminal": e.terminal, "poses": poses}


# %%
def describe() -> pd.DataFrame:
    rows = []
    for name, c in configs.items():
        found, d4rl = survey(name), published.reindex([name]).iloc[0]
        rows.append({
            "dataset": name, "source": c.source, "episodes": len(found["returns"]), "steps": found["lengths"].sum(),
            "mean": found["returns"].mean(), "std": found["returns"].std(), "max": found["returns"].max(),
            "published_mean": d4rl["mean"], "published_std": d4rl["std"],
            "mean_length": found["lengths"].mean(), "fell": found["terminal"].mean(),
        })  # fmt: skip
    return pd.DataFrame(rows)


parents = made_from(*configs)
parents["inputs"]["d4rl_returns.tsv"] = keys.file_key(places.ROOT / "data" / "d4rl_returns.tsv")
table = results.table("datasets", size, describe, **parents)

# %% tags=["hide-input"]
shown = table[table.dataset.str.split("-").str[0].isin(tasks.D4RL_TASKS)].drop(columns=["source", "steps"])
shown = shown.rename(columns={"published_mean": "D4RL's mean", "published_std": "D4RL's std", "mean_length": "mean length"})
numbers = ["mean", "std", "max", "D4RL's mean", "D4RL's std", "mean length"]
shown.style.hide(axis="index").format(dict.fromkeys(numbers, "{:.0f}") | {"fell": "{:.0%}", "episodes": "{:,}"}, na_rep="")

# %% [markdown]
# Mean, deviation and maximum are of the episodes' returns, undiscounted; `fell` is the share of episodes that ended by
# a fall. D4RL's columns are computed from its files (`data/d4rl_returns.tsv`). That list has no `medium-expert` file:
# half of each such dataset comes from either parent, so its picture below shows what both have published.

# %% tags=["hide-input"]
BINS = {"return": 60, "length": 50}


def histograms() -> pd.DataFrame:
    rows = []
    for task in tasks.D4RL_TASKS:
        names = [f"{task}-{quality}" for quality in QUALITIES]
        returns = np.concatenate([survey(name)["returns"] for name in names])
        for quantity, low, high in (("return", returns.min(), returns.max()), ("length", 0, tasks.MAX_STEPS)):
            edges = np.linspace(np.floor(low), np.ceil(high), BINS[quantity] + 1)
            for name in names:
                counts, _ = np.histogram(survey(name)[f"{quantity}s"], edges)
                columns = {"dataset": name, "quantity": quantity, "low": edges[:-1], "high": edges[1:], "count": counts}
                rows.append(pd.DataFrame(columns)[counts > 0])
    return pd.concat(rows)


counted = results.table("dataset_histograms", size, histograms, **made_from(*configs, bins=BINS))


# %% tags=["hide-input"]
def panels(quantity: str, mark) -> plt.Figure:
    """Tasks side by side, qualities one below the other; mark(axes, dataset) adds what else is known of a dataset."""
    figure, grid = plt.subplots(len(QUALITIES), 3, figsize=(9, 7), sharex="col", layout="constrained")
    for (i, j), axes in np.ndenumerate(grid):
        name = f"{tasks.D4RL_TASKS[j]}-{QUALITIES[i]}"
        bars = counted[(counted.dataset == name) & (counted.quantity == quantity)]
        share = 100 * bars["count"] / bars["count"].sum()
        axes.bar(bars.low, share, bars.high - bars.low, align="edge", color=figures.COLOURS["transformer"], label="regenerated")
        mark(axes, name)
        axes.set(ylim=(0, 1.12 * share.max()), title=tasks.D4RL_TASKS[j] if i == 0 else None)
        axes.set_ylabel(QUALITIES[i] if j == 0 else None)
        axes.locator_params(axis="y", nbins=3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[1].legend(frameon=False, loc="upper right", fontsize="small")
    figure.supylabel("share of episodes (%)", fontsize="medium")
    return figure


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dataset-returns", "caption": "Returns of the episodes of each regenerated dataset (bars), beside the mean (line) and one standard deviation to both sides (band) of D4RL's file of that name. For medium-expert both parents' are drawn."}, "image": {"alt": "Fifteen histograms, three robots side by side and five qualities one below the other. Returns move to the right from random to expert; most published bands overlap the bars, but the experts' bars stand at the left edge of their bands or left of them."}}
def published_band(axes, name: str) -> None:
    task, quality = name.split("-", 1)
    for parent in quality.split("-") if quality == "medium-expert" else [quality]:
        mean, std = published.loc[f"{task}-{parent}", ["mean", "std"]]
        colour = figures.COLOURS["other"]
        axes.axvspan(mean - std, mean + std, color=colour, alpha=0.25, lw=0, zorder=0, label="D4RL, std. deviation")
        axes.axvline(mean, color=colour, lw=1.2, label="D4RL, mean")


figure = panels("return", published_band)
figure.supxlabel("return", fontsize="medium")
figure.suptitle(f"Returns, regenerated and published ({size})")
results.save_figure(figure, "dataset_returns", size)
plt.show()

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dataset-lengths", "caption": "Lengths of the episodes of each regenerated dataset; the line is the mean. What stands at 1000 was ended by the time limit."}, "image": {"alt": "Fifteen histograms of episode lengths. Random hoppers and walkers fall within some dozens of steps, experts and all halfcheetahs last for 1000."}}
means = table.set_index("dataset").mean_length
figure = panels("length", lambda axes, name: axes.axvline(means[name], color=figures.COLOURS["other"], lw=1.5, label="mean"))
for axes in figure.axes:
    axes.set_xlim(0, 1.03 * tasks.MAX_STEPS)
figure.supxlabel("length (steps)", fontsize="medium")
figure.suptitle(f"Lengths of the regenerated episodes ({size})")
results.save_figure(figure, "dataset_lengths", size)
plt.show()


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dataset-poses", "caption": "The beginning of each dataset's episode of median return: eight poses, equally spaced within 1.4 s, set side by side, or within the whole episode where that is shorter."}, "image": {"alt": "Fifteen rows of eight small bodies: hoppers, two-legged walkers and halfcheetahs that crumple, stumble or run."}}
def all_poses() -> pd.DataFrame:
    return pd.concat(survey(f"{t}-{q}")["poses"].assign(dataset=f"{t}-{q}") for t in tasks.D4RL_TASKS for q in QUALITIES)


poses = results.table("dataset_poses", size, all_poses, **made_from(*configs, seconds=SPAN))
figure, grid = plt.subplots(len(QUALITIES), 3, figsize=(12, 7), layout="constrained")
for j, (task, spacing) in enumerate({"hopper": 1.1, "walker2d": 1.2, "halfcheetah": 1.5}.items()):
    for axes, quality in zip(grid[:, j], QUALITIES):
        rows = poses[poses.dataset == f"{task}-{quality}"]
        qpos = rows.filter(regex=r"q\d").dropna(axis="columns").to_numpy()
        ends, radii, _ = capsules(task, qpos)
        figures.strip(axes, ends, radii, figures.COLOURS["transformer"], spacing)
        for bodies in axes.collections:
            bodies.set_rasterized(True)  # thousands of outlines
        end = rows.iloc[-1]
        axes.set(xticks=[])
        axes.set_title(f"{end.dataset}: first {end.t + 1} of {end.length} steps, return {end.total:.0f}", fontsize="small")
figure.suptitle(f"Poses from the regenerated datasets ({size})")
results.save_figure(figure, "dataset_poses", size)
plt.show()

# %% [markdown]
# What we saw:

# %% tags=["hide-input"]
ratio = (table["mean"] / table.published_mean).set_axis(table.dataset)
judged = ratio[[f"{task}-{quality}" for quality in ("medium", "expert") for task in tasks.D4RL_TASKS]]
near = (judged - 1).abs() <= 0.3


def listed(part: pd.Series) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in part.items()) or "none"


last = {task: regenerated.recipe(task, "expert").snapshots[0] for task in tasks.D4RL_TASKS}
ours = table.set_index("dataset")
short = ", ".join(
    f"{task}'s, taken at {step:,} steps, has {ours['mean'][f'{task}-expert']:,.0f} of {published['mean'][f'{task}-expert']:,.0f}"
    + (f" and falls in {fell:.0%} of its episodes" if (fell := ours.fell[f"{task}-expert"]) else "")
    for task, step in last.items()
)
Markdown(
    f"Mean return over the published one: {listed(judged[near])} lie within 30%; outside: {listed(judged[~near])}. Our "
    f"experts are the last snapshots of training runs that stopped short of the published returns: {short}. As for "
    f"medium-replay, made in another way, the quotients are {listed(ratio[[f'{task}-medium-replay' for task in tasks.D4RL_TASKS]])}."
)

# %% [markdown]
# ## Two physics
#
# D4RL was recorded with MuJoCo {cite:p}`todorov2012mujoco` 2.1 or older, which took a capsule for a cylinder when it
# computed masses. Of radius $r$, length $L$ between the ends' centres and density $\rho$, a capsule has the mass
#
# $$m_\text{modern} = \rho \pi r^2 \left(L + \tfrac{4}{3} r\right), \qquad m_\text{old} = \rho \pi r^2 (L + r),$$ (eq-data-mass)
#
# the second being a cylinder that is longer by half a radius at each end. Hopper's four limbs have water's density:

# %%
modern, old = (tasks.make("hopper", physics).unwrapped.model for physics in tasks.PHYSICS)
r, L, rho = modern.geom_size[1:, 0], 2 * modern.geom_size[1:, 1], 1000.0  # geom 0 is the floor
columns = {
    "r (m)": r,
    "L (m)": L,
    "capsule (kg)": rho * np.pi * r**2 * (L + 4 * r / 3),
    "modern (kg)": modern.body_mass[1:],
    "cylinder (kg)": rho * np.pi * r**2 * (L + r),
    "d4rl (kg)": old.body_mass[1:],
}
assert np.allclose(columns["capsule (kg)"], columns["modern (kg)"]) and np.allclose(columns["cylinder (kg)"], columns["d4rl (kg)"])
masses = pd.DataFrame(columns, index=[modern.body(i).name for i in range(1, modern.nbody)])
masses.style.format("{:.4f}").format("{:.3f}", subset=["r (m)", "L (m)"])

# %% [markdown]
# Inertias change with the masses, and since MuJoCo 3.5 the margins within which contacts act are added up where the
# larger of two used to count. `envs.make(task, physics="d4rl")` restores all three; `physics="modern"` is MuJoCo as
# installed, which made the regenerated files.
#
# **The replay check.** A file with `infos/qpos` and `infos/qvel` betrays its physics. Put the simulator into a recorded
# state, take the recorded action, and compare with the state that follows in the file:


# %%
def replayed() -> pd.DataFrame:
    rows = []
    for task in tasks.D4RL_TASKS:
        arrays = hdf5.read(store.dataset_file(configs[f"{task}-medium"]))
        for physics in tasks.PHYSICS:
            error = tasks.replay_error(task, arrays, physics)
            rows.append({"dataset": f"{task}-medium", "physics": physics, "median": np.median(error), "max": error.max(),
                         "steps": len(error)})  # fmt: skip
    return pd.DataFrame(rows)


replay = results.table("replay_check", size, replayed, **made_from(*(f"{task}-medium" for task in tasks.D4RL_TASKS)))
replay.style.hide(axis="index").format({"median": "{:.1e}", "max": "{:.1e}"})

# %% [markdown]
# The error of a step is the largest over all joints, in m, rad, m/s or rad/s. For an official file the same two lines
# are `arrays = data.read(official.fetch("hopper-medium-v2"))` and `envs.replay_error("hopper", arrays, physics)`.
#
# Does a policy notice a few per cent of mass? Here are our experts, trained on modern physics, from the same starts in
# both:


# %%
def both_physics() -> pd.DataFrame:
    rows = []
    for task, step in last.items():
        for physics in tasks.PHYSICS:
            act, rng = policy(task, step), np.random.default_rng(0)
            agent = control.FunctionAgent(lambda states, _, act=act, rng=rng: act(states, rng), len(seeds))
            runs = control.rollouts(functools.partial(tasks.make, task, physics), agent, seeds)
            rows += [{"task": task, "snapshot": step, "physics": physics, "rollout_seed": run.seed, "return": run.total,
                      "score": tasks.score(task, run.total), "length": len(run.rewards), "fell": int(run.terminal)}
                     for run in runs]  # fmt: skip
    return pd.DataFrame(rows)


seeds = list(range(2 if size == "smoke" else 20))
experts = {task: store.policy_keys(task, "expert")[0] for task in last}
runs = results.table("dataset_physics", size, both_physics, {"snapshots": last, "seeds": seeds}, experts)
summary = runs.groupby(["task", "physics"], sort=False).agg(
    n=("fell", "size"), mean=("return", "mean"), std=("return", "std"), fell=("fell", "mean"), score=("score", "mean")
)
summary.style.format({"mean": "{:.0f}", "std": "{:.0f}", "score": "{:.1f}", "fell": "{:.0%}"})

# %% tags=["hide-input"]
wide = runs.pivot(index=["task", "rollout_seed"], columns="physics", values="score")
differences = []
for task in last:
    gain = (wide.d4rl - wide.modern)[task]
    low, high = statistics.bootstrap(gain)
    verdict = "more than" if low > 0 or high < 0 else "no more than"
    differences.append(f"{task} {gain.mean():+.1f} [{low:+.1f}, {high:+.1f}], {verdict} noise")
own, other = (replay[replay.physics == physics] for physics in tasks.PHYSICS)
Markdown(
    f"What we saw: no step of a modern file is off by more than {own['max'].max():.0e} in its own physics; replayed in the "
    f"other, half of all steps are off by more than {other['median'].min():.0e}, whatever the robot. From modern to old physics our experts' scores "
    f"change by (mean over {len(seeds)} starts, 90% bootstrap interval): {'; '.join(differences)}."
)

# %% [markdown]
# D4RL's score of a return is $100\,(\text{return} - \text{random}) / (\text{expert} - \text{random})$, and both constants
# were measured on the old physics. So a score on modern physics is close to one on the old, and not exactly
# comparable. What is learned from official files is evaluated with the physics of those files.
#
# The version of the task matters more. This book uses `Hopper-v4`, `Walker2d-v4` and `HalfCheetah-v4` of gymnasium
# {cite:p}`towers2024gymnasium`, whose rewards, ends and friction are those of D4RL's tasks. `Walker2d-v5` is another task:
# one of its feet has another friction, so the same actions lead elsewhere within a few steps, and like `Hopper-v5` it no
# longer pays the reward for being upright on the step that ends in a fall.
#
# ## The humanoid
#
# Figures 1 and 2 of the paper predict a humanoid. Its state here is 45 numbers: the positions of its joints without the
# root's $x$ and $y$, then all velocities (`qpos[2:]` and `qvel`). No model sees *where* the humanoid is. To draw it, the
# root's path is integrated from its velocity by the trapezoid rule,
#
# $$x_{t+1} = x_t + \tfrac{\Delta t}{2} \, (\dot x_t + \dot x_{t+1}), \qquad \Delta t = 0.015\ \text{s}.$$ (eq-data-trapezoid)
#
# There are two files. `humanoid-expert`, for training: episodes of 200 steps from random starts, because what is
# predicted begins at a start. `humanoid-reference`, to judge by: trajectories of 101 states, all from one and the same
# start, different only by the noise in the policy's actions. In both the policy is one stochastic expert of ours.


# %%
def recovered() -> pd.DataFrame:
    """The first reference, poses from its states alone; errors of the root, mm, of it and at most in `several`."""
    arrays = hdf5.read(store.dataset_file(configs["humanoid-reference"]))
    e, paths = data.episodes(arrays), []
    for i in range(several):
        rows = slice(e.starts[i], e.starts[i + 1])
        truth = arrays["infos/qpos"][rows]
        paths.append((truth, pose("humanoid", e.states[rows], root=truth[0, :2])))
    errors = pd.DataFrame([1000 * np.linalg.norm((found - truth)[:, :2], axis=1) for truth, found in paths])
    truth, found = paths[0]
    columns = {"t": range(len(truth)), "x_true": truth[:, 0], "y_true": truth[:, 1]}
    columns |= {"error_mm": errors.loc[0], "largest_mm": errors.max()} | {f"q{i}": q for i, q in enumerate(found.T)}
    return pd.DataFrame(columns).dropna()


several = 8 if size == "smoke" else 20
recovery = results.table("humanoid_pose", size, recovered, **made_from("humanoid-reference", references=several))


# %%
def spread() -> pd.DataFrame:
    """Root of all references over time, metres: the middle and where nine tenths lie."""
    arrays = hdf5.read(store.dataset_file(configs["humanoid-reference"]))
    t = np.concatenate([np.arange(length) for length in data.episodes(arrays).lengths])
    roots = pd.DataFrame(arrays["infos/qpos"][:, :2], columns=["x", "y"]).groupby(t)
    found = {f"{axis}_{q}": roots[axis].quantile(q / 100) for axis in "xy" for q in (5, 50, 95)}
    return pd.DataFrame({"t": range(len(roots)), "alive": roots.size(), **found})


fan = results.table("humanoid_pose_spread", size, spread, **made_from("humanoid-reference"))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dataset-root", "caption": "Left: the root's place over the references, middle and the range of nine tenths of them. Right: how far the integrated path of the root is from the true one, of the first reference and at most over several."}, "image": {"alt": "Left: two bands that start as a point and widen over 1.5 seconds. Right: two lines of error that stay within some millimetres."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
seconds = 0.015 * fan.t
for axis, label, colour in (("x", "forward (x)", "transformer"), ("y", "sideways (y)", "other")):
    left.fill_between(seconds, fan[f"{axis}_5"], fan[f"{axis}_95"], color=figures.COLOURS[colour], alpha=0.3, lw=0)
    left.plot(seconds, fan[f"{axis}_50"], color=figures.COLOURS[colour], label=label)
left.set(xlabel="time (s)", ylabel="root (m)", title=f"{fan.alive[0]} references, one start")
right.plot(0.015 * recovery.t, recovery.error_mm, color=figures.COLOURS["transformer"], label="first reference")
right.plot(0.015 * recovery.t, recovery.largest_mm, "--", color=figures.COLOURS["data"], label=f"largest of {several}")
right.set(xlabel="time (s)", ylabel="error of the root (mm)", title="Path recovered from 45 numbers", ylim=(0, None))
for axes in (left, right):
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
figure.suptitle(f"Where the humanoid is ({size})")
results.save_figure(figure, "humanoid_pose", size)
plt.show()

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dataset-humanoid", "caption": "The first reference, drawn from its states alone; poses are set side by side."}, "image": {"alt": "Nine poses of a humanoid that drops a little, leans forward and shuffles ahead."}}
figure, axes = plt.subplots(figsize=(9, 2.7))
some = recovery.iloc[:: (len(recovery) - 1) // 8 or 1]
ends, radii, _ = capsules("humanoid", some.filter(regex=r"q\d").to_numpy())
at = figures.strip(axes, ends, radii, figures.COLOURS["transformer"], spacing=1.0)
axes.set_xticks(at, [f"{0.015 * t:.2f}" for t in some.t])
axes.set(xlabel="time (s)", title=f"Humanoid, recovered ({size})")
for bodies in axes.collections:
    bodies.set_rasterized(True)
results.save_figure(figure, "humanoid_poses", size)
plt.show()

# %% [markdown]
# ### Half of it hidden
#
# For Figure 2, right, the humanoid is observed in part: each dimension of each state is hidden with probability one
# half, drawn anew for every step. The policy that acts has seen everything. A hidden value is a token of its own, read
# but never predicted.


# %%
def window() -> pd.DataFrame:
    """The first transitions of a training window, in standard deviations of each dimension."""
    e = store.dataset(masked.data)
    first = slice(e.starts[0], e.starts[0] + 16)
    states = (e.states[first] - e.states.mean(0)) / np.maximum(e.states.std(0), 1e-6)
    t, dimension = np.indices(states.shape)
    columns = {"t": t, "dimension": dimension, "value": states, "hidden": e.hidden[first].astype(int)}
    return pd.DataFrame({name: column.ravel() for name, column in columns.items()})


masked = experiments.get("humanoid-masked", size)
hidden = results.table("dataset_hidden", size, window, **made_from("humanoid-expert", hidden=masked.data.hidden))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dataset-hidden", "caption": "Sixteen successive states of the masked humanoid; grey cells are hidden. Colours give a value in standard deviations from its mean."}, "image": {"alt": "A grid of 16 by 45 cells from blue to orange, half of them grey without a pattern."}}
from matplotlib.colors import LinearSegmentedColormap

colours = LinearSegmentedColormap.from_list("diverging", [figures.COLOURS["transformer"], "white", figures.COLOURS["other"]])
colours.set_bad("#777777")
cells = hidden.pivot(index="t", columns="dimension", values="value")
seen = hidden.pivot(index="t", columns="dimension", values="hidden") == 0
figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
image = axes.imshow(cells.where(seen), cmap=colours, vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
axes.axvline(21.5, color="black", lw=1)
axes.set(xlabel="state dimension: 22 positions, then 23 velocities", ylabel="step", title=f"Partially observed ({size})")
figure.colorbar(image, label="std. deviations")
plt.show()

# %% tags=["hide-input"]
rows, end = table.set_index("dataset"), fan.iloc[-1]
Markdown(
    f"What we saw: over {len(recovery) - 1} steps the recovered path stays within {recovery.largest_mm.max():.1f} mm of the true "
    f"one in all of {several} references. `humanoid-expert` has {rows.episodes['humanoid-expert']:,} episodes, of which "
    f"{rows.fell['humanoid-expert']:.1%} end in a fall. All {fan.alive[0]} references start in one state, and "
    f"{'all' if end.alive == fan.alive[0] else f'{end.alive:.0f}'} are on their feet at the end; nine tenths of them are then "
    f"between {end.x_5:.2f} and {end.x_95:.2f} m ahead and between {end.y_5:.2f} and {end.y_95:.2f} m to the left. Noise in "
    f"the actions alone did that, and it bounds how sharply any model can predict. In the window above {hidden.hidden.mean():.0%} of "
    f"the cells are hidden."
)

# %% [markdown]
# ## From file to bytes
#
# Nothing above reaches a model. When a file is loaded, every number becomes one of $V = 100$ bins, one byte each, and
# windows are cut from those bytes: see [the tokens](01_tokens.py). Files are read, fitted and tokenized a chunk at a
# time into a mapped file, so that a dataset need not fit into memory.
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
mean = table.set_index("dataset")["mean"]
scores = {q: {task: tasks.score(task, mean[f"{task}-{q}"]) for task in tasks.D4RL_TASKS} for q in QUALITIES}
pd.DataFrame(scores).T.style.format("{:.1f}")

clock, fall, none = np.arange(10) == 4, np.arange(10) == 9, np.zeros(10, bool)
toy = {"observations": np.zeros((10, 1)), "actions": np.zeros((10, 1)), "rewards": np.ones(10)}
variants = {"right": (fall, clock), "timeouts lost": (fall, none), "timeouts taken for falls": (fall | clock, none)}
rows = {}
for what, (terminals, timeouts) in variants.items():
    e = data.episodes(toy | {"terminals": terminals, "timeouts": timeouts})
    for reward in (None, -100.0):
        R = data.steps(e, Transition(1, 1), 0.9, include_current=True, terminal_reward=reward)[:][:, -1]
        rows[what, "as it is" if reward is None else f"{reward:.0f}"] = R.numpy()
pd.DataFrame(rows).T.rename_axis(["ends", "reward of a fall"]).style.format("{:.1f}")

# %% [markdown]
# Without its `timeouts` the first episode collects rewards of the second, and the warning of a fall that was
# not its own. Taken for falls, they leave the plain sums as they are, but turn every step before the time limit
# into a step before a fall. In the halfcheetah's files, where nobody ever falls, every end would be one;
# [the tokens page](01_tokens.py) measures what that does to hopper.
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
import tempfile
from pathlib import Path

SECRET = 3  # seed of the colleague's choice


def mystery() -> pd.DataFrame:
    secret = tasks.PHYSICS[np.random.default_rng(SECRET).integers(2)]
    with tempfile.TemporaryDirectory() as folder:
        regenerated.regenerate(Path(folder) / "walker.hdf5", "walker2d", "medium", 2000, seed=7, physics=secret)
        arrays = hdf5.read(Path(folder) / "walker.hdf5")
    errors = {physics: np.median(tasks.replay_error("walker2d", arrays, physics)) for physics in tasks.PHYSICS}
    return pd.DataFrame({"physics": errors.keys(), "median": errors.values(), "secret": secret})


walker = {"walker2d-medium": store.policy_keys("walker2d", "medium")[0]}
config = {"task": "walker2d", "quality": "medium", "steps": 2000, "seeds": [7, SECRET]}
found = results.table("dataset_mystery", size, mystery, config, walker)
guess = found.physics[found["median"].idxmin()]
print(f"median errors {dict(zip(found.physics, found['median']))}: recorded with {guess!r}; it was {found.secret[0]!r}")

# %% [markdown]
# One step is enough, because both simulators start it in the same state. Over a whole episode any two would
# drift apart, and no error would be small.
#
# ````{solution-end}
# ````
