// The family tree of a search on a canvas: one lane per particle, the paths of the winners on top. Steps go down in the
// panel, which is narrow, and across on a page.

import { cleared, fillDots, picture, triangle } from "./canvas.js";
import { byShade, DRAWN_BY_CPU, palette, scoreColour } from "./colours.js";
import { layout, stride } from "./layout.js";
import { say } from "./texts.js";

const DOWN = { left: 34, right: 12, top: 12, bottom: 12, row: 16, longest: 14000 };
const ACROSS = { left: 24, right: 24, top: 22, bottom: 46, lane: 19, lowest: 150, highest: 900 };
const THUMB = 44; // pixels of a finished image beside its particle
const REACH = [18, 40]; // pixels within which a particle is pointed at: at least, and at most where steps lie far apart

export class TreeView {
  /**
   * Options: `across`: steps go from left to right instead of down; `onPoint(particle | null)`: the pointer or the
   * keyboard moved to another particle; `won`: CSS colour of the winner's path; `ends`: [what stands at the first step,
   * at the last]; `pictures`: Map of particle id -> loaded image of finished particles, drawn at the right end.
   */
  constructor({ across = false, onPoint = () => {}, won = null, ends = null, pictures = new Map() } = {}) {
    Object.assign(this, { across, onPoint, won, ends, pictures });
    this.canvas = picture("testtime-tree", true);
    this.focus = null;
    this.pinned = null; // by a click: stays when the pointer leaves
    this.places = new Map();
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX, event.offsetY));
    this.canvas.addEventListener("pointerleave", () => this.choose(this.pinned));
    this.canvas.addEventListener("click", () => this.pin(this.focus));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  show(run, dark) {
    this.run = run;
    this.dark = dark;
    this.draw();
  }

  /** Everything but the path of the focused particle changes only with a new step: it is drawn once, and copied. */
  draw() {
    const { canvas, run } = this;
    if (!run?.records.length) return;
    const key = [run.id, run.records.length, run.low, run.high, run.winners, this.dark, window.devicePixelRatio];
    if (String(key) !== this.planKey) {
      this.planKey = String(key);
      this.plan = layout(run);
      this.layerKey = null;
    }
    const { context, width, ratio } = cleared(canvas, this.height());
    const size = `${canvas.width}/${canvas.height}`;
    if (size !== this.layerKey) {
      this.layerKey = size;
      this.arrange(width);
      const steps = this.plan.columns.length;
      canvas.setAttribute("aria-label", say("treeSize", { particles: run.particles.size, steps }));
      this.layer ??= document.createElement("canvas");
      Object.assign(this.layer, { width: canvas.width, height: canvas.height });
      const below = this.layer.getContext("2d", DRAWN_BY_CPU);
      below.setTransform(ratio, 0, 0, ratio, 0, 0);
      this.paint(below, width);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.layer, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.focus) this.way(context, this.run.path(this.focus.id), palette(this.dark).pointed, 2.6);
  }

  /** Draws everything anew, also when the run is the one that was drawn before. */
  refresh() {
    this.planKey = null;
    this.draw();
  }

  height() {
    const { columns, crowd } = this.plan;
    if (this.across) {
      const lowest = this.pictures.size ? 2 * THUMB + ACROSS.top + ACROSS.bottom : ACROSS.lowest;
      return Math.min(ACROSS.highest, Math.max(lowest, ACROSS.lane * crowd + ACROSS.top + ACROSS.bottom));
    }
    return DOWN.top + DOWN.bottom + Math.min(DOWN.row * Math.max(columns.length - 1, 1), DOWN.longest);
  }

  /** Places in pixels: `this.box`, `this.at(time, lane)`, `this.places`. */
  arrange(width) {
    const edge = this.across ? ACROSS : DOWN;
    const right = edge.right + (this.across && this.pictures.size ? 2 * THUMB + 12 : 0);
    const box = { left: edge.left, top: edge.top, right: width - right, bottom: this.height() - edge.bottom };
    const [wide, high] = [box.right - box.left, box.bottom - box.top];
    this.box = box;
    this.at = this.across
      ? (time, lane) => [box.left + wide * time, box.top + high * lane]
      : (time, lane) => [box.left + wide * lane, box.top + high * time];
    this.places = new Map([...this.plan.places].map(([id, place]) => [id, this.at(...place)]));
    const { columns, crowd } = this.plan;
    const [along, across] = this.across ? [wide, high] : [high, wide];
    this.distance = along / Math.max(columns.length - 1, 1);
    this.radius = Math.max(1.2, Math.min(4.4, (0.36 * across) / crowd, 0.3 * this.distance));
  }

  /** Adds an S-shaped line from a particle's parent to the path of `context`. */
  line(context, from, to) {
    if (!from || !to) return;
    context.moveTo(...from);
    const [x, y] = [(from[0] + to[0]) / 2, (from[1] + to[1]) / 2];
    if (Math.abs(from[this.across ? 1 : 0] - to[this.across ? 1 : 0]) < 0.5) context.lineTo(...to);
    else if (this.across) context.bezierCurveTo(x, from[1], x, to[1], ...to);
    else context.bezierCurveTo(from[0], y, to[0], y, ...to);
  }

  /** The path of a particle from its first ancestor on, with its dots. */
  way(context, path, colour, thickness) {
    const { run, places, dark } = this;
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    for (const p of path) this.line(context, places.get(p.parent), places.get(p.id));
    context.stroke();
    context.lineWidth = Math.min(thickness, 1.8);
    const radius = Math.max(this.radius, Math.min(3.4, 0.3 * this.distance)) + 0.6;
    for (const p of path) {
      if (!places.has(p.id)) continue;
      context.fillStyle = scoreColour(run.share(p.score), dark);
      context.beginPath();
      context.arc(...places.get(p.id), radius, 0, 7);
      context.fill();
      context.stroke();
    }
  }

  paint(context, width) {
    const { run, places, plan, dark } = this;
    const colours = palette(dark);
    this.axis(context, width, colours);
    for (const living of [false, true]) {
      context.globalAlpha = living ? 0.6 : 0.25;
      context.strokeStyle = colours.muted;
      context.lineWidth = plan.crowd <= 32 ? 1.1 : 0.8;
      context.beginPath();
      for (const [parent, child] of plan.edges) {
        if (plan.alive.has(child) === living) this.line(context, places.get(parent), places.get(child));
      }
      context.stroke();
      context.globalAlpha = 1;
      const dots = [...places].filter(([id]) => plan.alive.has(id) === living);
      for (const [shade, mine] of byShade(dots, ([id]) => run.share(run.particles.get(id).score))) {
        context.fillStyle = scoreColour(shade, dark, living ? 1 : 0.42);
        fillDots(context, mine.map(([, place]) => place), this.radius);
      }
    }
    for (const head of run.heads()) this.way(context, run.path(head.id), this.won ?? colours.won, 2.2);
    if (this.across && this.pictures.size) this.finished(context, colours);
  }

  /** Numbers of the steps, and a dashed line with a mark at every resampling. */
  axis(context, width, colours) {
    const { across, box } = this;
    context.font = `${across ? 12 : 10}px system-ui, sans-serif`;
    const every = stride(this.distance, across ? 34 : 30);
    this.plan.columns.forEach(({ time, step, resampled }, number) => {
      const [x, y] = this.at(time, 0);
      if (resampled) {
        context.strokeStyle = context.fillStyle = colours.event;
        context.globalAlpha = 0.45;
        context.lineWidth = 1;
        context.setLineDash([3, 3]);
        context.beginPath();
        if (across) [[x, box.top - 12], [x, box.bottom + 6]].forEach((corner) => context.lineTo(...corner));
        else [[box.left - 8, y], [width - 2, y]].forEach((corner) => context.lineTo(...corner));
        context.stroke();
        context.setLineDash([]);
        context.globalAlpha = 1;
        if (across) triangle(context, x, box.top - 14, 6, true);
        else triangle(context, box.left - 12, y, 6, false);
      }
      if (number % every) return;
      context.fillStyle = colours.muted;
      context.textAlign = across ? "center" : "right";
      context.textBaseline = across ? "alphabetic" : "middle";
      if (across) context.fillText(step, x, box.bottom + 24);
      else context.fillText(step, box.left - 15, y);
    });
    if (!across || !this.ends) return;
    context.textAlign = "left";
    context.fillText(this.ends[0], 2, box.bottom + 41);
    context.textAlign = "right";
    context.fillText(this.ends[1], Math.min(box.right + 16, width), box.bottom + 41);
  }

  /** Finished images beside their particles, in two columns, as many as fit without touching, winners for sure. */
  finished(context, colours) {
    const { places, plan, pictures } = this;
    const known = [...pictures.keys()].filter((id) => places.has(id));
    known.sort((a, b) => plan.won.has(b) - plan.won.has(a) || places.get(a)[1] - places.get(b)[1]);
    const taken = [[], []];
    for (const id of known) {
      const y = Math.max(THUMB / 2 + 2, places.get(id)[1]);
      const column = taken.findIndex((others) => others.every((other) => Math.abs(other - y) > THUMB + 3));
      if (column < 0) continue;
      taken[column].push(y);
      const [image, left, top] = [pictures.get(id), this.box.right + 14 + column * (THUMB + 6), y - THUMB / 2];
      const scale = THUMB / Math.max(image.naturalWidth, image.naturalHeight, 1);
      const [wide, high] = [image.naturalWidth * scale, image.naturalHeight * scale];
      context.drawImage(image, left + (THUMB - wide) / 2, top + (THUMB - high) / 2, wide, high);
      const won = plan.won.has(id);
      context.strokeStyle = won ? (this.won ?? colours.won) : colours.grid;
      context.lineWidth = won ? 2.6 : 1;
      context.strokeRect(left, top, THUMB, THUMB);
    }
  }

  /** The particle next to a point of the canvas, if one is near. */
  point(x, y) {
    let best = null;
    let nearest = Math.min(REACH[1], Math.max(REACH[0], 0.55 * this.distance)) ** 2;
    for (const [id, [px, py]] of this.places) {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < nearest) [best, nearest] = [id, distance];
    }
    this.choose(best === null ? this.pinned : this.run.particles.get(best));
  }

  pin(particle) {
    this.pinned = particle;
  }

  /** Arrow keys: to the parent, to a child, to the neighbours of the same step. Escape: back to the winner. */
  key(event) {
    const moves = this.across ? ["Left", "Right", "Up", "Down"] : ["Up", "Down", "Left", "Right"];
    const move = moves.indexOf(event.key.replace("Arrow", ""));
    if (!this.run?.records.length || (move < 0 && event.key !== "Escape")) return;
    event.preventDefault();
    event.stopPropagation();
    const at = this.focus ?? this.run.leader() ?? this.run.records.at(-1).rows[0];
    const next = move < 0 ? null : (this.neighbours(at)[move] ?? at.id);
    this.pin(next === null ? null : this.run.particles.get(next));
    this.choose(this.pinned);
  }

  /** Ids [parent, child, before in the same step, after in it] of a particle; undefined where there is none. */
  neighbours({ id, parent }) {
    const { places, columns, edges, won } = this.plan;
    const [time, lane] = places.get(id);
    const column = (at) => [...places].filter(([, place]) => place[0] === at);
    const nearest = (at) => column(at).sort((a, b) => Math.abs(a[1][1] - lane) - Math.abs(b[1][1] - lane))[0]?.[0];
    const beside = column(time).sort((a, b) => a[1][1] - b[1][1]);
    const row = beside.findIndex(([other]) => other === id);
    const children = edges.filter(([mother]) => mother === id).map(([, child]) => child);
    const number = columns.findIndex((other) => other.time === time);
    return [
      places.has(parent) ? parent : nearest(columns[number - 1]?.time),
      children.find((child) => won.has(child)) ?? children[0] ?? nearest(columns[number + 1]?.time),
      beside[row - 1]?.[0],
      beside[row + 1]?.[0],
    ];
  }

  choose(particle) {
    if (particle === this.focus) return;
    this.focus = particle;
    this.draw();
    this.onPoint(particle);
  }
}
