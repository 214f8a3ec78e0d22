// The family tree on a canvas: steps from top to bottom, one lane per particle, the path of one particle on top.

import { DRAWN_BY_CPU, palette, scoreColour } from "./colours.js";
import { say } from "./texts.js";

const MARGIN = 12;
const ROW = 16;
const LEVELS = 32; // colours of scores

/** Places {particle id -> [x, y]} of a run in `width` pixels: children in the order of their parents. */
export function layout(run, width, row = ROW) {
  const places = new Map();
  let order = new Map();
  run.records.forEach((record, line) => {
    const sorted = [...record.rows].sort(
      (a, b) => a.group - b.group || (order.get(a.parent) ?? -1) - (order.get(b.parent) ?? -1) || a.id - b.id,
    );
    order = new Map();
    sorted.forEach((particle, lane) => {
      const share = sorted.length === 1 ? 0.5 : lane / (sorted.length - 1);
      places.set(particle.id, [MARGIN + (width - 2 * MARGIN) * share, MARGIN + line * row]);
      order.set(particle.id, lane);
    });
  });
  return places;
}

export class TreeView {
  /** `onHover(particle | null)` is called when the pointer or the keyboard moves to another particle. */
  constructor(onHover) {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "testtime-tree";
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.onHover = onHover;
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

  draw() {
    const { canvas, run } = this;
    const width = canvas.clientWidth || canvas.parentElement?.clientWidth || 300;
    const height = 2 * MARGIN + ROW * Math.max((run?.records.length ?? 1) - 1, 1);
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.style.height = `${height}px`;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d", DRAWN_BY_CPU);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!run) return;
    // All but the path of the focused particle changes only with a new step: it is drawn once, and copied.
    const key = [run.id, run.records.length, run.low, run.high, canvas.width, canvas.height, this.dark].join("/");
    if (key !== this.layerKey) {
      this.layerKey = key;
      canvas.setAttribute("aria-label", say("treeSize", { particles: run.particles.size, steps: run.records.length }));
      this.places = layout(run, width);
      this.layer ??= document.createElement("canvas");
      Object.assign(this.layer, { width: canvas.width, height: canvas.height });
      const below = this.layer.getContext("2d", DRAWN_BY_CPU);
      below.setTransform(ratio, 0, 0, ratio, 0, 0);
      this.paint(below, width);
    }
    context.drawImage(this.layer, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.highlight(context);
  }

  line(context, particle) {
    const from = this.places.get(particle.parent);
    if (!from) return;
    const to = this.places.get(particle.id);
    context.moveTo(...from);
    const middle = (from[1] + to[1]) / 2;
    if (Math.abs(from[0] - to[0]) < 0.5) context.lineTo(...to);
    else context.bezierCurveTo(from[0], middle, to[0], middle, to[0], to[1]);
  }

  paint(context, width) {
    const { run, places } = this;
    const colours = palette(this.dark);
    const crowd = Math.max(...run.records.map((r) => r.rows.length), 1);
    this.radius = Math.min(4, Math.max(1.2, (0.4 * (width - 2 * MARGIN)) / crowd));
    const newest = run.records[run.records.length - 1];
    const alive = (record, p) => p.children > 0 || record === newest;

    context.strokeStyle = colours.event;
    context.globalAlpha = 0.45;
    context.beginPath();
    for (const record of run.records) {
      if (!record.resampled?.some(Boolean)) continue;
      const y = places.get(record.rows[0].id)[1];
      context.moveTo(2, y);
      context.lineTo(width - 2, y);
    }
    context.stroke();
    for (const living of [false, true]) {
      context.globalAlpha = living ? 0.6 : 0.22;
      context.strokeStyle = colours.muted;
      context.beginPath();
      for (const record of run.records) {
        for (const p of record.rows) if (alive(record, p) === living) this.line(context, p);
      }
      context.stroke();
    }
    context.globalAlpha = 1;
    // Dots of one colour make one path, and each colour is worked out once: there can be thousands.
    const groups = new Map();
    for (const record of run.records) {
      for (const p of record.rows) {
        const level = p.score === null ? -1 : Math.round(run.share(p.score) * LEVELS);
        const group = 2 * level + (alive(record, p) ? 1 : 0);
        if (!groups.has(group)) groups.set(group, []);
        groups.get(group).push(places.get(p.id));
      }
    }
    for (const [group, dots] of groups) {
      const level = Math.floor(group / 2);
      context.fillStyle = scoreColour(level < 0 ? null : level / LEVELS, this.dark, group & 1 ? 1 : 0.45);
      context.beginPath();
      const side = 1.8 * this.radius;
      for (const [x, y] of dots) {
        if (this.radius < 2) context.rect(x - side / 2, y - side / 2, side, side); // too small to look round
        else {
          context.moveTo(x + this.radius, y);
          context.arc(x, y, this.radius, 0, 7);
        }
      }
      context.fill();
    }
  }

  highlight(context) {
    const { run, places } = this;
    const focus = this.focus ?? run.leader();
    if (!focus) return;
    const path = run.path(focus.id).filter((p) => places.has(p.id));
    context.strokeStyle = palette(this.dark).accent;
    context.lineWidth = 2.2;
    context.beginPath();
    for (const p of path) this.line(context, p);
    context.stroke();
    for (const p of path) {
      context.fillStyle = scoreColour(run.share(p.score), this.dark);
      context.beginPath();
      context.arc(...places.get(p.id), this.radius + 1, 0, 7);
      context.fill();
      context.stroke();
    }
  }

  point(x, y) {
    let best = null;
    let distance = 14 ** 2;
    for (const [id, [px, py]] of this.places) {
      const d = (px - x) ** 2 + (py - y) ** 2;
      if (d < distance) [best, distance] = [id, d];
    }
    this.choose(best === null ? this.pinned : this.run.particles.get(best));
  }

  pin(particle) {
    this.pinned = particle;
  }

  key(event) {
    const rows = this.run?.records;
    if (!rows?.length) return;
    const at = this.focus ?? this.run.leader() ?? rows[rows.length - 1].rows[0];
    const line = rows.indexOf(at.record);
    const byPlace = (record) => [...record.rows].sort((a, b) => this.places.get(a.id)[0] - this.places.get(b.id)[0]);
    const near = (record) =>
      byPlace(record).reduce((a, b) =>
        Math.abs(this.places.get(b.id)[0] - this.places.get(at.id)[0]) <
        Math.abs(this.places.get(a.id)[0] - this.places.get(at.id)[0])
          ? b
          : a,
      );
    const lane = byPlace(at.record);
    const moves = {
      ArrowLeft: () => lane[Math.max(0, lane.indexOf(at) - 1)],
      ArrowRight: () => lane[Math.min(lane.length - 1, lane.indexOf(at) + 1)],
      ArrowUp: () => this.run.particles.get(at.parent) ?? near(rows[Math.max(0, line - 1)]),
      ArrowDown: () => near(rows[Math.min(rows.length - 1, line + 1)]),
      Escape: () => null,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    this.pin(moves[event.key]());
    this.choose(this.pinned);
  }

  choose(particle) {
    if (particle === this.focus) return;
    this.focus = particle;
    this.draw();
    this.onHover(particle);
  }
}
