// A helper that does not name its instruction set: what mote's namespace prevents, here on purpose.
#pragma once

template <class T>
__attribute__((noinline)) T tail_sum(const T* x, int n) {
  T sum{};
  for (int i = 0; i < n; ++i) sum += x[i];
  return sum;
}
