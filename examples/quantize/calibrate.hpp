// Runs the model on a text and keeps what enters its linear layers.
#pragma once

#include <cstddef>
#include <string>

#include <mote/compress/calibration.hpp>

namespace quantize {

struct calibration_run {
  mote::calibration inputs;  // Σ x_c² of every linear layer of the main model, by its name in the checkpoint
  std::size_t tokens = 0;
};

// The text is read in windows of 512 tokens, at most 64 of them. Throws format_error when model or text cannot be read or
// the text is empty.
calibration_run calibrate(const std::string& model, const std::string& text_file, std::size_t threads);

}  // namespace quantize
