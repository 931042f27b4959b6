// GGUF files of the architecture "deepseek2", as llama.cpp names and lays out its tensors.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <mote/io/gguf/metadata.hpp>
#include <mote/io/json.hpp>

#include "lm/config.hpp"
#include "model.hpp"
#include "output.hpp"

namespace quantize {

using metadata_entries = std::vector<std::pair<std::string, mote::gguf_value>>;

// The tensors of the model without its multi-token-prediction module: a layer's experts are one tensor, kv_b_proj becomes
// attn_k_b (transposed) and attn_v_b. Embedding and head have 8 bits at least, norms and routers float32. `source` must
// outlive them. Throws format_error for what the architecture cannot hold: biases of attention, half-split RoPE.
std::vector<output_tensor> plan_gguf(const model_source& source, const lm::model_config& config);

// The model's sizes, router and RoPE, and its tokenizer where tokenizer.json is there. Throws format_error naming file and
// field.
metadata_entries gguf_entries(const mote::json_file& config_file, const lm::model_config& config,
                              const std::string& model);

// What llama.cpp does otherwise than the model with a file of it, a phrase each.
std::vector<std::string> llama_cpp_differences(const lm::model_config& config);

// Adds the tokenizer of tokenizer.json in `model` and its chat template, or, where there is none, that there is none.
void add_gguf_tokenizer(const std::string& model, std::size_t vocab_size, metadata_entries& entries);

// model.gguf in `directory`.
std::unique_ptr<model_output> make_gguf_output(const std::string& directory, metadata_entries entries);

}  // namespace quantize
