// Recordings to text.

import { useEffect, useRef, useState } from "preact/hooks";
import { address, asProblem, type Model, type Problem, type Segment, transcribe } from "./api";
import { Figure, None } from "./chat";
import type { SpeechCall } from "./code";
import { Icon } from "./icons";
import { Announce, CopyAs, download, Failure, ModelPicker, useDrop } from "./parts";
import { canRecord, type Recording, record, refused } from "./recorder";
import { clock, FORMATS, type Format } from "./subtitles";

interface Source {
  file: File;
  url: string;
  made: boolean;
}

interface Options {
  language: string;
  translate: boolean;
  words: boolean;
}

interface Result {
  state: "working" | "done" | "stopped" | "failed";
  segments: Segment[];
  duration: number;
  language: string;
  /** Seconds that it took. */
  took: number;
  /** With its currency, where the server knows. */
  cost?: string;
  call: SpeechCall;
  problem?: Problem;
}

/** Recordings, and films with sound. */
const SOUNDS = /^(audio|video)\//;

function requestFields(model: string, { language, translate, words }: Options): [string, string][] {
  const fields: [string, string][] = [
    ["model", model],
    ["response_format", "verbose_json"],
    ["stream", "true"],
  ];
  if (language.trim()) fields.push(["language", language.trim()]);
  if (translate) fields.push(["task", "translate"]);
  if (words) fields.push(["word_timestamps", "true"]);
  return fields;
}

