// Collections of documents, and memories: make, fill, search, erase.

import { ApiError, get, list, post, remove, text } from "./api.js";
import { $, announce, button, download, make, number, plural } from "./dom.js";
import * as history from "./history.js";
import { shownValue } from "./report.js";

const SHOWN = 50; // memories at a time

/** Run what a person asked for; what the server says against it is shown where it was asked. */
async function trying(place, work) {
  place.querySelectorAll(".error").forEach((each) => each.remove());
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    place.append(make("p", { class: "error", role: "alert" }, error.message));
  }
}

/** A question before what cannot be undone. */
function sure(name, what, done, label = "Delete") {
  const ask = button(label, () => {
    ask.replaceWith(make("span", {}, `Delete ${what}? `, button("Yes, delete it", done, { class: "danger" }), button("No", (event) => event.target.parentElement.replaceWith(ask), { class: "quiet" })));
  }, { class: "quiet", "aria-label": `Delete ${name}` });
  return ask;
}

/** Which chat of this browser made a collection by what was attached to it; null where none did. */
function origin(name) {
  const chat = history.all().find((each) => each.collection === name);
  return chat ? `attached in a chat: ${chat.documents.map((each) => each.id).join(", ")} (“${chat.title}”)` : null;
}

export class Data {
  /** `changed(names)`: the collections are these now. */
  constructor(changed) {
    this.changed = changed;
    this.added = new Map();
    $("collection-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const name = $("collection-name").value.trim();
      if (name) trying($("collection-form"), async () => {
        await post("v1/collections", { name });
        $("collection-name").value = "";
        await this.collections();
      });
    });
    $("memory-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.memories();
    });
    $("memory-export").addEventListener("click", () => trying($("memory-form"), async () => download("memories.jsonl", await text(this.path("v1/memories")), "application/x-ndjson")));
    $("fact-export").addEventListener("click", () => trying($("memory-form"), async () => download("facts.jsonl", await text(this.path("v1/facts")), "application/x-ndjson")));
    $("memory-erase").append(sure("all memories", "all memories of this user", () => trying($("memory-form"), async () => {
      await remove(this.path("v1/memories"));
      await this.memories();
    }), "Delete all"));
  }

  path(path) {
    const user = $("memory-user").value.trim();
    return user ? `${path}?user=${encodeURIComponent(user)}` : path;
  }

  async show() {
    await Promise.all([this.collections(), this.memories()]);
  }

  async collections() {
    await trying($("collections-place"), async () => {
      const found = await list("v1/collections");
      this.changed(found.map((each) => each.name));
      const drawn = JSON.stringify([found, found.map((each) => origin(each.name)), ...this.added]);
      if (drawn === this.drawn) return; // what a person typed, opened or found there stays
      this.drawn = drawn;
      $("collections").replaceChildren(...(found.length ? found.map((each) => this.collection(each)) : [make("li", { class: "note" }, "There are none yet. Make one, put documents into it, and answers can look things up.")]));
    });
  }

  collection({ name, documents, chunks, embedder, bytes, error }) {
    const found = make("div", {});
    const query = make("input", { type: "search", "aria-label": `Search ${name}`, placeholder: "search it" });
    const files = make("input", { type: "file", multiple: true, "aria-label": `Add documents to ${name}` });
    const from = origin(name);
    const item = make("li", { class: "card" },
      make("div", { class: "pair" }, make("h3", {}, name), sure(name, `${name} and all that is in it`, () => trying(item, async () => {
        await remove(`v1/collections/${encodeURIComponent(name)}`);
        await this.collections();
      }))),
      from && make("p", { class: "note" }, from),
      make("p", { class: "note" }, error ?? `${plural(documents, "document")}, ${plural(chunks, "part")}, ${number(bytes / 1024)} KiB, ${embedder}`),
      make("label", { class: "upload" }, "Add documents ", files), ...this.outcome(name), documents ? this.documents(name, documents) : null,
      make("form", { class: "searching", onsubmit: (event) => {
        event.preventDefault();
        if (query.value.trim()) trying(item, () => this.search(name, query.value.trim(), found));
      } }, query, make("button", { type: "submit" }, "Search")), found);
    files.addEventListener("change", () => trying(item, async () => {
      const form = new FormData();
      for (const file of files.files) form.append("file", file);
      const { documents: stored } = await post(`v1/collections/${encodeURIComponent(name)}/documents`, form);
      this.added.set(name, stored);
      announce(`${stored.length} documents stored in ${name}`);
      await this.collections();
    }));
    return item;
  }

  /** What the last upload brought, and what was lost or guessed. */
  outcome(name) {
    const stored = this.added.get(name);
    if (!stored) return [];
    const items = stored.map(({ id, chunks, unchanged, warnings = [] }) => make("li", {}, `${id}: ${unchanged ? "was there" : plural(chunks, "part")}`, ...warnings.map((warning) => make("p", { class: "note" }, `⚠ ${warning}`))));
    return [make("ul", { class: "stored" }, ...items)];
  }

  /** The documents of a collection, a page at a time, listed once a person opens the list. */
  documents(name, count) {
    const items = make("ul", { class: "documents" });
    const path = `v1/collections/${encodeURIComponent(name)}/documents`;
    const more = button("More", () => trying(place, () => next()), { class: "quiet", hidden: true });
    let after = null;
    const next = async () => {
      const page = await get(`${path}?limit=${SHOWN}${after === null ? "" : `&after=${encodeURIComponent(after)}`}`);
      items.append(...page.data.map(({ id, title, chunks, metadata }) => {
        const item = make("li", {}, make("span", {}, `${id}${title && title !== id ? ` · ${title}` : ""}, ${plural(chunks, "part")} `), Object.keys(metadata).length ? shownValue(metadata) : null,
          sure(id, `the document ${id}`, () => trying(item, async () => {
            await remove(`v1/collections/${encodeURIComponent(name)}/documents/${id.split("/").map(encodeURIComponent).join("/")}`);
            await this.collections();
          })));
        return item;
      }));
      after = page.data.at(-1)?.id ?? after;
      more.hidden = !page.has_more;
    };
    const place = make("details", {}, make("summary", {}, count === 1 ? "Its document" : `Its ${plural(count, "document")}`), items, more);
    place.addEventListener("toggle", () => place.open && !items.children.length && trying(place, () => next()));
    return place;
  }

  async search(name, query, place) {
    const { passages, warnings = [] } = await post(`v1/collections/${encodeURIComponent(name)}/search`, { query, top_k: 5 });
    const items = passages.map(({ document, chunk, score, text: words, title }) => {
      const item = make("li", {}, make("p", {}, make("span", { class: "score" }, score.toFixed(3)), ` ${title ? `${title} · ` : ""}${document}, part ${chunk} `,
        sure(document, `the document ${document}`, () => trying(item, async () => {
          await remove(`v1/collections/${encodeURIComponent(name)}/documents/${document.split("/").map(encodeURIComponent).join("/")}`);
          await this.collections();
        }))), make("blockquote", {}, words));
      return item;
    });
    place.replaceChildren(...warnings.map((warning) => make("p", { class: "note" }, warning)),
      items.length ? make("ol", { class: "passages" }, ...items) : make("p", { class: "note" }, "Nothing was found."));
    announce(plural(items.length, "passage"));
  }

  /** The memories of a user: all, or those that fit a question. */
  async memories() {
    await trying($("memory-form"), async () => {
      const query = $("memory-query").value.trim(), user = $("memory-user").value.trim();
      const found = query
        ? (await post("v1/memories/search", { query, top_k: SHOWN, ...(user && { user }) })).memories
        : (await text(this.path("v1/memories"))).split("\n").filter(Boolean).map((line) => JSON.parse(line));
      const items = found.slice(0, SHOWN).map(({ id, text: words, object, ...others }) => {
        const item = make("li", { class: "card" }, make("div", { class: "pair" }, make("p", {}, words ?? object ?? "memory"),
          id === undefined ? null : sure(`memory ${id}`, "this memory", () => trying(item, async () => {
            await remove(this.path(object === "episode" ? `v1/memories/episodes/${id}` : `v1/memories/${id}`));
            await this.memories();
          }))),
          make("details", {}, make("summary", {}, others.score === undefined ? "more" : `score ${number(others.score)}`), shownValue(others)));
        return item;
      });
      const rest = found.length > SHOWN ? [make("li", { class: "note" }, `and ${found.length - SHOWN} more: search, or export all`)] : [];
      $("memories").replaceChildren(...(items.length ? [...items, ...rest] : [make("li", { class: "note" }, "There are none. The policies simplemem and memgas remember what is said.")]));
    });
  }
}
