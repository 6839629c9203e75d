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
# **Claim** (all sections). The paper {cite:p}`janner2021sequence` makes about two dozen claims that an experiment can
# refute. This page lists them in a ledger. Each row says what the paper claims, what we found, and a verdict. A fixed
# rule computes the verdict from result files.
#
# After this page you can
#
# - say which claims hold, at which size, and how firmly an interval supports them;
# - find the rule, the tolerance and the result file behind a verdict, and change them;
# - name the cheapest experiment for each claim that is still open.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input", "reads-results"]
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown

from ttlib.claims import checks, front, rules
from ttlib.claims.ledger import REPRODUCED, SIZES, VERDICTS, Claim, evaluate, load, outcomes
from ttlib.drawing import figures
from ttlib.pipeline import places

figures.style()
places.folder(size)  # ValueError for an unknown size; the ledger below shows all sizes that were run
ledger = load()
judged = outcomes(ledger)
run = [s for s in SIZES if any(judged[c.id, s].finding for c in ledger)]
bearing = {s: checks.table(ledger, judged, s) for s in run}

# %% [markdown]
# ## In ten lines

# %% tags=["hide-input"]
lines = [line for s in run for line in front.summary(ledger, judged, bearing[s], s)] or ["There are no results yet."]
Markdown("\n".join(f"- {line}" for line in lines))

# %% [markdown]
# ## The ledger
#
# Open a row for its rule, its design, what other choices make of its verdict, its history, and its result files. The
# cost is the time to compute the files from trained models. The section after the ledger explains the verdicts.

# %% tags=["hide-input"]
HTML("".join(front.page(ledger, judged, bearing[s], s) for s in run) or "There are no results yet.")

# %% [markdown]
# ## How a verdict comes about
#
# The file `data/claims.toml` holds a row for each claim, with its tolerance as numbers. The file
# `ttlib/claims/rules.py` holds a function for each row, which reads result tables and applies the tolerance. Five
# verdicts are possible:
#
# | verdict | meaning |
# |---|---|
# | reproduced | the rule holds |
# | trend only | a weaker condition holds, which each row names |
# | not at this size | the rule fails, and the reason may be that our models are smaller and trained less |
# | not reproduced | the rule fails, and size is no excuse |
# | not tested | a result file is missing, or it lacks rows that the rule needs |
#
# Three conventions matter when you read the verdicts:
#
# - Scores in the paper's Table 1 belong to D4RL's files {cite:p}`fu2020d4rl`. On regenerated data such a claim is at
#   best *trend only*, and the rule compares methods that ran on the same data.
# - Where both profiles were run, the rules judge `v1`, which follows the paper's text.
# - The rules ignore results of size smoke, which only show that the code runs.
#
# You can trust a verdict only if nobody changes it silently. So the ledger also stores the expected verdicts, and a
# test fails when the results give another one. The command `make claims` writes new verdicts into the ledger, and the
# history of the repository shows every change.
#
# The history in each row says whether results were known when its rule was written or changed. Such a rule is less
# blind than the others. Where a rule was changed, the ledger also asks the first one, on today's results.
#
# Three things say how much a verdict can bear. *Design* counts trainings and rollouts. *Other choices* halve and double
# each threshold, let each profile decide alone, take medians in place of means, and take other levels of the bootstrap
# intervals. *Repetitions* are simulated. They draw rollouts anew, with the measured means and standard deviations. They
# also draw the luck of each training, with a standard deviation of eight points of the score, as repeated trainings had.
#
# ## Do the records hold here?
#
# Rollouts take hours, so this project ships them as records. The command `make check` makes some of them again and
# compares the decisions. Another commit chooses other ones, and `make check SHARE=1` takes all of them.

# %% tags=["hide-input"]
checked = places.BUILD / f"spot-check-{size}.json"
sentence = "No record was checked on this machine yet."
if checked.exists():
    found = json.loads(checked.read_text())
    sentence = f"Commit {found['commit']} {found['sentence']}."
