"""Places where calls run: in this process, in several processes, or on a Ray cluster.

A worker that dies loses one call and no other.
"""

import faulthandler
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Protocol

import torch

from ttlib.datasets import regenerated

JOINING = 600.0  # seconds to join a cluster that answers; after them the process ends with a traceback
Call = Callable[[], object]


class LostError(RuntimeError):
    """The worker died before its call returned."""


class Executor(Protocol):
    """Run calls on workers.

    `queues` says whether it takes more calls than it has workers.
    """

    queues: bool

    def slots(self) -> int:
        """Return the number of workers."""

    def submit(self, call: Call, name: str, gpu: bool) -> Future:
        """Take a call, and return its future.  gpu: whether the call can use a GPU."""

    def result(self, future: Future) -> object:
        """Return the result of a finished future; ask once.  Raises what the call raised, or LostError."""

    def close(self) -> None:
        """Release the workers."""


class Inline:
    """An executor in this process: a call runs when its result is asked for."""

    queues = False

    def slots(self) -> int:
        """Return 1."""
        return 1

    def submit(self, call: Call, name: str, gpu: bool) -> Future:
        """Return a future that holds the call."""
        future = Future()
        future.set_result(call)
        return future

    def result(self, future: Future) -> object:
        """Run the call, and return its result."""
        return future.result()()

    def close(self) -> None:
        """Do nothing: there are no workers."""


class Processes:
    """An executor with processes of this machine, which share its threads.

    Each process is a pool of one, so that killing it does not break the others.
    """

    queues = False

    def __init__(self, workers: int):
        threads = max(1, torch.get_num_threads() // workers)
        options = {"mp_context": get_context("spawn"), "initializer": _begin, "initargs": (threads,)}
        self.new = lambda: ProcessPoolExecutor(1, **options)
        self.workers, self.free, self.busy = workers, [self.new() for _ in range(workers)], {}

    def slots(self) -> int:
        """Return the number of processes."""
        return self.workers

    def submit(self, call: Call, name: str, gpu: bool) -> Future:
        """Start the call in a free process."""
        pool = self.free.pop()
        with regenerated.without_main():
            try:
                future = pool.submit(call)
            except BrokenProcessPool:  # the process was killed while it was free
                pool = self.new()
                future = pool.submit(call)
        self.busy[future] = pool
        return future

    def result(self, future: Future) -> object:
        """Return the result, and replace the process if it was killed."""
        pool = self.busy.pop(future)
        try:
            return future.result()
        except BrokenProcessPool as error:
            pool = self.new()
            raise LostError("its process was killed") from error
        finally:
            self.free.append(pool)

    def close(self) -> None:
        """Stop the processes when their calls end."""
        for pool in (*self.free, *self.busy.values()):
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(threads: int) -> None:
    """Prepare a worker: end with the parent, limit the threads, silence the output.

    The progress bars of several workers would overwrite each other.
    """
    regenerated.follow_parent()
    torch.set_num_threads(threads)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


class Cluster:
    """An executor on a Ray cluster that is running.

    address: host:port of its head, or "local" for a cluster on this machine alone.  cpus, gpus: what one call gets; a
    fraction of a GPU is enough for small models.  patience: seconds that the head has to answer.
    Raises ValueError for a malformed address and for GPUs that the cluster lacks, ConnectionError if nothing answers,
    ImportError without Ray.
    """

    queues = True  # waiting calls tell the cluster to grow

    def __init__(self, address: str, cpus: float = 1.0, gpus: float = 0.0, patience: float = 60.0):
        if address != "local" and not answers(address, patience):
            raise ConnectionError(f"no Ray cluster answered at {address} within {patience:g} s: is its head running?")
        self.ray, self.cpus, self.gpus = _joined(address), cpus, gpus
        self.remote = self.ray.remote(max_retries=0)(_call)
        if gpus > (there := self.ray.cluster_resources().get("GPU", 0)):
            raise ValueError(f"each asks for {gpus:g} GPU, the cluster has {there:g}; --gpus 0 runs on its processors")

    def slots(self) -> int:
        """Return how many calls the cluster runs at once, at least 1."""
        there = self.ray.cluster_resources()
        return max(1, int(there.get("GPU", 0) / self.gpus if self.gpus else there.get("CPU", 0) / self.cpus))

    def submit(self, call: Call, name: str, gpu: bool) -> Future:
        """Give the call to Ray, which queues it."""
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus if gpu else 0, "name": name}
        return self.remote.options(**options).remote(call).future()

    def result(self, future: Future) -> object:
        """Return the result; errors of Ray itself become LostError."""
        try:
            return future.result()
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            raise LostError(str(error).split("\n")[0]) from error

    def close(self) -> None:
        """Leave the cluster."""
        self.ray.shutdown()


def _joined(address: str):
    """Join the cluster at `address`, or start a local one; return the module ray."""
    try:
        import ray
    except ImportError as error:
        raise ImportError('Ray is not installed: pip install -c requirements.lock -e ".[cluster]"') from error
    # Ray's workers start with low priority and have one minute to start, which is too short on a busy machine.
    patient = {"worker_niceness": 0, "worker_register_timeout_seconds": 600}
    # Ray has no password, so a cluster of this machine alone listens on its loopback.
    local = {"_system_config": patient, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    options = local if address == "local" else {}
    print(f"joining the Ray cluster at {address}", flush=True)
    faulthandler.dump_traceback_later(JOINING, exit=True)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    faulthandler.cancel_dump_traceback_later()
    return ray


def _call(call: Call) -> object:
    """Run a call on a node."""
    return call()


def answers(address: str, patience: float) -> bool:
    """Return whether host:port answers in HTTP/2, the protocol of Ray, within `patience` seconds.

    Ray itself would wait for minutes and then end the process.  Raises ValueError for a malformed address.
    """
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise ValueError(f"RAY_ADDRESS={address!r}; expected host:port of the cluster's head, or local")
    end = time.monotonic() + patience
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), left) as connection:
                connection.settimeout(max(0.01, end - time.monotonic()))
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                return len(connection.recv(9)) > 3
        except OSError:  # the head may be about to start
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    return False
