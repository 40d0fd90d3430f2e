/* Options of methods, held against their bounds. */

/** A whole number of low..high; throws an Error for another value. */
export function whole(options, name, low, high) {
  const value = number(options, name, low, high);
  if (!Number.isInteger(value)) throw new Error(`${name}=${value} is no whole number; use ${low}..${high}`);
  return value;
}

/** A number of low..high; throws an Error for another value. */
export function number(options, name, low, high) {
  const value = options[name];
  if (typeof value !== "number" || !(value >= low && value <= high)) {
    throw new Error(`${name}=${value} is out of range; use ${low}..${high}`);
  }
  return value;
}
