// Reads tokens with the Trajectory Transformer for many sequences that fork: fp32, one thread, exact up to rounding.
//
// It does what `control.Decoder` does.  Four ideas make it fast:
// - A sequence is a list of pages of keys and values, so forking and dropping sequences moves no key.
// - Equal sequences are read once.  Rows do not depend on each other, so a chunk of them passes through all layers
//   while its activations stay in the cache of the core.
// - decoder.py packs weights once, in the order in which products read them.  Bias, GELU and the residual sum are added
//   while a result is still in registers.
// - The first layer sees a token and a position alone, so its queries, keys and values are looked up and added.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

typedef int64_t Int;  // of all sizes, since products of sizes may be large
#if defined(__AVX512F__)
constexpr Int W = 16, TILE_ROWS = 12;  // numbers in a vector; rows of a product whose sums fit the registers
#elif defined(__AVX__)
constexpr Int W = 8, TILE_ROWS = 6;
#else
constexpr Int W = 4, TILE_ROWS = 6;
#endif
constexpr Int PANEL = 2 * W;      // columns of a product that are computed together
constexpr Int CHUNK = 96;         // rows that pass through all layers together
constexpr Int SLAB = 32;          // pages that are allocated together
constexpr float HIDDEN = -1e30f;  // the score of what a token may not see

// -- vectors --
typedef float Vector __attribute__((vector_size(W * 4)));
typedef int32_t Integers __attribute__((vector_size(W * 4)));
typedef float Anywhere __attribute__((vector_size(W * 4), aligned(4), may_alias));

static inline Vector load(const float *from) { return *(const Anywhere *)from; }
static inline void store(float *to, Vector x) { *(Anywhere *)to = x; }
static inline Vector all(float x) { return x - Vector{}; }
static inline Int up(Int n, Int multiple) { return (n + multiple - 1) / multiple * multiple; }

template <class Join> static inline float across(Vector x, Join join) {
    float part[W];
    store(part, x);
    for (Int half = W / 2; half; half /= 2)
        for (Int i = 0; i < half; i++) part[i] = join(part[i], part[i + half]);
    return part[0];
}
static inline float sum(Vector x) { return across(x, [](float a, float b) { return a + b; }); }
static inline float largest(Vector x) { return across(x, [](float a, float b) { return a > b ? a : b; }); }

// Returns the polynomial in x with these coefficients, that of the highest power first.
template <size_t N> static inline Vector polynomial(Vector x, const float (&coefficients)[N]) {
    Vector total = all(coefficients[0]);
    for (size_t i = 1; i < N; i++) total = total * x + coefficients[i];
    return total;
}

// Returns e^x by the polynomial of the Cephes library, to 2 units in the last place; 0 below e^-87, NaN for NaN.
static inline Vector exponential(Vector x) {
    const Vector low = all(-87.0f), bounded = x < low ? low : x;
    const Vector shifted = bounded * 1.44269504f + 12582912.0f;  // its last bits are the nearest integer n
    const Vector n = shifted - 12582912.0f;
    const Vector r = bounded - n * 0.693359375f + n * 2.12194440e-4f;  // x - n log 2
    const Vector p = polynomial(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                    1.6666665459e-1f, 5.0000001201e-1f}) * r * r + r + 1.0f;
    const Vector scaled = (Vector)((Integers)p + ((Integers)shifted << 23));
    return x < low ? Vector{} : x == x ? scaled : x;
}

// Returns x Phi(x), as F.gelu.  erf is the quotient of polynomials of the Eigen library, to 3e-7.
static inline Vector gelu(Vector x) {
    Vector z = x * 0.70710678f;
    z = z > all(4.0f) ? all(4.0f) : z < all(-4.0f) ? all(-4.0f) : z;
    const Vector s = z * z;
    const Vector p = polynomial(s, {-2.72614226e-10f, 2.77068142e-08f, -2.10102402e-06f, -5.69250639e-05f,
                                    -7.34990630e-04f, -2.95459980e-03f, -1.60960333e-02f});
    const Vector q = polynomial(
        s, {-1.45660719e-05f, -2.13374055e-04f, -1.68282697e-03f, -7.37332917e-03f, -1.42647391e-02f});
    return 0.5f * x * (1.0f + z * p / q);
}

