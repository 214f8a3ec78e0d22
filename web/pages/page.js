// What every page does: reads its own data, and draws anew when its width or its light changes.

/** The data that the page carries as JSON. */
export const pageData = () => JSON.parse(document.getElementById("data").textContent);

/** Calls `draw(dark)` now, once `images` are there, and whenever the page's width or the reader's theme changes. */
export function redrawn(draw, images = []) {
  const theme = matchMedia("(prefers-color-scheme: dark)");
  let frame = 0;
  const later = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => draw(theme.matches));
  };
  draw(theme.matches);
  theme.addEventListener("change", later);
  new ResizeObserver(later).observe(document.querySelector("main"));
  for (const image of images) image.decode().then(later, () => {}); // one that cannot be read leaves its place empty
}

/** What a CSS colour (also `var(--name)`) is on this page now. */
export function cssColour(text) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = text;
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
