// The kernels of matrix products and attention for mote's own tests, benchmarks and examples, compiled once for all of them.
#include <mote/kernels/instantiate.hpp>
