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
# # Attention: Figure 3
#
# **Claim** (Section 4.1, Figure 3). Two patterns stand out in the attention maps of a model of hopper. In one, states and
# actions look at the transition just before: the model has discovered the Markov property. The other is striated: a state
# dimension looks at the same dimension of several earlier steps. And actions depend more on past actions than on past states.
#
# After this page you can
#
# - read an attention map of a trajectory model, and name its rows and columns without being off by one;
# - turn "there is a pattern" into a number with a value to compare it with, over all heads;
# - tell where a head looks from what it is good for, by hiding what it looks at.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown

from ttlib import train
from ttlib.drawing import figures
from ttlib.environments import tasks
from ttlib.pipeline import experiments, results, store
from ttlib.studies import attention

models = {exp.label: (exp, store.load_or_train(exp)) for exp in experiments.attention(size)}
by_profile = {}
for exp, loaded in models.values():
    by_profile.setdefault(exp.profile, (exp, loaded))  # of each its first seed
exp, loaded = by_profile["v1"]
transition, T, D = exp.model.transition, exp.model.T, exp.model.transition.D
layers = (1, min(3, exp.model.n_layer))  # as in the paper
seeds = sorted({e.train.seed for e, _ in models.values()})
Markdown(
    f"Both profiles of [the hopper page](05_hopper.py), {exp.model.n_layer} layers of {exp.model.n_head} heads (v1), windows of {T} "
    f"transitions, {len(seeds)} training seed{'s' if len(seeds) > 1 else ''} of each. Layers and heads count from 1."
)

# %% [markdown]
# ## What a row is
#
# At each position the model has just read one token and predicts the next. So the row of the map that tells us how token
# $p$ is predicted belongs to the position before it, $p - 1$, whose token was read last. The first dimension of $s_t$ is
# predicted where $R_{t-1}$ was read. We name rows by what they *predict* and columns by what was read there. As in the paper,
# rewards are left out: with $w_{p-1,k}$ the weight of position $p-1$ on token $k$,
#
# $$\bar w_{p,k} = \frac{w_{p-1,k}}{\sum_{k' \notin r, R} w_{p-1,k'}}, \qquad k < p,\; k \notin r, R.$$ (eq-attention-row)
#
# The weight that $r$ and $R$ had is reported below. Here is a window, the first that is whole of those held out from
# training, and its maps.

# %%
window = attention.full_windows(loaded)[:1]
maps = loaded.model.attention_maps(window.to(store.device()))
weights, values, output = maps[0]
print(f"{len(maps)} layers; maps of shape {tuple(weights.shape)}: window, head, position, token read")
rows = attention.without_rewards(attention.predicted(weights), transition)
assert torch.allclose(weights.sum(-1), torch.ones(1).to(weights)) and torch.allclose(weights @ values, output, atol=1e-5)
assert torch.allclose(rows[..., 1:, :].sum(-1), torch.ones(1).to(rows))

# %% [markdown]
# ## Figure 3


# %%
def draw_figure() -> pd.DataFrame:
    return pd.concat([attention.figure_rows(e, made, layers, last=5) for e, made in by_profile.values()])


inputs = {e.label: store.weights_key(e) for e, _ in models.values()}
# Weights decide what is seen here; how their models plan does not.
config = {"models": {label: e.model for label, (e, _) in models.items()}, "seeds": seeds, "profile": "v1 and released"}
shown = results.table("fig3_attention", size, draw_figure, config | {"layers": layers, "transitions": 5}, inputs)

# %% tags=["hide-input"]
steps = range(T - 5, T)
tokens = [f"{name}@{t}" for t in steps for name in transition.names()[: transition.action.stop]]
K = transition.action.stop


