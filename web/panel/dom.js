// Small helpers of all views. Text is always set as text.

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export const number = (value) => (value === null || value === undefined ? "no score" : Number(value).toFixed(3));
