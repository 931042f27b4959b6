// What becomes of each tensor of a checkpoint in the quantized model.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <mote/core/view.hpp>

#include "source.hpp"

namespace quantize {

// The N of "model.layers.N." that a name begins with.
std::optional<std::size_t> decoder_layer(const std::string& name);

// A tensor of the output: the matrix or matrices of a layer, or something that is not quantized.
struct output_tensor {
  std::string name;    // in the output; of a safetensors matrix without ".weight"
  std::string layer;   // tensors of one layer have one precision: what the table calls it; "" where not quantized
  std::string target;  // of a safetensors matrix: the name of its module, the same for all experts of a layer
  std::vector<std::size_t> shape;  // [..., rows, columns]

  // Of a matrix: rows [begin, begin + rows.extent(0)) of all its matrices.
  std::function<void(std::size_t begin, const mote::view<float, 2>& rows)> read;
  // The checkpoint's layers that the rows come from, an equal part of the rows from each.
  std::vector<std::string> modules;
  bool reads_inputs = true;  // whether the rows multiply what enters those layers, as they are there
  // Rows [begin, …) of a part into the module's matrix, where that has them in another order; or none.
  std::function<void(std::size_t begin, const mote::view<const float, 2>& rows, const mote::view<float, 2>& w)> put;
  std::string_view least;  // the precision that it has where fewer bits are asked for, or ""
  // Of something that is not quantized: its type, and its data as they will stand in the file, piece by piece.
  std::string_view type;
  std::function<void(const std::function<void(std::span<const std::byte>)>& write)> copy;

  bool is_matrix() const { return static_cast<bool>(read); }
  std::size_t columns() const { return shape.back(); }
  std::size_t rows() const {
    std::size_t n = 1;
    for (std::size_t d = 0; d + 1 < shape.size(); ++d) n *= shape[d];
    return n;
  }
};

// Whether the tensor is the weight of a linear layer that is quantized. Norms, biases, routers, embeddings, the head and
// eh_proj, which published models keep, are not.
bool is_linear_layer(const std::string& tensor);

// The tensors of a safetensors checkpoint with the same tensors, in the order of the decoder layers; what other programs
// multiply at once in one layer if `fused`. `source` must outlive them. Throws format_error.
std::vector<output_tensor> plan_safetensors(const model_source& source, bool fused);

}  // namespace quantize
