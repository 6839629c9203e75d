"""Trajectories as HDF5 files in D4RL's layout: read, checked and written."""

import dataclasses
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np

from ttlib import data, files


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read is a complaint about that file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing; run `make data` (see data/README.md)") from error
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises for damaged files
        hint = "replace it, or delete it and run `make data` if that made it"
        raise ValueError(f"{path} is not a readable HDF5 file ({error}): {hint}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Metadata left out."""
    found = {}
    # str: in a damaged file a name may come as bytes.
    file.visititems(lambda name, item: found.update({str(name): item} if isinstance(item, h5py.Dataset) else {}))
    return {name: array for name, array in found.items() if not name.startswith("metadata")}


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an HDF5 file, unchecked, metadata left out.  FileNotFoundError or ValueError names the file."""
    with _naming(path), h5py.File(path) as file:
        return {name: array[()] for name, array in _arrays(file).items()}


@contextmanager
def opened(path: Path, action_range: tuple[float, float] | None = None) -> Iterator[data.Episodes]:
    """The episodes of a file, checked as by `episodes`, while it is open: its states and actions are read only
    where they are sliced.  Raises as `read` and `episodes` do."""
    with ExitStack() as stack:
        with _naming(path):
            file = stack.enter_context(h5py.File(path))
            found = data.episodes(_arrays(file), action_range)
        yield found


def load(path: Path, action_range: tuple[float, float] | None = None) -> data.Episodes:
    """The episodes of a file, whole.  Raises as `opened` does."""
    with opened(path, action_range) as found:
        return dataclasses.replace(found, states=found.states[:], actions=found.actions[:])


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as HDF5, whole or not at all: a killed or failed run leaves no half file under the final name.

    The file is made in memory first, for the HDF5 library crashes where a disk is full.  OSError says how many
    bytes were needed.
    """
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1, shuffle=True)
    content, path = made.getbuffer(), Path(path)
    with files.needing(content.nbytes, path):
        files.write_aside(path, lambda aside: aside.write_bytes(content))
