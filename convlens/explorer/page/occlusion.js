/* What the network loses where a part of the image is hidden. */
import { LOGITS, inBatches, predict, probabilities } from "./graph_runs.js";
import { number, whole } from "./options.js";

/** Zeiler & Fergus 2014, arXiv:1311.2901: the mean score lost over the windows that cover each pixel. */
export async function occlusion(task) {
  const { x, target, options } = task, [, height, width] = task.dims;
  const sweep = sweepOptions(options);
  const own = await predict(task.session, task.site, x), scoreOf = scorer(task, own);
  const grids = sweep.sizes.map((size) => new WindowGrid(height, width, size, sweep.stride));
  const total = grids.reduce((sum, grid) => sum + grid.corners.length, 0);
  let done = 0;
  const onDrops = async (count) => {
    done += count;
    await task.onPartial({ done, total, values: meanOfSizes(grids, height * width), dims: [1, height, width] });
  };
  for (const grid of grids) await sweepOver(task, grid, sweep.fill, { scoreOf, own, onDrops });
  return {
    values: meanOfSizes(grids, height * width),
    dims: [1, height, width],
    target, score: scoreOf(own), target_kind: options.score,
    grids: grids.map(({ size, rows, columns, drops }) => ({ window: size, rows, columns, drops })),
  };
}

function sweepOptions(options) {
  const sizes = [options.window].flat();
  for (const size of sizes) whole({ window: size }, "window", 1, 4096);
  if (!sizes.length || sizes.length > 8) throw new Error(`${sizes.length} window sizes; use 1 to 8`);
  if (new Set(sizes).size < sizes.length) throw new Error(`a window is named twice in ${sizes.join(", ")}`);
  if ((options.strategy ?? "full") !== "full" || (options.precision ?? "float32") !== "float32") {
    throw new Error("sweeps in a page are made in full and in float32; leave strategy and precision out");
  }
  const stride = whole(options, "stride", 1, 4096), smallest = Math.min(...sizes);
  if (stride > smallest) {
    throw new Error(`stride=${stride} with window=${smallest} would skip pixels; use 1..${smallest}`);
  }
  if (options.score !== "logit" && options.score !== "probability") {
    throw new Error(`no score "${options.score}"; there are: logit, probability`);
  }
  return { sizes, stride, fill: number(options, "fill", -10, 10) };
}

/* From what the network gives for one image to the score that the sweep watches. */
function scorer({ site, target, options }, own) {
  if (target < 0) return (embedding) => cosine(embedding, own);
  if (options.score === "logit") return (logits) => logits[target];
  return (logits) => probabilities(logits, site.model.activation)[target];
}

function cosine(a, b) {
  let product = 0, lengthA = 0, lengthB = 0;
  for (let n = 0; n < a.length; n += 1) {
    product += a[n] * b[n];
    lengthA += a[n] ** 2;
    lengthB += b[n] ** 2;
  }
  return product / Math.max(Math.sqrt(lengthA) * Math.sqrt(lengthB), Number.MIN_VALUE);
}

async function sweepOver({ session, site, x, dims }, grid, fill, { scoreOf, own, onDrops }) {
  const [channels, height, width] = dims, score = scoreOf(own);
  const write = (n, image) => {
    image.set(x);
    fillWindow(image, grid.window(n), { channels, height, width }, fill);
  };
  for await (const batch of inBatches(session, site, "scores", { count: grid.corners.length, write })) {
    const { data, dims: [images] } = batch.outputs[LOGITS], classes = data.length / images;
    for (let n = 0; n < batch.rows; n += 1) {
      grid.add(batch.first + n, score - scoreOf(data.subarray(n * classes, (n + 1) * classes)));
    }
    await onDrops(batch.rows);
  }
}

function fillWindow(image, { left, right, top, bottom }, { channels, height, width }, fill) {
  for (let channel = 0; channel < channels; channel += 1) {
    for (let row = top; row < bottom; row += 1) {
      const from = (channel * height + row) * width;
      if (right > left) image.fill(fill, from + left, from + right);
    }
  }
}

/* Square windows over an image, row by row, the last of each row flush with the edge, and what each has cost. */
class WindowGrid {
  constructor(height, width, size, stride) {
    Object.assign(this, { height, width, size });
    const tops = startsOf(height, size, stride), lefts = startsOf(width, size, stride);
    this.rows = tops.length;
    this.columns = lefts.length;
    this.corners = tops.flatMap((top) => lefts.map((left) => ({ left, top })));
    this.drops = new Float32Array(this.corners.length);
    this.sums = new Float64Array(height * width);
    this.covers = new Int32Array(height * width);
  }

  window(n) {
    const { left, top } = this.corners[n];
    const right = Math.min(left + this.size, this.width), bottom = Math.min(top + this.size, this.height);
    return { left, right, top, bottom };
  }

  add(n, drop) {
    const { left, right, top, bottom } = this.window(n);
    this.drops[n] = drop;
    for (let row = top; row < bottom; row += 1) {
      for (let at = row * this.width + left; at < row * this.width + right; at += 1) {
        this.sums[at] += drop;
        this.covers[at] += 1;
      }
    }
  }
}

function startsOf(length, size, stride) {
  const last = Math.max(length - size, 0), starts = [];
  for (let start = 0; start < last; start += stride) starts.push(start);
  return [...starts, last];
}

/* Each size's map so far, and the mean of those that have reached the pixel; 0 where none has. */
function meanOfSizes(grids, pixels) {
  const values = new Float32Array(pixels);
  for (let at = 0; at < pixels; at += 1) {
    let sum = 0, reached = 0;
    for (const { sums, covers } of grids) {
      if (covers[at]) {
        sum += sums[at] / covers[at];
        reached += 1;
      }
    }
    values[at] = reached ? sum / reached : 0;
  }
  return values;
}

/**
 * What the network gives for the image with a window filled: {left, top, width, height} in pixels of the model's input,
 * or a list of such, as a brush paints them. What lies outside the image is left out. `fill` is in normalised units, 0
 * is the training mean. Throws an Error where nothing is hidden.
 */
export async function hideWindow(session, site, x, window, fill = 0) {
  const { channels, input_size: [height, width] } = site.preprocessing;
  const hidden = Float32Array.from(x);
  let covered = 0;
  for (const each of [window].flat()) {
    const left = Math.max(0, Math.round(each.left)), right = Math.min(width, Math.round(each.left + each.width));
    const top = Math.max(0, Math.round(each.top)), bottom = Math.min(height, Math.round(each.top + each.height));
    covered += Math.max(0, right - left) * Math.max(0, bottom - top);
    fillWindow(hidden, { left, right, top, bottom }, { channels, height, width }, fill);
  }
  if (!covered) {
    throw new Error(`a window that hides nothing of the ${height} x ${width} pixels; put it on the image`);
  }
  return predict(session, site, hidden);
}
