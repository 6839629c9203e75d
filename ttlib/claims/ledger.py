"""The ledger of claims: data/claims.toml says what the paper claims, and rules judge it from result files alone."""

import datetime
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ttlib import files
from ttlib.claims import rules, superseded
from ttlib.claims.rules import Finding, NotTestedError, Tables
from ttlib.pipeline import places

LEDGER = places.ROOT / "data" / "claims.toml"
SIZES = ("laptop", "paper")  # results of size smoke mean nothing
REPRODUCED, TREND, NOT_HERE, NOT, UNTESTED = VERDICTS = (
    "reproduced", "trend only", "not at this size", "not reproduced", "not tested"
)  # fmt: skip


NAMED = rules.RULES | superseded.RULES


@dataclass(frozen=True)
class Outcome:
    """A verdict with the finding behind it, a note for the reader, and the first rule's verdict if it was changed."""

    verdict: str
    finding: Finding | None
    note: str
    first: str = ""

    def words(self) -> str:
        """Return the verdict, and the first rule's if that is another one."""
        return self.verdict + (f" (first rule: {self.first})" if self.first not in ("", self.verdict) else "")


@dataclass(frozen=True)
class Change:
    """An entry of a row's history.  A superseded rule stays, by its name, with its limits and its files."""

    date: datetime.date
    commit: str
    change: str
    reason: str
    known: bool
    rule: str = ""
    limits: dict[str, float] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """A row of the ledger; the comment at the top of data/claims.toml explains the fields."""

    id: str
    title: str
    section: str
    wording: str
    page: str
    paper: str
    place: str
    sentence: str
    picture: dict
    tolerance: str
    trend: str
    interval: str
    limits: dict[str, float]
    files: list[str]
    size_matters: bool
    tried: str
    settle: str
    expected: dict[str, str]
    history: list[Change]

    def __post_init__(self):
        for name, kind in [(each.name, each.type) for each in fields(self)]:
            value = getattr(self, name)
            if not isinstance(value, getattr(kind, "__origin__", kind)) or value in ("", []):
                raise ValueError(f"{self.id}: {name} = {value!r}; expected a {kind} that is not empty")
        if self.id not in rules.RULES:
            raise ValueError(f"{self.id}: no rule in ttlib/claims/rules.py has this name; use one of {[*rules.RULES]}")
        if list(self.expected) != list(SIZES) or not set(self.expected.values()) <= set(VERDICTS):
            raise ValueError(f"{self.id}: expected = {self.expected}; give each of {SIZES} one of {VERDICTS}")
        if len(self.history) > 1 and self.history[0].rule not in NAMED:
            raise ValueError(
                f"{self.id}: the rule was changed, and its first one has the name {self.history[0].rule!r}; expected "
                f"one of {[*NAMED]}, so that the ledger can print the first rule's verdict"
            )
        if self.picture.keys() not in ({"low", "high", "unit", "paper"}, {"low", "high", "unit", "limit"}):
            raise ValueError(f"{self.id}: picture = {self.picture}; expected low, high, unit, and paper or limit")
        if isinstance(limit := self.picture.get("limit"), str) and limit not in self.limits:
            raise ValueError(f"{self.id}: picture names the limit {limit!r}; expected one of {[*self.limits]}")
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
        try:
            history = [Change(**entry) for entry in row["history"]]
        except TypeError as error:
            raise ValueError(f"{path.name}, {row['id']}: an entry of the history is wrong: {error}") from None
        claims.append(Claim(**row | {"history": history}))
    if sorted(claim.id for claim in claims) != sorted(rules.RULES):
        raise ValueError(f"{path.name} must have one row for each rule of claims/rules.py: {', '.join(rules.RULES)}")
    return claims


def results(names: list[str], size: str, find: Callable[[str, str], Path] = places.published) -> Tables:
    """Read the result files find(name, size) of a size.  NotTestedError names those that do not exist."""
    paths = {name: find(name, size) for name in names}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        raise NotTestedError(f"There is no {' and no '.join(missing)} of this size.")
    return {name: pd.read_csv(path) for name, path in paths.items()}


def judge(claim: Claim, size: str, tables: Tables, limits: rules.Limits, rule: str = "") -> Outcome:
    """Judge a claim from result tables by these limits, and by its own rule or one with another name.

    ValueError if a table lacks a column.
    """
    try:
        finding = NAMED[rule or claim.id](tables, limits)
    except NotTestedError as error:
        return Outcome(UNTESTED, None, str(error))
    except (KeyError, AttributeError) as error:
        columns = {name: list(table) for name, table in tables.items()}
        raise ValueError(f"{claim.id}, size {size}: {error!r}; is a column missing? There are {columns}") from error
    if not np.isfinite(finding.value):
        return Outcome(UNTESTED, None, "The results give no finite value.")
    failed = NOT_HERE if claim.size_matters and size != "paper" else NOT
    return Outcome(REPRODUCED if finding.holds else TREND if finding.trend else failed, finding, finding.note)


def evaluate(claim: Claim, size: str, find: Callable[[str, str], Path] = places.published) -> Outcome:
    """Judge a claim from the result files find(name, size) of a size, also by its first rule if that was changed.

    ValueError if a file lacks a column.
    """
    try:
        outcome = judge(claim, size, results(claim.files, size, find), claim.limits)
    except NotTestedError as error:
        outcome = Outcome(UNTESTED, None, str(error))
    if len(claim.history) == 1:
        return outcome
    old = claim.history[0]
    try:
        return replace(outcome, first=judge(claim, size, results(old.files, size, find), old.limits, old.rule).verdict)
    except NotTestedError:
        return replace(outcome, first=UNTESTED)


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
            cells += [claim.says(outcome.finding) if outcome.finding else "–", outcome.words()]
        exists = (places.ROOT / "notebooks" / f"{claim.page}.py").exists()
        link = f"[{claim.page[:2]}]({pages}{claim.page}.py)" if exists else ""
        rows.append([claim.wording, f"{claim.paper} ({claim.place})", *cells, link])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


BLOCK = re.compile(r"(<!-- claims: `make claims` writes this table -->\n).*?(<!-- /claims -->)", re.DOTALL)


def into_readme(text: str, claims: list[Claim], judged: dict[tuple[str, str], Outcome], summary: list[str]) -> str:
    """Return the text of README.md with a new summary and table between two marks.  ValueError if a mark is missing."""
    if not BLOCK.search(text):
        raise ValueError(f"README.md has no place for the table of claims; expected the marks {BLOCK.pattern}")
    lines = "\n".join(f"- {line}" for line in summary)
    return BLOCK.sub(lambda mark: f"{mark[1]}\n{lines}\n\n{table(claims, judged, 'notebooks/')}\n{mark[2]}", text)
