// The operators of the domain `dvt_edge`: what they check, how constants are packed when a session
// opens, and how the work is shared out. docs/adr/0003-native-operators.md describes inputs and
// attributes.
#include "session.h"
#include "sets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#define DVT_EXPORT extern "C" __attribute__((visibility("default")))

namespace dvt {

// ---- instruction sets -------------------------------------------------------------------------

// Those that the compiler knew, the fastest first, plain C++ last.
#define DVT_DECLARE(set) extern const Kernels set;
DVT_SETS(DVT_DECLARE)

namespace {

bool has(const std::string& set) {
    if (set == "plain") return true;
#if defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    __get_cpuid_count(7, 1, &a, &b, &c, &d);
    const bool vnni = a & 1 << 4, bf16 = a & 1 << 5;
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    const bool vbmi = __builtin_cpu_supports("avx512vbmi");
    return (set == "avx512_bf16" && avx512 && vbmi && bf16) ||
           (set == "avx512_vbmi" && avx512 && vbmi) || (set == "avx512" && avx512) ||
           (set == "avx_vnni" && avx2 && vnni) || (set == "avx2" && avx2);
#elif defined(__aarch64__)
    return set == "neon_dot" && (getauxval(AT_HWCAP) & 1 << 20);  // HWCAP_ASIMDDP
#else
    return false;
#endif
}

// The sets of this processor.
const std::vector<const Kernels*>& sets() {
    static const std::vector<const Kernels*> found = [] {
        std::vector<const Kernels*> all;
#define DVT_ADD(set) \
    if (has(#set)) all.push_back(&set);
        DVT_SETS(DVT_ADD)
        return all;
    }();
    return found;
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
    const Kernels* found = chosen;
    return found ? *found : *sets().front();
}

// ---- packing ----------------------------------------------------------------------------------

struct UpsampleTables {
    std::vector<int32_t> first;
    std::vector<float> weight, transposed;
    Upsample shape{};

    // From a matrix [target, source] whose rows have at most two neighbouring non-zeros; or from
    // none.
    explicit UpsampleTables(const Tensor& u) {
        if (!u) return;
        u.must(u.rank == 2 && u.size[0] * u.size[1] > 0 && std::max(u.size[0], u.size[1]) <= 1024,
               "expected [target, source], at most 1024 each");
        const int target = int(u.size[0]), source = int(u.size[1]), wide = padded(target);
        transposed.resize(size_t(source) * wide);
        for (int i = 0; i < target; ++i) {
            const float* row = u.as<float>() + size_t(i) * source;
            int begin = 0;
            while (begin < source && row[begin] == 0) ++begin;
            first.push_back(std::max(0, std::min(begin, source - kMostTaps)));
            weight.resize(weight.size() + kMostTaps);
            for (int s = 0; s < source; ++s) {
                const int tap = s - first.back();
                u.must(row[s] == 0 || (std::isfinite(row[s]) && tap >= 0 && tap < kMostTaps),
                       "a row has more than two non-zeros, or two that are no neighbours");
                if (tap >= 0 && tap < kMostTaps) weight[i * kMostTaps + tap] = row[s];
                transposed[s * wide + i] = row[s];
            }
        }
        shape = {source, target, first.data(), reinterpret_cast<float(*)[kMostTaps]>(weight.data()),
                 transposed.data()};
    }
};

// ---- the operators ----------------------------------------------------------------------------

constexpr Port kFloats{ort::kFloat, ort::kRequired}, kMaybeFloats{ort::kFloat, ort::kOptional};
constexpr Port kCodes{ort::kInt8, ort::kRequired}, kMaybeCodes{ort::kInt8, ort::kOptional};

template <bool WithTable>
class LinearOperator {
   public:
    static constexpr const char* kName = WithTable ? "LinearTable" : "Linear";
    static constexpr Port kInputs[] = {kCodes, kCodes, kFloats, kFloats,
                                       WithTable ? kCodes : kMaybeFloats};
    static constexpr Port kOutputs[] = {WithTable ? kCodes : kFloats};

    explicit LinearOperator(const Info& info) {
        const Tensor w = info.weights(1, "w");
        w.must(w.size[0] % 4 == 0 && w.size[1] % kGroup == 0,
               "rows must be a multiple of 4, columns of 16");
        const int depth = int(w.size[0]), columns = int(w.size[1]);
        const int zero_point = info.integer("zero_point", 0, -127, 127);
        scale_ = info.floats(2, "scale", columns);
        bias_ = info.floats(3, "bias", columns);
        if (WithTable) table_ = info.table(4);
        uint8_t* weights = static_cast<uint8_t*>(weights_.at_least(size_t(depth) * columns));
        shift_.assign(columns, 0);
        for (int k = 0; k < depth; ++k)
            for (int n = 0; n < columns; ++n) {
                const int8_t v = w.as<int8_t>()[size_t(k) * columns + n];
                const int begin = n / set_.panel * set_.panel;
                const int width = std::min(set_.panel, columns - begin);
                uint8_t* panel = weights + size_t(begin) * depth;
                panel[k / 4 * 4 * width + (n - begin) * 4 + k % 4] = uint8_t(v + set_.offset);
                shift_[n] -= zero_point * v;
            }
        task_.depth = depth;
        task_.columns = columns;
        task_.weights = weights;
        task_.shift = shift_.data();
        task_.scale = scale_.data();
        task_.bias = bias_.data();
        task_.table = WithTable ? table_.data() : nullptr;
    }

    void run(const Context& context) const {
        const Tensor x = context.input(0, "x");
        x.must(x.last() == task_.depth, "its last dimension must be the rows of w");
        std::vector<int64_t> size = x.shape();
        size.back() = task_.columns;
        Linear task = task_;
        task.x = x.as<int8_t>();
        if constexpr (WithTable) {
            task.codes = context.output<int8_t>(0, size);
        } else {
            const Tensor residual = context.input(4, "residual");
            if (residual) residual.must(residual.shape() == size, "expected the shape of y");
            task.residual = residual.as<float>();
            task.y = context.output<float>(0, size);
        }
        // Chunks of rows whose panel stays in the first cache, and enough of them for all threads.
        constexpr int kColumnChunk = 128;
        const int64_t rows = x.rows(), row_chunks = (rows + kRowChunk - 1) / kRowChunk;
        const int column_chunks = (task.columns + kColumnChunk - 1) / kColumnChunk;
        const auto height = [&](int64_t row) {
            return int(std::min<int64_t>(kRowChunk, rows - row));
        };
        std::vector<int32_t> sums(rows);
        task.sums = sums.data();
        context.parallel(row_chunks, 0, [&](size_t i, void*) {
            const int64_t row = int64_t(i) * kRowChunk;
            set_.row_sums(task, row, height(row), sums.data() + row);
        });
        context.parallel(row_chunks * column_chunks, 0, [&](size_t i, void*) {
            const int64_t row = int64_t(i) / column_chunks * kRowChunk;
            const int column = int(i % column_chunks) * kColumnChunk;
            set_.linear(task, row, height(row), column,
                        std::min(kColumnChunk, task.columns - column));
        });
    }

   private:
    const Kernels& set_ = kernels();
    Buffer weights_;
    std::vector<int32_t> shift_;
    std::vector<float> scale_, bias_;
    std::vector<int8_t> table_;
    Linear task_{};
};

class RelationMlpOperator {
   public:
    static constexpr const char* kName = "RelationMlp";
    static constexpr Port kInputs[] = {kCodes, kCodes, kFloats, kFloats,
                                       kCodes, kCodes, kFloats, kFloats};
    static constexpr Port kOutputs[] = {kFloats};

    explicit RelationMlpOperator(const Info& info) : table_(info.table(4)) {
        const Tensor w1 = info.weights(1, "w1"), w2 = info.weights(5, "w2");
        w2.must(w2.size[1] == w1.size[0], "its columns must be the rows of w1");
        const int zero_point = info.integer("zero_point", 0, -127, 127);
        a_.pack(w1, info.floats(2, "scale1", w1.size[0]), info.floats(3, "bias1", w1.size[0]),
                set_.offset);
        b_.pack(w2, info.floats(6, "scale2", w2.size[0]), info.floats(7, "bias2", w2.size[0]),
                set_.offset + zero_point);
        task_.inputs = int(w1.size[1]);
        task_.hidden = int(w1.size[0]);
        task_.outputs = int(w2.size[0]);
    }

    void run(const Context& context) const {
        const Tensor x = context.input(0, "x");
        x.must(x.rank >= 2 && x.size[1] == task_.inputs, "its channels must be the columns of w1");
        std::vector<int64_t> size = x.shape();
        size[1] = task_.outputs;
        RelationMlp task = task_;
        task.positions = x.count() / std::max<int64_t>(1, x.size[0] * x.size[1]);
        task.first = a_.view(), task.second = b_.view();
        task.table = table_.data();
        float* const y = context.output<float>(0, size);
        const int64_t tiles = (task.positions + set_.panel - 1) / set_.panel;
        context.parallel(x.size[0] * tiles, set_.relation_scratch(task),
                         [&](size_t i, void* memory) {
                             RelationMlp one = task;
                             const int64_t image = int64_t(i) / tiles * one.positions;
                             one.x = x.as<int8_t>() + image * one.inputs;
                             one.y = y + image * one.outputs;
                             set_.relation_mlp(one, int64_t(i) % tiles * set_.panel, memory);
                         });
    }

   private:
    struct Layer {
        std::vector<int8_t> weights;
        std::vector<int32_t> shift;
        std::vector<float> scale, bias;

        MlpLayer view() const { return {weights.data(), shift.data(), scale.data(), bias.data()}; }
        void pack(const Tensor& w, std::vector<float> scales, std::vector<float> biases,
                  int offset) {
            const size_t depth = w.size[1], high = (w.size[0] + 3) / 4 * 4,
                         wide = (depth + 3) / 4 * 4;
            weights.assign(high * wide, 0);
            shift.assign(high, 0);
            scale = std::move(scales), bias = std::move(biases);
            scale.resize(high), bias.resize(high);
            for (size_t i = 0; i < size_t(w.count()); ++i) {
                const int8_t v = w.as<int8_t>()[i];
                weights[i / depth * wide + i % depth] = v;
                shift[i / depth] -= offset * v;
            }
        }
    };
    const Kernels& set_ = kernels();
    Layer a_, b_;
    std::vector<int8_t> table_;
    RelationMlp task_{};
};

class AttentionOperator {
   public:
    static constexpr const char* kName = "Attention";
    static constexpr Port kInputs[] = {kFloats, kFloats, kMaybeFloats, kMaybeFloats};
    static constexpr Port kOutputs[] = {kCodes, kMaybeCodes};

    explicit AttentionOperator(const Info& info)
        : upsample_(info.constant(3, ort::kFloat, "upsample")) {
        heads_ = info.integer("heads", 0, 1, 1024);
        head_ = info.integer("head_width", 0, 32, 256);
        require(head_ % 32 == 0, "head_width must be a multiple of 32");
        first_ = info.integer("first", 0, 0, 1 << 20);
        scale_ = info.positive("scale", 0);
        logit_scale_ = info.positive("logit_scale", 1);
    }

    void run(const Context& context) const {
        const Tensor q = context.input(0, "queries"), kv = context.input(1, "keys_values");
        const Tensor relations = context.input(2, "relations");
        const int64_t width = int64_t(heads_) * head_;
        q.must(q.rank == 3 && q.last() >= width,
               "expected [images, queries, heads * head_width or more]");
        kv.must(kv.rank == 3 && kv.last() >= 2 * width && kv.size[0] == q.size[0] &&
                    kv.size[1] > 0 && q.size[1] <= kv.size[1] && kv.size[1] <= 1 << 20,
                "expected [images, tokens, 2 * heads * head_width or more]");
        const int64_t images = q.size[0], queries = q.size[1], tokens = kv.size[1];
        Attention task{};
        task.q = q.as<float>();
        task.v = kv.as<float>() + kv.last() - width;
        task.k = task.v - width;
        task.q_stride = q.last(), task.kv_stride = kv.last();
        task.q_image = queries * q.last(), task.kv_image = tokens * kv.last();
        task.queries = int(queries), task.tokens = int(tokens);
        task.heads = heads_, task.head = head_;
        task.scale = scale_, task.logit_scale = logit_scale_;
        if (relations) {
            const Upsample& u = upsample_.shape;
            const int64_t coarse = 1 + int64_t(u.source) * u.source;
            require(u.source > 0, "upsample must be a constant where there are relations");
            kv.must(tokens == 1 + int64_t(u.target) * u.target, "its tokens do not fit upsample");
            relations.must(relations.rank == 4 && relations.size[0] == images &&
                               relations.size[1] >= first_ + heads_ &&
                               relations.size[2] == coarse && relations.size[3] == coarse,
                           "it does not fit queries, heads and upsample");
            task.relations = relations.as<float>() + first_ * coarse * coarse;
            task.relations_image = relations.size[1] * coarse * coarse;
            task.upsample = &u;
        }
        task.mixed = context.output<int8_t>(0, {images, queries, width});
        if (context.outputs() > 1)
            task.logits = context.output<int8_t>(1, {images, heads_, queries, tokens});
        context.parallel(images * heads_, set_.attention_scratch(task),
                         [&](size_t i, void* memory) {
                             set_.attention(task, int64_t(i) / heads_, int(i % heads_), memory);
                         });
    }

   private:
    const Kernels& set_ = kernels();
    UpsampleTables upsample_;
    int heads_, head_, first_;
    float scale_, logit_scale_;
};

class NormOperator {
   public:
    static constexpr const char* kName = "NormQuantize";
    static constexpr Port kInputs[] = {kFloats,      kFloats,      kFloats,
                                       kMaybeFloats, kMaybeFloats, kMaybeFloats};
    static constexpr Port kOutputs[] = {kCodes, kMaybeFloats};

    explicit NormOperator(const Info& info) : upsample_(info.constant(5, ort::kFloat, "upsample")) {
        const Tensor gamma = info.required(1, ort::kFloat, "gamma");
        const int64_t width = gamma.count();
        gamma.must(width > 0 && width % kGroup == 0 && width <= 65536, "expected a multiple of 16");
        gamma_ = info.floats(1, "gamma", width);
        beta_ = info.floats(2, "beta", width);
        epsilon_ = info.positive("epsilon", 1e-5f);
    }

    void run(const Context& context) const {
        const Tensor x = context.input(0, "x");
        const Tensor residual = context.input(3, "residual"), coarse = context.input(4, "context");
        const int64_t all = int64_t(gamma_.size()), rows = x.rows();
        x.must(x.rank == 3 && x.last() > 0 && x.last() % kGroup == 0 && x.last() <= all,
               "expected [images, tokens, a multiple of 16 that is at most gamma's]");
        Norm task{};
        task.x = x.as<float>();
        task.tokens = int(x.size[1]);
        task.width = int(x.last());
        task.context_width = int(all) - task.width;
        task.gamma = gamma_.data(), task.beta = beta_.data();
        task.epsilon = epsilon_;
        require(bool(residual) == (context.outputs() > 1),
                "a residual and the output sum go together");
        if (residual) {
            residual.must(residual.rank == 3 && residual.size[1] == x.size[1] &&
                              residual.last() == x.last() &&
                              (residual.size[0] == x.size[0] || residual.size[0] == 1),
                          "expected the shape of x, of all images or one");
            task.residual = residual.as<float>();
            task.residual_rows = std::max<int64_t>(1, residual.rows());
            task.sum = context.output<float>(1, x.shape());
        }
        if (coarse) {
            const Upsample& u = upsample_.shape;
            require(u.source > 0, "upsample must be a constant where there is a context");
            coarse.must(coarse.rank == 3 && coarse.size[0] == x.size[0] &&
                            coarse.size[1] == 1 + int64_t(u.source) * u.source &&
                            coarse.last() == task.context_width,
                        "it does not fit x, gamma and upsample");
            x.must(x.size[1] == 1 || x.size[1] == 1 + int64_t(u.target) * u.target,
                   "its tokens do not fit upsample");
            task.context = coarse.as<float>();
            task.upsample = &u;
        }
        task.codes = context.output<int8_t>(0, {x.size[0], x.size[1], all});
        constexpr int64_t kChunk = 32;
        context.parallel(
            (rows + kChunk - 1) / kChunk, all * sizeof(float), [&](size_t i, void* memory) {
                const int64_t row = int64_t(i) * kChunk;
                set_.norm(task, row, std::min(kChunk, rows - row), static_cast<float*>(memory));
            });
    }

   private:
    const Kernels& set_ = kernels();
    UpsampleTables upsample_;
    std::vector<float> gamma_, beta_;
    float epsilon_;
};

class QuantizeOperator {
   public:
    static constexpr const char* kName = "Quantize";
    static constexpr Port kInputs[] = {kFloats};
    static constexpr Port kOutputs[] = {kCodes};

    explicit QuantizeOperator(const Info& info) : scale_(info.positive("scale", 0)) {}

    void run(const Context& context) const {
        const Tensor x = context.input(0, "x");
        int8_t* codes = context.output<int8_t>(0, x.shape());
        constexpr int64_t kChunk = 1 << 14;
        const int64_t count = x.count();
        context.parallel((count + kChunk - 1) / kChunk, 0, [&](size_t i, void*) {
            const int64_t at = int64_t(i) * kChunk;
            set_.quantize(x.as<float>() + at, std::min(kChunk, count - at), scale_, codes + at);
        });
    }

   private:
    const Kernels& set_ = kernels();
    float scale_;
};

// Sessions keep pointers to the domain and its operators; both last as long as the process.
ort::Domain* domain(const ort::Api& api) {
    static const Registered<LinearOperator<false>> linear;
    static const Registered<LinearOperator<true>> linear_table;
    static const Registered<RelationMlpOperator> relation_mlp;
    static const Registered<AttentionOperator> attention;
    static const Registered<NormOperator> norm;
    static const Registered<QuantizeOperator> quantize;
    static ort::Domain* const made = [&] {
        ort::Domain* empty = nullptr;
        check(api.call(ort::kCreateCustomOpDomain, "dvt_edge", &empty));
        const ort::CustomOp* const all[] = {&linear,    &linear_table, &relation_mlp,
                                            &attention, &norm,         &quantize};
        for (const ort::CustomOp* op : all) check(api.call(ort::kCustomOpDomainAdd, empty, op));
        return empty;
    }();
    return made;
}

}  // namespace
}  // namespace dvt

// What SessionOptions.register_custom_ops_library looks for.
DVT_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
    const ort::Api* api = base->get_api(ort::kApiVersion);
    if (!api)
        return base->get_api(1)->call(ort::kCreateStatus, ort::kFail,
                                      "dvt_edge's operators need ONNX Runtime 1.18 or later");
    return dvt::guarded(*api, "registration", [&] {
        dvt::check(api->call(ort::kAddCustomOpDomain, options, dvt::domain(*api)));
    });
}

// Changes with the operators' interface.
DVT_EXPORT int dvt_operators_version(void) { return 1; }

// The name of this processor's i-th instruction set, the fastest first; null where it has no more.
DVT_EXPORT const char* dvt_operators_set(int i) {
    return i >= 0 && size_t(i) < dvt::sets().size() ? dvt::sets()[i]->name : nullptr;
}

// The name of the set that sessions opened from now on take.
DVT_EXPORT const char* dvt_operators_in_use(void) { return dvt::kernels().name; }

// Which set sessions opened from now on take, null for the fastest; 0 where there is none of that
// name. For tests and benchmarks.
DVT_EXPORT int dvt_operators_use(const char* name) {
    const dvt::Kernels* found = nullptr;
    for (const dvt::Kernels* set : dvt::sets())
        if (name && set->name == std::string(name)) found = set;
    dvt::chosen = found;
    return !name || found;
}
