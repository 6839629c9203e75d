"""Measure the peak memory of reading and of tokenizing a large file, beside the arrays needed.

The file is synthetic, shaped as hopper's.  Each way of reading it runs in a process of its own; its peak is the
largest resident set (ru_maxrss) less that after the imports.  Memory-mapped bins count as far as they were touched,
and all of them are touched at the end, as training does; what the system caches of files does not count.  Needed are
states, actions, rewards, terminals and timeouts as they are stored, and the bins, a byte a token, where they are made.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, N, M = 2_000_000, 11, 3


def write(path: Path, steps: int) -> None:
    """Episodes of 1 to 1000 steps, most of which end in a fall."""
    import numpy as np

    from ttlib.datasets import hdf5

    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(1, 1001, steps // 500 + 100))
    ends = np.append(ends[ends < steps], steps) - 1
    terminals, timeouts = np.zeros((2, steps), bool)
    terminals[ends] = rng.random(len(ends)) < 0.8
    timeouts[ends] = ~terminals[ends]
    hdf5.write(
        path,
        {
            "observations": rng.standard_normal((steps, N), np.float32),
            "actions": np.tanh(rng.standard_normal((steps, M), np.float32)),
            "rewards": rng.standard_normal(steps, np.float32),
            "terminals": terminals,
            "timeouts": timeouts,
        },
    )


def peak() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read(path: Path, profile: str | None) -> dict:
    """Whole, or, given a profile, as windows of its bins."""
    from ttlib.datasets import hdf5
    from ttlib.pipeline import experiments, store

    before, start = peak(), time.perf_counter()
    if profile is None:
        found = hdf5.load(path)
        needed = found.states.nbytes + found.actions.nbytes + len(found.rewards) * (4 + 1 + 1)
    else:
        parts = store.windows_of(path, experiments.get("hopper-long", profile=profile))
        assert all(part.bins.max() < part.tokenizer.V for part in parts)  # touches every page
        steps = sum(map(len, parts))
        needed = steps * (4 * (N + M + 1) + 1 + 1) + sum(part.bins.nbytes for part in parts)
    return {"needed": needed, "peak": peak() - before, "seconds": time.perf_counter() - start}


WAYS = {
    "read whole into episodes": [],
    "tokenized in chunks, uniform bins": ["--profile", "v1"],
    "tokenized in chunks, quantile bins": ["--profile", "released"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--file", type=Path, help="what the processes that are measured are given, beside the next two")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--profile")
    arguments = parser.parse_args()
    if arguments.file and arguments.write:
        write(arguments.file, arguments.steps)
    elif arguments.file:
        print(json.dumps(read(arguments.file, arguments.profile)))
    else:
        compare(arguments.steps)


def compare(steps: int) -> None:
    """This process stays small: a child's ru_maxrss begins at its parent's."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "ttlib.commands.bench_memory", "--file", f"{folder}/large.hdf5"]
        subprocess.run([*run, "--write", "--steps", str(steps)], check=True)
        found = [
            json.loads(subprocess.run([*run, *way], check=True, capture_output=True, text=True).stdout)
            for way in WAYS.values()
        ]
    import pandas as pd

    from ttlib.pipeline import places

    rows = pd.DataFrame(found, index=pd.Index(WAYS, name="what")).reset_index()
    table = pd.DataFrame(
        {
            "what": rows.what,
            "steps": steps,
            "needed_mb": rows.needed / 1e6,
            "peak_mb": rows.peak / 1e6,
            "ratio": rows.peak / rows.needed,
            "seconds": rows.seconds,
        }
    ).round(2)
    print(table.to_string(index=False))
    path = places.ROOT / "build" / "bench_memory.csv"
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False)
    print("written to build/bench_memory.csv")


if __name__ == "__main__":
    main()
