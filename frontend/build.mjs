// Bundle the scripts of the dashboard into the folder that the wheel carries. Run by `make setup`.
// A file's name has the hash of its content, so browsers may keep it forever; manifest.json maps entries to files.

import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "src", "signoff", "dashboard", "static", "built");

mkdirSync(out, { recursive: true });
const before = new Set(readdirSync(out));

const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: readdirSync(join(here, "src", "entries")).map((name) => `src/entries/${name}`),
  outdir: out,
  entryNames: "[name]-[hash]",
  chunkNames: "shared-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["es2022"],
  minify: true,
  legalComments: "linked",
  metafile: true,
  logLevel: "warning",
});

const manifest = {};
const written = new Set(["manifest.json", "LICENSES.txt"]);
for (const [path, { entryPoint, cssBundle }] of Object.entries(metafile.outputs)) {
  written.add(basename(path));
  if (!entryPoint) continue;
  manifest[basename(entryPoint)] = basename(path);
  if (cssBundle) manifest[basename(entryPoint).replace(/\.js$/, ".css")] = basename(cssBundle);
}
writeFileSync(join(out, "LICENSES.txt"), await (await import("./licenses.mjs")).licensesOf(metafile, here));
writeFileSync(join(out, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
for (const name of before) if (!written.has(name)) rmSync(join(out, name));
