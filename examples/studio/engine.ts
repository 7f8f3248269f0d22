/**
 * Model, concepts and what is fused of them: all that needs the library. Runs
 * in the worker, one job at a time.
 *
 * @module
 */
import {
  type AdapterSampling,
  type BackendChoice,
  type Concept,
  disposeConcept,
  disposeModel,
  drawLayout,
  type DrawOptions,
  embeddedModel,
  encodePng,
  fuse,
  type Layout,
  loadConcept,
  loadLora,
  loadModel,
  loadSingleFile,
  loadT2IAdapter,
  loraConcept,
  type Model,
  parseLayout,
  type Pixels,
  regionAdapters,
  resolveLayout,
  selectBackend,
  toPixels,
  weightFusion,
} from "@mix-of-show/mix-of-show";
import {
  layoutIn,
  textsOf,
  withSettings,
  withTexts,
} from "@mix-of-show/mix-of-show/formats";
import { modelSize } from "@mix-of-show/mix-of-show/nn";
import type {
  Combine,
  ConceptInfo,
  Drawn,
  DrawRequest,
  Found,
  JobName,
  Jobs,
  ModelInfo,
  Progress,
} from "./messages.ts";

/** Keyword of what a layout does not hold: how concepts act, how strongly. */
const KEYWORD = "mix_of_show_studio";

/** Sampling steps in which gradient fusion observes: half as many as usual. */
const FEATURE_STEPS = 10;

/**
 * Ridge of gradient fusion, the best fixed one of the development concepts.
 * Cross-validation would solve every layer a dozen times more.
 */
const RIDGE = 0.01;

/** The person has asked to stop. */
export class Stopped extends Error {}

/** What a job is given besides what it is asked. */
export interface Watch {
  /** Tells how far it is. */
  progress(progress: Progress): void;
  /** Lets messages in; throws {@linkcode Stopped} if one says so. */
  breathe(): Promise<void>;
}

/** The jobs, as functions that take a while. */
export type Engine = {
  readonly [Name in JobName]: (
    job: Parameters<Jobs[Name]>[0],
    watch: Watch,
  ) => Promise<ReturnType<Jobs[Name]>>;
};

/** Runs a generator of the library to its end, unless it is stopped. */
async function run<Record, Result>(
  work: AsyncGenerator<Record, Result, void>,
  { breathe }: Watch,
  each: (record: Record) => void | Promise<void>,
): Promise<Result> {
  let ended = false;
  try {
    for (;;) {
      const next = await work.next();
      ended = next.done === true;
      if (next.done) return next.value;
      await each(next.value);
      await breathe();
    }
  } finally {
    // What it holds is freed.
    if (!ended) await work.return(undefined as Result);
  }
}

/** How a concept is described to the page. */
const infoOf = ({ name, phrase, classWord, tokens }: Concept): ConceptInfo => ({
  ...{ name, phrase, classWord, tokens: tokens.length > 0 },
});

/** A name's part that a file system adds. */
const stem = (name: string) =>
  name.replace(/^.*[\\/]/, "").replace(/\.[^.]*$/, "");

/** A concept of this library or of the official code, else any LoRA. */
async function openConcept(
  file: Blob | string,
  model: Model,
): Promise<Concept> {
  const name = stem(typeof file === "string" ? file : (file as File).name);
  const from = typeof file === "string" ? new URL(file, import.meta.url) : file;
  try {
    return await loadConcept(from, model);
  } catch (first) {
    try {
      const lora = await loadLora(from, model);
      // Without learned tokens somebody has to say what calls it.
      return loraConcept(lora, { name, classWord: name });
    } catch (second) {
      throw /ED-LoRA|tokens/.test(`${second}`) ? first : second;
    }
  }
}

/** All that is said in a layout. */
const textsIn = ({ prompt, negative, regions }: Layout) => [
  ...[prompt, negative],
  ...regions.flatMap((region) => [region.prompt, region.negative ?? ""]),
];

