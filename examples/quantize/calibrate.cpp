#include "calibrate.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include <mote/blocks/ffn.hpp>
#include <mote/blocks/mla.hpp>
#include <mote/core/buffer.hpp>
#include <mote/core/simd.hpp>
#include <mote/decode/kv_cache.hpp>
#include <mote/io/compressed_tensors.hpp>
#include <mote/io/mapped_file.hpp>
#include <mote/io/tokenizer.hpp>
#include <mote/kernels/extern.hpp>
#include <mote/ops/matmul/matmul.hpp>
#include <mote/ops/rms_norm/rms_norm.hpp>
#include <mote/ops/rope/rope.hpp>
#include <mote/ops/route/route.hpp>

#include "model.hpp"

namespace quantize {
namespace {

constexpr std::size_t window = 512, most_windows = 64;
constexpr std::size_t most_states = 1'000'000'000;  // bytes of what enters a layer and what leaves it

// Second moments are kept in equal blocks of at most `most` channels, whole blocks of every format: what they take stays
// bounded however wide the layer is.
std::size_t moment_block(std::size_t in, std::size_t most) {
  const std::size_t parts = (in + most - 1) / most, format = 256;
  return parts == 1 ? in : ((in + parts - 1) / parts + format - 1) / format * format;
}
constexpr std::size_t most_channels = 4096, most_expert_channels = 2048;

// A back end that computes as mote::simd does and notes what enters the matrices that it was told of.
class recorder : public mote::simd<> {
 public:
  using mote::simd<>::simd;

  // `key`: the matrix, or the norm's gain before it.
  void watch(const void* key, const std::string& module, std::size_t in) {
    const auto added = seen_.try_emplace(module, in, moment_block(in, most_channels)).first;
    watched_[key] = &added->second;
  }
  // Before the watched matrices go: others may come to lie where they were.
  void unwatch() { watched_.clear(); }
  void forget() { seen_.clear(); }
  void see(const void* key, const mote::view<const float, 2>& x) {
    const auto found = watched_.find(key);
    if (found != watched_.end()) found->second->add(plain(), x);
  }
  const mote::activation_statistics* seen(const std::string& module) const {
    const auto found = seen_.find(module);
    return found == seen_.end() ? nullptr : &found->second;
  }
  mote::simd<>& plain() { return *this; }

 private:
  std::map<std::string, mote::activation_statistics> seen_;
  std::map<const void*, mote::activation_statistics*> watched_;
};

const mote::view<const float, 2>& floats(const mote::weight& w) { return std::get<mote::view<const float, 2>>(w); }

// All matrices are float32 here: no other form's kernels are compiled.
void matmul_impl(recorder& be, mote::view<const float, 2> x, const mote::weight& w, mote::view<float, 2> y,
                 mote::output mode) {
  be.see(floats(w).data(), x);
  mote::matmul_impl(be.plain(), x, floats(w), y, mode);
}
void batched_matmul_impl(recorder& be, mote::view<const float, 3> x, const mote::weight& w, mote::view<float, 3> y) {
  const std::size_t out = y.extent(2);
  for (std::size_t b = 0; b < x.extent(0); ++b) {
    const mote::view<const float, 2> from(&x(b, 0, 0), {x.extent(1), x.extent(2)}, {x.stride(1), 1});
    const mote::view<float, 2> to(&y(b, 0, 0), {y.extent(1), out}, {y.stride(1), 1});
    mote::matmul(be.plain(), from, floats(w).slice(0, b * out, out), to);
  }
}

// What kv_b_proj multiplies is the normalized latent, in two parts.
void rms_norm_impl(recorder& be, mote::view<const float, 2> x, mote::view<const float, 1> gain, float eps,
                   mote::view<float, 2> y) {
  mote::rms_norm_impl(be.plain(), x, gain, eps, y);
  be.see(gain.data(), y);
}

// Reads matrices and vectors and holds them while a layer is run.
class layer_reader {
 public:
  layer_reader(const model_source& source, const calibration::replacement& replace)
      : source_(source), replace_(replace) {}

