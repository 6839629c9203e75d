"""Numbers with parents: computed once, published unchanged, refused where they do not belong."""

import dataclasses
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ttlib.pipeline import keys, places, provenance, results, statistics
from ttlib.pipeline.keys import key
from ttlib.train import TrainConfig


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(places, "TABLES", tmp_path / "build" / "tables")
    return tmp_path


class Made:
    """A `make` that counts; every call gives other numbers unless they are given."""

    def __init__(self, numbers=None):
        self.calls, self.numbers = 0, numbers

    def __call__(self):
        self.calls += 1
        x = self.numbers or [1 / 3, float(self.calls)]
        return pd.DataFrame({"seed": range(len(x)), "return": x})


CONFIG = {"profile": "v1", "seeds": (0, 1), "train": TrainConfig(7)}


def files(folder):
    found = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {p.relative_to(folder): (p.read_bytes(), p.stat().st_mtime_ns) for p in found}


def test_a_table_is_computed_once_for_each_key(elsewhere):
    make = Made()
    first = results.table("t", "smoke", make, CONFIG, {"model": "a"})
    again = results.table("t", "smoke", make, CONFIG | {"seeds": [0, 1]}, {"model": "a"})
    assert make.calls == 1 and first.equals(again)
    for name, size, config, inputs, stage in [
        ("u", "smoke", CONFIG, {"model": "a"}, 1), ("t", "laptop", CONFIG, {"model": "a"}, 1),
        ("t", "smoke", CONFIG | {"profile": "released"}, {"model": "a"}, 1),
        ("t", "smoke", CONFIG | {"train": TrainConfig(8)}, {"model": "a"}, 1),
        ("t", "smoke", CONFIG, {"model": "b"}, 1), ("t", "smoke", CONFIG, None, 1),
        ("t", "smoke", CONFIG, {"model": "a"}, 2),
    ]:
        before = make.calls
        for _ in range(2):
            found = results.table(name, size, make, config, inputs, stage)
        assert make.calls == before + 1 and found["return"][1] == make.calls
    assert results.table("t", "smoke", make, CONFIG, {"model": "a"}).equals(first)


def test_published_numbers_have_a_record_of_what_made_them(elsewhere):
    table = results.table("t", "smoke", Made([0.1, 1 / 3, 12345678.9]), CONFIG, {"model": "a"})
    csv, record = (elsewhere / "figures" / "smoke" / f"t.{ending}" for ending in ("csv", "json"))
    assert csv.read_bytes() == b"seed,return\n0,0.1\n1,0.333333\n2,1.23457e+07\n"
    assert pd.read_csv(csv).equals(table)
    about = json.loads(record.read_text())
    assert (about["name"], about["size"], about["inputs"]) == ("t", "smoke", {"model": "a"})
    assert about["config"] == json.loads(json.dumps(keys.plain(CONFIG)))
    assert about["config"]["train"]["updates"] == 7 and about["config"]["seeds"] == [0, 1]
    assert {"commit", "versions", "wall_seconds"} <= about.keys() and about["versions"]["torch"]
    hidden = results.table("private", "smoke", Made(), CONFIG, public=False)
    assert len(hidden) == 2 and not list(csv.parent.glob("private*"))


def test_the_same_numbers_leave_every_file_untouched(elsewhere, monkeypatch):
    make = lambda numbers: results.table("t", "smoke", Made(numbers), CONFIG)  # noqa: E731
    make([1.0, 2.0])
    published = elsewhere / "figures"
    before = files(published)
    make([1.0, 2.0])
    make([1.0, 2.0])  # loaded
    for numbers in ([1.0, 2.0], [1.0, 3.0]):
        for path in places.TABLES.iterdir():  # as on another machine, computed anew
            path.unlink()
        make(numbers)
        assert (files(published) == before) == (numbers == [1.0, 2.0])
    monkeypatch.setattr(provenance, "here", lambda: {"commit": "another"})
    before = files(published)
    for path in places.TABLES.iterdir():
        path.unlink()
    make([1.0, 3.0])
    assert files(published) == before


def test_another_recipe_changes_the_record_even_where_the_numbers_agree(elsewhere):
    results.table("t", "smoke", Made([1.0]), CONFIG)
    record = elsewhere / "figures" / "smoke" / "t.json"
    before = json.loads(record.read_text())["recipe"]
    results.table("t", "smoke", Made([1.0]), CONFIG | {"profile": "released"})
    assert json.loads(record.read_text())["recipe"] != before


