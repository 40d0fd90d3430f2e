/* Runs exported graphs for many images, and reads what they return.

   A session has `async run(graph, x, count, targets) -> {outputName: {data, dims}}`: `count` images in `x`, channels
   first, and for graphs of gradients a class each. `site` is site.json. */

// Images of one run. On two cores ONNX Runtime was fastest with 4; the memory of a page is what bounds it otherwise.
const BATCH = 4;

export const LOGITS = "logits_NK", GRADIENT = "gradient_NCHW", MAPS = "maps_NCHW", MAPS_GRADIENT = "maps_gradient_NCHW";

/**
 * The outputs of a graph for `count` images, in batches: {first, rows, outputs}.
 *
 * `write(n, image)` fills in each image in its order. A graph that takes one batch size alone gets empty images behind
 * the last, and what it gives for them is left out by `rows`.
 */
export async function* inBatches(session, site, graph, { count, write, target = null }) {
  const { channels, input_size: [height, width] } = site.preprocessing;
  const size = channels * height * width, fixed = fixedBatch(site, graph), most = fixed ?? BATCH;
  for (let first = 0; first < count; first += most) {
    const rows = Math.min(most, count - first), sent = fixed ?? rows;
    const images = new Float32Array(sent * size);
    for (let n = 0; n < rows; n += 1) write(first + n, images.subarray(n * size, (n + 1) * size));
    const targets = target === null ? null : new Array(sent).fill(target);
    const outputs = await session.run(graph, images, sent, targets);
    if (outputs[LOGITS]) requireFinite(outputs[LOGITS].data);
    yield { first, rows, outputs };
  }
}

/* The one batch size that a graph takes; null where it takes any. */
function fixedBatch(site, graph) {
  const size = site.graphs[graph].inputs[0].shape[0];
  return typeof size === "number" && size > 0 ? size : null;
}

/** Throws an Error where the model gave NaN or infinity. */
export function requireFinite(values) {
  if (!values.every(Number.isFinite)) {
    throw new Error("the model's scores are NaN or infinite for this image; its weights may be damaged");
  }
}

/** The first image's output; a copy, since a session may use its memory again. */
export function firstRow(outputs, name) {
  const { data, dims } = outputs[name];
  return data.slice(0, data.length / dims[0]);
}

/** The outputs of one image alone, and the target's logit. */
export async function outputsOf({ session, site, x, target }, graph) {
  const one = { count: 1, write: (_, image) => image.set(x), target };
  for await (const { outputs } of inBatches(session, site, graph, one)) {
    return { outputs, score: outputs[LOGITS].data[target] };
  }
}

/** What the network gives for an image: its logits, or the embedding of a network without classes. */
export async function predict(session, site, x) {
  const rows = inBatches(session, site, "scores", { count: 1, write: (_, image) => image.set(x) });
  for await (const { outputs } of rows) return firstRow(outputs, LOGITS);
}

/** What each layer of the atlas gives for an image, by name: {data, dims}, the image the first of the batch. */
export async function features(session, site, x) {
  const rows = inBatches(session, site, "features", { count: 1, write: (_, image) => image.set(x) });
  for await (const { outputs } of rows) return outputs;
}

/** Probabilities of logits, in 64-bit floats: softmax over all classes, sigmoid of each, or "none": as they are. */
export function probabilities(logits, activation) {
  const values = Float64Array.from(logits);
  if (activation === "none") return values;
  if (activation === "sigmoid") return values.map((logit) => 1 / (1 + Math.exp(-logit)));
  if (activation !== "softmax") {
    throw new Error(`no activation "${activation}"; there are: softmax, sigmoid, none`);
  }
  const largest = values.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const powers = values.map((logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/** The most probable classes as {index, probability}, most probable first; of equal ones the lower index. */
export function topClasses(shares, count) {
  const order = Array.from(shares, (_, index) => index).sort((a, b) => shares[b] - shares[a] || a - b);
  return order.slice(0, count).map((index) => ({ index, probability: shares[index] }));
}
