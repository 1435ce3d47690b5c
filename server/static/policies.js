// A form for policies, made from GET /v1/policies: a switch for each policy and an input for each parameter. What was
// not changed is not sent, so that the configuration's defaults hold.

import { make, number } from "./dom.js";

const DEFAULT = "default";

/** `known`: policies, and names by kind. `changed()` is called after each change. */
export class PolicyForm {
  constructor(prefix, known, changed) {
    this.prefix = prefix;
    this.known = known;
    this.changed = changed;
    this.element = make("div", { class: "policies" });
    this.set([]);
  }

  /** Begin from a list of policies. */
  set(list) {
    const asked = new Map(list.map((each) => [each.name, each]));
    const open = this.element.querySelector(".advanced")?.open ?? false;
    this.sections = this.known.policies.map((policy) => new Section(policy, asked.get(policy.name), this));
    const [usual, evaluation] = [false, true].map((only) => this.sections.filter((each) => each.evaluationOnly === only));
    this.note = make("p", { class: "error", hidden: true, role: "alert" });
    usual.sort((a, b) => b.chosen - a.chosen); // what is in use comes first
    this.element.replaceChildren(this.note, ...usual.map((each) => each.element),
      make("details", { class: "advanced", open: open || evaluation.some((each) => each.chosen) }, make("summary", {}, "For evaluation"), ...evaluation.map((each) => each.element)));
    this.rule();
  }

  read() {
    return this.sections.filter((each) => each.chosen).map((each) => each.value());
  }

  /** Where one policy of a stage is enough, the others cannot be chosen beside it. */
  rule() {
    for (const section of this.sections) {
      const { policy } = section;
      const other = this.sections.find((each) => each !== section && each.chosen && each.policy.stage === policy.stage && each.policy.alone);
      section.bar(other && policy.alone ? `not beside ${other.policy.name}: one of them is enough` : section.missing());
    }
  }

  /** Show what the server said about the list; "" when it can be used. */
  tell(message, param) {
    this.element.querySelectorAll("[aria-invalid]").forEach((input) => input.removeAttribute("aria-invalid"));
    this.note.textContent = message;
    this.note.hidden = !message;
    const [, index, field] = /^policy\[(\d+)\](?:\.(\w+))?/.exec(param ?? "") ?? [];
    const section = this.sections.filter((each) => each.chosen)[index];
    const input = section && field && document.getElementById(section.id(field));
    if (input) {
      input.setAttribute("aria-invalid", "true");
      input.closest("details")?.setAttribute("open", "");
    }
  }
}

class Section {
  constructor(policy, given, form) {
    this.policy = policy;
    this.form = form;
    const only = policy.evaluation.name ?? [];
    this.evaluationOnly = only.includes(policy.name);
    this.toggle = make("input", { type: "checkbox", id: `${form.prefix}policy-${policy.name}`, checked: given !== undefined });
    this.reason = make("p", { class: "note", hidden: true });
    const names = Object.keys(policy.schema.properties).filter((name) => name !== "name");
    this.fields = names.map((name) => new Field(this, name, given?.[name]));
    const rare = (field) => policy.evaluation[field.name]?.length === 0;
    const hidden = this.fields.filter(rare);
    const box = make("div", { class: "fields", hidden: given === undefined }, ...this.fields.filter((field) => !rare(field)).map((field) => field.element),
      hidden.length ? make("details", { class: "advanced" }, make("summary", {}, "For evaluation"), ...hidden.map((field) => field.element)) : null);
    this.toggle.addEventListener("change", () => {
      box.hidden = !this.toggle.checked;
      form.rule();
      form.changed();
    });
    this.element = make("fieldset", {}, make("legend", {}, this.toggle, make("label", { for: this.toggle.id }, policy.name)),
      make("p", { class: "note" }, policy.summary), this.reason, box);
  }

  get chosen() {
    return this.toggle.checked;
  }

  id(field) {
    return `${this.form.prefix}${this.policy.name}-${field}`;
  }

  value() {
    return Object.assign({ name: this.policy.name }, ...this.fields.filter((each) => each.given).map((each) => ({ [each.name]: each.value })));
  }

  /** What it cannot do without, and is not there. */
  missing() {
    const needs = { probe: "diffadapt", collection: "l_rag", router: "learned_route" };
    const lacking = Object.entries(needs).find(([field, name]) => name === this.policy.name && this.policy.names[field] && !(this.form.known.names[this.policy.names[field]] ?? []).length);
    if (!lacking || this.policy.name === "diffadapt") return "";
    return lacking[0] === "collection" ? "needs a collection: make one under Documents" : `needs a ${lacking[0]} in the configuration`;
  }

  bar(reason) {
    this.toggle.disabled = Boolean(reason) && !this.toggle.checked;
    this.reason.textContent = reason;
    this.reason.hidden = !reason;
  }
}

