// The kernels as plainly as they can be written: what the others are tested against, and what runs
// where the processor has no set of its own.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace dvt {
namespace {

constexpr int kPanel = kGroup;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

int8_t code(float y) {
    return std::isnan(y) ? kNotANumber
                         : int8_t(std::nearbyint(std::min(127.0f, std::max(-127.0f, y))));
}

void row_sums(const Linear& t, int64_t row, int rows, int32_t* sums) {
    for (int i = 0; i < rows; ++i) {
        const int8_t* x = t.x + (row + i) * t.stride;
        sums[i] = std::find(x, x + t.depth, kNotANumber) == x + t.depth ? 0 : kBadRow;
    }
}

void linear(const Linear& t, int64_t row, int rows, int column, int columns) {
    for (int64_t i = row; i < row + rows; ++i) {
        const int8_t* x = t.x + i * t.stride;
        const bool bad = t.sums[i] == kBadRow;
        for (int n = column; n < column + columns; ++n) {
            const int8_t* w = reinterpret_cast<const int8_t*>(t.weights) +
                              size_t(n / kPanel * kPanel) * t.depth + n % kPanel * 4;
            int32_t sum = t.shift[n];
            for (int k = 0; k < t.depth; ++k) sum += x[k] * w[k / 4 * 4 * kPanel + k % 4];
            float y = float(sum) * t.scale[n] + t.bias[n];
            const int64_t out = i * t.columns + n;
            if (t.table)
                t.codes[out] = bad ? kNotANumber : t.table[uint8_t(code(y))];
            else
                t.y[out] = bad ? kNaN : t.residual ? y + t.residual[out] : y;
        }
    }
}

size_t relation_scratch(const RelationMlp& t) { return size_t(t.hidden); }

void relation_mlp(const RelationMlp& t, int64_t position, void* scratch) {
    int8_t* hidden = static_cast<int8_t*>(scratch);
    const int inputs = (t.inputs + 3) / 4 * 4, wide = (t.hidden + 3) / 4 * 4;
    for (int64_t p = position; p < std::min(position + kPanel, t.positions); ++p) {
        bool bad = false;
        for (int c = 0; c < t.inputs; ++c) bad |= t.x[c * t.positions + p] == kNotANumber;
        for (int h = 0; h < t.hidden; ++h) {
            int32_t sum = t.first_shift[h];
            for (int c = 0; c < t.inputs; ++c)
                sum += t.first[h * inputs + c] * t.x[c * t.positions + p];
            hidden[h] = t.table[uint8_t(code(float(sum) * t.first_scale[h] + t.first_bias[h]))];
        }
        for (int o = 0; o < t.outputs; ++o) {
            int32_t sum = t.second_shift[o];
            for (int h = 0; h < t.hidden; ++h) sum += t.second[o * wide + h] * hidden[h];
            t.y[o * t.positions + p] =
                bad ? kNaN : float(sum) * t.second_scale[o] + t.second_bias[o];
        }
    }
}

// The taps of a token of the finer grid: tokens of the coarser one, and their weights.
int taps_of(const Upsample& u, int token, int (&at)[4], float (&weight)[4]) {
    at[0] = 0, weight[0] = 1;
    if (token == 0) return 1;
    const int y = (token - 1) / u.target, x = (token - 1) % u.target;
    int taps = 0;
    for (int i = 0; i < 4; ++i) {
        const float w = u.weight[y][i / 2] * u.weight[x][i % 2];
        if (w == 0) continue;
        at[taps] = 1 + (u.first[y] + i / 2) * u.source + u.first[x] + i % 2;
        weight[taps++] = w;
    }
    return taps;
}

size_t attention_scratch(const Attention& t) { return size_t(t.tokens) * sizeof(float); }

void attention(const Attention& t, int64_t image, int head, void* scratch) {
    float* logit = static_cast<float*>(scratch);
    const int coarse = t.relations ? 1 + t.upsample->source * t.upsample->source : 0;
    const float* relations =
        t.relations + image * t.relations_image + int64_t(head) * coarse * coarse;
    for (int i = 0; i < t.queries; ++i) {
        const float* q = t.q + image * t.q_image + i * t.q_stride + head * t.head;
        float most = -std::numeric_limits<float>::infinity();
        for (int j = 0; j < t.tokens; ++j) {
            const float* k = t.k + image * t.kv_image + j * t.kv_stride + head * t.head;
            logit[j] = 0;
            for (int c = 0; c < t.head; ++c) logit[j] += q[c] * k[c];
            if (coarse) {
                int row[4], column[4];
                float of_row[4], of_column[4];
                const int rows = taps_of(*t.upsample, i, row, of_row);
                const int columns = taps_of(*t.upsample, j, column, of_column);
                for (int a = 0; a < rows; ++a)
                    for (int b = 0; b < columns; ++b)
                        logit[j] += of_row[a] * of_column[b] * relations[row[a] * coarse + column[b]];
            }
            most = std::max(most, logit[j]);
            if (t.logits)
                t.logits[((image * t.heads + head) * t.queries + i) * t.tokens + j] =
                    code(logit[j] * t.logit_scale);
        }
        float total = 0;
        for (int j = 0; j < t.tokens; ++j) total += logit[j] = std::exp(logit[j] - most);
        for (int c = 0; c < t.head; ++c) {
            float sum = 0;
            for (int j = 0; j < t.tokens; ++j)
                sum += logit[j] * t.v[image * t.kv_image + j * t.kv_stride + head * t.head + c];
            t.mixed[((image * t.queries + i) * t.heads + head) * t.head + c] =
                code(sum * (t.scale / total));
        }
    }
}

void norm(const Norm& t, int64_t row, int64_t rows, float* scratch) {
    const int all = t.width + t.context_width;
    for (int64_t i = row; i < row + rows; ++i) {
        const float* x = t.x + i * t.width;
        if (t.residual) {
            const float* other = t.residual + i % t.residual_rows * t.width;
            for (int c = 0; c < t.width; ++c) t.sum[i * t.width + c] = x[c] + other[c];
            x = t.sum + i * t.width;
        }
        std::fill(scratch, scratch + t.context_width, 0.0f);
        const int token = int(i % t.tokens);
        if (token && t.context) {
            const Upsample& u = *t.upsample;
            const int y = (token - 1) / u.target, z = (token - 1) % u.target;
            const int right = u.source > 1 ? 1 : 0, down = right * u.source;
            const int64_t at = i / t.tokens * (1 + int64_t(u.source) * u.source) + 1 +
                               u.first[y] * u.source + u.first[z];
            for (int c = 0; c < t.context_width; ++c) {
                const auto value = [&](int64_t n) { return t.context[n * t.context_width + c]; };
                const float *w = u.weight[z], *h = u.weight[y];
                const float upper = w[0] * value(at) + w[1] * value(at + right);
                const float lower = w[0] * value(at + down) + w[1] * value(at + down + right);
                scratch[c] = h[0] * upper + h[1] * lower;
            }
        }
        const auto value = [&](int c) { return c < t.width ? x[c] : scratch[c - t.width]; };
        // In lanes that are then halved: the order of all sets.
        const auto sum = [&](auto term) {
            float lane[kSums] = {};
            for (int c = 0; c < all; ++c) lane[c % kSums] += term(c);
            for (int half = kSums / 2; half; half /= 2)
                for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
            return lane[0];
        };
        const float mean = sum(value) / float(all);
        const float variance =
            sum([&](int c) { return (value(c) - mean) * (value(c) - mean); }) / float(all);
        const float inverse = 1.0f / std::sqrt(variance + t.epsilon);
        for (int c = 0; c < all; ++c)
            t.codes[i * all + c] = code((value(c) - mean) * inverse * t.gamma[c] + t.beta[c]);
    }
}

void quantize(const float* x, int64_t count, float scale, int8_t* codes) {
    for (int64_t i = 0; i < count; ++i) codes[i] = code(x[i] * scale);
}

int64_t peak(int64_t) { return 0; }  // of a processor without a set, nothing is known

}  // namespace

extern const Kernels reference;
const Kernels reference = {
    "reference",      kPanel,    0,                 false, row_sums, linear,  relation_mlp,
    relation_scratch, attention, attention_scratch, norm,  quantize, peak,
};

}  // namespace dvt