  mote::view<const float, 2> matrix(const std::string& module, std::size_t out, std::size_t in) {
    const model_source::matrix stored(source_, module, out, in);
    mote::buffer<float>& values = kept_.emplace_back(out * in);
    stored.read(0, values.as(out, in));
    if (replace_) replace_(module, values.as(out, in));
    return std::as_const(values).as(out, in);
  }
  mote::view<const float, 1> vector(const std::string& name, std::size_t size) {
    mote::buffer<float>& values =
        kept_.emplace_back(source_.floats(source_.files().tensor(name, std::vector<std::size_t>{size})));
    return std::as_const(values).as(size);
  }
  mote::view<float, 2> space(std::size_t rows, std::size_t columns) {
    return kept_.emplace_back(rows * columns).as(rows, columns);
  }
  mote::ffn_weights ffn(const std::string& prefix, std::size_t hidden, std::size_t intermediate) {
    return {matrix(prefix + "gate_proj", intermediate, hidden), matrix(prefix + "up_proj", intermediate, hidden),
            matrix(prefix + "down_proj", hidden, intermediate)};
  }

 private:
  const model_source& source_;
  const calibration::replacement& replace_;
  std::vector<mote::buffer<float>> kept_;
};

const calibration::replacement as_stored;

// Which tokens go to which expert.
struct expert_tokens {
  std::vector<std::int32_t> indices;  // [tokens, top_k]
  std::vector<float> weights;         // [tokens, top_k]
  std::vector<std::size_t> begin;     // [experts + 1], into slots
  std::vector<std::size_t> slots;     // token · top_k + k, expert by expert
};

}  // namespace

class calibration::run {
 public:
  run(const model_source& source, const lm::model_config& config, const std::string& text_file,
      const std::optional<mote::gptq_options>& gptq, std::size_t threads)
      : model_(source),
        c_(config),
        gptq_(gptq),
        be_(mote::threads{threads}),
        context_(std::min(window, c_.max_position_embeddings)),
        cache_(1, (context_ + page - 1) / page, page, c_.decoder.attention.cache_width()),
        sequence_(cache_.make_sequence()) {
    c_.decoder.attention.form = mote::mla_form::expanded;
    const mote::checkpoint& files = source.files();
    const std::string mtp = "model.layers." + std::to_string(c_.num_hidden_layers) + ".eh_proj.weight";
    layers_ = c_.num_hidden_layers + (c_.num_nextn_predict_layers > 0 && files.contains(mtp) ? 1 : 0);
    {
      const mote::mapped_file text(text_file);
      const mote::tokenizer tokenizer(files.directory());
      ids_ = tokenizer.encode({reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()});
    }
    if (ids_.size() < 2) mote::raise<mote::format_error>(text_file + ": expected a text of at least two tokens");
    const std::size_t windows = most_states / (2 * c_.hidden_size * sizeof(float) * window);
    ids_.resize(std::min(ids_.size(), window * std::clamp(windows, std::size_t{1}, most_windows) + 1));
    for (const std::int32_t id : ids_) {
      if (id < 0 || static_cast<std::size_t>(id) >= c_.vocab_size) {
        mote::raise<mote::format_error>(files.directory() + ": its tokenizer gives token " + std::to_string(id) +
                                        " of a vocabulary of " + std::to_string(c_.vocab_size));
      }
    }
    std::vector<std::int32_t> positions(context_);
    std::iota(positions.begin(), positions.end(), 0);
    const std::size_t half = c_.rope.inv_freq.size();
    cos_ = mote::buffer<float>(context_ * half);
    sin_ = mote::buffer<float>(context_ * half);
    mote::rope_table(be_, positions, c_.rope.inv_freq, c_.rope.attention_factor, cos_.as(context_, half),
                     sin_.as(context_, half));
    hidden_ = mote::buffer<float>(tokens() * c_.hidden_size);
  }

  std::size_t tokens() const { return ids_.size() - 1; }  // the last one is only predicted

  std::size_t layers() const { return layers_; }

  layer_inputs of(const std::string& module) {
    const std::optional<std::size_t> layer = decoder_layer(module);
    if (!layer || *layer >= layers_) return {};
    enter(*layer);
    const std::string source = source_of(module);
    if (source != source_) {
      inverse_.reset();
      statistics_.reset();
      source_.clear();
      if (const auto expert = expert_of(source)) {
        observe_expert(*expert, source.ends_with("down_proj"));
      } else if (const auto* seen = be_.seen(source)) {
        statistics_ = *seen;
      } else {
        return {};
      }
      source_ = source;
    }
    if (gptq_ && !inverse_) inverse_.emplace(*statistics_, *gptq_);
    return {&*statistics_, inverse_ ? &*inverse_ : nullptr};
  }

