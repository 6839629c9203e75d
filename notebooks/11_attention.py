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
# **Claim** (Section 4.1, Figure 3). Two patterns occur in the attention maps of a hopper model. In the first, states and
# actions attend to the previous transition, as if the model had discovered the Markov property. The second is
# *striated*: a state dimension attends to the same dimension of several earlier steps. And actions depend more on past
# actions than on past states.
#
# After this page you can
#
# - read an attention map of a trajectory model, and name its rows and columns without being off by one;
# - replace "there is a pattern" by a number for every head, beside the number that even attention would give;
# - find out what a head is good for, by hiding what it attends to.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import HTML, Markdown
from matplotlib.colors import PowerNorm

from ttlib.drawing import figures, viewers
from ttlib.environments import tasks
from ttlib.model import token_nats
from ttlib.pipeline import experiments, results, store
from ttlib.studies import attention

figures.style()

# %% tags=["hide-input"]
exps = experiments.attention(size)
models = [(exp, store.load_or_train(exp)) for exp in exps]
first_seed = {}
for exp, loaded in models:
    first_seed.setdefault(exp.profile, (exp, loaded))
PROFILES = list(experiments.PROFILES)
exp, loaded = first_seed["v1"]
transition, T, D = exp.model.transition, exp.model.T, exp.model.transition.D
K = transition.action.stop  # state and action dimensions of a transition
layers = (1, min(3, exp.model.n_layer))  # the paper shows these
seeds = sorted({e.train.seed for e in exps})
Markdown(
    f"We look at both profiles of [the hopper page](05_hopper.py). Their models have {exp.model.n_layer} layers of "
    f"{exp.model.n_head} heads and windows of {T} transitions. Each profile was trained with {len(seeds)} "
    f"seed{'s' * (len(seeds) > 1)}. Layers and heads count from 1."
)

# %% [markdown]
# ## What a row is
#
# At each position, the model has just read one token, and it predicts the next one. The row that tells how token $p$ is
# predicted therefore belongs to position $p - 1$, where the token before it was read. For example, the first dimension
# of $s_t$ is predicted at the position of $R_{t-1}$.
#
# We name a row by the token that it *predicts*, and a column by the token that was read there. Like the paper, we leave
# out rewards. Let $w_{p-1,k}$ be the weight of position $p-1$ on token $k$. Then
#
# $$\bar w_{p,k} = \frac{w_{p-1,k}}{\sum_{k' \notin r, R} w_{p-1,k'}}, \qquad k < p,\; k \notin r, R.$$ (eq-attention-row)
#
# Below we also report the weight on $r$ and $R$ that this leaves out. The next cell computes the maps of one window. It
# is the first held-out window that no end of an episode cuts short.

# %%
window = attention.full_windows(loaded)[:1]
maps = attention.attention_maps(loaded.model, window.to(store.device()))
weights, values, output = maps[0]
print(f"{len(maps)} layers; each map: {tuple(weights.shape)}")
print("that is: window, head, position, token read")
rows = attention.without_rewards(attention.predicted(weights), transition)
one = torch.ones(1).to(weights)
assert torch.allclose(weights.sum(-1), one)
assert torch.allclose(weights @ values, output, atol=1e-5)
assert torch.allclose(rows[..., 1:, :].sum(-1), one)

# %% [markdown]
# ## Figure 3


# %% tags=["hide-input"]
def all_rows() -> pd.DataFrame:
    """Return the maps of the first seed of each profile."""
    return pd.concat([attention.figure_rows(*first_seed[profile], layers, last=5) for profile in PROFILES])


shown = store.table("fig3_attention", size, all_rows, exps, {"layers": layers, "transitions": 5})
steps = list(range(T - 5, T))
tokens = [f"{name}@{t}" for t in steps for name in transition.names()[:K]]
not_read = ~np.tri(len(tokens), k=-1, dtype=bool)  # a token is predicted from those before it


