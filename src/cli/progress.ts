/**
 * Progress on the terminal: one bar that redraws itself, or plain lines where
 * nobody watches.
 *
 * @module
 */
import { duration } from "../report/format.ts";

/** Where progress goes: `Deno.stderr`, or a double of it in tests. */
export interface Terminal {
  /** Writes bytes at once. */
  writeSync(bytes: Uint8Array): number;
  /** Whether a person is watching. */
  isTerminal(): boolean;
}

/** Settings of {@linkcode createProgress}. */
export interface ProgressOptions {
  /** @default Deno.stderr */
  readonly terminal?: Terminal;
  /** Columns of the terminal; asked of the console by default. */
  readonly columns?: number;
  /** Milliseconds since some start; `performance.now` by default. */
  readonly now?: () => number;
  /**
   * Seconds between two plain lines.
   *
   * @default 15
   */
  readonly every?: number;
}

/** A progress display. */
export interface Progress {
  /**
   * Shows how far something is; a new name ends the bar before it.
   *
   * @param name What is being done.
   * @param done How much of it is done.
   * @param total All of it.
   * @param unit What is counted, such as `step`.
   */
  update(name: string, done: number, total: number, unit?: string): void;
  /** Writes a line above the bar. */
  line(text: string): void;
  /** Ends the bar. */
  finish(): void;
}

/**
 * Columns of the terminal.
 *
 * @param otherwise Where nothing is shown in one, such as a pipe's.
 * @default otherwise no end
 */
export function terminalColumns(otherwise = Infinity): number {
  try {
    return Deno.stdout.isTerminal() || otherwise !== Infinity
      ? Deno.consoleSize().columns
      : otherwise;
  } catch {
    return otherwise;
  }
}

/** A rate for people: `12 images/s`, or `3.4 s/step` where it is slow. */
export function rate(perSecond: number, unit: string): string {
  if (!(perSecond > 0)) return "";
  return perSecond >= 1
    ? `${perSecond.toFixed(perSecond < 10 ? 1 : 0)} ${unit}s/s`
    : `${(1 / perSecond).toFixed(1)} s/${unit}`;
}

const EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/** A bar of so many characters. */
function bar(share: number, width: number): string {
  const eighths = Math.round(Math.max(0, Math.min(1, share)) * width * 8);
  const text = "█".repeat(Math.floor(eighths / 8)) + EIGHTHS[eighths % 8];
  return text.padEnd(width, "·");
}

/**
 * A line of a bar that fits: the bar shrinks first, then the rate goes, then
 * the bar, then the end of the name. How much is left is what people look for.
 */
function fitted(
  name: string,
  share: number,
  parts: readonly string[],
  room: number,
): string {
  const few = parts.filter((_, i) => i !== 1 || parts.length < 3);
  for (const said of [parts, few]) {
    const text = said.join("  ");
    const left = room - [...name].length - [...text].length - 4;
    if (left >= 4) return `${name}  ${bar(share, Math.min(20, left))}  ${text}`;
  }
  const text = few.join("  ");
  const short = [...name].slice(0, Math.max(0, room - [...text].length - 2));
  return [...`${short.join("")}  ${text}`].slice(0, Math.max(0, room)).join("");
}

/**
 * Makes a progress display.
 *
 * The rate counts from the first update of a name, so that what was found in a
 * cache does not flatter it.
 *
 * @param options Where it is shown.
 *
 * @example
 * ```ts ignore
 * const progress = createProgress();
 * for (let i = 0; i <= 100; i++) progress.update("drawing", i, 100, "image");
 * progress.finish();
 * ```
 */
export function createProgress(options: ProgressOptions = {}): Progress {
  const terminal = options.terminal ?? Deno.stderr;
  const now = options.now ?? (() => performance.now());
  const every = (options.every ?? 15) * 1000;
  const watched = terminal.isTerminal();
  const encoder = new TextEncoder();
  const write = (text: string) => {
    const bytes = encoder.encode(text);
    for (let done = 0; done < bytes.length;) {
      done += terminal.writeSync(bytes.subarray(done));
    }
  };
  const columns = (): number => options.columns ?? terminalColumns(80);
  let current:
    | { name: string; start: number; first: number; shown: number }
    | undefined;
  let drawn = "";
  let ended: string | undefined;

  const draw = (text: string) => {
    if (text === drawn) return;
    write(`\r\x1b[2K${text}`);
    drawn = text;
  };

  const end = () => {
    if (watched && drawn) write("\n");
    drawn = "";
    ended = current?.name;
    current = undefined;
  };

  return {
    update(name, done, total, unit = "step") {
      const time = now();
      const last = done >= total;
      if (last && !current && ended === name) return;
      if (current?.name !== name) {
        end();
        current = { name, start: time, first: done, shown: -Infinity };
      }
      // Ten times a second is all an eye can follow.
      if (time - current.shown < (watched ? 100 : every) && !last) return;
      current.shown = time;
      const seconds = (time - current.start) / 1000;
      const speed = seconds > 0 ? (done - current.first) / seconds : 0;
      const parts = [
        `${done}/${total}`,
        rate(speed, unit),
        last
          ? duration(seconds)
          : speed > 0
          ? `${duration((total - done) / speed)} left`
          : "",
      ].filter((part) => part !== "");
      if (watched) {
        const share = total > 0 ? done / total : 1;
        draw(fitted(name, share, parts, columns() - 1));
        if (last) end();
      } else {
        write(`${name}: ${parts.join(", ")}\n`);
        if (last) end();
      }
    },
    line(text) {
      if (watched && drawn) {
        write("\r\x1b[2K");
        write(`${text}\n${drawn}`);
      } else {
        write(`${text}\n`);
      }
    },
    finish: end,
  };
}