/** The concepts that a layout calls. */
function called(layout: Layout, concepts: Iterable<Concept>): Concept[] {
  const texts = textsIn(layout).map((text) => text.toLowerCase());
  return [...concepts].filter(({ phrase }) =>
    texts.some((text) => text.includes(phrase.toLowerCase()))
  );
}

/** A model with concepts in it, ready to draw a layout. */
interface Cast {
  readonly model: Model;
  readonly options: Pick<DrawOptions, "regions" | "concepts" | "pipeline">;
  dispose(): void;
}

/** Concepts that each act inside the boxes which call them. */
async function castInBoxes(
  base: Model,
  layout: Layout,
  concepts: readonly Concept[],
  strengths: DrawRequest["strengths"],
): Promise<Cast> {
  const { regions } = await resolveLayout({ ...layout, conditions: [] });
  const sampling: AdapterSampling = regionAdapters(
    base,
    regions.map((region, i) => ({
      ...region,
      concepts: concepts.filter(({ name }) =>
        layout.regions[i].concepts.includes(name)
      ),
    })),
    {
      ...layout.regional,
      skipLast: layout.clipSkip - 1,
      syntax: layout.syntax,
      weights: (name) => strengths[name] ?? 1,
    },
  );
  const { unet, denoise } = sampling.pipeline;
  return {
    model: sampling.model,
    options: {
      concepts: concepts.map(({ name }) => name),
      ...(unet && { regions: () => ({ unet, dispose() {} }) }),
      ...(denoise && { pipeline: { denoise } }),
    },
    dispose: () => sampling.dispose(),
  };
}

/**
 * An engine without a model.
 *
 * @returns Its jobs; one at a time.
 */