  bool predicts(const std::string& module) const {
    const auto layer = decoder_layer(module);
    return layer && *layer < c_.num_hidden_layers;
  }

  double loss() {
    restart();
    while (next_ < c_.num_hidden_layers) advance(false);
    started_ = false;  // the states become those after the final norm
    return nats(hidden_);
  }

  double loss(const std::string& module, const replacement& replace) {
    if (!keeps_input_) started_ = false;
    keeps_input_ = true;
    enter(*decoder_layer(module));
    mote::buffer<float> x(input_.size());
    std::copy(input_.begin(), input_.end(), x.begin());
    for (std::size_t i = next_ - 1; i < c_.num_hidden_layers; ++i) {
      expert_tokens routes;
      mote::buffer<float> normed;
      run_layer(i, i == next_ - 1 ? replace : as_stored, false, x, normed, routes);
    }
    return nats(x);
  }

  double loss(const replacement& replace) {
    mote::buffer<float> x(hidden_.size());
    embed("model.embed_tokens", 0, rows(x));
    for (std::size_t i = 0; i < c_.num_hidden_layers; ++i) {
      enter(i);  // what replace() asks of()
      expert_tokens routes;
      mote::buffer<float> normed;
      run_layer(i, replace, false, x, normed, routes);
    }
    return nats(x);
  }

  std::vector<std::string> unreached() {
    if (!started_) restart();
    while (next_ < layers_) advance(false);
    std::vector<std::string> names;
    for (const auto& [layer, experts] : unreached_) {
      for (const std::size_t e : experts) names.push_back(prefix(layer) + "mlp.experts." + std::to_string(e));
    }
    return names;
  }

 private:
  static constexpr std::size_t page = 64;

  static std::string prefix(std::size_t layer) { return "model.layers." + std::to_string(layer) + "."; }

  // Layers that read the same inputs have one source: the one whose matrix is watched.
  std::string source_of(const std::string& module) const {
    const std::size_t shared = module.find("shared_experts.");
    if (shared != std::string::npos && !module.ends_with("down_proj")) return module.substr(0, shared) + "gate";
    const std::string query = c_.q_lora_rank > 0 ? "q_a_proj" : "q_proj";
    for (const auto& [same, source] :
         {std::pair<std::string, std::string>{"up_proj", "gate_proj"}, {"kv_a_proj_with_mqa", query}}) {
      if (module.ends_with(same)) return module.substr(0, module.size() - same.size()) + source;
    }
    return module;
  }

  static std::optional<std::size_t> expert_of(const std::string& module) {
    const std::string part = ".mlp.experts.";
    const std::size_t at = module.find(part);
    if (at == std::string::npos) return std::nullopt;
    return std::stoul(module.substr(at + part.size()));
  }

  mote::view<float, 2> rows(mote::buffer<float>& x) const { return x.as(tokens(), c_.hidden_size); }

  template <class Function>
  void for_each_window(Function&& f) const {
    for (std::size_t begin = 0; begin < tokens(); begin += context_) f(begin, std::min(context_, tokens() - begin));
  }

  void embed(const std::string& name, std::size_t shift, const mote::view<float, 2>& y) const {
    const mote::matrix_ref table(model_.files(), name, c_.vocab_size, c_.hidden_size);
    for (std::size_t t = 0; t < y.extent(0); ++t) {
      table.read(static_cast<std::size_t>(ids_[t + shift]), y.slice(0, t, 1));
    }
  }

  void restart() {
    started_ = true;
    recorded_ = false;
    next_ = 0;
    source_.clear();
    be_.forget();
    unreached_.clear();
    embed("model.embed_tokens", 0, rows(hidden_));
  }

  // Runs the layers up to `layer`, that one recorded.
  void enter(std::size_t layer) {
    if (started_ && recorded_ && next_ == layer + 1) return;
    if (!started_ || next_ > layer) restart();
    while (next_ < layer) advance(false);
    advance(true);
  }

