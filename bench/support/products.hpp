// What the benchmarks of matrix products share: random weights in every format and the limits of several threads.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include <mote/ops/matmul/matmul.hpp>
#include <mote/quant/int8.hpp>

#include "support/bench.hpp"

namespace bench {

enum class format { f32, bf16, int8 };

inline const char* name(format f) { return f == format::f32 ? "f32" : f == format::bf16 ? "bf16" : "int8"; }

// A random matrix [out, in] and its memory.
class random_weight {
 public:
  random_weight(format f, std::size_t out, std::size_t in) : out_(out), in_(in) {
    auto values = random_floats(out * in, 1.0f / std::sqrt(static_cast<float>(in)));
    if (f == format::f32) {
      floats_ = std::move(values);
    } else if (f == format::bf16) {
      halves_ = mote::buffer<mote::bf16>(values.size());
      std::transform(values.begin(), values.end(), halves_.begin(), [](float v) { return mote::bf16(v); });
    } else {
      codes_ = mote::buffer<std::int8_t>(values.size());
      floats_ = mote::buffer<float>(out);
      mote::quantize_int8(values.as(out, in), codes_.as(out, in), floats_.as(out));
    }
  }

  mote::weight get() const {
    if (!halves_.empty()) return halves_.as(out_, in_);
    if (codes_.empty()) return floats_.as(out_, in_);
    return mote::int8_matrix{codes_.as(out_, in_), floats_.as(out_)};
  }

 private:
  std::size_t out_, in_;
  mote::buffer<float> floats_;
  mote::buffer<mote::bf16> halves_;
  mote::buffer<std::int8_t> codes_;
};

// As many matrices as no last-level cache holds together, to be used in turn. The last ones are kept: a benchmark's
// function is called several times.
inline const std::vector<random_weight>& rotated_weights(format f, std::size_t out, std::size_t in) {
  static std::tuple<format, std::size_t, std::size_t> made;
  static std::vector<random_weight> all;
  if (!all.empty() && made == std::tuple(f, out, in)) return all;
  const std::size_t element = f == format::f32 ? 4 : f == format::bf16 ? 2 : 1;
  all.clear();
  for (std::size_t bytes = 0; bytes < beyond_cache; bytes += out * in * element) all.emplace_back(f, out, in);
  made = {f, out, in};
  return all;
}

// The shortest of several runs, in seconds on the wall: processor time would add up what several threads do at once. For
// benchmarks with UseRealTime().
template <class F>
double shortest_real(int runs, F&& f) {
  double best = 1e300;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best;
}

// Bytes a second that `threads` threads read from memory.
inline double read_bandwidth(std::size_t threads) {
  static std::map<std::size_t, double> measured;
  if (const auto known = measured.find(threads); known != measured.end()) return known->second;
  using vector = mote::batch<float, mote::default_arch>;
  constexpr std::size_t chains = 8;
  const std::size_t n = beyond_cache / sizeof(float), piece = std::size_t{1} << 16;
  const mote::buffer<float> x(n);
  std::vector<float> sums(n / piece);
  mote::simd<> be{mote::threads{threads}};
  const double seconds = shortest_real(12, [&] {
    be.parallel_for(n, piece, [&](std::size_t begin, std::size_t end) {
      vector total[chains];
      for (auto& t : total) t = vector(0.0f);
      for (std::size_t i = begin; i < end; i += chains * vector::size) {
        for (std::size_t c = 0; c < chains; ++c) total[c] += vector::load_unaligned(x.data() + i + c * vector::size);
      }
      for (std::size_t c = 1; c < chains; ++c) total[0] += total[c];
      sums[begin / piece] = mote::sum<mote::default_arch>(total[0]);
    });
    benchmark::DoNotOptimize(sums.data());
  });
  return measured[threads] = static_cast<double>(beyond_cache) / seconds;
}

// `steps` dot products in each of several independent chains, their sums in registers until the end.
template <class Dot, std::size_t... Chain>
[[gnu::noinline]] void dot_chains(int steps, std::int32_t* results, std::index_sequence<Chain...>) {
  const std::uint8_t codes[Dot::lanes * 4] = {1, 2, 3};
  const std::int8_t four[4] = {4, 5, 6, 7};
  const auto w = Dot::load(codes);
  const auto x = Dot::splat_codes(four);
  typename Dot::ints sums[] = {Dot::splat(static_cast<std::int32_t>(Chain))...};
  for (int i = 0; i < steps; ++i) {
    if constexpr (Dot::unsigned_limit > 0) {
      ((sums[Chain] = Dot::dot_unsigned(sums[Chain], w, x)), ...);
    } else {
      ((sums[Chain] = Dot::dot_signed(sums[Chain], w, x)), ...);
    }
  }
  (std::memcpy(results + Chain, &sums[Chain], sizeof *results), ...);
}

// Operations a second (a multiply-add is two) of independent int8 dot products on one thread.
inline double int8_rate() {
  static const double measured = [] {
    using dot = mote::detail::int8_dot<mote::default_arch>;
    constexpr int steps = 100000;
    constexpr std::size_t chains = 10;
    const double seconds = shortest(50, [] {
      std::int32_t results[chains];
      dot_chains<dot>(steps, results, std::make_index_sequence<chains>{});
      benchmark::DoNotOptimize(results);
    });
    return 8.0 * steps * static_cast<double>(chains * dot::lanes) / seconds;
  }();
  return measured;
}

// The limit of a product: the longer of reading `bytes` of weights and of computing `operations`.
inline void of_product_limit(benchmark::State& state, format f, std::size_t threads, std::size_t bytes,
                             double operations) {
  const double rate = static_cast<double>(threads) * (f == format::int8 ? int8_rate() : fma_rate());
  set_ratio(state, "of_limit", std::max(static_cast<double>(bytes) / read_bandwidth(threads), operations / rate));
}

}  // namespace bench
