// Strings as sequences of UTF-8 characters, which may be ill-formed.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "../tokenizer/utf8.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// White space as Python has it.
inline constexpr std::string_view white_space =
    " \t\r\n\v\f\x1C\x1D\x1E\x1F\u0085\u00A0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200A"
    "\u2028\u2029\u202F\u205F\u3000";

// Where the character at i ends.
inline std::size_t character_end(std::string_view s, std::size_t i) {
  do ++i;
  while (i < s.size() && is_continuation(s[i]));
  return i;
}

inline std::string reversed_characters(std::string_view s) {
  std::string out;
  for (std::size_t i = s.size(), end = i; i-- > 0;) {
    if (i > 0 && is_continuation(s[i])) continue;
    out += s.substr(i, end - i);
    end = i;
  }
  return out;
}

// Without the characters that `characters` has, on the left, the right or both.
inline std::string strip_characters(std::string_view s, std::string_view characters, bool left, bool right) {
  const auto goes = [&](std::string_view character) { return characters.find(character) != std::string::npos; };
  while (left && !s.empty() && goes(s.substr(0, character_end(s, 0)))) s.remove_prefix(character_end(s, 0));
  while (right && !s.empty()) {
    std::size_t last = s.size() - 1;
    while (last > 0 && is_continuation(s[last])) --last;
    if (!goes(s.substr(last))) break;
    s = s.substr(0, last);
  }
  return std::string(s);
}

// The first character from `i` on that is white space, or that is none.
inline std::size_t find_white(std::string_view s, std::size_t i, bool is_white) {
  for (std::size_t end; i < s.size(); i = end) {
    end = character_end(s, i);
    if ((white_space.find(s.substr(i, end - i)) != std::string::npos) == is_white) return i;
  }
  return std::string::npos;
}

// Changes ASCII characters alone.
inline std::string map_ascii(std::string s, int (*f)(int)) {
  for (char& c : s) {
    if (static_cast<unsigned char>(c) < 0x80) c = static_cast<char>(f(c));
  }
  return s;
}

}  // namespace detail

MOTE_END_NAMESPACE