def draw_map(axes, rows: pd.DataFrame) -> None:
    """Draw the map of one head."""
    cells = rows.pivot(index="query", columns="key", values="weight").reindex(index=tokens, columns=tokens).fillna(0.0)
    sns.heatmap(cells, mask=not_read, norm=PowerNorm(0.5, 0, 1), cmap="YlGnBu", square=True, cbar=False, ax=axes,
                xticklabels=False, yticklabels=False, rasterized=True)  # fmt: skip
    edges = K * np.arange(1, 5)
    axes.hlines(edges, 0, len(tokens), color="#bbbbbb", lw=0.5)
    axes.vlines(edges, 0, len(tokens), color="#bbbbbb", lw=0.5)
    axes.set(xlabel="", ylabel="", xticks=K * (np.arange(5) + 0.5), yticks=K * (np.arange(5) + 0.5))
    axes.set_xticklabels(steps)
    axes.set_yticklabels(steps)


# %% tags=["hide-input"]
def figure_3(profile: str, name: str) -> None:
    """Draw the maps of all heads of two layers, and save the figure."""
    part = shown[shown.profile == profile]
    heads = sorted(part["head"].unique())
    figure, grid = plt.subplots(len(layers), len(heads), figsize=(7, 4.1), layout="constrained")
    for axes, (layer, head) in zip(grid.flat, itertools.product(layers, heads)):
        draw_map(axes, part[(part.layer == layer) & (part["head"] == head)])
        axes.set_title(f"layer {layer}, head {head}")
    bar = figure.colorbar(grid[0, 0].collections[0], ax=grid, shrink=0.6, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "0.05", "0.2", "0.5", "1"])
    bar.set_label("weight")
    figure.supylabel("step of the token predicted")
    figure.supxlabel("step of the token read")
    figure.suptitle(f"Attention maps, profile {profile} ({size})")
    results.save_figure(figure, name, size)
    plt.show()


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-3", "caption": "Our version of the paper's Figure 3, with all heads of two layers: profile v1, the last five transitions of one held-out window. In each block, a state's dimensions come first, and the action's dimensions follow. The model also saw earlier transitions, which hold the rest of the weight. The colour scale is that of the square root of the weight."}, "image": {"alt": "A grid of lower triangular maps of layers 1 and 3, with one column for each head. In some heads of layer 1, the weight lies in the block just before the diagonal. In one head, it lies on lines parallel to the diagonal. The maps of layer 3 are more diffuse."}}
figure_3("v1", "fig3_attention")

# %% [markdown]
# The other profile, on the same window:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-3-released", "caption": "The same maps for profile released. This is another model, trained on other bins. Its training decided the order of its heads, so equal numbers do not mean equal heads."}, "image": {"alt": "The same grid for another model. Layer 1 again shows blocks just before the diagonal and one head with parallel lines, and the maps of layer 3 are diffuse."}}
figure_3("released", "fig3_attention_released")

# %% [markdown]
# ## Look for yourself
#
# The viewer shows one held-out window of the model `v1`, with every layer and head. Choose the token to be predicted
# with the menus, by a click, or with the arrow keys when the table has the focus. (Home and End go to the first and the
# last step.) The numbers are weights in per cent, rewards included. Values are those of the bins that the model read.

# %% tags=["hide-input"]
beginning = window[0, : min(T, 10) * D]  # later tokens do not change the maps before them
short = [weights[0, :, : len(beginning), : len(beginning)] for weights, _, _ in maps]
HTML(
    viewers.attention_viewer(short, beginning, loaded.tokenizer.to("cpu"), tasks.MEANING["hopper"], "attention-viewer")
)