  void advance(bool record) {
    if (next_ == c_.num_hidden_layers) begin_mtp();
    source_.clear();
    if (record) {
      be_.forget();
      if (keeps_input_ && input_.size() == 0) input_ = mote::buffer<float>(hidden_.size());
      if (keeps_input_) std::copy(hidden_.begin(), hidden_.end(), input_.begin());
    }
    run_layer(next_, as_stored, record, hidden_, normed_, routes_);
    auto& missed = unreached_[next_];
    for (std::size_t e = 0; e + 1 < routes_.begin.size(); ++e) {
      if (routes_.begin[e] == routes_.begin[e + 1]) missed.push_back(e);
    }
    recorded_ = record;
    ++next_;
  }

  // From the main model's states to what enters the module's decoder layer (blocks/mtp.hpp).
  void begin_mtp() {
    const std::size_t hidden = c_.hidden_size;
    const float eps = c_.decoder.rms_norm_eps;
    const std::string p = prefix(next_);
    layer_reader read(model_, as_stored);
    const auto x = rows(hidden_);
    mote::rms_norm(be_.plain(), x, read.vector("model.norm.weight", hidden), eps, x);
    const auto next = read.space(tokens(), hidden);
    embed(model_.files().contains(p + "embed_tokens.weight") ? p + "embed_tokens" : "model.embed_tokens", 1, next);
    const auto enorm = read.vector(p + "enorm.weight", hidden), hnorm = read.vector(p + "hnorm.weight", hidden);
    const auto eh_proj = read.matrix(p + "eh_proj", hidden, 2 * hidden);
    for_each_window([&](std::size_t begin, std::size_t count) {
      auto scratch = be_.scope();
      const auto both = scratch.tensor<float>(count, 2 * hidden);
      mote::rms_norm(be_.plain(), next.slice(0, begin, count), enorm, eps, both.slice(1, 0, hidden));
      mote::rms_norm(be_.plain(), x.slice(0, begin, count), hnorm, eps, both.slice(1, hidden, hidden));
      mote::matmul(be_, both, mote::weight(eh_proj), x.slice(0, begin, count));
    });
  }

  // x [tokens, hidden] becomes the layer's output; `normed` and `routes` what entered its experts.
  void run_layer(std::size_t i, const replacement& replace, bool record, mote::buffer<float>& states,
                 mote::buffer<float>& normed, expert_tokens& routes) try {
    const std::size_t hidden = c_.hidden_size;
    const float eps = c_.decoder.rms_norm_eps;
    const std::string p = prefix(i);
    const auto x = rows(states);
    routes = {};
    attend(p, replace, record, x);
    layer_reader read(model_, replace);
    if (normed.size() == 0) normed = mote::buffer<float>(states.size());
    mote::rms_norm(be_.plain(), x, read.vector(p + "post_attention_layernorm.weight", hidden), eps, rows(normed));
    if (!c_.is_moe_layer(i)) {
      feed_forward(p + "mlp.", c_.intermediate_size, replace, record, rows(normed), x);
      return;
    }
    route(p + "mlp.gate", record, rows(normed), routes);
    if (c_.n_shared_experts > 0) {
      feed_forward(p + "mlp.shared_experts.", c_.n_shared_experts * c_.moe_intermediate_size, replace, record,
                   rows(normed), x);
    }
    for (std::size_t e = 0; e < c_.n_routed_experts; ++e) run_expert(p, e, replace, normed, routes, x);
  } catch (const mote::shape_error& e) {
    mote::raise<mote::format_error>(prefix(i) + "*: on the calibration text: " + e.what());
  }

