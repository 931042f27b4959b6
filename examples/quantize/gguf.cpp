#include "gguf.hpp"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>

#include <fmt/core.h>

#include <mote/core/buffer.hpp>
#include <mote/core/error.hpp>
#include <mote/io/gguf/writer.hpp>

namespace quantize {
namespace {

using matrix = std::shared_ptr<model_source::matrix>;

class gguf_plan {
 public:
  gguf_plan(const model_source& source, const lm::model_config& config) : source_(source), c_(config) {}

  std::vector<output_tensor> tensors() && {
    const auto& a = c_.decoder.attention;
    if (c_.attention_bias) fail("attention_bias: GGUF's deepseek2 has no biases of attention");
    if (a.pairing != mote::rope_pairing::interleaved)
      fail("rope_interleave: GGUF's deepseek2 has interleaved RoPE only");
    large("token_embd", "model.embed_tokens");
    for (std::size_t i = 0; i < c_.num_hidden_layers; ++i) layer(i);
    floats("output_norm.weight", "model.norm.weight", {c_.hidden_size});
    if (!c_.tie_word_embeddings) large("output", "lm_head");
    return std::move(all_);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    mote::raise<mote::format_error>(source_.files().directory() + ": " + message);
  }

  void layer(std::size_t i) {
    const auto& a = c_.decoder.attention;
    const std::size_t hidden = c_.hidden_size, heads = a.num_attention_heads;
    const std::string from = "model.layers." + std::to_string(i) + ".", to = "blk." + std::to_string(i) + ".";
    floats(to + "attn_norm.weight", from + "input_layernorm.weight", {hidden});
    const std::string attention = from + "self_attn.";
    if (c_.q_lora_rank > 0) {
      linear(to + "attn_q_a.weight", attention + "q_a_proj", c_.q_lora_rank, hidden);
      floats(to + "attn_q_a_norm.weight", attention + "q_a_layernorm.weight", {c_.q_lora_rank});
      linear(to + "attn_q_b.weight", attention + "q_b_proj", heads * a.qk_head_dim(), c_.q_lora_rank);
    } else {
      linear(to + "attn_q.weight", attention + "q_proj", heads * a.qk_head_dim(), hidden);
    }
    linear(to + "attn_kv_a_mqa.weight", attention + "kv_a_proj_with_mqa", a.cache_width(), hidden);
    floats(to + "attn_kv_a_norm.weight", attention + "kv_a_layernorm.weight", {a.kv_lora_rank});
    key_value(to, attention + "kv_b_proj");
    linear(to + "attn_output.weight", attention + "o_proj", hidden, heads * a.v_head_dim);
    floats(to + "ffn_norm.weight", from + "post_attention_layernorm.weight", {hidden});
    if (c_.is_moe_layer(i)) {
      moe(to, from + "mlp.");
    } else {
      ffn(to, "", from + "mlp.", c_.intermediate_size);
    }
  }

  void ffn(const std::string& to, const std::string& kind, const std::string& from, std::size_t intermediate) {
    linear(to + "ffn_gate" + kind + ".weight", from + "gate_proj", intermediate, c_.hidden_size);
    linear(to + "ffn_up" + kind + ".weight", from + "up_proj", intermediate, c_.hidden_size);
    linear(to + "ffn_down" + kind + ".weight", from + "down_proj", c_.hidden_size, intermediate);
  }

