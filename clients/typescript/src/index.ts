/**
 * A client of Waver: chat with policies, reports and traces; collections, memories and facts.
 *
 * It needs `fetch` (Node 18, Deno, Bun, browsers) and nothing else. For everything else of OpenAI's API use the
 * `openai` package with Waver's address; `report` reads its responses, too.
 */
import type { Policy } from "../policies.js";

export type { Policy } from "../policies.js";

export interface Message {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content: string | null;
  [key: string]: unknown;
}

/** One token of an answer that was asked for with `trace: true`. Entropy and logprob are in nats. */
export interface TracedToken {
  token: string;
  id: number;
  engine: string;
  entropy: number;
  logprob: number;
  kept?: number;
  crop_entropy?: number;
  [key: string]: unknown;
}

/** What decoding did. Keys of policies that did not run are absent. */
export interface Report {
  policy: Array<Record<string, unknown>>;
  /** Generated tokens by engine. */
  tokens: Record<string, number>;
  switches: number;
  /** Parameter-weighted cost, as a share of what the largest engine alone would have cost. */
  relative_cost: number;
  /** Nats; `lower` and `upper` bound the mean where `kind` is `bounded`. */
  entropy: { mean: number; max: number; kind: "exact" | "bounded"; lower?: number; upper?: number };
  catch_up_tokens?: Record<string, number>;
  discarded_tokens?: number;
  retrieval?: Record<string, unknown>;
  trace?: TracedToken[];
  [key: string]: unknown;
}

export interface ChatRequest {
  messages: Message[];
  /** An engine, or `waver/PRESET`; the default preset if absent. */
  model?: string;
  /** A preset's name, or a list of policies; goes over what the model brings along. `[]`: plain decoding. */
  policy?: string | Policy[];
  trace?: boolean;
  temperature?: number;
  max_tokens?: number;
  seed?: number;
  n?: number;
  user?: string;
  /** Other fields of OpenAI's API, such as `tools` and `response_format`. */
  [key: string]: unknown;
}

export interface Choice {
  index: number;
  message: Message;
  finish_reason: string | null;
  waver?: Partial<Report>;
  [key: string]: unknown;
}

export interface ChatResponse {
  id: string;
  model: string;
  choices: Choice[];
  usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number };
  waver: Report;
  [key: string]: unknown;
}

export interface ChatChunk {
  id: string;
  model: string;
  choices: Array<{
    index: number;
    delta: Partial<Message>;
    finish_reason: string | null;
    waver?: { trace?: TracedToken[] };
    [key: string]: unknown;
  }>;
  waver?: Report;
  [key: string]: unknown;
}

export interface PolicyInfo {
  name: string;
  stage: string;
  summary: string;
  paper?: string | null;
  /** JSON Schema of the parameters. */
  schema: Record<string, unknown>;
  defaults: Record<string, unknown>;
}

export interface Collection {
  name: string;
  documents?: number;
  chunks?: number;
  error?: string;
  [key: string]: unknown;
}

export interface NewDocument {
  id: string;
  text: string;
  title?: string;
  metadata?: Record<string, unknown>;
}

export interface AddedDocument {
  id: string;
  chunks: number;
  unchanged?: boolean;
  /** What of it was lost or guessed. */
  warnings?: string[];
}

export interface ListedDocument {
  id: string;
  title: string;
  chunks: number;
  metadata: Record<string, unknown>;
}

export interface Passage {
  document: string;
  chunk: number;
  score: number;
  text: string;
  title?: string;
  metadata?: Record<string, unknown>;
}

export interface SearchOptions {
  top_k?: number;
  filter?: Record<string, unknown>;
  mode?: "hybrid" | "dense" | "lexical";
  rerank?: boolean;
}

export interface Memory {
  id: number;
  object: string;
  content?: string;
  score?: number;
  [key: string]: unknown;
}

export interface Turn {
  speaker: string;
  text: string;
  time?: string;
  source?: string;
}

export interface Fact {
  id: number;
  text: string;
  subject?: string;
  relation?: string;
  begun?: string;
  ended?: string;
  [key: string]: unknown;
}

/** Whose memories or facts: the key's, and of this user. */
export interface Owner {
  user?: string;
}

