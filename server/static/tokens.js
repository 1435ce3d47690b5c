// One answer's tokens on the page: tinted by entropy, underlined by engine, each with a tip.

import { $, make } from "./dom.js";

/** Entropies, in nats, where the next tint begins. */
export const BOUNDS = [0.03, 0.1, 0.3, 0.7, 1.2, 2.0];
export const level = (entropy) => BOUNDS.filter((bound) => entropy >= bound).length;

const engines = [];
/** An engine's place in the server's list decides its underline. */
export function place(engine) {
  if (!engines.includes(engine)) {
    engines.push(engine);
    $("engines").append(make("li", { "data-engine": engines.length - 1 }, make("span", { class: "mark" }, engine)));
  }
  return engines.indexOf(engine);
}

/** Share text out among the tokens that made it. Where a token's own text is not what stands there (half a code point,
 * the start of a stop string), what is left belongs to the most uncertain of the tokens left. */
export function* spans(content, tokens) {
  const left = [...tokens];
  while (content && left.length) {
    const [first] = left;
    if (left.length > 1 && first.token && content.startsWith(first.token)) {
      left.shift();
      yield [first.token, first];
      content = content.slice(first.token.length);
    } else {
      yield [content, left.reduce((a, b) => (b.entropy > a.entropy ? b : a))];
      return;
    }
  }
  if (content) yield [content, null];
}

const facts = new WeakMap();

export function tokenSpan(text, token) {
  if (!token) return document.createTextNode(text);
  const span = make("span", { class: "token", "data-level": level(token.entropy), "data-engine": place(token.engine) }, text);
  facts.set(span, token);
  return span;
}

/** Tips on hover and touch; with the keyboard, an answer takes the focus and the arrow keys walk along its tokens. */
export function listenForTips(container) {
  container.addEventListener("pointerover", (event) => show(event.target));
  container.addEventListener("pointerleave", hide);
  container.addEventListener("focusout", hide);
  container.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const answer = event.target.closest(".tokens");
    if (event.key === "Escape") hide();
    if (!step || !answer) return;
    const all = [...answer.querySelectorAll(".token")];
    const now = all.findIndex((span) => span.classList.contains("current"));
    show(all[Math.min(Math.max(now + step, 0), all.length - 1)]);
    event.preventDefault();
  });
}

function hide() {
  $("tip").hidden = true;
  document.querySelector(".token.current")?.classList.remove("current");
}

function show(span) {
  const token = facts.get(span);
  hide();
  if (!token) return;
  const rows = [
    ["token", JSON.stringify(token.token)],
    ["id", token.id],
    ["written by", token.engine],
    ["entropy", `${token.entropy.toFixed(4)} nats`],
    ["logprob", `${token.logprob.toFixed(4)}  (${(100 * Math.exp(token.logprob)).toFixed(1)} %)`],
  ];
  const tip = $("tip");
  tip.replaceChildren(make("dl", {}, ...rows.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, String(v))])));
  tip.hidden = false;
  span.classList.add("current");
  const at = span.getClientRects()[0];
  const left = Math.min(Math.max(8, at.left), innerWidth - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
}
