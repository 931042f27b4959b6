// The CUDA kernels under the host emulation.
#include "cuda/kernels.hpp"

#include <utility>
#include <vector>

#include "support/cuda_emulation.hpp"

namespace {

class emulated_machine {
 public:
  template <class T>
  class array {
   public:
    explicit array(std::vector<T> values) : values_(std::move(values)) {}
    T* data() { return values_.data(); }
    std::vector<T> host() const { return values_; }

   private:
    std::vector<T> values_;
  };

  test::cuda_emulation& backend() { return backend_; }
  void wait() {}

 private:
  test::cuda_emulation backend_;
};

}  // namespace

TEST_CASE("cuda, emulated: rms_norm equals the reference") {
  emulated_machine machine;
  test::check_rms_norm(machine);
}

TEST_CASE(
    "cuda, emulated: matmul equals the reference in every weight format, and a token alone equals it in a batch") {
  emulated_machine machine;
  test::check_matmul(machine);
}

TEST_CASE("cuda, emulated: the public entries check shapes before any launch") {
  test::cuda_emulation be;
  std::vector<float> x(12);
  const mote::view<float, 2> v(x.data(), 3, 4);
  CHECK_THROWS_WITH(mote::rms_norm(be, v, mote::view<const float, 1>(x.data(), 3), 1e-6f, v),
                    "rms_norm: gain: expected shape [4], got [3]");
  CHECK_THROWS_WITH(mote::matmul(be, v, mote::view<const float, 2>(x.data(), 3, 4), v),
                    "matmul: y: expected shape [3, 3], got [3, 4]");
}