/** Moments in ISO 8601. */
export interface Span extends Owner {
  after?: string;
  before?: string;
}

export interface Options {
  /** The server's address, with /v1. */
  baseURL?: string;
  apiKey?: string;
  /** Milliseconds until the answer's head has to be there; none by default, as answers may take long. */
  timeout?: number;
  fetch?: typeof fetch;
}

/** An error that the server answered with: its sentence, status, and the field that it is about. */
export class WaverError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly param: string | null,
    readonly code: string | null,
  ) {
    super(message);
    this.name = "WaverError";
  }
}

/** Return the report of a response, a choice or a stream's finishing chunk; undefined where there is none. */
export function report(thing: object): Report | undefined {
  const found = (thing as { waver?: Report }).waver;
  return found && "tokens" in found ? found : undefined;
}

/** Return the traced tokens of one choice, of a response or of a chunk; empty where no trace was asked for. */
export function trace(choice: object): TracedToken[] {
  return (choice as { waver?: { trace?: TracedToken[] } }).waver?.trace ?? [];
}

type Query = Record<string, string | boolean | undefined>;

export class Waver {
  readonly baseURL: string;
  readonly #apiKey: string | undefined;
  readonly #timeout: number | undefined;
  readonly #fetch: typeof fetch;

  constructor(options: Options = {}) {
    this.baseURL = (options.baseURL ?? "http://127.0.0.1:8000/v1").replace(/\/$/, "");
    this.#apiKey = options.apiKey;
    this.#timeout = options.timeout;
    this.#fetch = options.fetch ?? ((...given) => fetch(...given));
  }

  /** Ask, and wait for the whole answer. */
  async chat(request: ChatRequest, signal?: AbortSignal): Promise<ChatResponse> {
    return this.#json("POST", "/chat/completions", { ...request, stream: false }, {}, signal);
  }

