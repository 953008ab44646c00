// Builds the pages into ../assets/ui, which the program embeds; with --check, tells whether what is there is what
// these sources make.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const target = (name) => here(`../assets/ui/${name}`);

/** The licences of the packages whose files are in a bundle. */
async function licences(inputs) {
  const names = inputs.map((file) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(file)?.[1]);
  const texts = [...new Set(names.filter(Boolean))].sort().map(async (name) => {
    const folder = here(`node_modules/${name}`);
    const { version } = JSON.parse(await readFile(`${folder}/package.json`, "utf8"));
    const file = (await readdir(folder)).find((file) => /^licen[cs]e/i.test(file));
    return `${name} ${version}\n\n${(await readFile(`${folder}/${file}`, "utf8")).trim()}\n`;
  });
  return Buffer.from((await Promise.all(texts)).join(`\n${"-".repeat(70)}\n\n`));
}

const result = await build({
  entryPoints: { app: here("src/main.tsx"), style: here("src/style.css") },
  bundle: true,
  charset: "utf8",
  format: "esm",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  metafile: true,
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

files.set("licences.txt", await licences(Object.keys(result.metafile.inputs)));

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
