/**
 * Reverse-mode differentiation over tfjs's tape that frees memory as it goes.
 *
 * tfjs records every operation, saves what any gradient could need, and frees
 * all of it, and every intermediate gradient, when the whole backward pass is
 * over. Here operations that no wanted input reaches are not recorded, inputs
 * that only the gradient of a frozen weight needs are not saved, and saved
 * tensors and gradients go as soon as the walk has passed them.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";

type Inputs = Record<string, tf.Tensor>;
type Gradient = (
  dys: (tf.Tensor | null)[],
) => Record<string, () => tf.Tensor>;

interface TapeNode {
  readonly kernelName: string;
  readonly inputs: Inputs;
  readonly outputs: tf.Tensor[];
  readonly saved: tf.Tensor[];
  gradient?: Gradient;
}

/** What is used of tfjs's engine; the package does not type it. */
interface Engine {
  state: {
    gradientDepth: number;
    activeTape: TapeNode[] | null;
  };
  nextTensorId(): number;
  startTape(): void;
  endTape(): void;
  tidy<T>(name: string, fn: () => T): T;
  addTapeNode(
    kernelName: string,
    inputs: Inputs,
    outputs: tf.Tensor[],
    gradient: unknown,
    saved: tf.Tensor[],
    attrs: unknown,
  ): void;
  getTensorsForGradient(
    kernelName: string,
    inputs: Inputs,
    outputs: tf.Tensor[],
  ): tf.Tensor[];
  saveTensorsForBackwardMode(tensors: tf.Tensor[]): tf.Tensor[];
  gradients(
    f: () => tf.Tensor,
    xs: tf.Tensor[],
    dy: tf.Tensor | undefined,
    allowNoGradients: boolean,
  ): { value: tf.Tensor; grads: (tf.Tensor | undefined)[] };
}

/**
 * Kernels whose first input is only needed for the gradient of the second, and
 * the other way round, with the names of the two.
 */
const PRODUCTS: Readonly<Record<string, readonly [string, string]>> = {
  BatchMatMul: ["a", "b"],
  Conv2D: ["x", "filter"],
  Multiply: ["a", "b"],
};

/** Kernels whose gradients only need to know the shapes of their inputs. */
const SHAPES_ONLY: ReadonlySet<string> = new Set([
  "Add",
  "Sub",
  "Reshape",
  "Sum",
  "Mean",
  "Slice",
  "Concat",
  "PadV2",
]);

/**
 * A gradient repeated along the axes that were summed. tfjs multiplies it by
 * ones, which it makes on the host at the size of the input.
 */
function spreadSum(
  dy: tf.Tensor,
  shape: number[],
  axis: number | number[],
): tf.Tensor {
  const axes = new Set(tf.util.parseAxisParam(axis, shape));
  const kept = shape.map((size, i) => axes.has(i) ? 1 : size);
  return tf.tile(
    tf.reshape(dy, kept),
    shape.map((size, i) => axes.has(i) ? size : 1),
  );
}

/** Gradients of sums by the input `x`. */
const SPREAD: Readonly<Record<string, typeof spreadSum>> = {
  Sum: spreadSum,
  Mean: (dy, shape, axis) => {
    const axes = tf.util.parseAxisParam(axis, shape);
    const count = axes.reduce((product, i) => product * shape[i], 1);
    return spreadSum(tf.div(dy, count), shape, axis);
  },
};

/** Stands for a tensor of which a gradient only needs the shape. */
function shapeOf({ shape, dtype, rank, rankType, size }: tf.Tensor): tf.Tensor {
  return {
    shape,
    dtype,
    rank,
    rankType,
    size,
    dispose: () => {},
  } as unknown as tf.Tensor;
}

/**
 * Frees what an operation saved. `tf.dispose` would look for tensors in all that
 * is in it: an eighth of the time, where tensors are small.
 */
function freeSaved(saved: readonly (tf.Tensor | undefined)[] | undefined) {
  saved?.forEach((tensor) => tensor?.dispose());
}

/** What is being recorded; tfjs has one tape, and so there is one of these. */
interface Recording {
  /** Ids of the tensors that the differentiated ones reach. */
  readonly reached: ReadonlySet<number>;
  /** Tensors from this id on have been made while recording. */
  readonly first: number;
}

let recording: Recording | undefined;

/**
 * What is being recorded, if anything is: operations on tensors outside
 * `reached` leave no trace, tensors from `first` on may be gone on the way back.
 */
export function currentRecording(): Recording | undefined {
  return recording;
}

/**
 * Value and gradients of a function.
 *
 * @param f The function; what it computes with must reach it through `xs`.
 * @param xs What to differentiate by.
 * @param dy The gradient of the value; ones without it.
 * @returns The value and a gradient for each of `xs`, undefined where the
 * function does not depend on it; all belong to the caller's scope.
 * @throws If an operation on the way has no gradient.
 */
export function gradientsOf(
  f: () => tf.Tensor,
  xs: readonly tf.Tensor[],
  dy?: tf.Tensor,
): { value: tf.Tensor; grads: (tf.Tensor | undefined)[] } {
  const engine = tf.engine() as unknown as Engine;
  // Gradients of gradients need the whole tape.
  if (engine.state.gradientDepth > 0) {
    return engine.gradients(f, [...xs], dy, true);
  }
  const reached = new Set(xs.map(({ id }) => id));
  const { value, tape } = record(engine, f, reached);
  try {
    return engine.tidy("backward", () => ({
      value,
      grads: walkBack(engine, tape, value, xs, reached, dy),
    }));
  } finally {
    for (const { saved } of tape) freeSaved(saved);
  }
}

