// Activations as language models have them, for tests of calibration and quantization.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <mote/compress/output_error.hpp>
#include <mote/compress/statistics.hpp>
#include <mote/core/view.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

namespace test {

// A matrix that owns its numbers.
struct matrix {
  std::size_t rows, columns;
  std::vector<float> values;

  matrix(std::size_t r, std::size_t c) : rows(r), columns(c), values(r * c) {}
  matrix(std::size_t r, std::size_t c, std::vector<float> v) : rows(r), columns(c), values(std::move(v)) {}

  operator mote::view<float, 2>() { return {values.data(), rows, columns}; }
  operator mote::view<const float, 2>() const { return {values.data(), rows, columns}; }
  mote::view<float, 2> view() { return *this; }
  mote::view<const float, 2> view() const { return *this; }
  float& operator()(std::size_t r, std::size_t c) { return values[r * columns + c]; }
  float operator()(std::size_t r, std::size_t c) const { return values[r * columns + c]; }
};

// Tokens whose channels are correlated: mixtures of in / 4 hidden causes and some noise.
inline matrix correlated(random_source& random, std::size_t tokens, std::size_t in) {
  const std::size_t causes = in / 4;
  const auto mixing = random.normal(causes * in), hidden = random.normal(tokens * causes);
  matrix x(tokens, in, random.normal(tokens * in, 0.3f));
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t k = 0; k < causes; ++k) {
      for (std::size_t c = 0; c < in; ++c) x(t, c) += hidden[t * causes + k] * mixing[k * in + c];
    }
  }
  return x;
}

// ‖(W - Ŵ) X‖ / ‖W X‖ by running both.
inline double relative_output_error(const matrix& w, const matrix& quantized, const matrix& x) {
  double error = 0.0, signal = 0.0;
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t n = 0; n < w.rows; ++n) {
      double y = 0.0, e = 0.0;
      for (std::size_t c = 0; c < w.columns; ++c) {
        y += static_cast<double>(w(n, c)) * static_cast<double>(x(t, c));
        e += static_cast<double>(w(n, c) - quantized(n, c)) * static_cast<double>(x(t, c));
      }
      error += e * e;
      signal += y * y;
    }
  }
  return std::sqrt(error / signal);
}

inline mote::activation_statistics statistics_of(const matrix& x, std::size_t block) {
  mote::simd<> be{mote::threads{1}};
  mote::activation_statistics s(x.columns, block);
  s.add(be, x.view());
  return s;
}

}  // namespace test
