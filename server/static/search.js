// What was drawn before an answer was given: the tree of a search, and the runs of a selection.

import { amount, make, number, plural, seconds } from "./dom.js";

const ENDED = {
  solved: "Solved: an answer meets all goals.",
  iterations: "The iterations were used up: the best so far is given.",
  tokens: "The tokens of the search were used up: the best so far is given.",
  extra_tokens: "The server's extra tokens were used up: the best so far is given.",
  seconds: "The time was over: the best so far is given.",
  verifier: "The verifier failed: the best so far is given.",
};
const MADE = {
  root: ["begin", "the empty answer"],
  expand: ["expand", "the model drew steps after those of its parent"],
  finish: ["finish", "the model wrote its parent to the end"],
  combine: ["combine", "all of one parent, then what the other has besides"],
  delete: ["delete", "its parent without one of its steps"],
  translocate: ["translocate", "one step of the first parent replaced by one of the second"],
  crossover: ["crossover", "the beginning of the first parent, then the end of the second"],
};
const DRAWN = new Set(["expand", "finish"]);

/** How a search went: its end, its goals, and every node below the one it was made of; the way to the given one stands out. */
export function searchView({ ended, goals = {}, tree = [], chosen, nodes, calls, tokens = {}, seconds: took, failure }) {
  const drawn = Object.entries(tokens).map(([engine, n]) => `${plural(n, "token")} drawn by ${engine}`);
  const facts = [plural(nodes, "node"), plural(calls, "call"), ...drawn, seconds(took)].join(", ");
  const rest = nodes > tree.length ? [make("p", { class: "note" }, `The first ${tree.length} of ${nodes} nodes.`)] : [];
  const marks = Object.entries(goals).map(([name, value]) =>
    make("li", { class: value >= 1 ? "met" : "unmet" }, `${value >= 1 ? "✓" : "✗"} ${name}`, value > 0 && value < 1 ? ` ${number(value, 2)}` : ""));
  return [
    make("p", {}, ENDED[ended] ?? ended, make("span", { class: "note" }, ` ${facts}.`)), failure ? make("p", { class: "error" }, failure) : null,
    marks.length ? make("ul", { class: "goals", "aria-label": "Goals" }, ...marks) : null,
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Search tree" }, branches(tree, chosen)), ...rest,
  ];
}

/** Nested lists: a node stands below its first parent; others are named. */
function branches(tree, chosen) {
  const below = tree.map(() => []), way = new Set();
  const roots = [];
  tree.forEach(({ parents }, i) => (parents.length && parents[0] < i ? below[parents[0]] : roots).push(i));
  for (let at = chosen; tree[at] && !way.has(at); at = tree[at].parents[0]) way.add(at);
  const item = (i) => make("li", { class: way.has(i) && "way", "data-node": i }, node(tree, i, i === chosen), below[i].length ? make("ul", {}, ...below[i].map(item)) : null);
  return make("ul", { class: "tree" }, ...roots.map(item));
}

function node(tree, i, given) {
  const { how, parents, steps, score, whole, tokens, text } = tree[i];
  const [name, said] = MADE[how] ?? [how, ""];
  const others = parents.slice(1).map((each) => `#${each}`).join(", ");
  const before = Math.max(0, ...parents.map((each) => tree[each]?.tokens ?? 0));
  const cost = tokens === undefined ? "" : DRAWN.has(how) ? `, ${plural(Math.max(0, tokens - before), "token")} drawn` : ", nothing drawn";
  return make("div", { class: "node" },
    make("span", { class: "number" }, `#${i}`), make("strong", { title: said }, name), others ? make("span", { class: "note" }, `with ${others}`) : null,
    amount(score), make("span", { class: "score" }, `score ${score.toFixed(2)}`),
    make("span", { class: "note" }, `${plural(steps, "step")}${whole ? ", whole" : ""}${cost}`), given ? make("strong", { class: "given" }, "★ given") : null,
    text ? make("p", { class: "draft" }, text) : null);
}

/** The runs of a selection side by side, and which one was given by what rule. */
export function selectionView({ rule, by, chosen, runs = [], tokens = {}, judge, ended }) {
  const given = runs[chosen] ?? {};
  const alike = runs.filter((run) => run.answer !== null && run.answer === given.answer).length;
  const most = Math.max(1e-9, ...runs.map((run) => run.entropy ?? 0));
  const judged = runs.some((run) => run.probability !== undefined);
  const rows = runs.map((run, i) =>
    make("tr", { class: i === chosen && "way", "data-run": i }, make("th", { scope: "row" }, `${i + 1}${i === chosen ? " ★ given" : ""}`), make("td", {}, run.answer ?? "none found"),
      make("td", {}, make("div", { class: "measured" }, amount((run.entropy ?? 0) / most), number(run.entropy))), judged ? make("td", {}, run.probability === undefined ? "" : `${(100 * run.probability).toFixed(0)} %`) : null,
      make("td", {}, String(run.tokens)), run.text === undefined ? null : make("td", {}, run.text)));
  const heads = ["run", "answer", "mean entropy, nats", ...(judged ? ["right, says the judge"] : []), "tokens", ...(given.text === undefined ? [] : ["text"])];
  const drawn = Object.entries(tokens).map(([engine, n]) => `${n} by ${engine}`).join(", ");
  const why = by === "vote" ? `${alike} of ${runs.length} agree` : judge && by === "judge" ? `by the judge ${judge}` : `by ${by}`;
  return [
    make("p", {}, `Run ${chosen + 1} of ${runs.length} is given: ${why}${by === rule || rule === "auto" ? "" : ` (rule ${rule})`}.`,
      make("span", { class: "note" }, ` Tokens drawn: ${drawn}.${ended === "extra_tokens" ? " The server's extra tokens were used up." : ended === "threshold" ? " No more were drawn: this one was probable enough." : ""}`)),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Runs" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, ...rows))),
  ];
}
