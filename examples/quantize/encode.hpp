// Encodes whole tensors, in pieces, and measures what is lost.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include <mote/compress/calibration.hpp>
#include <mote/core/buffer.hpp>
#include <mote/core/error.hpp>
#include <mote/core/view.hpp>

#include "encoder.hpp"
#include "model.hpp"

namespace quantize {

// The relative squared errors ‖(W - Ŵ) X‖² / ‖W X‖² of some matrices, as a sum and the number of matrices. X is what
// calibration saw; without it, or where it saw nothing, the identity.
struct squared_error {
  double sum = 0.0;
  std::size_t matrices = 0;
  double mean() const { return matrices > 0 ? sum / static_cast<double>(matrices) : 0.0; }
  void operator+=(const squared_error& other) {
    sum += other.sum;
    matrices += other.matrices;
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

// The mean of x_c² over the tokens that entered a layer, or nothing when calibration did not see it.
inline std::vector<double> input_energy(const mote::calibration* inputs, const std::string& module) {
  if (inputs == nullptr || !inputs->contains(module) || inputs->of(module).tokens() == 0) return {};
  const mote::activation_statistics& seen = inputs->of(module);
  std::vector<double> energy(seen.in_features());
  for (std::size_t c = 0; c < energy.size(); ++c) {
    energy[c] = static_cast<double>(seen.moment(c)(0, 0)) / static_cast<double>(seen.tokens());
  }
  return energy;
}

// Encodes a matrix; write(bytes) receives the pieces of the first of its tensors. `inputs` may be null.
template <class Write>
squared_error encode(backend& be, matrix_encoder& encoder, const output_tensor& t, const mote::calibration* inputs,
                     Write&& write) {
  if (encoder.looks_first()) for_each_piece(t, [&](const auto& rows) { encoder.look(rows); });
  const std::size_t parts = std::max(t.modules.size(), std::size_t{1}), part_rows = t.rows() / parts;
  std::vector<double> energy;
  squared_error total{0.0, parts};
  double error = 0.0, signal = 0.0;  // of one of the matrices
  std::size_t row = 0;
  mote::buffer<float> decoded;
  for_each_piece(t, [&](const mote::view<const float, 2>& rows) {
    if (decoded.size() < rows.size()) decoded = mote::buffer<float>(rows.size());
    const mote::view<float, 2> values(decoded.data(), rows.extent(0), rows.extent(1));
    write(encoder.encode(be, rows, values));
    for (std::size_t r = 0; r < rows.extent(0); ++r, ++row) {
      if (row % part_rows == 0) {
        energy = t.modules.empty() ? std::vector<double>() : input_energy(inputs, t.modules[row / part_rows]);
        error = signal = 0.0;
      }
      for (std::size_t c = 0; c < rows.extent(1); ++c) {
        const double weight = energy.empty() ? 1.0 : energy[c];
        const double w = static_cast<double>(rows(r, c)), d = w - static_cast<double>(values(r, c));
        error += weight * d * d;
        signal += weight * w * w;
      }
      if ((row + 1) % part_rows == 0 && error > 0.0) total.sum += error / std::max(signal, error);
    }
  });
  return total;
}

}  // namespace quantize
