// A transcript's segments as files that players know.

import type { Segment } from "./api";

/** `0:03.2`, or `1:02:03.2`. */
export function clock(seconds: number): string {
  const tenths = Math.round(seconds * 10);
  const two = (number: number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(tenths / 36_000), Math.floor(tenths / 600) % 60];
  const rest = `${two(Math.floor(tenths / 10) % 60)}.${tenths % 10}`;
  return hours > 0 ? `${hours}:${two(minutes)}:${rest}` : `${minutes}:${rest}`;
}

function stamp(seconds: number, point: "," | "."): string {
  const ms = Math.round(seconds * 1000);
  const part = (number: number, digits: number) => String(number).padStart(digits, "0");
  const [hours, minutes] = [Math.floor(ms / 3_600_000), Math.floor(ms / 60_000) % 60];
  return `${part(hours, 2)}:${part(minutes, 2)}:${part(Math.floor(ms / 1000) % 60, 2)}${point}${part(ms % 1000, 3)}`;
}

/** An arrow in a text would pass for a line of times. */
const plain = (text: string) => text.trim().replaceAll("-->", "->");

export const FORMATS = {
  srt: (segments: Segment[]) =>
    segments
      .map(
        ({ start, end, text }, index) =>
          `${index + 1}\n${stamp(start, ",")} --> ${stamp(end, ",")}\n${plain(text)}\n\n`,
      )
      .join(""),
  vtt: (segments: Segment[]) =>
    `WEBVTT\n\n${segments.map(({ start, end, text }) => `${stamp(start, ".")} --> ${stamp(end, ".")}\n${plain(text)}\n\n`).join("")}`,
  txt: (segments: Segment[]) => segments.map(({ text }) => `${text.trim()}\n`).join(""),
} as const;

export type Format = keyof typeof FORMATS;
