// Elements and numbers. Text only ever becomes a text node: nothing that a model or a client wrote can be markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element. attributes: by name; a function listens, false and null are left out. children: nodes and texts. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Puts nodes in the place of what is there; whoever had the focus, by its data-key, has it again. */
export function swap(place, ...nodes) {
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...nodes.flat(Infinity).filter(Boolean));
  if (focused === undefined) return;
  [...place.querySelectorAll("[data-key]")].find((one) => one.dataset.key === focused)?.focus();
}

/** Shows what is new; what has not changed is left alone, so that nobody loses his place in it. */
export function changed(place, told) {
  const text = JSON.stringify(told);
  if (place.dataset.told === text) return false;
  place.dataset.told = text;
  return true;
}

/** Choices of a select, the chosen one kept where it is still there. options: [value, words] each. */
export function choices(select, options, wanted) {
  if (changed(select, options)) {
    const before = wanted ?? select.value;
    select.replaceChildren(...options.map(([value, words]) => h("option", { value }, words)));
    select.value = options.some(([value]) => value === before) ? before : (options[0]?.[0] ?? "");
  }
}

/** A table. columns: [heading, class] each. rows: lists of cells, the first of each its heading. */
export function table(caption, columns, rows) {
  const head = columns.map(([words, kind]) => h("th", { scope: "col", class: kind || null }, words));
  const body = rows.map((cells) =>
    h("tr", {}, cells.map((cell, place) => {
      const kind = columns[place][1] || null;
      return place === 0 ? h("th", { scope: "row", class: kind }, cell) : h("td", { class: kind }, cell);
    })));
  return h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
}

export const empty = (...words) => h("p", { class: "empty" }, ...words);

const whole = new Intl.NumberFormat("en");
const threeDigits = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const count = (n) => whole.format(n);
export const short = (x) => threeDigits.format(x);
export const percent = (x, digits = 1) => `${(100 * x).toFixed(digits)} %`;
export const probability = (p) => (p === null || p === undefined ? "–" : p.toFixed(3));
export const usd = (x) => (Math.abs(x) >= 0.01 || x === 0 ? `$${short(x)}` : `$${x.toPrecision(3)}`);
export const usdPerThousand = (x) => usd(1000 * x);

export function seconds(x) {
  if (x < 0.9995) return `${(1000 * x).toFixed(x < 0.00995 ? 1 : 0)} ms`;
  return `${x < 99.95 ? x.toPrecision(3) : Math.round(x)} s`;
}

/** "[low, high]" of a share, to stand behind its percentage. */
export const within = (figure, digits = 1) => `[${(100 * figure.low).toFixed(digits)}, ${(100 * figure.high).toFixed(digits)}]`;

/** "[low, high]" in the units of `write`. */
export const interval = (figure, write) => `[${write(figure.low)}, ${write(figure.high)}]`;

/** A moment: seconds since 1970, or ISO. Today's without the date. */
export function moment(at) {
  const when = new Date(typeof at === "number" ? 1000 * at : at);
  if (Number.isNaN(when.getTime())) return String(at);
  const time = when.toLocaleTimeString("en-GB");
  return when.toDateString() === new Date().toDateString() ? time : `${when.toLocaleDateString("en-CA")} ${time}`;
}
