/* What a network says of a picture: probability and logit by class, all of them or the best that a server names. */

export class Scores {
  #rows;
  #order;

  /* `rows`: [class index, {probability, logit}], of one picture. */
  constructor(rows) {
    this.#rows = new Map(rows);
    // A stable sort by logit, so that equal ones come by index, as everywhere in ConvLens.
    this.#order = [...this.#rows.keys()].sort((a, b) => this.#rows.get(b).logit - this.#rows.get(a).logit || a - b);
  }

  static ofArrays(logits, probabilities) {
    return new Scores(Array.from(logits, (logit, index) => [index, { logit, probability: probabilities[index] }]));
  }

  get count() {
    return this.#rows.size;
  }

  top(count) {
    return this.#order.slice(0, count);
  }

  /* null where a server did not name the class. */
  of(index) {
    return this.#rows.get(index) ?? null;
  }
}
