#include "channel_scaling.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <mote/compress/awq.hpp>
#include <mote/compress/channel_scale.hpp>
#include <mote/compress/output_error.hpp>
#include <mote/compress/smoothquant.hpp>
#include <mote/core/buffer.hpp>

#include "planner.hpp"
#include "progress.hpp"

namespace quantize {
namespace {

// Channels that are scaled together.
struct channel_group {
  std::string inputs;                // the layer whose inputs they are, as calibration names it
  std::string maker;                 // a norm, or the linear layer whose rows they are
  std::vector<std::string> readers;  // linear layers that are quantized
  std::string router;                // reads them, too; or ""
};

std::vector<channel_group> groups_of(const lm::model_config& c, std::size_t layer) {
  const std::string p = "model.layers." + std::to_string(layer) + ".", attention = p + "self_attn.", mlp = p + "mlp.";
  const std::string query = attention + (c.q_lora_rank > 0 ? "q_a_proj" : "q_proj");
  std::vector<channel_group> groups;
  groups.push_back({query, p + "input_layernorm", {query, attention + "kv_a_proj_with_mqa"}, ""});
  if (c.q_lora_rank > 0) {
    groups.push_back({attention + "q_b_proj", attention + "q_a_layernorm", {attention + "q_b_proj"}, ""});
  }
  groups.push_back({attention + "kv_b_proj", attention + "kv_a_layernorm", {attention + "kv_b_proj"}, ""});

  std::vector<std::string> networks;
  const bool moe = c.is_moe_layer(layer);
  if (!moe) networks.push_back(mlp);
  if (moe && c.n_shared_experts > 0) networks.push_back(mlp + "shared_experts.");
  for (std::size_t e = 0; moe && e < c.n_routed_experts; ++e) {
    networks.push_back(mlp + "experts." + std::to_string(e) + ".");
  }
  channel_group into{mlp + (moe ? "gate" : "gate_proj"), p + "post_attention_layernorm", {}, moe ? mlp + "gate" : ""};
  for (const std::string& n : networks) {
    into.readers.push_back(n + "gate_proj");
    into.readers.push_back(n + "up_proj");
  }
  groups.push_back(std::move(into));
  for (const std::string& n : networks) groups.push_back({n + "down_proj", n + "up_proj", {n + "down_proj"}, ""});
  return groups;
}

class scaler {
 public:
  scaler(backend& be, const options& o, const model_source& source) : be_(be), o_(o), source_(source) {}

  scaled_channels take() && { return std::move(result_); }

  void scale(const channel_group& group, const mote::activation_statistics& inputs) {
    ++result_.groups;
    std::vector<model_source::matrix> readers;
    for (const std::string& reader : group.readers) readers.push_back(matrix(reader, inputs.in_features()));
    std::vector<float> s = o_.scaling == channel_scaling::awq ? awq(readers, inputs) : smoothquant(readers, inputs);
    if (std::all_of(s.begin(), s.end(), [](float x) { return x == 1.0f; })) return;
    const std::string maker = group.maker + ".weight";
    if (group.maker.ends_with("norm")) fit_to_gains(s, source_.files().tensor(maker, std::vector{s.size()}));
    ++result_.scaled;
    const auto shared = std::make_shared<const std::vector<float>>(std::move(s));
    result_.scales.divided[maker] = shared;
    for (const std::string& reader : group.readers) result_.scales.multiplied[reader + ".weight"] = shared;
    if (!group.router.empty()) result_.scales.multiplied[group.router + ".weight"] = shared;
  }

 private:
  model_source::matrix matrix(const std::string& module, std::size_t in) const {
    const mote::checkpoint& files = source_.files();
    const mote::tensor_ref& t = files.tensor(mote::stored_matrix_name(files, module));
    if (t.shape.size() != 2 || t.size() == 0 || (t.name.ends_with(".weight") && t.shape[1] != in)) {
      t.fail("expected a matrix of " + std::to_string(in) + " columns");
    }
    return {source_, module, t.shape[0], in};
  }

  // Calls f(rows) for every step-th piece of the readers' rows, counted through all of them.
  template <class Function>
  void for_each_piece(const std::vector<model_source::matrix>& readers, std::size_t in, std::size_t step,
                      Function&& f) {
    mote::buffer<float> values(piece * in);
    std::size_t index = 0;
    for (const model_source::matrix& reader : readers) {
      for (std::size_t begin = 0; begin < reader.out_features(); begin += piece) {
        if (index++ % step != 0) continue;
        const mote::view<float, 2> rows(values.data(), std::min(piece, reader.out_features() - begin), in);
        reader.read(begin, rows);
        f(mote::view<const float, 2>(rows));
      }
    }
  }

