#include "support/kernels.hpp"

MOTE_BEGIN_NAMESPACE
namespace detail {

#ifdef __SSE3__
template void unit_product<xsimd::sse2>(const weight&, std::size_t, std::size_t, const activation*, std::size_t,
                                        float*) noexcept;
#endif
#if defined(__AVX512F__) && defined(__FMA__)
template void unit_product<xsimd::fma3<xsimd::avx2>>(const weight&, std::size_t, std::size_t, const activation*,
                                                     std::size_t, float*) noexcept;
#endif

}  // namespace detail
MOTE_END_NAMESPACE
