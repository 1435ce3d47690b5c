// Write the digest of the source into the built file, by which the tests tell whether it is up to date.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";

const source = createHash("sha256").update(readFileSync("src/index.ts")).digest("hex");
for (const file of ["lib/index.js", "lib/index.d.ts"]) {
  const built = readFileSync(file, "utf8").replace(/^\/\/ Built from .*\n/, "");
  writeFileSync(file, `// Built from src/index.ts, SHA-256 ${source}.\n${built}`);
}