// Subtracts the mean of x (d) and returns 1 / standard deviation, as LayerNorm defines it.
static float centre(Int d, const float *x, float *centred) {
    Vector total = {}, squares = {};
    for (Int i = 0; i < d; i += W) total += load(x + i);
    const Vector mean = all(sum(total) / d);
    for (Int i = 0; i < d; i += W) {
        const Vector c = load(x + i) - mean;
        squares += c * c;
        store(centred + i, c);
    }
    return 1 / std::sqrt(sum(squares) / d + 1e-5f);
}

// Replaces scores (n), n a multiple of W, by e^(score - the largest), and returns the largest and the sum.
static std::pair<float, float> soften(float *scores, Int n) {
    Vector top = load(scores), total = {};
    for (Int i = W; i < n; i += W) {
        const Vector x = load(scores + i);
        top = x > top ? x : top;
    }
    const float most = largest(top);
    for (Int i = 0; i < n; i += W) {
        const Vector e = exponential(load(scores + i) - most);
        total += e;
        store(scores + i, e);
    }
    return {most, sum(total)};
}

// -- memory and products of matrices --
template <class T> struct Aligned {  // allocates at the beginning of a cache line
    typedef T value_type;
    T *allocate(size_t n) { return static_cast<T *>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T *p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const Aligned &) const { return true; }
    bool operator!=(const Aligned &) const { return false; }
};
typedef std::vector<float, Aligned<float>> Floats;

static void make_room(Floats &x, size_t size) {
    if (x.size() < size) x.resize(size);
}

struct Rows {  // a matrix somewhere in memory
    float *at;
    Int stride;
    float *operator[](Int row) const { return at + row * stride; }
};

struct Table {  // a matrix that owns its memory
    Floats data;
    Int stride = 0;
    // Rows are padded to whole panels.  Strides that are powers of two would share few places of a cache.
    void fit(Int rows, Int columns) { stride = up(columns, PANEL) + W, make_room(data, rows * stride); }
    float *operator[](Int row) { return &data[row * stride]; }
    Rows from(Int row, Int column = 0) { return {&data[row * stride + column], stride}; }
};

enum After { STORE, GELU, ADD };  // what becomes of a result: stored, stored after GELU, added to what is there

// Computes at most ROWS rows of a product, and one panel of columns.  a: (rows, K); panel: (K, PANEL); c: (rows, PANEL)
template <Int ROWS, After AFTER>
static void tile(Int rows, Int K, Rows a, const float *panel, const float *bias, Rows c) {
    if constexpr (ROWS > 1)
        if (rows < ROWS) return tile<ROWS - 1, AFTER>(rows, K, a, panel, bias, c);
    Vector total[ROWS][2];
    for (Int r = 0; r < ROWS; r++)
        for (Int j = 0; j < 2; j++) total[r][j] = bias ? load(bias + j * W) : Vector{};
    for (Int k = 0; k < K; k++, panel += PANEL) {
        const Vector b0 = load(panel), b1 = load(panel + W);
#pragma GCC unroll 12
        for (Int r = 0; r < ROWS; r++) total[r][0] += b0 * a[r][k], total[r][1] += b1 * a[r][k];
    }
    for (Int r = 0; r < ROWS; r++)
        for (Int j = 0; j < 2; j++) {
            const Vector x = total[r][j];
            store(c[r] + j * W, AFTER == GELU ? gelu(x) : AFTER == ADD ? x + load(c[r] + j * W) : x);
        }
}

// Computes c = a b + bias.  a: (rows, K); b: panels (N / PANEL, K, PANEL); bias: (N) or null; c: (rows, N)
template <After AFTER> static void multiply(Int rows, Int N, Int K, Rows a, const float *b, const float *bias, Rows c) {
    const Int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (Int n = 0; n < N; n += PANEL, b += K * PANEL)
        for (Int t = 0; t < tiles; t++) {  // tiles are equally high, as far as possible
            const Int first = rows * t / tiles, height = rows * (t + 1) / tiles - first;
            tile<TILE_ROWS, AFTER>(height, K, {a[first], a.stride}, b, bias ? bias + n : nullptr,
                                   {c[first] + n, c.stride});
        }
}

// -- the model --
struct Linear {  // weights as panels (N / PANEL, K, PANEL) and a bias (N); N is rounded up to whole panels
    const float *panels, *bias;
    Int N, K;
    template <After AFTER> void apply(Int rows, Rows a, Rows c) const {
        multiply<AFTER>(rows, N, K, a, panels, bias, c);
    }
};
struct Layer { Linear qkv, out, up, down; };

