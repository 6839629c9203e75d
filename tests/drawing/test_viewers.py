"""Tests of the viewers in a browser: what they show, how they are used, and that no data can break a page."""

import re

import numpy as np
import pytest
from browser import browser
from conftest import WORLD, random_ids, tiny_model, tiny_tokenizer

from ttlib.drawing import viewers
from ttlib.environments import tasks
from ttlib.pipeline import experiments
from ttlib.studies import attention

T, D = 4, WORLD.D
L = T * D


HEAD = "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
MEANING = ("height (m)", "angle (rad)", "torque", "reward", "reward-to-go")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write a page with the viewer of a tiny window; return its path, the maps, the ids and the tokenizer."""
    model, ids, bins = tiny_model(WORLD, T), random_ids(1, L), tiny_tokenizer()
    maps = [weights[0] for weights, _, _ in attention.attention_maps(model, ids)]
    html = viewers.attention_viewer(maps, ids[0], bins, MEANING, "seen")
    path = tmp_path_factory.mktemp("viewer") / "page.html"
    listen = "<script>turned = 0; document.addEventListener('keydown', () => turned++)</script>"
    path.write_text(f"{HEAD}{listen}{html}")
    return path, maps, ids[0], bins


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Start a browser for all tests of this file."""
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


SELECT = "document.querySelectorAll('#seen select')"
CHOSEN = "[...document.querySelectorAll('#seen select')].map(s => +s.value)"  # layer, head, dimension, step
CELLS = "[...document.querySelectorAll('#seen td')]"  # rows are dimensions, columns steps


