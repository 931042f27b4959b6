// The shipped weights against transformers' results (examples/lm/austen-moe/expected.*).
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <lm/engine.hpp>

#include "lm/support.hpp"

namespace {

const std::string directory = MOTE_MODEL_DIR;

std::unique_ptr<lm::engine> make(lm::weight_format format, lm::backend_kind backend, std::size_t threads = 2,
                                 bool speculative = false) {
  return lm::make_engine({.model = directory,
                          .weights = format,
                          .backend = backend,
                          .threads = threads,
                          .context = 320,
                          .chunk = 100,
                          .speculative = speculative});
}

std::int32_t argmax(std::span<const float> row) {
  return static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

double negative_log_likelihood(std::span<const float> logits, std::int32_t token) {
  const double maximum = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double total = 0.0;
  for (const float l : logits) total += std::exp(static_cast<double>(l) - maximum);
  return maximum + std::log(total) - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

// Mean negative log-likelihood of the first `rows` rows of the held-out passage; `want` receives the expected values.
double passage(lm::engine& e, std::size_t rows, const float* want = nullptr) {
  const test::golden_file expected(directory + "/expected.safetensors");
  const auto ids = expected.integers("passage.ids");
  const std::size_t length = ids.shape[1], vocab = e.config().vocab_size;
  double total = 0.0;
  for (std::size_t r = 0; r < rows; ++r) {
    const auto tokens = ids.row(r, length);
    e.truncate(0);
    for (std::size_t done = 0; done + 1 < length;) {
      const std::size_t count = std::min(e.chunk(), length - 1 - done);
      const auto logits = e.forward(tokens.subspan(done, count), count);
      for (std::size_t t = 0; t < count; ++t) {
        const double nll = negative_log_likelihood({logits.row(t), vocab}, tokens[done + t + 1]);
        if (want != nullptr) CHECK(std::abs(nll - static_cast<double>(want[r * (length - 1) + done + t])) < 1e-3);
        total += nll;
      }
      done += count;
    }
  }
  return total / static_cast<double>(rows * (length - 1));
}

}  // namespace

TEST_CASE("austen-moe: logits and greedy text equal those of transformers, both back ends") {
  const test::golden_file expected(directory + "/expected.safetensors");
  for (const auto backend : {lm::backend_kind::reference, lm::backend_kind::simd}) {
    const auto e = make(lm::weight_format::stored, backend);
    const std::size_t vocab = e->config().vocab_size;
    for (int p = 0; p < 3; ++p) {
      const std::string prompt = "prompt" + std::to_string(p);
      const auto ids = expected.integers(prompt + ".input_ids"), greedy = expected.integers(prompt + ".greedy");
      const auto want = expected.floats(prompt + ".logits");
      const std::size_t tokens = ids.values.size();
      e->truncate(0);
      const auto logits = e->forward(ids.values, tokens);
      const auto [low, high] = std::minmax_element(want.values.begin(), want.values.end());
      test::check_within({logits.data(), logits.data() + logits.size()}, want.values, 1e-4f * (*high - *low), 0.0f);

      std::int32_t token = argmax({logits.row(tokens - 1), vocab});
      std::vector<std::int32_t> text;
      for (std::size_t i = 0; i < greedy.values.size(); ++i) {
        text.push_back(token);
        token = argmax({e->forward({&token, 1}, 1).row(0), vocab});
      }
      CHECK(text == greedy.values);
    }
  }
}

TEST_CASE("austen-moe: the multi-token-prediction module drafts as transformers does") {
  const test::golden_file expected(directory + "/expected.safetensors");
  const auto ids = expected.integers("mtp.input_ids");
  const auto want = expected.floats("mtp.logits");
  const auto e = make(lm::weight_format::stored, lm::backend_kind::simd, 2, true);
  const std::size_t rows = want.shape[0], vocab = want.shape[1];
  // A prefill that leaves the module behind, then one draft a token.
  const std::size_t prompt = rows / 2;
  e->forward(std::span(ids.values).first(prompt), 1);
  std::vector<float> got;
  for (std::size_t t = prompt - 1; t < rows; ++t) {
    const auto logits = e->draft(ids.values[t + 1]);
    got.insert(got.end(), logits.data(), logits.data() + vocab);
    e->forward({&ids.values[t + 1], 1}, 1);
  }
  const auto tail = std::span(want.values).subspan((prompt - 1) * vocab);
  const auto [low, high] = std::minmax_element(tail.begin(), tail.end());
  test::check_within(got, tail, 1e-4f * (*high - *low), 0.0f);
}

TEST_CASE("austen-moe: perplexity of the held-out passage, and int8 within 1 % of it") {
  const test::golden_file expected(directory + "/expected.safetensors");
  const auto nll = expected.floats("passage.nll");
  const auto exact = make(lm::weight_format::bf16, lm::backend_kind::simd);
  const double bf16 = passage(*exact, nll.shape[0], nll.values.data());
  const auto quantized = make(lm::weight_format::int8, lm::backend_kind::simd);
  const double int8 = passage(*quantized, nll.shape[0]);
  CHECK(std::exp(bf16) == Approx(24.35061).epsilon(1e-4));
  CHECK(std::exp(int8) < 1.01 * std::exp(bf16));
}

TEST_CASE("austen-moe: every block format is near bf16 and the same on both back ends") {
  const test::golden_file expected(directory + "/expected.safetensors");
  const auto ids = expected.integers("passage.ids");
  const std::vector<std::int32_t> tokens(ids.values.begin(), ids.values.begin() + 12);
  const auto logits_of = [&](lm::weight_format format, lm::backend_kind backend) {
    const auto e = make(format, backend);
    const auto logits = e->forward(tokens, tokens.size());
    return std::vector<float>(logits.data(), logits.data() + logits.size());
  };
  const std::vector<float> exact = logits_of(lm::weight_format::bf16, lm::backend_kind::simd);
  const auto [low, high] = std::minmax_element(exact.begin(), exact.end());
  const auto difference = [range = static_cast<double>(*high - *low)](const auto& a, const auto& b) {
    double squares = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) squares += std::pow(static_cast<double>(a[i] - b[i]), 2);
    return std::sqrt(squares / static_cast<double>(a.size())) / range;
  };
  for (const auto& [name, format] : lm::weight_format_names()) {
    if (!lm::is_block_format(format)) continue;
    INFO(name);
    const std::vector<float> got = logits_of(format, lm::backend_kind::simd);
    CHECK(difference(got, exact) > 0.0);
    CHECK(difference(got, exact) < (name == "q8_0" ? 0.005 : 0.05));
    // Sums that differ in their last bit may round an activation to another code.
    CHECK(difference(got, logits_of(format, lm::backend_kind::reference)) < 0.004);
  }
}

TEST_CASE("austen-moe: logits have the same bits for any number of threads") {
  for (const auto& [name, format] : lm::weight_format_names()) {
    INFO(name);
    const test::golden_file expected(directory + "/expected.safetensors");
    const auto ids = expected.integers("passage.ids");
    const std::vector<std::int32_t> tokens(ids.values.begin(), ids.values.begin() + 40);
    std::vector<float> first;
    for (const std::size_t threads : {1u, 2u, 3u}) {
      const auto e = make(format, lm::backend_kind::simd, threads);
      const auto logits = e->forward(tokens, tokens.size());
      const std::vector<float> got(logits.data(), logits.data() + logits.size());
      if (first.empty()) first = got;
      CHECK(got == first);
    }
  }
}
