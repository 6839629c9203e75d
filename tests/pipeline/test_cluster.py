"""Tests of a sweep on a Ray cluster of two nodes: a worker and then a node are killed in the middle of a job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ttlib.studies import jobs

pytestmark = pytest.mark.cluster
PATIENCE = 600.0  # seconds, for a busy machine
# One thread and one number format give the same bits in every process.
SAME = {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# Ray gives up a dead node after seconds instead of a minute.  The other settings keep a busy machine from looking dead.
SETTINGS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 20,
            "raylet_rpc_server_reconnect_timeout_s": 5, "worker_register_timeout_seconds": 600, "worker_niceness": 0}


@pytest.fixture
def cluster(tmp_path):
    """Start a head that computes nothing, and two nodes of one worker each, without a shared folder."""
    ray = pytest.importorskip("ray.cluster_utils")
    memory = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SETTINGS}
    made = ray.Cluster(initialize_head=True, head_node_args=head | memory)
    try:
        for i in (1, 2):
            made.add_node(num_cpus=1, env_vars=SAME | {"TTLIB_BUILD": str(tmp_path / f"node{i}")}, **memory)
        yield made
    finally:
        made.shutdown()


def start(folder, *arguments, **environment):
    command = [sys.executable, "-m", "ttlib.commands.sweep", "--size", "smoke", "--only", "hopper-expert"]
    environment = {**os.environ, **SAME, **environment, "TTLIB_BUILD": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *arguments], env=environment, text=True, **pipes)


def numbers(folder):
    patterns = ("tables/*.csv", "checkpoints/*/model.safetensors")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for pattern in patterns for p in folder.glob(pattern)}


def stopped_in_mid_job(nodes, sweeping):
    """Wait for a worker that has a job, and stop it -> (node, worker, the job's label)."""
    import psutil

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and sweeping.poll() is None:
        for node in nodes:
            for worker in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
                try:
                    worker.send_signal(signal.SIGSTOP)
                    # Ray replaces the command line by the job's name, and a stopped process cannot end its job.
                    doing = " ".join(worker.cmdline()).strip().removeprefix("ray::")
                    if doing.startswith(("model ", "rollouts ")):
                        return node, worker, doing
                    worker.send_signal(signal.SIGCONT)
                except psutil.NoSuchProcess:
                    continue
        time.sleep(0.01)
    pytest.fail(f"no worker had a job; the sweep's exit status is {sweeping.poll()}")


def test_a_killed_worker_and_a_killed_node_cost_their_jobs_alone(cluster, tmp_path):
    alone = start(tmp_path / "alone", "--executor", "inline")
    assert alone.wait(PATIENCE) == 0, alone.communicate()
    expected = numbers(tmp_path / "alone")
    todo = jobs.jobs("smoke", "hopper-expert")
    assert len(expected) == len(todo) + 1  # the cloned policy comes beside its rollouts
    nodes = list(cluster.worker_nodes)
    sweeping = start(tmp_path / "driver", "--executor", "ray", RAY_ADDRESS=cluster.address)
    try:
        _, worker, first = stopped_in_mid_job(nodes, sweeping)
        worker.kill()
        worker.wait(PATIENCE)
        node, worker, second = stopped_in_mid_job(nodes, sweeping)
        cluster.remove_node(node, allow_graceful=False)
        worker.kill()
        out, err = sweeping.communicate(timeout=PATIENCE)
    finally:
        sweeping.kill()
    assert sweeping.returncode == 0, out + err
    again = [line.removeprefix("again: ") for line in out.splitlines() if line.startswith("again: ")]
    assert len(again) == 2 and all(line.startswith(job) for line, job in zip(again, (first, second))), out
    assert f"{len(todo)} of {len(todo)} jobs done, 0 running, 0 waiting, 0 failed" in out
    assert numbers(tmp_path / "driver") == expected
    # No folder was shared: each node has only the files that it made or was given.
    one, other = (numbers(tmp_path / f"node{i}") for i in (1, 2))
    assert one.items() <= expected.items() and other.items() <= expected.items()
    assert expected.keys() == one.keys() | other.keys() and one != other