export function Speech({ models }: { models: Model[] }) {
  const [model, setModel] = useState("");
  const [source, setSource] = useState<Source | null>(null);
  const [result, setResult] = useState<Result | null>(null);
  const [options, setOptions] = useState<Options>({ language: "", translate: false, words: false });
  const [recording, setRecording] = useState<Recording | null>(null);
  const [trouble, setTrouble] = useState("");
  const [said, setSaid] = useState("");
  const abort = useRef<AbortController | null>(null);
  const chooser = useRef<HTMLInputElement>(null);
  const player = useRef<HTMLAudioElement>(null);

  const chosen = models.some(({ id }) => id === model) ? model : (models[0]?.id ?? "");
  const working = result?.state === "working";

  const hear = async (next: Source) => {
    abort.current?.abort();
    const controller = new AbortController();
    abort.current = controller;
    const fields = requestFields(chosen, options);
    const call: SpeechCall = { kind: "speech", fields, file: next.file.name };
    const started = performance.now();
    let now: Result = { state: "working", segments: [], duration: 0, language: "", took: 0, call };
    const show = (changed: Partial<Result>) => {
      now = { ...now, ...changed, took: (performance.now() - started) / 1000 };
      if (abort.current === controller) setResult(now);
    };
    show({});
    setTrouble("");
    setSaid("Listening");
    try {
      const told = (cost: string) => show({ cost });
      for await (const piece of transcribe(fields, next.file, next.file.name, controller.signal, told)) {
        if (piece.segment) {
          show({ segments: [...now.segments, piece.segment], duration: piece.duration ?? now.duration });
        }
        if (piece.transcription) {
          const { segments, duration, language } = piece.transcription;
          show({ segments: segments ?? now.segments, duration, language });
        }
      }
      show({ state: "done" });
      setSaid(now.segments.map(({ text }) => text.trim()).join(" ") || "No speech was heard.");
    } catch (error) {
      const problem = asProblem(error, controller.signal);
      show(problem ? { state: "failed", problem } : { state: "stopped" });
      setSaid(problem ? "" : "Stopped");
    }
  };

  const take = (file: File, made = false) => {
    if (source) URL.revokeObjectURL(source.url);
    const next = { file, url: URL.createObjectURL(file), made };
    setSource(next);
    hear(next);
  };
  const { over, handlers } = useDrop(SOUNDS, ([file]) => file && take(file));

  const listen = async () => {
    setTrouble("");
    if (!canRecord()) {
      return setTrouble(
        "Browsers let a page use the microphone on this machine or over https only. A recording can be dropped here.",
      );
    }
    try {
      setRecording(await record());
      setSaid("Recording");
    } catch (error) {
      setTrouble(refused(error, "microphone"));
    }
  };
  const finish = async () => {
    const file = await recording?.stop();
    setRecording(null);
    if (file) take(file, true);
  };

  const sample = async () => {
    const response = await fetch(address("ui/sample.wav"));
    take(new File([await response.blob()], "sample.wav", { type: "audio/wav" }));
  };

  const seek = (seconds: number) => {
    if (!player.current) return;
    player.current.currentTime = seconds;
    player.current.play().catch(() => {});
  };

  if (models.length === 0) return <None what="that hear" example="openai/whisper-small" />;
  return (
    <div class={over ? "side dropping" : "side"} {...handlers}>
      <div class="bar">
        <ModelPicker label="Model that listens" models={models} value={chosen} choose={setModel} />
      </div>
      {!source && (
        <div class="welcome">
          <h2>Let it listen.</h2>
          <p>
            Record your voice or drop a recording: the text comes with times, and as subtitles if you like.
          </p>
        </div>
      )}
      <div class="recorder">
        {recording ? (
          <>
            <button type="button" class="primary large" onClick={finish}>
              <Icon name="stop" /> Stop and transcribe
            </button>
            <Level recording={recording} />
            <button
              type="button"
              class="quiet"
              onClick={() => {
                recording.cancel();
                setRecording(null);
                setSaid("Nothing was recorded");
              }}
            >
              Cancel
            </button>
          </>
        ) : (
          <>
            <button type="button" class="primary large" onClick={listen} disabled={working}>
              <Icon name="microphone" /> Record
            </button>
            <button type="button" class="quiet large" onClick={() => chooser.current?.click()}>
              <Icon name="file" /> Choose a recording
            </button>
            {!source && (
              <button type="button" class="quiet large" onClick={sample}>
                Try a sample
              </button>
            )}
          </>
        )}
        <input
          ref={chooser}
          class="unseen"
          type="file"
          accept="audio/*,video/*"
          tabIndex={-1}
          aria-hidden="true"
          onChange={(event) => {
            const file = event.currentTarget.files?.[0];
            event.currentTarget.value = "";
            if (file) take(file);
          }}
        />
      </div>
      <SpeechOptions options={options} change={setOptions} />
      {trouble && (
        <p class="failure" role="alert">
          {trouble}
        </p>
      )}
      {source && (
        <section class="heard" aria-label="Transcript">
          <h2 class="heard-name">{source.file.name}</h2>
          {/* biome-ignore lint/a11y/useMediaCaption: its text stands below */}
          <audio ref={player} src={source.url} controls preload="metadata" />
          {result && (
            <Heard
              result={result}
              player={player}
              seek={seek}
              again={() => hear(source)}
              stop={() => abort.current?.abort()}
            />
          )}
          {result?.state === "done" && <Results result={result} source={source} />}
        </section>
      )}
      <Announce text={said} />
    </div>
  );
}

function SpeechOptions({ options, change }: { options: Options; change: (options: Options) => void }) {
  return (
    <details class="options">
      <summary>Options</summary>
      <div class="options-row">
        <label class="field">
          <span>Language</span>
          <input
            type="text"
            placeholder="detected"
            autocomplete="off"
            value={options.language}
            onInput={(event) => change({ ...options, language: event.currentTarget.value })}
          />
        </label>
        <label class="switch">
          <input
            type="checkbox"
            checked={options.translate}
            onChange={(event) => change({ ...options, translate: event.currentTarget.checked })}
          />
          <span>Write it in English</span>
        </label>
        <label class="switch">
          <input
            type="checkbox"
            checked={options.words}
            onChange={(event) => change({ ...options, words: event.currentTarget.checked })}
          />
          <span>Times of words</span>
        </label>
      </div>
    </details>
  );
}

