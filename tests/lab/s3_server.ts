/**
 * A small server that stores objects as S3 does, on loopback, for tests of the
 * real client: it checks each request's signature (version 4) against the secret
 * by computing it anew, and the content against its signed hash.
 *
 * @module
 */

/** Keys that the server accepts. */
export const KEYS = { accessKeyId: "AKTEST", secretAccessKey: "t0p secret" };

/** A running server. */
export interface S3Server extends AsyncDisposable {
  /** Its address. */
  readonly endpoint: string;
  /** Objects by bucket and key. */
  readonly objects: Map<string, Uint8Array<ArrayBuffer>>;
  /** Requests so far, `PUT bucket/key`. */
  readonly requests: string[];
  /** Answers 503 so many times. */
  busy: number;
}

const encoder = new TextEncoder();
const hex = (bytes: ArrayBuffer) =>
  [...new Uint8Array(bytes)].map((b) => b.toString(16).padStart(2, "0")).join(
    "",
  );
const digest = async (data: Uint8Array<ArrayBuffer>) =>
  hex(await crypto.subtle.digest("SHA-256", data));

async function hmac(
  key: Uint8Array<ArrayBuffer>,
  text: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const own = await crypto.subtle.importKey("raw", key, algorithm, false, [
    "sign",
  ]);
  return new Uint8Array(
    await crypto.subtle.sign("HMAC", own, encoder.encode(text)),
  );
}

/** Whether a request is signed with the secret, as Amazon describes it. */
async function isSigned(request: Request): Promise<boolean> {
  const match =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/
      .exec(request.headers.get("authorization") ?? "");
  if (!match || match[1] !== KEYS.accessKeyId) return false;
  const [, , day, region, signed, signature] = match;
  const { pathname, search, host } = new URL(request.url);
  const headers = signed.split(";").map((name) =>
    `${name}:${name === "host" ? host : request.headers.get(name)}\n`
  );
  const canonical = [
    request.method,
    pathname,
    search.slice(1),
    headers.join(""),
    signed,
    request.headers.get("x-amz-content-sha256"),
  ].join("\n");
  const text = [
    "AWS4-HMAC-SHA256",
    request.headers.get("x-amz-date"),
    `${day}/${region}/s3/aws4_request`,
    await digest(encoder.encode(canonical)),
  ].join("\n");
  let key = encoder.encode(`AWS4${KEYS.secretAccessKey}`);
  for (const part of [day, region, "s3", "aws4_request"]) {
    key = await hmac(key, part);
  }
  return hex((await hmac(key, text)).buffer) === signature;
}

/** Starts a server. */
export function startS3(): S3Server {
  const objects = new Map<string, Uint8Array<ArrayBuffer>>();
  const requests: string[] = [];
  const no = (status: number, code: string) =>
    new Response(`<Error><Code>${code}</Code></Error>`, { status });
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    async (request) => {
      const name = decodeURIComponent(new URL(request.url).pathname.slice(1));
      requests.push(`${request.method} ${name}`);
      if (state.busy > 0) {
        state.busy--;
        return no(503, "SlowDown");
      }
      if (!await isSigned(request)) return no(403, "SignatureDoesNotMatch");
      if (!name.startsWith("bucket/")) return no(404, "NoSuchBucket");
      if (request.method === "PUT") {
        const content = new Uint8Array(await request.arrayBuffer());
        const hash = request.headers.get("x-amz-content-sha256");
        if (await digest(content) !== hash) {
          return no(400, "XAmzContentSHA256Mismatch");
        }
        if (request.headers.get("if-none-match") && objects.has(name)) {
          return no(412, "PreconditionFailed");
        }
        objects.set(name, content);
        return new Response(null);
      }
      const found = objects.get(name);
      if (!found) return no(404, "NoSuchKey");
      return new Response(request.method === "HEAD" ? null : found);
    },
  );
  const state: S3Server = {
    endpoint: `http://127.0.0.1:${server.addr.port}`,
    objects,
    requests,
    busy: 0,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
  return state;
}
