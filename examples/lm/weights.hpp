// Loads a DeepSeek V2 or V3 checkpoint into the weights that mote's blocks take.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <mote/blocks/decoder_layer.hpp>
#include <mote/blocks/mtp.hpp>
#include <mote/core/buffer.hpp>
#include <mote/io/mapped_experts.hpp>
#include <mote/io/resident.hpp>
#include <mote/io/weight_file.hpp>

#include "config.hpp"
#include "matrix_store.hpp"
#include "model_files.hpp"

namespace lm {

// Everything a model reads. The views point into `files` (memory-mapped) or into `matrices`, or all into `packed`.
struct model_weights {
  mote::weight embed_tokens;  // [vocab, hidden]
  std::vector<mote::decoder_layer_weights> layers;
  mote::view<const float, 1> norm;  // [hidden]
  mote::weight lm_head;             // [vocab, hidden]
  std::optional<mote::mtp_weights> mtp;

  model_files files;
  std::vector<std::vector<mote::ffn_weights>> experts;
  matrix_store matrices;

  std::optional<mote::weight_file> packed;
  std::vector<std::vector<mote::mapped_experts::region>> expert_regions;  // of `packed`, as `experts`

  explicit model_weights(model_files from) : files(std::move(from)) {}
};

// Matrices are kept in `format`; norms, biases and router matrices are float32 always, the embedding is never quantized.
template <class Backend>
class weight_loader {
 public:
  weight_loader(Backend& be, const model_config& config, weight_format format, model_files files)
      : be_(be), c_(config), format_(format), out_(std::move(files)) {}

  // Throws format_error naming file and tensor when one is missing or has another shape or type.
  model_weights load() && {
    load_all();
    return std::move(out_);
  }

  // The same from a file that write() has filled.
  model_weights load(mote::weight_file packed) && {
    out_.packed.emplace(std::move(packed));
    load_all();
    return std::move(out_);
  }

  // Writes each weight as soon as it is made and forgets it: memory holds one at a time.
  void write(mote::weight_file_writer& file) && {
    writer_ = &file;
    load_all();
  }

 private:
  void load_all() {
    out_.embed_tokens = embedding("model.embed_tokens.weight");
    for (std::size_t i = 0; i < c_.num_hidden_layers; ++i) out_.layers.push_back(layer(i));
    out_.norm = vector("model.norm.weight", c_.hidden_size);
    out_.lm_head = c_.tie_word_embeddings ? out_.embed_tokens : matrix("lm_head.weight", c_.vocab_size, c_.hidden_size);
    if (c_.num_nextn_predict_layers > 0 &&
        out_.files.contains_matrix(prefix(c_.num_hidden_layers) + "eh_proj.weight")) {
      out_.mtp = mtp();
    }
  }

  static std::string prefix(std::size_t i) { return "model.layers." + std::to_string(i) + "."; }

  mote::decoder_layer_weights layer(std::size_t i) {
    const std::string p = prefix(i);
    mote::decoder_layer_weights w;
    w.input_layernorm = vector(p + "input_layernorm.weight", c_.hidden_size);
    w.attention = attention(p + "self_attn.");
    w.post_attention_layernorm = vector(p + "post_attention_layernorm.weight", c_.hidden_size);
    if (c_.is_moe_layer(i)) {
      w.mlp = moe(p + "mlp.");
    } else {
      w.mlp = ffn(p + "mlp.", c_.intermediate_size);
    }
    return w;
  }

  mote::mla_weights attention(const std::string& p) {
    const mote::mla_config& a = c_.decoder.attention;
    const std::size_t heads = a.num_attention_heads, q_rows = heads * a.qk_head_dim();
    mote::mla_weights w;
    if (c_.q_lora_rank > 0) {
      w.q_lora = mote::mla_query_lora{matrix(p + "q_a_proj.weight", c_.q_lora_rank, c_.hidden_size),
                                      bias(p + "q_a_proj.bias", c_.q_lora_rank),
                                      vector(p + "q_a_layernorm.weight", c_.q_lora_rank)};
      w.q_proj = matrix(p + "q_b_proj.weight", q_rows, c_.q_lora_rank);
    } else {
      w.q_proj = matrix(p + "q_proj.weight", q_rows, c_.hidden_size);
    }
    w.kv_a_proj = matrix(p + "kv_a_proj_with_mqa.weight", a.cache_width(), c_.hidden_size);
    w.kv_a_bias = bias(p + "kv_a_proj_with_mqa.bias", a.cache_width());
    w.kv_a_layernorm = vector(p + "kv_a_layernorm.weight", a.kv_lora_rank);
    if (out_.files.contains_matrix(p + "k_b_proj.weight")) {
      join_kv_b(p, w);
    } else {
      split_kv_b(p + "kv_b_proj.weight", w);
    }
    w.o_proj = matrix(p + "o_proj.weight", c_.hidden_size, heads * a.v_head_dim);
    w.o_bias = bias(p + "o_proj.bias", c_.hidden_size);
    return w;
  }

