"""python -m ttlib.commands.sweep: make the rollouts of all pages that are neither recorded nor finished, as jobs.

The executor `inline` runs one job after the other, `processes` runs several at once on this machine, and `ray` uses the
cluster whose head is at RAY_ADDRESS (host:port, or "local" for a cluster on this machine alone).  A job that fails
does not stop the others, but the exit status is 1 then.  A sweep that was stopped continues when it is run again.
"""

import argparse
import os
import sys

import pandas as pd
import torch

from ttlib.pipeline import executors, places, provenance, sweep
from ttlib.studies import jobs


def paper_gpu() -> float:
    """Return the fp32 rate of the paper's V100 in GFLOP/s, by its data sheet.

    The first estimate assumes this rate for every GPU.
    """
    published = pd.read_csv(places.ROOT / "data" / "published_speed.csv")
    return published[published.kind == "gpu training"].gflops_ceiling.iloc[0]


def executor(arguments: argparse.Namespace) -> executors.Executor:
    """Return the executor that was asked for.  Raises ValueError without RAY_ADDRESS, and as `Cluster` does."""
    if arguments.executor == "inline":
        return executors.Inline()
    if arguments.executor == "processes":
        return executors.Processes(arguments.workers)
    if not (address := os.environ.get("RAY_ADDRESS")):
        raise ValueError("RAY_ADDRESS is not set; expected host:port of the cluster's head, or local")
    return executors.Cluster(address, arguments.cpus, arguments.gpus, arguments.patience)


def parse() -> argparse.Namespace:
    """Return the arguments.  Wrong ones end the process with a message."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("--size", choices=places.SIZES, default="laptop")
    parser.add_argument("--mode", choices=("all", "recompute", "scratch"), default="all",
                        help="recompute: take no records; scratch: nor shipped models")  # fmt: skip
    parser.add_argument("--executor", choices=("inline", "processes", "ray"), default="processes")
    # Several processes would share one GPU and its memory.
    workers = 1 if torch.cuda.is_available() else torch.get_num_threads()
    parser.add_argument("--workers", type=int, default=workers, help="processes: their number; default: %(default)s")
    parser.add_argument("--cpus", type=float, default=1.0, help="ray: CPUs of one job; default: 1")
    parser.add_argument("--gpus", type=float, default=0.0, help="ray: GPUs of a job with models, say 0.25; default: 0")
    parser.add_argument("--patience", type=float, default=60.0, help="ray: seconds that its head has to answer")
    parser.add_argument("--only", default="", help="only datasets whose name contains this")
    arguments = parser.parse_args()
    if arguments.workers < 1 or arguments.cpus <= 0 or arguments.gpus < 0:
        parser.error("--workers and --cpus must be above 0, --gpus at least 0")
    return arguments


def say_what_is_left_out(size: str) -> None:
    """Print the names of rollouts in the folder that no job of this size makes."""
    if left_out := sweep.others(jobs.jobs(size)):
        names = ", ".join(path.name for path in left_out[:3])
        print(f"left out, since settings, weights or version differ: {names}{', ...' * (len(left_out) > 3)}")


def main() -> int:
    """Run the sweep -> the exit status."""
    arguments = parse()
    os.environ["TTLIB_MODE"] = arguments.mode
    try:
        todo = jobs.unrecorded(arguments.size, arguments.only)
        workers = executor(arguments)
    except (ValueError, ConnectionError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        say_what_is_left_out(arguments.size)
        failed = sweep.Sweep(todo, workers, paper_gpu() if arguments.gpus else provenance.gflops()).run()
    except KeyboardInterrupt:
        print("interrupted; finished jobs stay finished", file=sys.stderr)
        return 130
    finally:
        workers.close()
    for job, why in failed.items():
        print(f"failed: {sweep.label(job)}: {why}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
