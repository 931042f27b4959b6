#include "shared_helper.hpp"

float sum_two(const float* x, int n);
float sum_two(const float* x, int n) { return 2.0f * tail_sum(x, n); }

// Initialised when the program starts: no compiler can compute a volatile in advance.
volatile float one = 1.0f;
extern const float two_at_start;
const float two_at_start = 2.0f * one;
