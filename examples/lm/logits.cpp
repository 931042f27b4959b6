// mote-lm logits: the model's numbers, as a .npy file.
#include <algorithm>
#include <memory>
#include <string>

#include <mote/io/npy.hpp>

#include "commands.hpp"
#include "option_values.hpp"
#include "options.hpp"

namespace lm {
namespace {

struct logits_options {
  engine_options engine;
  std::string tokens, out;
  bool decode = false;
};

void run(logits_options o) {
  const std::vector<std::int32_t> tokens = parse_ids(o.tokens, "--tokens");
  mote::check(!tokens.empty(), "--tokens", "expected at least one token id");
  o.engine.logits_rows = o.decode ? 1 : std::min(o.engine.chunk, tokens.size());
  const auto engine = make_engine(o.engine);
  mote::npy_writer out(o.out, tokens.size(), engine->config().vocab_size);
  const std::size_t step = o.decode ? 1 : engine->chunk();
  for (std::size_t done = 0; done < tokens.size(); done += step) {
    const std::size_t count = std::min(step, tokens.size() - done);
    out.append(engine->forward(std::span(tokens).subspan(done, count), count));
  }
  out.finish();
  finish_experts(*engine, o.engine);
}

}  // namespace

void add_logits(CLI::App& program) {
  auto o = std::make_shared<logits_options>();
  CLI::App* command = program.add_subcommand("logits", "Writes float32 logits [tokens, vocab] to a .npy file");
  add_engine_options(*command, o->engine);
  command->add_option("--tokens", o->tokens, "Token ids, separated by spaces")->required();
  command->add_option("--out", o->out, "The .npy file to write")->required()->check(file_to_write());
  command->add_flag("--decode", o->decode, "One token at a time through the cache instead of a prefill");
  command->callback([o] { run(*o); });
}

}  // namespace lm
