/**
 * Opens a store that several machines share, by its path or URL.
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
 * @param settings Access to the bucket. @default the environment
 * @throws If it cannot be written, or the bucket does not answer.
 */
export async function openSharedStore(
  where: string,
  copy: string,
  settings?: S3Settings,
): Promise<SharedStore> {
  if (!isBucket(where)) return await folderStore(where);
  // An import by a template string is not in the module graph, so the client is
  // loaded only for a bucket.
  const { bucketStore }: BucketModule = await import(`./s3.ts${""}`);
  return await bucketStore(where, copy, settings);
}
