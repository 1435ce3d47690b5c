// OpenAI's own client for Node.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { CITIES, EMBEDDER, HELLO, KEY, MODEL, PARAMETERS, QUESTION, TOO_LONG, V1, assert, refusal, run } from "./harness.mjs";

const client = new OpenAI({ baseURL: V1, apiKey: KEY, maxRetries: 0 });
const tools = [{ type: "function", function: { name: "weather", parameters: PARAMETERS } }];
const asked = (content) => [{ role: "user", content }];
const Place = z.object({ city: z.enum(CITIES) });

await run({
  async text() {
    const made = await client.chat.completions.create({ model: MODEL, messages: asked(HELLO), max_tokens: 16 });
    assert(made.choices[0].message.content);
  },
  async stream() {
    const stream = client.chat.completions.stream({ model: MODEL, messages: asked(HELLO), max_tokens: 16 });
    let told = "";
    stream.on("content", (delta) => (told += delta));
    const whole = await stream.finalChatCompletion();
    assert(told === whole.choices[0].message.content, `${told} !== ${whole.choices[0].message.content}`);
  },
  async tools() {
    const ask = { model: MODEL, messages: asked(QUESTION), tools, tool_choice: "required" };
    const made = (await client.chat.completions.create(ask)).choices[0];
    assert(made.finish_reason === "tool_calls");
    assert(CITIES.includes(JSON.parse(made.message.tool_calls[0].function.arguments).city));
    const whole = await client.chat.completions.stream(ask).finalChatCompletion();
    assert(CITIES.includes(JSON.parse(whole.choices[0].message.tool_calls[0].function.arguments).city));
  },
  async tool_loop() {
    const ask = { model: MODEL, tools, max_tokens: 40 };
    const history = asked(QUESTION);
    const made = await client.chat.completions.create({ ...ask, messages: history, tool_choice: "required" });
    const { message } = made.choices[0];
    history.push(message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "sunny" });
    const told = await client.chat.completions.create({ ...ask, messages: history, tool_choice: "none" });
    assert(told.choices[0].message.content);
  },
  async structured() {
    const made = await client.chat.completions.parse({
      model: MODEL, messages: asked(QUESTION), response_format: zodResponseFormat(Place, "place"),
    });
    assert(CITIES.includes(made.choices[0].message.parsed.city));
  },
  async embeddings() {
    const made = await client.embeddings.create({ model: EMBEDDER, input: ["one", "two"] });
    assert(made.data.every((each) => each.embedding.length === 384));
  },
  async responses() {
    const made = await client.responses.create({ model: MODEL, input: HELLO, max_output_tokens: 16 });
    assert(made.output_text);
  },
  async overflow() {
    const error = await refusal(() => client.chat.completions.create({ model: MODEL, messages: asked(TOO_LONG) }));
    assert(error.code === "context_length_exceeded", error.message);
  },
});
