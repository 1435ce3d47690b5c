// What stands under an answer: what it cost, who wrote how much, and what every policy reports.

import { amount, coded, make, number, plural, seconds } from "./dom.js";
import { searchView, selectionView } from "./search.js";
import { place } from "./tokens.js";

const PARTS = { writing: "writing", aside: "watching and drafts", reading: "reading" };
const BASIC = new Set(["policy", "tokens", "switches", "relative_cost", "cost", "entropy", "trace", "discarded_tokens", "catch_up_tokens", "ignored", "truncation", "content_filter"]);
const MOST = 40;

const written = (report) => Object.values(report.tokens).reduce((a, b) => a + b, 0) || 1;

/** Seconds of one step of the largest engine, as it had been measured when an answer ended; undefined before. */
export const stepAlone = (report) => report.cost?.seconds_alone && report.cost.seconds_alone / written(report);

/** Cost and time, beside what the largest engine alone would have cost and taken. `alone`: seconds of its own answer,
 * where it ran; `step`: seconds of its steps, where other answers have measured them too. */
export function costView(report, took, { alone, step = stepAlone(report) } = {}) {
  const total = written(report);
  const writers = Object.entries(report.tokens).filter(([, n]) => n > 0);
  const rows = [];
  const cost = report.cost?.engines && parts(report);
  if (cost) {
    rows.push(make("div", { class: "headline" },
      figure(cost.full.toFixed(2), `× what ${cost.against} alone computes`, costTitle(cost)),
      time(cost.against, took, alone, onlyBy(cost.against, report), step && [step, total]), costBar(cost)));
  }
  const said = writers.map(([name, n]) => `${name} ${n}`).join(", ");
  const bar = make("div", { class: "bar", role: "img", "aria-label": `Tokens by engine: ${said}` });
  for (const [name, n] of writers) {
    const part = make("span", { "data-engine": place(name), title: `${name}: ${n} of ${total} tokens` });
    part.style.flexGrow = n;
    bar.append(part);
  }
  const { mean, max, kind } = report.entropy;
  const figures = [
    ...writers.map(([name, n]) => [name, `${plural(n, "token")} (${Math.round((100 * n) / total)} %)`]),
    ["hand-overs", report.switches],
    ["entropy", `${kind === "bounded" ? "about " : ""}${number(mean)} mean, ${number(max)} most`],
  ];
  if (report.discarded_tokens) figures.push(["thrown away", plural(report.discarded_tokens, "token")]);
  if (report.truncation) figures.push(["drawn from", `${report.truncation.kept_mean.toFixed(1)} tokens`]);
  if (report.ignored) figures.push(["ignored fields", report.ignored.join(", ")]);
  const list = make("dl", { class: "figures" }, ...figures.map(([k, v]) => make("div", {}, make("dt", {}, k), make("dd", {}, String(v)))));
  return make("div", { class: "report" }, ...rows, bar, list);
}

/** The full cost, in parts that add up to it: each token that an engine read or decoded, by the engine's parameters. */
function parts({ cost, tokens }) {
  const engines = Object.entries(cost.engines);
  const sum = (count) => engines.reduce((all, [name, engine]) => all + count(engine, tokens[name] ?? 0) * engine.parameters, 0);
  const whole = sum((engine) => engine.decoded + engine.read) || 1;
  const share = (count) => (cost.full * sum(count)) / whole;
  return {
    ...cost,
    writing: share((engine, written) => Math.min(written, engine.decoded)),
    aside: share((engine, written) => Math.max(0, engine.decoded - written)),
    reading: share((engine) => engine.read),
  };
}

const figure = (value, words, title) => make("p", { class: "figure", title }, make("strong", {}, value), ` ${words}`);

function costTitle(cost) {
  const waited = Object.entries(cost.engines).map(([name, engine]) => `waited for ${name}: ${seconds(engine.seconds)}`);
  return [...Object.entries(PARTS).map(([name, words]) => `${words}: ${cost[name].toFixed(3)}`), ...waited].join("\n");
}

/** Whether an answer is one engine's own, without a policy. */
export const onlyBy = (engine, { policy, tokens }) => policy?.length === 0 && Object.entries(tokens).every(([name, n]) => name === engine || !n);

function time(against, took, measured, itself, steps) {
  const estimated = ([step, count]) => `about ${seconds(step * count)} for ${plural(count, "token")}, estimated from its measured steps of ${seconds(step)}`;
  const words = itself ? `by ${against} alone` : measured !== undefined ? `${against} alone took ${seconds(measured)} for its own answer`
    : steps ? `${against} alone: ${estimated(steps)}` : `${against} alone: not measured yet`;
  return figure(seconds(took), words, "From the question to the last token, as this page saw it.");
}

