// Claimed against found, and the confidence of right and wrong answers.

import { axis, bar, canvas, frame, legend, line, picture, placed, text, ticks } from "./charts.js";
import { count, empty, h, percent, probability, s, table, within } from "./dom.js";

/** What one may look at: [value, words] each. */
export function places(told) {
  const live = new Set(told.policies.flatMap((policy) => policy.steps.map((step) => step.calibrator)));
  const rank = (one) => (one.tier === "" ? 0 : live.has(one.calibrator) ? 1 : 2);
  return [...told.calibration].sort((a, b) => rank(a) - rank(b) || a.tier.localeCompare(b.tier)).map((one) => [
    `${one.tier}\n${one.calibrator}`,
    one.tier === "" ? "everything served" : `${one.tier} · ${one.calibrator}${live.has(one.calibrator) ? "" : " (not in service)"}`,
  ]);
}

const found = (told, place) => told.calibration.find((one) => `${one.tier}\n${one.calibrator}` === place);

const few = (diagram, labels) => empty(
  `Too few labels to draw: ${count(diagram?.n ?? 0)} of at least ${count(diagram?.least ?? 20)}`,
  labels === "drawn" ? " that were sought by lot. Label explored decisions (confgate labels wanted), or look at all labels." : ". Send them to POST /v1/feedback.",
);

const selective = "Whoever labels what looks wrong chooses by the truth, so these may show errors more often than there are.";

export function reliability(told, place, labels) {
  const diagram = found(told, place)?.[labels];
  if (!diagram?.bins.length) return [few(diagram, labels)];
  const { gap } = diagram;
  const verdict = gap.low > 0 ? "It claims too much." : gap.high < 0 ? "It claims too little." : "No gap can be told from chance.";
  return [
    h("p", {}, `Claimed ${percent(diagram.claimed)}, right ${percent(diagram.right.value)} ${within(diagram.right)}, n = ${count(diagram.n)}. `,
      `Gap ${points(gap.value)} [${points(gap.low)}, ${points(gap.high)}]. `, h("strong", {}, verdict)),
    canvas((width) => draw(diagram, width)),
    legend(
      [() => [s("circle", { cx: 11, cy: 6, r: 4, class: "dot" }), line(11, 0, 11, 12, "whisker")], "found, with its 95 % interval"],
      [() => bar(6, 0, 10, 12, "band"), "where 95 of 100 would lie if every p were true"],
      [() => [bar(3, 4, 7, 8, "right"), bar(12, 0, 7, 12, "wrong")], "labels: right, wrong"],
    ),
    labels === "all" ? h("p", { class: "note" }, selective) : null,
  ];
}

const points = (x) => `${x > 0 ? "+" : x < 0 ? "−" : ""}${Math.abs(100 * x).toFixed(1)} points`;

function draw(diagram, width) {
  const height = Math.min(420, Math.max(300, width * 0.62));
  const strip = 46;
  const lowest = Math.min(...diagram.bins.map((one) => Math.min(one.claimed, one.low, one.band_low)));
  const from = Math.min(0.9, Math.floor(lowest * 10) / 10);
  const x = axis(from, 1, 52, width - 14);
  const y = axis(from, 1, height - 44 - strip - 8, 24);
  const marks = [line(x(from), y(from), x(1), y(1), "guide")];
  const half = Math.min(5, (0.35 * (x.end - x.start)) / diagram.bins.length);
  for (const one of diagram.bins) marks.push(bar(x(one.claimed) - half, y(one.band_high), 2 * half, y(one.band_low) - y(one.band_high), "band"));
  for (const one of diagram.bins) {
    const words = `claimed ${probability(one.claimed)}, right ${percent(one.value)} ${within(one)}, n = ${count(one.n)}`;
    marks.push(line(x(one.claimed), y(one.low), x(one.claimed), y(one.high), "whisker"));
    marks.push(s("circle", { cx: x(one.claimed), cy: y(one.value), r: 4.5, class: "dot" }, s("title", {}, words)));
  }
  const parts = frame(x, y, {
    writeX: placed, writeY: (one) => percent(one, 0), nameX: "claimed probability of being right",
    nameY: "share right", bottom: height - 44,
  });
  return picture(width, height, `Reliability diagram of ${count(diagram.n)} labels in ${diagram.bins.length} bins; the table below has the numbers`,
    parts, marks, counts(diagram.cells, x, height - 44, strip));
}

