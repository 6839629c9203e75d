"""A sweep on a real Ray cluster of two nodes, of which a worker and then a node are killed in the middle of a job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ttlib.pipeline import sweep

pytestmark = pytest.mark.cluster
PATIENCE = 600.0  # seconds, on a machine that is busy with other things
# One thread, and one number type whatever a busy machine times as faster: the same bits everywhere.
SAME = {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# Ray finds out within seconds that a node is dead, and gives it up then instead of after a minute; but it does not take
# what a busy machine is slow to do for dead, and its workers are not nicer than other programs.
SETTINGS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 20,
            "raylet_rpc_server_reconnect_timeout_s": 5, "worker_register_timeout_seconds": 600,
            "worker_niceness": 0}  # fmt: skip


@pytest.fixture
def cluster(tmp_path):
    """A head that computes nothing, and two nodes of one worker whose folders are not shared."""
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
    kept = ("tables/*.csv", "checkpoints/*/model.safetensors")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for pattern in kept for p in folder.glob(pattern)}


def stopped_in_mid_job(nodes, sweeping):
    """Waits for a node's worker that has a job, and stops it -> (node, worker, what it was doing)."""
    import psutil

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and sweeping.poll() is None:
        for node in nodes:
            for worker in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
                try:
                    worker.send_signal(signal.SIGSTOP)
                    # Ray writes the job's name over the command line, and it stays: a stopped process ends nothing.
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
    assert len(expected) == len(sweep.jobs("smoke", "hopper-expert"))

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
    assert f"{len(expected)} of {len(expected)} jobs done, 0 running, 0 waiting, 0 failed" in out
    assert numbers(tmp_path / "driver") == expected
    # Each node has what it made, or was given, and nothing else: no folder was shared.
    here = [numbers(tmp_path / f"node{i}") for i in (1, 2)]
    assert all(found.items() <= expected.items() for found in here)
    assert expected.keys() == here[0].keys() | here[1].keys() and here[0] != here[1]