Markdown(f"**{sentence}**")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-claims-verdicts", "caption": "Number of claims with each verdict, by the section of the paper that makes the claim."}, "image": {"alt": "Stacked horizontal bars, one for each section of the paper, whose colours stand for the verdicts."}}
claims = pd.DataFrame(
    [{"section": c.section, "size": s, "verdict": judged[c.id, s].verdict} for s in run for c in ledger],
    columns=["section", "size", "verdict"],
)
sections = sorted(claims.section.unique())
figure, panels = plt.subplots(1, max(len(run), 1), figsize=(7, 2.6), sharey=True, squeeze=False, layout="constrained")
colours = [figures.COLOURS[name] for name in ("third", "transformer", "fourth", "other", "data")]
for axes, s in zip(panels[0], run):
    part = claims[claims["size"] == s].assign(section=lambda t: pd.Categorical(t.section, sections))
    sns.histplot(part, y="section", hue="verdict", hue_order=VERDICTS[::-1], palette=colours[::-1], multiple="stack",
                 shrink=0.8, alpha=1, edgecolor="white", legend=s == run[-1], ax=axes)  # fmt: skip
    axes.set(title=f"size {s}", xlabel="claims", ylabel="section of the paper")
    axes.xaxis.get_major_locator().set_params(integer=True)
if run:
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), title="", reverse=True)
plt.show()

# %% [markdown]
# ## Departures, and what they change
#
# In some places this code does not do what the paper says. A comment marks each of these lines, and the README lists
# them. The table adds the measured effect where we have a result for it.

# %% tags=["hide-input"]
def read(name: str) -> pd.DataFrame:
    path = places.published(name, "laptop")
    if not path.exists():
        raise rules.NotTestedError(f"There is no {path.name} of size laptop.")
    return pd.read_csv(path)


def optimiser() -> str:
    tried = pd.read_csv(places.ROOT / "data" / "tried_hopper.csv").query("profile == 'v1'")
    tried = tried.round({"million tokens": 0}).assign(kind=tried.optimiser.str.split().str[0])
    best = tried.groupby(["million tokens", "kind"])["held-out nats"].min().unstack().dropna()
    tokens, row = best.index[0], best.iloc[0]
    return (f"After {tokens:.0f} million tokens of hopper-medium-replay, the held-out loss is {row['muon']:.2f} nats "
            f"per token with Muon and {row['adamw']:.2f} with AdamW.")  # fmt: skip


def neighbours() -> str:
    tried = pd.read_csv(places.ROOT / "data" / "tried_training.csv").query("task == 'hopper-medium-replay'")
    plain, alike = (tried[tried.setting == name].sort_values("minutes").iloc[-1]
                    for name in ("Muon", "Muon, smooth embeddings"))  # fmt: skip
    return (f"After {plain.minutes:.0f} minutes on hopper-medium-replay, the held-out loss is "
            f"{alike.held_out_nats:.2f} nats per token with such embeddings and {plain.held_out_nats:.2f} without.")  # fmt: skip

# %% tags=["hide-input"]
def marginal() -> str:
    rows = read("fig2_error_compounding").query("panel == 'observed' and model == 'transformer'")
    rows = rows[rows.scoring.isin(["mixture", "histogram"])]
    curves = rows.groupby(["scoring", "t"]).log_likelihood.mean().unstack(0)
    gain = curves.mixture - curves.histogram
    return (f"In Figure 2 this changes the Transformer's score by {gain.iloc[0]:+.1f} nats at step {gain.index[0]} and "
            f"by {gain.iloc[-1]:+.1f} nats at step {gain.index[-1]}.")  # fmt: skip


def edges() -> str:
    rows = read("fig2_error_compounding").query("panel == 'observed' and scoring == 'mixture'")
    return f"In Figure 2 at most {rows.out_of_range.max():.2%} of the scored values lie outside the bins, at any step."


def expectations() -> str:
    pairs = rules.ablation_pairs(read("ablations_rollouts"), "rewards_drawn")
    rows, (low, high) = rules.compare_pairs(pairs)
    return f"A planner that draws r and R gets {rows.ratio.mean():.0%} [{low:.0%}, {high:.0%}] of its return."

# %% tags=["hide-input"]
EFFECTS = {  # words of a departure -> its measured effect
    "Muon": optimiser,
    "neighbouring bins": neighbours,
    "marginal": marginal,
    "infinity": edges,
    "expectations": expectations,
}
readme = (places.ROOT / "README.md").read_text("utf-8")
departures = re.findall(r"^\| `([\w/.]+)` \| (.+) \|$", readme, re.MULTILINE)
if unused := [words for words in EFFECTS if not any(words in text for _, text in departures)]:
    raise ValueError(f"no departure of README.md has the words {unused}; use its new words in EFFECTS")


def effect(text: str) -> str:
    measured = next((function for words, function in EFFECTS.items() if words in text), None)
    try:
        return measured() if measured else "not measured"
    except rules.NotTestedError as error:
        return f"not measured yet: {error}"


rows = "\n".join(f"| `{where}` | {text} | {effect(text)} |" for where, text in departures)
Markdown(f"| where | departure | effect |\n|:---|:---|:---|\n{rows}\n")

