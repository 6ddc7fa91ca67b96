// What kernels take whose source are experts.
#pragma once

#include "sink/residual_rms_norm.cuh"
#include "source/experts.cuh"

namespace lamport {

// There is no `input`.
struct MoeFinalizeParameters : AllReduceRmsNormParameters {
    Experts experts;
};

ASSERT_LAYOUT_OF_MoeFinalize(MoeFinalizeParameters);

}  // namespace lamport
