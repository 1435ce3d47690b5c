// A form for policies, made from the JSON Schemas of GET /v1/policies: one switch a policy, one input a parameter.

import { make } from "./dom.js";

const REACH = 3; // nats: how far the slider of a threshold without an upper limit goes

/** Fills `container`; the returned function reads the list of policies, each with the parameters that were changed. */
export function policyForm(container, policies, engines) {
  const forms = policies.map((policy) => policySection(policy, engines));
  container.replaceChildren(...forms.map((form) => form.element));
  return () => forms.filter((form) => form.chosen()).map((form) => form.value());
}

function policySection(policy, engines) {
  const toggle = make("input", { type: "checkbox", id: `policy-${policy.name}` });
  const inputs = Object.entries(policy.schema.properties)
    .filter(([name]) => name !== "name")
    .map(([name, schema]) => parameter(policy, name, schema, engines));
  const fields = make("div", { class: "fields", hidden: true }, ...inputs.map((input) => input.element));
  toggle.addEventListener("change", () => { fields.hidden = !toggle.checked; });
  const element = make("fieldset", {},
    make("legend", {}, toggle, make("label", { for: toggle.id }, policy.name)),
    make("p", { class: "note" }, policy.summary), fields);
  return {
    element,
    chosen: () => toggle.checked,
    value: () => Object.assign({ name: policy.name }, ...inputs.filter((i) => i.changed()).map((i) => i.value())),
  };
}

function parameter(policy, name, schema, engines) {
  const id = `${policy.name}-${name}`;
  const type = schema.type ? schema : { ...schema, ...schema.anyOf?.find((kind) => kind.type !== "null") };
  const initial = policy.defaults?.[name] ?? schema.default ?? null;
  const { input, read } = control(id, name, type, initial, policy.engine_fields.includes(name) ? engines : null);
  const output = input.type === "range" ? make("output", { for: id }, initial === null ? "off" : String(initial)) : null;
  let touched = false;
  const change = () => {
    touched = true;
    if (output) output.value = input.value;
  };
  input.addEventListener("input", change);
  input.addEventListener("change", change);
  const label = make("label", { for: id, title: schema.description }, name.replaceAll("_", " "));
  return {
    element: make("div", { class: "field" }, make("div", { class: "pair" }, label, ...(output ? [output] : [])), input),
    changed: () => touched && read() !== undefined,
    value: () => ({ [name]: read() }),
  };
}

function control(id, name, type, initial, engines) {
  const choices = type.enum ?? engines;
  if (choices) {
    const input = make("select", { id }, ...choices.map((c) => make("option", { value: c, selected: c === initial }, c)));
    return { input, read: () => input.value };
  }
  if (type.type === "boolean") {
    const input = make("input", { id, type: "checkbox", checked: initial === true });
    return { input, read: () => input.checked };
  }
  if (type.type === "integer" || type.type === "number") {
    const min = type.minimum ?? type.exclusiveMinimum;
    const max = type.maximum ?? type.exclusiveMaximum ?? (name.startsWith("threshold") ? REACH : undefined);
    const step = type.type === "integer" ? 1 : 0.01;
    const slider = type.type === "number" && min !== undefined && max !== undefined;
    const value = initial ?? (slider ? min : "");
    const input = make("input", { id, type: slider ? "range" : "number", min, max, step, value });
    return { input, read: () => (input.value === "" ? undefined : Number(input.value)) };
  }
  const json = type.$ref || type.type === "object" || type.type === "array";
  const value = json ? JSON.stringify(initial) : (initial ?? "");
  const input = make("input", { id, type: "text", value, spellcheck: "false" });
  return { input, read: () => (json ? parsed(input.value) : input.value) || undefined };
}

/** What is no JSON goes to the server as it is, which says what is wrong with it. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
