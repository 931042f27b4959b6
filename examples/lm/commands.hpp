// The commands of mote-lm. Each adds its sub-command and options to the program; the callback runs it.
#pragma once

#include <CLI/CLI.hpp>

namespace lm {

void add_generate(CLI::App& program);
void add_chat(CLI::App& program);
void add_logits(CLI::App& program);
void add_perplexity(CLI::App& program);
void add_tokenize(CLI::App& program);
void add_inspect(CLI::App& program);
void add_speed(CLI::App& program);

}  // namespace lm
