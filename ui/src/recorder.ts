// The microphone: what it hears, and how loud that is.

export interface Recording {
  /** Ends it; what was recorded. */
  stop: () => Promise<File>;
  /** Ends it for nothing. */
  cancel: () => void;
  /** How loud it is now, 0 to 1. */
  level: () => number;
}

/** What browsers record, in the order of preference. */
const TYPES: [string, string][] = [
  ["audio/webm;codecs=opus", "webm"],
  ["audio/ogg;codecs=opus", "ogg"],
  ["audio/mp4", "m4a"],
];

export const canRecord = (): boolean =>
  typeof MediaRecorder !== "undefined" && navigator.mediaDevices?.getUserMedia !== undefined;

export async function record(): Promise<Recording> {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const [type, ending] = TYPES.find(([type]) => MediaRecorder.isTypeSupported(type)) ?? ["", "webm"];
  const recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
  const pieces: Blob[] = [];
  recorder.addEventListener("dataavailable", ({ data }) => pieces.push(data));
  recorder.start(250);

  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 1024 });
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const level = () => {
    analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    // From -60 dB, which is silence, to 0 dB.
    return Math.min(1, Math.max(0, 1 + (10 * Math.log10(power + 1e-12)) / 60));
  };

  const release = () => {
    for (const track of stream.getTracks()) track.stop();
    context.close();
  };
  return {
    level,
    cancel: () => {
      recorder.stop();
      release();
    },
    stop: () =>
      new Promise((resolve) => {
        recorder.addEventListener("stop", () => {
          release();
          resolve(new File(pieces, `recording.${ending}`, { type: recorder.mimeType }));
        });
        recorder.stop();
      }),
  };
}

/** Why a camera or a microphone is not there, in words for its user. */
export function refused(error: unknown, what: string): string {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError")
    return `The browser does not let this page use the ${what}. Allow it beside the address.`;
  if (name === "NotFoundError") return `There is no ${what}.`;
  return `The ${what} cannot be used: ${error instanceof Error ? error.message : "unknown reason"}`;
}
