// The kernels, written once and compiled for every instruction set: DVT_SET is its name.
#include "vector.h"

namespace {

using namespace dvt;

constexpr int kStep = kGroup / kLanes;  // vectors in a group of columns

DVT_INLINE int least(int a, int b) { return a < b ? a : b; }

DVT_INLINE I word(const void* p) { return broadcast(load<int32_t>(p)); }  // in all lanes

// The nearest code, NaN where y is NaN: to_int makes it the least integer, which saturates to -128.
DVT_INLINE I code(F y) { return to_int(max(broadcast(-127.0f), min(broadcast(127.0f), y))); }

// ---- products ---------------------------------------------------------------------------------

// What is multiplied: 32 bits of a row, in all lanes, with 32 bits of each column of a panel.
struct Codes {
    typedef I Sum;
    static constexpr int kRows = kCodeRows;
    static DVT_INLINE I step(I sum, I panel, I row) { return dot(sum, panel, row); }
};

struct Floats {
    typedef F Sum;
    static constexpr int kRows = kMostRows, kPerWord = 1;
    static DVT_INLINE F step(F sum, I panel, I row) { return fma(F(panel), F(row), sum); }
    static DVT_INLINE I neighbours(const F (&v)[1]) { return I(v[0]); }
    static DVT_INLINE I pairs(F a, F) { return I(a); }
};

#if defined(__AVX512BF16__)
struct Halves {
    typedef F Sum;
    static constexpr int kRows = kMostRows, kPerWord = 2;
    static DVT_INLINE F step(F sum, I panel, I row) { return half_dot(sum, panel, row); }
    static DVT_INLINE I neighbours(const F (&v)[2]) { return half_neighbours(v[0], v[1]); }
    static DVT_INLINE I pairs(F a, F b) { return half_pairs(a, b); }
};
typedef Halves Attended;
#else
typedef Floats Attended;
#endif

// R rows times C vectors of columns. `start(r, c)` gives what a sum begins with, `finish(r, sums)`
// takes the sums of row r; both know only the first `rows` of the R, the others repeat the last.
template <class P, int R, int C, class Start, class Finish>
DVT_INLINE void block(const void* const* row, int rows, const void* panel, int steps, Start start,
                      Finish finish) {
    typename P::Sum sum[R][C];
    const char *from[R], *next = static_cast<const char*>(panel);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        from[r] = static_cast<const char*>(row[r < rows ? r : rows - 1]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] = start(r < rows ? r : rows - 1, c);
    }
    for (int s = 0; s < steps; ++s) {
        I columns[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) columns[c] = load<I>(next + 4 * c * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const I all = word(from[r] + 4 * s);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] = P::step(sum[r][c], columns[c], all);
        }
        next += 4 * C * kLanes;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
        if (r < rows) finish(r, sum[r]);
}

template <class P, int R, int C = kPanel / kLanes, class Start, class Finish>
DVT_INLINE void block_of_width(int columns, const void* const* row, int rows, const void* panel,
                               int steps, Start start, Finish finish) {
    if constexpr (C > kStep)
        if (columns < C * kLanes)
            return block_of_width<P, R, C - kStep>(columns, row, rows, panel, steps, start, finish);
    block<P, R, C>(row, rows, panel, steps, start, finish);
}

// Up to P::kRows rows times a panel `columns` wide.
template <class P, class Start, class Finish>
DVT_INLINE void product(int columns, const void* const* row, int rows, const void* panel, int steps,
                        Start start, Finish finish) {
    if (rows > 4)
        block_of_width<P, P::kRows>(columns, row, rows, panel, steps, start, finish);
    else if (rows > 2)
        block_of_width<P, 4>(columns, row, rows, panel, steps, start, finish);
    else if (rows > 1)
        block_of_width<P, 2>(columns, row, rows, panel, steps, start, finish);
    else
        block_of_width<P, 1>(columns, row, rows, panel, steps, start, finish);
}

// ---- Linear -----------------------------------------------------------------------------------

