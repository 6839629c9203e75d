"""Walls hold, path lengths are geodesic, and the demonstrator reaches its goals."""

import itertools
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from ttlib.environments import four_rooms

FACES = np.unique(four_rooms.WALLS.clip(0, four_rooms.SIDE)).tolist()
coordinate = st.floats(0, four_rooms.SIDE, width=32) | st.sampled_from(FACES)         # also on the faces of walls
component = st.floats(-1, 1) | st.sampled_from([-1.0, 0.0, 1.0])
points, actions = st.tuples(coordinate, coordinate), st.tuples(component, component)


def pairs(n, seed=0):
    return four_rooms.sample_pairs(n, np.random.default_rng(seed))


def along(p, q, samples):
    """Return points on segments, ends included.  (n, 2), (n, 2) -> (n, samples, 2) float32"""
    p, q = (np.asarray(point, float)[:, None] for point in (p, q))
    return (p + np.linspace(0, 1, samples)[:, None] * (q - p)).astype(np.float32)


def walk(position, goal, policy):
    """Return the last positions under policy(position, goal), standing still at the goal.  (n, 2)"""
    for _ in range(four_rooms.MAX_STEPS):
        stay = four_rooms.reached(position, goal)[:, None]
        position = np.where(stay, position, four_rooms.move(position, policy(position, goal)))
    return position


@pytest.fixture(scope="module")
def data():
    return four_rooms.demonstrations(1000, seed=0)


@pytest.fixture(scope="module")
def episodes(data):
    """Return the first and the last row of each episode."""
    last = np.flatnonzero(data["terminals"] | data["timeouts"])
    return np.concatenate([[0], last[:-1] + 1]), last


def test_free_points_are_uniform():
    x = (np.arange(400) + 0.5) * four_rooms.SIDE / 400
    grid = np.stack(np.meshgrid(x, x), -1).reshape(-1, 2)
    area = np.bincount(four_rooms.room(grid[four_rooms.free(grid)]), minlength=4) / four_rooms.free(grid).sum()
    sample = four_rooms.sample_free(20_000, np.random.default_rng(0))
    assert four_rooms.free(sample).all()
    fractions = np.bincount(four_rooms.room(sample), minlength=4) / len(sample)
    assert np.abs(fractions - area).max() < 4 * np.sqrt(0.25 / len(sample))


def test_doors_join_neighbouring_rooms():
    nudge = np.array([(0.1, 0)] * 2 + [(0, 0.1)] * 2)
    sides = [four_rooms.room(four_rooms.DOORS + sign * nudge).tolist() for sign in (-1, 1)]
    assert list(zip(*sides)) == [(0, 1), (2, 3), (0, 2), (1, 3)]
    corners = np.array([(0, 0), (four_rooms.SIDE, 0), (0, four_rooms.SIDE), (four_rooms.SIDE, four_rooms.SIDE)])
    assert four_rooms.room(corners).tolist() == [0, 1, 2, 3]
    assert four_rooms.rooms_crossed(corners[:, None], corners).tolist() == [
        [0, 1, 1, 2], [1, 0, 2, 1], [1, 2, 0, 1], [2, 1, 1, 0]]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(points, actions)
def test_a_step_stays_out_of_walls_and_is_never_longer_than_asked(point, action):
    assume(four_rooms.free(np.array(point)))
    end = four_rooms.move([point], [action])
    assert four_rooms.free(end).all()
    asked, done = four_rooms.STEP * np.array(action), (end - point)[0]
    assert (np.abs(done) <= np.abs(asked) + 1e-6).all() and (done * asked >= -1e-6).all()
    assert four_rooms.free(along([point], end, 50)).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(0, 0.4), st.floats(-1, 1))
def test_sliding_keeps_the_tangential_component(gap, a):
    step = four_rooms.STEP
    face = four_rooms.MIDDLE_X - four_rooms.THICKNESS / 2
    assert four_rooms.move([(face - gap, 3)], [(1, a)])[0] == pytest.approx((face, 3 + step * a), abs=1e-6)
    assert four_rooms.move([(gap, 3)], [(-1, a)])[0] == pytest.approx((0, 3 + step * a), abs=1e-6)
    top = four_rooms.RIGHT_Y - four_rooms.THICKNESS / 2
    assert four_rooms.move([(7, top - gap)], [(a, 1)])[0] == pytest.approx((7 + step * a, top), abs=1e-6)