# %% [markdown]
# The model never reads reward-to-go, because its true value is unknown while the model acts. At that position it always
# reads the same token.
#
# ## Scores
#
# Two chosen heads only show that a pattern can occur. To find out how typical it is, we score every head. Let $i$ be a
# token of the last transition $t$ of a window. With $\bar w$ of {eq}`eq-attention-row`, we define
#
# $$\text{markov} = \sum_{j} \bar w_{(t,i),(t-1,j)}, \qquad
#   \text{striated} = \sum_{u \le t-2} \bar w_{(t,i),(u,i)}.$$ (eq-attention-scores)
#
# We average both over all full held-out windows and over the dimensions $i$ of states or of actions. For actions, we also
# score the weight on actions and on states of earlier steps: as a sum, and per key, because there are more states than
# actions.
#
# A score alone says little, because evenly spread attention does not give zero. We count its scores for the tokens of a
# state:

# %%
seen = (T - 1) * K + np.arange(transition.N)  # keys of each state dimension
even = attention.scores(attention.uniform(T * D), transition)
even = even.set_index(["rows", "score"]).value["states"]
by_hand = {"markov": K / seen, "striated": (T - 2) / seen}
by_hand["current"] = np.arange(transition.N) / seen
for name, weight in by_hand.items():
    print(f"{name}: {even[name]:.4f} if even, by hand {weight.mean():.4f}")
    assert np.isclose(even[name], weight.mean())


# %% tags=["hide-input"]
def score_all() -> pd.DataFrame:
    """Score every head of every model."""
    return pd.concat([attention.score_table(e, trained) for e, trained in models])


table = store.table("attention_scores", size, score_all, exps)
HEAD = ["profile", "layer", "head", "seed"]


def values_of(score: str, rows: str) -> pd.DataFrame:
    """Return one score of all heads."""
    return table[(table.score == score) & (table.rows == rows)]


def strip(axes, score: str, rows: str, title: str, threshold: float | None = None) -> None:
    """Draw one score of all heads by layer, with the score of even attention and our threshold."""
    part = values_of(score, rows)
    sns.stripplot(part, x="layer", y="value", hue="profile", dodge=True, jitter=False, alpha=0.8, legend=False, ax=axes)
    axes.axhline(part.uniform_value.iloc[0], ls="--", lw=1, color=figures.COLOURS["data"])
    if threshold:
        axes.axhline(threshold, ls=":", lw=1, color=figures.COLOURS["data"])
    axes.set(title=title, xlabel="layer", ylabel="weight", ylim=(0, None))


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-attention-scores", "caption": "Scores of every head. By layer: the dashed line is even attention, and the dotted line is our threshold for a pattern. Below, left and middle, for predicted actions: weight on past actions against weight on past states. On the diagonal they are equal, and the cross is even attention."}, "image": {"alt": "Six panels with one dot per head and profile. In the first layer, some heads are far above the dashed line for the Markov score and one per profile for the striated score; later layers are near the line. Below, most heads lie under the diagonal for sums, and near or above it per key."}}
figure, grid = plt.subplots(2, 3, figsize=(7, 4.8), layout="constrained")
striated_threshold = attention.STRIATED * even["striated"]
strip(grid[0, 0], "markov", "states", "markov, states", attention.MARKOV)
strip(grid[0, 1], "markov", "actions", "markov, actions")
strip(grid[0, 2], "striated", "states", "striated, states", striated_threshold)
strip(grid[1, 2], "rewards", "states", "left out: r and R, states")
actions = table[table.rows == "actions"].pivot(index=HEAD, columns="score", values="value").reset_index()
even_actions = table[table.rows == "actions"].groupby("score").uniform_value.first()
for axes, states, acts, title in (
    (grid[1, 0], "past_states", "past_actions", "actions, sums"),
    (grid[1, 1], "past_state_key", "past_action_key", "actions, per key"),
):
    sns.scatterplot(actions, x=states, y=acts, hue="profile", hue_order=PROFILES, alpha=0.8, ax=axes)
    end = 1.05 * actions[states].max()
    axes.plot([0, end], [0, end], lw=1, color=figures.COLOURS["data"])
    axes.plot(even_actions[states], even_actions[acts], "x", ms=8, mew=2, color="black")
    axes.set(title=title, xlabel="on past states", ylabel="on past actions", xlim=(0, None), ylim=(0, None))
    dots = axes.get_legend_handles_labels()
    axes.get_legend().remove()
