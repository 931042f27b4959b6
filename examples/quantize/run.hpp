// Quantizes a model, tensor by tensor.
#pragma once

#include <cstddef>
#include <string>

#include "encoder.hpp"

namespace quantize {

struct options {
  std::string model, output_dir, precision;
  container kind = container::safetensors;
  std::string calibration;  // a text file, or ""
  bool adaptive_layers = false;
  std::size_t size_budget = 0;  // bytes of all that is written; 0: none was given
  std::size_t max_shard_size = 0;
  std::size_t threads = 1;
  bool dry_run = false;
};

// Throws mote::error.
void run(const options& o);

}  // namespace quantize
