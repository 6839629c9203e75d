"""Numbers with parents: tables keyed by what made them, published as CSV + JSON; figures drawn from them."""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "build" / "tables"
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


def provenance() -> dict:
    """Commit, versions and machine: what a number depends on beside its config."""
    import torch

    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        commit = commit.stdout.strip() or "not a git checkout"
    except FileNotFoundError:
        commit = "git is not installed"
    packages = ("torch", "numpy", "gymnasium", "mujoco")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "commit": commit,
        "versions": versions,
        "device": device,
        "threads": torch.get_num_threads(),
        "gflops_fp32": gflops(),
    }


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """write(other path), then rename: a killed or failed run leaves no half file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
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
    In mode "book" the published file is read and nothing is computed: FileNotFoundError if it is missing,
    ValueError if it was made with another config.
    """
    config = json.loads(json.dumps(plain(config)))
    recipe = key(name, stage, config)
    published = folder(size) / f"{name}.csv"
    if mode() == "book" and public:
        return _published(published, recipe)
    path = TABLES / f"{name}-{size}-{key(recipe, inputs or {})}.csv"
    if path.exists():
        print(f"{name}: loaded (key {path.stem[-16:]})")
    else:
        print(f"{name}: computing", flush=True)
        start = time.perf_counter()
        made = make()
        about = {"name": name, "size": size, "recipe": recipe, "config": config, "inputs": inputs or {}}
        about |= provenance() | {"wall_seconds": round(time.perf_counter() - start, 1)}
        _write(path.with_suffix(".json"), json.dumps(about, indent=1))
        _write(path, made.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        print(f"{name}: computed in {about['wall_seconds']:.0f} s")
    if public:
        _publish(name, size, path.read_text(), json.loads(path.with_suffix(".json").read_text()))
    return pd.read_csv(path)


def _published(path: Path, recipe: str) -> pd.DataFrame:
    if not path.exists() or not path.with_suffix(".json").exists():
        raise FileNotFoundError(f"{path} or its .json is missing: `make book` only draws; run `make all` first")
    if (found := json.loads(path.with_suffix(".json").read_text())["recipe"]) != recipe:
        raise ValueError(f"{path} was made with another config (recipe {found}, now {recipe}): run `make all`")
    print(f"{path.stem}: published result read")
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
