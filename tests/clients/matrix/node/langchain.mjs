// LangChain for Node.
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { CITIES, EMBEDDER, HELLO, KEY, MODEL, QUESTION, V1, assert, run } from "./harness.mjs";

const configuration = { baseURL: V1 };
const model = new ChatOpenAI({ model: MODEL, apiKey: KEY, configuration, maxTokens: 64, maxRetries: 0 });
const Place = z.object({ city: z.enum(CITIES) });

await run({
  async text() {
    assert((await model.invoke(HELLO)).content);
  },
  async stream() {
    let told = "";
    for await (const piece of await model.stream(HELLO)) told += piece.content;
    assert(told);
  },
  async structured() {
    for (const method of ["jsonSchema", "functionCalling"]) {
      const made = await model.withStructuredOutput(Place, { name: "place", method }).invoke(QUESTION);
      assert(CITIES.includes(made.city), method);
    }
  },
  async embeddings() {
    const embedder = new OpenAIEmbeddings({ model: EMBEDDER, apiKey: KEY, configuration });
    assert((await embedder.embedQuery("one")).length === 384);
  },
});
