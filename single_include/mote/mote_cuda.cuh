// mote 0.1.0: the CUDA back end, in one file. Written by scripts/single_include from include/mote.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "mote.hpp"

// ---- mote/core/cuda.cuh
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

#include <cstddef>
#include <string>
#include <vector>

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

// ---- mote/ops/matmul/cuda.cuh
#include <cmath>
#include <cstdint>
#include <type_traits>

MOTE_BEGIN_NAMESPACE

namespace detail {

MOTE_DEVICE inline float multiply_add(float x, float w, float sum) { return std::fma(x, w, sum); }
MOTE_DEVICE inline float multiply_add(float x, bf16 w, float sum) { return std::fma(x, static_cast<float>(w), sum); }
MOTE_DEVICE inline std::int32_t multiply_add(std::int8_t x, std::int8_t w, std::int32_t sum) { return sum + x * w; }

// Each warp makes R outputs for C tokens; its lanes lie along k and share a strip of the C tokens in shared memory with
// the block's other warps. An output's sum over k has one order whatever R and C are: a token's result has the same bits
// alone (C = 1, a warp for each weight row) and in a batch.
//
//   y[t, n] (+)= scale_x[t] · scale_w[n] · Σ_k x[t, k] · w[n, k]      the scales of integer codes only
template <class X, class W, unsigned R, unsigned C>
struct matmul_kernel {
  static constexpr unsigned threads = 128, rows_of_block = threads / warp_size * R, strip = 256;
  static constexpr bool scaled = std::is_same_v<W, std::int8_t>;
  using sum_type = std::conditional_t<scaled, std::int32_t, float>;
  struct shared_memory {
    X x[C][strip];
  };

  view<const X, 2> x;
  view<const W, 2> w;
  view<float, 2> y;
  bool accumulate;
  view<const float, 1> scale_x, scale_w;

  MOTE_HD std::size_t token_tiles() const { return (x.extent(0) + C - 1) / C; }
  MOTE_HD std::size_t blocks() const { return token_tiles() * ((w.extent(0) + rows_of_block - 1) / rows_of_block); }

  template <class Context>
  MOTE_DEVICE void operator()(const Context& ctx, shared_memory& memory) const {
    // Neighbouring blocks read the same weights, which the second finds in the cache.
    const std::size_t token = ctx.block() % token_tiles() * C;
    const std::size_t row = ctx.block() / token_tiles() * rows_of_block + ctx.warp() * R;
    const std::size_t in = x.extent(1);

    sum_type sums[R][C] = {};
    for (std::size_t begin = 0; begin < in; begin += strip) {
      const unsigned count = static_cast<unsigned>(in - begin < strip ? in - begin : strip);
      MOTE_UNROLL
      for (unsigned c = 0; c < C; ++c) {
        for (unsigned k = ctx.thread(); k < count; k += threads) {
          memory.x[c][k] = token + c < x.extent(0) ? x.row(token + c)[begin + k] : X{};
        }
      }
      ctx.sync();
      for (unsigned k = ctx.lane(); k < count; k += warp_size) {
        W weights[R];
        MOTE_UNROLL
        for (unsigned r = 0; r < R; ++r) weights[r] = row + r < w.extent(0) ? w.row(row + r)[begin + k] : W{};
        MOTE_UNROLL
        for (unsigned c = 0; c < C; ++c) {
          MOTE_UNROLL
          for (unsigned r = 0; r < R; ++r) sums[r][c] = multiply_add(memory.x[c][k], weights[r], sums[r][c]);
        }
      }
      ctx.sync();
    }

    MOTE_UNROLL
    for (unsigned r = 0; r < R; ++r) {
      MOTE_UNROLL
      for (unsigned c = 0; c < C; ++c) {
        const sum_type sum = warp_reduce(ctx, sums[r][c], take_sum{});
        const std::size_t t = token + c, n = row + r;
        if (ctx.lane() != (r * C + c) % warp_size || t >= x.extent(0) || n >= w.extent(0)) continue;
        float value = static_cast<float>(sum);
        if constexpr (scaled) value = scale_x(t) * scale_w(n) * value;
        y(t, n) = accumulate ? y(t, n) + value : value;
      }
    }
  }
};

// One block a token: the codes of quantize_int8_row.
struct quantize_tokens_kernel {
  static constexpr unsigned threads = 128;
  struct shared_memory {
    float largest[threads / warp_size];
  };

  view<const float, 2> x;
  view<std::int8_t, 2> codes;
  view<float, 1> scale;

