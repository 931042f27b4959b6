// For programs of several files: the kernels of matrix products and attention are many, and compiling them is most of what
// a file that uses mote::weight costs. This header says that another file compiles them; exactly one file of the program, compiled for
// the same instruction set, includes kernels/instantiate.hpp.
#pragma once

#include "../ops/matmul/matmul.hpp"
#include "../ops/mla_decode/mla_decode.hpp"
#include "../ops/mla_prefill/mla_prefill.hpp"

MOTE_BEGIN_NAMESPACE

extern template void matmul_impl<reference>(reference&, view<const float, 2>, const weight&, view<float, 2>, output);

namespace detail {

extern template void unit_product<default_arch>(const weight&, std::size_t, std::size_t, const activation*, std::size_t,
                                                float*) noexcept;

extern template void mla_decode_rows(simd<>&, view<const float, 3>, view<const float, 3>, std::span<const row_bytes>,
                                     row_decoder, float, view<float, 3>);

}  // namespace detail

extern template void mla_prefill_impl(simd<>&, view<const float, 3>, view<const float, 3>, view<const float, 3>,
                                      view<const float, 2>, view<const float, 3>, float, view<float, 3>);

MOTE_END_NAMESPACE
