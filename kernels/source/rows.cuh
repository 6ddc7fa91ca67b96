// The source of a norm: the rows of a tensor.
#pragma once

#include "device/types.cuh"
#include "device/vector.cuh"

namespace lamport {

// What a rank contributes are the rows of a tensor of its own. The sink knows which row a block has.
class TensorRows {
public:
    template <class Parameters>
    __device__ __forceinline__ explicit TensorRows(const Parameters& parameters) : input_(parameters.input) {}

    // Vector `column` of the present row.
    template <class Rows>
    __device__ __forceinline__ Vector load(const Rows& rows, uint32 column) const {
        return rows.load(input_, column);
    }

private:
    // Read from the parameters where it is needed.
    const Address& input_;
};

}  // namespace lamport
