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
# **Claim** (Section 3.2, Algorithm 1). The search that language models finish sentences with is a planner. Scored by
# likelihood it imitates; scored by reward plus reward-to-go it improves on what it imitates.
#
# After this page you can
#
# - run Algorithm 1 by hand, and say when a wider beam helps and what it costs;
# - turn it into a reward-maximising search, and show why reward-to-go is needed;
# - open up one decision of the planner and see what it chose from.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input"]
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ttlib import control, search, tokenizer
from ttlib.drawing import figures
from ttlib.pipeline import experiments, results, store
from ttlib.studies.four_rooms import four_rooms_pairs
from ttlib.tokenizer import Transition

NAME = "hopper-long"
profiles = {profile: experiments.get(NAME, size, profile) for profile in experiments.PROFILES}
exp = profiles["v1"]
transition = exp.model.transition

# %% [markdown]
# ## By hand
#
# Beam search {cite:p}`reddy1977speech` grows $B$ sequences at once. Each is continued by every token $v$ of the
# vocabulary, its log-probability grows by
#
# $$q_l = q_{l-1} + \log P_\theta(v \mid \bar{\tau}_{l-1}),$$ (eq-beam)
#
# and the $B$ most probable continuations stay. `search.beam_search` knows no network: it asks a function `advance` what
# may follow the tokens just appended. Here that is a table over three tokens, A, B and C. A is the
# likeliest beginning, but after it everything is open; after B comes C, after C comes B, nearly always.

# %%
letters = np.array(list("ABC"))
first = torch.tensor([0.5, 0.4, 0.1])
after = torch.tensor([[0.40, 0.30, 0.30], [0.05, 0.05, 0.90], [0.05, 0.90, 0.05]])


def advance(bins, parents):
    """(G, K) tokens appended -> (G, K, V) log-probabilities of the token after each; only the last one matters."""
    return after.log()[bins]


def find(width: int, length: int = 4) -> search.Beams:
    return search.beam_search(advance, first.log()[None, None], length, width)


for width in (1, 2):
    found = find(width)
    print(f"width {width}: {''.join(letters[found.bins[0, 0]])} with probability {found.log_p[0, 0].exp():.4f}")

# %% [markdown]
# Width 1 is greedy: it takes A, and cannot go back. With width 2, B survives the first step
# ({numref}`fig-tree`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tree", "caption": "Search of width 2. Blue boxes are kept, grey ones were tried and dropped; the numbers are probabilities. Orange: the way of greedy search. Blue line: the best sequence."}, "image": {"alt": "Tree over four steps. At each step six continuations are tried and two kept. The path B, C, B, C ends with probability 0.29, the greedy path A, A, A, A with 0.03."}}
figure, axes = plt.subplots(figsize=(7.5, 4.2))
beam, spot, best = {"": 1.0}, {"": 2.5}, "BCBC"
for step in range(4):
    grown = {word + letters[v]: p * (after["ABC".index(word[-1])] if word else first)[v].item()
             for word, p in beam.items() for v in range(3)}  # fmt: skip
    rows = {word: y + (0 if step else 1.5) for y, word in enumerate(grown)}
    kept = {"".join(letters[bins]) for bins in find(2, step + 1).bins[0]}
    for word, y in rows.items():
        way = "other" if set(word) == {"A"} else "transformer" if best.startswith(word) else None
        edge = {"color": figures.COLOURS[way], "lw": 2.5} if way else {"color": "#bbbbbb", "lw": 1}
        axes.plot([step + 0.25, step + 0.8], [spot[word[:-1]], y], zorder=0, **edge)
        look = {"fc": figures.COLOURS["transformer"] if word in kept else "#dddddd", "boxstyle": "round,pad=0.25", "lw": 0}
        axes.text(step + 1.02, y, f"{word}  {grown[word]:.3f}", color="white" if word in kept else "#444444",
                  ha="center", va="center", fontsize=9, bbox=look)  # fmt: skip
    beam = {word: grown[word] for word in rows if word in kept}
    spot = {word: rows[word] for word in beam}
