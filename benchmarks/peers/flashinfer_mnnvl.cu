// FlashInfer's one-shot trtllm_mnnvl_allreduce_fusion with bfloat16: all that the bench calls.
//
// The kernel and how it is launched are FlashInfer's own. Its own source of the same name has the two-shot and other
// dtypes too. Arguments are in the same order as there.
#include "flashinfer/comm/trtllm_mnnvl_allreduce.cuh"
#include "tvm_ffi_utils.h"

namespace {

namespace mnnvl = flashinfer::trtllm_mnnvl_allreduce;
using OptionalTensor = tvm::ffi::Optional<TensorView>;
using OptionalInteger = tvm::ffi::Optional<int64_t>;
using OptionalFloat = tvm::ffi::Optional<double>;

void* address_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor.value().data_ptr() : nullptr;
}

void run(TensorView input, int64_t multicast_address, int64_t buffers_address, int64_t own_address, TensorView flags,
         int64_t ranks, int64_t rank, bool with_norm, bool dependent_launch, bool one_shot, OptionalTensor output,
         OptionalTensor residual_out, OptionalTensor residual_in, OptionalTensor weight, OptionalFloat epsilon,
         OptionalFloat weight_bias, OptionalInteger quantization, OptionalTensor quantized, OptionalTensor scales,
         OptionalTensor output_scale, OptionalInteger layout) {
  TVM_FFI_ICHECK(encode_dlpack_dtype(input.dtype()) == bfloat16_code && one_shot) << "bfloat16, in one shot";
  TVM_FFI_ICHECK(!quantized.has_value() && !scales.has_value() && !output_scale.has_value() && !layout.has_value())
      << "nothing is quantised here";
  TVM_FFI_ICHECK(!quantization.has_value() ||
                 static_cast<mnnvl::QuantType>(quantization.value()) == mnnvl::QuantType::kNone)
      << "nothing is quantised here";
  ffi::CUDADeviceGuard guard(input.device().device_id);
  mnnvl::AllReduceFusionParams params{};
  params.nRanks = ranks;
  params.rank = rank;
  params.numTokens = input.size(0);
  params.tokenDim = input.size(1);
  params.bufferPtrsDev = reinterpret_cast<void**>(buffers_address);
  params.bufferPtrLocal = reinterpret_cast<void*>(own_address);
  params.multicastPtr = reinterpret_cast<void*>(multicast_address);
  params.bufferFlags = static_cast<uint32_t*>(flags.data_ptr());
  params.rmsNormFusion = with_norm;
  params.launchWithPdl = dependent_launch;
  params.quantType = mnnvl::QuantType::kNone;
  params.input = input.data_ptr();
  params.residualIn = address_of(residual_in);
  params.gamma = address_of(weight);
  params.epsilon = epsilon.has_value() ? epsilon.value() : 0.0;
  params.weightBias = weight_bias.has_value() ? static_cast<float>(weight_bias.value()) : 0.0f;
  params.output = address_of(output);
  params.residualOut = address_of(residual_out);
  params.stream = get_stream(input.device());
  const cudaError_t status = mnnvl::oneshotAllreduceFusionDispatch<__nv_bfloat16>(params);
  TVM_FFI_ICHECK(status == cudaSuccess) << cudaGetErrorString(status);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(trtllm_mnnvl_allreduce_fusion, run);
