// What the vector kernels need beyond xsimd: a fast exponential and loads and stores of a row's last, partial vector.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// The same bits as another element type; xsimd 8 names the result's batch, later versions its element.
template <class To, class From, class Arch>
batch<To, Arch> bits_as(const batch<From, Arch>& x) {
  if constexpr (requires {
                  { xsimd::bitwise_cast<To>(x) } -> std::same_as<batch<To, Arch>>;
                }) {
    return xsimd::bitwise_cast<To>(x);
  } else {
    return xsimd::bitwise_cast<batch<To, Arch>>(x);
  }
}

// Of two bf16 in each word the first, in the lower half; the second.
template <class Arch>
batch<float, Arch> first_bf16(const batch<std::uint32_t, Arch>& both) {
  return bits_as<float>(both << 16);
}
template <class Arch>
batch<float, Arch> second_bf16(const batch<std::uint32_t, Arch>& both) {
  return bits_as<float>(both & batch<std::uint32_t, Arch>(0xFFFF0000u));
}

// exp(x) to about 2 ulp; 0 below -87.3 (where float32 turns subnormal), infinity above 88.72, NaN stays NaN.
//
// exp(x) = 2^n exp(r), n = round(x / ln 2). Adding 1.5 · 2^23 rounds to a whole number and leaves n in the low bits, from
// where a shift moves it into the exponent. The polynomial is that of Moshier's Cephes library.
template <class Arch>
batch<float, Arch> exp_vector(const batch<float, Arch>& x) {
  using vector = batch<float, Arch>;
  const vector magic(12582912.0f);
  const vector shifted = fused_multiply_add(x, vector(1.44269504088896341f), magic);
  const vector n = shifted - magic;
  vector r = fused_multiply_add(n, vector(-0.693359375f), x);
  r = fused_multiply_add(n, vector(2.12194440e-4f), r);
  vector p(1.9875691500e-4f);
  p = fused_multiply_add(p, r, vector(1.3981999507e-3f));
  p = fused_multiply_add(p, r, vector(8.3334519073e-3f));
  p = fused_multiply_add(p, r, vector(4.1665795894e-2f));
  p = fused_multiply_add(p, r, vector(1.6666665459e-1f));
  p = fused_multiply_add(p, r, vector(5.0000001201e-1f));
  p = fused_multiply_add(p, r * r, r + vector(1.0f));
  const vector y = bits_as<float>(bits_as<std::int32_t>(p) + (bits_as<std::int32_t>(shifted) << 23));
  const vector infinity(std::numeric_limits<float>::infinity());
  return xsimd::select(x < vector(-87.3f), vector(0.0f), xsimd::select(x <= vector(88.72f), y, x * infinity));
}

// exp(x) for x <= 0, at about half the cost: what a softmax needs. The relative error is 2 ulp near 0 and grows with |x|
// as that of rounding x does, to 4e-6 at -87.3; 0 below, NaN stays NaN. Other than NaN, positive x has no meaning.
//
// 2^t, t = x / ln 2: the polynomial has the least relative error for t - n in [-1/2, 1/2] with exp(0) = 1.
template <class Arch>
batch<float, Arch> exp_nonpositive(const batch<float, Arch>& x) {
  using vector = batch<float, Arch>;
  const vector t = x * vector(1.44269504088896341f);
  const auto n = xsimd::nearbyint_as_int(t);
  const vector f = t - xsimd::to_float(n);
  vector p(0.0013264727f);
  p = fused_multiply_add(p, f, vector(0.009671513f));
  p = fused_multiply_add(p, f, vector(0.055507336f));
  p = fused_multiply_add(p, f, vector(0.24022242f));
  p = fused_multiply_add(p, f, vector(0.693147f));
  p = fused_multiply_add(p, f, vector(1.0f));
  const vector y = bits_as<float>(bits_as<std::int32_t>(p) + (n << 23));
  return xsimd::select(t < vector(-126.0f), vector(0.0f), y);
}

