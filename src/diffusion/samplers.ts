/**
 * Samplers: {@linkcode plan} says what is done, {@linkcode sampleSteps} does it
 * with a {@linkcode denoiser}.
 *
 * @module
 */
export {
  type Denoise,
  type Denoised,
  denoiser,
  type Predict,
} from "./samplers/denoise.ts";
export { plan, samplerFromConfig, SAMPLERS } from "./samplers/plan.ts";
export {
  type KeptLatent,
  sample,
  type SampleOptions,
  type SamplerState,
  type SampleStep,
  sampleSteps,
} from "./samplers/run.ts";
export type {
  ClipRule,
  Combination,
  Level,
  PlanOptions,
  SamplerCall,
  SamplerName,
  SamplerPlan,
} from "./samplers/table.ts";
