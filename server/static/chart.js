// The curve of an answer: each token's entropy, what was compared with the threshold, who wrote, and what happened.

import { announce, button, draw, make, number } from "./dom.js";
import { LARGE, TICKS, nats, share } from "./scale.js";
import { EVENTS, compared, events, place } from "./tokens.js";

const LEFT = 40, RIGHT = 14, TOP = 22, PLOT = 120, STRIP = 6, BOTTOM = 20;
const HEIGHT = TOP + PLOT + STRIP + BOTTOM;

/** The threshold of most tokens, with the policy it belongs to; null where nothing was compared token by token. */
export function thresholdOf(tokens) {
  const all = tokens.map(compared).filter((each) => each && ["stay", "switch", "hold"].includes(each.then));
  const up = all.find((each) => each.threshold !== undefined);
  return up ? { policy: up.policy, value: Math.max(...all.map((each) => each.threshold)), of: up.of } : null;
}

/** A chart of one answer. `choose(index)` is called as the pointer moves over it, `move(value)` when the threshold has
 * been dragged to a new place (without it the threshold stays where it is). */
export class Chart {
  constructor({ choose = () => {}, move = null } = {}) {
    this.tokens = [];
    this.choose = choose;
    this.move = move;
    this.awaited = null; // what has the focus until there is a control of the threshold
    this.plot = make("div", { class: "plot" });
    this.key = make("p", { class: "key" });
    this.question = make("p", {}); // part of the chart while it is open
    this.element = make("figure", { class: "chart", hidden: true }, this.plot, this.key);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.choose(null));
    new ResizeObserver(() => this.render()).observe(this.plot);
  }

  show(tokens) {
    this.tokens = tokens;
    this.element.hidden = tokens.length < 2;
    this.render();
  }

  render() {
    const { tokens } = this, width = this.plot.clientWidth;
    if (!width || tokens.length < 2 || this.dragging) return;
    this.most = Math.max(LARGE, ...tokens.map((token) => Math.max(token.entropy, compared(token)?.value ?? 0)));
    this.x = (i) => LEFT + (i * (width - LEFT - RIGHT)) / tokens.length;
    this.y = (entropy) => TOP + (1 - share(entropy, this.most)) * PLOT;
    const threshold = thresholdOf(tokens);
    const svg = draw("svg", { width, height: HEIGHT, role: "img", "aria-label": this.label(threshold) });
    svg.append(...this.axes(width), this.bars(), this.strip(), ...this.line(), ...this.marks());
    this.cursor = draw("rect", { class: "cursor", y: TOP, height: PLOT + STRIP, width: Math.max(2, this.x(1) - this.x(0)), visibility: "hidden" });
    svg.append(this.cursor);
    const focus = this.plot.contains(document.activeElement) || this.awaited?.contains(document.activeElement);
    this.plot.replaceChildren(svg, ...(threshold ? [this.handle(threshold, width)] : []));
    if (focus) this.focus();
    this.key.replaceChildren(...this.legend(threshold));
  }

  /** Give the focus to the threshold's control. `from`: what has it until that is drawn. */
  focus(from = null) {
    const control = this.plot.querySelector("[role=slider]");
    this.awaited = control ? null : (from ?? this.awaited);
    (control ?? from)?.focus({ preventScroll: true });
  }

  /** Ask before a threshold that was set is used: `yes` is the button that uses it; Escape and *Keep* put it back. */
  confirm(yes) {
    const back = () => {
      this.question.remove();
      this.render();
      this.focus();
    };
    this.question.replaceChildren(yes, button("Keep this answer", back, { class: "quiet" }));
    this.question.onkeydown = (event) => { if (event.key === "Escape") back(); };
    this.element.append(this.question);
    yes.focus();
    announce(yes.textContent);
  }

  label(threshold) {
    const most = Math.max(...this.tokens.map((token) => token.entropy));
    const over = threshold ? `; compared with a threshold of ${number(threshold.value)} nats` : "";
    const said = this.tokens.reduce((sum, token, i) => sum + events(token, this.tokens[i - 1]).filter(([kind]) => kind === "switch").length, 0);
    return `Entropy over ${this.tokens.length} tokens, at most ${number(most)} nats${over}; ${said} hand-overs`;
  }

  axes(width) {
    const ticks = TICKS.filter((tick) => tick <= this.most);
    const ys = ticks.flatMap((tick) => [
      draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: this.y(tick), y2: this.y(tick) }),
      draw("text", { x: LEFT - 6, y: this.y(tick) + 3.5, "text-anchor": "end" }, String(tick)),
    ]);
    const count = this.tokens.length, step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((s) => count / s <= Math.max(3, width / 70)) ?? 2000;
    const xs = [];
    for (let i = 0; i < count; i += step) xs.push(draw("text", { x: this.x(i + 0.5), y: HEIGHT - 6, "text-anchor": "middle" }, String(i + 1)));
    return [...ys, ...xs, draw("text", { x: 2, y: 11, class: "unit" }, "nats")];
  }

  bars() {
    const floor = this.y(0), gap = this.x(1) - this.x(0) > 5 ? 1 : 0;
    const bars = this.tokens.map((token, i) => {
      const bar = draw("rect", { x: this.x(i) + gap / 2, width: Math.max(0.7, this.x(i + 1) - this.x(i) - gap), y: this.y(token.entropy), height: Math.max(0, floor - this.y(token.entropy)), "data-engine": place(token.engine) });
      return bar;
    });
    return draw("g", { class: "bars" }, ...bars);
  }

  strip() {
    const parts = [];
    for (let from = 0, to = 1; to <= this.tokens.length; to++) {
      if (to < this.tokens.length && this.tokens[to].engine === this.tokens[from].engine) continue;
      const width = this.x(to) - this.x(from);
      parts.push(draw("rect", { "data-engine": place(this.tokens[from].engine), x: this.x(from), width, y: TOP + PLOT, height: STRIP }));
      from = to;
    }
    return draw("g", { class: "strip" }, ...parts);
  }

  line() {
    let path = "", open = false;
    this.tokens.forEach((token, i) => {
      const decision = compared(token);
      if (!decision || !["stay", "switch", "hold"].includes(decision.then)) return (open = false);
      path += `${open ? "L" : "M"}${this.x(i).toFixed(1)} ${this.y(decision.value).toFixed(1)}H${this.x(i + 1).toFixed(1)}`;
      open = true;
    });
    return path ? [draw("path", { class: "decided", d: path })] : [];
  }

  marks() {
    return this.tokens.flatMap((token, i) => {
      const found = events(token, this.tokens[i - 1]);
      if (!found.length) return [];
      const [kind] = found.find(([each]) => each !== "switch") ?? found[0];
      const close = this.x(1) - this.x(0) < 6 && kind === "switch";
      return [draw("text", { class: `event ${kind}`, x: this.x(i + 0.5), y: TOP - 6, "text-anchor": "middle", ...(close && { class: `event ${kind} small` }) }, EVENTS[kind][0], draw("title", {}, found.map(([, said]) => said).join("; ")))];
    });
  }

  /** The threshold: a slider over the whole width, dragged or moved by the arrow keys; the answer runs again when it is let go. */
  handle({ policy, value }, width) {
    let now = value;
    const name = make("span", {}, "");
    const line = make("div", {
      class: `threshold${this.move ? "" : " fixed"}`, "aria-label": `Threshold of ${policy} in nats`,
      ...(this.move ? { role: "slider", "aria-orientation": "vertical", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": number(this.most) } : { role: "img" }),
    }, name);
    const set = (next) => {
      now = Number(Math.max(0, Math.min(this.most, next)).toPrecision(2));
      line.style.top = `${this.y(now)}px`;
      line.style.left = `${LEFT}px`;
      line.style.width = `${width - LEFT - RIGHT}px`;
      name.textContent = `${this.move ? "⇕ " : ""}${number(now)}`;
      if (this.move) {
        line.setAttribute("aria-valuenow", now);
        line.setAttribute("aria-valuetext", `${number(now)} nats`);
      }
    };
    set(value);
    if (!this.move) return line;
    const done = () => {
      this.dragging = false;
      this.question.remove();
      if (now !== Number(value.toPrecision(2))) this.move(policy, now);
    };
    line.addEventListener("pointerdown", (event) => {
      this.dragging = true;
      line.setPointerCapture(event.pointerId);
      event.preventDefault();
      line.focus();
    });
    line.addEventListener("pointermove", (event) => {
      if (!this.dragging) return;
      event.stopPropagation();
      const part = 1 - (event.clientY - this.plot.getBoundingClientRect().top - TOP) / PLOT;
      set(nats(Math.max(0, Math.min(1, part)), this.most));
    });
    line.addEventListener("pointerup", () => this.dragging && done());
    line.addEventListener("pointercancel", () => { this.dragging = false; set(value); });
    line.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 0.02, ArrowRight: 0.02, ArrowDown: -0.02, ArrowLeft: -0.02, PageUp: 0.1, PageDown: -0.1 }[event.key];
      if (event.key === "Escape") return set(value);
      if (!step && event.key !== "Enter") return;
      event.preventDefault(); // Enter would press the button that a question gives the focus to
      if (!step) return done();
      const next = nats(Math.max(0, Math.min(1, share(now, this.most) + step)), this.most);
      set(Number(next.toPrecision(2)) === now ? next * (step > 0 ? 1.1 : 0.9) : next);
    });
    return line;
  }

  legend(threshold) {
    const kinds = new Set(this.tokens.flatMap((token, i) => events(token, this.tokens[i - 1]).map(([kind]) => kind)));
    const items = [make("span", {}, make("i", { class: "swatch bar" }), " entropy of the engine that wrote")];
    if (threshold) {
      items.push(make("span", {}, make("i", { class: "swatch line" }), ` what ${threshold.policy} compared`));
      const how = this.move ? " threshold: drag it, or use the arrow keys and Enter, and the answer runs again" : " threshold";
      items.push(make("span", {}, make("i", { class: "swatch dash" }), how));
    }
    for (const kind of kinds) items.push(make("span", {}, `${EVENTS[kind][0]} ${EVENTS[kind][1]}`));
    return items;
  }

  point(event) {
    if (this.dragging || event.target.closest(".threshold:not(.fixed)") || !this.x) return;
    const at = (event.clientX - this.plot.getBoundingClientRect().left - LEFT) / (this.x(1) - this.x(0));
    this.choose(at >= 0 && at < this.tokens.length ? Math.floor(at) : null);
  }

  /** Mark a token that was chosen elsewhere. */
  mark(index) {
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", index === null ? "hidden" : "visible");
    if (index !== null) this.cursor.setAttribute("x", this.x(index));
  }
}

