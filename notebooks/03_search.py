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
# # Beam search as planning
#
# **Claim** (Section 3.2, Algorithm 1). The beam search with which language models finish sentences is also a planner.
# If it scores sequences by likelihood, it imitates. If it scores them by reward plus reward-to-go, it acts better than
# the data that it imitates.
#
# After this page you can
#
# - run Algorithm 1 by hand, and say when a wider beam helps and what it costs;
# - turn it into a search for reward, and show why reward-to-go is needed;
# - examine one decision of the planner and see what it chose from.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown

from ttlib import control, search, tokenizer
from ttlib.baselines import agents
from ttlib.drawing import figures
from ttlib.pipeline import experiments, store
from ttlib.studies.four_rooms import four_rooms_pairs
from ttlib.tokenizer import Transition

figures.style()
NAME = "hopper-long"
profiles = {profile: experiments.get(NAME, size, profile) for profile in experiments.PROFILES}
exp = profiles["v1"]
transition = exp.model.transition

# %% [markdown]
# ## By hand
#
# Beam search {cite:p}`reddy1977speech` grows $B$ sequences at once. It continues each of them by every token $v$ of the
# vocabulary. The log-probability of a sequence grows by
#
# $$q_l = q_{l-1} + \log P_\theta(v \mid \bar{\tau}_{l-1}),$$ (eq-beam)
#
# and the search keeps the $B$ most probable continuations. `search.beam_search` knows nothing about networks. It asks a
# function `advance` what may follow the tokens that were just appended. Here that function reads a table over three
# tokens, A, B and C. A is the most probable first token, but after A every token is about equally likely. After B comes
# C, and after C comes B, nearly always.

# %%
letters = np.array(list("ABC"))
first = torch.tensor([0.5, 0.4, 0.1])
after = torch.tensor([[0.40, 0.30, 0.30], [0.05, 0.05, 0.90], [0.05, 0.90, 0.05]])


def advance(bins, parents):
    """Return log-probabilities of the token after each.  (G, K) -> (G, K, V)"""
    return after.log()[bins]


def find(width: int, length: int = 4) -> search.Beams:
    """Return the sequences that a beam of this width finds, best first."""
    return search.beam_search(advance, first.log()[None, None], length, width)


for width in (1, 2):
    beams = find(width)
    word, p = "".join(letters[beams.bins[0, 0]]), beams.log_p[0, 0].exp()
    print(f"width {width}: {word} with probability {p:.4f}")

# %% [markdown]
# Width 1 is greedy: it takes A and cannot go back. With width 2, B survives the first step ({numref}`fig-tree`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tree", "caption": "A search of width 2. Blue boxes are kept, and grey boxes were tried and dropped. The numbers are probabilities. The orange line is the way of greedy search, and the blue line is the best sequence."}, "image": {"alt": "A tree over four steps. At each step six continuations are tried and two are kept. The path B, C, B, C ends with probability 0.29, and the greedy path A, A, A, A with 0.03."}}
figure, axes = plt.subplots(figsize=(7, 4))
beam, spot, best = {"": 1.0}, {"": 2.5}, "BCBC"
for step in range(4):
    grown = {word + letters[v]: p * (after["ABC".index(word[-1])] if word else first)[v].item()
             for word, p in beam.items() for v in range(3)}  # fmt: skip
    rows = {word: y + (0 if step else 1.5) for y, word in enumerate(grown)}
    survivors = {"".join(letters[bins]) for bins in find(2, step + 1).bins[0]}
    for word, y in rows.items():
        way = "other" if set(word) == {"A"} else "transformer" if best.startswith(word) else None
        edge = {"color": figures.COLOURS[way], "lw": 2.5} if way else {"color": "#bbbbbb", "lw": 1}
        axes.plot([step + 0.25, step + 0.8], [spot[word[:-1]], y], zorder=0, **edge)
        stays = word in survivors
        look = {"fc": figures.COLOURS["transformer"] if stays else "#dddddd", "boxstyle": "round,pad=0.25", "lw": 0}
        style = {"color": "white" if stays else "#444444", "ha": "center", "va": "center", "bbox": look}
        axes.text(step + 1.02, y, f"{word}  {grown[word]:.3f}", **style)
    beam = {word: grown[word] for word in rows if word in survivors}
    spot = {word: rows[word] for word in beam}