def figure_3(profile: str, name: str) -> None:
    part = shown[shown.profile == profile]
    heads = sorted(part["head"].unique())
    figure, grid = plt.subplots(len(layers), len(heads), figsize=(2.55 * len(heads) + 1, 6.1), layout="constrained", sharex=True, sharey=True)
    for axes, (layer, head) in zip(grid.flat, [(layer, head) for layer in layers for head in heads]):
        chosen = part[(part.layer == layer) & (part["head"] == head)]
        cells = chosen.pivot(index="query", columns="key", values="weight").reindex(index=tokens, columns=tokens).fillna(0.0).to_numpy()
        cells = np.where(np.tri(len(tokens), k=-1, dtype=bool), cells, np.nan)  # a token is predicted from those before it
        picture = axes.imshow(np.sqrt(cells), cmap="YlGnBu", vmin=0, vmax=1, interpolation="nearest")
        for edge in range(1, 5):
            axes.axhline(edge * K - 0.5, color="#bbbbbb", lw=0.5)
            axes.axvline(edge * K - 0.5, color="#bbbbbb", lw=0.5)
        axes.set_title(f"layer {layer}, head {head}", fontsize="medium")
        axes.spines[:].set_visible(False)
    places = [(t - T + 5) * K + at for t in steps for at in ((transition.N - 1) / 2, transition.N + (transition.M - 1) / 2)]
    labels = [f"${kind}_{{{t}}}$" for t in steps for kind in "sa"]
    for axes in grid[:, 0]:
        axes.set_yticks(places, labels, fontsize=8)
    for axes in grid[-1]:
        axes.set_xticks(places, labels, fontsize=8)
    bar = figure.colorbar(picture, ax=grid, shrink=0.6, ticks=np.sqrt([0, 0.05, 0.2, 0.5, 1]))
    bar.ax.set_yticklabels(["0", "0.05", "0.2", "0.5", "1"])
    bar.set_label("weight")
    figure.supylabel("token predicted")
    figure.supxlabel("token looked at")
    figure.suptitle(f"Attention maps, profile {profile} ({size})")
    results.save_figure(figure, name, size)
    plt.show()


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-3", "caption": "Figure 3 of the paper, ours, with all heads of its two layers: profile v1, the last five transitions of one held-out window. Within each block of a state its dimensions follow one another, and so within each block of an action. Earlier transitions were seen too and hold the rest of the weight. The colours are those of the square root of the weight."}, "image": {"alt": "A grid of lower triangular maps, layers 1 and 3, one column for each head. In some heads of layer 1 the weight lies in the block just before the diagonal; in one it lies on lines parallel to the diagonal. Layer 3 is more diffuse."}}
figure_3("v1", "fig3_attention")

# %% [markdown]
# The other profile, on the same window:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-3-released", "caption": "The same of profile released, a model trained apart on other bins. Its heads are numbered as training happened to arrange them."}, "image": {"alt": "The same grid of another model: again blocks just before the diagonal and one head of parallel lines in layer 1, and diffuse maps in layer 3."}}
figure_3("released", "fig3_attention_released")

# %% [markdown]
# ## Look for yourself
#
# One held-out window of the model `v1`, every layer and head. Choose the token that is to be predicted with the menus, by a
# click, or with the arrow keys once the table has the focus (Home and End go to the first and the last step). The numbers
# are weights in per cent, rewards included; values are those of the bins that the model read.

# %% tags=["hide-input"]
first = window[0, : min(T, 10) * D]  # what comes later changes nothing before it
short = [weights[0, :, : len(first), : len(first)] for weights, _, _ in maps]
HTML(attention.viewer(short, first, loaded.tokenizer.to("cpu"), tasks.MEANING["hopper"], "attention-viewer"))

