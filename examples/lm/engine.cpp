#include "engine.hpp"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include <mote/core/simd.hpp>
#include <mote/kernels/extern.hpp>

#include "memory_limit.hpp"
#include "model.hpp"
#include "packed_cache.hpp"

namespace lm {
namespace {

template <class Backend>
class backend_engine final : public engine {
 public:
  template <class... Args>
  explicit backend_engine(const engine_options& o, model_config config, const std::optional<expert_uses>& profile,
                          Args&&... args)
      : config_(std::move(config)),
        backend_(std::forward<Args>(args)...),
        weights_(load(backend_, config_, o)),
        model_(backend_, config_, weights_, o.context, o.chunk, o.cache),
        speculative_(o.speculative),
        pending_(config_.hidden_size) {
    mote::check(!speculative_ || model_.has_mtp(), "speculative",
                "the checkpoint has no multi-token-prediction module");
    if (o.memory_limit > 0) {
      mote::check(weights_.packed.has_value(), "memory_limit", "needs packed_cache: the experts stay in that file");
      const std::size_t logits = std::max(o.logits_rows, std::size_t{speculative_ ? 3u : 1u});
      experts_ = limit_memory(backend_, config_, weights_, speculative_,
                              step(chunk()) + logits * config_.vocab_size * sizeof(float), o.memory_limit, profile,
                              o.expert_profile);
    }
  }

  const model_config& config() const override { return config_; }
  const model_weights& weights() const override { return weights_; }
  const mote::mapped_experts* experts() const override { return experts_.get(); }
  std::size_t context() const override { return model_.context(); }
  std::size_t chunk() const override { return model_.max_tokens(); }
  std::size_t length() const override { return model_.length(); }
  void truncate(std::size_t length) override {
    model_.truncate(length);
    if (speculative_ && length > 0) keep(model_.hidden_of(length - 1));
  }

  mote::view<const float, 2> forward(std::span<const std::int32_t> tokens, std::size_t rows) override {
    mote::check(rows > 0 && rows <= chunk() && rows <= tokens.size(), "engine",
                "rows: must fit one chunk of the tokens");
    if (tokens.size() > context() - length()) {
      mote::raise<mote::shape_error>("prompt: " + std::to_string(length() + tokens.size()) +
                                     " tokens exceed the context of " + std::to_string(context()));
    }
    const std::size_t size = rows * config_.vocab_size;
    if (logits_.size() < size) logits_ = mote::buffer<float>(size);
    const mote::view<float, 2> out(logits_.data(), rows, config_.vocab_size);
    const std::size_t first = tokens.size() - rows;  // of the tokens whose logits are wanted
    for (std::size_t done = 0; done < tokens.size();) {
      const std::size_t count = std::min(chunk(), tokens.size() - done);
      const auto part = tokens.subspan(done, count);
      if (experts_) {  // scratch that is there already is counted with the process's memory
        const std::size_t held = backend_.arena().capacity(), needed = step(count);
        experts_->set_reserve(needed > held ? needed - held : 0);
      }
      const auto hidden = model_.forward(part);
      if (speculative_) follow(part, hidden);
      const std::size_t begin = std::max(done, first), end = done + count;
      if (begin < end) {
        model_.logits(hidden.slice(0, begin - done, end - begin), out.slice(0, begin - first, end - begin));
      }
      done += count;
    }
    return out;
  }

  mote::view<const float, 1> draft(std::int32_t next) override {
    mote::check(speculative_ && length() > 0, "engine", "draft: needs `speculative` and a sequence");
    const std::int32_t tokens[] = {next};
    const auto state = model_.mtp_forward(tokens, model_.hidden_of(length() - 1));
    if (draft_logits_.empty()) draft_logits_ = mote::buffer<float>(config_.vocab_size);
    model_.mtp_logits(state, draft_logits_.as(std::size_t{1}, config_.vocab_size));
    return std::as_const(draft_logits_).as(config_.vocab_size);
  }

 private:
  std::size_t step(std::size_t tokens) const { return step_memory(config_, tokens, context()); }

  static model_weights load(Backend& be, const model_config& config, const engine_options& o) {
    if (!o.packed_cache) return load_weights(be, config, o.weights, model_files(o.model));
    const std::string path =
        o.packed_cache_path.empty() ? packed_cache_path<Backend>(o.model, o.weights) : o.packed_cache_path;
    mote::weight_file packed = open_packed_cache(be, config, o.weights, o.model, path, o.note);
    return weight_loader<Backend>(be, config, o.weights, model_files(o.model)).load(std::move(packed));
  }

  // Gives the module the rows whose next token is now known: the one before `tokens`, unless a draft did, and all of
  // `tokens` but the last.
  void follow(std::span<const std::int32_t> tokens, mote::view<const float, 2> hidden) {
    const std::size_t start = length() - tokens.size();
    if (start > 0 && model_.mtp_length() + 1 == start) {
      model_.mtp_forward(tokens.first(1), std::as_const(pending_).as(std::size_t{1}, config_.hidden_size));
    }
    if (tokens.size() > 1) model_.mtp_forward(tokens.subspan(1), hidden.slice(0, 0, tokens.size() - 1));
    keep(hidden.slice(0, tokens.size() - 1, 1));
  }

  void keep(mote::view<const float, 2> state) {
    std::copy(state.data(), state.data() + config_.hidden_size, pending_.data());
  }

  model_config config_;
  Backend backend_;
  model_weights weights_;
  std::unique_ptr<mote::mapped_experts> experts_;
  language_model<Backend> model_;
  bool speculative_;
  mote::buffer<float> pending_;  // state of the sequence's last token
  mote::buffer<float> logits_, draft_logits_;
};

}  // namespace

std::unique_ptr<engine> make_engine(const engine_options& options) {
  engine_options o = options;
  model_config config = load_config(o.model);
  if (o.context == 0) o.context = std::min(config.max_position_embeddings, default_context);
  mote::check(o.context <= config.max_position_embeddings, "context",
              "expected at most the model's " + std::to_string(config.max_position_embeddings) + ", got " +
                  std::to_string(o.context));
  mote::check_whole_blocks(o.model, "latent cache", config.decoder.attention.cache_width(), o.cache);
  mote::check(!o.speculative || o.chunk > 1, "chunk", "expected at least 2, a token and its draft, with speculative");
  config.decoder.attention.form = o.attention;
  // Before the weights are packed, which takes longer.
  std::optional<expert_uses> profile;
  std::error_code none;
  if (!o.expert_profile.empty() && std::filesystem::exists(o.expert_profile, none)) {
    profile = read_expert_profile(o.expert_profile);
  }
  if (o.backend == backend_kind::reference) {
    return std::make_unique<backend_engine<mote::reference>>(o, std::move(config), profile);
  }
  return std::make_unique<backend_engine<mote::simd<>>>(o, std::move(config), profile, mote::threads{o.threads});
}

}  // namespace lm
