"""Where calls are carried out: here, in processes, on a Ray cluster.  A worker that dies takes one call with it."""

import faulthandler
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from ttlib.datasets import regenerated

JOINING = 600.0  # seconds that Ray has to take us into a cluster that does answer; then a traceback says so


class LostError(RuntimeError):
    """A worker died, and its call with it."""


class Inline:
    """One call after the other, here, each when its result is asked for."""

    queues = False  # whether it takes more calls than it has workers

    def slots(self) -> int:
        """Workers that are there."""
        return 1

    def submit(self, call: Callable[[], object], name: str, gpu: bool) -> Future:
        """gpu: whether the call has use for one."""
        future = Future()
        future.set_result(call)
        return future

    def result(self, future: Future) -> object:
        """Of a future that is done, once.  Raises what the call raised, or LostError."""
        return future.result()()

    def close(self) -> None:
        pass


class Processes(Inline):
    """Processes of this machine, which share its threads.  Each is a pool of one, so that killing it harms no other."""

    def __init__(self, workers: int):
        threads = max(1, torch.get_num_threads() // workers)
        how = {"mp_context": get_context("spawn"), "initializer": _begin, "initargs": (threads,)}
        self.new = lambda: ProcessPoolExecutor(1, **how)
        self.workers, self.free, self.busy = workers, [self.new() for _ in range(workers)], {}

    def slots(self) -> int:
        return self.workers

    def submit(self, call: Callable[[], object], name: str, gpu: bool) -> Future:
        pool = self.free.pop()
        try:
            future = pool.submit(call)
        except BrokenProcessPool:  # killed while it had nothing to do
            pool = self.new()
            future = pool.submit(call)
        self.busy[future] = pool
        return future

    def result(self, future: Future) -> object:
        pool = self.busy.pop(future)
        try:
            return future.result()
        except BrokenProcessPool as error:
            pool = self.new()
            raise LostError("its process was killed") from error
        finally:
            self.free.append(pool)

    def close(self) -> None:
        for pool in (*self.free, *self.busy.values()):
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(threads: int) -> None:
    """Of a worker process: many progress bars at once are none."""
    regenerated.follow_parent()
    torch.set_num_threads(threads)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


class Cluster(Inline):
    """A Ray cluster that is running.  address: host:port of its head, or "local" for one on this machine alone;
    cpus, gpus: what a call asks for, a share of a GPU being enough where models are small.

    ValueError for an address that cannot be one or GPUs that are not there, ConnectionError if nothing answers."""

    queues = True  # what waits tells the cluster to grow

    def __init__(self, address: str, cpus: float = 1.0, gpus: float = 0.0, patience: float = 60.0):
        if address != "local" and not answers(address, patience):
            raise ConnectionError(f"no Ray cluster answered at {address} within {patience:g} s: is its head running?")
        try:
            import ray
        except ImportError as error:
            raise ImportError('Ray is not installed: pip install -c requirements.lock -e ".[cluster]"') from error
        # Ray's workers are polite, and have a minute to start: too short where others keep the processors busy.
        patient = {"worker_niceness": 0, "worker_register_timeout_seconds": 600}
        own = {"_system_config": patient, "include_dashboard": False} if address == "local" else {}
        print(f"joining the Ray cluster at {address}", flush=True)
        faulthandler.dump_traceback_later(JOINING, exit=True)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        faulthandler.cancel_dump_traceback_later()
        self.ray, self.cpus, self.gpus, self.remote = ray, cpus, gpus, ray.remote(max_retries=0)(_call)
        if gpus > (there := ray.cluster_resources().get("GPU", 0)):
            raise ValueError(f"each asks for {gpus:g} GPU, the cluster has {there:g}; --gpus 0 runs on its processors")

    def slots(self) -> int:
        there = self.ray.cluster_resources()
        return max(1, int(there.get("GPU", 0) / self.gpus if self.gpus else there.get("CPU", 0) / self.cpus))

    def submit(self, call: Callable[[], object], name: str, gpu: bool) -> Future:
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus if gpu else 0, "name": name}
        return self.remote.options(**options).remote(call).future()

    def result(self, future: Future) -> object:
        try:
            return future.result()
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            raise LostError(str(error).split("\n")[0]) from error

    def close(self) -> None:
        self.ray.shutdown()


def _call(call: Callable[[], object]) -> object:
    return call()


def answers(address: str, patience: float) -> bool:
    """Whether what Ray speaks, HTTP/2, is spoken at host:port within so many seconds.  Ray itself would wait for
    minutes and then end the process."""
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
        except OSError:  # its head may be about to start
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    return False
