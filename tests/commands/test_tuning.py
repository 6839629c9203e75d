"""Tests of the searches for settings: a setting is run once, and no small size overwrites the laptop's table."""

import pandas as pd
import pytest
from conftest import refuses_to_work

from ttlib.commands import tuning
from ttlib.pipeline import places


def test_a_setting_in_the_table_is_not_run_again(tmp_path):
    path, ran = tmp_path / "tried.csv", []

    def run(x):
        ran.append(x)
        return [{"y": x / 3, "point": point} for point in (1, 2)]

    settings = [({"name": f"{n}", "lr": lr, "n": n}, (n * lr,)) for n, lr in ((1, 1.6 / 300), (2, 0.1), (2, 1 / 3))]
    tuning.grid_search(path, settings[:2], run)
    table = path.read_text()
    tuning.grid_search(path, settings[:2], run)
    assert len(ran) == 2 and path.read_text() == table
    tuning.grid_search(path, settings, run)
    assert ran == [n for _, (n,) in settings] and path.read_text().startswith(table)
    assert pd.read_csv(path).columns.tolist() == ["name", "lr", "n", "y", "point"]


def test_a_killed_search_keeps_its_rows(tmp_path):
    path = tmp_path / "tried.csv"

    def run(n):
        if n == 2:
            raise KeyboardInterrupt
        return [{"y": n}]

    with pytest.raises(KeyboardInterrupt):
        tuning.grid_search(path, [({"n": n}, (n,)) for n in range(4)], run)
    assert pd.read_csv(path).n.tolist() == [0, 1]


@pytest.mark.parametrize("search", tuning.SEARCHES)
def test_every_setting_of_a_search_is_in_the_published_table(search, monkeypatch):
    for run in ("act", "learning_curve", "fit_ensemble"):
        monkeypatch.setattr(tuning, run, refuses_to_work)
    tuning.SEARCHES[search]("laptop")


@pytest.mark.parametrize("size", places.SIZES)
def test_only_size_laptop_writes_the_published_table(size, monkeypatch, tmp_path):
    monkeypatch.setattr(places, "BUILD", tmp_path)
    written = []
    monkeypatch.setattr(tuning, "grid_search", lambda path, settings, run: written.append((path, list(settings))))
    for search in tuning.SEARCHES.values():
        search(size)
    assert {path.parent for path, _ in written} == {places.ROOT / "data" if size == "laptop" else tmp_path}
    assert {exp.size for _, (_, exp) in written[0][1]} == {size}