void row_sums(const Linear& t, int64_t row, int rows, int32_t* sums) {
    const I ones = broadcast(0x01010101);
    for (int i = 0; i < rows; ++i) {
        const int8_t* x = t.x + (row + i) * t.depth;
        I sum = {}, bad = {};
        for (int k = 0; k < t.depth; k += 4 * kLanes) {
            I codes = {};
            if (t.depth - k >= 4 * kLanes)
                codes = load<I>(x + k);
            else
                std::memcpy(&codes, x + k, t.depth - k);
            sum = dot(sum, ones, codes);
            bad |= not_numbers(codes);
        }
        int32_t total = 0, any = 0;
        for (int l = 0; l < kLanes; ++l) total += sum[l], any |= bad[l];
        sums[i] = any ? kBadRow : -kOffset * total;
    }
}

void linear(const Linear& t, int64_t row, int rows, int column, int columns) {
    for (int at = column; at < column + columns; at += kPanel) {
        const int width = least(kPanel, t.columns - at), bytes = width * t.depth;
        const uint8_t* panel = t.weights + size_t(at) * t.depth;
        for (int i = 0, taken; i < rows; i += taken) {
            taken = least(rows - i, Codes::kRows);
            // The next panel's share of these rows.
            for (int b = bytes / rows * i / 64; b < bytes / rows * (i + taken) / 64; ++b)
                __builtin_prefetch(panel + bytes + 64 * b);
            const void* from[Codes::kRows];
            for (int r = 0; r < taken; ++r) from[r] = t.x + (row + i + r) * t.depth;
            const auto start = [&](int, int c) { return load<I>(t.shift + at + c * kLanes); };
            const auto finish = [&](int r, auto& sum) {
                constexpr int C = sizeof(sum) / sizeof(sum[0]);
                const int64_t out = (row + i + r) * t.columns + at;
                const int32_t sum_of_row = t.sums[row + i + r];
                const I offset = broadcast(sum_of_row == kBadRow ? 0 : sum_of_row);
                F y[C];
                for (int c = 0; c < C; ++c)
                    y[c] = to_float(sum[c] + offset) * load(t.scale + at + c * kLanes) +
                           load(t.bias + at + c * kLanes);
                if (t.table) {
                    I q[C];
                    for (int c = 0; c < C; ++c) q[c] = code(y[c]);
                    store_codes(t.codes + out, q, t.table);
                } else {
                    for (int c = 0; c < C; ++c) {
                        if (t.residual) y[c] += load(t.residual + out + c * kLanes);
                        store(t.y + out + c * kLanes, y[c]);
                    }
                }
            };
            product<Codes>(width, from, taken, panel, t.depth / 4, start, finish);
        }
    }
    for (int i = 0; i < rows; ++i) {
        if (t.sums[row + i] != kBadRow) continue;
        const int64_t out = (row + i) * t.columns + column;
        if (t.table)
            std::memset(t.codes + out, kNotANumber, columns);
        else
            for (int n = 0; n < columns; ++n) t.y[out + n] = __builtin_nanf("");
    }
}

// ---- RelationMlp ------------------------------------------------------------------------------

// Positions are the columns of a panel, channels its depth, so weights take the part of rows.
constexpr int kPositions = kPanel, kColumns = kPanel / kLanes;

DVT_INLINE int fours(int n) { return (n + 3) / 4; }

size_t relation_scratch(const RelationMlp& t) {
    return size_t(fours(t.inputs) + fours(t.hidden)) * 4 * kPositions +
           size_t(t.inputs) * kPositions + size_t(t.outputs) * kPositions * sizeof(float);
}

