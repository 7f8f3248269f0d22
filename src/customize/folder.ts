/**
 * Finds pictures, captions and masks in a folder of training pictures: captions
 * in a file per picture or in one for all, masks in a separate folder or beside
 * the pictures.
 *
 * @module
 */
import { cannot, listed } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { exists, joinPath, parseJson, readText } from "../io/files.ts";
import { listPictures, PICTURE } from "../io/picture.ts";
import { CAPTION, captionsBeside } from "./captions.ts";
import { besideMasks, maskPlace, masksIn, matchMasks } from "./masks.ts";

/** A picture with its captions and mask. */
export interface PictureFile {
  /** Its name. */
  readonly name: string;
  /** Its captions and the file that they come from. */
  readonly captions?: {
    readonly file: string;
    readonly lines: readonly string[];
  };
  /** Path of its mask. */
  readonly mask?: string;
}

/** A folder's pictures, and its other files. */
export interface PictureFolder {
  /** The folder. */
  readonly folder: string;
  /** In the order of their names. */
  readonly pictures: readonly PictureFile[];
  /** Names of files and folders that are not read. */
  readonly unread: readonly string[];
  /** Paths of masks without a picture. */
  readonly unusedMasks: readonly string[];
}

/** File with the captions of all pictures, as in datasets on Hugging Face. */
const TABLE = "metadata.jsonl";

/** Files of operating systems and tools, which are ignored. */
const LITTER = /^\.|^(thumbs|ehthumbs)\.db$|^desktop\.ini$|\.npz$/i;

/**
 * Lists a folder of pictures without opening them.
 *
 * @param folder The folder.
 * @param masks Folder of masks, where it is not `masks` inside, and they do not
 * lie beside the pictures.
 * @throws If captions contradict each other or cannot be read, or masks are not
 * those of the pictures.
 */
export async function pictureFolder(
  folder: string,
  masks?: string,
): Promise<PictureFolder> {
  const { pictures: names, masks: beside } = besideMasks(
    await listPictures(folder),
  );
  if (names.length === 0) {
    return { folder, pictures: [], unread: [], unusedMasks: [] };
  }
  const place = await maskPlace(folder, masks);
  if (place === folder && masks !== undefined && beside.length === 0) {
    throw cannot(
      `read masks from ${masks}`,
      "masks beside the pictures (a_mask.png of a.png)",
      listed(names, 3),
    );
  }
  const matched = place === folder
    ? matchMasks(names, beside)
    : await masksIn(place, names);
  const table = await captionTable(folder, names);
  const pictures: PictureFile[] = [];
  for (const name of names) {
    const mask = matched.masks.get(name);
    pictures.push({
      name,
      captions: await captionsOf(folder, name, table),
      mask: mask === undefined ? undefined : joinPath(place, mask),
    });
  }
  const read = new Set([...names, ...place === folder ? beside : []]);
  if (table) read.add(TABLE);
  const unread: string[] = [];
  for (const { name, kind } of await machine.files.list(folder)) {
    const isCaption = CAPTION.test(name) &&
      names.some((picture) =>
        [picture, stemOf(picture)].includes(name.replace(CAPTION, ""))
      );
    if (read.has(name) || isCaption || LITTER.test(name)) continue;
    const isFolder = kind === "folder";
    if (place !== folder && name === "masks" && isFolder) continue;
    unread.push(isFolder ? `${name}/` : name);
  }
  return {
    folder,
    pictures,
    unread: unread.sort(),
    unusedMasks: matched.unused.map((name) => joinPath(place, name)),
  };
}

function stemOf(name: string): string {
  return name.replace(PICTURE, "");
}

/** The captions of a picture: of a file beside it, or of the table. */
async function captionsOf(
  folder: string,
  name: string,
  table: ReadonlyMap<string, string[]> | undefined,
): Promise<PictureFile["captions"]> {
  const beside = await captionsBeside(folder, stemOf(name)) ??
    await captionsBeside(folder, name);
  const lines = table?.get(name);
  if (!lines) return beside;
  if (beside && beside.lines.join("\n") !== lines.join("\n")) {
    throw cannot(
      `read the captions of ${joinPath(folder, name)}`,
      "one place for captions, or two that say the same",
      `${beside.file} and ${TABLE}`,
    );
  }
  return { file: TABLE, lines };
}

/** The captions of a folder's table by picture, if there is one. */
async function captionTable(
  folder: string,
  names: readonly string[],
): Promise<Map<string, string[]> | undefined> {
  const path = joinPath(folder, TABLE);
  if (!await exists(path)) return undefined;
  const table = new Map<string, string[]>();
  const lines = (await readText(path)).split("\n");
  for (const [i, line] of lines.entries()) {
    if (line.trim() === "") continue;
    const row = parseJson(line, `${path}, line ${i + 1}`) as Row;
    const text = row?.text ?? row?.caption ?? row?.prompt;
    const captions = Array.isArray(text) ? text : [text];
    if (
      typeof row?.file_name !== "string" || captions.length === 0 ||
      !captions.every((one) => typeof one === "string")
    ) {
      throw cannot(
        `read ${path}, line ${i + 1}`,
        '{"file_name": "a.png", "text": "a caption"}',
        line.slice(0, 80),
      );
    }
    if (!names.includes(row.file_name)) {
      throw cannot(
        `read ${path}, line ${i + 1}`,
        "the name of a picture beside it",
        row.file_name,
      );
    }
    table.set(row.file_name, [
      ...table.get(row.file_name) ?? [],
      ...captions.map((one) => one.trim()).filter((one) => one !== ""),
    ]);
  }
  return table;
}

/** The fields of a line of the table that are used. */
interface Row {
  readonly file_name?: unknown;
  readonly text?: unknown;
  readonly caption?: unknown;
  readonly prompt?: unknown;
}
