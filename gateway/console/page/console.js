// The operator's page: asks the gateway every few seconds and shows what has changed.

import * as calibration from "./calibration.js";
import * as decisions from "./decisions.js";
import { $, changed, choices, count, empty, h, moment, swap } from "./dom.js";
import { forget, keep, key, tried } from "./gate.js";
import * as monitors from "./monitors.js";
import * as replay from "./replay.js";
import * as rollout from "./rollout.js";
import { tiles } from "./traffic.js";

const EVERY_MS = 5000;
const ABSENT_MS = 60000;
const SOME = 20;
const THEME = "confidence-gateway.theme";
const WORDS = { "15m": "15 minutes", "1h": "hour", "6h": "6 hours", "24h": "24 hours", "7d": "7 days", "30d": "30 days" };

const BLANK = { windows: ["1h"], policies: [], policy: null, calibration: [] };

let told = null; // of /admin/console/data, the latest
let paused = false;
let before = null; // decisions before this moment; null: the newest
let timer = 0;
let round = 0;

const asked = (path, values) => {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== null && value !== ""));
  return tried(`${path}?${query}`);
};

const absent = new Map(); // paths that were not there, with the answer and when to ask again

/** What may not be configured is asked for again once in a while. */
async function perhaps(path) {
  const known = absent.get(path);
  if (known && Date.now() < known.again) return known.answer;
  const answer = await tried(path);
  if (answer.refused?.status === 404) absent.set(path, { answer, again: Date.now() + ABSENT_MS });
  else absent.delete(path);
  return answer;
}

async function look() {
  clearTimeout(timer);
  const mine = (round += 1);
  const data = await asked("/admin/console/data", { window: $("window").value || "1h", policy: $("policy").value });
  if (mine !== round) return; // something newer is under way
  if (data.refused?.status === 401) return signIn(data.refused.message);
  const [report, tiers, steps, rows] = await Promise.all([
    perhaps("/admin/monitors"),
    tried("/admin/tiers"),
    perhaps("/admin/calibrators"),
    data.told?.kept ? asked("/admin/console/decisions", { limit: SOME, before }) : null,
  ]);
  if (mine !== round) return;
  if (data.refused?.status === 404 && $("policy").value) $("policy").value = ""; // it is configured no more
  if (data.refused?.status === 0) status(`${data.refused.message} Trying again; what you see is older.`, true);
  else await show(data.told ?? { ...(told ?? BLANK), at: Date.now() / 1000, kept: false, why: data.refused.message }, report, tiers, steps, rows);
  if (!paused) timer = setTimeout(look, EVERY_MS);
}

async function show(fresh, report, tiers, steps, rows) {
  told = fresh;
  $("sign-in").hidden = true;
  $("figures").hidden = $("controls").hidden = false;
  $("sign-out").hidden = !key();
  choices($("window"), told.windows.map((one) => [one, `last ${WORDS[one] ?? one}`]), "1h");
  choices($("policy"), [["", "all"], ...told.policies.map((one) => [one.policy, one.policy])]);
  status(`As of ${moment(told.at)}${paused ? ", paused" : `, again every ${EVERY_MS / 1000} s`}. ${told.kept ? figuresOf(told) : told.why ? `${told.why} Without the store there is only what the metrics tell since the start.` : "No store is configured: only what the metrics tell since the start can be shown."}`, Boolean(told.why));
  alarms(report, tiers);
  if (told.kept) swap($("tiles"), tiles(told));
  else await bare();
  for (const id of ["reliability-title", "histograms-title", "replay-title", "decisions-title"]) $(id).closest("section").hidden = !told.kept;
  if (told.kept) {
    choices($("of"), calibration.places(told).length ? calibration.places(told) : [["", "nothing labelled"]]);
    figures();
    await replays();
  }
  const shown = part(report, (one) => monitors.panels(one), () => monitors.panels(null));
  if (changed($("monitors"), report.told ?? report.refused.message)) swap($("monitors"), shown);
  $("cards").hidden = !report.told;
  if (changed($("cards"), told.policies)) {
    swap($("cards"), told.policies.map(({ policy }) => h("button", { type: "button", "data-key": policy, "aria-haspopup": "dialog", onclick: () => decisions.card(policy) }, `Live card of ${policy}`)));
  }
  if (changed($("tiers"), tiers.told ?? tiers.refused.message)) swap($("tiers"), part(tiers, (some) => [monitors.tiers(some)]));
  if (changed($("rollout"), steps.told ?? steps.refused.message)) {
    swap($("rollout"), part(steps, (one) => rollout.cards(one, look), () => [empty("Rollouts are not configured (", h("code", {}, "rollout:"), " in the configuration).")]));
  }
  if (told.kept && changed($("decisions"), rows.told ?? rows.refused.message)) {
    swap($("decisions"), part(rows, (one) => [decisions.list(one.data)]));
    $("older").disabled = (rows.told?.data.length ?? 0) < SOME;
    $("newest").hidden = before === null;
  }
}

