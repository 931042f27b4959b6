// mote-lm: runs DeepSeek V2 and V3 language models.
//
// Exit codes: 0 success, 2 wrong usage, bad input or output that cannot be written (one line on standard error says what and
// where).
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include <CLI/CLI.hpp>
#include <mote/core/config.hpp>
#include <mote/core/error.hpp>

#include "commands.hpp"

namespace {

// Messages quote names from files, which may hold line breaks and terminal escapes.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return text;
}

// CLI11 would say of another word than a command only that one is required.
void check_command(const CLI::App& program, const std::string& given) {
  std::string names;
  for (const CLI::App* command : program.get_subcommands({})) {
    if (given == command->get_name()) return;
    names += (names.empty() ? "" : ", ") + command->get_name();
  }
  mote::raise<mote::format_error>("unknown command " + given + ": expected one of " + names);
}

constexpr const char* unwritable = "standard output cannot be written";

// A command that prints what does not arrive has failed.
void run(CLI::App& program, int argc, char** argv) {
  if (argc > 1 && argv[1][0] != '-') check_command(program, argv[1]);
  try {
    program.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help and --version
    program.exit(e);
  }
  std::fflush(stdout);
  if (std::ferror(stdout) != 0) mote::raise<mote::format_error>(unwritable);
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
  try {
    run(program, argc, argv);
  } catch (const CLI::ParseError& e) {
    std::fprintf(stderr, "mote-lm: %s (see mote-lm --help)\n", e.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "mote-lm: not enough memory: try a smaller --context or --chunk\n");
    return 2;
  } catch (const std::exception& e) {
    const std::string what = std::ferror(stdout) != 0 ? unwritable : one_line(e.what());
    std::fprintf(stderr, "mote-lm: %s\n", what.c_str());
    return 2;
  }
  return 0;
}
