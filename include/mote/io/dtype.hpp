// Element types of stored tensors.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "../core/config.hpp"

MOTE_BEGIN_NAMESPACE

enum class dtype { f64, f32, f16, bf16, f8_e4m3, f8_e5m2, i64, i32, i16, i8, u64, u32, u16, u8, boolean };

struct dtype_info {
  dtype type;
  std::string_view name;  // as safetensors spells it
  std::size_t size;       // bytes
};

inline constexpr dtype_info dtypes[] = {
    {dtype::f64, "F64", 8},   {dtype::f32, "F32", 4},         {dtype::f16, "F16", 2},
    {dtype::bf16, "BF16", 2}, {dtype::f8_e4m3, "F8_E4M3", 1}, {dtype::f8_e5m2, "F8_E5M2", 1},
    {dtype::i64, "I64", 8},   {dtype::i32, "I32", 4},         {dtype::i16, "I16", 2},
    {dtype::i8, "I8", 1},     {dtype::u64, "U64", 8},         {dtype::u32, "U32", 4},
    {dtype::u16, "U16", 2},   {dtype::u8, "U8", 1},           {dtype::boolean, "BOOL", 1}};

inline constexpr const dtype_info& info(dtype type) { return dtypes[static_cast<std::size_t>(type)]; }
inline constexpr std::string_view dtype_name(dtype type) { return info(type).name; }
inline constexpr std::size_t dtype_size(dtype type) { return info(type).size; }

inline constexpr std::optional<dtype> dtype_of(std::string_view name) {
  for (const dtype_info& d : dtypes) {
    if (d.name == name) return d.type;
  }
  return std::nullopt;
}

MOTE_END_NAMESPACE
