"""Bad inputs: a door, a defect, and the sentence that refuses it.  A defect that is taken, or another error, fails."""

import fcntl
import os
import re
import shutil
import tracemalloc
import zlib
from types import SimpleNamespace

import gymnasium
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORLD, flat, parameters, tiny_model, tiny_windows
from damage import cut, edit_config, edit_tensors

from ttlib import checkpoint, tokenizer, train
from ttlib.baselines.agents import FunctionAgent
from ttlib.datasets import arrays, hdf5, own
from ttlib.environments import policies, stepping
from ttlib.model import GPT, ModelConfig
from ttlib.pipeline import experiments, packing, places, results, store
from ttlib.pipeline.resume import Resume
from ttlib.search import Plan
from ttlib.train import TrainConfig


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


EXPERIMENT = experiments.get("pendulum", "smoke")


def config(**changes):
    """Return a defect of a checkpoint: settings of config.json, by section__name."""

    def change(c):
        for name, value in changes.items():
            section, _, name = name.partition("__")
            at = c[section] if name else c
            at[name or section] = value

    return edit_config(change)


def text(content):
    return lambda folder: (folder / "config.json").write_bytes(content)


def tensor(name, change):
    return edit_tensors(lambda t: t.update({name: change(t[name].clone())}))


def nan_in_the_middle(x):
    x[:, x.shape[1] // 2] = torch.nan
    return x


NOT_ITS_MODEL = "is not the model of its experiment: config.json says model.%s = %s; expected .*: delete it"
CHECKPOINTS = {
    **{f"{name} = {value}": (config(**{f"model__{name}": value}), NOT_ITS_MODEL % (name, re.escape(repr(value))))
       for name, value in [("n_layer", 10**7), ("n_head", 0), ("n_head", -4), ("n_head", 1), ("d_model", -128),
                           ("T", 10**12), ("dropout", float("nan")), ("heads", 3)]},
    "N and M exchanged": (config(model__transition={"N": 1, "M": 3, "rewards": True}), "model.transition = .*'N': 3"),
    "another kind of bins": (config(tokenizer__kind="quantile"), "has 100 quantile bins; expected .*kind='uniform'"),
    "no notes": (config(about=None), "is not a readable checkpoint .*delete it"),
    "a config that is not UTF-8": (text(b'{"about": "\xff"}'), "is not a readable checkpoint .*Unicode.*delete it"),
    "a config nested deeply": (text(b"[" * 100_000), "is not a readable checkpoint .*Recursion.*delete it"),
    "NaN among edges": (tensor("tokenizer.edges", nan_in_the_middle), "are not finite and ascending: delete it"),
    "descending edges": (tensor("tokenizer.edges", lambda x: x.flip(1)), "are not finite and ascending: delete it"),
    "NaN among centres": (tensor("tokenizer.centres", nan_in_the_middle), "are not finite and ascending: delete it"),
    "weights of gigabytes": (lambda f: os.truncate(f / "model.safetensors", 10**11), "has 100,0.* bytes; its config"),
    "weights that are cut": (cut(0.5), "is not a readable checkpoint .*delete it"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a checkpoint of EXPERIMENT, with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    transition = EXPERIMENT.model.transition
    bins = tokenizer.fit(torch.randn(transition.D, 50).double(), transition, EXPERIMENT.bins.V, EXPERIMENT.bins.kind)
    checkpoint.save(folder, GPT(EXPERIMENT.model), bins, {"key": store.model_key(EXPERIMENT), "held_out_all": 1.0})
    return folder


@pytest.mark.parametrize("defect", CHECKPOINTS)
def test_checkpoints(defect, trained, tmp_path, monkeypatch):
    """Sizes are compared before a model is built; where weights alone are read, nonsense is refused as well."""
    damage, said = CHECKPOINTS[defect]
    folder = tmp_path / "c"
    shutil.copytree(trained, folder)
    monkeypatch.setattr(store, "checkpoint_folder", lambda item: folder)
    assert store.load_or_train(EXPERIMENT).model.config == EXPERIMENT.model
    damage(folder)
    with pytest.raises(ValueError, match=said):
        store.load_or_train(EXPERIMENT)
    if re.search("n_layer|n_head = -?[04]|d_model|T =|heads|no notes|UTF|deeply|cut", defect):
        with pytest.raises(ValueError, match="c(:| is not a readable checkpoint).*delete"):
            checkpoint.load(folder)


BOMB = b"".join(zlib.compress(bytes(10**7), 9) for _ in range(4))
PACKED = {
    "a bomb": (BOMB, None, "more bytes than their config has"),
    "more than the config has": (packing.pack(bytes(range(256)) * 20), 5000, "more bytes than their config has"),
    "no stream": (b"no stream", None, "cannot be unpacked .*: fetch or train them again"),
    "weights that are cut": (packing.pack(bytes(range(256)) * 20)[:-9], None, "they end too early"),
    "nothing": (b"", None, "they end too early"),
}


@pytest.mark.parametrize("defect", PACKED)
def test_packed_weights(defect):
    content, most, said = PACKED[defect]
    tracemalloc.start()
    with pytest.raises(ValueError, match=said):
        packing.unpack(content, most)
    assert tracemalloc.get_traced_memory()[1] < 20 * len(content) + 100_000
    tracemalloc.stop()


POLICIES = {
    "a file that is cut": content(lambda x: x[: len(x) // 2]),
    "nothing": content(lambda x: b""),
    "a pickle": content(lambda x: b"\x80\x04N."),
    "a key is missing": lambda path: np.savez(path, **{k: v for k, v in WEIGHTS.items() if k != "mean_bias"}),
    "another shape": lambda path: np.savez(path, **WEIGHTS | {"mean_weight": np.zeros((7, 3))}),
    "other actions": lambda path: np.savez(path, **WEIGHTS | {name: array[..., :2] for name, array in WEIGHTS.items()
                                                              if name.startswith(("mean", "log_std"))}),
    "NaN": lambda path: np.savez(path, **WEIGHTS | {"mean_bias": np.full(3, np.nan)}),
}  # fmt: skip
SHAPES = {"hidden0": (11, 4), "hidden1": (4, 4), "mean": (4, 3), "log_std": (4, 3)}
WEIGHTS = {f"{name}_weight": np.ones(shape) for name, shape in SHAPES.items()}
WEIGHTS |= {f"{name}_bias": np.ones(shape[1]) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("defect", POLICIES)
def test_policies(defect, tmp_path):
    path = tmp_path / "step_0000007.npz"
    np.savez(path, **WEIGHTS)
    assert policies.policy("hopper", 7, tmp_path)(np.zeros((2, 11)), np.random.default_rng(0)).shape == (2, 3)
    POLICIES[defect](path)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not a readable policy .*: fetch it again"):
        policies.policy("hopper", 7, tmp_path)


def nan_weights(path):
    saved = torch.load(path)
    saved["model"]["head.weight"].data[0] = torch.nan
    torch.save(saved, path)


RESUMED = {"a state that is cut": content(lambda x: x[:1000]), "nothing": content(lambda x: b""), "NaN": nan_weights,
           "no state": lambda path: torch.save([1], path)}  # fmt: skip


@pytest.mark.parametrize("defect", RESUMED)
def test_a_damaged_state_of_a_training_is_named_and_the_training_begins_anew(defect, tmp_path, capsys):
    windows, how = tiny_windows(), TrainConfig(4, 4, dtype="float32")
    models = [tiny_model() for _ in range(3)]
    train.fit(models[0], windows, how)
    train.fit(models[1], windows, how, saved=Resume(tmp_path, seconds=0), stop_at=2)
    RESUMED[defect](tmp_path / "resume.pt")
    train.fit(models[2], windows, how, saved=Resume(tmp_path, seconds=0))
    assert torch.equal(parameters(models[2]), parameters(models[0]))
    assert re.search(r"resume.pt is damaged \(.*\): the training begins anew", capsys.readouterr().err)


KEPT = {"no table": (".csv", lambda x: b""), "a table that is cut": (".csv", lambda x: x[:-2]),
        "no record": (".json", lambda x: b""), "another record": (".json", lambda x: b"[]"),
        "another number": (".csv", lambda x: x.replace(b"1.5", b"2.5"))}  # fmt: skip


@pytest.mark.parametrize("defect", KEPT)
def test_a_damaged_table_is_named_and_made_again(defect, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(places, "TABLES", tmp_path)
    make = lambda: results.table("t", "smoke", lambda: pd.DataFrame({"x": [1.5, 12.25]}), {}, public=False)  # noqa: E731
    made, (ending, change) = make(), KEPT[defect]
    (path,) = tmp_path.glob(f"*{ending}")
    path.write_bytes(change(path.read_bytes()))
    assert make().equals(made) and re.search(r"csv .*: it is made again", capsys.readouterr().err)
    assert make().equals(made) and "loaded" in capsys.readouterr().err


CONFIGS = {
    "no learning rate": (lambda: TrainConfig(4, lr=0.0), "lr=0.0; expected .*lr > 0"),
    "learning rate NaN": (lambda: TrainConfig(4, lr=float("nan")), "lr=nan; expected .*lr > 0"),
    "no updates": (lambda: TrainConfig(0), "updates=0.*; expected at least 1"),
    "gamma below 0": (lambda: experiments.Bins(gamma=-0.1), "gamma=-0.1; expected 0 to 1"),
    "gamma NaN": (lambda: experiments.Bins(gamma=float("nan")), "gamma=nan; expected 0 to 1"),
    "no layers": (lambda: ModelConfig(WORLD, 4, n_layer=0), "n_layer=0.*; expected T, n_layer >= 1"),
    "heads below 0": (lambda: ModelConfig(WORLD, 4, n_head=-4), "d_model=192 is no multiple of n_head=-4"),
    "no plan": (lambda: Plan(-2, 1, 1), "expected horizon and widths of at least 1"),
}


@pytest.mark.parametrize("defect", CONFIGS)
def test_configs(defect):
    make, said = CONFIGS[defect]
    with pytest.raises(ValueError, match=said):
        make()


def written(name, of):
    """Return a call that reads a file of this name and content."""

    def read(folder):
        (folder / name).write_bytes(of)
        return hdf5.load(folder / name)

    return read


OTHERS = {
    "Minari without episodes": (lambda _: own.from_minari(SimpleNamespace(iterate_episodes=list)), "no episodes; exp"),
    "a path for Minari": (own.from_minari, "is no dataset of Minari; expected one, or its name as text"),
    "a pickle": (written("a.pkl", b"\x80\x04N."), "is not HDF5 but a pickle, which may run code when it is read"),
    "parquet": (written("a.parquet", b"PAR1 "), "is not HDF5 but LeRobot's layout, or other parquet; these lines"),
    "text": (written("a.csv", b"x,y\n1,2\n"), "is not HDF5 but a table of text; these lines convert it"),
    "one step": (lambda _: arrays.split(arrays.episodes(flat([1])), 0.05, 0), "one step in one episode; expected more"),
    "a file that is not there": (lambda folder: hdf5.load(folder / "a.hdf5"), "a.hdf5 is missing; give the full path"),
}  # fmt: skip


@pytest.mark.parametrize("defect", OTHERS)
def test_data_of_others(defect, tmp_path):
    call, said = OTHERS[defect]
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        call(tmp_path)
