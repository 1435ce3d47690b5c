// The server, as the page needs it: JSON in, JSON out, and a stream of chunks. Knows no page.

const KEY = "waver-api-key";

export const savedKey = () => sessionStorage.getItem(KEY) ?? "";
export const saveKey = (key) => sessionStorage.setItem(KEY, key);

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server's sentence, with the field it is about. */
function sentence({ message, param }) {
  return param && !message.includes(param) ? `${param}: ${message}` : message;
}

/** Paths are relative to the page's own, which a proxy may serve below a prefix. */
async function request(path, options = {}) {
  const key = savedKey();
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body?.error ? sentence(body.error) : `The server answered ${response.status}.`);
}

/** Throws, with the reason, until the engines are warm. */
export const ready = () => request("ready");

export async function list(path) {
  const body = await (await request(path)).json();
  return body.data;
}

/** Server-sent events of a chat completion: yields parsed chunks until [DONE]; throws what the server reports. */
export async function* complete(body, signal) {
  const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError(0, "The stream broke off before the answer was complete.");
      text += value;
      const lines = text.split(/\r?\n/);
      text = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(0, sentence(chunk.error));
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
