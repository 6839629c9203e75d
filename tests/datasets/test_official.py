"""Official files: our reader agrees with d4rl's readers on small files, and a local server tests downloads."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gym
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttlib.datasets import hdf5, official, regenerated
from ttlib.environments import tasks

NAME, FILE = "hopper-medium-v2", "hopper_medium-v2.hdf5"
d4rl = tasks.d4rl()
# The two flags of each row.  Episodes end by a terminal, by a timeout or by both; the last one is not finished.
FLAGS = [(0, 0), (0, 0), (1, 0), (0, 0), (0, 1), (0, 0), (1, 1), (0, 1), (0, 0), (0, 0)]


def write(path, flags, N=11, M=3, column=False):
    """Write a file like D4RL's.  flags: (terminal, timeout) of each row; column: (n, 1) replaces (n,)."""
    rng, n = np.random.default_rng(0), len(flags)
    terminals, timeouts = np.array(flags, bool).T
    shape = (n, 1) if column else n
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = rng.normal(size=(2, n, N)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (n, M)).astype(np.float32)
        file["rewards"] = rng.normal(size=shape).astype(np.float32)
        file["terminals"], file["timeouts"] = terminals.reshape(shape), timeouts
        file["infos/qpos"], file["infos/qvel"] = rng.normal(size=(2, n, 6))
        file["infos/action_log_probs"] = rng.normal(size=n).astype(np.float32)
        file["metadata/algorithm"], file["metadata/iteration"] = np.bytes_("SAC"), np.int64(3)
        file["metadata/policy/fc0/weight"] = rng.normal(size=(4, N)).astype(np.float32)
    return path


def d4rl_env():
    """Return an instance of d4rl's own class, without a simulator, since d4rl's no longer runs."""
    infos = d4rl.infos
    env = d4rl.offline_env.OfflineEnv(infos.DATASET_URLS[NAME], infos.REF_MAX_SCORE[NAME], infos.REF_MIN_SCORE[NAME])
    env.observation_space, env.action_space = (gym.spaces.Box(-1, 1, (size,), np.float32) for size in (11, 3))
    return env


@pytest.fixture(scope="module")
def env():
    return official.make(NAME)


flags_ = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=12).filter(np.any)


