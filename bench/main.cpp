#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "peers/peers.hpp"
#include "support/bench.hpp"
#include "support/limits.hpp"
#include "support/table.hpp"

namespace {

// The peers that this program was built with, and torch where it was measured before.
std::vector<bench::table::column> contenders() {
  std::vector<bench::table::column> columns;
  const auto& all = bench::peers();
  for (const char* name : {"ggml", "onednn", "openblas"}) {
    const auto found = std::find_if(all.begin(), all.end(), [&](const auto& peer) { return peer->name() == name; });
    if (found == all.end()) {
      std::fprintf(stderr, "%s: not built in (./dev bench --peers installs it), so not measured\n", name);
      continue;
    }
    std::fprintf(stderr, "%s: %s\n", name, (*found)->version().c_str());
    columns.push_back({name, std::string("vs_") + name});
  }
  if (std::getenv("MOTE_PEERS_JSON") != nullptr) columns.push_back({"torch", "vs_peer"});
  if (bench::rate(bench::arithmetic::int8_tiles, 1) > 0.0) columns.push_back({"vector", "vs_vector"});
  return columns;
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
  bench::table table(contenders());
  benchmark::RunSpecifiedBenchmarks(&table);
  benchmark::Shutdown();
  return table.failures() ? 1 : 0;
}
