// The functions that the program picks by instruction set: plain types only, so that every variant means the same.
#pragma once

#include <cstddef>

struct kernels {
  const char* name;  // mote's version and instruction set
  // y[t, i] = weight[i] · x[t, i] / sqrt(mean_j x[t, j]² + eps)
  void (*rms_norm)(const float* x, const float* weight, float eps, float* y, std::size_t tokens, std::size_t hidden);
  // y[t, n] = Σ_k x[t, k] · w[n, k]
  void (*matmul)(const float* x, const float* w, float* y, std::size_t tokens, std::size_t in, std::size_t out);
};