def cells(page, expression: str) -> list:
    """Evaluate an expression for the cell of each token of the window, in the order of tokens."""
    values = page.js(f"{CELLS}.map(cell => {expression})")
    return [values[k % D * T + k // D] for k in range(L)]


def choose(page, which: int, value: int) -> None:
    """Choose an entry of one of the four menus."""
    page.js(f"{SELECT}[{which}].value = {value}; {SELECT}[{which}].dispatchEvent(new Event('change'))")


def test_the_viewer_shows_the_weights_of_what_is_chosen(page, world):
    path, maps, ids, bins = world
    page.open(path)
    for layer, head, p in ((0, 0, L - 1), (1, 0, 1), (0, 1, 11), (1, 1, D * (T - 1))):
        for which, value in enumerate((layer, head, p % D, p // D)):
            choose(page, which, value)
        weights = maps[layer][head][p - 1]
        shade, title = cells(page, "+cell.style.getPropertyValue('--shade')"), cells(page, "cell.title")
        assert np.allclose(np.square(shade)[:p], weights[:p], atol=0.005) and not any(shade[p:])
        for k, text in enumerate(cells(page, "cell.textContent")):
            assert text == "?" if k == p else abs(float(text or 0) - 100 * weights[k]) < 1.1 if k < p else text == ""
        for k in range(L):
            name, (what, unit) = WORLD.names()[k % D], (MEANING[k % D].strip(")").split(" (") + [""])[:2]
            assert title[k].startswith(f"{name}: {what}, step {k // D}")
            decoded = float(bins.decode(ids[k]))
            shown = re.search(r"([−\d.e]+) ?" + unit + "(; weight|$)", title[k].split(", step")[1])
            if k <= p and (k == p or name != "R"):
                assert float(shown[1].replace("−", "-")) == pytest.approx(decoded, rel=6e-3)
            assert ("never read" in title[k]) == (name == "R" and k < p)
            assert ("later" in title[k]) == (k > p)
    assert page.errors == []


def test_the_list_holds_the_keys_with_the_greatest_weights(page, world):
    path, maps, *_ = world
    page.open(path)
    choose(page, 0, 1)
    choose(page, 2, 1)
    p = page.js(CHOSEN)[2] + D * page.js(CHOSEN)[3]
    weights = maps[1][0][p - 1]
    listed = page.js("[...document.querySelectorAll('#seen li')].map(li => li.textContent)")
    assert len(listed) == 5
    for text, k in zip(listed, weights.argsort(descending=True)[:5].tolist(), strict=True):
        assert f"{WORLD.names()[k % D]}: " in text and f"step {k // D}" in text
        assert float(text.split("%")[0]) == pytest.approx(100 * float(weights[k]), abs=0.6)
    keys = attention.patterns(WORLD, T)
    told = page.js("[...document.querySelectorAll('#seen p')].at(-1).textContent")
    told = [float(x) for x in re.findall(r"([\d.]+)%", told)]
    wanted = [float((weights * keys[name][p]).sum()) for name in ("markov", "current", "striated", "rewards")]
    assert told == pytest.approx([100 * x for x in wanted], abs=1.0)


def test_the_viewer_works_by_keyboard(page, world):
    page.open(world[0])
    page.js(f"{SELECT}[0].focus()")
    page.press("ArrowDown")
    assert page.js(CHOSEN)[0] == 1
    page.press("Tab", "Tab", "Tab", "Tab")  # the next stop after the three other menus is the whole grid
    assert page.js("document.activeElement.getAttribute('aria-selected')") == "true"
    choose(page, 2, 0)
    choose(page, 3, 2)
    page.js("document.querySelector('#seen td[tabindex=\"0\"]').focus()")
    before = page.js("turned")
    for keys, dim, step in (
        (["ArrowLeft"], 0, 1), (["ArrowLeft"], 0, 1),  # nothing predicts the first token
        (["ArrowUp"], 0, 1), (["ArrowDown"], 1, 1), (["Home"], 1, 0), (["ArrowLeft"], 1, 0), (["End"], 1, T - 1),
        (["ArrowRight"], 1, T - 1), (["ArrowDown"] * 9, D - 1, T - 1),
    ):  # fmt: skip
        page.press(*keys)
        assert page.js(CHOSEN)[2:] == [dim, step]
        focus = page.js(f"{CELLS}.indexOf(document.activeElement)")
        assert focus == dim * T + step and cells(page, "cell.textContent")[step * D + dim] == "?"
    assert page.js("turned") == before  # otherwise the book would turn its pages
    page.js(f"{CELLS}[{2 * T + 1}].click()")
    assert page.js(CHOSEN)[2:] == [2, 1] and page.errors == []


def test_a_screen_reader_can_read_the_viewer(page, world):
    page.open(world[0])
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    seen = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if "role" in n]
    assert [name.strip() for role, name in seen if role == "combobox"] == ["Layer", "Head", "Predicted", "at step"]
    grid = [name for role, name in seen if role == "gridcell"]
    assert len(grid) == L and all(any(what.split(" (")[0] in name for what in MEANING) for name in grid)
    assert page.js("document.querySelector('#seen ol').closest('[aria-live]') !== null")


def luminance(rgb) -> float:
    """Return the relative luminance of a colour, as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in rgb)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("theme, ink, ground", [
    ("light", (34, 40, 50), (255,) * 3), ("dark", (206, 214, 221), (20, 24, 30)),
])  # fmt: skip
def test_numbers_have_enough_contrast_at_every_weight_in_both_themes(page, world, theme, ink, ground):
    page.open(world[0])
    page.js(f"document.documentElement.dataset.theme = '{theme}'; document.body.style.color = 'rgb{ink}'")
    for shade in (0, 0.2, 0.5, 0.8, 1):
        page.js(f"{CELLS}[0].style.setProperty('--shade', {shade})")
        styles = page.js(f"(s => [s.color, s.backgroundColor])(getComputedStyle({CELLS}[0]))")
        text, under = ([float(x) for x in re.findall(r"[\d.]+", s)] for s in styles)
        assert [*under, 1][3] == pytest.approx(shade)
        under = [shade * c + (1 - shade) * g for c, g in zip(under, ground)]
        lighter, darker = sorted((luminance(text), luminance(under)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (shade, styles)


def test_the_viewer_fits_a_phone(page, tmp_path):
    """Hopper's 16 dimensions and 10 steps fit 360 pixels, and each cell is large enough for a finger."""
    transition = experiments.HOPPER
    ids = random_ids(1, 10 * transition.D, transition)
    maps = [attention.uniform(ids.shape[1])[0].expand(4, -1, -1)] * 4
    bins = tiny_tokenizer(transition)
    path = tmp_path / "phone.html"
    html = viewers.attention_viewer(maps, ids[0], bins, tasks.MEANING["hopper"], "seen")
    path.write_text(f"{HEAD}{html}")
    page.open(path, width=360)
    assert page.js("document.scrollingElement.scrollWidth") <= 360
    boxes = page.js(f"{CELLS}.map(cell => [cell.getBoundingClientRect().width, cell.getBoundingClientRect().height])")
    assert len(boxes) == 160 and np.min(boxes) >= 24
    assert "http" not in html and len(html) < 400_000


HOSTILE = "</script><b id='escaped'>&amp;</b><!--<script>"


@pytest.mark.parametrize("name", ["", "1a", "a b", "a'", "{{data}}", "a\n"])
def test_a_name_that_is_no_plain_word_is_refused(name):
    with pytest.raises(ValueError, match="expected a letter, followed by"):
        viewers.body_player({}, np.ones(1), 0.1, name)


def test_labels_are_shown_as_text_and_never_as_html(page, tmp_path):
    maps = [attention.uniform(L)[0]]
    meaning = [HOSTILE] * D
    html = viewers.attention_viewer(maps, random_ids(1, L)[0], tiny_tokenizer(), meaning, "seen")
    html += viewers.body_player({HOSTILE: (np.zeros((2, 1, 2, 3)), "red")}, np.ones(1), 0.1, "moving")
    path = tmp_path / "hostile.html"
    path.write_text(f"{HEAD}{html}<p id='end'>end</p>")
    page.open(path)
    assert page.js("document.querySelector('#escaped')") is None
    assert page.js("document.querySelector('#end').textContent") == "end"
    assert page.js("document.querySelector('#seen .meaning').textContent.trim()") == HOSTILE
    assert page.js("document.querySelector('#moving output').textContent") == "step 0 of 1, 0.00 s"
    assert page.errors == []


def inked(page, left: float) -> int:
    """Count the blue and the red pixels of the left or the right half (0 or 0.5) of the player's canvas."""
    return page.js(
        "(canvas => {"
        f"const x = {left} * canvas.width, half = canvas.width / 2;"
        "const {data} = canvas.getContext('2d').getImageData(x, 0, half, canvas.height);"
        "let count = 0;"
        "for (let i = 0; i < data.length; i += 4) count += Math.abs(data[i] - data[i + 2]) > 100;"
        "return count;"
        "})(document.querySelector('#moving canvas'))"
    )


def test_the_player_shows_each_body_while_it_is_finite(page, tmp_path):
    ends = np.zeros((4, 1, 2, 3))
    ends[..., 1, 2] = 1.0  # one upright capsule
    lost = ends.copy()
    lost[2:] = np.nan
    path = tmp_path / "bodies.html"
    html = viewers.body_player({"one": (ends, "#00f"), "other": (lost, "#f00")}, np.array([0.1]), 0.5, "moving")
    path.write_text(HEAD + html)
    page.open(path)
    assert inked(page, 0) > 1000 and inked(page, 0.5) > 1000
    page.js("s = document.querySelector('#moving input'); s.value = 2; s.dispatchEvent(new Event('input'))")
    assert page.js("document.querySelector('#moving output').textContent") == "step 2 of 3, 1.00 s"
    assert inked(page, 0) > 1000 and inked(page, 0.5) == 0
    page.js("document.querySelector('#moving button').click()")
    assert page.js("document.querySelector('#moving button').textContent") == "Pause"
    page.js("document.querySelector('#moving button').click()")
    assert page.js("document.querySelector('#moving button').textContent") == "Play" and page.errors == []
