// Experts that are not all in memory at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

// Asked before experts are read. `offsets` are those of group_by_expert: expert e has tokens where offsets(e) < offsets(e + 1).
class expert_residency {
 public:
  virtual ~expert_residency() = default;

  // Makes those experts with tokens from `first` on readable for which there is room, and says where they end: at most at
  // offsets.size() - 1, beyond `first`. The next call begins there; what was readable before may then be so no longer.
  virtual std::size_t require(view<const std::int32_t, 1> offsets, std::size_t first) = 0;
};

namespace detail {

// f(first, last) for the groups of experts that are in memory together, all in one where `residency` is null. Members of a
// team ask for each once, together.
template <class Backend, class Function>
void for_each_expert_group(Backend& be, expert_residency* residency, view<const std::int32_t, 1> offsets,
                           Function&& f) {
  const std::size_t experts = offsets.size() - 1;
  for (std::size_t first = 0; first < experts;) {
    const std::size_t last =
        residency != nullptr ? be.single([&] { return residency->require(offsets, first); }) : experts;
    f(first, last);
    first = last;
  }
}

}  // namespace detail

MOTE_END_NAMESPACE
