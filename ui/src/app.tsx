// The playground: what the models see and hear, tried in a browser.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { asProblem, type Health, health, type Model, models, type Problem, suitable } from "./api";
import { Chat } from "./chat";
import { Icon } from "./icons";
import { Failure } from "./parts";
import { DEFAULTS, type Sampling, Settings } from "./settings";
import { Speech } from "./speech";

const SIDES = { chat: "See", speech: "Hear" } as const;
type Side = keyof typeof SIDES;

/** Milliseconds between two questions about the server's load, while somebody looks. */
const LOAD_EVERY = 1000;

export function App() {
  const [side, setSide] = useState<Side>(location.hash === "#hear" ? "speech" : "chat");
  const [all, setAll] = useState<Model[] | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [sampling, setSampling] = useState<Sampling>(DEFAULTS);
  const settings = useRef<HTMLDialogElement>(null);

  const load = useCallback(async () => {
    setProblem(null);
    try {
      setAll(await models());
    } catch (error) {
      const problem = asProblem(error, new AbortController().signal);
      setProblem(problem);
      // It is loading: this passes.
      if (problem?.status === 503) setTimeout(load, 2000);
    }
  }, []);
  useEffect(() => {
    load();
  }, [load]);

  const show = (side: Side) => {
    setSide(side);
    history.replaceState(null, "", side === "speech" ? "#hear" : "#see");
  };
  const keys = (event: KeyboardEvent) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = side === "chat" ? "speech" : "chat";
    show(other);
    document.getElementById(`tab-${other}`)?.focus();
  };

  return (
    <>
      <header class="top">
        <h1>
          <img src="ui/icon.svg" alt="" width="24" height="24" /> percept
        </h1>
        <div class="tabs" role="tablist" aria-label="What to try" onKeyDown={keys}>
          {(Object.keys(SIDES) as Side[]).map((name) => (
            <button
              key={name}
              type="button"
              role="tab"
              id={`tab-${name}`}
              aria-controls={`panel-${name}`}
              aria-selected={side === name}
              tabIndex={side === name ? 0 : -1}
              onClick={() => show(name)}
            >
              {SIDES[name]}
            </button>
          ))}
        </div>
        <div class="top-right">
          <Load />
          <a class="top-link" href="docs">
            API
          </a>
          <button
            type="button"
            class="icon-button"
            aria-label="Settings"
            title="Settings"
            onClick={() => settings.current?.showModal()}
          >
            <Icon name="settings" />
          </button>
        </div>
      </header>
      <main>
        {problem && (
          <div class="side">
            <Failure problem={problem} retry={load} />
          </div>
        )}
        {(Object.keys(SIDES) as Side[]).map((name) => (
          <div
            key={name}
            role="tabpanel"
            id={`panel-${name}`}
            class="panel"
            aria-labelledby={`tab-${name}`}
            hidden={side !== name}
          >
            {all && name === "chat" && (
              <Chat
                models={suitable(all, "image-text-to-text")}
                sampling={sampling}
                active={side === "chat"}
              />
            )}
            {all && name === "speech" && <Speech models={suitable(all, "automatic-speech-recognition")} />}
          </div>
        ))}
      </main>
      <Settings dialog={settings} sampling={sampling} change={setSampling} keyChanged={load} />
    </>
  );
}

/** What the server is doing, asked while the page is seen. */
function Load() {
  const [state, setState] = useState<Health | null>(null);
  const [lost, setLost] = useState(false);
  const [watts, setWatts] = useState<number | null>(null);
  const energy = useRef<{ joules: number; at: number } | null>(null);
  useEffect(() => {
    const ask = async () => {
      if (document.hidden) return;
      try {
        const found = await health();
        setState(found);
        setLost(false);
        const [before, now] = [energy.current, performance.now()];
        if (found.energy !== undefined) {
          energy.current = { joules: found.energy, at: now };
          if (before && now > before.at)
            setWatts((1000 * (found.energy - before.joules)) / (now - before.at));
        }
      } catch {
        setLost(true);
      }
    };
    ask();
    const timer = setInterval(ask, LOAD_EVERY);
    return () => clearInterval(timer);
  }, []);
  if (!state && !lost) return null;
  const sum = (of: (model: Health["models"][number]) => number) =>
    (state?.models ?? []).reduce((total, model) => total + of(model), 0);
  const [running, waiting] = [sum((model) => model.running), sum((model) => model.waiting)];
  const busy = running + waiting > 0;
  const text = lost
    ? "not reachable"
    : state?.status !== "ok"
      ? state?.status
      : busy
        ? `${running} running${waiting > 0 ? `, ${waiting} waiting` : ""}`
        : "idle";
  const models = (state?.models ?? [])
    .map(
      ({ id, pages_used, pages_total }) => `${id}: ${pages_used} of ${pages_total} pages of its cache in use`,
    )
    .join("\n");
  const used =
    state?.energy === undefined ? "" : `\n${(state.energy / 1000).toFixed(1)} kJ since the server began`;
  return (
    <span
      class={`load ${lost || state?.status === "failed" ? "bad" : busy ? "busy" : ""}`}
      title={models + used}
      data-running={running}
      data-waiting={waiting}
    >
      <span class="unseen">Server: </span>
      {text}
      {watts !== null && !lost && <span class="watts">{`, ${watts.toFixed(0)} W`}</span>}
    </span>
  );
}
