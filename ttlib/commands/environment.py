"""Derive environment.yml and requirements.lock from pyproject.toml.

python -m ttlib.commands.environment        write environment.yml
python -m ttlib.commands.environment lock   write requirements.lock from uv's output on standard input (`make lock`)
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("book", "test")  # what `make` installs
# On Linux, torch from PyPI depends on these packages and pins them.  A build for CPUs has none of them.
CUDA = ("nvidia-", "cuda-", "triton")


def pyproject() -> dict:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def environment_yml(project: dict) -> str:
    """Return the text of environment.yml: conda installs Python, pip and make, and pip installs the rest."""
    meta = project["project"]
    version = re.fullmatch(r">=(\d+\.\d+)", meta["requires-python"])[1]
    pip = ["-c requirements.lock", *meta["dependencies"]]
    for extra in EXTRAS:
        pip += meta["optional-dependencies"][extra]
    lines = [
        "# Generated from pyproject.toml by `python -m ttlib.commands.environment`; change it there.",
        "#   conda env create -f environment.yml",
        f"#   conda activate {meta['name']}",
        "#   make VENV=$CONDA_PREFIX all",
        "# pip gets what `make` installs, except one package that needs --no-deps, an option that this file",
        f"# cannot hold. Add it by hand: pip install --no-deps {' '.join(no_deps(project))}",
        f"name: {meta['name']}",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        f"  - python={version}",
        "  - pip",
        "  - make",
        "  - pip:",
        *(f'      - "{line}"' for line in [*pip, "-e ."]),
    ]
    return "\n".join(lines) + "\n"


def no_deps(project: dict) -> list[str]:
    """Return the packages that are installed without their dependencies."""
    return project["tool"]["ttlib"]["no-deps"]


def requirements_lock(project: dict, resolved: list[str]) -> str:
    """Return the text of requirements.lock.  resolved: lines such as `torch==2.13.0+cpu ; sys_platform == 'linux'`."""
    pins = {line.split(";")[0].split("+")[0].strip() for line in resolved}
    pins = {pin for pin in pins if not pin.startswith(CUDA)} | set(no_deps(project))
    header = [
        "# Every package that `make` installs, for `pip install -c requirements.lock -e .[EXTRAS]`: book, test,",
        "# cluster and policies. Written by `make lock`. CUDA packages are left out: torch pins its own.",
    ]
    return "\n".join([*header, *sorted(pins, key=lambda pin: pin.split("==")[0])]) + "\n"


def main(arguments: list[str]) -> None:
    """Write the file that the arguments name."""
    match arguments:
        case []:
            (ROOT / "environment.yml").write_text(environment_yml(pyproject()))
        case ["lock"]:
            (ROOT / "requirements.lock").write_text(requirements_lock(pyproject(), sys.stdin.readlines()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
