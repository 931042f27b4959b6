// "I am thread i of n": for engines that call kernels from inside their own threads.
//
// The engine makes one `team` for n threads. Each thread builds a back end over `team_member{team, i}` and all make the
// same calls in the same order; the members share one workspace and meet at a barrier after every parallel_for.
//
//   mote::team team(n);                                       // once
//   mote::simd<mote::default_arch, mote::team_member> be{mote::team_member{team, i}};   // on each thread
//   mote::rms_norm(be, x, weight, eps, y);
#pragma once

#include <barrier>
#include <cstddef>
#include <cstring>
#include <exception>
#include <type_traits>

#include "../workspace.hpp"
#include "serial.hpp"

MOTE_BEGIN_NAMESPACE

class team {
 public:
  explicit team(std::size_t members) : members_(members), barrier_(static_cast<std::ptrdiff_t>(members)) {}

  std::size_t size() const { return members_; }
  void wait() { barrier_.arrive_and_wait(); }
  workspace& shared_workspace() { return workspace_; }
  std::byte* slot() { return slot_; }
  // What the last single() threw, or null.
  std::exception_ptr& failure() { return failure_; }

  static constexpr std::size_t slot_size = 64;

 private:
  std::size_t members_;
  std::barrier<> barrier_;
  workspace workspace_;
  alignas(64) std::byte slot_[slot_size] = {};
  std::exception_ptr failure_;
};

class team_member {
 public:
  team_member(team& t, std::size_t index) : team_(&t), index_(index) {
    check(index < t.size(), "team_member", "index: must be below the team's size");
  }

  std::size_t concurrency() const { return team_->size(); }
  workspace& shared_workspace() { return team_->shared_workspace(); }

  template <class F>
  void parallel_for(std::size_t count, std::size_t grain, F&& f) {
    if (grain == 0) grain = 1;
    const std::size_t pieces = count / grain + (count % grain != 0), n = team_->size();
    const std::size_t first = pieces * index_ / n * grain, last = pieces * (index_ + 1) / n * grain;
    if (first < last) f(first, last < count ? last : count);
    team_->wait();
  }

  // What f throws reaches every member.
  template <class F>
  auto single(F&& f) {
    using result = decltype(f());
    static_assert(std::is_trivially_copyable_v<result> && sizeof(result) <= team::slot_size);
    result r{};
    if (index_ == 0) {
#if MOTE_EXCEPTIONS
      team_->failure() = nullptr;
      try {
        r = f();
      } catch (...) {
        team_->failure() = std::current_exception();
      }
#else
      r = f();
#endif
      std::memcpy(team_->slot(), &r, sizeof r);
    }
    team_->wait();
    std::memcpy(static_cast<void*>(&r), team_->slot(), sizeof r);
    const std::exception_ptr failure = team_->failure();
    team_->wait();
    if (failure) std::rethrow_exception(failure);
    return r;
  }

 private:
  team* team_;
  std::size_t index_;
};

static_assert(executor<team_member>);

MOTE_END_NAMESPACE