void relation_mlp(const RelationMlp& t, int64_t position, void* scratch) {
    const int count =
        int(t.positions - position < kPositions ? t.positions - position : kPositions);
    char* panel = static_cast<char*>(scratch);
    char* hidden = panel + size_t(fours(t.inputs)) * 4 * kPositions;
    float* edge_y = reinterpret_cast<float*>(hidden + size_t(fours(t.hidden)) * 4 * kPositions);
    int8_t* edge_x = reinterpret_cast<int8_t*>(edge_y + size_t(t.outputs) * kPositions);
    const int8_t* x = t.x + position;
    float* y = t.y + position;
    int64_t from = t.positions, to = t.positions;
    if (count < kPositions) {  // where the matrix ends
        std::memset(edge_x, 0, size_t(t.inputs) * kPositions);
        for (int c = 0; c < t.inputs; ++c)
            std::memcpy(edge_x + c * kPositions, x + c * from, count);
        x = edge_x, y = edge_y, from = to = kPositions;
    }
    const I offset = broadcast(kOffset ? int32_t(0x80808080) : 0);
    I bad[kColumns] = {};
    for (int c = 0; c < t.inputs; c += 4)
        for (int v = 0; v < kColumns; ++v) {
            const int8_t* at = x + c * from + v * kLanes;
            I four = load_bytes(at);
            if (c + 1 < t.inputs) four |= load_bytes(at + from) << 8;
            if (c + 2 < t.inputs) four |= load_bytes(at + 2 * from) << 16;
            if (c + 3 < t.inputs) four |= load_bytes(at + 3 * from) << 24;
            bad[v] |= not_numbers(four);
            store(panel + 4 * (c / 4 * kPositions + v * kLanes), four ^ offset);
        }
    const void* row[4];
    const auto rows = [&row](const int8_t* weights, int first, int depth) {
        for (int r = 0; r < 4; ++r) row[r] = weights + size_t(first + r) * depth;
    };
    for (int h = 0; h < t.hidden; h += 4) {
        rows(t.first.weights, h, 4 * fours(t.inputs));
        I four[kColumns] = {};
        block<Codes, 4, kColumns>(
            row, 4, panel, fours(t.inputs),
            [&](int r, int) { return broadcast(t.first.shift[h + r]); },
            [&](int r, auto& sum) {
                const F scale = broadcast(t.first.scale[h + r]),
                        bias = broadcast(t.first.bias[h + r]);
                for (int v = 0; v < kColumns; ++v)
                    four[v] |= (code(to_float(sum[v]) * scale + bias) & 255) << 8 * r;
            });
        for (int v = 0; v < kColumns; ++v)
            store(hidden + 4 * (h / 4 * kPositions + v * kLanes),
                  lookup(four[v], t.table) ^ offset);
    }
    F poison[kColumns];
    for (int v = 0; v < kColumns; ++v) poison[v] = F((bad[v] != 0) & 0x7fc00000);
    for (int o = 0; o < t.outputs; o += 4) {
        rows(t.second.weights, o, 4 * fours(t.hidden));
        block<Codes, 4, kColumns>(
            row, 4, hidden, fours(t.hidden),
            [&](int r, int) { return broadcast(t.second.shift[o + r]); },
            [&](int r, auto& sum) {
                if (o + r >= t.outputs) return;
                const F scale = broadcast(t.second.scale[o + r]);
                const F bias = broadcast(t.second.bias[o + r]);
                for (int v = 0; v < kColumns; ++v)
                    store(y + (o + r) * to + v * kLanes,
                          to_float(sum[v]) * scale + bias + poison[v]);
            });
    }
    if (count < kPositions)
        for (int o = 0; o < t.outputs; ++o)
            std::memcpy(t.y + position + o * t.positions, edge_y + o * kPositions,
                        count * sizeof(float));
}

// ---- Attention --------------------------------------------------------------------------------

