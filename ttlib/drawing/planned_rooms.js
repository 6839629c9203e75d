// Four rooms in the browser: the world as in ttlib/environments/four_rooms.py, and the reader's controls.

const clip = (x, low, high) => Math.min(Math.max(x, low), high);

/** Return how actions move positions, lists of x and y, and whether a position inside the square is in no wall. */
function roomsWorld({walls, side, stride}) {
  /** Find when, and along which axis, from + time * by first enters a wall. */
  function firstHit(from, by) {
    const hit = {time: Infinity, axis: 0};
    for (const [low, high] of walls) {
      const ends = [0, 1].map(i => [(low[i] - from[i]) / by[i], (high[i] - from[i]) / by[i]]);
      const enter = ends.map(pair => Math.min(...pair)), first = Math.max(...enter);
      const last = Math.min(...ends.map(pair => Math.max(...pair)));
      const axis = enter[0] >= enter[1] ? 0 : 1;
      if (first < last && last > 0 && first < Math.min(1, hit.time)) Object.assign(hit, {time: first, axis});
    }
    return hit;
  }

  function move(from, action) {
    const target = from.map((x, i) => clip(x + stride * clip(Math.fround(action[i]), -1, 1), 0, side));
    for (let i = 0; i < 2; i++) {  // at the second wall, no motion remains
      const {time, axis} = firstHit(from, target.map((x, j) => x - from[j]));
      from = from.map((x, j) => Math.fround(x + Math.min(time, 1) * (target[j] - x)));
      if (time < 1) target[axis] = from[axis];
    }
    return from;
  }

  return {move, free: x => !walls.some(([low, high]) => x.every((value, i) => low[i] < value && value < high[i]))};
}

