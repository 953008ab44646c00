// Conversations with pictures.

import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { address, asProblem, type ChatPiece, chat, type Model, type Problem, type Usage } from "./api";
import { Camera, hasCamera } from "./camera";
import { type ChatCall, PICTURE } from "./code";
import { Icon } from "./icons";
import { Markdown } from "./markdown";
import { Announce, CopyAs, Failure, filesOf, ModelPicker, useDrop } from "./parts";
import { fields, type Sampling } from "./settings";

interface Picture {
  /** Its file's name, or one that it can be saved under. */
  name: string;
  file: File;
  url: string;
  /** Whether it came without a file. */
  made: boolean;
}

interface Turn {
  id: number;
  question: string;
  pictures: Picture[];
  answer: string;
  state: "waiting" | "answering" | "done" | "stopped" | "failed";
  problem?: Problem;
  figures?: Figures;
  call?: ChatCall;
}

interface Figures {
  tokens: number;
  prompt: number;
  /** Seconds to the first token. */
  first: number;
  /** Tokens per second after it. */
  speed: number | null;
  cut: boolean;
  /** With its currency, where the server knows. */
  cost?: string;
}

const IMAGES = /^image\//;

function dataUrl(file: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** The messages of a conversation; how pictures are written is `url`'s. */
async function messages(
  turns: Turn[],
  system: string,
  url: (picture: Picture) => string | Promise<string>,
): Promise<object[]> {
  const all: object[] = system.trim() ? [{ role: "system", content: system.trim() }] : [];
  for (const { question, pictures, answer } of turns) {
    const parts: object[] = [];
    for (const picture of pictures) {
      parts.push({ type: "image_url", image_url: { url: await url(picture) } });
    }
    if (question) parts.push({ type: "text", text: question });
    all.push({ role: "user", content: pictures.length > 0 ? parts : question });
    if (answer) all.push({ role: "assistant", content: answer });
  }
  return all;
}

interface Props {
  models: Model[];
  sampling: Sampling;
  active: boolean;
}

export function Chat({ models, sampling, active }: Props) {
  const [model, setModel] = useState("");
  const [turns, setTurns] = useState<Turn[]>([]);
  const [question, setQuestion] = useState("");
  const [pictures, setPictures] = useState<Picture[]>([]);
  const [said, setSaid] = useState("");
  const [shooting, setShooting] = useState(false);
  const abort = useRef<AbortController | null>(null);
  const ids = useRef(0);
  const made = useRef(0);
  const input = useRef<HTMLTextAreaElement>(null);
  const chooser = useRef<HTMLInputElement>(null);
  const camera = useRef<HTMLDialogElement>(null);
  const phone = useRef<HTMLInputElement>(null);

  const chosen = models.some(({ id }) => id === model) ? model : (models[0]?.id ?? "");
  const busy = turns.some(({ state }) => state === "waiting" || state === "answering");

  const add = useCallback((files: File[], without = false) => {
    const added = files.map((file) => {
      const ending = file.type.split("/")[1]?.replace(/\W.*/, "") ?? "png";
      const name = without ? `picture-${++made.current}.${ending}` : file.name;
      return { name, file, url: URL.createObjectURL(file), made: without };
    });
    setPictures((before) => [...before, ...added]);
    setSaid(`${added.map(({ name }) => name).join(", ")} added`);
    input.current?.focus();
  }, []);
  const { over, handlers } = useDrop(IMAGES, add);

  // Pasted anywhere on the page.
  useEffect(() => {
    if (!active) return;
    const paste = (event: ClipboardEvent) => {
      const files = filesOf(event.clipboardData, IMAGES);
      if (files.length === 0) return;
      event.preventDefault();
      add(files, true);
    };
    document.addEventListener("paste", paste);
    return () => document.removeEventListener("paste", paste);
  }, [active, add]);

  const stop = () => abort.current?.abort();

  const change = (id: number, changed: Partial<Turn>) =>
    setTurns((all) => all.map((turn) => (turn.id === id ? { ...turn, ...changed } : turn)));

  const ask = async (question: string, pictures: Picture[], earlier: Turn[]) => {
    const id = ++ids.current;
    const turn: Turn = { id, question, pictures, answer: "", state: "waiting" };
    const shown = earlier.filter(({ answer }) => answer);
    setTurns([...shown, turn]);
    setSaid("Answering");
    const controller = new AbortController();
    abort.current = controller;
    const settings = { model: chosen, ...fields(sampling) };
    const stream = { stream: true, stream_options: { include_usage: true } };
    const all = [...shown, turn];
    let text = "";
    let frame = 0;
    try {
      const named = await messages(all, sampling.system, ({ name }) => PICTURE + name);
      change(id, { call: { kind: "chat", body: { ...settings, messages: named, stream: true } } });
      const sent = await messages(all, sampling.system, ({ file }) => dataUrl(file));
      const meter = new Meter();
      for await (const piece of chat({ ...settings, messages: sent, ...stream }, controller.signal, (cost) =>
        meter.costs(cost),
      )) {
        text += meter.take(piece);
        // Not more often than the screen shows it.
        frame ||= requestAnimationFrame(() => {
          frame = 0;
          change(id, { answer: text, state: "answering" });
        });
      }
      cancelAnimationFrame(frame);
      change(id, { answer: text, state: "done", figures: meter.figures() });
      setSaid(text || "The answer is empty.");
    } catch (error) {
      cancelAnimationFrame(frame);
      const problem = asProblem(error, controller.signal);
      if (problem) change(id, { answer: text, state: "failed", problem });
      else change(id, { answer: text, state: "stopped" });
      setSaid(problem ? "" : "Stopped");
    }
    input.current?.focus();
  };

  const send = () => {
    if (busy || !chosen || (!question.trim() && pictures.length === 0)) return;
    ask(question.trim(), pictures, turns);
    setQuestion("");
    setPictures([]);
  };

  const again = () => {
    const last = turns[turns.length - 1];
    if (last) ask(last.question, last.pictures, turns.slice(0, -1));
  };

  const clear = () => {
    stop();
    for (const picture of [...pictures, ...turns.flatMap((turn) => turn.pictures)]) {
      URL.revokeObjectURL(picture.url);
    }
    setTurns([]);
    setPictures([]);
    setSaid("A new conversation");
    input.current?.focus();
  };

  const sample = async () => {
    const response = await fetch(address("ui/sample.png"));
    add([new File([await response.blob()], "sample.png", { type: "image/png" })]);
    setQuestion("What is in this picture?");
  };

  const shoot = () => {
    setShooting(true);
    camera.current?.showModal();
  };

  const keys = (event: KeyboardEvent) => {
    if (event.key === "Escape" && busy) stop();
  };

  if (models.length === 0) return <None what="that see" example="llava-hf/llava-1.5-7b-hf" />;
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: what can be dropped can be chosen as well
    <div class={over ? "side dropping" : "side"} {...handlers} onKeyDown={keys}>
      <div class="bar">
        <ModelPicker label="Model that answers" models={models} value={chosen} choose={setModel} />
        {turns.length > 0 && (
          <button type="button" class="quiet" onClick={clear}>
            New conversation
          </button>
        )}
      </div>
      {turns.length === 0 ? (
        <div class="welcome">
          <h2>Show it something.</h2>
          <p>
            Drop, paste or photograph a picture, and ask about it. Nothing leaves this server, and nothing of
            it is kept.
          </p>
          <button type="button" class="quiet" onClick={sample}>
            Try a sample picture
          </button>
        </div>
      ) : (
        <Turns turns={turns} again={again} />
      )}
      <div class="dock">
        <form
          class="composer"
          aria-label="Your question"
          onSubmit={(event) => {
            event.preventDefault();
            send();
          }}
        >
          {pictures.length > 0 && (
            <ul class="attached" aria-label="Pictures to send">
              {pictures.map((picture, index) => (
                <li key={picture.url}>
                  <Thumbnail picture={picture} />
                  <button
                    type="button"
                    class="remove"
                    aria-label={`Remove ${picture.name}`}
                    onClick={() => {
                      setPictures(pictures.filter((_, other) => other !== index));
                      URL.revokeObjectURL(picture.url);
                      input.current?.focus();
                    }}
                  >
                    <Icon name="close" />
                  </button>
                </li>
              ))}
            </ul>
          )}
          <textarea
            ref={input}
            rows={1}
            aria-label="Question"
            placeholder="Ask about a picture"
            value={question}
            onInput={(event) => setQuestion(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
              event.preventDefault();
              send();
            }}
          />
          <div class="composer-buttons">
            <button
              type="button"
              class="icon-button"
              aria-label="Choose pictures"
              title="Choose pictures"
              onClick={() => chooser.current?.click()}
            >
              <Icon name="attach" />
            </button>
            <Chooser input={chooser} take={add} multiple />
            <Photograph phone={phone} take={(files) => add(files, true)} shoot={shoot} />
            <span class="hint" aria-hidden="true">
              Enter sends, Shift+Enter is a new line
            </span>
            {busy ? (
              <button
                type="button"
                class="primary round"
                aria-label="Stop the answer"
                title="Stop (Esc)"
                onClick={stop}
              >
                <Icon name="stop" />
              </button>
            ) : (
              <button
                type="submit"
                class="primary round"
                aria-label="Send"
                title="Send (Enter)"
                disabled={!question.trim() && pictures.length === 0}
              >
                <Icon name="send" />
              </button>
            )}
          </div>
        </form>
      </div>
      <Camera
        dialog={camera}
        open={shooting}
        take={(file) => add([file], true)}
        close={() => setShooting(false)}
      />
      <Announce text={said} />
    </div>
  );
}

