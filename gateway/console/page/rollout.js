// Which calibrator is in service at which tier, what is on trial, and the steps an operator can take.

import { ask, Refused } from "./gate.js";
import { $, count, empty, h, moment, percent, short, table } from "./dom.js";

const STEPS = {
  rollback: ["Roll back", "Put the last good calibrator back into service at once."],
  live: ["Make live", "Let this calibrator decide for all requests."],
  canary: ["Start canary", "Let the candidate decide for a share of conversations."],
  shadow: ["Start shadow", "Compute this calibrator beside the live one; it decides nothing."],
  stop: ["Stop the trial", "End the trial of the candidate; the live calibrator stays."],
  offer: ["Offer", "Keep this artefact as a candidate."],
};

/** A card for every tier. told: of GET /admin/rollout. again: called when a step was taken. */
export function cards(told, again) {
  const tiers = Object.entries(told.tiers ?? {});
  if (!tiers.length) return [empty("No tier has a rollout yet.")];
  return [h("div", { class: "cards" }, tiers.map(([tier, state]) => card(tier, state, told.artefacts ?? [], again)))];
}

const name = (artefact) => (artefact === null || artefact === undefined || artefact === "" ? "none"
  : typeof artefact === "string" ? artefact : artefact.label ?? artefact.id ?? artefact.artefact ?? JSON.stringify(artefact));

function card(tier, state, artefacts, again) {
  const trial = state.candidate !== null && state.candidate !== undefined && state.candidate !== "";
  const facts = [
    ["live", state.live ? name(state.live) : "none: everything goes to the largest tier"],
    ["on trial", trial ? `${name(state.candidate)}, ${state.stage}${state.share ? ` for ${percent(state.share)} of conversations` : ""}` : "nothing"],
    ...Object.entries(state.evidence ?? {}).filter(([, value]) => value !== null && typeof value !== "object").map(([key, value]) => [key.replaceAll("_", " "), typeof value === "number" ? short(value) : String(value)]),
  ];
  const history = state.history ?? [];
  const step = (action) => h("button", {
    type: "button", class: action === "rollback" ? "danger" : null, "data-key": `${tier}:${action}`, "aria-haspopup": "dialog",
    onclick: () => confirm(tier, action, artefacts, again),
  }, STEPS[action][0]);
  const possible = ["rollback", ...(trial ? ["canary", "live", "stop"] : ["shadow"])];
  return h("section", { class: "card", "aria-label": `Rollout at ${tier}` },
    h("h3", {}, tier),
    h("dl", { class: "facts" }, facts.flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
    h("div", { class: "choices" }, possible.map(step)),
    history.length ? h("details", {}, h("summary", {}, `History, ${count(history.length)} steps`),
      h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `History at ${tier}` }, table("Newest first; from the audit log", [["time"], ["step"], ["by"], ["why"]],
        [...history].reverse().map((event) => [moment(event.at ?? event.time ?? ""), `${event.action ?? event.what ?? ""}`, event.who ?? "", h("span", {}, event.why ?? "")])))) : null);
}

let taking = null;

/** Ask for the reason, then do it. */
function confirm(tier, action, artefacts, again) {
  taking = { tier, action, again };
  const [words, what] = STEPS[action];
  $("confirm-title").textContent = `${words}: ${tier}`;
  $("confirm-what").textContent = what;
  const more = [];
  if (action === "shadow") {
    more.push(h("label", { for: "confirm-artefact" }, "Artefact"),
      h("select", { id: "confirm-artefact", required: true }, artefacts.filter((one) => !one.tier || one.tier === tier).map((one) => h("option", { value: one.sha256 ?? name(one) }, name(one)))));
  }
  if (action === "canary") {
    more.push(h("label", { for: "confirm-share" }, "Share of conversations, percent"), h("input", { id: "confirm-share", type: "number", min: "0.1", max: "100", step: "any", value: "5", required: true }));
  }
  $("confirm-more").replaceChildren(...more);
  $("confirm-refused").textContent = "";
  $("why").value = "";
  $("confirm-do").textContent = words;
  $("confirm").showModal();
  $("why").focus();
}

/** The form was sent. */
export async function take(event) {
  event.preventDefault();
  const { tier, action, again } = taking;
  const why = $("why").value.trim();
  if (!why) {
    $("confirm-refused").textContent = "Say why; the audit log keeps it.";
    return;
  }
  const body = { tier, action, why };
  if ($("confirm-artefact")) body.artefact = $("confirm-artefact").value;
  if ($("confirm-share")) body.share = Number($("confirm-share").value) / 100;
  $("confirm-do").disabled = true;
  try {
    await ask("/admin/rollout", { method: "POST", body });
    $("confirm").close();
    $("rollout-told").textContent = `Done: ${STEPS[action][0].toLowerCase()} at ${tier}.`;
    again();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("confirm-refused").textContent = error.message;
  } finally {
    $("confirm-do").disabled = false;
  }
}
