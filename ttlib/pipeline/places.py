"""The folders of the checkout, the sizes of an experiment, and what a run may compute."""

import os
from pathlib import Path

from ttlib.environments.checkout import ROOT, missing

# What is computed and not published.  On a cluster: a folder that all nodes see, where there is one.
BUILD = Path(os.environ.get("TTLIB_BUILD") or ROOT / "build").resolve()
TABLES = BUILD / "tables"
SIZES = ("smoke", "laptop", "paper")
MODES = ("all", "scratch", "book")

if sentence := missing():
    raise ImportError(sentence)


def mode() -> str:
    """Return what a run may compute, from the environment variable TTLIB_MODE.

    all: compute what is missing; scratch: train models anew too; book: draw published results, compute nothing.
    """
    chosen = os.environ.get("TTLIB_MODE", "all")
    if chosen not in MODES:
        raise ValueError(f"TTLIB_MODE={chosen!r}; expected one of {MODES}")
    return chosen


def folder(size: str) -> Path:
    """Return where results of a size are published.  Raises ValueError for an unknown size."""
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; expected one of {SIZES}")
    return ROOT / "figures" / size


def shown(path: Path) -> Path:
    """Return a path as it is printed: relative to the repository's root where it lies below it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
