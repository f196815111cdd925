// What every instruction set implements, and the layouts that kernels and operators share.
//
// INT8 codes run from -127 to 127. The code -128 stands for a value that is not a number: kernels
// write it for NaN, and whatever depends on one that they read becomes NaN again.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dvt {

constexpr int8_t kNotANumber = -128;
constexpr int32_t kBadRow = INT32_MIN;
constexpr int kGroup = 16;     // widths are multiples of it
constexpr int kSums = 64;      // lanes of the sums of a norm
constexpr int kRowChunk = 96;  // rows that share a panel in the first cache
constexpr int kMostTaps = 2;   // of the upsampling, along one axis

inline int padded(int n) { return (n + kGroup - 1) / kGroup * kGroup; }

// Along one axis of the grid: value i of the finer one is weight[i][0] * coarse[first[i]] +
// weight[i][1] * coarse[first[i] + 1].
struct Upsample {
    int source, target;
    const int32_t* first;  // [target]; first + 1 is below source too, unless source is 1
    const float (*weight)[kMostTaps];
    const float* transposed;  // the same: [source][padded(target)]
};

// y = (x - zero point) w, x [rows, depth], w [depth, columns]. With a table, rounded and looked up.
struct Linear {
    const int8_t* x;
    int depth, columns;
    const uint8_t* weights;  // panels, see Kernels::panel
    const int32_t* shift;    // [columns], joins the sum: what offset and zero point of x brought
    const int32_t* sums;     // [rows], from `row_sums`
    const float *scale, *bias;
    const int8_t* table;    // [256], by uint8_t(code); or null
    const float* residual;  // [rows, columns] or null
    float* y;               // [rows, columns] without a table
    int8_t* codes;          // with one
};

struct MlpLayer {
    const int8_t* weights;  // [rows][depth], both padded to 4 with zeros
    const int32_t* shift;
    const float *scale, *bias;
};

// Two products over the channels of x [inputs, positions], a table between them.
struct RelationMlp {
    const int8_t* x;
    int64_t positions;
    int inputs, hidden, outputs;
    MlpLayer first, second;
    const int8_t* table;
    float* y;  // [outputs, positions]
};

struct Attention {
    const float *q, *k, *v;                          // of the first image and head
    int64_t q_stride, kv_stride, q_image, kv_image;  // from token to token, from image to image
    int queries, tokens, heads, head;
    const float* relations;  // [coarse, coarse] of the first image and head, or null
    int64_t relations_image;
    const Upsample* upsample;
    float scale;
    int8_t* mixed;  // [queries, heads * head] of the first image
    float logit_scale;
    int8_t* logits;  // [heads, queries, tokens] of the first image, or null
};

struct Norm {
    const float* x;
    const float* residual;  // or null
    int64_t residual_rows;  // they repeat after so many
    float* sum;             // or null
    const float* context;   // [1 + source^2, context_width] of the first image, or null: zeros
    const Upsample* upsample;
    int tokens, width, context_width;
    const float *gamma, *beta;
    float epsilon;
    int8_t* codes;  // [rows, width + context_width]
};

struct Kernels {
    const char* name;
    int panel;  // columns of a panel, [depth / 4][columns][4] bytes; the last one of a matrix is as
                // narrow as what is left, a multiple of kGroup
    int offset;  // added to the codes of a panel: 128 where the instruction wants them unsigned
    // What the offset brings to the sums of each row of x, or kBadRow for one that holds NaN.
    void (*row_sums)(const Linear&, int64_t row, int rows, int32_t* sums);
    void (*linear)(const Linear&, int64_t row, int rows, int column, int columns);
    void (*relation_mlp)(const RelationMlp&, int64_t position, void* scratch);  // of one panel
    size_t (*relation_scratch)(const RelationMlp&);
    void (*attention)(const Attention&, int64_t image, int head, void* scratch);
    size_t (*attention_scratch)(const Attention&);
    void (*norm)(const Norm&, int64_t row, int64_t rows, float* scratch);  // of a row
    void (*quantize)(const float* x, int64_t count, float scale, int8_t* codes);
};

}  // namespace dvt