// 2^x for x <= 0, to 1e-7 of itself, or to 1e-4 where it will be rounded to 8 bits.
template <class P>
DVT_INLINE F power_of_two(F x) {
    constexpr float kExact[] = {1.3276471e-3f, 9.6755419e-3f, 5.5507131e-2f,
                                2.4022120e-1f, 6.9314694e-1f, 1.0000001f};
    constexpr float kRough[] = {5.5171669e-2f, 2.4261114e-1f, 6.9326097e-1f, 9.9992806e-1f};
    x = max(broadcast(-126.0f), x);
    const F n = nearest(x), f = x - n;
    F y = {};
    if (P::kPerWord == 1)
        for (const float term : kExact) y = fma(y, f, broadcast(term));
    else
        for (const float term : kRough) y = fma(y, f, broadcast(term));
    return times_power(y, n);
}

// x [count] as words, count a multiple of 2 kLanes.
template <class P>
DVT_INLINE void to_words(const float* x, int count, int32_t* out) {
    constexpr int N = P::kPerWord;
    for (int i = 0; i < count; i += N * kLanes, out += kLanes) {
        F v[N];
        for (int n = 0; n < N; ++n) v[n] = load(x + i + n * kLanes);
        store(out, P::neighbours(v));
    }
}

constexpr int kLongest = 32;  // columns of logits are padded to it, the longest words of a row

struct Layout {  // of the scratch memory of one head, in units of 4 bytes
    int tokens, columns, key_panels, coarse, grid;
    size_t keys, values, upsampled, coarse_rows, logits, weights, queries, end;
};

template <class P>
Layout layout(const Attention& t) {
    Layout l;
    l.tokens = padded(t.tokens);
    l.key_panels = (l.tokens + kPanel - 1) / kPanel;
    l.columns = (t.tokens + kLongest - 1) / kLongest * kLongest;
    l.coarse = t.relations ? 1 + t.upsample->source * t.upsample->source : 0;
    l.grid = t.relations ? padded(t.upsample->target) : 0;
    size_t at = 0;
    const auto take = [&at](size_t words) {
        const size_t begin = at;
        at += (words + kGroup - 1) / kGroup * kGroup;
        return begin;
    };
    l.keys = take(size_t(l.tokens) * t.head / P::kPerWord);
    l.values = take(size_t((t.tokens + P::kPerWord - 1) / P::kPerWord) * t.head);
    l.upsampled = take(size_t(l.coarse) * l.tokens + l.grid);
    l.coarse_rows = take(t.relations ? size_t(t.upsample->source) * l.grid : 0);
    l.logits = take(size_t(P::kRows) * l.columns);
    l.weights = take(size_t(P::kRows) * l.columns);
    l.queries = take(size_t(P::kRows) * t.head);
    l.end = at;
    return l;
}

// Where panel p of the keys begins: as many as needed, all about as wide, for a narrow one would
// wait for its few sums.
DVT_INLINE int key_panel(const Layout& l, int p) {
    return l.tokens / kGroup * p / l.key_panels * kGroup;
}

// Keys as panels whose columns are tokens.
template <class P>
void pack_keys(const Attention& t, const float* k, const Layout& l, int32_t* out) {
    const int words = t.head / P::kPerWord;
    int32_t row[kLongest * 8];
    for (int p = 0; p < l.key_panels; ++p) {
        const int begin = key_panel(l, p), width = key_panel(l, p + 1) - begin;
        for (int j = 0; j < width; ++j) {
            if (begin + j < t.tokens)
                to_words<P>(k + (begin + j) * t.kv_stride, t.head, row);
            else
                std::memset(row, 0, sizeof row);
            for (int w = 0; w < words; ++w) out[begin * words + w * width + j] = row[w];
        }
    }
}

// Values as a panel whose columns are those of the head, tokens its depth.
template <class P>
void pack_values(const Attention& t, const float* v, int32_t* out) {
    const int steps = (t.tokens + P::kPerWord - 1) / P::kPerWord;
    for (int s = 0; s < steps; ++s)
        for (int c = 0; c < t.head; c += kLanes) {
            const int begin = c / kPanel * kPanel, width = least(kPanel, t.head - begin);
            const int last = (s + 1) * P::kPerWord - 1;
            const float* first = v + s * P::kPerWord * t.kv_stride + c;
            const F second = last < t.tokens ? load(v + last * t.kv_stride + c) : F{};
            store(out + size_t(begin) * steps + s * width + c - begin,
                  P::pairs(load(first), second));
        }
}