# %% [markdown]
# Reward-to-go is never read (its true value is unknown while acting): its position shows the model the same token always.
#
# ## Scores
#
# Two chosen heads show that a pattern can occur. To say how typical it is we score every head. For a token $i$ of the
# last transition $t$ of a window, and with $\bar w$ of {eq}`eq-attention-row`,
#
# $$\text{markov} = \sum_{j} \bar w_{(t,i),(t-1,j)}, \qquad
#   \text{striated} = \sum_{u \le t-2} \bar w_{(t,i),(u,i)},$$ (eq-attention-scores)
#
# averaged over the dimensions $i$ of states or of actions and over all full held-out windows. For actions we add what lies
# on actions and on states of strictly earlier steps, as sums and per key, since there are more states than actions. A score
# means nothing alone: attention that is spread evenly has one too. Let us count it, on a state's tokens:

# %%
seen = np.array([(T - 1) * K + i for i in range(transition.N)])  # keys that count, for each dimension
even = attention.scores(attention.uniform(T * D), transition).set_index(["rows", "score"]).value["states"]
for name, share in (("markov", K / seen), ("striated", (T - 2) / seen), ("current", np.arange(transition.N) / seen)):
    print(f"{name}: {even[name]:.4f} if all keys weigh alike, by hand {share.mean():.4f}")
    assert np.isclose(even[name], share.mean())


# %%
def score() -> pd.DataFrame:
    return pd.concat([attention.score_table(e, made) for e, made in models.values()])


table = results.table("attention_scores", size, score, config, inputs)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-attention-scores", "caption": "Every head of every layer. Above: by layer, heads side by side in their order; the dashed line is attention spread evenly, the dotted one what we call a pattern. Below: for the prediction of actions, weight on past actions against weight on past states; on the diagonal they are equal, and the cross is attention spread evenly."}, "image": {"alt": "Six panels of dots, one per head and profile. Some heads of the first layer are far above the even line for markov, one for striated; later layers lie near the even line. Below, most heads lie under the diagonal in the sums and near or above it per key."}}
COLOURS = {"v1": figures.COLOURS["transformer"], "released": figures.COLOURS["other"]}
MARKS = {"v1": "o", "released": "^"}


def values_of(score: str, rows: str) -> pd.DataFrame:
    return table[(table.score == score) & (table.rows == rows)]


figure, grid = plt.subplots(2, 3, figsize=(10, 6.2), layout="constrained")
for axes, (score, rows, title) in zip(grid[0], (("markov", "states", "markov, states"), ("markov", "actions", "markov, actions"), ("striated", "states", "striated, states"))):
    for profile, part in values_of(score, rows).groupby("profile", sort=False):
        n = part["head"].max()
        x = part.layer + 0.7 * (part["head"] - (n + 1) / 2) / n + (0.04 if profile == "v1" else -0.04)
        axes.plot(x, part.value, MARKS[profile], ms=5, color=COLOURS[profile], label=profile, alpha=0.8)
    even = part.uniform_value.iloc[0]
    axes.axhline(even, ls="--", lw=1, color=figures.COLOURS["data"])
    if rows == "states":
        axes.axhline(attention.MARKOV if score == "markov" else attention.STRIATED * even, ls=":", lw=1, color=figures.COLOURS["data"])
    axes.set(title=title, xlabel="layer", xticks=range(1, table.layer.max() + 1), ylim=(0, None))
grid[0, 0].set_ylabel("weight")
for axes, (a, b, title) in zip(grid[1], (("past_states", "past_actions", "sums"), ("past_state_key", "past_action_key", "per key"))):
    for profile in COLOURS:
        states, actions = (values_of(name, "actions").query("profile == @profile") for name in (a, b))
        axes.plot(states.value, actions.value, MARKS[profile], ms=5, color=COLOURS[profile], label=profile, alpha=0.8)
    ends = [0, 1.05 * values_of(a, "actions").value.max()]
    axes.plot(ends, ends, "-", lw=1, color=figures.COLOURS["data"])
    axes.plot(states.uniform_value.iloc[0], actions.uniform_value.iloc[0], "x", ms=9, mew=2, color="black")
    axes.set(title=f"actions, {title}", xlabel="weight on past states" + " (mean of a key)" * (title == "per key"), ylim=(0, None), xlim=(0, None))
    axes.set_ylabel("on past actions")