/** Several answers' curves on one axis: of each what decided, or the entropy where nothing was compared. */
export function curves(container, answers) {
  const width = container.clientWidth, longest = Math.max(2, ...answers.map(({ tokens }) => tokens.length));
  const value = (token) => compared(token)?.value ?? token.entropy;
  const most = Math.max(LARGE, ...answers.flatMap(({ tokens }) => tokens.map(value)));
  const x = (i) => LEFT + (i * (width - LEFT - RIGHT)) / longest, y = (entropy) => TOP + (1 - share(entropy, most)) * PLOT;
  const said = answers.map(({ name, tokens }) => `${name}: ${tokens.length} tokens`).join("; ");
  const svg = draw("svg", { width, height: HEIGHT, role: "img", "aria-label": `Entropy over the tokens of every answer. ${said}` });
  for (const tick of TICKS.filter((each) => each <= most)) {
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      draw("text", { x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, String(tick)));
  }
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((each) => longest / each <= width / 70) ?? 1000;
  for (let i = 0; i < longest; i += step) svg.append(draw("text", { x: x(i + 0.5), y: HEIGHT - 6, "text-anchor": "middle" }, String(i + 1)));
  svg.append(draw("text", { x: 2, y: 11, class: "unit" }, "nats"));
  answers.forEach(({ tokens }, which) => {
    const points = tokens.map((token, i) => `${i ? "L" : "M"}${x(i + 0.5).toFixed(1)} ${y(value(token)).toFixed(1)}`).join("");
    svg.append(draw("path", { class: "curve", "data-column": which, d: points }));
  });
  const key = answers.map(({ name, tokens }, which) => {
    const over = tokens.map(compared), some = over.find(Boolean), own = "entropy of the engine that wrote";
    const what = some ? `what ${some.policy} compared with its threshold${over.every(Boolean) ? "" : `, elsewhere ${own}`}` : own;
    return make("span", {}, make("i", { class: "swatch column", "data-column": which }), ` ${name}: ${what}`);
  });
  container.replaceChildren(svg, make("p", { class: "key" }, ...key));
}
