// Which calibrator is in service at which tier, what is on trial, and the steps an operator can take.

import { ask, Refused } from "./gate.js";
import { $, count, empty, h, moment, percent, short, table } from "./dom.js";

const STEPS = {
  rollback: ["Roll back", "Put the calibrator that was live before back into service at once. A trial ends with it."],
  promote: ["Make live", "Let this calibrator decide for all requests."],
  canary: ["Start canary", "Let the candidate decide for a share of conversations."],
  shadow: ["Start shadow", "Compute this calibrator beside the live one; it decides nothing."],
  stop: ["Stop the trial", "End the trial of the candidate; the live calibrator stays in service."],
};

/** A card for every tier. told: of GET /admin/calibrators. again: called when a step was taken. */
export function cards(told, again) {
  const tiers = Object.entries(told.tiers ?? {});
  if (!tiers.length) return [empty("No tier has a rollout yet.")];
  return [h("div", { class: "cards" }, tiers.map(([tier, state]) => card(tier, state, told.artefacts ?? [], again)))];
}

const WORDS = {
  seen: "decisions seen on trial", flipped: "of them decided otherwise", paired_labels: "labels with both verdicts", labels: "trusted labels",
  harm_excluded_in: "harm excluded in", harm_proven_in: "harm proven in", log_wealth_over: "log wealth against over-confidence",
};

function card(tier, state, artefacts, again) {
  const trial = Boolean(state.candidate);
  const facts = [
    ["live", state.live ?? "none: everything goes to the largest tier"],
    state.serving && state.serving !== state.live ? ["serving", state.serving] : null,
    ["on trial", trial ? `${state.candidate}, ${state.stage}${state.share ? ` for ${percent(state.share)} of conversations` : ""}` : "nothing"],
    state.since ? ["since", moment(state.since)] : null,
    ...Object.entries(state.evidence ?? {}).filter(([key, value]) => key in WORDS && value !== null).map(([key, value]) => [WORDS[key], Array.isArray(value) ? value.join(", ").replaceAll("_", " ") || "nothing yet" : short(value)]),
    state.earlier?.length ? ["live before", state.earlier.join(", ")] : null,
    state.wants ? ["about to", `${state.wants.action}: ${state.wants.why.join("; ")}`] : null,
  ].filter(Boolean);
  const step = (action) => h("button", {
    type: "button", class: action === "rollback" ? "danger" : null, "data-key": `${tier}:${action}`, "aria-haspopup": "dialog",
    onclick: () => confirm(tier, action, { artefacts: others, earlier: state.earlier?.[0], id: action === "rollback" ? state.live : state.candidate }, again),
  }, STEPS[action][0]);
  const kin = (one) => Number(one.label?.split("@")[0] === state.live?.split("@")[0]); // of the same name, most likely of this tier
  const others = artefacts.filter((one) => !one.error && one.label !== state.live).sort((a, b) => kin(b) - kin(a));
  const possible = [...(state.earlier?.length ? ["rollback"] : []), ...(trial ? (state.stage === "canary" ? ["promote", "stop"] : ["canary", "promote", "stop"]) : others.length ? ["shadow"] : [])];
  return h("section", { class: "card", "aria-label": `Rollout at ${tier}` },
    h("h3", {}, tier),
    [state.error, state.mismatch].filter(Boolean).map((why) => h("p", { class: "bad" }, why)),
    h("dl", { class: "facts" }, facts.flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
    h("div", { class: "choices" }, possible.map(step)),
    possible.length ? null : h("p", { class: "note" }, "There is no other artefact to try; ", h("code", {}, "confgate rollout offer"), " brings one."),
    history(tier, state.history ?? []));
}

function history(tier, events) {
  if (!events.length) return null;
  const rows = [...events].reverse().map((event) => (event.error
    ? ["–", h("span", { class: "bad" }, event.error), "", ""]
    : [moment(event.at), event.action, event.who, [event.why ?? []].flat().join("; ") || "–"]));
  return h("details", {}, h("summary", {}, `History, ${events.length === 1 ? "one step" : `the latest ${count(events.length)} steps`}`),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `History at ${tier}` },
      table("Newest first; from the audit log", [["time"], ["step"], ["by"], ["why", "words"]], rows)));
}

let taking = null;

/** Ask for the reason, then do it. */
function confirm(tier, action, { artefacts, earlier, id }, again) {
  taking = { tier, action, id, again };
  const [words, what] = STEPS[action];
  $("confirm-title").textContent = `${words}: ${tier}`;
  $("confirm-what").textContent = action === "rollback" ? `${what} It will be ${earlier}.` : what;
  const more = [];
  if (action === "shadow") {
    more.push(h("label", { for: "confirm-artefact" }, "Artefact"),
      h("select", { id: "confirm-artefact", required: true }, artefacts.map((one) => h("option", { value: one.sha256 }, `${one.label} (${one.kind}, by ${one.who})`))));
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
  const { tier, action, id, again } = taking;
  const why = $("why").value.trim();
  if (!why) {
    $("confirm-refused").textContent = "Say why; the audit log keeps it.";
    return;
  }
  const body = { tier, why };
  const hash = ($("confirm-artefact")?.value ?? id).split("@").pop();
  if ($("confirm-share")) body.share = Number($("confirm-share").value) / 100;
  $("confirm-do").disabled = true;
  try {
    await ask(`/admin/calibrators/${hash}/${action}`, { method: "POST", body });
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
