#include "planner.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include <fmt/core.h>

#include <mote/compress/sensitivity.hpp>
#include <mote/core/error.hpp>
#include <mote/io/dtype.hpp>
#include <mote/io/gguf/types.hpp>

#include "encode.hpp"
#include "progress.hpp"

namespace quantize {
namespace {

std::size_t size_of(container kind, const stored_tensor& t) {
  const std::size_t columns = t.shape.empty() ? 1 : t.shape.back();
  std::size_t bytes = 0;
  if (kind == container::gguf) {
    const mote::ggml_type_info& type = mote::info(*mote::ggml_type_named(t.type));
    bytes = columns / type.block_size * type.bytes;
  } else {
    bytes = columns * mote::dtype_size(*mote::dtype_of(t.type));
  }
  for (std::size_t d = 0; d + 1 < t.shape.size(); ++d) bytes *= t.shape[d];
  return bytes;
}

const precision_info& info(container kind, std::string_view name) {
  static const std::vector<precision_info> known[] = {precisions(container::safetensors), precisions(container::gguf)};
  const auto& all = known[kind == container::gguf ? 1 : 0];
  return *std::find_if(all.begin(), all.end(), [&](const auto& p) { return p.name == name; });
}

// Makes of the values w of a module what `precision` keeps of them.
void round_module(backend& be, container kind, std::string_view precision,
                  const std::vector<const output_tensor*>& tensors, calibration& text, const std::string& module,
                  const mote::view<float, 2>& w) {
  for (const output_tensor* t : tensors) {
    const auto found = std::find(t->modules.begin(), t->modules.end(), module);
    if (found == t->modules.end()) continue;
    const auto part = static_cast<std::size_t>(found - t->modules.begin());
    const auto encoder = make_encoder(kind, precision, t->rows(), t->columns());
    look_first(*encoder, *t);
    encode_part(be, *encoder, *t, part, inputs_of(&text, *t, part),
                [&](const auto&, const mote::view<const float, 2>& decoded, std::size_t begin) {
                  if (t->put) return t->put(begin, decoded, w);
                  std::copy_n(decoded.data(), decoded.size(), w.row(begin));
                });
  }
}

}  // namespace

std::vector<std::string_view> precision_ladder(const options& o, std::size_t columns) {
  std::vector<std::string_view> wanted = {o.precision};
  const bool blocks = o.kind == container::gguf || !published_in_safetensors(o.precision);
  for (const std::string_view more :
       blocks ? std::vector<std::string_view>{"q3_k", "q4_k", "iq4_nl", "q5_0", "q5_1", "q6_k", "q8_0"}
              : std::vector<std::string_view>{"int4", "int8"}) {
    wanted.push_back(more);
  }
  wanted.push_back("bf16");
  std::vector<std::string_view> steps;
  for (const std::string_view step : wanted) {
    const precision_info& p = info(o.kind, step);
    // Other programs read fp8 beside bf16 only.
    if (o.precision == "fp8" && step != "fp8" && step != "bf16") continue;
    const bool more = step == o.precision || p.bits > info(o.kind, steps.empty() ? o.precision : steps.back()).bits;
    if (more && columns % p.columns_multiple == 0) steps.push_back(p.name);
  }
  return steps;
}

std::vector<stored_tensor> stored(container kind, const output_tensor& t, std::string_view precision) {
  if (t.is_matrix()) return stored_tensors(kind, precision, t.name, t.shape);
  return {{t.name, t.type, t.shape}};
}

std::size_t bytes_of(container kind, const output_tensor& t, std::string_view precision) {
  std::size_t total = 0;
  for (const stored_tensor& s : stored(kind, t, precision)) total += size_of(kind, s);
  return total;
}

planner::planner(const options& o, const std::vector<output_tensor>& tensors) : o_(o) {
  for (const output_tensor& t : tensors) {
    if (!t.is_matrix()) {
      fixed_ += bytes_of(o.kind, t, "");
      continue;
    }
    const auto [at, added] = layers_.try_emplace(t.layer);
    if (added) order_.push_back(t.layer);
    at->second.tensors.push_back(&t);
  }
  std::size_t plain = 0;
  for (const std::string& name : order_) plain += planned(name, 0).bytes;
  if (o.size_budget > 0 && o.size_budget < fixed_ + plain) {
    mote::raise<mote::format_error>(
        fmt::format("--size_budget: expected at least {} bytes, {} of {} and {} that are not quantized, got {}",
                    fixed_ + plain, plain, o.precision, fixed_, o.size_budget));
  }
}

model_plan planner::plan(backend& be, calibration* text, journal* progress) const {
  model_plan result;
  if (!o_.adaptive_layers) {
    for (const std::string& name : order_) result.layers[name] = planned(name, 0);
    return result;
  }
  const bool by_loss = o_.by == sensitivity::perplexity;
  std::optional<double> baseline;
  const auto loss_as_it_is = [&] {
    if (!baseline) baseline = text->loss();
    return *baseline;
  };
  layer_options layers;
  progress_bar bar(order_.size());
  for (const std::string& name : order_) {
    const layer& l = layers_.at(name);
    const std::vector<double>* known = progress != nullptr ? progress->measured(name) : nullptr;
    std::vector<double> errors;
    if (known != nullptr && known->size() == choices_of(l).size()) {
      errors = *known;
    } else {
      errors = by_loss ? added_losses(be, l, *text, loss_as_it_is()) : output_errors(be, l, text);
      if (progress != nullptr) progress->add_measured(name, errors);
    }
    auto& ways = layers.emplace_back();
    for (std::size_t c = 0; c < errors.size(); ++c) ways.push_back({planned(name, c).bytes, errors[c]});
    bar.advance(1, name);
  }
  mote::assignment chosen;
  if (progress != nullptr && !progress->chosen().is_null()) {
    chosen = chosen_before(*progress);
    if (progress->chosen().contains("rise")) result.rise = progress->chosen().value("rise", 0.0);
  } else if (o_.quality_budget > 0.0) {
    chosen = assign_within_quality(be, *text, loss_as_it_is(), layers, result.rise.emplace());
  } else {
    chosen = assign_within_size(layers);
  }
  for (std::size_t l = 0; l < order_.size(); ++l) {
    result.layers[order_[l]] = planned(order_[l], chosen.choice[l]);
    const double error = layers[l][chosen.choice[l]].error;
    result.sensitivity[order_[l]] = by_loss ? error : std::sqrt(error);
  }
  if (progress != nullptr && progress->chosen().is_null()) {
    nlohmann::ordered_json line = {{"size_budget", o_.size_budget}, {"quality_budget", o_.quality_budget}};
    if (result.rise) line["rise"] = *result.rise;
    for (const auto& [name, l] : result.layers) line["precision"][name] = l.precision;
    progress->choose(line);
  }
  return result;
}

mote::assignment planner::chosen_before(const journal& progress) const {
  const nlohmann::json& line = progress.chosen();
  const nlohmann::json precisions = line.value("precision", nlohmann::json::object());
  mote::assignment chosen;
  if (line.value("size_budget", std::size_t{0}) != o_.size_budget ||
      line.value("quality_budget", 0.0) != o_.quality_budget) {
    progress.refuse();
  }
  for (const std::string& name : order_) {
    const auto choices = choices_of(layers_.at(name));
    const std::string precision = precisions.value(name, std::string());
    const auto found = std::find(choices.begin(), choices.end(), precision);
    if (found == choices.end()) progress.refuse();
    chosen.choice.push_back(static_cast<std::size_t>(found - choices.begin()));
  }
  return chosen;
}

mote::assignment planner::assign_within_size(const layer_options& layers) const {
  std::size_t plain = 0;
  for (const auto& ways : layers) plain += ways[0].bytes;
  // Without a budget a tenth more than the wanted precision alone takes.
  const std::size_t budget = o_.size_budget > 0 ? o_.size_budget - fixed_ : plain + plain / 10;
  return mote::assign_within_bytes(layers, budget);
}

// Losses that were measured one layer at a time add up only roughly, and some are 0 by chance. So what is chosen is measured as
// a whole; where it loses more than the budget, the difference is laid on all layers as rounding is, in proportion to their
// weights and to 4^(-bits), and the choice made again.
mote::assignment planner::assign_within_quality(backend& be, calibration& text, double baseline,
                                                const layer_options& layers, double& rise) const {
  constexpr int most_times = 10;
  const double budget = std::log1p(o_.quality_budget / 100.0);
  double least = 0.0;
  layer_options expected = layers;
  std::vector<std::vector<double>> share(layers.size());  // of the difference, of each choice
  for (std::size_t l = 0; l < layers.size(); ++l) {
    least += std::min_element(layers[l].begin(), layers[l].end(), [](const auto& a, const auto& b) {
               return a.error < b.error;
             })->error;
    const layer& of = layers_.at(order_[l]);
    double weights = 0.0;
    for (const output_tensor* t : of.tensors) weights += static_cast<double>(t->rows() * t->columns());
    const bool counts = !of.tensors[0]->modules.empty() && text.predicts(of.tensors[0]->modules[0]);
    for (const std::string_view precision : choices_of(of)) {
      const bool rounds = counts && precision != "bf16";
      share[l].push_back(rounds ? weights * std::exp2(-2.0 * info(o_.kind, precision).bits) : 0.0);
    }
  }
  if (least > budget) {
    mote::raise<mote::format_error>(
        fmt::format("--quality_budget: expected at least {:.3f} percent, what the most precise choices lose, got {}",
                    100.0 * std::expm1(least), o_.quality_budget));
  }
  double scale = 0.0;
  for (int times = 0; times < most_times; ++times) {
    const mote::assignment chosen = mote::assign_within_error(expected, budget);
    const double added = added_loss(be, text, baseline, chosen);
    rise = 100.0 * std::expm1(added);
    if (added <= budget) return chosen;
    double shares = 0.0;
    for (std::size_t l = 0; l < layers.size(); ++l) shares += share[l][chosen.choice[l]];
    if (shares == 0.0) break;
    scale += std::max(scale, (added - chosen.error) / shares);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      for (std::size_t c = 0; c < layers[l].size(); ++c) {
        expected[l][c].error = layers[l][c].error + scale * share[l][c];
      }
    }
  }
  mote::raise<mote::format_error>(
      fmt::format("--quality_budget: no choice was found that keeps to {} percent; the last one loses {:.3f}",
                  o_.quality_budget, rise));
}

