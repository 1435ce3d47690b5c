// Side by side: one question, two to four ways to answer it, one seed.

import { Answer } from "./answer.js";
import { ApiError, post } from "./api.js";
import { open } from "./chat.js";
import { curves } from "./chart.js";
import { $, announce, button, make, number, seconds, sendByEnter } from "./dom.js";
import { PolicyForm } from "./policies.js";
import { onlyBy, stepAlone } from "./report.js";
import { brought, roomOf, short, withThreshold } from "./settings.js";
import { release } from "./tokens.js";

const MOST = 4, LEAST = 2;
const GENERAL = [
  "A train leaves at 14:35 and arrives at 18:10. How long does it take, in minutes?",
  "Which is larger, 9.11 or 9.9? Answer in one sentence.",
  "Write one sentence about the sea that begins and ends with the same word.",
  "Name three prime numbers between 80 and 100.",
];

export class Compare {
  /** `keys`: what /v1/policies says about report keys. The landing view needs no engine. */
  constructor(keys, examples) {
    Object.assign(this, { keys, examples, columns: [], running: null, general: GENERAL });
    this.recorded();
  }

  /** The engines are ready. `redraw`: the landing view has to be drawn anew. */
  begin(known, redraw) {
    this.known = known;
    this.bundled = known.setup.engines.filter((engine) => engine.bundled).length > 1;
    const engines = [...known.setup.engines].sort((a, b) => a.parameters - b.parameters);
    const preset = known.setup.default_preset ?? Object.keys(known.setup.presets)[0];
    const ways = [engines[0].id, ...(preset ? [`waver/${preset}`] : []), ...(engines.length > 1 ? [engines.at(-1).id] : [])];
    this.more = make("li", { class: "more" }, button("+ another way", () => this.add(engines.at(-1).id), { class: "quiet", id: "add-column" }));
    for (const model of ways.length > 1 ? ways : [ways[0], ways[0]]) this.add(model);
    $("compare-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    sendByEnter($("compare-question"), $("compare-form"));
    $("compare-question").addEventListener("input", () => $("compare-question").setCustomValidity(""));
    $("compare-stop").addEventListener("click", () => this.running?.abort());
    this.suggest();
    $("compare-question").value ||= this.bundled ? this.examples.example.question : GENERAL[0];
    if (redraw) this.recorded();
    this.asked = JSON.stringify(this.columns);
    this.compared();
    $("compare-run").disabled = false;
    $("compare-run").title = "";
  }

  /** Questions that suit the models that are configured here. */
  suggest() {
    const questions = this.bundled ? this.examples.questions : GENERAL;
    $("compare-examples").replaceChildren(...questions.map((text) => make("li", {}, button(text, () => { $("compare-question").value = text; this.run(); }))));
  }

  /** The landing view: a comparison that was recorded with the pair that comes with Waver. */
  recorded() {
    const { example } = this.examples;
    const views = example.columns.map((column, i) => {
      const answer = new Answer({ keys: this.keys });
      answer.show(column);
      return { name: column.name, answer, element: this.frame(i, make("h3", {}, column.name), answer, column.right ? "right" : "wrong") };
    });
    const [, mixed, large] = example.columns, part = mixed.report.cost.full;
    const work = part < 0.98 ? `, with ${number(part, 2)} of the computation` : ", with as much computation: what the small one writes, the large one still reads";
    $("compare-lead").replaceChildren(
      make("strong", {}, `“${example.question}” `), `The right answer is ${example.expected}. `,
      `The small model alone gets it wrong. With Waver the large model writes ${mixed.report.tokens.large} of ${mixed.trace.length} tokens, where the small one is unsure, and the answer is right, in ${seconds(mixed.seconds)} instead of ${seconds(large.seconds)}${work}. `,
      make("span", { class: "note" }, `Recorded with the pair that comes with Waver (${example.recorded}); run a question to see your own models.`));
    this.results(views);
  }

  add(model, policy = null) {
    if (this.columns.length >= MOST) return;
    this.columns.push({ model, policy });
    this.drawn();
  }

  /** Whether the answers below are those of the ways above. */
  compared() {
    const stale = this.asked !== undefined && this.asked !== JSON.stringify(this.columns);
    $("compare-stale").textContent = stale ? "These answers are from before the ways were changed. Run again to have theirs." : "";
    $("compare-stale").hidden = !stale;
    for (const id of ["compare-results", "compare-curves", "compare-summary"]) $(id).classList.toggle("stale", stale);
  }

  /** The choosers of the ways to answer. */
  drawn() {
    this.compared();
    const { setup } = this.known;
    $("compare-columns").replaceChildren(...this.columns.map((column, i) => {
      const select = make("select", { "aria-label": `Way ${i + 1}` },
        make("optgroup", { label: "One engine alone" }, ...setup.engines.map((engine) => make("option", { value: engine.id }, `${engine.id} alone`))),
        Object.keys(setup.presets).length ? make("optgroup", { label: "Presets" }, ...Object.keys(setup.presets).map((name) => make("option", { value: `waver/${name}` }, name))) : null,
        make("option", { value: "own" }, column.policy ? `my own: ${column.policy.map((each) => each.name).join(", ") || "none"}` : "my own …"));
      select.value = column.policy ? "own" : column.model;
      select.addEventListener("change", () => {
        if (select.value === "own") return this.edit(column);
        Object.assign(column, { model: select.value, policy: null });
        this.drawn();
      });
      return make("li", { "data-column": i }, select,
        button("Edit", () => this.edit(column), { class: "quiet", "aria-label": `Edit the policies of way ${i + 1}` }),
        this.columns.length > LEAST ? button("✕", () => { this.columns.splice(i, 1); this.drawn(); }, { class: "quiet", "aria-label": `Remove way ${i + 1}` }) : null);
    }), ...(this.columns.length < MOST ? [this.more] : []));
  }

  /** One's own policies for a column, begun with what it has. */
  edit(column) {
    const { setup, policies } = this.known;
    let problem = "";
    const use = button("Use these", async () => {
      const list = form.read();
      try {
        await post("v1/policies/check", { model: column.model, policy: list });
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        return form.tell((problem = error.message), error.param);
      }
      column.policy = list;
      $("dialog").close();
      this.drawn();
    }, { class: "primary" });
    const form = new PolicyForm("column-", this.known, () => problem && form.tell((problem = ""), null));
    form.set(short(column.policy ?? brought(column.model, setup), policies));
    open("Policies of this way", form.element, use);
    $("dialog").addEventListener("close", () => this.drawn(), { once: true });
  }

  name({ model, policy }) {
    if (policy) return policy.map((each) => each.name).join(" + ") || `${model}, plain`;
    return model.startsWith("waver/") ? model.slice(6) : `${model} alone`;
  }

  frame(i, title, answer, mark) {
    return make("section", { class: "column", "data-column": i }, title, mark ? make("p", { class: `verdict ${mark}` }, mark === "right" ? "✓ right" : "✗ wrong") : null, answer.element);
  }

  /** Whether there is a question; the browser says at the field that one is needed. */
  asks(question) {
    $("compare-question").setCustomValidity(question ? "" : "A question is needed.");
    return $("compare-question").reportValidity();
  }

  /** Ask all of them, one after the other, so that seconds can be compared. `moved`: the way whose threshold was set. */
  async run(moved = null) {
    const question = $("compare-question").value.trim();
    if (this.running || !this.asks(question)) return;
    this.running = new AbortController();
    $("compare-run").hidden = true;
    $("compare-stop").hidden = false;
    $("compare-lead").replaceChildren();
    const shared = {
      messages: [{ role: "user", content: question }], temperature: Number($("compare-temperature").value), seed: Number($("compare-seed").value || 0),
      max_tokens: Number($("compare-tokens").value || 256),
    };
    this.asked = JSON.stringify(this.columns);
    const views = this.columns.map((column, i) => {
      const answer = new Answer({ keys: this.keys, room: roomOf(column.model, this.known.models), move: (policy, value) => this.move(column, policy, value) });
      return { name: this.name(column), column, way: { ...column }, answer, element: this.frame(i, make("h3", {}, this.name(column)), answer) };
    });
    this.results(views);
    release();
    views.find((view) => view.column === moved)?.answer.focusThreshold();
    if ($("compare-results").getBoundingClientRect().top > innerHeight / 2) $("compare-results").scrollIntoView();
    try {
      for (const view of views) {
        const { model, policy } = view.way;
        try {
          await view.answer.run({ ...shared, model, ...(policy && { policy }) }, this.running.signal);
        } catch (error) {
          if (!(error instanceof ApiError)) throw error;
          view.element.append(make("p", { class: "error", role: "alert" }, error.message));
        }
        this.results(views);
      }
      announce("The comparison is complete");
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      announce("Stopped");
    } finally {
      this.running = null;
      $("compare-run").hidden = false;
      $("compare-stop").hidden = true;
    }
  }

  /** A threshold was dragged: the column has policies of its own from now on, and all run again. */
  move(column, policy, value) {
    const { setup, policies } = this.known;
    const list = short(column.policy ?? brought(column.model, setup), policies);
    column.policy = list.map((each) => (each.name === policy ? withThreshold(each, value, policies) : each));
    this.drawn();
    this.run(column);
  }

  results(views) {
    const done = views.filter((view) => view.answer.report);
    for (const view of done.slice(1)) differences(done[0].answer, view.answer);
    const alone = done.find(({ answer: { report } }) => onlyBy(report.cost?.against, report));
    const [step] = done.map(({ answer }) => stepAlone(answer.report)).filter(Boolean).slice(-1); // the latest: one for all
    for (const view of done) view.answer.beside({ alone: alone?.answer.seconds, step });
    if ($("compare-results").firstChild !== views[0].element) $("compare-results").replaceChildren(...views.map((view) => view.element));
    $("compare-summary").replaceChildren(...(done.length ? [table(done)] : []));
    if (done.length) curves($("compare-curves"), done.map((view) => ({ name: view.name, tokens: view.answer.tokens })));
    else $("compare-curves").replaceChildren();
    this.compared();
  }
}

function table(views) {
  const rows = {
    text: (view) => (view === views[0] ? "" : view.answer.same ? "the same" : `differs from token ${view.answer.differs + 1} on`),
    tokens: (view) => Object.entries(view.answer.report.tokens).filter(([, n]) => n).map(([name, n]) => `${name} ${n}`).join(", "),
    "hand-overs": (view) => String(view.answer.report.switches),
    cost: (view) => view.answer.report.cost?.full.toFixed(2) ?? "",
    seconds: (view) => seconds(view.answer.seconds),
    "mean entropy of the engine that wrote": (view) => number(view.answer.report.entropy.mean),
  };
  const head = make("tr", {}, make("td", {}), ...views.map((view, i) => make("th", { scope: "col" }, make("i", { class: "swatch column", "data-column": i }), ` ${view.name}`)));
  const body = Object.entries(rows).map(([name, read]) => make("tr", {}, make("th", { scope: "row" }, name), ...views.map((view) => make("td", {}, read(view)))));
  const reference = views.find((view) => view.answer.report.cost)?.answer.report.cost.against;
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Comparison" },
    make("table", {}, make("caption", {}, reference ? `Cost 1 is ${reference} alone for the same answer: reading, writing, watching and drafts, each token by the parameters of the engine.` : ""), make("thead", {}, head), make("tbody", {}, ...body)));
}

/** Mark the tokens of an answer that a first one has not, by their longest common subsequence. */
function differences(first, other) {
  const a = first.tokens.map((token) => token.token), b = other.tokens.map((token) => token.token);
  let from = 0;
  while (from < a.length && a[from] === b[from]) from++;
  other.same = first.text === other.text;
  other.differs = from;
  const common = new Set(Array.from({ length: from }, (_, i) => i));
  const [x, y] = [a.slice(from), b.slice(from)];
  if (x.length * y.length < 4e6) {
    const width = y.length + 1, lengths = new Uint16Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i--) {
      for (let j = y.length - 1; j >= 0; j--) lengths[i * width + j] = x[i] === y[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
    for (let i = 0, j = 0; i < x.length && j < y.length;) {
      if (x[i] === y[j]) (common.add(from + j), i++, j++);
      else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
      else j++;
    }
  }
  for (const span of other.words.querySelectorAll(".token")) span.classList.toggle("differs", !common.has(Number(span.dataset.index)));
}
