// Which instruction sets this machine runs: what a program that carries kernels for several sets asks before it picks.
// The names are those of `mote_add_variant` in CMake.
#pragma once

#include <cstdint>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "config.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

#if defined(__x86_64__)

// One bit of a cpuid leaf; the register is a, b, c or d.
inline bool cpuid_bit(unsigned leaf, unsigned subleaf, char reg, unsigned bit) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(leaf, subleaf, &a, &b, &c, &d) == 0) return false;
  return (((reg == 'a' ? a : reg == 'b' ? b : reg == 'c' ? c : d) >> bit) & 1u) != 0;
}

// Whether the operating system saves the registers named by `mask` (bits of XCR0).
inline bool os_saves(std::uint32_t mask) {
  if (!cpuid_bit(1, 0, 'c', 27)) return false;
  std::uint32_t low = 0;
  asm volatile("xgetbv" : "=a"(low) : "c"(0) : "edx");
  return (low & mask) == mask;
}

inline bool has_x86_64_v2() {
  return cpuid_bit(1, 0, 'c', 0) && cpuid_bit(1, 0, 'c', 9) && cpuid_bit(1, 0, 'c', 13) &&  // SSE3, SSSE3, CX16
         cpuid_bit(1, 0, 'c', 19) && cpuid_bit(1, 0, 'c', 20) && cpuid_bit(1, 0, 'c', 23);  // SSE4.1, SSE4.2, POPCNT
}

inline bool has_x86_64_v3() {
  return has_x86_64_v2() && os_saves(0x6) && cpuid_bit(1, 0, 'c', 12) && cpuid_bit(1, 0, 'c', 22) &&  // FMA, MOVBE
         cpuid_bit(1, 0, 'c', 28) && cpuid_bit(1, 0, 'c', 29) && cpuid_bit(7, 0, 'b', 3) &&           // AVX, F16C, BMI
         cpuid_bit(7, 0, 'b', 5) && cpuid_bit(7, 0, 'b', 8) && cpuid_bit(0x80000001, 0, 'c', 5);  // AVX2, BMI2, LZCNT
}

inline bool has_x86_64_v4() {
  return has_x86_64_v3() && os_saves(0xE6) && cpuid_bit(7, 0, 'b', 16) && cpuid_bit(7, 0, 'b', 17) &&  // F, DQ
         cpuid_bit(7, 0, 'b', 28) && cpuid_bit(7, 0, 'b', 30) && cpuid_bit(7, 0, 'b', 31);             // CD, BW, VL
}

#endif

}  // namespace detail

// Whether this machine runs code built for `set`; false for a name that is not known.
//   x86-64, x86-64-v2, x86-64-v3, x86-64-v4   the levels of the x86-64 psABI
//   avx512-vnni, avx512-bf16                  v4 with VNNI; v4 with VNNI and BF16
//   armv8-a, armv8-dotprod, armv8-i8mm        AArch64; with int8 dot products; with int8 matrix products and bf16 too
inline bool cpu_runs([[maybe_unused]] std::string_view set) {
#if defined(__x86_64__)
  if (set == "x86-64") return true;
  if (set == "x86-64-v2") return detail::has_x86_64_v2();
  if (set == "x86-64-v3") return detail::has_x86_64_v3();
  if (set == "x86-64-v4") return detail::has_x86_64_v4();
  const bool vnni = detail::has_x86_64_v4() && detail::cpuid_bit(7, 0, 'c', 11);
  if (set == "avx512-vnni") return vnni;
  if (set == "avx512-bf16") return vnni && detail::cpuid_bit(7, 1, 'a', 5);
#elif defined(__aarch64__)
  if (set == "armv8-a") return true;
#if defined(__linux__)
  const bool dotprod = ((getauxval(AT_HWCAP) >> 20) & 1u) != 0;
  if (set == "armv8-dotprod") return dotprod;
  const auto second = getauxval(AT_HWCAP2);
  if (set == "armv8-i8mm") return dotprod && ((second >> 13) & 1u) != 0 && ((second >> 14) & 1u) != 0;
#endif
#endif
  return false;
}

MOTE_END_NAMESPACE
