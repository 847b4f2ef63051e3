// Cost and accuracy over one tier's threshold, replayed on explored decisions; the slider moves one point along it.

import { area, axis, canvas, drawn, frame, legend, line, path, picture, text } from "./charts.js";
import { $, count, empty, h, interval, percent, s, short, swap, table, usdPerThousand, within } from "./dom.js";

const accuracyOf = (point) => (point.least.value + point.most.value) / 2;

/** "93.1 %", or "92.4 to 95.0 %" where it is not known more closely. */
function accuracy(point) {
  const [least, most] = [percent(point.least.value), percent(point.most.value)];
  return least === most ? least : `${least.replace(" %", "")} to ${most}`;
}

const bounds = (point) => within({ low: point.least.low, high: point.most.high });

let shownFor = "";
let replayed = null;

/** told: what the gateway says, null while nothing is known. */
export function show(told, refused) {
  const slide = $("replay-slide");
  if (refused || !told) {
    slide.hidden = true;
    replayed = null;
    swap($("replay-chart"), empty(refused ?? "Nothing to replay: no policy asks a tier under a threshold."));
    swap($("replay-readout"));
    swap($("replay-table"));
    $("replay-details").hidden = true;
    return;
  }
  const words = JSON.stringify(told);
  if (words === shownFor && replayed) return;
  const same = replayed && replayed.policy === told.policy && replayed.tier === told.tier && replayed.points.length === told.points.length;
  const before = $("slider").value;
  [shownFor, replayed] = [words, told];
  if (!told.points.length) {
    slide.hidden = true;
    swap($("replay-chart"), empty(
      `Too few rows to say anything: ${count(told.labelled)} labelled of at least ${count(told.least)}. `,
      `${count(told.explored)} decisions of this policy were explored in this window, ${count(told.rows)} of them can be replayed. `,
      leftOut(told), "Exploration (exploration: share) asks every tier in shadow; confgate labels wanted lists what wants a label."));
    swap($("replay-readout"));
    swap($("replay-table"));
    $("replay-details").hidden = true;
    return;
  }
  slide.hidden = false;
  $("replay-details").hidden = false;
  const slider = $("slider");
  slider.max = told.points.length - 1;
  slider.value = same ? before : nowPlace(told);
  $("slider-label").textContent = `Accept ${told.tier} at`;
  swap($("replay-chart"), canvas((width) => draw(told, chosen(), width)), key());
  swap($("replay-table"), curve(told));
  slid();
}

const nowPlace = (told) => told.points.findIndex((point) => point.threshold === told.now.threshold);
const chosen = () => replayed.points[Number($("slider").value)];

export function toPolicy() {
  $("slider").value = nowPlace(replayed);
  slid();
}

/** The slider has moved. */
export function slid() {
  if (!replayed?.points.length) return;
  const point = chosen();
  const place = $("replay-chart").querySelector(".canvas");
  if (place?.drawnFor) drawn(place, (width) => draw(replayed, point, width));
  $("slider-value").textContent = `p ≥ ${short(point.threshold)}`;
  $("slider").setAttribute("aria-valuetext", `p of at least ${short(point.threshold)}: accuracy ${accuracy(point)}, ${usdPerThousand(point.usd.value)} per 1,000`);
  $("slider-now").disabled = point.threshold === replayed.now.threshold;
  swap($("replay-readout"), readout(replayed, point));
}

function readout(told, point) {
  const measures = [
    [`accept ${told.tier} at`, (one) => `p ≥ ${short(one.threshold)}`],
    ["accuracy", (one) => `${accuracy(one)} ${bounds(one)}`],
    ["cost per 1,000", (one) => `${usdPerThousand(one.usd.value)} ${interval(one.usd, usdPerThousand)}`],
    ["saved against always the largest", (one) => (one.saving ? `${percent(one.saving.value)} ${within(one.saving)}` : "–")],
    ...told.tiers.map((tier, place) => [`answered by ${tier}`, (one) => percent(one.shares[place])]),
  ];
  const unknown = Math.max(told.now.unknown, point.unknown);
  return [
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "The policy and the replayed threshold" }, table(
      `Replayed on ${count(told.rows)} explored decisions, ${count(told.labelled)} of them labelled (worth ${count(Math.round(told.effective))} even draws); 95 % intervals`,
      [["measure", "words"], ["the policy as it is"], ["replayed"]],
      measures.map(([name, write]) => [name, write(told.now), write(point)]))),
    unknown > 0 ? h("p", { class: "note" },
      `Accuracy is a range where it is not known: for up to ${percent(unknown)} of the rows the tier that would have answered said something else than the wrong answer that was served, or something that cannot be compared. `,
      "The range runs from all of it wrong to all of it right.") : null,
    leftOut(told) ? h("p", { class: "note" }, leftOut(told)) : null,
    point.threshold === told.now.threshold ? null : h("p", { class: "note" },
      "To serve by it: ", h("code", {}, `{tier: ${told.tier}, accept_at: ${point.threshold}}`), ` in policies.${told.policy}.steps, then reload. `,
      "A threshold that was picked by looking at these rows looks better on them than it will be; confgate sweep chooses on one half and tests on the other."),
  ];
}