/** One parameter. `given` is false while it has its default. */
class Field {
  constructor(section, name, value) {
    const { policy, form } = section;
    const schema = policy.schema.properties[name];
    this.name = name;
    this.kinds = (schema.anyOf ?? [schema]).filter((kind) => kind.type !== "null");
    this.nullable = (schema.anyOf ?? []).some((kind) => kind.type === "null");
    this.initial = policy.defaults?.[name] ?? schema.default ?? null;
    this.value = value === undefined ? this.initial : value;
    this.given = value !== undefined && JSON.stringify(value) !== JSON.stringify(this.initial);
    const id = section.id(name);
    const hidden = policy.evaluation[name] ?? [];
    const kind = policy.names[name];
    const needed = kind === "collections" && policy.name === "l_rag";
    this.control = control(id, this.kinds[0], kind ? (form.known.names[kind] ?? []) : null, hidden, this.nullable && !needed);
    const label = make("label", { for: id }, name.replaceAll("_", " "));
    const reset = make("button", { type: "button", class: "reset", title: `Back to the default${this.initial === null ? "" : `: ${shownShort(this.initial)}`}`, "aria-label": `Default for ${name}` }, "↺");
    const help = make("p", { class: "help", id: `${id}-help` }, schema.description ?? "", this.initial === null ? "" : ` (default ${shownShort(this.initial)})`);
    this.control.input.setAttribute("aria-describedby", help.id);
    const shown = () => { reset.hidden = !this.given; };
    this.control.write(this.value ?? (needed ? form.known.names.collections?.[0] : null) ?? null);
    if (needed && this.value === null && form.known.names.collections?.length) [this.value, this.given] = [form.known.names.collections[0], true];
    const read = () => {
      this.value = this.control.read();
      this.given = this.value !== undefined && JSON.stringify(this.value) !== JSON.stringify(this.initial);
      shown();
      form.changed();
    };
    for (const input of this.control.inputs) input.addEventListener("change", read);
    reset.addEventListener("click", () => {
      this.control.write(this.initial);
      read();
    });
    shown();
    this.element = make("div", { class: "field" }, make("div", { class: "pair" }, label, reset), this.control.element, help);
  }
}

const shownShort = (value) => (typeof value === "number" ? number(value) : typeof value === "string" ? `“${value.length > 40 ? `${value.slice(0, 40)}…` : value}”` : JSON.stringify(value));

/** An input for a type: `read()` gives its value (null where it is off), `write(value)` sets it. */
function control(id, type, names, hidden, nullable) {
  if (type.enum || names) return choice(id, type.enum ?? names, hidden, nullable);
  if (type.type === "boolean") {
    const input = make("input", { id, type: "checkbox" });
    return { element: input, input, inputs: [input], read: () => input.checked, write: (value) => { input.checked = value === true; } };
  }
  if (type.type === "integer" || type.type === "number") return numeric(id, type, nullable);
  const json = type.$ref || type.type === "object" || type.type === "array";
  const input = make("input", { id, type: "text", spellcheck: "false", placeholder: nullable ? "none" : null });
  return {
    element: input, input, inputs: [input],
    read: () => (input.value === "" && nullable ? null : json ? parsed(input.value) : input.value),
    write: (value) => { input.value = value === null ? "" : json ? JSON.stringify(value) : value; },
  };
}

function choice(id, options, hidden, nullable) {
  const option = (value) => make("option", { value }, value);
  const usual = options.filter((each) => !hidden.includes(each));
  const input = make("select", { id }, nullable ? make("option", { value: "" }, DEFAULT) : null, ...usual.map(option),
    hidden.length ? make("optgroup", { label: "For evaluation" }, ...hidden.map(option)) : null);
  return {
    element: input, input, inputs: [input],
    read: () => (nullable && input.value === "" ? null : input.value),
    write: (value) => {
      if (value !== null && !options.includes(value)) input.append(option(value));
      input.value = value ?? "";
    },
  };
}

/** A number; any step is allowed that the type allows. Where it may be null, a check box switches it on. */
function numeric(id, type, nullable) {
  const min = type.minimum ?? type.exclusiveMinimum, max = type.maximum ?? type.exclusiveMaximum;
  const input = make("input", { id, type: "number", inputmode: "decimal", min, max, step: type.type === "integer" ? 1 : "any" });
  if (!nullable) return { element: input, input, inputs: [input], read: () => (input.value === "" ? undefined : Number(input.value)), write: (value) => { input.value = value ?? ""; } };
  const on = make("input", { type: "checkbox", id: `${id}-on`, "aria-label": `set ${id}` });
  const ruled = () => { input.disabled = !on.checked; };
  on.addEventListener("change", () => { ruled(); if (on.checked && input.value === "") input.value = min ?? 0; });
  return {
    element: make("div", { class: "nullable" }, on, input), input, inputs: [on, input],
    read: () => (on.checked && input.value !== "" ? Number(input.value) : null),
    write: (value) => {
      on.checked = value !== null;
      input.value = value ?? "";
      ruled();
    },
  };
}

/** What is no JSON goes to the server as it is, which says what is wrong with it. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
