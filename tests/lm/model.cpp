// The language model against published model code: tests/golden/models and the shipped weights.
#include <lm/model.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "lm/support.hpp"
#include "support/catch.hpp"

namespace {

using test::golden_tensor;

const char* const models[] = {"deepseek_v2_lite", "deepseek_v2_group", "deepseek_v3", "deepseek_v3_fp8",
                              "deepseek_v3_mtp"};

// What one run of a model over a sequence gave.
struct trace {
  std::vector<float> logits;                   // [tokens, vocab]
  std::vector<std::vector<float>> hidden;      // for each layer [tokens, hidden]
  std::vector<std::vector<float>> final_norm;  // one entry
  std::vector<std::vector<float>> router_logits, router_weights;
  std::vector<std::vector<std::int32_t>> router_indices;
};

template <class T>
void append(std::vector<T>& to, mote::view<const T, 2> rows) {
  for (std::size_t t = 0; t < rows.extent(0); ++t) to.insert(to.end(), rows.row(t), rows.row(t) + rows.extent(1));
}

template <class Model>
trace run(Model& model, const lm::model_config& c, std::span<const std::int32_t> tokens, std::size_t step) {
  trace r;
  r.hidden.resize(c.num_hidden_layers);
  r.final_norm.resize(1);
  r.router_logits.resize(c.num_hidden_layers);
  r.router_weights.resize(c.num_hidden_layers);
  r.router_indices.resize(c.num_hidden_layers);
  for (std::size_t done = 0; done < tokens.size(); done += step) {
    const std::size_t count = std::min(step, tokens.size() - done);
    const auto hidden = model.forward(
        tokens.subspan(done, count),
        [&](std::size_t layer, const mote::routing& routing) {
          append(r.router_logits[layer], routing.logits);
          append(r.router_indices[layer], routing.indices);
          append(r.router_weights[layer], routing.weights);
        },
        [&](std::size_t layer, mote::view<const float, 2> x) { append(r.hidden[layer], x); });
    append(r.final_norm[0], hidden);
    std::vector<float> logits(count * c.vocab_size);
    model.logits(hidden, {logits.data(), count, c.vocab_size});
    r.logits.insert(r.logits.end(), logits.begin(), logits.end());
  }
  return r;
}

// Logits may differ by 1e-4 of their range.
void check_logits(const std::vector<float>& got, std::span<const float> want) {
  const auto [low, high] = std::minmax_element(want.begin(), want.end());
  test::check_within(got, want, 1e-4f * (*high - *low), 0.0f);
}

template <class Backend>
void check_model(Backend& be, const std::string& name, lm::weight_format format) {
  const std::string directory = test::golden_model(name);
  const lm::model_config c = lm::read_config(directory);
  const lm::model_weights weights = lm::load_weights(be, c, format, mote::checkpoint(directory));
  const test::golden_file expected(directory + "/expected.safetensors");
  const golden_tensor<std::int32_t> ids = expected.integers("input_ids");
  const std::size_t batch = ids.shape[0], length = ids.shape[1], top_k = c.decoder.router.num_experts_per_tok;
  const auto logits = expected.floats("logits"), decode_logits = expected.floats("decode_logits");
  const auto decode_tokens = expected.integers("decode_tokens");
  const std::size_t decoded = decode_tokens.shape[1];

  for (std::size_t b = 0; b < batch; ++b) {
    const auto prompt = ids.row(b, length);
    for (const std::size_t step : {length, std::size_t{7}, std::size_t{1}}) {
      lm::language_model<Backend> model(be, c, weights, length + decoded, length);
      const trace r = run(model, c, prompt, step);
      check_logits(r.logits, logits.row(b, length * c.vocab_size));
      for (std::size_t i = 0; i < c.num_hidden_layers; ++i) {
        const std::string layer = std::to_string(i);
        test::check_within(r.hidden[i], expected.floats("hidden." + layer).row(b, length * c.hidden_size), 2e-4f,
                           1e-4f);
        if (!c.is_moe_layer(i)) continue;
        const auto router_indices = expected.integers("layers." + layer + ".router_indices");
        const auto indices = router_indices.row(b, length * top_k);
        CHECK(std::equal(indices.begin(), indices.end(), r.router_indices[i].begin(), r.router_indices[i].end()));
        test::check_within(r.router_weights[i],
                           expected.floats("layers." + layer + ".router_weights").row(b, length * top_k),
                           1e-5f * c.decoder.router.routed_scaling_factor, 0.0f);
        test::check_within(r.router_logits[i],
                           expected.floats("layers." + layer + ".router_logits").row(b, length * c.n_routed_experts),
                           2e-4f, 1e-4f);
      }
      test::check_within(r.final_norm[0], expected.floats("hidden.final_norm").row(b, length * c.hidden_size), 2e-4f,
                         1e-4f);

      // Greedy decoding goes on from the prompt's cache.
      std::vector<float> last(r.logits.end() - static_cast<std::ptrdiff_t>(c.vocab_size), r.logits.end());
      for (std::size_t i = 0; i < decoded; ++i) {
        check_logits(last, decode_logits.row(b * decoded + i, c.vocab_size));
        const auto token = static_cast<std::int32_t>(std::max_element(last.begin(), last.end()) - last.begin());
        CHECK(token == decode_tokens.values[b * decoded + i]);
        if (i + 1 == decoded) break;
        const auto hidden = model.forward({&token, 1});
        model.logits(hidden, {last.data(), std::size_t{1}, c.vocab_size});
      }
    }
  }
}

template <class Backend>
void check_mtp(Backend& be, const std::string& name) {
  const std::string directory = test::golden_model(name);
  const lm::model_config c = lm::read_config(directory);
  const lm::model_weights weights = lm::load_weights(be, c, lm::weight_format::stored, mote::checkpoint(directory));
  const test::golden_file expected(directory + "/expected.safetensors");
  const auto ids = expected.integers("mtp.input_ids");
  const auto state = expected.floats("mtp.state"), logits = expected.floats("mtp.logits");
  const std::size_t batch = ids.shape[0], length = ids.shape[1], rows = length - 1;
  for (std::size_t b = 0; b < batch; ++b) {
    const auto tokens = ids.row(b, length);
    for (const std::size_t step : {rows, std::size_t{5}, std::size_t{1}}) {
      lm::language_model<Backend> model(be, c, weights, length, length);
      REQUIRE(model.has_mtp());
      std::vector<float> hidden, got_state, got_logits(rows * c.vocab_size);
      append(hidden, model.forward(tokens));
      for (std::size_t done = 0; done < rows; done += step) {
        const std::size_t count = std::min(step, rows - done);
        const auto s = model.mtp_forward(tokens.subspan(done + 1, count),
                                         {hidden.data() + done * c.hidden_size, count, c.hidden_size});
        append(got_state, s);
        model.mtp_logits(s, {got_logits.data() + done * c.vocab_size, count, c.vocab_size});
      }
      test::check_within(got_state, state.row(b, rows * c.hidden_size), 2e-4f, 1e-4f);
      check_logits(got_logits, logits.row(b, rows * c.vocab_size));
    }
  }
}

}  // namespace

