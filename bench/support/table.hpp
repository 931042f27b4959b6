// One line for each benchmark: mote's time, the limit and the peers, each with its ratio.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace bench {

class table : public benchmark::BenchmarkReporter {
 public:
  // Another contender: its title, and the counter that is its time / mote's.
  struct column {
    std::string title, counter;
  };
  explicit table(std::vector<column> columns) : columns_(std::move(columns)) {}

  bool ReportContext(const Context& context) override {
    PrintBasicContext(&GetErrorStream(), context);
    std::printf("%-50s %8s %8s %8s", "", "mote", "limit", "of_limit");
    for (const auto& peer : columns_) std::printf(" %8s %11s", peer.title.c_str(), peer.counter.c_str());
    std::printf("\n");
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      std::printf("%-50s", run.benchmark_name().c_str());
      if (failed(run)) {
        failures_ = true;
        std::printf(" FAILED: %s\n", message(run).c_str());
        continue;
      }
      const auto counter = [&run](const std::string& name) {
        const auto found = run.counters.find(name);
        return found == run.counters.end() ? 0.0 : found->second.value;
      };
      const double own = counter("shortest");
      const double seconds =
          own > 0.0 ? own : run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit);
      std::printf(" %8s", time(seconds).c_str());
      const double share = counter("of_limit");
      std::printf(" %8s %7.0f%%", time(share * seconds).c_str(), 100.0 * share);
      for (const auto& peer : columns_) {
        const double ratio = counter(peer.counter);
        if (ratio > 0.0) {
          std::printf(" %8s %11.2f", time(ratio * seconds).c_str(), ratio);
        } else {
          std::printf(" %8s %11s", "-", "-");
        }
      }
      std::printf("\n");
    }
    std::fflush(stdout);
  }

  bool failures() const { return failures_; }

 private:
  // Google Benchmark 1.8 renamed the field.
  template <class R>
  static bool failed(const R& run) {
    if constexpr (requires { run.error_occurred; }) {
      return run.error_occurred;
    } else {
      return run.skipped != decltype(run.skipped){};
    }
  }
  template <class R>
  static std::string message(const R& run) {
    if constexpr (requires { run.error_message; }) {
      return run.error_message;
    } else {
      return run.skip_message;
    }
  }
  static std::string time(double seconds) {
    char text[32];
    const bool small = seconds < 1e-3;
    std::snprintf(text, sizeof text, "%.3g %s", seconds * (small ? 1e6 : 1e3), small ? "us" : "ms");
    return text;
  }

  std::vector<column> columns_;
  bool failures_ = false;
};

}  // namespace bench
