// One answer, as it is streamed: its words, its curve, what it cost, and what the policies did.

import { complete } from "./api.js";
import { Chart } from "./chart.js";
import { $, button, make } from "./dom.js";
import { costView, reportView, shownValue } from "./report.js";
import { EVENTS, details, listen, spans, tokenSpan } from "./tokens.js";

const ALTERNATIVES = 5;
const NEARLY = 0.95; // the part of its context from which on a model that ran out of tokens is called full

/** That a conversation has no room left. `renew()`: begin a new one. */
export const fullNote = (renew, attributes = {}) => make("p", { class: "note full", ...attributes }, "The conversation is full: it takes all of the model's context. ", renew && button("New chat", renew));

export class Answer {
  /** `move(policy, value)`: the threshold was dragged. `facts`: what /v1/policies says about report keys. `renew()`: begin
   * a new conversation; `room`: the tokens that one may have. */
  constructor({ move = null, keys = {}, renew = null, room = null } = {}) {
    Object.assign(this, { keys, renew, room });
    this.full = false; // whether the conversation left no room for more
    this.tokens = [];
    this.pieces = []; // the words as they are shown: a text, its token's index or null, and whether it is a thought
    this.text = "";
    this.thoughts = "";
    this.tools = [];
    this.pending = []; // tokens whose text has not come
    this.calling = null; // where the tokens of a call are shown
    this.report = this.usage = this.reason = this.seconds = null;
    this.words = make("div", { class: "tokens", role: "group", tabindex: 0, "aria-label": "Answer. The arrow keys walk along its tokens." });
    this.chart = new Chart({ choose: (index) => this.choose(index), move });
    this.below = make("div", { class: "below" });
    this.element = make("div", { class: "answer" }, this.words, this.chart.element, this.below);
    listen(this.words, this.tokens, (index) => this.choose(index));
  }

  choose(index) {
    this.words.querySelectorAll(".token.current").forEach((span) => span.classList.remove("current"));
    this.chart.mark(index);
    const tip = $("tip");
    tip.hidden = index === null;
    if (index === null) return;
    const token = this.tokens[index];
    const span = this.words.querySelector(`.token[data-index="${index}"]`);
    span?.classList.add("current");
    tip.replaceChildren(...details(token, this.tokens[index - 1]));
    const at = (span ?? this.chart.element).getClientRects()[0];
    if (at) this.place(tip, at, this.element.getBoundingClientRect());
  }

  /** Put the panel where it hides neither the words nor the curve: beside the answer, above it, or at the edge. */
  place(tip, at, answer) {
    const wide = tip.offsetWidth, tall = tip.offsetHeight, low = innerHeight - tall - 8;
    const beside = [answer.right + 12, answer.left - wide - 12].find((x) => x >= 8 && x + wide <= innerWidth - 8);
    const over = answer.top - tall - 8;
    const [left, top] = beside !== undefined ? [beside, Math.min(Math.max(72, at.top - 20), low)]
      : over > 64 ? [Math.min(Math.max(8, at.left), innerWidth - wide - 8), over]
        : [(innerWidth - wide) / 2, at.bottom < innerHeight / 2 ? low : 72];
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  }

  /** Take the focus: the words have it until the threshold's control is there. */
  focusThreshold() {
    this.chart.focus(this.words);
  }

  /** Stream it. Throws what the server says, or AbortError; what has come until then stays. */
  async run(body, signal) {
    const began = performance.now();
    const asked = { ...body, stream: true, trace: true, stream_options: { include_usage: true } };
    this.element.setAttribute("aria-busy", "true");
    try {
      try {
        await this.read({ ...asked, logprobs: true, top_logprobs: ALTERNATIVES }, signal);
      } catch (error) {
        if (error.status !== 400 || !/logprobs/.test(error.message) || this.tokens.length) throw error;
        await this.read(asked, signal); // an engine that tells no alternatives
      }
    } finally {
      this.seconds = (performance.now() - began) / 1000;
      this.element.setAttribute("aria-busy", "false");
      this.chart.show(this.tokens);
    }
    this.full = this.fills(body.max_tokens);
    if (this.report) this.finish();
  }

  /** Whether the answer ended before the tokens that were asked for because the context of the model was full. */
  fills(asked = Infinity) {
    const { prompt_tokens: read = 0, completion_tokens: written = 0 } = this.usage ?? {};
    return this.reason === "length" && this.room !== null && written < asked && read + written >= NEARLY * this.room;
  }

  async read(body, signal) {
    let drawn = 0;
    for await (const chunk of complete(body, signal)) {
      this.report = chunk.waver ?? this.report;
      this.usage = chunk.usage ?? this.usage;
      if (chunk.choices[0]) this.take(chunk.choices[0]);
      if (performance.now() - drawn > 150) {
        this.chart.show(this.tokens);
        drawn = performance.now();
      }
    }
  }

