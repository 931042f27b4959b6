// How sensitive a model is to each of its layers: the change of its perplexity when one layer alone is quantized. (The
// other measure, a layer's relative output error, needs no run of the model: output_error.hpp.)
//
//   error[l][o] = max(0, ln perplexity(layer l alone in format o) - ln perplexity(no layer quantized))
//
// Loss in nats a token: to first order what several layers lose adds up, as mixed_precision.hpp takes it to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

// error [layers][options]. `perplexity(layer, option)` runs the model with that layer alone in that format; `baseline` is
// the perplexity of the model as it is. Throws shape_error when a perplexity is not a positive number.
template <class Perplexity>
std::vector<std::vector<double>> perplexity_sensitivity(std::size_t layers, std::size_t options, double baseline,
                                                        Perplexity&& perplexity) {
  const auto log_of = [](double value, const std::string& what) {
    check(std::isfinite(value) && value > 0.0, "perplexity_sensitivity",
          what + ": expected a positive perplexity, got " + std::to_string(value));
    return std::log(value);
  };
  const double from = log_of(baseline, "baseline");
  std::vector<std::vector<double>> errors(layers, std::vector<double>(options));
  for (std::size_t l = 0; l < layers; ++l) {
    for (std::size_t o = 0; o < options; ++o) {
      const double to = log_of(perplexity(l, o), "layer " + std::to_string(l) + ", option " + std::to_string(o));
      errors[l][o] = std::max(0.0, to - from);
    }
  }
  return errors;
}

MOTE_END_NAMESPACE
