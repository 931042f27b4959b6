// Matrix tiles of Intel's AMX: eight registers of up to 16 rows of up to 64 bytes each.
//
//   c[m][n] += Σ_q Σ_{i<4} a[m][4 q + i] · b[q][4 n + i]     int8, summed in int32 (tdpbssd)
//   c[m][n] += Σ_q a[m][2 q] · b[q][2 n] + Σ_q a[m][2 q + 1] · b[q][2 n + 1]
//                                                            bf16, each sum and theirs in float32 (tdpbf16ps)
//
// Kernels take the engine as a template parameter: `amx_tiles` is the machine's, `software_tiles` does the same in plain
// loops, so that kernels are tested on every machine. An engine is configured where it is made and let go with it; others
// who use tiles in the same thread, as ggml does, find their configuration again.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__linux__) && (defined(__AMX_TILE__) || defined(__AMXTILE__))  // the latter by clang before 16
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "simd.hpp"
#include "types.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::size_t tile_count = 8, tile_height = 16, tile_bytes = 64;

// A register's rows, at most tile_height, and their bytes, at most tile_bytes. A product takes a [m, k bytes], b [k / 4, n
// bytes] and c [m, n bytes].
struct tile_shape {
  std::size_t rows, bytes = tile_bytes;
};
using tile_shapes = std::array<tile_shape, tile_count>;

class software_tiles {
 public:
  explicit software_tiles(const tile_shapes& shapes) : shapes_(shapes) {}

  template <int I>
  void zero() {
    std::memset(tiles_[I], 0, sizeof tiles_[I]);
  }
  template <int I>
  void load(const void* p, std::size_t stride) {
    for (std::size_t r = 0; r < shapes_[I].rows; ++r) {
      std::memcpy(tiles_[I][r], static_cast<const std::uint8_t*>(p) + r * stride, shapes_[I].bytes);
    }
  }
  // The same of what is not read again soon.
  template <int I>
  void stream(const void* p, std::size_t stride) {
    load<I>(p, stride);
  }
  template <int I>
  void store(void* p, std::size_t stride) const {
    for (std::size_t r = 0; r < shapes_[I].rows; ++r) {
      std::memcpy(static_cast<std::uint8_t*>(p) + r * stride, tiles_[I][r], shapes_[I].bytes);
    }
  }
  template <int C, int A, int B>
  void dot_int8() {
    dot<C, A, B, std::int8_t, std::int32_t>();
  }
  // As the processor adds them, but for subnormal numbers, which are zero to it: see tile_sum_kernel.hpp.
  template <int C, int A, int B>
  void dot_bf16() {
    dot<C, A, B, bf16, float>();
  }

 private:
  // Of each quad of T the first elements are added up, then the second ones, …
  template <int C, int A, int B, class T, class Sum>
  void dot() {
    constexpr std::size_t quad = 4 / sizeof(T);
    const tile_shape a = shapes_[A], b = shapes_[B], c = shapes_[C];
    assert(a.rows == c.rows && b.bytes == c.bytes && a.bytes == b.rows * 4);  // else an invalid instruction
    for (std::size_t m = 0; m < c.rows; ++m) {
      for (std::size_t n = 0; n < c.bytes / 4; ++n) {
        Sum part[quad] = {}, all = 0;
        for (std::size_t k = 0; k < b.rows * quad; ++k) {
          part[k % quad] += static_cast<Sum>(read<T>(tiles_[A][m], k)) *
                            static_cast<Sum>(read<T>(tiles_[B][k / quad], n * quad + k % quad));
        }
        for (const Sum p : part) all += p;
        const Sum sum = read<Sum>(tiles_[C][m], n) + all;
        std::memcpy(tiles_[C][m] + n * 4, &sum, 4);
      }
    }
  }
  template <class T>
  static T read(const std::uint8_t* row, std::size_t i) {
    T value;
    std::memcpy(&value, row + i * sizeof value, sizeof value);
    return value;
  }

  tile_shapes shapes_;
  std::uint8_t tiles_[tile_count][tile_height][tile_bytes] = {};
};

#if defined(__linux__) && ((defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)) || \
                           (defined(__AMXTILE__) && defined(__AMXINT8__) && defined(__AMXBF16__)))

inline constexpr bool has_amx_tiles = true;

class amx_tiles {
 public:
  explicit amx_tiles(const tile_shapes& shapes) {
    asm volatile("sttilecfg %0" : "=m"(before_));
    configuration config;
    config.palette = 1;
    for (std::size_t i = 0; i < tile_count; ++i) {
      config.columns[i] = static_cast<std::uint16_t>(shapes[i].bytes);
      config.rows[i] = static_cast<std::uint8_t>(shapes[i].rows);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  amx_tiles(const amx_tiles&) = delete;
  amx_tiles& operator=(const amx_tiles&) = delete;
  ~amx_tiles() {
    asm volatile("tilerelease");
    if (before_.palette != 0) asm volatile("ldtilecfg %0" ::"m"(before_));
  }

  // Whether the kernel lets this process use tiles; asked once, as Linux wants it.
  static bool available() {
    static const bool granted = [] {
      constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
      return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return granted;
  }

  // Assembly, because g++ 12's intrinsics paste the register's number as text.
  template <int I>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(I));
  }
  template <int I>
  void load(const void* p, std::size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(I) : "memory");
  }
  template <int I>
  void stream(const void* p, std::size_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(I) : "memory");
  }
  template <int I>
  void store(void* p, std::size_t stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(I) : "memory");
  }
  template <int C, int A, int B>
  void dot_int8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  struct alignas(64) configuration {
    std::uint8_t palette = 0, start_row = 0, reserved[14] = {};
    std::uint16_t columns[16] = {};
    std::uint8_t rows[16] = {};
  };
  configuration before_;  // palette 0: none
};

// While it lives, vectors take subnormal numbers for zero, as tiles do.
class subnormals_as_zero {
 public:
  subnormals_as_zero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  subnormals_as_zero(const subnormals_as_zero&) = delete;
  subnormals_as_zero& operator=(const subnormals_as_zero&) = delete;
  ~subnormals_as_zero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

#else

inline constexpr bool has_amx_tiles = false;

class amx_tiles : public software_tiles {
 public:
  using software_tiles::software_tiles;
  static bool available() { return false; }
};

struct [[maybe_unused]] subnormals_as_zero {};

#endif

// Whether there are tiles, a row of whose sums is a vector.
template <class Arch>
inline constexpr bool has_tiles_beside = has_amx_tiles&& batch<float, Arch>::size == tile_height;

}  // namespace detail

MOTE_END_NAMESPACE
