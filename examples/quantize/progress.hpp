// A bar on standard error while something long goes on, where that is a terminal.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>

#include <fmt/core.h>

namespace quantize {

class progress_bar {
 public:
  explicit progress_bar(std::size_t total) : total_(std::max(total, std::size_t{1})), shown_(isatty(2) != 0) {}
  ~progress_bar() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void advance(std::size_t amount, const std::string& what) {
    done_ += amount;
    if (!shown_) return;
    constexpr std::size_t width = 30;
    const std::size_t filled = std::min(width, width * done_ / total_);
    fmt::print(stderr, "\r\033[K[{:#<{}}{:.<{}}] {:3}%  {}", "", filled, "", width - filled,
               std::min(std::size_t{100}, 100 * done_ / total_), what.substr(0, 60));
    std::fflush(stderr);
  }

 private:
  std::size_t total_, done_ = 0;
  bool shown_;
};

}  // namespace quantize
