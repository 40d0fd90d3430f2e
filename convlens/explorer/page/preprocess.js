/* A picture to what the model sees: the numbers of convlens/image/preprocess.py, and so of Pillow's resize, byte for
   byte. Only `decode` needs a browser. Sizes are in pixels, pairs of them [height, width]. */

// A ribbon of 20000 x 2 pixels would be resized to 2560000 x 256; above this, the visible middle alone is resized.
const LARGEST_RESIZED = 2 ** 24;
const MARGIN = 4; // source pixels per unit of scale around that middle, above Lanczos's reach of 3
// Pillow's fixed point (libImaging/Resample.c): 32 bits less 8 of a pixel and 2 for sums beyond its range.
const PRECISION_BITS = 22;
const LUMA_BITS = 16;
const LUMA = [19595, 38470, 7471]; // ITU-R 601, as Pillow rounds it to 16 bits

const RULES = ["center", "squash", "border"];
const FIELDS = ["channels", "input_size", "resize_size", "crop_mode", "interpolation", "mean", "std"];

/* How far each filter reaches at scale 1, and its weight at a distance; as in libImaging/Resample.c. */
const FILTERS = {
  bilinear: { reach: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { reach: 2, weight: bicubic },
  lanczos: { reach: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function bicubic(x) {
  const distance = Math.abs(x), a = -0.5;
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  return distance < 2 ? (((distance - 5) * distance + 8) * distance - 4) * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

// ---- decoding

/**
 * An image file as {width, height, data}: RGBA, upright, transparent pixels on white, colour profiles ignored.
 * Throws an Error for what the browser cannot read.
 */
export async function decode(blob) {
  const bitmap = await bitmapOf(blob);
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { width, height, data: pen.getImageData(0, 0, width, height).data };
}

async function bitmapOf(blob) {
  try {
    return await createImageBitmap(blob, {
      colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image",
    });
  } catch (cause) {
    const name = blob.name || blob.type || "these bytes";
    throw new Error(`${name}: no picture that this browser reads; use a JPEG, PNG, WebP, GIF or BMP`, { cause });
  }
}

// ---- preparing

/**
 * A decoded image as the model sees it: `x` is normalised, channels first; `display` are the same pixels as RGBA.
 *
 * `box` is their place in the original, in its pixels, beyond its sides where there is a border. `preprocessing` names
 * its fields as ModelSpec does. Throws an Error for fields that are missing or unknown, and for a model of other
 * channels than 1 (which sees grey) and 3.
 */
export function prepare(image, preprocessing) {
  requirePreprocessing(preprocessing);
  const plane = planeOf(image, preprocessing.channels);
  const plan = resizePlan(image, preprocessing);
  const edges = sourceEdges(image, plan, preprocessing);
  const [height, width] = preprocessing.input_size;
  const isRibbon = preprocessing.crop_mode === "center" && plan.width * plan.height > LARGEST_RESIZED;
  const view = isRibbon ? resizedMiddle(plane, edges, preprocessing) : framed(plane, plan, preprocessing);
  const box = { left: edges.left, top: edges.top, width: edges.right - edges.left, height: edges.bottom - edges.top };
  return { x: normalised(view, preprocessing), display: displayed(view, preprocessing), width, height, box };
}

function requirePreprocessing(preprocessing) {
  const missing = FIELDS.filter((field) => preprocessing?.[field] === undefined);
  if (missing.length) throw new Error(`preprocessing lacks ${missing.join(", ")}; needed are: ${FIELDS.join(", ")}`);
  const { channels, crop_mode: rule, interpolation, mean, std } = preprocessing;
  const filters = ["nearest", ...Object.keys(FILTERS)];
  if (!RULES.includes(rule)) throw new Error(`no crop_mode "${rule}"; there are: ${RULES.join(", ")}`);
  if (!filters.includes(interpolation)) {
    throw new Error(`no interpolation "${interpolation}"; there are: ${filters.join(", ")}`);
  }
  if (channels !== 1 && channels !== 3) {
    throw new Error(`a picture has 1 or 3 channels, and the model takes ${channels}; explain it by convlens explain`);
  }
  if (mean.length !== channels || std.length !== channels) {
    throw new Error(`mean and std have ${mean.length} and ${std.length} values; the model has ${channels} channels`);
  }
}

/* What is resized: the colours as they lie in RGBA, or grey as Pillow makes it before it resizes. */
function planeOf({ width, height, data }, channels) {
  if (width < 1 || height < 1 || data.length !== width * height * 4) {
    throw new Error(`an image of ${width} x ${height} pixels with ${data.length} bytes; need 4 bytes a pixel`);
  }
  if (channels === 3) return { width, height, data, step: 4, channels };
  const grey = new Uint8ClampedArray(width * height), half = 1 << (LUMA_BITS - 1);
  for (let n = 0, at = 0; n < grey.length; n += 1, at += 4) {
    grey[n] = (LUMA[0] * data[at] + LUMA[1] * data[at + 1] + LUMA[2] * data[at + 2] + half) >> LUMA_BITS;
  }
  return { width, height, data: grey, step: 1, channels };
}

/** The size that an image is resized to, and the view's left and top in that, negative where it has a border. */
export function resizePlan(image, preprocessing) {
  const { crop_mode: rule, input_size: [cropHeight, cropWidth], resize_size: [toHeight, toWidth] } = preprocessing;
  if (rule !== "border" && (toHeight < cropHeight || toWidth < cropWidth)) {
    throw new Error(
      `a resize to ${toHeight} x ${toWidth} is below the crop of ${cropHeight} x ${cropWidth}, which would need ` +
        "padding",
    );
  }
  const { width, height } = resizedSize(image, rule, toWidth, toHeight);
  return { width, height, left: cropOffset(width, cropWidth), top: cropOffset(height, cropHeight) };
}

function resizedSize(image, rule, toWidth, toHeight) {
  if (rule === "squash") return { width: toWidth, height: toHeight };
  if (rule === "center" && toWidth === toHeight) return shortSideResized(image, toWidth);
  const ratios = [image.height / toHeight, image.width / toWidth];
  // As timm's ResizeKeepRatio: all of the target covered, or the image within it.
  const ratio = rule === "center" ? Math.min(...ratios) : Math.max(...ratios);
  const side = (length) => Math.max(1, roundHalfEven(length / ratio));
  return { width: side(image.width), height: side(image.height) };
}

function shortSideResized({ width, height }, short) {
  return width <= height
    ? { width: short, height: Math.trunc((short * height) / width) }
    : { width: Math.trunc((short * width) / height), height: short };
}

/* Where there is a border it is torchvision's and timm's, the smaller half first; a cut is rounded half to even. */
function cropOffset(length, crop) {
  return crop > length ? -Math.floor((crop - length) / 2) : roundHalfEven((length - crop) / 2);
}

/** As Python and numpy round. */
export function roundHalfEven(value) {
  return Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
}

/* The view's edges in pixels of the original. */
function sourceEdges(image, plan, { input_size: [height, width] }) {
  const across = image.width / plan.width, down = image.height / plan.height;
  return {
    left: plan.left * across, top: plan.top * down,
    right: (plan.left + width) * across, bottom: (plan.top + height) * down,
  };
}

// ---- resizing: of each side only the pixels that are kept are computed

/* The plane resized, and its view cut out, with the training mean where the view reaches beyond it. */
function framed(plane, plan, { input_size: [height, width], interpolation, mean }) {
  const right = Math.min(plan.left + width, plan.width), bottom = Math.min(plan.top + height, plan.height);
  const columns = { first: Math.max(0, plan.left), last: right };
  const rows = { first: Math.max(0, plan.top), last: bottom };
  const across = { length: plane.width, from: 0, to: plane.width, pixels: plan.width, ...columns };
  const down = { length: plane.height, from: 0, to: plane.height, pixels: plan.height, ...rows };
  const cut = resize(plane, across, down, interpolation);
  if (columns.last - columns.first === width && rows.last - rows.first === height) return cut;
  const levels = mean.map((share) => roundHalfEven(255 * share));
  return pasted(cut, columns.last - columns.first, { width, height, left: -plan.left, top: -plan.top, levels });
}

function pasted(cut, cutWidth, { width, height, left, top, levels }) {
  const channels = levels.length, view = new Uint8ClampedArray(width * height * channels);
  for (let n = 0; n < view.length; n += 1) view[n] = levels[n % channels];
  const rowBytes = cutWidth * channels;
  for (let row = 0; row * rowBytes < cut.length; row += 1) {
    const at = ((row + Math.max(0, top)) * width + Math.max(0, left)) * channels;
    view.set(cut.subarray(row * rowBytes, (row + 1) * rowBytes), at);
  }
  return view;
}

/* The edges' inside alone, from what the filter can reach around it; Pillow keeps its edges in 32-bit floats. */
function resizedMiddle(plane, edges, { input_size: [height, width], interpolation }) {
  const margin = Math.ceil(MARGIN * Math.max(1, (edges.right - edges.left) / width));
  const left = Math.max(0, Math.trunc(edges.left) - margin), top = Math.max(0, Math.trunc(edges.top) - margin);
  const right = Math.min(plane.width, Math.ceil(edges.right) + margin);
  const bottom = Math.min(plane.height, Math.ceil(edges.bottom) + margin);
  const across = middleAxis(edges.left, edges.right, left, right, width);
  const down = middleAxis(edges.top, edges.bottom, top, bottom, height);
  return resize(plane, across, down, interpolation);
}

function middleAxis(from, to, start, end, pixels) {
  const length = end - start;
  return {
    start, length, from: Math.fround(from - start), to: Math.fround(Math.min(to - start, length)), pixels,
    first: 0, last: pixels,
  };
}

/* Pixels first..last-1 of each axis, whose `from`..`to` becomes so many `pixels`; channels last. Between its two passes
   Pillow rounds to 8 bits, and each pass computes only what is read of it. */
function resize(plane, across, down, interpolation) {
  if (interpolation === "nearest") return pickNearest(plane, across, down);
  const filter = FILTERS[interpolation], source = { ...plane, left: 0, top: 0 };
  const columnTaps = tapsOf(across, filter), rowTaps = tapsOf(down, filter);
  const columns = { first: 0, last: columnTaps.starts.length }, rows = { first: 0, last: rowTaps.starts.length };
  if (isDownFirst(across, down)) {
    return resizeAcross(resizeDown(source, rowTaps, rangeOf(columnTaps)), columnTaps, rows).data;
  }
  return resizeDown(resizeAcross(source, columnTaps, rangeOf(rowTaps)), rowTaps, columns).data;
}

/* Pillow's rule since version 13: horizontally first unless the height loses more than twice what the width does. */
function isDownFirst(across, down) {
  const lostRows = down.length - down.pixels, lostColumns = across.length - across.pixels;
  return lostRows > 0 && lostRows > 2 * lostColumns;
}

function rangeOf({ starts, ends }) {
  return { first: Math.min(...starts), last: Math.max(...ends) };
}

/* Where each pixel's source pixels start and end, and their weights in fixed point, `size` of them for each pixel. */
function tapsOf({ start = 0, length, from, to, pixels, first, last }, { reach, weight }) {
  const scale = Math.fround(to - from) / pixels, filterScale = Math.max(1, scale), support = reach * filterScale;
  const size = Math.ceil(support) * 2 + 1, count = last - first;
  const starts = new Int32Array(count), ends = new Int32Array(count), weights = new Int32Array(count * size);
  for (let n = 0; n < count; n += 1) {
    const centre = from + (first + n + 0.5) * scale;
    const low = Math.max(0, Math.trunc(centre - support + 0.5));
    const high = Math.min(length, Math.trunc(centre + support + 0.5));
    starts[n] = start + low;
    ends[n] = start + high;
    const shares = [];
    for (let at = low; at < high; at += 1) shares.push(weight((at - centre + 0.5) * (1 / filterScale)));
    fixedPoint(shares, weights.subarray(n * size));
  }
  return { starts, ends, weights, size };
}

function fixedPoint(shares, into) {
  let total = 0;
  for (const share of shares) total += share;
  for (let n = 0; n < shares.length; n += 1) {
    const part = (total === 0 ? shares[n] : shares[n] / total) * 2 ** PRECISION_BITS;
    into[n] = Math.trunc(part < 0 ? part - 0.5 : part + 0.5);
  }
}

function resizeAcross({ width, data, step, channels, left, top }, { starts, ends, weights, size }, rows) {
  const count = starts.length, out = new Uint8ClampedArray((rows.last - rows.first) * count * channels);
  let to = 0;
  for (let row = rows.first; row < rows.last; row += 1) {
    for (let n = 0; n < count; n += 1) {
      const from = ((row - top) * width + starts[n] - left) * step, taps = ends[n] - starts[n], weight = n * size;
      for (let channel = 0; channel < channels; channel += 1) {
        let sum = 1 << (PRECISION_BITS - 1);
        for (let tap = 0, at = from + channel; tap < taps; tap += 1, at += step) {
          sum = (sum + Math.imul(weights[weight + tap], data[at])) | 0;
        }
        out[to] = sum >> PRECISION_BITS; // clamped by the array
        to += 1;
      }
    }
  }
  return { width: count, data: out, step: channels, channels, left: 0, top: rows.first };
}

/* Whole lines at a time, as they lie in memory. */
function resizeDown({ width, data, step, channels, left, top }, { starts, ends, weights, size }, columns) {
  const line = (columns.last - columns.first) * step, sums = new Int32Array(line);
  const out = new Uint8ClampedArray(starts.length * line);
  for (let n = 0; n < starts.length; n += 1) {
    sums.fill(1 << (PRECISION_BITS - 1));
    for (let row = starts[n]; row < ends[n]; row += 1) {
      const weight = weights[n * size + row - starts[n]], from = ((row - top) * width + columns.first - left) * step;
      for (let at = 0; at < line; at += 1) sums[at] += Math.imul(weight, data[from + at]);
    }
    for (let at = 0; at < line; at += 1) out[n * line + at] = sums[at] >> PRECISION_BITS;
  }
  return { width: columns.last - columns.first, data: out, step, channels, left: columns.first, top: 0 };
}

function pickNearest({ width, data, step, channels }, across, down) {
  const columns = nearestOf(across), rows = nearestOf(down);
  const out = new Uint8ClampedArray(columns.length * rows.length * channels);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      for (let channel = 0; channel < channels; channel += 1, to += 1) {
        // Pillow leaves a pixel black that its sums of steps place beyond the edge.
        out[to] = row < 0 || column < 0 ? 0 : data[(row * width + column) * step + channel];
      }
    }
  }
  return out;
}

/* The source pixel of each pixel, -1 for none. Positions are added up, step by step, as Pillow does: the rounding of
   the sums decides what lies near an edge between two pixels. */
function nearestOf({ start = 0, length, from, to, pixels, first, last }) {
  const step = Math.fround(to - from) / pixels, indices = new Int32Array(last - first);
  let position = from + step * 0.5;
  for (let n = 0; n < last; n += 1, position += step) {
    const index = Math.trunc(position);
    if (n >= first) indices[n - first] = index < length ? start + index : -1;
  }
  return indices;
}

// ---- the result

/* (value / 255 - mean) / std, each step in 32-bit floats as numpy computes it, channels first. */
function normalised(view, { channels, mean, std }) {
  const pixels = view.length / channels, x = new Float32Array(view.length);
  for (let channel = 0; channel < channels; channel += 1) {
    const table = new Float32Array(256), middle = Math.fround(mean[channel]), spread = Math.fround(std[channel]);
    for (let level = 0; level < 256; level += 1) {
      table[level] = Math.fround(Math.fround(level / 255) - middle) / spread;
    }
    for (let n = 0; n < pixels; n += 1) x[channel * pixels + n] = table[view[n * channels + channel]];
  }
  return x;
}

/* RGBA of the channels that are shown as red, green and blue; one channel as grey. */
function displayed(view, { channels, display_channels: chosen }) {
  const shown = chosen?.length ? chosen : channels === 3 ? [0, 1, 2] : [0];
  const pixels = view.length / channels, rgba = new Uint8ClampedArray(pixels * 4);
  for (let n = 0; n < pixels; n += 1) {
    for (let colour = 0; colour < 3; colour += 1) {
      rgba[n * 4 + colour] = view[n * channels + shown[shown.length === 1 ? 0 : colour]];
    }
    rgba[n * 4 + 3] = 255;
  }
  return rgba;
}
