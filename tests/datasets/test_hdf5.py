"""Tests of HDF5 files: what is written is read, and a file is whole or not there."""

import re
import resource
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
from conftest import flat

from ttlib.datasets import hdf5


@contextmanager
def room_for(size):
    """Let no file grow beyond `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read(tmp_path):
    arrays = {k: v.astype(np.float32) if v.dtype == float else v for k, v in flat([3, 2]).items()}
    arrays |= {"infos/qpos": np.arange(10.0).reshape(5, 2), "metadata/algorithm": np.array([1])}
    path = tmp_path / "new" / "a.hdf5"
    hdf5.write(path, arrays)
    back = hdf5.read(path)
    arrays.pop("metadata/algorithm")
    assert back.keys() == arrays.keys()
    assert all(back[k].dtype == v.dtype and (back[k] == v).all() for k, v in arrays.items())
    e = hdf5.load(path)
    assert e.states.dtype == e.actions.dtype == np.float32 and e.starts.tolist() == [0, 3, 5]
    assert (e.states == arrays["observations"]).all() and (e.actions == arrays["actions"]).all()
    assert (e.rewards == arrays["rewards"]).all()


def test_missing_and_unreadable_files_are_named(tmp_path):
    path = tmp_path / "hopper.hdf5"
    for reader in (hdf5.read, hdf5.load):
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(path))} is missing; run `make data`"):
            reader(path)
    hdf5.write(path, flat([50]))
    content = path.read_bytes()
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    middle = chunk.byte_offset + chunk.size // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    for broken in (b"not an HDF5 file", b"", content[: len(content) // 2], flipped):
        path.write_bytes(broken)
        for reader in (hdf5.read, hdf5.load):
            with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not a readable HDF5 .*make data"):
                reader(path)


def test_a_full_disk_leaves_nothing_and_spares_what_was_there(tmp_path):
    hdf5.write(tmp_path / "old.hdf5", flat([2]))
    before = (tmp_path / "old.hdf5").read_bytes()
    hdf5.write(tmp_path / "new.hdf5", flat([400]))
    needed = (tmp_path / "new.hdf5").stat().st_size
    (tmp_path / "new.hdf5").unlink()
    for name in ("new.hdf5", "old.hdf5"):
        message = rf"{name}: writing failed \(.*too large.*\); it needs {needed:,} bytes"
        with room_for(needed // 2), pytest.raises(OSError, match=message):
            hdf5.write(tmp_path / name, flat([400]))
    assert [p.name for p in tmp_path.iterdir()] == ["old.hdf5"]
    assert (tmp_path / "old.hdf5").read_bytes() == before
