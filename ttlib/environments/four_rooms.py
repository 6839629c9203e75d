"""The continuous four rooms (Figure 5): their geometry, a gymnasium environment and its scripted demonstrator.

The map follows Sutton, Precup and Singh (1999), Figure 2: the walls do not line up, and the doors are not in the middle
of the walls.  x points to the right, y points up, and lengths are in units of the map.  The rooms are 0 (lower left),
1 (lower right), 2 (upper left) and 3 (upper right).

Positions are float32, and every face of a wall lies at a multiple of 1/8, which float32 represents exactly.  A position
that is rounded to float32 therefore never crosses a face, and an observation is exactly the state.
"""

from collections.abc import Iterable

import gymnasium
import numpy as np
from scipy.sparse.csgraph import floyd_warshall

SIDE = 10.0  # length of a side of the square
THICKNESS = 0.5  # thickness of the inner walls
DOOR = 1.0  # width of each door
STEP = 0.5  # displacement of action 1 along one axis
GOAL_RADIUS = 0.4  # smaller than THICKNESS, so that no goal is reached through a wall
MAX_STEPS = 100  # actions in an episode at most
NOISE = 0.3  # standard deviation of the noise on the demonstrator's actions
MARGIN = 0.25  # distance that the demonstrator keeps from the corners of doors, along each axis
SLACK = 0.1  # the longest detour that the demonstrator accepts to avoid a nearby waypoint
MIDDLE_X, LEFT_Y, RIGHT_Y = 5.0, 5.0, 4.5  # centre lines of the inner walls
LOWER, UPPER, LEFT, RIGHT = 1.0, 8.75, 1.0, 9.0  # centres of the doors along their walls
DOORS = np.array([(MIDDLE_X, LOWER), (MIDDLE_X, UPPER), (LEFT, LEFT_Y), (RIGHT, RIGHT_Y)])


# The two ends of the centre line of each inner wall, (7, 2, 2).
_LINES = np.array(
    [
        [(MIDDLE_X, -1), (MIDDLE_X, LOWER - DOOR / 2)],
        [(MIDDLE_X, LOWER + DOOR / 2), (MIDDLE_X, UPPER - DOOR / 2)],
        [(MIDDLE_X, UPPER + DOOR / 2), (MIDDLE_X, SIDE + 1)],
        [(-1, LEFT_Y), (LEFT - DOOR / 2, LEFT_Y)],
        [(LEFT + DOOR / 2, LEFT_Y), (MIDDLE_X, LEFT_Y)],
        [(MIDDLE_X, RIGHT_Y), (RIGHT - DOOR / 2, RIGHT_Y)],
        [(RIGHT + DOOR / 2, RIGHT_Y), (SIDE + 1, RIGHT_Y)],
    ]
)
_ACROSS = THICKNESS / 2 * (_LINES[:, 0] == _LINES[:, 1])
# The lower left and the upper right corner of each wall, (7, 2, 2).  Walls are open sets: a point on a face is free.
# Walls must therefore overlap each other and the outside, since an agent could slide along a face that two walls share.
WALLS = np.stack([_LINES[:, 0] - _ACROSS, _LINES[:, 1] + _ACROSS], 1)


def free(position: np.ndarray) -> np.ndarray:
    """Return whether positions are inside the square and in no wall; NaN is not.  (..., 2) -> (...) bool."""
    position = np.asarray(position)[..., None, :]
    in_wall = ((WALLS[:, 0] < position) & (position < WALLS[:, 1])).all(-1).any(-1)
    return ((position >= 0) & (position <= SIDE)).all((-1, -2)) & ~in_wall


def room(position: np.ndarray) -> np.ndarray:
    """Return the room of each position, 0 to 3; the halves of a door have different rooms.  (..., 2) -> (...) int"""
    x, y = np.moveaxis(np.asarray(position), -1, 0)
    right = x > MIDDLE_X
    return right + 2 * (y > np.where(right, RIGHT_Y, LEFT_Y))


