// How much a layer's output changes when its weight W [out, in] becomes Ŵ, from the second moment G of its inputs:
//
//   relative output error = ‖(W - Ŵ) X‖ / ‖W X‖ = sqrt( Σ_n d_n G d_nᵀ / Σ_n w_n G w_nᵀ ),    d_n row n of W - Ŵ
//
// Without a single token G is taken as the identity: the error of the weight itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "../core/backend.hpp"
#include "../core/error.hpp"
#include "../core/view.hpp"
#include "../ops/matmul/matmul.hpp"
#include "statistics.hpp"

MOTE_BEGIN_NAMESPACE

// Σ_n a_n G a_nᵀ over the rows of a [rows, in], summed in float64. Throws shape_error.
template <host Backend>
double output_energy(Backend& be, const view<const float, 2>& a, const activation_statistics& statistics) {
  check_view("output_energy", "a", a, {a.extent(0), statistics.in_features()});
  const bool reached = statistics.tokens() != 0;
  double total = 0.0;
  if (!reached || statistics.block() == 1) {
    for (std::size_t n = 0; n < a.extent(0); ++n) {
      for (std::size_t c = 0; c < a.extent(1); ++c) {
        const double moment = reached ? static_cast<double>(statistics.moment(c)(0, 0)) : 1.0;
        total += moment * static_cast<double>(a(n, c)) * static_cast<double>(a(n, c));
      }
    }
    return total;
  }
  constexpr std::size_t tile = 64;
  for (std::size_t begin = 0; begin < a.extent(0); begin += tile) {
    const auto rows = a.slice(0, begin, std::min(tile, a.extent(0) - begin));
    for (std::size_t b = 0; b < statistics.blocks(); ++b) {
      const auto part = rows.slice(1, b * statistics.block(), statistics.block_size(b));
      auto scratch = be.scope();
      const auto product = scratch.template tensor<float>(part.extent(0), part.extent(1));
      matmul(be, part, statistics.moment(b), product);  // a G: G is symmetric
      for (std::size_t n = 0; n < part.extent(0); ++n) {
        for (std::size_t c = 0; c < part.extent(1); ++c) {
          total += static_cast<double>(part(n, c)) * static_cast<double>(product(n, c));
        }
      }
    }
  }
  return std::max(total, 0.0);  // rounding
}

struct output_error {
  double error;   // Σ_t ‖(W - Ŵ) x_t‖²
  double signal;  // Σ_t ‖W x_t‖²

  // ‖(W - Ŵ) X‖ / ‖W X‖; 0 when both are 0.
  double relative() const { return error > 0.0 ? std::sqrt(error / signal) : 0.0; }
};

// w and quantized [out, in]. Throws shape_error.
template <host Backend>
output_error measure_output_error(Backend& be, const view<const float, 2>& w, const view<const float, 2>& quantized,
                                  const activation_statistics& statistics) {
  check_view("measure_output_error", "quantized", quantized, {w.extent(0), w.extent(1)});
  auto scratch = be.scope();
  const auto difference = scratch.template tensor<float>(w.extent(0), w.extent(1));
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) difference(n, c) = w(n, c) - quantized(n, c);
  }
  return {output_energy<Backend>(be, difference, statistics), output_energy(be, w, statistics)};
}

MOTE_END_NAMESPACE
