/**
 * The list of concepts: what they are called, how strongly they act.
 *
 * @module
 */
import type { ConceptInfo } from "./messages.ts";
import { byId, fill, keyed, make } from "./page.ts";
import { SHIPPED } from "./state.ts";

/** What the page does when somebody works on concepts. */
export interface ConceptEvents {
  /** The concepts there are. */
  concepts(): readonly ConceptInfo[];
  /** How strongly one acts. */
  strength(name: string): number;
  /** Sets that. */
  setStrength(name: string, strength: number): void;
  /** Puts one into the picture. */
  place(name: string): void;
  /** Lets one go. */
  forget(name: string): void;
  /** Says how a LoRA without tokens is called. */
  call(name: string, phrase: string): void;
}

/**
 * What people call a concept.
 *
 * @param concept The concept.
 */
export function labelOf({ name, classWord }: ConceptInfo): string {
  const shipped = SHIPPED.find(([, own]) => own === name)?.[0];
  if (shipped) return `${name}, a ${shipped}`;
  return classWord && classWord !== name ? `${name} (${classWord})` : name;
}

/**
 * Shows the concepts and hears what is done to them.
 *
 * @param events What the page does.
 * @returns Shows them as they are now.
 */
export function conceptList(events: ConceptEvents): () => void {
  const list = byId("concepts", HTMLUListElement);
  const create = (concept: ConceptInfo): HTMLLIElement => {
    const { name } = concept;
    const place = make("button", { type: "button", textContent: "Use" });
    const away = make("button", { type: "button", textContent: "✕" });
    const strength = make("input", {
      ...{ type: "range", min: "0", max: "2", step: "0.05" },
    });
    place.ariaLabel = `Use ${labelOf(concept)} in the picture`;
    away.ariaLabel = `Remove ${labelOf(concept)}`;
    strength.ariaLabel = `Strength of ${labelOf(concept)}`;
    place.addEventListener("click", () => events.place(name));
    away.addEventListener("click", () => events.forget(name));
    strength.addEventListener(
      "input",
      () => events.setStrength(name, strength.valueAsNumber),
    );
    const row = make(
      "li",
      {},
      make("b", { textContent: labelOf(concept) }),
      place,
      away,
      make("label", {}, "Strength", strength, make("output")),
    );
    if (!concept.tokens) {
      const words = make("input", { type: "text", value: concept.phrase });
      words.addEventListener("change", () => events.call(name, words.value));
      row.append(make("label", {}, "Called by", words));
    }
    return row;
  };
  return () =>
    keyed(list, events.concepts(), ({ name }) => name, create, (row, one) => {
      const value = events.strength(one.name);
      fill(row.querySelector<HTMLInputElement>("input[type=range]")!, value);
      row.querySelector("output")!.value = value.toFixed(2);
    });
}