struct Model {  // LayerNorms have no gain and shift, and scores no scale: they are folded into the matrices that follow
    Int d, heads, V, ids;
    const float *token, *position;          // (ids, d), (positions, d), centred
    const float *token_qkv, *position_qkv;  // (ids, 3 d), (positions, 3 d): their products with the first layer's qkv
    std::vector<Layer> layers;
    Linear head;

    // sizes: d, heads, V, ids, layers; weights: in the order of these fields
    Model(const int64_t *sizes, const float *const *weights)
        : d(sizes[0]), heads(sizes[1]), V(sizes[2]), ids(sizes[3]), token(weights[0]), position(weights[1]),
          token_qkv(weights[2]), position_qkv(weights[3]), layers(sizes[4]) {
        weights += 4;
        const auto next = [&](Int N, Int K) { return weights += 2, Linear{weights[-2], weights[-1], up(N, PANEL), K}; };
        for (Layer &layer : layers) layer = {next(3 * d, d), next(d, d), next(4 * d, d), next(d, 4 * d)};
        head = next(V, d);
    }
};

// -- sequences and their attention --
struct Part { Int page, used; };  // the first `used` tokens of a page

struct Sequences {  // of equal length, in the order of their environments
    std::vector<Int> environment, end;  // of each sequence; `parts` of all sequences follow one another
    std::vector<Part> parts;

    Int count() const { return environment.size(); }
    Int first(Int i) const { return i ? end[i - 1] : 0; }
    Int pages(Int i) const { return end[i] - first(i); }
};

// Returns the sum of four, which were added up apart so that no addition waits for the one before.
static inline Vector joined(const Vector (&total)[4]) { return (total[0] + total[1]) + (total[2] + total[3]); }

// Computes the scores of W tokens for one query q (d_head).  keys: (d_head, W)
static inline Vector score(Int d_head, const float *q, const float *keys) {
    Vector total[4] = {};
    for (Int i = 0; i < d_head; i += 4)
        for (Int c = 0; c < 4; c++) total[c] += load(keys + (i + c) * W) * q[i + c];
    return joined(total);
}

// -- the decoder --
struct Decoder {
    const Model m;
    const Int d, d_head, layers, d_value;  // d_value: d_head in whole panels
    // Keys and values of contexts, by layer: (E, H) times panels (L / PANEL, d_head, PANEL) and (d_value / PANEL, L,
    // PANEL).  The last panel of keys is padded.
    std::vector<Floats> context_keys, context_values;
    Int groups = 0, L = 0, L_padded = 0, grown = 0;  // grown: tokens of each sequence after its context
    // Pages hold W tokens that follow one another: for each layer keys (H, d_head, W), then values (H, W, d_head).
    std::vector<Floats> slabs;
    std::vector<Int> filled, spare;  // tokens in each page; pages that no sequence uses
    const Int page_size;
    Sequences now, next;
    std::vector<Int> sequence, parent;  // of each row its sequence; of each new row the sequence that it continues
    std::vector<Int> token;             // the id at the end of each sequence
    // Activations of rows, and of the rows of one head
    Table x, normed, qkv, mixed, hidden, logits, scores, mean;
    float scale[CHUNK];
    Floats log_p;  // (sequences, V)

    Decoder(const int64_t *sizes, const float *const *weights)
        : m(sizes, weights), d(m.d), d_head(d / m.heads), layers(m.layers.size()), d_value(up(d_head, PANEL)),
          context_keys(layers), context_values(layers), page_size(2 * W * d + 5 * 16) {}  // no power of two

    float *keys(Int l, Int e, Int h) { return &context_keys[l][(e * m.heads + h) * L_padded * d_head]; }
    float *values(Int l, Int e, Int h) { return &context_values[l][(e * m.heads + h) * L * d_value]; }
    float *page(Int l, Int g) { return &slabs[g / SLAB][(l * SLAB + g % SLAB) * page_size]; }

    Int bytes() const { return 4 * (Int)slabs.size() * SLAB * layers * page_size; }  // nearly all of its memory