  // kv_b_proj holds for each head the rows of W_uk [nope, rank], then those of W_uv [v, rank].
  void split_kv_b(const std::string& name, mote::mla_weights& w) {
    const mote::mla_config& a = c_.decoder.attention;
    const std::size_t heads = a.num_attention_heads, rank = a.kv_lora_rank;
    const std::size_t nope = a.qk_nope_head_dim, v_dim = a.v_head_dim;
    mote::buffer<float> kv_b;
    bool exact_bf16 = false;
    if (!out_.packed) {
      kv_b = read(out_.files.matrix(name, heads * (nope + v_dim), rank));
      exact_bf16 = fits_bf16(kv_b);
    }
    // fill(a head's rows in kv_b, its part of the matrix [heads * rows, columns])
    const auto part = [&](const char* what, std::size_t rows, std::size_t columns, auto&& fill) {
      return kept(name + what, heads * rows, columns, [&] {
        mote::buffer<float> values(heads * rows * columns);
        for (std::size_t h = 0; h < heads; ++h) {
          fill(kv_b.data() + h * (nope + v_dim) * rank, values.data() + h * rows * columns);
        }
        return out_.matrices.make(be_, std::move(values), heads * rows, columns, format_, exact_bf16, rows);
      });
    };
    w.k_up = part("/k_up", nope, rank, [&](const float* head, float* to) { std::copy(head, head + nope * rank, to); });
    w.k_up_transposed =
        part("/k_up_transposed", rank, nope, [&](const float* head, float* to) { transpose(head, nope, rank, to); });
    w.v_up = part("/v_up", v_dim, rank, [&](const float* head, float* to) {
      std::copy(head + nope * rank, head + (nope + v_dim) * rank, to);
    });
  }

  // The two halves of kv_b_proj by themselves, the first transposed.
  void join_kv_b(const std::string& p, mote::mla_weights& w) {
    const mote::mla_config& a = c_.decoder.attention;
    const std::size_t heads = a.num_attention_heads, rank = a.kv_lora_rank, nope = a.qk_nope_head_dim;
    w.k_up_transposed = matrix(p + "k_b_proj.weight", heads * rank, nope, format_, rank);
    w.v_up = matrix(p + "v_b_proj.weight", heads * a.v_head_dim, rank, format_, a.v_head_dim);
    w.k_up = kept(p + "k_b_proj.weight/k_up", heads * nope, rank, [&] {
      const mote::buffer<float> transposed = read(out_.files.matrix(p + "k_b_proj.weight", heads * rank, nope));
      mote::buffer<float> k_up(heads * nope * rank);
      for (std::size_t h = 0; h < heads; ++h) {
        transpose(transposed.data() + h * rank * nope, rank, nope, k_up.data() + h * nope * rank);
      }
      const bool exact_bf16 = fits_bf16(k_up);
      return out_.matrices.make(be_, std::move(k_up), heads * nope, rank, format_, exact_bf16, nope);
    });
  }

  // from [rows, columns] to [columns, rows]
  static void transpose(const float* from, std::size_t rows, std::size_t columns, float* to) {
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
    }
  }

  mote::ffn_weights ffn(const std::string& p, std::size_t intermediate) {
    return {matrix(p + "gate_proj.weight", intermediate, c_.hidden_size),
            matrix(p + "up_proj.weight", intermediate, c_.hidden_size),
            matrix(p + "down_proj.weight", c_.hidden_size, intermediate)};
  }

