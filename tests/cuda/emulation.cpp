// The emulation itself: that it does what CUDA promises, and that a thread sanitizer sees what CUDA forbids.
#include "support/cuda_emulation.hpp"

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "support/catch.hpp"

namespace {

struct nothing {};

// out[block, thread] = the block's sum of thread · (block + 1), and a butterfly over the warp.
struct sums {
  static constexpr unsigned threads = 96;
  struct shared_memory {
    int partial[threads / 32];
  };
  int *block_sums, *warp_sums;

  template <class Context>
  void operator()(const Context& ctx, shared_memory& memory) const {
    const int x = static_cast<int>(ctx.thread() * (ctx.block() + 1));
    const unsigned i = ctx.block() * threads + ctx.thread();
    warp_sums[i] = mote::detail::warp_reduce(ctx, x, mote::detail::take_sum{});
    block_sums[i] = mote::detail::block_reduce(ctx, x, memory.partial, mote::detail::take_sum{});
  }
};

// Through shared memory; with Synchronized false, the barrier between writing and reading is missing.
template <bool Synchronized>
struct reverse {
  static constexpr unsigned threads = 128;
  struct shared_memory {
    float values[threads];
  };
  float* data;

  template <class Context>
  void operator()(const Context& ctx, shared_memory& memory) const {
    memory.values[ctx.thread()] = data[ctx.thread()];
    if (Synchronized) ctx.sync();
    data[ctx.thread()] = memory.values[threads - 1 - ctx.thread()];
  }
};

struct count {
  static constexpr unsigned threads = 64;
  using shared_memory = nothing;
  int* integer;
  float* real;

  template <class Context>
  void operator()(const Context& ctx, shared_memory&) const {
    ctx.atomic_add(integer, 1);
    ctx.atomic_add(real, 0.5f);
  }
};

struct misaligned_load {
  static constexpr unsigned threads = 32;
  using shared_memory = nothing;
  const float* data;

  template <class Context>
  void operator()(const Context& ctx, shared_memory&) const {
    if (ctx.thread() == 0) ctx.load4(data + 1);
    ctx.sync();
  }
};

struct fresh_memory {
  static constexpr unsigned threads = 32;
  struct shared_memory {
    float value;
  };
  float* seen;

  template <class Context>
  void operator()(const Context& ctx, shared_memory& memory) const {
    if (ctx.thread() != 0) return;
    seen[ctx.block()] = memory.value;
    memory.value = 1.0f;
  }
};

}  // namespace

TEST_CASE("cuda emulation: reductions over warps and blocks") {
  std::vector<int> block_sums(3 * 96), warp_sums(3 * 96);
  test::cuda_emulation be;
  be.launch("sums", 3, sums{block_sums.data(), warp_sums.data()});
  for (int b = 0; b < 3; ++b) {
    for (int t = 0; t < 96; ++t) {
      const auto i = static_cast<std::size_t>(b * 96 + t);
      CHECK(block_sums[i] == 95 * 96 / 2 * (b + 1));
      CHECK(warp_sums[i] == (31 * 32 / 2 + t / 32 * 32 * 32) * (b + 1));
    }
  }
}

TEST_CASE("cuda emulation: shared memory and its barrier") {
  std::vector<float> data(128);
  for (std::size_t i = 0; i < 128; ++i) data[i] = static_cast<float>(i);
  test::cuda_emulation{}.launch("reverse", 1, reverse<true>{data.data()});
  for (std::size_t i = 0; i < 128; ++i) CHECK(data[i] == static_cast<float>(127 - i));

  std::vector<float> seen(3);
  test::cuda_emulation{}.launch("fresh_memory", 3, fresh_memory{seen.data()});
  for (const float v : seen) CHECK(v != v);
}

TEST_CASE("cuda emulation: atomics") {
  int integer = 0;
  float real = 0.0f;
  test::cuda_emulation be;
  be.launch("count", 4, count{&integer, &real});
  CHECK(integer == 256);
  CHECK(real == 128.0f);
  be.launch("count", 0, count{&integer, &real});
  CHECK(integer == 256);
  CHECK_THROWS_WITH(be.launch("count", std::size_t{1} << 31, count{&integer, &real}),
                    "count: more blocks than a CUDA grid holds");
}

TEST_CASE("cuda emulation: an address that a device would refuse is an error, and nobody waits for ever") {
  alignas(16) float data[8] = {};
  CHECK_THROWS_AS((test::cuda_emulation{}.launch("misaligned_load", 2, misaligned_load{data})), std::logic_error);
}

// Not run by itself: only the thread sanitizer can tell that it is wrong, and a test expects it to.
TEST_CASE("cuda emulation: a kernel that lacks a barrier", "[.][missing_barrier]") {
  std::vector<float> data(128);
  test::cuda_emulation{}.launch("reverse", 1, reverse<false>{data.data()});
  SUCCEED();
}