axes = grid[1, 2]
for profile, part in values_of("rewards", "states").groupby("profile", sort=False):
    n = part["head"].max()
    x = part.layer + 0.7 * (part["head"] - (n + 1) / 2) / n + (0.04 if profile == "v1" else -0.04)
    axes.plot(x, part.value, MARKS[profile], ms=5, color=COLOURS[profile], label=profile, alpha=0.8)
axes.axhline(part.uniform_value.iloc[0], ls="--", lw=1, color=figures.COLOURS["data"])
axes.set(title="left out: r and R, states", xlabel="layer", xticks=range(1, table.layer.max() + 1), ylim=(0, None))
axes.legend(frameon=False, title="profile")
for axes in grid.flat:
    axes.spines[["top", "right"]].set_visible(False)
figure.suptitle(f"Scores of all heads ({size})")
results.save_figure(figure, "attention_scores", size)
plt.show()

# %% [markdown]
# We call a head *Markovian* where predicted states give more than half of their weight to the transition before, and
# *striated* where they give the same dimension, two or more steps back, at least three times what even attention gives it.
# Both lines are ours; the paper has none.

# %% tags=["hide-input"]
found = attention.summary(table).loc[list(by_profile)]
found.rename(
    columns={
        "markov": "Markovian",
        "striated": "striated",
        "sum": "actions look more at past actions, sums",
        "key": "the same, per key",
        "past_actions": "mean weight on past actions",
        "past_states": "on past states",
    }
).rename_axis("profile").style.format("{:.0f}").format("{:.2f}", subset=["mean weight on past actions", "on past states"])

# %% [markdown]
# ## What we saw


# %% tags=["hide-input"]
def head_name(row) -> str:
    return f"layer {row.layer}, head {row['head']}" + (f", seed {row.seed}" if len(seeds) > 1 else "")


def best(score: str, rows: str, profile: str):
    return values_of(score, rows).query("profile == @profile").sort_values("value").iloc[-1]


WHERE = ["profile", "layer", "head", "seed"]
every = table.set_index([*WHERE, "rows", "score"]).value.sort_index()
sentences = []
for profile, row in found.iterrows():
    markov, striated = best("markov", "states", profile), best("striated", "states", profile)
    head = every[tuple(striated[WHERE])]  # the striated one
    same, both = head["states", "same_before"], head["states", "markov"] > attention.MARKOV
    acts = head["actions"]
    third = values_of("markov", "states").query("profile == @profile and layer == @layers[-1]").value
    sentences.append(
        f"**Profile {profile}.** The Markovian pattern is {'there' if row.markov else '**not there**'}: {row.markov:.0f} of {row.heads:.0f} heads; the clearest "
        f"is {head_name(markov)} with {markov.value:.0%} of a state's weight on the transition before (even: {markov.uniform_value:.0%}). "
        f"The striated one is {'there' if row.striated else '**not there**'}: {row.striated:.0f} of {row.heads:.0f} heads; the clearest is {head_name(striated)} with "
        f"{striated.value:.0%} on the same dimension two or more steps back (even: {striated.uniform_value:.0%}), besides {same:.0%} on the same "
        f"dimension one step back{' (it counts as Markovian for that)' if both else ''}. In layer {layers[-1]}, where the paper finds one of its two maps, no head gives the transition before more than {third.max():.0%}. "
        f"Actions look more at past actions than at past states in {row['sum']:.0f} of {row.heads:.0f} heads by the sum of weights "
        f"({row.past_actions:.2f} against {row.past_states:.2f} on average), in {row.key:.0f} per key; in {head_name(striated)} the sums are "
        f"{acts['past_actions']:.2f} and {acts['past_states']:.2f}. So by the sum the statement {'holds' if row.past_actions > row.past_states else '**does not hold**'} on average, "
        f"per key it {'holds in most heads' if row.key > row.heads / 2 else '**does not hold in most heads**'}."
    )
