/**
 * A real Redis for tests: loopback only, a free port, nothing on the disk but a
 * temporary folder.
 *
 * @module
 */

/** A running Redis. */
export interface RedisServer extends AsyncDisposable {
  /** Its port. */
  readonly port: number;
  /** Its address, without user and password. */
  readonly url: string;
  /** The process, to stop or to freeze it. */
  readonly process: Deno.ChildProcess;
}

/** Whether there is a redis-server here; `.ci/run` says that there must be. */
export async function hasRedis(): Promise<boolean> {
  try {
    const command = new Deno.Command("redis-server", { args: ["--version"] });
    return (await command.output()).success;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    if (Deno.env.get("MIX_OF_SHOW_REQUIRE_REDIS") === "1") throw error;
    console.log("no redis-server here: the tests of the queue are skipped");
    return false;
  }
}

/** A port that nobody listens on. */
export function freePort(): number {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  listener.close();
  return port;
}

/**
 * Starts a Redis and waits until it listens.
 *
 * @param args More of its arguments.
 * @param port @default a free one
 */
export async function startRedis(
  args: readonly string[] = [],
  port: number = freePort(),
): Promise<RedisServer> {
  const folder = await Deno.makeTempDir();
  const process = new Deno.Command("redis-server", {
    args: [
      ...["--bind", "127.0.0.1", "--port", String(port), "--dir", folder],
      ...["--save", "", "--appendonly", "no", ...args],
    ],
    stdout: "null",
    stderr: "null",
  }).spawn();
  for (let attempt = 0;; attempt++) {
    try {
      (await Deno.connect({ hostname: "127.0.0.1", port })).close();
      break;
    } catch (error) {
      if (attempt === 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  return {
    port,
    url: `redis://127.0.0.1:${port}`,
    process,
    async [Symbol.asyncDispose]() {
      try {
        process.kill("SIGKILL");
      } catch {
        // It has ended already.
      }
      await process.status;
      await Deno.remove(folder, { recursive: true });
    },
  };
}
