// What drawings say, in the languages of the pack, and how every text is found. {names} in a text are filled in.

export const DRAWING_TEXTS = {
  en: {
    curve: "Scores over compute",
    curveBest: "Scores over compute: best {score}",
    curveNothing: "No scores yet",
    nothingScored: "Nothing was scored.",
    passes: "forward passes (NFE)",
    tree: "Family tree",
    treeSize: "Family tree: {particles} particles in {steps} steps",
    particle: "Particle {id}",
    score: "score {score}",
    noScore: "no score",
    step: "step {step} of {steps}",
    previewOf: "Preview of particle {id}",
    playClip: "Play",
    stopClip: "Stop",
    lineEnd: "{name}: {score} after {nfe} forward passes",
  },
  de: {
    curve: "Bewertung nach Rechenaufwand",
    curveBest: "Bewertung nach Rechenaufwand, beste: {score}",
    curveNothing: "Noch keine Bewertungen",
    nothingScored: "Es wurde nichts bewertet.",
    passes: "Modellaufrufe (NFE)",
    tree: "Stammbaum",
    treeSize: "Stammbaum: {particles} Partikel in {steps} Schritten",
    particle: "Partikel {id}",
    score: "Bewertung {score}",
    noScore: "ohne Bewertung",
    step: "Schritt {step} von {steps}",
    previewOf: "Vorschau von Partikel {id}",
    playClip: "Abspielen",
    stopClip: "Anhalten",
    lineEnd: "{name}: {score} nach {nfe} Modellaufrufen",
  },
};

const known = { en: { ...DRAWING_TEXTS.en }, de: { ...DRAWING_TEXTS.de } };
let language = "en";

/** Adds the texts of a view, {language: {key: text}}. */
export function learn(texts) {
  for (const [name, own] of Object.entries(texts)) Object.assign((known[name] ??= {}), own);
}

/** Speak the language of a locale ("de", "de-AT"); English where the pack does not have it. Returns the language. */
export function speak(locale) {
  const short = String(locale ?? "").toLowerCase().split(/[-_]/)[0];
  language = Object.hasOwn(known, short) ? short : "en";
  return language;
}

/** A text in the language that is spoken, with `values` in the places of their {names}. */
export function say(key, values = {}) {
  return known[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}
