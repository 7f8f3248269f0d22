/**
 * A Jupyter client in plain Deno: starts the Deno kernel and executes code in
 * it over ZMTP 3.0 (NULL mechanism) and signed Jupyter messages. No Python.
 *
 * @module
 */
import { joined } from "../../src/core/joined.ts";

/** One output of a cell, as notebooks store it (nbformat 4). */
export type Output =
  | { output_type: "stream"; name: string; text: string }
  | { output_type: "display_data"; data: Bundle; metadata: Bundle }
  | {
    output_type: "execute_result";
    data: Bundle;
    metadata: Bundle;
    execution_count: number | null;
  }
  | {
    output_type: "error";
    ename: string;
    evalue: string;
    traceback: string[];
  };

/** Values by MIME type. */
export type Bundle = Record<string, unknown>;

/** What executing a cell came to. */
export interface Executed {
  /** Whether the code ran to its end. */
  ok: boolean;
  /** The number in the cell's brackets. */
  count: number | null;
  /** What it showed, in order; later cells may still update a display. */
  outputs: Output[];
}

/** A running kernel. */
export interface Kernel {
  /**
   * Executes code and returns everything it showed.
   *
   * @param code TypeScript.
   * @param limit Milliseconds after which the kernel is given up.
   * @throws {@linkcode KernelLost} If it takes longer or the kernel dies.
   */
  execute(code: string, limit: number): Promise<Executed>;
  /** Ends the kernel. */
  close(): Promise<void>;
}

/** The kernel hangs or has died; nothing more can be executed. */
export class KernelLost extends Error {}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

// --- ZMTP 3.0 --------------------------------------------------------------

const MORE = 1;
const LONG = 2;
const COMMAND = 4;

function concat(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  return joined(Uint8Array, parts);
}

function frame(flags: number, body: Uint8Array): Uint8Array<ArrayBuffer> {
  if (body.length < 256) {
    return concat(new Uint8Array([flags, body.length]), body);
  }
  const head = new DataView(new ArrayBuffer(9));
  head.setUint8(0, flags | LONG);
  head.setBigUint64(1, BigInt(body.length));
  return concat(new Uint8Array(head.buffer), body);
}

/** A connected socket that sends and receives whole multipart messages. */
class Socket {
  #connection: Deno.TcpConn;
  #buffer = new Uint8Array(1 << 16);
  #start = 0;
  #end = 0;

  private constructor(connection: Deno.TcpConn) {
    this.#connection = connection;
  }

  static async connect(type: "DEALER" | "SUB", port: number): Promise<Socket> {
    const connection = await Deno.connect({ hostname: "127.0.0.1", port });
    connection.setNoDelay(true);
    const socket = new Socket(connection);
    // Greeting: signature, version 3.0, mechanism, no server, filler.
    const greeting = new Uint8Array(64);
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting.set(encoder.encode("NULL"), 12);
    await socket.#write(greeting);
    await socket.#take(64);
    const name = encoder.encode("Socket-Type");
    const value = encoder.encode(type);
    const ready = concat(
      new Uint8Array([5]),
      encoder.encode("READY"),
      new Uint8Array([name.length]),
      name,
      new Uint8Array([0, 0, 0, value.length]),
      value,
    );
    await socket.#write(frame(COMMAND, ready));
    const answer = await socket.#frame();
    if (!(answer.flags & COMMAND) || answer.body[1] !== 0x52 /* "R" */) {
      throw new Error(
        `Cannot connect to the kernel: got ${decoder.decode(answer.body)}`,
      );
    }
    // A SUB socket hears nothing until it subscribes; to "" is to all.
    if (type === "SUB") await socket.#write(frame(0, new Uint8Array([1])));
    return socket;
  }

  async send(parts: Uint8Array[]): Promise<void> {
    const frames = parts.map((part, i) =>
      frame(i < parts.length - 1 ? MORE : 0, part)
    );
    await this.#write(concat(...frames));
  }

  async receive(): Promise<Uint8Array[]> {
    const parts: Uint8Array[] = [];
    while (true) {
      const { flags, body } = await this.#frame();
      if (flags & COMMAND) continue; // heartbeats and the like
      parts.push(body);
      if (!(flags & MORE)) return parts;
    }
  }

  close(): void {
    this.#connection.close();
  }

