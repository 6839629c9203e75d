"""Tests that environment.yml, requirements.lock and pyproject.toml agree."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ttlib.commands import environment
from ttlib.commands.environment import ROOT

project = environment.pyproject()


@pytest.fixture
def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert len(dict(pins)) == len(pins), "a package is pinned twice"
    return dict(pins)


def test_environment_yml_follows_pyproject():
    text = environment.environment_yml(project)
    assert (ROOT / "environment.yml").read_text() == text, "run `python -m ttlib.commands.environment`"


def test_pip_half_of_environment_yml_is_what_make_installs():
    text = (ROOT / "environment.yml").read_text()
    conda, pip = text.split("  - pip:\n")
    assert re.findall(r"^  - ([a-z]+)", conda.split("dependencies:")[1], re.M) == ["python", "pip", "make"]
    makefile = (ROOT / "Makefile").read_text()
    command = re.search(r'install,\$\(VENV\)\) (-c \S+) -e "\.\[([\w,]+)\]"', makefile)
    constraint, extras = command[1], command[2].split(",")
    wanted = [*project["project"]["dependencies"]]
    for extra in extras:
        wanted += project["project"]["optional-dependencies"][extra]
    assert re.findall(r'- "(.+)"', pip) == [constraint, *wanted, "-e ."]


def test_lock_pins_every_dependency_within_its_range(lock):
    meta = project["project"]
    wanted = [*meta["dependencies"], *environment.no_deps(project)]
    for extra in meta["optional-dependencies"].values():
        wanted += extra
    for requirement in map(Requirement, wanted):
        version = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}; run `make lock`"


def test_lock_works_on_every_machine(lock):
    for name, version in lock.items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version} is a local build"
        assert not name.startswith(environment.CUDA), f"{name} is for machines with a GPU only"
