// What can be set: kept while the page is open, but for the key (this tab) and the colours (this browser).

import type { RefObject } from "preact";
import { useState } from "preact/hooks";
import { apiKey } from "./api";
import { Icon } from "./icons";

/** Numbers as they were typed; an empty one is left to the model. */
export interface Sampling {
  system: string;
  temperature: string;
  top_p: string;
  max_tokens: string;
  seed: string;
}

export const DEFAULTS: Sampling = { system: "", temperature: "", top_p: "", max_tokens: "", seed: "" };

/** The fields of a request that settings make. */
export function fields({ temperature, top_p, max_tokens, seed }: Sampling): Record<string, number> {
  const typed = { temperature, top_p, max_completion_tokens: max_tokens, seed };
  const set = Object.entries(typed).filter(([, text]) => text.trim() !== "");
  return Object.fromEntries(set.map(([name, text]) => [name, Number(text)]));
}

type Theme = "auto" | "light" | "dark";
/** Closed by a click beside it, too. */
const LIGHT = { closedby: "any" } as const;
const THEME = "percept-theme";

export function savedTheme(): Theme {
  const saved = localStorage.getItem(THEME);
  return saved === "light" || saved === "dark" ? saved : "auto";
}

export function applyTheme(theme: Theme): void {
  document.documentElement.dataset.theme = theme;
  if (theme === "auto") localStorage.removeItem(THEME);
  else localStorage.setItem(THEME, theme);
}

interface Props {
  dialog: RefObject<HTMLDialogElement | null>;
  sampling: Sampling;
  change: (sampling: Sampling) => void;
  keyChanged: () => void;
}

const NUMBERS = [
  [
    "temperature",
    "Temperature",
    "0 always takes the most probable word; up to 2",
    { min: 0, max: 2, step: 0.1 },
  ],
  ["top_p", "Top p", "Only the most probable words, up to this share", { min: 0, max: 1, step: 0.05 }],
  ["max_tokens", "Longest answer", "In tokens", { min: 1, step: 1 }],
  ["seed", "Seed", "The same seed gives the same answer", { step: 1 }],
] as const;

export function Settings({ dialog, sampling, change, keyChanged }: Props) {
  const [theme, setTheme] = useState(savedTheme);
  const [key, setKey] = useState(apiKey.get);
  const close = () => dialog.current?.close();
  const set = (name: keyof Sampling) => (event: Event) =>
    change({ ...sampling, [name]: (event.currentTarget as HTMLInputElement).value });
  return (
    <dialog ref={dialog} class="sheet" aria-labelledby="settings-title" {...LIGHT}>
      <form method="dialog" onSubmit={close}>
        <header class="sheet-header">
          <h2 id="settings-title">Settings</h2>
          <button type="button" class="icon-button" aria-label="Close the settings" onClick={close}>
            <Icon name="close" />
          </button>
        </header>
        <section aria-labelledby="settings-answers">
          <h3 id="settings-answers">Answers</h3>
          <label class="field">
            <span>System prompt</span>
            <textarea rows={3} value={sampling.system} onInput={set("system")} />
          </label>
          <div class="field-grid">
            {NUMBERS.map(([name, label, hint, limits]) => (
              <label class="field" key={name}>
                <span>{label}</span>
                <input
                  type="number"
                  inputMode="decimal"
                  placeholder="the model’s own"
                  aria-describedby={`hint-${name}`}
                  value={sampling[name]}
                  onInput={set(name)}
                  {...limits}
                />
                <small id={`hint-${name}`}>{hint}</small>
              </label>
            ))}
          </div>
          <button type="button" class="quiet" onClick={() => change(DEFAULTS)}>
            Back to the model’s own
          </button>
        </section>
        <section aria-labelledby="settings-server">
          <h3 id="settings-server">Server</h3>
          <label class="field">
            <span>API key</span>
            <input
              type="password"
              autocomplete="off"
              spellcheck={false}
              value={key}
              aria-describedby="hint-key"
              onInput={(event) => {
                setKey(event.currentTarget.value);
                apiKey.set(event.currentTarget.value.trim());
              }}
              onChange={keyChanged}
            />
            <small id="hint-key">Only where the server wants one. Forgotten when this tab is closed.</small>
          </label>
        </section>
        <fieldset class="choices">
          <legend>Colours</legend>
          {(["auto", "light", "dark"] as const).map((value) => (
            <label key={value}>
              <input
                type="radio"
                name="theme"
                value={value}
                checked={theme === value}
                onChange={() => {
                  setTheme(value);
                  applyTheme(value);
                }}
              />
              <span>{{ auto: "As the system", light: "Light", dark: "Dark" }[value]}</span>
            </label>
          ))}
        </fieldset>
      </form>
    </dialog>
  );
}
