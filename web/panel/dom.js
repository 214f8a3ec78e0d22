// Small helpers of all views. Text is always set as text.

import { say } from "./texts.js";

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export const number = (value) => (value === null || value === undefined ? say("noScore") : Number(value).toFixed(3));
