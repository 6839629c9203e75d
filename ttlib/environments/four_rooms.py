"""Continuous four rooms: geometry, a gymnasium Env and its scripted demonstrator (Figure 5).

The map follows Sutton, Precup & Singh (1999), Figure 2: walls that do not line up, doors off the middle.
x points right, y up, lengths are in the map's units.  Rooms: 0 lower left, 1 lower right, 2 upper left,
3 upper right; each door joins two rooms, so opposite corners (0 and 3, 1 and 2) are two doors apart.

Positions are float32 and every wall face is a multiple of 1/8: rounding is monotone, so a rounded position
never lies inside a wall, and what is observed is exactly the state.
"""

from __future__ import annotations

from collections.abc import Iterable

import gymnasium
import numpy as np

SIDE = 10.0


THICKNESS = 0.5  # of the inner walls


DOOR = 1.0  # width of each door


STEP = 0.5  # displacement of action 1 along one axis


GOAL_RADIUS = 0.4  # below THICKNESS: a goal is never reached through a wall


MAX_STEPS = 100


NOISE = 0.3  # standard deviation of the demonstrator's actions


MARGIN = 0.25  # distance the demonstrator keeps from door corners, along each axis


SLACK = 0.1  # detour the demonstrator takes rather than turn at a nearby waypoint


MIDDLE_X, LEFT_Y, RIGHT_Y = 5.0, 5.0, 4.5  # centre lines of the inner walls


LOWER, UPPER, LEFT, RIGHT = 1.0, 8.75, 1.0, 9.0  # door centres along their walls


DOORS = np.array([(MIDDLE_X, LOWER), (MIDDLE_X, UPPER), (LEFT, LEFT_Y), (RIGHT, RIGHT_Y)])


def _upright(low, high):
    return (MIDDLE_X - THICKNESS / 2, low), (MIDDLE_X + THICKNESS / 2, high)


def _level(low, high, y):
    return (low, y - THICKNESS / 2), (high, y + THICKNESS / 2)


# (7, 2, 2): lowest and highest corner.  Walls are open sets, a point on a face is free, so they must overlap
# each other and the outside: a shared face would be a crack to slide through.
WALLS = np.array(
    [
        _upright(-1, LOWER - DOOR / 2),
        _upright(LOWER + DOOR / 2, UPPER - DOOR / 2),
        _upright(UPPER + DOOR / 2, SIDE + 1),
        _level(-1, LEFT - DOOR / 2, LEFT_Y),
        _level(LEFT + DOOR / 2, MIDDLE_X, LEFT_Y),
        _level(MIDDLE_X, RIGHT - DOOR / 2, RIGHT_Y),
        _level(RIGHT + DOOR / 2, SIDE + 1, RIGHT_Y),
    ]
)


def free(position: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...) bool: inside the square and in no wall.  Faces are free, NaN is not."""
    position = np.asarray(position)[..., None, :]
    in_wall = ((WALLS[:, 0] < position) & (position < WALLS[:, 1])).all(-1).any(-1)
    return ((position >= 0) & (position <= SIDE)).all((-1, -2)) & ~in_wall


def room(position: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...) int 0..3.  A door is cut in two at the centre line of its wall."""
    x, y = np.moveaxis(np.asarray(position), -1, 0)
    right = x > MIDDLE_X
    return right + 2 * (y > np.where(right, RIGHT_Y, LEFT_Y))


