"""Figure 3: rows named by what they predict, scores against their definition, hidden keys, and the viewer."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch
from browser import browser
from conftest import NO_REWARDS, WORLD, V, random_ids, tiny_model, tiny_tokenizer

from ttlib import train
from ttlib.checkpoint import Checkpoint
from ttlib.environments import tasks
from ttlib.pipeline import experiments, places
from ttlib.studies import attention

T, D, K = 4, WORLD.D, WORLD.N + WORLD.M
L = T * D
KEPT = {"states": range(WORLD.N), "actions": range(WORLD.N, K)}


def by_prediction(row) -> torch.Tensor:
    """(1, 1, L, L) map from row(token predicted) -> {key: weight}."""
    weights = torch.zeros(L, L)
    for p in range(1, L):
        for key, w in row(p).items():
            weights[p - 1, key] = w
    return weights[None, None]


def evenly(keys) -> dict:
    keys = list(keys)
    return dict.fromkeys(keys, 1 / len(keys)) if keys else {}


def named(table) -> dict:
    return {(r.rows, r.score): r.value for r in table.itertuples()}


def random_map(seed=0, H=2, B=3):
    weights = torch.rand(B, H, L, L, generator=torch.Generator().manual_seed(seed)).double().tril()
    return weights / weights.sum(-1, keepdim=True)


def checkpoint(windows=37, cut=5):
    """A model with held-out windows, of which the last few end before their last transition."""
    weight = torch.ones(windows, L)
    weight[windows - cut :, -1] = 0
    return Checkpoint(tiny_model(WORLD, T), tiny_tokenizer(), {}, random_ids(windows, L), weight)


def experiment():
    return experiments.replace(experiments.attention("smoke")[0], model=tiny_model(WORLD, T).config)


# -- rows and patterns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transition", [WORLD, NO_REWARDS])
def test_rewards_are_left_out_and_rows_sum_to_one(transition):
    model = tiny_model(transition, T)
    for weights, _, _ in model.attention_maps(random_ids(3, T * transition.D, transition)):
        rows = attention.without_rewards(attention.predicted(weights), transition)
        assert rows[..., 0, :].isnan().all()  # nothing predicts the first token
        torch.testing.assert_close(rows[..., 1:, :].sum(-1), torch.ones(3, 2, T * transition.D - 1))
        dim = torch.arange(T * transition.D) % transition.D
        assert (rows[..., 1:, dim >= K] == 0).all() and (rows[..., 1:, 0] > 0).all()
        assert (rows[..., 1:, :].triu(1) == 0).all()  # a token is predicted from those before it


@pytest.mark.parametrize("transition", [WORLD, NO_REWARDS])
def test_patterns_split_what_is_seen(transition):
    found = attention.patterns(transition, T)
    before = torch.ones(T * transition.D, T * transition.D).tril(-1).int()
    parts = [found[name].int() for name in ("past_actions", "past_states", "current", "rewards")]
    assert torch.equal(sum(parts), before)
    for name in ("markov", "same_before", "striated"):
        assert not (found[name] & found["rewards"]).any() and (found[name].int() <= before).all()
    assert not (found["markov"] & found["striated"]).any()
    assert (found["same_before"].int() <= found["markov"].int()).all()


# -- scores --------------------------------------------------------------------------------------------------


def test_a_markovian_map_scores_as_one():
    weights = by_prediction(lambda p: evenly(k for k in range(p) if k // D == p // D - 1 and k % D < K))
    found = named(attention.scores(weights, WORLD))
    for rows in KEPT:
        assert found[rows, "markov"] == pytest.approx(1) and found[rows, "same_before"] == pytest.approx(1 / K)
        assert found[rows, "striated"] == found[rows, "current"] == found[rows, "rewards"] == 0
    assert found["actions", "past_actions"] == pytest.approx(WORLD.M / K)
    assert found["actions", "past_states"] == pytest.approx(WORLD.N / K)


def test_a_striated_map_scores_as_one():
    weights = by_prediction(lambda p: evenly(k for k in range(p) if k // D <= p // D - 2 and k % D == p % D))
    found = named(attention.scores(weights, WORLD))
    for rows in KEPT:
        assert found[rows, "striated"] == pytest.approx(1)
        assert found[rows, "markov"] == found[rows, "current"] == found[rows, "same_before"] == 0
    assert (found["actions", "past_actions"], found["actions", "past_states"]) == (pytest.approx(1), 0)
    assert found["actions", "past_action_key"] == pytest.approx(1 / ((T - 1) * WORLD.M))


def test_scores_under_uniform_attention_are_shares_of_keys():
    found = named(attention.scores(attention.uniform(L), WORLD))
    for rows, dims in KEPT.items():
        seen = np.array([(T - 1) * K + i for i in dims])
        assert found[rows, "markov"] == pytest.approx((K / seen).mean())
        assert found[rows, "striated"] == pytest.approx(((T - 2) / seen).mean())
        assert found[rows, "current"] == pytest.approx((np.array(dims) / seen).mean())
    assert found["actions", "past_action_key"] == pytest.approx(found["actions", "past_state_key"])


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_their_definition_token_by_token(seed):
    weights = random_map(seed)
    found = attention.scores(weights, WORLD).set_index(["rows", "score", "head"]).value
    keys = {
        "markov": lambda i, u, j: u == T - 2,
        "striated": lambda i, u, j: u <= T - 3 and j == i,
        "past_actions": lambda i, u, j: u < T - 1 and j >= WORLD.N,
        "past_states": lambda i, u, j: u < T - 1 and j < WORLD.N,
    }
    for (rows, dims), head in itertools.product(KEPT.items(), (1, 2)):
        for score, chosen in keys.items():
            values = []
            for window, i in itertools.product(range(3), dims):
                row = weights[window, head - 1, (T - 1) * D + i - 1].tolist()  # the position before the token
                kept = {(k // D, k % D): w for k, w in enumerate(row) if k % D < K}
                values.append(sum(w for (u, j), w in kept.items() if chosen(i, u, j)) / sum(kept.values()))
            if (rows, score, head) in found:
                assert found[rows, score, head] == pytest.approx(np.mean(values))
    assert ("states", "past_actions", 1) not in found and ("actions", "past_actions", 1) in found


def test_weight_on_rewards_changes_its_own_score_alone():
    weights = random_map()
    on_rewards = (torch.arange(L) % D >= K) & (torch.arange(L) < L - D)
    more = weights * torch.where(on_rewards, 7.0, 1.0)
    more = more / more.sum(-1, keepdim=True)
    before, after = named(attention.scores(weights, WORLD)), named(attention.scores(more, WORLD))
    for key in before:
        if key[1] == "rewards":
            assert after[key] > before[key] + 0.1
        else:
            assert after[key] == pytest.approx(before[key])


def test_the_table_is_the_mean_over_full_windows():
    loaded = checkpoint()
    exp = experiments.replace(experiment(), train=experiments.replace(experiment().train, seed=3))
    table = attention.score_table(exp, loaded)
    maps = loaded.model.attention_maps(loaded.held_out[:32])  # of 37, five are cut short
    for layer, (weights, _, _) in enumerate(maps, 1):
        wanted = attention.scores(weights, WORLD).set_index(["rows", "score", "head"]).value
        found = table[table.layer == layer].set_index(["rows", "score", "head"]).value
        for key in wanted.index:
            assert found[key] == pytest.approx(wanted[key], rel=1e-5), key
    even = named(attention.scores(attention.uniform(L), WORLD))
    assert all(row.uniform_value == pytest.approx(even[row.rows, row.score]) for row in table.itertuples())
    assert len(table) == 2 * 2 * len(even) and set(table.seed) == {3} and set(table.windows) == {32}


def test_the_summary_counts_heads_by_hand():
    table = attention.score_table(experiment(), checkpoint())
    rng = np.random.default_rng(0)
    table["value"] = rng.uniform(0, 1, len(table))
    both = pd.concat([table, table.assign(seed=1, value=rng.uniform(0, 1, len(table)))])
    found = attention.summary(both).loc["v1"]
    heads = {key: part.set_index(["rows", "score"]) for key, part in both.groupby(["layer", "head", "seed"])}
    value = [part.value for part in heads.values()]
    limit = 3 * next(iter(heads.values())).uniform_value["states", "striated"]
    assert found.heads == len(value) == 8
    assert found.markov == sum(v["states", "markov"] > 0.5 for v in value)
    assert found.striated == sum(v["states", "striated"] >= limit for v in value)
    assert found["sum"] == sum(v["actions", "past_actions"] > v["actions", "past_states"] for v in value)
    assert found.key == sum(v["actions", "past_action_key"] > v["actions", "past_state_key"] for v in value)
    assert found.past_actions == pytest.approx(np.mean([v["actions", "past_actions"] for v in value]))
    assert all(0 < found[c] < 8 for c in ("markov", "striated", "sum", "key"))


def test_without_a_full_window_there_are_no_scores():
    loaded = checkpoint(windows=4, cut=4)
    with pytest.raises(ValueError, match="hopper-long.* none of its held-out windows of 4 transitions is full"):
        attention.score_table(experiment(), loaded)


def test_figure_rows_are_the_renormalised_weights():
    loaded = checkpoint()
    rows = attention.figure_rows(experiment(), loaded, (2,), last=T)
    weights = loaded.model.attention_maps(loaded.held_out[:1])[1][0][0]
    place = {f"{name}@{t}": t * D + i for t in range(T) for i, name in enumerate(WORLD.names())}
    shown = {p for name, p in place.items() if p % D < K}
    assert {place[q] for q in rows["query"]} == shown - {0} and {place[k] for k in rows.key} <= shown
    for row in rows.itertuples():
        scores = weights[row.head - 1, place[row.query] - 1]
        kept = sum(scores[p] for p in shown)
        assert row.weight == pytest.approx(float(scores[place[row.key]] / kept), abs=0.0006)
    sums = rows.groupby(["head", "query"]).weight.sum()
    assert len(sums) == 2 * (len(shown) - 1)
    assert sums.between(1 - 0.0026 * len(shown), 1 + 0.0006 * len(shown)).all()
    later = attention.figure_rows(experiment(), loaded, (2,), last=2)  # a part of the same
    both = rows.merge(later, on=["layer", "head", "query", "key"])
    assert len(both) == len(later) > 0 and (both.weight_x == both.weight_y).all()
    assert {int(k.split("@")[1]) for k in later.key} == {int(q.split("@")[1]) for q in later["query"]} == {2, 3}


@pytest.mark.parametrize("size", places.SIZES)
def test_models_of_the_page_are_among_those_needed(size):
    found = experiments.attention(size)
    assert all(exp in experiments.needed(size) for exp in found)
    assert {exp.profile for exp in found} == set(experiments.PROFILES)
    assert len({exp.label for exp in found}) == len(found) == 2 * (3 if size == "paper" else 1)


# -- hidden keys ---------------------------------------------------------------------------------------------


def test_hiding_nothing_changes_nothing():
    model, ids = tiny_model(WORLD, T), random_ids(2, L)
    attend = attention.masking(model, 1, 2, torch.zeros(L, L, dtype=torch.bool))
    torch.testing.assert_close(train.token_nats(model, ids, attend), train.token_nats(model, ids))


def test_a_hidden_token_does_not_matter_to_what_it_is_hidden_from():
    """In a model of one layer and one head; every other token that sees it is moved."""
    model, ids, key = tiny_model(WORLD, T, n_layer=1, n_head=1), random_ids(1, L), 6
    hidden, blind = torch.zeros(L, L, dtype=torch.bool), [9, 14, 18]
    hidden[blind, key] = True
    attend = attention.masking(model, 1, 1, hidden)
    other = ids.clone()
    other[0, key] = key % D * V + (ids[0, key] + 2) % V
    with torch.inference_mode():
        moved = (model(ids, attend) - model(other, attend)).abs().amax(-1)[0]  # by position: predicts the next
    assert [p for p in range(key + 1, L) if moved[p - 1] == 0] == blind
    assert (moved[:key] == 0).all()


def test_hiding_everything_removes_the_head():
    model, ids = tiny_model(WORLD, T), random_ids(2, L)
    attend = attention.masking(model, 2, 1, torch.ones(L, L, dtype=torch.bool))
    with torch.inference_mode():
        found = model(ids, attend)[:, :-1]
        model.blocks[1].out.weight[:, : model.config.d_model // 2] = 0
        torch.testing.assert_close(found, model(ids)[:, :-1])


# -- the viewer, in a browser --------------------------------------------------------------------------------

HEAD = "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
MEANING = ("height (m)", "angle (rad)", "torque", "reward", "reward-to-go")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The file, maps and ids of a tiny window."""
    model, ids, bins = tiny_model(WORLD, T), random_ids(1, L), tiny_tokenizer()
    maps = [weights[0] for weights, _, _ in model.attention_maps(ids)]
    html = attention.viewer(maps, ids[0], bins, MEANING, "seen")
    path = tmp_path_factory.mktemp("viewer") / "page.html"
    listen = "<script>turned = 0; document.addEventListener('keydown', () => turned++)</script>"
    path.write_text(f"{HEAD}{listen}{html}")
    return path, maps, ids[0], bins


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


