#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "peers/peers.hpp"
#include "support/bench.hpp"
#include "support/table.hpp"

namespace {

void name_peers() {
  for (const char* known : {"ggml", "onednn", "openblas"}) {
    const auto& all = bench::peers();
    const auto found = std::find_if(all.begin(), all.end(), [&](const auto& peer) { return peer->name() == known; });
    if (found == all.end()) {
      std::fprintf(stderr, "%s: not installed, so not measured (./dev bench --peers installs it)\n", known);
    } else {
      std::fprintf(stderr, "%s: %s\n", known, (*found)->version().c_str());
    }
  }
}

}  // namespace

// A fifth of a second for each benchmark, unless the command line, which comes later, says otherwise.
int main(int argc, char** argv) {
  char min_time[] = "--benchmark_min_time=0.2";
  std::vector<char*> arguments(argv, argv + argc);
  arguments.insert(arguments.begin() + 1, min_time);
  for (const char* argument : arguments) {
    const std::size_t length = std::strlen("--benchmark_min_time=");
    if (std::strncmp(argument, min_time, length) == 0) bench::measuring_time = std::strtod(argument + length, nullptr);
  }
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;
  name_peers();
  bench::table table;
  benchmark::RunSpecifiedBenchmarks(&table);
  benchmark::Shutdown();
  return table.failures() ? 1 : 0;
}
