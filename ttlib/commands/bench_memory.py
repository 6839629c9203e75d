"""python -m ttlib.commands.bench_memory: the peak memory of reading and of tokenizing a large file.

The file is synthetic, with hopper's dimensions.  Each way of reading it runs in a new process, and its peak is the
growth of the largest resident set (ru_maxrss).  Bins in a memory-mapped file count, since all of them are touched.
"""

import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from ttlib import files
from ttlib.datasets import hdf5
from ttlib.pipeline import experiments, places, store

N, M = 11, 3
WAYS = {
    "read whole into episodes": None,
    "tokenized in chunks, uniform bins": "v1",
    "tokenized in chunks, quantile bins": "released",
}


def write(path: Path, steps: int) -> None:
    """Write random episodes of 1000 steps."""
    rng, ends = np.random.default_rng(0), np.arange(1, steps + 1) % 1000 == 0
    arrays = {"observations": rng.standard_normal((steps, N), np.float32), "rewards": rng.random(steps, np.float32)}
    arrays |= {"actions": rng.random((steps, M), np.float32), "terminals": np.zeros(steps, bool), "timeouts": ends}
    hdf5.write(path, arrays)


def peak(path: Path, profile: str | None) -> float:
    """Return by how many megabytes this process grows when it reads a file whole, or as windows of a profile's bins."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if profile is None:
        hdf5.load(path)
    else:
        _ = [part.bins.max() for part in store.windows(experiments.get("hopper-long", profile=profile), path)]
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return 1e-6 * unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main(steps: int) -> None:
    """Measure every way, and write build/bench_memory.csv."""
    # This process stays small, since a new process on Linux begins with the peak of its parent.
    new = {"mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, **new) as pool:
        path = Path(folder) / "large.hdf5"
        pool.submit(write, path, steps).result()
        peaks = [pool.submit(peak, path, profile).result() for profile in WAYS.values()]
    arrays = steps * (4 * (N + M + 1) + 2) / 1e6  # states, actions, rewards, and two flags
    table = pd.DataFrame({"what": list(WAYS), "steps": steps, "arrays_mb": arrays, "peak_mb": peaks}).round(1)
    print(table.to_string(index=False))
    files.write_aside(places.BUILD / "bench_memory.csv", lambda aside: table.to_csv(aside, index=False))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000)
