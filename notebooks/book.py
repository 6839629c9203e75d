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
    for name in ("conf.py", "references.bib"):
        shutil.copy(NOTEBOOKS / name, source)
    for path in [NOTEBOOKS / "index.md", *executed]:
        text = path.read_text()
        for name in set(FIGURE.findall(text)):
            copy_figure(size, name, source / "figures" / name)
        text = LINK.sub(r"\1.html", PAGE.sub(r"](\1.ipynb", FIGURE.sub(r"figures/\1", text)))
        (source / path.name).write_text(text)


def copy_figure(size: str, name: str, target: Path) -> None:
    """Copy a figure, or write a placeholder where it is missing."""
    path = ROOT / "figures" / size / name
    if path.exists():
        shutil.copy(path, target)
    else:
        placeholder(target)


def main() -> int:
    """Build the book -> the exit status of Sphinx."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="laptop")
    size = parser.parse_args().size
    source, unfinished, html = BUILD / size / "source", BUILD / "html.tmp", BUILD / "html"
    gather(size, source)
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html"]
    doctrees = BUILD / size / "doctrees"
    status = subprocess.run([*command, "-d", doctrees, source, unfinished]).returncode
    if status:
        print(f"the book was not built; the unfinished one is {unfinished.relative_to(ROOT)}", file=sys.stderr)
        return status
    shutil.rmtree(html, ignore_errors=True)
    unfinished.replace(html)
    print(f"book: {(html / 'index.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