/** What a stream says about its own speed. */
class Meter {
  private readonly started = performance.now();
  private first = 0;
  private last = 0;
  private usage: Usage | null = null;
  private cut = false;
  private cost: string | undefined;

  costs(cost: string): void {
    this.cost = cost;
  }

  /** The text that a piece adds. */
  take({ choices, usage }: ChatPiece): string {
    if (usage) this.usage = usage;
    const [choice] = choices;
    if (choice?.finish_reason === "length") this.cut = true;
    const text = choice?.delta.content ?? "";
    if (text) {
      this.last = performance.now();
      this.first ||= this.last;
    }
    return text;
  }

  figures(): Figures {
    const tokens = this.usage?.completion_tokens ?? 0;
    const seconds = (this.last - this.first) / 1000;
    return {
      tokens,
      prompt: this.usage?.prompt_tokens ?? 0,
      first: (this.first - this.started) / 1000,
      // Pieces that came all at once say nothing of it.
      speed: tokens > 2 && seconds > 0.01 ? (tokens - 1) / seconds : null,
      cut: this.cut,
      ...(this.cost && { cost: this.cost }),
    };
  }
}

function Turns({ turns, again }: { turns: Turn[]; again: () => void }) {
  const end = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  useEffect(() => {
    const seen = new IntersectionObserver(([entry]) => {
      follows.current = entry?.isIntersecting ?? true;
    });
    if (end.current) seen.observe(end.current);
    return () => seen.disconnect();
  }, []);
  const count = turns.length;
  // A new turn is shown, wherever its reader was.
  useLayoutEffect(() => end.current?.scrollIntoView({ block: "end" }), [count]);
  // Who reads further up is left there.
  useLayoutEffect(() => {
    if (follows.current) end.current?.scrollIntoView({ block: "end" });
  }, [turns]);
  return (
    <div class="turns">
      {turns.map((turn, index) => (
        <article
          key={turn.id}
          class="turn"
          aria-busy={turn.state === "waiting" || turn.state === "answering"}
        >
          <div class="question">
            <h2 class="unseen">You</h2>
            {turn.pictures.length > 0 && (
              <div class="shown">
                {turn.pictures.map((picture) => (
                  <Thumbnail key={picture.url} picture={picture} />
                ))}
              </div>
            )}
            {turn.question && <p>{turn.question}</p>}
          </div>
          <div class="answer">
            <h2 class="unseen">Answer</h2>
            {turn.state === "waiting" && (
              <p class="thinking">
                <span class="unseen">Waiting for the first word</span>
              </p>
            )}
            {turn.answer && <Markdown text={turn.answer} />}
            {turn.state === "done" && !turn.answer && <p class="note">The answer is empty.</p>}
            {turn.state === "stopped" && <p class="note">Stopped.</p>}
            {turn.figures?.cut && <p class="note">The answer reached its longest length.</p>}
            {turn.problem && (
              <Failure problem={turn.problem} retry={index === turns.length - 1 ? again : undefined} />
            )}
            <Foot turn={turn} />
          </div>
        </article>
      ))}
      <div ref={end} class="end" />
    </div>
  );
}

