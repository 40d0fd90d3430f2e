/* The units of a picture that answer most: of each channel the one where its map is largest. */

/* What a list may be sorted by: the activation as a share of the largest on the atlas's images, or itself. */
const ORDERS = { share: (unit) => unit.share ?? -Infinity, activation: (unit) => unit.activation };

/**
 * The `count` strongest units of a layer as {channel, activation, y, x, share, page, picture}, strongest first, of equal
 * ones the lower channel.
 *
 * `channels` are the atlas's of the layer, as in site.json; `output` {data, dims} is what the layer gives for the
 * picture, as the first of a batch; y and x are null where it gives no map. `share` is null for a channel that no image
 * of the atlas excites. Throws an Error for another `order`, and for a channel that the layer has not.
 */
export function strongestUnits(channels, output, count, order) {
  if (!ORDERS[order]) throw new Error(`no order "${order}"; there are: ${Object.keys(ORDERS).join(", ")}`);
  const units = channels.map((known) => unitOf(known, output));
  const value = ORDERS[order];
  return units.sort((a, b) => value(b) - value(a) || a.channel - b.channel).slice(0, count);
}

function unitOf({ strongest, ...known }, { data, dims }) {
  const [, count, height = 1, width = 1] = dims;
  if (known.channel >= count) {
    throw new Error(`the atlas has channel ${known.channel} of a layer of ${count}; write the folder again`);
  }
  const start = known.channel * height * width;
  let largest = start;
  for (let place = start; place < start + height * width; place += 1) if (data[place] > data[largest]) largest = place;
  const activation = data[largest];
  const [y, x] = dims.length > 2 ? [Math.floor((largest - start) / width), (largest - start) % width] : [null, null];
  return { ...known, activation, y, x, share: strongest > 0 ? activation / strongest : null };
}
