// Alarms, and what the monitors found at their latest look.

import { axis, canvas, line as stroke, path, picture, text } from "./charts.js";
import { bars } from "./traffic.js";
import { count, empty, h, moment, percent, short, table, within } from "./dom.js";

const KINDS = {
  drift: "Drift", overconfident: "Over-confident", underconfident: "Under-confident", accepted_error: "Accepted errors",
  certificate: "Certificate", calibrator: "Calibrator", slo: "Objective", store: "Store", unread: "Labels not read",
};

/** The lines of the alarms' panel. report: of the monitors, null where there are none. tiers: their health. */
export function alarms(report, tiers, problem) {
  const found = [
    ...(report?.alarms ?? []).map((one) => line(
      `${KINDS[one.kind] ?? one.kind}${one.what ? ` ${one.what}` : ""}${one.tier ? ` · ${one.tier}` : ""}${one.slice ? ` · ${one.slice}` : ""}`, one.why, `since ${moment(one.since)}`, one.page)),
    ...(tiers ?? []).filter((tier) => tier.breaker === "open").map((tier) => line(`Tier ${tier.tier} is left alone`, "its server keeps failing", `for ${short(tier.barred_seconds)} s more`, true)),
    ...(report ? [] : (tiers ?? []).filter((tier) => tier.withheld).map((tier) => line(`Calibrator of ${tier.tier} is withheld`, tier.withheld, "", false))),
  ];
  if (found.length) return [h("ul", {}, found)];
  if (problem) return [h("span", { class: "bad" }, problem)];
  return [report
    ? h("span", { class: "good" }, `✓ None, as of ${moment(report.at)}.`)
    : h("span", {}, "No tier is broken. ", h("span", { class: "dim" }, "Monitors are not configured, so nobody looks at drift, labels and objectives."))];
}

const line = (name, why, since, page) => h("li", { class: page ? "page" : null }, h("strong", {}, name), ": ", why, since ? h("span", { class: "dim" }, ` (${since})`) : null);

const STATES = { drifted: "bad", broken: "bad", burning: "bad", violated: "bad", quiet: "good", holds: "good", unknown: "dim" };
const state = (word) => h("span", { class: `state ${STATES[word] ?? ""} ${word === "unknown" ? "none" : ""}` }, word);

const ALARM_FROM = 0.1; // a smaller distance is no matter, however sure one is of it: gateway/monitor/drift.py
const MOST_LOOKS = 500;
const courses = new Map(); // by policy and tier: [seconds since 1970, largest effect] of every look since the page was opened

/** Keep what a report says of drift: the monitors tell their latest look alone. */
function remember(report) {
  const now = Date.parse(report.at) / 1000;
  for (const one of (report.monitors?.drift ?? []).flatMap(withSlices)) {
    if (one.largest_effect === undefined) continue;
    const seen = courses.get(placed(one)) ?? [];
    if (seen.at(-1)?.[0] !== now) seen.push([now, one.largest_effect]);
    courses.set(placed(one), seen.slice(-MOST_LOOKS));
  }
}

const placed = (one) => `${one.policy} · ${one.tier}${one.slice ? ` · ${one.slice}` : ""}${worker(one)}`;

/** One small picture for each place: the largest effect over time, beside the distance that an alarm begins at. */
function over() {
  return courses.size ? h("div", { class: "multiples" }, [...courses].map(([name, seen]) => h("div", {},
    h("h3", {}, name), canvas((width) => course(name, seen, width))))) : null;
}

function course(name, seen, width) {
  const height = 110;
  const [first, last] = [seen[0], seen.at(-1)];
  const y = axis(0, Math.max(2 * ALARM_FROM, ...seen.map(([, effect]) => effect)) * 1.05, height - 22, 12);
  const x = axis(first[0], Math.max(last[0], first[0] + 1), 4, width - 4);
  const words = `Largest effect at ${name}: ${short(last[1])} now, ${count(seen.length)} looks since ${moment(first[0])}; an alarm needs ${ALARM_FROM} or more`;
  return picture(width, height, words,
    stroke(x.start, y(ALARM_FROM), x.end, y(ALARM_FROM), "limit"), text(x.start, y(ALARM_FROM) - 4, `alarm from ${ALARM_FROM} on`),
    seen.length > 1 ? path(seen.map(([at, effect]) => [x(at), y(effect)]), "curve") : null,
    stroke(x(last[0]) - 5, y(last[1]), x(last[0]) + 5, y(last[1]), "whisker"), text(x.end, y(last[1]) - 5, short(last[1]), "end", "name"),
    text(x.start, height - 5, `since ${moment(first[0])}`));
}

