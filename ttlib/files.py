"""Write files whole or not at all."""

import os
import platform
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(another path), then rename it: `path` is whole or missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers on several nodes have the same process ids, and may share a folder.
    aside = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        write(aside)
        with aside.open("rb") as file:  # a power cut leaves no name without content
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
