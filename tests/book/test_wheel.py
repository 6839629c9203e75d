"""The core is a library: README's lines run from a wheel, without the checkout, and plan better than their data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLLECT = """
import gymnasium
import numpy as np
from ttlib.datasets import own
task = {task!r}
env = gymnasium.make(task)
mine = own.collect(env, {act}, steps={steps}, seed=0)
"""
# Half of the actions are random, the others are those of a clumsy controller.
BALANCE = "lambda s, rng: np.clip([3 * (s[1] + 0.3 * s[3]) if rng.random() < 0.5 else rng.uniform(-3, 3)], -3, 3)"
TASKS = {"Pendulum-v1": ("own.clumsy", 20_000), "InvertedPendulum-v5": (BALANCE, 10_000)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the wheel installed in it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building leaves files beside the sources
    shutil.copytree(ROOT / "ttlib", source / "ttlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def python(site, script, folder):
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)


def lines_of_readme() -> str:
    text = (ROOT / "README.md").read_text().split("<!-- core -->")[1].split("<!-- /core -->")[0]
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def test_readmes_lines_are_few_and_start_the_readme():
    assert len([line for line in lines_of_readme().splitlines() if line.strip()]) <= 21
    assert all(len(line) <= 84 for line in lines_of_readme().splitlines())


def test_the_planners_source_is_in_the_wheel(site):
    source = Path("ttlib", "native", "planner.cpp")
    assert (site / source).read_text() == (ROOT / source).read_text()


def test_what_needs_the_checkout_says_so_in_one_sentence(site, tmp_path):
    done = python(site, "import ttlib.datasets.own, ttlib.baselines.cloning, ttlib.search", tmp_path)
    assert done.returncode == 0, done.stderr
    done = python(site, "import ttlib.pipeline.store", tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: ttlib was installed without its checkout")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_readmes_lines_plan_better_than_their_data(site, tmp_path, task):
    act, steps = TASKS[task]
    script = COLLECT.format(task=task, act=act, steps=steps) + lines_of_readme()
    script += "\nimport ttlib; assert 'site' in ttlib.__file__, ttlib.__file__"
    done = python(site, script, tmp_path)
    assert done.returncode == 0, done.stderr
    planned, data = re.findall(r"-?\d+\.\d+", done.stdout.splitlines()[-1])
    assert float(planned) > float(data), done.stdout
