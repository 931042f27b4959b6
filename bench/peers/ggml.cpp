// ggml's CPU back end: each format as ggml stores it, repacked where ggml has an order for this machine, as llama.cpp loads
// it. int8, which ggml does not have, is measured against Q8_0.
#include <algorithm>
#include <cctype>
#include <cstring>
#include <stdexcept>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include "peers/peers.hpp"

namespace {

struct free_ggml {
  void operator()(ggml_context* p) const { ggml_free(p); }
  void operator()(ggml_backend* p) const { ggml_backend_free(p); }
  void operator()(ggml_backend_buffer* p) const { ggml_backend_buffer_free(p); }
  void operator()(ggml_threadpool* p) const { ggml_threadpool_free(p); }
};
template <class T>
using owner = std::unique_ptr<T, free_ggml>;

// Tensors without memory of their own.
owner<ggml_context> context(std::size_t tensors, std::size_t graphs = 0) {
  const std::size_t size = tensors * ggml_tensor_overhead() + graphs * ggml_graph_overhead_custom(64, false);
  return owner<ggml_context>(ggml_init({size + 4096, nullptr, true}));
}

// The back end with its threads.
class processor {
 public:
  explicit processor(std::size_t threads) : backend_(ggml_backend_cpu_init()) {
    const auto count = static_cast<int>(threads);
    ggml_threadpool_params parameters = ggml_threadpool_params_default(count);
    pool_.reset(ggml_threadpool_new(&parameters));
    ggml_backend_cpu_set_n_threads(backend_.get(), count);
    ggml_backend_cpu_set_threadpool(backend_.get(), pool_.get());
  }
  ggml_backend* get() const { return backend_.get(); }
  void compute(ggml_cgraph* graph) const {
    if (ggml_backend_graph_compute(backend_.get(), graph) != GGML_STATUS_SUCCESS) throw std::runtime_error("ggml");
  }

 private:
  owner<ggml_threadpool> pool_;
  owner<ggml_backend> backend_;
};

// ggml's type of that name, or GGML_TYPE_COUNT.
ggml_type type_of(const std::string& form) {
  const std::string name = form == "int8" ? "q8_0" : form == "bf16_rows" ? "bf16" : form;
  const auto same_letter = [](char a, char b) { return std::tolower(a) == std::tolower(b); };
  for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
    const char* known = ggml_type_name(static_cast<ggml_type>(t));
    if (known != nullptr && std::equal(name.begin(), name.end(), known, known + std::strlen(known), same_letter)) {
      return static_cast<ggml_type>(t);
    }
  }
  return GGML_TYPE_COUNT;
}

// All rows of one matrix as ggml stores them.
std::vector<std::uint8_t> rows_of(const bench::weight_source& source, ggml_type type) {
  const std::size_t rows = source.values.extent(0),
                    row_bytes = ggml_row_size(type, static_cast<std::int64_t>(source.in));
  std::vector<std::uint8_t> few(rows * row_bytes);
  if (source.form == "int8") {
    ggml_quantize_chunk(type, source.values.data(), few.data(), 0, static_cast<std::int64_t>(rows),
                        static_cast<std::int64_t>(source.in), nullptr);
  } else if (source.stored.extent(1) == row_bytes) {
    std::memcpy(few.data(), source.stored.data(), few.size());
  } else {
    throw std::runtime_error("ggml stores " + source.form + " otherwise");
  }
  std::vector<std::uint8_t> all(source.out * row_bytes);
  for (std::size_t n = 0; n < source.out; ++n) {
    std::memcpy(all.data() + n * row_bytes, few.data() + n % rows * row_bytes, row_bytes);
  }
  return all;
}

// The first of ggml's orders for `weights` that `op` works with, or its plain one.
ggml_backend_buffer_type_t order_for(ggml_backend* backend, ggml_tensor* weights, const ggml_tensor* op) {
  ggml_backend_dev_t device = ggml_backend_get_device(backend);
  const auto orders = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  for (auto* order = orders == nullptr ? nullptr : orders(device); order != nullptr && *order != nullptr; ++order) {
    const owner<ggml_backend_buffer> nothing(ggml_backend_buft_alloc_buffer(*order, 0));
    weights->buffer = nothing.get();
    const bool supported = ggml_backend_dev_supports_op(device, op);
    weights->buffer = nullptr;
    if (supported) return *order;
  }
  return ggml_backend_cpu_buffer_type();
}

