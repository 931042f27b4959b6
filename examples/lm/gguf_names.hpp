// The tensors of a `deepseek2` GGUF file by their names in published checkpoints.
//
// GGUF keeps the matrices of a layer's experts in one tensor [experts, out, in]. kv_b_proj is there as it is in older files;
// newer ones have its two halves for each head, the first transposed: k_b_proj [heads, rank, nope] and v_b_proj
// [heads, v, rank].
#pragma once

#include <charconv>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace lm {

struct gguf_place {
  std::string name;
  std::optional<std::size_t> expert;  // of a tensor that holds all of a layer's
};

namespace detail {

// "12.rest" as 12 and "rest".
inline std::optional<std::pair<std::size_t, std::string_view>> split_index(std::string_view text) {
  std::size_t index = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), index);
  if (status != std::errc() || end == text.data() + text.size() || *end != '.') return std::nullopt;
  return std::pair{index, text.substr(static_cast<std::size_t>(end - text.data()) + 1)};
}

}  // namespace detail

// Nothing for a name that GGUF has no counterpart of.
inline std::optional<gguf_place> find_gguf_place(std::string_view published) {
  using names = std::pair<std::string_view, std::string_view>;
  static constexpr names whole_model[] = {{"model.embed_tokens.weight", "token_embd.weight"},
                                          {"model.norm.weight", "output_norm.weight"},
                                          {"lm_head.weight", "output.weight"}};
  static constexpr names of_layer[] = {{"input_layernorm.weight", "attn_norm.weight"},
                                       {"self_attn.q_proj.weight", "attn_q.weight"},
                                       {"self_attn.q_a_proj.weight", "attn_q_a.weight"},
                                       {"self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"},
                                       {"self_attn.q_b_proj.weight", "attn_q_b.weight"},
                                       {"self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
                                       {"self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
                                       {"self_attn.kv_b_proj.weight", "attn_kv_b.weight"},
                                       {"self_attn.k_b_proj.weight", "attn_k_b.weight"},
                                       {"self_attn.v_b_proj.weight", "attn_v_b.weight"},
                                       {"self_attn.o_proj.weight", "attn_output.weight"},
                                       {"post_attention_layernorm.weight", "ffn_norm.weight"},
                                       {"mlp.gate_proj.weight", "ffn_gate.weight"},
                                       {"mlp.up_proj.weight", "ffn_up.weight"},
                                       {"mlp.down_proj.weight", "ffn_down.weight"},
                                       {"mlp.gate.weight", "ffn_gate_inp.weight"},
                                       {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
                                       {"mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"},
                                       {"mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"},
                                       {"mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"},
                                       {"eh_proj.weight", "nextn.eh_proj.weight"},
                                       {"embed_tokens.weight", "nextn.embed_tokens.weight"},
                                       {"enorm.weight", "nextn.enorm.weight"},
                                       {"hnorm.weight", "nextn.hnorm.weight"},
                                       {"shared_head.head.weight", "nextn.shared_head_head.weight"},
                                       {"shared_head.norm.weight", "nextn.shared_head_norm.weight"}};
  static constexpr names of_expert[] = {{"gate_proj.weight", "ffn_gate_exps.weight"},
                                        {"up_proj.weight", "ffn_up_exps.weight"},
                                        {"down_proj.weight", "ffn_down_exps.weight"}};
  const auto find = [](const auto& table, std::string_view name) -> std::optional<std::string> {
    for (const auto& [from, to] : table) {
      if (from == name) return std::string(to);
    }
    return std::nullopt;
  };

  constexpr std::string_view layers = "model.layers.", experts = "mlp.experts.";
  if (!published.starts_with(layers)) {
    const auto name = find(whole_model, published);
    return name ? std::optional(gguf_place{*name, std::nullopt}) : std::nullopt;
  }
  const auto layer = detail::split_index(published.substr(layers.size()));
  if (!layer) return std::nullopt;
  const std::string block = "blk." + std::to_string(layer->first) + ".";
  if (!layer->second.starts_with(experts)) {
    const auto name = find(of_layer, layer->second);
    return name ? std::optional(gguf_place{block + *name, std::nullopt}) : std::nullopt;
  }
  const auto expert = detail::split_index(layer->second.substr(experts.size()));
  const auto name = expert ? find(of_expert, expert->second) : std::nullopt;
  return name ? std::optional(gguf_place{block + *name, expert->first}) : std::nullopt;
}

}  // namespace lm
