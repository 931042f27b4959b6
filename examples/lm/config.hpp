// The config.json of a DeepSeek V2 or V3 checkpoint.
#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <string>

#include <mote/blocks/decoder_layer.hpp>
#include <mote/io/json.hpp>

namespace lm {

// Field names as in config.json.
struct model_config {
  std::string model_type;
  std::size_t vocab_size = 0;
  std::size_t hidden_size = 0;
  std::size_t intermediate_size = 0;
  std::size_t moe_intermediate_size = 0;
  std::size_t num_hidden_layers = 0;
  std::size_t num_nextn_predict_layers = 0;
  std::size_t n_routed_experts = 0;
  std::size_t n_shared_experts = 0;
  std::size_t first_k_dense_replace = 0;
  std::size_t moe_layer_freq = 1;
  std::size_t q_lora_rank = 0;  // 0: none
  std::size_t max_position_embeddings = 0;
  bool attention_bias = false;
  bool tie_word_embeddings = false;
  mote::decoder_config decoder;  // attention sizes, router, epsilon
  double rope_theta = 10000.0;
  std::optional<mote::yarn_scaling> yarn;
  mote::rope_frequencies rope;  // by both

  bool is_moe_layer(std::size_t i) const {
    return n_routed_experts > 0 && i >= first_k_dense_replace && i % moe_layer_freq == 0;
  }
  bool has_moe_layers() const {
    for (std::size_t i = 0; i < num_hidden_layers; ++i) {
      if (is_moe_layer(i)) return true;
    }
    return false;
  }
};

namespace detail {

inline std::optional<mote::yarn_scaling> read_rope_scaling(const mote::json_object& scaling) {
  const std::string type =
      scaling.contains("rope_type") ? scaling.string("rope_type") : scaling.string_or("type", "default");
  if (type == "default") return std::nullopt;
  if (type != "yarn") scaling.fail("rope_type", "expected \"default\" or \"yarn\", got \"" + type + "\"");
  mote::yarn_scaling yarn;
  const auto positive = [&](const char* field, double fallback) {
    const double value = scaling.float_number_or(field, fallback);
    if (!(value > 0.0)) scaling.fail(field, "expected a number above 0");
    return value;
  };
  yarn.factor = scaling.float_number("factor");
  if (!(yarn.factor >= 1.0)) scaling.fail("factor", "expected a number of at least 1");
  yarn.original_max_position_embeddings = scaling.float_number("original_max_position_embeddings");
  if (!(yarn.original_max_position_embeddings >= 1.0)) {
    scaling.fail("original_max_position_embeddings", "expected a number of at least 1");
  }
  yarn.beta_fast = positive("beta_fast", 32.0);
  yarn.beta_slow = positive("beta_slow", 1.0);
  yarn.mscale = scaling.float_number_or("mscale", 0.0);
  yarn.mscale_all_dim = scaling.float_number_or("mscale_all_dim", 0.0);
  if (scaling.has_value("attention_factor")) yarn.attention_factor = scaling.float_number("attention_factor");
  yarn.truncate = scaling.boolean_or("truncate", true);
  return yarn;
}

// Older files: rope_theta and rope_scaling; newer ones: one rope_parameters object.
inline void read_rope(const mote::json_object& json, model_config& c) {
  if (json.has_value("rope_parameters")) {
    const mote::json_object parameters = json.object("rope_parameters");
    c.rope_theta = parameters.float_number_or("rope_theta", c.rope_theta);
    c.yarn = read_rope_scaling(parameters);
  }
  c.rope_theta = json.float_number_or("rope_theta", c.rope_theta);
  if (json.has_value("rope_scaling")) c.yarn = read_rope_scaling(json.object("rope_scaling"));
  if (!(c.rope_theta > 1.0)) json.fail("rope_theta", "expected a number above 1");

  mote::mla_config& a = c.decoder.attention;
  c.rope = mote::make_rope_frequencies(a.qk_rope_head_dim, c.rope_theta, c.yarn);
  a.softmax_scale = c.rope.softmax_multiplier / std::sqrt(static_cast<float>(a.qk_head_dim()));
  if (!std::isfinite(a.softmax_scale) || !std::isfinite(c.rope.attention_factor)) {
    json.fail("mscale", "the scale of attention is not finite");
  }
}

inline void read_router(const mote::json_object& json, model_config& c) {
  mote::router_config& r = c.decoder.router;
  const bool v3 = c.model_type == "deepseek_v3";
  const std::string scoring = json.string_or("scoring_func", v3 ? "sigmoid" : "softmax");
  const std::string method = json.string_or("topk_method", v3 ? "noaux_tc" : "greedy");
  if (scoring == "softmax") {
    r.scoring = mote::scoring_func::softmax;
  } else if (scoring == "sigmoid") {
    r.scoring = mote::scoring_func::sigmoid;
  } else {
    json.fail("scoring_func", "expected \"softmax\" or \"sigmoid\", got \"" + scoring + "\"");
  }
  if (method == "greedy") {
    r.method = mote::topk_method::greedy;
  } else if (method == "group_limited_greedy") {
    r.method = mote::topk_method::group_limited_greedy;
  } else if (method == "noaux_tc") {
    r.method = mote::topk_method::noaux_tc;
  } else {
    json.fail("topk_method", "expected \"greedy\", \"group_limited_greedy\" or \"noaux_tc\", got \"" + method + "\"");
  }
  r.num_experts_per_tok = json.integer("num_experts_per_tok", 1, c.n_routed_experts);
  r.norm_topk_prob = json.boolean_or("norm_topk_prob", v3);
  r.routed_scaling_factor = static_cast<float>(json.float_number_or("routed_scaling_factor", v3 ? 2.5 : 1.0));
  if (r.method == mote::topk_method::greedy) return;
  r.n_group = json.integer_or("n_group", v3 ? 8 : 1, 1, c.n_routed_experts);
  if (c.n_routed_experts % r.n_group != 0) {
    json.fail("n_group", "expected a divisor of n_routed_experts = " + std::to_string(c.n_routed_experts) + ", got " +
                             std::to_string(r.n_group));
  }
  r.topk_group = json.integer_or("topk_group", v3 ? 4 : 1, 1, r.n_group);
  if (r.num_experts_per_tok > c.n_routed_experts / r.n_group * r.topk_group) {
    json.fail("num_experts_per_tok", "expected at most the experts of topk_group groups, " +
                                         std::to_string(c.n_routed_experts / r.n_group * r.topk_group) + ", got " +
                                         std::to_string(r.num_experts_per_tok));
  }
}

}  // namespace detail

// Throws format_error naming the file and the field that is missing, of the wrong type or out of its range.
inline model_config parse_config(const mote::json_object& json) {
  constexpr std::size_t largest = std::size_t{1} << 24;  // of any dimension
  model_config c;
  c.model_type = json.string("model_type");
  if (c.model_type != "deepseek_v2" && c.model_type != "deepseek_v3") {
    json.fail("model_type", "expected \"deepseek_v2\" or \"deepseek_v3\", got \"" + c.model_type + "\"");
  }
  const std::string activation = json.string_or("hidden_act", "silu");
  if (activation != "silu") json.fail("hidden_act", "expected \"silu\", got \"" + activation + "\"");

  c.vocab_size = json.integer("vocab_size", 1, largest);
  c.hidden_size = json.integer("hidden_size", 1, largest);
  c.intermediate_size = json.integer("intermediate_size", 1, largest);
  c.num_hidden_layers = json.integer("num_hidden_layers", 1, 4096);
  c.num_nextn_predict_layers = json.integer_or("num_nextn_predict_layers", 0, 0, 4096);
  c.max_position_embeddings = json.integer_or("max_position_embeddings", 4096, 1, largest);
  c.attention_bias = json.boolean_or("attention_bias", false);
  c.tie_word_embeddings = json.boolean_or("tie_word_embeddings", false);

  mote::mla_config& a = c.decoder.attention;
  a.num_attention_heads = json.integer("num_attention_heads", 1, largest);
  a.kv_lora_rank = json.integer("kv_lora_rank", 1, largest);
  a.qk_nope_head_dim = json.integer("qk_nope_head_dim", 1, largest);
  a.qk_rope_head_dim = json.integer("qk_rope_head_dim", 2, largest);
  if (a.qk_rope_head_dim % 2 != 0) json.fail("qk_rope_head_dim", "expected an even number");
  a.v_head_dim = json.integer("v_head_dim", 1, largest);
  a.pairing =
      json.boolean_or("rope_interleave", true) ? mote::rope_pairing::interleaved : mote::rope_pairing::half_split;
  if (json.has_value("q_lora_rank")) c.q_lora_rank = json.integer("q_lora_rank", 1, largest);
  c.decoder.rms_norm_eps = static_cast<float>(json.float_number_or("rms_norm_eps", 1e-6));
  if (!(c.decoder.rms_norm_eps >= 0.0f)) json.fail("rms_norm_eps", "expected a number of at least 0");

  if (json.has_value("n_routed_experts")) c.n_routed_experts = json.integer("n_routed_experts", 1, 65536);
  if (c.n_routed_experts > 0) {
    c.moe_intermediate_size = json.integer("moe_intermediate_size", 1, largest);
    if (json.has_value("n_shared_experts")) c.n_shared_experts = json.integer("n_shared_experts", 0, 4096);
    c.first_k_dense_replace = json.integer_or("first_k_dense_replace", 0, 0, 65536);
    c.moe_layer_freq = json.integer_or("moe_layer_freq", 1, 1, 65536);
    detail::read_router(json, c);
  }
  detail::read_rope(json, c);
  return c;
}

// The configuration of a checkpoint's directory.
inline model_config read_config(const std::string& directory) {
  const mote::json_file file(directory + "/config.json");
  return parse_config(file.root());
}

}  // namespace lm
