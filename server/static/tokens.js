// One answer's tokens: tinted by what decides, underlined by the engine that wrote them. One of them can be chosen, by
// pointer, touch or keyboard; the chart and the panel below follow.

import { $, amount, announce, make, number, plural } from "./dom.js";
import { tint } from "./scale.js";

const engines = [];
/** An engine's place in the server's list decides its underline. */
export function place(engine) {
  if (!engines.includes(engine)) {
    engines.push(engine);
    $("engines").append(make("li", {}, make("span", { class: "mark", "data-engine": engines.length - 1 }, engine)));
  }
  return engines.indexOf(engine);
}

/** The server's engines are these. Returns whether what is there already has other underlines now. */
export function order(ids) {
  if (ids.every((id, at) => engines[at] === id)) return false;
  const others = engines.splice(0).length > 0;
  $("engines").replaceChildren();
  ids.forEach(place);
  return others;
}

/** The decision that was made about a token by comparing a number with a threshold: that of a switch, if there is one. */
export function compared(token) {
  const all = Object.entries(token.decision ?? {}).map(([policy, decision]) => ({ policy, ...decision }));
  const numbers = all.filter((each) => each.value !== undefined && each.threshold !== undefined);
  return numbers.find((each) => ["stay", "switch", "hold"].includes(each.then)) ?? numbers[0] ?? null;
}

/** What the tint shows: the number that decided, or the token's own entropy where nothing was compared. */
export const shown = (token) => {
  const decision = compared(token);
  return decision && ["stay", "switch", "hold"].includes(decision.then) ? decision.value : token.entropy;
};

export const EVENTS = {
  switch: ["▲", "hand-over"],
  repetition: ["↻", "went round in circles"],
  look_up: ["◆", "looked up"],
  keep: ["◇", "no look-up needed"],
  strategy: ["●", "strategy"],
  force: ["■", "forced answer"],
  tool: ["✚", "tool call"],
};

/** What happened at a token: pairs of a kind and a sentence. */
export function events(token, before) {
  const found = [];
  for (const [policy, { then, value, threshold }] of Object.entries(token.decision ?? {})) {
    const numbers = value === undefined ? "" : `: ${number(value)}${threshold === undefined ? "" : ` against ${number(threshold)}`}`;
    if (then === "look_up") found.push(["look_up", `${policy} looked things up${numbers}`]);
    else if (then === "keep") found.push(["keep", `${policy} kept the draft${numbers}`]);
    else if (then === "repetition") found.push(["repetition", `${policy}: the small engine repeated itself`]);
    else if (then === "force") found.push(["force", `${policy} brings the answer to its end from here`]);
    else if (!["stay", "switch", "hold"].includes(then)) found.push(["strategy", `${policy} chose ${then}${numbers}`]);
  }
  const over = compared(token);
  if ((before && before.engine !== token.engine) || over?.then === "switch") {
    const why = over?.then === "switch" ? `: ${number(over.value)} against ${number(over.threshold)} nats` : "";
    found.push(["switch", `handed over to ${token.engine}${why}`]);
  }
  if (token.tool) found.push(["tool", `calls ${token.tool}`]);
  return found;
}

/** Share text out among the tokens that made it; control tokens have none. Where a token's own text is not what stands
 * there (half a code point, the start of a stop string), what is left belongs to the most uncertain of the tokens left. */
export function* spans(content, tokens) {
  const silent = (token) => token.token === "";
  const left = [...tokens];
  while (left.length) {
    const [first] = left;
    if (silent(first) || (content && left.length > 1 && content.startsWith(first.token))) {
      left.shift();
      yield [first.token, first];
      content = content.slice(first.token.length);
    } else {
      const spoken = left.filter((token) => !silent(token));
      if (content) yield [content, spoken.reduce((a, b) => (b.entropy > a.entropy ? b : a))];
      return;
    }
  }
  if (content) yield [content, null];
}

export function tokenSpan(text, token) {
  if (!token) return document.createTextNode(text);
  const decided = compared(token)?.then;
  return tint(make("span", { class: "token", "data-engine": place(token.engine), "data-index": token.index, "data-then": decided }, text), shown(token));
}

