// The part of ONNX Runtime's C interface that custom operators need, declared here because its
// wheels bring no header.
//
// The interface is a table of functions that only ever grows: a function keeps its place. The
// places below were counted in the public source of 1.25 (onnxruntime_c_api.cc) and agree with the
// places that its static_asserts state for versions 1 to 18; tests call every function.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kApiVersion = 18;  // of ONNX Runtime 1.18, the oldest that dvt-edge runs with

// Places in the table.
enum Place {
    kCreateStatus = 0,
    kCreateCustomOpDomain = 26,
    kCustomOpDomainAdd = 27,
    kAddCustomOpDomain = 28,
    kGetTensorMutableData = 51,
    kGetTensorElementType = 60,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorTypeAndShape = 65,
    kKernelInfoGetAttributeFloat = 85,
    kKernelInfoGetAttributeInt64 = 86,
    kKernelContextGetOutputCount = 89,
    kKernelContextGetInput = 90,
    kKernelContextGetOutput = 91,
    kReleaseStatus = 93,
    kReleaseTensorTypeAndShapeInfo = 99,
    kKernelInfoGetConstantInputTensor = 249,
    kKernelContextParallelFor = 274,
};

enum Type { kFloat = 1, kInt8 = 3 };            // ONNXTensorElementDataType
enum Code { kFail = 1, kInvalidArgument = 2 };  // OrtErrorCode
enum Presence { kRequired = 0, kOptional = 1 };

// Opaque on this side.
struct Status;
struct SessionOptions;
struct Domain;
struct Value;
struct ShapeInfo;
struct KernelInfo;
struct KernelContext;

struct Api {
    // What the table holds at `place`, called with `arguments`.
    template <class Result = Status*, class... Arguments>
    Result call(Place place, Arguments... arguments) const {
        return reinterpret_cast<Result (*)(Arguments...)>(functions[place])(arguments...);
    }
    void (*functions[kKernelContextParallelFor + 1])();
};

struct ApiBase {
    const Api* (*get_api)(uint32_t version);  // null where this ONNX Runtime is older
    const char* (*get_version)();
};

// OrtCustomOp as of API version 18. Null where ONNX Runtime may do without.
struct CustomOp {
    uint32_t version = kApiVersion;
    void* (*create)(const CustomOp*, const Api*, const KernelInfo*) = nullptr;
    const char* (*name)(const CustomOp*) = nullptr;
    const char* (*provider)(const CustomOp*) = nullptr;
    int (*input_type)(const CustomOp*, size_t) = nullptr;
    size_t (*input_count)(const CustomOp*) = nullptr;
    int (*output_type)(const CustomOp*, size_t) = nullptr;
    size_t (*output_count)(const CustomOp*) = nullptr;
    void (*compute)(void*, KernelContext*) = nullptr;
    void (*destroy)(void*) = nullptr;
    int (*input_presence)(const CustomOp*, size_t) = nullptr;
    int (*output_presence)(const CustomOp*, size_t) = nullptr;
    int (*input_memory)(const CustomOp*, size_t) = nullptr;
    int (*variadic[4])(const CustomOp*) = {};
    Status* (*create_v2)(const CustomOp*, const Api*, const KernelInfo*, void**) = nullptr;
    Status* (*compute_v2)(void*, KernelContext*) = nullptr;
    Status* (*infer_shape)(const CustomOp*, void*) = nullptr;
    int (*start_version)(const CustomOp*) = nullptr;
    int (*end_version)(const CustomOp*) = nullptr;
    void (*in_place_and_aliases[4])() = {};
};

}  // namespace ort
