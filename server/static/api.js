// The server, as the page needs it: JSON in, JSON out, and a stream of chunks. Knows no page.

const KEY = "waver-api-key";
const PULSE = 800, PATIENCE = 1900; // milliseconds: a server that is gone or frozen is told within three seconds

export const savedKey = () => sessionStorage.getItem(KEY) ?? "";
export const saveKey = (key) => sessionStorage.setItem(KEY, key);

export class ApiError extends Error {
  constructor(status, message, { param = null, code = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

/** The server's sentence, with the field it is about. */
function sentence({ message, param }) {
  return param && !message.includes(param) ? `${param}: ${message}` : message;
}

/** Paths are relative to the page's own, which a proxy may serve below a prefix. */
async function request(path, options = {}) {
  const key = savedKey();
  const json = typeof options.body === "string" && { "content-type": "application/json" };
  const headers = { ...json, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const told = body?.error;
  throw new ApiError(response.status, told ? sentence(told) : `The server answered ${response.status}.`, told);
}

/** Whether the engines are warm. Throws the reason if they cannot serve. */
export async function ready() {
  const { engines } = await get("health");
  if (engines === "failed") await request("ready");
  return engines !== "starting";
}

export const get = async (path) => (await request(path)).json();
export const list = async (path) => (await get(path)).data;
export const text = async (path) => (await request(path)).text();
export const remove = async (path) => (await request(path, { method: "DELETE" })).json();
export const post = async (path, body, signal) =>
  (await request(path, { method: "POST", body: body instanceof FormData ? body : JSON.stringify(body), signal })).json();

/** Server-sent events of a chat completion: yields parsed chunks until [DONE]; throws what the server reports. */
export async function* complete(body, signal) {
  const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError(0, "The connection to the server broke.");
      }
      if (read.done) throw new ApiError(0, "The stream broke off before the answer was complete.");
      text += read.value;
      const lines = text.split(/\r?\n/);
      text = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(0, sentence(chunk.error), chunk.error);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Calls `tell` with a sentence when the server is gone or frozen, and with "" when it is back. Sleeps with the tab. */
export function watch(tell) {
  let said = "";
  const say = (words) => {
    if (words !== said) tell((said = words));
  };
  const pulse = async () => {
    if (document.visibilityState !== "hidden") {
      try {
        await fetch("health", { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
        say("");
      } catch (error) {
        const frozen = error.name === "TimeoutError";
        say(frozen ? "The server is there, but does not answer." : "The server is gone. Your question stays here; it is asked again when you say so.");
      }
    }
    setTimeout(pulse, PULSE);
  };
  pulse();
}
