"""Tests of four rooms in the browser: it decides as ttlib does, and the reader moves start and goal."""

import json
import re
import time

import numpy as np
import pytest
import torch
from browser import KEYS, browser
from conftest import tiny_model

from ttlib import control, tokenizer
from ttlib.checkpoint import Checkpoint
from ttlib.drawing import planned_rooms, viewers
from ttlib.environments import four_rooms, stepping, tasks
from ttlib.pipeline import experiments, store

HEAD = "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
ROOMS = experiments.TRANSITIONS["four-rooms"]
START, GOAL = np.float32([[1.0, 2.5]]), np.float32([[8.0, 7.0]])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def scripts(folder, loaded):
    """Write a page that has the planner and a model's weights, as the book's page has."""
    planned_rooms.write_weights(loaded, folder / "model.js")
    text = viewers.text("planner.js") + viewers.text("planned_rooms.js")
    decide = "const run = ids => { model.begin(ids); const [best] = model.plan(horizon, width); return best; };"
    (folder / "page.html").write_text(f"{HEAD}<script src='model.js'></script><script>{text}{decide}</script>")
    return folder / "page.html"


def tiny(**options):
    rng = torch.Generator().manual_seed(0)
    columns = torch.rand(500, 4, generator=rng, dtype=torch.float64) * torch.tensor([10, 10, 2, 2])
    tokens = tokenizer.fit((columns - torch.tensor([0, 0, 1, 1])).T, ROOMS, 20)
    return Checkpoint(tiny_model(ROOMS, T=8, bins=20, prefix=2, **options), tokens, {}, {})


def decisions(loaded, exp, walks):
    """Return the contexts of ten decisions in each walk, (10, walks, L) nested, and what ttlib decides there."""
    state, goals = four_rooms.sample_pairs(walks, np.random.default_rng(0))
    choose = control.ByLikelihood(exp.horizon, exp.width)
    goals = goals if exp.goal else None
    agent = control.TransformerAgent(loaded.model, loaded.tokenizer, choose, exp.context, goals)
    agent.reset(range(walks))
    for _ in range(10):
        actions, record = agent.act(state)
        first = [] if goals is None else [agent.goals]
        yield torch.cat([*first, *agent.steps, agent.state_ids], 1).tolist(), record
        state = four_rooms.move(state, actions)
        agent.observe(np.zeros(walks), np.ones(walks, bool))


@pytest.mark.parametrize("walks", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["four-rooms", "four-rooms-unconditioned", "four-rooms-held-out"])
def test_the_browser_decides_as_ttlib_does(page, tmp_path, name, walks):
    """The shipped models, in states of walks that use the whole memory: ten in each walk."""
    exp = experiments.get(name, "laptop")
    loaded = store.load_or_train(exp)
    page.open(scripts(tmp_path, loaded))
    assert 2e6 < (tmp_path / "model.js").stat().st_size <= 2.5e6
    page.js(f"model = new Transformer(ttlibWeights.model); horizon = {exp.horizon}; width = {exp.width}; 0")
    for contexts, record in decisions(loaded, exp, walks):
        found = page.js(f"{json.dumps(contexts)}.map(run)")
        assert [each["bins"][:2] for each in found] == record["bins"].tolist()
        assert np.allclose([each["q"] for each in found], record["log_p"], atol=5e-5)
    assert page.errors == []


def test_the_browsers_rooms_are_those_of_the_environment(page, tmp_path):
    rng = np.random.default_rng(0)
    page.open(scripts(tmp_path, tiny()))
    place, action = four_rooms.sample_free(2000, rng), rng.uniform(-1.5, 1.5, (2000, 2)).astype(np.float32)
    place[:500] = four_rooms.move(place[:500], action[:500])  # these include places on the faces of walls
    action[400:800, 0] = 0
    rooms = {"walls": four_rooms.WALLS.tolist(), "side": four_rooms.SIDE, "stride": four_rooms.STEP}
    page.js(f"world = roomsWorld({json.dumps(rooms)}); 0")
    moved = page.js(
        f"{json.dumps([place.tolist(), action.tolist()])}.reduce((x, a) => x.map((p, i) => world.move(p, a[i])))"
    )
    assert np.array_equal(np.float32(moved), four_rooms.move(place, action))
    anywhere = rng.uniform(0, 10, (2000, 2))
    assert page.js(f"{json.dumps(anywhere.tolist())}.map(world.free)") == four_rooms.free(anywhere).tolist()


def until(page, expression):
    deadline = time.monotonic() + 20
    while not page.js(expression):
        assert time.monotonic() < deadline, (expression, page.js("document.body.innerText"), page.errors)
        time.sleep(0.02)


def numbers(page, expression):
    return np.array(page.js(expression).replace(",", " ").split(), float).reshape(-1, 2)