/** Runs a function; returns its value and the operations that `reached` reaches. */
function record(
  engine: Engine,
  f: () => tf.Tensor,
  reached: Set<number>,
): { value: tf.Tensor; tape: TapeNode[] } {
  const { addTapeNode, getTensorsForGradient, saveTensorsForBackwardMode } =
    engine;
  const reaches = (tensor: tf.Tensor | null | undefined): boolean =>
    !!tensor && reached.has(tensor.id);
  engine.addTapeNode = (name, inputs, outputs, gradient, saved, attrs) => {
    if (!Object.values(inputs).some(reaches)) {
      freeSaved(saved);
      return;
    }
    outputs.forEach(({ id }) => reached.add(id));
    addTapeNode.call(engine, name, inputs, outputs, gradient, saved, attrs);
    const spread = SPREAD[name];
    if (!spread) return;
    const { axis } = attrs as { axis: number | number[] };
    const node = engine.state.activeTape!.at(-1)!;
    node.gradient = ([dy]) => ({ x: () => spread(dy!, inputs.x.shape, axis) });
  };
  engine.getTensorsForGradient = (name, inputs, outputs) => {
    if (!Object.values(inputs).some(reaches)) return [];
    const needed = getTensorsForGradient.call(engine, name, inputs, outputs);
    if (SHAPES_ONLY.has(name)) return needed.map(shapeOf);
    const pair = PRODUCTS[name];
    if (!pair || needed.length !== 2) return needed;
    const [first, second] = pair.map((input) => inputs[input]);
    return [
      reaches(second) ? needed[0] : shapeOf(needed[0]),
      reaches(first) ? needed[1] : shapeOf(needed[1]),
    ];
  };
  engine.saveTensorsForBackwardMode = (tensors) =>
    tensors.flatMap((tensor) =>
      tensor instanceof tf.Tensor
        ? saveTensorsForBackwardMode.call(engine, [tensor])
        : [tensor]
    );
  const outer = recording;
  recording = { reached, first: engine.nextTensorId() };
  engine.startTape();
  const recorded = engine.state.activeTape!;
  try {
    return { value: engine.tidy("forward", f), tape: recorded };
  } catch (error) {
    for (const { saved } of recorded) freeSaved(saved);
    throw error;
  } finally {
    recording = outer;
    engine.endTape();
    engine.state.activeTape = null;
    Object.assign(engine, {
      addTapeNode,
      getTensorsForGradient,
      saveTensorsForBackwardMode,
    });
  }
}

/** The backward pass over a recorded tape. */
function walkBack(
  engine: Engine,
  tape: readonly TapeNode[],
  value: tf.Tensor,
  xs: readonly tf.Tensor[],
  reached: ReadonlySet<number>,
  dy?: tf.Tensor,
): (tf.Tensor | undefined)[] {
  const wanted = new Set(xs.map(({ id }) => id));
  const sums = new Map<number, tf.Tensor>();
  if (reached.has(value.id)) {
    sums.set(value.id, dy ? tf.clone(dy) : tf.ones(value.shape));
  }
  const free = (id: number): void => {
    if (wanted.has(id)) return;
    sums.get(id)?.dispose();
    sums.delete(id);
  };
  for (let i = tape.length - 1; i >= 0; i--) {
    const node = tape[i];
    const dys = node.outputs.map(({ id }) => sums.get(id) ?? null);
    // What has no gradient by now does not lead to the value.
    if (dys.some((dy) => dy !== null)) {
      const inputs = Object.entries(node.inputs).filter(([, x]) =>
        x && reached.has(x.id)
      );
      // Copies share their data. They are the walk's to free, whatever a custom
      // gradient hands out: a saved tensor, dy itself, a constant of its own.
      const parts = engine.tidy(node.kernelName, () => {
        const by = gradientOf(node)(dys);
        return inputs.map(([name, x]) =>
          tf.clone(gradientBy(node, by, name, x))
        );
      });
      inputs.forEach(([, x], k) => {
        const part = parts[k];
        const before = sums.get(x.id);
        if (!before) {
          sums.set(x.id, part);
          return;
        }
        sums.set(x.id, tf.add(before, part));
        tf.dispose([before, part]);
      });
      node.outputs.forEach(({ id }) => free(id));
    }
    freeSaved(node.saved);
  }
  return xs.map(({ id }) => sums.get(id));
}

function gradientOf({ kernelName, gradient }: TapeNode): Gradient {
  if (gradient) return gradient;
  throw new Error(`Cannot differentiate: ${kernelName} has no gradient`);
}

function gradientBy(
  { kernelName }: TapeNode,
  by: Record<string, () => tf.Tensor>,
  name: string,
  x: tf.Tensor,
): tf.Tensor {
  const gradient = by[name];
  if (!gradient) {
    throw new Error(
      `Cannot differentiate: ${kernelName} has no gradient by ${name}`,
    );
  }
  const dx = gradient();
  if (!tf.util.arraysEqual(dx.shape, x.shape)) {
    throw new Error(
      `Cannot differentiate: expected ${kernelName}'s gradient by ${name} of ` +
        `shape [${x.shape}], got [${dx.shape}]`,
    );
  }
  return dx;
}
