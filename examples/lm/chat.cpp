// mote-lm chat: a conversation on the terminal.
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "commands.hpp"
#include "generation.hpp"
#include "model_files.hpp"
#include "options.hpp"

namespace lm {
namespace {

struct chat_options {
  engine_options engine;
  generation_options generation;
};

void run(const chat_options& o) {
  const mote::tokenizer tokenizer = load_tokenizer(o.engine.model);
  const auto chat_template = load_chat_template(o.engine.model);
  const auto engine = make_engine(o.engine);
  if (!chat_template) {
    fmt::print(stderr, "This model has no chat template: it continues the text of the conversation as it stands.\n");
  }
  fmt::print(stderr, "An empty line or end of input ends the chat.\n");
  std::vector<mote::chat_message> messages;
  std::optional<std::int32_t> unread;  // a reply's last token
  for (std::string line; fmt::print("> "), std::fflush(stdout), std::getline(std::cin, line) && !line.empty();) {
    messages.push_back({"user", line});
    std::vector<std::int32_t> tokens;
    if (chat_template) {
      // The template writes its own special tokens; only what the sequence does not hold yet is fed.
      const auto whole = tokenizer.encode(chat_template->render(messages, true), false);
      engine->truncate(0);
      tokens = whole;
    } else {
      const bool first = engine->length() == 0;
      tokens = tokenizer.encode((first ? "" : "\n\n") + line, first);
      if (unread && unread != tokenizer.eos_id()) tokens.insert(tokens.begin(), *unread);
    }
    std::string reply;
    try {
      unread = generate(*engine, tokenizer, tokens, o.generation, [&](std::string_view text) {
                 reply += text;
                 std::fwrite(text.data(), 1, text.size(), stdout);
                 std::fflush(stdout);
               }).unread;
    } catch (const mote::shape_error&) {  // the conversation has outgrown the context
      finish_experts(*engine, o.engine);
      throw;
    }
    fmt::print("\n");
    messages.push_back({"assistant", reply});
  }
  fmt::print("\n");
  finish_experts(*engine, o.engine);
}

}  // namespace

void add_chat(CLI::App& program) {
  auto o = std::make_shared<chat_options>();
  CLI::App* command = program.add_subcommand("chat", "A conversation on the terminal");
  add_engine_options(*command, o->engine);
  add_generation_options(*command, o->generation);
  command->callback([o] { run(*o); });
}

}  // namespace lm
