"""What two pages draw: bodies made of capsules, the four rooms.  matplotlib only, no GL."""

import json

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

from ttlib.environments import four_rooms

# Okabe and Ito's colours, told apart by colour-blind readers, by what they stand for.
COLOURS = {"transformer": "#0072B2", "other": "#D55E00", "third": "#009E73", "data": "#555555", "fourth": "#CC79A7"}


def stadium(a: np.ndarray, b: np.ndarray, radius: float, points: int = 16) -> np.ndarray:
    """Outline (2 * points, 2) of a capsule between 2-D ends a, b (2,)."""
    along = b - a
    angle = np.arctan2(along[1], along[0]) if np.any(along) else 0.0
    turn = np.linspace(-np.pi / 2, np.pi / 2, points)
    cap = radius * np.stack([np.cos(turn), np.sin(turn)], 1)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.concatenate([b + cap @ rotation, a - cap @ rotation])


def body(
    axes,
    ends: np.ndarray,
    radii: np.ndarray,
    colour: str,
    azimuth: float = 15,
    elevation: float = 12,
    alpha: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> None:
    """One body: ends (capsules, 2, 3) and radii (capsules,) in metres, seen orthographically, moved by `shift`
    metres in the picture.

    Painter's order: far capsules first; a few lighter, smaller copies shifted to the light round each one.
    """
    from matplotlib.colors import to_rgb

    flat, depth = project(ends, azimuth, elevation)
    flat, order = flat + shift, np.argsort(-depth.mean(-1))
    outlines, colours = [], []
    for i in order:
        for k, (shrink, light) in enumerate(((1.0, 0.0), (0.72, 0.22), (0.42, 0.45))):
            a, b = flat[i] + np.array([-0.16, 0.2]) * radii[i] * k
            outlines.append(stadium(a, b, radii[i] * shrink))
            colours.append([*(c + (1 - c) * light for c in to_rgb(colour)), alpha])
    axes.add_collection(PolyCollection(outlines, facecolors=colours, edgecolors="none"))


def project(points: np.ndarray, azimuth: float = 15, elevation: float = 12) -> tuple[np.ndarray, np.ndarray]:
    """(..., 3) metres -> (..., 2) in the picture (x to the right, z up) and (...) depth away from the viewer."""
    az, el = np.radians([azimuth, elevation])
    right = np.array([np.cos(az), np.sin(az), 0])
    away = np.array([-np.sin(az) * np.cos(el), np.cos(az) * np.cos(el), -np.sin(el)])
    return np.stack([points @ right, points @ np.cross(right, away)], -1), points @ away


def player(bodies: dict[str, tuple[np.ndarray, str]], radii: np.ndarray, seconds: float, name: str) -> str:
    """HTML of bodies that move, side by side, with a button and a slider; it needs no network and starts at rest.

    bodies: label -> ends (T, capsules, 2, 3), metres, and colour; radii (capsules,); seconds: of one step; name: of
    the element, one of its own on a page.  What is not finite is not drawn; millimetres are kept.
    """
    frames = []
    for ends, _ in bodies.values():
        flat, depth = project(ends)
        order = np.argsort(-depth.mean(-1), axis=1)  # painter's, as in `body`
        seen = np.isfinite(flat).all((1, 2, 3))
        whole = np.clip(np.nan_to_num(1000 * flat), -1e5, 1e5).round().astype(int).reshape(*flat.shape[:2], 4)
        frames.append([
            [[int(i), *corners[i].tolist()] for i in order[t]] if seen[t] else [] for t, corners in enumerate(whole)
        ])  # fmt: skip
    values = {
        "bodies": frames,
        "radii": (1000 * radii).round().astype(int).tolist(),
        "labels": list(bodies),
        "colours": [colour for _, colour in bodies.values()],
        "seconds": seconds,
    }
    return PLAYER.replace("NAME", name).replace("VALUES", json.dumps(values, separators=(",", ":")))


PLAYER = """
<div id="NAME" style="max-width:760px">
<canvas width="1520" height="560" style="width:100%;background:#fff" role="img"
 aria-label="Bodies that move, the same time step of each side by side; the figure above shows some of the steps.">
</canvas>
<div style="display:flex;gap:0.8em;align-items:center">
<button type="button" style="min-width:5em">Play</button>
<input type="range" min="0" value="0" aria-label="time step" style="flex:1">
<output style="min-width:13em;font-variant-numeric:tabular-nums"></output>
</div></div>
<script>
(() => {
  const {bodies, radii, labels, colours, seconds} = VALUES;
  const box = document.getElementById("NAME"), canvas = box.querySelector("canvas"), c = canvas.getContext("2d");
  const [button, slider, out] = ["button", "input", "output"].map(tag => box.querySelector(tag));
  const last = bodies[0].length - 1, wide = canvas.width / bodies.length, scale = wide / 2600;
  const ground = canvas.height - 90, slow = 0.25;
  slider.max = last;
  function capsule([i, x1, y1, x2, y2], x0, colour) {
    const r = radii[i];
    [[1, 0], [0.72, 0.22], [0.42, 0.45]].forEach(([shrink, light], k) => {
      const dx = x0 - 0.16 * r * k * scale, dy = ground - 0.2 * r * k * scale;
      c.strokeStyle = light ? `rgba(255,255,255,${light})` : colour; c.lineWidth = 2 * r * shrink * scale;
      c.beginPath(); c.moveTo(dx + x1 * scale, dy - y1 * scale);
      c.lineTo(dx + x2 * scale + 0.01, dy - y2 * scale); c.stroke();  // 0.01: a sphere is a dot
    });
  }
  function draw() {
    const t = +slider.value;
    c.fillStyle = "#fff"; c.fillRect(0, 0, canvas.width, canvas.height); c.lineCap = "round";
    c.fillStyle = "#ececec"; c.fillRect(0, ground, canvas.width, 90);
    c.font = "30px sans-serif"; c.textAlign = "center";
    bodies.forEach((frames, b) => {
      c.save(); c.beginPath(); c.rect(b * wide, 0, wide, canvas.height); c.clip();
      frames[t].forEach(piece => capsule(piece, (b + 0.42) * wide, colours[b]));
      c.fillStyle = "#222"; c.fillText(labels[b], (b + 0.5) * wide, canvas.height - 30);
      if (!frames[t].length) c.fillText("not finite", (b + 0.5) * wide, ground / 2);
      c.restore();
    });
    out.textContent = `step ${t} of ${last}, ${(t * seconds).toFixed(2)} s`;
  }
  let from = null;
  function pause() { from = null; button.textContent = "Play"; }
  function tick(now) {
    if (from === null) return;
    slider.value = Math.min(last, Math.floor((now - from) / 1000 / seconds * slow)); draw();
    if (+slider.value < last) requestAnimationFrame(tick); else pause();
  }
  button.onclick = () => {
    if (from !== null) return pause();
    if (+slider.value >= last) slider.value = 0;
    from = performance.now() - slider.value * seconds / slow * 1000; button.textContent = "Pause";
    requestAnimationFrame(tick);
  };
  slider.oninput = () => { pause(); draw(); };
  draw();
})();
</script>"""


def strip(axes, ends: np.ndarray, radii: np.ndarray, colour: str, spacing: float) -> np.ndarray:
    """Poses side by side, `spacing` metres apart, seen from the side: ends (poses, capsules, 2, 3) -> (poses,)
    where each stands in the picture."""
    ends = ends.copy()
    ends[..., 0] += (np.arange(len(ends)) * spacing - ends[..., 0].mean((1, 2)))[:, None, None]
    flat, _ = project(ends, azimuth=0)  # turned, the row of poses would sink into the floor
    axes.axhspan(flat[..., 1].min() - 1, 0, color="#ececec", lw=0, zorder=0)
    for pose in ends:
        body(axes, pose, radii, colour, azimuth=0)
    limits = (flat[..., 0].min() - 0.4, flat[..., 0].max() + 0.4)
    axes.set(xlim=limits, ylim=(-0.25, flat[..., 1].max() + 0.3), aspect="equal", yticks=[])
    axes.spines[["left", "right", "top"]].set_visible(False)
    return flat[..., 0].mean((1, 2))


def rooms(axes) -> None:
    """The walls of the four rooms."""
    for low, high in four_rooms.WALLS:
        axes.add_patch(Rectangle(low, *(high - low), color="#3a3a3a", lw=0, zorder=1))
    axes.add_patch(Rectangle((0, 0), four_rooms.SIDE, four_rooms.SIDE, fill=False, ec="#3a3a3a", lw=3, zorder=2))
    axes.set(xlim=(0, four_rooms.SIDE), ylim=(0, four_rooms.SIDE), aspect="equal", xticks=[], yticks=[])


def fading_path(axes, path: np.ndarray, colour: str) -> None:
    """A trajectory (T, 2): colour saturating over time, start filled, as in Figure 5."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    share = np.linspace(0.15, 1, max(1, len(path) - 1))[:, None]
    shades = 1 - share * (1 - np.array(to_rgb(colour)))
    axes.add_collection(LineCollection(np.stack([path[:-1], path[1:]], 1), colors=shades, lw=1.8, zorder=3))
    axes.plot(*path[0], "o", color=1 - 0.35 * (1 - np.array(to_rgb(colour))), ms=6, mec=colour, mew=0.8, zorder=4)
