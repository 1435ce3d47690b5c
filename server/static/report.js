// What stands under an answer: who wrote how much, how often the pen changed hands, what it cost, where it wavered.

import { draw, make } from "./dom.js";
import { place } from "./tokens.js";

const WIDTH = 600, HEIGHT = 44;

export function reportView(report, tokens) {
  const total = Object.values(report.tokens).reduce((a, b) => a + b, 0) || 1;
  const written = Object.entries(report.tokens).filter(([, n]) => n > 0);
  const said = written.map(([name, n]) => `${name} ${n}`).join(", ");
  const bar = make("div", { class: "bar", role: "img", "aria-label": `Tokens by engine: ${said}` });
  for (const [name, n] of written) {
    const part = make("span", { "data-engine": place(name), title: `${name}: ${n} of ${total} tokens` });
    part.style.flexGrow = n;
    bar.append(part);
  }
  const { mean, max, kind } = report.entropy;
  const about = kind === "bounded" ? "about " : "";
  const figures = [
    ...written.map(([name, n]) => [name, `${n} (${Math.round((100 * n) / total)} %)`]),
    ["switches", report.switches],
    ["relative cost", report.relative_cost.toFixed(2)],
    ["entropy", `${about}${mean.toFixed(3)} mean, ${max.toFixed(2)} max`],
  ];
  if (report.truncation) {
    const { kept_mean: kept, crop_entropy_mean: even } = report.truncation;
    figures.push(["drawn from", `${kept.toFixed(1)} tokens, ${even.toFixed(3)} nats`]);
  }
  if (report.guard) figures.push(["guard", [report.guard.outcome, ...new Set(report.guard.rules)].join(", ")]);
  if (report.search) {
    const { ended, nodes, calls } = report.search;
    figures.push(["search", `${ended}, ${nodes} nodes, ${calls} calls`]);
  }
  if (report.episodes) {
    const { recalled, searched, quoted, prompt_tokens: read } = report.episodes;
    figures.push(["episodes", `${recalled.length} of ${searched}, ${quoted.length} lines, ${read} tokens`]);
  }
  if (report.memory) {
    const { recalled, searched, complexity, prompt_tokens: read } = report.memory;
    figures.push(["recalled", `${recalled.length} of ${searched}, complexity ${complexity.toFixed(2)}, ${read} tokens`]);
  }
  if (report.facts) figures.push(["facts", `${report.facts.route}, ${report.facts.candidates.length} candidates`]);
  if (report.strategy) figures.push(["strategy", report.strategy]);
  const list = make("dl", {}, ...figures.map(([k, v]) => make("div", {}, make("dt", {}, k), make("dd", {}, String(v)))));
  const threshold = report.policy.find((policy) => typeof policy.threshold === "number")?.threshold;
  return make("div", { class: "report" }, bar, list, ...quoted(report), ...tree(report), ...(tokens.length > 1 ? [sparkline(tokens, threshold)] : []));
}

/** What was put in front of the question: memories and facts, each with its score. */
function quoted(report) {
  const confirmed = report.facts?.candidates.filter((fact) => report.facts.confirmed.includes(fact.id)) ?? [];
  const lines = [...(report.memory?.recalled ?? []), ...confirmed];
  if (!lines.length) return [];
  const items = lines.map((each) => make("li", {}, `${each.score.toFixed(2)}  ${each.text}`));
  return [make("details", { class: "quoted" }, make("summary", {}, `${lines.length} quoted`), make("ol", {}, ...items))];
}

/** How each node of a search was made, of which others, and its score. */
function tree(report) {
  if (!report.search) return [];
  const items = report.search.tree.map(({ how, parents, steps, score }, i) =>
    make("li", { value: i }, `${how} of ${parents.join(", ") || "nothing"}: ${steps} steps, score ${score.toFixed(2)}`));
  return [make("details", { class: "quoted" }, make("summary", {}, `${report.search.nodes} nodes`), make("ol", {}, ...items))];
}

/** Entropy over the tokens, the engine of each as a strip below, a policy's threshold as a dashed line. */
function sparkline(tokens, threshold) {
  const top = Math.max(0.5, threshold ?? 0, ...tokens.map((token) => token.entropy)) * 1.08;
  const x = (i) => ((i * WIDTH) / tokens.length).toFixed(2);
  const y = (entropy) => ((1 - entropy / top) * (HEIGHT - 6)).toFixed(2);
  const steps = tokens.map((token, i) => `L${x(i)} ${y(token.entropy)}H${x(i + 1)}`).join("");
  const floor = y(0);
  const svg = draw("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "sparkline",
    "aria-label": `Entropy over ${tokens.length} tokens, at most ${Math.max(...tokens.map((t) => t.entropy)).toFixed(2)} nats`,
  });
  svg.append(draw("path", { class: "area", d: `M0 ${floor}${steps}V${floor}Z` }));
  svg.append(draw("path", { class: "line", d: `M0 ${floor}${steps}V${floor}` }));
  if (threshold !== undefined) {
    svg.append(draw("line", { class: "threshold", x1: 0, x2: WIDTH, y1: y(threshold), y2: y(threshold) },
      draw("title", {}, `threshold ${threshold} nats`)));
  }
  for (let from = 0, to = 1; to <= tokens.length; to++) {
    if (to < tokens.length && tokens[to].engine === tokens[from].engine) continue;
    const stretch = { x: x(from), y: HEIGHT - 4, width: (x(to) - x(from)).toFixed(2), height: 4 };
    svg.append(draw("rect", { "data-engine": place(tokens[from].engine), ...stretch }));
    from = to;
  }
  return svg;
}
