// The Trajectory Transformer and Algorithm 1 in the browser: what ttlib's model.py, cache.py and search.py do.

/** Return the error function of x, to 1.2e-7 (Abramowitz and Stegun 1964, 7.1.26). */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

/** Return log-probabilities of logits[from], ..., logits[from + V - 1]. */
function logSoftmax(logits, from, V) {
  const row = logits.slice(from, from + V), top = Math.max(...row);
  const norm = top + Math.log(row.reduce((sum, logit) => sum + Math.exp(logit - top), 0));
  return row.map(logit => logit - norm);
}

/**
 * Run Algorithm 1 for one problem and return its beams, best first, each with its bins and log-probability q.
 * advance(bins, parents) appends a bin to each sequence that continues one of the sequences before, and returns
 * log-probabilities of the next bin, a row for each. logP holds those of the first bin.
 */
function beamSearch(advance, logP, length, width) {
  let beams = [{q: 0, bins: []}];
  for (let step = 0; step < length; step++) {
    const longer = [];
    beams.forEach((beam, parent) => logP[parent].forEach((p, bin) => longer.push({q: beam.q + p, parent, bin})));
    longer.sort((a, b) => b.q - a.q);
    const kept = longer.slice(0, width);
    beams = kept.map(({q, parent, bin}) => ({q, bins: [...beams[parent].bins, bin]}));
    if (step + 1 < length) logP = advance(kept.map(each => each.bin), kept.map(each => each.parent));
  }
  return beams;
}

/**
 * A Transformer that reads token ids. Each token that it has read has a slot, which keeps its keys and values, and
 * the slot of the token before it, its parent. So sequences that fork are a tree, and share what they have in common.
 */
