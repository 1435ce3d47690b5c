// Built from src/index.ts, SHA-256 6e2fa9ba4986219ac8b8e6538446ff22e9037ecc430a6bc84fa955da5b60d731.
/** An error that the server answered with: its sentence, status, and the field that it is about. */
export class WaverError extends Error {
    status;
    param;
    code;
    constructor(message, status, param, code) {
        super(message);
        this.status = status;
        this.param = param;
        this.code = code;
        this.name = "WaverError";
    }
}
/** Return the report of a response, a choice or a stream's finishing chunk; undefined where there is none. */
export function report(thing) {
    const found = thing.waver;
    return found && "tokens" in found ? found : undefined;
}
/** Return the traced tokens of one choice, of a response or of a chunk; empty where no trace was asked for. */
export function trace(choice) {
    return choice.waver?.trace ?? [];
}
export class Waver {
    baseURL;
    #apiKey;
    #timeout;
    #fetch;
    constructor(options = {}) {
        this.baseURL = (options.baseURL ?? "http://127.0.0.1:8000/v1").replace(/\/$/, "");
        this.#apiKey = options.apiKey;
        this.#timeout = options.timeout;
        this.#fetch = options.fetch ?? ((...given) => fetch(...given));
    }
    /** Ask, and wait for the whole answer. */
    async chat(request, signal) {
        return this.#json("POST", "/chat/completions", { ...request, stream: false }, {}, signal);
    }
    /** Ask, and yield the answer's chunks as they come. Leaving the loop, or the signal, stops the server's work. */
    async *stream(request, signal) {
        const response = await this.#send("POST", "/chat/completions", { ...request, stream: true }, {}, signal);
        for await (const data of events(response)) {
            if (data === "[DONE]")
                return;
            const chunk = JSON.parse(data);
            if (chunk.error)
                throw failure(response.status, chunk);
            yield chunk;
        }
    }
    /** Return the names of engines and presets. */
    async models() {
        const found = await this.#json("GET", "/models");
        return found.data.map((each) => each.id);
    }
    /** Return every policy that the server knows. */
    async policies() {
        return (await this.#json("GET", "/policies")).data;
    }
    collections = {
        create: (name, options = {}) => this.#json("POST", "/collections", { name, ...options }),
        list: async () => (await this.#json("GET", "/collections")).data,
        get: (name) => this.#json("GET", `/collections/${part(name)}`),
        delete: (name) => this.#json("DELETE", `/collections/${part(name)}`),
        add: async (name, documents) => (await this.#json("POST", `/collections/${part(name)}/documents`, {
            documents,
        })).documents,
        /** Return documents in an order that stays; `has_more` says whether some come after the last one. */
        documents: (name, options = {}) => {
            const query = new URLSearchParams(Object.entries(options).map(([key, value]) => [key, String(value)]));
            return this.#json("GET", `/collections/${part(name)}/documents?${query}`);
        },
        remove: (name, document) => this.#json("DELETE", `/collections/${part(name)}/documents/${document.split("/").map(part).join("/")}`),
        search: async (name, query, options = {}) => (await this.#json("POST", `/collections/${part(name)}/search`, {
            query,
            ...options,
        })).passages,
    };
    memories = {
        add: (memories, owner = {}) => this.#json("POST", "/memories", { memories, ...owner }),
        say: (turns, options = {}) => this.#json("POST", "/memories", { turns, ...options }),
        search: async (query, options = {}) => (await this.#json("POST", "/memories/search", { query, ...options })).memories,
        export: (span = {}) => this.#lines("/memories", { ...span }),
        forget: (id, owner = {}) => this.#json("DELETE", `/memories/${id}`, undefined, { ...owner }),
        erase: (span = {}) => this.#json("DELETE", "/memories", undefined, { ...span }),
    };
    facts = {
        add: async (facts, owner = {}) => (await this.#json("POST", "/facts", { facts, ...owner })).data,
        export: (options = {}) => this.#lines("/facts", { ...options }),
        forget: (id, owner = {}) => this.#json("DELETE", `/facts/${id}`, undefined, { ...owner }),
        erase: (owner = {}) => this.#json("DELETE", "/facts", undefined, { ...owner }),
    };
    async #send(method, path, body, query = {}, signal) {
        const url = new URL(`${this.baseURL}${path}`);
        for (const [key, value] of Object.entries(query))
            if (value !== undefined)
                url.searchParams.set(key, `${value}`);
        const headers = body === undefined ? {} : { "content-type": "application/json" };
        if (this.#apiKey)
            headers["authorization"] = `Bearer ${this.#apiKey}`;
        const limit = new AbortController();
        const stop = () => limit.abort(signal?.reason);
        if (signal?.aborted)
            stop();
        signal?.addEventListener("abort", stop, { once: true });
        const late = () => limit.abort(new Error(`no answer within ${this.#timeout} ms`));
        const timer = this.#timeout === undefined ? undefined : setTimeout(late, this.#timeout);
        try {
            const content = body === undefined ? {} : { body: JSON.stringify(body) };
            const response = await this.#fetch(url, { method, headers, signal: limit.signal, ...content });
            if (!response.ok)
                throw failure(response.status, await response.json().catch(() => ({})));
            return response;
        }
        finally {
            clearTimeout(timer);
        }
    }
    async #json(method, path, body, query, signal) {
        return (await (await this.#send(method, path, body, query, signal)).json());
    }
    async #lines(path, query) {
        const text = await (await this.#send("GET", path, undefined, query)).text();
        return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
    }
}
const part = encodeURIComponent;
function failure(status, body) {
    const { message, param, code } = body.error ?? {};
    return new WaverError(message ?? `the server answers ${status}`, status, param ?? null, code ?? null);
}
/** Yield the data of server-sent events; comments, which keep a silent stream open, are left out. */
async function* events(response) {
    if (!response.body)
        return;
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let held = "";
    try {
        for (;;) {
            const { done, value } = await reader.read();
            held += decoder.decode(value, { stream: !done });
            const parts = held.split(/\r?\n\r?\n/);
            held = done ? "" : parts.pop();
            for (const event of parts) {
                const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
                if (data.length)
                    yield data.map((line) => line.slice(5).trimStart()).join("\n");
            }
            if (done)
                return;
        }
    }
    finally {
        await reader.cancel();
    }
}
