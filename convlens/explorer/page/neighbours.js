/* The gallery's nearest pictures by Euclidean distance, every one compared. */

/* How a vector is compared, by the gallery's metric. */
const SPACES = { unit: (vector) => scaledToUnit(vector), raw: (vector) => vector };

function scaledToUnit(vector) {
  const length = Math.hypot(...vector);
  return length ? vector.map((part) => part / length) : vector;
}

/* `gallery` as in site.json; `vectors` its rows one after another. */
export function nearest(gallery, vectors, query, count) {
  const { dimension, entries, metric } = gallery;
  if (query.length !== dimension || vectors.length !== dimension * entries.length) {
    throw new Error(
      `the gallery has ${entries.length} vectors of ${dimension} numbers, the picture's has ${query.length}; write the `
        + "folder again with convlens explore");
  }
  if (!SPACES[metric]) throw new Error(`no metric "${metric}"; there are: ${Object.keys(SPACES).join(", ")}`);
  const from = SPACES[metric](query);
  const distances = entries.map((_, row) => distance(vectors, row * dimension, from));
  return [...distances.keys()].sort((a, b) => distances[a] - distances[b] || a - b).slice(0, count)
    .map((row) => ({ ...entries[row], distance: distances[row] }));
}

function distance(vectors, start, query) {
  let sum = 0;
  for (let n = 0; n < query.length; n += 1) sum += (vectors[start + n] - query[n]) ** 2;
  return Math.sqrt(sum);
}