figure.legend(*dots, ncols=2, loc="outside lower center")
figure.suptitle(f"Scores of all heads ({size})")
results.save_figure(figure, "attention_scores", size)
plt.show()

# %% [markdown]
# We call a head *Markovian* if predicted states give more than half of their weight to the previous transition. We call
# it *striated* if they give the same dimension, two or more steps back, at least three times the weight of even
# attention. Both thresholds are ours, since the paper gives none.
#
# ## What we saw


# %% tags=["hide-input"]
def clearest(score: str, profile: str) -> pd.Series:
    """Return the head of a profile with the highest score on states."""
    return values_of(score, "states").query("profile == @profile").sort_values("value").iloc[-1]


def head_name(head) -> str:
    """Return the layer and number of a head, and its seed where there are several."""
    return f"layer {head['layer']}, head {head['head']}" + f", seed {head['seed']}" * (len(seeds) > 1)


counts = attention.summary(table).loc[PROFILES]
both = (counts[["markov", "striated"]] > 0).all().all()
by_sum = (counts.past_actions > counts.past_states).all()
per_key = (counts.key > counts.heads / 2).all()
patterns = "Both patterns occur in both models." if both else "At least one pattern does not occur in a model."
sums = "more" if by_sum else "less"
keys = "In most heads, a single past action gets" if per_key else "It is not true of most heads that a past action gets"
Markdown(
    f"**{patterns} Predicted actions put {sums} weight on all past actions together than on all past states. {keys} "
    "more weight than a single past state.**"
)

# %% tags=["hide-input"]
columns = {}
for profile, row in counts.iterrows():
    markov, striated = clearest("markov", profile), clearest("striated", profile)
    of = f"of {row.heads:.0f}"
    columns[profile] = {
        "Markovian heads": f"{row.markov:.0f} {of}",
        "clearest: weight of states on the previous transition": f"{markov.value:.0%} ({head_name(markov)})",
        "striated heads": f"{row.striated:.0f} {of}",
        "clearest: weight of states two or more steps back": f"{striated.value:.0%} ({head_name(striated)})",
        "heads that put more weight on past actions, by the sum": f"{row['sum']:.0f} {of}",
        "the same, per key": f"{row.key:.0f} {of}",
        "mean weight on past actions / past states": f"{row.past_actions:.2f} / {row.past_states:.2f}",
    }
pd.DataFrame(columns).rename_axis(columns="profile")

# %% tags=["hide-input"]
by_head = table.set_index([*HEAD, "rows", "score"]).value.sort_index()
sentences = []
for profile in PROFILES:
    striated = clearest("striated", profile)
    before = by_head[(*striated[HEAD], "states", "same_before")]
    later = values_of("markov", "states").query("profile == @profile and layer == @layers[-1]").value.max()
    sentences.append(
        f"In `{profile}`, the clearest striated head also gives {before:.0%} to the same dimension one step back. In "
        f"layer {layers[-1]}, no head gives more than {later:.0%} to the previous transition."
    )
unknown = "one training of each profile, so we do not know what another would give"
trained = "several training seeds" if len(seeds) > 1 else unknown
Markdown(
    f"Even attention would give {even['markov']:.0%} to the previous transition, and {even['striated']:.0%} to the "
    f"same dimension two or more steps back. {' '.join(sentences)} The paper finds one of its two maps in layer 3.\n\n"
    f"The numbers are means over {table.windows.min()} held-out windows. They come from {trained}. The paper shows two "
    "heads of one model and gives no counts."
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} A Markovian map
# :label: attention-markov
#
# The Markovian Transformer of [the page on long horizons](10_long_horizon.py) reads two transitions, the previous and
# the current one. Think before you draw the map of one of its heads. Where can it be above zero? How large can `markov`
# and `striated` be? Which score says how much the head uses the previous transition?
# ```
#
# ````{solution-start} attention-markov
# :class: dropdown
# ````

