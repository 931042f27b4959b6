// `weight`: a matrix [out, in] in one of the formats that matmul reads. A model's layers may carry different formats; the
// variant is visited once for each matmul, never for each element. A weight does not own its memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <variant>

#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"

MOTE_BEGIN_NAMESPACE

// int8 symmetric per output channel: W[n, k] = scale[n] · codes[n, k], codes in [-127, 127], sum[n] = Σ_k codes[n, k]
// (kept because unsigned×signed dot products need it). Made by quantize_int8 (quant/int8.hpp).
struct int8_matrix {
  view<const std::int8_t, 2> codes;  // [out, in]
  view<const float, 1> scale;        // [out]
  view<const std::int32_t, 1> sum;   // [out]
};

using weight = std::variant<view<const float, 2>, view<const bf16, 2>, int8_matrix>;

inline std::size_t out_features(const view<const float, 2>& w) { return w.extent(0); }
inline std::size_t out_features(const view<const bf16, 2>& w) { return w.extent(0); }
inline std::size_t out_features(const int8_matrix& w) { return w.codes.extent(0); }
inline std::size_t in_features(const view<const float, 2>& w) { return w.extent(1); }
inline std::size_t in_features(const view<const bf16, 2>& w) { return w.extent(1); }
inline std::size_t in_features(const int8_matrix& w) { return w.codes.extent(1); }

// Output rows [begin, begin + count).
template <class T>
view<const T, 2> slice_rows(const view<const T, 2>& w, std::size_t begin, std::size_t count) {
  return w.slice(0, begin, count);
}
inline int8_matrix slice_rows(const int8_matrix& w, std::size_t begin, std::size_t count) {
  return {w.codes.slice(0, begin, count), w.scale.slice(0, begin, count), w.sum.slice(0, begin, count)};
}

// One element as float32.
inline float dequantize(const view<const float, 2>& w, std::size_t n, std::size_t k) { return w(n, k); }
inline float dequantize(const view<const bf16, 2>& w, std::size_t n, std::size_t k) {
  return static_cast<float>(w(n, k));
}
inline float dequantize(const int8_matrix& w, std::size_t n, std::size_t k) {
  return w.scale(n) * static_cast<float>(w.codes(n, k));
}

inline std::size_t out_features(const weight& w) {
  return std::visit([](const auto& m) { return out_features(m); }, w);
}
inline std::size_t in_features(const weight& w) {
  return std::visit([](const auto& m) { return in_features(m); }, w);
}
// Throws shape_error unless the matrix's rows are contiguous.
inline void check_rows(std::string_view op, std::string_view argument, const weight& w) {
  std::visit(
      [&](const auto& m) {
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(m)>, int8_matrix>) {
          check_view(op, argument, m.codes, {m.codes.extent(0), m.codes.extent(1)});
          check_view(op, argument, m.scale, {m.codes.extent(0)});
          check_view(op, argument, m.sum, {m.codes.extent(0)});
        } else {
          check_view(op, argument, m, {m.extent(0), m.extent(1)});
        }
      },
      w);
}

// Bytes that one pass over the matrix reads.
inline std::size_t bytes(const weight& w) {
  return std::visit(
      [](const auto& m) -> std::size_t {
        using matrix = std::remove_cvref_t<decltype(m)>;
        if constexpr (std::is_same_v<matrix, int8_matrix>) {
          return m.codes.size() + m.scale.size() * sizeof(float) + m.sum.size() * sizeof(std::int32_t);
        } else {
          return m.size() * sizeof(typename matrix::value_type);
        }
      },
      w);
}
inline weight slice_rows(const weight& w, std::size_t begin, std::size_t count) {
  return std::visit([&](const auto& m) -> weight { return slice_rows(m, begin, count); }, w);
}

// The three projections of a SwiGLU feed-forward network: gate and up [intermediate, hidden], down [hidden, intermediate].
struct ffn_weights {
  weight gate, up, down;
};

MOTE_END_NAMESPACE
