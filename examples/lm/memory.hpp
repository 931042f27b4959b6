// What a decode step reads, and what the machine can read.
#pragma once

#include <cstddef>
#include <string>

#include "engine.hpp"

namespace lm {

// Bytes of weights that one decoded token reads: every matrix once, of the routed experts those a token goes to.
std::size_t active_weight_bytes(const model_config& config, const model_weights& weights);

// Bytes of latent cache in that format that a token reads when `length` tokens are cached.
std::size_t cache_bytes(const model_config& config, const mote::row_format& format, std::size_t length);

// "read  … MB a token, … % of the measured … GB/s", for `bytes` a token. The bandwidth is measured now, with `threads` threads:
// the best of several passes over a buffer larger than the caches.
std::string describe_reads(std::size_t bytes, double tokens_per_second, std::size_t threads);

// Most memory this process has held, in bytes.
std::size_t peak_memory();

}  // namespace lm
