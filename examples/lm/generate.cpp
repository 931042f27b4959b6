// mote-lm generate: continues a text.
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "commands.hpp"
#include "generation.hpp"
#include "memory.hpp"
#include "model_files.hpp"
#include "options.hpp"

namespace lm {
namespace {

struct generate_options {
  engine_options engine;
  generation_options generation;
  std::string prompt;
};

void report(const generation_result& r, const engine& e, const engine_options& o) {
  // A token reads the cache of those before it: on average half of what was generated.
  const std::size_t read =
      active_weight_bytes(e.config(), e.weights()) + cache_bytes(e.config(), o.cache, r.prompt_tokens + r.tokens / 2);
  fmt::print(stderr, "prefill      {} tokens, {:.1f} tokens/s\n", r.prompt_tokens,
             static_cast<double>(r.prompt_tokens) / r.prefill_seconds);
  if (r.decode_steps > 0) {
    const double tokens = static_cast<double>(r.tokens - 1);
    fmt::print(stderr, "decode       {} tokens, {:.1f} tokens/s\n", r.tokens - 1, tokens / r.decode_seconds);
    if (r.drafted > 0) {
      fmt::print(stderr, "drafts       {} of {} accepted\n", r.accepted, r.drafted);
    } else if (o.memory_limit == 0) {  // measuring takes more memory than may be left
      fmt::print(stderr, "{}\n", describe_reads(read, tokens / r.decode_seconds, o.threads));
    }
  }
}

void run(generate_options o) {
  o.generation.speculative = o.engine.speculative;
  const mote::tokenizer tokenizer = load_tokenizer(o.engine.model);
  const auto engine = make_engine(o.engine);
  const auto prompt = tokenizer.encode(o.prompt, true);
  bool started = false;
  const auto result = generate(*engine, tokenizer, prompt, o.generation, [&](std::string_view text) {
    if (!std::exchange(started, true)) fmt::print("{}", o.prompt);
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  });
  fmt::print("\n");
  const std::size_t peak = peak_memory();
  fmt::print(stderr, "\n");
  report(result, *engine, o.engine);
  fmt::print(stderr, "peak memory  {:.1f} MB\n", static_cast<double>(peak) * 1e-6);
  finish_experts(*engine, o.engine);
}

}  // namespace

void add_generate(CLI::App& program) {
  auto o = std::make_shared<generate_options>();
  CLI::App* command = program.add_subcommand("generate", "Continues a text; figures go to standard error");
  add_engine_options(*command, o->engine);
  add_generation_options(*command, o->generation);
  command->add_option("--prompt", o->prompt, "The text to continue")->required();
  command->add_flag("--speculative", o->engine.speculative,
                    "Draft with the multi-token-prediction module and verify two tokens at once");
  command->callback([o] { run(*o); });
}

}  // namespace lm