  void moe(const std::string& to, const std::string& from) {
    floats(to + "ffn_gate_inp.weight", from + "gate.weight", {c_.n_routed_experts, c_.hidden_size});
    if (c_.decoder.router.method == mote::topk_method::noaux_tc) {
      floats(to + "exp_probs_b.bias", from + "gate.e_score_correction_bias", {c_.n_routed_experts});
    }
    for (const std::string part : {"gate", "up", "down"}) {
      const bool down = part == "down";
      const std::size_t out = down ? c_.hidden_size : c_.moe_intermediate_size,
                        in = down ? c_.moe_intermediate_size : c_.hidden_size;
      std::vector<matrix> experts;
      for (std::size_t e = 0; e < c_.n_routed_experts; ++e) {
        experts.push_back(find(from + "experts." + std::to_string(e) + "." + part + "_proj", out, in));
      }
      add(to + "ffn_" + part + "_exps.weight", {c_.n_routed_experts, out, in},
          [experts, out, in](std::size_t begin, const mote::view<float, 2>& rows) {
            for (std::size_t r = 0; r < rows.extent(0);) {
              const std::size_t first = (begin + r) % out, count = std::min(out - first, rows.extent(0) - r);
              experts[(begin + r) / out]->read(first, mote::view<float, 2>(rows.row(r), count, in));
              r += count;
            }
          });
      for (std::size_t e = 0; e < c_.n_routed_experts; ++e) {
        all_.back().modules.push_back(from + "experts." + std::to_string(e) + "." + part + "_proj");
      }
    }
    if (c_.n_shared_experts > 0) {
      ffn(to, "_shexp", from + "shared_experts.", c_.n_shared_experts * c_.moe_intermediate_size);
    }
  }

  // For each head the rows of W_uk [nope, rank], then those of W_uv [v, rank]: as [heads, rank, nope] and [heads, v, rank].
  void key_value(const std::string& to, const std::string& from) {
    const auto& a = c_.decoder.attention;
    const std::size_t heads = a.num_attention_heads, rank = a.kv_lora_rank, nope = a.qk_nope_head_dim, v = a.v_head_dim;
    const matrix kv_b = find(from, heads * (nope + v), rank);
    struct head_rows {
      std::optional<std::size_t> head;
      mote::buffer<float> values;  // [nope, rank]
    };
    const auto last = std::make_shared<head_rows>();
    add(to + "attn_k_b.weight", {heads, rank, nope},
        [kv_b, last, rank, nope, v](std::size_t begin, const mote::view<float, 2>& rows) {
          for (std::size_t r = 0; r < rows.extent(0); ++r) {
            const std::size_t head = (begin + r) / rank, column = (begin + r) % rank;
            if (last->head != head) {
              last->values = mote::buffer<float>(nope * rank);
              kv_b->read(head * (nope + v), last->values.as(nope, rank));
              last->head = head;
            }
            for (std::size_t k = 0; k < nope; ++k) rows(r, k) = last->values[k * rank + column];
          }
        });
    all_.back().modules = {from};
    all_.back().reads_inputs = false;  // it is transposed
    all_.back().put = [rank, nope, v](std::size_t begin, const auto& rows, const mote::view<float, 2>& w) {
      for (std::size_t r = 0; r < rows.extent(0); ++r) {
        const std::size_t head = (begin + r) / rank, column = (begin + r) % rank;
        for (std::size_t k = 0; k < nope; ++k) w(head * (nope + v) + k, column) = rows(r, k);
      }
    };
    add(to + "attn_v_b.weight", {heads, v, rank},
        [kv_b, rank, nope, v](std::size_t begin, const mote::view<float, 2>& rows) {
          for (std::size_t r = 0; r < rows.extent(0); ++r) {
            const std::size_t head = (begin + r) / v, row = (begin + r) % v;
            kv_b->read(head * (nope + v) + nope + row, mote::view<float, 2>(rows.row(r), 1, rank));
          }
        });
    all_.back().modules = {from};
    all_.back().put = [nope, v](std::size_t begin, const auto& rows, const mote::view<float, 2>& w) {
      for (std::size_t r = 0; r < rows.extent(0); ++r) {
        const std::size_t head = (begin + r) / v, row = (begin + r) % v;
        std::copy_n(rows.row(r), rows.extent(1), w.row(head * (nope + v) + nope + row));
      }
    };
  }

  matrix find(const std::string& name, std::size_t out, std::size_t in) const {
    return std::make_shared<model_source::matrix>(source_, name, out, in);
  }

  void linear(const std::string& to, const std::string& from, std::size_t out, std::size_t in) {
    const matrix m = find(from, out, in);
    add(to, {out, in}, [m](std::size_t begin, const mote::view<float, 2>& rows) { m->read(begin, rows); });
    all_.back().modules = {from};
  }