  void attend(const std::string& layer, const replacement& replace, bool record, const mote::view<float, 2>& x) {
    const mote::mla_config& a = c_.decoder.attention;
    const std::size_t hidden = c_.hidden_size, heads = a.num_attention_heads, rank = a.kv_lora_rank;
    const std::size_t q_rows = heads * a.qk_head_dim(), nope = a.qk_nope_head_dim, v_dim = a.v_head_dim;
    const std::string p = layer + "self_attn.";
    layer_reader read(model_, replace);
    const auto bias = [&](const std::string& name, std::size_t size) {
      return c_.attention_bias ? read.vector(name, size) : mote::view<const float, 1>();
    };
    mote::mla_weights w;
    if (c_.q_lora_rank > 0) {
      w.q_lora = mote::mla_query_lora{read.matrix(p + "q_a_proj", c_.q_lora_rank, hidden),
                                      bias(p + "q_a_proj.bias", c_.q_lora_rank),
                                      read.vector(p + "q_a_layernorm.weight", c_.q_lora_rank)};
      w.q_proj = read.matrix(p + "q_b_proj", q_rows, c_.q_lora_rank);
    } else {
      w.q_proj = read.matrix(p + "q_proj", q_rows, hidden);
    }
    w.kv_a_proj = read.matrix(p + "kv_a_proj_with_mqa", a.cache_width(), hidden);
    w.kv_a_bias = bias(p + "kv_a_proj_with_mqa.bias", a.cache_width());
    w.kv_a_layernorm = read.vector(p + "kv_a_layernorm.weight", rank);
    const auto kv_b = read.matrix(p + "kv_b_proj", heads * (nope + v_dim), rank);
    const auto k_up = read.space(heads * nope, rank), v_up = read.space(heads * v_dim, rank);
    for (std::size_t h = 0; h < heads; ++h) {
      const float* head = kv_b.row(h * (nope + v_dim));
      std::copy_n(head, nope * rank, k_up.row(h * nope));
      std::copy_n(head + nope * rank, v_dim * rank, v_up.row(h * v_dim));
    }
    w.k_up = mote::view<const float, 2>(k_up);
    w.v_up = mote::view<const float, 2>(v_up);
    w.o_proj = read.matrix(p + "o_proj", hidden, heads * v_dim);
    w.o_bias = bias(p + "o_proj.bias", hidden);
    if (record) {
      if (w.q_lora) be_.watch(floats(w.q_lora->q_a_proj).data(), p + "q_a_proj", hidden);
      be_.watch(floats(w.q_proj).data(), p + (w.q_lora ? "q_b_proj" : "q_proj"), w.q_lora ? c_.q_lora_rank : hidden);
      be_.watch(w.kv_a_layernorm.data(), p + "kv_b_proj", rank);
      be_.watch(floats(w.o_proj).data(), p + "o_proj", heads * v_dim);
    }
    const auto norm = read.vector(layer + "input_layernorm.weight", hidden);
    const std::size_t half = c_.rope.inv_freq.size();
    for_each_window([&](std::size_t begin, std::size_t count) {
      auto scratch = be_.scope();
      const auto normed = scratch.tensor<float>(count, hidden);
      const auto part = x.slice(0, begin, count);
      mote::rms_norm(be_.plain(), part, norm, c_.decoder.rms_norm_eps, normed);
      cache_.resize(sequence_, count);
      mote::mla(be_, a, w, normed, cos_.as(context_, half).slice(0, 0, count),
                sin_.as(context_, half).slice(0, 0, count), cache_.rows(sequence_, 0), 0, part,
                mote::output::accumulate);
      cache_.resize(sequence_, 0);
    });
    be_.unwatch();
  }

  // A network that every token enters.
  void feed_forward(const std::string& p, std::size_t intermediate, const replacement& replace, bool record,
                    const mote::view<const float, 2>& x, const mote::view<float, 2>& y) {
    layer_reader read(model_, replace);
    const mote::ffn_weights w = read.ffn(p, c_.hidden_size, intermediate);
    if (record) {
      const std::string gate = p + "gate_proj";
      if (source_of(gate) == gate) be_.watch(floats(w.gate).data(), gate, c_.hidden_size);
      be_.watch(floats(w.down).data(), p + "down_proj", intermediate);
    }
    for_each_window([&](std::size_t begin, std::size_t count) {
      mote::ffn(be_, x.slice(0, begin, count), w, y.slice(0, begin, count), mote::output::accumulate);
    });
    be_.unwatch();
  }