def rooms_crossed(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return how many rooms the shortest path enters.  (..., 2), (..., 2) -> (...) int 0, 1 or 2."""
    return np.bitwise_count(room(start) ^ room(goal)).astype(int)


def reached(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return whether positions are within GOAL_RADIUS of their goals.  (..., 2), (..., 2) -> (...) bool."""
    return np.linalg.norm(np.subtract(position, goal, dtype=float), axis=-1) <= GOAL_RADIUS


def _first_hit(position, displacement):
    """Find when, and along which axis, position + time * displacement first enters a wall (slab method).

    (..., 2) both -> time (...), which is inf if no wall is entered before time 1, and axis (...) int.  Where the
    displacement along an axis is 0, the division gives -inf and inf between the two faces, the same infinity twice
    beside them, and NaN on a face.  The comparisons below give the right answer in all three cases.
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
    """Return where actions lead.  Free positions (n, 2), actions (n, 2) -> positions (n, 2) float32.

    Actions are clipped to [-1, 1].  The whole segment is checked, so that no wall is jumped over.  At a wall, the
    component of the motion along the wall remains.
    """
    position = np.asarray(position, float)
    # The square is convex, so clipping the target lets the agent slide along the outer walls.
    target = np.clip(position + STEP * np.clip(action, -1, 1), 0, SIDE)
    for _ in range(2):  # at the second wall, no motion remains
        time, axis = _first_hit(position, target - position)
        position = position + np.minimum(time, 1)[:, None] * (target - position)
        position = position.astype(np.float32).astype(float)  # a contact lies exactly on a face
        hit = time < 1
        target[hit, axis[hit]] = position[hit, axis[hit]]
    return position.astype(np.float32)


def sample_free(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n positions uniformly from the free space.  -> (n, 2) float32"""
    position = rng.uniform(0, SIDE, (n, 2)).astype(np.float32)
    while (in_wall := ~free(position)).any():
        position[in_wall] = rng.uniform(0, SIDE, (in_wall.sum(), 2))
    return position


def sample_pairs(n: int, rng: np.random.Generator, excluded_pairs: Iterable[tuple[int, int]] = ()):
    """Draw n starts and n goals uniformly from the free space.  -> (n, 2) float32, (n, 2) float32

    A pair is drawn again if its start is already at its goal, or if its rooms are one of the ordered excluded_pairs.
    Raises ValueError for n < 1, and for excluded pairs that are not two rooms in 0..3, or that are all 16.
    """
    if n < 1:
        raise ValueError(f"n={n} pairs of start and goal; expected at least 1")
    pairs = list(excluded_pairs)
    if not all(np.shape(pair) == (2,) and np.isin(pair, range(4)).all() for pair in pairs):
        raise ValueError(f"excluded_pairs={pairs}; expected pairs (start room, goal room), with rooms in 0..3")
    codes = list({4 * start + goal for start, goal in pairs})
    if len(codes) == 16:
        raise ValueError("excluded_pairs holds all 16 pairs of rooms: leave at least one to sample from")
    start, goal = sample_free(n, rng), sample_free(n, rng)
    while (again := reached(start, goal) | np.isin(4 * room(start) + room(goal), codes)).any():
        start[again], goal[again] = sample_free(again.sum(), rng), sample_free(again.sum(), rng)
    return start, goal


def _legs(position, nodes):
    """Return straight distances to nodes, inf where a wall is in the way.  (n, 2), (K, 2) -> (n, K)"""
    displacement = nodes - position[:, None]
    time, _ = _first_hit(position[:, None], displacement)
    return np.where(time < 1, np.inf, np.linalg.norm(displacement, axis=-1))


def _door_nodes(margin):
    """Return the corners of the doors, moved away from the walls by margin along each axis.  -> (16, 2)"""
    out, across = THICKNESS / 2 + margin, DOOR / 2 - margin
    half = np.array([(out, across), (out, across), (across, out), (across, out)])
    signs = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])
    return (DOORS[:, None] + half[:, None] * signs).reshape(-1, 2)


CORNERS, WAYPOINTS = _door_nodes(0.0), _door_nodes(MARGIN)
# The lengths of shortest paths over the visibility graph, (16, 16) each.
BETWEEN_CORNERS, BETWEEN_WAYPOINTS = (floyd_warshall(_legs(nodes, nodes)) for nodes in (CORNERS, WAYPOINTS))


def _check_free(position, name):
    """Return positions (..., 2) as float64.  Raise ValueError for a wrong shape or a position that is not free."""
    position = np.asarray(position, float)
    if position.shape[-1:] != (2,):
        raise ValueError(f"{name} has shape {position.shape}; expected (..., 2), with x and y along the last axis")
    if not (ok := free(position)).all():
        raise ValueError(
            f"{name} {position[~ok][0]} is not free; expected a finite point, inside the square of side {SIDE:g} and "
            "in no wall: `sample_free` draws such points"
        )
    return position


