"""Tables keyed by what made them, published as CSV and JSON, and the figures drawn from them."""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ttlib import files
from ttlib.pipeline import keys, places, provenance

VOLATILE = ("commit", "versions", "device", "planner", "threads", "gflops_fp32", "wall_seconds")


@contextlib.contextmanager
def alone(path: Path):
    """Let one process at a time make `path`, also where the processes are on several nodes.

    Where the file system has no locks all of them make it, and the last one's file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str | bytes) -> None:
    """Write a file where its content changes, and list it for the page runner, which names its list."""
    content = text.encode() if isinstance(text, str) else text
    if not path.exists() or path.read_bytes() != content:
        files.write_aside(path, lambda aside: aside.write_bytes(content))
    if (listing := os.environ.get("TTLIB_OUTPUTS")) and path.is_relative_to(places.ROOT / "figures"):
        with open(listing, "a") as file:
            file.write(f"{path.relative_to(places.ROOT).as_posix()}\n")


def _publish(name: str, size: str, csv: str, about: dict) -> None:
    """Write figures/<size>/name.csv and .json.

    Where the same numbers are there already, their record stays too: a recomputation that gives the same changes no
    file.
    """
    path = places.folder(size) / f"{name}.csv"
    record = path.with_suffix(".json")
    if path.exists() and record.exists() and path.read_text() == csv:
        old = json.loads(record.read_text())
        if {k: v for k, v in old.items() if k not in VOLATILE} == {k: v for k, v in about.items() if k not in VOLATILE}:
            about = old
    _write(path, csv)
    _write(record, json.dumps(about, indent=1) + "\n")


def _recipe(name: str, config: dict) -> tuple[str, dict]:
    """Return the key of a table's name and config, and the config as JSON."""
    config = json.loads(json.dumps(keys.plain(config)))
    return keys.key(name, config), config


def table_file(name: str, size: str, config: dict, inputs: dict[str, str] | None = None, stage: int = 1) -> Path:
    """Return where `table` keeps a table, whether or not it is there."""
    return places.TABLES / f"{name}-{size}-{keys.key(_recipe(name, config)[0], stage, inputs or {})}.csv"


def table(
    name: str,
    size: str,
    make: Callable[[], pd.DataFrame],
    config: dict,
    inputs: dict[str, str] | None = None,
    stage: int = 1,
    public: bool = True,
) -> pd.DataFrame:
    """Return a table of results: read where its key is known, else made; published in figures/<size>/ if public.

    config: everything that decides the numbers (profile, seeds, search); inputs: keys of the checkpoints and data it
    is computed from; stage: the number of the code, raised by hand when the meaning of the numbers changes.
    In mode book the published file is read and nothing is computed; raises as `published` does.
    """
    places.folder(size)  # raises for an unknown size
    if places.mode() == "book" and public:
        return published(name, size, config, stage)[0]
    path = table_file(name, size, config, inputs, stage)
    if path.exists():
        say(f"{name}: loaded (key {path.stem[-16:]})")
    else:
        say(f"{name}: computing")
        start = time.perf_counter()
        made = make()
        took = time.perf_counter() - start
        recipe, config = _recipe(name, config)
        about = {"name": name, "size": size, "recipe": recipe, "stage": stage, "config": config, "inputs": inputs or {}}
        about |= provenance.here() | {"wall_seconds": round(took, 1)}
        _write(path.with_suffix(".json"), json.dumps(about, indent=1))
        _write(path, made.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        say(f"{name}: computed in {took:.0f} s")
    if public:
        _publish(name, size, path.read_text(), json.loads(path.with_suffix(".json").read_text()))
    return pd.read_csv(path)


def say(text: str) -> None:
    """Print a line about the work done; on a page it does not become a part of the text."""
    print(text, file=sys.stderr, flush=True)


def published(name: str, size: str, config: dict, stage: int = 1) -> tuple[pd.DataFrame, dict]:
    """Return a published table and its record.

    Raises FileNotFoundError if it is missing, ValueError if it was made with another config.  A table that an earlier
    stage of the code made is returned, and that is said.
    """
    path, (recipe, _) = places.folder(size) / f"{name}.csv", _recipe(name, config)
    if not path.exists() or not path.with_suffix(".json").exists():
        raise FileNotFoundError(f"{path} or its .json is missing: `make book` only draws; run `make all` first")
    about = json.loads(path.with_suffix(".json").read_text())
    if about["recipe"] != recipe:
        made = about["recipe"]
        raise ValueError(f"{path} was made with another config (recipe {made}, now {recipe}): run `make all`")
    if about.get("stage", 1) != stage:
        say(f"{name}: made by stage {about.get('stage', 1)} of the code, which is now at {stage}: run `make all`")
    return pd.read_csv(path), about


def save_figure(figure, name: str, size: str) -> None:
    """figures/<size>/name.png and .svg, without dates, so that the same numbers give the same files."""
    import io

    import matplotlib

    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    if size != "paper" and not any(f"({size})" in title for title in titles):
        raise ValueError(f"figure {name}: its title must say that it is of size {size}, not the paper's")
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
            figure.savefig(buffer, format=ending, dpi=150, bbox_inches="tight", metadata=metadata)
        _write(places.folder(size) / f"{name}.{ending}", buffer.getvalue())
