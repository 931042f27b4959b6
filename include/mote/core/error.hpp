// Errors: one message that names what is wrong and where.
//
// With exceptions mote throws `shape_error` (a caller's argument) or `format_error` (a file's content). Compiled with
// -fno-exceptions the same message reaches the handler set by `set_error_handler`, which must not return.
#pragma once

#include <cstddef>
#include <exception>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "config.hpp"

MOTE_BEGIN_NAMESPACE

class error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An argument whose shape or value does not fit the op's contract: "op: argument: expected …, got …".
class shape_error : public error {
  using error::error;
};

// A file, configuration or other outside data that breaks its format: "file: tensor or offset: expected …".
class format_error : public error {
  using error::error;
};

#if MOTE_EXCEPTIONS
template <class Error>
[[noreturn]] void raise(const std::string& message) {
  throw Error(message);
}
#else
using error_handler = void (*)(const char* message);

inline error_handler& current_error_handler() {
  static error_handler handler = nullptr;
  return handler;
}

// Sets what receives the message of an error in a build without exceptions; a handler must not return.
inline void set_error_handler(error_handler handler) { current_error_handler() = handler; }

template <class Error>
[[noreturn]] void raise(const std::string& message) {
  if (current_error_handler() != nullptr) current_error_handler()(message.c_str());
  std::terminate();
}
#endif

namespace detail {

// Appended one by one: where `a + b + c` is inlined, GCC 12 warns of a bound that is not passed (bug 105651).
inline std::string concatenate(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (const std::string_view part : parts) text.append(part);
  return text;
}

}  // namespace detail

// "[2, 3]"
inline std::string shape_text(std::span<const std::size_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// Throws shape_error unless `got` equals `expected`, e.g. "rms_norm: gain: expected shape [64], got [32]".
inline void check_shape(std::string_view op, std::string_view argument, std::span<const std::size_t> got,
                        std::initializer_list<std::size_t> expected) {
  const std::span<const std::size_t> want(expected.begin(), expected.size());
  bool equal = got.size() == want.size();
  for (std::size_t i = 0; equal && i < got.size(); ++i) equal = got[i] == want[i];
  if (!equal) {
    raise<shape_error>(
        detail::concatenate({op, ": ", argument, ": expected shape ", shape_text(want), ", got ", shape_text(got)}));
  }
}

// The same for a view, whose last dimension must be contiguous as well: kernels read its rows by pointer.
template <class View>
void check_view(std::string_view op, std::string_view argument, const View& v,
                std::initializer_list<std::size_t> expected) {
  check_shape(op, argument, v.extents(), expected);
  constexpr std::size_t last = View::rank - 1;
  if (v.stride(last) != 1 && v.extent(last) > 1) {
    raise<shape_error>(
        detail::concatenate({op, ": ", argument, ": expected a contiguous last dimension, got a stride of ",
                             std::to_string(v.stride(last))}));
  }
}

// Throws shape_error "op: message" unless `condition` holds.
inline void check(bool condition, std::string_view op, std::string_view message) {
  if (!condition) raise<shape_error>(detail::concatenate({op, ": ", message}));
}

MOTE_END_NAMESPACE
