"""The folders of the checkout, the sizes of an experiment, and what a run may compute."""

import os
from pathlib import Path

from ttlib.environments.checkout import ROOT, missing

# What is computed and not published.  On a cluster: a folder that all nodes see, where there is one.
BUILD = (ROOT / (os.environ.get("TTLIB_BUILD") or "build")).resolve()  # pages run in another folder than commands
TABLES = BUILD / "tables"
SIZES = ("smoke", "laptop", "paper")
MODES = ("all", "recompute", "scratch", "book")

if sentence := missing():
    raise ImportError(sentence)


def mode() -> str:
    """Return what a run may compute, from the environment variable TTLIB_MODE.

    all: compute what is missing; recompute: take no records; scratch: train models anew too; book: compute nothing.
    """
    chosen = os.environ.get("TTLIB_MODE", "all")
    if chosen not in MODES:
        raise ValueError(f"TTLIB_MODE={chosen!r}; expected one of {MODES}")
    return chosen


def folder(size: str) -> Path:
    """Return where figures of a size, and what is drawn, are published.  Raises ValueError for an unknown size."""
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; expected one of {SIZES}")
    return ROOT / "figures" / size


def records(size: str) -> Path:
    """Return where the records of a size are kept: results that cost more than a minute."""
    return ROOT / "data" / "records" / size


def published(name: str, size: str) -> Path:
    """Return the CSV file of a published table, which is among the records or among the figures."""
    record = records(size) / f"{name}.csv"
    return record if record.exists() else folder(size) / f"{name}.csv"


def shown(path: Path) -> Path:
    """Return a path as it is printed: relative to the repository's root where it lies below it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
