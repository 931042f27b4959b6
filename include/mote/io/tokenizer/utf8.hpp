// UTF-8: how long a well-formed character is, and the byte-level alphabet of GPT-2.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "../../core/config.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

inline bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0u) == 0x80u; }

// Bytes of the well-formed character at the start of `text`; 0 if there is none. Overlong forms, surrogates and values
// above U+10FFFF are not well-formed.
inline std::size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = at(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if (!is_continuation(text[i])) return 0;
  }
  if (first == 0xE0 && at(1) < 0xA0) return 0;
  if (first == 0xED && at(1) > 0x9F) return 0;
  if (first == 0xF0 && at(1) < 0x90) return 0;
  if (first == 0xF4 && at(1) > 0x8F) return 0;
  return length;
}

// Whether `text`, not well-formed as it stands, is the beginning of a well-formed character.
inline bool utf8_incomplete(std::string_view text) {
  if (text.empty() || text.size() > 3) return false;
  for (const std::string_view tail : {"\x80\x80\x80", "\x90\x80\x80", "\xBF\xBF\xBF", "\xA0\x80\x80"}) {
    for (std::size_t more = 1; text.size() + more <= 4; ++more) {
      if (utf8_length(std::string(text) + std::string(tail.substr(0, more))) == text.size() + more) return true;
    }
  }
  return false;
}

// GPT-2 writes every byte as one printable character: itself where it is printable Latin-1, else U+0100 and up.
class byte_alphabet {
 public:
  byte_alphabet() {
    std::uint32_t next = 0x100;
    for (std::uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const std::uint32_t code = printable ? b : next++;
      to_byte_.emplace(code, static_cast<char>(b));
    }
  }

  // The bytes that a token spells, or nothing when a character is outside the alphabet.
  std::optional<std::string> decode(std::string_view token) const {
    std::string bytes;
    for (std::size_t i = 0; i < token.size();) {
      const std::size_t length = utf8_length(token.substr(i));
      if (length == 0 || length > 2) return std::nullopt;
      const auto at = [&](std::size_t j) {
        return static_cast<std::uint32_t>(static_cast<unsigned char>(token[i + j]));
      };
      const std::uint32_t code = length == 1 ? at(0) : ((at(0) & 0x1Fu) << 6) | (at(1) & 0x3Fu);
      const auto it = to_byte_.find(code);
      if (it == to_byte_.end()) return std::nullopt;
      bytes += it->second;
      i += length;
    }
    return bytes;
  }

 private:
  std::unordered_map<std::uint32_t, char> to_byte_;
};

}  // namespace detail

MOTE_END_NAMESPACE
