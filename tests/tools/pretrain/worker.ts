/**
 * The worker side of data-parallel pretraining: a shard server on a backend of
 * its own.
 *
 * @module
 */
import { type BackendName, selectBackend } from "../../../src/core/backend.ts";
import { serve } from "../../../src/core/pool.ts";
import {
  createShardServer,
  type ServerInit,
  type ShardAnswer,
  type ShardRequest,
  type ShardServer,
} from "./shards.ts";

let server: ShardServer | undefined;

/** What is posted to a worker first. */
export interface ShardWorkerInit extends ServerInit {
  readonly backend: BackendName;
}

const handlers = {
  async init({ backend, ...init }: ShardWorkerInit): Promise<void> {
    await selectBackend(backend);
    server = createShardServer(init);
    await server.ready;
  },
  async shard(request: ShardRequest): Promise<ShardAnswer> {
    return await server!.run(request);
  },
};

/** The functions of this worker. */
export type ShardHandlers = typeof handlers;

serve(handlers);