axes.set(xlim=(0.1, 4.5), ylim=(5.5, -0.5))
axes.axis("off")
plt.show()

# %% [markdown]
# ## How wide is wide enough?
#
# A beam of $V^L$ sequences drops none: it is exhaustive search. Narrower ones are compared here with brute force
# on 500 random tables, four tokens, length six.

# %%
G, V, L = 500, 4, 6
tables = torch.randn(G, V, V, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
problem = torch.arange(G)[:, None]
every = torch.cartesian_prod(*[torch.arange(V)] * L)  # all V^L sequences; they begin after token 0
before = torch.cat([torch.zeros(len(every), 1, dtype=torch.long), every[:, :-1]], 1)
best = torch.stack([table[before, every].sum(1).max() for table in tables])
rows = []
for width in (1, 2, 4, 8, 16, V**L):
    found = search.beam_search(lambda bins, parents: tables[problem, bins], tables[:, :1], L, width)
    gap = best - found.log_p[:, 0]
    rows.append({"width": width, "found the best": (gap < 1e-5).float().mean().item(), "nats below it": gap.mean().item()})
widths = pd.DataFrame(rows)
assert widths["found the best"].iloc[-1] == 1
widths.style.hide(axis="index").format({"found the best": "{:.0%}", "nats below it": "{:.3f}"})

# %% [markdown]
# Used like this, on tokens of states and actions, the search looks for the most probable future: imitation, or
# goal reaching where a goal stands in front ([Four rooms](04_four_rooms.py)).
#
# ## From likelihood to reward
#
# To plan for reward, each transition also carries reward-to-go, the discounted sum of what follows
# ([Tokens](01_tokens.py)). A plan of $h$ transitions is worth
#
# $$v = \sum_{k=0}^{h-2} \gamma^k r_k + \gamma^{h-1} R_{h-1}.$$ (eq-plan-value)

# %%
r, R = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([9.0, 8.0, 7.0])
print(f"{search.plan_value(r, R, gamma=0.9):.2f}, by hand {1 + 0.9 * 0 + 0.9**2 * 7:.2f}: the last reward is inside R")

tiny, places, gamma = Transition(N=3, M=1), torch.arange(8), 0.99
following = torch.stack([places, (places + 1).clamp(max=7)], 1)  # (place, action): 0 stays, 1 goes
earned = torch.zeros(8, 2)
earned[0, 0], earned[7, 0] = 1.0, 10.0
to_go = torch.zeros(8, 2)
for _ in range(3000):  # reward-to-go of the coin, r_t included
    to_go = earned + gamma * to_go.mean(1)[following]
ends = torch.tensor([[0.0, 0, 0, 0, -20, -2000], [1, 1, 1, 1, 20, 2000]])
two_bins = tokenizer.fit(ends, tiny, V=2)
pd.DataFrame({"stay": to_go[:, 0], "go": to_go[:, 1]}).rename_axis("place").T.style.format("{:.0f}")


# %%
class Corridor:
    """`advance` and `keep` of this world, for any number of sequences, all beginning at place 0."""

    def __init__(self):
        self.place = self.action = torch.zeros(1, 1, dtype=torch.long)
        self.dim, self.log_p = tiny.N, torch.full((1, 1, 2), 0.5).log()

    def advance(self, bins, parents):
        if parents is not None:
            self.place, self.action = self.place.gather(1, parents), self.action.gather(1, parents)
        if self.dim == tiny.N:
            self.action = bins
        self.dim = (self.dim + 1) % tiny.D
        if self.dim == 0:
            self.place = following[self.place, self.action]
        state = (self.place >> self.dim) & 1
        number = {tiny.reward: earned, tiny.reward_to_go: to_go}.get(self.dim, earned)[self.place, self.action]
        low, high = two_bins.centres[self.dim].float()
        mixture = torch.full_like(number, 0.5) if self.dim == tiny.N else (number - low) / (high - low)
        p = state.float() if self.dim < tiny.N else mixture
        return torch.stack([1 - p, p], -1).log()

    def keep(self, rows):
        self.place = self.place.view(len(rows), -1).gather(1, rows).flatten()[:, None]
        self.action = torch.zeros_like(self.place)


# %%
def first_action(horizon: int, plans: int, use_reward_to_go: bool) -> str:
    world = Corridor()
    plan = search.Plan(horizon, plans, candidates=2, gamma=gamma, use_reward_to_go=use_reward_to_go)
    found = search.maximise(world.advance, world.keep, world.log_p, two_bins, plan)
    return ("stay", "go")[found.bins[0, 0, 0]]


horizons = range(1, 10)
columns = {
    "with R, one plan kept": [first_action(h, 1, True) for h in horizons],
    "without R, 8 plans kept": [first_action(h, 8, False) for h in horizons],
    "without R, all plans kept": [first_action(h, 2**h, False) for h in horizons],
}
patience = pd.DataFrame(columns, index=pd.Index(horizons, name="horizon"))
patience.T

# %% [markdown]
# Adding up rewards alone is myopic: until the horizon reaches the far end, staying is better, and a beam prunes the
# way there long before. Reward-to-go tells after *one* transition that going is better. It need not be accurate,
# and it is not: it is the value of tossing coins, not of the plan.
#
# ## What is proposed
#
# The planner asks the hopper model for likely actions. Profile `v1` takes the most probable ones, by beam search;
# profile `released` samples, after dropping the least likely bins. The usual filters are a temperature,
#
# $$p_b \propto P_\theta(b)^{1/\text{temperature}},$$ (eq-temperature)
#
# only the $k$ likeliest bins, or a cut of the least likely ones that together hold less than a given probability
# ({numref}`fig-filters`).

# %%
models = {profile: store.load_or_train(e) for profile, e in profiles.items()}
_, unseen = store.dataset(exp.data).split(exp.data.held_out, exp.data.seed)
state = torch.from_numpy(unseen.states[unseen.starts[unseen.lengths.argmax()] + 20][None])


def decoder(profile: str) -> control.Decoder:
    """The model, having read the state; its predictions are small work, so they stay on the processor."""
    fitted = models[profile].tokenizer.to("cpu")
    return control.Decoder(models[profile].model.cpu(), fitted, fitted.encode(state, transition.state))


with torch.inference_mode():
    log_p = decoder("v1").log_p[0, 0]
filters = {"as predicted": {}, "temperature 0.5": {"temperature": 0.5}, "10 likeliest bins": {"top_k": 10},
           f"without the unlikely {profiles['released'].plan.cdf:.0%}": {"cdf": profiles["released"].plan.cdf}}  # fmt: skip
distributions = {name: search.filtered(log_p, **options).softmax(-1) for name, options in filters.items()}
print({name: int((p > 0).sum()) for name, p in distributions.items()}, "bins left")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-filters", "caption": "One real distribution of the next action token, the thigh torque, unfiltered and after three filters."}, "image": {"alt": "Four bar charts over torque from -1 to 1. Filtered ones have fewer and higher bars."}}
figure, panels = plt.subplots(2, 2, figsize=(7.5, 4.2), sharex=True, sharey=True, layout="constrained")
centres = models["v1"].tokenizer.centres[transition.action][0].cpu()
for axes, (name, p) in zip(panels.flat, distributions.items()):
    axes.bar(centres, p, width=centres[1] - centres[0], color=figures.COLOURS["transformer"])
    axes.set_title(name, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
for axes in panels[1]:
    axes.set_xlabel("thigh torque")
for axes in panels[:, 0]:
    axes.set_ylabel("probability")
figure.suptitle(f"Next-action distribution ({size})")
plt.show()

# %% [markdown]
# ## A search of M tokens
#
# The first $M$ tokens after a state are its action. A search of that length is behaviour cloning with an
# autoregressive policy, the paper says: here in held-out states, beside the policy read off the network token by
# token, with neither search nor cache.


# %%
@torch.inference_mode()
def cloned(count: int = 100) -> pd.DataFrame:
    model, fitted, M = models["v1"].model.cpu(), models["v1"].tokenizer.to("cpu"), transition.M
    states = torch.from_numpy(unseen.states[np.linspace(0, len(unseen.states) - 1, count).astype(int)])
    ids = fitted.encode(states, transition.state)
    begun = control.Decoder(model, fitted, ids)
    found = search.beam_search(begun.advance, begun.log_p, length=M, width=1)
    policy_log_p = torch.zeros(count)
    for dim in range(transition.N, transition.N + M):
        log_p, bins = model(ids)[:, -1].log_softmax(-1).max(-1)
        policy_log_p, ids = policy_log_p + log_p, torch.cat([ids, (bins + fitted.V * dim)[:, None]], 1)
    words = [[" ".join(map(str, row)) for row in bins.tolist()] for bins in (found.bins[:, 0], ids[:, -M:] % fitted.V)]
    return pd.DataFrame({"search": words[0], "policy": words[1], "search_log_p": found.log_p[:, 0], "policy_log_p": policy_log_p})


made_of = {"config": {"experiment": exp, "states": 100}, "inputs": {exp.label: store.weights_key(exp)}}
cloning = results.table("cloning_check", size, cloned, **made_of)
print(f"the same action in {(cloning.search == cloning.policy).mean():.0%} of {len(cloning)} states")

# %% [markdown]
# ## One decision, opened up
#
# In the same state, twenty steps into the longest unseen episode, the first transition has $B K$ candidates. Each is an
# action with a log-probability and a predicted value. The $B$ of greatest value are continued, and the first action
# of the best plan is carried out ({numref}`fig-decision`).


# %%
@torch.inference_mode()
def decide(profile: str) -> tuple[pd.DataFrame, search.Beams, search.Plans]:
    """All first transitions proposed, as a table and as bins, and the plans found from them."""
    plan, fitted = profiles[profile].plan, models[profile].tokenizer.to("cpu")
    begun, width = decoder(profile), plan.plans * plan.candidates
    rng = torch.Generator().manual_seed(0)
    found = search.propose(begun.advance, begun.log_p, (0, transition.M), width, plan, rng)
    r, R, *_ = search.read_rewards(begun.advance, found, fitted, plan, rng)
    value = search.plan_value(r[..., None], R[..., None], plan.gamma, plan.include_current)
    begun = decoder(profile)
    plans = search.maximise(begun.advance, begun.keep, begun.log_p, fitted, plan, rng.manual_seed(0))
    chosen = (found.bins[0] == plans.bins[0, 0, : transition.M]).all(-1)
    table = pd.DataFrame({"log_p": found.log_p[0], "value": value[0], "chosen": chosen})
    return table.assign(kept=table.value.rank(ascending=False, method="first") <= plan.plans), found, plans


decisions = {profile: decide(profile) for profile in profiles}
for profile, (table, _, plans) in decisions.items():
    h = profiles[profile].plan.horizon
    print(f"{profile}: {len(table)} candidates, {int(table.kept.sum())} kept; best plan of {h} steps is worth {plans.value[0, 0]:.1f}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-decision", "caption": "The candidates of one decision: predicted value against log-probability of the action. The star is the action carried out: the one whose continuation was best, not necessarily the best after one transition."}, "image": {"alt": "Two scatter plots of candidate actions, one per profile; those kept lie in the upper part, one is marked by a star."}}
figure, panels = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained")
for axes, (profile, (table, *_)) in zip(panels, decisions.items()):
    for stays, colour, label in ((False, "data", "dropped"), (True, "transformer", "kept")):
        rows = table[table.kept == stays]
        axes.plot(rows.log_p, rows.value, "o", ms=5, alpha=0.7, mew=0, color=figures.COLOURS[colour], label=label)
    star = table[table.chosen].iloc[0]
    axes.plot(star.log_p, star.value, "*", ms=15, mec="white", color=figures.COLOURS["other"], label="carried out")
    axes.set(title=f"{profile} ({size})", xlabel="log-probability of the action (nats)")
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("value after one transition")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncol=3, frameon=False)
plt.show()

