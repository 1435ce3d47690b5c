// The last hour, from the counters of /metrics as GET /v1/dashboard keeps them.

import { ApiError, get } from "./api.js";
import { $, draw, make, number, plural, seconds } from "./dom.js";
import { place } from "./tokens.js";

const EVERY = 10_000; // milliseconds between two looks
const WIDTH = 400, HEIGHT = 120, LEFT = 34, BOTTOM = 18, TOP = 8;

export class Dashboard {
  constructor() {
    this.timer = null;
  }

  /** Keep it up to date as long as it is seen. */
  show() {
    this.hide();
    const look = async () => {
      try {
        this.draw(await get("v1/dashboard"));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        $("dashboard-cards").replaceChildren(make("p", { class: "error", role: "alert" }, error.message));
      }
    };
    look();
    this.timer = setInterval(look, EVERY);
  }

  hide() {
    clearInterval(this.timer);
  }

  draw({ ago, series }) {
    this.ago = ago;
    const of = (name, where = () => true) => series.filter((each) => each.name === name && where(each.labels));
    const answered = of("waver_requests_total", ({ route }) => /completions|responses|messages|uncertainty/.test(route));
    const requests = sum(answered), refused = sum(answered.filter((each) => Number(each.labels.status) >= 400));
    const tokens = of("waver_generated_tokens_total");
    const gates = of("waver_retrieval_gates_total");
    const looked = sum(gates.filter((each) => each.labels.outcome === "retrieved"));
    const tiles = [
      card("Cost saved by all answers", saved(series), make("p", { class: "note" }, SAVED)),
      card("Time of an answer", latency(of("waver_request_seconds_bucket", ({ route }) => /completions|responses|messages/.test(route)), "half within", "nine of ten within")),
      card("Time to the first token", latency(of("waver_first_token_seconds_bucket"), "half within", "nine of ten within")),
      card("Hand-overs and drafts", `${plural(sum(of("waver_switches_total")), "hand-over")}, ${plural(sum(of("waver_discarded_tokens_total")), "token")} thrown away`),
    ];
    const cards = [
      card("Requests", requests ? `${number(requests, 5)}, ${refused} refused or failed` : "none in the last hour", this.bars("Requests", group(answered, ({ status }) => (Number(status) >= 400 ? "refused or failed" : "answered")))),
      card("Tokens by engine", shares(tokens, "engine"), this.bars("Tokens", group(tokens, ({ engine }) => engine), true)),
      card("Look-ups", gates.length ? `${number((100 * looked) / sum(gates))} % of ${plural(sum(gates), "decision")} looked something up` : "no gate decided", gates.length ? this.bars("Decisions", group(gates, ({ outcome }) => outcome)) : null),
      card("Entropy", ...entropy(series)),
      card("Per key", ...keys(series)),
    ];
    $("dashboard-cards").replaceChildren(make("div", { class: "tiles" }, ...tiles), ...cards);
  }

