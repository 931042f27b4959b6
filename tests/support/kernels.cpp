#include "support/kernels.hpp"

#include <mote/kernels/instantiate.hpp>

#ifdef __SSE3__  // else SSE2 is the default
MOTE_BEGIN_NAMESPACE
namespace detail {

template void unit_product<xsimd::sse2>(const weight&, std::size_t, std::size_t, const activation*, std::size_t,
                                        float*) noexcept;

}  // namespace detail
MOTE_END_NAMESPACE
#endif
