/**
 * Opens a store that several machines see, by how the user calls it.
 *
 * @module
 */
import {
  folderStore,
  isBucket,
  type S3Settings,
  type SharedStore,
} from "./shared_store.ts";

/** What is used of s3.ts. */
interface BucketModule {
  bucketStore(
    where: string,
    copy: string,
    settings?: S3Settings,
  ): Promise<SharedStore>;
}

/**
 * Opens a store that several machines see.
 *
 * @param where A folder, or `s3://bucket/prefix`.
 * @param copy Folder of the local copy of a bucket's objects.
 * @param settings How a bucket is reached. @default the environment
 * @throws If it cannot be written, or the bucket does not answer.
 */
export async function openSharedStore(
  where: string,
  copy: string,
  settings?: S3Settings,
): Promise<SharedStore> {
  if (!isBucket(where)) return await folderStore(where);
  // A template stays out of the module graph: without a bucket, no client.
  const { bucketStore }: BucketModule = await import(`./s3.ts${""}`);
  return await bucketStore(where, copy, settings);
}