def test_only_changes_that_numbers_can_depend_on_make_a_commit_dirty(elsewhere):
    def git(*words):
        return subprocess.run(["git", *words], cwd=elsewhere, capture_output=True, text=True, check=True).stdout.strip()

    def write(name, text):
        (elsewhere / name).parent.mkdir(exist_ok=True)
        (elsewhere / name).write_text(text)

    assert provenance.here()["commit"] == "not a git checkout"
    git("init", "-q")
    write("figures/t.csv", "1")
    write("ttlib/model.py", "1")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a")
    clean = git("rev-parse", "--short", "HEAD")
    write("figures/t.csv", "2")
    assert provenance.here()["commit"] == clean
    write("ttlib/model.py", "2")
    assert provenance.here()["commit"] == f"{clean}-dirty"


def test_mode_book_reads_and_never_computes(elsewhere, monkeypatch):
    make = Made()
    table = results.table("t", "smoke", make, CONFIG)
    for path in places.TABLES.iterdir():
        path.unlink()
    monkeypatch.setenv("TTLIB_MODE", "book")
    before = files(elsewhere)
    assert results.table("t", "smoke", make, CONFIG).equals(table)
    path = elsewhere / "figures" / "smoke" / "t.csv"
    recipe = json.loads(path.with_suffix(".json").read_text())["recipe"]
    with pytest.raises(ValueError, match=rf"{path} .*recipe {recipe}, now [0-9a-f]{{16}}.*make all"):
        results.table("t", "smoke", make, CONFIG | {"profile": "released"})
    with pytest.raises(ValueError, match=rf"{path} was made by stage 1 of the code, which is now at 2.*make all"):
        results.table("t", "smoke", make, CONFIG, stage=2)
    with pytest.raises(ValueError, match=rf"{path} was made from other data or models: model.*make all"):
        results.table("t", "smoke", make, CONFIG, {"model": "b"})
    with pytest.raises(FileNotFoundError, match=r"laptop/t.csv .*missing; .*make all"):
        results.table("t", "laptop", make, CONFIG)
    assert make.calls == 1 and files(elsewhere) == before
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"smoke/t.csv or its .json is missing"):
        results.table("t", "smoke", make, CONFIG)


@pytest.fixture
def record(elsewhere):
    """Return how to ask for a record, the `make` that counts, and its file; no copy of it is left in the build."""
    make = Made()

    def ask(config=CONFIG, inputs=None, stage=1, size="laptop"):
        found = results.table("t", size, make, config, inputs, stage, record=True)
        for path in places.TABLES.glob("t-*"):
            path.unlink()
        return found

    return ask, make, elsewhere / "data" / "records" / "laptop" / "t.csv"


def test_a_record_is_taken_while_its_key_is_right(record, monkeypatch, capsys):
    ask, make, path = record
    first, before = ask(), path.read_bytes()
    assert ask().equals(first) and make.calls == 1 and path.read_bytes() == before
    assert "t: taken from data/records/laptop" in capsys.readouterr().err
    calls = 1
    for other, why in [
        ({"config": CONFIG | {"profile": "released"}}, "other settings"),
        ({"inputs": {"model": "b"}}, "other data or models: model"),
        ({"stage": 2}, "stage 1 of the code, which is now at 2"),
    ]:
        ask(**other)
        assert make.calls == calls + 1 and why in capsys.readouterr().err
        ask()
        calls = make.calls
    monkeypatch.setenv("TTLIB_MODE", "recompute")
    ask()
    assert make.calls == calls + 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "edited", "row missing", "row twice", "no json", "old json"])
def test_a_damaged_record_is_computed_anew(record, capsys, damage):
    ask, make, path = record
    ask()
    lines, about = path.read_text().splitlines(keepends=True), path.with_suffix(".json")
    damaged = {
        "cut": "".join(lines)[:-3], "emptied": "", "edited": "".join(lines).replace("0.333333", "0.433333"),
        "row missing": "".join(lines[:-1]), "row twice": "".join([*lines, lines[-1]]),
    }  # fmt: skip
    if damage in damaged:
        path.write_text(damaged[damage])
    elif damage == "no json":
        about.unlink()
    else:
        about.write_text(json.dumps({"commit": "a"}))
    capsys.readouterr()
    ask()
    assert make.calls == 2 and "t: not taken from records" in capsys.readouterr().err
    ask()
    assert make.calls == 2  # it was mended


@pytest.mark.parametrize("where", ["*/tables/t-*.csv", "*/tables/t-*.json", "figures/*/t.csv", "figures/*/t.json"])
@pytest.mark.parametrize("left", [0.0, 0.4, 0.98])
def test_a_table_that_was_cut_is_made_again(elsewhere, capsys, where, left):
    ask = lambda: results.table("t", "smoke", Made([0.25, 1 / 3]), CONFIG)  # noqa: E731
    first, [path] = ask(), elsewhere.glob(where)
    whole = {p: p.read_bytes() for p in elsewhere.rglob("*") if p.suffix in (".csv", ".json")}
    path.write_bytes(whole[path][: int(left * len(whole[path]))])
    capsys.readouterr()
    assert ask().equals(first)
    assert (f"{path.with_suffix('.csv')}" in capsys.readouterr().err) == ("tables" in where)
    for file, content in whole.items():
        assert file.read_bytes() == content or (file.suffix == ".json" and results.read(file.with_suffix(".csv")))


