// Ways out of the page: a request as curl, Python or TypeScript, and a link that carries the settings.

const bytes = (text) => new TextEncoder().encode(text);

/** Any JSON as letters that an address may have. */
export const packed = (value) => btoa(String.fromCharCode(...bytes(JSON.stringify(value)))).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");

export function unpacked(text) {
  try {
    const raw = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(raw, (letter) => letter.charCodeAt(0))));
  } catch {
    return null;
  }
}

const base = () => new URL("v1", new URL(".", location.href)).href;
const indented = (value, by) => JSON.stringify(value, null, 2).replaceAll("\n", `\n${" ".repeat(by)}`);
const known = new Set("model messages temperature max_tokens seed stop tools response_format top_p".split(" "));

/** Python spells some values its own way; strings are the same. */
function python(value, by) {
  const pad = " ".repeat(by), inner = " ".repeat(by + 4);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return value.length ? `[\n${value.map((each) => inner + python(each, by + 4)).join(",\n")},\n${pad}]` : "[]";
  if (typeof value === "object") return `{\n${Object.entries(value).map(([k, v]) => `${inner}${JSON.stringify(k)}: ${python(v, by + 4)}`).join(",\n")},\n${pad}}`;
  return JSON.stringify(value);
}

/** The same request in three languages. `keyed`: the server asks for a key, which the code reads from the environment. */
export function code(body, keyed) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const authorization = keyed ? ` \\\n  -H "authorization: Bearer $WAVER_API_KEY"` : "";
  const usual = Object.entries(body).filter(([name]) => known.has(name)), extra = Object.fromEntries(Object.entries(body).filter(([name]) => !known.has(name)));
  const extended = Object.keys(extra).length ? `    extra_body=${python(extra, 4)},\n` : "";
  const key = keyed ? 'os.environ["WAVER_API_KEY"]' : '"none"';
  return {
    curl: `curl ${base()}/chat/completions \\\n  -H "content-type: application/json"${authorization} \\\n  -d '${quoted}'\n`,
    Python: `${keyed ? "import os\n\n" : ""}import openai\n\nclient = openai.OpenAI(base_url=${JSON.stringify(base())}, api_key=${key})\nanswer = client.chat.completions.create(\n${usual.map(([name, value]) => `    ${name}=${python(value, 4)},\n`).join("")}${extended})\nprint(answer.choices[0].message.content)\nprint(answer.waver["cost"]["full"])\n`,
    TypeScript: `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: ${JSON.stringify(base())}, apiKey: ${keyed ? "process.env.WAVER_API_KEY" : '"none"'} });\nconst answer = await client.chat.completions.create(${indented(body, 0)} as any);\nconsole.log(answer.choices[0].message.content, (answer as any).waver.cost.full);\n`,
  };
}

/** Put a text into the clipboard; true if the browser let it. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