// The columns of all coarse relations, brought to the fine grid: [coarse][l.tokens].
void upsample_columns(const Attention& t, const float* relations, const Layout& l, float* rows,
                      float* out) {
    const Upsample& u = *t.upsample;
    for (int a = 0; a < l.coarse; ++a, relations += l.coarse, out += l.tokens) {
        for (int i = 0; i < u.source; ++i)
            for (int c = 0; c < l.grid; c += kLanes) {
                F sum = {};
                for (int k = 0; k < u.source; ++k)
                    sum = fma(broadcast(relations[1 + i * u.source + k]),
                              load(u.transposed + k * l.grid + c), sum);
                store(rows + i * l.grid + c, sum);
            }
        out[0] = relations[0];
        for (int i = 0; i < u.target; ++i) {
            const float* near = rows + u.first[i] * l.grid;
            const float* far = near + (u.source > 1 ? l.grid : 0);
            const F w = broadcast(u.weight[i][0]), v = broadcast(u.weight[i][1]);
            // The last vector of a row runs into the next, which is written later.
            for (int c = 0; c < l.grid; c += kLanes)
                store(out + 1 + i * u.target + c, w * load(near + c) + v * load(far + c));
        }
        for (int j = t.tokens; j < l.tokens; ++j) out[j] = 0;
    }
}

// Logits of a query before its product: the reused relations, and the padding far below them.
void start_logits(const Attention& t, const float* upsampled, int query, const Layout& l,
                  const float* padding, float* out) {
    const float* row[4] = {upsampled, upsampled, upsampled, upsampled};
    float weight[4] = {1, 0, 0, 0};
    int taps = t.relations ? 1 : 0;
    if (taps && query) {
        const Upsample& u = *t.upsample;
        const int y = (query - 1) / u.target, x = (query - 1) % u.target;
        taps = 0;
        for (int i = 0; i < 4; ++i) {
            const float w = u.weight[y][i / 2] * u.weight[x][i % 2];
            if (w == 0) continue;
            row[taps] += (1 + (u.first[y] + i / 2) * u.source + u.first[x] + i % 2) * l.tokens;
            weight[taps++] = w;
        }
    }
    for (int j = 0; j < l.tokens; j += kLanes) {
        F sum = j + kLanes > t.tokens ? load(padding + j - (l.tokens - kGroup)) : F{};
        for (int i = 0; i < taps; ++i) sum = fma(broadcast(weight[i]), load(row[i] + j), sum);
        store(out + j, sum);
    }
}

template <class P>
size_t attention_scratch_of(const Attention& t) {
    return layout<P>(t).end * 4;
}

