"""The ledger of claims: data/claims.toml says what the paper claims, and rules judge it from result files alone."""

import re
import tomllib
from collections.abc import Callable
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
    """A verdict with the finding behind it, and a note for the reader."""

    verdict: str
    finding: Finding | None
    note: str


@dataclass(frozen=True)
class Claim:
    """A row of the ledger; the comment at the top of data/claims.toml explains the fields."""

    id: str
    section: str
    wording: str
    page: str
    paper: str
    place: str
    sentence: str
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
            raise ValueError(f"{self.id}: no rule in ttlib/claims/rules.py has this name; use one of {[*rules.RULES]}")
        if list(self.expected) != list(SIZES) or not set(self.expected.values()) <= set(VERDICTS):
            raise ValueError(f"{self.id}: expected = {self.expected}; give each of {SIZES} one of {VERDICTS}")
        for name in ("tolerance", "trend"):
            object.__setattr__(self, name, self._filled(name, self.limits))
        self._filled("sentence", {"value": 0.0, "low": 0.0, "high": 0.0})

    def _filled(self, name: str, numbers: dict[str, float]) -> str:
        try:
            return getattr(self, name).format(**numbers)
        except KeyError as error:
            raise ValueError(f"{self.id}: {name} names {error}; expected one of {[*numbers]}") from None

    def says(self, finding: Finding) -> str:
        """Return the row's sentence with the numbers of a finding."""
        return self.sentence.format(value=finding.value, low=finding.low, high=finding.high)


def load(path: Path = LEDGER) -> list[Claim]:
    """Read the ledger.  ValueError names the claim whose row is wrong, or says that a rule has no row."""
    names, claims = {field.name for field in fields(Claim)}, []
    for row in tomllib.loads(path.read_text("utf-8"))["claim"]:
        if wrong := names ^ set(row):
            name = row.get("id", row)
            raise ValueError(f"{path.name}, {name}: fields are missing or unknown: {', '.join(sorted(wrong))}")
        claims.append(Claim(**row))
    if sorted(claim.id for claim in claims) != sorted(rules.RULES):
        raise ValueError(f"{path.name} must have one row for each rule of claims/rules.py: {', '.join(rules.RULES)}")
    return claims


def evaluate(claim: Claim, size: str, find: Callable[[str, str], Path] = places.published) -> Outcome:
    """Judge a claim from the result files of a size, find(name, size).  ValueError if a file lacks a column."""
    paths = {name: find(name, size) for name in claim.files}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        return Outcome(UNTESTED, None, f"There is no {' and no '.join(missing)} of this size.")
    tables = {name: pd.read_csv(path) for name, path in paths.items()}
    try:
        finding = rules.RULES[claim.id](tables, claim.limits)
    except NotTestedError as error:
        return Outcome(UNTESTED, None, str(error))
    except (KeyError, AttributeError) as error:
        columns = {name: list(table) for name, table in tables.items()}
        raise ValueError(f"{claim.id}, size {size}: {error!r}; is a column missing? There are {columns}") from error
    if not np.isfinite(finding.value):
        return Outcome(UNTESTED, None, "The results give no finite value.")
    failed = NOT_HERE if claim.size_matters and size != "paper" else NOT
    return Outcome(REPRODUCED if finding.holds else TREND if finding.trend else failed, finding, finding.note)


def outcomes(claims: list[Claim]) -> dict[tuple[str, str], Outcome]:
    """Return (id, size) -> outcome."""
    return {(claim.id, size): evaluate(claim, size) for claim in claims for size in SIZES}


def changed(claims: list[Claim], judged: dict[tuple[str, str], Outcome]) -> list[str]:
    """Return a line for each verdict that differs from the ledger's."""
    return [
        f"{claim.id}, size {size}: the verdict is {now!r}, but the ledger says {claim.expected[size]!r}"
        for claim in claims
        for size in SIZES
        if (now := judged[claim.id, size].verdict) != claim.expected[size]
    ]


def record(claims: list[Claim], judged: dict[tuple[str, str], Outcome], path: Path = LEDGER) -> None:
    """Write the verdicts into the ledger, claim by claim; the rest of the file is unchanged."""
    verdicts = iter([{size: judged[claim.id, size].verdict for size in SIZES} for claim in claims])

    def line(_) -> str:
        return "expected = { " + ", ".join(f'{size} = "{verdict}"' for size, verdict in next(verdicts).items()) + " }"

    text = re.sub(r"^expected = .*$", line, path.read_text("utf-8"), flags=re.MULTILINE)
    files.write_aside(path, lambda aside: aside.write_text(text, "utf-8"))


def table(claims: list[Claim], judged: dict[tuple[str, str], Outcome], pages: str) -> str:
    """Return the ledger in Markdown, with the sizes that were run; links to pages begin with the folder `pages`."""
    sizes = [size for size in SIZES if size == SIZES[0] or any(judged[c.id, size].finding for c in claims)]
    heads = [f"{word}{f' ({size})' if len(sizes) > 1 else ''}" for size in sizes for word in ("our result", "verdict")]
    rows = [["claim", "in the paper", *heads, "page"], [":---"] * (3 + len(heads))]
    for claim in claims:
        cells = []
        for outcome in (judged[claim.id, size] for size in sizes):
            cells += [claim.says(outcome.finding) if outcome.finding else "–", outcome.verdict]
        exists = (places.ROOT / "notebooks" / f"{claim.page}.py").exists()
        link = f"[{claim.page[:2]}]({pages}{claim.page}.py)" if exists else ""
        rows.append([claim.wording, f"{claim.paper} ({claim.place})", *cells, link])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


BLOCK = re.compile(r"(<!-- claims: `make claims` writes this table -->\n).*?(<!-- /claims -->)", re.DOTALL)


def into_readme(text: str, claims: list[Claim], judged: dict[tuple[str, str], Outcome]) -> str:
    """Return the text of README.md with a new table between its two marks.  ValueError if a mark is missing."""
    if not BLOCK.search(text):
        raise ValueError(f"README.md has no place for the table of claims; expected the marks {BLOCK.pattern}")
    return BLOCK.sub(lambda mark: f"{mark[1]}\n{table(claims, judged, 'notebooks/')}\n{mark[2]}", text)
