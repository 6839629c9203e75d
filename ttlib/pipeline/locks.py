"""Locks between processes, of one command or of several in one checkout."""

import contextlib
import fcntl
import sys
from pathlib import Path


@contextlib.contextmanager
def alone(path: Path):
    """Let one process at a time make `path`, also where the processes are on several nodes.

    The others wait, and say so.  Where the file system has no locks all of them make it, and the last one's file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{path.name}: waiting for another process that makes it", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