template <class P>
void attend(const Attention& t, int64_t image, int head, void* scratch) {
    const Layout l = layout<P>(t);
    int32_t* memory = static_cast<int32_t*>(scratch);
    float* floats = static_cast<float*>(scratch);
    const float* q = t.q + image * t.q_image + head * t.head;
    const float* k = t.k + image * t.kv_image + head * t.head;
    const float* v = t.v + image * t.kv_image + head * t.head;
    pack_keys<P>(t, k, l, memory + l.keys);
    pack_values<P>(t, v, memory + l.values);
    if (t.relations)
        upsample_columns(
            t, t.relations + image * t.relations_image + int64_t(head) * l.coarse * l.coarse, l,
            floats + l.coarse_rows, floats + l.upsampled);
    constexpr float kFarBelow = -1e30f;  // any logit: its weight is next to nothing
    float padding[kGroup];
    for (int i = 0; i < kGroup; ++i) padding[i] = l.tokens - kGroup + i < t.tokens ? 0 : kFarBelow;
    for (int r = 0; r < P::kRows; ++r)
        for (int j = l.tokens; j < l.columns; ++j) floats[l.logits + r * l.columns + j] = kFarBelow;

    const int words = t.head / P::kPerWord, steps = (t.tokens + P::kPerWord - 1) / P::kPerWord;
    for (int i = 0, taken; i < t.queries; i += taken) {
        taken = least(t.queries - i, P::kRows);
        const void *of_query[P::kRows], *of_weights[P::kRows];
        for (int r = 0; r < taken; ++r) {
            int32_t* row = memory + l.queries + r * words;
            to_words<P>(q + (i + r) * t.q_stride, t.head, row);
            of_query[r] = row;
            of_weights[r] = memory + l.weights + r * l.columns;
            start_logits(t, floats + l.upsampled, i + r, l, padding,
                         floats + l.logits + r * l.columns);
        }
        for (int p = 0; p < l.key_panels; ++p) {
            const int at = key_panel(l, p), width = key_panel(l, p + 1) - at;
            product<P>(
                width, of_query, taken, memory + l.keys + size_t(at) * words, words,
                [&](int r, int c) {
                    return load(floats + l.logits + r * l.columns + at + c * kLanes);
                },
                [&](int r, auto& sum) {
                    constexpr int C = sizeof(sum) / sizeof(sum[0]);
                    for (int c = 0; c < C; ++c)
                        store(floats + l.logits + r * l.columns + at + c * kLanes, sum[c]);
                    if (!t.logits) return;
                    I codes[C];
                    for (int c = 0; c < C; ++c) codes[c] = code(sum[c] * t.logit_scale);
                    const int left = least(t.tokens - at, C * kLanes);
                    int8_t* out =
                        t.logits + at + ((image * t.heads + head) * t.queries + i + r) * t.tokens;
                    if (left == C * kLanes) return store_codes(out, codes);
                    int8_t edge[kPanel];  // beyond it lies what another thread writes
                    store_codes(edge, codes);
                    std::memcpy(out, edge, left);
                });
        }
        float factor[P::kRows];
        for (int r = 0; r < taken; ++r) {
            float* logit = floats + l.logits + r * l.columns;
            F most = load(logit);
            for (int j = kLanes; j < l.columns; j += kLanes) most = max(load(logit + j), most);
            constexpr float kLog2e = 1.44269504f;
            const F top = broadcast(-kLog2e * max_of(most));
            F total = {};
            constexpr int N = P::kPerWord;
            int32_t* weights = memory + l.weights + r * l.columns;
            for (int j = 0; j < l.columns; j += N * kLanes, weights += kLanes) {
                F w[N];
                for (int n = 0; n < N; ++n) {
                    w[n] =
                        power_of_two<P>(fma(load(logit + j + n * kLanes), broadcast(kLog2e), top));
                    total += w[n];
                }
                store(weights, P::neighbours(w));
            }
            factor[r] = t.scale / sum_of(total);
        }
        for (int at = 0; at < t.head; at += kPanel)
            product<P>(
                least(kPanel, t.head - at), of_weights, taken,
                memory + l.values + size_t(at) * steps, steps, [](int, int) { return F{}; },
                [&](int r, auto& sum) {
                    constexpr int C = sizeof(sum) / sizeof(sum[0]);
                    I codes[C];
                    for (int c = 0; c < C; ++c) codes[c] = code(sum[c] * factor[r]);
                    store_codes(
                        t.mixed + ((image * t.queries + i + r) * t.heads + head) * t.head + at,
                        codes);
                });
    }
}

// ---- Norm and quantization --------------------------------------------------------------------

// The sum of the row's terms, a vector of them from i on being term(i), in an order that all sets
// share: kSums lanes, which are halved until one is left.
template <class Term>
DVT_INLINE float sum_in_order(int count, Term term) {
    constexpr int N = kSums / kLanes;
    F total[N] = {};
    int i = 0;
    for (; i + kSums <= count; i += kSums)
#pragma GCC unroll 16
        for (int c = 0; c < N; ++c) total[c] += term(i + c * kLanes);
    for (int c = 0; i + c * kLanes < count; ++c) total[c] += term(i + c * kLanes);
    for (int half = N / 2; half; half /= 2)
        for (int c = 0; c < half; ++c) total[c] += total[c + half];
    return sum_of(total[0]);
}

