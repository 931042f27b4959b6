// Compiled once for each instruction set by mote_add_variant.
#include "kernels.hpp"

#include <mote/ops/matmul/matmul.hpp>
#include <mote/ops/rms_norm/rms_norm.hpp>

namespace {

using backend = mote::simd<mote::default_arch, mote::serial>;

void rms_norm(const float* x, const float* weight, float eps, float* y, std::size_t tokens, std::size_t hidden) {
  backend be;
  mote::rms_norm(be, {x, tokens, hidden}, {weight, hidden}, eps, {y, tokens, hidden});
}

void matmul(const float* x, const float* w, float* y, std::size_t tokens, std::size_t in, std::size_t out) {
  backend be;
  mote::matmul(be, {x, tokens, in}, mote::view<const float, 2>(w, out, in), {y, tokens, out});
}

}  // namespace

extern const kernels MOTE_VARIANT_TABLE;
const kernels MOTE_VARIANT_TABLE = {mote::abi_name, &rms_norm, &matmul};
