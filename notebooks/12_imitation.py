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
# # Imitation
#
# **Claim** (Section 4.2). When sequences are searched for likelihood instead of reward, the same model imitates: on
# hopper and walker2d it reaches 104% and 109% of the demonstrator's return.
#
# After this page you can
#
# - say what a beam over likelihood does with a robot, and what its length changes;
# - explain why a beam of one action's $M$ tokens is behaviour cloning;
# - compare returns with a demonstrator that is itself noisy.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from ttlib.drawing import figures
from ttlib.pipeline import experiments, places, results, statistics, store
from ttlib.pipeline.rollouts import RolloutSet
from ttlib.studies import offline_rl

exps = {name: experiments.get(name, size) for name in experiments.experts(size)}
some = next(iter(exps.values()))

# %% [markdown]
# ## Demonstrations
#
# The last snapshot of a robot's training, rolled out with its own noise. Training was stopped before these policies
# were as good as D4RL's experts (page 06), so what is measured is the share of the *demonstrator's* return.

# %% tags=["hide-input"]
pd.DataFrame(
    {
        "dataset": name,
        "episodes": len(store.dataset(e.data)),
        "mean return": store.dataset(e.data).returns.mean(),
        "deviation": store.dataset(e.data).returns.std(),
        "falls": store.dataset(e.data).terminal.mean(),
    }
    for name, e in exps.items()
).style.hide(axis="index").format({"mean return": "{:.0f}", "deviation": "{:.0f}", "falls": "{:.0%}"})

# %% [markdown]
# ## Algorithm 1, once more
#
# The state is known. A beam search over the next tokens, the action's first, keeps the sequences of greatest
# log-likelihood
#
# $$\sum_i \log P(x_i \mid x_{<i})$$ (eq-imitation)
#
# and the first action of the best one is carried out. Rewards count like every token, rewards-to-go do not. The
# search may stop after the $M$ tokens of the action: then it is the likeliest action given the state, which is
# behaviour cloning. Or it may go on through the next state, and the next action: then an action is chosen that makes
# a whole likely *future*.

# %% tags=["hide-output"]
rollouts = offline_rl.imitation(size)
rollouts["share"] = rollouts["return"] / rollouts.demonstrator

# %% tags=["hide-input"]
order = [s for s in (*offline_rl.LENGTHS.values(), "MLP 2 x 256", "the expert") if s in set(rollouts.setting)]
rows = []
for (dataset, setting), part in rollouts.groupby(["dataset", "setting"], sort=False):
    low, high = statistics.bootstrap(part.share)
    rows.append({"dataset": dataset, "setting": setting, "share": part.share.mean(), "low": low, "high": high,
                 "return": part["return"].mean(), "falls": part.fell.mean(), "n": len(part)})  # fmt: skip
table = pd.DataFrame(rows)
shown = table.assign(cell=[f"{s:.0%} [{a:.0%}, {b:.0%}]" for s, a, b in zip(table.share, table.low, table.high)])
shown.pivot(index="setting", columns="dataset", values="cell").loc[order, list(exps)]

# %% [markdown]
# Shares of the demonstrator's mean return, with 90% bootstrap intervals over rollouts. `MLP 2 x 256` is behaviour
# cloning by least squares; `the expert` is the demonstrator rolled out again.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-imitation", "caption": "Every rollout as a share of the demonstrator's mean return: likelihood beams of several lengths (blue), cloning by an MLP and the expert itself (grey). The dashed lines are the paper's shares."}, "image": {"alt": "Dot plots, one a robot, of return as a share of the demonstrator's for each method."}}
PAPER = {"hopper-expert": 1.04, "walker2d-expert": 1.09}
figure, panels = plt.subplots(1, len(exps), figsize=(2 + 3 * len(exps), 3), layout="constrained", sharey=True, squeeze=False)
panels = panels[0]
jitter = np.random.default_rng(0)
for axes, name in zip(panels, exps):
    for y, setting in enumerate(order):
        part = rollouts[(rollouts.dataset == name) & (rollouts.setting == setting)]
        colour = figures.COLOURS["transformer" if setting in offline_rl.LENGTHS.values() else "data"]
        axes.plot(part.share, y + jitter.uniform(-0.15, 0.15, len(part)), ".", ms=6, alpha=0.6, color=colour)
        axes.plot([part.share.mean()], [y], "|", ms=14, mew=3, color=colour)
    axes.axvline(1, color="black", lw=0.6)
    if name in PAPER:
        axes.axvline(PAPER[name], ls="--", lw=1, color=figures.COLOURS["other"])
        axes.set_xlim(right=max(axes.get_xlim()[1], PAPER[name] + 0.05))
    axes.set_title(name, fontsize=10)
    axes.xaxis.set_major_formatter("{x:.0%}")