def both(flags):
    """Write a file.  Return its episodes from our reader, and its arrays for d4rl's readers."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "d4rl.hdf5", flags)
        return hdf5.load(path), hdf5.read(path)


@given(flags_)
def test_episodes_are_those_of_d4rls_sequence_dataset(flags):
    """d4rl leaves out the steps after the last end.  Our reader makes them one more episode."""
    ours, arrays = both(flags)
    theirs = list(d4rl.sequence_dataset(None, arrays))
    assert len(ours) == len(theirs) + (not any(flags[-1]))
    for e, episode in enumerate(theirs):
        part = ours.select(np.array([e]))
        assert np.array_equal(part.states, episode["observations"])
        assert np.array_equal(part.actions, episode["actions"])
        assert np.array_equal(part.rewards, episode["rewards"])
        assert part.terminal[0] == episode["terminals"][-1] and not episode["terminals"][:-1].any()
    if not any(flags[-1]):
        assert not ours.terminal[-1] and ours.starts[-1] == len(flags)
        assert ours.starts[-2] == sum(len(episode["rewards"]) for episode in theirs)


@pytest.mark.parametrize("column", [False, True])
def test_get_dataset_is_d4rls_and_our_reader_leaves_metadata_out(env, tmp_path, column):
    path = write(tmp_path / "d4rl.hdf5", FLAGS, column=column)
    ours, theirs = env.get_dataset(str(path)), d4rl_env().get_dataset(str(path))
    assert list(ours) == list(theirs) and "metadata/policy/fc0/weight" in ours
    for key in theirs:
        assert np.array_equal(ours[key], theirs[key]) and np.asarray(ours[key]).dtype == np.asarray(theirs[key]).dtype
    if not column:  # our reader does not accept (n, 1), which no file of D4RL has
        read = hdf5.read(path)
        assert set(read) == {key for key in theirs if not key.startswith("metadata")}
        assert all(np.array_equal(read[key], theirs[key]) for key in read)
        fed = list(d4rl.sequence_dataset(env, read)), list(d4rl.sequence_dataset(d4rl_env(), read))
        assert all(np.array_equal(a[key], b[key]) for a, b in zip(*fed, strict=True) for key in b)


@pytest.mark.parametrize("name", official.names())
def test_scores_and_attributes_are_d4rls(name):
    env, url = official.make(name), d4rl.infos.DATASET_URLS[name]
    for value in (-300.0, 0.0, 1234.5, np.float64(1e4), np.array([1.0, 2.0])):
        assert np.array_equal(env.get_normalized_score(value), d4rl.get_normalized_score(name, value))
    assert env.get_normalized_score(env.ref_max_score) == 1 and env.get_normalized_score(env.ref_min_score) == 0
    assert 100 * env.get_normalized_score(777.0) == pytest.approx(tasks.score(name.split("-")[0], 777.0))
    assert env.dataset_url == url
    assert env.dataset_filepath == d4rl.offline_env.filepath_from_url(url) or Path(env.dataset_filepath).exists()
    assert env._max_episode_steps == env.spec.max_episode_steps == 1000
    env.close()


def test_the_physics_is_d4rls_unless_asked_otherwise(env):
    other = official.make(NAME, physics="modern")
    for task, physics in ((env, "d4rl"), (other, "modern")):
        reference = tasks.make("hopper", physics=physics)
        assert np.array_equal(task.unwrapped.model.body_mass, reference.unwrapped.model.body_mass)
        reference.close()
    assert not np.allclose(env.unwrapped.model.body_mass, other.unwrapped.model.body_mass)
    other.close()


def test_actions_are_clipped_before_the_simulator_sees_them(env):
    def step(action):
        env.reset(seed=0)
        return env.step(np.full(3, action))

    wide, edge, inside = step(7.0), step(1.0), step(0.5)
    assert np.array_equal(wide[0], edge[0]) and wide[1] == edge[1] and wide[1] != inside[1]


def test_names_are_d4rls_and_every_one_has_a_regenerated_counterpart():
    table_1 = {f"{t}-{q}-v2" for t in tasks.D4RL_TASKS for q in ("medium", "medium-replay", "medium-expert")}
    assert set(official.names()) == table_1 | {f"{task}-expert-v2" for task in tasks.D4RL_TASKS}
    for name in official.names():
        assert d4rl.infos.DATASET_URLS[name].endswith("/" + official.path(name).name)
        task, quality = name.removesuffix("-v2").split("-", 1)
        assert quality in regenerated.RECIPES[task]


@pytest.mark.parametrize(("wrong", "near"), [
    ("hopper-mixed-v2", "hopper-medium-replay-v2"), ("hopper-medium-replay", "hopper-medium-replay-v2"),
    ("walker2d_med-expert-v2", "walker2d-medium-expert-v2"), ("Halfcheetah-expert-v2", "halfcheetah-expert-v2"),
])  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest_one(wrong, near):
    for asked in (official.fetch, official.path, official.make):
        with pytest.raises(ValueError, match=f"{wrong}.*did you mean '{near}'"):
            asked(wrong)


CONTENT = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Put d4rl's folder and the project's into a temporary one, and publish CONTENT as the official file."""
    checksums = tmp_path / "checksums.tsv"
    publish(checksums, CONTENT)
    monkeypatch.setattr(official, "CHECKSUMS", checksums)
    monkeypatch.setattr(official, "FOLDER", tmp_path / "project")
    monkeypatch.setattr(d4rl.offline_env, "DATASET_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(official.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "project").mkdir()
    return tmp_path


def publish(checksums, content):
    checksums.write_text(f"file\tbytes\tsha256\n{FILE}\t{len(content)}\t{hashlib.sha256(content).hexdigest()}\n")


class Server:
    """A server on this machine that gives the answers in order, and the last one for ever.

    An answer is a file's content.  None breaks off in the middle of CONTENT, and an integer is an HTTP error.
    """

    def __init__(self, monkeypatch, *answers):
        self.answers, self.requests = list(answers), 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):
                self.requests += 1
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                handler.send_response(answer if isinstance(answer, int) else 200)
                body = b"" if isinstance(answer, int) else CONTENT[: len(CONTENT) // 2] if answer is None else answer
                handler.send_header("Content-Length", str(len(CONTENT if answer is None else body)))
                handler.end_headers()
                handler.wfile.write(body)
                self.answered(handler)

            def log_message(handler, *rest):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{FILE}"
        monkeypatch.setitem(d4rl.infos.DATASET_URLS, NAME, self.url)

    def answered(self, handler):
        """Do nothing.  Tests replace this; it is called after an answer is written, while the connection is open."""

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *rest):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".tsv")


def test_a_download_goes_where_d4rl_looks_and_happens_once(place, monkeypatch):
    with Server(monkeypatch, CONTENT) as server:
        path = official.fetch(NAME)
        assert path.read_bytes() == CONTENT and files(place) == [f"cache/{FILE}"]
        assert official.fetch(NAME) == path and server.requests == 1
        assert d4rl.offline_env.download_dataset_from_url(server.url) == str(path) and server.requests == 1
    (place / "new").touch()
    assert path.stat().st_mode == (place / "new").stat().st_mode  # the same users can read it


