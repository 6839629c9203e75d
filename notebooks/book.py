"""Build the HTML book from the pages as they were last run: python notebooks/book.py --size SIZE

The sources are gathered in notebooks/_build/<size>/source. The book is notebooks/_build/html/index.html. An old
book stays until a new one is built without a warning.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ttlib.pipeline.locks import alone
from ttlib.pipeline.places import SIZES

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
BUILD = NOTEBOOKS / "_build"
FIGURE = re.compile(r"\.\./figures/\w+/([\w.-]+)")  # a figure as a page or index.md names it
PAGE = re.compile(r"\]\((\d\d_\w+)\.py\b")  # a link that works in JupyterLab
LINK = re.compile(r'(href=\\"\d\d_\w+)\.py\b')  # the same in HTML that a cell shows


def placeholder(path: Path) -> None:
    """Write an image in place of a figure whose page was not run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2), dpi=100, facecolor="white")
    figure.text(0.5, 0.5, f"{path.name}: not made yet", ha="center", va="center", color="0.4")
    figure.savefig(path)


def gather(size: str, source: Path) -> None:
    """Copy settings, texts, executed pages and figures into one folder.

    Ends the process with a message if a page was not run.
    """
    pages = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))
    executed = [BUILD / size / f"{page.stem}.ipynb" for page in pages]
    if missing := [path.stem for path in executed if not path.exists()]:
        sys.exit(f"not run yet in size {size}: {', '.join(missing)}; run `make SIZE={size} pages` first")
    shutil.rmtree(source, ignore_errors=True)
    (source / "figures").mkdir(parents=True)
    (source / "_static").mkdir()
    shutil.copy(NOTEBOOKS / "book.css", source / "_static")
    if (weights := BUILD / size / "weights").exists():
        shutil.copytree(weights, source / "_static" / "weights")
    for name in ("conf.py", "references.bib"):
        shutil.copy(NOTEBOOKS / name, source)
    for path in [NOTEBOOKS / "index.md", *executed]:
        text = path.read_text(encoding="utf-8")
        for name in set(FIGURE.findall(text)):
            copy_figure(size, name, source / "figures" / name)
        text = LINK.sub(r"\1.html", PAGE.sub(r"](\1.ipynb", FIGURE.sub(r"figures/\1", text)))
        (source / path.name).write_text(text, encoding="utf-8")


def copy_figure(size: str, name: str, target: Path) -> None:
    """Copy a figure, or write a placeholder where it is missing."""
    path = ROOT / "figures" / size / name
    if path.exists():
        shutil.copy(path, target)
    else:
        placeholder(target)


def build(size: str, html: Path) -> int:
    """Build the book of a size into a folder -> the exit status of Sphinx."""
    source, doctrees, unfinished = BUILD / size / "source", BUILD / size / "doctrees", BUILD / "html.tmp"
    gather(size, source)
    for old in (doctrees, unfinished):  # Sphinx would compare times of files, and clocks go back
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html"]
    status = subprocess.run([*command, "-d", doctrees, source, unfinished]).returncode
    if status:
        print(f"the book was not built; the unfinished one is {unfinished.relative_to(ROOT)}", file=sys.stderr)
        return status
    shutil.rmtree(html, ignore_errors=True)
    unfinished.replace(html)
    print(f"book: {(html / 'index.html').relative_to(ROOT)}")
    return 0


def main() -> int:
    """Build the book, unless another command does so: then wait -> the exit status of Sphinx."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="laptop")
    size, html = parser.parse_args().size, BUILD / "html"
    with alone(html):
        return build(size, html)


if __name__ == "__main__":
    sys.exit(main())
