// Built from src/index.ts, SHA-256 6e2fa9ba4986219ac8b8e6538446ff22e9037ecc430a6bc84fa955da5b60d731.
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
    entropy: {
        mean: number;
        max: number;
        kind: "exact" | "bounded";
        lower?: number;
        upper?: number;
    };
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
    usage: {
        prompt_tokens: number;
        completion_tokens: number;
        total_tokens: number;
    };
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
        waver?: {
            trace?: TracedToken[];
        };
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
export declare class WaverError extends Error {
    readonly status: number;
    readonly param: string | null;
    readonly code: string | null;
    constructor(message: string, status: number, param: string | null, code: string | null);
}
/** Return the report of a response, a choice or a stream's finishing chunk; undefined where there is none. */
export declare function report(thing: object): Report | undefined;
/** Return the traced tokens of one choice, of a response or of a chunk; empty where no trace was asked for. */
export declare function trace(choice: object): TracedToken[];
export declare class Waver {
    #private;
    readonly baseURL: string;
    constructor(options?: Options);
    /** Ask, and wait for the whole answer. */
    chat(request: ChatRequest, signal?: AbortSignal): Promise<ChatResponse>;
    /** Ask, and yield the answer's chunks as they come. Leaving the loop, or the signal, stops the server's work. */
    stream(request: ChatRequest, signal?: AbortSignal): AsyncGenerator<ChatChunk>;
    /** Return the names of engines and presets. */
    models(): Promise<string[]>;
    /** Return every policy that the server knows. */
    policies(): Promise<PolicyInfo[]>;
    readonly collections: {
        create: (name: string, options?: {
            embedder?: string;
            chunk_tokens?: number;
        }) => Promise<Collection>;
        list: () => Promise<Collection[]>;
        get: (name: string) => Promise<Collection>;
        delete: (name: string) => Promise<void>;
        add: (name: string, documents: NewDocument[]) => Promise<AddedDocument[]>;
        /** Return documents in an order that stays; `has_more` says whether some come after the last one. */
        documents: (name: string, options?: {
            limit?: number;
            after?: string;
        }) => Promise<{
            data: ListedDocument[];
            has_more: boolean;
        }>;
        remove: (name: string, document: string) => Promise<void>;
        search: (name: string, query: string, options?: SearchOptions) => Promise<Passage[]>;
    };
    readonly memories: {
        add: (memories: Array<Record<string, unknown>>, owner?: Owner) => Promise<{
            added: number;
            known: number;
        }>;
        say: (turns: Turn[], options?: Owner & {
            conversation?: string;
            policy?: Record<string, unknown>;
        }) => Promise<{
            added: number;
            known: number;
        }>;
        search: (query: string, options?: Owner & {
            top_k?: number;
            kind?: "memories" | "episodes";
        }) => Promise<Memory[]>;
        export: (span?: Span) => Promise<Memory[]>;
        forget: (id: number, owner?: Owner) => Promise<void>;
        erase: (span?: Span) => Promise<{
            deleted: number;
        }>;
    };
    readonly facts: {
        add: (facts: Array<{
            text: string;
            subject?: string;
            relation?: string;
        }>, owner?: Owner) => Promise<Fact[]>;
        export: (options?: Owner & {
            at?: string;
            history?: boolean;
        }) => Promise<Fact[]>;
        forget: (id: number, owner?: Owner) => Promise<void>;
        erase: (owner?: Owner) => Promise<{
            deleted: number;
        }>;
    };
}
