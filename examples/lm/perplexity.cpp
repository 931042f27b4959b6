// mote-lm perplexity: how well the model predicts given tokens.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "commands.hpp"
#include "options.hpp"

namespace lm {
namespace {

struct perplexity_options {
  engine_options engine;
  std::string tokens;
};

// A line is a sequence; a file with one id a line is one sequence.
std::vector<std::vector<std::int32_t>> read_sequences(const std::string& path) {
  const std::string text = read_file(path);
  std::vector<std::vector<std::int32_t>> lines;
  for (std::size_t begin = 0, line = 1; begin < text.size(); ++line) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    auto ids = parse_ids(text.substr(begin, end - begin), path + ": line " + std::to_string(line));
    if (!ids.empty()) lines.push_back(std::move(ids));
    begin = end + 1;
  }
  if (std::all_of(lines.begin(), lines.end(), [](const auto& ids) { return ids.size() == 1; })) {
    std::vector<std::int32_t> all;
    for (const auto& ids : lines) all.push_back(ids[0]);
    lines.assign(1, std::move(all));
  }
  return lines;
}

// -ln p(token) of a row of logits.
double negative_log_likelihood(std::span<const float> logits, std::int32_t token) {
  const double maximum = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double total = 0.0;
  for (const float l : logits) total += std::exp(static_cast<double>(l) - maximum);
  return maximum + std::log(total) - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

[[noreturn]] void not_finite(const perplexity_options& o, std::size_t sequence, std::size_t token) {
  mote::raise<mote::format_error>(o.engine.model + ": the loss of token " + std::to_string(token) + " of sequence " +
                                  std::to_string(sequence) + " of " + o.tokens + " is not a finite number");
}

void run(perplexity_options o) {
  o.engine.logits_rows = o.engine.chunk;
  const auto sequences = read_sequences(o.tokens);
  const auto engine = make_engine(o.engine);
  const std::size_t vocab = engine->config().vocab_size;
  double nll = 0.0;
  std::size_t scored = 0;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const auto& sequence = sequences[s];
    for (const std::int32_t id : sequence) {
      mote::check(id >= 0 && static_cast<std::size_t>(id) < vocab, o.tokens,
                  "token id " + std::to_string(id) + " is outside [0, " + std::to_string(vocab) + ")");
    }
    // Windows of the context's length; each but the first begins with the last token of the one before.
    for (std::size_t start = 0; start + 1 < sequence.size(); start += engine->context()) {
      engine->truncate(0);
      const std::size_t end = std::min(start + engine->context(), sequence.size() - 1);
      for (std::size_t done = start; done < end;) {
        const std::size_t count = std::min(engine->chunk(), end - done);
        const auto logits = engine->forward(std::span(sequence).subspan(done, count), count);
        for (std::size_t t = 0; t < count; ++t) {
          const double loss = negative_log_likelihood({logits.row(t), vocab}, sequence[done + t + 1]);
          if (!std::isfinite(loss)) not_finite(o, s + 1, done + t + 2);
          nll += loss;
        }
        done += count;
      }
      scored += end - start;
    }
  }
  mote::check(scored > 0, o.tokens, "expected a sequence of at least two token ids");
  const double mean = nll / static_cast<double>(scored);
  fmt::print("sequences  {}\ntokens     {}\nnats/token {:.6f}\nperplexity {:.6f}\n", sequences.size(), scored, mean,
             std::exp(mean));
  finish_experts(*engine, o.engine);
}

}  // namespace

void add_perplexity(CLI::App& program) {
  auto o = std::make_shared<perplexity_options>();
  CLI::App* command =
      program.add_subcommand("perplexity", "Perplexity of given tokens: every token but a sequence's first is scored");
  add_engine_options(*command, o->engine);
  command
      ->add_option("--tokens", o->tokens,
                   "File of token ids separated by spaces, a sequence a line (or one id a line for one sequence); "
                   "sequences beyond the context are cut into windows")
      ->required();
  command->callback([o] { run(*o); });
}

}  // namespace lm
