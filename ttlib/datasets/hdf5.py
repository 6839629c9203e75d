"""Read, check and write trajectories as HDF5 files with D4RL's keys."""

import dataclasses
import io
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np

from ttlib import files
from ttlib.data import Episodes
from ttlib.datasets import layouts
from ttlib.datasets.arrays import KEYS, missing
from ttlib.datasets.arrays import episodes as episodes_of

RATIO = 1032  # gzip packs no array more tightly; a file that declares more has not got it


@contextmanager
def _naming(path: Path) -> Iterator[Path]:
    """Give the full path, and raise errors of reading again, as FileNotFoundError or ValueError that name the file."""
    path = Path(path).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; give the full path of a file of yours, or run `make data` if that makes it"
        )
    if hint := layouts.of_file(path):
        raise ValueError(f"{path} {hint}")
    try:
        yield path
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeError) as error:  # h5py raises these for damaged files
        hint = "replace it or, if `make data` made it, delete it and run `make data` again"
        hint = "another program is writing it: wait until that has ended" if "unable to lock" in str(error) else hint
        raise ValueError(f"{path} is not a readable HDF5 file ({error}): {hint}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _find(file: h5py.Group, name: str, links: int = 8) -> h5py.Dataset | h5py.Group:
    """Return an item by its name.  Follow soft links within the file; raise ValueError for those that leave it."""
    item = file
    for part in name.strip("/").split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) and part in set(item) else None
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{name} is a link to another file, {link.filename}; expected an array: copy it here")
        if link is None or not links:
            raise ValueError(f"{name} is a link that leads nowhere; expected an array")
        if isinstance(link, h5py.SoftLink):
            target = link.path if link.path.startswith("/") else f"{item.name}/{link.path}"
            item = _find(item.file["/"], target, links - 1)
        else:
            item = item[part]
    return item


def _check(name: str, item: h5py.Dataset | h5py.Group, size: int) -> None:
    """Raise ValueError unless an item is an array that a file of so many bytes can hold, before memory is taken."""
    if isinstance(item, h5py.Group) or item.shape is None:
        found = f"a group of {list(item)[:10]}" if isinstance(item, h5py.Group) else "empty"
        raise ValueError(f"{name} is {found}; expected an array: put the entries that you want side by side")
    if item.is_virtual or item.external:
        raise ValueError(f"{name} lies in other files; expected arrays in this one: write a copy of them")
    plist = item.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    if unknown := [words.decode() or code for code, _, _, words in filters if not h5py.h5z.filter_avail(code)]:
        raise ValueError(f"{name} is packed by {unknown[0]}, which h5py cannot unpack here: write a copy with gzip")
    chunks, size_of_one = item.chunks or item.shape, item.dtype.itemsize
    if max(declared := size_of_one * math.prod(item.shape), size_of_one * math.prod(chunks)) > RATIO * size:
        raise ValueError(f"{name} declares {item.shape}, {declared:,} bytes, in a file of {size:,}: make it again")
    if item.chunks:
        parts, written = math.prod(-(-n // c) for n, c in zip(item.shape, chunks)), item.id.get_num_chunks()
    else:
        parts, written = min(1, declared), item.id.get_storage_size()
    if name in KEYS[:3] and written < parts:
        raise ValueError(f"{name} declares {item.shape}, but not all rows were written: leave them out")


def _arrays(file: h5py.File, names: Iterable[str] = KEYS) -> dict[str, h5py.Dataset]:
    """Return arrays of an open file by name.  Raises ValueError where one is missing or lies in another file."""
    if tuple(names) == KEYS and (faults := missing(file)):
        raise ValueError(faults[0] + layouts.of_names(set(itertools.islice(file, 100))))
    found, size = {name: _find(file, name) for name in names}, file.id.get_filesize()
    for name, item in found.items():
        _check(name, item, size)
    return found


def read(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Read arrays by name, by default all but the metadata.  Raises FileNotFoundError or ValueError."""
    with _naming(path) as path, h5py.File(path) as file:
        if names is None:
            every = []
            file.visititems(lambda name, item: every.append(str(name)) if isinstance(item, h5py.Dataset) else None)
            names = [name for name in every if not name.startswith("metadata")]
        return {name: array[()] for name, array in _arrays(file, names).items()}


@contextmanager
def opened(path: Path, action_range: tuple[float, float] | None = None) -> Iterator[Episodes]:
    """Open and check a file, and give its episodes, whose states and actions are read where they are sliced."""
    with ExitStack() as stack:
        with _naming(path) as path:
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
