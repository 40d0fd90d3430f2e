/* Random numbers that a seed repeats on every machine. */

/** A function that draws from the standard normal distribution: the same numbers for the same seed, on any machine. */
export function normalDraws(seed) {
  const uniform = uniformDraws(seed);
  let spare = null;
  return () => {
    if (spare !== null) {
      const drawn = spare;
      spare = null;
      return drawn;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

/* 0 <= draw < 1 by xoshiro128** (Blackman & Vigna 2021, arXiv:1805.01407), its state filled by splitmix64. */
function uniformDraws(seed) {
  const state = Uint32Array.from(splitmix(BigInt(seed)));
  const turned = (value, bits) => (value << bits) | (value >>> (32 - bits));
  return () => {
    const drawn = Math.imul(turned(Math.imul(state[1], 5), 7), 9) >>> 0, shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = turned(state[3], 11);
    return drawn / 2 ** 32;
  };
}

/* Four 32-bit words of which no two seeds have the same. */
function splitmix(seed) {
  const words = [], cut = (value) => BigInt.asUintN(64, value);
  let state = seed;
  while (words.length < 4) {
    state = cut(state + 0x9e3779b97f4a7c15n);
    let mixed = cut((state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n);
    mixed = cut((mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn);
    mixed ^= mixed >> 31n;
    words.push(Number(mixed & 0xffffffffn), Number(mixed >> 32n));
  }
  return words;
}