/** Make the element `box` a picture in which start and goal can be dragged, and each decision is planned and drawn. */
function planRooms(box, {choices, folder, points, limit, radius, ...rooms}) {
  const {move, free} = roomsWorld(rooms), loaded = {}, cells = 20;  // cells: of the heat map, along an axis
  const find = selector => box.querySelector(selector), [play, step, back] = box.querySelectorAll("button");
  const [width, horizon] = box.querySelectorAll("[type=range]"), handles = {start: find(".start"), goal: find(".goal")};
  // past: the tokens of the steps taken; path: the positions, or null before a walk begins; beams: of the last plan.
  let choice = choices[0], model, position, past = [], path = null, beams, playing = false, busy = false;

  const say = text => { if (find(".said").textContent !== text) find(".said").textContent = text; };
  const centre = (bin, dim) => model.low[dim] + (model.high[dim] - model.low[dim]) * (bin + 0.5) / model.V;
  const pair = (bins, at, dim) => [centre(bins[at], dim), centre(bins[at + 1], dim + 1)];
  const bin = (x, dim) => Math.floor(model.V * (x - model.low[dim]) / (model.high[dim] - model.low[dim]));
  const tokens = point => point.map((x, dim) => model.id(clip(bin(x, dim), 0, model.V - 1), dim));
  const arrived = () => Math.hypot(...position.map((x, i) => x - points.goal[i])) <= radius;
  const over = () => arrived() || past.length >= limit;

  function make(tag, parent, attributes) {
    const element = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
    for (const name in attributes) element.setAttribute(name, attributes[name]);
  }

  /** Load a model when it is first used: a page on a disk may load scripts, but fetch nothing. */
  function load({file}) {
    return loaded[file] ??= new Promise((resolve, reject) => {
      const script = Object.assign(document.createElement("script"), {src: `${folder}/${file}.js`});
      script.onload = () => resolve(new Transformer(window.ttlibWeights[file]));
      script.onerror = () => { delete loaded[file]; reject(); };
      document.head.append(script);
    });
  }

  function decide() {
    const began = performance.now(), memory = past.slice(Math.max(0, past.length - choice.context));
    model.begin([...(model.prefix ? tokens(points.goal) : []), ...memory.flat(), ...tokens(position)]);
    beams = model.plan(+horizon.value, +width.value);
    const took = Math.ceil(performance.now() - began), [best, worst] = [0, -1].map(i => beams.at(i).q.toFixed(1));
    find(".now").textContent = `Steps taken: ${past.length}. The next one was planned in ${took} ms. Log-probability ` +
      `of the best plan: ${best}, of the last one kept: ${worst}.`.replaceAll("-", "−");
  }

  function act() {
    if (!path || over()) restart();
    const {bins} = beams[0];
    past.push([...tokens(position), model.id(bins[0], 2), model.id(bins[1], 3)]);
    path.push(position = move(position, pair(bins, 0, 2)));
  }

  function restart() { position = points.start.map(Math.fround); path = [position]; past = []; decide(); }
  function pause() { playing = false; play.textContent = "Play"; }

  /** Draw what needs no model. */
  function drawWorld() {
    for (const name in handles) {
      const [x, y] = points[name];
      handles[name].setAttribute("transform", `translate(${x} ${y})`);
      handles[name].setAttribute("aria-label", `${name}, x ${x.toFixed(1)}, y ${y.toFixed(1)}; arrow keys move it`);
    }
    for (const slider of [width, horizon]) slider.nextElementSibling.textContent = slider.value;
    if (!path) return;
    find(".trail").setAttribute("points", path.join(" "));
    find(".agent").setAttribute("transform", `translate(${position.join(" ")})`);
  }

  function drawPlans() {
    const all = find(".beams"), heat = find(".heat g"), [x, y] = position, half = 1.2;  // half: of what is enlarged
    for (const group of [all, heat]) group.replaceChildren();
    for (const {bins, q} of [...beams].reverse()) {  // the best one is drawn last, over the others
      const line = [position];
      for (let at = 2; at < bins.length; at += 4) line.push(pair(bins, at, 0));
      const action = pair(bins, bins.length - 2, 2);  // where the last action leads is not predicted
      line.push(line.at(-1).map((x, i) => x + rooms.stride * action[i]));
      const opacity = Math.max(0.15, Math.exp(q - beams[0].q)), [stroke, fill] = ["var(--plan)", "var(--plan)"];
      make("polyline", all, {points: line.join(" "), "vector-effect": "non-scaling-stroke", stroke, opacity});
      line.slice(1).forEach(([cx, cy]) => make("circle", all, {cx, cy, r: 0.05, fill, opacity}));
    }
    find(".zoom").setAttribute("viewBox", [x - half, rooms.side - y - half, 2 * half, 2 * half].join(" "));
    const mass = new Float64Array(cells * cells), cell = bin => Math.floor(bin * cells / model.V), size = 2 / cells;
    for (const [bin, row] of model.pairs(0.002)) row.forEach((p, j) => { mass[cell(bin) * cells + cell(j)] += p; });
    const top = Math.max(...mass), [cx, cy] = pair(beams[0].bins, 0, 2);
    mass.forEach((p, i) => make("rect", heat, {x: size * Math.floor(i / cells) - 1, y: size * (i % cells) - 1,
      width: size, height: size, opacity: Math.sqrt(p / top)}));
    make("circle", heat, {cx, cy, r: 0.1});
  }

  /** Make a change with the chosen model, which is loaded if need be; then plan, and draw. */
  async function use(change = () => {}) {
    drawWorld();
    if (busy) return;
    const wanted = choice;
    try {
      busy = true;
      if (!loaded[wanted.file]) say("Your browser loads the model, 2.3 MB.");
      model = await load(wanted);
    } catch {
      pause();
      return say("The model did not load. Its file lies beside this page in the HTML book: open the page there.");
    } finally { busy = false; }
    if (wanted !== choice) return use(change);
    if (!path) restart();
    change(); decide(); drawWorld(); drawPlans();
    if (past.length && over()) pause();
    say(!past.length || !over() ? choice.about : `It ${arrived() ? "reached" : "has not reached"} the goal after ` +
      `${past.length} steps.`);
  }

  async function walk() { if (playing) { await use(act); setTimeout(walk, 80); } }

  /** Move the start or the goal, unless a wall is there. The walk begins again, or turns to the new goal. */
  function place(name, point) {
    if (!free(point)) return;
    points[name] = point;
    if (name === "start") { pause(); path = null; }
    use();
  }

  function under(event) {
    const {x, y} = new DOMPoint(event.clientX, event.clientY).matrixTransform(find(".world").getScreenCTM().inverse());
    return [x, y].map(value => clip(value, 0, rooms.side));
  }

  for (const name in handles) {
    const handle = handles[name], held = event => handle.hasPointerCapture(event.pointerId);
    handle.onpointerdown = event => handle.setPointerCapture(event.pointerId);
    handle.onpointermove = event => { if (held(event)) place(name, under(event)); };
    handle.onkeydown = event => {
      const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key];
      if (!by || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault(); event.stopPropagation();  // otherwise the arrow keys would turn the pages of the book
      place(name, points[name].map((x, i) => Math.round(4 * x + by[i]) / 4));
    };
  }
  find("svg").onclick = event => { if (!event.target.closest(".handle")) place("goal", under(event)); };
  play.onclick = () => { if (playing) pause(); else { playing = true; play.textContent = "Pause"; walk(); } };
  step.onclick = () => { pause(); use(act); };
  back.onclick = () => place("start", points.start);
  width.oninput = horizon.oninput = () => use();
  find(".models").onchange = event => { choice = choices[event.target.value]; place("start", points.start); };
  find(".controls").hidden = false;
  drawWorld();
}
