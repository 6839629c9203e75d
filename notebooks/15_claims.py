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
# # Does it hold? The ledger of claims
#
# **Claim** (all sections). The paper {cite:p}`janner2021sequence` makes about two dozen claims that can be wrong. Here each
# has a row: what the paper says, what came out here, and a verdict that follows from result files by a fixed rule.
#
# After this page you can
#
# - say which claims hold, at which size, and how far an interval supports it;
# - find the rule, the tolerance and the file behind a verdict, and change them;
# - name the cheapest experiment for each claim that is still open.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input", "reads-results"]
import re

import numpy as np
import pandas as pd
from IPython.display import Markdown

from ttlib.claims import rules
from ttlib.claims.ledger import REPRODUCED, SIZES, UNTESTED, VERDICTS, Claim, evaluate, load, ours, outcomes, table
from ttlib.pipeline import places

places.folder(size)  # ValueError for an unknown size; the table below shows all sizes that were run
ledger = load()
found = outcomes(ledger)

# %% [markdown]
# ## How a verdict comes about
#
# `data/claims.toml` holds a row for each claim, with its tolerance as numbers. `ttlib/claims/rules.py` holds a rule for each
# row: a function of result tables. Five verdicts are possible:
#
# | verdict | meaning |
# |---|---|
# | reproduced | the rule holds |
# | trend only | the direction is the paper's; the size of the effect, or the interval, is not enough |
# | not at this size | it fails, with a model smaller and trained less than the paper's, and that may be why |
# | not reproduced | it fails, and the size is no excuse |
# | not tested | a result file, or rows that the rule needs, are not there |
#
# Results of size smoke are never judged. A score of the paper's Table 1 belongs to D4RL's files {cite:p}`fu2020d4rl`: on
# data of ours, such a claim is *trend only* at best, and what decides is what else was run on the same data. Of the two
# profiles `v1`, the paper's text, is judged. A test fails when a verdict is not the one the ledger expects; `make claims`
# writes the verdicts of now into the ledger, for all to see in its history.
#
# The tolerances were written down before most results, not all: those of four rooms, of the humanoid and the first ones
# of hopper were known. So those rows are less blind than the others.

# %% [markdown]
# ## The ledger

# %% tags=["hide-input"]
Markdown(table(ledger, found, ""))

# %% [markdown]
# A dash: nothing to show. What stands in brackets, an interval in most rows, is said below. In short:

# %% tags=["hide-input"]
run = [s for s in SIZES if any(found[c.id, s].finding for c in ledger)]
counts = {s: pd.Series([found[c.id, s].verdict for c in ledger]).value_counts().reindex(VERDICTS, fill_value=0) for s in run}
Markdown("\n\n".join(
    f"At size {s}, of {len(ledger)} claims " + ", ".join(f"{n} {'is' if n == 1 else 'are'} {verdict}" for verdict, n in counts[s].items()) + "."
    for s in run
) or "No result of any size is there yet.")

# %% [markdown]
# ## The rules in words
#
# Each rule with what it found: `value [interval]`, and what else it looked at.

# %% tags=["hide-input"]


def said(claim: Claim) -> str:
    lines = [f"**{claim.wording}** Section {claim.section}; `{claim.id}`.", ""]
    for s in run or SIZES[:1]:
        outcome = found[claim.id, s]
        value = f": {ours(outcome)} {claim.unit}" if outcome.finding else ""
        lines.append(f"- {s}: **{outcome.verdict}**{value}{f' ({outcome.note})' if outcome.note else ''}")
    lines += [f"- reproduced if: {claim.tolerance}", f"- trend only if: {claim.trend}", f"- in brackets: {claim.interval}",
              f"- from: {', '.join(f'`{name}.csv`' for name in claim.files)}"]  # fmt: skip
    return "\n".join(lines)


Markdown("\n\n".join(said(claim) for claim in ledger))

# %% [markdown]
# ## Departures, and what they change
#
# Where this code does not do what the paper says, a line of it says so; the README lists those lines. The effect is
# measured where there is a result for it.

# %% tags=["hide-input"]


def read(name: str) -> pd.DataFrame:
    path = places.folder("laptop") / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def optimiser() -> str:
    tried = pd.read_csv(places.ROOT / "data" / "tried_hopper.csv").query("profile == 'v1'").round({"million tokens": 0})
    best = tried.assign(kind=tried.optimiser.str.split().str[0]).groupby(["million tokens", "kind"])["held-out nats"].min().unstack().dropna()
    tokens, row = best.index[0], best.iloc[0]
    return f"after {tokens:.0f} million tokens of hopper {row['adamw']:.2f} held-out nats with AdamW, {row['muon']:.2f} with Muon"


def smooth() -> str:
    tried = pd.read_csv(places.ROOT / "data" / "tried_training.csv").query("task == 'hopper-medium-replay'")
    rows = [tried[tried.setting == name].sort_values("minutes").iloc[-1] for name in ("Muon", "Muon, smooth embeddings")]
    return f"after {rows[0].minutes:.0f} minutes on hopper {rows[0].held_out_nats:.2f} held-out nats without, {rows[1].held_out_nats:.2f} with it"


def histogram() -> str:
    table = read("fig2_error_compounding").query("panel == 'observed' and model == 'transformer'")
    by = table[table.scoring.isin(["mixture", "histogram"])].groupby(["scoring", "t"]).log_likelihood.mean().unstack(0)
    gain = by.mixture - by.histogram
    return f"the Transformer's Figure 2, as a mixture against a histogram of its samples: {gain.iloc[0]:+.1f} nats at step {gain.index[0]}, {gain.iloc[-1]:+.1f} at step {gain.index[-1]}"


