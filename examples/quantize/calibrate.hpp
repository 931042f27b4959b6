// Runs the model on a text, a decoder layer at a time, and tells what enters its linear layers. Of the model, one layer's
// matrices outside its experts and one expert are in memory; of the text, the hidden states between two layers.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <mote/compress/gptq.hpp>
#include <mote/compress/statistics.hpp>
#include <mote/core/view.hpp>

#include "lm/config.hpp"
#include "source.hpp"

namespace quantize {

// What entered a linear layer; null where the text says nothing of it. Without a token the second moment is the identity.
struct layer_inputs {
  const mote::activation_statistics* statistics = nullptr;
  const mote::inverse_hessian* inverse = nullptr;  // null also where rounding is to nearest
};

class calibration {
 public:
  // The text is read in windows of 512 tokens, at most 64 of them. `source` must outlive the object. Without options of GPTQ
  // there are no inverses. Throws format_error when the text cannot be read or has fewer than two tokens.
  calibration(const model_source& source, const lm::model_config& config, const std::string& text_file,
              const std::optional<mote::gptq_options>& gptq, std::size_t threads);
  ~calibration();

  std::size_t tokens() const;
  std::size_t layers() const;  // decoder layers, with that of the multi-token-prediction module

  // By the layer's name in the checkpoint; a router's is what enters all experts. Valid until the next call. Asking in the
  // order of the model's layers runs the model once; asking for an earlier layer runs it again from the first.
  layer_inputs of(const std::string& module);

  // Whether `module` is part of what predicts the text: a linear layer of the main model.
  bool predicts(const std::string& module) const;

  // -ln p of the text, the mean over its tokens. In the decoder layer that `module` belongs to, or in all, replace(module, w)
  // may change the values w [out, in] of each matrix first; without `replace`, of the model as it is.
  using replacement = std::function<void(const std::string& module, const mote::view<float, 2>& w)>;
  double loss();
  double loss(const replacement& replace);
  double loss(const std::string& module, const replacement& replace);

  // The experts that no token of the text entered, in the order of the layers.
  std::vector<std::string> unreached();

 private:
  class run;
  std::unique_ptr<run> run_;
};

}  // namespace quantize
