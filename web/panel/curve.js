// Scores over compute on a canvas: every score a dot, the best so far a line.

import { DRAWN_BY_CPU, palette, scoreColour } from "./colours.js";
import { say } from "./texts.js";

const LEVELS = 32; // colours of scores
const [LEFT, RIGHT, TOP, BOTTOM] = [38, 10, 8, 20];

/** About `count` round numbers in [low, high]. */
export function ticks(low, high, count = 4) {
  const raw = Math.max(high - low, 1e-12) / count;
  const magnitude = 10 ** Math.floor(Math.log10(raw));
  const step = magnitude * [1, 2, 5, 10].find((m) => m * magnitude >= raw * (1 - 1e-9));
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(+v.toFixed(10));
  return found;
}

export class CurveView {
  constructor(height = 130) {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "testtime-curve";
    this.canvas.style.height = `${height}px`;
    this.canvas.setAttribute("role", "img");
    this.height = height;
  }

  show(run, dark) {
    const { canvas, height } = this;
    const width = canvas.clientWidth || canvas.parentElement?.clientWidth || 300;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d", DRAWN_BY_CPU);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const colours = palette(dark);
    context.font = "10px sans-serif";
    const curve = run.bestSoFar();
    if (!curve.length) {
      canvas.setAttribute("aria-label", `${say("curve")}: ${say("curveNothing")}`);
      context.fillStyle = colours.muted;
      context.textAlign = "center";
      context.fillText(say("curveNothing"), width / 2, height / 2);
      return;
    }
    const best = curve[curve.length - 1][1];
    canvas.setAttribute("aria-label", say("curveBest", { score: best.toPrecision(4) }));
    const margin = 0.08 * Math.max(run.high - run.low, 1e-6);
    const [low, high] = [run.low - margin, run.high + margin];
    const last = Math.max(...run.records.map((r) => r.nfe), 1);
    const place = (nfe, score) => [
      LEFT + ((width - LEFT - RIGHT) * nfe) / last,
      TOP + ((height - TOP - BOTTOM) * (high - score)) / (high - low),
    ];
    context.strokeStyle = colours.grid;
    context.fillStyle = colours.muted;
    context.textBaseline = "middle";
    for (const value of ticks(low, high)) {
      const y = place(0, value)[1];
      context.beginPath();
      context.moveTo(LEFT, y);
      context.lineTo(width - RIGHT, y);
      context.stroke();
      context.textAlign = "right";
      context.fillText(String(value), LEFT - 5, y);
    }
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    for (const value of ticks(0, last, 4)) context.fillText(String(value), place(value, low)[0], height - 6);
    // Squares of one colour make one path, and each colour is worked out once: there can be thousands.
    const groups = new Map();
    for (const record of run.records) {
      for (const p of record.rows) {
        if (p.score === null) continue;
        const group = 2 * Math.round(run.share(p.score) * LEVELS) + (p.selected ? 1 : 0);
        if (!groups.has(group)) groups.set(group, []);
        groups.get(group).push(place(record.nfe, p.score));
      }
    }
    for (const [group, dots] of groups) {
      context.fillStyle = scoreColour(Math.floor(group / 2) / LEVELS, dark, group & 1 ? 1 : 0.5);
      context.beginPath();
      for (const [x, y] of dots) context.rect(x - 1.8, y - 1.8, 3.6, 3.6);
      context.fill();
    }
    context.strokeStyle = colours.text;
    context.lineWidth = 1.8;
    context.beginPath();
    curve.forEach(([nfe, score], k) => {
      if (k === 0) context.moveTo(...place(nfe, score));
      else {
        context.lineTo(...place(nfe, curve[k - 1][1]));
        context.lineTo(...place(nfe, score));
      }
    });
    context.stroke();
  }
}
