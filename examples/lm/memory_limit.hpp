// Running a model larger than memory: its experts stay in the mapped file of packed weights, those used most in memory too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <mote/core/error.hpp>
#include <mote/io/json.hpp>
#include <mote/io/mapped_experts.hpp>
#include <mote/io/part_file.hpp>
#include <mote/io/resident.hpp>

#include "config.hpp"
#include "weights.hpp"

namespace lm {

using expert_uses = std::vector<std::vector<std::uint64_t>>;
inline constexpr std::uint64_t most_uses = std::uint64_t{1} << 53;  // that JSON's numbers hold exactly

// {"expert_uses": [[uses of the first mixture-of-experts layer's experts], …]}. Throws format_error naming the file.
inline expert_uses read_expert_profile(const std::string& path) {
  const mote::json_file file(path);
  const mote::json_object root = file.root();
  expert_uses uses;
  for (const nlohmann::json& layer : root.array("expert_uses")) {
    auto& row = uses.emplace_back();
    if (!layer.is_array()) root.fail("expert_uses", "expected arrays of whole numbers");
    for (const nlohmann::json& n : layer) {
      if (!n.is_number_unsigned() || n.get<std::uint64_t>() > most_uses) {
        root.fail("expert_uses", "expected arrays of whole numbers up to 2^53");
      }
      row.push_back(n.get<std::uint64_t>());
    }
  }
  return uses;
}

// A file that is there already stays as it is until the new one is complete. Throws format_error naming the file.
inline void write_expert_profile(const std::string& path, const mote::expert_cache& cache) {
  expert_uses uses(cache.layers());
  for (std::size_t l = 0; l < cache.layers(); ++l) {
    for (std::size_t e = 0; e < cache.experts(l); ++e) uses[l].push_back(std::min(cache.uses(l, e), most_uses));
  }
  const std::string text = nlohmann::json{{"expert_uses", uses}}.dump() + "\n";
  mote::detail::part_file file(path, mote::unfinished::removed);
  file.begin_anew("{\"expert_uses\"");
  file.put(text.data(), text.size());
  file.finish();
}

// What a step of `tokens` takes beside weights and cache, at most: scratch of attention, of a dense network, of experts, and
// some for the program's own pages; with the expanded form of attention the keys and values of a whole `context`, too.
inline std::size_t step_memory(const model_config& c, std::size_t tokens, std::size_t context) {
  const mote::mla_config& a = c.decoder.attention;
  const std::size_t attention = a.num_attention_heads * 2 * (a.qk_head_dim() + a.v_head_dim) + c.q_lora_rank;
  const std::size_t dense = 3 * std::max(c.intermediate_size, c.n_shared_experts * c.moe_intermediate_size);
  const std::size_t routed = c.decoder.router.num_experts_per_tok * (2 * c.moe_intermediate_size + c.hidden_size);
  // Experts' tokens as matrix tiles of sixteen read them, in bf16 at the widest.
  const std::size_t places = tokens * c.decoder.router.num_experts_per_tok;
  const std::size_t in_tiles = sizeof(mote::bf16) * (places + 16 * std::min(places, c.n_routed_experts)) *
                               (c.moe_intermediate_size + c.hidden_size);
  constexpr std::size_t program = std::size_t{1} << 23;
  const bool expands = a.form != mote::mla_form::absorbed;
  const std::size_t expanded =
      expands
          ? context * sizeof(float) * (a.num_attention_heads * (a.qk_nope_head_dim + a.v_head_dim) + a.cache_width())
          : 0;
  return expanded + tokens * sizeof(float) * (attention + dense + routed + 6 * c.hidden_size) + in_tiles + program;
}

// Whether every token reads a packed weight: of experts and embeddings, that are not the head, it reads few rows, of the
// multi-token-prediction module none without drafts, of keys' expansion none in the absorbed form.
inline bool is_read_always(const model_config& c, const std::string& name, bool drafts) {
  const std::string module = "model.layers." + std::to_string(c.num_hidden_layers) + ".";
  if (name.find(".mlp.experts.") != std::string::npos) return false;
  if (name.ends_with("embed_tokens.weight")) return name == "model.embed_tokens.weight" && c.tie_word_embeddings;
  if (name.starts_with(module) && !drafts) return false;
  return !(name.ends_with("/k_up") && c.decoder.attention.form == mote::mla_form::absorbed);
}

// Lets `weights`, which must come from a packed file, have `limit` bytes of memory with all else in the process, of which a
// step takes `step`. What every token reads, with `drafts` or without, is brought into memory, and the experts that earlier runs
// used most: `uses`, read from `profile`. Throws shape_error where the limit leaves no room for an expert.
template <class Backend>
std::unique_ptr<mote::mapped_experts> limit_memory(Backend& be, const model_config& config, model_weights& weights,
                                                   bool drafts, std::size_t step, std::size_t limit,
                                                   const std::optional<expert_uses>& uses, const std::string& profile) {
  std::vector<std::span<const std::byte>> always;
  std::size_t bytes = 0;
  for (const auto& [name, entry] : weights.packed->weights()) {
    if (!is_read_always(config, name, drafts)) continue;
    always.push_back(entry.bytes);
    bytes += entry.bytes.size();
  }
  std::size_t largest = 0;
  for (const auto& layer : weights.expert_regions) {
    for (const mote::mapped_experts::region& expert : layer) largest = std::max(largest, expert.size());
  }
  const std::size_t least = mote::resident_memory() + bytes + step + largest;
  mote::check(limit >= least, "memory_limit",
              "expected at least " + std::to_string(least) + " bytes (" + std::to_string(bytes) +
                  " of weights that every token reads, " + std::to_string(step) + " of a step, " +
                  std::to_string(largest) + " of one expert), got " + std::to_string(limit));
  be.parallel_for(always.size(), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      mote::prefetch_pages(always[i]);
      mote::touch_pages(always[i]);
    }
  });
  auto experts = std::make_unique<mote::mapped_experts>(weights.expert_regions, limit, step);
  std::size_t next = 0;
  const auto attach = [&](auto& mlp) {
    if (auto* moe = std::get_if<mote::moe_weights>(&mlp)) moe->residency = &experts->layer(next++);
  };
  for (auto& layer : weights.layers) attach(layer.mlp);
  if (weights.mtp) attach(weights.mtp->layer.mlp);

  if (uses) {
    try {
      experts->begin_with(be, *uses);
    } catch (const mote::shape_error& e) {
      mote::raise<mote::format_error>(profile + ": is of another model: " + e.what());
    }
  }
  return experts;
}

}  // namespace lm