mote::view<const float, 2> floats(const ggml_tensor* t) {
  return {static_cast<const float*>(t->data), static_cast<std::size_t>(ggml_nrows(t)),
          static_cast<std::size_t>(t->ne[0])};
}

class ggml_weights : public bench::peer_weights {
 public:
  ggml_weights(const bench::weight_source& source, ggml_type type) : context_(context(source.count)) {
    const auto out = static_cast<std::int64_t>(source.out), in = static_cast<std::int64_t>(source.in);
    for (std::size_t i = 0; i < source.count; ++i) w_.push_back(ggml_new_tensor_2d(context_.get(), type, in, out));
    const processor cpu(1);
    const auto trial = context(2);
    ggml_tensor* x = ggml_new_tensor_2d(trial.get(), GGML_TYPE_F32, in, 1);
    const auto order = order_for(cpu.get(), w_[0], ggml_mul_mat(trial.get(), w_[0], x));
    memory_.reset(ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), order));
    const auto rows = rows_of(source, type);
    for (ggml_tensor* w : w_) ggml_backend_tensor_set(w, rows.data(), 0, rows.size());
  }

  bench::peer_product matmul(mote::view<const float, 2> x, std::size_t threads) override {
    struct state {
      processor cpu;
      owner<ggml_context> context;
      owner<ggml_backend_buffer> memory;
      std::vector<ggml_cgraph*> graphs;
    };
    const auto s = std::make_shared<state>(processor(threads), context(w_.size() + 1, w_.size()));
    auto* tensors = s->context.get();
    const auto tokens = static_cast<std::int64_t>(x.extent(0)), in = static_cast<std::int64_t>(x.extent(1));
    ggml_tensor* input = ggml_new_tensor_2d(tensors, GGML_TYPE_F32, in, tokens);
    ggml_tensor* first = ggml_mul_mat(tensors, w_[0], input);
    s->memory.reset(ggml_backend_alloc_ctx_tensors(tensors, s->cpu.get()));
    ggml_backend_tensor_set(input, x.data(), 0, x.size() * sizeof(float));
    for (std::size_t i = 0; i < w_.size(); ++i) {
      ggml_tensor* y = i == 0 ? first : ggml_mul_mat(tensors, w_[i], input);
      y->buffer = first->buffer;  // one result for all
      y->data = first->data;
      s->graphs.push_back(ggml_new_graph_custom(tensors, 64, false));
      ggml_build_forward_expand(s->graphs.back(), y);
    }
    return {[s](std::size_t turn) { s->cpu.compute(s->graphs[turn % s->graphs.size()]); }, floats(first)};
  }

 private:
  owner<ggml_context> context_;
  owner<ggml_backend_buffer> memory_;
  std::vector<ggml_tensor*> w_;
};

class ggml_experts : public bench::peer_experts {
 public:
  ggml_experts(const bench::weight_source& gate, const bench::weight_source& up, const bench::weight_source& down)
      : gate_(gate), up_(up), down_(down) {}

