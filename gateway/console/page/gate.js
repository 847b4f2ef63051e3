// The way to the gateway: the key in the tab's session storage, one shape for every refusal.

const PLACE = "confidence-gateway.admin-key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = () => sessionStorage.getItem(PLACE) ?? "";
export const keep = (told) => sessionStorage.setItem(PLACE, told);
export const forget = () => sessionStorage.removeItem(PLACE);

const PATIENCE_MS = 15000;

/** What a path says. Raises Refused; with status 0 when nobody answers. */
export async function ask(path, { method = "GET", body, text = false } = {}) {
  const headers = key() ? { authorization: `Bearer ${key()}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit", cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS),
    });
  } catch (error) {
    throw new Refused(0, error.name === "TimeoutError" ? "The gateway does not answer." : "The gateway cannot be reached.");
  }
  if (text && answer.ok) return answer.text();
  const told = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refused(answer.status, told?.error?.message ?? `The gateway answered ${answer.status}.`);
  return told;
}

/** The same, with what went wrong in place of a raised error: {told} or {refused}. */
export async function tried(path, options) {
  try {
    return { told: await ask(path, options) };
  } catch (error) {
    if (error instanceof Refused) return { refused: error };
    throw error;
  }
}
