// The map: every figure as a point, like ones near each other. Hover names one, a click searches for figures like it, a
// line drawn around some searches for figures like those. With the keyboard the arrows go from figure to figure, and
// Enter searches.
"use strict";

const COLOURS = ["#0f766e", "#b45309", "#6d28d9", "#be123c", "#1d4ed8", "#4d7c0f", "#a21caf", "#0e7490", "#92400e", "#57534e", "#15803d", "#7c2d12"];
const ASKED = 8; // figures of a drawn area that are searched with
const CELL = 12; // pixels of the grid that finds the point under the pointer

let points = null; // {x, y, kind, kinds, ids}; x and y from -1 to 1
let grid = new Map();
let line = [];
let chosen = null; // the figure that the arrows reached

const canvas = $("map").querySelector("canvas");

function place(n, width, height) {
  return [(0.5 + 0.48 * points.x[n]) * width, (0.5 - 0.48 * points.y[n]) * height];
}

function draw() {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const scale = devicePixelRatio || 1;
  Object.assign(canvas, { width: width * scale, height: height * scale });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.globalAlpha = points.ids.length > 5000 ? 0.6 : 0.9;
  const side = points.ids.length > 20000 ? 1.5 : points.ids.length > 2000 ? 2.5 : 5;
  grid = new Map();
  for (let n = 0; n < points.ids.length; n += 1) {
    const [x, y] = place(n, width, height);
    pen.fillStyle = COLOURS[points.kind[n] % COLOURS.length];
    pen.fillRect(x - side / 2, y - side / 2, side, side);
    const cell = `${Math.floor(x / CELL)},${Math.floor(y / CELL)}`;
    if (grid.has(cell)) grid.get(cell).push(n); else grid.set(cell, [n]);
  }
  canvas.dataset.points = points.ids.length;
}

function near(x, y) {
  let [best, least] = [null, CELL * CELL];
  for (const dx of [-1, 0, 1]) for (const dy of [-1, 0, 1]) {
    for (const n of grid.get(`${Math.floor(x / CELL) + dx},${Math.floor(y / CELL) + dy}`) ?? []) {
      const [px, py] = place(n, canvas.clientWidth, canvas.clientHeight);
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) [best, least] = [n, far];
    }
  }
  return best;
}

function inside([x, y], polygon) {
  let odd = false;
  for (let n = 0, before = polygon.length - 1; n < polygon.length; before = n, n += 1) {
    const [ax, ay] = polygon[n], [bx, by] = polygon[before];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

function around(polygon) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const chosen = [];
  for (let n = 0; n < points.ids.length; n += 1) if (inside(place(n, width, height), polygon)) chosen.push(n);
  const middle = [0, 1].map((axis) => chosen.reduce((sum, n) => sum + place(n, width, height)[axis], 0) / chosen.length);
  const far = (n) => place(n, width, height).reduce((sum, value, axis) => sum + (value - middle[axis]) ** 2, 0);
  return chosen.sort((a, b) => far(a) - far(b)).slice(0, ASKED).map((n) => points.ids[n]);
}

function at(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function tell(n) {
  $("map-name").textContent = n === null ? "" : `${points.ids[n]}, ${(points.kinds[points.kind[n]] ?? "").replaceAll("_", " ")}`;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function step([right, down]) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const [x, y] = chosen === null ? [width / 2, height / 2] : place(chosen, width, height);
  let [best, least] = [chosen, Infinity];
  for (let n = 0; n < points.ids.length; n += 1) {
    const [px, py] = place(n, width, height);
    const along = (px - x) * right + (py - y) * down, aside = Math.abs((px - x) * down) + Math.abs((py - y) * right);
    if (along > 0 && along >= aside && along + aside < least) [best, least] = [n, along + aside];
  }
  chosen = best;
  draw();
  if (chosen === null) return;
  const pen = canvas.getContext("2d");
  pen.globalAlpha = 1;
  pen.lineWidth = 2;
  pen.strokeStyle = getComputedStyle(canvas).color;
  pen.beginPath();
  pen.arc(...place(chosen, width, height), 9, 0, 2 * Math.PI);
  pen.stroke();
  tell(chosen);
}

async function showMap() {
  if (points || !$("map").open) return points && draw();
  try {
    points = await call("v1/map");
    $("map-note").textContent = `${number.format(points.ids.length)} figures. Point at one, click for figures like it, or draw a line around some; with the keyboard, arrows and Enter.`;
    $("map-key").replaceChildren(...points.kinds.map((kind, n) => {
      const item = element("li", kind.replaceAll("_", " "));
      const dot = element("i");
      dot.style.background = COLOURS[n % COLOURS.length];
      item.prepend(dot);
      return item;
    }));
    draw();
  } catch (error) {
    $("map-note").textContent = error.message;
  }
}

$("map").addEventListener("toggle", showMap);
addEventListener("resize", () => { if (points && $("map").open) draw(); });
canvas.addEventListener("pointerdown", (event) => { if (points) { line = [at(event)]; canvas.setPointerCapture(event.pointerId); } });
canvas.addEventListener("pointermove", (event) => {
  if (!points) return;
  const [x, y] = at(event);
  if (!line.length) {
    tell(near(x, y));
    return;
  }
  const pen = canvas.getContext("2d");
  pen.strokeStyle = getComputedStyle(canvas).color;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.moveTo(...line.at(-1));
  pen.lineTo(x, y);
  pen.stroke();
  line.push([x, y]);
});
canvas.addEventListener("pointerup", (event) => {
  const drawn = line;
  line = [];
  if (!drawn.length) return;
  const [x, y] = at(event);
  const found = near(x, y);
  const wanted = drawn.length > 5 ? around(drawn) : found === null ? [] : [points.ids[found]];
  draw();
  if (wanted.length) alike(wanted, "page/icon.svg");
});
canvas.addEventListener("keydown", (event) => {
  if (!points) return;
  if (ARROWS[event.key]) step(ARROWS[event.key]);
  else if (event.key === "Enter" && chosen !== null) alike([points.ids[chosen]], "page/icon.svg");
  else return;
  event.preventDefault();
});
