// What a request is asked with: model, policies, sampling. Kept in one object, which a link can carry.

import { ApiError, post } from "./api.js";
import { $, make } from "./dom.js";
import { PolicyForm } from "./policies.js";

const CHECK = 250; // milliseconds after the last change until the server is asked whether it can be used

/** The list of policies that a mode stands for; null: the model's own. */
export function policyOf(mode, own, setup) {
  if (mode === "none") return [];
  if (mode === "own") return own;
  if (mode.startsWith("preset:")) return setup.presets[mode.slice(7)] ?? [];
  return null;
}

/** The policies that a model brings: those of a preset, and none of an engine. */
export const brought = (model, setup) => (model?.startsWith("waver/") ? setup.presets[model.slice(6)] ?? [] : []);

/** The tokens that a conversation with a model may have; null where it is not known. */
export const roomOf = (model, models) => models.find((each) => each.id === model)?.max_model_len ?? null;

/** What differs from the defaults of each policy, so that a list stays short. */
export function short(list, policies) {
  return list.map(({ name, ...given }) => {
    const known = policies.find((each) => each.name === name);
    return { name, ...Object.fromEntries(Object.entries(given).filter(([field, value]) => JSON.stringify(value) !== JSON.stringify(known?.defaults?.[field] ?? null))) };
  });
}

/** A policy with another threshold. One that hands back at its threshold has a single one, which moves both ways. */
export function withThreshold(policy, threshold, policies) {
  const now = { ...policies.find((each) => each.name === policy.name)?.defaults, ...policy };
  if (typeof now.threshold_down !== "number") return { ...policy, threshold };
  return { ...policy, threshold, threshold_down: now.threshold_down >= now.threshold ? null : Math.min(now.threshold_down, threshold) };
}

export class Settings {
  constructor(known) {
    this.known = known;
    this.problem = "";
    this.tooLong = ""; // why what would be sent has no room
    this.listeners = [];
    this.form = new PolicyForm("", known, () => this.change());
    $("policies").replaceChildren(this.form.element);
    const group = (label, ids) => (ids.length ? [make("optgroup", { label }, ...ids.map((id) => make("option", { value: id }, id)))] : []);
    const presets = Object.keys(known.setup.presets).map((name) => `waver/${name}`);
    $("model").replaceChildren(...group("Presets", presets), ...group("Engines", known.setup.engines.map((engine) => engine.id)));
    const preferred = known.setup.default_preset;
    if (preferred) $("model").value = `waver/${preferred}`;
    $("mode").replaceChildren(
      make("option", { value: "default" }, "as the model brings it"),
      ...group("Start from a preset", Object.keys(known.setup.presets).map((name) => `preset:${name}`)).map((each) => {
        for (const option of each.children) option.textContent = option.value.slice(7);
        return each;
      }),
      make("option", { value: "own" }, "my own"), make("option", { value: "none" }, "none, plain decoding"));
    for (const id of ["model", "temperature", "max-tokens", "seed", "system", "extra"]) $(id).addEventListener("change", () => this.change());
    $("temperature").addEventListener("input", () => this.showTemperature());
    $("mode").addEventListener("change", () => this.choose($("mode").value));
    this.showTemperature();
    this.showPolicies();
  }

  /** A preset is a starting point: it fills the form, which is then one's own. */
  choose(mode) {
    if (mode.startsWith("preset:")) {
      this.own = policyOf(mode, [], this.known.setup);
      $("mode").value = "own";
    } else if (mode === "own" && !this.own) {
      this.own = brought($("model").value, this.known.setup);
    }
    if ($("mode").value === "own") this.form.set(short(this.own, this.known.policies));
    this.showPolicies();
    this.change();
  }

  /** Say what will decode, or show the form of one's own. */
  showPolicies() {
    const own = $("mode").value === "own";
    $("policies").hidden = !own;
    const words = this.effective.map(({ name }) => `${name}: ${this.known.policies.find((each) => each.name === name)?.summary ?? ""}`);
    $("mode-note").textContent = words.join(" ") || `Plain decoding: ${$("model").value} writes alone.`;
    $("mode-note").hidden = own;
  }

  showTemperature() {
    document.querySelector("output[for=temperature]").value = Number($("temperature").value).toFixed(2);
  }

  change() {
    if ($("mode").value === "own") this.own = this.form.read();
    this.showPolicies();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), CHECK);
    for (const listener of this.listeners) listener();
  }

  /** Ask the server whether the policies can be used, so that what cannot is not sent. */
  async check() {
    try {
      if ($("mode").value === "own") await post("v1/policies/check", { model: $("model").value, policy: this.form.read() });
      this.tell("", null);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 400) return;
      this.tell(error.message, error.param);
    }
  }

  tell(message, param) {
    this.problem = message;
    this.form.tell(message, param);
    this.allow();
  }

  /** Offer to send, or say why nothing can be sent. */
  allow(tooLong = this.tooLong) {
    this.tooLong = tooLong;
    $("send").title = this.problem || tooLong;
    $("send").disabled = Boolean($("send").title);
  }

  /** The list of policies to send; undefined: the model's own. */
  get policy() {
    return policyOf($("mode").value, this.own ?? [], this.known.setup) ?? undefined;
  }

  /** The policies that will run. */
  get effective() {
    return this.policy ?? brought($("model").value, this.known.setup);
  }

  /** The collections are these now: the forms offer them. */
  collections(names) {
    if (JSON.stringify(names) === JSON.stringify(this.known.names.collections)) return;
    this.known.names.collections = names;
    this.form.set(this.form.read());
  }

  /** The fields of a request beside its messages. Throws where the extra fields are no JSON object. */
  body() {
    const value = (id) => $(id).value.trim();
    let extra = {};
    if (value("extra")) {
      try {
        extra = JSON.parse(value("extra"));
      } catch {
        throw new ApiError(0, "The further fields should be a JSON object.");
      }
    }
    return {
      model: value("model"),
      temperature: Number(value("temperature")),
      ...(value("max-tokens") && { max_tokens: Number(value("max-tokens")) }),
      ...(value("seed") && { seed: Number(value("seed")) }),
      ...(this.policy && { policy: this.policy }),
      ...extra,
    };
  }

  system() {
    const words = $("system").value.trim();
    return words ? [{ role: "system", content: words }] : [];
  }

  /** What a link carries. */
  save() {
    const fields = Object.fromEntries(["model", "temperature", "max-tokens", "seed", "system", "extra"].map((id) => [id, $(id).value]));
    return { ...fields, mode: $("mode").value, ...($("mode").value === "own" && { policy: short(this.own ?? [], this.known.policies) }) };
  }

  load(saved) {
    for (const id of ["model", "temperature", "max-tokens", "seed", "system", "extra"]) {
      if (typeof saved[id] === "string" && (id !== "model" || [...$("model").options].some((option) => option.value === saved[id]))) $(id).value = saved[id];
    }
    if (Array.isArray(saved.policy)) this.own = saved.policy.filter((each) => this.known.policies.some(({ name }) => name === each?.name));
    if (["default", "own", "none"].includes(saved.mode)) $("mode").value = saved.mode;
    if ($("mode").value === "own") this.form.set(this.own ?? []);
    this.showTemperature();
    this.showPolicies();
    this.change();
  }

  /** Set the threshold of one policy, and ask with one's own list from now on. */
  setThreshold(policy, value) {
    const { policies } = this.known;
    const list = short(this.effective, policies).map((each) => (each.name === policy ? withThreshold(each, value, policies) : each));
    this.own = list;
    $("mode").value = "own";
    this.form.set(list);
    this.showPolicies();
    this.change();
  }
}
