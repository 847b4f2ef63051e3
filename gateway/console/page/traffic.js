// The tiles: what came in, who answered, what it cost and how long it took.

import { bar, drawn, picture } from "./charts.js";
import { count, h, interval, moment, percent, seconds, short, usdPerThousand, within } from "./dom.js";

function tile(name, figure, ...said) {
  return h("div", { class: "tile" }, h("h3", {}, name), figure, said);
}

const figure = (words, unit) => h("div", { class: "figure" }, words, unit ? h("small", {}, ` ${unit}`) : null);
const said = (...words) => h("p", { class: "said" }, ...words);

export function tiles(told) {
  return [requests(told.traffic), answered(told.traffic), saving(told), latency(told.traffic)];
}

function requests(traffic) {
  const bars = h("div");
  drawLater(bars, (width) => strip(traffic, width));
  return tile(
    "Requests",
    figure(count(traffic.n), `${short(traffic.per_minute)} a minute`),
    traffic.failed && said(`failed ${percent(traffic.failed.value)} ${within(traffic.failed)}`),
    bars,
    said(traffic.cut ? `the latest ${count(traffic.n)}, ` : "", `${moment(traffic.from)} to ${moment(traffic.to)}`),
  );
}

function drawLater(place, draw) {
  requestAnimationFrame(() => drawn(place, draw));
}

function strip(traffic, width) {
  const height = 34;
  const most = Math.max(1, ...traffic.slices.map((slice) => slice.n));
  const step = width / traffic.slices.length;
  const name = `Requests over time, in ${traffic.slices.length} equal steps, at most ${count(most)} in one`;
  return picture(width, height, name, traffic.slices.flatMap((slice, place) => {
    const high = (slice.n / most) * (height - 2);
    const failed = (slice.failed / most) * (height - 2);
    const words = `${moment(slice.at)}: ${count(slice.n)} requests, ${count(slice.failed)} failed`;
    return [
      bar(place * step + 0.5, height - Math.max(high, slice.n ? 1.5 : 0.5), step - 1, Math.max(high, slice.n ? 1.5 : 0.5), "spark", words),
      slice.failed ? bar(place * step + 0.5, height - Math.max(failed, 1.5), step - 1, Math.max(failed, 1.5), "spark-bad", words) : null,
    ];
  }));
}

function answered(traffic) {
  const n = traffic.tiers[0]?.n ?? 0;
  return tile("Share answered per tier", bars(traffic.tiers), n ? said(`of ${count(n)} answers, with 95 % intervals`) : said("no answer yet"));
}

/** Shares as bars. shares: of tiers, with intervals. */
export function bars(shares) {
  return h("div", { class: "rows" }, shares.flatMap((one) => {
    const filled = h("i");
    filled.style.setProperty("width", percent(one.value, 2).replace(" ", ""));
    return [
      h("span", { title: one.tier }, one.tier),
      h("span", { class: "track", "aria-hidden": "true" }, filled),
      h("span", {}, `${percent(one.value)} `, one.low === undefined ? "" : h("span", { class: "dim" }, within(one))),
    ];
  }));
}

function saving(told) {
  const name = "Saved against always the largest";
  const { figure: found, n, least, free } = told.saving;
  const spent = told.traffic.usd && said(`spent ${usdPerThousand(told.traffic.usd.value)} ${interval(told.traffic.usd, usdPerThousand)} per 1,000 answers`);
  if (found) {
    return tile(name, figure(percent(found.value)), said(`${within(found)}, n = ${count(n)} explored decisions`), spent);
  }
  const { figure: guess, n: rows } = told.saving.likely;
  if (guess) {
    return tile(name, figure(`≈ ${percent(guess.value)}`), said(`${within(guess)}, n = ${count(rows)} decisions`),
      said("An estimate: it supposes that the largest tier would have answered with as many tokens as the tier that did. ",
        told.explored_share === null ? "Exploration measures it: switch it on in the configuration, say share: 0.01." : `Exploration measures it: ${count(n)} of at least ${count(least)} explored decisions are in this window.`), spent);
  }
  const why = free
    ? "The largest tier has no price in the configuration."
    : told.explored_share === null
      ? "Not known yet: too few answers for an estimate. Exploration measures it: switch it on in the configuration, say share: 0.01."
      : `Not known yet: ${count(n)} of at least ${count(least)} explored decisions in this window.`;
  return tile(name, figure("–"), said(why), spent);
}

function latency(traffic) {
  if (!traffic.seconds) return tile("Latency of a request", figure("–"), said("no answer in this window"));
  const { p50, p95 } = traffic.seconds;
  return tile(
    "Latency of a request",
    h("div", { class: "pair" }, [["median", p50], ["p95", p95]].map(([words, one]) =>
      h("div", {}, figure(seconds(one.value)), said(`${words} ${interval(one, seconds)}`)))),
    said(`n = ${count(p50.n)} answers, from the first byte in to the last out`),
  );
}