  /** Stacked bars over the hour: one bar for each reading. */
  bars(name, groups, engines = false) {
    const count = this.ago.length - 1;
    if (!groups.size || count < 1) return null;
    const totals = Array.from({ length: count }, (_, i) => [...groups.values()].reduce((all, grown) => all + grown[i], 0));
    const most = Math.max(...totals, 1), first = Math.max(this.ago[0], 60);
    const x = (i) => LEFT + (WIDTH - LEFT) * (1 - Math.min(this.ago[i], first) / first), y = (value) => TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM);
    const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${name} over the last ${minutes(first)}: ${[...groups].map(([key, grown]) => `${key} ${number(grown.reduce((a, b) => a + b, 0))}`).join(", ")}` });
    for (const tick of [0, most]) svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(tick), y2: y(tick) }), draw("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
    svg.append(draw("text", { x: LEFT, y: HEIGHT - 3 }, `${minutes(first)} ago`), draw("text", { x: WIDTH, y: HEIGHT - 3, "text-anchor": "end" }, "now"));
    const base = totals.map(() => 0);
    [...groups].forEach(([key, grown], which) => {
      const part = draw("g", engines ? { class: "strip", "data-engine": place(key) } : { class: "stack", "data-column": which });
      grown.forEach((value, i) => {
        if (!value) return;
        const width = Math.max(1.5, x(i + 1) - x(i) - 0.5);
        part.append(draw("rect", { x: x(i), width, y: y(base[i] + value), height: y(base[i]) - y(base[i] + value), ...(engines && { "data-engine": place(key) }) }));
        base[i] += value;
      });
      svg.append(part);
    });
    const key = make("p", { class: "key" }, ...[...groups.keys()].map((each, which) => make("span", {}, make("i", { class: "swatch column", ...(engines ? { "data-engine": place(each) } : { "data-column": which }) }), ` ${each}`)));
    return [svg, key];
  }
}

const card = (title, words, chart) => make("section", { class: "card" }, make("h3", {}, title), make("p", { class: "words" }, words), ...(chart ? [chart].flat() : []));
const total = ({ grown }) => grown.reduce((a, b) => a + b, 0);
const sum = (series) => series.reduce((all, each) => all + total(each), 0);
const minutes = (ago) => (ago < 90 ? `${Math.round(ago)} s` : `${Math.round(ago / 60)} min`);

function group(series, name) {
  const groups = new Map();
  for (const { labels, grown } of series) {
    const key = name(labels), known = groups.get(key);
    groups.set(key, known ? known.map((value, i) => value + grown[i]) : grown);
  }
  return groups;
}

function shares(series, label) {
  const all = sum(series);
  if (!all) return "none in the last hour";
  return [...group(series, (labels) => labels[label])].map(([name, grown]) => {
    const part = grown.reduce((a, b) => a + b, 0);
    return `${name} ${number(part, 5)} (${Math.round((100 * part) / all)} %)`;
  }).join(", ");
}

/** Cost in full against the largest engine alone, from two counters. */
function saved(series) {
  const cost = sum(series.filter((each) => each.name === "waver_cost_total")), alone = sum(series.filter((each) => each.name === "waver_cost_alone_total"));
  if (!alone) return "no answers in the last hour";
  const part = cost / alone;
  return part <= 1 ? `${Math.round(100 * (1 - part))} % of what the largest engine alone would have computed` : `none: ${number(part)} times what the largest engine alone would have computed`;
}

/** The place in a histogram's buckets below which a share of the counts lies. */
export function quantile(buckets, share) {
  const bounds = [...group(buckets, ({ le }) => le)].map(([le, grown]) => [le === "+Inf" ? Infinity : Number(le), grown.reduce((a, b) => a + b, 0)]).sort((a, b) => a[0] - b[0]);
  const all = bounds.at(-1)?.[1] ?? 0;
  return all ? bounds.find(([, count]) => count >= share * all)[0] : null;
}

function latency(buckets, half, most) {
  const [p50, p90] = [quantile(buckets, 0.5), quantile(buckets, 0.9)];
  const shown = (value) => (value === Infinity ? "more than 5 min" : seconds(value));
  return p50 === null ? "none in the last hour" : `${half} ${shown(p50)}, ${most} ${shown(p90)}`;
}

/** How many tokens had which entropy, by engine. */
function entropy(series) {
  const buckets = series.filter((each) => each.name === "waver_token_entropy_nats_bucket");
  if (!buckets.length) return ["no tokens in the last hour", null];
  const names = [...new Set(buckets.map((each) => each.labels.engine))];
  const rows = names.map((name) => {
    const own = buckets.filter((each) => each.labels.engine === name);
    return [name, quantile(own, 0.5), quantile(own, 0.9), total(own.find((each) => each.labels.le === "+Inf") ?? { grown: [] })];
  });
  const bounds = [...new Set(buckets.map((each) => each.labels.le))].map((le) => [le, le === "+Inf" ? Infinity : Number(le)]).sort((a, b) => a[1] - b[1]);
  const charts = names.map((name) => histogram(name, bounds.map(([le]) => total(buckets.find((each) => each.labels.engine === name && each.labels.le === le) ?? { grown: [] })), bounds));
  return [rows.map(([name, half, most]) => `${name}: half below ${number(half)}, nine of ten below ${number(most)} nats`).join("; "), charts];
}

function histogram(name, counts, bounds) {
  const each = counts.map((count, i) => Math.max(0, count - (i ? counts[i - 1] : 0)));
  const most = Math.max(...each, 1), width = (WIDTH - LEFT) / each.length, height = 90;
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${height + 18}`, role: "img", "aria-label": `Tokens of ${name} by entropy` });
  each.forEach((count, i) => {
    const tall = (count / most) * (height - 16);
    svg.append(draw("rect", { class: "filled", "data-engine": place(name), x: LEFT + i * width + 1, width: width - 2, y: height - tall, height: tall }),
      draw("text", { x: LEFT + (i + 1) * width, y: height + 13, "text-anchor": "end" }, i % 2 ? "" : bounds[i][1] === Infinity ? "more" : number(bounds[i][1])));
  });
  svg.append(draw("text", { x: 0, y: 12 }, name));
  return svg;
}

const SAVED = "Compared: the work of all answers, those that a small engine wrote alone included, with that of the largest engine writing the same tokens alone.";
const WORK = "in billions of parameters × tokens";
const UNITS = { waver_cost_total: `cost, ${WORK}`, waver_cost_alone_total: `cost of the largest engine alone, ${WORK}` };

const COST = "Cost is work, not money: each token that an engine read or decoded, times the billions of parameters of the engine. 1000 is a thousand tokens of a model with a billion parameters.";

/** Everything that is counted for each key. */
function keys(series) {
  const own = series.filter((each) => each.labels.key !== undefined && !/_(bucket|sum)$/.test(each.name));
  const names = [...new Set(own.map((each) => each.labels.key))].sort();
  if (!names.length) return ["nothing is counted for single keys", null];
  const counters = [...new Set(own.map((each) => each.name))];
  const head = make("tr", {}, make("th", { scope: "col" }, "key"), ...counters.map((name) => make("th", { scope: "col" }, UNITS[name] ?? name.replace(/^waver_(key_)?|_total$/g, "").replaceAll("_", " "))));
  const rows = names.map((key) => make("tr", {}, make("th", { scope: "row" }, key || "(none)"), ...counters.map((name) => make("td", {}, number(sum(own.filter((each) => each.name === name && each.labels.key === key)), 5)))));
  return [plural(names.length, "key"), make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Per key" }, make("table", {}, make("caption", {}, COST), make("thead", {}, head), make("tbody", {}, ...rows)))];
}
