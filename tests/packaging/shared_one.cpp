#include "shared_helper.hpp"

float sum_one(const float* x, int n);
float sum_one(const float* x, int n) { return tail_sum(x, n); }
