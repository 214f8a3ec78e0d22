// The report page of one search: draws its tree and curves, and tells of the particle that is pointed at.

import { CurveView } from "../draw/curves.js";
import { element, number } from "../draw/dom.js";
import { Run } from "../draw/run.js";
import { say } from "../draw/texts.js";
import { TreeView } from "../draw/tree.js";
import { pageData, redrawn } from "./page.js";

const CURVES = 340; // pixels

/** Fills the page; everything that it needs is inside it. */
export function showReport() {
  const run = Run.from(pageData());
  const images = [...document.querySelectorAll("img[data-particle]")];
  const pictures = new Map(images.map((image) => [Number(image.dataset.particle), image]));
  const last = new Set(run.records.at(-1).rows.map((p) => p.id));
  const finished = new Map([...pictures].filter(([id]) => last.has(id)));
  const note = document.getElementById("inspector");
  const hint = note.textContent;
  const tree = new TreeView({
    across: true,
    ends: [note.dataset.start, note.dataset.end],
    pictures: finished,
    onPoint: (particle) => (particle ? inspect(note, run, particle, pictures) : (note.textContent = hint)),
  });
  const curves = new CurveView(CURVES);
  document.getElementById("tree").append(tree.canvas);
  const scored = run.scored().length > 0;
  document.getElementById("curves").append(scored ? curves.canvas : element("p", "fine", say("nothingScored")));
  redrawn(
    (dark) => {
      tree.layerKey = null;
      tree.show(run, dark);
      curves.show(run, dark);
    },
    [...finished.values()],
  );
}

/** The latest preview on the way of a particle, and what is known of it. */
function inspect(note, run, particle, pictures) {
  const seen = run.path(particle.id).find((p) => pictures.has(p.id));
  const words = [
    say("particle", particle),
    say("step", particle.record),
    particle.score === null ? say("noScore") : say("score", { score: number(particle.score) }),
  ];
  note.replaceChildren();
  if (seen) note.append(Object.assign(element("img"), { src: pictures.get(seen.id).src, alt: say("previewOf", seen) }));
  note.append(element("span", "", words.join(", ")));
  if (particle.prompt) note.append(element("q", "", particle.prompt));
}