class Transformer {
  constructor({sizes, tensors, weights}) {
    Object.assign(this, sizes);  // as in ModelConfig, and low and high, the ends of the bins
    const bytes = atob(weights), bits = new Uint32Array(bytes.length / 2), floats = new Float32Array(bits.buffer);
    for (let i = 0; i < bits.length; i++) {  // a bfloat16 is the upper half of a float32
      bits[i] = (bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8)) << 16;
    }
    let at = 0;
    this.weights = {};
    for (const [name, count] of tensors) this.weights[name] = Float64Array.from(floats.subarray(at, at += count));
    this.ids = []; this.parents = []; this.positions = [];  // of the slots
    const room = 20 * this.max_tokens * 3 * this.d_model;  // for a beam of 16, and more
    this.stored = Array.from({length: this.n_layer}, () => new Float64Array(room));  // queries, keys, values by slot
  }

  /** Return the slots of a token and of all tokens before it. */
  path(slot) {
    const path = new Array(this.positions[slot] + 1);
    for (let i = path.length - 1; i >= 0; i--, slot = this.parents[slot]) path[i] = slot;
    return path;
  }

  /**
   * Return x W^T + b for n rows of x. Four rows and two columns are made at once, since that is faster: arrays have
   * three rows to spare, and an even number of columns.
   */
  linear(x, n, K, name) {
    const W = this.weights[`${name}.weight`], b = this.weights[`${name}.bias`], M = b.length;
    const y = new Float64Array((n + 3) * M);
    for (let m = 0; m < M; m += 2) {
      for (let row = 0; row < n; row += 4) {
        let y0 = b[m], y1 = y0, y2 = y0, y3 = y0, z0 = b[m + 1], z1 = z0, z2 = z0, z3 = z0;
        let i0 = row * K, i1 = i0 + K, i2 = i1 + K, i3 = i2 + K;
        for (let w = m * K, v = w + K, end = v; w < end; w++, v++, i0++, i1++, i2++, i3++) {
          const p = W[w], q = W[v], x0 = x[i0], x1 = x[i1], x2 = x[i2], x3 = x[i3];
          y0 += p * x0; y1 += p * x1; y2 += p * x2; y3 += p * x3;
          z0 += q * x0; z1 += q * x1; z2 += q * x2; z3 += q * x3;
        }
        const at = row * M + m;
        y[at] = y0; y[at + M] = y1; y[at + 2 * M] = y2; y[at + 3 * M] = y3;
        y[at + 1] = z0; y[at + M + 1] = z1; y[at + 2 * M + 1] = z2; y[at + 3 * M + 1] = z3;
      }
    }
    return y;
  }

  /** Return the layer norm of n rows of x. */
  norm(x, n, name) {
    const scale = this.weights[`${name}.weight`], shift = this.weights[`${name}.bias`], d = this.d_model;
    const y = new Float64Array(x.length);
    for (let from = 0; from < n * d; from += d) {
      let mean = 0, variance = 0;
      for (let i = 0; i < d; i++) mean += x[from + i] / d;
      for (let i = 0; i < d; i++) variance += (x[from + i] - mean) ** 2 / d;
      const factor = 1 / Math.sqrt(variance + 1e-5);
      for (let i = 0; i < d; i++) y[from + i] = (x[from + i] - mean) * factor * scale[i] + shift[i];
    }
    return y;
  }

  /** Let the tokens in slots first, first + 1, ... attend to their paths; their keys and values are stored. */
  attend(qkv, first, layer, paths) {
    const d = this.d_model, size = d / this.n_head, n = paths.length, stored = this.stored[layer];
    const y = new Float64Array((n + 3) * d);
    stored.set(qkv.subarray(0, n * 3 * d), first * 3 * d);
    const scores = new Float64Array(this.max_tokens);
    paths.forEach((path, row) => {
      for (let head = 0; head < d; head += size) {
        const q = (first + row) * 3 * d + head;
        let top = -Infinity, sum = 0;
        for (let j = 0; j < path.length; j++) {
          const k = path[j] * 3 * d + d + head;
          let score = 0;
          for (let i = 0; i < size; i++) score += stored[q + i] * stored[k + i];
          scores[j] = score / Math.sqrt(size);
          if (scores[j] > top) top = scores[j];
        }
        for (let j = 0; j < path.length; j++) sum += scores[j] = Math.exp(scores[j] - top);
        for (let j = 0; j < path.length; j++) {
          const weight = scores[j] / sum, v = path[j] * 3 * d + 2 * d + head;
          for (let i = 0; i < size; i++) y[row * d + head + i] += weight * stored[v + i];
        }
      }
    });
    return y;
  }

  /** Read ids after the slots `parents` (-1: the first token), and return log-probabilities of each one's next bin. */
  read(ids, parents) {
    const d = this.d_model, n = ids.length, first = this.ids.length;
    const token = this.weights["token.weight"], position = this.weights["position.weight"];
    const x = new Float64Array((n + 3) * d);
    ids.forEach((id, row) => {
      const place = parents[row] < 0 ? 0 : this.positions[parents[row]] + 1;
      this.ids.push(id); this.parents[first + row] = parents[row]; this.positions[first + row] = place;
      for (let i = 0; i < d; i++) x[row * d + i] = token[id * d + i] + position[place * d + i];
    });
    const paths = ids.map((_, row) => this.path(first + row)), add = y => y.forEach((value, i) => { x[i] += value; });
    for (let layer = 0; layer < this.n_layer; layer++) {
      const name = `blocks.${layer}`, qkv = this.linear(this.norm(x, n, `${name}.norm_attention`), n, d, `${name}.qkv`);
      add(this.linear(this.attend(qkv, first, layer, paths), n, d, `${name}.out`));
      const up = this.linear(this.norm(x, n, `${name}.norm_mlp`), n, d, `${name}.up`);
      for (let i = 0; i < up.length; i++) up[i] *= 0.5 * (1 + erf(up[i] * Math.SQRT1_2));  // GELU
      add(this.linear(up, n, 4 * d, `${name}.down`));
    }
    const logits = this.linear(this.norm(x, n, "norm"), n, d, "head");
    return ids.map((_, row) => logSoftmax(logits, row * this.V, this.V));
  }

  id(bin, dim) { return bin + this.V * dim; }

  /** Read a context, of which the tokens that it shares with the last one are known, and be ready to plan. */
  begin(ids) {
    let known = 0;
    while (known < ids.length - 1 && this.ids[known] === ids[known]) known++;
    this.ids.length = known;
    this.next = this.read(ids.slice(known), ids.slice(known).map((_, i) => known + i - 1)).at(-1);
  }

  /** Search for the likeliest tokens of `horizon` steps, from the action of the context's last state on. */
  plan(horizon, width) {
    let slots = [this.ids.length - 1], dim = this.N;
    const advance = (bins, parents) => {
      const first = this.ids.length, rows = this.read(bins.map(bin => this.id(bin, dim)), parents.map(p => slots[p]));
      slots = bins.map((_, i) => first + i); dim = (dim + 1) % this.D;
      return rows;
    };
    const context = this.ids.length, beams = beamSearch(advance, [this.next], horizon * this.D - this.N, width);
    this.ids.length = context;
    return beams;
  }

  /** Return the probability of each pair of bins of the next two tokens, if the first has at least `least`. */
  pairs(least) {
    const context = this.ids.length, likely = [...this.next.keys()].filter(bin => this.next[bin] > Math.log(least));
    const second = this.read(likely.map(bin => this.id(bin, this.N)), likely.map(() => context - 1));
    this.ids.length = context;
    return likely.map((bin, i) => [bin, second[i].map(q => Math.exp(this.next[bin] + q))]);
  }
}
