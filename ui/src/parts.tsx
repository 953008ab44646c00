// Small parts that both sides of the page have.

import { useEffect, useRef, useState } from "preact/hooks";
import type { Model, Problem } from "./api";
import { type Call, code, LANGUAGES, type Language } from "./code";
import { Icon } from "./icons";

/** Only for screen readers; what changes in it is read aloud. */
export function Announce({ text }: { text: string }) {
  return (
    <div class="unseen" role="status" aria-live="polite">
      {text}
    </div>
  );
}

export function Failure({ problem, retry }: { problem: Problem; retry?: (() => void) | undefined }) {
  return (
    <div class="failure" role="alert">
      <p class="failure-message">{problem.message}</p>
      <p>{problem.advice}</p>
      {retry && (
        <button type="button" class="quiet" onClick={retry}>
          <Icon name="again" /> Try again
        </button>
      )}
    </div>
  );
}

interface PickerProps {
  label: string;
  models: Model[];
  value: string;
  choose: (id: string) => void;
}

export function ModelPicker({ label, models, value, choose }: PickerProps) {
  return (
    <label class="picker">
      <span class="unseen">{label}</span>
      <select value={value} onChange={(event) => choose(event.currentTarget.value)}>
        {models.map(({ id }) => (
          <option key={id} value={id}>
            {id}
          </option>
        ))}
      </select>
    </label>
  );
}

export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without TLS, and not on this machine, a browser has the old way only.
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function CopyAs({ call, note }: { call: Call; note?: string | undefined }) {
  const [copied, setCopied] = useState<Language | null>(null);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  const onClick = async (language: Language) => {
    await copy(code(call, language));
    setCopied(language);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setCopied(null), 2500);
  };
  return (
    <div class="copy-as">
      {/* biome-ignore lint/a11y/useSemanticElements: a fieldset is for what is filled in */}
      <span role="group" aria-label="Copy this request as code" title={note}>
        <span aria-hidden="true">Copy as</span>
        {LANGUAGES.map((language) => (
          <button key={language} type="button" class="link" onClick={() => onClick(language)}>
            {copied === language ? "Copied" : language}
            <span class="unseen">, copy this request</span>
          </button>
        ))}
      </span>
      <Announce text={copied ? `The request is copied as ${copied}.${note ? ` ${note}` : ""}` : ""} />
    </div>
  );
}

/** Saves a text as a file. */
export function download(text: string, name: string): void {
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** The files of a drop or a paste. */
export const filesOf = (transfer: DataTransfer | null, kind: RegExp): File[] =>
  [...(transfer?.files ?? [])].filter(
    ({ type, name }) => kind.test(type) || (type === "" && /\./.test(name)),
  );

/** Whether something that can be dropped here is over an element. */
export function useDrop(kind: RegExp, take: (files: File[]) => void) {
  const [over, setOver] = useState(false);
  const handlers = {
    onDragOver: (event: DragEvent) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      setOver(true);
    },
    onDragLeave: (event: DragEvent) => {
      if (!(event.currentTarget as Element).contains(event.relatedTarget as Node | null)) setOver(false);
    },
    onDrop: (event: DragEvent) => {
      event.preventDefault();
      setOver(false);
      const files = filesOf(event.dataTransfer, kind);
      if (files.length > 0) take(files);
    },
  };
  return { over, handlers };
}
