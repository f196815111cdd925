// The operators of the domain `dvt_edge`, as ONNX Runtime sees them: what they check, how constants
// are packed when a session opens, and how the work is shared out among the session's threads.
// docs/adr/0003-native-operators.md describes inputs, attributes and layouts.
#include "kernels.h"
#include "ort_api.h"
#include "sets.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#define DVT_EXPORT extern "C" __attribute__((visibility("default")))

namespace dvt {

// ---- instruction sets -------------------------------------------------------------------------------

// Those that the compiler knew, the fastest first.
#define DVT_DECLARE(set) extern const Kernels set;
DVT_SETS(DVT_DECLARE)
extern const Kernels reference;

namespace {

bool has(const std::string& set) {
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
    if (set == "avx512_bf16") return avx512 && vbmi && bf16;
    if (set == "avx512_vbmi") return avx512 && vbmi;
    if (set == "avx512") return avx512;
    if (set == "avx_vnni") return avx2 && vnni;
    return set == "avx2" && avx2;
#elif defined(__aarch64__)
    constexpr unsigned long kDotProducts = 1 << 20;  // HWCAP_ASIMDDP
    return set == "neon_dot" && (getauxval(AT_HWCAP) & kDotProducts);
#else
    return false;
#endif
}

// The sets of this processor, the reference last.
const std::vector<const Kernels*>& sets() {
    static const std::vector<const Kernels*> found = [] {
        std::vector<const Kernels*> all;
#define DVT_ADD(set) \
    if (has(#set)) all.push_back(&set);
        DVT_SETS(DVT_ADD)
        all.push_back(&reference);
        return all;
    }();
    return found;
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
    const Kernels* found = chosen;
    return found ? *found : *sets().front();
}

// ---- ONNX Runtime -----------------------------------------------------------------------------------

constexpr int kMostDimensions = 6;

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...) {
    char buffer[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    return buffer;
}

void require(bool fits, const std::string& what) {
    if (!fits) throw std::invalid_argument(what);
}

struct Tensor {
    const char* name = "";
    int rank = 0, type = 0;
    int64_t size[kMostDimensions] = {};
    void* data = nullptr;

    explicit operator bool() const { return data; }
    int64_t last() const { return size[rank - 1]; }
    int64_t count() const {
        int64_t product = 1;
        for (int i = 0; i < rank; ++i) product *= size[i];
        return product;
    }
    int64_t rows() const { return last() ? count() / last() : 0; }
    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
    std::string shape() const {
        std::string s = std::string(name) + " has shape [";
        for (int i = 0; i < rank; ++i) s += (i ? ", " : "") + std::to_string(size[i]);
        return s + "]";
    }
    void must(bool fits, const char* what) const { require(fits, shape() + "; " + what); }
};

// Statuses become exceptions here and statuses again in `guarded`.
struct Failed {
    ort::Status* status;
};

void check(ort::Status* status) {
    if (status) throw Failed{status};
}

Tensor tensor(const ort::Api& api, const ort::Value* value, const char* name) {
    Tensor t;
    t.name = name;
    if (!value) return t;
    ort::ShapeInfo* info = nullptr;
    check(api.call(ort::kGetTensorTypeAndShape, value, &info));
    size_t rank = 0;
    check(api.call(ort::kGetDimensionsCount, static_cast<const ort::ShapeInfo*>(info), &rank));
    t.rank = int(std::min<size_t>(rank, kMostDimensions + 1));
    if (t.rank <= kMostDimensions)
        check(api.call(ort::kGetDimensions, static_cast<const ort::ShapeInfo*>(info), t.size, rank));
    check(api.call(ort::kGetTensorElementType, static_cast<const ort::ShapeInfo*>(info), &t.type));
    api.call<void>(ort::kReleaseTensorTypeAndShapeInfo, info);
    require(t.rank >= 1 && t.rank <= kMostDimensions, text("%s has %zu dimensions", name, rank));
    check(api.call(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &t.data));
    static char nothing;  // a tensor without elements is there all the same
    if (!t.data) t.data = &nothing;
    return t;
}

// What a kernel is made of when the session opens.
struct Info {
    const ort::Api& api;
    const ort::KernelInfo* info;

    // A constant input; without data where it is none.
    Tensor constant(size_t index, int type, const char* name) const {
        int is_constant = 0;
        const ort::Value* value = nullptr;
        if (ort::Status* status = api.call(ort::kKernelInfoGetConstantInputTensor, info, index,
                                           &is_constant, &value)) {
            api.call<void>(ort::kReleaseStatus, status);  // so many inputs it has not
            return Tensor();
        }
        Tensor t = tensor(api, is_constant ? value : nullptr, name);
        require(!t || t.type == type, text("%s has element type %d, expected %d", name, t.type, type));
        return t;
    }
    Tensor required(size_t index, int type, const char* name) const {
        const Tensor t = constant(index, type, name);
        require(bool(t), text("%s must be a constant", name));
        return t;
    }
    // [count], finite.
    std::vector<float> floats(size_t index, const char* name, int64_t count) const {
        const Tensor t = required(index, ort::kFloat, name);
        t.must(t.rank == 1 && t.size[0] == count, text("expected [%lld]", (long long)count).c_str());
        const std::vector<float> values(t.as<float>(), t.as<float>() + count);
        for (const float v : values) require(std::isfinite(v), text("%s is not finite", name));
        return values;
    }
    // [256] by code + 128, kept by uint8_t(code).
    std::vector<int8_t> table(size_t index) const {
        const Tensor t = required(index, ort::kInt8, "table");
        t.must(t.rank == 1 && t.size[0] == 256, "expected [256]");
        std::vector<int8_t> by_byte(256);
        for (int i = 0; i < 256; ++i) by_byte[uint8_t(int8_t(i - 128))] = t.as<int8_t>()[i];
        for (int i = 1; i < 256; ++i)
            require(t.as<int8_t>()[i] != kNotANumber, "table holds -128, which stands for NaN");
        by_byte[128] = kNotANumber;
        return by_byte;
    }
    int integer(const char* name, int64_t otherwise, int64_t least, int64_t most) const {
        int64_t value = otherwise;
        read(api.call(ort::kKernelInfoGetAttributeInt64, info, name, &value));
        require(value >= least && value <= most,
                text("%s is %lld, expected %lld to %lld", name, (long long)value, (long long)least,
                     (long long)most));
        return int(value);
    }
    float positive(const char* name, float otherwise) const {
        float value = otherwise;
        read(api.call(ort::kKernelInfoGetAttributeFloat, info, name, &value));
        require(std::isfinite(value) && value > 0, text("%s is %g, expected more than 0", name, value));
        return value;
    }

  private:
    void read(ort::Status* status) const {  // an attribute that is not there keeps its default
        if (status) api.call<void>(ort::kReleaseStatus, status);
    }
};

// Memory of the calling thread, kept from call to call.
void* scratch(size_t bytes) {
    struct Memory {
        ~Memory() { std::free(data); }
        void* data = nullptr;
        size_t bytes = 0;
    };
    thread_local Memory memory;
    if (memory.bytes < bytes) {
        std::free(memory.data);
        memory.bytes = 0;
        bytes = (bytes + 63) / 64 * 64;
        memory.data = std::aligned_alloc(64, bytes);
        if (!memory.data) throw std::bad_alloc();
        memory.bytes = bytes;
    }
    return memory.data;
}

// What a kernel runs with.
struct Context {
    const ort::Api& api;
    ort::KernelContext* context;

    Tensor input(size_t index, const char* name) const {
        const ort::Value* value = nullptr;
        check(api.call(ort::kKernelContextGetInput, static_cast<const ort::KernelContext*>(context),
                       index, &value));
        return tensor(api, value, name);
    }
    size_t outputs() const {
        size_t count = 0;
        check(api.call(ort::kKernelContextGetOutputCount,
                       static_cast<const ort::KernelContext*>(context), &count));
        return count;
    }
    template <class T>
    T* output(size_t index, const std::vector<int64_t>& size) const {
        ort::Value* value = nullptr;
        void* data = nullptr;
        check(api.call(ort::kKernelContextGetOutput, context, index, size.data(), size.size(), &value));
        if (value) check(api.call(ort::kGetTensorMutableData, value, &data));
        return static_cast<T*>(data);
    }
    // body(i, memory of `bytes`) for all i below count, on the session's threads.
    template <class Body>
    void parallel(size_t count, size_t bytes, const Body& body) const {
        struct Shared {
            const Body& body;
            size_t bytes;
            std::atomic<bool> no_memory;
        } shared{body, bytes, {false}};
        const auto run = [](void* data, size_t i) {
            Shared& s = *static_cast<Shared*>(data);
            try {
                s.body(i, s.bytes ? scratch(s.bytes) : nullptr);
            } catch (const std::bad_alloc&) {
                s.no_memory = true;
            }
        };
        if (count == 1) {
            run(&shared, 0);
        } else if (count) {
            void (*const function)(void*, size_t) = run;
            check(api.call(ort::kKernelContextParallelFor,
                           static_cast<const ort::KernelContext*>(context), function, count, size_t(0),
                           static_cast<void*>(&shared)));
        }
        if (shared.no_memory) throw std::bad_alloc();
    }
};

template <class Body>
ort::Status* guarded(const ort::Api& api, const char* name, const Body& body) {
    const auto status = [&](int code, const char* what) {
        const std::string message = text("dvt_edge:%s: %s", name, what);
        return api.call(ort::kCreateStatus, code, message.c_str());
    };
    try {
        body();
        return nullptr;
    } catch (const Failed& failed) {
        return failed.status;
    } catch (const std::invalid_argument& error) {
        return status(ort::kInvalidArgument, error.what());
    } catch (const std::exception& error) {
        return status(ort::kFail, error.what());
    }
}

// ---- packing ----------------------------------------------------------------------------------------

// Memory that begins at a cache line, with the codes or floats of a panel.
using Aligned = std::unique_ptr<uint8_t, decltype(&std::free)>;

Aligned aligned(size_t bytes) {
    bytes = (bytes + 64 + 63) / 64 * 64;
    Aligned memory(static_cast<uint8_t*>(std::aligned_alloc(64, bytes)), &std::free);
    if (!memory) throw std::bad_alloc();
    std::memset(memory.get(), 0, bytes);
    return memory;
}

// Where [row][column] of a matrix lies among its panels; `unit` rows share 4 bytes.
size_t place(int panel, int depth, int columns, int row, int column, int unit) {
    const int begin = column / panel * panel, width = std::min(panel, columns - begin);
    return size_t(begin) * depth + size_t(row / unit) * width * unit + (column - begin) * unit +
           row % unit;
}

void check_weights(const Tensor& w) {
    w.must(w.rank == 2 && w.size[0] > 0 && w.size[1] > 0, "expected two dimensions");
    w.must(w.size[0] <= 65536 && w.size[1] <= 65536, "expected at most 65536 of each");
    const int8_t* codes = w.as<int8_t>();
    require(std::find(codes, codes + w.count(), kNotANumber) == codes + w.count(),
            text("%s holds -128; the least weight is -127", w.name));
}

struct UpsampleTables {
    std::vector<int32_t> first;
    std::vector<float> weight;
    Aligned panels{nullptr, &std::free};
    Upsample shape{};

    // From a matrix [target, source] whose rows have at most two neighbouring non-zeros.
    UpsampleTables(const Tensor& u, int panel) {
        if (!u) return;
        u.must(u.rank == 2 && u.size[0] >= 1 && u.size[0] <= 1024 && u.size[1] >= 1 &&
                   u.size[1] <= 1024,
               "expected [target, source], at most 1024 of each");
        const int target = int(u.size[0]), source = int(u.size[1]), wide = padded(target);
        panels = aligned(size_t(source) * wide * sizeof(float));
        for (int i = 0; i < target; ++i) {
            const float* row = u.as<float>() + size_t(i) * source;
            int begin = 0;
            while (begin < source && row[begin] == 0) ++begin;
            begin = std::max(0, std::min(begin, source - kMostTaps));
            first.push_back(begin);
            for (int n = 0; n < kMostTaps; ++n)
                weight.push_back(begin + n < source ? row[begin + n] : 0.0f);
            for (int s = 0; s < source; ++s) {
                u.must(std::isfinite(row[s]) && (row[s] == 0 || (s >= begin && s < begin + kMostTaps)),
                       "a row has more than two non-zeros, or two that are no neighbours");
                float* out = reinterpret_cast<float*>(panels.get());
                out[place(panel, source, wide, s, i, 1)] = row[s];
            }
        }
        shape = {source, target, first.data(), reinterpret_cast<float(*)[kMostTaps]>(weight.data()),
                 reinterpret_cast<const float*>(panels.get())};
    }
};

// ---- the operators ----------------------------------------------------------------------------------

struct Port {
    int type, presence;
};
constexpr Port kFloats{ort::kFloat, ort::kRequired}, kMaybeFloats{ort::kFloat, ort::kOptional};
constexpr Port kCodes{ort::kInt8, ort::kRequired}, kMaybeCodes{ort::kInt8, ort::kOptional};

// (x - zero_point) w scale + bias; `WithTable` rounds that to a code and looks it up.
template <bool WithTable>
class LinearOperator {
  public:
    static constexpr const char* kName = WithTable ? "LinearTable" : "Linear";
    static constexpr Port kInputs[] = {kCodes, kCodes, kFloats, kFloats,
                                       WithTable ? kCodes : kMaybeFloats};
    static constexpr Port kOutputs[] = {WithTable ? kCodes : kFloats};

    explicit LinearOperator(const Info& info) {
        const Tensor w = info.required(1, ort::kInt8, "w");
        check_weights(w);
        w.must(w.size[0] % 4 == 0 && w.size[1] % kGroup == 0,
               "rows must be a multiple of 4, columns of 16");
        const int depth = int(w.size[0]), columns = int(w.size[1]);
        scale_ = info.floats(2, "scale", columns);
        bias_ = info.floats(3, "bias", columns);
        if (WithTable) table_ = info.table(4);
        const int zero_point = info.integer("zero_point", 0, -127, 127);
        first_ = info.integer("first", 0, 0, 1 << 24);
        weights_ = aligned(size_t(depth) * columns);
        shift_.assign(columns, 0);
        for (int k = 0; k < depth; ++k)
            for (int n = 0; n < columns; ++n) {
                const int8_t v = w.as<int8_t>()[size_t(k) * columns + n];
                weights_.get()[place(set_.panel, depth, columns, k, n, 4)] = uint8_t(v + set_.offset);
                shift_[n] -= zero_point * v;
            }
        task_.depth = depth;
        task_.columns = columns;
        task_.weights = weights_.get();
        task_.shift = shift_.data();
        task_.scale = scale_.data();
        task_.bias = bias_.data();
        task_.table = WithTable ? table_.data() : nullptr;
    }

    void run(const Context& context) const {
        const Tensor x = context.input(0, "x");
        x.must(x.last() >= first_ + task_.depth, "its last dimension is too short for w");
        std::vector<int64_t> size(x.size, x.size + x.rank);
        size.back() = task_.columns;
        Linear task = task_;
        task.x = x.as<int8_t>() + first_;
        task.stride = x.last();
        if constexpr (WithTable) {
            task.codes = context.output<int8_t>(0, size);
        } else {
            const Tensor residual = context.input(4, "residual");
            if (residual) {
                residual.must(std::equal(size.begin(), size.end(), residual.size,
                                         residual.size + residual.rank),
                              "expected the shape of y");
                task.residual = residual.as<float>();
            }
            task.y = context.output<float>(0, size);
        }
        // Chunks of rows whose panel stays in the first cache, and enough of them for all threads.
        constexpr int kColumnChunk = 128;
        const int64_t rows = x.rows(), row_chunks = (rows + kRowChunk - 1) / kRowChunk;
        const int column_chunks = (task.columns + kColumnChunk - 1) / kColumnChunk;
        std::vector<int32_t> sums(rows);
        task.sums = sums.data();
        const auto height = [&](int64_t row) { return int(std::min<int64_t>(kRowChunk, rows - row)); };
        context.parallel(row_chunks, 0, [&](size_t i, void*) {
            const int64_t row = int64_t(i) * kRowChunk;
            set_.row_sums(task, row, height(row), sums.data() + row);
        });
        context.parallel(row_chunks * column_chunks, 0, [&](size_t i, void*) {
            const int64_t row = int64_t(i) / column_chunks * kRowChunk;
            const int column = int(i % column_chunks) * kColumnChunk;
            set_.linear(task, row, height(row), column, std::min(kColumnChunk, task.columns - column));
        });
    }

  private:
    const Kernels& set_ = kernels();
    Aligned weights_{nullptr, &std::free};
    std::vector<int32_t> shift_;
    std::vector<float> scale_, bias_;
    std::vector<int8_t> table_;
    Linear task_{};
    int first_ = 0;
};

class RelationMlpOperator {
  public:
    static constexpr const char* kName = "RelationMlp";
    static constexpr Port kInputs[] = {kCodes,  kCodes, kFloats, kFloats, kCodes,
                                       kCodes, kFloats, kFloats};
    static constexpr Port kOutputs[] = {kFloats};

    explicit RelationMlpOperator(const Info& info) {
        const Tensor first = info.required(1, ort::kInt8, "w1");
        const Tensor second = info.required(5, ort::kInt8, "w2");
        check_weights(first);
        check_weights(second);
        second.must(second.size[1] == first.size[0], "its columns must be the rows of w1");
        const int inputs = int(first.size[1]), hidden = int(first.size[0]);
        const int outputs = int(second.size[0]);
        table_ = info.table(4);
        const int zero_point = info.integer("zero_point", 0, -127, 127);
        layers_[0].pack(first, info.floats(2, "scale1", hidden), info.floats(3, "bias1", hidden),
                        set_.offset);
        layers_[1].pack(second, info.floats(6, "scale2", outputs), info.floats(7, "bias2", outputs),
                        set_.offset + zero_point);
        const Layer &a = layers_[0], &b = layers_[1];
        task_ = {nullptr,          0,
                 inputs,           hidden,           outputs,
                 a.weights.data(), b.weights.data(), a.shift.data(), b.shift.data(), a.scale.data(),
                 a.bias.data(),    b.scale.data(),   b.bias.data(),  table_.data(),  nullptr};
    }

    void run(const Context& context) const {
        const Tensor x = context.input(0, "x");
        x.must(x.rank >= 2 && x.size[1] == task_.inputs, "its channels must be the columns of w1");
        std::vector<int64_t> size(x.size, x.size + x.rank);
        size[1] = task_.outputs;
        RelationMlp task = task_;
        const int64_t images = x.size[0];
        task.positions = images ? x.count() / images / task.inputs : 0;
        int8_t* const codes = x.as<int8_t>();
        float* const y = context.output<float>(0, size);
        const int64_t tiles = (task.positions + set_.panel - 1) / set_.panel;
        context.parallel(images * tiles, set_.relation_scratch(task), [&](size_t i, void* memory) {
            RelationMlp one = task;
            const int64_t image = int64_t(i) / tiles;
            one.x = codes + image * one.inputs * one.positions;
            one.y = y + image * one.outputs * one.positions;
            set_.relation_mlp(one, int64_t(i) % tiles * set_.panel, memory);
        });
    }

  private:
    struct Layer {
        std::vector<int8_t> weights;  // [rows][depth], both padded to 4 with zeros
        std::vector<int32_t> shift;
        std::vector<float> scale, bias;

        void pack(const Tensor& w, std::vector<float> scales, std::vector<float> biases, int offset) {
            const size_t rows = w.size[0], depth = w.size[1];
            const size_t high = (rows + 3) / 4 * 4, wide = (depth + 3) / 4 * 4;
            weights.assign(high * wide, 0);
            shift.assign(high, 0);
            scale = std::move(scales);
            bias = std::move(biases);
            scale.resize(high);
            bias.resize(high);
            for (size_t r = 0; r < rows; ++r)
                for (size_t c = 0; c < depth; ++c) {
                    weights[r * wide + c] = w.as<int8_t>()[r * depth + c];
                    shift[r] -= offset * weights[r * wide + c];
                }
        }
    };
    const Kernels& set_ = kernels();
    Layer layers_[2];
    std::vector<int8_t> table_;
    RelationMlp task_{};
};

class AttentionOperator {
  public:
    static constexpr const char* kName = "Attention";
    static constexpr Port kInputs[] = {kFloats, kFloats, kMaybeFloats, kMaybeFloats};
    static constexpr Port kOutputs[] = {kCodes, kMaybeCodes};

    explicit AttentionOperator(const Info& info)
        : upsample_(info.constant(3, ort::kFloat, "upsample"), kernels().panel) {
        heads_ = info.integer("heads", 0, 1, 1024);
        head_ = info.integer("head_width", 0, 32, 256);
        require(head_ % 32 == 0, text("head_width is %d, expected a multiple of 32", head_));
        first_ = info.integer("first", 0, 0, 1 << 20);
        scale_ = info.positive("scale", 0);
        logit_scale_ = info.positive("logit_scale", 1);
    }

    void run(const Context& context) const {
        const Tensor q = context.input(0, "queries"), kv = context.input(1, "keys_values");
        const Tensor relations = context.input(2, "relations");
        const int64_t width = int64_t(heads_) * head_;
        q.must(q.rank == 3 && q.last() >= width, "expected [images, queries, heads * head_width or more]");
        kv.must(kv.rank == 3 && kv.last() >= 2 * width && kv.size[0] == q.size[0] && kv.size[1] > 0 &&
                    q.size[1] <= kv.size[1] && kv.size[1] <= 1 << 20,
                "expected [images, tokens, 2 * heads * head_width or more]");
        const int64_t images = q.size[0], queries = q.size[1], tokens = kv.size[1];
        Attention task{};
        task.q = q.as<float>();
        task.k = kv.as<float>() + kv.last() - 2 * width;
        task.v = kv.as<float>() + kv.last() - width;
        task.q_stride = q.last();
        task.kv_stride = kv.last();
        task.q_image = queries * q.last();
        task.kv_image = tokens * kv.last();
        task.queries = int(queries);
        task.tokens = int(tokens);
        task.heads = heads_;
        task.head = head_;
        task.scale = scale_;
        task.logit_scale = logit_scale_;
        if (relations) {
            const Upsample& u = upsample_.shape;
            require(u.source > 0, "upsample must be a constant where there are relations");
            const int64_t coarse = 1 + int64_t(u.source) * u.source;
            kv.must(tokens == 1 + int64_t(u.target) * u.target, "its tokens do not fit upsample");
            relations.must(relations.rank == 4 && relations.size[0] == images &&
                               relations.size[1] >= first_ + heads_ && relations.size[2] == coarse &&
                               relations.size[3] == coarse,
                           "it does not fit queries, heads and upsample");
            task.relations = relations.as<float>() + first_ * coarse * coarse;
            task.relations_image = relations.size[1] * coarse * coarse;
            task.upsample = &u;
        }
        task.mixed = context.output<int8_t>(0, {images, queries, width});
        if (context.outputs() > 1)
            task.logits = context.output<int8_t>(1, {images, heads_, queries, tokens});
        context.parallel(images * heads_, set_.attention_scratch(task), [&](size_t i, void* memory) {
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
    static constexpr Port kInputs[] = {kFloats, kFloats, kFloats,
                                       kMaybeFloats, kMaybeFloats, kMaybeFloats};
    static constexpr Port kOutputs[] = {kCodes, kMaybeFloats};

    explicit NormOperator(const Info& info)
        : upsample_(info.constant(5, ort::kFloat, "upsample"), kernels().panel) {
        const Tensor gamma = info.required(1, ort::kFloat, "gamma");
        gamma.must(gamma.rank == 1 && gamma.size[0] > 0 && gamma.size[0] % kGroup == 0 &&
                       gamma.size[0] <= 65536,
                   "expected one dimension, a multiple of 16");
        gamma_ = info.floats(1, "gamma", gamma.size[0]);
        beta_ = info.floats(2, "beta", gamma.size[0]);
        epsilon_ = info.positive("epsilon", 1e-5f);
    }

    void run(const Context& context) const {
        const Tensor x = context.input(0, "x");
        const Tensor residual = context.input(3, "residual"), coarse = context.input(4, "context");
        const int64_t all = int64_t(gamma_.size());
        x.must(x.rank == 3 && x.last() > 0 && x.last() % kGroup == 0 && x.last() <= all,
               "expected [images, tokens, a multiple of 16 that is at most gamma's]");
        Norm task{};
        task.x = x.as<float>();
        task.tokens = int(x.size[1]);
        task.width = int(x.last());
        task.context_width = int(all) - task.width;
        task.gamma = gamma_.data();
        task.beta = beta_.data();
        task.epsilon = epsilon_;
        const bool sums = context.outputs() > 1;
        require(bool(residual) == sums, "a residual and the output sum go together");
        if (residual) {
            residual.must(residual.rank == 3 && residual.size[1] == x.size[1] &&
                              residual.last() == x.last() &&
                              (residual.size[0] == x.size[0] || residual.size[0] == 1),
                          "expected the shape of x, of all images or one");
            task.residual = residual.as<float>();
            task.residual_rows = std::max<int64_t>(1, residual.rows());
            task.sum = context.output<float>(1, {x.size[0], x.size[1], x.size[2]});
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
        const int64_t rows = x.rows();
        context.parallel((rows + kChunk - 1) / kChunk, size_t(all) * sizeof(float),
                         [&](size_t i, void* memory) {
                             const int64_t row = int64_t(i) * kChunk;
                             set_.norm(task, row, std::min(kChunk, rows - row),
                                       static_cast<float*>(memory));
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
        int8_t* codes = context.output<int8_t>(0, std::vector<int64_t>(x.size, x.size + x.rank));
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

// ---- registration -----------------------------------------------------------------------------------

template <class Operator>
struct Registered : ort::CustomOp {
    struct Kernel {
        const ort::Api& api;
        Operator inner;
    };
    Registered() {
        name = [](const CustomOp*) { return Operator::kName; };
        input_type = [](const CustomOp*, size_t i) { return Operator::kInputs[i].type; };
        input_count = [](const CustomOp*) { return std::size(Operator::kInputs); };
        input_presence = [](const CustomOp*, size_t i) { return Operator::kInputs[i].presence; };
        output_type = [](const CustomOp*, size_t i) { return Operator::kOutputs[i].type; };
        output_count = [](const CustomOp*) { return std::size(Operator::kOutputs); };
        output_presence = [](const CustomOp*, size_t i) { return Operator::kOutputs[i].presence; };
        input_memory = [](const CustomOp*, size_t) { return 0; };
        provider = [](const CustomOp*) -> const char* { return nullptr; };
        start_version = [](const CustomOp*) { return 1; };
        end_version = [](const CustomOp*) { return 1; };
        create_v2 = [](const CustomOp*, const ort::Api* api, const ort::KernelInfo* info,
                       void** kernel) {
            return guarded(*api, Operator::kName, [&] {
                *kernel = new Kernel{*api, Operator(Info{*api, info})};
            });
        };
        compute_v2 = [](void* kernel, ort::KernelContext* context) {
            const Kernel& k = *static_cast<Kernel*>(kernel);
            return guarded(k.api, Operator::kName, [&] { k.inner.run(Context{k.api, context}); });
        };
        destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    }
};

}  // namespace
}  // namespace dvt

// What SessionOptions.register_custom_ops_library looks for.
DVT_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
    using namespace dvt;
    const ort::Api* api = base->get_api(ort::kApiVersion);
    if (!api)
        return base->get_api(1)->call(ort::kCreateStatus, int(ort::kFail),
                                      "dvt_edge's operators need ONNX Runtime 1.18 or later");
    // Sessions keep pointers to the domain and its operators; it is made once.
    static const Registered<LinearOperator<false>> linear;
    static const Registered<LinearOperator<true>> linear_table;
    static const Registered<RelationMlpOperator> relation_mlp;
    static const Registered<AttentionOperator> attention;
    static const Registered<NormOperator> norm;
    static const Registered<QuantizeOperator> quantize;
    static ort::Domain* domain = nullptr;
    return guarded(*api, "registration", [&] {
        static const bool made = [&] {
            check(api->call(ort::kCreateCustomOpDomain, "dvt_edge", &domain));
            const ort::CustomOp* const all[] = {&linear,    &linear_table, &relation_mlp,
                                                &attention, &norm,         &quantize};
            for (const ort::CustomOp* op : all) check(api->call(ort::kCustomOpDomainAdd, domain, op));
            return true;
        }();
        (void)made;
        check(api->call(ort::kAddCustomOpDomain, options, domain));
    });
}

// Changes with the operators' interface.
DVT_EXPORT int dvt_operators_version(void) { return 1; }

// The name of this processor's i-th instruction set, the one in use first without `dvt_operators_use`;
// null where it has no more.
DVT_EXPORT const char* dvt_operators_set(int i) {
    const auto& all = dvt::sets();
    return i >= 0 && size_t(i) < all.size() ? all[i]->name : nullptr;
}

// Which set sessions opened from now on take, null for the fastest; 0 where there is none of that
// name. For tests and benchmarks.
DVT_EXPORT int dvt_operators_use(const char* name) {
    const dvt::Kernels* found = nullptr;
    for (const dvt::Kernels* set : dvt::sets())
        if (name && set->name == std::string(name)) found = set;
    if (name && !found) return 0;
    dvt::chosen = found;
    return 1;
}

// Multiply-accumulates that the set in use does in registers alone, `rounds` times a few; for benchmarks.
DVT_EXPORT int64_t dvt_operators_peak(int64_t rounds) { return dvt::kernels().peak(rounds); }
