// promptfoo: an evaluation of one question for each of its providers.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { EMBEDDER, HELLO, KEY, MODEL, PARAMETERS, QUESTION, V1, assert, run } from "./harness.mjs";

const COMMAND = resolve("node_modules/promptfoo/dist/src/entrypoint.js");
const schema = { name: "place", strict: true, schema: PARAMETERS };
const tool = { type: "function", function: { name: "weather", parameters: PARAMETERS } };

/** Evaluate one question, and check that what is asserted about the answer holds. */
function evaluate(question, assertion, options = {}, kind = "chat", model = MODEL) {
  const folder = mkdtempSync(join(tmpdir(), "promptfoo-"));
  const own = { apiBaseUrl: V1, apiKey: KEY, max_tokens: 64, temperature: 0, ...options };
  const config = {
    description: "Waver",
    providers: [{ id: `openai:${kind}:${model}`, config: own }],
    prompts: ["{{question}}"],
    tests: [{ vars: { question }, assert: [assertion] }],
  };
  const environment = { PROMPTFOO_CONFIG_DIR: folder, PROMPTFOO_DISABLE_TELEMETRY: "1", PROMPTFOO_DISABLE_UPDATE: "1" };
  try {
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    const asked = ["eval", "-c", "config.json", "--no-cache", "--no-table", "--no-progress-bar", "-o", "out.json"];
    try {
      const env = { ...process.env, ...environment, REQUEST_TIMEOUT_MS: "600000" };
      execFileSync(process.execPath, [COMMAND, ...asked], { cwd: folder, env, stdio: "pipe" });
    } catch {
      // its exit status says that an assertion failed; the file says which
    }
    const [found] = JSON.parse(readFileSync(join(folder, "out.json"), "utf8")).results.results;
    assert(found.success, found.error ?? JSON.stringify(found.response));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

await run({
  text() {
    evaluate(HELLO, { type: "javascript", value: "output.length > 0" });
  },
  tools() {
    const options = { tools: [tool], tool_choice: "required" };
    evaluate(QUESTION, { type: "is-valid-openai-tools-call" }, options);
  },
  structured() {
    const options = { response_format: { type: "json_schema", json_schema: schema } };
    evaluate(QUESTION, { type: "is-json", value: schema.schema }, options);
  },
  embeddings() {
    const embedder = { id: `openai:embedding:${EMBEDDER}`, config: { apiBaseUrl: V1, apiKey: KEY } };
    evaluate(HELLO, { type: "similar", value: HELLO, threshold: -1, provider: embedder });
  },
  responses() {
    evaluate(HELLO, { type: "javascript", value: "output.length > 0" }, { max_output_tokens: 16 }, "responses");
  },
});