// Codes of y(i) for all i below count, a vector from i on at a time.
template <class Y>
DVT_INLINE void store_rounded(int count, int8_t* out, Y y) {
    constexpr int C = kPanel / kLanes;
    int i = 0;
    for (; i + kPanel <= count; i += kPanel) {
        I q[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) q[c] = code(y(i + c * kLanes));
        store_codes(out + i, q);
    }
    for (; i < count; i += kGroup) {
        I q[kStep];
        for (int c = 0; c < kStep; ++c) q[c] = code(y(i + c * kLanes));
        store_codes(out + i, q);
    }
}

void norm(const Norm& t, int64_t row, int64_t rows, float* scratch) {
    const int all = t.width + t.context_width, wide = t.context_width;
    float* const context = scratch + t.width;
    for (; rows; ++row, --rows) {
        const float* x = t.x + row * t.width;
        const float* other = t.residual ? t.residual + row % t.residual_rows * t.width : nullptr;
        for (int i = 0; i < t.width; i += kLanes) {
            const F value = other ? load(x + i) + load(other + i) : load(x + i);
            store(scratch + i, value);
            if (other) store(t.sum + row * t.width + i, value);
        }
        const int token = int(row % t.tokens);
        if (token && t.context) {
            const Upsample& u = *t.upsample;
            const int i = (token - 1) / u.target, j = (token - 1) % u.target;
            const int64_t first = row / t.tokens * (1 + int64_t(u.source) * u.source) + 1;
            const float* at = t.context + (first + u.first[i] * u.source + u.first[j]) * wide;
            const int right = u.source > 1 ? wide : 0, down = right * u.source;
            const float *h = u.weight[i], *w = u.weight[j];
            for (int c = 0; c < wide; c += kLanes) {
                const F upper = w[0] * load(at + c) + w[1] * load(at + c + right);
                const F lower = w[0] * load(at + c + down) + w[1] * load(at + c + down + right);
                store(context + c, h[0] * upper + h[1] * lower);
            }
        } else {
            std::memset(context, 0, wide * sizeof(float));
        }
        const float mean = sum_in_order(all, [&](int i) { return load(scratch + i); }) / float(all);
        const auto distance = [&](int i) { return load(scratch + i) - mean; };
        const float variance =
            sum_in_order(all, [&](int i) { return distance(i) * distance(i); }) / float(all);
        const float inverse = 1.0f / __builtin_sqrtf(variance + t.epsilon);
        store_rounded(all, t.codes + row * all, [&](int i) {
            return distance(i) * inverse * load(t.gamma + i) + load(t.beta + i);
        });
    }
}

void quantize(const float* x, int64_t count, float scale, int8_t* codes) {
    constexpr int kPart = 1 << 12;
    for (; count > 0; count -= kPart, x += kPart, codes += kPart) {
        const int all = count < kPart ? int(count) : kPart, whole = all / kGroup * kGroup;
        store_rounded(whole, codes, [&](int i) { return load(x + i) * scale; });
        float values[kGroup] = {};
        int8_t out[kGroup];
        std::memcpy(values, x + whole, (all - whole) * sizeof(float));
        store_rounded(kGroup, out, [&](int i) { return load(values + i) * scale; });
        std::memcpy(codes + whole, out, all - whole);
    }
}

}  // namespace

namespace dvt {

#define DVT_TEXT(x) #x
#define DVT_NAME(x) DVT_TEXT(x)

extern const Kernels DVT_SET;
const Kernels DVT_SET = {
    DVT_NAME(DVT_SET),
    kPanel,
    kOffset,
    row_sums,
    linear,
    relation_mlp,
    relation_scratch,
    attend<Attended>,
    attention_scratch_of<Attended>,
    norm,
    quantize,
};

}  // namespace dvt
