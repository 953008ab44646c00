// What was just done, as code that does it again. Pictures and recordings are read from files, the key from the
// environment: neither belongs into code.

import { address, apiKey } from "./api";

export type Language = "curl" | "Python" | "JavaScript";
export const LANGUAGES: Language[] = ["curl", "Python", "JavaScript"];

/** A request to `/v1/chat/completions`; where `picture:NAME` stands, there is to be a data URL of that file. */
export interface ChatCall {
  kind: "chat";
  body: Record<string, unknown>;
}

/** A request to `/v1/audio/transcriptions`. */
export interface SpeechCall {
  kind: "speech";
  fields: [string, string][];
  file: string;
}

export type Call = ChatCall | SpeechCall;

export const PICTURE = "picture:";

/** A text between single quotes of a shell. */
const shell = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
const json = (value: unknown) => JSON.stringify(value);
const base = () => address("v1");

export function code(call: Call, language: Language): string {
  if (call.kind === "chat") {
    return { curl: curlChat, Python: pythonChat, JavaScript: scriptChat }[language](call.body);
  }
  return { curl: curlSpeech, Python: pythonSpeech, JavaScript: scriptSpeech }[language](call);
}

const authorization = () => (apiKey.get() ? ` \\\n  -H "Authorization: Bearer $OPENAI_API_KEY"` : "");

function curlChat(body: Record<string, unknown>): string {
  const files: string[] = [];
  let mark = "PICTURE";
  while (json(body).includes(mark)) mark += "_";
  const named = (_: string, value: unknown) => {
    if (typeof value !== "string" || !value.startsWith(PICTURE)) return value;
    files.push(value.slice(PICTURE.length));
    return `${mark}${files.length - 1};`;
  };
  // Between END and END a shell expands $, ` and \, and that is how files get in.
  const escaped = JSON.stringify(body, named, 2).replace(/[\\$`]/g, "\\$&");
  const filled = files.reduce(
    (text, file, index) =>
      text.replace(`${mark}${index};`, () => `data:image/*;base64,$(base64 < ${shell(file)} | tr -d '\\n')`),
    escaped,
  );
  return `curl -N ${shell(`${base()}/chat/completions`)} \\
  -H 'Content-Type: application/json'${authorization()} \\
  --data-binary @- <<END
${filled}
END
`;
}

/** A value as source text of a language. */
interface Style {
  words: Record<string, string>;
  picture: (name: string) => string;
  key: (name: string) => string;
}

function literal(value: unknown, style: Style, indent: string): string {
  if (typeof value === "string" && value.startsWith(PICTURE))
    return style.picture(value.slice(PICTURE.length));
  if (value === null || typeof value === "boolean") return style.words[String(value)] ?? "";
  if (typeof value !== "object") return json(value);
  const deeper = `${indent}    `;
  const list = Array.isArray(value);
  const items = list
    ? value.map((item) => literal(item, style, deeper))
    : Object.entries(value).map(([name, item]) => `${style.key(name)}${literal(item, style, deeper)}`);
  const [open, close] = list ? "[]" : "{}";
  const short = `${open}${items.join(", ")}${close}`;
  if (short.length <= 70 && !short.includes("\n")) return short;
  return `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}`;
}

const PYTHON: Style = {
  words: { true: "True", false: "False", null: "None" },
  picture: (name) => `picture(${json(name)})`,
  key: (name) => `${json(name)}: `,
};
const SCRIPT: Style = {
  words: { true: "true", false: "false", null: "null" },
  picture: (name) => `picture(${json(name)})`,
  key: (name) => `${name}: `,
};

const hasPicture = (body: unknown) => json(body).includes(`"${PICTURE}`);
const pythonKey = () => (apiKey.get() ? 'os.environ["OPENAI_API_KEY"]' : '"none"');
const scriptKey = () => (apiKey.get() ? "process.env.OPENAI_API_KEY" : '"none"');
const pythonImports = (...more: string[]) =>
  ["openai", ...more, ...(apiKey.get() ? ["os"] : [])]
    .sort()
    .map((name) => `import ${name}\n`)
    .join("");

function pythonChat(body: Record<string, unknown>): string {
  const picture = `

def picture(file):
    with open(file, "rb") as content:
        return "data:image/*;base64," + base64.b64encode(content.read()).decode()

`;
  const pictures = hasPicture(body);
  const fields = Object.entries(body).map(
    ([name, value]) => `    ${name}=${literal(value, PYTHON, "    ")},\n`,
  );
  return `${pythonImports(...(pictures ? ["base64"] : []))}${pictures ? picture : ""}
client = openai.OpenAI(base_url=${json(base())}, api_key=${pythonKey()})
stream = client.chat.completions.create(
${fields.join("")})
for piece in stream:
    if piece.choices:
        print(piece.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

function scriptChat(body: Record<string, unknown>): string {
  const pictures = hasPicture(body);
  return `${pictures ? 'import { readFileSync } from "node:fs";\n' : ""}import OpenAI from "openai";
${pictures ? '\nconst picture = (file) => "data:image/*;base64," + readFileSync(file).toString("base64");\n' : ""}
const client = new OpenAI({ baseURL: ${json(base())}, apiKey: ${scriptKey()} });
const stream = await client.chat.completions.create(${literal(body, SCRIPT, "")});
for await (const piece of stream) {
    process.stdout.write(piece.choices[0]?.delta?.content ?? "");
}
`;
}

function curlSpeech({ fields, file }: SpeechCall): string {
  const lines = fields.map(([name, text]) => ` \\\n  -F ${shell(`${name}=${text}`)}`).join("");
  // curl reads \ and " in a name between double quotes, and a name may have commas.
  const quoted = `file=@"${file.replace(/[\\"]/g, "\\$&")}"`;
  return `curl -N ${shell(`${base()}/audio/transcriptions`)}${authorization()}${lines} \\
  -F ${shell(quoted)}
`;
}