SELECT = "document.querySelectorAll('#seen select')"
CHOSEN = "[...document.querySelectorAll('#seen select')].map(s => +s.value)"  # layer, head, dimension, step
CELLS = "[...document.querySelectorAll('#seen td')]"  # rows are dimensions, columns steps


def cells(page, expression: str) -> list:
    """Of each token of the window, in its order."""
    found = page.js(f"{CELLS}.map(cell => {expression})")
    return [found[k % D * T + k // D] for k in range(L)]


def choose(page, which: int, value: int) -> None:
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


def test_the_list_is_the_keys_of_greatest_weight(page, world):
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
    page.press("Tab", "Tab", "Tab", "Tab")  # past head, dimension and step: one stop for the whole grid
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
    assert page.js("turned") == before  # the book would turn its pages
    page.js(f"{CELLS}[{2 * T + 1}].click()")
    assert page.js(CHOSEN)[2:] == [2, 1] and page.errors == []


def test_the_viewer_tells_a_screen_reader_what_is_what(page, world):
    page.open(world[0])
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    seen = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if "role" in n]
    assert [name.strip() for role, name in seen if role == "combobox"] == ["Layer", "Head", "Predicted", "at step"]
    grid = [name for role, name in seen if role == "gridcell"]
    assert len(grid) == L and all(any(what.split(" (")[0] in name for what in MEANING) for name in grid)
    assert page.js("document.querySelector('#seen ol').closest('[aria-live]') !== null")


def luminance(rgb) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in rgb)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("theme, ink, ground", [
    ("light", (34, 40, 50), (255,) * 3), ("dark", (206, 214, 221), (20, 24, 30)),
])  # fmt: skip
def test_numbers_can_be_read_at_every_weight_in_both_themes(page, world, theme, ink, ground):
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
    """Hopper's sixteen dimensions and ten steps, 360 pixels wide, each cell large enough for a finger."""
    transition = experiments.HOPPER
    ids = random_ids(1, 10 * transition.D, transition)
    maps = [attention.uniform(ids.shape[1])[0].expand(4, -1, -1)] * 4
    bins = tiny_tokenizer(transition)
    path = tmp_path / "phone.html"
    html = attention.viewer(maps, ids[0], bins, tasks.MEANING["hopper"], "seen")
    path.write_text(f"{HEAD}{html}")
    page.open(path, width=360)
    assert page.js("document.scrollingElement.scrollWidth") <= 360
    boxes = page.js(f"{CELLS}.map(cell => [cell.getBoundingClientRect().width, cell.getBoundingClientRect().height])")
    assert len(boxes) == 160 and np.min(boxes) >= 24
    assert "http" not in html and len(html) < 400_000
