"""Bad inputs: a door, a defect, and the sentence that refuses it.  A defect that is taken, or another error, fails."""

import fcntl
import re

import gymnasium
import h5py
import numpy as np
import pytest
from conftest import flat

from ttlib.baselines.agents import FunctionAgent
from ttlib.datasets import arrays, hdf5, own
from ttlib.environments import stepping


def changed(**values):
    """Return a defect of arrays: some of them are other values, which may be functions of the old ones."""
    return lambda a: a | {key: value(a[key]) if callable(value) else value for key, value in values.items()}


def put(key, at, value):
    """Return a defect of arrays: a value at a place of one of them, which becomes a float array."""

    def change(a):
        array = a[key].astype(np.float32)
        array[at] = value
        return a | {key: array}

    return change


FIELDS = np.zeros(6, [("x", "f4"), ("v", "f4")])
ARRAYS = {
    "a key is missing": (lambda a: {k: v for k, v in a.items() if k != "timeouts"},
                         r"\['timeouts'\] are missing; expected .*'timeouts'.*found .*'rewards"),
    "states in a row": (changed(observations=lambda x: x[:, 0]), r"shape \(6,\); expected \(n, k\): .*None\]"),
    "one axis too many": (changed(actions=lambda x: x[None]), r"actions has shape \(1, 6, 1\); expected \(n, k\)$"),
    "two rewards a step": (changed(rewards=np.zeros((6, 2))), r"rewards has shape \(6, 2\); expected \(n,\)$"),
    "ends in a row": (changed(timeouts=lambda x: x[None]), r"timeouts has shape \(1, 6\); expected \(n,\)$"),
    "images": (changed(observations=np.zeros((6, 8, 8, 3))), "8, 3.; expected .* encode images into a few numbers"),
    "states without columns": (changed(observations=np.zeros((6, 0))), "observations .*; expected at least one column"),
    "actions without columns": (changed(actions=np.zeros((6, 0))), "actions .*; expected at least one column"),
    "an action is missing": (changed(actions=lambda x: x[1:]), "rewards has 6 rows, but {'actions': 5}$"),
    "a last state too many": (changed(observations=np.zeros((7, 2))), "'observations': 7}: leave out the last"),
    "nothing": (lambda a: {k: v[:0] for k, v in a.items()}, "no steps.*empty"),
    "text": (changed(rewards=lambda x: x.astype("S3")), r"rewards holds \|S3; expected finite numbers"),
    "complex numbers": (changed(actions=lambda x: x + 0j), "actions holds complex128; .* as two columns"),
    "long doubles": (changed(actions=lambda x: x.astype(np.longdouble)), r"holds float128; .*astype\(np.float64\)"),
    "named fields": (changed(observations=FIELDS), r"put its fields \['x', 'v'\] side by side"),
    "NaN": (put("observations", (4, 1), np.nan), "observations, row 4, column 1: nan; expected finite .*remove"),
    "infinite actions": (put("actions", slice(1, 5), np.inf), "row 1, column 0: inf, and 3 more such values; expected"),
    "an infinite reward": (put("rewards", 2, -np.inf), "rewards, row 2: -inf; expected finite"),
    "half an end": (put("terminals", 3, 0.5), "terminals, row 3: 0.5; expected 0 or 1"),
    "an end that is 2": (put("timeouts", 5, 2), "timeouts, row 5: 2.0; expected 0 or 1"),
    "no ends": (changed(terminals=np.zeros(6, bool)), "none of the 6 steps ends an episode: set `timeouts`"),
    "rewards that overflow": (changed(rewards=np.full(6, 1e308)), r"rewards, row 0: 1e\+308, .*at most 1e\+30"),
    "a range that overflows": (changed(observations=np.full((6, 2), -1e308)), r"column 0: -1e\+308, .*at most 1e\+30"),
}  # fmt: skip
KINDS = {  # of values, which no file has
    "rows of different lengths": (changed(observations=[[1.0], [1.0, 2.0]] * 3), "rows of different lengths"),
    "a dictionary of states": (changed(observations={"camera": 1, "speed": 2}), r"\['camera', 'speed'\]; expected one"),
    "masked values": (changed(rewards=lambda x: np.ma.masked_greater(x, 0)), "hides [1-5] values behind a mask.*fill"),
    "None among states": (changed(observations=[[None, 1.0]] * 6), "holds object; expected finite numbers"),
    "a list of steps": (lambda a: [a], "a list was given; expected a dictionary"),
    "one number": (changed(rewards=1.0), r"rewards has shape \(\); expected \(n,\)$"),
}


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("defect", [*ARRAYS, *KINDS])
def test_arrays(defect, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", chunk)
    change, said = (ARRAYS | KINDS)[defect]
    given = change(flat([2, 4]))
    with pytest.raises(ValueError, match=said):
        arrays.episodes(given)
    if defect in ARRAYS and chunk == 4:
        path = tmp_path / "own.hdf5"
        hdf5.write(path, given)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{said}"), hdf5.opened(path):
            pytest.fail("a file with faults was opened")


def instead(write, key="observations"):
    """Return a defect of a file: something else stands at a key; write(file, the array)."""

    def damage(path):
        with h5py.File(path, "a") as file:
            array = file[key][()]
            del file[key]
            write(file, array)

    return damage


def outside(file, array):
    other = file.filename + ".raw"
    array.tofile(other)
    return other


def other_file(file, array):
    with h5py.File(file.filename + ".other", "w") as other:
        other["x"] = array
    return other


def by_external_link(file, array):
    file["observations"] = h5py.ExternalLink(file.filename + ".other", "/x")
    other_file(file, array)


def through_external_link(file, array):
    file["aside"], file["observations"] = h5py.ExternalLink(file.filename + ".other", "/"), h5py.SoftLink("/aside/x")
    other_file(file, array)


def external(file, array):
    stored = [(outside(file, array), 0, array.nbytes)]
    file.create_dataset("observations", array.shape, array.dtype, external=stored)


def virtual(file, array):
    other_file(file, array)
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[:] = h5py.VirtualSource(file.filename + ".other", "x", array.shape)
    file.create_virtual_dataset("observations", layout)


def in_a_circle(file, array):
    file["observations"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/observations")


def ragged(file, array):
    rows = file.create_dataset("observations", (len(array),), h5py.vlen_dtype(np.float32))
    for i, row in enumerate(array):
        rows[i] = row


def half_written(file, array):
    rows = file.create_dataset("observations", array.shape, "f4", chunks=(2, 2), compression="gzip")
    rows[:3] = array[:3]


def empty(shape, **options):
    return instead(lambda file, _: file.create_dataset("observations", shape, "f4", **options))


def locked(path):
    HELD.append(path.open())
    fcntl.flock(HELD[-1], fcntl.LOCK_EX)


HELD = []  # files that stay open, since closing unlocks them


def content(of):
    return lambda path: path.write_bytes(of(path.read_bytes()))


HDF5 = {
    "external link": (instead(by_external_link), "observations is a link to another file, .*other; expected an array"),
    "link through a link": (instead(through_external_link), "is a link to another file, .*other; expected an array"),
    "external storage": (instead(external), "observations lies in other files; expected arrays in this one"),
    "virtual dataset": (instead(virtual), "observations lies in other files; expected arrays in this one"),
    "links in a circle": (instead(in_a_circle), "is a link that leads nowhere; expected an array"),
    "a link to nothing": (instead(lambda f, _: f.update(observations=h5py.SoftLink("/x"))), "that leads nowhere"),
    "a group": (instead(lambda f, _: f.create_group("observations/eye")), r"group of \['eye'\]; expected an array"),
    "a null": (instead(lambda f, _: f.update(observations=h5py.Empty("f4"))), "observations is empty; expected"),
    "a million million rows": (empty((10**12, 2)), r"\(1000000000000, 2\), 8,0.* bytes, in a file of \d+,\d+: make it"),
    "a chunk of gigabytes": (empty((6, 2), chunks=(10**8, 2), maxshape=(None, 2)), "declares .* in a file of"),
    "rows never written": (empty((6, 2)), r"declares \(6, 2\), but not all rows were written"),
    "rows half written": (instead(half_written), r"declares \(6, 2\), but not all rows were written"),
    "ragged rows": (instead(ragged), "observations holds object; .*stack its rows"),
    "no HDF5": (content(lambda x: b"hello"), "is not a readable HDF5 file .*make data"),
    "an empty file": (content(lambda x: b""), "is not a readable HDF5 file .*make data"),
    "a file that is cut": (content(lambda x: x[: len(x) // 2]), "is not a readable HDF5 file .*make data"),
    "being written": (locked, "is not a readable HDF5 file .*another program is writing it: wait"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is not a file; expected one: give its full path"),
    "many names": (lambda path: h5py.File(path, "w").update({f"x{i}": i for i in range(2000)}),
                   "keys .* are missing; .{,400} and 1990 more$"),
}  # fmt: skip


@pytest.mark.parametrize("reader", [hdf5.load, lambda path: hdf5.read(path, arrays.KEYS)])
@pytest.mark.parametrize("defect", HDF5)
def test_hdf5(defect, reader, tmp_path):
    damage, said = HDF5[defect]
    path = tmp_path / "own.hdf5"
    hdf5.write(path, flat([2, 4]))
    damage(path)
    if "ragged" in defect and reader is not hdf5.load:
        return  # types of values are looked at by `arrays.episodes` alone
    with pytest.raises(ValueError, match=rf"(?s)^{re.escape(str(path))}:? .*{said}"):
        reader(path)


class World(gymnasium.Env):
    """Random states of two numbers, and one action; `bent` replaces what reset and step return."""

    def __init__(self, space=None, **bent):
        self.bent, self.action_space = bent, space or gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.bent.get("reset", lambda state: (state, {}))(self.np_random.normal(size=2))

    def step(self, action):
        return self.bent.get("step", lambda s: (s, 0.5, False, False, {}))(self.np_random.normal(size=2))


def world(space=None, **bent):
    return lambda: gymnasium.wrappers.TimeLimit(World(space, **bent), 9)


def fails(*_):
    raise OSError("no display")


ENVIRONMENTS = {
    "an unknown id": ("Nothing-v0", "'Nothing-v0' cannot be made .*expected|give an id that gymnasium knows"),
    "an environment that cannot be made": (fails, "cannot be made .no display.: give an id"),
    "discrete actions": (world(gymnasium.spaces.Discrete(3)), r"actions are Discrete\(3\); expected a Box: wrap"),
    "several discrete actions": (world(gymnasium.spaces.MultiDiscrete([3, 2])), "are MultiDiscrete.*; expected a Box"),
    "another number of actions": (world(gymnasium.spaces.Box(-1, 1, (2,))), r"\(2,\); expected \(1,\): is it"),
    "another unit of actions": (world(gymnasium.spaces.Box(-0.1, 0.1, (1,))), r"100% lie outside .*\[-0.1, 0.1\]"),
    "more states": (world(reset=lambda s: (np.append(s, s), {})), r"state has shape \(4,\); expected \(2,\): is it"),
    "a table of states": (world(step=lambda s: (s[None], 0.0, False, False, {})), r"shape \(1, 2\); expected \(2,\)"),
    "a dictionary of states": (world(reset=lambda s: ({"eye": s}, {})), "state is a dict; .*FlattenObservation"),
    "reset without info": (world(reset=lambda s: list(s)), r"reset gives a list; expected \(state, info\)"),
    "gym's four values": (lambda: World(step=lambda s: (s, 0.0, False, {})), "step gives something else than"),
    "two rewards": (world(step=lambda s: (s, [0, 1], False, False, {})), r"reward is \[0, 1\]; expected one number"),
    "no reward": (world(step=lambda s: (s, None, False, False, {})), "reward None; expected finite"),
    "NaN in a state": (world(reset=lambda s: (s * np.nan, {})), "gives .nan nan., reward 0.0; expected finite numbers"),
    "a failing step": (world(step=fails), r"fails at its first steps: OSError\('no display'\)"),
}  # fmt: skip
DATA = {key: np.concatenate([array] * 2) for key, array in flat([2, 4]).items()}
DATA["actions"] = np.where(DATA["actions"] > 0, 0.8, -0.8)


@pytest.mark.parametrize("defect", ENVIRONMENTS)
def test_environments(defect):
    """The report also names what is wrong with the data, at the same time."""
    environment, said = ENVIRONMENTS[defect]
    with pytest.raises(ValueError, match=said):
        own.check(DATA, environment)
    with pytest.raises(ValueError, match=rf"(?s)2 faults:.*rewards, row 3: inf.*{said}"):
        own.check(put("rewards", 3, np.inf)(DATA), environment)


def test_good_data_and_a_good_environment_are_taken_and_an_endless_one_gets_a_limit(capsys):
    data, make = own.check(DATA, world(step=lambda s: (s, np.array([0.5]), False, False, {})))
    assert data.lengths.tolist() == [2, 4, 2, 4] and stepping.time_limit(make()) == 9 and not capsys.readouterr().out
    _, make = own.check(DATA, World)
    assert "no time limit: its episodes end after 4 steps" in capsys.readouterr().out
    (run,) = stepping.rollouts(make, FunctionAgent(lambda states, rows: np.zeros((1, 1))), [0])
    assert run.rewards == [0.5] * 4
    with pytest.raises(ValueError, match="every episode has one step, so none follows another"):
        own.check(DATA | {"terminals": np.ones(12, bool)})


ROLLOUTS = {
    "no time limit": (World, 1, "has no time limit, so episodes may never end: give gymnasium.wrappers.TimeLimit"),
    "discrete actions": (world(gymnasium.spaces.Discrete(3)), 1, r"Discrete\(3\); expected a Box"),
    "too few actions": (world(gymnasium.spaces.Box(-1, 1, (2,))), 1, r"of shape \(1,\); the environment takes \(2,\)"),
    "states that change": (world(step=lambda s: (s[:1], 0.0, False, False, {})), 1, r"shape \(1,\); expected \(2,\)"),
    "no reward": (world(step=lambda s: (s, {}, False, False, {})), 1, "reward is {}; expected one number"),
}  # fmt: skip


@pytest.mark.parametrize("defect", ROLLOUTS)
def test_rollouts(defect):
    make, M, said = ROLLOUTS[defect]
    with pytest.raises(ValueError, match=said):
        stepping.rollouts(make, FunctionAgent(lambda states, rows: np.zeros((len(states), M))), [0, 1])