  /** Ask, and yield the answer's chunks as they come. Leaving the loop, or the signal, stops the server's work. */
  async *stream(request: ChatRequest, signal?: AbortSignal): AsyncGenerator<ChatChunk> {
    const response = await this.#send("POST", "/chat/completions", { ...request, stream: true }, {}, signal);
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw failure(response.status, chunk);
      yield chunk;
    }
  }

  /** Return the names of engines and presets. */
  async models(): Promise<string[]> {
    const found = await this.#json<{ data: Array<{ id: string }> }>("GET", "/models");
    return found.data.map((each) => each.id);
  }

  /** Return every policy that the server knows. */
  async policies(): Promise<PolicyInfo[]> {
    return (await this.#json<{ data: PolicyInfo[] }>("GET", "/policies")).data;
  }

  readonly collections = {
    create: (name: string, options: { embedder?: string; chunk_tokens?: number } = {}): Promise<Collection> =>
      this.#json("POST", "/collections", { name, ...options }),
    list: async (): Promise<Collection[]> =>
      (await this.#json<{ data: Collection[] }>("GET", "/collections")).data,
    get: (name: string): Promise<Collection> => this.#json("GET", `/collections/${part(name)}`),
    delete: (name: string): Promise<void> => this.#json("DELETE", `/collections/${part(name)}`),
    add: async (name: string, documents: NewDocument[]): Promise<AddedDocument[]> =>
      (
        await this.#json<{ documents: AddedDocument[] }>("POST", `/collections/${part(name)}/documents`, {
          documents,
        })
      ).documents,
    /** Return documents in an order that stays; `has_more` says whether some come after the last one. */
    documents: (
      name: string,
      options: { limit?: number; after?: string } = {},
    ): Promise<{ data: ListedDocument[]; has_more: boolean }> => {
      const query = new URLSearchParams(Object.entries(options).map(([key, value]) => [key, String(value)]));
      return this.#json("GET", `/collections/${part(name)}/documents?${query}`);
    },
    remove: (name: string, document: string): Promise<void> =>
      this.#json("DELETE", `/collections/${part(name)}/documents/${document.split("/").map(part).join("/")}`),
    search: async (name: string, query: string, options: SearchOptions = {}): Promise<Passage[]> =>
      (
        await this.#json<{ passages: Passage[] }>("POST", `/collections/${part(name)}/search`, {
          query,
          ...options,
        })
      ).passages,
  };

  readonly memories = {
    add: (memories: Array<Record<string, unknown>>, owner: Owner = {}): Promise<{ added: number; known: number }> =>
      this.#json("POST", "/memories", { memories, ...owner }),
    say: (
      turns: Turn[],
      options: Owner & { conversation?: string; policy?: Record<string, unknown> } = {},
    ): Promise<{ added: number; known: number }> => this.#json("POST", "/memories", { turns, ...options }),
    search: async (
      query: string,
      options: Owner & { top_k?: number; kind?: "memories" | "episodes" } = {},
    ): Promise<Memory[]> =>
      (await this.#json<{ memories: Memory[] }>("POST", "/memories/search", { query, ...options })).memories,
    export: (span: Span = {}): Promise<Memory[]> => this.#lines("/memories", { ...span }),
    forget: (id: number, owner: Owner = {}): Promise<void> =>
      this.#json("DELETE", `/memories/${id}`, undefined, { ...owner }),
    erase: (span: Span = {}): Promise<{ deleted: number }> =>
      this.#json("DELETE", "/memories", undefined, { ...span }),
  };

  readonly facts = {
    add: async (
      facts: Array<{ text: string; subject?: string; relation?: string }>,
      owner: Owner = {},
    ): Promise<Fact[]> => (await this.#json<{ data: Fact[] }>("POST", "/facts", { facts, ...owner })).data,
    export: (options: Owner & { at?: string; history?: boolean } = {}): Promise<Fact[]> =>
      this.#lines("/facts", { ...options }),
    forget: (id: number, owner: Owner = {}): Promise<void> =>
      this.#json("DELETE", `/facts/${id}`, undefined, { ...owner }),
    erase: (owner: Owner = {}): Promise<{ deleted: number }> =>
      this.#json("DELETE", "/facts", undefined, { ...owner }),
  };

  async #send(
    method: string,
    path: string,
    body?: unknown,
    query: Query = {},
    signal?: AbortSignal,
  ): Promise<Response> {
    const url = new URL(`${this.baseURL}${path}`);
    for (const [key, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(key, `${value}`);
    const headers: Record<string, string> = body === undefined ? {} : { "content-type": "application/json" };
    if (this.#apiKey) headers["authorization"] = `Bearer ${this.#apiKey}`;
    const limit = new AbortController();
    const stop = () => limit.abort(signal?.reason);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
    const late = () => limit.abort(new Error(`no answer within ${this.#timeout} ms`));
    const timer = this.#timeout === undefined ? undefined : setTimeout(late, this.#timeout);
    try {
      const content = body === undefined ? {} : { body: JSON.stringify(body) };
      const response = await this.#fetch(url, { method, headers, signal: limit.signal, ...content });
      if (!response.ok) throw failure(response.status, await response.json().catch(() => ({})));
      return response;
    } finally {
      clearTimeout(timer);
    }
  }

  async #json<T>(method: string, path: string, body?: unknown, query?: Query, signal?: AbortSignal): Promise<T> {
    return (await (await this.#send(method, path, body, query, signal)).json()) as T;
  }

  async #lines<T>(path: string, query: Query): Promise<T[]> {
    const text = await (await this.#send("GET", path, undefined, query)).text();
    return text.split("\n").filter(Boolean).map((line) => JSON.parse(line) as T);
  }
}

const part = encodeURIComponent;

function failure(status: number, body: { error?: { message?: string; param?: string; code?: string } }): WaverError {
  const { message, param, code } = body.error ?? {};
  return new WaverError(message ?? `the server answers ${status}`, status, param ?? null, code ?? null);
}

/** Yield the data of server-sent events; comments, which keep a silent stream open, are left out. */
async function* events(response: Response): AsyncGenerator<string> {
  if (!response.body) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      held += decoder.decode(value, { stream: !done });
      const parts = held.split(/\r?\n\r?\n/);
      held = done ? "" : parts.pop()!;
      for (const event of parts) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5).trimStart()).join("\n");
      }
      if (done) return;
    }
  } finally {
    await reader.cancel();
  }
}
