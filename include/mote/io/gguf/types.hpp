// Element types of GGUF tensors: codes, names and block sizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

#include "../../core/types.hpp"
#include "../../quant/format.hpp"

MOTE_BEGIN_NAMESPACE

// The values are those of the file. Codes that are left out were withdrawn.
enum class ggml_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
  q1_0 = 41,
  q2_0 = 42,
};

struct ggml_type_info {
  ggml_type type;
  std::string_view name;  // that of mote's format, where there is one
  std::size_t block_size;
  std::size_t bytes;  // of a block
};

inline constexpr ggml_type_info ggml_types[] = {{ggml_type::f32, "f32", 1, 4},
                                                {ggml_type::f16, "f16", 1, 2},
                                                {ggml_type::q4_0, "q4_0", 32, 18},
                                                {ggml_type::q4_1, "q4_1", 32, 20},
                                                {ggml_type::q5_0, "q5_0", 32, 22},
                                                {ggml_type::q5_1, "q5_1", 32, 24},
                                                {ggml_type::q8_0, "q8_0", 32, 34},
                                                {ggml_type::q8_1, "q8_1", 32, 36},
                                                {ggml_type::q2_k, "q2_k", 256, 84},
                                                {ggml_type::q3_k, "q3_k", 256, 110},
                                                {ggml_type::q4_k, "q4_k", 256, 144},
                                                {ggml_type::q5_k, "q5_k", 256, 176},
                                                {ggml_type::q6_k, "q6_k", 256, 210},
                                                {ggml_type::q8_k, "q8_k", 256, 292},
                                                {ggml_type::iq2_xxs, "iq2_xxs", 256, 66},
                                                {ggml_type::iq2_xs, "iq2_xs", 256, 74},
                                                {ggml_type::iq3_xxs, "iq3_xxs", 256, 98},
                                                {ggml_type::iq1_s, "iq1_s", 256, 50},
                                                {ggml_type::iq4_nl, "iq4_nl", 32, 18},
                                                {ggml_type::iq3_s, "iq3_s", 256, 110},
                                                {ggml_type::iq2_s, "iq2_s", 256, 82},
                                                {ggml_type::iq4_xs, "iq4_xs", 256, 136},
                                                {ggml_type::i8, "i8", 1, 1},
                                                {ggml_type::i16, "i16", 1, 2},
                                                {ggml_type::i32, "i32", 1, 4},
                                                {ggml_type::i64, "i64", 1, 8},
                                                {ggml_type::f64, "f64", 1, 8},
                                                {ggml_type::iq1_m, "iq1_m", 256, 56},
                                                {ggml_type::bf16, "bf16", 1, 2},
                                                {ggml_type::tq1_0, "tq1_0", 256, 54},
                                                {ggml_type::tq2_0, "tq2_0", 256, 66},
                                                {ggml_type::mxfp4, "mxfp4", 32, 17},
                                                {ggml_type::nvfp4, "nvfp4", 64, 36},
                                                {ggml_type::q1_0, "q1_0", 128, 18},
                                                {ggml_type::q2_0, "q2_0", 64, 18}};

// The entry of a code, or nothing for a code that is not known.
inline constexpr const ggml_type_info* find_ggml_type(std::uint32_t code) {
  for (const ggml_type_info& t : ggml_types) {
    if (static_cast<std::uint32_t>(t.type) == code) return &t;
  }
  return nullptr;
}

inline constexpr const ggml_type_info& info(ggml_type type) {
  return *find_ggml_type(static_cast<std::uint32_t>(type));
}
inline constexpr std::string_view ggml_type_name(ggml_type type) { return info(type).name; }

inline constexpr std::optional<ggml_type> ggml_type_named(std::string_view name) {
  for (const ggml_type_info& t : ggml_types) {
    if (t.name == name) return t.type;
  }
  return std::nullopt;
}

// Whether GGUF has a type for T: an element, or a block format by its name.
template <class T>
inline constexpr bool has_ggml_type = true;
template <block_format F>
inline constexpr bool has_ggml_type<F> = ggml_type_named(F::name).has_value();

// The type whose blocks are T: a block format, or one element.
template <class T>
constexpr ggml_type ggml_type_of() {
  if constexpr (block_format<T>) {
    static_assert(has_ggml_type<T>, "GGUF has no type for this format");
    constexpr std::optional<ggml_type> type = ggml_type_named(T::name);
    static_assert(info(*type).block_size == T::block_size && info(*type).bytes == sizeof(T));
    return *type;
  } else {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, f16> ||
                  std::is_same_v<T, bf16>);
    return std::is_same_v<T, float>    ? ggml_type::f32
           : std::is_same_v<T, double> ? ggml_type::f64
           : std::is_same_v<T, f16>    ? ggml_type::f16
                                       : ggml_type::bf16;
  }
}

MOTE_END_NAMESPACE