axes.set(xlim=(0.1, 4.5), ylim=(5.5, -0.5))
axes.axis("off")
plt.show()

# %% [markdown]
# ## How wide is wide enough?
#
# A beam of $V^L$ sequences drops none, so it is exhaustive search. Here narrower beams are compared with brute force on
# 500 random tables, with four tokens and length six.

# %%
G, V, L = 500, 4, 6
rng = torch.Generator().manual_seed(0)
tables = torch.randn(G, V, V, generator=rng).log_softmax(-1)
problem = torch.arange(G)[:, None]
every = torch.cartesian_prod(*[torch.arange(V)] * L)  # all V^L sequences
before = torch.cat([torch.zeros(len(every), 1).long(), every[:, :-1]], 1)
best_log_p = torch.stack([table[before, every].sum(1).max() for table in tables])


def nats_below_best(width: int) -> torch.Tensor:
    """Return by how much a beam misses the best sequence of each table.  (G,)"""
    ask = lambda bins, parents: tables[problem, bins]  # noqa: E731
    return best_log_p - search.beam_search(ask, tables[:, :1], L, width).log_p[:, 0]


gaps = {width: nats_below_best(width) for width in (1, 2, 4, 8, 16, V**L)}
rows = [(w, (gap < 1e-5).double().mean(), gap.mean()) for w, gap in gaps.items()]
columns = ["width", "finds the best", "nats below the best"]
widths = pd.DataFrame(rows, columns=columns).set_index("width").astype(float)
assert widths["finds the best"].iloc[-1] == 1
widths.style.format({"finds the best": "{:.0%}", "nats below the best": "{:.3f}"})

# %% [markdown]
# On tokens of states and actions, this search looks for the most probable future. This is imitation, or goal reaching
# if a goal is in front of the sequence ([Four rooms](04_four_rooms.py)).
#
# ## From likelihood to reward
#
# To plan for reward, each transition also carries reward-to-go, which is the discounted sum of the rewards from now on
# ([Tokens](01_tokens.py)). The value of a plan of $h$ transitions is
#
# $$v = \sum_{k=0}^{h-2} \gamma^k r_k + \gamma^{h-1} R_{h-1}.$$ (eq-plan-value)
#
# `search.maximise` alternates between two steps. Likelihood *proposes*: each of $B$ plans gets $K$ probable next
# transitions. Value *chooses*: of the $B K$ longer plans, the $B$ plans with the greatest $v$ stay. So rewards choose
# only among what the data make probable.
#
# :::{admonition} A departure from the paper
# The search does not run over $r$ and $R$. They are read as expectations under their predicted bins. The last exercise
# shows why.
# :::
#
# ## A world that punishes impatience
#
# Eight places are in a row, and an agent begins at place 0. Action *stay* earns 1 at place 0 and 10 at place 7. All
# other rewards are 0, and action *go* leads to the next place. The data come from an agent that tosses a coin at every
# step. The table shows the reward-to-go of this coin:

# %%
tiny, gamma = Transition(N=3, M=1), 0.99
places = torch.arange(8)
following = torch.stack([places, (places + 1).clamp(max=7)], 1)  # of stay, of go
earned = torch.zeros(8, 2)
earned[0, 0], earned[7, 0] = 1.0, 10.0
to_go = torch.zeros(8, 2)
for _ in range(3000):
    to_go = earned + gamma * to_go.mean(1)[following]
table = pd.DataFrame(to_go, columns=["stay", "go"]).rename_axis("place")
table.T.style.format("{:.0f}")

# %% [markdown]
# This world is small enough to be written down as an `advance` with $V = 2$ bins. A place is three bits and an action
# is one bit. A reward is a mixture of the two bins, with the right expectation.


