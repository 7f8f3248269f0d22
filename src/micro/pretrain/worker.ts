/// <reference lib="deno.worker" />
import { selectBackend } from "../../core/backend.ts";
import { createShardServer, type ShardRequest } from "./shards.ts";

// The worker side of data-parallel pretraining: one wasm instance each.
let server: ReturnType<typeof createShardServer> | undefined;

self.onmessage = async (event: MessageEvent) => {
  const { id, kind, body } = event.data as {
    id: number;
    kind: "start" | "shard";
    body: unknown;
  };
  try {
    if (kind === "start") {
      const { backend, ...rest } = body as
        & { backend: "wasm" | "cpu" | "webgpu" }
        & Parameters<typeof createShardServer>[0];
      await selectBackend(backend);
      server = createShardServer(rest);
      await server.ready;
      self.postMessage({ id, result: null });
    } else {
      const result = await server!.run(body as ShardRequest);
      self.postMessage({ id, result });
    }
  } catch (error) {
    self.postMessage({
      id,
      error: error instanceof Error ? error.stack ?? error.message : `${error}`,
    });
  }
};
