/**
 * What the developer tools share: the repository's files, and this same deno run
 * again, so that no `deno` needs to be on the PATH.
 *
 * @module
 */

/** The repository's folder, without a final slash. */
export const root: string = new URL("../..", import.meta.url).pathname
  .replace(/\/$/, "");

/**
 * Makes a deno that a test starts compute on one core, as the test does; see
 * one_processor.ts.
 */
export const ON_ONE_CORE = `--preload=${root}/tests/tools/one_processor.ts`;

/**
 * Most memory that a process has had, in bytes; Linux only.
 *
 * @param process Its number.
 */
export async function peakMemory(
  process: number | "self" = "self",
): Promise<number> {
  const status = await Deno.readTextFile(`/proc/${process}/status`);
  return 1024 * Number(/VmHWM:\s+(\d+)/.exec(status)?.[1]);
}

/** How a command ended. */
export interface Ended {
  /** Its exit code. */
  code: number;
  /** Standard output, empty if it went to the terminal. */
  stdout: string;
  /** Standard error, empty if it went to the terminal. */
  stderr: string;
}

/** Runs deno and returns what it wrote. */
export async function runDeno(
  args: readonly string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
): Promise<Ended> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [...args],
    cwd: options.cwd ?? root,
    env: { NO_COLOR: "1", ...options.env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
  const { code, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

/** Runs deno with the terminal as its own and returns the exit code. */
export async function denoInTerminal(
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<number> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [...args],
    cwd: root,
    env,
    stdin: "null",
    stdout: "inherit",
    stderr: "inherit",
  });
  return (await child.output()).code;
}

/** Whether the repository has this file or folder. */
export async function exists(path: string): Promise<boolean> {
  return await Deno.stat(`${root}/${path}`).then(() => true, () => false);
}

/**
 * Code blocks of README, without the indentation of a list.
 *
 * @param language What the blocks are in.
 */
export async function readmeBlocks(language: string): Promise<string[]> {
  const readme = await Deno.readTextFile(`${root}/README.md`);
  const found = readme.matchAll(
    new RegExp(`^( *)\`\`\`${language}\\n([^]*?)^ *\`\`\`$`, "gm"),
  );
  return [...found].map(([, indent, text]) =>
    text.replaceAll(new RegExp(`^${indent}`, "gm"), "")
  );
}

/** All files below a folder with an ending; none if there is no folder. */
export async function listFiles(
  folder: string,
  ending: string,
): Promise<string[]> {
  if (!await exists(folder)) return [];
  const files: string[] = [];
  for await (const entry of Deno.readDir(`${root}/${folder}`)) {
    if (entry.name.startsWith(".")) continue;
    const path = folder === "." ? entry.name : `${folder}/${entry.name}`;
    if (entry.isDirectory) files.push(...await listFiles(path, ending));
    else if (path.endsWith(ending)) files.push(path);
  }
  return files.sort();
}
