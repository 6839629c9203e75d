"""Run pages: python notebooks/run.py PAGE ... --size SIZE [--mode MODE] [-p name=value ...] [--at-once N]

The executed page is notebooks/_build/<size>/<page>.ipynb, which is written only when the page ran to its end.
A page that failed is <page>.failed.ipynb. A page is not run again if neither it nor its sources changed.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from ttlib.pipeline.places import MODES, SIZES

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
BUILD = NOTEBOOKS / "_build"
# Folders of data/ whose files are downloaded or made.  A page's own records are checked as its outputs are.
NOT_SOURCES = ("d4rl", "regenerated", "records")
RESULTS = '"reads-results"'  # the tag of a cell that reads the results of other pages


class UsageError(ValueError):
    """A wrong argument, found before any work. The exit status is 2."""


def page_path(name: str) -> Path:
    """Return the file of a page, which 05_hopper, 05_hopper.py and notebooks/05_hopper.py name.

    Raises UsageError for an unknown page.
    """
    page = NOTEBOOKS / f"{Path(name).stem}.py"
    pages = sorted(path.name for path in NOTEBOOKS.glob("[0-9][0-9]_*.py"))
    if page.name not in pages:
        raise UsageError(f"unknown page {name!r}; the pages are {', '.join(pages)}")
    return page


def parse_parameters(assignments: list[str]) -> dict:
    """Return the parameters as a dictionary: ["seeds=2", "task=hopper"] -> {"seeds": 2, "task": "hopper"}.

    Raises UsageError for a wrong form, and for the size.
    """
    parameters = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if name == "size":
            raise UsageError(f"-p {assignment}: the size is given as --size {value}")
        if not equals:
            raise UsageError(f"-p {assignment}: expected name=value")
        try:
            parameters[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[name] = value
    return parameters


def check_parameters(notebook, page: Path, parameters: dict) -> None:
    """Raise UsageError for a parameter that the page does not have; papermill would only warn."""
    known = []
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                known += [target.id for target in targets if isinstance(target, ast.Name)]
    for name in parameters:
        if name not in known:
            raise UsageError(
                f"{page.name} has no parameter {name!r}; its parameters are {', '.join(known) or 'none'}: "
                "add a line to the page's cell with the tag `parameters`, or give one of those"
            )


def sources(page: Path) -> list[Path]:
    """Return the files that decide the result of a page: ttlib, all that data/ ships, and what the page reads."""
    data, ledger = ROOT / "data", ROOT / "data" / "claims.toml"
    shipped = [path for path in data.rglob("*") if path.relative_to(data).parts[0] not in NOT_SOURCES]
    paths = [path for path in shipped if path.is_file() and path != ledger]
    paths += [path for ending in ("py", "html", "js") for path in (ROOT / "ttlib").rglob(f"*.{ending}")]
    if RESULTS in page.read_text():
        for ending in ("csv", "json"):
            paths += [path for folder in (ROOT / "figures", data / "records") for path in folder.rglob(f"*.{ending}")]
        paths += [*(ROOT / "build").glob("spot-check-*.json"), ledger, ROOT / "README.md"]
    return [page, NOTEBOOKS / "run.py", *sorted(paths)]


def digest(path: Path) -> str:
    """Return a hash of a file's content; an empty one where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def content_key(page: Path, size: str, mode: str, parameters: dict) -> str:
    """Return a hash of the sources' content, and of the arguments. Times of files do not matter."""
    key = hashlib.sha256(json.dumps([size, mode, parameters], sort_keys=True).encode())
    for path in sources(page):
        key.update(f"{path.relative_to(ROOT).as_posix()} {digest(path)}\n".encode())
    return key.hexdigest()


def listing_path(page: Path, size: str) -> Path:
    """Return the file in which a page lists what it publishes, one path per line, relative to the root."""
    return BUILD / size / f"{page.stem}.outputs"


