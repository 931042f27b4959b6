#include "generation.hpp"

#include <algorithm>
#include <chrono>
#include <string>

#include "option_values.hpp"

namespace lm {
namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) { return std::chrono::duration<double>(clock::now() - start).count(); }

}  // namespace

void add_generation_options(CLI::App& command, generation_options& o) {
  command.add_option("--max-tokens", o.max_tokens, "Most tokens to generate (default: 160)")
      ->transform(whole_number(1, std::uint64_t{1} << 24));
  command.add_option("--temperature", o.sampling.temperature, "0 is greedy (default: 0.7)")->check(number_from_zero());
  command.add_option("--top-k", o.sampling.top_k, "Sample from the k most probable tokens; 0: all (default)")
      ->transform(whole_number());
  command
      .add_option("--top-p", o.sampling.top_p, "Sample from the most probable tokens whose sum is p (default: 0.95)")
      ->check(share_above_zero());
  command.add_option("--min-p", o.sampling.min_p, "Leave out tokens below this share of the largest probability")
      ->check(share_from_zero());
  command.add_option("--repetition-penalty", o.sampling.repetition_penalty, "Above 1 makes repeats less likely")
      ->check(positive_number());
  command.add_option("--seed", o.sampling.seed, "Seed of the draws (default: 0)")->transform(whole_number());
  command.add_flag("--ignore-eos", o.ignore_eos, "Do not stop at the end-of-sentence token");
}

generation_result generate(engine& e, const mote::tokenizer& tokenizer, std::span<const std::int32_t> prompt,
                           const generation_options& o, const std::function<void(std::string_view)>& write) {
  mote::check(!prompt.empty(), "prompt", "expected at least one token");
  if (prompt.size() >= e.context() - e.length()) {
    mote::raise<mote::shape_error>("prompt: " + std::to_string(e.length() + prompt.size()) +
                                   " tokens leave no room in the context of " + std::to_string(e.context()));
  }
  const std::size_t vocab = e.config().vocab_size;
  mote::sampler sampler(o.sampling, vocab);
  mote::token_stream stream(tokenizer);
  generation_result result;
  result.prompt_tokens = prompt.size();
  for (const std::int32_t token : prompt) sampler.observe(token);

  const auto start = clock::now();
  std::int32_t token = sampler.sample({e.forward(prompt, 1).row(0), vocab});
  result.prefill_seconds = seconds_since(start);

  // Gives a token out; whether to go on.
  const auto emit = [&](std::int32_t next) {
    ++result.tokens;
    result.unread = next;
    sampler.observe(next);
    if (!o.ignore_eos && tokenizer.eos_id() && next == *tokenizer.eos_id()) return false;
    write(stream.push(next));
    return result.tokens < o.max_tokens;
  };

  const auto decode_start = clock::now();
  bool running = emit(token);
  while (running && e.length() < e.context()) {
    // A draft is accepted when the main model, sampling as ever, chooses the same token: the text is what it would be
    // without drafts.
    std::int32_t step[2] = {token, 0};
    std::size_t count = 1;
    if (o.speculative && e.length() + 1 < e.context()) {
      const auto draft = e.draft(token);
      step[1] = static_cast<std::int32_t>(std::max_element(draft.data(), draft.data() + vocab) - draft.data());
      count = 2;
    }
    const auto logits = e.forward({step, count}, count);
    ++result.decode_steps;
    token = sampler.sample({logits.row(0), vocab});
    running = emit(token);
    if (count == 1) continue;
    ++result.drafted;
    if (token != step[1]) {
      e.truncate(e.length() - 1);
      continue;
    }
    ++result.accepted;
    result.unread.reset();
    if (!running) continue;
    token = sampler.sample({logits.row(1), vocab});
    running = emit(token);
  }
  result.decode_seconds = seconds_since(decode_start);
  write(stream.finish());
  return result;
}

}  // namespace lm
