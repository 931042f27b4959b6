// Every kernel of matrix products, compiled once.
#include <mote/kernels/instantiate.hpp>