# %%
ends = torch.tensor([[0.0, 0, 0, 0, -20, -2000], [1, 1, 1, 1, 20, 2000]])
two_bins = tokenizer.fit(ends.T, tiny, V=2)  # r is -10 or 10, R is -1000 or 1000


def probability_of_1(dim: int, place: torch.Tensor, action: torch.Tensor):
    """Return the probability of bin 1 in dimension `dim` of a transition."""
    if dim < tiny.N:
        return ((place >> dim) & 1).float()
    if dim == tiny.N:
        return torch.full(place.shape, 0.5)
    low, high = two_bins.centres[dim].float()
    number = (earned if dim == tiny.reward else to_go)[place, action]
    return (number - low) / (high - low)

# %% tags=["hide-input"]
class Corridor:
    """The `advance` and `select_plans` of this world, for sequences that begin at place 0."""

    def __init__(self):
        self.place = self.action = torch.zeros(1, 1, dtype=torch.long)
        self.dim, self.log_p = tiny.N, torch.full((1, 1, 2), 0.5).log()

    def advance(self, bins, parents):
        if parents is not None:
            self.place = self.place.gather(1, parents)
            self.action = self.action.gather(1, parents)
        if self.dim == tiny.N:
            self.action = bins
        self.dim = (self.dim + 1) % tiny.D
        if self.dim == 0:
            self.place = following[self.place, self.action]
        p = probability_of_1(self.dim, self.place, self.action)
        return torch.stack([1 - p, p], -1).log()

    def select_plans(self, rows):
        self.place = self.place.view(len(rows), -1).gather(1, rows).flatten()[:, None]
        self.action = self.action.view(len(rows), -1).gather(1, rows).flatten()[:, None]

# %%
def first_action(horizon: int, beam_width: int, use_reward_to_go: bool) -> str:
    """Return what the planner does at place 0."""
    options = {"gamma": gamma, "use_reward_to_go": use_reward_to_go}
    plan = search.Plan(horizon, beam_width, expansions=2, **options)
    world = Corridor()
    verbs = (world.advance, world.select_plans)
    plans = search.maximise(*verbs, world.log_p, two_bins, plan)
    return ("stay", "go")[plans.bins[0, 0, 0]]


horizons = pd.Index(range(1, 10), name="horizon")
patience = pd.DataFrame({
    "with R, 1 plan kept": [first_action(h, 1, True) for h in horizons],
    "without R, 8 plans kept": [first_action(h, 8, False) for h in horizons],
    "without R, all plans kept": [first_action(h, 2**h, False) for h in horizons],
}, index=horizons)  # fmt: skip
assert (patience["with R, 1 plan kept"] == "go").all()
assert patience.loc[7, "without R, all plans kept"] == "stay"
assert patience.loc[8, "without R, all plans kept"] == "go"
patience.T

# %% [markdown]
# Adding up rewards alone is myopic. Place 7 is seven steps away, so going pays only from horizon 8 on. A beam drops the
# way there long before. Reward-to-go shows after *one* transition that going is better. It need not be accurate, and it
# is not: it is the value of tossing coins, not the value of the plan.
#
# ## What is proposed
#
# The planner asks the hopper model for probable actions. Profile `v1` takes the most probable ones, by beam search.
# Profile `released` samples actions, and it may first remove unlikely bins with a filter. The usual filters are a
# temperature,
#
# $$p_b \propto P_\theta(b)^{1/\text{temperature}},$$ (eq-temperature)
#
# only the $k$ most probable bins, or a drop probability. The last filter drops the least likely bins that together hold
# less than this probability ({numref}`fig-filters`). The authors' code uses a drop probability of 0.6. The model of
# this page plans better when nothing is dropped ([Hopper](05_hopper.py)), so its search drops nothing below size
# `paper`.

# %%
loaded = {profile: store.load_or_train(e) for profile, e in profiles.items()}
models = {profile: checkpoint.model.cpu() for profile, checkpoint in loaded.items()}
tokenizers = {profile: x.tokenizer.to("cpu") for profile, x in loaded.items()}
_, unseen = store.split(exp.data)
longest = unseen.starts[unseen.lengths.argmax()]
state = torch.from_numpy(unseen.states[longest + 20][None])