# %% [markdown]
# How much is there to choose from? Compare the candidates' torques with 500 actions drawn from the model without any
# filter: the spread (standard deviation, mean over the three torques) and the log-probability.


# %%
@torch.inference_mode()
def drawn(profile: str, count: int = 500) -> search.Beams:
    """Actions sampled from the unfiltered model."""
    begun, rng = decoder(profile), torch.Generator().manual_seed(1)
    start = torch.zeros(1, count, dtype=torch.long)
    return search.grow(begun.advance, begun.log_p, start, transition.M, lambda log_p: search.sample(log_p, rng))


def spread(profile: str, bins: torch.Tensor) -> float:
    centres = models[profile].tokenizer.centres[transition.action].cpu()
    return torch.stack([c[b] for c, b in zip(centres, bins[0].T)]).std(1).mean().item()


rows = []
for profile, (table, found, _) in decisions.items():
    free = drawn(profile)
    rows.append({"profile": profile, "spread of candidates": spread(profile, found.bins), "drawn": spread(profile, free.bins),
                 "nats of candidates": table.log_p.mean(), "nats, drawn": free.log_p.mean().item(),
                 "values from": table.value.min(), "to": table.value.max()})  # fmt: skip
choice = pd.DataFrame(rows).set_index("profile")
choice.style.format("{:.2f}")