def edges() -> str:
    table = read("fig2_error_compounding").query("panel == 'observed' and scoring == 'mixture'")
    return f"of the values scored in Figure 2 at most {table.out_of_range.max():.1%} are outside the bins at any step"


def lucky() -> str:
    pairs = rules._ablation(read("ablations_rollouts"), "r and R drawn")
    shares, (low, high) = rules._compared(pairs)
    return f"drawing r and R instead gives {shares.share.mean():.2f} [{low:.2f}, {high:.2f}] of the return"


EFFECTS = {  # how a departure's text begins -> its measured effect
    "at smoke and laptop size Muon": optimiser,
    "initial embeddings of neighbouring bins": smooth,
    "a marginal is the mean of": histogram,
    "the first and the last bin": edges,
    "edge bins reach": edges,
    "r and R are read": lucky,
}
readme = (places.ROOT / "README.md").read_text()
departures = re.findall(r"^\| `([\w/.]+)` \| (.+) \|$", readme, re.MULTILINE)


def effect(text: str) -> str:
    for begins, measured in EFFECTS.items():
        if text.startswith(begins):
            try:
                return measured()
            except (rules.NotTestedError, KeyError, IndexError, AttributeError, pd.errors.UndefinedVariableError):
                return "measured by an ablation that has not been run"
    return "not measured"


rows = "\n".join(f"| `{where}` | {text} | {effect(text)} |" for where, text in departures)
Markdown(f"| where | departure | effect |\n|:---|:---|:---|\n{rows}\n")

# %% [markdown]
# ## What we could not reproduce
#
# Claims that are reproduced at no size, with what was tried and the cheapest experiment that would settle each. Who runs
# one of these puts its result under `figures/<size>/` by running the page, and then runs `make claims`.

# %% tags=["hide-input"]
open_ones = [c for c in ledger if not any(found[c.id, s].verdict == REPRODUCED for s in SIZES)]


def case(claim: Claim) -> str:
    verdict = "; ".join(f"{s}: {found[claim.id, s].verdict}" + (f" ({note})" if (note := found[claim.id, s].note) else "") for s in run or SIZES[:1])
    ran = any(found[claim.id, s].finding for s in SIZES)
    tried = f"tried: {claim.tried}" if ran else f"not run yet; meant to be: {claim.tried}"
    return f"**{claim.wording}** The paper: {claim.paper}. {verdict}.\n\n- {tried}\n- would settle it: {claim.settle}"


Markdown("\n\n".join(case(c) for c in open_ones) or "Nothing: every claim is reproduced at one size or another.")

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]


def these(verdict: str) -> list[Claim]:
    return [c for c in ledger if any(found[c.id, s].verdict == verdict for s in run)]


def listed(chosen: list[Claim]) -> str:
    return "\n".join(f"- {c.wording}" for c in chosen) or "- none"


Markdown("\n\n".join(
    f"{verdict[0].upper()}{verdict[1:]}:\n\n{listed(these(verdict))}"
    for verdict in VERDICTS[:-1]
) + f"\n\n{len(these(UNTESTED))} of {len(ledger)} claims were not tested at one size or another. What was not tested is not evidence, for or against.")

# %% [markdown]
# ## Exercises
#
# ```{exercise} A verdict by chance
# :label: claims-chance
#
# Two methods are equally good, and eight rollouts of each are compared: returns are normal, of deviation 300. How often
# does the 90% interval of the difference lie wholly above zero? Half of all claims here rest on such intervals: how many
# of twelve would you expect to hold by luck if all were false? How does the answer change with 30 rollouts?
# ```
#
# ````{solution-start} claims-chance
# :class: dropdown
# ````


# %%
def by_luck(n: int, tries: int = 400) -> float:
    rng, clear = np.random.default_rng(0), 0
    for _ in range(tries):
        a, b = (pd.DataFrame({"model_seed": 0, "return": rng.normal(1000, 300, n)}) for _ in range(2))
        clear += rules.between(rules.means(a, "return") - rules.means(b, "return"))[0] > 0
    return clear / tries


for n in (8, 30):
    share = by_luck(n)
    print(f"{n} rollouts: above zero in {share:.1%} of tries; of twelve false claims {12 * share:.1f} would hold")

# %% [markdown]
# Nominally 5%. A bootstrap of eight values is too narrow, since it divides by $n$ where $n - 1$ were right, so it errs more often.
# More rollouts mend that, and nothing mends the other fault: one trained model of each kind says nothing about the luck
# of training.
#
# ````{solution-end}
# ````
#
# ```{exercise} Tighten a tolerance
# :label: claims-tolerance
#
# The order of the models in Figure 2 is judged by the share of steps at which the Transformer is clearly above the
# ensemble. Evaluate the claim for limits from 0 to 1. At which does the verdict turn, and was ours near it?
# ```
#
# ````{solution-start} claims-tolerance
# :class: dropdown
# ````

# %%
from dataclasses import replace

claim = next(c for c in ledger if c.id == "order-of-models")
for share in (0, 0.25, 0.5, 0.75, 0.9, 0.99):
    outcome = evaluate(replace(claim, limits={"share": share}), places.ROOT / "figures" / "laptop", "laptop")
    print(f"more than {share:.0%} of the steps: {outcome.verdict}{' <- ours' if share == claim.limits['share'] else ''}")

# %% [markdown]
# A verdict far from where it turns says more than its name. One that turns nearby should be read as undecided.
#
# ````{solution-end}
# ````
