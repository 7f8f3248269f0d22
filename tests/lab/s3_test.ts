import { assert, assertEquals, assertRejects } from "@std/assert";
import { bucketStore } from "../../src/lab/s3.ts";
import { folderStore, type S3Settings } from "../../src/lab/shared_store.ts";
import { KEYS, startS3 } from "./s3_server.ts";

const encoder = new TextEncoder();

/** Two machines' copies of one bucket, and the server. */
async function twoMachines() {
  const server = startS3();
  const settings: S3Settings = { ...KEYS, endpoint: server.endpoint };
  const folders = [await Deno.makeTempDir(), await Deno.makeTempDir()];
  const [here, there] = await Promise.all(
    folders.map((f) => bucketStore("s3://bucket/lab/one two", f, settings)),
  );
  return {
    ...{ server, settings, here, there },
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      for (const f of folders) await Deno.remove(f, { recursive: true });
    },
  };
}

async function put(folder: string, path: string, text: string): Promise<void> {
  const file = `${folder}/${path}`;
  await Deno.mkdir(file.slice(0, file.lastIndexOf("/")), { recursive: true });
  await Deno.writeTextFile(file, text);
}

Deno.test("what one machine pushes another pulls; signed, no byte changed", async () => {
  await using both = await twoMachines();
  const { here, there, server } = both;
  assertEquals(here.id, there.id);
  assertEquals(await there.pull(["images/ab/x.png"]), false);
  await put(here.folder, "images/ab/x.png", "pixels ü");
  await put(here.folder, "concepts/y.json", "{}");
  await here.push(["images/ab/x.png", "concepts/y.json"]);
  assertEquals(
    server.objects.get("bucket/lab/one two/images/ab/x.png"),
    encoder.encode("pixels ü"),
  );
  assertEquals(await there.pull(["images/ab/x.png", "concepts/y.json"]), true);
  assertEquals(
    await Deno.readTextFile(`${there.folder}/images/ab/x.png`),
    "pixels ü",
  );
  assertEquals(await there.pull(["images/ab/x.png", "images/ab/z.png"]), false);
  // What is known to be there is neither asked for nor sent again.
  const before = server.requests.length;
  await here.push(["images/ab/x.png"]);
  await there.push(["images/ab/x.png"]);
  assert(await there.pull(["concepts/y.json"]));
  assertEquals(server.requests.length, before);
});

Deno.test("a busy bucket is asked again; refusals are named at once", async () => {
  await using both = await twoMachines();
  const { here, server, settings } = both;
  await put(here.folder, "heldout/a.json", "1");
  server.busy = 2;
  await here.push(["heldout/a.json"]);
  assertEquals(server.objects.size, 2);
  const refused = async (where: string, more: Partial<S3Settings>) => {
    const error = await assertRejects(
      () => bucketStore(where, here.folder, { ...settings, ...more }),
      Error,
    );
    return error.message;
  };
  const before = server.requests.length;
  const wrong = await refused("s3://bucket", { secretAccessKey: "guess" });
  assert(wrong.includes("403 SignatureDoesNotMatch"), wrong);
  assert(!wrong.includes("guess"));
  assertEquals(server.requests.length, before + 1);
  const none = await refused("s3://other/lab", {});
  assert(none.includes("404 NoSuchBucket"), none);
  server.busy = 100;
  const busy = await refused("s3://bucket", { attempts: 2 });
  assert(busy.includes("503 SlowDown"), busy);
  server.busy = 0;
  assert((await refused("s3://B", {})).includes("s3://bucket/prefix"));
  const gone = await refused("s3://bucket", {
    endpoint: "http://127.0.0.1:1",
    attempts: 2,
  });
  assert(gone.includes("127.0.0.1:1"), gone);
});

Deno.test("a file that is nowhere cannot be handed out", async () => {
  await using both = await twoMachines();
  await assertRejects(
    () => both.here.push(["images/ab/none.png"]),
    Error,
    "images/ab/none.png in s3://bucket/lab/one two",
  );
});

Deno.test("a shared folder has one identity, however many open it at once", async () => {
  const folder = await Deno.makeTempDir();
  const stores = await Promise.all(
    Array.from({ length: 8 }, () => folderStore(`${folder}/store`)),
  );
  assertEquals(new Set(stores.map(({ id }) => id)).size, 1);
  const other = await folderStore(`${folder}/other`);
  assert(other.id !== stores[0].id);
  await assertRejects(
    () => other.push(["images/x.png"]),
    Error,
    "images/x.png",
  );
  await assertRejects(
    () => folderStore("gs://bucket"),
    Error,
    "a folder or s3://bucket/prefix",
  );
  await Deno.remove(folder, { recursive: true });
});