def decoder(profile: str, copies: int = 1) -> control.Decoder:
    """Return the model after it has read the state."""
    ids = tokenizers[profile].encode(state, transition.state).expand(copies, -1)
    return control.Decoder(models[profile], tokenizers[profile], ids)


# %%
with torch.inference_mode():
    log_p = decoder("v1").log_p[0, 0]
tenth = log_p.topk(10).values[-1]
filters = {
    "as predicted": log_p,
    "temperature 0.5": log_p / 0.5,
    "10 most probable bins": log_p.masked_fill(log_p < tenth, -torch.inf),
    "drop probability 0.6": search.filtered(log_p, drop_probability=0.6),
}
distributions = {name: x.softmax(-1) for name, x in filters.items()}
for name, p in distributions.items():
    print(f"{name:21} {int((p > 0).sum()):3} bins")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-filters", "caption": "One real distribution of the next action token, which is the thigh torque, unfiltered and after three filters."}, "image": {"alt": "Four bar charts over the torque from -1 to 1. The filtered ones have fewer and higher bars."}}
figure, panels = plt.subplots(2, 2, figsize=(7, 4.2), sharex=True, sharey=True, layout="constrained")
fitted = tokenizers["v1"]
centres, edges = (x[transition.action][0].tolist() for x in (fitted.centres, fitted.edges))
for axes, (name, p) in zip(panels.flat, distributions.items()):
    sns.histplot(x=centres, weights=p.numpy(), bins=edges, alpha=1, ax=axes)
    axes.set(title=name, xlabel="thigh torque", ylabel="probability")
figure.suptitle(f"Distributions of the next action token ({size})")
plt.show()

# %% [markdown]
# ## A search of M tokens
#
# The first $M$ tokens after a state are its action. The paper says that a search of this length is behaviour cloning
# with an autoregressive policy. The check below uses 100 held-out states. It compares the search with the policy that
# is read off the network token by token, with neither search nor cache.


# %%
@torch.inference_mode()
def compare() -> pd.DataFrame:
    """Return both actions in 100 held-out states, with their log-probabilities."""
    model, fitted = models["v1"], tokenizers["v1"]
    rows = np.linspace(0, len(unseen.states) - 1, 100).astype(int)
    ids = fitted.encode(torch.from_numpy(unseen.states[rows]), transition.state)
    start = control.Decoder(model, fitted, ids)
    found, record = control.ByLikelihood(horizon=0, width=1)(start, None)
    policy_log_p = torch.zeros(len(ids))
    for offset in fitted.offset[transition.action]:
        log_p, bins = model(ids)[:, -1].log_softmax(-1).max(-1)
        policy_log_p += log_p
        ids = torch.cat([ids, (bins + offset)[:, None]], 1)
    policy = ids[:, -transition.M :] % fitted.V
    columns = {"search_log_p": record["log_p"], "policy_log_p": policy_log_p}
    for name, bins in (("policy", policy), ("search", found)):
        words = [" ".join(map(str, row)) for row in bins.tolist()]
        columns = {name: words, **columns}
    return pd.DataFrame(columns)


# %% tags=["hide-input"]
cloning = store.table("cloning_check", size, compare, [exp], {"states": 100})
same = (cloning.search == cloning.policy).mean()
print(f"Both take the same action in {same:.0%} of {len(cloning)} states.")

# %% [markdown]
# ## One decision, examined
#
# The state is again the one after twenty steps of the longest unseen episode. The first transition has $B K$
# candidates. Each is an action with a log-probability and a predicted value. The $B$ candidates with the greatest
# values are continued, and the first action of the best plan is carried out ({numref}`fig-decision`).