/** The fields without what makes a stream of it: the whole answer is easier to read. */
function speechArguments(fields: [string, string][]): [string, unknown][] {
  const known = new Map<string, unknown>();
  for (const [name, text] of fields) {
    if (name === "stream" || name.endsWith("[]")) continue;
    known.set(name, text === "true" ? true : text);
  }
  return [...known];
}

/** Fields that the official libraries do not know go beside those that they do. */
const EXTENSIONS = ["word_timestamps", "task"];

function pythonSpeech({ fields, file }: SpeechCall): string {
  const all = speechArguments(fields);
  const own = all.filter(([name]) => EXTENSIONS.includes(name));
  const lines = all
    .filter(([name]) => !EXTENSIONS.includes(name))
    .map(([name, value]) => `        ${name}=${literal(value, PYTHON, "        ")},\n`);
  if (own.length > 0)
    lines.push(`        extra_body=${literal(Object.fromEntries(own), PYTHON, "        ")},\n`);
  return `${pythonImports()}
client = openai.OpenAI(base_url=${json(base())}, api_key=${pythonKey()})
with open(${json(file)}, "rb") as recording:
    transcript = client.audio.transcriptions.create(
        file=recording,
${lines.join("")}    )
for segment in transcript.segments:
    print(f"{segment.start:7.2f} {segment.text}")
`;
}

function scriptSpeech({ fields, file }: SpeechCall): string {
  const lines = speechArguments(fields).map(
    ([name, value]) => `    ${name}: ${literal(value, SCRIPT, "    ")},\n`,
  );
  return `import { createReadStream } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${json(base())}, apiKey: ${scriptKey()} });
const transcript = await client.audio.transcriptions.create({
    file: createReadStream(${json(file)}),
${lines.join("")}});
for (const segment of transcript.segments) {
    console.log(segment.start.toFixed(2).padStart(7), segment.text);
}
`;
}