STEP = "document.querySelectorAll('#rooms button')[1].click()"
TAKEN = "document.querySelector('#rooms .now').innerText.includes('taken: {}.')"


@pytest.fixture
def shown(page, tmp_path):
    """Open a page with a tiny model, which must not be loaded yet."""
    loaded = tiny()
    planned_rooms.write_weights(loaded, tmp_path / "tiny.js")
    choices = [planned_rooms.Choice(file, file, f"about {file}", 3, 2, 4, 5) for file in ("tiny", "missing")]
    html = planned_rooms.planned_rooms(choices, ".", np.concatenate([START, GOAL - 1]), GOAL[0], "rooms")
    assert set(re.findall(r"https?://[^\s\"']*", html)) == {"http://www.w3.org/2000/svg"}  # a name, no request
    (tmp_path / "rooms.html").write_text(HEAD + html)
    page.open(tmp_path / "rooms.html", width=390)
    assert page.js("window.ttlibWeights") is None and page.js("document.scrollingElement.scrollWidth") <= 390
    return loaded


def test_a_walk_in_the_browser_is_the_agents_walk(page, shown):
    choose = control.ByLikelihood(2, 4)
    agent = control.TransformerAgent(shown.model, shown.tokenizer, choose, 3, GOAL)
    [run] = stepping.rollouts(tasks.four_rooms, agent, [0], [{"start": START[0], "goal": GOAL[0]}])
    for k in range(1, 10):
        page.js(STEP)
        until(page, TAKEN.format(k))
    assert np.array_equal(numbers(page, "document.querySelector('.trail').getAttribute('points')"), run.states[:10])
    assert page.js("document.querySelectorAll('.beams polyline').length") == 4 and page.errors == []
    page.js("(s => { s.value = 7; s.oninput(); })(document.querySelector('[type=range]'))")
    until(page, "document.querySelectorAll('.beams polyline').length === 7")
    play = "document.querySelector('#rooms button')"
    page.js(f"{play}.click()")
    until(page, f"{TAKEN.format(10)} || {TAKEN.format(11)}")
    assert page.js(f"{play}.innerText") == "Pause"
    page.js(f"{play}.click()")
    assert page.js(f"{play}.innerText") == "Play"


def test_start_and_goal_move_by_touch_and_keys_but_into_no_wall(page, shown):
    at = "document.querySelector('.goal').getAttribute('transform').slice(10, -1)"
    page.js("turned = 0; document.addEventListener('keydown', () => turned++); document.querySelector('.goal').focus()")
    page.press(*["ArrowLeft"] * 4, "ArrowUp")
    assert numbers(page, at).tolist() == [[7.0, 7.25]] and page.js("turned") == 0
    page.press(*["ArrowLeft"] * 9)
    assert numbers(page, at).tolist() == [[5.25, 7.25]]  # the next place to the left is in the wall
    box = page.js("(b => [b.x, b.y, b.width])(document.querySelector('#rooms svg').getBoundingClientRect())")
    where = lambda x, y: {"x": box[0] + box[2] * x / 10, "y": box[1] + box[2] * (10 - y) / 10}  # noqa: E731
    for kind, point in (("Pressed", (5.25, 7.25)), ("Moved", (2.0, 8.0)), ("Released", (2.0, 8.0))):
        page.call("Input.dispatchMouseEvent", type=f"mouse{kind}", button="left", clickCount=1, **where(*point))
    assert np.allclose(numbers(page, at), [2, 8], atol=0.1)
    assert "ArrowUp" in KEYS and page.errors == []


def test_a_file_of_weights_that_is_missing_is_told(page, shown):
    page.js("document.querySelectorAll('#rooms [type=radio]')[1].click()")
    until(page, "document.querySelector('.said').innerText.includes('did not load')")
    page.errors.clear()
    page.js("document.querySelectorAll('#rooms [type=radio]')[0].click()")
    until(page, "document.querySelector('.said').innerText === 'about tiny'")


def test_without_scripts_there_is_a_still_and_a_sentence(page, shown, tmp_path):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(tmp_path / "rooms.html")
        text = page.call("Accessibility.getFullAXTree")["nodes"]
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    said = " ".join(node.get("name", {}).get("value", "") for node in text)
    assert "Scripts are off" in said and "Play" not in said and "Plan of the four rooms" in said


def test_a_model_that_the_browser_cannot_run_is_refused(tmp_path):
    odd = tiny()
    odd = Checkpoint(
        odd.model, tokenizer.Tokenizer(ROOMS, 20, "quantile", odd.tokenizer.edges, odd.tokenizer.centres), {}, {}
    )
    with pytest.raises(ValueError, match="20 quantile bins.*expected an even number of uniform bins"):
        planned_rooms.write_weights(odd, tmp_path / "model.js")