export function createEngine(): Engine {
  let backend = "";
  let name = "";
  let base: Model | undefined;
  let sketch: NonNullable<DrawOptions["networks"]>[string] | undefined;
  /** The last fusion, and what it was made of. */
  let fused: { readonly of: string; readonly model: Model } | undefined;
  const concepts = new Map<string, Concept>();

  const need = (): Model => {
    if (base) return base;
    throw new Error("Cannot work: expected a model, got none");
  };
  const letGo = () => {
    if (fused) disposeModel(fused.model, need());
    fused = undefined;
  };
  const clear = () => {
    letGo();
    concepts.forEach(disposeConcept);
    concepts.clear();
    if (base) disposeModel(base);
    base = undefined;
  };

  async function fusion(
    how: Exclude<Combine, "boxes">,
    cast: readonly Concept[],
    strengths: DrawRequest["strengths"],
    watch: Watch,
  ): Promise<Model> {
    const values = cast.map(({ name }) => strengths[name] ?? 1);
    const of = JSON.stringify([how, cast.map(infoOf), values]);
    if (fused?.of === of) return fused.model;
    letGo();
    const alphas = values.map((value) => ({ unet: value, textEncoder: value }));
    watch.progress({ what: "fusing", done: 0, total: 0 });
    const model = how === "weight"
      ? weightFusion(need(), cast, { strengths: alphas })
      : await run(
        fuse(need(), cast, {
          strengths: alphas,
          steps: FEATURE_STEPS,
          ridge: RIDGE,
        }),
        watch,
        (record) => {
          const { index: done, total } = record;
          const what = record.type === "layer"
            ? "fusing layers"
            : `observing ${record.concept}`;
          watch.progress({ what, done, total });
        },
      );
    fused = { of, model };
    return model;
  }

  /** The layout as it is drawn and written: boxes name their concepts. */
  function sceneOf({ layout, combine }: DrawRequest): Layout {
    const scene = parseLayout(layout);
    const regions = scene.regions.map((region) => ({
      ...region,
      concepts: combine === "boxes"
        ? called({
          ...scene,
          ...{ prompt: "", negative: "" },
          regions: [region],
        }, concepts.values()).map(({ name }) => name)
        : [],
    }));
    return { ...scene, regions, size: scene.size ?? modelSize(need()) };
  }

  return {
    async model(
      { file, tokenizer, backend: choice = "auto" },
      watch,
    ): Promise<ModelInfo> {
      watch.progress({ what: "loading the model", done: 0, total: 0 });
      // What is no backend is refused there, in words.
      ({ describe: backend } = await selectBackend(choice as BackendChoice));
      // Two models at once may be more than the card holds.
      clear();
      if (file) {
        base = await loadSingleFile(file, { tokenizer: String(tokenizer) });
        name = stem((file as File).name ?? "model");
      } else {
        base = await loadModel(embeddedModel);
        name = "embedded";
        sketch ??= {
          type: "t2i_adapter",
          ...await loadT2IAdapter(new URL("adapter", embeddedModel)),
        };
      }
      const halvings = [base.autoencoder, base.unet].map(({ config }) =>
        config.block_out_channels.length - 1
      );
      return {
        ...{ name, backend, size: modelSize(base), sketch: !file },
        factor: 2 ** (halvings[0] + halvings[1]),
      };
    },

    async concept({ file }, watch) {
      watch.progress({ what: "reading a concept", done: 0, total: 0 });
      const concept = await openConcept(file, need());
      const old = concepts.get(concept.name);
      if (old) disposeConcept(old);
      letGo();
      concepts.set(concept.name, concept);
      return infoOf(concept);
    },

    call({ name, phrase }) {
      const concept = concepts.get(name)!;
      const next = { ...concept, phrase, classWord: concept.classWord };
      concepts.set(name, next);
      return Promise.resolve(infoOf(next));
    },

    forget({ name }) {
      const concept = concepts.get(name);
      if (concept) disposeConcept(concept);
      concepts.delete(name);
      return Promise.resolve();
    },

    async draw(request, watch): Promise<Drawn> {
      const start = performance.now();
      const { combine, strengths } = request;
      const scene = sceneOf(request);
      const cast = called(scene, concepts.values());
      const resolved = await resolveLayout(scene);
      const made: Cast = cast.length === 0
        ? { model: need(), options: {}, dispose() {} }
        : combine === "boxes"
        ? await castInBoxes(need(), scene, cast, strengths)
        : {
          model: await fusion(combine, cast, strengths, watch),
          options: {},
          dispose() {},
        };
      let picture: Pixels | undefined;
      try {
        await run(
          drawLayout(made.model, resolved, {
            ...made.options,
            networks: sketch ? { sketch } : {},
          }),
          watch,
          async (record) => {
            if (record.type === "step") {
              const { index, total } = record;
              watch.progress({ what: "drawing", done: index + 1, total });
              return;
            }
            [picture] = await toPixels(record.images);
            record.images.dispose();
          },
        );
      } finally {
        made.dispose();
      }
      const settings = { combine, strengths };
      const png = withTexts(
        withSettings(encodePng(picture!), {
          ...{ layout: scene, settings: scene, number: 0, model: name },
          size: scene.size!,
        }),
        { [KEYWORD]: JSON.stringify(settings) },
      );
      return {
        png: Uint8Array.from(png),
        seconds: (performance.now() - start) / 1000,
        concepts: cast.map(({ name }) => name),
      };
    },

    async read({ file }): Promise<Found> {
      const bytes = new Uint8Array(await file.arrayBuffer());
      const isPng = bytes[0] === 0x89 && bytes[1] === 0x50;
      const layout = isPng
        ? await layoutIn(file)
        : JSON.parse(new TextDecoder().decode(bytes));
      parseLayout(layout, (file as File).name);
      const own = isPng ? textsOf(bytes).get(KEYWORD) : undefined;
      return { layout, ...(own ? JSON.parse(own) : {}) };
    },
  };
}
