// The conversation: ask, stop, ask again, edit, attach documents, keep, export.

import { Answer, fullNote } from "./answer.js";
import { ApiError, list, post, savedKey } from "./api.js";
import { $, announce, asking, button, download, follow, make, number, plural, sendByEnter } from "./dom.js";
import * as history from "./history.js";
import { roomOf } from "./settings.js";
import { code, copy, packed } from "./share.js";
import { release } from "./tokens.js";

const STOPPED = "Stopped. What has come stays here; the model will not be told of it.";
const FULL = "context_length_exceeded"; // the code of a prompt that has no room
const COUNT = 500; // milliseconds after the last letter until the tokens of the draft are counted

export class Chat {
  /** `known`: what the server says; `compare(question)`: take a question to the comparison. */
  constructor(known, settings, { compare, askForKey }) {
    Object.assign(this, { known, settings, compare, askForKey });
    this.running = null;
    this.renew = () => $("new").click();
    this.leave = () => {}; // keep what has come of an answer that is being written
    for (const kind of ["beforeunload", "pagehide"]) addEventListener(kind, () => { this.leaving = true; this.leave(); });
    document.addEventListener("visibilitychange", () => this.leave()); // a phone tells no more when it ends a page
    this.begin();
    this.offerLeft();
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = $("message").value.trim();
      if (!text || this.running || settings.problem || settings.tooLong) return;
      $("message").value = "";
      this.ask(text);
    });
    sendByEnter($("message"), $("composer"));
    $("message").addEventListener("input", () => this.count());
    settings.listeners.push(() => this.count());
    $("stop").addEventListener("click", () => this.running?.abort());
    $("new").addEventListener("click", () => { this.begin(); $("message").focus(); });
    $("history").addEventListener("click", () => this.showHistory());
    $("export").addEventListener("click", () => this.showExport());
    $("link").addEventListener("click", () => this.copyLink());
    $("attach").addEventListener("change", () => this.attach([...$("attach").files]));
  }

  begin(conversation = null) {
    release();
    this.running?.abort();
    this.conversation = conversation ?? { id: crypto.randomUUID?.() ?? String(Date.now()), title: "", turns: [], collection: null, documents: [] };
    $("turns").replaceChildren();
    $("left").hidden = true;
    $("welcome").hidden = this.conversation.turns.length > 0;
    for (const turn of this.conversation.turns) this.show(turn);
    this.showDocuments();
    this.count();
  }

  /** After a reload in the middle of an answer, offer the conversation. */
  offerLeft() {
    const left = history.left();
    $("left").hidden = !left;
    if (left) $("left").replaceChildren("An answer was being written when this page was left. ", button("Open it", () => { history.writing(null); this.begin(left); }));
  }

  messages(turns) {
    const said = turns.filter((turn) => turn.answer).flatMap((turn) => [{ role: "user", content: turn.question }, { role: "assistant", content: turn.answer.text }]);
    return [...this.settings.system(), ...said];
  }

  body(turns, question) {
    const body = { ...this.settings.body(), messages: [...this.messages(turns), { role: "user", content: question }] };
    if (this.conversation.collection && !this.settings.effective.some((each) => each.name === "l_rag")) {
      body.policy = [...this.settings.effective, { name: "l_rag", collection: this.conversation.collection, gate: "always" }];
    }
    return body;
  }

  async ask(question) {
    const turn = { question, answer: null, error: null };
    this.conversation.turns.push(turn);
    this.conversation.title ||= question.slice(0, 80);
    $("welcome").hidden = true;
    await this.answer(turn);
  }

  async answer(turn, moved = false) {
    const { turns } = this.conversation, conversation = this.conversation;
    const before = turns.slice(0, turns.indexOf(turn));
    release();
    Object.assign(turn, { answer: null, partial: null, error: null, stopped: false, full: false });
    conversation.at = new Date().toISOString();
    const article = this.show(turn);
    const shown = this.blank(turn);
    article.querySelector(".place").replaceChildren(shown.element);
    article.setAttribute("aria-busy", "true");
    scrollTo(0, document.documentElement.scrollHeight); // the box below may hide the end of what is only in the window
    const followed = follow(article);
    if (moved) shown.focusThreshold();
    const cut = () => ({ partial: shown.kept(), error: STOPPED, stopped: true });
    this.leave = () => history.keep({ ...conversation, turns: turns.map((each) => (each === turn ? { ...turn, ...cut() } : each)) });
    this.leave();
    this.leaving = false; // whether the reader leaves the page, which breaks the connection
    history.writing(conversation.id);
    this.running = new AbortController();
    showRunning(true);
    try {
      await shown.run(this.body(before, turn.question), this.running.signal);
      turn.answer = shown.kept();
      turn.usage = shown.usage;
      announce(`Answer: ${shown.text}`);
    } catch (error) {
      const stopped = error.name === "AbortError" || this.leaving;
      if (!stopped && !(error instanceof ApiError)) throw error;
      Object.assign(turn, cut(), !stopped && { error: error.message, stopped, full: error.code === FULL });
      this.failed(article, turn);
      if (error.status === 401) this.askForKey();
    } finally {
      const there = followed();
      article.setAttribute("aria-busy", "false");
      article.querySelector(".actions").hidden = false;
      if (there) scrollBy(0, innerHeight / 2); // to the report, and what was read last stays in sight
      this.running = null;
      this.leave = () => {};
      if (!this.leaving) history.writing(null);
      showRunning(false);
      history.keep(conversation);
      this.count();
    }
  }

  /** An answer that is not there yet. */
  blank(turn) {
    const shown = new Answer({
      keys: this.known.keys, room: this.room, renew: this.renew,
      move: (...threshold) => {
        const run = () => this.again(turn, { threshold }), words = () => this.dropping("Ask again", turn);
        if (turn === this.conversation.turns.at(-1)) run();
        else shown.chart.confirm(asking(words(), words, run));
      },
    });
    return shown;
  }

  /** The tokens that this conversation may have. */
  get room() {
    return roomOf($("model").value, this.known.models);
  }

  /** Say what went wrong where the answer would stand. */
  failed(article, turn) {
    article.querySelector(".again").hidden = true;
    article.querySelector(".actions").before(turn.full ? fullNote(this.renew, { role: "alert" }) : make("p", { class: turn.stopped ? "note" : "error", role: "alert" }, `${turn.error} `, this.askAgain(turn)));
  }

  /** Ask a question again, or another one in its place, which ends the conversation behind it. `threshold`: that of a
   * policy from now on. */
  async again(turn, { question = turn.question, threshold = null } = {}) {
    if (this.running) return;
    if (threshold) this.settings.setThreshold(...threshold);
    const { turns } = this.conversation, at = turns.indexOf(turn);
    if (at < 0) return;
    turn.question = question;
    for (const article of [...$("turns").children].slice(at)) article.remove();
    turns.splice(at + 1);
    await this.answer(turn, threshold !== null);
  }

  askAgain(turn, attributes = {}) {
    return asking("Ask again", () => this.dropping("Ask again", turn), () => this.again(turn), attributes);
  }

  /** The words of a button that asks a turn again: they tell how many later turns go. */
  dropping(words, turn) {
    const { turns } = this.conversation, later = turns.length - 1 - turns.indexOf(turn);
    return later ? `${words} and drop ${plural(later, "later turn")}` : words;
  }

  show(turn) {
    const question = make("p", { class: "question" }, turn.question);
    const actions = make("div", { class: "actions", hidden: turn.answer === null && turn.error === null },
      this.askAgain(turn, { class: "quiet again" }),
      button("Edit", () => this.edit(turn, article), { class: "quiet edit" }),
      button("Compare", () => this.compare(turn.question), { class: "quiet" }),
      button("Code", () => this.showCode(turn), { class: "quiet code" }));
    const article = make("article", {}, question, make("div", { class: "place" }), actions);
    $("turns").append(article);
    const came = turn.answer ?? turn.partial;
    if (came?.report || came?.pieces?.length) {
      const shown = this.blank(turn);
      article.querySelector(".place").append(shown.element);
      shown.show(came);
    }
    if (turn.error) this.failed(article, turn);
    return article;
  }

  edit(turn, article) {
    if (this.running) return;
    const box = make("textarea", { "aria-label": "Question" });
    box.value = turn.question;
    const send = make("button", { type: "submit" }, this.dropping("Ask", turn));
    const form = make("form", { class: "editing" }, box, make("div", {}, send, button("Cancel", () => form.replaceWith(question))));
    const question = article.querySelector(".question");
    question.replaceWith(form);
    sendByEnter(box, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const words = this.dropping("Ask", turn);
      if (send.textContent !== words) send.textContent = words; // turns came while it was edited
      else if (box.value.trim()) this.again(turn, { question: box.value.trim() });
    });
    box.focus();
  }

  /** Documents become a collection of this conversation, which is looked into for every question. */
  async attach(files) {
    $("attach").value = "";
    if (!files.length) return;
    const form = new FormData();
    for (const file of files) form.append("file", file);
    $("documents").append(make("li", { class: "note" }, `reading ${files.length} …`));
    try {
      const name = this.conversation.collection ?? `chat-${this.conversation.id.slice(0, 8).toLowerCase()}`;
      if (!this.conversation.collection) await post("v1/collections", { name });
      this.conversation.collection = name;
      this.settings.collections((await list("v1/collections")).map((each) => each.name));
      const { documents } = await post(`v1/collections/${name}/documents`, form);
      this.conversation.documents.push(...documents.map(({ id, chunks, warnings = [] }) => ({ id, chunks, warnings })));
      this.showDocuments();
      announce(`${documents.length} documents attached`);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.showDocuments();
      $("documents").append(make("li", { class: "error", role: "alert" }, error.message));
    }
  }

  showDocuments() {
    const { documents, collection } = this.conversation;
    $("documents").replaceChildren(...documents.map(({ id, chunks, warnings }) => make("li", { title: warnings.join("\n") }, `${id} · ${plural(chunks, "part")}${warnings.length ? " · ⚠ " + warnings[0] : ""}`)),
      ...(documents.length ? [make("li", { class: "note" }, `looked into for every question (collection ${collection})`)] : []));
  }

  /** How much of the context the conversation and the draft take. */
  count() {
    clearTimeout(this.counting);
    this.counting = setTimeout(async () => {
      const draft = $("message").value.trim();
      const said = [...this.messages(this.conversation.turns), ...(draft ? [{ role: "user", content: draft }] : [])];
      try {
        const model = $("model").value, limit = this.room;
        const count = said.length ? (await post("v1/tokenize", { model, messages: said })).count : 0;
        $("context").max = limit ?? 1;
        $("context").high = 0.9 * (limit ?? 1);
        $("context").value = Math.min(count, limit ?? 1);
        const over = limit !== null && count >= limit && !$("extra").value.includes("truncate_prompt_tokens");
        const words = limit ? `${count} of ${number(limit, 6)} tokens` : "";
        $("context-line").classList.toggle("over", over);
        $("context-words").textContent = over ? `${words}: ${draft ? "too long to be sent" : "full"}` : words;
        this.settings.allow(over && draft ? `With the conversation before it, the question is too long: ${words}.` : "");
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        $("context-words").textContent = "";
        $("context-line").classList.remove("over");
        this.settings.allow("");
      }
    }, COUNT);
  }

  showHistory() {
    const kept = history.all();
    const items = kept.map((each) => make("li", {},
      button(each.title || "(no question)", () => { $("dialog").close(); this.begin(each); }, { class: "quiet title" }),
      each.at && make("time", { datetime: each.at, class: "note" }, new Date(each.at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })),
      button("Delete", () => { history.forget(each.id); this.showHistory(); }, { class: "quiet", "aria-label": `Delete ${each.title}` })));
    open("History", kept.length ? make("ul", { class: "chosen" }, ...items) : make("p", { class: "note" }, "Nothing yet. Conversations are kept in this browser only."),
      ...(kept.length ? [asking("Delete all", () => `Delete ${kept.length > 1 ? `all ${plural(kept.length, "conversation")}` : "the only conversation"}?`, () => { history.forgetAll(); this.showHistory(); }, { class: "all" })] : []));
  }

  showExport() {
    const { conversation } = this;
    const name = `waver-${conversation.id.slice(0, 8)}`;
    open("Export this conversation",
      make("p", { class: "note" }, "JSON holds everything, traces included; Markdown holds the words."),
      button("JSON", () => download(`${name}.json`, JSON.stringify(conversation, null, 2))),
      button("Markdown", () => download(`${name}.md`, history.markdown(conversation), "text/markdown")));
  }

  showCode(turn) {
    const { turns } = this.conversation;
    let body;
    try {
      body = this.body(turns.slice(0, turns.indexOf(turn)), turn.question);
    } catch (error) {
      return open("As code", make("p", { class: "error" }, error.message));
    }
    const parts = Object.entries(code(body, Boolean(savedKey()))).map(([name, text]) => {
      const done = make("span", { class: "note", role: "status" });
      return make("section", {}, make("h3", {}, name), make("pre", { tabindex: 0, "aria-label": name }, text),
        button(`Copy ${name}`, async () => { done.textContent = (await copy(text)) ? " copied" : " select it and copy it yourself"; }), done);
    });
    open("This question as code", ...parts);
  }

  async copyLink() {
    const settings = { ...this.settings.save(), ...($("message").value.trim() && { message: $("message").value }) };
    const url = `${location.href.split("#")[0]}#chat?${packed(settings)}`;
    window.history.replaceState(null, "", url);
    const done = await copy(url);
    open("A link with these settings", make("p", { class: "note" }, done ? "It is in the clipboard, and in the address line." : "It stands in the address line. The key is no part of it."),
      make("pre", { tabindex: 0, "aria-label": "Link" }, url));
  }

}

function showRunning(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
}

/** Show something over the page. */
export function open(title, ...content) {
  const dialog = $("dialog");
  $("dialog-title").textContent = title;
  $("dialog-content").replaceChildren(...content);
  if (!dialog.open) dialog.showModal();
}
