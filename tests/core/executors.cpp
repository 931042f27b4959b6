#include <mote/core/backend.hpp>
#include <mote/core/executors/openmp.hpp>
#include <mote/core/executors/serial.hpp>
#include <mote/core/executors/team.hpp>
#include <mote/core/executors/thread_pool.hpp>
#include <mote/core/simd.hpp>
#ifdef MOTE_TEST_TBB
#include <mote/core/executors/tbb.hpp>
#endif

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "support/catch.hpp"

namespace {

// Runs f(executor) as an engine with n threads would: once, or on each of its own threads.
template <class E>
struct harness {
  template <class F>
  static void run(std::size_t n, F f) {
    E e{mote::threads{n}};
    f(e);
  }
};

template <>
struct harness<mote::serial> {
  template <class F>
  static void run(std::size_t, F f) {
    mote::serial e;
    f(e);
  }
};

template <>
struct harness<mote::team_member> {
  template <class F>
  static void run(std::size_t n, F f) {
    mote::team team(n);
    std::vector<std::thread> others;
    for (std::size_t i = 1; i < n; ++i) {
      others.emplace_back([&, i] {
        mote::team_member e(team, i);
        f(e);
      });
    }
    mote::team_member e(team, 0);
    f(e);
    for (auto& t : others) t.join();
  }
};

}  // namespace

#define MOTE_EXECUTORS mote::serial, mote::thread_pool, mote::team_member
#ifdef _OPENMP
#define MOTE_OPENMP_EXECUTOR , mote::openmp
#else
#define MOTE_OPENMP_EXECUTOR
#endif
#ifdef MOTE_TEST_TBB
#define MOTE_TBB_EXECUTOR , mote::onetbb
#else
#define MOTE_TBB_EXECUTOR
#endif

TEMPLATE_TEST_CASE("executor: parallel_for covers every index once, in whole grains", "",
                   MOTE_EXECUTORS MOTE_OPENMP_EXECUTOR MOTE_TBB_EXECUTOR) {
  for (const std::size_t n : {1u, 2u, 3u, 5u}) {
    for (const std::size_t count : {0u, 1u, 2u, 7u, 64u, 1000u}) {
      for (const std::size_t grain :
           {std::size_t{0}, std::size_t{1}, std::size_t{3}, std::size_t{64}, std::size_t{5000}, ~std::size_t{0}}) {
        std::vector<std::atomic<int>> hits(count);
        std::atomic<int> misaligned{0};
        harness<TestType>::run(n, [&](auto& e) {
          e.parallel_for(count, grain, [&](std::size_t begin, std::size_t end) {
            if (begin >= end || end > count || (grain != 0 && begin % grain != 0)) misaligned.fetch_add(1);
            for (std::size_t i = begin; i < end; ++i) hits[i].fetch_add(1);
          });
        });
        REQUIRE(misaligned.load() == 0);
        for (const auto& h : hits) REQUIRE(h.load() == 1);
      }
    }
  }
}

TEMPLATE_TEST_CASE("executor: a parallel_for sees what the one before wrote", "",
                   MOTE_EXECUTORS MOTE_OPENMP_EXECUTOR MOTE_TBB_EXECUTOR) {
  const std::size_t count = 97;
  std::vector<std::uint64_t> a(count, 1), b(count);
  const int rounds = 200;
  harness<TestType>::run(3, [&](auto& e) {
    for (int round = 0; round < rounds; ++round) {
      e.parallel_for(count, 5, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) b[i] = a[count - 1 - i] + i;
      });
      e.parallel_for(count, 7, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) a[i] = b[count - 1 - i] % 1000003;
      });
    }
  });
  std::vector<std::uint64_t> x(count, 1), y(count);
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < count; ++i) y[i] = x[count - 1 - i] + i;
    for (std::size_t i = 0; i < count; ++i) x[i] = y[count - 1 - i] % 1000003;
  }
  CHECK(a == x);
}

