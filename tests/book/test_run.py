"""Tests of the page runner: bad arguments are refused before any work, and content decides what is run again."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    import run

    return run


@pytest.mark.parametrize("arguments, said", [
    (["09_humanoid.py", "--size", "smoke"], ["09_humanoid.py", "04_four_rooms.py"]),
    (["04_four_rooms.py", "--size", "huge"], ["huge", "smoke", "laptop", "paper"]),
    (["04_four_rooms.py", "--mode", "fast"], ["fast", "all", "scratch", "book"]),
    (["04_four_rooms.py", "--size", "smoke", "-p", "widht=3"], ["widht", "its parameters are size"]),
    (["04_four_rooms.py", "--size", "smoke", "-p", "size=paper"], ["size=paper", "--size"]),
    (["07_your_own_data.py", "--size", "smoke", "-p", "path={1}"], ["path={1}", "expected text, numbers"]),
])
def test_bad_arguments_are_refused(arguments, said):
    command = [sys.executable, ROOT / "notebooks" / "run.py", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and not run.stdout
    assert all(word in run.stderr for word in said), run.stderr


def test_content_decides_what_is_stale(run, tmp_path, monkeypatch):
    """The key of a page changes with its text, size, mode, parameters and the user's files, and with nothing else."""
    page = tmp_path / "page.py"
    page.write_text("x = 1\n")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "sources", lambda p: [p])
    key = run.content_key(page, "smoke", "all", {})
    page.touch()
    assert run.content_key(page, "smoke", "all", {}) == key
    others = [("laptop", "all", {}), ("smoke", "book", {}), ("smoke", "all", {"x": 2})]
    assert len({key, *(run.content_key(page, *other) for other in others)}) == 4
    page.write_text("x = 2\n")
    assert run.content_key(page, "smoke", "all", {}) != key
    given = {"path": str(tmp_path / "mine.hdf5")}
    keys = [run.content_key(page, "smoke", "all", given)]
    for content in ("1", "2"):  # a file that a parameter names
        (tmp_path / "mine.hdf5").write_text(content)
        keys.append(run.content_key(page, "smoke", "all", given))
    assert len(set(keys)) == 3


def test_values_that_a_page_cannot_be_given_are_refused(run):
    for value in ("{1}", "b'a'", "1j", "[{1}]"):
        with pytest.raises(run.UsageError, match=re.escape(f"-p x={value}: expected text, numbers")):
            run.parse_parameters([f"x={value}"])


SHIPPED = (
    "data/checkpoints/hopper-v1-laptop/model.safetensors.z", "data/checkpoints/hopper-v1-laptop/config.json",
    "data/policies/hopper/step_0020000.npz", "data/d4rl_returns.tsv", "data/published_speed.csv",
    "ttlib/model.py", "ttlib/drawing/body_player.html", "ttlib/drawing/planner.js", "ttlib/native/planner.cpp",
    "notebooks/run.py", "requirements.lock",
)  # fmt: skip
RESULTS = ("figures/laptop/t.csv", "figures/laptop/t.json", "data/claims.toml", "README.md")
MADE = ("data/regenerated/hopper.hdf5", "data/d4rl/hopper.hdf5", "figures/laptop/t.png", "build/tables/t.csv",
        "ttlib/__pycache__/model.pyc")


@pytest.fixture
def checkout(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path / "notebooks")
    for name in (*SHIPPED, *RESULTS, *MADE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    return tmp_path


@pytest.mark.parametrize("name", [*SHIPPED, *RESULTS, *MADE])
@pytest.mark.parametrize("reads_results", [False, True])
def test_a_page_is_stale_if_a_file_that_it_reads_changes(run, checkout, name, reads_results):
    page = checkout / "notebooks" / "01_page.py"
    page.write_text('# %% tags=["hide-input", "reads-results"]' if reads_results else "# %%")
    key = run.content_key(page, "smoke", "all", {})
    with (checkout / name).open("a") as file:
        file.write("\n" if name.endswith("tsv") else "b")
    stale = run.content_key(page, "smoke", "all", {}) != key
    assert stale == (name in SHIPPED or (reads_results and name in RESULTS))


def test_the_pages_read_files_that_are_sources(run):
    sources = {path.relative_to(ROOT).as_posix() for path in run.sources(next((ROOT / "notebooks").glob("01_*.py")))}
    for pattern in ("data/checkpoints/*/model.safetensors.z", "data/policies/*/*.npz", "data/*.tsv", "data/*.csv"):
        files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
        assert files and files <= sources


def test_a_page_lists_what_it_publishes(run, checkout, monkeypatch):
    from ttlib.pipeline import places, results

    monkeypatch.setattr(run, "BUILD", checkout / "_build")
    monkeypatch.setattr(places, "ROOT", checkout)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    listing = run.listing_path(checkout / "notebooks" / "01_page.py", "smoke")
    listing.parent.mkdir(parents=True)
    os.environ["PYTHONOPTIMIZE"] = "2"
    run.set_kernel_environment(listing, "book")
    assert os.environ["TTLIB_MODE"] == "book" and not {"MPLBACKEND", "PYTHONOPTIMIZE"} & os.environ.keys()
    results._write(checkout / "figures" / "smoke" / "t.csv", "1")
    results._write(checkout / "build" / "t.csv", "1")
    assert run.declared_outputs(checkout / "notebooks" / "01_page.py", "smoke") == ["figures/smoke/t.csv", ""]


def test_a_page_is_stale_if_what_it_published_changes(run, checkout):
    name = "data/records/laptop/t.csv"
    (checkout / name).parent.mkdir(parents=True)
    (checkout / name).write_text("1")
    executed, outputs = checkout / "01_page.ipynb", {name: run.digest(checkout / name)}
    notebook = {"cells": [{"source": "1 + 1"}], "metadata": {}}
    notebook["metadata"]["ttlib"] = {"key": "k", "outputs": outputs, "cells": run.cells_key(notebook)}
    whole = json.dumps(notebook)
    executed.write_text(whole)
    fresh = lambda key="k": run.up_to_date(executed, key, checkout / "01_page.py", "laptop")  # noqa: E731
    assert fresh() and not fresh("other")
    damaged = ["", "[]", "{}", whole[:-9], whole.replace("1 + 1", "1 + 2"), whole.replace('"outputs"', '"listed"'),
               whole.replace('"ttlib": {', '"ttlib": [], "old": {'), "\xff"]  # fmt: skip
    for text in damaged:
        executed.write_text(text, encoding="latin-1")
        assert not fresh(), text
    executed.write_text(whole)
    assert fresh()
    (checkout / name).write_text("2")
    assert not fresh()
    (checkout / name).unlink()
    assert not fresh()


@pytest.mark.parametrize("at_once", [1, 2])
def test_after_a_failed_page_no_other_begins(run, monkeypatch, at_once):
    begun = []

    def fake(command, env, **options):
        begun.append((Path(command[2]).stem, env.get("OMP_NUM_THREADS"), command[3:]))
        time.sleep(0.02)
        return subprocess.CompletedProcess(command, 3 if command[2].startswith("02") else 0)

    monkeypatch.setattr(run.subprocess, "run", fake)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pages = [Path(f"{i:02}_page.py") for i in range(1, 9)]
    assert run.run_each(pages, at_once, ["--size=smoke"]) == 3
    names, threads, options = zip(*begun)
    assert set(names) <= {"01_page", "02_page", "03_page", "04_page"} and options == (["--size=smoke"],) * len(names)
    assert all((each is None) == (at_once == 1) for each in threads)
    assert run.run_each(pages[2:], at_once, []) == 0 and len(begun) == len(names) + 6
