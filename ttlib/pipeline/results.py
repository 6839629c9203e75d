"""Tables keyed by what made them, published as CSV and JSON, and the figures drawn from them."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ttlib import files
from ttlib.pipeline import keys, places, provenance


@contextlib.contextmanager
def alone(path: Path):
    """One process at a time makes `path`, also of several nodes.  Where the file system has no locks all of them do,
    and the last one's file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str | bytes) -> None:
    """Only where the content changes; what a page publishes is listed for the page runner."""
    content = text.encode() if isinstance(text, str) else text
    if not path.exists() or path.read_bytes() != content:
        files.write_aside(path, lambda aside: aside.write_bytes(content))
    if (page := os.environ.get("TTLIB_PAGE")) and path.is_relative_to(places.ROOT / "figures"):
        listing = places.ROOT / "notebooks" / "_build" / path.parent.name / f"{page}.outputs"
        listing.parent.mkdir(parents=True, exist_ok=True)
        with listing.open("a") as file:
            file.write(f"{path.relative_to(places.ROOT).as_posix()}\n")


# Kept parts that this process has read: the seconds they took, at this machine's speed.  Of several tables that are
# made of the same part, the first one pays for it.
_parts: dict[Path, float] = {}


VOLATILE = ("commit", "versions", "device", "threads", "gflops_fp32", "wall_seconds")


def _publish(name: str, size: str, csv: str, about: dict) -> None:
    """figures/<size>/name.csv and .json.  Where the same numbers stand already, their record stays too: who
    recomputes what is published, and gets the same, changes no file."""
    path = places.folder(size) / f"{name}.csv"
    record = path.with_suffix(".json")
    if path.exists() and record.exists() and path.read_text() == csv:
        old = json.loads(record.read_text())
        if {k: v for k, v in old.items() if k not in VOLATILE} == {k: v for k, v in about.items() if k not in VOLATILE}:
            about = old
    _write(path, csv)
    _write(record, json.dumps(about, indent=1) + "\n")


def _recipe(name: str, config: dict, stage: int) -> tuple[str, dict]:
    config = json.loads(json.dumps(keys.plain(config)))
    return keys.key(name, stage, config), config


def table_file(name: str, size: str, config: dict, inputs: dict[str, str] | None = None, stage: int = 1) -> Path:
    """Where `table` keeps a table, whether or not it is there."""
    return places.TABLES / f"{name}-{size}-{keys.key(_recipe(name, config, stage)[0], inputs or {})}.csv"


def table(
    name: str,
    size: str,
    make: Callable[[], pd.DataFrame],
    config: dict,
    inputs: dict[str, str] | None = None,
    stage: int = 1,
    public: bool = True,
) -> pd.DataFrame:
    """A table of results: loaded if its key is known, else made; published under figures/<size>/ if public.

    config: everything that decides the numbers (profile, seeds, search); inputs: keys of the checkpoints and
    data it is computed from; stage: raise by hand when the meaning of the numbers changes.
    The record's wall_seconds count what parts took (tables that `make` asks for, with public=False), in this run or
    in the one that kept them: what it takes where nothing is kept.
    In mode "book" the published file is read and nothing is computed: FileNotFoundError if it is missing,
    ValueError if it was made with another config.
    """
    places.folder(size)  # a known size?
    if places.mode() == "book" and public:
        return published(name, size, config, stage)[0]
    path = table_file(name, size, config, inputs, stage)
    if path.exists():
        print(f"{name}: loaded (key {path.stem[-16:]})")
        if not public:
            about = json.loads(path.with_suffix(".json").read_text())
            _parts.setdefault(path, about["wall_seconds"] * about["gflops_fp32"] / provenance.gflops())
    else:
        print(f"{name}: computing", flush=True)
        start, before = time.perf_counter(), sum(_parts.values())
        made = make()
        took = time.perf_counter() - start
        _parts.setdefault(path, 0.0)  # a table made of this one measures it
        recipe, config = _recipe(name, config, stage)
        about = {"name": name, "size": size, "recipe": recipe, "config": config, "inputs": inputs or {}}
        about |= provenance.here() | {"wall_seconds": round(took + sum(_parts.values()) - before, 1)}
        _write(path.with_suffix(".json"), json.dumps(about, indent=1))
        _write(path, made.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        print(f"{name}: computed in {took:.0f} s")
    if public:
        _publish(name, size, path.read_text(), json.loads(path.with_suffix(".json").read_text()))
    return pd.read_csv(path)


def published(name: str, size: str, config: dict, stage: int = 1) -> tuple[pd.DataFrame, dict]:
    """A published table and its record; raises as `table` does in mode "book"."""
    path, (recipe, _) = places.folder(size) / f"{name}.csv", _recipe(name, config, stage)
    if not path.exists() or not path.with_suffix(".json").exists():
        raise FileNotFoundError(f"{path} or its .json is missing: `make book` only draws; run `make all` first")
    about = json.loads(path.with_suffix(".json").read_text())
    if about["recipe"] != recipe:
        found = about["recipe"]
        raise ValueError(f"{path} was made with another config (recipe {found}, now {recipe}): run `make all`")
    print(f"{name}: published result read")
    return pd.read_csv(path), about


def bench(name: str, size: str) -> pd.DataFrame:
    """A table of `make bench`.  Where there is none yet, it is measured now; FileNotFoundError in mode "book"."""
    path = places.folder(size) / f"bench_{name}.csv"
    if not path.exists() and places.mode() == "book":
        raise FileNotFoundError(f"{path} is missing: `make book` only draws; run `make SIZE={size} bench` first")
    if not path.exists():
        subprocess.run([sys.executable, "-m", "ttlib.commands.bench", "--size", size], check=True)
    return pd.read_csv(path)


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