/** How loud it is, as a row of bars. */
function Level({ recording }: { recording: Recording }) {
  const bars = 24;
  const row = useRef<HTMLDivElement>(null);
  const meter = useRef<HTMLMeterElement>(null);
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    let frame = 0;
    const started = performance.now();
    const draw = () => {
      const level = recording.level() * bars;
      for (const [index, bar] of [...(row.current?.children ?? [])].entries()) {
        bar.classList.toggle("loud", index < level);
      }
      if (meter.current) meter.current.value = level / bars;
      setSeconds(Math.floor((performance.now() - started) / 1000));
      frame = requestAnimationFrame(draw);
    };
    frame = requestAnimationFrame(draw);
    return () => cancelAnimationFrame(frame);
  }, [recording]);
  return (
    <>
      <div ref={row} class="level" aria-hidden="true">
        {Array.from({ length: bars }, (_, index) => (
          <span key={index} />
        ))}
      </div>
      <meter ref={meter} class="unseen" aria-label="Level of the microphone" min={0} max={1} value={0} />
      <span class="note">{seconds} s</span>
    </>
  );
}

interface HeardProps {
  result: Result;
  player: { current: HTMLAudioElement | null };
  seek: (seconds: number) => void;
  again: () => void;
  stop: () => void;
}

function Heard({ result, player, seek, again, stop }: HeardProps) {
  const [time, setTime] = useState(-1);
  useEffect(() => {
    const audio = player.current;
    const move = () => setTime(audio && !audio.paused ? audio.currentTime : -1);
    for (const event of ["timeupdate", "pause"]) audio?.addEventListener(event, move);
    return () => {
      for (const event of ["timeupdate", "pause"]) audio?.removeEventListener(event, move);
    };
  }, [player]);
  const { state, segments, duration, problem } = result;
  const reached = segments[segments.length - 1]?.end ?? 0;
  return (
    <>
      {state === "working" && (
        <div class="progress">
          <progress aria-label="Heard so far" {...(duration > 0 ? { value: reached, max: duration } : {})} />
          <button type="button" class="quiet" onClick={stop}>
            Stop
          </button>
        </div>
      )}
      <ol class="segments">
        {segments.map((segment) => (
          <li
            key={segment.id}
            aria-current={time >= segment.start && time < segment.end ? "true" : undefined}
          >
            <button
              type="button"
              class="time"
              aria-label={`Play from ${clock(segment.start)}`}
              onClick={() => seek(segment.start)}
            >
              {clock(segment.start)}
            </button>
            <p>
              {segment.words
                ? segment.words.map(({ word, start }, index) => (
                    <button
                      key={index}
                      type="button"
                      class="word"
                      title={clock(start)}
                      onClick={() => seek(start)}
                    >
                      {word}
                    </button>
                  ))
                : segment.text.trim()}
            </p>
          </li>
        ))}
      </ol>
      {state === "done" && segments.length === 0 && <p class="note">No speech was heard.</p>}
      {state === "stopped" && <p class="note">Stopped.</p>}
      {problem && <Failure problem={problem} retry={again} />}
      {(state === "done" || state === "stopped") && (
        <button type="button" class="quiet" onClick={again}>
          <Icon name="again" /> Transcribe again
        </button>
      )}
    </>
  );
}

function Results({
  result: { segments, duration, language, took, cost, call },
  source,
}: {
  result: Result;
  source: Source;
}) {
  const stem = source.file.name.replace(/\.[^.]*$/, "");
  const note = source.made ? `It reads ${source.file.name}: save the recording under that name.` : undefined;
  return (
    <div class="foot">
      <dl class="figures">
        <Figure name="sound" value={`${duration.toFixed(1)} s`} />
        <Figure name="took" value={`${took.toFixed(2)} s`} />
        <Figure name="speed" value={`${(duration / took).toFixed(1)} × real time`} />
        <Figure name="language" value={language} />
        {cost && <Figure name="cost" value={cost} />}
      </dl>
      <div class="copy-as">
        {/* biome-ignore lint/a11y/useSemanticElements: a fieldset is for what is filled in */}
        <span role="group" aria-label="Save the transcript">
          <span aria-hidden="true">Save as</span>
          {(Object.keys(FORMATS) as Format[]).map((format) => (
            <button
              key={format}
              type="button"
              class="link"
              onClick={() => download(FORMATS[format](segments), `${stem}.${format}`)}
            >
              {format}
            </button>
          ))}
          {source.made && (
            <a class="link" href={source.url} download={source.file.name}>
              recording
            </a>
          )}
        </span>
      </div>
      <CopyAs call={call} note={note} />
    </div>
  );
}
