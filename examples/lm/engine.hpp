// A loaded model behind one interface, so that the commands do not depend on the back end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include <mote/blocks/mla.hpp>
#include <mote/core/view.hpp>
#include <mote/io/mapped_experts.hpp>
#include <mote/quant/rows.hpp>

#include "config.hpp"
#include "weights.hpp"

namespace lm {

enum class backend_kind { reference, simd };

struct engine_options {
  std::string model;  // directory of the checkpoint, or GGUF file
  weight_format weights = weight_format::stored;
  backend_kind backend = backend_kind::simd;
  std::size_t threads = 1;
  std::size_t context = 0;      // 0: the model's, at most default_context
  std::size_t chunk = 512;      // most tokens of one prefill step
  std::size_t logits_rows = 1;  // most tokens whose logits one call of forward() will be asked for
  mote::row_format cache = {};  // of the latent cache
  mote::mla_form attention = mote::mla_form::absorbed;
  bool speculative = false;  // run the multi-token-prediction module along

  bool packed_cache = false;           // keep the packed weights in a file of their own
  std::string packed_cache_path = {};  // empty: beside the model
  std::size_t memory_limit = 0;        // most bytes of the process, by leaving experts in that file; 0: all in memory
  std::string expert_profile = {};     // file with the experts' uses of earlier runs; empty: none
  std::function<void(const std::string&)> note = [](const std::string&) {};  // gets lines about the start
};

inline constexpr std::size_t default_context = 4096;

class engine {
 public:
  virtual ~engine() = default;

  virtual const model_config& config() const = 0;
  virtual const model_weights& weights() const = 0;
  virtual std::size_t context() const = 0;
  virtual std::size_t chunk() const = 0;

  // With `memory_limit`: the experts; else null.
  virtual const mote::mapped_experts* experts() const = 0;

  // Tokens of the sequence so far; `truncate` forgets all but the first `length`.
  virtual std::size_t length() const = 0;
  virtual void truncate(std::size_t length) = 0;

  // Appends tokens (any number, processed in chunks); gives the logits of the last `rows` of them, which must fit one
  // chunk, [rows, vocab], valid until the next call.
  virtual mote::view<const float, 2> forward(std::span<const std::int32_t> tokens, std::size_t rows) = 0;

  // With `speculative`: logits [vocab] of the token after next, given `next`, the token chosen to follow the sequence;
  // valid until the next call. The module's cache follows the sequence by itself.
  virtual mote::view<const float, 1> draft(std::int32_t next) = 0;
};

// Throws format_error (bad files) or shape_error (a context that the model does not accept).
std::unique_ptr<engine> make_engine(const engine_options& options);

}  // namespace lm