std::vector<std::string_view> planner::choices_of(const layer& l) const {
  const std::string_view least = l.tensors[0]->least;
  if (!least.empty() && info(o_.kind, least).bits > info(o_.kind, o_.precision).bits) return {least};
  std::size_t columns = 0;
  for (const output_tensor* t : l.tensors) columns = std::gcd(columns, t->columns());
  return precision_ladder(o_, columns);
}

layer_plan planner::planned(const std::string& name, std::size_t choice) const {
  const layer& l = layers_.at(name);
  layer_plan plan;
  plan.precision = choices_of(l)[choice];
  for (const output_tensor* t : l.tensors) plan.bytes += bytes_of(o_.kind, *t, plan.precision);
  return plan;
}

// Relative squared errors: every layer counts alike.
std::vector<double> planner::output_errors(backend& be, const layer& l, calibration* text) const {
  const auto choices = choices_of(l);
  std::vector<squared_error> totals(choices.size());
  for (const output_tensor* t : l.tensors) {
    std::vector<std::unique_ptr<matrix_encoder>> encoders;
    for (const std::string_view precision : choices) {
      encoders.push_back(make_encoder(o_.kind, precision, t->rows(), t->columns()));
      look_first(*encoders.back(), *t);
    }
    for (std::size_t part = 0; part < parts(*t); ++part) {
      const layer_inputs inputs = inputs_of(text, *t, part);
      for (std::size_t c = 0; c < choices.size(); ++c) {
        totals[c] += encode_part(be, *encoders[c], *t, part, inputs, [](auto&&...) {});
      }
    }
  }
  std::vector<double> errors;
  for (const squared_error& total : totals) errors.push_back(total.mean());
  return errors;
}

