import { main } from "../../src/cli/main.ts";

/** What a command printed, and its exit code. */
export interface Said {
  /** Exit code. */
  code: number;
  /** Lines on standard output. */
  out: string;
  /** Lines on standard error. */
  error: string;
}

/** Runs the command line in place; what it prints is kept. */
export async function said(...args: string[]): Promise<Said> {
  const { log, error } = console;
  const lines = { out: [] as string[], error: [] as string[] };
  console.log = (...parts) => void lines.out.push(parts.join(" "));
  console.error = (...parts) => void lines.error.push(parts.join(" "));
  try {
    const code = await main(args);
    return { code, out: lines.out.join("\n"), error: lines.error.join("\n") };
  } finally {
    Object.assign(console, { log, error });
  }
}