  void route(const std::string& p, bool record, const mote::view<const float, 2>& x, expert_tokens& routes) {
    const std::size_t experts = c_.n_routed_experts, top_k = c_.decoder.router.num_experts_per_tok;
    layer_reader read(model_, as_stored);
    const auto gate = read.matrix(p, experts, c_.hidden_size);
    mote::view<const float, 1> bias;
    if (c_.decoder.router.method == mote::topk_method::noaux_tc) {
      bias = read.vector(p + ".e_score_correction_bias", experts);
    }
    if (record) be_.watch(gate.data(), p, c_.hidden_size);
    routes.indices.resize(tokens() * top_k);
    routes.weights.resize(tokens() * top_k);
    for_each_window([&](std::size_t begin, std::size_t count) {
      auto scratch = be_.scope();
      const auto logits = scratch.tensor<float>(count, experts);
      mote::matmul(be_, x.slice(0, begin, count), mote::weight(gate), logits);
      mote::route(be_.plain(), c_.decoder.router, logits, bias, {routes.indices.data() + begin * top_k, count, top_k},
                  {routes.weights.data() + begin * top_k, count, top_k});
    });
    be_.unwatch();
    routes.begin.assign(experts + 1, 0);
    for (const std::int32_t e : routes.indices) ++routes.begin[static_cast<std::size_t>(e) + 1];
    std::partial_sum(routes.begin.begin(), routes.begin.end(), routes.begin.begin());
    std::vector<std::size_t> at(routes.begin.begin(), routes.begin.end() - 1);
    routes.slots.resize(routes.indices.size());
    for (std::size_t s = 0; s < routes.indices.size(); ++s) {
      routes.slots[at[static_cast<std::size_t>(routes.indices[s])]++] = s;
    }
  }

  // Calls f(x, slots) for pieces of what enters expert e: x [count, hidden] of the tokens slots[count].
  template <class Function>
  void for_each_piece_of(std::size_t e, mote::buffer<float>& normed, const expert_tokens& routes, Function&& f) {
    const std::size_t top_k = c_.decoder.router.num_experts_per_tok, hidden = c_.hidden_size;
    for (std::size_t begin = routes.begin[e]; begin < routes.begin[e + 1]; begin += window) {
      const std::size_t count = std::min(window, routes.begin[e + 1] - begin);
      const std::span<const std::size_t> slots(routes.slots.data() + begin, count);
      auto scratch = be_.scope();
      const auto x = scratch.template tensor<float>(count, hidden);
      for (std::size_t i = 0; i < count; ++i) std::copy_n(rows(normed).row(slots[i] / top_k), hidden, x.row(i));
      f(mote::view<const float, 2>(x), slots);
    }
  }

  void run_expert(const std::string& layer, std::size_t e, const replacement& replace, mote::buffer<float>& normed,
                  const expert_tokens& routes, const mote::view<float, 2>& y) {
    if (routes.begin[e] == routes.begin[e + 1]) return;
    const std::size_t top_k = c_.decoder.router.num_experts_per_tok;
    layer_reader read(model_, replace);
    const mote::ffn_weights w =
        read.ffn(layer + "mlp.experts." + std::to_string(e) + ".", c_.hidden_size, c_.moe_intermediate_size);
    for_each_piece_of(e, normed, routes, [&](const auto& x, std::span<const std::size_t> slots) {
      auto scratch = be_.scope();
      const auto out = scratch.template tensor<float>(slots.size(), c_.hidden_size);
      mote::ffn(be_, x, w, out);
      for (std::size_t i = 0; i < slots.size(); ++i) {
        float* to = y.row(slots[i] / top_k);
        for (std::size_t h = 0; h < c_.hidden_size; ++h) to[h] += routes.weights[slots[i]] * out(i, h);
      }
    });
  }

  // What enters an expert of the layer that was recorded.
  void observe_expert(std::size_t e, bool down) {
    const std::size_t intermediate = c_.moe_intermediate_size, hidden = c_.hidden_size;
    const std::size_t in = down ? intermediate : hidden;
    statistics_.emplace(in, moment_block(in, most_expert_channels));
    if (routes_.begin[e] == routes_.begin[e + 1]) return;
    const std::string p = prefix(next_ - 1) + "mlp.experts." + std::to_string(e) + ".";
    layer_reader read(model_, as_stored);
    mote::view<const float, 2> gate, up;
    if (down) {
      gate = read.matrix(p + "gate_proj", intermediate, hidden);
      up = read.matrix(p + "up_proj", intermediate, hidden);
    }
    for_each_piece_of(e, normed_, routes_, [&](const auto& x, std::span<const std::size_t> slots) {
      if (!down) return statistics_->add(be_.plain(), x);
      auto scratch = be_.scope();
      const auto a = scratch.template tensor<float>(slots.size(), intermediate);
      const auto b = scratch.template tensor<float>(slots.size(), intermediate);
      mote::matmul(be_.plain(), x, gate, a);
      mote::matmul(be_.plain(), x, up, b);
      mote::swiglu(be_.plain(), a, b, a);
      statistics_->add(be_.plain(), a);
    });
  }