Markdown(
    "\n\n".join(sentences)
    + f"\n\nSize {size}, {len(seeds)} training seed{'s' if len(seeds) > 1 else ''} of each profile{'' if len(seeds) > 1 else ', so what another training would give is not known'}; "
    f"means over {table.windows.min()} full held-out windows. The paper shows two heads of one model and gives no counts."
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} A Markovian map
# :label: attention-markov
#
# The Markovian Transformer of [the page before](09_long_horizon.py) reads two transitions, the previous and the current. Before
# you draw the map of one of its heads: where can it be above zero, what are `markov` and `striated` at most, and which score
# says how much it uses the previous transition?
# ```
#
# ````{solution-start} attention-markov
# :class: dropdown
# ````

# %%
cut = experiments.get("humanoid-markov", size)
markov = store.load_or_train(cut)
own = attention.score_table(cut, markov).query("rows == 'states'")
wide = own.pivot(index=["layer", "head"], columns="score", values="value")[["markov", "current", "striated"]]
even = own.groupby("score").uniform_value.first()[wide.columns]
assert np.allclose(wide.markov + wide.current, 1) and (wide.striated == 0).all()
pd.concat([wide, pd.DataFrame([even], index=[("even", "")])]).style.format("{:.2f}")

# %% [markdown]
# There are two blocks: a triangle on the diagonal, and to its left one full block. Nothing is two steps back, so `striated` is
# exactly 0, and `markov` and `current` add up to 1. Drawn, the second transition of the head that uses the first the least and of
# the one that uses it the most:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-attention-markov", "caption": "The Markovian Transformer of the humanoid: rows are the states and actions of the second transition."}, "image": {"alt": "Two maps of 62 rows and 124 columns: a full block of the previous transition on the left, and right of it a triangle."}}
figure, panels = plt.subplots(2, 1, figsize=(8, 5.6), layout="constrained", sharex=True)
other = cut.model.transition
ids = attention.full_windows(markov)[:1].to(store.device())
drawn = [attention.without_rewards(attention.predicted(w[0].cpu()), other) for w, _, _ in markov.model.attention_maps(ids)]
keep = np.flatnonzero(np.arange(2 * other.D) % other.D < other.action.stop)
for axes, (layer, head) in zip(panels, (wide.markov.idxmin(), wide.markov.idxmax())):
    axes.imshow(drawn[layer - 1][head - 1][other.D :][: other.action.stop, keep].sqrt().numpy(), cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    axes.set(title=f"layer {layer}, head {head}: markov {wide.markov[layer, head]:.2f}", ylabel="token predicted")
    axes.axvline(other.action.stop - 0.5, color="#bbbbbb", lw=0.8)
panels[-1].set_xlabel("token looked at: previous transition, then current")
figure.suptitle(f"Two heads of the Markovian Transformer ({size})")
plt.show()

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} The head that copies
# :label: attention-copy
#
# Which head could tell an action what the previous one was? Find it in the scores. Then say what else you would need to know
# before you call it a copy.
# ```
#
# ````{solution-start} attention-copy
# :class: dropdown
# ````

# %%
copies = values_of("same_before", "actions").sort_values("value", ascending=False)
copies.groupby("profile").head(2)[["profile", "layer", "head", "seed", "value", "uniform_value"]].style.hide(axis="index").format(precision=3)

# %%
for profile, (e, made) in by_profile.items():
    decoded = made.tokenizer.decode(attention.full_windows(made).to(store.device())).cpu().unflatten(1, (T, D))
    acts = decoded[..., e.model.transition.action].numpy()
    alike = [np.corrcoef(acts[:, 1:, m].ravel(), acts[:, :-1, m].ravel())[0, 1] for m in range(acts.shape[-1])]
    print(f"{profile}: correlation of successive actions {', '.join(f'{r:.2f}' for r in alike)}")