  template <class Context>
  MOTE_DEVICE void operator()(const Context& ctx, shared_memory& memory) const {
    const float* in = x.row(ctx.block());
    float largest = 0.0f;
    for (std::size_t i = ctx.thread(); i < x.extent(1); i += threads) {
      largest = std::isfinite(in[i]) ? std::fmax(largest, std::fabs(in[i])) : INFINITY;
    }
    largest = block_reduce(ctx, largest, memory.largest, take_larger{});
    const bool finite = std::isfinite(largest);
    const float s = !finite ? NAN : largest / 127.0f > 0.0f ? largest / 127.0f : 1.0f;
    if (ctx.thread() == 0) scale(ctx.block()) = s;
    for (std::size_t i = ctx.thread(); i < x.extent(1); i += threads) {
      codes(ctx.block(), i) =
          finite ? static_cast<std::int8_t>(std::fmin(std::fmax(std::nearbyint(in[i] / s), -127.0f), 127.0f))
                 : std::int8_t{0};
    }
  }
};

template <launches_kernels Backend, class X, class W>
void launch_matmul(Backend& be, view<const X, 2> x, view<const W, 2> w, view<float, 2> y, output mode,
                   view<const float, 1> scale_x = {}, view<const float, 1> scale_w = {}) {
  const auto launch = [&](const auto& kernel) { be.launch("matmul", kernel.blocks(), kernel); };
  const bool accumulate = mode == output::accumulate;
  if (x.extent(0) == 1) {
    launch(matmul_kernel<X, W, 1, 1>{x, w, y, accumulate, scale_x, scale_w});
  } else {
    launch(matmul_kernel<X, W, 4, 8>{x, w, y, accumulate, scale_x, scale_w});
  }
}

}  // namespace detail

template <launches_kernels Backend, class T>
void matmul_impl(Backend& be, view<const float, 2> x, const view<const T, 2>& w, view<float, 2> y, output mode) {
  detail::launch_matmul(be, x, w, y, mode);
}

template <launches_kernels Backend>
void matmul_impl(Backend& be, view<const float, 2> x, const int8_matrix& w, view<float, 2> y, output mode) {
  auto scope = be.scope();
  const auto codes = scope.template tensor<std::int8_t>(x.extent(0), x.extent(1));
  const auto scale = scope.template tensor<float>(x.extent(0));
  be.launch("matmul", x.extent(0), detail::quantize_tokens_kernel{x, codes, scale});
  detail::launch_matmul<Backend, std::int8_t, std::int8_t>(be, codes, w.codes, y, mode, scale, w.scale);
}

MOTE_END_NAMESPACE

// ---- mote/ops/rms_norm/cuda.cuh
MOTE_BEGIN_NAMESPACE

namespace detail {

// One block a row, four values a thread and step. Values are summed in the same order whether or not the row is aligned.
struct rms_norm_kernel {
  static constexpr unsigned threads = 128;
  struct shared_memory {
    float squares[threads / warp_size];
  };

  view<const float, 2> x;
  view<const float, 1> gain;
  float eps;
  view<float, 2> y;

  template <class Context>
  MOTE_DEVICE void operator()(const Context& ctx, shared_memory& memory) const {
    const float* in = x.row(ctx.block());
    float* out = y.row(ctx.block());
    const std::size_t n = x.extent(1), whole = n / 4 * 4, first = ctx.thread() * std::size_t{4};
    const bool aligned = reinterpret_cast<std::uintptr_t>(in) % 16 == 0;
    const auto quad = [&](std::size_t i) {
      return aligned ? ctx.load4(in + i) : float_quad{{in[i], in[i + 1], in[i + 2], in[i + 3]}};
    };

    float squares = 0.0f;
    for (std::size_t i = first; i < whole; i += 4 * threads) {
      const float_quad q = quad(i);
      for (const float v : q.values) squares += v * v;
    }
    if (const std::size_t i = whole + ctx.thread(); i < n) squares += in[i] * in[i];
    squares = block_reduce(ctx, squares, memory.squares, take_sum{});
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);

    const auto store = [&](std::size_t i, float v) { out[i] = v * scale * (gain.empty() ? 1.0f : gain(i)); };
    for (std::size_t i = first; i < whole; i += 4 * threads) {
      const float_quad q = quad(i);
      for (unsigned j = 0; j < 4; ++j) store(i + j, q.values[j]);
    }
    if (const std::size_t i = whole + ctx.thread(); i < n) store(i, in[i]);
  }
};

}  // namespace detail

template <launches_kernels Backend>
void rms_norm_impl(Backend& be, view<const float, 2> x, view<const float, 1> gain, float eps, view<float, 2> y) {
  be.launch("rms_norm", x.extent(0), detail::rms_norm_kernel{x, gain, eps, y});
}

MOTE_END_NAMESPACE
