// The playground: a conversation whose tokens show where the model wavered. Everything it knows comes from the API.

import { ApiError, complete, list, ready, saveKey, savedKey } from "./api.js";
import { $, make } from "./dom.js";
import { policyForm } from "./policies.js";
import { reportView } from "./report.js";
import { BOUNDS, listenForTips, place, spans, tokenSpan } from "./tokens.js";

const EXAMPLES = [
  "What is 34 + 25 - 17?",
  "Compute 46 + 50 + 27 - 86 + 25 + 59 - 99 + 80 + 55.",
  "Which river flows through Darpass?",
  "Who is the mayor of Wilknoll?",
  "hello",
];

let messages = [];
let running = null;
let readPolicies = () => [];

function requestBody() {
  const mode = $("mode").value;
  return {
    model: $("model").value,
    messages,
    stream: true,
    trace: true,
    temperature: Number($("temperature").value),
    ...($("max-tokens").value && { max_tokens: Number($("max-tokens").value) }),
    ...($("seed").value && { seed: Number($("seed").value) }),
    ...(mode === "none" && { policy: [] }),
    ...(mode === "own" && { policy: readPolicies() }),
  };
}

async function ask(text) {
  const before = messages;
  messages = [...messages, { role: "user", content: text }];
  $("welcome").hidden = true;
  const words = make("div", { class: "tokens", tabindex: 0, "aria-label": "Answer; the arrow keys walk along its tokens" });
  const turn = make("article", { "aria-busy": "true" }, make("p", { class: "question" }, text), words);
  $("turns").append(turn);
  turn.scrollIntoView({ block: "end" });

  running = new AbortController();
  showRunning(true);
  const all = [], pending = [];
  let answer = "", report = null, reason = null;
  try {
    for await (const chunk of complete(requestBody(), running.signal)) {
      report = chunk.waver ?? report;
      const [choice] = chunk.choices;
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const traced = choice.waver?.trace ?? [];
      all.push(...traced);
      pending.push(...traced);
      const thought = choice.delta.reasoning_content ?? "", content = choice.delta.content ?? "";
      if (!thought && !content) continue;
      if (content && !answer && words.querySelector(".thought")) words.append("\n\n");
      answer += content;
      const follow = innerHeight + scrollY > document.documentElement.scrollHeight - 80;
      for (const [part, token] of spans(thought + content, pending.splice(0))) {
        const span = tokenSpan(part, token);
        if (thought) span.classList?.add("thought");
        words.append(span);
      }
      if (follow) turn.scrollIntoView({ block: "end" });
    }
    messages = [...messages, { role: "assistant", content: answer }];
    if (reason === "length") turn.append(make("p", { class: "note" }, "The answer reached its limit of tokens."));
    if (report) turn.append(reportView(report, all));
    $("status").textContent = `Answer: ${answer}`;
  } catch (error) {
    const stopped = error.name === "AbortError";
    const said = stopped ? "Stopped. This turn will not be remembered." : error.message;
    turn.append(make("p", { class: stopped ? "note" : "error", role: "alert" }, said));
    if (turn.isConnected) messages = before;
    if (!stopped && !answer && !$("message").value) $("message").value = text;
    if (error.status === 401) askForKey();
  } finally {
    turn.setAttribute("aria-busy", "false");
    running = null;
    showRunning(false);
    turn.scrollIntoView({ block: "end" });
  }
}

function showRunning(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
}

function askForKey() {
  $("key").hidden = false;
  $("api-key").focus();
}

/** Fill the pickers. While the server starts or wants a key, say so and try again. */
async function load() {
  try {
    await ready();
    const [models, policies] = await Promise.all([list("v1/models"), list("v1/policies")]);
    const names = models.filter((model) => model.kind !== "embedder").map((model) => model.id);
    const presets = names.filter((name) => name.startsWith("waver/"));
    const engines = names.filter((name) => !name.startsWith("waver/"));
    const group = (label, ids) => make("optgroup", { label }, ...ids.map((id) => make("option", { value: id }, id)));
    $("model").replaceChildren(...(presets.length ? [group("Presets", presets)] : []), group("Engines", engines));
    engines.forEach(place);
    readPolicies = policyForm($("policies"), policies, engines);
    $("status").textContent = "";
    $("status").classList.add("hidden");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    $("status").textContent = error.message;
    $("status").classList.remove("hidden");
    if (error.status === 401) askForKey();
    else setTimeout(load, 2000);
  }
}

function legend() {
  const steps = [0, ...BOUNDS];
  $("scale").append(...steps.map((low, i) => make("span", { "data-level": i }, String(low))));
}

function examples() {
  for (const text of EXAMPLES) {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => ask(text));
    $("examples").append(make("li", {}, button));
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (!text || running) return;
  $("message").value = "";
  ask(text);
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("message").focus();
});
$("mode").addEventListener("change", () => { $("policies").hidden = $("mode").value !== "own"; });
$("temperature").addEventListener("input", showTemperature);
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  saveKey($("api-key").value.trim());
  load();
});

function showTemperature() {
  document.querySelector("output[for=temperature]").value = Number($("temperature").value).toFixed(2);
}

$("api-key").value = savedKey();
showTemperature();
legend();
examples();
listenForTips($("turns"));
load();