# %%
@torch.inference_mode()
def decide(profile: str) -> tuple[pd.DataFrame, torch.Tensor, float]:
    """Return the proposed actions as table and bins, and the best plan's value."""
    plan, start = profiles[profile].plan, decoder(profile)
    count, tokens = plan.beam_width * plan.expansions, (0, transition.M)
    streams = control.Streams([0])
    beams = search.propose(start.advance, start.log_p, tokens, count, plan, streams)
    r, R, _ = search.read_rewards(start.advance, beams, start.tokenizer)
    r, R = r[0, :, None], R[0, :, None]
    value = search.plan_value(r, R, plan.gamma, plan.reward_in_R)
    table = pd.DataFrame({"log_p": beams.log_p[0], "value": value})
    rank = table["value"].rank(ascending=False, method="first")
    action, record = control.ByReward(plan)(decoder(profile), control.Streams([0]))
    table["kept"] = rank <= plan.beam_width
    table["chosen"] = (beams.bins[0] == action).all(-1)
    return table, beams.bins[0], record["value"].item()


decisions = {profile: decide(profile) for profile in profiles}
for profile, (table, _, value) in decisions.items():
    kept = f"{table.kept.sum()} of {len(table)} candidates are kept"
    print(f"{profile}: {kept}, and the best plan has the value {value:.1f}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-decision", "caption": "The candidates of one decision: predicted value against log-probability of the action. The star is the action that is carried out. Its continuation was best, but after one transition it need not be best."}, "image": {"alt": "Two scatter plots of candidate actions, one for each profile. The kept candidates are in the upper part, and a star marks one of them."}}
figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
looks = {"kept": figures.COLOURS["transformer"], "dropped": figures.COLOURS["data"]}
for axes, (profile, (table, *_)) in zip(panels, decisions.items()):
    fate = table.kept.map({True: "kept", False: "dropped"})
    sns.scatterplot(x=table.log_p, y=table.value, hue=fate, palette=looks, hue_order=looks, alpha=0.7, ax=axes)
    star = table[table.chosen].iloc[0]
    look = {"ms": 15, "mec": "white", "color": figures.COLOURS["other"]}
    axes.plot(star.log_p, star.value, "*", **look, label="carried out")
    axes.set(title=f"{profile} ({size})", xlabel="log-probability of the action (nats)", ylabel="")
    axes.locator_params(axis="x", nbins=4)
    handles = axes.get_legend_handles_labels()
    axes.legend().remove()
panels[0].set_ylabel("value after one transition")
figure.legend(*handles, loc="outside lower center", ncol=3)
plt.show()

# %% [markdown]
# How different are the candidates? The table compares them with 500 actions that are drawn from the model without any
# filter. The spread is the standard deviation of a torque, averaged over the three torques.

# %% tags=["hide-input"]
rows = {}
for profile, (table, bins, _) in decisions.items():
    with torch.inference_mode():
        drawn, record = agents.BySampling()(decoder(profile, copies=500), control.Streams([1]))
    fitted, log_p = tokenizers[profile], (table.log_p.mean(), record["log_p"].mean().item())
    for name, x, mean in zip(("candidates", "drawn"), (bins, drawn), log_p):
        torques = fitted.decode(x + fitted.offset[transition.action])
        rows[f"{profile}, {name}"] = [torques.std(0).mean().item(), mean]
choice = pd.DataFrame(rows, index=["spread", "mean log-probability"]).T
choice.style.format("{:.2f}")

# %% [markdown]
# The candidates of `v1` are the most probable actions. They are near copies of each other, because they are close to
# one mode. Sampled actions differ more. Where near copies get very different values, the difference is noise of the
# model, and the search picks this noise. There is a second caution. The data mix policies of different quality, so an
# action also tells *who* acts. A part of a predicted value may come from that, and not from what the action does.
#
# What does a decision cost? The cache lets each token of each plan be read once. A step of hopper lasts 8 ms in the
# simulator, and [Speed](08_speed.py) tells which searches are fast enough for that.
#
# ## What we saw