def test_two_commands_make_a_table_once_and_the_second_says_that_it_waits(elsewhere, capsys):
    begun, go_on, make = threading.Event(), threading.Event(), Made()

    def slow():
        begun.set()
        assert go_on.wait(10)
        return make()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(results.table, "t", "smoke", slow, CONFIG, public=False)
        assert begun.wait(10)
        second = pool.submit(results.table, "t", "smoke", make, CONFIG, public=False)
        while "waiting for another process" not in capsys.readouterr().err:
            time.sleep(0.01)
        go_on.set()
        assert second.result().equals(first.result()) and make.calls == 1


def test_nothing_is_taken_from_records_at_smoke_size(record):
    ask, make, _ = record
    ask(size="smoke")
    ask(size="smoke")
    assert make.calls == 2


def test_a_failed_computation_publishes_nothing(elsewhere):
    def fails():
        raise RuntimeError("simulator")

    with pytest.raises(RuntimeError, match="simulator"):
        results.table("t", "smoke", fails, CONFIG)
    assert files(elsewhere) == {}
    assert len(results.table("t", "smoke", Made(), CONFIG)) == 2


def test_unknown_modes_and_sizes_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown size 'huge'; .*'smoke', 'laptop', 'paper'"):
        results.table("t", "huge", Made(), CONFIG)
    assert places.mode() == "all"
    monkeypatch.setenv("TTLIB_MODE", "fast")
    with pytest.raises(ValueError, match=r"TTLIB_MODE='fast'; .*'all', 'recompute', 'scratch', 'book'"):
        results.table("t", "smoke", Made(), CONFIG)


def test_a_field_at_its_default_changes_no_key():
    @dataclasses.dataclass
    class Before:
        updates: int

    @dataclasses.dataclass
    class After:
        updates: int
        later: float = 0.5

    assert key(Before(7)) == key(After(7)) != key(After(7, later=0.6))


def test_keys_are_of_content():
    a, b = TrainConfig(7), TrainConfig(7, seed=1)
    assert key("x", {"p": 1, "q": (a,)}) == key("x", {"q": [TrainConfig(7)], "p": 1})
    others = [("x", a), ("x", b), ("y", a), (a, "x"), (["x", a],), ("x", a, None)]
    keys = [key(*parts) for parts in others]
    assert len(set(keys)) == len(keys) and all(len(k) == 16 for k in keys)


def picture(title=None, suptitle=None):
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.plot([0, 1, 4], label="$R_t$")
    axes.legend()
    axes.set_title(title or "")
    if suptitle:
        figure.suptitle(suptitle)
    plt.close(figure)
    return figure


def test_figures_are_byte_equal_on_repetition(elsewhere):
    written = []
    for name in ("a", "a"):
        results.save_figure(picture("Returns (smoke)"), name, "smoke")
        written.append(files(elsewhere / "figures" / "smoke"))
    assert written[0] == written[1] and {p.name for p in written[0]} == {"a.png", "a.svg"}
    results.save_figure(picture(suptitle="Other (smoke)"), "a", "smoke")
    assert all(files(elsewhere / "figures" / "smoke")[p] != old for p, old in written[0].items())


@pytest.mark.parametrize("titles", [
    {}, {"title": "Returns"}, {"title": "Returns (laptop)"}, {"suptitle": "Returns"}, {"suptitle": "Returns (laptop)"}])
def test_a_figure_below_paper_size_says_so(elsewhere, titles):
    with pytest.raises(ValueError, match="figure a: its title must say that it is of size smoke"):
        results.save_figure(picture(**titles), "a", "smoke")
    assert files(elsewhere) == {}
    results.save_figure(picture(**titles), "a", "paper")


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.normal(3, 2, (300, 40))
    intervals = np.array([statistics.bootstrap(x, level=0.9, samples=300, seed=i) for i, x in enumerate(samples)])
    covered = ((intervals[:, 0] <= 3) & (intervals[:, 1] >= 3)).mean()
    assert 0.82 < covered < 0.95
    # Of the mean, so as wide as the normal interval for it.
    assert (intervals[:, 1] - intervals[:, 0]).mean() == pytest.approx(2 * 1.645 * 2 / np.sqrt(40), rel=0.08)
    x = samples[0]
    first, again, other = (statistics.bootstrap(x, seed=seed) for seed in (0, 0, 1))
    assert first == again and first != other
    (a, b), (c, d) = statistics.bootstrap(x, level=0.5), statistics.bootstrap(x, level=0.95)
    assert c < a < x.mean() < b < d