    // Reads contexts ids (E, L), and forgets all that was read before -> out (E, V).
    void begin(Int E, Int length, const int64_t *ids, const float *empty, float *out) {
        for (Int i = 0; i < E * length; i++)
            if (ids[i] < 0 || ids[i] >= m.ids) throw std::out_of_range("id");
        groups = E, L = length, L_padded = up(L, PANEL), grown = 0;
        for (Int l = 0; l < layers; l++) {
            make_room(context_keys[l], E * m.heads * L_padded * d_head);
            make_room(context_values[l], E * m.heads * L * d_value);
        }
        now = {}, sequence.clear();
        for (Int e = 0; e < E; e++) {
            now.environment.push_back(e), now.end.push_back(0), sequence.push_back(e);
            read_context(e, ids + e * L, empty, out + e * m.V);
        }
    }
    // Returns the sequence of one of the rows of group g of G.
    Int find(Int g, Int G, Int row) const {
        const Int width = (Int)sequence.size() / G;
        if (row < 0 || row >= width) throw std::out_of_range("row");
        return sequence[g * width + row];
    }
    // Appends bins (G, K) to the sequences `parents` (G, K) of each group, null: to themselves -> out (G, K, V).
    // first: the id of bin 0; blank: bin 0 is read whatever the bin; empty (V): -inf for bins without mass, or null.
    void advance(Int G, Int K, const int64_t *bins, const int64_t *parents, Int first, bool blank, const float *empty,
                 float *out) {
        if (G != groups || (!parents && G * K != (Int)sequence.size())) throw std::out_of_range("row");
        parent.resize(G * K);
        for (Int r = 0; r < G * K; r++) {
            if (bins[r] < 0 || bins[r] >= m.V) throw std::out_of_range("bin");
            parent[r] = find(r / K, G, parents ? parents[r] : r % K);
        }
        forget_others(), grow(bins, first, blank);
        const Int total = now.count(), chunks = (total + CHUNK - 1) / CHUNK;
        make_room(log_p, total * m.V);
        for (Int c = 0; c < chunks; c++) read(total * c / chunks, total * (c + 1) / chunks, empty);
        for (Int r = 0; r < G * K; r++) std::copy_n(&log_p[sequence[r] * m.V], m.V, out + r * m.V);
    }
    // Makes each of the sequences `rows` (E, B) a group of its own.
    void select(Int E, Int B, const int64_t *rows) {
        std::vector<Int> kept(E * B);
        for (Int r = 0; r < E * B; r++) kept[r] = find(r / B, E, rows[r]);
        sequence.swap(kept), groups = E * B;
    }
    // Frees the pages, and the last places of pages, that no parent uses.
    void forget_others() {
        std::fill(filled.begin(), filled.end(), 0);
        for (Int s : parent)
            for (Int i = now.first(s); i < now.end[s]; i++) {
                Int &tokens = filled[now.parts[i].page];
                tokens = std::max(tokens, now.parts[i].used);
            }
        spare.clear();
        for (Int g = filled.size(); g--;)
            if (!filled[g]) spare.push_back(g);
    }
    // Makes the new sequences, which `now` becomes, with a place for the last token of each.
    void grow(const int64_t *bins, Int first, bool blank) {
        std::vector<Int> child(now.count(), -1), sibling;  // new sequences that continue one, as linked lists
        next = {}, token.clear(), sequence.resize(parent.size());
        for (size_t r = 0; r < parent.size(); r++) {
            const Int id = first + (blank ? 0 : bins[r]);
            Int found = child[parent[r]];
            while (found >= 0 && token[found] != id) found = sibling[found];
            if (found < 0) {
                found = next.count(), token.push_back(id);
                sibling.push_back(child[parent[r]]), child[parent[r]] = found;
                append(parent[r]);
            }
            sequence[r] = found;
        }
        std::swap(now, next), grown++;
    }
    // Lets a new sequence go on in the last page of sequence s, or in a new page where another one goes on there.
    void append(Int s) {
        next.environment.push_back(now.environment[s]);
        next.parts.insert(next.parts.end(), now.parts.begin() + now.first(s), now.parts.begin() + now.end[s]);
        const Part last = now.pages(s) ? next.parts.back() : Part{-1, W};
        if (last.used == W || filled[last.page] != last.used) next.parts.push_back({new_page(), 0});
        filled[next.parts.back().page] = ++next.parts.back().used;
        next.end.push_back(next.parts.size());
    }

