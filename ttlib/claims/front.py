"""The front page of the science: the ledger in ten lines, and as a page whose rows fold out.

The HTML and its style lie in this folder, in ledger.html and claim.html.
"""

import html
import json
import re
from importlib import resources

import numpy as np
import pandas as pd

from ttlib.claims import checks, ledger
from ttlib.claims.ledger import UNTESTED, VERDICTS, Claim, Outcome
from ttlib.pipeline import places

GROUPS = {  # the numbers of pages
    "Tokens and search": ("01", "03"),
    "Long predictions": ("10",),
    "Attention": ("11",),
    "Offline reinforcement learning": ("12",),
    "Imitation and goals": ("04", "13"),
    "Parts of the planner": ("14",),
    "Cost": ("08",),
}
Judged = dict[tuple[str, str], Outcome]


def _named(claims: list[Claim]) -> str:
    """Return the titles of claims, in quotation marks."""
    return ", ".join(f"“{claim.title}”" for claim in claims)


def _by_verdict(claims: list[Claim], judged: Judged, size: str) -> dict[str, list[Claim]]:
    """Return the claims that have each verdict, best verdicts first."""
    rows = {verdict: [c for c in claims if judged[c.id, size].verdict == verdict] for verdict in VERDICTS}
    return {verdict: row for verdict, row in rows.items() if row}


def summary(claims: list[Claim], judged: Judged, table: pd.DataFrame, size: str) -> list[str]:
    """Return the ledger in ten lines of plain English.  table: see `checks.table`."""
    counts = [
        f"{len(row)} {'is' if len(row) == 1 else 'are'} {v}" for v, row in _by_verdict(claims, judged, size).items()
    ]
    lines = [f"Of the paper's claims we judge {len(claims)}, at size {size}: {', '.join(counts)}."]
    for group, pages in GROUPS.items():
        rows = _by_verdict([claim for claim in claims if claim.page[:2] in pages], judged, size)
        lines.append(f"{group}. " + " ".join(f"{v.capitalize()}: {_named(row)}." for v, row in rows.items()))
    turning = [claim for claim in claims if claim.id in set(table[table.turns == True].claim)]  # noqa: E712 - NaN
    lines.append(
        f"{len(turning)} verdicts turn if a threshold is halved or doubled, if the other profile decides, if medians "
        f"replace means, or if intervals are wider or narrower: {', '.join(f'`{claim.id}`' for claim in turning)}."
    )
    first = {
        c.id: judged[c.id, size] for c in claims if judged[c.id, size].first not in ("", judged[c.id, size].verdict)
    }
    changes = ", ".join(f"`{name}` ({row.first}, now {row.verdict})" for name, row in first.items())
    tested = [claim for claim in claims if judged[claim.id, size].finding]
    trainings = [checks.design(claim, ledger.results(claim.files, size))["trainings"] for claim in tested]
    once = sum(words.startswith("one training") for words in trainings)
    lines.append(
        f"{once} verdicts rest on one training of each model, and do not know the luck of training. "
        f"{len(first)} differ from those of their first rule, which was changed: {changes}."
    )
    return lines


def _amount(x: float, unit: str) -> str:
    """Return a number with its unit; numbers with percent are fractions."""
    return f"{x:.0%}" if unit == "%" else f"{x:.3g}"


def _picture(claim: Claim, outcome: Outcome) -> dict[str, str]:
    """Return the coordinates of the picture (200 wide) and its numbers in words; what lies outside is at its ends."""
    scale, unit = claim.picture, claim.picture["unit"]
    mark = "paper" if "paper" in scale else "limit"
    number = claim.limits.get(scale[mark], scale[mark]) if isinstance(scale[mark], str) else scale[mark]
    ends = np.atleast_1d(number).astype(float)
    ours = np.full(3, np.nan)
    if outcome.finding:
        ours = np.array([outcome.finding.low, outcome.finding.value, outcome.finding.high], float)
    x = np.clip(200 * (np.r_[ours, ends] - scale["low"]) / (scale["high"] - scale["low"]), 0, 200)
    low, value, high, *marks = (f"{each:.1f}" for each in np.nan_to_num(x))
    wide = len(ends) > 1
    theirs = f"{'the paper' if mark == 'paper' else 'limit'} {' to '.join(_amount(end, unit) for end in ends)}"
    words = "" if unit == "%" else f" {unit}"
    numbers = f"{_amount(ours[1], unit)}{words}; {theirs}" if outcome.finding else f"{theirs}{words}"
    span = f"on a scale from {_amount(scale['low'], unit)} to {_amount(scale['high'], unit)}"
    return {
        "low": low, "value": value, "high": high, "from": marks[0], "to": marks[-1], "mark": mark, "numbers": numbers,
        "top": "10" if wide else "0", "bottom": "10" if wide else "20", "label": f"Ours: {numbers}, {span}",
        "shown": "" if outcome.finding else "absent", "bracketed": "" if np.isfinite(ours[0]) else "absent",
    }  # fmt: skip


