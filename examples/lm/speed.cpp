// mote-lm speed: tokens a second of prefill and decode on random tokens.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include <fmt/core.h>

#include "commands.hpp"
#include "memory.hpp"
#include "option_values.hpp"
#include "options.hpp"

namespace lm {
namespace {

struct speed_options {
  engine_options engine;
  std::size_t prefill = 512, decode = 64, repeat = 5;
};

// The median of `repeat` runs, in seconds.
template <class Function>
double median_seconds(std::size_t repeat, Function&& f) {
  std::vector<double> seconds;
  for (std::size_t i = 0; i < repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(repeat / 2), seconds.end());
  return seconds[repeat / 2];
}

void run(const speed_options& o) {
  const auto e = make_engine(o.engine);
  mote::check(o.prefill + o.decode <= e->context(), "--prefill",
              "expected at most the context, " + std::to_string(e->context()) + " tokens, with those of --decode");
  std::minstd_rand random(1);
  std::vector<std::int32_t> tokens(o.prefill + o.decode);
  for (std::int32_t& t : tokens) t = static_cast<std::int32_t>(random() % e->config().vocab_size);
  const auto prompt = std::span(tokens).first(o.prefill), rest = std::span(tokens).subspan(o.prefill);

  const double prefill = median_seconds(o.repeat, [&] {
    e->truncate(0);
    e->forward(prompt, 1);
  });
  const double decode = median_seconds(o.repeat, [&] {
    e->truncate(o.prefill);
    for (std::size_t t = 0; t < rest.size(); ++t) e->forward(rest.subspan(t, 1), 1);
  });
  const std::size_t peak = peak_memory();
  const std::size_t read = active_weight_bytes(e->config(), e->weights()) +
                           cache_bytes(e->config(), o.engine.cache, o.prefill + o.decode / 2);
  const double rate = static_cast<double>(o.decode) / decode;
  fmt::print("prefill      {} tokens, {:.1f} tokens/s\n", o.prefill, static_cast<double>(o.prefill) / prefill);
  fmt::print("decode       {} tokens after them, {:.1f} tokens/s\n", o.decode, rate);
  if (o.engine.memory_limit == 0) {  // measuring takes more memory than may be left
    fmt::print("{}\n", describe_reads(read, rate, o.engine.threads));
  }
  fmt::print("peak memory  {:.1f} MB\n", static_cast<double>(peak) * 1e-6);
  finish_experts(*e, o.engine);
}

}  // namespace

void add_speed(CLI::App& program) {
  auto o = std::make_shared<speed_options>();
  CLI::App* command = program.add_subcommand(
      "speed", "Tokens a second of prefill and decode on random tokens: medians of several runs");
  add_engine_options(*command, o->engine);
  const auto count = whole_number(1, std::uint64_t{1} << 24);
  command->add_option("--prefill", o->prefill, "Tokens of the prompt (default: 512)")->transform(count);
  command->add_option("--decode", o->decode, "Tokens decoded after it (default: 64)")->transform(count);
  command->add_option("--repeat", o->repeat, "Runs (default: 5)")->transform(count);
  command->callback([o] { run(*o); });
}

}  // namespace lm