// Bit i: whether lane i holds. xsimd 8 has no name for it, but AVX-512 keeps its comparisons in that form.
template <class Arch>
std::uint64_t lane_mask(const xsimd::batch_bool<float, Arch>& x) {
  if constexpr (requires { x.mask(); }) {
    return x.mask();
  } else if constexpr (requires { static_cast<std::uint64_t>(x.data); }) {
    return static_cast<std::uint64_t>(x.data);
  } else {
    bool lanes[batch<float, Arch>::size];
    x.store_unaligned(lanes);
    std::uint64_t mask = 0;
    for (std::size_t i = 0; i < batch<float, Arch>::size; ++i) mask |= static_cast<std::uint64_t>(lanes[i]) << i;
    return mask;
  }
}

// 0, 1, 2 …
template <class Arch>
batch<float, Arch> lane_numbers() {
  float lanes[batch<float, Arch>::size];
  for (std::size_t i = 0; i < batch<float, Arch>::size; ++i) lanes[i] = static_cast<float>(i);
  return batch<float, Arch>::load_unaligned(lanes);
}

// The first n < size lanes from p, the others `fill`; reads nothing past p[n - 1].
template <class Arch>
batch<float, Arch> load_first(const float* p, std::size_t n, float fill = 0.0f) {
  constexpr std::size_t size = batch<float, Arch>::size;
  float lanes[size];
  for (std::size_t i = 0; i < size; ++i) lanes[i] = i < n ? p[i] : fill;
  return batch<float, Arch>::load_unaligned(lanes);
}

// Writes the first n < size lanes to p.
template <class Arch>
void store_first(float* p, std::size_t n, const batch<float, Arch>& x) {
  float lanes[batch<float, Arch>::size];
  x.store_unaligned(lanes);
  for (std::size_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// The largest lane.
template <class Arch>
float largest(const batch<float, Arch>& x) {
  constexpr std::size_t size = batch<float, Arch>::size;
  float lanes[size];
  x.store_unaligned(lanes);
  const auto fold = [&]<std::size_t Half>(auto self, std::integral_constant<std::size_t, Half>) {
    for (std::size_t i = 0; i < Half; ++i) lanes[i] = lanes[i] > lanes[i + Half] ? lanes[i] : lanes[i + Half];
    if constexpr (Half > 1) self(self, std::integral_constant<std::size_t, Half / 2>{});
  };
  fold(fold, std::integral_constant<std::size_t, size / 2>{});
  return lanes[0];
}

// Asks for the cache line of p[i], one request a line as i runs over vectors.
inline void prefetch(const float* p, std::size_t i) {
  if (i % 16 == 0) __builtin_prefetch(p + i);
}

// How many rows of n floats ahead to ask for while working on one: 16 KiB come in before they are used, and half of a
// first-level cache of 32 KiB stays for the row itself.
inline std::size_t rows_ahead(std::size_t n) { return 1 + 4096 / (n + 1); }

// f(i, load, store) for every vector of a row of n elements: `load(p)` and `store(p, x)` move the lanes that exist at p,
// which is the row's element i of any array; lanes past the row load as `fill`.
template <class Arch, class F>
[[gnu::always_inline]] inline void for_each_vector(std::size_t n, F&& f, float fill = 0.0f) {
  using vector = batch<float, Arch>;
  const std::size_t whole = n / vector::size * vector::size, rest = n - whole;
  for (std::size_t i = 0; i < whole; i += vector::size) {
    f(
        i, [](const float* p) { return vector::load_unaligned(p); },
        [](float* p, const vector& x) { x.store_unaligned(p); });
  }
  if (rest != 0) {
    f(
        whole, [&](const float* p) { return load_first<Arch>(p, rest, fill); },
        [&](float* p, const vector& x) { store_first<Arch>(p, rest, x); });
  }
}

}  // namespace detail

MOTE_END_NAMESPACE
