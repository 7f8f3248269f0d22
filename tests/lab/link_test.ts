import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { checkUrl, type Link, openLink, shownUrl } from "../../src/lab/link.ts";
import { freePort, hasRedis, startRedis } from "./redis_server.ts";

const ignore = !await hasRedis();

/** What opening a connection fails with. */
async function refusal(url: string, patience = 2): Promise<string> {
  const error = await assertRejects(() => openLink({ url, patience }), Error);
  return error.message;
}

/** What an open connection ends with. */
async function end({ lost }: Link): Promise<string> {
  return (await assertRejects(() => lost, Error)).message;
}

function redisTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ignore, sanitizeOps: false, sanitizeResources: false, fn });
}

Deno.test("addresses of a queue are checked, and shown without password", () => {
  for (
    const url of [
      "redis://localhost",
      "redis://localhost:6379/2",
      "rediss://lab:s%40cret@redis.example:6380",
      "redis://:secret@10.0.0.5",
    ]
  ) assertEquals(checkUrl(url), url);
  for (
    const url of [
      "localhost:6379",
      "http://localhost",
      "redis://",
      "redis://h/x",
    ]
  ) {
    assertThrows(
      () => checkUrl(url),
      Error,
      "Cannot use the queue: expected redis://[user:password@]host",
    );
  }
  assertEquals(shownUrl("redis://lab:p@ss@h:1/2"), "redis://lab:***@h:1/2");
  assertEquals(shownUrl("rediss://:pass@h"), "rediss://:***@h");
  assertEquals(shownUrl("redis://h:6379"), "redis://h:6379");
});

redisTest(
  "user and password: right ones work, wrong ones are named",
  async () => {
    await using redis = await startRedis([
      ...["--requirepass", "hunter2"],
      ...["--user", "lab", "on", ">s3cret", "~mix-of-show:*", "&*", "+@all"],
    ]);
    const at = (login: string) => redis.url.replace("//", `//${login}@`);
    for (const login of [":hunter2", "default:hunter2", "lab:s3cret"]) {
      const link = await openLink({ url: at(login) });
      assertEquals(await link.redis.ping(), "PONG");
      link.close();
    }
    for (
      const [login, code] of [[":guess", "WRONGPASS"], [
        "lab:guess",
        "WRONGPASS",
      ]]
    ) {
      const message = await refusal(at(login), 60);
      assert(message.startsWith(`Cannot use the queue redis://`), message);
      assert(message.includes(code), message);
      assert(!message.includes("guess"), message);
    }
    assert((await refusal(redis.url, 60)).includes("NOAUTH"));
  },
);

redisTest("a Redis that is not there is named and given up", async () => {
  const url = `redis://127.0.0.1:${freePort()}`;
  const before = performance.now();
  const message = await refusal(url);
  assert(performance.now() - before < 10_000);
  assertEquals(
    message.replace(/got .*ECONNREFUSED.*/, "got ECONNREFUSED"),
    `Cannot use the queue ${url}: expected a Redis that answers within 2 s, ` +
      "got ECONNREFUSED",
  );
});

redisTest(
  "a Redis that goes away is tried, and given up in the stated time",
  async () => {
    const notes: string[] = [];
    await using redis = await startRedis();
    const link = await openLink({
      url: redis.url,
      patience: 3,
      onNote: (line) => notes.push(line),
    });
    redis.process.kill("SIGKILL");
    // A command that nobody answers ends with the connection.
    const waiting = link.wait(link.redis.get("x"));
    waiting.catch(() => {});
    const message = await end(link);
    assert(message.includes("a Redis that answers within 3 s"), message);
    assert(
      notes.some((line) => line.includes("it is tried for 3 s")),
      `${notes}`,
    );
    assertEquals((await assertRejects(() => waiting, Error)).message, message);
  },
);

redisTest(
  "a Redis that comes back within that time is used again",
  async () => {
    const notes: string[] = [];
    const first = await startRedis();
    const link = await openLink({
      url: first.url,
      patience: 30,
      onNote: (line) => notes.push(line),
    });
    await first[Symbol.asyncDispose]();
    const answer = link.wait(link.redis.ping());
    await new Promise((resolve) => setTimeout(resolve, 1500));
    assertEquals(link.up(), false);
    await using _second = await startRedis([], first.port);
    assertEquals(await answer, "PONG");
    assertEquals(notes.length, 2);
    assert(notes[1].endsWith("answers again"));
    link.close();
  },
);

redisTest("a Redis that accepts and never answers is given up", async () => {
  await using redis = await startRedis();
  const link = await openLink({ url: redis.url, patience: 3 });
  redis.process.kill("SIGSTOP");
  const message = await end(link);
  assert(message.includes("answers within 3 s, got no answer"), message);
  // From the beginning as well: connected, and no word.
  assert((await refusal(redis.url)).includes("within 2 s"));
});

redisTest("what evicts keys is warned of, replicas are refused", async () => {
  const notes: string[] = [];
  await using redis = await startRedis(["--maxmemory-policy", "allkeys-lru"]);
  const link = await openLink({
    url: redis.url,
    onNote: (line) => notes.push(line),
  });
  link.close();
  assertEquals(notes.length, 1);
  assert(notes[0].includes("allkeys-lru, and should be noeviction"));
  await using replica = await startRedis([
    ...["--replicaof", `127.0.0.1 ${redis.port}`],
  ]);
  assert((await refusal(replica.url)).includes("a read-only replica"));
});

redisTest(
  "TLS: a known authority is trusted, an unknown one is named",
  async () => {
    const folder = await Deno.makeTempDir();
    const openssl = async (...args: string[]) => {
      const command = new Deno.Command("openssl", { args, cwd: folder });
      const { success, stderr } = await command.output();
      assert(success, new TextDecoder().decode(stderr));
    };
    const key = (
      name: string,
    ) => ["-newkey", "rsa:2048", "-nodes", "-keyout", name];
    await openssl(
      ...["req", "-x509", ...key("ca.key"), "-out", "ca.pem"],
      ...["-days", "2", "-subj", "/CN=authority"],
    );
    await openssl(
      ...["req", ...key("key.pem"), "-out", "request.pem"],
      ...["-subj", "/CN=localhost"],
    );
    await Deno.writeTextFile(
      `${folder}/names`,
      "subjectAltName=DNS:localhost\n",
    );
    await openssl(
      ...["x509", "-req", "-in", "request.pem", "-CA", "ca.pem"],
      ...["-CAkey", "ca.key", "-CAcreateserial", "-out", "cert.pem"],
      ...["-days", "2", "-extfile", "names"],
    );
    const port = freePort();
    await using _redis = await startRedis([
      ...["--port", "0", "--tls-port", `${port}`, "--tls-auth-clients", "no"],
      ...["--tls-cert-file", `${folder}/cert.pem`],
      ...["--tls-key-file", `${folder}/key.pem`],
      ...["--tls-ca-cert-file", `${folder}/ca.pem`],
    ], port);
    const said = async (env: Record<string, string>): Promise<string> => {
      const module = new URL("./link_process.ts", import.meta.url).pathname;
      const { stdout } = await new Deno.Command(Deno.execPath(), {
        args: [
          ...["run", "-q", "-A", "--no-check", module],
          `rediss://localhost:${port}`,
        ],
        env,
      }).output();
      return new TextDecoder().decode(stdout).trim();
    };
    assertEquals(await said({ DENO_CERT: `${folder}/ca.pem` }), "PONG");
    const message = await said({});
    assert(message.includes("self-signed certificate in certificate"), message);
    await Deno.remove(folder, { recursive: true });
  },
);