def _cost(claim: Claim, size: str) -> str:
    """Return the time that the claim's result files took to compute, without the training of models."""
    abouts = [places.published(name, size).with_suffix(".json") for name in claim.files]
    seconds = sum(json.loads(path.read_text()).get("wall_seconds", 0) for path in abouts if path.exists())
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )


def _checked(claim: Claim, table: pd.DataFrame) -> tuple[str, str]:
    """Return what other choices and repetitions make of a verdict, as HTML."""
    rows = table[table.claim == claim.id]
    turning, kept = [], []
    for row in rows[rows.same.isna()].itertuples():
        (turning if row.turns == True else kept).append(f"{row.check}: {row.verdict}")  # noqa: E712 - NaN
    choices = [f'<span class="turns">turns</span> with {_text(words)}' for words in turning]
    choices += [f"stays, or cannot be asked, with: {_text('; '.join(kept))}"] if kept else []
    repetitions = [
        f"{row.same:.0%} of the repetitions with {row.check}" for row in rows[rows.same.notna()].itertuples()
    ]
    said = f"If effects are as large as measured, this verdict comes out in {' and in '.join(repetitions)}."
    return "<br>".join(choices) or "not tested", said if repetitions else "not simulated, since no rollouts decide"


def _text(words: str) -> str:
    """Return text as HTML, with code in `...` set as code, and links to pages."""
    words = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(words))
    return re.sub(r"\[([^]]+)\]\(([\w.]+)\)", r'<a href="\2">\1</a>', words)


def _filled(name: str, values: dict[str, str]) -> str:
    """Return a file of this folder with values in place of {{name}}.  KeyError if one is missing."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], text)


def _row(claim: Claim, outcome: Outcome, table: pd.DataFrame, size: str) -> str:
    """Return the HTML of one row."""
    design = checks.design(claim, ledger.results(claim.files, size)) if outcome.finding else {"brackets": "no result"}
    brackets = design.pop("brackets")
    choices, repetitions = _checked(claim, table)
    entries = [
        f"{each.date:%Y-%m-%d}, commit {each.commit}: {each.change} {each.reason} Results known: "
        f"{'yes' if each.known else 'no'}."
        for each in claim.history
    ]
    old = f"The first rule would give today: {outcome.first}." if outcome.first else "The rule was never changed."
    values = {
        "title": claim.title, "verdict": outcome.verdict, "kind": outcome.verdict.replace(" ", "-"), "size": size,
        "first": "" if outcome.first in ("", outcome.verdict) else f"first rule: {outcome.first}", "id": claim.id,
        "cost": _cost(claim, size), "wording": claim.wording, "paper": claim.paper, "place": claim.place,
        "result": f"{claim.says(outcome.finding)} {outcome.note}" if outcome.finding else outcome.note,
        "brackets": f"{brackets}.", "design": "; ".join(design.values()) or UNTESTED,
        "tolerance": f"{claim.tolerance}.", "trend": f"{claim.trend}.", "tried": claim.tried, "settle": claim.settle,
        "repetitions": repetitions, "page": claim.page, "number": claim.page[:2],
    }  # fmt: skip
    files = [places.published(name, size).relative_to(places.ROOT) for name in claim.files]
    values |= {"files": f"rule `{claim.id}`; " + ", ".join(f"`{path.as_posix()}`" for path in files)}
    made = {name: _text(words) for name, words in (values | _picture(claim, outcome)).items()}
    history = f"<ul>{''.join(f'<li>{_text(entry)}</li>' for entry in entries)}</ul>{_text(old)}"
    return _filled("claim.html", made | {"choices": choices, "history": history})


def page(claims: list[Claim], judged: Judged, table: pd.DataFrame, size: str) -> str:
    """Return the HTML of the ledger.  table: see `checks.table`."""
    return _filled("ledger.html", {"rows": "".join(_row(c, judged[c.id, size], table, size) for c in claims)})
