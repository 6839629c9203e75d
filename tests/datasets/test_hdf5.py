"""Tests of HDF5 files: what is written is read, and a file is whole or not there."""

import re
import resource
import textwrap
from contextlib import contextmanager

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import flat

from ttlib.datasets import hdf5
from ttlib.datasets.arrays import KEYS, episodes


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
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(path))} is missing; give the full .*`make data`"):
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


def test_only_the_five_arrays_are_read_and_links_within_the_file_are_followed(tmp_path):
    """What else a file holds may be larger than the memory."""
    hdf5.write(tmp_path / "a.hdf5", flat([3, 2]))
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file.create_dataset("infos/camera", (10**9, 84, 84, 3), "u1", chunks=(1, 84, 84, 3))
        file.move("observations", "raw/states")
        file["near"], file["observations"] = h5py.SoftLink("raw/states"), h5py.SoftLink("/near")
    assert (hdf5.load(tmp_path / "a.hdf5").states == flat([3, 2])["observations"]).all()
    assert tuple(hdf5.read(tmp_path / "a.hdf5", KEYS)) == KEYS


def by_minari(file, arrays, rows, i):
    of = {"terminations": "terminals", "truncations": "timeouts"}
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        file[f"episode_{i}/{name}"] = arrays[of.get(name, name)][rows]


def by_robomimic(file, arrays, rows, i):
    of = {"states": "observations", "dones": "terminals"}
    for name in ("states", "actions", "rewards", "dones"):
        file[f"data/demo_{i}/{name}"] = arrays[of.get(name, name)][rows]


def by_d3rlpy(file, arrays, rows, i):
    for name in ("observations", "actions", "rewards"):
        file[f"{name}_{i}"] = arrays[name][rows].reshape(rows.stop - rows.start, -1)
    file[f"terminated_{i}"] = arrays["terminals"][rows][-1]
    if not i:
        file["num_episodes"] = 3


@pytest.mark.parametrize("layout", [by_minari, by_robomimic, by_d3rlpy, "npz", "npy", "csv", "old", "parquet"])
def test_files_of_others_are_recognised_and_the_lines_that_are_shown_convert_them(tmp_path, monkeypatch, layout):
    """The lines are run as they stand in the message."""
    monkeypatch.chdir(tmp_path)
    lengths, ended = [3, 2, 4], [True, False, True]
    arrays, path = flat(lengths, ended), tmp_path / f"of_others.{layout if isinstance(layout, str) else 'hdf5'}"
    columns = np.column_stack([arrays[key] for key in KEYS])
    if callable(layout):
        with h5py.File(path, "w") as file:
            for i, (end, n) in enumerate(zip(np.cumsum(lengths), lengths)):
                layout(file, arrays, slice(end - n, end), i)
    elif layout == "npz":
        np.savez(path, **arrays)
    elif layout == "npy":
        np.save(path, columns)
    elif layout == "csv":
        pd.DataFrame(columns, columns=["s0", "s1", "a0", "r", "terminal", "timeout"]).to_csv(path)
    elif layout == "old":
        rest = {k: v for k, v in arrays.items() if k != "timeouts"}
        hdf5.write(path, rest | {"episode_terminals": arrays["terminals"] | arrays["timeouts"]})
    else:  # pyarrow is no part of this project
        path.write_bytes(b"PAR1")
        table = {"observation.state": list(arrays["observations"]), "action": list(arrays["actions"])}
        table = pd.DataFrame(table | {"next.reward": arrays["rewards"], "episode_index": np.repeat([0, 1, 2], lengths)})
        monkeypatch.setattr(pd, "read_parquet", {str(path): table}.__getitem__)
    with pytest.raises(ValueError, match="these lines convert it:\n\n") as error:
        hdf5.load(path)
    exec(textwrap.dedent(str(error.value).split(":\n\n")[1]), {"path": str(path)})
    found, expected = hdf5.load("mine.hdf5"), episodes(arrays)
    for name in ("states", "actions", "rewards", "starts"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.terminal.tolist() == ([False] * 3 if layout == "parquet" else ended)