# %%
cut = experiments.get("humanoid-markov", size)
markov = store.load_or_train(cut)
scored = attention.score_table(cut, markov).query("rows == 'states'")
wide = scored.pivot(index=["layer", "head"], columns="score", values="value")
wide = wide[["markov", "current", "striated"]]
uniform = scored.groupby("score").uniform_value.first()[wide.columns]
assert np.allclose(wide.markov + wide.current, 1) and (wide.striated == 0).all()
uniform = pd.DataFrame([uniform], index=[("even", "")])
pd.concat([wide, uniform]).style.format("{:.2f}")

# %% [markdown]
# The map has two blocks: a triangle at the diagonal, and a full block to its left. No token lies two steps back, so
# `striated` is exactly 0, and `markov` and `current` add up to 1. The figure shows the second transition of two heads:
# the one that uses the first transition least, and the one that uses it most.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-attention-markov", "caption": "Two heads of the Markovian Transformer of the humanoid. Rows are the states and actions of the second transition."}, "image": {"alt": "Two maps of 62 rows and 124 columns. On the left is a full block of the previous transition, and on the right is a triangle."}}
humanoid = cut.model.transition
H = humanoid.action.stop
ids = attention.full_windows(markov)[:1].to(store.device())
columns = np.flatnonzero(np.arange(2 * humanoid.D) % humanoid.D < H)
markov_maps = [attention.predicted(w[0].cpu()) for w, _, _ in attention.attention_maps(markov.model, ids)]
figure, panels = plt.subplots(2, 1, figsize=(7, 5), layout="constrained", sharex=True)
for axes, (layer, head) in zip(panels, (wide.markov.idxmin(), wide.markov.idxmax())):
    rows = attention.without_rewards(markov_maps[layer - 1][head - 1], humanoid)[humanoid.D :][:H, columns].numpy()
    sns.heatmap(rows, mask=rows == 0, norm=PowerNorm(0.5, 0, 1), cmap="YlGnBu", cbar=False, ax=axes, rasterized=True,
                xticklabels=False, yticklabels=False)  # fmt: skip
    axes.set(title=f"layer {layer}, head {head}: markov {wide.markov[layer, head]:.2f}", ylabel="token predicted")
    axes.axvline(H, color="#bbbbbb", lw=0.8)
panels[-1].set_xlabel("token read: previous transition, then current")
figure.suptitle(f"Two heads of the Markovian Transformer ({size})")
plt.show()

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} The head that copies
# :label: attention-copy
#
# Which head could tell an action what the previous action was? Find it in the scores. What else would you need to know
# before you call it a copy?
# ```
#
# ````{solution-start} attention-copy
# :class: dropdown
# ````

# %%
copies = values_of("same_before", "actions").sort_values("value", ascending=False)
copies = copies.rename(columns={"value": "weight", "uniform_value": "even"})
best = copies.groupby("profile").head(2)[[*HEAD, "weight", "even"]]
best.style.hide(axis="index").format(precision=3)

# %%
for profile, (_, trained) in first_seed.items():
    ids = attention.full_windows(trained).to(store.device())
    values = trained.tokenizer.to(store.device()).decode(ids).cpu()
    actions = values.unflatten(1, (T, D))[..., transition.action].numpy()
    alike = []
    for m in range(transition.M):
        now, before = actions[:, 1:, m].ravel(), actions[:, :-1, m].ravel()
        alike.append(f"{np.corrcoef(now, before)[0, 1]:.2f}")
    print(f"{profile}: correlation of successive actions {', '.join(alike)}")