/** Drift panels, tests of calibration, accepted errors and objectives. */
export function panels(report) {
  if (!report) return [empty("Monitors are not configured (", h("code", {}, "monitors:"), " in the configuration), or this gateway has none.")];
  const { drift = [], labels = {} } = report.monitors ?? {};
  remember(report);
  return [
    ...(report.policies ?? []).filter((one) => one.not_valid?.length).map((one) => h("p", { class: "bad" }, h("strong", {}, `What is claimed of ${one.policy} is not valid now: `), one.not_valid.join("; "))),
    unwatched(drift) ? h("p", { class: "note" }, `Drift is not watched: ${drift[0].why}.`) : drift.length ? scroll("Drift", table("Drift: features and p beside the reference, no labels needed. Effect: Kolmogorov–Smirnov distance, alarm from 0.1 on",
      [["policy · tier"], ["state"], ["largest effect", "n"], ["out of distribution", "n"], ["rows", "n"], ["reference", "n"], ["what drifted", "words"]],
      drift.flatMap(withSlices).map((one) => [placed(one), state(one.state), one.largest_effect === undefined ? "–" : short(one.largest_effect),
        one.out_of_distribution === undefined ? "–" : percent(one.out_of_distribution), one.n ? count(one.n) : one.rows_needed ? `${count(one.rows)} of ${count(one.rows_needed)}` : "–",
        one.n_reference ? count(one.n_reference) : "–", h("span", {}, one.why ?? (drifted(one.drifted ?? []) || "–"))]))) : empty("No drift is watched."),
    unwatched(drift) ? null : over(),
    labels.tests?.length ? scroll("Tests of calibration", table(`Calibration by labels (${words(labels.by)}, ${words(labels.of)}); the test may be looked at after every label`,
      [["policy · tier"], ["calibrator"], ["state"], ["labels", "n"], ["claimed, latest", "n"], ["right, latest", "n"], ["log wealth over / under", "n"]],
      labels.tests.map((one) => [`${one.policy} · ${one.tier}`, one.calibrator ?? "all", state(one.state), count(one.n),
        one.latest ? percent(one.latest.claimed) : "–", one.latest ? `${percent(one.latest.right)} ${within(one.latest)}` : "–",
        `${one.log_wealth_over.toFixed(1)} / ${one.log_wealth_under.toFixed(1)}`]))) : h("p", { class: "note" }, labels.unknown ?? "No label has been judged yet."),
    labels.accepted_error?.length ? scroll("Accepted errors", table("Wrong answers among those accepted, against the objective",
      [["policy"], ["state"], ["at most", "n"], ["between", "n"], ["answers", "n"], ["labels", "n"]],
      labels.accepted_error.map((one) => [one.policy, state(one.state), percent(one.limit, 2), `[${percent(one.low, 2)}, ${percent(one.high, 2)}]`, count(one.n), count(one.labels)]))) : null,
    report.slos?.length ? scroll("Objectives", table("Objectives: how fast each uses up its budget (1 is just sustainable)",
      [["objective"], ["state"], ["budget", "n"], ["windows: bad of all, burn rate", "words"], ["why so much, or why unknown", "words"]],
      report.slos.map((one) => [`${one.objective}${one.policy ? ` · ${one.policy}` : ""}${worker(one)}`, state(one.state), one.budget === null ? "–" : percent(one.budget, 2),
        !one.windows.length ? "–" : one.windows.every((window) => !window.n) ? "no request yet" : one.windows.map((window) => `${span(window.seconds)}: ${count(window.bad)} of ${count(window.n)}${window.n ? `, ${short(window.burn)}×` : ""}`).join(" · "), one.why ?? "–"]))) : null,
  ];
}