# %% [markdown]
# The $BK$ most probable actions are near copies of each other: they crowd round one mode. Samples differ more. Where near
# copies get values far apart, the difference is the model's noise, and the search picks it. A second caution: the
# data mix policies of different quality, so an action is also a sign of *who* acts; part of a predicted value may
# be that, and not what the action does.

# %% [markdown]
# ## What a decision costs
#
# Each token of each plan is read once, thanks to the cache; $r$ is one more token of each candidate, $R$ one of each
# plan that is kept and goes on. With $p$ past transitions, `v1` reads
#
# $$pD + N + BK(M + 1) + (h - 1)\,\bigl(B + BK\,(N + M + 1)\bigr)$$ (eq-cost)
#
# tokens, as long as $BK \le V$. `released` predicts one state for each plan, so $N$ in the last term counts only $B$
# times. The code counts what the model really reads:


# %%
def tokens_read(plan: search.Plan, past: int) -> int:
    N, M, D, rows = transition.N, transition.M, transition.D, plan.plans * plan.candidates
    first = min(rows, exp.bins.V) if plan.proposal == "beam" else rows
    states = N * (rows if plan.proposal == "beam" else plan.plans)
    return past * D + N + first + rows * M + (plan.horizon - 1) * (plan.plans + states + rows * (M + 1))