// In nats a token, when all layers are quantized as chosen.
double planner::added_loss(backend& be, calibration& text, double baseline, const mote::assignment& chosen) const {
  std::map<std::string, std::size_t> layer_of;  // by module
  for (std::size_t l = 0; l < order_.size(); ++l) {
    for (const output_tensor* t : layers_.at(order_[l]).tensors) {
      for (const std::string& module : t->modules) layer_of.emplace(module, l);
    }
  }
  return text.loss([&](const std::string& module, const mote::view<float, 2>& w) {
    const auto found = layer_of.find(module);
    if (found == layer_of.end()) return;
    const layer& l = layers_.at(order_[found->second]);
    const std::string_view precision = choices_of(l)[chosen.choice[found->second]];
    if (precision != "bf16") round_module(be, o_.kind, precision, l.tensors, text, module, w);
  }) - baseline;
}

// In nats a token, when this layer alone is quantized. Layers that do not predict the text add none.
std::vector<double> planner::added_losses(backend& be, const layer& l, calibration& text, double baseline) const {
  const auto choices = choices_of(l);
  const std::vector<std::string>& modules = l.tensors[0]->modules;
  if (modules.empty() || !text.predicts(modules[0])) return std::vector<double>(choices.size());
  const auto perplexity = [&](std::size_t, std::size_t c) {
    const double loss = text.loss(modules[0], [&](const std::string& module, const mote::view<float, 2>& w) {
      round_module(be, o_.kind, choices[c], l.tensors, text, module, w);
    });
    if (!std::isfinite(std::exp(loss))) {
      mote::raise<mote::format_error>(fmt::format("{}: with this layer in {} the calibration text has no perplexity",
                                                  l.tensors[0]->layer, choices[c]));
    }
    return std::exp(loss);
  };
  return mote::perplexity_sensitivity(1, choices.size(), std::exp(baseline), perplexity)[0];
}

}  // namespace quantize