function Foot({ turn: { state, figures, call, pictures } }: { turn: Turn }) {
  if (state === "waiting" || state === "answering") return null;
  const saved = pictures.filter(({ made }) => made).map(({ name }) => name);
  const note = saved.length > 0 ? `It reads ${saved.join(", ")}: save by a click on the picture.` : undefined;
  return (
    <div class="foot">
      {figures && figures.tokens > 0 && (
        <dl class="figures">
          <Figure name="answer" value={`${figures.tokens} ${figures.tokens === 1 ? "token" : "tokens"}`} />
          <Figure name="first token" value={`${figures.first.toFixed(2)} s`} />
          {figures.speed !== null && <Figure name="then" value={`${figures.speed.toFixed(1)} tokens/s`} />}
          <Figure name="prompt" value={`${figures.prompt} tokens`} />
          {figures.cost && <Figure name="cost" value={figures.cost} />}
        </dl>
      )}
      {call && <CopyAs call={call} note={note} />}
    </div>
  );
}

export function Figure({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

/** A picture that can be saved; where the browser cannot show it, its name. */
function Thumbnail({ picture: { name, url } }: { picture: Picture }) {
  const [shown, setShown] = useState(true);
  return (
    <a href={url} download={name} title={`Save ${name}`} class="thumbnail">
      {shown ? (
        <img src={url} alt={name} onError={() => setShown(false)} />
      ) : (
        <span class="file-name">{name}</span>
      )}
    </a>
  );
}

interface ChooserProps {
  input: { current: HTMLInputElement | null };
  take: (files: File[]) => void;
  multiple?: boolean;
  capture?: "environment";
}

/** The browser's own dialog, opened by a button. */
function Chooser({ input, take, multiple = false, capture }: ChooserProps) {
  return (
    <input
      ref={input}
      class="unseen"
      type="file"
      accept="image/*"
      tabIndex={-1}
      aria-hidden="true"
      multiple={multiple}
      {...(capture ? { capture } : {})}
      onChange={(event) => {
        const files = [...(event.currentTarget.files ?? [])];
        event.currentTarget.value = "";
        if (files.length > 0) take(files);
      }}
    />
  );
}

interface PhotographProps {
  phone: { current: HTMLInputElement | null };
  take: (files: File[]) => void;
  shoot: () => void;
}

function Photograph({ phone, take, shoot }: PhotographProps) {
  // A phone's own camera application is better than anything here; it needs no permission either.
  const own = !hasCamera() || matchMedia("(pointer: coarse)").matches;
  return (
    <>
      <button
        type="button"
        class="icon-button"
        aria-label="Take a photograph"
        title="Take a photograph"
        onClick={() => (own ? phone.current?.click() : shoot())}
      >
        <Icon name="camera" />
      </button>
      <Chooser input={phone} take={take} capture="environment" />
    </>
  );
}

/** Where no model does it. */
export function None({ what, example }: { what: string; example: string }) {
  return (
    <div class="welcome">
      <h2>No models {what} are served here.</h2>
      <p>
        Start one beside the others: <code>percept serve {example}</code>
      </p>
    </div>
  );
}
