#ifdef CONSUMER_SINGLE_HEADER
#include <mote/mote.hpp>
#else
#include <mote/ops/rms_norm/rms_norm.hpp>
#endif

#include <vector>

int main() {
  std::vector<float> x(64, 2.0f), weight(64, 1.0f), y(64);
  mote::simd<> cpu{mote::threads{2}};
  mote::rms_norm(cpu, {x.data(), 1, 64}, weight, 0.0f, {y.data(), 1, 64});
  return y[0] > 0.999f && y[63] < 1.001f ? 0 : 1;
}