/** What an answer shows: by `made`, or `absent` where there is no such thing, else why not. */
function part(answer, made, absent) {
  if (answer.told) return made(answer.told);
  if (absent && answer.refused.status === 404) return absent();
  return [h("p", { class: "bad" }, answer.refused.message)];
}

function figuresOf({ labels, explored }) {
  const most = (n, cut) => (cut ? `the latest ${count(n)}` : count(n));
  return `Window: ${most(labels.judged, labels.cut)} labelled answers with a probability, ${most(explored.n, explored.cut)} explored decisions.`;
}

function alarms(report, tiers) {
  const problem = report.refused && report.refused.status !== 404 ? `The monitors cannot be asked: ${report.refused.message}` : "";
  const found = monitors.alarms(report.told ?? null, tiers.told ?? null, problem);
  const on = found.some((one) => one.tagName === "UL");
  if (changed($("alarms"), found.map((one) => (on ? one.textContent : one.textContent.replace(/as of .*/, ""))))) swap($("alarms"), found);
  $("alarms").closest("section").classList.toggle("on", on);
  document.title = `${on ? "(!) " : ""}Console · confidence-gateway`;
}

async function bare() {
  const text = await tried("/metrics", { text: true });
  swap($("tiles"), part(text, monitors.metrics));
}

/** The charts of calibration. */
function figures() {
  const [of, labels] = [$("of").value, $("labels").value];
  const about = [told.calibration, told.policies, told.policy, labels];
  if (changed($("reliability"), [about, of])) {
    swap($("reliability"), calibration.reliability(told, of, labels));
    swap($("reliability-table"), calibration.reliabilityTable(told, of, labels));
  }
  if (changed($("histograms"), about)) {
    swap($("histograms"), calibration.histograms(told, labels));
    swap($("histograms-table"), calibration.histogramsTable(told, labels));
  }
}

async function replays() {
  const some = told.policies.filter((one) => one.steps.length > 1);
  choices($("replay-policy"), some.map((one) => [one.policy, one.policy]), told.policy ?? undefined);
  const policy = some.find((one) => one.policy === $("replay-policy").value);
  choices($("replay-tier"), (policy?.steps ?? []).slice(0, -1).map((step) => [step.tier, step.tier]));
  choices($("replay-window"), told.windows.map((one) => [one, WORDS[one] ?? one]), "7d");
  if (!policy) return replay.show(null);
  const answer = await asked("/admin/console/replay", { policy: policy.policy, tier: $("replay-tier").value, window: $("replay-window").value });
  replay.show(answer.told ?? null, answer.refused?.message);
}

function status(words, bad = false) {
  $("status").textContent = words;
  $("status").classList.toggle("bad", bad);
}

function signIn(message) {
  clearTimeout(timer);
  const wrong = key() !== "";
  forget();
  $("figures").hidden = $("controls").hidden = true;
  $("sign-in").hidden = false;
  $("refused").textContent = wrong ? `${message} Is it an admin's?` : "";
  status("");
  $("key").value = "";
  $("key").focus();
}

function wire() {
  $("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    $("refused").textContent = ""; // so that a second refusal is announced again
    keep($("key").value.trim());
    $("key").value = "";
    look().then(() => { if (!$("figures").hidden) $("main").focus(); });
  });
  $("sign-out").addEventListener("click", () => { forget(); signIn(""); });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    if (paused) clearTimeout(timer);
    look();
  });
  for (const id of ["window", "policy"]) $(id).addEventListener("change", () => { before = null; look(); });
  for (const id of ["of", "labels"]) $(id).addEventListener("change", figures);
  for (const id of ["replay-policy", "replay-tier", "replay-window"]) $(id).addEventListener("change", replays);
  $("slider").addEventListener("input", replay.slid);
  $("slider-now").addEventListener("click", replay.toPolicy);
  $("older").addEventListener("click", () => { before = oldest(); look(); });
  $("newest").addEventListener("click", () => { before = null; look(); });
  $("story-close").addEventListener("click", () => $("story").close());
  $("confirm-not").addEventListener("click", () => $("confirm").close());
  $("confirm-form").addEventListener("submit", rollout.take);
  $("theme").addEventListener("change", () => { localStorage.setItem(THEME, $("theme").value); theme(); });
}

const oldest = () => JSON.parse($("decisions").dataset.told).data.at(-1).at;

function theme() {
  $("theme").value = localStorage.getItem(THEME) ?? "auto";
  document.documentElement.dataset.theme = $("theme").value;
}

theme();
wire();
look();
