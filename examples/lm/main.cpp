// mote-lm: runs DeepSeek V2 and V3 language models.
//
// Exit codes: 0 success, 2 wrong usage or bad input (one line on standard error says what and where).
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include <CLI/CLI.hpp>
#include <mote/core/config.hpp>

#include "commands.hpp"

namespace {

// Messages quote names from files, which may hold line breaks and terminal escapes.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return text;
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
    program.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return program.exit(e);
    std::fprintf(stderr, "mote-lm: %s (see mote-lm --help)\n", e.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "mote-lm: not enough memory: try a smaller --context or --chunk\n");
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "mote-lm: %s\n", one_line(e.what()).c_str());
    return 2;
  }
  return 0;
}
