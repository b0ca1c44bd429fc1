#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/core/view.hpp>

#include <cstdint>

/// Whether rows may be moved by 16 bytes.
namespace switchyard::cuda {

template <class T>
bool is_aligned(T const* pointer, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(pointer) % chunk_bytes == 0 &&
         stride * static_cast<std::int64_t>(sizeof(T)) % chunk_bytes == 0;
}
template <class T>
bool is_aligned(view<T> const& v) {
  return is_aligned(v.data, v.rows > 1 ? v.row_stride : 0);
}

}  // namespace switchyard::cuda
