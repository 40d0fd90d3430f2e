/* Elements and numbers as the page writes them. Text is put in as text, never as HTML. */

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(attributes, onClick, ...children) {
  const made = element("button", { type: "button", ...attributes }, ...children);
  made.addEventListener("click", onClick);
  return made;
}

/* Of unknown direction, so that it cannot turn its surroundings round. */
export const text = (value, kind = null) => element("bdi", { class: kind }, value);

const minus = (written) => written.replace("-", "\u2212");

export function number(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return minus(value.toExponential(digits - 1));
  return minus(value.toPrecision(digits));
}

export const change = (value) => (value >= 0 ? "+" : "\u2212") + Math.abs(value).toFixed(2);

export function chance(probability, isShare) {
  if (!isShare) return number(probability, 4);
  const percent = 100 * probability;
  return percent > 0 && percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
}
