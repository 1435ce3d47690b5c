// Documents, memories and facts.
import { Waver, WaverError } from "../lib/index.js";

const client = new Waver({ baseURL: process.env.WAVER_BASE_URL, apiKey: process.env.WAVER_API_KEY });
await client.collections.create("towns");
await client.collections.add("towns", [
  { id: "elness.md", text: "The river of Elness is the Aure.", metadata: { kind: "town" } },
  { id: "farmir.md", text: "The mayor of Farmir is called Agnes." },
]);
const [passage] = await client.collections.search("towns", "Who is the mayor of Farmir?", { top_k: 1 });
console.log(`${passage.document}: ${passage.text}`);
await client.collections.delete("towns");
try {
  await client.collections.get("towns");
} catch (error) {
  if (!(error instanceof WaverError)) throw error;
  console.log(`${error.status}: ${error.message}`);
}

await client.memories.add([{ content: "Ada's dog is called Rex." }], { user: "ada" });
const [memory] = await client.memories.search("What is the dog called?", { user: "ada", top_k: 1 });
console.log(memory.content);
console.log(`${(await client.memories.erase({ user: "ada" })).deleted} forgotten`);

const [fact] = await client.facts.add([{ text: "The mayor of Farmir is Bruno.", subject: "Farmir", relation: "mayor" }]);
console.log(`${(await client.facts.export()).length} fact: ${fact.text}`);
await client.facts.forget(fact.id);