panels[0].set(yticks=range(len(order)), yticklabels=order)
panels[0].invert_yaxis()
figure.supxlabel("return, share of the demonstrator's mean", fontsize=10)
figure.suptitle(f"Imitation ({size})")
plt.show()

# %% [markdown]
# ## What it took: training
#
# An expert of this kind acts with noise, and the likeliest of a hundred bins is the top of a broad hill: a model that
# is a little wrong about the hill's shape is far off about its top. Is a likeliest bin then any good? Take the
# expert's own density, which its network states in closed form, over the same bins: its likeliest bins act as well as
# the expert, or better. So the density has to be learnt well, and a few hundredths of a nat decide whether a robot
# falls. `nats` are of held-out actions, a token; shares are on rollout seeds that no result uses.

# %% tags=["hide-input"]
tried = pd.read_csv(places.ROOT / "data" / "tried_imitation.csv")
tried["imitator"] += [f", {n / 1e6:.1f}M transitions" if n == n else "" for n in tried.transitions]
tried["share"] = [f"{x:.0%} ± {e:.0%} ({n})" for x, e, n in zip(tried.share, tried.stderr, tried.n)]
tried[["dataset", "imitator", "nats", "acting", "share"]].style.hide(axis="index").format({"nats": "{:.2f}"})

# %% [markdown]
# Mean ± standard error over rollouts, in brackets how many.
#
# ## What we saw

# %% tags=["hide-input"]
beams = table[table.setting.isin(offline_rl.LENGTHS.values())]
best = beams.loc[beams.groupby("dataset").share.idxmax()].set_index("dataset")
cloned = table[table.setting == "MLP 2 x 256"].set_index("dataset").share
alone = beams[beams.setting == offline_rl.LENGTHS[0]].set_index("dataset").share
parts = []
for name in exps:
    row = best.loc[name]
    parts.append(
        f"{name}: {row.share:.0%} [{row.low:.0%}, {row.high:.0%}] with a beam of {row.setting}, {alone[name]:.0%} with the action "
        f"alone, {cloned[name]:.0%} by cloning with an MLP" + (f" (the paper: {PAPER[name]:.0%})" if name in PAPER else "")
    )
Markdown(
    "The best beam of each robot, as a share of the demonstrator's mean return: " + "; ".join(parts) + ". "
    "A share above 100% is no wonder: the demonstrator acts with noise, and the likeliest action has less of it. "
    "The best of several settings on the same rollouts flatters itself a little; the table shows them all."
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} Noise
# :label: ex-imitation-noise
#
# Draw the action from the model instead of taking the likeliest. The imitator then acts as noisily as its
# demonstrator. Predict the share, then measure it.
# ```
#
# ````{solution-start} ex-imitation-noise
# :class: dropdown
# ````

# %%
drawn = RolloutSet(exps["hopper-expert"], "sampling", "drawn", tuple(range(2000, 2002 if size == "smoke" else 2004)))
found = results.table(
    "exercise_imitation_noise", size, lambda: pd.DataFrame(drawn.rows()),
    {"experiment": drawn.exp, "seeds": drawn.seeds}, {drawn.exp.label: store.weights_key(drawn.exp)},
)  # fmt: skip
print(f"hopper-expert: {(found['return'] / found.demonstrator).mean():.0%} of the demonstrator, over {len(found)} rollouts")

# %% [markdown]
# ````{solution-end}
# ````
