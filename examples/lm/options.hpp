// Command-line options that several commands share, and small readers for their values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "engine.hpp"

namespace lm {

// Adds --model, --weights, --cache, --attention, --backend, --threads, --context, --chunk, --packed_cache, --memory_limit
// and --expert_profile.
void add_engine_options(CLI::App& command, engine_options& options);

// Once the engine has done its work: with --memory_limit, prints what its experts cost to standard error and writes
// --expert_profile. Throws format_error when that cannot be written.
void finish_experts(const engine& e, const engine_options& options);

// Token ids separated by white space or commas; each must be a whole number. `where` names the source in errors.
std::vector<std::int32_t> parse_ids(const std::string& text, const std::string& where);

// A whole file. Throws format_error when it cannot be read.
std::string read_file(const std::string& path);

}  // namespace lm
