#include "memory.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <variant>
#include <vector>

#include <fmt/core.h>
#include <mote/core/buffer.hpp>
#include <mote/core/executors/thread_pool.hpp>

namespace lm {
namespace {

std::size_t bytes(const mote::ffn_weights& w) { return mote::bytes(w.gate) + mote::bytes(w.up) + mote::bytes(w.down); }

std::size_t bytes(mote::view<const float, 1> v) { return v.size() * sizeof(float); }

std::size_t bytes(const mote::mla_weights& w) {
  std::size_t total = mote::bytes(w.q_proj) + mote::bytes(w.kv_a_proj) + bytes(w.kv_a_layernorm) +
                      mote::bytes(w.k_up_transposed) + mote::bytes(w.v_up) + mote::bytes(w.o_proj);
  if (w.q_lora) total += mote::bytes(w.q_lora->q_a_proj) + bytes(w.q_lora->q_a_layernorm);
  return total;
}

// In bytes a second.
double memory_bandwidth(std::size_t threads) {
  constexpr std::size_t words = std::size_t{1} << 25;  // 256 MiB, beyond the usual last-level cache
  constexpr std::size_t grain = std::size_t{1} << 16;
  constexpr int passes = 4;
  mote::buffer<std::uint64_t> data(words);
  mote::thread_pool pool(mote::threads{threads});
  std::atomic<std::uint64_t> sink{0};
  double best = 0.0;
  for (int pass = 0; pass < passes; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.parallel_for(words, grain, [&](std::size_t begin, std::size_t end) {
      std::uint64_t sums[8] = {};
      for (std::size_t i = begin; i < end; i += 8) {
        for (std::size_t j = 0; j < 8; ++j) sums[j] ^= data[i + j];
      }
      std::uint64_t sum = 0;
      for (const std::uint64_t s : sums) sum ^= s;
      sink.fetch_xor(sum, std::memory_order_relaxed);
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(words * sizeof(std::uint64_t)) / elapsed.count());
  }
  return best;
}

}  // namespace

std::size_t active_weight_bytes(const model_config& config, const model_weights& weights) {
  std::size_t total =
      mote::bytes(weights.lm_head) + bytes(weights.norm) + mote::bytes(weights.embed_tokens) / config.vocab_size;
  for (const auto& layer : weights.layers) {
    total += bytes(layer.input_layernorm) + bytes(layer.attention) + bytes(layer.post_attention_layernorm);
    if (const auto* dense = std::get_if<mote::ffn_weights>(&layer.mlp)) {
      total += bytes(*dense);
      continue;
    }
    const auto& moe = std::get<mote::moe_weights>(layer.mlp);
    total += moe.gate.size() * sizeof(float) + bytes(moe.bias) +
             bytes(moe.experts[0]) * config.decoder.router.num_experts_per_tok;
    if (moe.shared) total += bytes(*moe.shared);
  }
  return total;
}

std::size_t cache_bytes(const model_config& config, const mote::row_format& format, std::size_t length) {
  return length * config.num_hidden_layers * format.row_bytes(config.decoder.attention.cache_width());
}

std::string describe_reads(std::size_t bytes, double tokens_per_second, std::size_t threads) {
  const double bandwidth = memory_bandwidth(threads), read = static_cast<double>(bytes);
  return fmt::format("read         {:.2f} MB a token, {:.1f} % of the measured {:.1f} GB/s", read * 1e-6,
                     100.0 * read * tokens_per_second / bandwidth, bandwidth * 1e-9);
}

std::size_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

}  // namespace lm
