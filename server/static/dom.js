// Elements without markup: text only ever becomes a text node, so nothing that a model writes can become code.

const SVG = "http://www.w3.org/2000/svg";

/** Attributes whose names begin with "on" are listeners; false, null and undefined are left out. */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);
export const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const button = (label, onclick, attributes = {}) => make("button", { type: "button", onclick, ...attributes }, label);

/** A button that asks before it does what cannot be undone: a second click does it, and it turns back when it is left.
 * `question()`: what it asks; equal to the label where nothing is lost. */
export function asking(label, question, done, attributes = {}) {
  const turnBack = () => { ask.textContent = label; };
  const ask = button(label, () => {
    const words = question();
    if (ask.textContent === words) return done();
    ask.textContent = words;
    ask.focus();
    announce(words);
  }, { onblur: turnBack, ...attributes });
  return ask;
}

/** Keep the end of the page in sight while an element at its end grows, as long as the reader is there: who scrolls up
 * is left alone until they are back. Returns a function that ends it and tells whether the reader was there. */
export function follow(element) {
  const seen = () => element.offsetHeight > 0; // another view may be shown meanwhile
  const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 2; // positions are rounded
  let there = atEnd(), last = scrollY;
  const scrolled = () => {
    if (seen()) there = atEnd() || (there && scrollY >= last); // what grew since then moves the end away, not the reader
    last = scrollY;
  };
  const growth = new ResizeObserver(() => there && seen() && scrollTo(0, document.documentElement.scrollHeight));
  growth.observe(document.body); // what stands below the element may grow too
  addEventListener("scroll", scrolled);
  return () => {
    growth.disconnect();
    removeEventListener("scroll", scrolled);
    return there && seen();
  };
}

/** Send a form by Enter in one of its text fields; Shift and Enter begin a line. */
export function sendByEnter(field, form) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}

/** Text whose parts in backticks are code. */
export const coded = (text) => text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));

/** A bar that is filled to a part of 1. */
export function amount(part) {
  const bar = make("span", { class: "amount" });
  bar.style.setProperty("--part", Math.max(0, Math.min(1, part)).toFixed(3));
  return bar;
}

/** Say something to those who listen to the page. */
export function announce(text) {
  $("status").textContent = text;
}

/** A file for the user to keep. */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** A count of things. */
export const plural = (count, one) => `${number(count, 5)} ${one}${count === 1 ? "" : "s"}`;

/** A number as people read it: enough digits, not more. */
export function number(value, digits = 3) {
  if (value === 0) return "0";
  if (Math.abs(value) < 0.00005) return "less than 0.0001";
  if (Math.abs(value) >= 10_000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

export const seconds = (value) => (value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`);
