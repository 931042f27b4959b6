// The kernels that kernels/extern.hpp declares, for one file of a program.
#pragma once

#include "../ops/matmul/matmul.hpp"

MOTE_BEGIN_NAMESPACE

template void matmul_impl<reference>(reference&, view<const float, 2>, const weight&, view<float, 2>, output);

namespace detail {

template void unit_product<default_arch>(const weight&, std::size_t, std::size_t, const activation*, std::size_t,
                                         float*) noexcept;

}  // namespace detail

MOTE_END_NAMESPACE