  async #frame(): Promise<{ flags: number; body: Uint8Array }> {
    const flags = (await this.#take(1))[0];
    const length = flags & LONG
      ? Number(new DataView((await this.#take(8)).buffer).getBigUint64(0))
      : (await this.#take(1))[0];
    return { flags, body: await this.#take(length) };
  }

  async #take(length: number): Promise<Uint8Array<ArrayBuffer>> {
    while (this.#end - this.#start < length) {
      if (this.#buffer.length - this.#start < length || this.#start > 1 << 20) {
        const size = Math.max(2 * length, 1 << 16);
        const grown = new Uint8Array(Math.max(size, this.#end - this.#start));
        grown.set(this.#buffer.subarray(this.#start, this.#end));
        this.#end -= this.#start;
        this.#start = 0;
        this.#buffer = grown;
      }
      const room = this.#buffer.subarray(this.#end);
      const read = await this.#connection.read(room);
      if (read === null) throw new KernelLost("the kernel closed a connection");
      this.#end += read;
    }
    this.#start += length;
    return this.#buffer.slice(this.#start - length, this.#start);
  }

  async #write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      at += await this.#connection.write(bytes.subarray(at));
    }
  }
}

// --- Jupyter messages ------------------------------------------------------

interface Message {
  type: string;
  parent: string | undefined;
  // deno-lint-ignore no-explicit-any
  content: any;
}

const DELIMITER = "<IDS|MSG>";

class Messages {
  #key: CryptoKey;
  #session = crypto.randomUUID();

  private constructor(key: CryptoKey) {
    this.#key = key;
  }

  static async signedWith(key: string): Promise<Messages> {
    return new Messages(
      await crypto.subtle.importKey(
        "raw",
        encoder.encode(key),
        { name: "HMAC", hash: "SHA-256" },
        false,
        ["sign"],
      ),
    );
  }

  async send(socket: Socket, type: string, content: unknown): Promise<string> {
    const id = crypto.randomUUID();
    const header = {
      msg_id: id,
      msg_type: type,
      session: this.#session,
      username: "notebook_run",
      date: new Date().toISOString(),
      version: "5.3",
    };
    const parts = [header, {}, {}, content].map((part) =>
      encoder.encode(JSON.stringify(part))
    );
    const signature = await crypto.subtle.sign(
      "HMAC",
      this.#key,
      concat(...parts),
    );
    await socket.send([
      encoder.encode(DELIMITER),
      encoder.encode(new Uint8Array(signature).toHex()),
      ...parts,
    ]);
    return id;
  }

  async receive(socket: Socket): Promise<Message> {
    const parts = await socket.receive();
    const at = parts.findIndex((part) => decoder.decode(part) === DELIMITER);
    const [header, parent, , content] = parts.slice(at + 2, at + 6)
      .map((part) => JSON.parse(decoder.decode(part)));
    return { type: header.msg_type, parent: parent.msg_id, content };
  }
}

// --- The kernel ------------------------------------------------------------

/**
 * Starts a Deno kernel in a folder, whose deno.json it takes.
 *
 * The kernel may report itself idle before a cell's last outputs have been
 * sent, and give those another cell's header. Outputs do keep their order, so
 * each cell is followed by a marker that prints a random word: what comes
 * before the word belongs to the cell.
 */
export async function startKernel(folder: string): Promise<Kernel> {
  const names = ["shell", "iopub", "stdin", "control", "hb"];
  const listeners = names.map(() => Deno.listen({ port: 0 }));
  const ports = listeners.map(({ addr }) => (addr as Deno.NetAddr).port);
  listeners.forEach((listener) => listener.close());
  const key = crypto.randomUUID();
  const file = await Deno.makeTempFile({ suffix: ".json" });
  await Deno.writeTextFile(
    file,
    JSON.stringify({
      ip: "127.0.0.1",
      transport: "tcp",
      signature_scheme: "hmac-sha256",
      key,
      kernel_name: "deno",
      ...Object.fromEntries(names.map((n, i) => [`${n}_port`, ports[i]])),
    }),
  );
  const process = new Deno.Command(Deno.execPath(), {
    args: ["jupyter", "--quiet", "--kernel", "--conn", file],
    cwd: folder,
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  const sockets: Socket[] = [];
  let lost: (why: Error) => void = () => {};
  // Rejects at any time the kernel ends or hangs; races against every wait.
  const alive = new Promise<never>((_, reject) => lost = reject);
  alive.catch(() => {});
  process.status.then(({ code }) =>
    lost(new KernelLost(`the kernel ended with code ${code}`))
  );

  async function close(): Promise<void> {
    lost(new KernelLost("the kernel was closed"));
    for (const socket of sockets) socket.close();
    try {
      process.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await process.status;
    await Deno.remove(file).catch(() => {});
  }

  try {
    const messages = await Messages.signedWith(key);
    for (const type of ["SUB", "DEALER"] as const) {
      const port = ports[type === "SUB" ? 1 : 0];
      sockets.push(await Promise.race([alive, patiently(type, port)]));
    }
    const [iopub, shell] = sockets;
    await listen(messages, shell, iopub, alive);
    const displays: Displays = new Map();
    return {
      close,
      execute: async (code, limit) => {
        const timer = setTimeout(
          () => lost(new KernelLost(`no answer within ${limit / 1000} s`)),
          limit,
        );
        try {
          return await Promise.race([
            alive,
            executeCell(messages, shell, iopub, code, displays),
          ]);
        } finally {
          clearTimeout(timer);
        }
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** The kernel needs a moment until it listens. */
async function patiently(
  type: "DEALER" | "SUB",
  port: number,
): Promise<Socket> {
  for (let tries = 0;; tries++) {
    try {
      return await Socket.connect(type, port);
    } catch (error) {
      if (tries >= 600 || !(error instanceof Deno.errors.ConnectionRefused)) {
        throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

/** A subscription takes effect with a delay: asks until iopub is heard. */
async function listen(
  messages: Messages,
  shell: Socket,
  iopub: Socket,
  alive: Promise<never>,
): Promise<void> {
  let heard = false;
  const first = messages.receive(iopub).then(() => heard = true);
  while (!heard) {
    await messages.send(shell, "kernel_info_request", {});
    await Promise.race([alive, messages.receive(shell)]);
    const moment = new Promise((resolve) => setTimeout(resolve, 50));
    await Promise.race([alive, first, moment]);
  }
}

async function executeCell(
  messages: Messages,
  shell: Socket,
  iopub: Socket,
  code: string,
  displays: Displays,
): Promise<Executed> {
  const ask = async (code: string, history: boolean) => {
    const id = await messages.send(shell, "execute_request", {
      code,
      silent: false,
      store_history: history,
      user_expressions: {},
      allow_stdin: false,
      stop_on_error: false,
    });
    while (true) {
      const { type, parent, content } = await messages.receive(shell);
      if (type === "execute_reply" && parent === id) return content;
    }
  };
  const marker = `--${crypto.randomUUID()}--`;
  const outputs = collectOutputs(messages, iopub, marker, displays);
  // Where asking fails, nobody waits for these any more.
  outputs.catch(() => {});
  const reply = await ask(code, true);
  await ask(`console.log(${JSON.stringify(marker)})`, false);
  return {
    ok: reply.status === "ok",
    count: reply.execution_count ?? null,
    outputs: await outputs,
  };
}

/** What `update_display_data` may still change, in this cell or a later one. */
type Displays = Map<string, Extract<Output, { data: Bundle }>[]>;

async function collectOutputs(
  messages: Messages,
  iopub: Socket,
  marker: string,
  displays: Displays,
): Promise<Output[]> {
  const outputs: Output[] = [];
  let clearNext = false;
  const add = (output: Output, id?: string) => {
    if (clearNext) outputs.length = 0;
    clearNext = false;
    const last = outputs.at(-1);
    if (
      output.output_type === "stream" && last?.output_type === "stream" &&
      last.name === output.name
    ) {
      last.text += output.text;
      return;
    }
    outputs.push(output);
    if (id !== undefined && "data" in output) {
      displays.set(id, [...displays.get(id) ?? [], output]);
    }
  };
  while (true) {
    const { type, content } = await messages.receive(iopub);
    const id: string | undefined = content.transient?.display_id;
    const bundle = { data: content.data, metadata: content.metadata ?? {} };
    switch (type) {
      case "stream": {
        const { name, text } = content as { name: string; text: string };
        const end = text.indexOf(marker);
        const own = end < 0 ? text : text.slice(0, end);
        if (own !== "") add({ output_type: type, name, text: own });
        if (end >= 0) return outputs;
        break;
      }
      case "display_data":
        add({ output_type: type, ...bundle }, id);
        break;
      case "update_display_data":
        for (const output of displays.get(id ?? "") ?? []) {
          Object.assign(output, bundle);
        }
        break;
      case "execute_result": {
        const execution_count: number | null = content.execution_count ?? null;
        add({ output_type: type, ...bundle, execution_count }, id);
        break;
      }
      case "error": {
        const { ename, evalue, traceback } = content;
        add({ output_type: type, ename, evalue, traceback });
        break;
      }
      case "clear_output":
        if (content.wait) clearNext = true;
        else outputs.length = 0;
    }
  }
}
