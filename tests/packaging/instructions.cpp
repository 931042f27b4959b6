// What scripts/check_instructions disassembles: one product of each kind.
#include <mote/ops/matmul/matmul.hpp>

using backend = mote::simd<mote::default_arch, mote::serial>;

void product_q4_0(backend& be, mote::view<const float, 2> x, const mote::packed_matrix<mote::q4_0>& w,
                  mote::view<float, 2> y) {
  mote::matmul(be, x, w, y);
}
void product_q8_0(backend& be, mote::view<const float, 2> x, const mote::packed_matrix<mote::q8_0>& w,
                  mote::view<float, 2> y) {
  mote::matmul(be, x, w, y);
}
void product_int8(backend& be, mote::view<const float, 2> x, const mote::packed_matrix<std::int8_t>& w,
                  mote::view<float, 2> y) {
  mote::matmul(be, x, w, y);
}
void product_bf16(backend& be, mote::view<const float, 2> x, const mote::packed_matrix<mote::bf16>& w,
                  mote::view<float, 2> y) {
  mote::matmul(be, x, w, y);
}