  mote::moe_weights moe(const std::string& p) {
    mote::moe_weights w;
    w.gate = float_matrix(p + "gate.weight", c_.n_routed_experts, c_.hidden_size);
    if (c_.decoder.router.method == mote::topk_method::noaux_tc) {
      w.bias = vector(p + "gate.e_score_correction_bias", c_.n_routed_experts);
    }
    std::vector<mote::ffn_weights> experts;
    std::vector<mote::mapped_experts::region> regions;
    for (std::size_t e = 0; e < c_.n_routed_experts; ++e) {
      const std::string name = p + "experts." + std::to_string(e) + ".";
      begin_region();
      experts.push_back(ffn(name, c_.moe_intermediate_size));
      if (out_.packed) regions.push_back(region(name));
    }
    begin_region();
    out_.expert_regions.push_back(std::move(regions));
    out_.experts.push_back(std::move(experts));
    w.experts = out_.experts.back();
    if (c_.n_shared_experts > 0) w.shared = ffn(p + "shared_experts.", c_.n_shared_experts * c_.moe_intermediate_size);
    return w;
  }

  mote::mtp_weights mtp() {
    const std::string p = prefix(c_.num_hidden_layers);
    mote::mtp_weights w;
    w.embed_tokens = out_.files.contains_matrix(p + "embed_tokens.weight") ? embedding(p + "embed_tokens.weight")
                                                                           : out_.embed_tokens;
    w.enorm = vector(p + "enorm.weight", c_.hidden_size);
    w.hnorm = vector(p + "hnorm.weight", c_.hidden_size);
    w.eh_proj = matrix(p + "eh_proj.weight", c_.hidden_size, 2 * c_.hidden_size);
    w.layer = layer(c_.num_hidden_layers);
    w.shared_head_norm = vector(p + "shared_head.norm.weight", c_.hidden_size);
    w.shared_head = out_.files.contains_matrix(p + "shared_head.head.weight")
                        ? matrix(p + "shared_head.head.weight", c_.vocab_size, c_.hidden_size)
                        : out_.lm_head;
    return w;
  }

  void begin_region() {
    if (writer_ != nullptr) writer_->begin_region();
  }

  mote::mapped_experts::region region(const std::string& expert) const {
    const auto entry = [&](const char* name) { return out_.packed->weights().find(expert + name)->second; };
    return out_.packed->region(entry("gate_proj.weight"), entry("down_proj.weight"));
  }

  // The weight `name` from the packed file, or made.
  template <class Make>
  mote::weight kept(const std::string& name, std::size_t rows, std::size_t columns, Make&& make) {
    if (out_.packed) return out_.packed->at(name, rows, columns).weight;
    const mote::weight made = make();
    if (writer_ == nullptr) return made;
    writer_->write(name, made);
    out_.matrices.clear();
    return {};
  }

  mote::view<const float, 2> floats(const std::string& name, const std::vector<std::size_t>& shape, std::size_t rows,
                                    std::size_t columns) {
    const mote::weight w = kept(name, rows, columns, [&]() -> mote::weight {
      return out_.matrices.keep(out_.files.read(name, shape)).reshaped(rows, columns);
    });
    if (const auto* values = std::get_if<mote::view<const float, 2>>(&w)) return *values;
    mote::raise<mote::format_error>(out_.packed->path() + ": weight " + name + ": expected form f32");
  }

  mote::view<const float, 2> float_matrix(const std::string& name, std::size_t rows, std::size_t columns) {
    return floats(name, {rows, columns}, rows, columns);
  }

  mote::view<const float, 1> vector(const std::string& name, std::size_t size) {
    return {floats(name, {size}, 1, size).data(), writer_ == nullptr ? size : 0};
  }

  mote::view<const float, 1> bias(const std::string& name, std::size_t size) {
    return c_.attention_bias ? vector(name, size) : mote::view<const float, 1>();
  }

  mote::weight embedding(const std::string& name) {
    const std::size_t slice = c_.tie_word_embeddings ? 0 : 1;  // rows are looked up one by one
    return matrix(name, c_.vocab_size, c_.hidden_size, is_quantized(format_) ? weight_format::stored : format_, slice);
  }

  mote::weight matrix(const std::string& name, std::size_t rows, std::size_t columns) {
    return matrix(name, rows, columns, format_, 0);
  }

