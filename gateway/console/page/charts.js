// Pictures as SVG, drawn for the width there is. Every one has a name for those who cannot see it; the numbers stand in a
// table beside it.

import { h, s } from "./dom.js";

const watched = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.clientWidth !== target.drawnFor) redraw(target);
});

/** Draws into a place, and again whenever its width changes. draw: width in pixels -> an svg element. */
export function drawn(place, draw) {
  place.draw = draw;
  redraw(place);
  watched.observe(place);
}

function redraw(place) {
  place.drawnFor = place.clientWidth;
  if (place.drawnFor > 0) place.replaceChildren(place.draw(place.drawnFor));
}

/** A place to draw in. */
export function canvas(draw) {
  const place = h("div", { class: "canvas" });
  requestAnimationFrame(() => drawn(place, draw));
  return place;
}

/** A straight map from [low, high] to pixels [start, end]. */
export function axis(low, high, start, end) {
  const map = (value) => start + ((value - low) / (high - low || 1)) * (end - start);
  return Object.assign(map, { low, high, start, end });
}

/** Round numbers inside an axis: multiples of 1, 2 or 5 times a power of ten. */
export function ticks({ low, high }, about = 5) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) found.push(k * step || 0); // never -0
  return found;
}

/** A share in the fewest places that tell it from its neighbours. */
export const placed = (at) => at.toFixed(3).replace(/0{1,2}$/, "");

export function picture(width, height, name, ...parts) {
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name }, ...parts);
}

export const line = (x1, y1, x2, y2, kind) => s("line", { x1, y1, x2, y2, class: kind });
export const bar = (x, y, width, height, kind, title) =>
  s("rect", { x, y, width: Math.max(width, 0), height: Math.max(height, 0), class: kind }, title ? s("title", {}, title) : null);
export const text = (x, y, words, anchor = "start", kind = null) => s("text", { x, y, "text-anchor": anchor, class: kind }, words);
export const path = (points, kind) => s("polyline", { points: points.map((point) => point.map((one) => one.toFixed(1)).join()).join(" "), class: kind });
export const area = (points, kind) => s("polygon", { points: points.map((point) => point.map((one) => one.toFixed(1)).join()).join(" "), class: kind });

/** Frame, ticks and names of both axes. */
export function frame(x, y, { writeX, writeY, nameX, nameY, aboutX = 5, aboutY = 5, bottom = y.start }) {
  const parts = [s("rect", { class: "frame", x: x.start, y: y.end, width: x.end - x.start, height: y.start - y.end })];
  for (const at of ticks(y, aboutY)) parts.push(line(x.start, y(at), x.end, y(at), "grid"), text(x.start - 7, y(at) + 4, writeY(at), "end"));
  for (const at of ticks(x, aboutX)) parts.push(line(x(at), bottom, x(at), bottom + 4, "axis"), text(x(at), bottom + 18, writeX(at), "middle"));
  parts.push(text((x.start + x.end) / 2, bottom + 36, nameX, "middle"), text(x.start, y.end - 8, nameY));
  return parts;
}

/** What the marks mean. entries: [draw, words] each; draw: () -> marks in 22 by 12 pixels. */
export function legend(...entries) {
  return h("ul", { class: "key" }, entries.map(([draw, words]) =>
    h("li", {}, s("svg", { width: 22, height: 12, "aria-hidden": "true" }, draw()), words)));
}
