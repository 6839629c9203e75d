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
# # Reaching goals in four rooms
#
# **Claim** (Section 3.2, Figure 5). Put the state you want to end in *in front of* the sequence, train as
# before, and the most likely continuation is a way there. No rewards are involved.
#
# After this page you can
#
# - turn a sequence model into a goal-reaching controller without changing the model;
# - say why the goal goes first, and what happens to a model that never sees it;
# - judge such a controller: success with an interval, path length over the shortest path, and goals of a
#   kind that was never shown.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from tqdm import tqdm

from ttlib.drawing import figures
from ttlib.environments import four_rooms as rooms
from ttlib.pipeline import experiments, results, store
from ttlib.studies import four_rooms

exp = experiments.get("four-rooms", size)
unconditioned = experiments.get("four-rooms-unconditioned", size)
held_out = experiments.get("four-rooms-held-out", size)
pairs = {"smoke": 30, "laptop": 1000, "paper": 1000}[size]

# %% [markdown]
# ## The world and its demonstrator
#
# A point moves in a square of four rooms after {cite:t}`sutton1999options`. An action is a displacement in
# $[-1, 1]^2$, half a unit at most along each axis; a wall stops the motion into it and lets it slide along.
# The state is the position: $N = 2$, $M = 2$, and with no rewards a step is $D = 4$ tokens.
#
# The training data are walks of a script that heads for the goal along the shortest way through the doors,
# with noise on every action. The paper's demonstrator is a trained agent; the model only sees what it did.

# %%
data = store.dataset(exp.data)
lengths = data.lengths - 1  # the last row of an episode is where it ended
print(f"{len(data):,} walks, {lengths.mean():.1f} steps on average, {lengths.max()} at most")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-demonstrations", "caption": "Forty walks of the demonstrator, saturating with time: the start is a dot, the goal a ring."}, "image": {"alt": "Plan of four rooms joined by four doors with forty noisy walks from dots to rings, bending round the door posts."}}
figure, axes = plt.subplots(figsize=(5.2, 5.2))
figures.rooms(axes)
for i in range(40):
    walk = data.states[data.starts[i] : data.starts[i + 1]]
    figures.fading_path(axes, walk, figures.COLOURS["transformer"])
    axes.plot(*walk[-1], "o", mfc="white", mec=figures.COLOURS["other"], ms=7, zorder=5)
axes.set_title(f"Demonstrations ({size})")
plt.show()

# %% [markdown]
# ## Goal first
#
# The paper conditions on the *last* state of a trajectory and permutes the sequence to
#
# $$\{\bar{s}_{T-1}, \bar{s}_0, \bar{a}_0, \bar{s}_1, \bar{a}_1, \dots\},$$ (eq-goal-first)
#
# so that a plain causal mask lets every token see the goal. In a training window the goal is the last state
# of *its episode*, wherever the window begins; the goal tokens themselves carry no loss. As ids, with
# $V = 100$ bins a dimension, one window begins like this:

# %%
training, _ = store.windows(exp)
ids, weight = training.batch(training.end[:1] * 0)
for name, token, w in zip(["goal x", "goal y", "x", "y", "a_x", "a_y"], ids[0], weight[0]):
    print(f"{name:7} id {token:4d} = {token % 100:2d} + 100 * {token // 100}   loss weight {w:.0f}")

# %% [markdown]
# Note that the goal's ids are ordinary state ids. The model cannot tell a goal from a state by the token; it
# can by the position.

# %%
model = store.load_or_train(exp)

# %% [markdown]
# ## Acting
#
# From the goal, a few past transitions and the current state, beam search (Algorithm 1) looks for the most
# likely continuation; its first action is carried out, and the search begins again. This is the whole
# controller:

# %%
print(f"past {exp.past} transitions, {exp.horizon} planned, beam width {exp.width}")
start, goal = np.array([[1.0, 1.0]]), np.array([[9.0, 9.0]])
agent = four_rooms.four_rooms_agent("goal_transformer", exp, goal)
actions, record = agent.act(start)
print(f"first action {actions[0].round(2)}, log-probability of the likeliest plan {record['log_p'][0]:.2f} nats")

# %% [markdown]
# ## How often does it arrive?
#
# Success is to come within 0.4 units of the goal in at most 100 steps, over start-goal pairs drawn anew. Beside
# the model stand three others: the same Transformer *without* the goal in front, an MLP that maps state and
# goal to an action (goal-conditioned behaviour cloning), and walking straight at the goal. The straight
# walker shows how much of the task is finding the doors.


