// Small helpers of all views. Text is always set as text, never as HTML.

import { say } from "./texts.js";

/** A new element with a class and a text, both optional. */
export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A score for people: three decimals, or the words for none. */
export const number = (value) => (value === null || value === undefined ? say("noScore") : Number(value).toFixed(3));
