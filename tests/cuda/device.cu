// The CUDA kernels on a GPU: the same comparisons as under the host emulation. Without a device it says so and exits
// with 77, which ctest reports as skipped.
#define CATCH_CONFIG_RUNNER
#include "cuda/kernels.hpp"

#include <iostream>
#include <vector>

#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#endif

namespace {

class gpu_machine {
 public:
  template <class T>
  class array {
   public:
    explicit array(const std::vector<T>& values) : size_(values.size()) {
      mote::detail::check_cuda(cudaMalloc(&data_, size_ * sizeof(T)), "test", "allocation");
      mote::detail::check_cuda(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "test",
                               "upload");
    }
    ~array() { cudaFree(data_); }
    array(const array&) = delete;
    array& operator=(const array&) = delete;

    T* data() { return data_; }
    std::vector<T> host() const {
      std::vector<T> values(size_);
      mote::detail::check_cuda(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "test",
                               "download");
      return values;
    }

   private:
    T* data_ = nullptr;
    std::size_t size_;
  };

  gpu_machine() {
    mote::detail::check_cuda(cudaStreamCreate(&stream_), "test", "stream");
    backend_ = mote::cuda(stream_);
  }
  ~gpu_machine() { cudaStreamDestroy(stream_); }
  gpu_machine(const gpu_machine&) = delete;
  gpu_machine& operator=(const gpu_machine&) = delete;

  mote::cuda& backend() { return backend_; }
  void wait() { backend_.synchronize(); }

 private:
  cudaStream_t stream_ = nullptr;
  mote::cuda backend_;
};

}  // namespace

TEST_CASE("cuda: rms_norm equals the reference") {
  gpu_machine machine;
  test::check_rms_norm(machine);
}

TEST_CASE("cuda: matmul equals the reference in every weight format, and a token alone equals it in a batch") {
  gpu_machine machine;
  test::check_matmul(machine);
}

int main(int argc, char** argv) {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    std::cout << "skipped: no CUDA device (" << cudaGetErrorString(status) << ")\n";
    return 77;
  }
  return Catch::Session().run(argc, argv);
}
