// mote-lm: runs DeepSeek V2 and V3 language models.
//
// Exit codes: 0 success, 2 wrong usage, bad input or output that cannot be written (one line on standard error says what and
// where).
#include <string>

#include <CLI/CLI.hpp>
#include <mote/core/config.hpp>
#include <mote/core/error.hpp>

#include "commands.hpp"
#include "program.hpp"

namespace {

// CLI11 would say of another word than a command, and of options before it, only that one is required.
void check_command(const CLI::App& program, const std::string& given) {
  std::string names;
  for (const CLI::App* command : program.get_subcommands({})) {
    if (given == command->get_name()) return;
    names += (names.empty() ? "" : ", ") + command->get_name();
  }
  if (given == "-h" || given == "--help" || given == "--version") return;
  mote::raise<mote::format_error>((given.starts_with('-') ? "before " + given + " expected" : given + ": expected") +
                                  " a command, one of " + names);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App program("Runs DeepSeek V2 and V3 language models: text, logits, perplexity and what they cost.", "mote-lm");
  program.require_subcommand(1);
  program.set_version_flag("--version", std::string(mote::abi_name));
  lm::add_generate(program);
  lm::add_chat(program);
  lm::add_logits(program);
  lm::add_perplexity(program);
  lm::add_tokenize(program);
  lm::add_inspect(program);
  lm::add_speed(program);
  return lm::run_program(program, ": try a smaller --context or --chunk", [&] {
    if (argc > 1) check_command(program, argv[1]);
    program.parse(argc, argv);
  });
}
