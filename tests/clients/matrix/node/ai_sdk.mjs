// The AI SDK with its provider for OpenAI-compatible servers.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { CITIES, EMBEDDER, HELLO, KEY, MODEL, QUESTION, V1, assert, run } from "./harness.mjs";

const provider = createOpenAICompatible({
  name: "waver", baseURL: V1, apiKey: KEY, supportsStructuredOutputs: true, includeUsage: true,
});
const model = provider.chatModel(MODEL);
const Place = z.object({ city: z.enum(CITIES) });
const tools = {
  weather: tool({
    description: "Tell the weather.", inputSchema: Place, execute: async ({ city }) => `It is sunny in ${city}.`,
  }),
};

await run({
  async text() {
    const made = await generateText({ model, prompt: HELLO, maxOutputTokens: 16, maxRetries: 0 });
    assert(made.text && made.usage.outputTokens > 0);
  },
  async stream() {
    const made = streamText({ model, prompt: HELLO, maxOutputTokens: 16, maxRetries: 0 });
    let told = "";
    for await (const piece of made.textStream) told += piece;
    assert(told && (await made.usage).outputTokens > 0);
  },
  async tools() {
    const made = await generateText({ model, prompt: QUESTION, tools, toolChoice: "required", maxRetries: 0 });
    assert(CITIES.includes(made.toolCalls[0].input.city));
  },
  async tool_loop() {
    const made = await generateText({
      model, prompt: QUESTION, tools, maxRetries: 0, maxOutputTokens: 64, stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
    });
    assert(made.steps.length === 2 && made.text, JSON.stringify(made.steps.length));
  },
  async structured() {
    const made = await generateText({
      model, prompt: QUESTION, output: Output.object({ schema: Place }), maxRetries: 0,
    });
    assert(CITIES.includes(made.output.city));
  },
  async embeddings() {
    const made = await embedMany({ model: provider.embeddingModel(EMBEDDER), values: ["one", "two"] });
    assert(made.embeddings.every((each) => each.length === 384));
  },
});
