"""Bad arguments of the page runner: refused before any work, with the way out."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["09_humanoid.py", "--size", "smoke"], ["09_humanoid.py", "04_four_rooms.py"]),
        (["04_four_rooms.py", "--size", "huge"], ["huge", "smoke", "laptop", "paper"]),
        (["04_four_rooms.py", "--size", "smoke", "-p", "widht=3"], ["widht", "its parameters are size"]),
        (["04_four_rooms.py", "--size", "smoke", "-p", "size=paper"], ["size=paper", "--size"]),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    run = subprocess.run(
        [sys.executable, ROOT / "notebooks" / "run.py", *arguments], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 2 and not run.stdout
    assert all(word in run.stderr for word in said), run.stderr


def test_content_decides_what_is_stale(tmp_path, monkeypatch):
    """The key of a page changes with its text, size, mode and parameters, and with nothing else."""
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    import run

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