# %%
def measure() -> pd.DataFrame:
    tables = []
    for split, main in (("seen", exp), ("held_out", held_out)):
        starts, goals = four_rooms.four_rooms_pairs(split, pairs)
        names = ["goal_transformer", "goal_mlp", "straight"] + ["transformer"] * (split == "seen")
        for name in names:
            agent = four_rooms.four_rooms_agent(name, unconditioned if name == "transformer" else main, goals)
            with tqdm(total=rooms.MAX_STEPS, desc=f"{name}, {split}") as bar:
                runs = four_rooms.reach(agent, starts, goals, progress=lambda going: bar.update())
            tables.append(four_rooms.success_table(runs, starts, goals, model=name, split=split))
    return pd.concat(tables)


experiments_used = [exp, unconditioned, held_out]
success = results.table(
    "four_rooms_success",
    size,
    measure,
    config={"experiments": experiments_used, "profile": exp.profile, "seeds": [1000], "pairs": pairs},
    inputs={e.label: store.weights_key(e) for e in experiments_used},
)

# %% tags=["hide-input"]
NAMES = {
    "goal_transformer": "Transformer, goal first",
    "goal_mlp": "MLP, state and goal",
    "transformer": "Transformer, no goal",
    "straight": "straight",
}


def shown(split: str) -> pd.DataFrame:
    rows = success[(success.split == split)].drop_duplicates(["model", "n"])  # where all pairs cross two rooms
    table = rows.assign(
        model=rows.model.map(NAMES),
        rooms=rows.rooms_crossed.map(lambda r: "all" if r < 0 else str(r)),
        interval=[f"{100 * a:.1f} to {100 * b:.1f}%" for a, b in zip(rows.low, rows.high)],
    ).set_index(["model", "rooms"])[["n", "success", "interval", "path_ratio"]]
    table = table.rename(columns={"interval": "95% interval", "path_ratio": "path / shortest"})
    return table.style.format({"success": "{:.1%}", "path / shortest": "{:.2f}"}, na_rep="")


shown("seen")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-success", "caption": "Share of unseen start-goal pairs reached, with Wilson 95% intervals, by the number of rooms entered on the way."}, "image": {"alt": "Bars of success for four controllers and zero, one or two rooms crossed."}}
figure, axes = plt.subplots(figsize=(7, 3.2))
seen = success[(success.split == "seen") & (success.rooms_crossed >= 0)]
colours = [figures.COLOURS[c] for c in ("transformer", "third", "fourth", "other")]
for k, (name, label) in enumerate(NAMES.items()):
    rows = seen[seen.model == name]
    x = rows.rooms_crossed + 0.2 * (k - 1.5)
    axes.bar(x, rows.success, 0.19, color=colours[k], label=label)
    interval = np.maximum([rows.success - rows.low, rows.high - rows.success], 0)  # rounding
    axes.errorbar(x, rows.success, interval, fmt="none", ecolor="#222", lw=1)
axes.set(xticks=range(3), xlabel="rooms crossed", ylabel="success", ylim=(0, 1.02), title=f"Four rooms ({size})")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, frameon=False)
plt.show()

# %% [markdown]
# ## Pairs of rooms it never saw
#
# A second model is trained without any walk between the lower left and the upper right room, in either
# direction, and tested on exactly those. Each half of such a way was shown, from other walks; the whole never.

# %% tags=["hide-input"]
shown("held_out")

# %% [markdown]
# ## Figure 5


# %%
GOALS = np.array([[1.5, 8.5], [8.5, 8.0], [8.0, 1.5], [2.5, 3.0]], np.float32)


