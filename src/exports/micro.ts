/**
 * The embedded world: drawings, scenes, captions, the sixteen identities.
 *
 * @example
 * ```ts
 * import { IDENTITIES, NOUNS } from "@mix-of-show/mix-of-show/micro";
 *
 * console.log(NOUNS.length, IDENTITIES.map(({ name }) => name));
 * ```
 *
 * @module
 */

export { type Art, loadArt, type Sprite } from "../micro/art.ts";
export {
  captionOf,
  type CaptionOptions,
  captionScene,
} from "../micro/captions.ts";
export {
  type ConceptImage,
  conceptImage,
  conceptImages,
  type FrameSet,
  identityOf,
  loadConceptArt,
} from "../micro/concepts.ts";
export {
  type ConceptPrompts,
  loadPrompts,
  type Prompt,
  type PROMPT_GROUPS,
  type PromptFacts,
  type PromptGroup,
  promptText,
} from "../micro/prompts.ts";
export {
  heldOutScene,
  renderScene,
  sampleScene,
  type SampleSceneOptions,
  type Scene,
  type SceneObject,
  type ScenePlace,
  trainScene,
} from "../micro/scenes.ts";
export { teach, type TeachOptions } from "../micro/teach.ts";
export { sketchImage, type SketchObject } from "../micro/sketch.ts";
export {
  type Background,
  type Color,
  type Design,
  IDENTITIES,
  type Identity,
  type Noun,
  NOUNS,
  type PLACES,
  WORLD,
  type World,
} from "../micro/world.ts";