  // The head a few rows at a time, as it may be larger than everything else.
  double nats(mote::buffer<float>& states) {
    constexpr std::size_t most_rows = 4096;
    const std::size_t hidden = c_.hidden_size, vocab = c_.vocab_size;
    layer_reader read(model_, as_stored);
    const auto norm = read.vector("model.norm.weight", hidden);
    const mote::matrix_ref head(model_.files(), c_.tie_word_embeddings ? "model.embed_tokens" : "lm_head", vocab,
                                hidden);
    mote::buffer<float> w(std::min(most_rows, vocab) * hidden);
    std::vector<double> highest(tokens(), -std::numeric_limits<double>::infinity()), sum(tokens()), wanted(tokens());
    const auto x = rows(states);
    mote::rms_norm(be_.plain(), x, norm, c_.decoder.rms_norm_eps, x);
    for (std::size_t first = 0; first < vocab; first += most_rows) {
      const std::size_t count = std::min(most_rows, vocab - first);
      head.read(first, w.as(count, hidden));
      for_each_window([&](std::size_t begin, std::size_t length) {
        auto scratch = be_.scope();
        const auto logits = scratch.tensor<float>(length, count);
        mote::matmul(be_.plain(), x.slice(0, begin, length), std::as_const(w).as(count, hidden), logits);
        for (std::size_t i = 0; i < length; ++i) {
          const std::size_t t = begin + i, next = static_cast<std::size_t>(ids_[t + 1]);
          const float* row = logits.row(i);
          const double most = std::max(highest[t], static_cast<double>(*std::max_element(row, row + count)));
          sum[t] *= std::exp(highest[t] - most);
          for (std::size_t n = 0; n < count; ++n) sum[t] += std::exp(static_cast<double>(row[n]) - most);
          highest[t] = most;
          if (next >= first && next < first + count) wanted[t] = static_cast<double>(row[next - first]);
        }
      });
    }
    double total = 0.0;
    for (std::size_t t = 0; t < tokens(); ++t) total += highest[t] + std::log(sum[t]) - wanted[t];
    return total / static_cast<double>(tokens());
  }

  const model_source& model_;
  lm::model_config c_;
  std::optional<mote::gptq_options> gptq_;
  recorder be_;
  std::size_t context_, layers_ = 0;
  mote::kv_cache cache_;
  mote::kv_cache::sequence sequence_;
  std::vector<std::int32_t> ids_;
  mote::buffer<float> cos_, sin_;

  bool started_ = false;
  std::size_t next_ = 0;        // the layer to be run next
  mote::buffer<float> hidden_;  // what enters it
  bool recorded_ = false;       // whether the layer before it was recorded. Of that one:
  mote::buffer<float> normed_;  // what enters its experts
  expert_tokens routes_;        // and where each token goes
  bool keeps_input_ = false;
  mote::buffer<float> input_;                                  // what entered it
  std::map<std::size_t, std::vector<std::size_t>> unreached_;  // experts, by layer

  std::string source_;  // what the next two belong to
  std::optional<mote::activation_statistics> statistics_;
  std::optional<mote::inverse_hessian> inverse_;
};

calibration::calibration(const model_source& source, const lm::model_config& config, const std::string& text_file,
                         const std::optional<mote::gptq_options>& gptq, std::size_t threads)
    : run_(std::make_unique<run>(source, config, text_file, gptq, threads)) {}
calibration::~calibration() = default;

std::size_t calibration::tokens() const { return run_->tokens(); }
std::size_t calibration::layers() const { return run_->layers(); }
layer_inputs calibration::of(const std::string& module) {
  try {
    return run_->of(module);
  } catch (const mote::shape_error& e) {
    mote::raise<mote::format_error>(module + ": on the calibration text: " + e.what());
  }
}
bool calibration::predicts(const std::string& module) const { return run_->predicts(module); }
double calibration::loss() { return run_->loss(); }
double calibration::loss(const replacement& replace) { return run_->loss(replace); }
double calibration::loss(const std::string& module, const replacement& replace) { return run_->loss(module, replace); }
std::vector<std::string> calibration::unreached() { return run_->unreached(); }

}  // namespace quantize
