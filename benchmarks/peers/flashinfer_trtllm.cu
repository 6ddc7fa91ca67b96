// FlashInfer's trtllm_allreduce_fusion with bfloat16, float32 sums, and two of its patterns: all that the bench calls.
//
// The kernels and how they are launched are FlashInfer's own. Its own source of the same name has an instance for every
// pattern, dtype and group; they take long to compile. Arguments are in the same order as there.
#include "flashinfer/comm/trtllm_allreduce_fusion.cuh"
#include "peer_world_sizes.h"
#include "tvm_ffi_utils.h"

namespace {

namespace fusion = flashinfer::trtllm_allreduce_fusion;
using Element = __nv_bfloat16;
using Pattern = fusion::AllReduceFusionPattern;
using Params = fusion::AllReduceFusionParams<Element>;
using OptionalTensor = tvm::ffi::Optional<TensorView>;
using OptionalInteger = tvm::ffi::Optional<int64_t>;
using OptionalFloat = tvm::ffi::Optional<double>;

void* address_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor.value().data_ptr() : nullptr;
}

template <Pattern kPattern>
cudaError_t launch(const Params& params, bool dependent_launch) {
  switch (params.nranks) {
#define CASE(ranks) \
  case ranks:       \
    return fusion::allreduce_fusion_kernel_launcher<kPattern, Element, ranks, true>(params, dependent_launch);
    PEER_WORLD_SIZES(CASE)
#undef CASE
    default:
      return cudaErrorNotSupported;
  }
}

cudaError_t launch_pattern(const Params& params, bool dependent_launch) {
  switch (params.pattern) {
    case Pattern::kAllReduce:
      return launch<Pattern::kAllReduce>(params, dependent_launch);
    case Pattern::kARResidualRMSNorm:
      return launch<Pattern::kARResidualRMSNorm>(params, dependent_launch);
    default:
      return cudaErrorNotSupported;
  }
}

void run(TensorView input, int64_t world_size, int64_t rank, int64_t tokens, int64_t hidden, TensorView workspace,
         bool dependent_launch, bool one_shot, bool trigger_at_end, bool float32_sums, int64_t pattern,
         OptionalTensor output, OptionalTensor residual_in, OptionalTensor residual_out, OptionalTensor norm_out,
         OptionalTensor quantized, OptionalTensor scales, OptionalTensor weight, OptionalFloat epsilon,
         OptionalTensor scale_factor, OptionalInteger layout, OptionalInteger group_size, OptionalFloat weight_bias) {
  TVM_FFI_ICHECK(encode_dlpack_dtype(input.dtype()) == bfloat16_code && float32_sums) << "bfloat16, summed in float32";
  TVM_FFI_ICHECK(!quantized.has_value() && !scales.has_value() && !scale_factor.has_value() && !layout.has_value() &&
                 !group_size.has_value())
      << "nothing is quantised here";
  ffi::CUDADeviceGuard guard(input.device().device_id);
  Params params{};
  params.nranks = world_size;
  params.rank = rank;
  params.size = tokens * hidden;
  params.hidden_dim = hidden;
  params.workspace = static_cast<void**>(workspace.data_ptr());
  params.allreduce_in = input.data_ptr();
  params.allreduce_out = address_of(output);
  params.residual_in = address_of(residual_in);
  params.residual_out = address_of(residual_out);
  params.norm_out = address_of(norm_out);
  params.rms_gamma = address_of(weight);
  params.rms_eps = epsilon.has_value() ? static_cast<float>(epsilon.value()) : 0.0f;
  params.weight_bias = weight_bias.has_value() ? static_cast<float>(weight_bias.value()) : 0.0f;
  params.use_oneshot = one_shot;
  params.stream = get_stream(input.device());
  params.pattern = static_cast<Pattern>(pattern);
  params.trigger_completion_at_end = trigger_at_end;
  const cudaError_t status = launch_pattern(params, dependent_launch);
  TVM_FFI_ICHECK(status == cudaSuccess) << cudaGetErrorString(status);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(trtllm_allreduce_fusion, run);