def test_shortest_path_is_straight_exactly_where_the_goal_is_visible():
    start, goal = pairs(2000)
    straight = np.linalg.norm(goal.astype(float) - start, axis=1)
    visible = four_rooms.free(along(start, goal, 400)).all(1)
    length = four_rooms.shortest_path(start, goal)
    assert (length >= straight - 1e-9).all()
    assert length[visible] == pytest.approx(straight[visible], rel=1e-3)
    assert (length[~visible] > straight[~visible]).all()


def test_shortest_path_agrees_with_dijkstra_on_a_grid():
    m = 81                                                          # spacing 1/8, so that wall faces lie on the grid
    grid = np.stack(np.meshgrid(np.arange(m), np.arange(m), indexing="ij"), -1).reshape(-1, 2)
    edges = []
    for shift in itertools.product(range(4), range(-3, 4)):     # with coprime directions, lengths are within 1.5%
        if np.gcd(*shift) == 1:
            inside = ((grid + shift >= 0) & (grid + shift < m)).all(1)
            edges.append(np.stack([grid[inside], grid[inside] + shift], 1))
    edges = np.concatenate(edges) * four_rooms.SIDE / (m - 1)
    edges = edges[four_rooms.free(along(edges[:, 0], edges[:, 1], 9)).all(1)]
    i, j = (np.rint(edges * (m - 1) / four_rooms.SIDE) @ (m, 1)).astype(int).T
    graph = coo_matrix((np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1), (i, j)), (m * m, m * m)).tocsr()
    nodes = np.flatnonzero(four_rooms.free(grid * four_rooms.SIDE / (m - 1)))
    sources, targets = np.random.default_rng(0).choice(nodes, (2, 10))
    on_grid = dijkstra(graph, directed=False, indices=sources)[:, targets]
    at = grid * four_rooms.SIDE / (m - 1)
    exact = [four_rooms.shortest_path(np.repeat(at[[s]], 10, 0), at[targets]) for s in sources]
    assert on_grid == pytest.approx(np.array(exact), rel=0.02, abs=1e-9)


def test_demonstrator_reaches_goals_by_nearly_shortest_paths(data, episodes):
    first, last = episodes
    position, goal = data["observations"].astype(float), data["infos/goal"]
    assert data["terminals"][last].mean() >= 0.999
    steps = np.linalg.norm(np.diff(position, axis=0), axis=1)
    walked = np.array([steps[a:b].sum() for a, b in zip(first, last)])
    # The path to compare with ends where the demonstrator stopped; the goal can be GOAL_RADIUS further away.
    shortest = four_rooms.shortest_path(position[first], position[last])
    assert (walked >= shortest - 1e-9).all()
    assert (walked / shortest).mean() < 1.15
    assert (walked / four_rooms.shortest_path(position[first], goal[first])).mean() < 1.1


def test_walking_straight_fails_on_most_pairs_that_cross_rooms():
    start, goal = pairs(2000)
    there = four_rooms.reached(walk(start, goal, four_rooms.straight), goal)
    assert there[four_rooms.rooms_crossed(start, goal) > 0].mean() <= 0.3


def test_straight_never_overshoots():
    start, goal = pairs(500)
    action = four_rooms.straight(start, goal)
    ahead = np.linalg.norm(goal - start, axis=1) / four_rooms.STEP
    assert np.linalg.norm(action, axis=1) == pytest.approx(np.minimum(ahead, 1), abs=1e-6)
    assert (np.abs(action) <= 1).all()


def test_stored_actions_carry_each_state_to_the_next(data, episodes):
    _, last = episodes
    inner = np.setdiff1d(np.arange(len(data["actions"])), last)
    moved = four_rooms.move(data["observations"][inner], data["actions"][inner])
    assert (moved == data["observations"][inner + 1]).all()
    assert {k: (v.dtype.name, v.shape[1:]) for k, v in data.items()} == {
        "observations": ("float32", (2,)), "actions": ("float32", (2,)), "infos/goal": ("float32", (2,)),
        "rewards": ("float32", ()), "terminals": ("bool", ()), "timeouts": ("bool", ())}


def test_the_last_observation_is_the_first_at_the_goal(data, episodes):
    first, last = episodes
    assert len(last) == 1000
    at_goal = four_rooms.reached(data["observations"], data["infos/goal"])
    assert (at_goal == data["terminals"]).all()
    goals = data["infos/goal"]
    assert all((goals[a:b + 1] == goals[a]).all() for a, b in zip(first, last))


