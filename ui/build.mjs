// Builds the pages into ../assets/ui, which the program embeds; with --check, tells whether what is there is what
// these sources make.
import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const target = (name) => here(`../assets/ui/${name}`);

const result = await build({
  entryPoints: { app: here("src/app.tsx"), docs: here("src/docs.tsx"), style: here("src/style.css") },
  bundle: true,
  charset: "utf8",
  format: "esm",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "inline",
  minify: true,
  outdir: here("../assets/ui"),
  target: ["chrome123", "firefox128", "safari17.5"],
  write: false,
});
const files = new Map(
  result.outputFiles.map((file) => [file.path.split("/").pop(), Buffer.from(file.contents)]),
);
for (const name of ["index.html", "docs.html", "icon.svg"]) {
  files.set(name, await readFile(here(`src/${name}`)));
}

const check = process.argv.includes("--check");
for (const [name, content] of files) {
  if (!check) {
    await writeFile(target(name), content);
    console.log(`${name}: ${content.length} bytes`);
    continue;
  }
  const found = await readFile(target(name)).catch(() => null);
  if (!found?.equals(content)) {
    console.error(`assets/ui/${name} is not what ui/src makes: run npm run build in ui/`);
    process.exitCode = 1;
  }
}
