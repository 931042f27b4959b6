// mote-lm tokenize: text to token ids and back.
#include <cstdio>
#include <memory>
#include <string>

#include <fmt/core.h>

#include "commands.hpp"
#include "model_files.hpp"
#include "options.hpp"

namespace lm {
namespace {

struct tokenize_options {
  std::string model, text, file, ids;
  bool no_special_tokens = false;
};

void run(const tokenize_options& o, bool from_ids, bool from_file) {
  const mote::tokenizer tokenizer = load_tokenizer(o.model);
  if (from_ids) {
    const std::string text = tokenizer.decode(parse_ids(o.ids, "--ids"), o.no_special_tokens);
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fputc('\n', stdout);
    return;
  }
  const auto ids = tokenizer.encode(from_file ? read_file(o.file) : o.text, !o.no_special_tokens);
  for (std::size_t i = 0; i < ids.size(); ++i) fmt::print("{}{}", i == 0 ? "" : " ", ids[i]);
  fmt::print("\n");
}

}  // namespace

void add_tokenize(CLI::App& program) {
  auto o = std::make_shared<tokenize_options>();
  CLI::App* command = program.add_subcommand("tokenize", "Text to token ids, or ids back to text");
  command->add_option("--model", o->model, "Directory with tokenizer.json, or GGUF file")->required();
  CLI::Option_group* source = command->add_option_group("input");
  source->add_option("--text", o->text, "Text to encode");
  CLI::Option* file = source->add_option("--file", o->file, "File whose text to encode");
  CLI::Option* ids = source->add_option("--ids", o->ids, "Token ids to turn into text, separated by spaces");
  source->require_option(1);
  command->add_flag("--no-special-tokens", o->no_special_tokens,
                    "Encode without the tokens that the tokenizer adds (such as begin-of-sentence); "
                    "decode without special tokens");
  command->callback([o, ids, file] { run(*o, ids->count() > 0, file->count() > 0); });
}

}  // namespace lm
