// Encodes whole tensors, in pieces, and measures what is lost.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include <mote/compress/output_error.hpp>
#include <mote/compress/statistics.hpp>
#include <mote/core/buffer.hpp>
#include <mote/core/view.hpp>

#include "calibrate.hpp"
#include "encoder.hpp"
#include "model.hpp"

namespace quantize {

// The relative squared errors ‖(W - Ŵ) X‖² / ‖W X‖² of some matrices, at most 1 each (all is lost), as a sum and the number of
// matrices. X is what calibration saw; without it, or where it saw nothing, the identity.
struct squared_error {
  double sum = 0.0;
  std::size_t matrices = 0;
  double mean() const { return matrices > 0 ? sum / static_cast<double>(matrices) : 0.0; }
  void operator+=(const squared_error& other) {
    sum += other.sum;
    matrices += other.matrices;
  }
};

// The matrices that a tensor consists of.
inline std::size_t parts(const output_tensor& t) { return std::max(t.modules.size(), std::size_t{1}); }

// Calls f(rows, begin) for pieces of about 8 MB of part `part`, `begin` counted from its first row.
template <class Function>
void for_each_piece(const output_tensor& t, std::size_t part, Function&& f) {
  const std::size_t multiple = matrix_encoder::rows_multiple, rows = t.rows() / parts(t), columns = t.columns();
  const std::size_t most = std::max(multiple, (std::size_t{1} << 21) / columns / multiple * multiple);
  mote::buffer<float> values(std::min(most, rows) * columns);
  for (std::size_t begin = 0; begin < rows; begin += most) {
    const mote::view<float, 2> piece(values.data(), std::min(most, rows - begin), columns);
    t.read(part * rows + begin, piece);
    f(mote::view<const float, 2>(piece), begin);
  }
}

// What calibration knows of the inputs of a part; `text` may be null.
inline layer_inputs inputs_of(calibration* text, const output_tensor& t, std::size_t part) {
  if (text == nullptr || part >= t.modules.size() || !t.reads_inputs) return {};
  return text->of(t.modules[part]);
}

// Encodes one part; sink(bytes, decoded, begin) receives each piece. Gives its error.
template <class Sink>
squared_error encode_part(backend& be, matrix_encoder& encoder, const output_tensor& t, std::size_t part,
                          const layer_inputs& inputs, Sink&& sink) {
  const mote::activation_statistics identity(t.columns(), 1);
  const mote::activation_statistics& statistics = inputs.statistics ? *inputs.statistics : identity;
  mote::buffer<float> values;
  double error = 0.0, signal = 0.0;
  for_each_piece(t, part, [&](const mote::view<const float, 2>& rows, std::size_t begin) {
    if (values.size() < rows.size()) values = mote::buffer<float>(rows.size());
    const mote::view<float, 2> decoded(values.data(), rows.extent(0), rows.extent(1));
    const auto bytes = encoder.encode(be, rows, inputs.inverse, decoded);
    sink(bytes, mote::view<const float, 2>(decoded), begin);
    const mote::output_error e = mote::measure_output_error(be, rows, mote::view<const float, 2>(decoded), statistics);
    error += e.error;
    signal += e.signal;
  });
  return {error > 0.0 ? error / std::max(signal, error) : 0.0, 1};
}

// Shows a tensor to an encoder that wants to see it first.
inline void look_first(matrix_encoder& encoder, const output_tensor& t) {
  if (!encoder.looks_first()) return;
  for (std::size_t part = 0; part < parts(t); ++part) {
    for_each_piece(t, part, [&](const auto& rows, std::size_t) { encoder.look(rows); });
  }
}

// Encodes a matrix; write(bytes) receives the pieces of the first of its tensors. `text` may be null.
template <class Write>
squared_error encode(backend& be, matrix_encoder& encoder, const output_tensor& t, calibration* text, Write&& write) {
  look_first(encoder, t);
  squared_error total;
  for (std::size_t part = 0; part < parts(t); ++part) {
    total += encode_part(be, encoder, t, part, inputs_of(text, t, part),
                         [&](std::span<const std::byte> bytes, const auto&, std::size_t) { write(bytes); });
  }
  return total;
}

}  // namespace quantize
