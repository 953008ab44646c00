// The server's API, as any client of it would use it.

/** A name that a request may use. */
export interface Model {
  id: string;
  /** What it is for; other servers do not say. */
  task?: string;
  /** The model that an alias stands for. */
  root?: string;
  max_model_len?: number;
}

export type Task = "image-text-to-text" | "automatic-speech-recognition";

export interface Health {
  status: "ok" | "loading" | "failed";
  models: {
    id: string;
    alive: boolean;
    running: number;
    waiting: number;
    pages_used: number;
    pages_total: number;
  }[];
  /** Joules since the server began, where the machine tells. */
  energy?: number;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

export interface Segment {
  id: number;
  start: number;
  end: number;
  text: string;
  words?: { word: string; start: number; end: number }[];
}

export interface Transcript {
  language: string;
  duration: number;
  text: string;
  segments?: Segment[];
}

/** What a request failed with, and what to do about it. */
export class Problem extends Error {
  constructor(
    message: string,
    readonly advice: string,
    readonly status = 0,
  ) {
    super(message);
  }
}

/** Addresses are below the page's own, so that a proxy may put it anywhere. */
export const address = (path: string): string => new URL(path, document.baseURI).href;

const KEY = "percept-api-key";
let key = sessionStorage.getItem(KEY) ?? "";

/** The API key: of this tab, gone with it. */
export const apiKey = {
  get: (): string => key,
  set(text: string): void {
    key = text;
    if (text) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
  },
};

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(address(path), { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem(
      "The server cannot be reached.",
      "Is percept still running? Start it again with percept serve, then try again.",
    );
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response: Response): Promise<Problem> {
  let message = `The server answered ${response.status}.`;
  let code: string | null = null;
  try {
    const { error } = await response.json();
    message = error.message ?? message;
    code = error.code ?? null;
  } catch {
    // A proxy's answer, not the API's.
  }
  const seconds = Number(response.headers.get("retry-after")) || 5;
  const id = response.headers.get("x-request-id");
  return new Problem(message, advice(response.status, code, seconds, id), response.status);
}

function advice(status: number, code: string | null, seconds: number, id: string | null): string {
  switch (code) {
    case "image_too_large":
      return "Choose a smaller picture, or start the server with larger limits: percept serve --help lists them.";
    case "invalid_image_format":
    case "invalid_image_url":
      return "PNG, JPEG, WebP, GIF, BMP and TIFF are understood.";
    case "invalid_audio_format":
    case "invalid_audio":
      return "WAV, MP3, FLAC, Ogg, Opus, WebM, MP4, M4A, AIFF and CAF are understood.";
    case "context_length_exceeded":
      return "Begin a new conversation, or send fewer pictures.";
    case "insufficient_quota":
      return "Ask who runs the server for more, or wait until the quota begins anew.";
    case "insufficient_permissions":
      return "Enter another key in the settings, or ask who runs the server.";
    case "model_not_found":
      return "Reload the page: the server may have other models by now.";
  }
  if (status === 401 || status === 403) return "Enter this server’s API key in the settings.";
  if (status === 413) return "Send a smaller file, or start the server with larger limits.";
  if (status === 429) return `The server is busy. Try again in ${seconds} seconds.`;
  if (status === 503) return "Try again in a few seconds.";
  if (status >= 500) return `The server’s log says more${id ? `, under ${id}` : ""}.`;
  return "Change the request, then try again.";
}

export async function models(): Promise<Model[]> {
  const { data } = await (await request("v1/models")).json();
  return data;
}

/** The description of the API, as OpenAPI has it. */
export async function description(): Promise<unknown> {
  return (await request("openapi.json")).json();
}

export async function health(): Promise<Health> {
  // 503 is an answer, too. Which models there are is told to who has a key, where there are keys.
  const response = await fetch(address("health"), key ? { headers: { Authorization: `Bearer ${key}` } } : {});
  return response.json();
}

/** The models for a task, without their aliases; those that do not say what they are for, too. */
export function suitable(all: Model[], task: Task): Model[] {
  return all.filter(
    (model) => (model.root ?? model.id) === model.id && (model.task === undefined || model.task === task),
  );
}

/** Asks for what a request took, and is where that is told. */
const TIMING = "x-percept-timing";

/** What a request costs, where the server knows: two digits that say something, without an exponent. */
function cost(timing: string): string | undefined {
  const [, text, currency] = /cost;desc="([\d.]+) ([^"]*)"/.exec(timing) ?? [];
  if (text === undefined) return undefined;
  const amount = Number(text);
  const digits = amount > 0 ? Math.min(9, Math.max(2, 1 - Math.floor(Math.log10(amount)))) : 0;
  return `${amount.toFixed(digits)} ${currency}`;
}

/** The data of server-sent events. `told` hears what the request cost, behind them. */
async function* events<T>(response: Response, told: (cost: string) => void): AsyncGenerator<T> {
  let complete = false;
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith(`: ${TIMING}:`)) {
          const text = cost(line);
          if (text) told(text);
        }
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") {
          complete = true;
          continue;
        }
        const piece = JSON.parse(data);
        if (piece.error) throw new Problem(piece.error.message, advice(500, piece.error.code, 5, null), 500);
        yield piece;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!complete) throw new Problem("The answer broke off.", "Is percept still running? Try again.");
}

export interface ChatPiece {
  choices: { delta: { content?: string }; finish_reason: string | null }[];
  usage?: Usage | null;
}

export async function* chat(
  body: object,
  signal: AbortSignal,
  told: (cost: string) => void,
): AsyncGenerator<ChatPiece> {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", [TIMING]: "1" },
    body: JSON.stringify(body),
    signal,
  });
  yield* events<ChatPiece>(response, told);
}

export interface SpeechPiece {
  type: string;
  delta?: string;
  segment?: Segment;
  duration?: number;
  transcription?: Transcript;
}

export async function* transcribe(
  fields: [string, string][],
  file: Blob,
  name: string,
  signal: AbortSignal,
  told: (cost: string) => void,
): AsyncGenerator<SpeechPiece> {
  const form = new FormData();
  for (const [field, text] of fields) form.append(field, text);
  // Behind the fields: what is wrong with them is told before the file is sent.
  form.append("file", file, name);
  const headers = { [TIMING]: "1" };
  const response = await request("v1/audio/transcriptions", { method: "POST", headers, body: form, signal });
  yield* events<SpeechPiece>(response, told);
}

/** Whatever was thrown, as a problem; `null` where the user ended it. */
export function asProblem(error: unknown, signal: AbortSignal): Problem | null {
  if (signal.aborted) return null;
  if (error instanceof Problem) return error;
  return new Problem("The connection to the server was lost.", "Is percept still running? Try again.");
}