@pytest.mark.parametrize("folder", ["cache", "project"])
def test_an_existing_file_is_used_in_its_folder(place, monkeypatch, folder):
    with Server(monkeypatch, CONTENT) as server:
        (place / folder).mkdir(exist_ok=True)
        (place / folder / FILE).write_bytes(CONTENT)
        assert official.fetch(NAME) == official.path(NAME) == place / folder / FILE
        assert server.requests == 0 and files(place) == [f"{folder}/{FILE}"]


@pytest.mark.parametrize("folder", ["cache", "project"])
@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])], ids=["short", "one bit"])
def test_a_file_with_other_bytes_is_refused_and_kept(place, monkeypatch, folder, content):
    with Server(monkeypatch, CONTENT) as server:
        (place / folder).mkdir(exist_ok=True)
        file = place / folder / FILE
        file.write_bytes(content)
        with pytest.raises(ValueError, match="delete or move it") as error:
            official.fetch(NAME)
        assert file.read_bytes() == content and server.requests == 0
    for part in (str(file), hashlib.sha256(content).hexdigest(), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)):
        assert str(part) in str(error.value)


def test_a_download_with_other_bytes_leaves_nothing(place, monkeypatch):
    with Server(monkeypatch, b"<html>moved</html>", CONTENT) as server:
        with pytest.raises(ValueError, match="try again") as error:
            official.fetch(NAME)
        assert files(place) == [] and server.requests == 1  # a second attempt would download the same bytes
        for part in (server.url, hashlib.sha256(CONTENT).hexdigest(), FILE):
            assert part in str(error.value)
        assert official.fetch(NAME).read_bytes() == CONTENT


def test_a_broken_off_download_is_tried_again(place, monkeypatch):
    with Server(monkeypatch, None, 503, CONTENT) as server:
        assert official.fetch(NAME).read_bytes() == CONTENT and server.requests == 3
        assert files(place) == [f"cache/{FILE}"]


def test_a_server_that_keeps_breaking_off_leaves_nothing_and_a_later_run_succeeds(place, monkeypatch):
    with Server(monkeypatch, None, None, None, CONTENT) as server:
        with pytest.raises(ConnectionError):
            official.fetch(NAME)
        assert files(place) == [] and server.requests == official.ATTEMPTS == 3
        assert official.fetch(NAME).read_bytes() == CONTENT


def test_without_a_network_the_error_names_the_ways_out(place, monkeypatch):
    server = Server(monkeypatch, CONTENT)
    server.server.server_close()  # now no server listens
    with pytest.raises(ConnectionError) as error:
        official.fetch(NAME)
    assert files(place) == []
    for part in (FILE, server.url, place / "cache", place / "project", "regenerated hopper-medium,", "make data"):
        assert str(part) in str(error.value)


def test_a_killed_download_leaves_no_file_and_a_second_run_succeeds(place, monkeypatch):
    """The download runs in another process, which finds d4rl's folder by d4rl's environment variable."""
    killed = threading.Event()
    with Server(monkeypatch, None, CONTENT) as server:
        server.answered = lambda handler: (os.kill(process.pid, signal.SIGKILL), killed.set())
        script = f"""if True:
            from pathlib import Path
            from ttlib.datasets import official
            from ttlib.environments import tasks
            tasks.d4rl().infos.DATASET_URLS[{NAME!r}] = {server.url!r}
            official.CHECKSUMS = Path({str(official.CHECKSUMS)!r})
            official.FOLDER = Path({str(official.FOLDER)!r})
            official.fetch({NAME!r})"""
        environment = os.environ | {"D4RL_DATASET_DIR": str(place / "cache"), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-c", script], env=environment)
        assert process.wait(120) == -signal.SIGKILL and killed.wait(10)
        assert [p.suffix for p in (place / "cache").iterdir()] == [".part"]
        server.answered = lambda handler: None
        assert official.fetch(NAME).read_bytes() == CONTENT


def test_get_dataset_fetches_the_official_file(env, place, monkeypatch):
    content = write(place / "d4rl.tsv", FLAGS).read_bytes()
    publish(official.CHECKSUMS, content)
    with Server(monkeypatch, content) as server:
        arrays = env.get_dataset()
        assert server.requests == 1 and files(place) == [f"cache/{FILE}"]
        assert env.dataset_filepath == str(place / "cache" / FILE)
    assert np.array_equal(arrays["rewards"], hdf5.read(place / "cache" / FILE)["rewards"])
