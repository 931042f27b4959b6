// mote built with -fno-exceptions: an error's message reaches the handler that the user set.
#include <mote/ops/rms_norm/rms_norm.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

void on_error(const char* message) {
  const bool expected = std::strcmp(message, "rms_norm: gain: expected shape [4], got [3]") == 0;
  std::printf("%s\n", message);
  std::exit(expected ? 0 : 1);
}

}  // namespace

int main() {
  mote::set_error_handler(&on_error);
  float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[8] = {};
  const float weight[4] = {1, 1, 1, 1};
  mote::simd<> be;
  mote::rms_norm(be, {x, 2, 4}, {weight, 4}, 1e-6f, {y, 2, 4});
  if (y[0] <= 0.0f || y[3] <= y[0]) return 1;
  mote::rms_norm(be, {x, 2, 4}, {weight, 3}, 1e-6f, {y, 2, 4});
  return 1;
}
