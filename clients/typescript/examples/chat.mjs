// One answer with a policy, its report, and the tokens that the large model wrote.
import { Waver, report, trace } from "../lib/index.js";

const client = new Waver({ baseURL: process.env.WAVER_BASE_URL, apiKey: process.env.WAVER_API_KEY });
const request = {
  model: "small",
  messages: [{ role: "user", content: "What is 34 + 25 - 17 + 64?" }],
  policy: [{ name: "ead", small: "small", large: "large" }],
  trace: true,
  temperature: 0,
  max_tokens: 60,
};
const response = await client.chat(request);
console.log(response.choices[0].message.content);
console.log(`relative cost ${report(response).relative_cost.toFixed(2)}`);

for await (const chunk of client.stream(request)) {
  for (const choice of chunk.choices) {
    for (const token of trace(choice)) {
      console.log(`${JSON.stringify(token.token)} ${token.engine} ${token.entropy.toFixed(3)} nats`);
    }
  }
}
