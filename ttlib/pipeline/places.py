"""Where the checkout keeps things, the sizes of an experiment, and what a run may compute."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


# What is computed and not published.  On a cluster: a folder that all nodes see, where there is one.
BUILD = Path(os.environ.get("TTLIB_BUILD") or ROOT / "build").resolve()


TABLES = BUILD / "tables"


SIZES = ("smoke", "laptop", "paper")


MODES = ("all", "scratch", "book")


def mode() -> str:
    """all: compute what is missing; scratch: train anew too; book: draw published results, compute nothing."""
    chosen = os.environ.get("TTLIB_MODE", "all")
    if chosen not in MODES:
        raise ValueError(f"TTLIB_MODE={chosen!r}; expected one of {MODES}")
    return chosen


def folder(size: str) -> Path:
    """Where results of a size are published.  ValueError lists the sizes."""
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; expected one of {SIZES}")
    return ROOT / "figures" / size


def shown(path: Path) -> Path:
    """A path as it is printed: below the repository's root without it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
