// `simd<Arch, Executor>`: the vector back end, on xsimd.
//
// `Arch` is an xsimd architecture tag; the default is the best one this file was compiled for. Code inside mote always
// spells the architecture (`batch<float, Arch>`), so that one file can hold kernels for several.
#pragma once

// g++ 12 takes the undefined operands inside its AVX-512 intrinsics for a mistake of the caller's (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <xsimd/xsimd.hpp>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstddef>

#include "backend.hpp"
#include "executors/thread_pool.hpp"

MOTE_BEGIN_NAMESPACE

using default_arch = xsimd::default_arch;

template <class Arch = default_arch, executor Executor = thread_pool>
class simd : public host_backend<Executor> {
 public:
  using arch = Arch;
  using host_backend<Executor>::host_backend;
};

template <class T, class Arch>
using batch = xsimd::batch<T, Arch>;

// a · b + c, rounded once wherever this file's instruction set can. xsimd's tags below FMA, and 8.1's
// for AVX-512, spell a product and a sum, which compilers may or may not join: bits would depend on where the code is
// inlined, and clang 14 would do without the instruction.
template <class Arch>
batch<float, Arch> fused_multiply_add(const batch<float, Arch>& a, const batch<float, Arch>& b,
                                      const batch<float, Arch>& c) {
#ifdef __AVX512F__
  if constexpr (batch<float, Arch>::size == 16) return batch<float, Arch>(_mm512_fmadd_ps(a, b, c));
#endif
#ifdef __FMA__
  if constexpr (batch<float, Arch>::size == 8) {
    return batch<float, Arch>(_mm256_fmadd_ps(a, b, c));
  } else if constexpr (batch<float, Arch>::size == 4) {
    return batch<float, Arch>(_mm_fmadd_ps(a, b, c));
  } else {
    return xsimd::fma(a, b, c);
  }
#else
  return xsimd::fma(a, b, c);
#endif
}

namespace detail {

// Keeps what a vector register holds there, and lets the compiler assume nothing of it: g++ would otherwise load weights
// again for every product that uses them, and add integers in an order for which it lacks registers.
template <class Register>
[[gnu::always_inline]] inline void keep_in_register([[maybe_unused]] Register& x) {
#if defined(__x86_64__)
  if constexpr (sizeof(x) == 64) {
    asm("" : "+v"(x));
  } else {
    asm("" : "+x"(x));
  }
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
}
template <class T, class Arch>
[[gnu::always_inline]] inline void keep_in_register(xsimd::batch<T, Arch>& x) {
  keep_in_register(x.data);
}

}  // namespace detail

// Horizontal sum; xsimd 8 calls it hadd, later versions reduce_add.
template <class Arch>
float sum(const batch<float, Arch>& x) {
  if constexpr (requires { reduce_add(x); }) {
    return reduce_add(x);
  } else {
    return hadd(x);
  }
}

MOTE_END_NAMESPACE
