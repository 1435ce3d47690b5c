// The page: its views, the key, the server's pulse. Everything it knows comes from the API.

import { ApiError, get, list, ready, saveKey, savedKey, watch } from "./api.js";
import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { Dashboard } from "./dashboard.js";
import { Data } from "./data.js";
import { $, make } from "./dom.js";
import { TICKS, tint } from "./scale.js";
import { Settings } from "./settings.js";
import { unpacked } from "./share.js";
import { order } from "./tokens.js";

const VIEWS = ["compare", "chat", "data", "dashboard"];
const AGAIN = 2000; // milliseconds until a server that starts, or wants a key, is asked again
const TOY = "are toys that come with Waver: they were trained on sums and on the facts of a small invented world, and know nothing else.";
let loaded = false;

/** Show the view that the address names: `#chat`, with `?settings` behind it where a link carries them. */
function route() {
  const [name, settings] = location.hash.slice(1).split("?");
  const view = VIEWS.includes(name) ? name : VIEWS[0];
  document.body.dataset.view = view;
  for (const each of VIEWS) {
    $(each).hidden = each !== view;
    $(`to-${each}`).toggleAttribute("aria-current", each === view);
    if (each === view) $(`to-${each}`).setAttribute("aria-current", "page");
  }
  $("settings").hidden = view !== "chat";
  $("tip").hidden = true;
  if (settings && loaded) carry(settings);
  if (loaded) {
    if (view === "data") parts.data.show();
    if (view === "dashboard") parts.dashboard.show();
    else parts.dashboard.hide();
  }
  dispatchEvent(new Event("resize"));
}

function carry(settings) {
  const saved = unpacked(settings);
  if (!saved || typeof saved !== "object") return;
  parts.settings.load(saved);
  if (typeof saved.message === "string") $("message").value = saved.message;
}

const parts = {};

function askForKey() {
  $("key").hidden = false;
  $("api-key").focus();
}

/** What the page shows before the engines are ready: a comparison that was recorded. */
async function landing() {
  const [policies, examples] = await Promise.all([list("v1/policies"), get("static/examples.json")]);
  const keys = Object.assign({}, ...policies.map((policy) => policy.report_keys));
  parts.compare = new Compare(keys, examples);
  return { policies, examples, keys };
}

/** Show it once, however often the page looks whether the server is ready. */
const land = () => (parts.landed ??= landing().catch((error) => {
  parts.landed = null;
  throw error;
}));

/** Fill the page. While the server starts or wants a key, say so and try again. */
async function load() {
  try {
    const { policies, examples, keys } = await land();
    if (!(await ready())) {
      say("The server is starting: its engines load their models. This page goes on by itself.", { calm: true });
      setTimeout(load, AGAIN);
      return;
    }
    const [models, setup] = await Promise.all([list("v1/models"), get("v1/setup")]);
    const collections = await list("v1/collections").catch(() => []);
    const known = { models, policies, setup, keys, names: { ...setup.names, collections: collections.map((each) => each.name) } };
    say("");
    $("key").hidden = true;
    if (loaded) return;
    loaded = true;
    const redraw = order(setup.engines.map((engine) => engine.id));
    parts.settings = new Settings(known);
    parts.chat = new Chat(known, parts.settings, {
      askForKey,
      compare: (question) => {
        $("compare-question").value = question;
        location.hash = "compare";
        parts.compare.run();
      },
    });
    parts.compare.begin(known, redraw);
    parts.dashboard = new Dashboard();
    parts.data = new Data((names) => parts.settings.collections(names));
    const welcome = parts.compare.bundled ? examples.questions : parts.compare.general;
    $("examples").replaceChildren(...(welcome ?? []).map((text) => make("li", {}, make("button", { type: "button", onclick: () => parts.chat.ask(text) }, text))));
    const toys = setup.engines.filter((engine) => engine.bundled).map((engine) => engine.id).join(" and ");
    if (parts.compare.bundled) for (const id of ["examples", "compare-examples"]) $(id).after(make("p", { class: "note toy" }, `The models ${toys} ${TOY}`));
    parts.settings.allow();
    document.body.dataset.ready = "true";
    route();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(error.message);
    if (error.status === 401) askForKey();
    else setTimeout(load, AGAIN);
  }
}

/** One line over the page while something is wrong with the server, or, calmly, while it only starts. */
function say(words, { calm = false } = {}) {
  $("trouble").textContent = words;
  $("trouble").hidden = !words;
  $("trouble").classList.toggle("calm", calm);
}

function legend() {
  $("scale").append(...TICKS.map((tick) => tint(make("span", {}, String(tick)), tick)));
}

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  saveKey($("api-key").value.trim());
  load();
});
// What stays in sight below the header has to know how tall that is.
const tall = { "--header": document.querySelector("header"), "--trouble": $("trouble") };
const fit = new ResizeObserver(() => {
  for (const [name, each] of Object.entries(tall)) document.documentElement.style.setProperty(name, `${each.offsetHeight}px`);
});
Object.values(tall).forEach((each) => fit.observe(each));
$("dialog-close").addEventListener("click", () => $("dialog").close());
$("open-settings").addEventListener("click", () => {
  if (document.body.classList.toggle("settings-open")) $("settings").scrollIntoView();
});
$("api-key").value = savedKey();
addEventListener("hashchange", route);
legend();
route();
load();
watch((words) => {
  if (words) say(words);
  else if (loaded) say("");
});
