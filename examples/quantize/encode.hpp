// Encodes whole tensors, in pieces, and measures what is lost.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include <mote/core/buffer.hpp>
#include <mote/core/error.hpp>
#include <mote/core/view.hpp>

#include "encoder.hpp"
#include "model.hpp"

namespace quantize {

// Σ (w - ŵ)² and Σ w² of what was quantized.
struct squared_error {
  double error = 0.0, signal = 0.0;
  double relative() const { return signal > 0.0 ? std::sqrt(error / signal) : 0.0; }
  void operator+=(const squared_error& other) {
    error += other.error;
    signal += other.signal;
  }
};

// Calls f(begin, rows) for pieces of the matrix of about 8 MB.
template <class Function>
void for_each_piece(const output_tensor& t, Function&& f) {
  const std::size_t multiple = matrix_encoder::rows_multiple, rows = t.rows(), columns = t.columns();
  const std::size_t most = std::max(multiple, (std::size_t{1} << 21) / columns / multiple * multiple);
  mote::buffer<float> values(std::min(most, rows) * columns);
  for (std::size_t begin = 0; begin < rows; begin += most) {
    const mote::view<float, 2> piece(values.data(), std::min(most, rows - begin), columns);
    t.read(begin, piece);
    for (std::size_t i = 0; i < piece.size(); ++i) {
      if (!std::isfinite(piece.data()[i])) {
        mote::raise<mote::format_error>(t.name + ": row " + std::to_string(begin + i / columns) +
                                        ": holds a value that is not finite");
      }
    }
    f(mote::view<const float, 2>(piece));
  }
}

// Encodes a matrix; write(bytes) receives the pieces of the first of its tensors.
template <class Write>
squared_error encode(backend& be, matrix_encoder& encoder, const output_tensor& t, Write&& write) {
  if (encoder.looks_first()) for_each_piece(t, [&](const auto& rows) { encoder.look(rows); });
  squared_error total;
  mote::buffer<float> decoded;
  for_each_piece(t, [&](const mote::view<const float, 2>& rows) {
    if (decoded.size() < rows.size()) decoded = mote::buffer<float>(rows.size());
    const mote::view<float, 2> values(decoded.data(), rows.extent(0), rows.extent(1));
    write(encoder.encode(be, rows, values));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double w = static_cast<double>(rows.data()[i]), d = w - static_cast<double>(values.data()[i]);
      total.error += d * d;
      total.signal += w * w;
    }
  });
  return total;
}

}  // namespace quantize