cost = []
for profile in profiles:
    read = []
    hook = models[profile].model.register_forward_pre_hook(lambda model, ids, read=read: read.append(ids[0].numel()))
    begun, plan = decoder(profile), profiles[profile].plan
    start = time.perf_counter()
    with torch.inference_mode():
        search.maximise(begun.advance, begun.keep, begun.log_p, begun.tokenizer, plan, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - start
    hook.remove()
    assert sum(read) == tokens_read(plan, past=0)
    cost.append({"profile": profile, "B": plan.plans, "K": plan.candidates, "h": plan.horizon, "tokens": sum(read),
                 "passes": len(read), "seconds here": seconds})  # fmt: skip
cost = pd.DataFrame(cost)
cost.style.hide(axis="index").format({"seconds here": "{:.2f}"})

# %% [markdown]
# A step of hopper lasts 8 ms in the simulator: this is planning, not yet control in real time, as the paper says. Many
# environments in one batch share the passes.
#
# ## What we saw

# %% tags=["hide-input"]
from IPython.display import Markdown

needs = patience.index[patience["without R, all plans kept"] == "go"].min()
pruned = "never" if (patience["without R, 8 plans kept"] == "stay").all() else "only later"
wide = widths.set_index("width")["found the best"]
stars = {profile: table[table.chosen].iloc[0] for profile, (table, *_) in decisions.items()}
Markdown(
    f"Greedy search found a sequence of probability {find(1).log_p[0, 0].exp():.3f}, width 2 one of "
    f"{find(2).log_p[0, 0].exp():.3f}. On random tables width 1 finds the best in {wide[1]:.0%} of cases, width 4 in "
    f"{wide[4]:.0%}, and the exhaustive width always. In the corridor the planner with reward-to-go sets out at horizon 1; "
    f"without it at horizon {needs} if it keeps every plan, and {pruned} within {patience.index.max()} steps if it keeps 8. "
    f"In the real decision of profile v1, {int((decisions['v1'][0].log_p > stars['v1'].log_p).sum())} of "
    f"{len(decisions['v1'][0])} candidates were more probable than the one carried out. Its candidates' torques spread "
    f"over {choice.loc['v1', 'spread of candidates'] / choice.loc['v1', 'drawn']:.0%} of what the model would draw, those of "
    f"released over {choice.loc['released', 'spread of candidates'] / choice.loc['released', 'drawn']:.0%}. A decision reads "
    f"{cost.tokens[0]:,} and {cost.tokens[1]:,} tokens."
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} How good is a wide beam?
# :label: ex-beam-width
#
# Take the trained four-rooms model, a hundred pairs of start and goal, and widths from 1 to 64. How does the
# log-probability of the plan found grow with the width? Must it grow for every single pair?
# ```
#
# ````{solution-start} ex-beam-width
# :class: dropdown
# ````

# %%
rooms = experiments.get("four-rooms", size)
four_rooms = store.load_or_train(rooms)
starts, goals = four_rooms_pairs("seen", 100, seed=2000)
before = None
for width in (1, 2, 4, 8, 16, 32, 64):
    choose = control.by_likelihood(rooms.horizon, width)
    agent = control.TransformerAgent(four_rooms.model, four_rooms.tokenizer, choose, rooms.past, rooms.horizon, goals)
    log_p = agent.act(starts)[1]["log_p"]
    worse = 0 if before is None else int((log_p < before - 1e-4).sum())
    print(f"width {width:2}: {log_p.mean():7.3f} nats on average; worse than half the width: {worse} of {len(log_p)} pairs")
    before = log_p

# %% [markdown]
# On average it grows, with less and less gain. For a single pair it may fall: a wider beam can prefer beginnings that
# turn out worse and drop the one that a narrower beam follows.
#
# ````{solution-end}
# ````
#
# ```{exercise} Lucky bins
# :label: ex-lucky
#
# Suppose that the search ran over $R$ too: every bin of $R$ with at least 1% probability is a candidate of its own, and
# the candidate of greatest value is kept. Thirty-two actions lead to values with different means and spreads. Which
# action is chosen, what is promised, and what is it worth? Compare with reading expectations.
# ```
#
# ````{solution-start} ex-lucky
# :class: dropdown
# ````

# %%
rng, problems, actions = np.random.default_rng(0), 1000, 32
centres = np.arange(100) + 0.5
mean, spread = rng.normal(50, 3, (problems, actions)), rng.uniform(2, 15, (problems, actions))
p = np.exp(-0.5 * ((centres - mean[..., None]) / spread[..., None]) ** 2)
p /= p.sum(-1, keepdims=True)
worth = p @ centres
lucky = np.where(p > 0.01, centres, 0).max(-1)  # the best of the bins that are likely enough to be tried
for name, score in (("expectations", worth), ("search over R", lucky)):
    chosen = score.argmax(1)[:, None]
    promised, got = np.take_along_axis(score, chosen, 1).mean(), np.take_along_axis(worth, chosen, 1).mean()
    wide = np.take_along_axis(spread, chosen, 1).mean()
    print(f"{name:14} promised {promised:.1f}, worth {got:.1f}, spread of the chosen action {wide:.1f}")
print(f"an action picked at random is worth {worth.mean():.1f}")

# %% [markdown]
# A search over $R$ picks the action *and its luck*: the promise is too high, and uncertain actions are
# preferred. An expectation cannot be lucky.
#
# ````{solution-end}
# ````
