"""Pages in plain words: short sentences, none of the house's tics, cells that fit the page."""

import re
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
import run  # noqa: E402

PAGES = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
WORDS = 30  # of a sentence, at most
# Fragments and tics that readers stumbled over.
TICS = (
    r"\bnats a token\b", r"\bof its own(?! \w)", r"\bfor one who\b", r"\bat last\b", r"\bseldom\b", r"\bso it does\b",
    r"\btoo hopeful\b", r"\bnone either\b", r"\bno wonder\b", r"\bstands? (in|on|beside|under)\b",
    r"(?<!standard )(?<!Standard )\bdeviations?\b(?! from)",
)  # fmt: skip
HIDDEN = {"hide-input", "remove-cell", "remove-input", "parameters"}


def cells(page: Path, kind: str):
    return [cell for cell in jupytext.read(page, fmt="py:percent").cells if cell.cell_type == kind]


def prose(text: str) -> list[str]:
    """The sentences of a Markdown text, without code, formulas, tables, directives and link targets."""
    text = re.sub(r"^```\w+\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)  # code, not directives
    text = re.sub(r"\"[^\"]*\"|“[^”]*”", "X", text)  # quotations
    text = re.sub(r"(`{3,}|~{3,}).*?$|^:\w+:.*$|^:class:.*$|^:label:.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$(\s*\([\w-]+\))?", ".", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$]*\$|`[^`]*`|\{[\w:]+\}`[^`]*`", "X", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    lines, paragraphs = text.splitlines(), [""]
    for line in lines:
        starts = ("#", "|", "- ", "* ", "1.", "2.", "3.", "4.", "<", "```", ":")
        if not line.strip() or line.lstrip().startswith(starts):
            paragraphs.append("")
        if not line.lstrip().startswith(("|", "<", "```", ":")):
            paragraphs[-1] += " " + line.strip().lstrip("#-* ")
    return [s for p in paragraphs for s in re.split(r"(?<=[.!?:;])\s+", p.replace("**", "")) if s.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_sentences_are_short_and_plain(page):
    for cell in cells(page, "markdown"):
        for sentence in prose(cell.source):
            count = len(re.findall(r"[\w'’-]+", sentence))
            assert count <= WORDS, f"{page.name}: {count} words: {sentence.strip()}"
            for tic in TICS:
                assert not re.search(tic, sentence), f"{page.name}: {tic!r} in {sentence.strip()!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_cells_fit_the_page(page):
    for cell in cells(page, "code"):
        lines, tags = cell.source.splitlines(), set(cell.metadata.get("tags", []))
        assert len(lines) <= 25, f"{page.name}: a cell of {len(lines)} lines: {lines[0]}"
        for line in lines if not tags & HIDDEN else []:
            assert len(line) <= 84, f"{page.name}: {len(line)} columns, cut off in the book: {line}"


@pytest.mark.parametrize("shown", ["at horizon nan", "98% of 1000.0 pairs", "None", "0.3333333333333333"])
def test_a_page_that_shows_raw_values_is_not_finished(shown):
    def page(tags=()):
        output = nbformat.v4.new_output("stream", name="stdout", text=shown)
        cell = nbformat.v4.new_code_cell("print(x)", outputs=[output], metadata={"tags": list(tags)})
        return nbformat.v4.new_notebook(cells=[cell])

    with pytest.raises(ValueError, match="print\\(x\\)"):
        run.check_outputs(page())
    run.check_outputs(page([run.MEANT]))
    shown = "1,000 pairs, 98.4%, in info and 1.5 hours"
    run.check_outputs(page())
