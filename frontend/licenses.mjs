// The license texts of the packages whose code is in the bundle.

import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";

const packageOf = (path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1];

/** Return the name, version and license text of each package that `metafile` names as an input. */
export const licensesOf = (metafile, folder) => {
  const names = new Set(Object.keys(metafile.inputs).map(packageOf).filter(Boolean));
  return [...names].sort().map((name) => {
    const home = join(folder, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(home, "package.json"), "utf8"));
    const file = existsSync(home) && readdirSync(home).find((each) => /^licen[cs]e/i.test(each));
    const texts = file ? [readFileSync(join(home, file), "utf8").trim()] : [];
    // A package that is a bundle itself has the licenses of its parts beside it.
    const notices = Object.keys(metafile.inputs).filter((path) => packageOf(path) === name).map((path) => join(folder, `${path}.LICENSE.txt`));
    texts.push(...notices.filter(existsSync).map((path) => readFileSync(path, "utf8").trim()));
    return `${name} ${version} (${license})\n\n${texts.join("\n\n")}\n`;
  }).join(`\n${"-".repeat(80)}\n\n`);
};
