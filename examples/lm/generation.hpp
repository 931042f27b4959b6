// The loop from a prompt to text, shared by generate and chat.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include <CLI/CLI.hpp>
#include <mote/decode/sampler.hpp>
#include <mote/io/tokenizer.hpp>

#include "engine.hpp"

namespace lm {

struct generation_options {
  mote::sampling_config sampling{.temperature = 0.7f, .top_p = 0.95f};
  std::size_t max_tokens = 160;
  bool ignore_eos = false;
  bool speculative = false;  // draft with the multi-token-prediction module
};

struct generation_result {
  std::size_t prompt_tokens = 0, tokens = 0;  // tokens: generated, end-of-sentence included
  std::size_t decode_steps = 0;               // forward passes after the prefill
  std::size_t drafted = 0, accepted = 0;
  std::optional<std::int32_t> unread;  // the last token, where the engine's sequence does not hold it yet
  double prefill_seconds = 0.0, decode_seconds = 0.0;
};

// Adds --max-tokens, --temperature, --top-k, --top-p, --min-p, --repetition-penalty, --seed and --ignore-eos.
void add_generation_options(CLI::App& command, generation_options& options);

// Appends `prompt` to the engine's sequence and generates until the end-of-sentence token, max_tokens or the end of the
// context; `write` receives the text as soon as its UTF-8 is complete. Throws shape_error when the prompt does not fit.
generation_result generate(engine& e, const mote::tokenizer& tokenizer, std::span<const std::int32_t> prompt,
                           const generation_options& options, const std::function<void(std::string_view)>& write);

}  // namespace lm