TEST_CASE("language model: published models, reference back end") {
  mote::reference be;
  for (const char* name : models) {
    DYNAMIC_SECTION(name) { check_model(be, name, lm::weight_format::stored); }
  }
}

TEST_CASE("language model: published models, simd back end") {
  mote::simd<> be{mote::threads{2}};
  for (const char* name : models) {
    DYNAMIC_SECTION(name) {
      check_model(be, name, lm::weight_format::stored);
      check_model(be, name, lm::weight_format::f32);
    }
  }
}

TEST_CASE("language model: multi-token prediction, both back ends") {
  mote::reference ref;
  check_mtp(ref, "deepseek_v3_mtp");
  mote::simd<> cpu{mote::threads{2}};
  check_mtp(cpu, "deepseek_v3_mtp");
}

TEST_CASE("language model: token ids, context and calls have limits") {
  const std::string directory = test::golden_model("deepseek_v3");
  const lm::model_config c = lm::read_config(directory);
  mote::simd<> be;
  const lm::model_weights weights = lm::load_weights(be, c, lm::weight_format::stored, mote::checkpoint(directory));
  lm::language_model<mote::simd<>> model(be, c, weights, 8, 4);
  const std::vector<std::int32_t> four(4, 1), five(5, 1), bad = {1, static_cast<std::int32_t>(c.vocab_size)};
  CHECK_THROWS_WITH(model.forward(five), contains("tokens"));
  CHECK_THROWS_WITH(model.forward(bad), contains("token id"));
  CHECK(model.length() == 0);
  model.forward(four);
  model.forward(four);
  CHECK_THROWS_WITH(model.forward({four.data(), 1}), contains("context"));
  model.truncate(3);
  CHECK(model.length() == 3);
  model.forward({four.data(), 1});
}
