// A canvas that fills its holder at the resolution of the screen.

import { DRAWN_BY_CPU } from "./colours.js";

/** A focusable or plain picture; what it shows is told by its `aria-label`. */
export function picture(className, focusable) {
  const canvas = document.createElement("canvas");
  canvas.className = className;
  canvas.setAttribute("role", "img");
  if (focusable) canvas.tabIndex = 0;
  return canvas;
}

/** Sizes `canvas` to its width on the page and `height` CSS pixels and clears it. Returns {context, width, ratio}. */
export function cleared(canvas, height) {
  const width = canvas.clientWidth || canvas.parentElement?.clientWidth || 300;
  const ratio = window.devicePixelRatio || 1;
  const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== columns || canvas.height !== rows) {
    canvas.style.height = `${height}px`;
    canvas.width = columns;
    canvas.height = rows;
  }
  const context = canvas.getContext("2d", DRAWN_BY_CPU);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, columns, rows);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, ratio };
}

/** The mark of a resampling: a small triangle that points from (x, y) along the line of the event. */
export function triangle(context, x, y, size, down) {
  const [along, across] = [size, size * 0.6];
  context.beginPath();
  if (down) [[0, along], [-across, 0], [across, 0]].forEach(([dx, dy]) => context.lineTo(x + dx, y + dy));
  else [[along, 0], [0, -across], [0, across]].forEach(([dx, dy]) => context.lineTo(x + dx, y + dy));
  context.fill();
}

/** Fills the dots [x, y] of a group as one path; small ones are squares, because nobody sees the difference. */
export function fillDots(context, dots, radius) {
  context.beginPath();
  const side = 1.8 * radius;
  for (const [x, y] of dots) {
    if (radius < 2) context.rect(x - side / 2, y - side / 2, side, side);
    else {
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 7);
    }
  }
  context.fill();
}