# %% [markdown]
# ## What we could not reproduce
#
# The claims below are reproduced at no size. For each we say what we tried and which cheapest experiment would settle
# it. If you run one, run its page too, which puts the result in its place, and then `make claims`.

# %% tags=["hide-input"]
def result(claim: Claim, s: str) -> str:
    outcome = judged[claim.id, s]
    sentence = f"{claim.says(outcome.finding)} " if outcome.finding else ""
    return f"size {s}: **{outcome.words()}**. {sentence}{outcome.note}"


unsettled = [c for c in ledger if not any(judged[c.id, s].verdict == REPRODUCED for s in SIZES)]


def case(claim: Claim) -> str:
    results = "\n".join(f"- Our result, {result(claim, s)}" for s in run or SIZES[:1])
    ran = any(judged[claim.id, s].finding for s in SIZES)
    tried = f"What we tried: {claim.tried}" if ran else f"We have not run this yet. The plan: {claim.tried}"
    paper = f"- The paper: {claim.paper} ({claim.place})."
    return f"**{claim.wording}**\n\n{paper}\n{results}\n- {tried}\n- To settle it: {claim.settle}"


Markdown("\n\n".join(map(case, unsettled)) or "There are none: every claim is reproduced at some size.")

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
def turning(s: str) -> str:
    rows = bearing[s].query("turns == True")
    return "\n".join(f"- `{row.claim}` becomes *{row.verdict}*: {row.check}." for row in rows.itertuples())


def weak(s: str) -> str:
    rows = bearing[s].dropna(subset="same").query("check == 'new trainings and rollouts' and same < 0.9")
    return ", ".join(f"`{row.claim}` {row.same:.0%}" for row in rows.sort_values("same").itertuples()) or "none"


Markdown("\n\n".join(
    f"Verdicts that turn, at size {s}:\n\n{turning(s)}\n\nWith new trainings and rollouts, these verdicts come out in "
    f"less than 90% of the repetitions: {weak(s)}." for s in run
))  # fmt: skip

# %% [markdown]
# ## Exercises
#
# ```{exercise} A verdict by chance
# :label: claims-chance
#
# Two methods are equally good, and you compare eight rollouts of each. Returns are normal, with a standard deviation of
# 300. How often does the 90% interval of the difference lie wholly above zero? About half of the claims here rest on
# such intervals. If twelve claims were all false, how many would hold by luck? How does the answer change with 30
# rollouts?
# ```
#
# ````{solution-start} claims-chance
# :class: dropdown
# ````

# %%
def luck(rollouts: int, tries: int = 400) -> float:
    rng, above = np.random.default_rng(0), 0
    for _ in range(tries):
        returns = rng.normal(1000, 300, (2, rollouts))
        ours, theirs = (
            rules.bootstrap_means(
                pd.DataFrame({"model_seed": 0, "return": x}), "return"
            )
            for x in returns
        )
        above += rules.interval(ours - theirs)[0] > 0
    return above / tries


for rollouts in (8, 30):
    fraction = luck(rollouts)
    print(f"{rollouts} rollouts: {fraction:.1%} of the intervals are above zero,")
    print(f"so {12 * fraction:.1f} of twelve false claims would hold")

# %% [markdown]
# The nominal answer is 5%. A bootstrap of eight values gives intervals that are too narrow, because it divides the
# variance by $n$ instead of $n - 1$. It therefore errs more often, and more rollouts mend this. They do not mend the
# other fault: one trained model of each kind says nothing about the luck of training.
#
# ````{solution-end}
# ````
#
# ```{exercise} Tighten a tolerance
# :label: claims-tolerance
#
# The rule for the order of the models in Figure 2 counts steps. The Transformer must be clearly above the ensemble at
# more than a given fraction of them. Evaluate the claim for fractions from 0 to 1. At which fraction does the verdict
# change, and is ours near it?
# ```
#
# ````{solution-start} claims-tolerance
# :class: dropdown
# ````

# %%
from dataclasses import replace

claim = next(c for c in ledger if c.id == "order-of-models")
for share in (0, 0.25, 0.5, 0.75, 0.9, 0.99):
    changed = replace(claim, limits={"share": share})
    verdict = evaluate(changed, "laptop").verdict
    ours = " (our tolerance)" if share == claim.limits["share"] else ""
    print(f"more than {share:.0%} of the steps: {verdict}{ours}")

# %% [markdown]
# A verdict far from the point where it changes says more than its name. If you find one close to that point, read it as
# undecided.
#
# ````{solution-end}
# ````
