"""Numbers with parents: tables keyed by what made them, published as CSV + JSON; figures drawn from them."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
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


def added(default):
    """A field that a config got later: left out of `plain` and so of every key while it has its default, so that
    what was made before it existed is still found."""
    return dataclasses.field(default=default, metadata={"added": True})


def plain(x):
    """Configs as JSON: dataclasses become dictionaries, tuples lists."""
    if dataclasses.is_dataclass(x):
        kept = [f for f in dataclasses.fields(x) if not ("added" in f.metadata and getattr(x, f.name) == f.default)]
        return {f.name: plain(getattr(x, f.name)) for f in kept}
    if isinstance(x, dict):
        return {str(k): plain(v) for k, v in x.items()}
    return [plain(v) for v in x] if isinstance(x, (list, tuple)) else x


def key(*parts) -> str:
    """16 hex digits of the content of configs, names and other keys."""
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def file_key(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@lru_cache
def gflops() -> float:
    """fp32 matrix products of this machine, 10^9 operations a second, at torch's number of threads."""
    import torch

    x = torch.ones(512, 512)
    rates = []
    for _ in range(20):
        start = time.perf_counter()
        x @ x
        rates.append(2 * 512**3 / (time.perf_counter() - start) / 1e9)
    return round(max(rates), 1)


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide numbers."""
    packages = ("torch", "numpy", "gymnasium", "mujoco")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def provenance() -> dict:
    """Commit, versions and machine: what a number depends on beside its config."""
    import torch

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD") or "not a git checkout"
        # Results that were published a moment ago change no number of the next ones.
        if git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)figures"):
            commit += "-dirty"
    except FileNotFoundError:
        commit = "git is not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "commit": commit,
        "versions": versions(),
        "device": device,
        "threads": torch.get_num_threads(),
        "gflops_fp32": gflops(),
    }


def shown(path: Path) -> Path:
    """A path as it is printed: below the repository's root without it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


@contextlib.contextmanager
def alone(path: Path):
    """One process at a time makes `path`, also of several nodes.  Where the file system has no locks all of them do,
    and the last one's file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def follow_parent() -> None:
    """First call of a worker process: it ends when its parent does, killed or not, and waits for no more work."""

    def watch():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """write(other path), then rename: a killed or failed run leaves no half file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers on several nodes have the same process ids, and may share the folder.
    aside = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _write(path: Path, text: str | bytes) -> None:
    """Only where the content changes; what a page publishes is listed for the page runner."""
    content = text.encode() if isinstance(text, str) else text
    if not path.exists() or path.read_bytes() != content:
        write_aside(path, lambda aside: aside.write_bytes(content))
    if (page := os.environ.get("TTLIB_PAGE")) and path.is_relative_to(ROOT / "figures"):
        listing = ROOT / "notebooks" / "_build" / path.parent.name / f"{page}.outputs"
        listing.parent.mkdir(parents=True, exist_ok=True)
        with listing.open("a") as file:
            file.write(f"{path.relative_to(ROOT).as_posix()}\n")


# Kept parts that this process has read: the seconds they took, at this machine's speed.  Of several tables that are
# made of the same part, the first one pays for it.
_parts: dict[Path, float] = {}

VOLATILE = ("commit", "versions", "device", "threads", "gflops_fp32", "wall_seconds")


def _publish(name: str, size: str, csv: str, about: dict) -> None:
    """figures/<size>/name.csv and .json.  Where the same numbers stand already, their record stays too: who
    recomputes what is published, and gets the same, changes no file."""
    path = folder(size) / f"{name}.csv"
    record = path.with_suffix(".json")
    if path.exists() and record.exists() and path.read_text() == csv:
        old = json.loads(record.read_text())
        if {k: v for k, v in old.items() if k not in VOLATILE} == {k: v for k, v in about.items() if k not in VOLATILE}:
            about = old
    _write(path, csv)
    _write(record, json.dumps(about, indent=1) + "\n")


def _recipe(name: str, config: dict, stage: int) -> tuple[str, dict]:
    config = json.loads(json.dumps(plain(config)))
    return key(name, stage, config), config


def table_file(name: str, size: str, config: dict, inputs: dict[str, str] | None = None, stage: int = 1) -> Path:
    """Where `table` keeps a table, whether or not it is there."""
    return TABLES / f"{name}-{size}-{key(_recipe(name, config, stage)[0], inputs or {})}.csv"


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
    folder(size)  # a known size?
    if mode() == "book" and public:
        return published(name, size, config, stage)[0]
    path = table_file(name, size, config, inputs, stage)
    if path.exists():
        print(f"{name}: loaded (key {path.stem[-16:]})")
        if not public:
            about = json.loads(path.with_suffix(".json").read_text())
            _parts.setdefault(path, about["wall_seconds"] * about["gflops_fp32"] / gflops())
    else:
        print(f"{name}: computing", flush=True)
        start, before = time.perf_counter(), sum(_parts.values())
        made = make()
        took = time.perf_counter() - start
        _parts.setdefault(path, 0.0)  # a table made of this one measures it
        recipe, config = _recipe(name, config, stage)
        about = {"name": name, "size": size, "recipe": recipe, "config": config, "inputs": inputs or {}}
        about |= provenance() | {"wall_seconds": round(took + sum(_parts.values()) - before, 1)}
        _write(path.with_suffix(".json"), json.dumps(about, indent=1))
        _write(path, made.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        print(f"{name}: computed in {took:.0f} s")
    if public:
        _publish(name, size, path.read_text(), json.loads(path.with_suffix(".json").read_text()))
    return pd.read_csv(path)


def published(name: str, size: str, config: dict, stage: int = 1) -> tuple[pd.DataFrame, dict]:
    """A published table and its record; raises as `table` does in mode "book"."""
    path, (recipe, _) = folder(size) / f"{name}.csv", _recipe(name, config, stage)
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
    path = folder(size) / f"bench_{name}.csv"
    if not path.exists() and mode() == "book":
        raise FileNotFoundError(f"{path} is missing: `make book` only draws; run `make SIZE={size} bench` first")
    if not path.exists():
        subprocess.run([sys.executable, ROOT / "tools" / "bench.py", "--size", size], check=True)
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
        _write(folder(size) / f"{name}.{ending}", buffer.getvalue())


def bootstrap(*groups: np.ndarray, level: float = 0.9, samples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of (n,) independent values; of several groups, of the mean of their
    means, each drawn anew from its own values (stratified, as in Agarwal et al. 2021)."""
    if not groups or not all(len(x) for x in groups):
        raise ValueError("no values to bootstrap; at least one is needed in each group")
    rng, groups = np.random.default_rng(seed), [np.asarray(x, float) for x in groups]
    means = np.mean([x[rng.integers(len(x), size=(samples, len(x)))].mean(1) for x in groups], axis=0)
    return tuple(float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion."""
    from scipy.stats import norm

    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}; expected 0 <= successes <= n and n > 0")
    z, p = norm.ppf((1 + level) / 2), successes / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float((centre - half) / (1 + z**2 / n)), float((centre + half) / (1 + z**2 / n))
