// The demo page: for every prompt the methods' curves side by side, and the family tree of each search.

import { comparison, CurveView } from "../draw/curves.js";
import { Run } from "../draw/run.js";
import { TreeView } from "../draw/tree.js";
import { cssColour, pageData, redrawn } from "./page.js";

const CURVES = 260; // pixels
let parsed = null;
const data = () => (parsed ??= pageData());

/** Fills the page; data: [{name, colour, method, search, start, pictures: {id: URI}}] per prompt, in its order. */
export function showDemo() {
  document.querySelectorAll("details[data-prompt]").forEach((details) => {
    const entries = data()[Number(details.dataset.prompt)];
    const fill = () => {
      if (details.open && !details.dataset.filled) {
        details.dataset.filled = "yes";
        fillPrompt(details, entries);
      }
    };
    details.addEventListener("toggle", fill);
    fill();
  });
}

/** Curves and trees of one prompt. They are drawn when the reader opens it, because only then has it a width. */
function fillPrompt(details, entries) {
  const runs = entries.map((entry) => Run.from(entry.search));
  const views = ["best", "now"].map((kind) => {
    const view = new CurveView(CURVES);
    details.querySelector(`[data-curve="${kind}"]`).append(view.canvas);
    return view;
  });
  const images = [];
  const trees = entries.map((entry, k) => {
    const holder = details.querySelector(`[data-tree="${entry.method}"]`);
    if (!holder) return null;
    const pictures = new Map(Object.entries(entry.pictures).map(([id, source]) => [Number(id), loaded(source)]));
    images.push(...pictures.values());
    const tree = new TreeView({ across: true, ends: [entry.start, "finished"], pictures });
    holder.append(tree.canvas);
    return { tree, run: runs[k], entry };
  });
  redrawn((dark) => {
    const lines = entries.map(({ name, colour }, k) => ({ name, colour: cssColour(colour), run: runs[k] }));
    const best = ({ run, ...line }) => ({ ...line, points: [...run.bestSoFar().values()][0] ?? [] });
    const now = ({ run, ...line }) => ({ ...line, points: run.bestNow() });
    views[0].draw(comparison(lines.map(best)), dark);
    views[1].draw(comparison(lines.map(now)), dark);
    for (const { tree, run, entry } of trees.filter(Boolean)) {
      tree.won = cssColour(entry.colour);
      tree.layerKey = null;
      tree.show(run, dark);
    }
  }, images);
}

function loaded(source) {
  const image = new Image();
  image.src = source;
  return image;
}