/** The parts of the cost on one scale, with a mark where the largest engine alone stands. */
function costBar(cost) {
  const most = Math.max(1, cost.full) * 1.02;
  const some = Object.entries(PARTS).filter(([name]) => cost[name] > 0.0005);
  const said = some.map(([name, words]) => `${words} ${cost[name].toFixed(2)}`).join(", ");
  const bar = make("div", { class: "cost", role: "img", "aria-label": `Cost ${cost.full.toFixed(2)}: ${said}. 1 is ${cost.against} alone.` });
  for (const [name, words] of some) {
    const part = make("span", { class: name, title: `${words}: ${cost[name].toFixed(3)}` });
    part.style.width = `${(100 * cost[name]) / most}%`;
    bar.append(part);
  }
  const one = make("i", { title: `1: ${cost.against} alone` });
  one.style.left = `${100 / most}%`;
  bar.append(one);
  const key = some.map(([name, words]) => make("span", {}, make("i", { class: `swatch ${name}` }), ` ${words} ${cost[name].toFixed(2)}`));
  return make("div", { class: "costs" }, bar, make("p", { class: "key" }, ...key, make("span", {}, `┃ 1: ${cost.against} alone`)));
}

/** One section for each thing that a policy reported, whatever policy it is. */
export function reportView(report, keys = {}) {
  return Object.entries(report).filter(([key]) => !BASIC.has(key)).map(([key, value]) => {
    const special = { retrieval: lookups, search: searchView, selection: selectionView, difficulty }[key];
    const body = special ? special(value) : [shownValue(value)];
    return make("details", { class: "said", "data-report": key, open: true },
      make("summary", {}, make("strong", {}, key.replaceAll("_", " ")), keys[key] && !special ? make("span", { class: "note" }, " ", ...coded(keys[key])) : null), ...body);
  });
}

function lookups({ passages, drafts = [], gate, score, threshold, triggered, seconds: times, ...others }) {
  const found = [];
  const how = score === undefined ? "" : `score ${number(score)}, threshold ${number(threshold)}: `;
  found.push(make("p", {}, `Gate ${gate}: ${how}${triggered ? "looked up" : "answered from what the model knows"}.`));
  if (score !== undefined) found.push(meter(score, threshold, "gate"));
  if (passages.length) found.push(make("ol", { class: "passages" }, ...passages.map((each) => make("li", {}, make("span", { class: "score" }, each.score.toFixed(3)), ` ${each.document}, part ${each.chunk}`, each.text ? make("blockquote", {}, each.text) : null))));
  else if (triggered) found.push(make("p", { class: "note" }, "Nothing was found."));
  for (const draft of drafts.filter(Boolean)) found.push(make("p", { class: "draft" }, make("strong", {}, "Draft thrown away: "), draft));
  found.push(shownValue({ ...others, seconds: times }));
  return found;
}

function meter(value, threshold, name) {
  const most = Math.max(value, threshold ?? 0, 1e-9) * 1.25;
  const bar = make("div", { class: "meter", role: "img", "aria-label": `${name}: ${number(value)}, threshold ${number(threshold ?? 0)}` }, make("span", {}), make("i", {}));
  bar.firstChild.style.width = `${(100 * value) / most}%`;
  bar.lastChild.style.left = `${(100 * (threshold ?? 0)) / most}%`;
  return bar;
}

function difficulty({ probabilities, ...others }) {
  if (!probabilities) return [shownValue(others)];
  const rows = Object.entries(probabilities).map(([name, p]) => make("li", {}, make("span", {}, name), amount(p), make("span", {}, `${(100 * p).toFixed(1)} %`)));
  return [make("ol", { class: "alternatives" }, ...rows), shownValue(others)];
}

/** Any value as text, a list, a table or a list of terms. */
export function shownValue(value) {
  if (value === null || value === undefined) return make("span", {}, "none");
  if (typeof value === "number") return make("span", { class: "number" }, number(value, 4));
  if (typeof value !== "object") return make("span", {}, String(value));
  if (Array.isArray(value)) return shownList(value);
  const rows = Object.entries(value).map(([key, each]) => make("div", {}, make("dt", {}, key.replaceAll("_", " ")), make("dd", {}, shownValue(each))));
  return rows.length ? make("dl", { class: "terms" }, ...rows) : make("span", {}, "none");
}

function shownList(list) {
  if (!list.length) return make("span", {}, "none");
  const some = list.slice(0, MOST), rest = list.length > MOST ? [make("p", { class: "note" }, `and ${list.length - MOST} more`)] : [];
  if (some.every((each) => each === null || typeof each !== "object")) return make("span", {}, some.map((each) => (typeof each === "number" ? number(each, 4) : String(each))).join(", "), ...rest);
  if (some.every((each) => each && typeof each === "object" && !Array.isArray(each))) {
    const columns = [...new Set(some.flatMap(Object.keys))];
    const head = make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name.replaceAll("_", " ")))));
    const body = make("tbody", {}, ...some.map((row) => make("tr", {}, ...columns.map((name) => make("td", {}, name in row ? shownValue(row[name]) : "")))));
    return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" }, make("table", {}, head, body), ...rest);
  }
  return make("ol", {}, ...some.map((each) => make("li", {}, shownValue(each))), ...rest);
}