  // Straight from the mapped file where that already has the format. `slice`: rows into which the matrix will be cut, 0 for
  // one that stays whole.
  mote::weight matrix(const std::string& name, std::size_t rows, std::size_t columns, weight_format format,
                      std::size_t slice) {
    std::span<const std::byte> in_place;
    const mote::weight made = kept(name, rows, columns, [&] {
      const stored_matrix stored = out_.files.matrix(name, rows, columns);
      if (const auto same_numbers = std::visit([&](const auto& m) { return same(m, format, slice); }, stored)) {
        in_place = bytes_of(stored);
        return *same_numbers;
      }
      mote::buffer<float> values = read(stored);
      const bool exact_bf16 = fits_bf16(values);
      return out_.matrices.make(be_, std::move(values), rows, columns, format, exact_bf16, slice);
    });
    mote::release_pages(in_place);  // packed or written by now
    return made;
  }

  // A copy, in memory alone.
  static mote::buffer<float> read(const stored_matrix& stored) {
    mote::buffer<float> values;
    if (const auto* matrix = std::get_if<gguf_matrix>(&stored)) {
      values = mote::read_float(matrix->tensor);
      for (float& v : values) v *= matrix->scale;
    } else {
      values = std::get<mote::matrix_ref>(stored).read();
    }
    mote::release_pages(bytes_of(stored));
    return values;
  }

  // The matrix in `format` without a change of its numbers, where the file has it so.
  std::optional<mote::weight> same(const mote::matrix_ref& stored, weight_format format, std::size_t) {
    bool keep = format == weight_format::stored;
    if (stored.layout() != mote::matrix_layout::plain) {
      with_block_format(format, [&]<class F>() { keep = stored.has_blocks<F>(); });
      return keep ? out_.matrices.same(be_, stored) : std::nullopt;
    }
    const mote::tensor_ref& tensor = stored.weight();
    const std::size_t rows = stored.out_features(), columns = stored.in_features();
    if (tensor.dtype == mote::dtype::bf16 && (keep || format == weight_format::bf16)) {
      if (const auto mapped = mote::mapped_view<mote::bf16>(tensor)) return mapped->reshaped(rows, columns);
    }
    if (tensor.dtype == mote::dtype::f16 && (keep || format == weight_format::f16)) {
      if (const auto mapped = mote::mapped_view<mote::f16>(tensor)) return mapped->reshaped(rows, columns);
    }
    if (tensor.dtype == mote::dtype::f32 && (keep || format == weight_format::f32)) {
      if (const auto mapped = mote::mapped_view<float>(tensor)) return mapped->reshaped(rows, columns);
    }
    return std::nullopt;
  }
  std::optional<mote::weight> same(const gguf_matrix& matrix, weight_format format, std::size_t slice) {
    const mote::gguf_tensor& stored = matrix.tensor;
    const bool keep = format == weight_format::stored;
    if (matrix.scale != 1.0f) {
      const bool blocks = stored.type == mote::ggml_type::nvfp4 && slice % matrix_store::panel_rows == 0;
      if (!blocks || !(keep || format == format_of<mote::nvfp4>())) return std::nullopt;
      return out_.matrices.packed(be_, mote::mapped_view<mote::nvfp4>(stored), matrix.scale);
    }
    if (stored.type == mote::ggml_type::bf16 && (keep || format == weight_format::bf16)) {
      return mote::mapped_view<mote::bf16>(stored);
    }
    if (stored.type == mote::ggml_type::f16 && (keep || format == weight_format::f16)) {
      return mote::mapped_view<mote::f16>(stored);
    }
    if (stored.type == mote::ggml_type::f32 && (keep || format == weight_format::f32)) {
      return mote::mapped_view<float>(stored);
    }
    std::optional<mote::weight> blocks;
    mote::visit_type(stored, [&]<class F>() {
      if constexpr (mote::block_format<F>) {
        if (!keep && format != format_of<F>()) return;
        const mote::view<const F, 2> mapped = mote::mapped_view<F>(stored);
        blocks = slice % matrix_store::panel_rows == 0 ? out_.matrices.arrange(be_, mapped) : mote::weight(mapped);
      }
    });
    return blocks;
  }

  static bool fits_bf16(const mote::buffer<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float v) { return static_cast<float>(mote::bf16(v)) == v; });
  }

  Backend& be_;
  const model_config& c_;
  weight_format format_;
  model_weights out_;
  mote::weight_file_writer* writer_ = nullptr;
};

template <class Backend>
model_weights load_weights(Backend& be, const model_config& config, weight_format format, model_files files) {
  return weight_loader<Backend>(be, config, format, std::move(files)).load();
}

}  // namespace lm
