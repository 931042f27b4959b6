// What the user sees in the end: a table of layers, and what calibration could not see.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "calibrate.hpp"
#include "channel_scaling.hpp"
#include "planner.hpp"

namespace quantize {

// `measure` names the last column, `values` fills it; without values it is left out.
inline void print_table(const std::vector<std::string>& order, const std::map<std::string, layer_plan>& plan,
                        const std::string& measure, const std::map<std::string, double>& values, std::size_t fixed) {
  std::size_t width = 13, total = fixed;
  for (const std::string& name : order) width = std::max(width, name.size());
  fmt::print("{:{}}  {:9}  {:>14}  {}\n", "layer", width, "precision", "bytes", values.empty() ? "" : measure);
  for (const std::string& name : order) {
    const layer_plan& l = plan.at(name);
    const auto value = values.find(name);
    fmt::print("{:{}}  {:9}  {:>14}  {}\n", name, width, l.precision, l.bytes,
               value == values.end() ? std::string() : fmt::format("{:.5f}", value->second));
    total += l.bytes;
  }
  fmt::print("{:{}}  {:9}  {:>14}\n", "not quantized", width, "", fixed);
  fmt::print("{:{}}  {:9}  {:>14}\n", "total", width, "", total);
}

// What the calibration text was good for, and the experts that none of its tokens entered.
inline void print_calibration(const options& o, calibration& text, const scaled_channels& channels) {
  if (o.scaling != channel_scaling::none) {
    fmt::print("{} of {} groups of channels scaled", channels.scaled, channels.groups);
    if (channels.plain_error > 0.0) {
      fmt::print("; squared errors of their layers to nearest {:.3f} of those unscaled",
                 channels.error / channels.plain_error);
    }
    fmt::print("\n");
  }
  const std::vector<std::string> names = text.unreached();
  fmt::print("calibrated with {} tokens; {} experts were never reached{}\n", text.tokens(), names.size(),
             names.empty() ? "" : ": rounded to nearest, their errors are those of the weights alone");
  for (const std::string& name : names) fmt::print("never reached: {}\n", name);
}

}  // namespace quantize