  // The embedding or the head.
  void large(const std::string& to, const std::string& from) {
    linear(to + ".weight", from, c_.vocab_size, c_.hidden_size);
    all_.back().least = c_.hidden_size % 32 == 0 ? "q8_0" : "bf16";
  }

  template <class Read>
  void add(const std::string& name, const std::vector<std::size_t>& shape, Read&& read) {
    output_tensor& t = all_.emplace_back();
    t.name = name;
    t.layer = name.substr(0, name.size() - std::string(".weight").size());
    t.shape = shape;
    t.read = std::forward<Read>(read);
  }

  void floats(const std::string& to, const std::string& from, const std::vector<std::size_t>& shape) {
    const mote::tensor_ref& stored = source_.files().tensor(from, shape);
    output_tensor& t = all_.emplace_back();
    t.name = to;
    t.shape = shape;
    t.type = "f32";
    t.copy = [&source = source_, &stored](const auto& write) {
      const mote::buffer<float> values = source.floats(stored);
      write(std::as_bytes(std::span<const float>(values.data(), values.size())));
    };
  }

  const model_source& source_;
  const lm::model_config& c_;
  std::vector<output_tensor> all_;
};

class gguf_output : public model_output {
 public:
  gguf_output(const std::string& directory, const metadata_entries& entries)
      : path_(directory + "/model.gguf"),
        file_(path_, mote::gguf_default_alignment, mote::unfinished::kept),
        complete_(std::filesystem::exists(path_)) {
    for (const auto& [key, value] : entries) file_.add(key, value);
  }

  void declare(const stored_tensor& t) override {
    file_.add_tensor(t.name, *mote::ggml_type_named(t.type), t.shape);
    ++declared_;
  }
  void resume(std::size_t count) override {
    complete_ = complete_ && count == declared_;
    if (!complete_) file_.resume(count);
  }
  void write(const std::string& name, std::span<const std::byte> bytes) override { file_.write(name, bytes); }
  void flush() override { file_.flush(); }
  void finish() override {
    if (complete_) {
      std::filesystem::remove(path_ + ".part");
    } else {
      file_.finish();
    }
  }

