// Colours of scores (readable without colour vision) and of everything else, on dark and on light backgrounds.

const DARK = ["#6c4ea0", "#5c68b0", "#4682b4", "#329ba5", "#3cb48c", "#87d25f", "#fae43c"];
const LIGHT = ["#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#5fb83a", "#b8a800"];

const SHADES = 32;

/** Items by their shade, Map of share -> items: what has one shade is drawn as one path, for there can be thousands. */
export function byShade(items, shareOf) {
  const groups = new Map();
  for (const item of items) {
    const share = shareOf(item);
    const shade = share === null ? null : Math.round(share * SHADES) / SHADES;
    if (!groups.has(shade)) groups.set(shade, []);
    groups.get(shade).push(item);
  }
  return groups;
}

/** Thousands of small discs: without a graphics card, or with a weak one, the CPU draws them twenty times as fast. */
export const DRAWN_BY_CPU = { willReadFrequently: true };

const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** The CSS colour of a score at `share` of the range (0 worst, 1 best); null gives the colour of "no score". */
export function scoreColour(share, dark, alpha = 1) {
  if (share === null) return dark ? `rgba(150,156,168,${alpha})` : `rgba(104,110,122,${alpha})`;
  const ramp = dark ? DARK : LIGHT;
  const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
  const low = Math.min(Math.floor(at), ramp.length - 2);
  const [a, b] = [parse(ramp[low]), parse(ramp[low + 1])];
  const mix = a.map((value, k) => Math.round(value + (b[k] - value) * (at - low)));
  return `rgba(${mix.join(",")},${alpha})`;
}

/** Whether an element lies on a dark background. */
export function isDark(element) {
  for (let at = element; at; at = at.parentElement) {
    const parts = getComputedStyle(at).backgroundColor.match(/[\d.]+/g)?.map(Number);
    if (parts && (parts[3] ?? 1) > 0.1) return 0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2] < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** What is drawn besides scores: `won` is the path of a winner, `pointed` that of the particle under the pointer. */
export const palette = (dark) =>
  dark
    ? { text: "#e8eaee", muted: "#a4aab6", grid: "#383d48", won: "#ff9e2c", pointed: "#78aaff", event: "#78aaff" }
    : { text: "#1c1f24", muted: "#5b616d", grid: "#dee2e8", won: "#b65400", pointed: "#2860c8", event: "#2860c8" };
