#include "shared_helper.hpp"

float sum_two(const float* x, int n);
float sum_two(const float* x, int n) { return 2.0f * tail_sum(x, n); }

namespace {
const float ones[] = {1.0f, 1.0f};
}
extern const float two_at_start;
const float two_at_start = sum_two(ones, 1);
