// What this machine can do, measured in the same run: memory, and the arithmetic that products are made of.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>

namespace bench {

// Bytes of a working set that no last-level cache of a desktop or of a server's slice holds.
inline constexpr std::size_t beyond_cache = std::size_t{1} << 28;

// The shortest of several runs, in seconds on the wall.
template <class F>
double shortest_of(int runs, F&& f) {
  double best = 1e300;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best;
}

// The arithmetic that bounds a product. bf16 is that of float32 where there is no such instruction; tiles are AMX's.
enum class arithmetic { float32, int8, bf16, int8_tiles, bf16_tiles };

// Bytes a second that `threads` threads together read from memory.
double read_bandwidth(std::size_t threads);

// Bytes a second, read and written together, of multiplying a large array in place on one thread.
double update_bandwidth();

// Operations a second (a multiply-add is two) that `threads` threads together do, from registers; 0 where there are none.
double rate(arithmetic unit, std::size_t threads);

}  // namespace bench
