// Random matrices in every form that products read: each block format by itself, int8, bf16, fp8 and float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <mote/core/buffer.hpp>
#include <mote/quant/weight.hpp>

#include "support/bench.hpp"

namespace bench {

struct weight_form {
  std::string name;
  arithmetic unit;
  std::size_t block = 1;  // columns come in multiples of it
};

// bf16 is packed, its activations rounded; bf16_rows are rows as checkpoints store them, activations in float32.
std::vector<weight_form> weight_forms();
weight_form form_named(const std::string& name);

// `count` equal matrices [out, in]: what a peer needs to have the same ones. Row n is row n % rows of these.
struct weight_source {
  std::string form;
  std::size_t out, in, count;
  mote::view<const float, 2> values;         // [rows, in], before they were quantized
  mote::view<const std::uint8_t, 2> stored;  // [rows, bytes]: as files hold them, without the scales of fp8
};

// Only `rows` rows are drawn, quantized and packed, and then repeated: all of them would take longer than the benchmarks.
class matrices {
 public:
  static constexpr std::size_t rows = 96;

  // With a count of 0, as many as no last-level cache holds together.
  matrices(const weight_form& form, std::size_t out, std::size_t in, std::size_t count = 0);

  std::size_t size() const { return count_; }
  const mote::weight& operator[](std::size_t i) const { return all_[i]; }

  weight_source source() const;

 private:
  void repeat(const std::uint8_t* few, std::size_t piece, std::size_t pieces, std::size_t size);
  template <class T, class Matrix>
  void keep_packed(const Matrix& few);
  template <class T>
  void keep_rows();
  void keep_fp8();

  std::string form_;
  std::size_t out_, in_, count_;
  mote::buffer<float> values_, scales_;
  mote::buffer<std::uint8_t> stored_, bytes_;
  std::vector<mote::weight> all_;
};

}  // namespace bench
