// Quantizes a model, tensor by tensor.
#pragma once

#include "options.hpp"

namespace quantize {

// Throws mote::error.
void run(const options& o);

}  // namespace quantize