# %% [markdown]
# A weight says where a head looks, not what it brings back, nor whether anything downstream uses that. If successive actions
# were not alike, a copy would be of no use. Whether the model uses it is a question for the likelihood: the next exercise.
#
# ````{solution-end}
# ````
#
# ```{exercise} Hide the pattern
# :label: attention-mask
#
# `GPT.forward` takes its attention as an argument. Write an `attend` that hides some keys from one head and renormalises what is left
# (or use `attention.masking`), and measure by how many nats a token the held-out likelihood falls when each head loses its Markovian
# keys, its striated ones, or the same dimension one step back. Does the largest weight cost the most?
# ```
#
# ````{solution-start} attention-mask
# :class: dropdown
# ````


# %%
HIDDEN = ("markov", "same_before", "striated")


def hide() -> pd.DataFrame:
    found = []
    for profile, (e, made) in by_profile.items():
        ids, dims = attention.full_windows(made)[:32].to(store.device()), torch.arange(1, T * D) % D
        late, hidden = torch.arange(1, T * D) >= 2 * D, attention.patterns(transition, T)
        kinds = {"state": late & (dims < transition.N), "action": late & (dims >= transition.N) & (dims < K)}

        def nats(attend=None, made=made, ids=ids, kinds=kinds):
            with torch.inference_mode():
                each = train.token_nats(made.model, ids, attend).cpu()
            return {kind: float(each[:, chosen].mean()) for kind, chosen in kinds.items()}

        whole = nats()
        for layer in range(1, e.model.n_layer + 1):
            for head in range(1, e.model.n_head + 1):
                for pattern in HIDDEN:
                    cost = nats(attention.masking(made.model, layer, head, hidden[pattern]))
                    found.append({"profile": profile, "layer": layer, "head": head, "hidden": pattern}
                                 | {kind: cost[kind] - whole[kind] for kind in whole}
                                 | {f"{kind}_whole": whole[kind] for kind in whole})  # fmt: skip
    return pd.DataFrame(found)


costs = results.table("exercise_attention_masking", size, hide, config | {"windows": 32, "hidden": HIDDEN}, inputs)
costs.pivot(index=["profile", "layer", "head"], columns="hidden", values=["state", "action"]).groupby("profile").apply(
    lambda part: part.droplevel("profile").nlargest(5, ("state", "markov"))
).rename_axis(columns=["nats lost on each token of a", "keys hidden"]).style.format("{:+.3f}")

# %% tags=["hide-input"]
lines = []
for profile, part in costs.groupby("profile", sort=False):
    part = part.set_index(["layer", "head"])
    lost = part[part.hidden == "markov"].state
    weight = values_of("markov", "states").query("profile == @profile and seed == @seeds[0]").set_index(["layer", "head"]).value
    (layer, head), most = weight.idxmax(), lost.idxmax()
    stripes = part[part.hidden == "striated"].state
    lines.append(
        f"`{profile}`, {part.state_whole.iloc[0]:.2f} nats on each token of a state and {part.action_whole.iloc[0]:.2f} of an action when nothing is hidden. The head that gives "
        f"the transition before the most, layer {layer}, head {head} ({weight.max():.0%}), loses {lost[layer, head]:.2f} nats on a state's token without it; "
        + ("no other loses more. " if most == (layer, head) else f"layer {most[0]}, head {most[1]} ({weight[most]:.0%}) loses more, {lost[most]:.2f}. ")
        + f"Without the stripes at most {stripes.max():.2f} are lost (layer {stripes.idxmax()[0]}, head {stripes.idxmax()[1]}). Actions never lose more than {part.action.max():.2f}. "
        f"Over all heads the rank correlation of the weight and the nats lost without it is {weight.corr(lost, method='spearman'):.2f}."
    )
Markdown("\n\n".join(lines))

# %% [markdown]
# A head that is masked after training is one that the rest of the model did not expect: the loss tells what this model uses, not what
# a model trained without that head could not do.
#
# ````{solution-end}
# ````
