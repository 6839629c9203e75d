"""Tests of the README's table of departures, and of the checksums of shipped files."""

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "Departs from the paper: "


def marked_lines() -> set[tuple[str, str]]:
    """Return (file, text) of each marked comment.  A text continues over comment lines up to a full stop."""
    marked = set()
    for path in [*sorted((ROOT / "ttlib").rglob("*.py")), *sorted((ROOT / "notebooks").glob("*.py"))]:
        lines = path.read_text().splitlines()
        for i, line in enumerate(lines):
            if MARK in line:
                text = line.split(MARK)[1]
                while not text.endswith(".") and lines[i + 1].strip().startswith("#"):
                    i += 1
                    text += " " + lines[i].strip().lstrip("# ")
                marked.add((path.relative_to(ROOT).as_posix(), text))
    return marked


def test_the_table_of_departures_is_the_marked_lines():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `((?:ttlib|notebooks)/[\w/.]+)` \| (.+) \|$", text, re.MULTILINE)
    assert set(rows) == marked_lines()
    assert len(rows) >= 5


def test_shipped_files_are_those_that_were_recorded():
    lines = (ROOT / "data" / "SHA256SUMS").read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = [p for folder in ("policies", "checkpoints") for p in (ROOT / "data" / folder).rglob("*") if p.is_file()]
    shipped = {p.relative_to(ROOT / "data").as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    assert shipped == recorded, "run `make ship`, which writes data/SHA256SUMS"