def test_the_time_limit_ends_an_episode_after_its_last_state(monkeypatch):
    monkeypatch.setattr(four_rooms, "MAX_STEPS", 8)
    data = four_rooms.demonstrations(50, seed=0)
    last = np.flatnonzero(data["terminals"] | data["timeouts"])
    lengths = np.diff(last, prepend=-1)
    assert len(last) == 50 and not (data["terminals"] & data["timeouts"]).any()
    assert data["timeouts"].any() and (lengths[data["timeouts"][last]] == 8 + 1).all() and lengths.max() == 9


def test_excluded_pairs_of_rooms_are_the_only_ones_missing():
    excluded = {(0, 3), (2, 1)}
    data = four_rooms.demonstrations(1000, seed=0, excluded_pairs=excluded)
    last = np.flatnonzero(data["terminals"] | data["timeouts"])
    first = np.concatenate([[0], last[:-1] + 1])
    crossed = set(zip(four_rooms.room(data["observations"][first]).tolist(),
                      four_rooms.room(data["infos/goal"][first]).tolist()))
    assert crossed == set(itertools.product(range(4), repeat=2)) - excluded


def test_same_seed_same_bytes():
    a, b, other = (four_rooms.demonstrations(20, seed) for seed in (5, 5, 6))
    assert all(a[key].tobytes() == b[key].tobytes() for key in a)
    assert a["actions"].tobytes() != other["actions"].tobytes()


def test_check_env_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("ttlib/FourRooms-v0").unwrapped, skip_render_check=True)


def test_env_replays_a_demonstration(data, episodes):
    env = gymnasium.make("ttlib/FourRooms-v0")
    for a, b in list(zip(*episodes))[:20]:
        options = {"start": data["observations"][a], "goal": data["infos/goal"][a]}
        observation, info = env.reset(options=options)
        assert (info["goal"] == options["goal"]).all()
        for row in range(a, b):
            assert (observation == data["observations"][row]).all() and not info["success"]
            observation, reward, terminated, truncated, info = env.step(data["actions"][row])
            assert reward == terminated == info["success"] == (row == b - 1) and not truncated
        assert (observation == data["observations"][b]).all()


def test_env_is_truncated_at_the_time_limit():
    env = gymnasium.make("ttlib/FourRooms-v0")
    env.reset(options={"start": (1, 1), "goal": (9, 9)})
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(four_rooms.MAX_STEPS)]
    assert ends == [(False, False)] * (four_rooms.MAX_STEPS - 1) + [(False, True)]


@pytest.mark.parametrize("name", ["start", "goal"])
@pytest.mark.parametrize("point", [(5, 5), (-0.1, 1), (1, 10.5), (np.nan, 1), (np.inf, 1)])
def test_points_that_are_not_free_are_named(name, point):
    env = gymnasium.make("ttlib/FourRooms-v0").unwrapped
    with pytest.raises(ValueError, match=rf"{name} \[.*{str(float(point[0])).rstrip('0')}.*not free"):
        env.reset(options={name: point})
    good, bad = np.array([(1.0, 1.0)]), np.array([point])
    with pytest.raises(ValueError, match=f"{name} .*sample_free"):
        four_rooms.shortest_path(**({"start": good, "goal": good} | {name: bad}))


@pytest.mark.parametrize("options, match", [
    ({"start": (1, 1, 1)}, r"start \(1, 1, 1\) .*shape"), ({"goal": 3.0}, "goal 3.0 .*shape"),
    ({"gaol": (1, 1)}, "gaol"),
])  # fmt: skip
def test_bad_reset_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        four_rooms.FourRooms().reset(options=options)


@pytest.mark.parametrize("action", [(0, np.nan), (0, 0, 0), 1.0])
def test_bad_actions_are_refused(action):
    env = four_rooms.FourRooms()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="two finite numbers"):
        env.step(action)


@pytest.mark.parametrize("n, excluded, match", [
    (0, (), "n=0 .*at least 1"), (-3, (), "n=-3 .*at least 1"), (1, [(0, 4)], r"\(0, 4\).*0\.\.3"),
    (1, [(0, 1, 2)], "start room, goal room"), (1, (0, 3), "start room, goal room"),
    (1, list(itertools.product(range(4), repeat=2)), "leave at least one"),
])  # fmt: skip
def test_impossible_demonstrations_are_refused(n, excluded, match):
    with pytest.raises(ValueError, match=match):
        four_rooms.demonstrations(n, seed=0, excluded_pairs=excluded)
