// Which channels are scaled, and by how much, before the layers that read them are quantized: AWQ and SmoothQuant on a
// whole model. Scales go into the gain of the norm before a layer, or into up_proj's rows before down_proj, so that the
// result has the same layers as before and other programs need not know.
#pragma once

#include <cstddef>

#include "calibrate.hpp"
#include "encoder.hpp"
#include "lm/config.hpp"
#include "options.hpp"
#include "source.hpp"

namespace quantize {

struct scaled_channels {
  channel_scales scales;
  std::size_t groups = 0, scaled = 0;  // of channels that are scaled together: all, and those that gained
  double error = 0.0;        // AWQ: relative squared errors of what was measured with these scales, summed …
  double plain_error = 0.0;  // … and without
};

// `text` is of the unscaled `source`. A norm's scales are such that its type holds the divided gains. Channels that no
// token reached are not scaled. Throws format_error.
scaled_channels scale_channels(backend& be, const options& o, const model_source& source,
                               const lm::model_config& config, calibration& text);

}  // namespace quantize
