// `cuda`: the CUDA back end. Ops take device pointers and run in the order of one stream.
//
//   mote::cuda gpu{stream};
//   mote::rms_norm(gpu, x, weight, eps, y);   // returns when the kernel is queued
//   gpu.synchronize();
//
// A kernel is a trivially copyable struct: its members are the arguments, and every thread of the grid calls
//
//   static constexpr unsigned threads = 128;            // of a block: whole warps
//   struct shared_memory { … };                         // of a block, not initialised
//   template <class Context>
//   MOTE_DEVICE void operator()(const Context& ctx, shared_memory& memory) const;
//
// The context answers which thread this is and holds what threads do together, so that the same source runs on the host
// as well, where tests give it a context of threads, barriers and arrays:
//
//   block(), thread(), lane(), warp()    indices; lane() is the thread's place in its warp of 32
//   sync()                               barrier of the block
//   shuffle_xor(value, mask)             the value of lane() ^ mask; all lanes of the warp take part
//   atomic_add(pointer, value)           returns what was there
//   load4(pointer)                       four floats, 16-byte aligned, in one transaction
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "backend.hpp"
#include "error.hpp"
#include "view.hpp"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define MOTE_DEVICE __device__
#define MOTE_UNROLL _Pragma("unroll")  // arrays stay in registers only if every index is a constant
#else
#define MOTE_DEVICE
#define MOTE_UNROLL
#endif

MOTE_BEGIN_NAMESPACE

// The driver or runtime refused: "op: what failed: CUDA's description".
class cuda_error : public error {
  using error::error;
};

// A back end that launches such kernels.
template <class B>
concept launches_kernels = backend<B> && requires {
  typename B::kernel_context;
};

struct float_quad {
  float values[4];
};

namespace detail {

inline constexpr unsigned warp_size = 32;

inline constexpr std::size_t most_blocks = 0x7FFFFFFF;

struct take_sum {
  template <class T>
  MOTE_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

struct take_larger {
  MOTE_DEVICE float operator()(float a, float b) const { return a < b ? b : a; }
};

// x of all lanes of a warp combined, in an order that never changes; every lane gets it.
template <class Context, class T, class Combine>
MOTE_DEVICE T warp_reduce(const Context& ctx, T x, Combine combine) {
  for (unsigned mask = warp_size / 2; mask != 0; mask /= 2) x = combine(x, ctx.shuffle_xor(x, mask));
  return x;
}

// The same over a block of `Warps` warps, through an array in shared memory that is free again after the next barrier.
template <unsigned Warps, class Context, class T, class Combine>
MOTE_DEVICE T block_reduce(const Context& ctx, T x, T (&partial)[Warps], Combine combine) {
  x = warp_reduce(ctx, x, combine);
  if (ctx.lane() == 0) partial[ctx.warp()] = x;
  ctx.sync();
  x = partial[0];
  for (unsigned w = 1; w < Warps; ++w) x = combine(x, partial[w]);
  return x;
}

// A grid's size, or shape_error.
inline std::size_t check_blocks(const char* op, std::size_t blocks) {
  check(blocks <= most_blocks, op, "more blocks than a CUDA grid holds");
  return blocks;
}

}  // namespace detail

#ifdef __CUDACC__

namespace detail {

struct device_context {
  __device__ unsigned block() const { return blockIdx.x; }
  __device__ unsigned thread() const { return threadIdx.x; }
  __device__ unsigned lane() const { return threadIdx.x % warp_size; }
  __device__ unsigned warp() const { return threadIdx.x / warp_size; }
  __device__ void sync() const { __syncthreads(); }
  template <class T>
  __device__ T shuffle_xor(T value, unsigned mask) const {
    return __shfl_xor_sync(0xFFFFFFFFu, value, static_cast<int>(mask));
  }
  template <class T>
  __device__ T atomic_add(T* target, T value) const {
    return atomicAdd(target, value);
  }
  __device__ float_quad load4(const float* p) const {
    const float4 q = *reinterpret_cast<const float4*>(p);
    return {{q.x, q.y, q.z, q.w}};
  }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads) run_kernel(const Kernel kernel) {
  __shared__ typename Kernel::shared_memory memory;
  kernel(device_context{}, memory);
}

inline void check_cuda(cudaError_t status, const char* op, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // reported here: later calls need not meet it again
  raise<cuda_error>(std::string(op) + ": " + what + ": " + cudaGetErrorString(status));
}

}  // namespace detail

// Device memory that is taken and given back in stream order.
class cuda_scope {
 public:
  explicit cuda_scope(cudaStream_t stream) : stream_(stream) {}
  ~cuda_scope() {
    for (void* p : taken_) cudaFreeAsync(p, stream_);
  }
  cuda_scope(const cuda_scope&) = delete;
  cuda_scope& operator=(const cuda_scope&) = delete;

  template <class T, class... Extents>
  view<T, sizeof...(Extents)> tensor(Extents... extents) {
    const std::size_t bytes = detail::tensor_bytes<T>(extents...);
    taken_.reserve(taken_.size() + 1);
    void* p = nullptr;
    detail::check_cuda(cudaMallocAsync(&p, bytes == 0 ? 1 : bytes, stream_), "workspace", "device memory");
    taken_.push_back(p);
    return view<T, sizeof...(Extents)>(static_cast<T*>(p), static_cast<std::size_t>(extents)...);
  }

 private:
  cudaStream_t stream_;
  std::vector<void*> taken_;
};

class cuda {
 public:
  using kernel_context = detail::device_context;

  // The stream belongs to the caller and to the device that is current at every call.
  explicit cuda(cudaStream_t stream = nullptr) : stream_(stream) {}

  cudaStream_t stream() const { return stream_; }

  // Waits for everything queued; throws cuda_error if a kernel failed meanwhile.
  void synchronize() { detail::check_cuda(cudaStreamSynchronize(stream_), "cuda", "synchronize"); }

  cuda_scope scope() { return cuda_scope(stream_); }

  // Queues `blocks` blocks of a kernel; none is no work. Throws cuda_error "op: launch: …".
  template <class Kernel>
  void launch(const char* op, std::size_t blocks, const Kernel& kernel) {
    static_assert(Kernel::threads % detail::warp_size == 0);
    if (detail::check_blocks(op, blocks) == 0) return;
    void* arguments[] = {const_cast<Kernel*>(&kernel)};
    detail::check_cuda(
        cudaLaunchKernel(reinterpret_cast<const void*>(&detail::run_kernel<Kernel>),
                         dim3(static_cast<unsigned>(blocks)), dim3(Kernel::threads), arguments, 0, stream_),
        op, "launch");
  }

 private:
  cudaStream_t stream_;
};

static_assert(launches_kernels<cuda>);

#endif

MOTE_END_NAMESPACE
