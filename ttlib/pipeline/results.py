"""Tables keyed by what made them, published as CSV and JSON, and the figures drawn from them.

A *record* is a published table that costs more than a minute.  It is taken as it is while its key is right.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ttlib import files
from ttlib.pipeline import keys, locks, places, provenance

VOLATILE = ("commit", "versions", "device", "planner", "instructions", "threads", "gflops_fp32", "wall_seconds")


def _write(path: Path, text: str | bytes) -> None:
    """Write a file where its content changes, and list it."""
    content = text.encode() if isinstance(text, str) else text
    if not path.exists() or path.read_bytes() != content:
        files.write_aside(path, lambda aside: aside.write_bytes(content))
    _list(path)


def _list(path: Path) -> None:
    """List a published file for the page runner, which names its list."""
    shown = (places.ROOT / "figures", places.ROOT / "data" / "records")
    if (listing := os.environ.get("TTLIB_OUTPUTS")) and any(map(path.is_relative_to, shown)):
        with open(listing, "a") as file:
            file.write(f"{path.relative_to(places.ROOT).as_posix()}\n")


def _publish(path: Path, csv: str, about: dict) -> None:
    """Write a published table and its .json.

    Where the same numbers are there already, their .json stays too: a recomputation that gives the same changes no
    file.
    """
    with contextlib.suppress(FileNotFoundError, ValueError):  # what is missing or damaged is written anew
        _, old = read(path)
        if {k: v for k, v in old.items() if k not in VOLATILE} == {k: v for k, v in about.items() if k not in VOLATILE}:
            about = old
    _write(path, csv)
    _write(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")


def _digest(csv: str) -> str:
    """Return the digest of a table's text."""
    return hashlib.sha256(csv.encode()).hexdigest()


def _recipe(name: str, config: dict) -> tuple[str, dict]:
    """Return the key of a table's name and config, and the config as JSON."""
    config = json.loads(json.dumps(keys.plain(config)))
    return keys.key(name, config), config


def table_file(name: str, size: str, config: dict, inputs: dict[str, str] | None = None, stage: int = 1) -> Path:
    """Return where `table` keeps a table, whether or not it is there."""
    return places.TABLES / f"{name}-{size}-{keys.key(_recipe(name, config)[0], stage, inputs or {})}.csv"


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Return a kept or a published table and its .json.

    Raises FileNotFoundError if a file is missing, ValueError if one was cut, edited, or cannot be read.
    """
    try:
        csv, about = path.read_text(encoding="utf-8"), json.loads(path.with_suffix(".json").read_bytes())
        digest, _ = about["sha256"], keys.key(about["recipe"], about["stage"], about["inputs"])
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} or its .json is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} or its .json cannot be read ({error!r})") from None
    if _digest(csv) != digest:
        raise ValueError(f"{path} is not the file that was written: its digest is another one")
    return pd.read_csv(path), about


def kept(path: Path) -> tuple[pd.DataFrame, dict] | None:
    """Return what `read` does of a kept table, or None.  A damaged one is named and removed, and so made again."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        say(f"{error}: it is made again")
        path.unlink()
        return None


def published(path: Path, recipe: str, inputs: dict[str, str], stage: int) -> pd.DataFrame:
    """Return a published table whose key is right.  Raises as `read`, and ValueError that says what is stale."""
    found, about = read(path)
    if about["stage"] != stage:
        raise ValueError(f"{path} was made by stage {about['stage']} of the code, which is now at {stage}")
    if about["recipe"] != recipe:
        raise ValueError(f"{path} was made with other settings (recipe {about['recipe']}, now {recipe})")
    if about["inputs"] != inputs:
        names = about["inputs"].keys() | inputs.keys()
        other = sorted(name for name in names if about["inputs"].get(name) != inputs.get(name))
        raise ValueError(f"{path} was made from other data or models: {', '.join(other)}")
    return found


def table(
    name: str,
    size: str,
    make: Callable[[], pd.DataFrame],
    config: dict,
    inputs: dict[str, str] | None = None,
    stage: int = 1,
    public: bool = True,
    record: bool = False,
) -> pd.DataFrame:
    """Return a table of results: read where its key is known, else made.

    config: everything that decides the numbers (profile, seeds, search); inputs: keys of the checkpoints and data it
    is computed from; stage: the number of the code, raised by hand when the meaning of the numbers changes.
    A public table is published in figures/<size>/, or in data/records/<size>/ if it is a record.  In mode all a
    record whose key and digest are right is taken, but not at size smoke.  In mode book every published table is, and
    nothing is computed: raises as `published` does.
    """
    folder = places.folder(size)  # raises for an unknown size
    at = (places.records(size) if record else folder) / f"{name}.csv"
    path = table_file(name, size, config, inputs, stage)
    book = public and places.mode() == "book"
    known = None if book else kept(path)
    if book or (public and record and takes_records(size) and not known):
        try:
            found = published(at, _recipe(name, config)[0], inputs or {}, stage)
            say(f"{name}: taken from {places.shown(at.parent)}")
            _list(at)
            return found
        except (FileNotFoundError, ValueError) as error:
            if book:
                raise type(error)(f"{error}; `make book` only draws: run `make all` first") from None
            say(f"{name}: not taken from records: {error}")
    if known:
        say(f"{name}: loaded (key {path.stem[-16:]})")
    else:
        with locks.alone(path):
            known = kept(path)  # another command may have made it meanwhile
            if not known:
                _compute(path, name, size, make, (config, inputs or {}, stage))
                known = read(path)
    found, about = known
    if public:
        _publish(at, path.read_text(encoding="utf-8"), about)
    return found


def drawn(name: str, size: str, make: Callable[[], pd.DataFrame], *tables: pd.DataFrame, **config) -> pd.DataFrame:
    """Return a public table that is computed from other tables alone, in seconds."""
    texts = [table.to_csv(index=False, float_format="%.6g") for table in tables]
    return table(name, size, make, config, {"tables": keys.key(texts)})


def every(size: str) -> list[tuple[Path, dict]]:
    """Return the file and the .json of each published table of a size, records first; unreadable ones are left out."""
    found = []
    for path in sorted([*places.records(size).glob("*.csv"), *places.folder(size).glob("*.csv")]):
        with contextlib.suppress(FileNotFoundError, ValueError):
            found.append((path, read(path)[1]))
    return found


def takes_records(size: str) -> bool:
    """Return whether records of a size are taken where their key is right."""
    return places.mode() == "all" and size != "smoke"


def _compute(path: Path, name: str, size: str, make: Callable[[], pd.DataFrame], parents: tuple) -> None:
    """Make a table; write it and its .json.  parents: config, inputs and stage."""
    say(f"{name}: computing")
    start = time.perf_counter()
    made = make()
    took = made.attrs.get("seconds", time.perf_counter() - start)  # of its parts, where these are made before
    (recipe, config), inputs, stage = _recipe(name, parents[0]), *parents[1:]
    about = {"name": name, "size": size, "recipe": recipe, "stage": stage, "config": config, "inputs": inputs}
    csv = made.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    about |= provenance.here() | {"wall_seconds": round(took, 1), "sha256": _digest(csv)}
    _write(path.with_suffix(".json"), json.dumps(about, indent=1))
    _write(path, csv)
    say(f"{name}: computed in {took:.0f} s")


def say(text: str) -> None:
    """Print a line about the work done; on a page it does not become a part of the text."""
    print(text, file=sys.stderr, flush=True)


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
