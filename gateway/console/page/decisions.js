// The latest decisions with their hops, and one decision's whole story.

import { ask, Refused } from "./gate.js";
import { $, count, empty, h, moment, percent, probability, seconds, short, table, usd } from "./dom.js";

export function list(rows) {
  if (!rows.length) return empty("No decision here.");
  return table("Newest first; a decision's number opens its whole story",
    [["decision"], ["time"], ["policy"], ["hops, p against threshold", "words"], ["status"], ["seconds", "n"], ["cost", "n"], ["right?"]],
    rows.map((row) => [
      h("button", { type: "button", class: "link", "data-key": row.number, "aria-haspopup": "dialog", onclick: () => story(row.number) }, row.number.slice(0, 10)),
      moment(row.at), row.policy || "–", hops(row), `${row.status}${row.explored ? " · explored" : ""}`,
      seconds(row.seconds), usd(row.usd), truth(row.truth),
    ]));
}

const truth = (told) => (told === true ? "right" : told === false ? h("strong", { class: "bad" }, "wrong") : "–");

const sure = (hop) => `${probability(hop.p_correct)}${hop.threshold === null ? "" : ` / ${short(hop.threshold)}`}`;

function hops(row) {
  const path = row.hops.filter((hop) => hop.role === "hop");
  const shadows = row.hops.filter((hop) => hop.role === "shadow").length;
  if (!path.length) return "no tier was asked";
  const last = path.map((hop) => hop.tier).lastIndexOf(row.tier);
  return [
    h("ol", { class: "hops" }, path.map((hop, place) => h("li", {},
      h("span", { class: place === last && row.status === 200 ? "chip served" : "chip" }, hop.tier), ` ${hop.reason} `, h("span", { class: "dim" }, sure(hop))))),
    shadows ? h("span", { class: "dim" }, `+ ${count(shadows)} in shadow`) : null,
  ];
}

const story = (number) => opened(`Decision ${number}`, async () => whole(await ask(`/admin/decisions/${encodeURIComponent(number)}`)));

/** What is claimed of a policy as of now, in the words of the live card. */
export const card = (policy) => opened(`Live card of ${policy}`, async () => [
  h("pre", { tabindex: "0", role: "group", "aria-label": "Live card" }, await ask(`/admin/card?${new URLSearchParams({ policy, format: "md" })}`, { text: true })),
]);

/** A dialog with what `load` brings. */
async function opened(title, load) {
  const [dialog, body] = [$("story"), $("story-body")];
  $("story-title").textContent = title;
  body.replaceChildren(h("p", { class: "dim" }, "Loading …"));
  dialog.showModal();
  try {
    body.replaceChildren(...(await load()));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    body.replaceChildren(h("p", { class: "bad", role: "alert" }, error.message));
  }
}

function whole({ decision, hops: all, labels, truth: said }) {
  return [
    decision ? facts(decision, said) : empty("Its decision row is not there any more."),
    all.length ? h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Hops" }, table("Hops in order; shadows were asked afterwards, to learn from",
      [["tier"], ["role"], ["reason"], ["p / threshold", "n"], ["model"], ["calibrator"], ["tokens", "n"], ["seconds", "n"], ["cost", "n"], ["comes to the same"], ["why", "words"]],
      all.map((hop) => [hop.tier, hop.role, hop.reason, sure(hop), hop.model || "–", hop.calibrator, `${count(hop.prompt_tokens)} + ${count(hop.completion_tokens)}`,
        seconds(hop.seconds), usd(hop.usd), agreement(hop.agrees), [hop.null_reason, hop.note, hop.error].filter(Boolean).join("; ") || "–"]))) : null,
    ...all.filter((hop) => Object.keys(hop.features).length).map((hop) => h("details", {},
      h("summary", {}, `Features of ${hop.tier} (${hop.role})`),
      table("As measured; – is undefined", [["feature"], ["value", "n"]],
        Object.entries(hop.features).map(([name, value]) => [name, value === null ? "–" : value.toPrecision(6)])))),
    labels.length ? table("Labels, oldest first; an operator's counts before a client's, a proxy's never",
      [["label"], ["source"], ["by"], ["time"], ["comment", "words"]],
      labels.map((label) => [label.label ? "right" : "wrong", label.source, label.author, moment(label.at), label.comment ?? "–"])) : h("p", { class: "note" }, "No label."),
    ...["prompt", "answer"].filter((name) => decision?.[name] !== null && decision?.[name] !== undefined)
      .flatMap((name) => [h("h3", {}, name === "prompt" ? "Prompt, redacted" : "Answer, redacted"), h("pre", { tabindex: "0", role: "group", "aria-label": name }, decision[name])]),
  ].filter(Boolean);
}

const agreement = (agrees) => (agrees === null ? "–" : agrees ? "yes" : "no");

function facts(row, said) {
  const told = [
    ["served", row.tier ? `${row.tier}: ${row.reason}, p ${probability(row.p_correct)}${row.threshold === null ? "" : ` against ${short(row.threshold)}`}` : "nothing"],
    ["calibrator", row.calibrator || "none"],
    ["asked", `${row.time}, by ${row.client}, policy ${row.policy || "–"}, ${row.mode}`],
    ["took", `${seconds(row.seconds)}, ${count(row.prompt_tokens)} + ${count(row.completion_tokens)} tokens, ${usd(row.usd)}`],
    ["status", `${row.status}`],
    ["explored", row.inclusion === null ? "exploring was not on for it" : `${row.explored ? "drawn" : "not drawn"}, with probability ${percent(row.inclusion)}`],
    ["right?", truth(said)],
    ["prompt SHA-256", h("code", {}, row.prompt_sha256 || "–")],
  ];
  return h("dl", { class: "facts" }, told.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
