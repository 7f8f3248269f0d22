/**
 * Finds masks of training pictures by their file names.
 *
 * @module
 */
import { cannot, listed } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { exists, joinPath, pathOf } from "../io/files.ts";
import { listPictures, PICTURE } from "../io/picture.ts";

/** Suffixes or prefixes that mark the mask of a picture. */
const MARKS = "mask|masklabel|matte|seg|segmentation|alpha";
const BEHIND = new RegExp(`[-_. ]*(?:${MARKS})$`, "i");
const BEFORE = new RegExp(`^(?:${MARKS})[-_. ]+`, "i");

/** Beside pictures only unambiguous names are masks. */
const BESIDE = /[-_. ]mask(label)?$|^mask[-_. ]/i;

/** A name without its ending, or a mark, and without regard to case. */
function stemOf(name: string): string {
  return name.replace(PICTURE, "").toLowerCase();
}

/** Masks and their pictures. */
export interface MaskNames {
  /** Name of the mask by name of the picture. */
  readonly masks: ReadonlyMap<string, string>;
  /** Pictures without a mask. */
  readonly unmatched: readonly string[];
  /** Masks without a picture. */
  readonly unused: readonly string[];
}

/**
 * Finds the mask of each picture: a file of the picture's name with any ending
 * that pictures have (`a.jpg` for `a.png`), or with `mask` behind or before it
 * (`a_mask.png`, `a-masklabel.png`, `mask_a.png`), without regard to case.
 *
 * @param pictures Names of pictures.
 * @param masks Names of masks.
 * @throws If two masks are of one picture.
 */
export function matchMasks(
  pictures: readonly string[],
  masks: readonly string[],
): MaskNames {
  const exact = Map.groupBy(masks, stemOf);
  const marked = Map.groupBy(
    masks.filter((name) =>
      BEHIND.test(stemOf(name)) || BEFORE.test(stemOf(name))
    ),
    (name) => stemOf(name).replace(BEHIND, "").replace(BEFORE, ""),
  );
  const found = new Map<string, string>();
  for (const picture of pictures) {
    const stem = stemOf(picture);
    const named = exact.get(stem) ?? marked.get(stem) ??
      // a.png of a.jpg.png, as some tools write it.
      exact.get(picture.toLowerCase()) ?? [];
    if (named.length > 1) {
      throw cannot(
        `find the mask of ${picture}`,
        "one mask",
        named.join(" and "),
      );
    }
    if (named.length === 1) found.set(picture, named[0]);
  }
  const used = new Set(found.values());
  return {
    masks: found,
    unmatched: pictures.filter((name) => !found.has(name)),
    unused: masks.filter((name) => !used.has(name)),
  };
}

/**
 * Tells masks that lie beside their pictures (`a-masklabel.png`, `a_mask.jpg`,
 * `mask_a.png` beside `a.png`) from the pictures.
 *
 * @param names Names of pictures in a folder.
 */
export function besideMasks(
  names: readonly string[],
): { readonly pictures: string[]; readonly masks: string[] } {
  const stems = new Set(names.map(stemOf));
  const isMask = (name: string) => {
    const stem = stemOf(name);
    return BESIDE.test(stem) && stems.has(stem.replace(BESIDE, ""));
  };
  return {
    pictures: names.filter((name) => !isMask(name)),
    masks: names.filter(isMask),
  };
}

/**
 * The place of a folder's masks: the given folder, the subfolder `masks`, or
 * beside the pictures.
 *
 * @param folder The folder of pictures.
 * @param given The folder given by the user.
 */
export async function maskPlace(
  folder: string,
  given?: string,
): Promise<string> {
  const inside = joinPath(folder, "masks");
  if (given === undefined) return await exists(inside) ? inside : folder;
  const [here, there] = await Promise.all(
    [folder, given].map((path) =>
      machine.files.realPath(path).catch(() => path)
    ),
  );
  return here === there ? folder : given;
}

/**
 * The masks in a folder.
 *
 * @param folder The folder.
 * @param pictures Names of pictures.
 * @throws If there are none, none is of a picture, or two are of one.
 */
export async function masksIn(
  folder: string | URL,
  pictures: readonly string[],
): Promise<MaskNames> {
  const what = `read masks from ${pathOf(folder)}`;
  const names = await listPictures(folder);
  if (names.length === 0) {
    throw cannot(what, "pictures that are white where the subject is", "none");
  }
  const matched = matchMasks(pictures, names);
  if (matched.masks.size === 0) {
    throw cannot(
      what,
      `masks named like the pictures (${listed(pictures, 3)})`,
      listed(names, 3),
    );
  }
  return matched;
}