function leftOut(told) {
  return told.left_out.length ? `Left out: ${told.left_out.map((one) => `${count(one.n)} (${one.why})`).join(", ")}. ` : "";
}

const diamond = (x, y, r, kind, title) =>
  s("path", { d: `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z`, class: kind }, title ? s("title", {}, title) : null);

function key() {
  return legend(
    [() => [s("rect", { x: 0, y: 1, width: 22, height: 10, class: "haze" }), line(0, 6, 22, 6, "curve")], "this tier's threshold from 0 to 1, with 95 % interval"],
    [() => s("rect", { x: 0, y: 1, width: 22, height: 10, class: "band" }), "not known"],
    [() => diamond(11, 6, 6, "now"), "the policy as it is"],
    [() => s("circle", { cx: 11, cy: 6, r: 4.5, class: "there" }), "replayed"],
    [() => s("rect", { x: 6.5, y: 1.5, width: 9, height: 9, class: "alone" }), "one tier alone"],
  );
}

function draw(told, point, width) {
  const height = Math.min(430, Math.max(320, width * 0.4));
  const all = [...told.points, ...told.alone, told.now];
  const dearest = Math.max(...all.map((one) => one.usd.high)) * 1000;
  const low = Math.min(...all.map((one) => one.least.low));
  const x = axis(0, dearest * 1.04 || 1, 56, width - 16);
  const y = axis(Math.max(0, Math.floor(low * 20) / 20), 1, height - 44, 24);
  const at = (one) => x(1000 * one.usd.value);
  const edge = (upper, lower) => [...told.points.map((one) => [at(one), y(upper(one))]), ...[...told.points].reverse().map((one) => [at(one), y(lower(one))])];
  const words = (name, one) => `${name}: accuracy ${accuracy(one)} ${bounds(one)}, ${usdPerThousand(one.usd.value)} per 1,000 ${interval(one.usd, usdPerThousand)}`;
  const alone = told.alone.flatMap((one) => [
    line(at(one), y(one.least.low), at(one), y(one.most.high), "plain"),
    s("rect", { x: at(one) - 5, y: y(accuracyOf(one)) - 5, width: 10, height: 10, class: "alone" }, s("title", {}, words(`${one.tier} alone`, one))),
    text(at(one) > x.end - 130 ? at(one) - 10 : at(one) + 10, y(accuracyOf(one)) + 16, one.tier, at(one) > x.end - 130 ? "end" : "start", "name"),
  ]);
  return picture(width, height,
    `Cost and accuracy over the threshold of ${told.tier}. The policy: ${accuracy(told.now)} at ${usdPerThousand(told.now.usd.value)} per 1,000. Replayed at ${short(point.threshold)}: ${accuracy(point)} at ${usdPerThousand(point.usd.value)}.`,
    area(edge((one) => one.most.high, (one) => one.least.low), "haze"),
    area(edge((one) => one.most.value, (one) => one.least.value), "band"),
    frame(x, y, { writeX: (one) => `$${short(one)}`, writeY: (one) => percent(one, 0), nameX: "cost per 1,000 requests", nameY: "accuracy" }),
    path(told.points.map((one) => [at(one), y(accuracyOf(one))]), "curve"),
    alone,
    line(at(told.now), y(told.now.least.low), at(told.now), y(told.now.most.high), "whisker"),
    diamond(at(told.now), y(accuracyOf(told.now)), 8, "now", words("the policy as it is", told.now)),
    line(at(point), y(point.least.low), at(point), y(point.most.high), "there-line"),
    s("circle", { cx: at(point), cy: y(accuracyOf(point)), r: 8, class: "there", "data-threshold": point.threshold }, s("title", {}, words("replayed", point))));
}

function curve(told) {
  const every = told.points.filter((one, place) => place % 5 === 0 || one.threshold === told.now.threshold);
  const row = (name, one) => [name, accuracy(one), bounds(one), usdPerThousand(one.usd.value), interval(one.usd, usdPerThousand), percent(one.unknown)];
  return table(`Threshold of ${told.tier}, n = ${count(told.rows)}, labelled ${count(told.labelled)}`,
    [["route"], ["accuracy", "n"], ["95 % interval", "n"], ["cost per 1,000", "n"], ["95 % interval", "n"], ["not known", "n"]],
    [...every.map((one) => row(`p ≥ ${short(one.threshold)}${one.threshold === told.now.threshold ? " (the policy)" : ""}`, one)),
      ...told.alone.map((one) => row(`${one.tier} alone`, one))]);
}