# %% [markdown]
# A weight says where a head looks. It does not say what the head brings back, or whether a later layer uses it. If
# successive actions were not alike, a copy would be useless. Only the likelihood can show whether the model uses it: see
# the next exercise.
#
# ````{solution-end}
# ````
#
# ```{exercise} Hide the pattern
# :label: attention-mask
#
# `GPT.forward` takes its attention as an argument. Write an `attend` that hides some keys from one head and rescales the
# remaining weights, or use `attention.masking`. Hide its Markovian keys, its striated keys, or the same dimension one
# step back. By how many nats per token does the held-out likelihood fall, for each head? Does the largest weight cost
# most?
# ```
#
# ````{solution-start} attention-mask
# :class: dropdown
# ````


# %%
position = torch.arange(1, T * D)
late = position >= 2 * D  # at least two transitions come before
dims = position % D
KINDS = {"state": late & (dims < transition.N)}
KINDS["action"] = late & (dims >= transition.N) & (dims < K)


@torch.inference_mode()
def nats_by_kind(trained, attend=None) -> dict[str, float]:
    """Return the mean nats per token of held-out states and actions."""
    ids = attention.full_windows(trained)[:32].to(store.device())
    nats = token_nats(trained.model, ids, attend).cpu()
    return {kind: nats[:, chosen].mean().item() for kind, chosen in KINDS.items()}


# %%
HIDDEN = ("markov", "same_before", "striated")


def hide_each() -> pd.DataFrame:
    """Hide each pattern from each head, and return the nats that this costs."""
    keys, rows = attention.patterns(transition, T), []
    for profile, (e, trained) in first_seed.items():
        whole = nats_by_kind(trained)
        layers = range(1, e.model.n_layer + 1)
        heads = range(1, e.model.n_head + 1)
        for layer, head, pattern in itertools.product(layers, heads, HIDDEN):
            row = {"profile": profile, "layer": layer, "head": head}
            attend = attention.masking(trained.model, layer, head, keys[pattern])
            nats = nats_by_kind(trained, attend)
            row |= {"hidden": pattern}
            row |= {kind: nats[kind] - whole[kind] for kind in whole}
            rows.append(row | {f"{kind}_whole": whole[kind] for kind in whole})
    return pd.DataFrame(rows)


# %% tags=["hide-input"]
config = {"windows": 32, "hidden": HIDDEN}
costs = store.table("exercise_attention_masking", size, hide_each, exps, config)
wide = costs.pivot(index=["profile", "layer", "head"], columns="hidden", values=["state", "action"])
most = pd.concat([wide.loc[[profile]].nlargest(5, ("state", "markov")) for profile in PROFILES])
most.rename_axis(columns=["nats lost per token of a", "keys hidden"]).style.format("{:+.3f}")

# %% tags=["hide-input"]
weight = values_of("markov", "states").query("seed == @seeds[0]").set_index(["profile", "layer", "head"]).value
columns = {}
for profile in PROFILES:
    lost, weights_here = wide["state", "markov"][profile], weight[profile]
    widest, costliest, stripes = weights_here.idxmax(), lost.idxmax(), wide["state", "striated"][profile]
    name = "layer {}, head {}".format
    columns[profile] = {
        "head with the largest weight on the previous transition": f"{name(*widest)}: {weights_here[widest]:.0%}",
        "nats lost per state token when it is hidden": f"{lost[widest]:.2f}",
        "head that loses most": f"{name(*costliest)}: {lost[costliest]:.2f}",
        "most that any head loses without its stripes": f"{name(*stripes.idxmax())}: {stripes.max():.2f}",
        "most that any head loses on actions": f"{wide['action'].loc[profile].max().max():.2f}",
        "rank correlation of weight and loss": f"{weights_here.corr(lost, method='spearman'):.2f}",
    }
pd.DataFrame(columns).rename_axis(columns="profile")

# %% [markdown]
# The rest of the model did not expect that a head was masked after training. So the loss tells what this model uses. It
# does not tell how good a model would be that was trained without the head.
#
# ````{solution-end}
# ````