 private:
  std::string path_;
  mote::gguf_writer file_;
  bool complete_;  // an interrupted run has given the file its name
  std::size_t declared_ = 0;
};

std::uint32_t u32(std::size_t n) { return static_cast<std::uint32_t>(n); }

// Whether some experts cannot be chosen for the group that they are in.
bool leaves_groups_out(const lm::model_config& c) {
  const auto& r = c.decoder.router;
  return r.method != mote::topk_method::greedy && r.topk_group < r.n_group && r.n_group < c.n_routed_experts;
}

void add_model(const mote::json_file& file, const lm::model_config& c, metadata_entries& to) {
  const mote::json_object json = file.root();
  const auto& a = c.decoder.attention;
  const auto& r = c.decoder.router;
  const auto add = [&](const std::string& key, mote::gguf_value value) {
    to.emplace_back("deepseek2." + key, std::move(value));
  };
  to.emplace_back("general.architecture", std::string("deepseek2"));
  to.emplace_back("general.quantization_version", std::uint32_t{2});
  add("vocab_size", u32(c.vocab_size));
  add("block_count", u32(c.num_hidden_layers));
  add("context_length", u32(c.max_position_embeddings));
  add("embedding_length", u32(c.hidden_size));
  add("feed_forward_length", u32(c.intermediate_size));
  add("attention.head_count", u32(a.num_attention_heads));
  add("attention.head_count_kv", std::uint32_t{1});  // the latent is shared by all heads
  add("attention.layer_norm_rms_epsilon", c.decoder.rms_norm_eps);
  add("attention.q_lora_rank", u32(c.q_lora_rank));
  add("attention.kv_lora_rank", u32(a.kv_lora_rank));
  add("attention.key_length", u32(a.cache_width()));
  add("attention.value_length", u32(a.kv_lora_rank));
  add("attention.key_length_mla", u32(a.qk_head_dim()));
  add("attention.value_length_mla", u32(a.v_head_dim));
  add("rope.dimension_count", u32(a.qk_rope_head_dim));

  add("rope.freq_base", static_cast<float>(c.rope_theta));
  if (c.yarn) {
    const mote::yarn_scaling& yarn = *c.yarn;
    // The file has one number for mscale and mscale_all_dim, and neither attention_factor nor truncate.
    const std::string field = json.has_value("rope_scaling") ? "rope_scaling" : "rope_parameters";
    if (c.rope.attention_factor != 1.0f || (yarn.factor > 1.0 && yarn.mscale_all_dim == 0.0)) {
      json.fail(field, "GGUF's deepseek2 holds models whose mscale is their mscale_all_dim, which is not 0, only");
    }
    if (!yarn.truncate) json.fail(field, "GGUF's deepseek2 holds models that truncate only");
    add("rope.scaling.type", std::string("yarn"));
    add("rope.scaling.factor", static_cast<float>(yarn.factor));
    add("rope.scaling.original_context_length", u32(static_cast<std::size_t>(yarn.original_max_position_embeddings)));
    add("rope.scaling.yarn_beta_fast", static_cast<float>(yarn.beta_fast));
    add("rope.scaling.yarn_beta_slow", static_cast<float>(yarn.beta_slow));
    // A tenth, for what llama.cpp takes it to be.
    add("rope.scaling.yarn_log_multiplier", static_cast<float>(0.1 * yarn.mscale_all_dim));
  }

  const bool moe = c.has_moe_layers();
  add("leading_dense_block_count", u32(moe ? c.first_k_dense_replace : c.num_hidden_layers));
  add("expert_count", u32(moe ? c.n_routed_experts : 0));
  add("expert_used_count", u32(moe ? r.num_experts_per_tok : 0));
  add("expert_shared_count", u32(c.n_shared_experts));
  add("expert_feed_forward_length", u32(c.moe_intermediate_size));
  if (!moe) return;
  if (c.moe_layer_freq != 1) json.fail("moe_layer_freq", "GGUF's deepseek2 holds models with 1 only");
  // Published models neither scale normalised weights without a bias, nor normalise a single one (ops/route).
  const bool biased = r.method == mote::topk_method::noaux_tc;
  const bool normalised = r.norm_topk_prob && (biased || r.num_experts_per_tok > 1);
  add("expert_weights_scale", normalised && !biased ? 1.0f : r.routed_scaling_factor);
  add("expert_weights_norm", normalised);
  add("expert_gating_func", std::uint32_t{r.scoring == mote::scoring_func::softmax ? 1u : 2u});
  if (leaves_groups_out(c)) {
    add("expert_group_count", u32(r.n_group));
    add("expert_group_used_count", u32(r.topk_group));
  }
}

}  // namespace

std::vector<output_tensor> plan_gguf(const model_source& source, const lm::model_config& config) {
  return gguf_plan(source, config).tensors();
}

metadata_entries gguf_entries(const mote::json_file& config_file, const lm::model_config& config,
                              const std::string& model) {
  metadata_entries entries;
  add_model(config_file, config, entries);
  add_gguf_tokenizer(model, config.vocab_size, entries);
  return entries;
}

std::vector<std::string> llama_cpp_differences(const lm::model_config& c) {
  std::vector<std::string> found;
  if (c.yarn && (c.yarn->beta_fast != 32.0 || c.yarn->beta_slow != 1.0)) {
    found.push_back(
        fmt::format("takes beta_fast = 32 and beta_slow = 1 unless told --yarn-beta-fast {} --yarn-beta-slow {}",
                    c.yarn->beta_fast, c.yarn->beta_slow));
  }
  if (c.decoder.rms_norm_eps > 1e-5f) {
    found.push_back("adds rms_norm_eps in q_a_layernorm and kv_a_layernorm, too, where the model adds 1e-6");
  }
  if (!c.has_moe_layers()) return found;
  if (c.n_shared_experts == 0) found.push_back("refuses models without shared experts");
  if (c.decoder.router.method == mote::topk_method::group_limited_greedy && leaves_groups_out(c)) {
    found.push_back("chooses groups by their best two experts, where the model takes the best one");
  }
  return found;
}

std::unique_ptr<model_output> make_gguf_output(const std::string& directory, metadata_entries entries) {
  return std::make_unique<gguf_output>(directory, entries);
}

}  // namespace quantize
