#include <mote/core/config.hpp>
#include <mote/core/cpu.hpp>
#include <mote/core/error.hpp>
#include <mote/core/view.hpp>

#include <string>
#include <string_view>
#include <type_traits>

#include "support/catch.hpp"

namespace {

template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const mote::error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

static_assert(std::is_base_of_v<std::runtime_error, mote::error>);
static_assert(std::is_base_of_v<mote::error, mote::shape_error> && std::is_base_of_v<mote::error, mote::format_error>);
static_assert(!std::is_base_of_v<mote::shape_error, mote::format_error>);

TEST_CASE("error: check_shape names the op, the argument and both shapes") {
  const mote::view<float, 2> v(nullptr, 3, 4);
  CHECK(message_of([&] { mote::check_shape("matmul", "y", v.extents(), {3, 4}); }).empty());
  CHECK(message_of([&] {
          mote::check_shape("matmul", "y", v.extents(), {3, 5});
        }) == "matmul: y: expected shape [3, 5], got [3, 4]");
  CHECK(message_of([&] { mote::check_shape("rms_norm", "gain", v.extents(), {3}); }) ==
        "rms_norm: gain: expected shape [3], got [3, 4]");
  CHECK_THROWS_AS(mote::check_shape("op", "x", v.extents(), {}), mote::shape_error);
}

TEST_CASE("error: check") {
  CHECK_NOTHROW(mote::check(true, "op", "fine"));
  CHECK(message_of([] { mote::check(false, "route", "top_k: must not exceed experts"); }) ==
        "route: top_k: must not exceed experts");
}

TEST_CASE("error: raise") {
  CHECK_THROWS_AS(mote::raise<mote::format_error>("model.safetensors: header: truncated"), mote::format_error);
  CHECK(message_of([] { mote::raise<mote::format_error>("a: b"); }) == "a: b");
}

TEST_CASE("config: the version and the instruction set are part of the namespace") {
  const std::string name = mote::abi_name;
  const std::string version = "v" + std::to_string(mote::version_major) + "_" + std::to_string(mote::version_minor) +
                              "_" + std::to_string(mote::version_patch) + "_";
  CHECK(name.rfind(version, 0) == 0);
#if defined(__AVX512BW__)
  CHECK(name.find("avx512") != std::string::npos);
#elif defined(__AVX2__)
  CHECK(name.find("avx2") != std::string::npos);
#elif defined(__aarch64__)
  CHECK(name.find("neon") != std::string::npos);
#endif
}

TEST_CASE("cpu: this machine runs what this file was compiled for") {
#if defined(__x86_64__)
  CHECK(mote::cpu_runs("x86-64"));
  const bool v2 = mote::cpu_runs("x86-64-v2"), v3 = mote::cpu_runs("x86-64-v3"), v4 = mote::cpu_runs("x86-64-v4");
  CHECK((v2 || !v3));
  CHECK((v3 || !v4));
  CHECK((v4 || !mote::cpu_runs("avx512-vnni")));
  CHECK((mote::cpu_runs("avx512-vnni") || !mote::cpu_runs("avx512-bf16")));
  CHECK_FALSE(mote::cpu_runs("armv8-a"));
#if defined(__GNUC__)
  __builtin_cpu_init();
  CHECK(v3 == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")));
  CHECK(v4 == (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")));
#endif
#elif defined(__aarch64__)
  CHECK(mote::cpu_runs("armv8-a"));
  CHECK_FALSE(mote::cpu_runs("x86-64"));
#endif
  CHECK_FALSE(mote::cpu_runs("no such set"));
}

TEST_CASE("check_view: a last dimension with gaps is refused") {
  float data[12] = {};
  const mote::view<float, 2> rows(data, {3, 2}, {4, 1}), columns(data, {2, 3}, {1, 4}), one(data, {3, 1}, {4, 4});
  CHECK_NOTHROW(mote::check_view("op", "x", rows, {3, 2}));
  CHECK_NOTHROW(mote::check_view("op", "x", one, {3, 1}));
  CHECK_THROWS_WITH(mote::check_view("op", "x", columns, {2, 3}), contains("op: x") && contains("stride of 4"));
  CHECK_THROWS_WITH(mote::check_view("op", "x", rows, {2, 3}), contains("[2, 3]") && contains("[3, 2]"));
}