function counts(cells, x, bottom, strip) {
  const inside = cells.filter((cell) => cell.to > x.low + 1e-9);
  const beyond = cells.filter((cell) => cell.to <= x.low + 1e-9).reduce((sum, cell) => sum + cell.right + cell.wrong, 0);
  const tallest = Math.max(1, ...inside.map((cell) => cell.right + cell.wrong));
  const high = (n) => (n / tallest) * (strip - 8);
  return [
    inside.flatMap((cell) => {
      const words = `p from ${probability(cell.from)} to ${probability(cell.to)}: ${count(cell.right)} right, ${count(cell.wrong)} wrong`;
      const [left, width] = [x(Math.max(cell.from, x.low)) + 1, x(cell.to) - x(Math.max(cell.from, x.low)) - 2];
      return [
        cell.right ? bar(left, bottom - high(cell.right), width, high(cell.right), "right", words) : null,
        cell.wrong ? bar(left, bottom - high(cell.right + cell.wrong), width, Math.max(high(cell.wrong), 1.5), "wrong", words) : null,
      ];
    }),
    line(x.start, bottom, x.end, bottom, "axis"),
    text(x.start - 7, bottom - strip + 14, count(tallest), "end"), text(x.start - 7, bottom + 4, "0", "end"),
    beyond ? text(x.start + 3, bottom - 5, `← ${count(beyond)} more`) : null,
  ];
}

export function reliabilityTable(told, place, labels) {
  const diagram = found(told, place)?.[labels];
  if (!diagram?.bins.length) return [few(diagram, labels)];
  return [table("Bins of equally many labels by rising probability",
    [["p from – to"], ["claimed", "n"], ["right", "n"], ["95 % interval", "n"], ["if p were true", "n"], ["n", "n"]],
    diagram.bins.map((one) => [
      `${probability(one.p_low)} – ${probability(one.p_high)}`, probability(one.claimed), percent(one.value), within(one),
      `[${percent(one.band_low)}, ${percent(one.band_high)}]`, count(one.n),
    ]))];
}

function tierwise(told, labels) {
  const live = new Map(told.policies.flatMap((policy) => policy.steps.map((step) => [step.calibrator, step])));
  return told.calibration.filter((one) => one.tier !== "" && one[labels].n > 0 && live.has(one.calibrator));
}

function thresholds(told, tier) {
  return [...new Set(told.policies.filter((one) => told.policy === null || one.policy === told.policy)
    .flatMap((policy) => policy.steps).filter((step) => step.tier === tier && step.threshold !== null).map((step) => step.threshold))];
}

export function histograms(told, labels) {
  const some = tierwise(told, labels);
  if (!some.length) return [empty("No labelled answer of a calibrator that is in service, in this window.")];
  return [
    h("div", { class: "multiples" }, some.map((one) => h("div", {},
      h("h3", {}, one.tier, " ", h("span", { class: "dim" }, `n = ${count(one[labels].n)}`)),
      canvas((width) => drawCells(one[labels], thresholds(told, one.tier), one.tier, width))))),
    legend(
      [() => bar(6, 0, 10, 12, "right"), "right, upward"],
      [() => bar(6, 0, 10, 12, "wrong"), "wrong, downward"],
      [() => line(11, 0, 11, 12, "limit"), "threshold"],
    ),
    h("p", { class: "note" }, `Answers that were served and labelled (labels ${labels === "drawn" ? "sought by lot" : "of all kinds"}), by the probability they were served with.`),
  ];
}

function drawCells(diagram, limits, tier, width) {
  const height = 170;
  const x = axis(diagram.cells[0].from, 1, 40, width - 10);
  const up = Math.max(1, ...diagram.cells.map((cell) => cell.right));
  const down = Math.max(1, ...diagram.cells.map((cell) => cell.wrong));
  const y = axis(-down, up, height - 40, 8);
  const wrongs = diagram.cells.reduce((sum, cell) => sum + cell.wrong, 0);
  return picture(width, height, `${tier}: probabilities of ${count(diagram.n - wrongs)} right and ${count(wrongs)} wrong answers`,
    diagram.cells.flatMap((cell) => {
      const words = `p from ${probability(cell.from)} to ${probability(cell.to)}: ${count(cell.right)} right, ${count(cell.wrong)} wrong`;
      const [left, wide] = [x(cell.from) + 0.5, x(cell.to) - x(cell.from) - 1];
      return [
        cell.right ? bar(left, y(cell.right), wide, y(0) - y(cell.right), "right", words) : null,
        cell.wrong ? bar(left, y(0), wide, y(-cell.wrong) - y(0), "wrong", words) : null,
      ];
    }),
    line(x.start, y(0), x.end, y(0), "axis"),
    limits.map((limit) => line(x(limit), y.end, x(limit), y.start, "limit")),
    text(x.start - 6, y.end + 9, count(up), "end"), text(x.start - 6, y(0) + 4, "0", "end"), wrongs && y.start - y(0) > 18 ? text(x.start - 6, y.start, count(down), "end") : null,
    ticks(x, 4).map((at) => text(x(at), height - 22, placed(at), at > 0.99 ? "end" : "middle")),
    text((x.start + x.end) / 2, height - 5, "p", "middle"));
}

export function histogramsTable(told, labels) {
  const some = tierwise(told, labels);
  if (!some.length) return [empty("Nothing to list.")];
  return some.map((one) => table(`${one.tier}, ${one.calibrator}, n = ${count(one[labels].n)}`,
    [["p from – to"], ["right", "n"], ["wrong", "n"]],
    one[labels].cells.filter((cell) => cell.right || cell.wrong)
      .map((cell) => [`${probability(cell.from)} – ${probability(cell.to)}`, count(cell.right), count(cell.wrong)])));
}
