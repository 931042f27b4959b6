// What the user sees: progress, then a table of layers.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "calibrate.hpp"
#include "encode.hpp"
#include "planner.hpp"

namespace quantize {

// Without errors that column is left out.
inline void print_table(const std::vector<std::string>& order, const std::map<std::string, layer_plan>& plan,
                        const std::map<std::string, squared_error>& errors, std::size_t fixed) {
  std::size_t width = 5, total = fixed;
  for (const std::string& name : order) width = std::max(width, name.size());
  fmt::print("{:{}}  {:9}  {:>14}  {}\n", "layer", width, "precision", "bytes", errors.empty() ? "" : "error");
  for (const std::string& name : order) {
    const layer_plan& l = plan.at(name);
    const auto error = errors.find(name);
    fmt::print("{:{}}  {:9}  {:>14}  {}\n", name, width, l.precision, l.bytes,
               error == errors.end() ? std::string() : fmt::format("{:.5f}", std::sqrt(error->second.mean())));
    total += l.bytes;
  }
  fmt::print("{:{}}  {:9}  {:>14}\n", "not quantized", width, "", fixed);
  fmt::print("{:{}}  {:9}  {:>14}\n", "total", width, "", total);
}

// Experts and other layers that no token of the calibration text entered.
inline void print_unreached(const calibration_run& run) {
  const std::vector<std::string> names = run.inputs.unreached();
  fmt::print("calibrated with {} tokens; {} layers were never reached, their errors are those of the weights alone\n",
             run.tokens, names.size());
  for (const std::string& name : names) fmt::print("never reached: {}\n", name);
}

class progress_bar {
 public:
  explicit progress_bar(std::size_t total) : total_(std::max(total, std::size_t{1})), shown_(isatty(2) != 0) {}
  ~progress_bar() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void advance(std::size_t bytes, const std::string& what) {
    done_ += bytes;
    if (!shown_) return;
    constexpr std::size_t width = 30;
    const std::size_t filled = std::min(width, width * done_ / total_);
    fmt::print(stderr, "\r\033[K[{:#<{}}{:.<{}}] {:3}%  {}", "", filled, "", width - filled,
               std::min(std::size_t{100}, 100 * done_ / total_), what.substr(0, 60));
    std::fflush(stderr);
  }

 private:
  std::size_t total_, done_ = 0;
  bool shown_;
};

}  // namespace quantize
