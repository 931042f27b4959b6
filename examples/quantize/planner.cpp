#include "planner.hpp"

#include <algorithm>

#include <fmt/core.h>

#include <mote/core/error.hpp>
#include <mote/io/dtype.hpp>
#include <mote/io/gguf/types.hpp>

#include "encode.hpp"

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

// What a layer may become: the wanted precision where it divides the columns, then what costs more: 8 bits and bf16.
std::vector<std::string_view> ladder(const options& o, std::size_t columns) {
  std::vector<std::string_view> steps;
  const std::string_view eight = o.kind == container::gguf ? "q8_0" : "int8";
  for (const std::string_view step : {std::string_view(o.precision), eight, std::string_view("bf16")}) {
    const precision_info& p = info(o.kind, step);
    // Other programs read fp8 beside bf16 only.
    if (o.precision == "fp8" && step == "int8") continue;
    if (columns % p.columns_multiple == 0 && (steps.empty() || p.bits > info(o.kind, steps.back()).bits)) {
      steps.push_back(p.name);
    }
  }
  return steps;
}

}  // namespace

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
}

std::map<std::string, layer_plan> planner::plan(backend& be, const mote::calibration* inputs) const {
  std::map<std::string, layer_plan> result;
  if (!o_.adaptive_layers) {
    for (const std::string& name : order_) result[name] = planned(name, 0);
    return result;
  }
  std::vector<std::vector<mote::layer_option>> options_of_layers;
  std::size_t plain = 0;
  for (const std::string& name : order_) {
    options_of_layers.push_back(measure(be, name, inputs));
    plain += options_of_layers.back()[0].bytes;
  }
  // Without a budget a tenth more than the wanted precision alone takes.
  std::size_t budget = plain + plain / 10;
  if (o_.size_budget > 0) {
    if (o_.size_budget < fixed_ + plain) {
      mote::raise<mote::format_error>(
          fmt::format("--size_budget: expected at least {} bytes, {} of {} and {} that are not quantized, got {}",
                      fixed_ + plain, plain, o_.precision, fixed_, o_.size_budget));
    }
    budget = o_.size_budget - fixed_;
  }
  const mote::assignment chosen = mote::assign_within_bytes(options_of_layers, budget);
  for (std::size_t l = 0; l < order_.size(); ++l) result[order_[l]] = planned(order_[l], chosen.choice[l]);
  return result;
}

std::vector<std::string_view> planner::choices_of(const layer& l) const {
  const std::string_view least = l.tensors[0]->least;
  if (!least.empty() && info(o_.kind, least).bits > info(o_.kind, o_.precision).bits) return {least};
  return ladder(o_, l.tensors[0]->columns());
}

layer_plan planner::planned(const std::string& name, std::size_t choice) const {
  const layer& l = layers_.at(name);
  layer_plan plan;
  plan.precision = choices_of(l)[choice];
  plan.tensors = l.tensors.size();
  for (const output_tensor* t : l.tensors) plan.bytes += bytes_of(o_.kind, *t, plan.precision);
  return plan;
}

// Relative squared errors: every layer counts alike.
std::vector<mote::layer_option> planner::measure(backend& be, const std::string& name,
                                                 const mote::calibration* inputs) const {
  const layer& l = layers_.at(name);
  std::vector<mote::layer_option> result;
  for (const std::string_view precision : choices_of(l)) {
    mote::layer_option option;
    squared_error total;
    for (const output_tensor* t : l.tensors) {
      const auto encoder = make_encoder(o_.kind, precision, t->rows(), t->columns());
      total += encode(be, *encoder, *t, inputs, [](auto&&) {});
      option.bytes += bytes_of(o_.kind, *t, precision);
    }
    option.error = total.mean();
    result.push_back(option);
  }
  return result;
}

}  // namespace quantize
