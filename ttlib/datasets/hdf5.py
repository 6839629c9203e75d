"""Read, check and write trajectories as HDF5 files with D4RL's keys."""

import dataclasses
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np

from ttlib import files
from ttlib.data import Episodes
from ttlib.datasets.arrays import episodes as episodes_of


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise errors of reading again, as FileNotFoundError or ValueError with the path of the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing; run `make data` to make it (see data/README.md)") from error
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises these for damaged files
        hint = "replace it or, if `make data` made it, delete it and run `make data` again"
        raise ValueError(f"{path} is not a readable HDF5 file ({error}): {hint}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return all arrays of an open file by name, without its metadata."""
    names = []
    file.visit(names.append)
    items = {str(name): file[name] for name in names}  # in a damaged file, a name may be bytes
    items = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset)}
    return {name: item for name, item in items.items() if not name.startswith("metadata")}


def read(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays but the metadata.  Raises FileNotFoundError or ValueError for a missing or a damaged file."""
    with _naming(path), h5py.File(path) as file:
        return {name: array[()] for name, array in _arrays(file).items()}


@contextmanager
def opened(path: Path, action_range: tuple[float, float] | None = None) -> Iterator[Episodes]:
    """Open and check a file, and give its episodes, whose states and actions are read where they are sliced."""
    with ExitStack() as stack:
        with _naming(path):
            file = stack.enter_context(h5py.File(path))
            episodes = episodes_of(_arrays(file), action_range)
        yield episodes


def load(path: Path, action_range: tuple[float, float] | None = None) -> Episodes:
    """Read the episodes of a file into memory.  Raises as `opened` does."""
    with opened(path, action_range) as episodes:
        return dataclasses.replace(episodes, states=episodes.states[:], actions=episodes.actions[:])


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as an HDF5 file that is whole or missing.  Raises OSError with the number of bytes needed."""
    buffer = io.BytesIO()  # the HDF5 library crashes on a full disk
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1, shuffle=True)
    content, path = buffer.getbuffer(), Path(path)
    try:
        files.write_aside(path, lambda aside: aside.write_bytes(content))
    except OSError as error:
        raise OSError(error.errno, f"{path}: writing failed ({error}); it needs {content.nbytes:,} bytes") from error
