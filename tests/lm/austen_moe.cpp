// The shipped weights against transformers' results (examples/lm/austen-moe/expected.*).
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <lm/engine.hpp>

#include "lm/support.hpp"
#include "support/backends.hpp"

namespace {

const std::string austen_moe = MOTE_MODEL_DIR;

std::unique_ptr<lm::engine> make(lm::weight_format format, lm::backend_kind backend, std::size_t threads = 2,
                                 bool speculative = false) {
  return lm::make_engine({.model = austen_moe,
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
  const test::golden_file expected(austen_moe + "/expected.safetensors");
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
  const test::golden_file expected(austen_moe + "/expected.safetensors");
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
  const test::golden_file expected(austen_moe + "/expected.safetensors");
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
  const test::golden_file expected(austen_moe + "/expected.safetensors");
  const auto nll = expected.floats("passage.nll");
  const auto exact = make(lm::weight_format::bf16, lm::backend_kind::simd);
  const double bf16 = passage(*exact, nll.shape[0], nll.values.data());
  const auto quantized = make(lm::weight_format::int8, lm::backend_kind::simd);
  const double int8 = passage(*quantized, nll.shape[0]);
  CHECK(std::exp(bf16) == Approx(24.35061).epsilon(1e-4));
  CHECK(std::exp(int8) < 1.01 * std::exp(bf16));
}

TEST_CASE("austen-moe: every block format is near bf16 and the same on both back ends") {
  const test::golden_file expected(austen_moe + "/expected.safetensors");
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

namespace {

// The logits of all tokens, computed in steps of the given sizes; a step's tokens below `engine.chunk()` go together.
std::vector<float> logits_in(lm::engine& e, std::span<const std::int32_t> tokens,
                             const std::vector<std::size_t>& steps) {
  std::vector<float> all;
  for (const std::size_t step : steps) {
    const auto logits = e.forward(tokens.subspan(e.length(), step), step);
    all.insert(all.end(), logits.data(), logits.data() + logits.size());
  }
  return all;
}

// Whether the logits of 40 tokens have the same bits computed one by one, in batches, in chunks, at once, after a prefix
// that was kept, and with another number of threads.
void check_bits(const lm::engine_options& options) {
  const test::golden_file expected(austen_moe + "/expected.safetensors");
  const auto ids = expected.integers("passage.ids");
  const auto tokens = std::span<const std::int32_t>(ids.values).first(40);
  std::vector<float> want;
  for (const std::size_t threads : {1u, 3u}) {
    lm::engine_options o = options;
    o.threads = threads;
    const auto e = lm::make_engine(o);
    if (want.empty()) want = logits_in(*e, tokens, {40});
    const std::vector<std::vector<std::size_t>> cuts = {
        {40}, std::vector<std::size_t>(40, 1), {2, 16, 2, 3, 3, 14}, {16, 16, 8}, {7, 33}};
    for (const auto& steps : cuts) {
      CAPTURE(threads, steps);
      e->truncate(0);
      CHECK(test::same_bits(logits_in(*e, tokens, steps), want));
    }
    const std::size_t kept = 23, vocab = e->config().vocab_size;
    e->truncate(kept);
    CHECK(test::same_bits(logits_in(*e, tokens, {5, 12}), std::span(want).subspan(kept * vocab)));
  }
}

}  // namespace

TEST_CASE("austen-moe: logits have the same bits however a text is cut and for any number of threads, all weights") {
  for (const auto& [name, format] : lm::weight_format_names()) {
    INFO(name);
    check_bits({.model = austen_moe, .weights = format, .context = 64, .chunk = 40});
  }
}

TEST_CASE("austen-moe: logits have the same bits however a text is cut and for any number of threads, all caches") {
  mote::for_each_format(
      [&]<class T>() {
        constexpr auto format = mote::row_format::of<T>();
        INFO(format.name);
        lm::engine_options o{.model = austen_moe, .context = 64, .chunk = 40};
        o.cache = format;
        if (96 % format.block_size == 0) {
          check_bits(o);
        } else {
          CHECK_THROWS_WITH(lm::make_engine(o), contains("latent cache: expected whole blocks of"));
        }
      },
      mote::row_elements{});
}

TEST_CASE("austen-moe: perplexity with a rounded cache") {
  struct limit {
    mote::row_format cache;
    double most;  // by which the perplexity may rise
  };
  const limit limits[] = {{mote::row_format::of<mote::bf16>(), 1.001},
                          {mote::row_format::of<mote::q8_0>(), 1.001},
                          {mote::row_format::of<mote::mxfp8>(), 1.006}};
  const std::size_t rows = 2;
  const auto exact = make(lm::weight_format::stored, lm::backend_kind::simd);
  const double f32 = passage(*exact, rows);
  for (const limit& l : limits) {
    INFO(l.cache.name);
    const auto e = lm::make_engine({.model = austen_moe, .threads = 2, .context = 320, .chunk = 100, .cache = l.cache});
    const double rounded = passage(*e, rows);
    CHECK(rounded != f32);
    CHECK(std::exp(rounded) < l.most * std::exp(f32));
  }
}
