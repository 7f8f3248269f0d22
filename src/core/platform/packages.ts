/**
 * Where files of packages lie, as the runtime's own resolver says.
 *
 * @module
 */

/**
 * The address of a file in a package.
 *
 * @param path Package and path in it.
 * @param version The package's version, for modules loaded over https, which
 * have no import map.
 * @returns The address; nothing where nobody knows.
 */
export function packageFile(path: string, version: string): URL | undefined {
  const [, name, rest] = /^((?:@[^/]+\/)?[^/]+)(.*)$/.exec(path)!;
  return resolved(path) ?? resolved(`npm:${name}@${version}${rest}`);
}

/** The runtime's resolver; a variable, as `deno publish` asks for literals. */
const { resolve } = import.meta;

function resolved(specifier: string): URL | undefined {
  try {
    const url = new URL(resolve(specifier));
    return ["file:", "http:", "https:"].includes(url.protocol)
      ? url
      : undefined;
  } catch {
    return undefined;
  }
}

/**
 * The folder of an installed package's file, as a path with a final slash.
 *
 * @param path Package and path in it.
 * @param version The package's version.
 * @throws If nobody knows where it is.
 */
export function packageFolder(path: string, version: string): string {
  const url = packageFile(path, version);
  if (!url) throw new Error(`the package of ${path} is not installed`);
  const folder = new URL(".", url);
  if (folder.protocol !== "file:") return folder.href;
  // file:///C:/folder carries a leading slash that Windows does not want.
  return decodeURIComponent(folder.pathname).replace(/^\/(?=[A-Za-z]:)/, "");
}
