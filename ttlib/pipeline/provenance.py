"""The commit, the versions and the machine behind a number."""

import platform
import subprocess
import time
from functools import lru_cache
from importlib.metadata import version

from ttlib.pipeline import places


@lru_cache
def gflops() -> float:
    """Return this machine's rate of fp32 matrix products, in GFLOP/s, with torch's number of threads."""
    import torch

    x = torch.ones(512, 512)
    rates = []
    for _ in range(20):
        start = time.perf_counter()
        x @ x
        rates.append(2 * 512**3 / (time.perf_counter() - start) / 1e9)
    return round(max(rates), 1)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers."""
    packages = ("torch", "numpy", "gymnasium", "mujoco")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit() -> str:
    """Return the short name of the checkout's commit, with "-dirty" if tracked files that decide numbers changed.

    Without git or a repository it returns a sentence that says so.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=places.ROOT, capture_output=True, text=True).stdout.strip()

    try:
        name = git("rev-parse", "--short", "HEAD") or "not a git checkout"
        # Published results do not decide the numbers of other results.
        results = (":(exclude)figures", ":(exclude)data/records")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *results)
    except FileNotFoundError:
        return "git is not installed"
    return f"{name}-dirty" if changed else name


def here() -> dict:
    """Return what a number depends on beside its config: commit, versions, device, planner, instructions, speed."""
    import torch

    from ttlib.native.decoder import planner

    return {
        "commit": commit(),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "planner": planner(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gflops_fp32": gflops(),
    }