  take(choice) {
    this.reason = choice.finish_reason ?? this.reason;
    const listed = choice.logprobs?.content ?? [];
    const traced = (choice.waver?.trace ?? []).map((token, i) => ({
      ...token, index: this.tokens.length + i, alternatives: listed[i]?.top_logprobs.map(({ token, logprob }) => ({ token, logprob })),
    }));
    const { reasoning_content: thought = "", content = "", tool_calls: calls = [] } = choice.delta;
    this.tokens.push(...traced);
    this.pending.push(...traced);
    for (const call of calls ?? []) this.call(call);
    if (!thought && !content) return this.called();
    this.calling = null;
    if (content && !this.text && this.thoughts) this.write("\n\n");
    this.thoughts += thought ?? "";
    this.text += content ?? "";
    for (const [part, token] of spans((thought ?? "") + (content ?? ""), this.pending.splice(0))) this.write(part, token?.index, Boolean(thought));
  }

  /** Append a text to the words, as a token's where it has one. */
  write(part, index = null, thought = false) {
    this.pieces.push([part, index, ...(thought ? [true] : [])]);
    const span = tokenSpan(part, this.tokens[index]);
    if (thought) span.classList?.add("thought");
    this.words.append(span);
  }

  call({ index, id, function: called }) {
    if (!this.tools[index]) this.begins(index, called?.name ?? "");
    const known = (this.tools[index] ??= { id, name: "", arguments: "" });
    known.name += called?.name ?? "";
    known.arguments += called?.arguments ?? "";
  }

  /** A call is named some tokens after it began: those that have brought no text are its own. What stands before the
   * last brace belongs to the call before it. */
  begins(index, name) {
    const brace = this.pending.findLastIndex((token) => token.token.includes("{"));
    if (this.calling && brace > 0) this.called(this.pending.splice(0, brace));
    const [first] = this.pending;
    if (first) first.tool = name;
    this.calling = { index, place: callPlace(name) };
    this.words.append(this.calling.place);
  }

  /** Show tokens of a call as they are; until the next one begins, the end of a call that is whole waits. */
  called(tokens = null) {
    if (!this.calling || (!tokens && whole(this.tools[this.calling.index]))) return;
    for (const token of tokens ?? this.pending.splice(0)) {
      token.call = this.calling.index;
      this.calling.place.append(tokenSpan(token.token, token));
    }
  }

  finish() {
    if (this.calling) this.called(this.pending.splice(0));
    for (const [part, token] of spans("", this.pending.splice(0))) this.write(part, token.index);
    if (this.full) this.below.append(fullNote(this.renew));
    else if (this.reason === "length") this.below.append(make("p", { class: "note" }, "The answer reached its limit of tokens."));
    if (this.reason === "content_filter") this.below.append(make("p", { class: "note" }, "A guard withheld the answer."));
    for (const { name, arguments: given } of this.tools) this.below.append(make("div", { class: "call" }, make("strong", {}, `${EVENTS.tool[0]} ${name}`), shownValue(parsed(given))));
    if (this.tools.length) this.below.append(make("p", { class: "note" }, "The model asks for this tool. The page runs none: send the result as the next message, or use the API."));
    this.cost = costView(this.report, this.seconds);
    this.below.append(this.cost, ...reportView(this.report, this.keys));
  }

  /** Say what the largest engine alone took or would have taken, as `costView` does. */
  beside(reference) {
    const cost = costView(this.report, this.seconds, reference);
    this.cost.replaceWith(cost);
    this.cost = cost;
  }

  /** Show an answer that was recorded. */
  show({ trace, report, seconds, text, thoughts = "", reason, tools = [], full = false, pieces = null }) {
    this.tokens.push(...trace.map((token, index) => ({ ...token, index })));
    Object.assign(this, { report, seconds, text, thoughts, reason, tools, full });
    const shared = () => [...spans(text, this.tokens.filter((token) => token.call === undefined))].map(([part, token]) => [part, token?.index]);
    for (const piece of pieces ?? shared()) this.write(...piece);
    tools.forEach(({ name }, i) => {
      const place = callPlace(name);
      place.append(...this.tokens.filter((token) => token.call === i).map((token) => tokenSpan(token.token, token)));
      this.words.append(place);
    });
    this.chart.show(this.tokens);
    if (report) this.finish();
  }

  /** What can be kept of it. */
  kept() {
    return { text: this.text, thoughts: this.thoughts, pieces: this.pieces, trace: this.tokens.map(({ index, ...token }) => token), report: this.report, seconds: this.seconds, reason: this.reason, tools: this.tools, full: this.full };
  }
}

/** Where the tokens of a call stand, behind a mark that names it. */
const callPlace = (name) => make("span", { class: "calling" }, make("span", { class: "tool-mark" }, `${EVENTS.tool[0]} ${name}`), " ");

const whole = (tool) => Boolean(tool) && typeof parsed(tool.arguments) === "object";

/** Arguments as values; as the text that they are where they are no JSON. */
function parsed(given) {
  try {
    return JSON.parse(given);
  } catch {
    return given;
  }
}
