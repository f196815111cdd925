// What an operator sees of an ONNX Runtime session: constants and attributes when it opens, tensors
// and threads when it runs. Whatever fails is thrown, and a status again at ONNX Runtime's side.
#pragma once

#include "kernels.h"
#include "ort_api.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace dvt {

struct Failed {
    ort::Status* status;
};

inline void check(ort::Status* status) {
    if (status) throw Failed{status};
}

inline void require(bool fits, const std::string& what) {
    if (!fits) throw std::invalid_argument(what);
}

struct Tensor {
    static constexpr int kMostDimensions = 6;
    std::string name;
    int rank = 0, type = 0;
    int64_t size[kMostDimensions] = {};
    void* data = nullptr;  // null for an input that is not there

    Tensor(const ort::Api& api, const ort::Value* value, const char* name) : name(name) {
        if (!value) return;
        ort::ShapeInfo* made = nullptr;
        check(api.call(ort::kGetTensorTypeAndShape, value, &made));
        const ort::ShapeInfo* info = made;
        size_t dimensions = 0;
        check(api.call(ort::kGetDimensionsCount, info, &dimensions));
        rank = int(std::min<size_t>(dimensions, kMostDimensions));
        check(api.call(ort::kGetDimensions, info, size, size_t(rank)));
        check(api.call(ort::kGetTensorElementType, info, &type));
        api.call<void>(ort::kReleaseTensorTypeAndShapeInfo, made);
        must(dimensions >= 1 && dimensions <= kMostDimensions, "expected 1 to 6 dimensions");
        check(api.call(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &data));
        static char nothing;  // where a tensor without elements is
        if (!data) data = &nothing;
    }
    explicit operator bool() const { return data; }
    int64_t last() const { return size[rank - 1]; }
    int64_t count() const {
        int64_t product = 1;
        for (int i = 0; i < rank; ++i) product *= size[i];
        return product;
    }
    int64_t rows() const { return last() ? count() / last() : 0; }
    std::vector<int64_t> shape() const { return {size, size + rank}; }
    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
    void must(bool fits, const std::string& expected) const {
        if (fits) return;
        std::string text = name + " has shape [";
        for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(size[i]);
        throw std::invalid_argument(text + "]; " + expected);
    }
};

struct Info {
    const ort::Api& api;
    const ort::KernelInfo* info;

    // An input that is a constant, or a tensor that is not there.
    Tensor constant(size_t index, int type, const char* name) const {
        int is_constant = 0;
        const ort::Value* value = nullptr;
        forgive(
            api.call(ort::kKernelInfoGetConstantInputTensor, info, index, &is_constant, &value));
        Tensor t(api, is_constant ? value : nullptr, name);
        require(!t || t.type == type, t.name + " has another element type");
        return t;
    }
    Tensor required(size_t index, int type, const char* name) const {
        const Tensor t = constant(index, type, name);
        require(bool(t), t.name + " must be a constant");
        return t;
    }
    std::vector<float> floats(size_t index, const char* name, int64_t count) const {
        const Tensor t = required(index, ort::kFloat, name);
        t.must(t.rank == 1 && t.last() == count, "expected [" + std::to_string(count) + "]");
        std::vector<float> values(t.as<float>(), t.as<float>() + count);
        for (const float v : values) require(std::isfinite(v), t.name + " is not finite");
        return values;
    }
    // [rows, columns] of codes.
    Tensor weights(size_t index, const char* name) const {
        const Tensor w = required(index, ort::kInt8, name);
        w.must(w.rank == 2 && std::min(w.size[0], w.size[1]) > 0 &&
                   std::max(w.size[0], w.size[1]) <= 65536,
               "expected two dimensions, at most 65536 each");
        const int8_t* codes = w.as<int8_t>();
        require(std::find(codes, codes + w.count(), kNotANumber) == codes + w.count(),
                w.name + " holds -128; the least weight is -127");
        return w;
    }
    // [256] by code + 128, kept by uint8_t(code).
    std::vector<int8_t> table(size_t index) const {
        const Tensor t = required(index, ort::kInt8, "table");
        t.must(t.rank == 1 && t.last() == 256, "expected [256]");
        std::vector<int8_t> by_byte(256, kNotANumber);
        for (int code = -127; code < 128; ++code) {
            by_byte[uint8_t(code)] = t.as<int8_t>()[code + 128];
            require(by_byte[uint8_t(code)] != kNotANumber,
                    "table holds -128, which stands for NaN");
        }
        return by_byte;
    }
    int integer(const char* name, int64_t otherwise, int64_t least, int64_t most) const {
        int64_t value = otherwise;
        forgive(api.call(ort::kKernelInfoGetAttributeInt64, info, name, &value));
        require(value >= least && value <= most,
                std::string(name) + " is " + std::to_string(value) + ", expected " +
                    std::to_string(least) + " to " + std::to_string(most));
        return int(value);
    }
    float positive(const char* name, float otherwise) const {
        float value = otherwise;
        forgive(api.call(ort::kKernelInfoGetAttributeFloat, info, name, &value));
        require(std::isfinite(value) && value > 0,
                std::string(name) + " is " + std::to_string(value) + ", expected more than 0");
        return value;
    }