  std::vector<float> smoothquant(const std::vector<model_source::matrix>& readers,
                                 const mote::activation_statistics& inputs) {
    std::vector<float> absmax(inputs.in_features());
    for_each_piece(readers, absmax.size(), 1,
                   [&](const auto& rows) { mote::update_column_absmax(rows, mote::view<float, 1>(absmax)); });
    return mote::smoothing_scale(inputs.absmax(), mote::view<const float, 1>(absmax));
  }

  // Errors are those of at most most_pieces pieces of the readers, spread evenly: experts are many.
  std::vector<float> awq(const std::vector<model_source::matrix>& readers, const mote::activation_statistics& inputs) {
    const std::size_t in = inputs.in_features();
    std::size_t pieces = 0;
    for (const model_source::matrix& reader : readers) pieces += (reader.out_features() + piece - 1) / piece;
    struct sample {
      mote::buffer<float> values;
      std::size_t rows;
    };
    std::vector<sample> samples;
    double signal = 0.0;
    for_each_piece(readers, in, (pieces + most_pieces - 1) / most_pieces, [&](const mote::view<const float, 2>& rows) {
      sample& kept = samples.emplace_back(sample{mote::buffer<float>(rows.size()), rows.extent(0)});
      std::copy_n(rows.data(), rows.size(), kept.values.data());
      signal += mote::output_energy(be_, rows, inputs);
    });
    const std::string_view precision = precision_ladder(o_, in).front();
    mote::buffer<float> scaled(piece * in), decoded(piece * in);
    const auto error = [&](const mote::view<const float, 1>& s) {
      double total = 0.0;
      for (const sample& part : samples) {
        const auto w = part.values.as(part.rows, in);
        const mote::view<float, 2> x(scaled.data(), part.rows, in), y(decoded.data(), part.rows, in);
        mote::scale_columns(w, s, x);
        const auto encoder = make_encoder(o_.kind, precision, part.rows, in);
        if (encoder->looks_first()) encoder->look(mote::view<const float, 2>(x));
        encoder->encode(be_, mote::view<const float, 2>(x), nullptr, y);
        mote::divide_columns(y, s);
        for (std::size_t i = 0; i < y.size(); ++i) y.data()[i] -= w.data()[i];
        total += mote::output_energy(be_, mote::view<const float, 2>(y), inputs);
      }
      return total;
    };
    mote::awq_scale best = mote::search_awq_scale(inputs.mean_abs(), error);
    if (signal > 0.0) {
      result_.error += best.error / signal;
      result_.plain_error += best.plain_error / signal;
    }
    return std::move(best.scale);
  }

  // Rounds s such that gain / s is a number of the norm's type: what is divided and what is multiplied agree.
  void fit_to_gains(std::vector<float>& s, const mote::tensor_ref& gain) const {
    const mote::buffer<float> g = source_.floats(gain);
    for (std::size_t c = 0; c < s.size(); ++c) {
      const float divided = rounded_to(o_.kind == container::gguf ? mote::dtype::f32 : gain.dtype, g[c] / s[c]);
      const float fitting = divided != 0.0f ? g[c] / divided : 1.0f;
      s[c] = std::isfinite(fitting) && fitting > 0.0f ? fitting : 1.0f;
    }
  }

  static constexpr std::size_t piece = matrix_encoder::rows_multiple, most_pieces = 8;

  backend& be_;
  const options& o_;
  const model_source& source_;
  scaled_channels result_;
};

}  // namespace

scaled_channels scale_channels(backend& be, const options& o, const model_source& source,
                               const lm::model_config& config, calibration& text) {
  scaler all(be, o, source);
  progress_bar bar(text.layers());
  for (std::size_t i = 0; i < text.layers(); ++i) {
    for (const channel_group& group : groups_of(config, i)) {
      const mote::activation_statistics* inputs = text.of(group.inputs).statistics;
      if (inputs != nullptr && inputs->tokens() > 0) all.scale(group, *inputs);
    }
    bar.advance(1, "scales of layer " + std::to_string(i));
  }
  return std::move(all).take();
}

}  // namespace quantize
