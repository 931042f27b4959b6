// Encodes a matrix, some rows at a time, into what a file stores of it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <mote/compress/gptq.hpp>
#include <mote/core/simd.hpp>
#include <mote/core/view.hpp>

namespace quantize {

using backend = mote::simd<>;

enum class container { safetensors, gguf };

// A tensor of a file: `type` is the name of a mote::dtype or of a mote::ggml_type.
struct stored_tensor {
  std::string name;
  std::string_view type;
  std::vector<std::size_t> shape;
};

// Rows come in order, in pieces of whole multiples of `rows_multiple` but for the last.
class matrix_encoder {
 public:
  static constexpr std::size_t rows_multiple = 128;

  virtual ~matrix_encoder() = default;

  // Whether look() must see every row before encode() sees the first.
  virtual bool looks_first() const { return false; }
  virtual void look(const mote::view<const float, 2>&) {}

  // The bytes of `rows` in the file's first tensor, valid until the next call; what they stand for to `decoded`. Rounded to
  // nearest, or with `inverse` by GPTQ.
  virtual std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                            const mote::inverse_hessian* inverse,
                                            const mote::view<float, 2>& decoded) = 0;

  // The bytes of the tensors after the first, when all rows were encoded.
  virtual std::vector<std::span<const std::byte>> rest() const { return {}; }
};

// What a format costs and needs.
struct precision_info {
  std::string_view name;
  double bits;  // a weight, scales included
  std::size_t columns_multiple;
  bool by_element = true;  // whether single codes can be set; else blocks are encoded as a whole
};

// The precisions that a container can hold, from the fewest bits on; bf16, which means not quantized, is the last.
std::vector<precision_info> precisions(container kind);

// Whether others than mote read the precision in safetensors files: DeepSeek's fp8 and what compressed-tensors has.
bool published_in_safetensors(std::string_view precision);

// The tensors that hold a matrix of shape [..., out, in] called `name` (GGUF) or `name`.weight (safetensors). The columns
// must be a multiple of the precision's.
std::vector<stored_tensor> stored_tensors(container kind, std::string_view precision, const std::string& name,
                                          const std::vector<std::size_t>& shape);

// For [rows, columns], where rows count all matrices that the tensor holds.
std::unique_ptr<matrix_encoder> make_encoder(container kind, std::string_view precision, std::size_t rows,
                                             std::size_t columns);

}  // namespace quantize