TEMPLATE_TEST_CASE("executor: single runs once and everyone has its result", "",
                   MOTE_EXECUTORS MOTE_OPENMP_EXECUTOR MOTE_TBB_EXECUTOR) {
  std::atomic<int> runs{0}, wrong{0};
  harness<TestType>::run(4, [&](auto& e) {
    for (int i = 0; i < 50; ++i) {
      const int r = e.single([&] {
        runs.fetch_add(1);
        return i * 3;
      });
      if (r != i * 3) wrong.fetch_add(1);
    }
  });
  CHECK(runs.load() == 50);
  CHECK(wrong.load() == 0);
}

TEMPLATE_TEST_CASE("executor: concurrency", "", mote::thread_pool,
                   mote::team_member MOTE_OPENMP_EXECUTOR MOTE_TBB_EXECUTOR) {
  for (const std::size_t n : {1u, 2u, 3u}) {
    std::atomic<std::size_t> wrong{0};
    harness<TestType>::run(n, [&](auto& e) {
      if (e.concurrency() != n) wrong.fetch_add(1);
    });
    CHECK(wrong.load() == 0);
  }
}

TEMPLATE_TEST_CASE("executor: back ends share scratch between the threads of a call", "",
                   MOTE_EXECUTORS MOTE_OPENMP_EXECUTOR MOTE_TBB_EXECUTOR) {
  const std::size_t count = 1000;
  std::vector<float> out(count);
  harness<TestType>::run(3, [&](auto& e) {
    using E = std::remove_reference_t<decltype(e)>;
    std::unique_ptr<mote::simd<mote::default_arch, E>> be;
    if constexpr (std::is_same_v<E, mote::team_member>) {
      be = std::make_unique<mote::simd<mote::default_arch, E>>(e);
    } else if constexpr (std::is_same_v<E, mote::serial>) {
      be = std::make_unique<mote::simd<mote::default_arch, E>>();
    } else {
      be = std::make_unique<mote::simd<mote::default_arch, E>>(mote::threads{3});
    }
    for (int round = 0; round < 20; ++round) {
      auto scope = be->scope();
      const auto scratch = scope.template tensor<float>(count);
      be->parallel_for(count, 10, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) scratch(i) = static_cast<float>(i);
      });
      be->parallel_for(count, 16, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) out[i] = scratch(count - 1 - i);
      });
    }
  });
  for (std::size_t i = 0; i < count; ++i) REQUIRE(out[i] == static_cast<float>(count - 1 - i));
}

TEST_CASE("thread_pool: many short calls, and pools that come and go") {
  for (int pools = 0; pools < 20; ++pools) {
    mote::thread_pool pool{mote::threads{3}};
    std::atomic<std::size_t> sum{0};
    for (int i = 0; i < 200; ++i) {
      pool.parallel_for(3, 1, [&](std::size_t begin, std::size_t end) { sum.fetch_add(end - begin); });
    }
    REQUIRE(sum.load() == 600);
  }
}

TEST_CASE("thread_pool: wakes up after its workers have gone to sleep") {
  mote::thread_pool pool{mote::threads{3}};
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> calls{0};
    pool.parallel_for(5, 1, [&](std::size_t, std::size_t) { calls.fetch_add(1); });
    CHECK(calls.load() == 5);
  }
}

TEST_CASE("thread_pool: zero threads means the caller's") {
  mote::thread_pool pool{mote::threads{0}};
  CHECK(pool.concurrency() == 1);
  CHECK(mote::threads::all().count >= 1);
}

TEST_CASE("team: a member's index lies below the team's size") {
  mote::team team(2);
  CHECK_NOTHROW(mote::team_member(team, 1));
  CHECK_THROWS_AS(mote::team_member(team, 2), mote::shape_error);
}

TEST_CASE("team: what single() throws reaches every member") {
  std::atomic<int> caught{0};
  harness<mote::team_member>::run(3, [&](auto& e) {
    for (int i = 0; i < 2; ++i) {
      try {
        e.single([]() -> int { throw std::bad_alloc(); });
      } catch (const std::bad_alloc&) {
        caught.fetch_add(1);
      }
    }
    if (e.single([] { return 7; }) != 7) caught.store(100);
  });
  CHECK(caught.load() == 6);
}