    Int new_page() {
        if (spare.empty()) {
            slabs.emplace_back(SLAB * layers * page_size);
            for (Int g = slabs.size() * SLAB; g-- > (Int)filled.size();) spare.push_back(g);
            filled.resize(slabs.size() * SLAB);
        }
        const Int page = spare.back();
        spare.pop_back();
        return page;
    }
    // Makes room for the activations of a chunk; `places`: what a row attends to.
    void fit(Int rows, Int places) {
        for (Table *each : {&x, &normed, &mixed}) each->fit(rows, d);
        qkv.fit(rows, 3 * d), hidden.fit(rows, 4 * d), logits.fit(rows, m.V);
        scores.fit(CHUNK, places), mean.fit(CHUNK, d_value);
    }
    // Reads the last tokens of sequences a ... b - 1 and computes their log_p.
    void read(Int a, Int b, const float *empty) {
        Int longest = 0;
        for (Int s = a; s < b; s++) longest = std::max(longest, now.pages(s));
        fit(b - a, L_padded + longest * W);
        for (Int s = a; s < b; s++) embed(s - a, token[s], L + grown - 1);
        for (Int l = 0; l < layers; l++) {
            if (l) normalise(b - a), m.layers[l].qkv.apply<STORE>(b - a, normed.from(0), qkv.from(0));
            for (Int s = a; s < b; s++) keep(l, s, qkv[s - a] + d);
            for (Int from = a, to; from < b; from = to) {  // sequences of one environment share a context
                for (to = from; to < b && now.environment[to] == now.environment[from];) to++;
                for (Int h = 0; h < m.heads; h++) attend(l, h, now.environment[from], from - a, to - from, from);
            }
            finish_layer(l, b - a);
        }
        predict(b - a, empty, &log_p[a * m.V]);
    }
    // Stores key and value (2 d) of the last token of a sequence.
    void keep(Int l, Int s, const float *key) {
        const Part last = now.parts[now.end[s] - 1];
        float *k = page(l, last.page) + last.used - 1, *v = page(l, last.page) + W * d + (last.used - 1) * d_head;
        for (Int i = 0; i < d; i++) k[i * W] = key[i];
        for (Int h = 0; h < m.heads; h++) std::copy_n(key + d + h * d_head, d_head, v + h * W * d_head);
    }
    // Lets `count` rows of environment e attend in one head to its context, and then to their own tokens: those of the
    // sequences from s on.  s = -1: the rows are the context itself, whose tokens see the tokens up to themselves.
    void attend(Int l, Int h, Int e, Int row, Int count, Int s) {
        const Int seen = s < 0 ? row + count : L, padded = up(seen, PANEL), column = h * d_head;
        multiply<STORE>(count, padded, d_head, qkv.from(row, column), keys(l, e, h), nullptr, scores.from(0));
        for (Int r = 0; r < count; r++) {
            const Int first = s < 0 ? 0 : now.first(s + r), pages = s < 0 ? 0 : now.pages(s + r);
            float *own = scores[r] + padded;
            std::fill(scores[r] + (s < 0 ? row + r + 1 : L), own, HIDDEN);
            for (Int p = 0; p < pages; p++, own += W) {
                const Part part = now.parts[first + p];
                store(own, score(d_head, qkv[row + r] + column, page(l, part.page) + column * W));
                std::fill(own + part.used, own + W, HIDDEN);
            }
            scale[r] = 1 / soften(scores[r], padded + pages * W).second;
        }
        for (Int i = 0; i < d_value; i += PANEL)
            multiply<STORE>(count, PANEL, seen, scores.from(0), values(l, e, h) + i * L, nullptr, mean.from(0, i));
        for (Int r = 0; r < count; r++)
            for (Int i = 0; i < d_head; i += W) {
                Vector total[4] = {load(mean[r] + i)};
                if (s >= 0) add_values(l, s + r, column * W + i, scores[r] + padded, total);
                store(mixed[row + r] + column + i, joined(total) * scale[r]);
            }
    }
    // Adds a sequence's own values times their weights, W numbers from an offset in the page on.
    void add_values(Int l, Int s, Int offset, const float *weight, Vector (&total)[4]) {
        for (Int i = now.first(s); i < now.end[s]; i++, weight += W) {
            const float *v = page(l, now.parts[i].page) + W * d + offset;
            for (Int j = 0; j < now.parts[i].used; j += 4)  // places that are not used have no weight
                for (Int c = 0; c < 4; c++) total[c] += load(v + (j + c) * d_head) * weight[j + c];
        }
    }
    // Reads the context of environment e, ids (L) -> out (V).  Of the last layer only the last token is wanted.
    void read_context(Int e, const int64_t *ids, const float *empty, float *out) {
        fit(L, L_padded);
        for (Int r = 0; r < L; r++) embed(r, ids[r], r);
        for (Int l = 0; l < layers; l++) {
            const Int last = L - 1, top = l + 1 == layers;
            if (l) normalise(L), m.layers[l].qkv.apply<STORE>(L, normed.from(0), qkv.from(0));
            for (Int h = 0; h < m.heads; h++) {
                keep_context(l, e, h);
                for (Int a = top ? last : 0; a < L; a += TILE_ROWS) attend(l, h, e, a, std::min(TILE_ROWS, L - a), -1);
            }
            if (top) std::copy_n(x[last], d, x[0]), std::copy_n(mixed[last], d, mixed[0]);
            finish_layer(l, top ? 1 : L);
        }
        predict(1, empty, out);
    }