  bench::peer_product moe(mote::view<const float, 2> x, std::span<const mote::view<const std::int32_t, 2>> indices,
                          mote::view<const float, 2> weights, std::size_t threads) override {
    struct state {
      processor cpu;
      owner<ggml_context> context;
      owner<ggml_backend_buffer> memory;
      ggml_cgraph* graph;
    };
    const auto top_k = static_cast<std::int64_t>(weights.extent(1)), tokens = static_cast<std::int64_t>(x.extent(0));
    const auto hidden = static_cast<std::int64_t>(x.extent(1));
    const auto s = std::make_shared<state>(processor(threads), context(24 + 2 * weights.extent(1), 1));
    auto* tensors = s->context.get();
    ggml_tensor* input = ggml_new_tensor_3d(tensors, GGML_TYPE_F32, hidden, 1, tokens);
    ggml_tensor* ids = ggml_new_tensor_2d(tensors, GGML_TYPE_I32, top_k, tokens);
    ggml_tensor* shares = ggml_new_tensor_3d(tensors, GGML_TYPE_F32, 1, top_k, tokens);
    ggml_tensor* gate = ggml_mul_mat_id(tensors, gate_.tensor, input, ids);
    ggml_tensor* up = ggml_mul_mat_id(tensors, up_.tensor, input, ids);
    ggml_tensor* inner = ggml_swiglu_split(tensors, gate, up);
    ggml_tensor* down = ggml_mul(tensors, ggml_mul_mat_id(tensors, down_.tensor, inner, ids), shares);
    ggml_tensor* y = nullptr;
    for (std::int64_t k = 0; k < top_k; ++k) {
      ggml_tensor* slot =
          ggml_view_2d(tensors, down, hidden, tokens, down->nb[2], static_cast<std::size_t>(k) * down->nb[1]);
      y = y == nullptr ? slot : ggml_add(tensors, y, slot);
    }
    s->memory.reset(ggml_backend_alloc_ctx_tensors(tensors, s->cpu.get()));
    s->graph = ggml_new_graph_custom(tensors, 64, false);
    ggml_build_forward_expand(s->graph, y);
    ggml_backend_tensor_set(input, x.data(), 0, x.size() * sizeof(float));
    ggml_backend_tensor_set(shares, weights.data(), 0, weights.size() * sizeof(float));
    return {[s, ids, routings = std::vector(indices.begin(), indices.end())](std::size_t turn) {
              const auto& chosen = routings[turn % routings.size()];
              std::memcpy(ids->data, chosen.data(), chosen.size() * sizeof(std::int32_t));
              s->cpu.compute(s->graph);
            },
            floats(y)};
  }

 private:
  // All experts' matrices of one projection.
  struct stack {
    explicit stack(const bench::weight_source& source) : owner_(context(1)) {
      const ggml_type type = type_of(source.form);
      const auto out = static_cast<std::int64_t>(source.out), in = static_cast<std::int64_t>(source.in);
      tensor = ggml_new_tensor_3d(owner_.get(), type, in, out, static_cast<std::int64_t>(source.count));
      const processor cpu(1);
      const auto trial = context(3);
      ggml_tensor* x = ggml_new_tensor_3d(trial.get(), GGML_TYPE_F32, in, 1, 1);
      ggml_tensor* ids = ggml_new_tensor_2d(trial.get(), GGML_TYPE_I32, 1, 1);
      const auto order = order_for(cpu.get(), tensor, ggml_mul_mat_id(trial.get(), tensor, x, ids));
      memory_.reset(ggml_backend_alloc_ctx_tensors_from_buft(owner_.get(), order));
      const auto rows = rows_of(source, type);
      std::vector<std::uint8_t> all(rows.size() * source.count);
      for (std::size_t e = 0; e < source.count; ++e)
        std::copy(rows.begin(), rows.end(), all.begin() + static_cast<std::ptrdiff_t>(e * rows.size()));
      ggml_backend_tensor_set(tensor, all.data(), 0, all.size());
    }
    ggml_tensor* tensor = nullptr;

   private:
    owner<ggml_context> owner_;
    owner<ggml_backend_buffer> memory_;
  };

  stack gate_, up_, down_;
};

class ggml_peer : public bench::peer {
 public:
  std::string name() const override { return "ggml"; }
  ggml_peer() {
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  }
  std::string version() const override { return ggml_version(); }
  std::unique_ptr<bench::peer_weights> load(const bench::weight_source& source) const override {
    const ggml_type type = type_of(source.form);
    if (type == GGML_TYPE_COUNT) return nullptr;
    return std::make_unique<ggml_weights>(source, type);
  }
  std::unique_ptr<bench::peer_experts> load(const bench::weight_source& gate, const bench::weight_source& up,
                                            const bench::weight_source& down) const override {
    if (type_of(gate.form) == GGML_TYPE_COUNT || type_of(down.form) == GGML_TYPE_COUNT) return nullptr;
    return std::make_unique<ggml_experts>(gate, up, down);
  }
};

const bool registered = (bench::peers().push_back(std::make_unique<ggml_peer>()), true);

}  // namespace