const percent = (logprob) => (logprob < Math.log(0.0005) ? "under 0.1 %" : `${(100 * Math.exp(logprob)).toFixed(1)} %`);
const words = {
  stay: "so the same engine goes on",
  switch: "so the other engine takes over",
  hold: "which asks for the other engine, but the one that writes has to make its first tokens before it may hand over",
};

const named = ({ token }) => (token === "" ? "a control token, without text" : JSON.stringify(token));

/** One sentence about a token, for those who hear it. */
export function sentence(token, before) {
  const decision = compared(token);
  const parts = [`${named(token)}, by ${token.engine}, entropy ${number(token.entropy)}`];
  if (decision) parts.push(`compared ${number(decision.value)} with ${number(decision.threshold)}, ${words[decision.then] ?? decision.then}`);
  parts.push(...events(token, before).filter(([kind]) => kind !== "switch").map(([, said]) => said));
  if (token.alternatives?.length) parts.push(`alternatives ${token.alternatives.map((a) => `${JSON.stringify(a.token)} ${percent(a.logprob)}`).join(", ")}`);
  return parts.join("; ");
}

/** The panel about one token. */
export function details(token, before) {
  const decision = compared(token);
  const rows = [
    ["written by", make("span", { class: "mark", "data-engine": place(token.engine) }, token.engine)],
    ["entropy", `${token.entropy.toFixed(4)} nats`],
    ["probability", percent(token.logprob)],
    ["id", String(token.id)],
  ];
  if (decision) {
    const of = decision.of ? ` of ${decision.of}` : "";
    rows.push(["compared", `${number(decision.value, 4)}${of} with the threshold ${number(decision.threshold, 4)}, ${words[decision.then] ?? decision.then.replace("_", " ")}`]);
    if (decision.entropy !== undefined && decision.entropy !== decision.value) rows.push(["here alone", `${number(decision.entropy, 4)} nats`]);
  }
  if (token.kept !== undefined) rows.push(["drawn from", plural(token.kept, "token")]);
  for (const [, said] of events(token, before)) rows.push(["event", said]);
  const list = make("dl", {}, ...rows.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
  return [make("p", { class: "name" }, named(token)), list, ...alternatives(token)];
}

function alternatives(token) {
  if (!token.alternatives?.length) return [];
  const items = token.alternatives.map((each) =>
    make("li", { class: each.token === token.token && "taken" }, make("code", {}, JSON.stringify(each.token)), amount(Math.exp(each.logprob)), make("span", {}, percent(each.logprob))));
  return [make("p", { class: "caption" }, "It could have been"), make("ol", { class: "alternatives" }, ...items)];
}

let letGo = null;
/** Let go of the token that was chosen, wherever it is. */
export function release() {
  letGo?.();
  letGo = null;
}
addEventListener("pointerdown", (event) => { if (!event.target.closest?.(".tokens, .plot")) release(); });
addEventListener("keydown", (event) => { if (event.key === "Escape") release(); });

/** Lets a person choose a token of `container`: `choose(index)` by pointer, touch and arrow keys, `choose(null)` for none. */
export function listen(container, tokens, choose) {
  let at = null, pinned = false;
  const off = () => {
    [at, pinned] = [null, false];
    choose(null);
  };
  const go = (index, say) => {
    if (letGo !== off) release();
    letGo = index === null ? null : off;
    at = index;
    choose(index);
    if (say && index !== null) announce(sentence(tokens[index], tokens[index - 1]));
  };
  const of = (event) => event.target.closest?.(".token")?.dataset.index;
  container.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse" && !pinned && of(event) !== undefined) go(Number(of(event)), false);
  });
  container.addEventListener("pointerleave", () => pinned || go(null, false));
  container.addEventListener("click", (event) => {
    const index = of(event);
    pinned = index !== undefined && !(pinned && Number(index) === at);
    go(pinned ? Number(index) : null, true);
  });
  container.addEventListener("keydown", (event) => {
    const spans = [...container.querySelectorAll(".token")].map((span) => Number(span.dataset.index));
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const to = { Home: 0, End: spans.length - 1 }[event.key];
    if ((!step && to === undefined) || !spans.length) return;
    event.preventDefault();
    const now = spans.indexOf(at);
    go(spans[to ?? Math.min(Math.max(now + step, 0), spans.length - 1)], true);
  });
  container.addEventListener("focusout", () => pinned || go(null, false));
}
