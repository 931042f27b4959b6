// What this machine can do, measured in the same run: memory, and the arithmetic that products are made of.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <ctime>

namespace bench {

// Bytes of a working set that the last-level cache does not hold.
std::size_t beyond_cache();

inline double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// The shortest of several runs, in seconds on the wall. What one thread does is better measured by processor time, as
// Google Benchmark's counters are: other programs do not lengthen it.
template <class F>
double shortest_of(int runs, F&& f, double (*now)() = wall_seconds) {
  double best = 1e300;
  for (int i = 0; i < runs; ++i) {
    const double start = now();
    f();
    best = std::min(best, now() - start);
  }
  return best;
}

// The arithmetic that bounds a product. bf16 is that of float32 where there is no such instruction; tiles are AMX's.
enum class arithmetic { float32, int8, bf16, int8_tiles, bf16_tiles };

// Bytes a second that `threads` threads together read from memory, measured anew by each call, in a hundredth of a second or so:
// the most of several ways to read and lengths of what is read.
double read_bandwidth(std::size_t threads);

// Bytes a second, read and written together, of multiplying a large array in place on one thread.
double update_bandwidth();

// Operations a second (a multiply-add is two) that `threads` threads together do, from registers; 0 where there are none.
double rate(arithmetic unit, std::size_t threads);

}  // namespace bench