const withSlices = (one) => [one, ...(one.slices ?? []).map((part) => ({ ...part, worker: one.worker }))];
const worker = (one) => (one.worker === undefined ? "" : ` (worker ${one.worker})`);
const unwatched = (drift) => drift.length > 0 && drift.every((one) => one.state === "unknown" && one.why === drift[0].why && one.rows === undefined);
const words = (told) => (Array.isArray(told) ? told.join(", ") : told ?? "–");
const drifted = (some) => some.map((one) => `${one.what} ${short(one.effect)} (p = ${one.p_value.toPrecision(1)})`).join(", ");
const span = (x) => (x < 3600 ? `${short(x / 60)} min` : x < 86400 ? `${short(x / 3600)} h` : `${short(x / 86400)} d`);
const scroll = (name, inside) => h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": name }, inside);

/** Every tier as it is. */
export function tiers(rows) {
  return table("As of now; with several workers, a row for each",
    [["tier"], ["calibrator"], ["breaker"], ["in flight", "n"], ["waiting", "n"], ["remarks", "words"]],
    rows.map((one) => [
      `${one.tier}${worker(one)}`, one.calibrator,
      one.breaker === "open" ? h("span", { class: "bad" }, `open, ${short(one.barred_seconds)} s`) : "closed",
      count(one.in_flight), count(one.waiting),
      [one.withheld ? `runs without its calibrator: ${one.withheld}` : "", one.resting_seconds > 0 ? `rests for ${short(one.resting_seconds)} s` : "",
        one.replicas ? `${one.replicas.length} servers` : ""].filter(Boolean).join("; ") || "–",
    ]));
}

/** Without a store: what the metrics tell since the processes began. text: Prometheus'. */
export function metrics(text) {
  const samples = [...text.matchAll(/^confidence_gateway_(\w+)(?:\{([^}]*)\})? (\S+)/gm)].map(([, name, labels, value]) => ({
    name, value: Number(value), labels: Object.fromEntries([...(labels ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, word]) => [key, word])),
  }));
  const of = (name) => samples.filter((one) => one.name === name);
  const total = (some) => some.reduce((sum, one) => sum + one.value, 0);
  const requests = total(of("requests_total"));
  const failed = total(of("requests_total").filter((one) => one.labels.status >= "500"));
  const answers = of("hops_total").filter((one) => ["confident", "last"].includes(one.labels.reason));
  const served = total(answers);
  const shares = [...Map.groupBy(answers, (one) => one.labels.tier)].map(([tier, some]) => ({ tier, value: total(some) / served })).sort((a, b) => b.value - a.value);
  const buckets = of("request_seconds_bucket").map((one) => [one.labels.le === "+Inf" ? Infinity : Number(one.labels.le), one.value]).sort((a, b) => a[0] - b[0]);
  const spent = total(of("cost_usd_total"));
  const tile = (name, ...inside) => h("div", { class: "tile" }, h("h3", {}, name), inside);
  const figure = (words) => h("div", { class: "figure" }, words);
  const said = (words) => h("p", { class: "said" }, words);
  return [
    tile("Requests", figure(count(requests)), said(`${count(failed)} failed, since the start`)),
    tile("Share answered per tier", shares.length ? bars(shares) : said("no answer yet"), served ? said(`of ${count(served)} answers`) : null),
    tile("Spent", figure(`$${short(spent)}`), said("What the largest tier would have cost is known only from a store with explored decisions.")),
    tile("Latency of a request", figure(`≤ ${limit(buckets, 0.5)}`), said(`median; p95 ≤ ${limit(buckets, 0.95)}, to the buckets of the metrics`)),
  ];
}

function limit(buckets, share) {
  const all = buckets.at(-1)?.[1] ?? 0;
  const found = buckets.find(([, n]) => all > 0 && n >= share * all);
  return !found ? "–" : found[0] === Infinity ? "more than 120 s" : `${short(found[0])} s`;
}