def shortest_path(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return the length of the shortest path from each start to its goal.  (n, 2), (n, 2) -> (n,)

    It turns only at corners, so that the visibility graph is exact.  Raises ValueError for a point that is not free.
    """
    start, goal = _check_free(start, "start"), _check_free(goal, "goal")
    time, _ = _first_hit(start, goal - start)
    direct = np.where(time < 1, np.inf, np.linalg.norm(goal - start, axis=-1))
    to_corner = (_legs(start, CORNERS)[:, :, None] + BETWEEN_CORNERS).min(1)
    return np.minimum(direct, (to_corner + _legs(goal, CORNERS)).min(1))


def straight(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return actions straight to the goal, even through walls, of length at most 1.  (n, 2), (n, 2) -> (n, 2)"""
    action = np.subtract(goal, position, dtype=float) / STEP
    return action / np.maximum(1, np.linalg.norm(action, axis=-1, keepdims=True))


def _next_waypoint(position, goal):
    """Return the goal where it is visible, otherwise the furthest visible waypoint of a path to it.

    (n, 2), (n, 2) -> (n, 2).  The path is at most SLACK longer than the shortest one over the waypoints.
    """
    target = np.array(goal, float)
    blocked = _first_hit(position, goal - position)[0] < 1
    to_waypoint = _legs(position[blocked], WAYPOINTS)
    to_goal = (BETWEEN_WAYPOINTS + _legs(target[blocked], WAYPOINTS)[:, None]).min(-1)
    length = to_waypoint + to_goal
    short_enough = length <= length.min(1, keepdims=True) + SLACK
    target[blocked] = WAYPOINTS[np.where(short_enough, to_waypoint, -1).argmax(1)]
    return target


def demonstrator(position: np.ndarray, goal: np.ndarray, rng: np.random.Generator, noise: float = NOISE):
    """Return actions in [-1, 1] along a nearly shortest path, with Gaussian noise.  (n, 2), (n, 2) -> (n, 2) float32"""
    position, goal = np.asarray(position, float), np.asarray(goal, float)
    # Departs from the paper: demonstrations come from this script, not from a trained agent.
    action = straight(position, _next_waypoint(position, goal)) + noise * rng.standard_normal(position.shape)
    return np.clip(action, -1, 1).astype(np.float32)


def demonstrations(n: int, seed: int, excluded_pairs: Iterable[tuple[int, int]] = ()):
    """Return n demonstrated episodes, one after the other, as a dict of arrays under D4RL's keys, and infos/goal.

    The last row of an episode is its last state: within GOAL_RADIUS of the goal (terminals), or after MAX_STEPS actions
    (timeouts).  The action of that row was not carried out.  Raises ValueError as `sample_pairs` does.
    """
    rng = np.random.default_rng(seed)
    position, goal = sample_pairs(n, rng, excluded_pairs)
    episode, rows = np.arange(n), []
    for step in range(MAX_STEPS + 1):
        action, done = demonstrator(position, goal, rng), reached(position, goal)
        timeout = ~done & (step == MAX_STEPS)
        rows.append((episode, position, action, goal, done, timeout))
        running = ~done
        episode, position, goal = episode[running], move(position[running], action[running]), goal[running]
    episode, position, action, goal, done, timeout = map(np.concatenate, zip(*rows))
    order = np.argsort(episode, kind="stable")
    arrays = {"observations": position, "actions": action, "infos/goal": goal, "terminals": done, "timeouts": timeout}
    arrays = {name: array[order] for name, array in arrays.items()}
    return arrays | {"rewards": np.zeros(len(order), np.float32)}


class FourRooms(gymnasium.Env):
    """An agent that walks to a goal in the four rooms.

    An observation is the position.  Within GOAL_RADIUS of the goal, the episode ends with reward 1; others are 0.
    """

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(0, SIDE, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Begin an episode; options may fix "start" and "goal", (2,) each.  Raises ValueError for other options."""
        super().reset(seed=seed)
        start, goal = sample_pairs(1, self.np_random)
        points = {"start": start[0], "goal": goal[0], **(options or {})}
        if len(points) > 2:
            raise ValueError(f"options {sorted(options)}; expected 'start' and 'goal' only")
        for name, point in points.items():
            if np.shape(point) != (2,):
                raise ValueError(f"{name} {point!r} has shape {np.shape(point)}; expected x and y, (2,)")
            points[name] = _check_free(point, name).astype(np.float32)
        self.position, self.goal = points["start"], points["goal"]
        return self.position.copy(), self._info()

    def step(self, action: np.ndarray):
        """Take one action, as gymnasium says.  Raises ValueError for an action that is not two finite numbers."""
        action = np.asarray(action, float)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action {action}; expected two finite numbers (numbers beyond [-1, 1] are clipped)")
        self.position = move(self.position[None], action[None])[0]
        info = self._info()
        return self.position.copy(), float(info["success"]), info["success"], False, info

    def _info(self):
        return {"goal": self.goal.copy(), "success": bool(reached(self.position, self.goal))}


gymnasium.register("ttlib/FourRooms-v0", entry_point=f"{__name__}:FourRooms", max_episode_steps=MAX_STEPS)
