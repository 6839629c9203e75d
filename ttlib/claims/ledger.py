"""The claims ledger: data/claims.toml says what the paper claims and how each claim is judged.

ttlib/claims/rules.py judges it from result files, and from nothing else.
"""

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from ttlib import files
from ttlib.claims import rules
from ttlib.claims.rules import Finding, NotTestedError
from ttlib.pipeline import places

LEDGER = places.ROOT / "data" / "claims.toml"


SIZES = ("laptop", "paper")  # results of size smoke mean nothing


REPRODUCED, TREND, NOT_HERE, NOT, UNTESTED = VERDICTS = (
    "reproduced", "trend only", "not at this size", "not reproduced", "not tested"
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    verdict: str
    finding: Finding | None
    note: str


@dataclass(frozen=True)
class Claim:
    """A row of the ledger; the meaning of each field stands at the top of data/claims.toml."""

    id: str
    section: str
    wording: str
    page: str
    paper: str
    place: str
    unit: str
    tolerance: str
    trend: str
    interval: str
    limits: dict[str, float]
    files: list[str]
    size_matters: bool
    tried: str
    settle: str
    expected: dict[str, str]

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, getattr(field.type, "__origin__", field.type)) or value in ("", []):
                raise ValueError(f"{self.id}: {field.name} = {value!r}; expected a {field.type} that is not empty")
        if self.id not in rules.RULES:
            raise ValueError(
                f"{self.id}: no rule of ttlib/claims/rules.py has this name; there are {', '.join(rules.RULES)}"
            )
        if list(self.expected) != list(SIZES) or not set(self.expected.values()) <= set(VERDICTS):
            raise ValueError(f"{self.id}: expected = {self.expected}; wanted one of {VERDICTS} for each of {SIZES}")
        for text in ("tolerance", "trend"):
            try:
                object.__setattr__(self, text, getattr(self, text).format(**self.limits))
            except KeyError as error:
                raise ValueError(f"{self.id}: {text} names {error}, which is not in limits {self.limits}") from None


def load(path: Path = LEDGER) -> list[Claim]:
    """The ledger.  ValueError names the claim whose row is wrong, or a rule without a row."""
    names, claims = {field.name for field in fields(Claim)}, []
    for row in tomllib.loads(path.read_text())["claim"]:
        if wrong := names ^ set(row):
            raise ValueError(
                f"{path.name}, {row.get('id', row)}: fields missing or unknown: {', '.join(sorted(wrong))}"
            )
        claims.append(Claim(**row))
    if sorted(claim.id for claim in claims) != sorted(rules.RULES):
        raise ValueError(f"{path.name} must have one row for each rule of claims/rules.py: {', '.join(rules.RULES)}")
    return claims


def evaluate(claim: Claim, folder: Path, size: str) -> Outcome:
    """The verdict of a claim from the CSV files of one size in `folder`.  ValueError where a file has other columns."""
    if missing := [name for name in claim.files if not (folder / f"{name}.csv").exists()]:
        return Outcome(UNTESTED, None, f"no {' and no '.join(f'{name}.csv' for name in missing)} of this size")
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in claim.files}
    try:
        finding = rules.RULES[claim.id](tables, claim.limits)
    except NotTestedError as error:
        return Outcome(UNTESTED, None, str(error))
    except (KeyError, AttributeError) as error:
        found = {name: list(table) for name, table in tables.items()}
        raise ValueError(f"claim {claim.id}, {folder}: a column is missing ({error}); there are {found}") from error
    if not np.isfinite(finding.value):
        return Outcome(UNTESTED, None, f"the value is {finding.value}")
    failed = NOT_HERE if claim.size_matters and size != "paper" else NOT
    return Outcome(REPRODUCED if finding.holds else TREND if finding.trend else failed, finding, finding.note)


def outcomes(claims: list[Claim], root: Path = places.ROOT / "figures") -> dict[tuple[str, str], Outcome]:
    """(id, size) -> outcome."""
    return {(claim.id, size): evaluate(claim, root / size, size) for claim in claims for size in SIZES}


def changed(claims: list[Claim], found: dict[tuple[str, str], Outcome]) -> list[str]:
    """Verdicts that are not those of the ledger, one line each."""
    return [
        f"{claim.id}, size {size}: {now}, the ledger says {claim.expected[size]}"
        for claim in claims
        for size in SIZES
        if (now := found[claim.id, size].verdict) != claim.expected[size]
    ]


def record(claims: list[Claim], found: dict[tuple[str, str], Outcome], path: Path = LEDGER) -> None:
    """Write the verdicts found into the ledger, claim by claim; all else in the file stays."""
    verdicts = iter([{size: found[claim.id, size].verdict for size in SIZES} for claim in claims])

    def line(_) -> str:
        return "expected = { " + ", ".join(f'{size} = "{verdict}"' for size, verdict in next(verdicts).items()) + " }"

    text = re.sub(r"^expected = .*$", line, path.read_text(), flags=re.MULTILINE)
    files.write_aside(path, lambda aside: aside.write_text(text))


def number(x: float) -> str:
    """Two digits, more where the number before the point has more."""
    return f"{x:,.0f}" if abs(x) >= 10 else f"{x:.2g}"


def ours(outcome: Outcome) -> str:
    """Value [interval], or a dash where nothing was tested."""
    if (found := outcome.finding) is None:
        return "–"
    interval = f" [{number(found.low)}, {number(found.high)}]" if np.isfinite([found.low, found.high]).all() else ""
    return number(found.value) + interval


def table(claims: list[Claim], found: dict[tuple[str, str], Outcome], pages: str) -> str:
    """The ledger in Markdown, with the sizes that were run; pages: the folder that links begin with."""
    sizes = [size for size in SIZES if size == SIZES[0] or any(found[c.id, size].finding for c in claims)]
    heads = [f"{word}{f' ({size})' if len(sizes) > 1 else ''}" for size in sizes for word in ("ours", "verdict")]
    rows = [["claim", "in the paper", *heads, "page"], [":---"] * (3 + len(heads))]
    for claim in claims:
        cells = []
        for outcome in (found[claim.id, size] for size in sizes):
            cells += [f"{ours(outcome)}{f' {claim.unit}' if outcome.finding else ''}", outcome.verdict]
        there = (places.ROOT / "notebooks" / f"{claim.page}.py").exists()
        link = f"[{claim.page[:2]}]({pages}{claim.page}.py)" if there else ""
        rows.append([claim.wording, f"{claim.paper} ({claim.place})", *cells, link])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


BLOCK = re.compile(r"(<!-- claims: `make claims` writes this table -->\n).*?(<!-- /claims -->)", re.DOTALL)


def into_readme(text: str, claims: list[Claim], found: dict[tuple[str, str], Outcome]) -> str:
    """README.md with the table between its two marks.  ValueError where they are missing."""
    if not BLOCK.search(text):
        raise ValueError(f"README.md has no place for the table of claims; expected the marks {BLOCK.pattern}")
    return BLOCK.sub(lambda mark: f"{mark[1]}\n{table(claims, found, 'notebooks/')}\n{mark[2]}", text)
