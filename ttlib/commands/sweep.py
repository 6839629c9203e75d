"""python -m ttlib.commands.sweep: all jobs of Table 1, imitation and the ablations, those that are not finished.

inline runs one after the other here, processes several at once on this machine, ray on the cluster whose head is at
RAY_ADDRESS (host:port; "local": one on this machine alone).  A job that fails leaves the others alone; the exit status
is 1 then.  A sweep that was stopped, however, goes on when it is run again.
"""

import argparse
import os
import sys

import pandas as pd
import torch

from ttlib.pipeline import executors, places, provenance, sweep


def paper_gpu() -> float:
    """GFLOP/s in fp32 of the paper's V100, by its data sheet; the first estimate assumes it of every GPU."""
    published = pd.read_csv(places.ROOT / "data" / "published_speed.csv")
    return published[published.kind == "gpu training"].gflops_ceiling.iloc[0]


def executor(arguments: argparse.Namespace):
    if arguments.executor == "inline":
        return executors.Inline()
    if arguments.executor == "processes":
        return executors.Processes(arguments.workers)
    if not (address := os.environ.get("RAY_ADDRESS")):
        raise ValueError("RAY_ADDRESS is not set; expected host:port of the cluster's head, or local")
    return executors.Cluster(address, arguments.cpus, arguments.gpus, arguments.patience)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--size", choices=places.SIZES, default="laptop")
    parser.add_argument("--mode", choices=("all", "scratch"), default="all", help="scratch: no shipped models")
    parser.add_argument("--executor", choices=("inline", "processes", "ray"), default="processes")
    # Processes would share one GPU, and its memory.
    workers = 1 if torch.cuda.is_available() else torch.get_num_threads()
    parser.add_argument("--workers", type=int, default=workers, help="processes: how many; default: %(default)s")
    parser.add_argument("--cpus", type=float, default=1.0, help="ray: of a job; default: 1")
    parser.add_argument("--gpus", type=float, default=0.0, help="ray: of a job with models, such as 0.25; default: 0")
    parser.add_argument("--patience", type=float, default=60.0, help="ray: seconds that its head has to answer")
    parser.add_argument("--only", default="", help="datasets whose name contains this")
    arguments = parser.parse_args()
    if arguments.workers < 1 or arguments.cpus <= 0 or arguments.gpus < 0:
        parser.error("--workers and --cpus must be above 0, --gpus at least 0")
    os.environ["TTLIB_MODE"] = arguments.mode
    try:
        todo = sweep.jobs(arguments.size, arguments.only)
        workers = executor(arguments)
    except (ValueError, ConnectionError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    if left_out := sweep.others(sweep.jobs(arguments.size)):
        names = ", ".join(path.name for path in left_out[:3])
        print(f"left out, since settings, weights or version are others: {names}{', ...' * (len(left_out) > 3)}")
    try:
        failed = sweep.Sweep(todo, workers, paper_gpu() if arguments.gpus else provenance.gflops()).run()
    except KeyboardInterrupt:
        print("interrupted; what is finished stays", file=sys.stderr)
        return 130
    finally:
        workers.close()
    for job, why in failed.items():
        print(f"failed: {sweep.label(job)}: {why}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