def declared_outputs(page: Path, size: str) -> list[str]:
    """Return the paths that the page listed in its last run."""
    listing = listing_path(page, size)
    return listing.read_text().split("\n") if listing.exists() else []


def up_to_date(executed: Path, key: str, page: Path, size: str) -> bool:
    """Return whether a page was executed with this key, and its outputs and records are as it left them."""
    if not executed.exists():
        return False
    try:
        record = json.loads(executed.read_text())["metadata"]["ttlib"]
    except (ValueError, KeyError):
        return False
    return record["key"] == key and all(digest(ROOT / path) == made for path, made in record["outputs"].items())


def set_kernel_environment(listing: Path, mode: str) -> None:
    """Set what the kernel inherits: where it lists its outputs, the mode, and no Jupyter or matplotlib settings."""
    os.environ |= {
        "TTLIB_MODE": mode,
        "TTLIB_OUTPUTS": str(listing),
        "JUPYTER_CONFIG_DIR": str(BUILD / "jupyter" / "config"),
        "JUPYTER_DATA_DIR": str(BUILD / "jupyter" / "data"),
        "JUPYTER_RUNTIME_DIR": str(BUILD / "jupyter" / "runtime"),
        "IPYTHONDIR": str(BUILD / "jupyter" / "ipython"),
    }
    for name in ("config", "data", "runtime", "ipython"):
        (BUILD / "jupyter" / name).mkdir(parents=True, exist_ok=True)
    for name in ("MPLBACKEND", "JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "PYTHONSTARTUP"):
        os.environ.pop(name, None)
    if matplotlib := find_spec("matplotlib"):
        os.environ["MATPLOTLIBRC"] = str(Path(matplotlib.origin).parent / "mpl-data" / "matplotlibrc")


def clean(notebook) -> None:
    """Remove injected values, overwritten progress lines and notes of papermill from an executed notebook."""
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    notebook.metadata.pop("papermill", None)


RAW = re.compile(r"\b(nan|NaN|inf|None|NaT|<NA>)\b|\b\d{4,}\.0\b|\d\.\d{9,}")  # what no reader should meet
MEANT = "shows-raw"  # the tag of a cell that shows such a thing on purpose


def check_outputs(notebook) -> None:
    """Raise ValueError for a visible output with nan, None or a raw float such as 1000.0, and name its cell."""
    for cell in notebook.cells:
        if {MEANT, "remove-cell", "remove-output"} & set(cell.metadata.get("tags", [])):
            continue
        for output in cell.get("outputs", []):
            shown = [output.get("text", "")] if output.get("name") == "stdout" else []
            shown += [output.get("data", {}).get(kind, "") for kind in ("text/html", "text/markdown")]
            for text in map("".join, shown):
                text = re.sub(r"<(style|script).*?</\1>|<[^>]*>|`[^`]*`", " ", text, flags=re.DOTALL)
                if found := RAW.search(text):
                    around = text[max(0, found.start() - 60) : found.end() + 20].strip()
                    raise ValueError(
                        f"a cell shows {found[0]!r} (...{around}...): format it, or give the cell the tag {MEANT}; "
                        f"the cell begins with {cell.source.splitlines()[0]!r}"
                    )


def execute(notebook, page: Path, size: str, parameters: dict):
    """Run the cells in a new kernel, print what they print, and return the executed notebook."""
    import papermill
    from traitlets.config import Config

    running = BUILD / size / f"{page.stem}.running.ipynb"
    failed = running.with_name(f"{page.stem}.failed.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    for old in (failed, listing_path(page, size)):
        old.unlink(missing_ok=True)
    try:
        return papermill.execute_notebook(
            notebook,
            running,
            parameters=parameters,
            kernel_name="python3",
            language="python",
            cwd=NOTEBOOKS,
            progress_bar=False,
            start_timeout=300,
            config=Config(KernelManager={"transport_encryption": "auto"}),  # otherwise the kernel warns
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except BaseException:
        if running.exists():
            running.replace(failed)
        raise
    finally:
        running.unlink(missing_ok=True)


def run(page: Path, size: str, mode: str, parameters: dict) -> None:
    """Run a page unless it is up to date. Raises UsageError for an unknown parameter."""
    executed = BUILD / size / f"{page.stem}.ipynb"
    key = content_key(page, size, mode, parameters)
    if up_to_date(executed, key, page, size):
        print(f"{page.stem}: up to date (`make clean` makes it run again)")
        return
    import jupytext
    import nbformat

    notebook = jupytext.read(page, fmt="py:percent")
    check_parameters(notebook, page, parameters)
    set_kernel_environment(listing_path(page, size), mode)
    print(f"{page.stem}: running, size {size}, mode {mode}", flush=True)
    start = time.perf_counter()
    notebook = execute(notebook, page, size, parameters)
    seconds = time.perf_counter() - start
    clean(notebook)
    check_outputs(notebook)
    outputs = [line for line in declared_outputs(page, size) if line]
    notebook.metadata["ttlib"] = {
        "key": key,
        "size": size,
        "mode": mode,
        "seconds": round(seconds, 1),
        "outputs": {path: digest(ROOT / path) for path in sorted(set(outputs))},
    }
    unfinished = executed.with_suffix(".tmp")
    nbformat.write(notebook, unfinished)
    unfinished.replace(executed)
    print(f"{page.stem}: {seconds:.1f} s -> {executed.relative_to(ROOT)}")


def parse() -> argparse.Namespace:
    """Return the arguments, with `page` as a path and `parameters`. Wrong ones end the process with a message."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog=__doc__.split("\n\n", 1)[1])
    parser.add_argument("pages", nargs="+", metavar="page", help="a page of notebooks/, for example 05_hopper.py")
    parser.add_argument("--at-once", type=int, default=1, help="how many pages run at the same time; default: 1")
    parser.add_argument("--size", choices=SIZES, default="laptop", help="default: laptop")
    modes = "all: compute what is missing; recompute: take no records; scratch: train anew; book: only draw"
    parser.add_argument("--mode", choices=MODES, default="all", help=modes)
    parser.add_argument("-p", metavar="name=value", action="append", default=[], help="a page's parameter")
    arguments = parser.parse_args()
    try:
        arguments.pages = [page_path(page) for page in arguments.pages]
        arguments.parameters = {"size": arguments.size} | parse_parameters(arguments.p)
    except UsageError as error:
        parser.error(str(error))
    return arguments


def run_each(pages: list[Path], at_once: int, options: list[str]) -> int:
    """Run pages as processes of their own -> the exit status.  After a failure no other page begins.

    What a page prints is shown when it ends, if several run at once, and they share the threads of the machine.
    """
    failed, environment, output = [], dict(os.environ), {}
    if at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    def run_one(page: Path) -> None:
        if failed:
            return
        done = subprocess.run([sys.executable, __file__, page.name, *options], env=environment, **output)
        print(done.stdout or "", end="", flush=True)
        failed.extend([done.returncode] * (done.returncode != 0))

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run_one, pages))
    return failed[0] if failed else 0


def main() -> int:
    """Run the pages that the arguments name -> the exit status."""
    arguments = parse()
    if len(arguments.pages) > 1:
        options = [f"--size={arguments.size}", f"--mode={arguments.mode}", *(f"-p{x}" for x in arguments.p)]
        return run_each(arguments.pages, arguments.at_once, options)
    [page], size = arguments.pages, arguments.size
    try:
        run(page, size, arguments.mode, arguments.parameters)
    except UsageError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{page.stem}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        lines = getattr(error, "traceback", None) or [f"{type(error).__name__}: {error}"]
        print(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines)), file=sys.stderr)
        failed = BUILD / size / f"{page.stem}.failed.ipynb"
        where = f"; its cells up to the error are in {failed.relative_to(ROOT)}" if failed.exists() else ""
        print(f"{page.stem}: failed{where}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
