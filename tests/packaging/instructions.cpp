// What scripts/check_instructions disassembles: one product of each kind.
#include <mote/ops/matmul/matmul.hpp>
#include <mote/ops/mla_decode/mla_decode.hpp>

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
void attention(backend& be, mote::view<const float, 3> q_latent, mote::view<const float, 3> q_rope,
               std::span<const mote::paged_rows<const float>> context, mote::view<float, 3> y) {
  mote::mla_decode(be, q_latent, q_rope, context, 1.0f, y);
}
