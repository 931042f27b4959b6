// The forms in which a model's matrices may be kept in memory.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <type_traits>

#include <mote/quant/formats.hpp>

namespace lm {

// `stored` keeps the checkpoint's numbers exactly: bf16 stays bf16, blocks stay blocks, codes stay codes, anything else becomes
// float32. fp8 is e4m3 with a scale for each 128×128 block.
// From `first_block_format` on, mote's block formats in the order of mote::formats.
enum class weight_format : std::size_t { stored, f32, bf16, f16, int8, fp8, first_block_format };

constexpr bool is_block_format(weight_format format) { return format >= weight_format::first_block_format; }
constexpr bool is_quantized(weight_format format) { return format >= weight_format::int8; }

// f.template operator()<F>() for the block format that `format` names.
template <class Function>
void with_block_format(weight_format format, Function&& f) {
  auto index = static_cast<std::size_t>(weight_format::first_block_format);
  mote::for_each_format([&]<class F>() {
    if (index++ == static_cast<std::size_t>(format)) f.template operator()<F>();
  });
}

// The value that names F.
template <class F>
weight_format format_of() {
  auto index = static_cast<std::size_t>(weight_format::first_block_format);
  auto found = weight_format::stored;
  mote::for_each_format([&]<class G>() {
    if (std::is_same_v<F, G>) found = static_cast<weight_format>(index);
    ++index;
  });
  return found;
}

// All but `stored`, by name.
inline std::map<std::string, weight_format> weight_format_names() {
  std::map<std::string, weight_format> names = {{"f32", weight_format::f32},
                                                {"bf16", weight_format::bf16},
                                                {"f16", weight_format::f16},
                                                {"int8", weight_format::int8},
                                                {"fp8", weight_format::fp8}};
  auto index = static_cast<std::size_t>(weight_format::first_block_format);
  mote::for_each_format([&]<class F>() { names.emplace(F::name, static_cast<weight_format>(index++)); });
  return names;
}

inline std::string name_of(weight_format format) {
  for (const auto& [name, value] : weight_format_names()) {
    if (value == format) return name;
  }
  return "stored";
}

}  // namespace lm
