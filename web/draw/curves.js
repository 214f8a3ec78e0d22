// Scores over compute on a canvas: of one search (every score a dot, the best so far a line), or of several compared.

import { cleared, fillDots, picture, triangle } from "./canvas.js";
import { byShade, palette, scoreColour } from "./colours.js";
import { ticks } from "./layout.js";
import { say } from "./texts.js";

/** Corners of a line that keeps a value until the next one is known, and the last one until `end`. */
export function staircase(curve, end) {
  const corners = curve.slice(0, 1);
  curve.slice(1).forEach(([nfe, score], k) => corners.push([nfe, curve[k][1]], [nfe, score]));
  return corners.length ? [...corners, [end, curve.at(-1)[1]]] : [];
}

/** What is drawn of one search: {dots, lines, events, last, label}; lines have a key of the palette as their colour. */
export function chartOf(run) {
  const last = Math.max(1, ...run.records.map((r) => r.nfe));
  const paths = run.heads().map((head) => run.path(head.id).filter((p) => p.score !== null).reverse());
  const ways = paths.map((path) => path.map((p) => [p.record.nfe, p.score]));
  const curves = [...run.bestSoFar().values()];
  return {
    dots: run.scored().map((point) => ({ ...point, share: run.share(point.score) })),
    lines: [
      ...ways.map((points) => ({ points, colour: "won", thickness: 1.4, end: 3.4 })),
      ...curves.map((curve) => ({ points: staircase(curve, last), colour: "text", thickness: 2 })),
    ],
    events: [...new Set(run.records.filter((r) => r.resampled?.some(Boolean)).map((r) => r.nfe))],
    last,
    label: curves.length ? say("curveBest", { score: run.high.toPrecision(4) }) : null,
  };
}

/** Several searches compared: one line per {name, colour (CSS), points: [[nfe, score]]}. */
export function comparison(series) {
  const shown = series.filter(({ points }) => points.length);
  const ends = shown.map(({ name, points }) => {
    const [nfe, score] = points.at(-1);
    return say("lineEnd", { name, score: score.toFixed(3), nfe });
  });
  return {
    dots: [],
    lines: shown.map((line) => ({ ...line, thickness: 2.2, end: 4.2 })),
    events: [],
    last: 1.02 * Math.max(1, ...shown.flatMap(({ points }) => points.map(([nfe]) => nfe))),
    label: ends.length ? `${say("curve")}. ${ends.join("; ")}` : null,
  };
}

export class CurveView {
  constructor(height = 130) {
    this.canvas = picture("testtime-curve", false);
    this.height = height;
    this.small = height < 200; // of a sidebar
  }

  /** The curves of one search. */
  show(run, dark) {
    this.draw(chartOf(run), dark);
  }

  /** What `chartOf` or `comparison` gave. */
  draw(chart, dark) {
    const { canvas, height, small } = this;
    const { context, width } = cleared(canvas, height);
    const colours = palette(dark);
    context.font = `${small ? 10 : 12}px system-ui, sans-serif`;
    const scores = [...chart.dots.map((dot) => dot.score), ...chart.lines.flatMap((l) => l.points.map((p) => p[1]))];
    canvas.setAttribute("aria-label", chart.label ?? `${say("curve")}: ${say("curveNothing")}`);
    if (!scores.length) {
      context.fillStyle = colours.muted;
      context.textAlign = "center";
      context.fillText(say("curveNothing"), width / 2, height / 2);
      return;
    }
    const [lowest, highest] = scores.reduce(([a, b], s) => [Math.min(a, s), Math.max(b, s)], [Infinity, -Infinity]);
    const margin = 0.08 * (highest - lowest || 1);
    const range = { low: lowest - margin, high: highest + margin, last: chart.last };
    const place = this.axes(context, range, width, colours);
    this.events(context, chart.events, place, colours);
    const radius = small || chart.dots.length > 4000 ? 1.9 : 3;
    for (const chosen of [false, true]) {
      const dots = chart.dots.filter((dot) => dot.selected === chosen);
      for (const [shade, mine] of byShade(dots, (dot) => dot.share)) {
        context.fillStyle = scoreColour(shade, dark, chosen ? 1 : 0.45);
        fillDots(context, mine.map((dot) => place(dot.nfe, dot.score)), chosen ? radius : 0.8 * radius);
      }
    }
    for (const line of chart.lines) this.line(context, line, place, colours);
  }

  /** Grid, numbers and the name of the axis; returns (nfe, score) -> [x, y]. */
  axes(context, { low, high, last }, width, colours) {
    const { height, small } = this;
    const [left, right, top, bottom] = small ? [38, 10, 10, 20] : [52, 14, 14, 42];
    const place = (nfe, score) => [
      left + ((width - left - right) * nfe) / last,
      top + ((height - top - bottom) * (high - score)) / (high - low),
    ];
    context.strokeStyle = colours.grid;
    context.fillStyle = colours.muted;
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const value of ticks(low, high, small ? 4 : 6)) {
      const y = Math.round(place(0, value)[1]) + 0.5;
      context.beginPath();
      context.moveTo(left, y);
      context.lineTo(width - right, y);
      context.stroke();
      context.fillText(String(value), left - 6, y);
    }
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    for (const value of ticks(0, last, small ? 4 : 6)) {
      context.fillText(value.toLocaleString("en"), place(value, low)[0], height - bottom + (small ? 14 : 18));
    }
    if (!small) context.fillText(say("passes"), (left + width - right) / 2, height - 4);
    return place;
  }

  events(context, events, place, colours) {
    context.strokeStyle = context.fillStyle = colours.event;
    const bottom = this.height - (this.small ? 20 : 42);
    for (const nfe of events) {
      const x = place(nfe, 0)[0];
      context.globalAlpha = 0.35;
      context.setLineDash([3, 3]);
      context.beginPath();
      context.moveTo(x, 10);
      context.lineTo(x, bottom);
      context.stroke();
      context.globalAlpha = 1;
      context.setLineDash([]);
      if (!this.small) triangle(context, x, 6, 6, true);
    }
  }

  line(context, { points, colour, thickness, end }, place, colours) {
    const places = points.map((point) => place(...point));
    context.strokeStyle = context.fillStyle = colours[colour] ?? colour;
    context.lineWidth = thickness;
    context.lineJoin = context.lineCap = "round";
    context.beginPath();
    for (const corner of places) context.lineTo(...corner);
    context.stroke();
    if (end && places.length) fillDots(context, [places.at(-1)], this.small ? 0.8 * end : end);
  }
}
