// What a run is asked for.
#pragma once

#include <cstddef>
#include <string>

#include "encoder.hpp"

namespace quantize {

enum class rounding { nearest, gptq };

// What tells how much a layer suffers from a precision: its output's error, or what the text's perplexity becomes when it
// alone is quantized.
enum class sensitivity { error, perplexity };

enum class channel_scaling { none, awq, smoothquant };

struct options {
  std::string model, output_dir, precision;
  container kind = container::safetensors;
  std::string calibration;  // a text file, or ""
  channel_scaling scaling = channel_scaling::none;
  rounding how = rounding::nearest;
  bool adaptive_layers = false;
  sensitivity by = sensitivity::error;
  std::size_t size_budget = 0;  // bytes of all that is written; 0: none was given
  double quality_budget = 0.0;  // percent by which perplexity may rise; 0: none was given
  std::size_t max_shard_size = 0;
  std::size_t threads = 1;
  bool dry_run = false;
};

}  // namespace quantize