def draw_paths() -> pd.DataFrame:
    rng, per_goal = np.random.default_rng(5), 4 if size == "smoke" else 12
    goals = GOALS.repeat(per_goal, 0)
    starts = rooms.sample_free(len(goals), rng)
    runs = four_rooms.reach(four_rooms.four_rooms_agent("goal_transformer", exp, goals), starts, goals)
    return pd.concat(
        pd.DataFrame(np.array(run.states), columns=["x", "y"]).assign(goal=i // per_goal, rollout=i % per_goal)
        .rename_axis("t").reset_index()[["goal", "rollout", "t", "x", "y"]]
        for i, run in enumerate(runs)
    )  # fmt: skip


paths = results.table(
    "fig5_four_rooms",
    size,
    draw_paths,
    config={"experiment": exp, "profile": exp.profile, "seeds": [5], "goals": GOALS.tolist()},
    inputs={exp.label: store.weights_key(exp)},
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-5", "caption": "Figure 5 of the paper, ours: trajectories from random starts (filled) to four goals (open), by likelihood alone. Colour saturates with time."}, "image": {"alt": "Four plans of the four rooms, one per goal; in each, paths from a dozen starts run through the doors and end in the ring that marks the goal."}}
figure, panels = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
shades = [figures.COLOURS[c] for c in ("transformer", "other", "third", "fourth")]
for axes, (goal, rows), colour in zip(panels, paths.groupby("goal"), shades):
    figures.rooms(axes)
    for _, path in rows.groupby("rollout"):
        figures.fading_path(axes, path[["x", "y"]].to_numpy(), colour)
    axes.plot(*GOALS[goal], "o", mfc="white", mec="black", mew=1.6, ms=11, zorder=6)
figure.suptitle(f"Goals reached without rewards ({size})")
results.save_figure(figure, "fig5_four_rooms", size)
plt.show()

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
from IPython.display import Markdown

whole = success[success.rooms_crossed < 0].set_index(["split", "model"])
ours, new = whole.loc[("seen", "goal_transformer")], whole.loc[("held_out", "goal_transformer")]
crossing = success[(success.model == "straight") & (success.split == "seen") & (success.rooms_crossed > 0)]
straight = (crossing.success * crossing.n).sum() / crossing.n.sum()
Markdown(
    f"With the goal in front, {ours.success:.1%} of {ours.n} unseen pairs were reached, on paths "
    f"{ours.path_ratio:.2f} times the shortest. Without it the same Transformer reached "
    f"{whole.loc[('seen', 'transformer')].success:.1%}, an MLP that is given state and goal "
    f"{whole.loc[('seen', 'goal_mlp')].success:.1%}, and walking straight {straight:.1%} of the pairs that lie in "
    f"different rooms. On pairs of rooms that were never shown, the second model reached {new.success:.1%} "
    f"(its MLP {whole.loc[('held_out', 'goal_mlp')].success:.1%})."
)

# %% tags=["remove-input"]
if size != "smoke":
    assert straight <= 0.30, "walking straight works too often: the task is too easy to show anything"

# %% [markdown]
# ## Exercises
#
# ```{exercise} Search or no search
# :label: ex-width
#
# Set horizon and width to one, so that the likeliest bin of each action is taken. Does success fall? Predict
# first: the demonstrator's noise is the same everywhere, so how much is there to search for?
# ```
#
# ````{solution-start} ex-width
# :class: dropdown
# ````

# %%
from dataclasses import replace


def searched() -> pd.DataFrame:
    starts, goals = four_rooms.four_rooms_pairs("seen", min(pairs, 100), seed=2000)
    tables = []
    for horizon, width in ((1, 1), (exp.horizon, exp.width)):
        changed = replace(exp, horizon=horizon, width=width)
        runs = four_rooms.reach(four_rooms.four_rooms_agent("goal_transformer", changed, goals), starts, goals)
        tables.append(four_rooms.success_table(runs, starts, goals, horizon=horizon, width=width).head(1))
    return pd.concat(tables)


inputs = {exp.label: store.weights_key(exp)}
found = results.table("exercise_search", size, searched, {"experiment": exp, "seeds": [2000]}, inputs)
for row in found.itertuples():
    print(f"horizon {row.horizon}, width {row.width}: success {row.success:.1%}, path {row.path_ratio:.2f} times the shortest")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Change your mind
# :label: ex-switch
#
# Walk towards one goal for eight steps, then replace the goal. Where does the walk end, and what in
# `control.TransformerAgent` makes that possible?
# ```
#
# ````{solution-start} ex-switch
# :class: dropdown
# ````

# %%
env_start, first, second = np.array([[1.0, 1.0]]), np.array([[8.5, 8.0]]), np.array([[1.5, 8.5]])
agent = four_rooms.four_rooms_agent("goal_transformer", exp, first)
position, walk = env_start.astype(np.float32), []
for t in range(60):
    if t == 8:
        agent.goals = four_rooms.four_rooms_agent("goal_transformer", exp, second).goals
    walk.append(position)
    action, _ = agent.act(position)
    position = rooms.move(position, action)
    agent.observe(np.zeros(1), np.ones(1, bool))
    if rooms.reached(position, second)[0]:
        break
print(f"after {t + 1} steps at {position[0].round(1)}; the second goal is {second[0]}")

# %% [markdown]
# The goal is nothing but the first tokens of the context, read anew at every decision: replacing them is all.
#
# ````{solution-end}
# ````