    void keep_context(Int l, Int e, Int h) {
        float *k = keys(l, e, h), *v = values(l, e, h);
        for (Int r = 0; r < L; r++)
            for (Int i = 0; i < d_head; i++) {
                k[(r / PANEL * d_head + i) * PANEL + r % PANEL] = qkv[r][d + h * d_head + i];
                v[(i / PANEL * L + r) * PANEL + i % PANEL] = qkv[r][2 * d + h * d_head + i];
            }
    }
    // Begins a row with its token and position, and the first layer's queries, keys and values: LayerNorm(token +
    // position) W = (token W + position W) / deviation, where both are centred.
    void embed(Int r, Int id, Int place) {
        for (Int i = 0; i < d; i += W) store(x[r] + i, load(m.token + id * d + i) + load(m.position + place * d + i));
        const float scale = centre(d, x[r], normed[r]), *bias = m.layers[0].qkv.bias;
        const float *token = m.token_qkv + id * 3 * d, *position = m.position_qkv + place * 3 * d;
        for (Int i = 0; i < 3 * d; i += W)
            store(qkv[r] + i, (load(token + i) + load(position + i)) * scale + load(bias + i));
    }
    // LayerNorm without its gain and shift, which are folded into the matrix that follows.
    void normalise(Int rows) {
        for (Int r = 0; r < rows; r++) {
            const float scale = centre(d, x[r], normed[r]);
            for (Int i = 0; i < d; i += W) store(normed[r] + i, load(normed[r] + i) * scale);
        }
    }
    // Does the rest of a layer after attention: its projection and the MLP, each added to x.
    void finish_layer(Int l, Int rows) {
        m.layers[l].out.apply<ADD>(rows, mixed.from(0), x.from(0));
        normalise(rows);
        m.layers[l].up.apply<GELU>(rows, normed.from(0), hidden.from(0));
        m.layers[l].down.apply<ADD>(rows, hidden.from(0), x.from(0));
    }
    // Writes the log-probabilities of what follows the first rows -> to (rows, V).
    void predict(Int rows, const float *empty, float *to) {
        normalise(rows);
        m.head.apply<STORE>(rows, normed.from(0), logits.from(0));
        for (Int r = 0; r < rows; r++, to += m.V) {
            float *logit = logits[r];
            for (Int i = 0; empty && i < m.V; i++) logit[i] += empty[i];
            std::fill(logit + m.V, logit + m.head.N, HIDDEN);
            std::copy_n(logit, m.V, to);
            const auto [largest, sum] = soften(logit, m.head.N);
            const float log_sum = largest + std::log(sum);
            for (Int i = 0; i < m.V; i++) to[i] -= log_sum;
        }
    }
};

// -- what decoder.py calls --
// Returns how `work` ended, since no exception may leave: 0 done, 1 an index out of range, 2 out of memory.
template <class Work> static int outcome(Work work) {
    try {
        return work(), 0;
    } catch (const std::exception &error) {
        return dynamic_cast<const std::out_of_range *>(&error) ? 1 : 2;
    }
}

extern "C" {
int planner_panel() { return PANEL; }
int planner_new(const int64_t *sizes, const float *const *weights, Decoder **made) {
    return outcome([=] { *made = new Decoder(sizes, weights); });
}
int planner_begin(Decoder *planner, int E, int L, const int64_t *ids, const float *empty, float *out) {
    return outcome([=] { planner->begin(E, L, ids, empty, out); });
}
int planner_advance(Decoder *planner, int G, int K, const int64_t *bins, const int64_t *parents, int first, int blank,
                    const float *empty, float *out) {
    return outcome([=] { planner->advance(G, K, bins, parents, first, blank, empty, out); });
}
int planner_select(Decoder *planner, int E, int B, const int64_t *rows) {
    return outcome([=] { planner->select(E, B, rows); });
}
int64_t planner_bytes(const Decoder *planner) { return planner->bytes(); }
void planner_free(Decoder *planner) { delete planner; }
}
