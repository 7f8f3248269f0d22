/**
 * A connection to Redis that never hangs: it reports errors, retries for a
 * given time, and then gives up.
 *
 * @module
 */
import { Redis } from "ioredis";
import { cannot } from "../core/errors.ts";
import type { LinkOptions } from "./queue_options.ts";

/** A connection to Redis. */
export interface Link {
  /** The client, for BullMQ and for commands. */
  readonly redis: Redis;
  /** The queue's address without its password. */
  readonly shown: string;
  /** Rejects when the connection is given up; never resolves. */
  readonly lost: Promise<never>;
  /** Whether Redis answers now. */
  readonly up: () => boolean;
  /** Waits for an answer; rejects when the connection is given up. */
  wait<T>(answer: Promise<T>): Promise<T>;
  /** Ends the connection. */
  close(): void;
}

/** Default seconds to wait for Redis. */
export const PATIENCE = 60;

/** Milliseconds between two checks of the connection. */
const TICK = 500;

/** Milliseconds without an answer after which a connection counts as broken. */
const SILENCE = 10_000;

/** The oldest Redis that BullMQ recommends. */
const OLDEST: readonly [number, number] = [6, 2];

/** Errors that are not retried. */
const FINAL =
  /^(WRONGPASS|NOAUTH|NOPERM|ERR (invalid password|AUTH|DB index|invalid DB))|certificate|CERT_|self[- ]signed|SSL|TLS/i;

/**
 * A queue's address without its password.
 *
 * @param url The address.
 */
export function shownUrl(url: string): string {
  return url.replace(/^([a-z]+:\/\/[^:@/]*):.*@/i, "$1:***@");
}

/**
 * Checks a queue's address.
 *
 * @param url The address.
 * @returns It.
 * @throws If it is no address of a Redis.
 *
 * @example
 * ```ts
 * checkUrl("redis://localhost:6379"); // "redis://localhost:6379"
 * ```
 */
export function checkUrl(url: string): string {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (
    parsed && /^rediss?:$/.test(parsed.protocol) && parsed.hostname !== "" &&
    /^\/?\d*$/.test(parsed.pathname) && parsed.hash === ""
  ) return url;
  throw cannot(
    "use the queue",
    "redis://[user:password@]host[:port][/db] or rediss://…",
    shownUrl(url),
  );
}

/**
 * Connects to Redis, and waits until it answers.
 *
 * @param options Its address, how long it is tried.
 * @throws If it does not answer in that time, refuses user or password, or is
 * too old.
 */
export async function openLink(options: LinkOptions): Promise<Link> {
  const { url, patience = PATIENCE, onNote = () => {} } = options;
  const shown = shownUrl(checkUrl(url));
  const redis = new Redis(url, {
    lazyConnect: true,
    // Commands wait for the connection; the timer below ends their waiting.
    maxRetriesPerRequest: null,
    retryStrategy: (times) => Math.min(200 * times, 2000),
    connectTimeout: 5000,
    keepAlive: 10_000,
  });
  let down: number | undefined = performance.now();
  let asked: number | undefined;
  let reason = "no answer";
  let closed = false;
  let everUp = false;
  let noted = false;
  let giveUp: (error: Error) => void = () => {};
  const lost = new Promise<never>((_, reject) => giveUp = reject);
  // Callers of `wait` get the error; without one it must not be unhandled.
  lost.catch(() => {});

  const close = () => {
    if (closed) return;
    closed = true;
    clearInterval(clock);
    redis.disconnect();
  };
  const fail = (expected: string, got: string) => {
    if (closed) return;
    close();
    giveUp(cannot(`use the queue ${shown}`, expected, got));
  };
  const broken = () => {
    if (down !== undefined || closed) return;
    down = performance.now();
  };
  redis.on("error", (error: Error & { code?: string }) => {
    reason = error.message || error.code || "no answer";
    if (FINAL.test(reason)) {
      fail("a user, password and certificate that both sides accept", reason);
    } else broken();
  });
  redis.on("close", broken);
  redis.on("ready", () => {
    if (noted) onNote(`${shown} answers again`);
    down = asked = undefined;
    reason = "no answer";
    noted = false;
    everUp = true;
  });
  const look = () => {
    const now = performance.now();
    if (down !== undefined) {
      if (now - down > patience * 1000) {
        fail(`a Redis that answers within ${patience} s`, reason);
      } else if (!noted && (everUp || now - down > 2000)) {
        noted = true;
        onNote(
          `${shown} does not answer (${reason}); it is tried for ${patience} s`,
        );
      }
      return;
    }
    if (asked !== undefined) {
      if (now - asked < Math.min(SILENCE, patience * 1000)) return;
      // The server is gone without closing the socket, which stays open for
      // minutes.
      asked = undefined;
      reason = "no answer";
      broken();
      redis.disconnect(true);
      return;
    }
    asked = now;
    redis.ping().then(() => asked = undefined, () => {});
  };
  const clock = setInterval(look, TICK);
  const wait = <T>(answer: Promise<T>): Promise<T> => {
    // An answer after the end must not be an unhandled rejection.
    answer.catch(() => {});
    return Promise.race([answer, lost]);
  };
  try {
    redis.connect().catch(() => {});
    await wait(
      new Promise<void>((resolve) => redis.once("ready", () => resolve())),
    );
    await checkServer(redis, shown, wait, onNote);
  } catch (error) {
    close();
    throw error;
  }
  return { redis, shown, lost, up: () => down === undefined, wait, close };
}

/**
 * Refuses a Redis that is too old; warns if its memory policy may drop jobs.
 */
async function checkServer(
  redis: Redis,
  shown: string,
  wait: Link["wait"],
  onNote: (line: string) => void,
): Promise<void> {
  // Users of a shared Redis may lack permission for INFO.
  const info = await wait(redis.info().catch(() => ""));
  const value = (name: string) =>
    new RegExp(`^${name}:(.*?)\r?$`, "m").exec(info)?.[1];
  const version = value("redis_version");
  const [major, minor] = (version ?? "").split(".").map(Number);
  if (
    version !== undefined &&
    (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1]))
  ) {
    throw cannot(
      `use the queue ${shown}`,
      `Redis ${OLDEST.join(".")} or newer`,
      version,
    );
  }
  if (value("role") === "slave") {
    throw cannot(`use the queue ${shown}`, "a primary", "a read-only replica");
  }
  const policy = value("maxmemory_policy");
  if (policy !== undefined && policy !== "noeviction") {
    onNote(
      `${shown} may forget jobs when its memory is full: its maxmemory-policy ` +
        `is ${policy}, and should be noeviction`,
    );
  }
}
