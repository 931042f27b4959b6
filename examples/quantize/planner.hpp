// Which layer gets which precision.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mote/compress/mixed_precision.hpp>

#include "calibrate.hpp"
#include "encoder.hpp"
#include "journal.hpp"
#include "model.hpp"
#include "options.hpp"

namespace quantize {

// The tensors of a file that hold `t`; `precision` is of matrices.
std::vector<stored_tensor> stored(container kind, const output_tensor& t, std::string_view precision);

// Their bytes.
std::size_t bytes_of(container kind, const output_tensor& t, std::string_view precision);

// What a layer whose columns are multiples of `columns` may become: the wanted precision where it divides them, then what
// has more bits.
std::vector<std::string_view> precision_ladder(const options& o, std::size_t columns);

struct layer_plan {
  std::string_view precision;
  std::size_t bytes = 0;
};

struct model_plan {
  std::map<std::string, layer_plan> layers;
  std::map<std::string, double> sensitivity;  // of each layer at its precision, where that was measured
  std::optional<double> rise;  // of the calibration text's perplexity, in percent, where that was measured
};

class planner {
 public:
  // Both must outlive the planner. Throws format_error when the size budget is too small.
  planner(const options& o, const std::vector<output_tensor>& tensors);

  // Layers in the order of the file.
  const std::vector<std::string>& order() const { return order_; }

  // Bytes of what is not quantized.
  std::size_t fixed_bytes() const { return fixed_; }

  // Without --adaptive_layers every layer gets the first choice. With it, every layer is encoded in every way it may take;
  // then the choice of least error within the size budget, or of least size within the quality budget, is made. `text` may
  // be null; what `progress`, which may be, knows from an earlier run is not done again. Throws format_error when the budget
  // of quality is too small.
  model_plan plan(backend& be, calibration* text, journal* progress) const;

 private:
  struct layer {
    std::vector<const output_tensor*> tensors;
  };

  std::vector<std::string_view> choices_of(const layer& l) const;
  layer_plan planned(const std::string& name, std::size_t choice) const;
  std::vector<double> output_errors(backend& be, const layer& l, calibration* text) const;
  std::vector<double> added_losses(backend& be, const layer& l, calibration& text, double baseline) const;
  using layer_options = std::vector<std::vector<mote::layer_option>>;  // of each layer, in order()
  mote::assignment assign_within_size(const layer_options& layers) const;
  mote::assignment assign_within_quality(backend& be, calibration& text, double baseline, const layer_options& layers,
                                         double& rise) const;
  mote::assignment chosen_before(const journal& progress) const;
  double added_loss(backend& be, calibration& text, double baseline, const mote::assignment& chosen) const;

  const options& o_;
  std::map<std::string, layer> layers_;
  std::vector<std::string> order_;
  std::size_t fixed_ = 0;
};

}  // namespace quantize
