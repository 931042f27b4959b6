// The metadata of a `deepseek2` GGUF file as the config.json of a published checkpoint.
#pragma once

#include <cstddef>
#include <string>

#include <mote/io/gguf.hpp>
#include <nlohmann/json.hpp>

#include "config.hpp"

namespace lm {

namespace detail {

inline nlohmann::json read_gguf_rope_scaling(const mote::gguf_metadata& m, const std::string& p) {
  const std::string prefix = p + "rope.scaling.", type = m.string_or(prefix + "type", "linear");
  if (m.number_or(prefix + "attn_factor", 1.0) != 1.0) m.fail(prefix + "attn_factor", "is not supported: expected 1");
  if (type == "none") return nullptr;
  const std::string factor = m.contains(prefix + "factor") ? prefix + "factor" : p + "rope.scale_linear";
  if (type == "linear") {
    const double scale = m.number_or(factor, 1.0);
    if (scale != 0.0 && scale != 1.0) m.fail(factor, "is not supported but with rope.scaling.type \"yarn\"");
    return nullptr;
  }
  if (type != "yarn") {
    m.fail(prefix + "type", "expected \"none\", \"linear\" or \"yarn\", got \"" + type + "\"");
  }
  nlohmann::json yarn = {{"type", "yarn"},
                         {"factor", m.number(prefix + "factor")},
                         {"original_max_position_embeddings", m.number(prefix + "original_context_length")},
                         {"beta_fast", m.number_or(prefix + "yarn_beta_fast", 32.0)},
                         {"beta_slow", m.number_or(prefix + "yarn_beta_slow", 1.0)}};
  // The file has a tenth of mscale_all_dim, and no mscale: the published models have the same for both. Without it llama.cpp
  // takes 1, and multiplies cos and sin, too.
  const double mscale = m.number_or(prefix + "yarn_log_multiplier", 0.0) * 10.0;
  yarn["mscale"] = yarn["mscale_all_dim"] = mscale == 0.0 ? 1.0 : mscale;
  if (mscale == 0.0) {
    mote::yarn_scaling scaling;
    scaling.factor = m.number(prefix + "factor");
    yarn["attention_factor"] = scaling.magnitude(1.0);
  }
  return yarn;
}

inline void read_gguf_experts(const mote::gguf_checkpoint& files, const std::string& p, nlohmann::json& config) {
  const mote::gguf_metadata& m = files.metadata();
  constexpr std::size_t most = 65536;
  const std::size_t experts = m.integer_or(p + "expert_count", 0, 0, most);
  if (experts == 0) return;
  const std::size_t dense = m.integer_or(p + "leading_dense_block_count", 0, 0, most);
  const std::size_t gating = m.integer_or(p + "expert_gating_func", 1, 0, 2);  // 0: not given
  const std::size_t groups = m.integer_or(p + "expert_group_count", 1, 0, most);
  const bool biased = files.contains("blk." + std::to_string(dense) + ".exp_probs_b.bias");
  const bool normalised = m.boolean_or(p + "expert_weights_norm", false);
  const double scale = m.number_or(p + "expert_weights_scale", 1.0);
  if (normalised && !biased && scale != 1.0) {
    m.fail(p + "expert_weights_scale", "expected 1 for normalised weights without exp_probs_b");
  }
  const std::size_t used = m.integer(p + "expert_used_count", 1, experts);
  if (normalised && !biased && used == 1) {
    m.fail(p + "expert_weights_norm", "expected false where one expert is used and there is no exp_probs_b");
  }
  config["n_routed_experts"] = experts;
  config["first_k_dense_replace"] = dense;
  config["n_shared_experts"] = m.integer_or(p + "expert_shared_count", 0, 0, most);
  config["num_experts_per_tok"] = used;
  config["moe_intermediate_size"] = m.integer(p + "expert_feed_forward_length", 1, std::size_t{1} << 24);
  config["scoring_func"] = gating == 2 ? "sigmoid" : "softmax";
  config["topk_method"] = biased ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";
  config["n_group"] = groups > 1 ? groups : 1;
  config["topk_group"] = groups > 1 ? m.integer(p + "expert_group_used_count", 1, groups) : 1;
  config["norm_topk_prob"] = normalised;
  config["routed_scaling_factor"] = scale == 0.0 ? 1.0 : scale;
}

}  // namespace detail

// Throws format_error naming the file and the key that is missing, of the wrong type or out of its range.
inline model_config read_gguf_config(const mote::gguf_checkpoint& files) {
  constexpr std::size_t largest = std::size_t{1} << 24;
  const mote::gguf_metadata& m = files.metadata();
  const std::string& architecture = m.string("general.architecture");
  if (architecture != "deepseek2") {
    m.fail("general.architecture", "expected \"deepseek2\", got \"" + architecture + "\"");
  }
  const std::string p = architecture + ".";
  const auto integer = [&](const char* key, std::size_t least) { return m.integer(p + key, least, largest); };
  if (m.number_or(p + "attention.temperature_scale", 0.0) != 0.0) {
    m.fail(p + "attention.temperature_scale", "is not supported");
  }

  // Older files have a head's own sizes where newer ones have those of the latent rows.
  const bool latent = m.contains(p + "attention.key_length_mla");
  const std::size_t rope = integer("rope.dimension_count", 2);
  const std::size_t head = integer(latent ? "attention.key_length_mla" : "attention.key_length", rope + 1);
  const std::size_t blocks = integer("block_count", 1);
  const std::size_t nextn = m.integer_or(p + "nextn_predict_layers", 0, 0, blocks - 1);
  if (files.contains("blk." + std::to_string(blocks) + ".attn_norm.weight")) {
    m.fail(p + "block_count", "is " + std::to_string(blocks) + ", but the file has a block more");
  }
  nlohmann::json config = {
      {"model_type", "deepseek_v2"},
      {"vocab_size",
       m.contains(p + "vocab_size") ? integer("vocab_size", 1) : m.array<std::string>("tokenizer.ggml.tokens").size()},
      {"hidden_size", integer("embedding_length", 1)},
      {"intermediate_size", integer("feed_forward_length", 1)},
      {"num_hidden_layers", blocks - nextn},
      {"num_nextn_predict_layers", nextn},
      {"num_attention_heads", integer("attention.head_count", 1)},
      {"kv_lora_rank", integer("attention.kv_lora_rank", 1)},
      {"qk_nope_head_dim", head - rope},
      {"qk_rope_head_dim", rope},
      {"v_head_dim", integer(latent ? "attention.value_length_mla" : "attention.value_length", 1)},
      {"max_position_embeddings", integer("context_length", 1)},
      {"rms_norm_eps", m.number(p + "attention.layer_norm_rms_epsilon")},
      {"rope_theta", m.number_or(p + "rope.freq_base", 10000.0)},
      {"rope_scaling", detail::read_gguf_rope_scaling(m, p)},
      {"tie_word_embeddings", !files.contains("output.weight")}};
  if (const std::size_t rank = m.integer_or(p + "attention.q_lora_rank", 0, 0, largest); rank > 0) {
    config["q_lora_rank"] = rank;
  }
  detail::read_gguf_experts(files, p, config);
  return parse_config(mote::json_object(config, files.path()));
}

}  // namespace lm
