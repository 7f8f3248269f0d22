/**
 * The pictures that were drawn, in the browser's own database. Each PNG says
 * itself what it was drawn from, so nothing else is kept.
 *
 * @module
 */
import { byId, keyed, make } from "./page.ts";

/** A picture that was drawn. */
export interface Entry {
  /** Tells it from others; later ones have higher numbers. */
  readonly id: number;
  /** The PNG. */
  readonly png: Blob;
  /** What to call it. */
  readonly title: string;
}

/** The list of pictures. */
export interface Gallery {
  /** Adds a picture. */
  add(png: Blob, title: string): Promise<void>;
}

/** Older pictures are let go. */
const MOST = 60;

/** A request as a promise. */
const answer = <T>(request: IDBRequest<T>) =>
  new Promise<T>((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function openStore(): Promise<
  (mode: IDBTransactionMode) => IDBObjectStore
> {
  const request = indexedDB.open("mix-of-show-studio", 1);
  request.onupgradeneeded = () =>
    request.result.createObjectStore("pictures", {
      keyPath: "id",
      autoIncrement: true,
    });
  const base = await answer(request);
  return (mode) => base.transaction("pictures", mode).objectStore("pictures");
}

/**
 * Shows the pictures.
 *
 * @param onOpen Called with a picture that was chosen.
 * @returns Adds pictures. Where the browser keeps nothing (a private window),
 * they stay until the page is left.
 */
export async function gallery(
  onOpen: (entry: Entry) => void,
): Promise<Gallery> {
  const list = byId("history", HTMLOListElement);
  const forget = byId("forget", HTMLButtonElement);
  const store = await openStore().catch(() => undefined);
  let entries: Entry[] = store ? await answer(store("readonly").getAll()) : [];
  const addresses = new Map<number, string>();

  function show(): void {
    const newest = entries.toReversed();
    keyed(list, newest, ({ id }) => String(id), (entry) => {
      const src = URL.createObjectURL(entry.png);
      addresses.set(entry.id, src);
      const button = make(
        "button",
        { type: "button", className: "entry", title: "Bring it back" },
        make("img", { src, alt: "" }),
        make("span", { textContent: entry.title }),
      );
      button.addEventListener("click", () => onOpen(entry));
      return make("li", {}, button);
    }, () => {});
    for (const [id, src] of addresses) {
      if (entries.some((entry) => entry.id === id)) continue;
      URL.revokeObjectURL(src);
      addresses.delete(id);
    }
    forget.hidden = entries.length === 0;
    byId("history-empty", HTMLParagraphElement).hidden = entries.length > 0;
  }

  forget.addEventListener("click", async () => {
    if (!confirm("Clear the history? The pictures are gone then.")) return;
    if (store) await answer(store("readwrite").clear());
    entries = [];
    show();
  });
  show();
  return {
    async add(png, title) {
      const id = store
        ? await answer(store("readwrite").add({ png, title })) as number
        : (entries.at(-1)?.id ?? 0) + 1;
      entries = [...entries, { id, png, title }];
      const old = entries.slice(0, -MOST);
      entries = entries.slice(-MOST);
      if (store) { for (const { id } of old) store("readwrite").delete(id); }
      show();
    },
  };
}
