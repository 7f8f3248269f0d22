/**
 * Small tools for elements of a page.
 *
 * @module
 */

/**
 * The element of an id.
 *
 * @param id The id.
 * @param type What it has to be.
 * @throws If the page has none of it.
 */
export function byId<T extends HTMLElement>(
  id: string,
  type: new () => T,
): T {
  const found = document.getElementById(id);
  if (found instanceof type) return found;
  throw new Error(`Cannot show the page: expected a ${type.name} #${id}`);
}

/**
 * Makes an element.
 *
 * @param tag Its kind.
 * @param fields Its properties.
 * @param children What is in it.
 */
export function make<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  fields: Partial<HTMLElementTagNameMap[Tag]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
}

/**
 * Keeps an element per item: those that stay keep focus and cursor.
 *
 * @param parent Where they are.
 * @param items In their order.
 * @param key Tells items apart.
 * @param create Makes the element of a new item.
 * @param update Shows an item in its element.
 */
export function keyed<Item, E extends HTMLElement>(
  parent: HTMLElement,
  items: readonly Item[],
  key: (item: Item) => string,
  create: (item: Item) => E,
  update: (element: E, item: Item, index: number) => void,
): void {
  const old = new Map(
    [...parent.children].map((element) => {
      const child = element as E;
      return [child.dataset.key, child] as const;
    }),
  );
  const next = items.map((item, i) => {
    const name = key(item);
    const element = old.get(name) ?? create(item);
    element.dataset.key = name;
    update(element, item, i);
    old.delete(name);
    return element;
  });
  old.forEach((element) => element.remove());
  next.forEach((element, i) => {
    if (parent.children[i] !== element) {
      parent.insertBefore(element, parent.children[i] ?? null);
    }
  });
}

/**
 * Sets a field unless somebody is typing in it.
 *
 * @param field The field.
 * @param value What it should say.
 */
export function fill(
  field: HTMLInputElement | HTMLSelectElement,
  value: string | number,
): void {
  const text = String(value);
  if (field.value !== text && document.activeElement !== field) {
    field.value = text;
  }
}

/**
 * Follows a pointer from where it went down.
 *
 * @param down How it began.
 * @param frame What parts are measured in.
 * @param each Called with how far it is from the beginning, in parts.
 * @param end Called when it is lifted.
 */
export function follow(
  down: PointerEvent,
  frame: HTMLElement,
  each: (dx: number, dy: number) => void,
  end: () => void = () => {},
): void {
  const { width, height } = frame.getBoundingClientRect();
  const target = down.target as HTMLElement;
  target.setPointerCapture(down.pointerId);
  const control = new AbortController();
  const { signal } = control;
  target.addEventListener("pointermove", (event) => {
    each(
      (event.clientX - down.clientX) / width,
      (event.clientY - down.clientY) / height,
    );
  }, { signal });
  for (const name of ["pointerup", "pointercancel"] as const) {
    target.addEventListener(name, () => {
      control.abort();
      end();
    }, { signal });
  }
}

/**
 * Gives a file to the person.
 *
 * @param name What to call it.
 * @param content What is in it.
 */
export function save(name: string, content: Blob): void {
  const href = URL.createObjectURL(content);
  make("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}
