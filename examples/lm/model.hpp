// The DeepSeek V2/V3 language model: embedding, decoder layers, final norm, head, and the multi-token-prediction module.
// Nothing here knows which back end runs it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <mote/decode/kv_cache.hpp>

#include "config.hpp"
#include "weights.hpp"

namespace lm {

inline constexpr std::size_t page_size = 64;

// One growing sequence of tokens. `Backend` outlives the model; config and weights too.
template <mote::backend Backend>
class language_model {
 public:
  // `context`: the most tokens the sequence may have; `max_tokens`: the most tokens of one call; `cache`: how the cache's
  // rows are stored. Throws shape_error where they are no whole blocks of that format.
  language_model(Backend& be, const model_config& config, const model_weights& weights, std::size_t context,
                 std::size_t max_tokens, const mote::row_format& cache = {})
      : be_(be),
        c_(config),
        w_(weights),
        context_(context),
        max_tokens_(std::min(context, max_tokens)),
        main_(c_.num_hidden_layers, context, c_, cache),
        hidden_(max_tokens_ * c_.hidden_size) {
    if (w_.mtp) {
      drafter_.emplace(1, context, c_, cache);
      state_ = mote::buffer<float>(max_tokens_ * c_.hidden_size);
    }
    positions_.reserve(max_tokens_);
  }

  std::size_t context() const { return context_; }
  std::size_t max_tokens() const { return max_tokens_; }

  // Tokens the main model has seen.
  std::size_t length() const { return main_.sequence.length; }

  // Forgets all but the first `length` tokens. The drafter's row t belongs to tokens t and t + 1.
  void truncate(std::size_t length) {
    main_.cache.resize(main_.sequence, std::min(length, main_.sequence.length));
    if (drafter_) {
      const std::size_t rows = length == 0 ? 0 : length - 1;
      drafter_->cache.resize(drafter_->sequence, std::min(rows, drafter_->sequence.length));
    }
  }

  // Appends tokens; gives their hidden states after the final norm, [tokens, hidden], valid until the next call.
  // `observe(layer, routing)` sees every mixture-of-experts layer's decision; `layer_output(layer, hidden)` every layer's
  // output. Throws shape_error when the context or one call's limit is exceeded or a token is out of range.
  template <class Observe, class LayerOutput>
  mote::view<const float, 2> forward(std::span<const std::int32_t> tokens, Observe&& observe,
                                     LayerOutput&& layer_output) {
    check_tokens(tokens.size(), length());
    last_start_ = length();
    const mote::view<float, 2> x(hidden_.data(), tokens.size(), c_.hidden_size);
    mote::embedding(be_, tokens, w_.embed_tokens, x);
    auto scratch = be_.scope();
    const mote::step_context step = make_step(scratch, length(), tokens.size());
    main_.cache.resize(main_.sequence, length() + tokens.size());
    for (std::size_t i = 0; i < w_.layers.size(); ++i) {
      mote::decoder_layer(be_, c_.decoder, w_.layers[i], step, main_.cache.rows(main_.sequence, i), x,
                          [&](const mote::routing& r) { observe(i, r); });
      layer_output(i, mote::view<const float, 2>(x));
    }
    mote::rms_norm(be_, x, w_.norm, c_.decoder.rms_norm_eps, x);
    return x;
  }

  mote::view<const float, 2> forward(std::span<const std::int32_t> tokens) {
    return forward(
        tokens, [](std::size_t, const mote::routing&) {}, [](std::size_t, mote::view<const float, 2>) {});
  }

  // The state [1, hidden] of one of the last forward call's tokens, by its position.
  mote::view<const float, 2> hidden_of(std::size_t position) const {
    mote::check(position >= last_start_ && position - last_start_ < max_tokens_, "language_model",
                "position: not one of the last call's");
    return {hidden_.data() + (position - last_start_) * c_.hidden_size, std::size_t{1}, c_.hidden_size};
  }

  // logits [tokens, vocab] of hidden states [tokens, hidden].
  void logits(mote::view<const float, 2> hidden, mote::view<float, 2> out) {
    mote::matmul(be_, hidden, w_.lm_head, out);
  }

  // Whether the checkpoint has a multi-token-prediction module, and how many rows it has processed.
  bool has_mtp() const { return drafter_.has_value(); }
  std::size_t mtp_length() const { return drafter_->sequence.length; }

  // Appends rows to the module: hidden states h_t of the next rows t = mtp_length() … and the tokens t + 1 that follow.
  // Gives its states [tokens, hidden], valid until the next call; mtp_logits turns them into predictions of token t + 2.
  mote::view<const float, 2> mtp_forward(std::span<const std::int32_t> next, mote::view<const float, 2> hidden) {
    check_tokens(next.size(), mtp_length());
    const mote::view<float, 2> state(state_.data(), next.size(), c_.hidden_size);
    auto scratch = be_.scope();
    const mote::step_context step = make_step(scratch, mtp_length(), next.size());
    drafter_->cache.resize(drafter_->sequence, mtp_length() + next.size());
    mote::mtp(be_, c_.decoder, *w_.mtp, next, hidden, step, drafter_->cache.rows(drafter_->sequence, 0), state);
    return state;
  }

  void mtp_logits(mote::view<const float, 2> state, mote::view<float, 2> out) {
    mote::matmul(be_, state, w_.mtp->shared_head, out);
  }

 private:
  struct cached_sequence {
    cached_sequence(std::size_t layers, std::size_t context, const model_config& c, const mote::row_format& format)
        : cache(layers, (context + page_size - 1) / page_size, page_size, c.decoder.attention.cache_width(), format),
          sequence(cache.make_sequence()) {}

    mote::kv_cache cache;
    mote::kv_cache::sequence sequence;
  };

  void check_tokens(std::size_t tokens, std::size_t length) const {
    if (tokens == 0 || tokens > max_tokens_) {
      mote::raise<mote::shape_error>("language_model: tokens: expected 1 to " + std::to_string(max_tokens_) +
                                     " in one call, got " + std::to_string(tokens));
    }
    if (tokens > context_ - length) {
      mote::raise<mote::shape_error>("language_model: tokens: " + std::to_string(length + tokens) +
                                     " exceed the context of " + std::to_string(context_));
    }
  }

  template <class Scratch>
  mote::step_context make_step(Scratch& scratch, std::size_t position, std::size_t tokens) {
    const std::size_t half = c_.rope.inv_freq.size();
    const auto cos = scratch.template tensor<float>(tokens, half), sin = scratch.template tensor<float>(tokens, half);
    positions_.resize(tokens);
    std::iota(positions_.begin(), positions_.end(), static_cast<std::int32_t>(position));
    mote::rope_table(be_, positions_, c_.rope.inv_freq, c_.rope.attention_factor, cos, sin);
    return {position, cos, sin};
  }

  Backend& be_;
  const model_config& c_;
  const model_weights& w_;
  std::size_t context_, max_tokens_;
  cached_sequence main_;
  std::optional<cached_sequence> drafter_;
  mote::buffer<float> hidden_, state_;
  std::vector<std::int32_t> positions_;
  std::size_t last_start_ = 0;  // position of hidden_'s first row
};

}  // namespace lm
