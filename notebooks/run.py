"""Run one page: python notebooks/run.py PAGE.py --size SIZE [--mode MODE] [-p name=value ...]

The executed page is notebooks/_build/<size>/<page>.ipynb, written only when the page ran to its end; one that
failed is kept as <page>.failed.ipynb. Nothing is run when neither the page nor what it is made from changed.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
BUILD = NOTEBOOKS / "_build"
SIZES = ("smoke", "laptop", "paper")
MODES = {
    "all": "compute what is missing",
    "scratch": "train anew",
    "book": "only draw what is there",
}
NOT_SOURCES = ("d4rl", "regenerated")  # below data/: fetched or made, and known to ttlib by their recipe


class UsageError(ValueError):
    """A wrong argument: found before any work, exit status 2."""


def page_path(name: str) -> Path:
    """05_hopper, 05_hopper.py and notebooks/05_hopper.py all name the same page."""
    page = NOTEBOOKS / f"{Path(name).stem}.py"
    pages = sorted(path.name for path in NOTEBOOKS.glob("[0-9][0-9]_*.py"))
    if page.name not in pages:
        raise UsageError(f"unknown page {name!r}; the pages are {', '.join(pages)}")
    return page


def parse_parameters(assignments: list[str]) -> dict:
    """["seeds=2", "task=hopper"] -> {"seeds": 2, "task": "hopper"}."""
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
    """papermill only warns about a parameter that the page does not have."""
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
    """The files that a page's result depends on."""
    data = ROOT / "data"
    kept = [
        path
        for ending in ("json", "csv", "safetensors")
        for path in data.rglob(f"*.{ending}")
        if path.relative_to(data).parts[0] not in NOT_SOURCES
    ]
    if '"reads-results"' in page.read_text():  # the tag of a cell that reads what other pages publish
        kept += [*(ROOT / "figures").rglob("*.csv"), ROOT / "data" / "claims.toml", ROOT / "README.md"]
    return [page, Path(__file__).resolve(), *sorted((ROOT / "ttlib").rglob("*.py")), *sorted(kept)]


def content_key(page: Path, size: str, mode: str, parameters: dict) -> str:
    """What is in the files decides, never their times."""
    key = hashlib.sha256(json.dumps([size, mode, parameters], sort_keys=True).encode())
    for path in sources(page):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        key.update(f"{path.relative_to(ROOT).as_posix()} {digest}\n".encode())
    return key.hexdigest()


def declared_outputs(page: Path, size: str) -> list[str]:
    """The files that the page said it wrote, one path per line relative to the repository's root."""
    listing = BUILD / size / f"{page.stem}.outputs"
    return listing.read_text().split("\n") if listing.exists() else []


def up_to_date(executed: Path, key: str, page: Path, size: str) -> bool:
    if not executed.exists():
        return False
    try:
        record = json.loads(executed.read_text())["metadata"]["ttlib"]
    except (ValueError, KeyError):
        return False
    outputs = [*record["outputs"], *declared_outputs(page, size)]
    return record["key"] == key and all((ROOT / path).exists() for path in outputs)


def set_kernel_environment(page: Path, mode: str) -> None:
    """What the kernel inherits: which page and mode, and no Jupyter or matplotlib settings of the user."""
    os.environ |= {
        "TTLIB_MODE": mode,
        "TTLIB_PAGE": page.stem,
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
    """Take out of an executed notebook: injected values, rewritten progress lines, paths of this machine."""
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    notebook.metadata.pop("papermill", None)


def execute(notebook, page: Path, size: str, parameters: dict):
    """Run the cells in a fresh kernel; what they print is shown as it comes. -> the executed notebook."""
    import papermill
    from traitlets.config import Config

    running = BUILD / size / f"{page.stem}.running.ipynb"
    failed = running.with_name(f"{page.stem}.failed.ipynb")
    listing = running.with_name(f"{page.stem}.outputs")
    running.parent.mkdir(parents=True, exist_ok=True)
    for old in (failed, listing):
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
            config=Config(KernelManager={"transport_encryption": "auto"}),  # or the kernel warns
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
    executed = BUILD / size / f"{page.stem}.ipynb"
    key = content_key(page, size, mode, parameters)
    if up_to_date(executed, key, page, size):
        print(f"{page.stem}: up to date (`make clean` to run it all the same)")
        return
    import jupytext
    import nbformat

    notebook = jupytext.read(page, fmt="py:percent")
    check_parameters(notebook, page, parameters)
    set_kernel_environment(page, mode)
    print(f"{page.stem}: running, size {size}, mode {mode}", flush=True)
    start = time.perf_counter()
    notebook = execute(notebook, page, size, parameters)
    seconds = time.perf_counter() - start
    clean(notebook)
    outputs = [line for line in declared_outputs(page, size) if line]
    notebook.metadata["ttlib"] = {
        "key": key,
        "size": size,
        "mode": mode,
        "seconds": round(seconds, 1),
        "outputs": sorted(set(outputs)),
    }
    unfinished = executed.with_suffix(".tmp")
    nbformat.write(notebook, unfinished)
    unfinished.replace(executed)
    print(f"{page.stem}: {seconds:.1f} s -> {executed.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog=__doc__.split("\n\n", 1)[1])
    parser.add_argument("page", help="a page of notebooks/, for example 05_hopper.py")
    parser.add_argument("--size", choices=SIZES, default="laptop", help="default: laptop")
    modes = "; ".join(f"{mode}: {what}" for mode, what in MODES.items())
    parser.add_argument("--mode", choices=MODES, default="all", help=f"{modes}; default: all")
    parser.add_argument("-p", metavar="name=value", action="append", default=[], help="a page's parameter")
    arguments = parser.parse_args()
    try:
        page = page_path(arguments.page)
        parameters = {"size": arguments.size} | parse_parameters(arguments.p)
        run(page, arguments.size, arguments.mode, parameters)
    except UsageError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"{page.stem}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        lines = getattr(error, "traceback", None) or [f"{type(error).__name__}: {error}"]
        print(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines)), file=sys.stderr)
        failed = BUILD / arguments.size / f"{page.stem}.failed.ipynb"
        kept = f"; as far as it came: {failed.relative_to(ROOT)}" if failed.exists() else ""
        print(f"{page.stem}: failed{kept}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
