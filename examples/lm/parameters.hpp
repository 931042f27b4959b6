// How many numbers a model consists of, however its files store them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config.hpp"
#include "model_files.hpp"

namespace lm {

struct parameter_count {
  std::size_t total = 0;   // of the main model
  std::size_t active = 0;  // read for one token
  std::size_t mtp = 0;     // of the multi-token-prediction module, its copies of embedding and head included
};

namespace detail {

// Whether `name` is a routed expert's tensor, or that of a layer's routed experts.
inline bool is_routed(std::string_view name) {
  return name.find(".mlp.experts.") != std::string_view::npos || name.ends_with("_exps.weight");
}

// Whether a tensor only says how others are to be read: what compressed-tensors and GGUF have beside matrices.
inline bool describes_others(std::string_view name) {
  constexpr std::string_view endings[] = {"_scale", "_scale_inv", "_zero_point", "_shape", "_g_idx", ".scale"};
  return std::any_of(std::begin(endings), std::end(endings), [&](auto ending) { return name.ends_with(ending); });
}

// Columns of the matrix that `packed` holds eight a word, of which the last word may have fewer.
inline std::size_t int4_columns(const mote::checkpoint& files, const mote::tensor_ref& packed) {
  constexpr std::string_view ending = "_packed";
  const mote::tensor_ref& shape =
      files.tensor(packed.name.substr(0, packed.name.size() - ending.size()) + "_shape", std::vector<std::size_t>{2});
  const auto columns = static_cast<std::size_t>(mote::detail::whole_element(shape, 1));
  const std::size_t words = packed.shape.back();
  if (columns > 8 * words || 8 * words - columns > 7) shape.fail("does not fit " + packed.name);
  return columns;
}

inline std::size_t parameters_of(const mote::checkpoint& files, const mote::tensor_ref& t) {
  std::size_t in_blocks = 0;
  mote::with_format(mote::detail::stored_format(t.name),
                    [&]<class F>() { in_blocks = t.size() / sizeof(F) * F::block_size; });
  if (in_blocks > 0) return in_blocks;
  if (!t.name.ends_with(".weight_packed") || t.shape.size() != 2) return t.size();
  return t.dtype == mote::dtype::i32 ? t.shape[0] * int4_columns(files, t) : 2 * t.size();
}
inline std::size_t parameters_of(const mote::gguf_checkpoint&, const mote::gguf_tensor& t) { return t.size(); }

}  // namespace detail

// Throws format_error naming file and tensor where a packed matrix has no shape.
inline parameter_count count_parameters(const model_files& model, const model_config& c) {
  parameter_count count;
  std::size_t routed = 0;
  const auto add_all = [&](const auto& files, const char* layers) {
    const std::string mtp = layers + std::to_string(c.num_hidden_layers) + ".";
    for (const auto& t : files.tensors()) {
      if (detail::describes_others(t.name)) continue;
      const std::size_t n = detail::parameters_of(files, t);
      if (c.num_nextn_predict_layers > 0 && t.name.starts_with(mtp)) {
        count.mtp += n;
        continue;
      }
      count.total += n;
      (detail::is_routed(t.name) ? routed : count.active) += n;
    }
  };
  if (const auto* published = std::get_if<mote::checkpoint>(&model.files())) {
    add_all(*published, "model.layers.");
  } else {
    add_all(std::get<mote::gguf_checkpoint>(model.files()), "blk.");
  }
  if (c.n_routed_experts > 0) count.active += routed / c.n_routed_experts * c.decoder.router.num_experts_per_tok;
  return count;
}

}  // namespace lm
