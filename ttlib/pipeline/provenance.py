"""Commit, versions and machine behind a number."""

import platform
import subprocess
import time
from functools import lru_cache
from importlib.metadata import version

from ttlib.pipeline import places


@lru_cache
def gflops() -> float:
    """fp32 matrix products of this machine, 10^9 operations a second, at torch's number of threads."""
    import torch

    x = torch.ones(512, 512)
    rates = []
    for _ in range(20):
        start = time.perf_counter()
        x @ x
        rates.append(2 * 512**3 / (time.perf_counter() - start) / 1e9)
    return round(max(rates), 1)


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide numbers."""
    packages = ("torch", "numpy", "gymnasium", "mujoco")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def here() -> dict:
    """Commit, versions and machine: what a number depends on beside its config."""
    import torch

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=places.ROOT, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD") or "not a git checkout"
        # Results that were published a moment ago change no number of the next ones.
        if git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)figures"):
            commit += "-dirty"
    except FileNotFoundError:
        commit = "git is not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "commit": commit,
        "versions": versions(),
        "device": device,
        "threads": torch.get_num_threads(),
        "gflops_fp32": gflops(),
    }