# %% tags=["hide-input"]
goes = {name: column.index[column == "go"] for name, column in patience.items()}
never = f"at no horizon up to {patience.index.max()}"
sets_out = {name: f"from horizon {h.min()} on" if len(h) else never for name, h in goes.items()}
relative = [f"{choice.spread[f'{p}, candidates'] / choice.spread[f'{p}, drawn']:.0%} (`{p}`)" for p in profiles]
percent = widths["finds the best"].map("{:.0%}".format)
found = {
    "tables where beam widths 1 and 4 find the best sequence": f"{percent[1]} and {percent[4]}",
    "without reward-to-go, all plans kept, the planner goes": sets_out["without R, all plans kept"],
    "without reward-to-go, 8 plans kept, the planner goes": sets_out["without R, 8 plans kept"],
    "spread of candidates relative to drawn actions": " and ".join(relative),
}
Markdown(
    f"**With reward-to-go and one plan kept, the planner goes {sets_out['with R, 1 plan kept']}.**"
    "\n\n| what | result |\n|---|---|\n" + "\n".join(f"| {what} | {result} |" for what, result in found.items())
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} How good is a wide beam?
# :label: ex-beam-width
#
# Take the trained four-rooms model, a hundred pairs of start and goal, and widths from 1 to 64. How does the
# log-probability of the best plan grow with the width? How many pairs get a less probable plan when the width is
# doubled? Count the same on the random tables above. Must a wider beam be at least as good?
# ```
#
# ````{solution-start} ex-beam-width
# :class: dropdown
# ````

# %%
rooms = experiments.get("four-rooms", size)
rooms_model = store.load_or_train(rooms)
starts, goals = four_rooms_pairs("seen", 100, seed=2000)
rows, before = [], (-np.inf, -np.inf)
for width in (1, 2, 4, 8, 16, 32, 64):
    choose = control.ByLikelihood(rooms.horizon, width)
    parts = (rooms_model.model, rooms_model.tokenizer, choose)
    agent = control.TransformerAgent(*parts, rooms.context, goals)
    agent.reset(range(len(goals)))
    log_p = (agent.act(starts)[1]["log_p"], -nats_below_best(width).numpy())
    worse = [int((new < old - 1e-4).sum()) for new, old in zip(log_p, before)]
    rows.append([width, log_p[0].mean(), *(worse if width > 1 else ("", ""))])
    before = log_p
names = ["width", "rooms: mean log-probability", "rooms: pairs that get worse"]
wider = pd.DataFrame(rows, columns=[*names, "random tables that get worse"])
wider.style.hide(axis="index").format({names[1]: "{:.3f}"})

# %% [markdown]
# On average the log-probability grows, and each doubling adds less. The last two columns count the problems that get a
# worse result than with half the width. They are rare, but they exist. A wider beam may prefer beginnings that turn out
# worse, and drop the beginning that a narrower beam follows to a better end. So it need not be at least as good.
#
# ````{solution-end}
# ````
#
# ```{exercise} Lucky bins
# :label: ex-lucky
#
# Suppose that the search also runs over $R$. Every bin of $R$ with a probability of at least 1% is a candidate, and the
# candidate with the greatest value is kept. Thirty-two actions lead to values with different means and standard
# deviations. Which action is chosen, what is promised, and what is it worth? Compare with reading expectations.
# ```
#
# ````{solution-start} ex-lucky
# :class: dropdown
# ````

# %%
rng, shape = np.random.default_rng(0), (1000, 32)  # problems, actions
centres = np.arange(100) + 0.5
mean, deviation = rng.normal(50, 3, shape), rng.uniform(2, 15, shape)
p = np.exp(-0.5 * ((centres - mean[..., None]) / deviation[..., None]) ** 2)
p /= p.sum(-1, keepdims=True)
worth = p @ centres
lucky = np.where(p > 0.01, centres, 0).max(-1)  # the best bin that is tried
rows = {}
for name, score in (("expectations", worth), ("search over R", lucky)):
    chosen = np.arange(len(score)), score.argmax(1)
    rows[name] = [x[chosen].mean() for x in (score, worth, deviation)]
print(f"A random action is worth {worth.mean():.1f}.")
columns = ["promised", "worth", "standard deviation"]
pd.DataFrame(rows, index=columns).T.style.format("{:.1f}")

# %% [markdown]
# A search over $R$ picks the action *and its luck*. It promises too much, and it prefers uncertain actions. An
# expectation cannot be lucky.
#
# ````{solution-end}
# ````
