// What the scripts share, as in ../harness.py.
export const V1 = `${process.env.WAVER_URL}/v1`;
export const MODEL = process.env.WAVER_MODEL;
export const EMBEDDER = process.env.WAVER_EMBEDDER;
export const KEY = "none";
export const HELLO = "Say hello.";
export const QUESTION = "What is the weather in Rome?";
export const CITIES = ["Rome", "Oslo"];
export const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string", enum: CITIES } },
  required: ["city"],
  additionalProperties: false,
};
export const TOO_LONG = "word ".repeat(60000);

export function assert(holds, said) {
  if (!holds) throw new Error(said ?? "not as it should be");
}

export async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("a prompt that is too long was accepted");
}

/** Run checks in turn, and print a line of JSON for each: `check`, `passed`, `said`. */
export async function run(checks) {
  for (const [check, call] of Object.entries(checks)) {
    let passed = true;
    let said = "";
    try {
      await call();
    } catch (error) {
      passed = false;
      said = String(error).split("\n")[0].slice(0, 300);
      console.error(error);
    }
    console.log(JSON.stringify({ check, passed, said }));
  }
  process.exit(0);
}
