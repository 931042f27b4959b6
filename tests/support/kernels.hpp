// Kernels of matrix products, compiled once: those of the default instruction set in mote_kernels, of older ones in kernels.cpp.
#pragma once

#include <cstddef>
#include <type_traits>
#include <vector>

#include <mote/kernels/extern.hpp>

MOTE_BEGIN_NAMESPACE
namespace detail {

#ifdef __SSE3__  // else SSE2 is the default
extern template void unit_product<xsimd::sse2>(const weight&, std::size_t, std::size_t, const activation*, std::size_t,
                                               float*) noexcept;
#endif
#if defined(__AVX512F__) && defined(__FMA__)
extern template void unit_product<xsimd::fma3<xsimd::avx2>>(const weight&, std::size_t, std::size_t, const activation*,
                                                            std::size_t, float*) noexcept;
#endif

}  // namespace detail
MOTE_END_NAMESPACE

namespace test {

// x [tokens, in] · Wᵀ as rows, or that added to ones. Forms of `weight` are multiplied as a `weight`, by the kernels
// declared above.
template <class Backend, class Matrix>
std::vector<float> product(Backend& be, const std::vector<float>& x, std::size_t tokens, const Matrix& w,
                           mote::output mode = mote::output::overwrite) {
  constexpr bool is_weight = std::is_convertible_v<const Matrix&, mote::weight>;
  const std::conditional_t<is_weight, mote::weight, Matrix> matrix(w);
  std::vector<float> y(tokens * mote::out_features(w), 1.0f);
  mote::matmul(be, {x.data(), tokens, mote::in_features(w)}, matrix, {y.data(), tokens, mote::out_features(w)}, mode);
  return y;
}

}  // namespace test