   private:
    void forgive(ort::Status* status) const {  // what is not there keeps its default
        if (status) api.call<void>(ort::kReleaseStatus, status);
    }
};

// Bytes that begin at a cache line.
struct Buffer {
    std::vector<uint8_t> bytes;
    void* at_least(size_t size) {
        if (bytes.size() < size + 64) bytes.resize(size + 64);
        return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
    }
};

struct Context {
    const ort::Api& api;
    ort::KernelContext* context;

    Tensor input(size_t index, const char* name) const {
        const ort::Value* value = nullptr;
        const ort::KernelContext* reader = context;
        check(api.call(ort::kKernelContextGetInput, reader, index, &value));
        return Tensor(api, value, name);
    }
    size_t outputs() const {
        size_t count = 0;
        const ort::KernelContext* reader = context;
        check(api.call(ort::kKernelContextGetOutputCount, reader, &count));
        return count;
    }
    template <class T>
    T* output(size_t index, const std::vector<int64_t>& size) const {
        ort::Value* value = nullptr;
        void* data = nullptr;
        check(api.call(ort::kKernelContextGetOutput, context, index, size.data(), size.size(),
                       &value));
        check(api.call(ort::kGetTensorMutableData, value, &data));
        return static_cast<T*>(data);
    }
    // body(i, memory of `bytes`) for every i below count, on the session's threads.
    template <class Body>
    void parallel(size_t count, size_t bytes, const Body& body) const {
        struct Shared {
            const Body& body;
            size_t bytes;
            std::atomic<bool> no_memory;
        } shared{body, bytes, {false}};
        void (*const run)(void*, size_t) = [](void* data, size_t i) {
            thread_local Buffer memory;  // kept from call to call
            Shared& s = *static_cast<Shared*>(data);
            try {
                s.body(i, memory.at_least(s.bytes));
            } catch (const std::bad_alloc&) {
                s.no_memory = true;
            }
        };
        const ort::KernelContext* reader = context;
        void* const data = &shared;
        if (count == 1)
            run(data, 0);
        else if (count)
            check(api.call(ort::kKernelContextParallelFor, reader, run, count, size_t(0), data));
        if (shared.no_memory) throw std::bad_alloc();
    }
};

template <class Body>
ort::Status* guarded(const ort::Api& api, const char* name, const Body& body) {
    const auto status = [&](ort::Code code, const std::exception& error) {
        const std::string text = std::string("dvt_edge:") + name + ": " + error.what();
        return api.call(ort::kCreateStatus, code, text.c_str());
    };
    try {
        body();
        return nullptr;
    } catch (const Failed& failed) {
        return failed.status;
    } catch (const std::invalid_argument& error) {
        return status(ort::kInvalidArgument, error);
    } catch (const std::exception& error) {
        return status(ort::kFail, error);
    }
}

struct Port {
    int type, presence;
};

// An operator for ONNX Runtime, made of a class with kName, kInputs, kOutputs, a constructor from
// Info and run(Context).
template <class Operator>
struct Registered : ort::CustomOp {
    struct Kernel {
        const ort::Api& api;
        Operator inner;
    };
    Registered() {
        name = [](const CustomOp*) { return Operator::kName; };
        provider = [](const CustomOp*) -> const char* { return nullptr; };
        input_count = [](const CustomOp*) { return std::size(Operator::kInputs); };
        input_type = [](const CustomOp*, size_t i) { return Operator::kInputs[i].type; };
        input_presence = [](const CustomOp*, size_t i) { return Operator::kInputs[i].presence; };
        input_memory = [](const CustomOp*, size_t) { return 0; };
        output_count = [](const CustomOp*) { return std::size(Operator::kOutputs); };
        output_type = [](const CustomOp*, size_t i) { return Operator::kOutputs[i].type; };
        output_presence = [](const CustomOp*, size_t i) { return Operator::kOutputs[i].presence; };
        start_version = end_version = [](const CustomOp*) { return 1; };
        create_v2 = [](const CustomOp*, const ort::Api* api, const ort::KernelInfo* info,
                       void** made) {
            return guarded(*api, Operator::kName, [&] {
                *made = new Kernel{*api, Operator(Info{*api, info})};
            });
        };
        compute_v2 = [](void* kernel, ort::KernelContext* context) {
            const Kernel& k = *static_cast<Kernel*>(kernel);
            return guarded(k.api, Operator::kName, [&] { k.inner.run(Context{k.api, context}); });
        };
        destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    }
};

}  // namespace dvt
