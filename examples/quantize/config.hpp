// The small files beside a quantized model's weights.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <mote/io/json.hpp>

#include "model.hpp"

namespace quantize {

// config.json in `directory`: that of the model with a `quantization_config` as DeepSeek's fp8 checkpoints, or the package
// compressed-tensors, spell it. Throws format_error when it cannot be written.
void write_config(const mote::json_file& config, const std::vector<output_tensor>& tensors,
                  const std::function<std::string_view(const output_tensor&)>& precision_of,
                  const std::string& directory);

// Copies the tokenizer's files and generation_config.json, those that are there. Throws format_error.
void copy_tokenizer(const std::string& model, const std::string& directory);

}  // namespace quantize
