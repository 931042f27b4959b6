#include "calibrate.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include <mote/core/buffer.hpp>
#include <mote/core/simd.hpp>
#include <mote/io/mapped_file.hpp>
#include <mote/io/tokenizer.hpp>
#include <mote/ops/grouped_ffn/grouped_ffn.hpp>
#include <mote/ops/matmul/matmul.hpp>
#include <mote/ops/rms_norm/rms_norm.hpp>

#include "lm/config.hpp"
#include "lm/model.hpp"
#include "lm/weights.hpp"

namespace quantize {
namespace {

// A back end that computes as mote::simd does and notes what enters the matrices that it was told of.
class recorder : public mote::simd<> {
 public:
  using mote::simd<>::simd;

  void watch(const void* matrix, const std::string& layer, std::size_t in) {
    inputs.add_layer(layer, in, 1);
    layers_.emplace(matrix, layer);
  }
  void see(const void* matrix, const mote::view<const float, 2>& x) {
    const auto layer = layers_.find(matrix);
    if (layer != layers_.end()) inputs.observe(plain(), layer->second, x);
  }
  mote::simd<>& plain() { return *this; }

  mote::calibration inputs;

 private:
  std::map<const void*, std::string> layers_;
};

template <class T>
const void* address(const mote::view<T, 2>& matrix) {
  return matrix.data();
}
const void* address(const mote::scaled_matrix& matrix) {
  return std::visit([](const auto& codes) -> const void* { return codes.data(); }, matrix.codes);
}
const void* address(const auto&) { return nullptr; }  // what a checkpoint that is not quantized does not hold

template <class Matrix>
void matmul_impl(recorder& be, mote::view<const float, 2> x, const Matrix& w, mote::view<float, 2> y,
                 mote::output mode) {
  be.see(address(w), x);
  mote::matmul_impl(be.plain(), x, w, y, mode);
}

// What kv_b_proj multiplies is the normalized latent, whichever form attention takes.
void rms_norm_impl(recorder& be, mote::view<const float, 2> x, mote::view<const float, 1> gain, float eps,
                   mote::view<float, 2> y) {
  mote::rms_norm_impl(be.plain(), x, gain, eps, y);
  be.see(gain.data(), y);
}

// Expert by expert, so that each is seen to get its own tokens.
void grouped_ffn_impl(recorder& be, mote::view<const float, 2> x, mote::view<const float, 2> weights,
                      std::span<const mote::ffn_weights> experts, mote::view<const std::int32_t, 1> offsets,
                      mote::view<const std::int32_t, 1> slots, mote::view<float, 2> y, mote::output mode) {
  const std::size_t top_k = weights.extent(1), hidden = x.extent(1);
  const std::size_t intermediate = mote::out_features(experts[0].gate);
  if (mode == mote::output::overwrite) {
    for (std::size_t t = 0; t < y.extent(0); ++t) std::fill_n(y.row(t), hidden, 0.0f);
  }
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const auto first = static_cast<std::size_t>(offsets(e)), count = static_cast<std::size_t>(offsets(e + 1)) - first;
    if (count == 0) continue;
    auto scratch = be.scope();
    const auto in = scratch.tensor<float>(count, hidden), out = scratch.tensor<float>(count, hidden);
    const auto gate = scratch.tensor<float>(count, intermediate), up = scratch.tensor<float>(count, intermediate);
    const auto slot = [&](std::size_t i) { return static_cast<std::size_t>(slots(first + i)); };
    for (std::size_t i = 0; i < count; ++i) std::copy_n(x.row(slot(i) / top_k), hidden, in.row(i));
    mote::matmul(be, in, experts[e].gate, gate);
    mote::matmul(be, in, experts[e].up, up);
    mote::swiglu(be, gate, up, gate);
    mote::matmul(be, gate, experts[e].down, out);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t token = slot(i) / top_k;
      for (std::size_t h = 0; h < hidden; ++h) y(token, h) += weights(token, slot(i) % top_k) * out(i, h);
    }
  }
}

void watch(recorder& be, const mote::weight& w, const std::string& name) {
  std::visit([&](const auto& matrix) { be.watch(address(matrix), name, mote::in_features(matrix)); }, w);
}

void watch(recorder& be, const mote::ffn_weights& w, const std::string& name) {
  watch(be, w.gate, name + "gate_proj");
  watch(be, w.up, name + "up_proj");
  watch(be, w.down, name + "down_proj");
}

void watch(recorder& be, const lm::model_weights& weights) {
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    const mote::decoder_layer_weights& layer = weights.layers[i];
    const std::string name = "model.layers." + std::to_string(i) + ".", attention = name + "self_attn.";
    const mote::mla_weights& a = layer.attention;
    if (a.q_lora) watch(be, a.q_lora->q_a_proj, attention + "q_a_proj");
    watch(be, a.q_proj, attention + (a.q_lora ? "q_b_proj" : "q_proj"));
    watch(be, a.kv_a_proj, attention + "kv_a_proj_with_mqa");
    be.watch(a.kv_a_layernorm.data(), attention + "kv_b_proj", a.kv_a_layernorm.size());
    watch(be, a.o_proj, attention + "o_proj");
    if (const auto* dense = std::get_if<mote::ffn_weights>(&layer.mlp)) {
      watch(be, *dense, name + "mlp.");
      continue;
    }
    const auto& moe = std::get<mote::moe_weights>(layer.mlp);
    for (std::size_t e = 0; e < moe.experts.size(); ++e) {
      watch(be, moe.experts[e], name + "mlp.experts." + std::to_string(e) + ".");
    }
    if (moe.shared) watch(be, *moe.shared, name + "mlp.shared_experts.");
  }
}

}  // namespace

calibration_run calibrate(const std::string& model, const std::string& text_file, std::size_t threads) {
  constexpr std::size_t window = 512, most_windows = 64;
  std::vector<std::int32_t> ids;
  {
    const mote::mapped_file text(text_file);
    ids = mote::tokenizer(model).encode({reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()});
  }
  if (ids.empty()) mote::raise<mote::format_error>(text_file + ": holds no text");
  ids.resize(std::min(ids.size(), window * most_windows));

  lm::model_config config = lm::read_config(model);
  config.num_nextn_predict_layers = 0;
  recorder be{mote::threads{threads}};
  const lm::model_weights weights = lm::load_weights(be, config, lm::weight_format::stored, mote::checkpoint(model));
  watch(be, weights);
  const std::size_t context = std::min(window, config.max_position_embeddings);
  lm::language_model<recorder> run(be, config, weights, context, context);
  for (std::size_t begin = 0; begin < ids.size(); begin += context) {
    run.truncate(0);
    run.forward(std::span(ids).subspan(begin, std::min(context, ids.size() - begin)));
  }
  return {std::move(be.inputs), ids.size()};
}

}  // namespace quantize
