// A decode step allocates no heap memory after the first.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#include <lm/engine.hpp>
#include <mote/decode/sampler.hpp>

#include "lm/support.hpp"

namespace {
std::atomic<std::size_t> allocations{0};

void* count_and_try(std::size_t size, std::size_t alignment) noexcept {
  ++allocations;
  size = (size + alignment - 1) / alignment * alignment;
  return std::aligned_alloc(alignment, size == 0 ? alignment : size);
}

void* count_and_allocate(std::size_t size, std::size_t alignment) {
  if (void* p = count_and_try(size, alignment)) return p;
  throw std::bad_alloc();
}

// Where it is inlined into delete, g++ 12 warns of free() for what an operator new gave that it did not inline.
[[gnu::noinline]] void give_back(void* p) noexcept { std::free(p); }
}  // namespace

// Every form of new of this program counts: a form left to the library would be freed by another's delete.
void* operator new(std::size_t size) { return count_and_allocate(size, alignof(std::max_align_t)); }
void* operator new[](std::size_t size) { return count_and_allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t a) {
  return count_and_allocate(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a) {
  return count_and_allocate(size, static_cast<std::size_t>(a));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return count_and_try(size, alignof(std::max_align_t));
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return count_and_try(size, alignof(std::max_align_t));
}
void* operator new(std::size_t size, std::align_val_t a, const std::nothrow_t&) noexcept {
  return count_and_try(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a, const std::nothrow_t&) noexcept {
  return count_and_try(size, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { give_back(p); }
void operator delete[](void* p) noexcept { give_back(p); }
void operator delete(void* p, std::size_t) noexcept { give_back(p); }
void operator delete[](void* p, std::size_t) noexcept { give_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete[](void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }

TEST_CASE("decode: a step allocates nothing after the first") {
  CHECK(allocations > 0);  // the counter counts
  struct formats {
    lm::weight_format weights;
    mote::row_format cache;
  };
  const formats combinations[] = {{lm::weight_format::stored, mote::row_format::of<mote::mxfp8>()},
                                  {lm::weight_format::f32, mote::row_format::of<float>()},
                                  {lm::weight_format::int8, mote::row_format::of<mote::q8_0>()}};
  for (const auto backend : {lm::backend_kind::reference, lm::backend_kind::simd}) {
    for (const auto& format : combinations) {
      for (const bool speculative : {false, true}) {
        const auto e = lm::make_engine({.model = MOTE_MODEL_DIR,
                                        .weights = format.weights,
                                        .backend = backend,
                                        .threads = 2,
                                        .context = 200,
                                        .chunk = 16,
                                        .cache = format.cache,
                                        .speculative = speculative});
        const std::size_t vocab = e->config().vocab_size;
        mote::sampler sampler({.temperature = 0.7f, .top_k = 40, .top_p = 0.95f, .repetition_penalty = 1.1f}, vocab);
        const std::vector<std::int32_t> prompt = {0, 632, 280, 889, 1077};
        std::int32_t token = sampler.sample({e->forward(prompt, 1).row(0), vocab});
        std::size_t before = 0;
        for (int step = 0; step < 80; ++step) {  // crosses a page of the cache
          if (step == 1) before = allocations;
          if (speculative) e->draft(token);
          token = sampler.sample({e->forward({&token, 1}, 1).row(0), vocab});
          sampler.observe(token);
        }
        CHECK(allocations == before);
      }
    }
  }
}
