/**
 * The worker side of data-parallel pretraining: a shard server on a backend of
 * its own.
 *
 * @module
 */
import { selectBackend } from "../../../src/core/backend.ts";
import { serve } from "../../../src/core/pool.ts";
import {
  type ServerInit,
  type ShardAnswer,
  type ShardRequest,
  type ShardServer,
  startShardServer,
} from "./shards.ts";

let server: ShardServer | undefined;

const handlers = {
  async init(init: ServerInit): Promise<void> {
    await selectBackend("wasm");
    server = await startShardServer(init);
  },
  shard: (request: ShardRequest): Promise<ShardAnswer> => server!(request),
};

/** The functions of this worker. */
export type ShardHandlers = typeof handlers;

serve(handlers);