def rooms_crossed(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(..., 2), (..., 2) -> (...) int 0, 1 or 2: rooms entered along the shortest path.

    It is the number of differing bits of `room`: on this map the way round through the other rooms is the
    shorter one only for some pairs of points that stand inside doorways.
    """
    return np.bitwise_count(room(start) ^ room(goal)).astype(int)


def reached(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(..., 2), (..., 2) -> (...) bool: within GOAL_RADIUS."""
    return np.linalg.norm(np.subtract(position, goal, dtype=float), axis=-1) <= GOAL_RADIUS


def _first_hit(position, displacement):
    """Slab method: when and along which axis position + time * displacement first enters a wall.

    (..., 2) floats, broadcast -> time (...), inf if never before 1; axis (...) int.  From a free position
    time >= 0.  No displacement along an axis gives times -inf and inf between the faces, inf twice or -inf
    twice beside them, NaN on them: all compare as they should.
    """
    with np.errstate(all="ignore"):
        times = (WALLS - position[..., None, None, :]) / displacement[..., None, None, :]
        enter, leave = times.min(-2), times.max(-2)
        first, last = enter.max(-1), leave.min(-1)
        hit = (first < last) & (last > 0) & (first < 1)
    first = np.where(hit, first, np.inf)
    wall = first.argmin(-1)[..., None]
    axis = np.take_along_axis(enter, wall[..., None], -2)[..., 0, :].argmax(-1)
    return np.take_along_axis(first, wall, -1)[..., 0], axis


def move(position: np.ndarray, action: np.ndarray) -> np.ndarray:
    """One step: (n, 2) free positions, (n, 2) actions, clipped to [-1, 1] -> (n, 2) float32.

    The straight way is swept, so no wall is jumped; at a wall the component along it is kept.
    """
    position = np.asarray(position, float)
    # The square is convex: clipping the target slides along the outer walls.
    target = np.clip(position + STEP * np.clip(action, -1, 1), 0, SIDE)
    for _ in range(2):  # a second wall ends every motion
        time, axis = _first_hit(position, target - position)
        position = position + np.minimum(time, 1)[:, None] * (target - position)
        position = position.astype(np.float32).astype(float)  # contacts lie exactly on faces
        hit = time < 1
        target[hit, axis[hit]] = position[hit, axis[hit]]
    return position.astype(np.float32)


def sample_free(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) float32, uniform over free space."""
    position = rng.uniform(0, SIDE, (n, 2)).astype(np.float32)
    while not (ok := free(position)).all():
        position[~ok] = rng.uniform(0, SIDE, ((~ok).sum(), 2))
    return position


def _pair_codes(pairs):
    """Ordered pairs of rooms -> (pairs,) int: 4 * start room + goal room."""
    pairs = list(pairs)
    if not all(np.shape(pair) == (2,) and np.isin(pair, range(4)).all() for pair in pairs):
        raise ValueError(f"excluded_pairs {pairs}: expected pairs (start room, goal room) out of 0..3")
    if len(codes := {4 * start + goal for start, goal in pairs}) == 16:
        raise ValueError("excluded_pairs are all 16 pairs of rooms; leave at least one")
    return sorted(codes)


def sample_pairs(n: int, rng: np.random.Generator, excluded_pairs: Iterable[tuple[int, int]] = ()):
    """Starts and goals, each (n, 2) float32, uniform over free space but for what is drawn again:
    pairs already at their goal, and the ordered pairs (start room, goal room) in excluded_pairs.

    Raises ValueError for n < 1 and for pairs that are not two rooms out of 0..3.
    """
    if n < 1:
        raise ValueError(f"n={n} pairs: ask for at least 1")
    codes = _pair_codes(excluded_pairs)
    start, goal = sample_free(n, rng), sample_free(n, rng)
    while (again := reached(start, goal) | np.isin(4 * room(start) + room(goal), codes)).any():
        start[again], goal[again] = sample_free(again.sum(), rng), sample_free(again.sum(), rng)
    return start, goal


def _legs(position, nodes):
    """(n, 2), (K, 2) -> (n, K): straight distances, inf where a wall is in the way."""
    displacement = nodes - position[:, None]
    time, _ = _first_hit(position[:, None], displacement)
    return np.where(time < 1, np.inf, np.linalg.norm(displacement, axis=-1))


def _door_nodes(margin):
    """The 16 corners of the doors, moved away from the walls by margin along each axis.  -> (16, 2)"""
    out, across = THICKNESS / 2 + margin, DOOR / 2 - margin
    half = np.array([(out, across), (out, across), (across, out), (across, out)])
    signs = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])
    return (DOORS[:, None] + half[:, None] * signs).reshape(-1, 2)


def _between(nodes):
    """Lengths of shortest paths over the visibility graph (Floyd-Warshall).  (K, 2) -> (K, K)"""
    length = _legs(nodes, nodes)
    for k in range(len(nodes)):
        length = np.minimum(length, length[:, k, None] + length[k])
    return length


CORNERS, WAYPOINTS = _door_nodes(0.0), _door_nodes(MARGIN)


BETWEEN_CORNERS, BETWEEN_WAYPOINTS = _between(CORNERS), _between(WAYPOINTS)


def _check_free(position, name):
    position = np.asarray(position, float)
    if position.shape[-1:] != (2,):
        raise ValueError(f"{name} has shape {position.shape}; expected x and y along the last axis")
    if not (ok := free(position)).all():
        raise ValueError(
            f"{name} {position[~ok][0]} is not free: it must be finite, in the square of side "
            f"{SIDE:g} and in no wall; sample_free draws such points"
        )
    return position


def shortest_path(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Length of the shortest path: (n, 2), (n, 2) -> (n,).

    Shortest paths among polygons turn only at their corners, so a visibility graph is exact.
    Raises ValueError for a point that is not free.
    """
    start, goal = _check_free(start, "start"), _check_free(goal, "goal")
    time, _ = _first_hit(start, goal - start)
    direct = np.where(time < 1, np.inf, np.linalg.norm(goal - start, axis=-1))
    to_corner = (_legs(start, CORNERS)[:, :, None] + BETWEEN_CORNERS).min(1)
    return np.minimum(direct, (to_corner + _legs(goal, CORNERS)).min(1))


def straight(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Walk straight at the goal, walls or not, and not past it: (n, 2), (n, 2) -> (n, 2) of length <= 1."""
    action = np.subtract(goal, position, dtype=float) / STEP
    return action / np.maximum(1, np.linalg.norm(action, axis=-1, keepdims=True))


def _next_waypoint(position, goal):
    """(n, 2), (n, 2) -> (n, 2): the goal if in sight, else the furthest visible waypoint on the way."""
    target = np.array(goal, float)
    hidden = _first_hit(position, goal - position)[0] < 1
    legs = _legs(position[hidden], WAYPOINTS)
    onward = (BETWEEN_WAYPOINTS + _legs(target[hidden], WAYPOINTS)[:, None]).min(-1)
    route = legs + onward
    good = route <= route.min(1, keepdims=True) + SLACK
    target[hidden] = WAYPOINTS[np.where(good, legs, -1).argmax(1)]
    return target


def demonstrator(position: np.ndarray, goal: np.ndarray, rng: np.random.Generator, noise: float = NOISE):
    """Follow the shortest path, with Gaussian noise: (n, 2), (n, 2) -> (n, 2) float32 in [-1, 1]."""
    position, goal = np.asarray(position, float), np.asarray(goal, float)
    # Departs from the paper: demonstrations come from this script, not from a trained agent.
    action = straight(position, _next_waypoint(position, goal)) + noise * rng.standard_normal(position.shape)
    return np.clip(action, -1, 1).astype(np.float32)


def demonstrations(n: int, seed: int, excluded_pairs: Iterable[tuple[int, int]] = ()):
    """n demonstrated episodes, one after the other: a dict of arrays under D4RL's keys.

    observations, actions, infos/goal: (steps, 2) float32; rewards: (steps,) float32, zeros; terminals and
    timeouts: (steps,) bool.  The last row of an episode is the state it ended in: within GOAL_RADIUS of
    infos/goal (terminals) or after MAX_STEPS actions (timeouts).  Only that row's action was not carried out.
    Raises ValueError as `sample_pairs` does.
    """
    rng = np.random.default_rng(seed)
    position, goal = sample_pairs(n, rng, excluded_pairs)
    episode, rows = np.arange(n), []
    for step in range(MAX_STEPS + 1):
        action, done = demonstrator(position, goal, rng), reached(position, goal)
        late = ~done & (step == MAX_STEPS)
        rows.append((episode, position, action, goal, done, late))
        on = ~done
        episode, position, goal = episode[on], move(position[on], action[on]), goal[on]
    episode, position, action, goal, done, late = map(np.concatenate, zip(*rows))
    order = np.argsort(episode, kind="stable")
    return {
        "observations": position[order],
        "actions": action[order],
        "infos/goal": goal[order],
        "rewards": np.zeros(len(order), np.float32),
        "terminals": done[order],
        "timeouts": late[order],
    }


def _draw(position, goal, pixels=240):
    """(2,), (2,) -> (pixels, pixels, 3) uint8: dark walls, green goal region, red agent."""
    x = (np.arange(pixels) + 0.5) * SIDE / pixels
    centres = np.stack(np.meshgrid(x, x[::-1]), -1)  # first row on top
    image = np.full((pixels, pixels, 3), 60, np.uint8)
    image[free(centres)] = 255
    image[reached(centres, goal) & free(centres)] = 90, 190, 90
    image[np.linalg.norm(centres - position, axis=-1) < 0.2] = 220, 50, 50
    return image


class FourRooms(gymnasium.Env):
    """Observation: position, (2,) float32 in [0, SIDE].  Action: (2,) float32 in [-1, 1], see `move`.

    Within GOAL_RADIUS of the goal the episode terminates with reward 1; every other reward is 0.
    info holds "goal", (2,) float32, and "success", bool.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, SIDE, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """options may fix "start" and "goal", each (2,); what is missing is drawn by `sample_pairs`.

        Raises ValueError for other options and for points that are not free.
        """
        super().reset(seed=seed)
        start, goal = sample_pairs(1, self.np_random)
        points = {"start": start[0], "goal": goal[0], **(options or {})}
        if len(points) > 2:
            raise ValueError(f"options {sorted(options)}: only 'start' and 'goal' can be fixed")
        for name, point in points.items():
            if np.shape(point) != (2,):
                raise ValueError(f"{name} {point!r} is not x and y: its shape is {np.shape(point)}, not (2,)")
            points[name] = _check_free(point, name).astype(np.float32)
        self.position, self.goal = points["start"], points["goal"]
        return self.position.copy(), self._info()

    def step(self, action: np.ndarray):
        """Raises ValueError for an action that is not two finite numbers."""
        action = np.asarray(action, float)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action {action} is not two finite numbers; those beyond [-1, 1] are clipped")
        self.position = move(self.position[None], action[None])[0]
        info = self._info()
        return self.position.copy(), float(info["success"]), info["success"], False, info

    def render(self) -> np.ndarray | None:
        """(240, 240, 3) uint8 in render_mode "rgb_array"."""
        return _draw(self.position, self.goal) if self.render_mode == "rgb_array" else None

    def _info(self):
        return {"goal": self.goal.copy(), "success": bool(reached(self.position, self.goal))}


gymnasium.register("ttlib/FourRooms-v0", entry_point=f"{__name__}:FourRooms", max_episode_steps=MAX_STEPS)
