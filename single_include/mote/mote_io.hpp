// mote 0.1.0: files and tokenizers, in one file. Written by scripts/single_include from include/mote.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "mote.hpp"

// ---- mote/io/chat_template.hpp
// The chat template of a model: how a conversation becomes the text that the model was trained on.

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>

// ---- mote/io/jinja.hpp
// The part of Jinja2 that published chat templates are written in.
//
// Text, {{ expressions }}, {# comments #}, {% if / elif / else %}, {% for x in list if … %} with `loop`, {% set %} with
// namespaces, whitespace control (trim_blocks and lstrip_blocks as transformers sets them); literals, operators,
// conditional expressions, subscripts and slices, the tests, filters, methods and functions listed in the code. Anything
// else is refused with the template's line, never passed over; but letters beyond ASCII keep their case. Work, memory,
// nesting and output are bounded, since templates come with models and may be hostile.
// Source: Jinja2's template designer documentation; the chat templates of transformers.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

// ---- mote/io/jinja/lexer.hpp
// A template's text and tags, with Jinja2's whitespace control (trim_blocks, lstrip_blocks), and a tag's tokens.

#include <cctype>

MOTE_BEGIN_NAMESPACE

namespace detail {

class jinja_lexer {
 protected:
  struct chunk {
    enum class kind { text, output, block } what;
    std::string text;
    std::size_t line;
  };
  struct token {
    enum class kind { end, name, number, text, op } what;
    std::string text;
  };

  // Cuts the source into chunks. Throws format_error naming `where` and the line of a tag that is not closed.
  jinja_lexer(std::string source, std::string where) : source_(std::move(source)), where_(std::move(where)) {
    if (source_.ends_with('\n')) source_.pop_back();  // as Jinja2 does, unless told to keep it
    tokenize();
  }

  [[noreturn]] void fail(std::size_t line, const std::string& message) const {
    raise<format_error>(where_ + ": line " + std::to_string(line) + ": " + message);
  }
  [[noreturn]] void fail(const std::string& message) const { fail(line_, message); }

  const std::string& where() const { return where_; }

  // --- Expressions' tokens ---------------------------------------------------------------------------------------------

  void lex(const std::string& text) {
    tokens_.clear();
    position_ = 0;
    for (std::size_t i = 0; i < text.size();) {
      const auto c = static_cast<unsigned char>(text[i]);
      if (std::isspace(c)) {
        ++i;
      } else if (std::isalpha(c) || c == '_') {
        std::size_t end = i;
        while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_')) ++end;
        tokens_.push_back({token::kind::name, text.substr(i, end - i)});
        i = end;
      } else if (std::isdigit(c)) {
        std::size_t end = i;
        while (end < text.size() && std::isdigit(static_cast<unsigned char>(text[end]))) ++end;
        if (end + 1 < text.size() && text[end] == '.' && std::isdigit(static_cast<unsigned char>(text[end + 1]))) {
          for (++end; end < text.size() && std::isdigit(static_cast<unsigned char>(text[end]));) ++end;
        }
        if (end - i > 18) fail("a number of too many digits");
        tokens_.push_back({token::kind::number, text.substr(i, end - i)});
        i = end;
      } else if (c == '\'' || c == '"') {
        std::string content;
        std::size_t end = i + 1;
        for (; end < text.size() && text[end] != text[i]; ++end) {
          if (text[end] != '\\' || end + 1 == text.size()) {
            content += text[end];
            continue;
          }
          const char escaped = text[++end];
          const std::size_t known = std::string_view("ntr\\'\"").find(escaped);
          if (known == std::string_view::npos) fail(std::string("the escape \\") + escaped + " is not supported");
          content += "\n\t\r\\'\""[known];
        }
        if (end == text.size()) fail("a string is not closed");
        tokens_.push_back({token::kind::text, content});
        i = end + 1;
      } else {
        std::string op(1, text[i]);
        if (i + 1 < text.size()) {
          for (const char* two : {"==", "!=", "<=", ">=", "//"}) {
            if (text.compare(i, 2, two) == 0) op = two;
          }
        }
        if (op.size() == 1 && std::string_view("+-*/%~<>=()[]{}.,:|").find(text[i]) == std::string_view::npos) {
          fail("unexpected character \"" + op + "\"");
        }
        tokens_.push_back({token::kind::op, op});
        i += op.size();
      }
    }
  }

  const token& peek(std::size_t ahead = 0) const {
    static const token end{token::kind::end, "the end of the tag"};
    return position_ + ahead < tokens_.size() ? tokens_[position_ + ahead] : end;
  }
  bool at(token::kind what, std::string_view text) const { return peek().what == what && peek().text == text; }
  bool take(token::kind what, std::string_view text) {
    if (!at(what, text)) return false;
    ++position_;
    return true;
  }
  bool take_op(std::string_view text) { return take(token::kind::op, text); }
  bool take_name(std::string_view text) { return take(token::kind::name, text); }
  void expect_op(std::string_view text) {
    if (!take_op(text)) fail("expected \"" + std::string(text) + "\", got \"" + peek().text + "\"");
  }
  std::string expect_name() {
    if (peek().what != token::kind::name) fail("expected a name, got \"" + peek().text + "\"");
    return tokens_[position_++].text;
  }
  void expect_end() const {
    if (position_ < tokens_.size()) fail("unexpected \"" + peek().text + "\"");
  }

  std::vector<chunk> chunks_;
  std::size_t line_ = 1;  // of what is being read
  std::vector<token> tokens_;
  std::size_t position_ = 0;

 private:
  // --- Text and tags ---------------------------------------------------------------------------------------------------

  void tokenize() {
    std::size_t i = 0, line = 1;
    bool trim_next = false;  // a tag ended in "-"
    const auto count = [&](std::string_view s) {
      line += static_cast<std::size_t>(std::count(s.begin(), s.end(), '\n'));
    };
    while (i < source_.size()) {
      std::size_t open = i;
      while (open < source_.size() && !(source_[open] == '{' && open + 1 < source_.size() &&
                                        std::string_view("{%#").find(source_[open + 1]) != std::string_view::npos)) {
        ++open;
      }
      std::string text = source_.substr(i, open - i);
      const bool tag = open < source_.size();
      const char kind = tag ? source_[open + 1] : '\0';
      if (trim_next) text.erase(0, std::min(text.find_first_not_of(" \t\r\n"), text.size()));
      const bool dash = tag && open + 2 < source_.size() && source_[open + 2] == '-';
      if (dash) {
        text.erase(text.find_last_not_of(" \t\r\n") + 1);
      } else if (tag && kind != '{') {  // lstrip_blocks: spaces from the line's start up to a block
        const std::size_t last = text.find_last_not_of(" \t");
        const bool at_start = last == std::string::npos ? i == 0 || source_[i - 1] == '\n' : text[last] == '\n';
        if (at_start) text.erase(last == std::string::npos ? 0 : last + 1);
      }
      if (!text.empty()) chunks_.push_back({chunk::kind::text, text, line});
      count(std::string_view(source_).substr(i, open - i));
      if (!tag) break;

      const std::string close = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
      const std::size_t end = find_close(open + 2, close, kind == '#');
      if (end == std::string::npos) fail(line, std::string("{") + kind + " is not closed");
      std::size_t begin = open + (dash ? 3 : 2), stop = end;
      trim_next = stop > begin && source_[stop - 1] == '-';
      if (trim_next) --stop;
      if (kind != '#') {
        chunks_.push_back(
            {kind == '{' ? chunk::kind::output : chunk::kind::block, source_.substr(begin, stop - begin), line});
      }
      count(std::string_view(source_).substr(open, end + 2 - open));
      i = end + 2;
      if (kind != '{' && !trim_next && i < source_.size() && source_[i] == '\n') {  // trim_blocks
        ++i;
        ++line;
      }
    }
  }

  // Where a tag ends: outside of strings and brackets, which may hold what looks like its end.
  std::size_t find_close(std::size_t i, const std::string& close, bool comment) const {
    if (comment) return source_.find(close, i);
    char quote = '\0';
    for (std::size_t open = 0; i < source_.size(); ++i) {
      const char c = source_[i];
      if (quote != '\0') {
        if (c == '\\')
          ++i;
        else if (c == quote)
          quote = '\0';
      } else if (open == 0 && source_.compare(i, 2, close) == 0) {
        return i;
      } else if (c == '\'' || c == '"') {
        quote = c;
      } else if (c == '(' || c == '[' || c == '{') {
        ++open;
      } else if (open > 0 && (c == ')' || c == ']' || c == '}')) {
        --open;
      }
    }
    return std::string::npos;
  }

  std::string source_, where_;
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/io/jinja/runtime.hpp
// What templates do with values: operators, tests, methods and filters, as Jinja2 and Python have them. Work, text and nesting
// are bounded; what is not supported is an error at the line that is run.

#include <cmath>
#include <variant>

// ---- mote/io/jinja/text.hpp
// Strings as sequences of UTF-8 characters, which may be ill-formed.

// ---- mote/io/tokenizer/utf8.hpp
// UTF-8: how long a well-formed character is, and the byte-level alphabet of GPT-2.

#include <array>
#include <unordered_map>

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

// ---- mote/io/jinja/text.hpp
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

// ---- mote/io/jinja/value.hpp
// What templates compute with.

MOTE_BEGIN_NAMESPACE

namespace detail {

struct jinja_undefined {};
struct jinja_container;
struct jinja_namespace;

// A value in use. Strings, lists and mappings never change, so that copies share them.
struct jinja_object {
  std::variant<jinja_undefined, std::nullptr_t, bool, std::int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const jinja_container>, std::shared_ptr<jinja_namespace>>
      held;

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(held);
  }
  // What it refers to, or a null pointer where it is something else.
  template <class T>
  T* at() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&held);
    return pointer != nullptr ? pointer->get() : nullptr;
  }
  const std::string* text() const { return at<const std::string>(); }
  const jinja_container* list() const { return structure(false); }
  const jinja_container* mapping() const { return structure(true); }
  bool is_number() const { return is<std::int64_t>() || is<double>(); }

 private:
  const jinja_container* structure(bool mapping) const;
};

struct jinja_container {
  std::vector<jinja_object> items;
  bool mapping = false;
  std::vector<std::string> keys = {};  // of a mapping, one for each item
  int depth = 1;
};

inline const jinja_container* jinja_object::structure(bool mapping) const {
  const auto* c = at<const jinja_container>();
  return c != nullptr && c->mapping == mapping ? c : nullptr;
}

struct jinja_namespace {
  std::map<std::string, jinja_object> attributes;
};

// A template that is being rendered.
struct jinja_context {
  const std::string& where;  // what errors begin with
  std::vector<std::map<std::string, jinja_object>> scopes = {};
  std::string out = {};
  std::size_t work = 0, line = 1;
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/io/jinja/runtime.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

struct jinja_runtime {
  using value = nlohmann::ordered_json;
  using object = jinja_object;
  using container = jinja_container;
  using space = jinja_namespace;
  using undefined = jinja_undefined;
  using context = jinja_context;

  // Work is counted in bytes of text read or written; a token and an element of a list cost about what they take.
  static constexpr std::size_t most_work = std::size_t{512} << 20, token_work = 64, element_work = 256;
  static constexpr std::size_t most_text = std::size_t{16} << 20;
  static constexpr int deepest = 100;

  [[noreturn]] static void fail(const context& x, const std::string& message) {
    raise<format_error>(x.where + ": line " + std::to_string(x.line) + ": " + message);
  }

  static void spend(context& x, std::size_t work) {
    x.work += work;
    if (x.work > most_work) fail(x, "the template runs too long");
  }

  static void append(context& x, std::string& to, std::string_view text) {
    if (to.size() + text.size() > most_text) fail(x, "a string or the output grows too long");
    to += text;
  }

  static object text(context& x, std::string s) {
    if (s.size() > most_text) fail(x, "a string or the output grows too long");
    spend(x, s.size());
    return {std::make_shared<const std::string>(std::move(s))};
  }

  static void push(context& x, std::vector<object>& list, object item) {
    spend(x, element_work);
    list.push_back(std::move(item));
  }

  static void put(context& x, container& mapping, const std::string& key, object item) {
    if (const object* present = find(x, mapping, key)) {
      mapping.items[static_cast<std::size_t>(present - mapping.items.data())] = std::move(item);
      return;
    }
    push(x, mapping.items, std::move(item));
    mapping.keys.push_back(key);
  }

  // A namespace may change, so that it could come to hold itself.
  static void check_member(context& x, const object& v) {
    if (v.is<std::shared_ptr<space>>()) fail(x, "a namespace inside of another value is not supported");
  }

  static object made(context& x, container c) {
    for (const object& item : c.items) {
      check_member(x, item);
      if (const auto* inner = item.at<const container>()) c.depth = std::max(c.depth, inner->depth + 1);
    }
    if (c.depth > deepest) fail(x, "a value is nested too deeply");
    return {std::make_shared<const container>(std::move(c))};
  }

  static object from_json(context& x, const value& v) {
    if (v.is_null()) return {nullptr};
    if (v.is_boolean()) return {v.get<bool>()};
    if (v.is_number_integer()) return {v.get<std::int64_t>()};
    if (v.is_number()) return {v.get<double>()};
    if (v.is_string()) return text(x, v.get<std::string>());
    if (!v.is_structured()) return {};
    container c{{}, v.is_object()};
    for (const auto& [key, item] : v.items()) {
      push(x, c.items, from_json(x, item));
      if (c.mapping) c.keys.push_back(key);
    }
    return made(x, std::move(c));
  }

  static bool truth(const object& v) {
    if (const auto* b = std::get_if<bool>(&v.held)) return *b;
    if (v.is_number()) return number(v) != 0.0;
    if (const auto* s = v.text()) return !s->empty();
    if (const auto* c = v.at<const container>()) return !c->items.empty();
    return v.is<std::shared_ptr<space>>();
  }

  static double number(const object& v) {
    if (const auto* i = std::get_if<std::int64_t>(&v.held)) return static_cast<double>(*i);
    if (const auto* b = std::get_if<bool>(&v.held)) return *b ? 1.0 : 0.0;
    return std::get<double>(v.held);
  }

  static bool equal(context& x, const object& a, const object& b) {
    spend(x, token_work);
    const auto numeric = [](const object& v) { return v.is_number() || v.is<bool>(); };  // Python's True is 1
    if (numeric(a) && numeric(b)) return number(a) == number(b);
    if (a.held.index() != b.held.index()) return false;
    if (a.text() != nullptr) {
      spend(x, std::min(a.text()->size(), b.text()->size()));
      return *a.text() == *b.text();
    }
    if (a.is<std::shared_ptr<space>>()) return a.at<space>() == b.at<space>();
    const auto *p = a.at<const container>(), *q = b.at<const container>();
    if (p == q) return true;  // none and undefined values, too
    if (p->mapping != q->mapping || p->items.size() != q->items.size()) return false;
    for (std::size_t i = 0; i < p->items.size(); ++i) {
      const object* other = p->mapping ? find(x, *q, p->keys[i]) : &q->items[i];
      if (other == nullptr || !equal(x, p->items[i], *other)) return false;
    }
    return true;
  }

  static bool compare(context& x, const std::string& op, const object& a, const object& b) {
    if (op == "in" || op == "not in") return contains(x, b, a) == (op == "in");
    if (op == "==" || op == "!=") return equal(x, a, b) == (op == "==");
    const auto holds = [&](const auto& p, const auto& q) {
      return op == "<" ? p < q : op == "<=" ? p <= q : op == ">" ? p > q : p >= q;
    };
    if (a.is_number() && b.is_number()) return holds(number(a), number(b));
    if (a.text() == nullptr || b.text() == nullptr) fail(x, "values that have no order");
    spend(x, std::min(a.text()->size(), b.text()->size()));
    return holds(*a.text(), *b.text());
  }

  static std::string to_text(context& x, const object& v) {
    if (v.is<undefined>()) return "";
    if (v.is<std::nullptr_t>()) return "None";
    if (const auto* b = std::get_if<bool>(&v.held)) return *b ? "True" : "False";
    if (const auto* i = std::get_if<std::int64_t>(&v.held)) return std::to_string(*i);
    if (const auto* d = std::get_if<double>(&v.held)) return value(*d).dump();
    if (v.text() == nullptr) fail(x, "a list or mapping cannot be written as text: use tojson");
    spend(x, v.text()->size());
    return *v.text();
  }

  static std::int64_t whole(context& x, const object& v) {
    if (!v.is<std::int64_t>()) fail(x, "expected a whole number");
    return std::get<std::int64_t>(v.held);
  }

  static object arithmetic(context& x, const std::string& op, const object& a, const object& b) {
    if (op == "+" && a.text() != nullptr && b.text() != nullptr) return text(x, *a.text() + *b.text());
    if (op == "+" && a.list() != nullptr && b.list() != nullptr) {
      std::vector<object> list;
      for (const container* c : {a.list(), b.list()}) {
        for (const object& item : c->items) push(x, list, item);
      }
      return made(x, {std::move(list)});
    }
    if (!a.is_number() || !b.is_number()) fail(x, "\"" + op + "\" needs numbers");
    constexpr double exact = 9007199254740992.0;  // 2^53: beyond it neither form is exact
    const double p = number(a), q = number(b);
    if (std::abs(p) >= exact || std::abs(q) >= exact) fail(x, "a number is too large");
    if ((op == "/" || op == "//" || op == "%") && q == 0.0) fail(x, "division by zero");
    const double r = op == "+"    ? p + q
                     : op == "-"  ? p - q
                     : op == "*"  ? p * q
                     : op == "/"  ? p / q
                     : op == "//" ? std::floor(p / q)
                                  : p - q * std::floor(p / q);
    if (std::abs(r) >= exact) fail(x, "a number is too large");
    if (op != "/" && a.is<std::int64_t>() && b.is<std::int64_t>()) return {static_cast<std::int64_t>(r)};
    return {r};
  }

  // Searching compares up to all of `part` at each place.
  static void spend_search(context& x, const std::string& s, const std::string& part) {
    spend(x, s.size() * (1 + part.size() / 32));
  }

  static const object* find(context& x, const container& mapping, const std::string& key) {
    spend(x, mapping.keys.size() * (8 + key.size() / 32));
    const auto it = std::find(mapping.keys.begin(), mapping.keys.end(), key);
    return it == mapping.keys.end() ? nullptr : &mapping.items[static_cast<std::size_t>(it - mapping.keys.begin())];
  }

  static bool contains(context& x, const object& v, const object& item) {
    if (v.text() != nullptr && item.text() != nullptr) {
      spend_search(x, *v.text(), *item.text());
      return v.text()->find(*item.text()) != std::string::npos;
    }
    if (v.mapping() != nullptr && item.text() != nullptr) return find(x, *v.mapping(), *item.text()) != nullptr;
    if (const container* c = v.list()) {
      return std::any_of(c->items.begin(), c->items.end(), [&](const object& o) { return equal(x, o, item); });
    }
    fail(x, "\"in\" needs a string, list or mapping");
  }

  // What a loop over `v` goes through, as a list.
  static std::shared_ptr<const container> elements(context& x, const object& v) {
    if (v.list() != nullptr) return std::get<std::shared_ptr<const container>>(v.held);
    container list;
    if (const container* c = v.mapping()) {
      for (const std::string& key : c->keys) push(x, list.items, text(x, key));
    } else if (const std::string* s = v.text()) {
      for (std::size_t i = 0, end; i < s->size(); i = end) {
        end = character_end(*s, i);
        push(x, list.items, text(x, s->substr(i, end - i)));
      }
    } else if (!v.is<undefined>()) {
      fail(x, "expected a list to loop over");
    }
    return std::make_shared<const container>(std::move(list));
  }

  static object member(context& x, const object& v, const object& key) {
    if (v.is<undefined>()) fail(x, "a member of an undefined value");
    if (const std::string* name = key.text()) {
      if (const container* c = v.mapping()) {
        const object* item = find(x, *c, *name);
        return item != nullptr ? *item : object{};
      }
      if (const space* s = v.at<space>()) {
        const auto it = s->attributes.find(*name);
        return it != s->attributes.end() ? it->second : object{};
      }
      return {};
    }
    if (!key.is<std::int64_t>() || (v.text() == nullptr && v.list() == nullptr))
      fail(x, "a subscript that does not fit");
    const auto size = static_cast<std::int64_t>(length(x, v));
    const std::int64_t i = whole(x, key), place = i < 0 ? i + size : i;
    if (place < 0 || place >= size) return {};
    const auto k = static_cast<std::size_t>(place);
    return v.text() != nullptr ? text(x, std::string(part(x, *v.text(), k, k + 1))) : v.list()->items[k];
  }

  static std::size_t length(context& x, const object& v) {
    const auto* c = v.at<const container>();
    if (v.text() == nullptr) return c != nullptr ? c->items.size() : 0;
    spend(x, v.text()->size());
    return static_cast<std::size_t>(
        std::count_if(v.text()->begin(), v.text()->end(), [](char b) { return !is_continuation(b); }));
  }

  // The characters from `begin` up to `end`.
  static std::string_view part(context& x, std::string_view s, std::size_t begin, std::size_t end) {
    spend(x, s.size());
    const auto offset = [](std::string_view t, std::size_t n) {
      std::size_t i = 0;
      while (i < t.size() && (is_continuation(t[i]) || n-- > 0)) ++i;
      return i;
    };
    s.remove_prefix(offset(s, begin));
    return s.substr(0, offset(s, end - begin));
  }

  static object slice(context& x, const object& v, const object& first, const object& last, const object& step) {
    if (v.text() == nullptr && v.list() == nullptr) fail(x, "a slice of what is neither list nor string");
    const auto size = static_cast<std::int64_t>(length(x, v));
    const std::int64_t by = step.is<std::nullptr_t>() ? 1 : whole(x, step);
    if (by != 1 && by != -1) fail(x, "a slice's step other than 1 and -1 is not supported");
    const auto bound = [&](const object& b, std::int64_t fallback) {
      if (b.is<std::nullptr_t>()) return fallback;
      const std::int64_t i = whole(x, b);
      return std::clamp<std::int64_t>(i < 0 ? i + size : i, by > 0 ? 0 : -1, by > 0 ? size : size - 1);
    };
    const std::int64_t from = bound(first, by > 0 ? 0 : size - 1), to = bound(last, by > 0 ? size : -1);
    const auto begin = static_cast<std::size_t>(by > 0 ? from : to + 1);
    const auto end = std::max(begin, static_cast<std::size_t>(by > 0 ? to : from + 1));
    if (v.text() != nullptr) {
      const std::string_view chosen = part(x, *v.text(), begin, end);
      return text(x, by > 0 ? std::string(chosen) : reversed_characters(chosen));
    }
    std::vector<object> list;
    for (std::size_t i = begin; i < end; ++i) push(x, list, v.list()->items[i]);
    if (by < 0) std::reverse(list.begin(), list.end());
    return made(x, {std::move(list)});
  }

  static bool test(context& x, const object& v, const std::string& name) {
    if (name == "defined") return !v.is<undefined>();
    if (name == "undefined") return v.is<undefined>();
    if (name == "none") return v.is<std::nullptr_t>();
    if (name == "string") return v.text() != nullptr;
    if (name == "number") return v.is_number() || v.is<bool>();
    if (name == "integer") return v.is<std::int64_t>();
    if (name == "boolean") return v.is<bool>();
    if (name == "mapping") return v.mapping() != nullptr;
    if (name == "sequence" || name == "iterable") return v.text() != nullptr || v.at<const container>() != nullptr;
    if (name == "true") return v.is<bool>() && truth(v);
    if (name == "false") return v.is<bool>() && !truth(v);
    if (name == "odd" || name == "even") return (whole(x, v) % 2 != 0) == (name == "odd");
    fail(x, "the test \"" + name + "\" is not supported");
  }

  // At most `left` times, unless that is negative.
  static object replaced(context& x, const std::string& s, const std::string& from, const std::string& to,
                         std::int64_t left) {
    if (from.empty()) fail(x, "replace of an empty string");
    spend_search(x, s, from);
    std::string out;
    std::size_t done = 0;
    for (std::size_t i; left != 0 && (i = s.find(from, done)) != std::string::npos; --left) {
      append(x, out, std::string_view(s).substr(done, i - done));
      append(x, out, to);
      done = i + from.size();
    }
    append(x, out, std::string_view(s).substr(done));
    return text(x, std::move(out));
  }

  // At a separator, or at white space where it is empty; at most `left` times, unless that is negative.
  static object split(context& x, const std::string& s, const std::string& separator, std::int64_t left) {
    spend_search(x, s, separator);
    const bool blank = separator.empty();
    std::vector<object> parts;
    std::size_t done = blank ? find_white(s, 0, false) : 0;
    for (std::size_t i; left != 0 && done != std::string::npos; --left) {
      i = blank ? find_white(s, done, true) : s.find(separator, done);
      if (i == std::string::npos) break;
      push(x, parts, text(x, s.substr(done, i - done)));
      done = blank ? find_white(s, i, false) : i + separator.size();
    }
    if (done != std::string::npos) push(x, parts, text(x, s.substr(done)));
    return made(x, {std::move(parts)});
  }

  // Whether there is an argument, and it is not none.
  static bool given(const std::vector<object>& a, std::size_t i) {
    return i < a.size() && !a[i].is<undefined>() && !a[i].is<std::nullptr_t>();
  }
  static const std::string& text_argument(context& x, const std::vector<object>& a, std::size_t i) {
    if (i >= a.size() || a[i].text() == nullptr) fail(x, "expected a string as argument");
    return *a[i].text();
  }

  static object method(context& x, const object& v, const std::string& name, const std::vector<object>& a) {
    if (v.text() != nullptr) return text_method(x, *v.text(), name, a);
    if (const container* c = v.mapping()) {
      if (name == "get") {
        const object* item = find(x, *c, text_argument(x, a, 0));
        return item != nullptr ? *item : a.size() > 1 ? a[1] : object{nullptr};
      }
      if (name == "items" || name == "keys" || name == "values") {
        std::vector<object> list;
        for (std::size_t i = 0; i < c->items.size(); ++i) {
          if (name == "values") {
            push(x, list, c->items[i]);
            continue;
          }
          const object key = text(x, c->keys[i]);
          push(x, list, name == "keys" ? key : made(x, {{key, c->items[i]}}));
        }
        return made(x, {std::move(list)});
      }
    }
    fail(x, "the method \"" + name + "\" is not supported here");
  }

  static object text_method(context& x, const std::string& s, const std::string& name, const std::vector<object>& a) {
    spend(x, s.size());
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
      const std::string_view characters = given(a, 0) ? std::string_view(text_argument(x, a, 0)) : white_space;
      spend(x, s.size() * (characters.size() / 32));
      return text(x, strip_characters(s, characters, name != "rstrip", name != "lstrip"));
    }
    if (name == "startswith") return {s.starts_with(text_argument(x, a, 0))};
    if (name == "endswith") return {s.ends_with(text_argument(x, a, 0))};
    if (name == "upper") return text(x, map_ascii(s, std::toupper));
    if (name == "lower") return text(x, map_ascii(s, std::tolower));
    if (name == "replace") {
      return replaced(x, s, text_argument(x, a, 0), text_argument(x, a, 1), a.size() > 2 ? whole(x, a[2]) : -1);
    }
    if (name == "split") {
      const std::string separator = given(a, 0) ? text_argument(x, a, 0) : "";
      if (given(a, 0) && separator.empty()) fail(x, "split at an empty string");
      return split(x, s, separator, a.size() > 1 ? whole(x, a[1]) : -1);
    }
    fail(x, "the method \"" + name + "\" is not supported here");
  }

  static object filter(context& x, const object& v, const std::string& name, const std::vector<object>& a) {
    if (name == "default" || name == "d") {
      const bool missing = v.is<undefined>() || (a.size() > 1 && truth(a[1]) && !truth(v));
      return !missing ? v : a.empty() || a[0].is<undefined>() ? text(x, "") : a[0];
    }
    if (name == "trim") return text_method(x, to_text(x, v), "strip", a);
    if (name == "upper" || name == "lower" || name == "replace") return text_method(x, to_text(x, v), name, a);
    if (name == "string") return text(x, to_text(x, v));
    if (name == "items") return method(x, v, name, a);
    if (name == "tojson") {
      if (given(a, 0) && truth(a[0])) fail(x, "tojson with ensure_ascii is not supported");
      const std::int64_t indent = given(a, 1) ? whole(x, a[1]) : -1;
      if (indent > 16) fail(x, "tojson with an indent of more than 16 is not supported");
      std::string out;
      write_json(x, out, v, static_cast<int>(indent), 0);
      return text(x, std::move(out));
    }
    if (name == "safe") return v;
    if (name == "length" || name == "count") return {static_cast<std::int64_t>(length(x, v))};
    if (name == "list") return {elements(x, v)};
    if (name == "first" || name == "last") {
      const bool whole = v.text() != nullptr;  // its characters need no list
      return member(x, whole ? v : object{elements(x, v)}, object{std::int64_t{name == "first" ? 0 : -1}});
    }
    if (name == "join") {
      std::string out;
      const auto list = elements(x, v);
      for (const object& item : list->items) {
        if (&item != list->items.data() && !a.empty()) append(x, out, text_argument(x, a, 0));
        append(x, out, to_text(x, item));
        spend(x, token_work);
      }
      return text(x, std::move(out));
    }
    if (name == "selectattr" || name == "rejectattr") {
      std::vector<object> kept;
      const auto list = elements(x, v);
      for (const object& item : list->items) {
        if (chosen(x, item, a) == (name == "selectattr")) push(x, kept, item);
      }
      return made(x, {std::move(kept)});
    }
    fail(x, "the filter \"" + name + "\" is not supported");
  }

  // Whether selectattr keeps an item: its arguments are the attribute's name, a test, and what the test compares with.
  static bool chosen(context& x, const object& item, const std::vector<object>& a) {
    spend(x, token_work);
    if (text_argument(x, a, 0).find('.') != std::string::npos)
      fail(x, "attributes of attributes are not supported here");
    const object attribute = member(x, item, a[0]);
    if (a.size() == 1) return truth(attribute);
    const std::string& how = text_argument(x, a, 1);
    if (a.size() == 2) return test(x, attribute, how);
    if (how != "equalto" && how != "==") fail(x, "the test \"" + how + "\" is not supported here");
    return equal(x, attribute, a[2]);
  }

  // As Python's json.dumps writes it: ", " and ": " between items, or a line for each, `indent` spaces a level.
  static void write_json(context& x, std::string& out, const object& v, int indent, int level) {
    const auto quoted = [&](const std::string& s) {
      spend(x, s.size());
      append(x, out, value(s).dump(-1, ' ', false, value::error_handler_t::replace));
    };
    spend(x, token_work);
    if (v.is<undefined>()) fail(x, "tojson of an undefined value");
    if (v.text() != nullptr) return quoted(*v.text());
    if (v.is<std::nullptr_t>()) return append(x, out, "null");
    if (v.is<bool>()) return append(x, out, truth(v) ? "true" : "false");
    const auto* c = v.at<const container>();
    if (c == nullptr) return append(x, out, to_text(x, v));
    const auto new_line = [&](int deep) {
      if (indent >= 0) append(x, out, "\n" + std::string(static_cast<std::size_t>(indent * deep), ' '));
    };
    append(x, out, c->mapping ? "{" : "[");
    for (std::size_t i = 0; i < c->items.size(); ++i) {
      if (i > 0) append(x, out, indent < 0 ? ", " : ",");
      new_line(level + 1);
      if (c->mapping) {
        quoted(c->keys[i]);
        append(x, out, ": ");
      }
      write_json(x, out, c->items[i], indent, level + 1);
    }
    if (!c->items.empty()) new_line(level);
    append(x, out, c->mapping ? "}" : "]");
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/io/jinja.hpp
MOTE_BEGIN_NAMESPACE

class jinja_template : detail::jinja_lexer, detail::jinja_runtime {
 public:
  using value = nlohmann::ordered_json;  // of variables

  // Throws format_error naming `where` and the line of what is malformed or not supported.
  jinja_template(std::string source, std::string where) : jinja_lexer(std::move(source), std::move(where)) {
    std::string end;
    body_ = parse_body({}, end);
  }
  jinja_template(const jinja_template&) = delete;  // statements refer to the object
  jinja_template& operator=(const jinja_template&) = delete;

  // Throws format_error likewise for what goes wrong in use, raise_exception included.
  std::string render(const value& variables) const {
    context x{.where = where()};
    x.scopes.emplace_back();
    for (const auto& [name, v] : variables.items()) x.scopes.back()[name] = from_json(x, v);
    run(body_, x);
    return std::move(x.out);
  }

 private:
  using jinja_lexer::fail;
  using jinja_runtime::fail;

  using expression = std::function<object(context&)>;
  using suffix = std::function<object(context&, const object&)>;
  using statement = std::function<void(context&)>;
  using body = std::vector<statement>;

  struct arguments {
    std::vector<expression> positional;
    std::vector<std::pair<std::string, expression>> named;
  };

  // --- Blocks ----------------------------------------------------------------------------------------------------------

  // Statements up to a block tag that begins with one of `ends`; `end` receives it, its tokens remain to be read.
  body parse_body(const std::vector<std::string>& ends, std::string& end) {
    if (++depth_ > deepest) fail("nested too deeply");
    body statements;
    while (next_ < chunks_.size()) {
      const chunk& c = chunks_[next_++];
      line_ = c.line;
      if (c.what == chunk::kind::text) {
        statements.push_back([&c](context& x) {
          x.line = c.line;
          append(x, x.out, c.text);
        });
        continue;
      }
      lex(c.text);
      if (c.what == chunk::kind::output) {
        expression e = parse_expression();
        expect_end();
        statements.push_back([e = std::move(e)](context& x) { append(x, x.out, to_text(x, e(x))); });
        continue;
      }
      const std::string name = expect_name();
      if (std::find(ends.begin(), ends.end(), name) != ends.end()) {
        end = name;
        --depth_;
        return statements;
      }
      if (name == "if") {
        statements.push_back(parse_if());
      } else if (name == "for") {
        statements.push_back(parse_for());
      } else if (name == "set") {
        statements.push_back(parse_set());
      } else if (name == "generation" || name == "endgeneration") {
        expect_end();  // marks the assistant's text for training
      } else {
        fail("the block \"" + name + "\" is not supported");
      }
    }
    if (!ends.empty()) fail("expected {% " + ends.back() + " %} before the end");
    --depth_;
    return statements;
  }

  statement parse_if() {
    std::vector<std::pair<expression, body>> branches;
    body otherwise;
    std::string end = "elif";
    while (end == "elif") {
      expression condition = parse_expression();
      expect_end();
      body then = parse_body({"elif", "else", "endif"}, end);
      branches.emplace_back(std::move(condition), std::move(then));
    }
    if (end == "else") {
      expect_end();
      otherwise = parse_body({"endif"}, end);
    }
    expect_end();
    return [branches = std::move(branches), otherwise = std::move(otherwise)](context& x) {
      for (const auto& [condition, then] : branches) {
        if (truth(condition(x))) return run(then, x);
      }
      run(otherwise, x);
    };
  }

  statement parse_for() {
    std::vector<std::string> names = {expect_name()};
    while (take_op(",")) names.push_back(expect_name());
    if (!take_name("in")) fail("expected \"in\"");
    expression list = parse_or(), filter;
    if (take_name("if")) filter = parse_expression();
    expect_end();
    const std::size_t line = line_;
    std::string end;
    body each = parse_body({"else", "endfor"}, end), otherwise;
    if (end == "else") {
      expect_end();
      otherwise = parse_body({"endfor"}, end);
    }
    expect_end();
    return [line, names = std::move(names), list = std::move(list), filter = std::move(filter), each = std::move(each),
            otherwise = std::move(otherwise)](context& x) {
      auto all = elements(x, list(x));
      x.scopes.emplace_back();
      // Each item has a scope of its own: what is set for one does not reach the next.
      const auto bind = [&](const object& item) {
        x.line = line;
        spend(x, element_work);
        x.scopes.back().clear();
        if (names.size() == 1) {
          x.scopes.back()[names[0]] = item;
          return;
        }
        const container* parts = item.list();
        if (parts == nullptr || parts->items.size() != names.size())
          fail(x, "an item does not unpack into the loop's names");
        for (std::size_t i = 0; i < names.size(); ++i) x.scopes.back()[names[i]] = parts->items[i];
      };
      if (filter) {
        std::vector<object> kept;
        for (const object& item : all->items) {
          bind(item);
          if (truth(filter(x))) push(x, kept, item);
        }
        all = std::make_shared<const container>(container{std::move(kept)});
      }
      for (std::size_t i = 0; i < all->items.size(); ++i) {
        bind(all->items[i]);
        x.scopes.back()["loop"] = loop_state(x, all->items, i);
        run(each, x);
      }
      x.scopes.back().clear();
      if (all->items.empty()) run(otherwise, x);
      x.scopes.pop_back();
    };
  }

  static object loop_state(context& x, const std::vector<object>& items, std::size_t i) {
    const auto number = [](std::size_t n) { return object{static_cast<std::int64_t>(n)}; };
    const std::size_t n = items.size();
    container loop{
        {number(i + 1), number(i), object{i == 0}, object{i + 1 == n}, number(n), number(n - i), number(n - i - 1)},
        true,
        {"index", "index0", "first", "last", "length", "revindex", "revindex0"}};
    if (i > 0) put(x, loop, "previtem", items[i - 1]);
    if (i + 1 < n) put(x, loop, "nextitem", items[i + 1]);
    return made(x, std::move(loop));
  }

  statement parse_set() {
    std::string name = expect_name(), attribute;
    if (take_op(".")) attribute = expect_name();
    expect_op("=");
    expression e = parse_expression();
    expect_end();
    return [name = std::move(name), attribute = std::move(attribute), e = std::move(e)](context& x) {
      object v = e(x);
      if (attribute.empty()) {
        x.scopes.back()[name] = std::move(v);
        return;
      }
      space* const target = variable(x, name).at<space>();
      if (target == nullptr) fail(x, "\"" + name + "\" is no namespace");
      check_member(x, v);
      target->attributes[attribute] = std::move(v);
    };
  }

  // --- Expressions -----------------------------------------------------------------------------------------------------

  expression parse_expression() {
    if (++depth_ > deepest) fail("nested too deeply");
    expression e = parse_or();
    if (take_name("if")) {
      expression condition = parse_or(), otherwise;
      if (take_name("else")) otherwise = parse_expression();
      e = [e = std::move(e), condition = std::move(condition), otherwise = std::move(otherwise)](context& x) {
        if (truth(condition(x))) return e(x);
        return otherwise ? otherwise(x) : object{};
      };
    }
    --depth_;
    return e;
  }

  // Everything that is evaluated stands in such an expression, so that work is counted here.
  expression parse_or() {
    const std::size_t begin = position_;
    expression e = parse_logic("or", true, &jinja_template::parse_and);
    std::size_t work = 0;
    for (std::size_t i = begin; i < position_; ++i) work += token_work + tokens_[i].text.size();
    return [e = std::move(e), work, line = line_](context& x) {
      x.line = line;
      spend(x, work);
      return e(x);
    };
  }
  expression parse_and() { return parse_logic("and", false, &jinja_template::parse_not); }

  // The first operand whose truth decides, else the last one.
  expression parse_logic(const char* name, bool decides, expression (jinja_template::*operand)()) {
    std::vector<expression> operands;
    do operands.push_back((this->*operand)());
    while (take_name(name));
    if (operands.size() == 1) return std::move(operands[0]);
    return [operands = std::move(operands), decides](context& x) {
      object v;
      for (const expression& e : operands) {
        v = e(x);
        if (truth(v) == decides) break;
      }
      return v;
    };
  }

  expression parse_not() {
    if (!take_name("not")) return parse_comparison();
    if (++depth_ > deepest) fail("nested too deeply");
    expression e = parse_not();
    --depth_;
    return [e = std::move(e)](context& x) { return object{!truth(e(x))}; };
  }

  // As in Python, a < b < c means a < b and b < c.
  expression parse_comparison() {
    expression first = parse_sum();
    std::vector<std::pair<std::string, expression>> rest;
    for (std::string op = take_comparison(); !op.empty(); op = take_comparison()) rest.emplace_back(op, parse_sum());
    if (rest.empty()) return first;
    return [first = std::move(first), rest = std::move(rest)](context& x) {
      object left = first(x);
      for (const auto& [op, e] : rest) {
        object right = e(x);
        if (!compare(x, op, left, right)) return object{false};
        left = std::move(right);
      }
      return object{true};
    };
  }

  std::string take_comparison() {
    for (const char* op : {"==", "!=", "<", "<=", ">", ">="}) {
      if (take_op(op)) return op;
    }
    if (take_name("in")) return "in";
    if (!at(token::kind::name, "not") || peek(1).what != token::kind::name || peek(1).text != "in") return "";
    position_ += 2;
    return "not in";
  }

  expression parse_sum() { return parse_arithmetic({"+", "-"}, &jinja_template::parse_concatenation); }
  expression parse_product() { return parse_arithmetic({"*", "/", "//", "%"}, &jinja_template::parse_unary); }

  expression parse_arithmetic(std::initializer_list<std::string_view> ops, expression (jinja_template::*operand)()) {
    expression first = (this->*operand)();
    std::vector<std::pair<std::string, expression>> rest;
    while (peek().what == token::kind::op && std::find(ops.begin(), ops.end(), peek().text) != ops.end()) {
      std::string op = tokens_[position_++].text;
      rest.emplace_back(std::move(op), (this->*operand)());
    }
    if (rest.empty()) return first;
    return [first = std::move(first), rest = std::move(rest)](context& x) {
      object result = first(x);
      for (const auto& [op, e] : rest) result = arithmetic(x, op, result, e(x));
      return result;
    };
  }

  expression parse_concatenation() {
    std::vector<expression> parts;
    do parts.push_back(parse_product());
    while (take_op("~"));
    if (parts.size() == 1) return std::move(parts[0]);
    return [parts = std::move(parts)](context& x) {
      std::string out;
      for (const expression& e : parts) append(x, out, to_text(x, e(x)));
      return text(x, std::move(out));
    };
  }

  expression parse_unary() { return parse_filters(parse_negative()); }

  expression parse_negative() {
    if (!take_op("-")) return parse_postfix(parse_primary());
    if (++depth_ > deepest) fail("nested too deeply");
    expression e = parse_negative();
    --depth_;
    return [e = std::move(e)](context& x) { return arithmetic(x, "-", object{std::int64_t{0}}, e(x)); };
  }

  expression parse_primary() {
    const token t = peek();
    ++position_;
    if (t.what == token::kind::text) {
      std::string text = t.text;
      while (peek().what == token::kind::text) text += tokens_[position_++].text;
      return constant(object{std::make_shared<const std::string>(std::move(text))});
    }
    if (t.what == token::kind::number) {
      const bool whole = t.text.find('.') == std::string::npos;
      return constant(whole ? object{std::int64_t{std::stoll(t.text)}} : object{std::stod(t.text)});
    }
    if (t.what == token::kind::name) {
      if (t.text == "true" || t.text == "True") return constant(object{true});
      if (t.text == "false" || t.text == "False") return constant(object{false});
      if (t.text == "none" || t.text == "None") return constant(object{nullptr});
      if (at(token::kind::op, "(")) return parse_function(t.text);
      return [name = t.text](context& x) { return variable(x, name); };
    }
    if (t.text == "(") {
      expression e = parse_expression();
      expect_op(")");
      return e;
    }
    if (t.text == "[") {
      std::vector<expression> items;
      while (!take_op("]")) {
        items.push_back(parse_expression());
        if (!take_op(",") && !at(token::kind::op, "]")) fail("expected \",\" or \"]\"");
      }
      return [items = std::move(items)](context& x) {
        std::vector<object> list;
        for (const expression& item : items) push(x, list, item(x));
        return made(x, {std::move(list)});
      };
    }
    if (t.text == "{") {
      std::vector<std::pair<expression, expression>> items;
      while (!take_op("}")) {
        expression key = parse_expression();
        expect_op(":");
        items.emplace_back(std::move(key), parse_expression());
        if (!take_op(",") && !at(token::kind::op, "}")) fail("expected \",\" or \"}\"");
      }
      return [items = std::move(items)](context& x) {
        container mapping{{}, true};
        for (const auto& [key, item] : items) {
          const std::string name = to_text(x, key(x));
          put(x, mapping, name, item(x));
        }
        return made(x, std::move(mapping));
      };
    }
    fail("unexpected \"" + t.text + "\"");
  }

  static expression constant(object v) {
    return [v = std::move(v)](context&) { return v; };
  }

  expression parse_postfix(expression e) {
    std::vector<suffix> suffixes;
    for (;;) {
      if (take_op("[")) {
        suffixes.push_back(parse_subscript());
      } else if (take_op(".")) {
        std::string name = expect_name();
        if (at(token::kind::op, "(")) {
          suffixes.push_back([name, a = in_order(parse_arguments(), name)](context& x, const object& v) {
            return method(x, v, name, evaluate(a, x));
          });
        } else {
          suffixes.push_back([key = object{std::make_shared<const std::string>(std::move(name))}](
                                 context& x, const object& v) { return member(x, v, key); });
        }
      } else {
        return with_suffixes(std::move(e), std::move(suffixes));
      }
    }
  }

  expression parse_filters(expression e) {
    std::vector<suffix> suffixes;
    for (;;) {
      if (take_op("|")) {
        std::string name = expect_name();
        arguments a;
        if (at(token::kind::op, "(")) a = parse_arguments();
        suffixes.push_back([name, a = in_order(std::move(a), name)](context& x, const object& v) {
          return filter(x, v, name, evaluate(a, x));
        });
      } else if (take_name("is")) {
        const bool negated = take_name("not");
        suffixes.push_back([negated, name = expect_name()](context& x, const object& v) {
          return object{test(x, v, name) != negated};
        });
      } else {
        return with_suffixes(std::move(e), std::move(suffixes));
      }
    }
  }

  static expression with_suffixes(expression e, std::vector<suffix> suffixes) {
    if (suffixes.empty()) return e;
    return [e = std::move(e), suffixes = std::move(suffixes)](context& x) {
      object v = e(x);
      for (const suffix& s : suffixes) v = s(x, v);
      return v;
    };
  }

  suffix parse_subscript() {
    expression first, last, step;
    if (!at(token::kind::op, ":")) first = parse_expression();
    if (take_op("]")) {
      return [first = std::move(first)](context& x, const object& v) { return member(x, v, first(x)); };
    }
    expect_op(":");
    if (!at(token::kind::op, "]") && !at(token::kind::op, ":")) last = parse_expression();
    if (take_op(":") && !at(token::kind::op, "]")) step = parse_expression();
    expect_op("]");
    return [first = std::move(first), last = std::move(last), step = std::move(step)](context& x, const object& v) {
      const auto bound = [&](const expression& e) { return e ? e(x) : object{nullptr}; };
      const object from = bound(first), to = bound(last);
      return slice(x, v, from, to, bound(step));
    };
  }

  arguments parse_arguments() {
    arguments a;
    expect_op("(");
    while (!take_op(")")) {
      if (peek().what == token::kind::name && peek(1).what == token::kind::op && peek(1).text == "=") {
        const std::string name = expect_name();
        expect_op("=");
        a.named.emplace_back(name, parse_expression());
      } else {
        a.positional.push_back(parse_expression());
      }
      if (!take_op(",") && !at(token::kind::op, ")")) fail("expected \",\" or \")\"");
    }
    return a;
  }

  // The arguments of the function, method or filter `of` in the order of its parameters. A name that is not known is refused
  // in use, if it comes to that.
  std::vector<expression> in_order(arguments a, const std::string& of) const {
    static const std::map<std::string_view, std::vector<std::string_view>> parameters = {
        {"range", {"", "", ""}},  // which have no names
        {"raise_exception", {"message"}},
        {"get", {"", ""}},
        {"items", {}},
        {"keys", {}},
        {"values", {}},
        {"strip", {""}},
        {"lstrip", {""}},
        {"rstrip", {""}},
        {"startswith", {""}},
        {"endswith", {""}},
        {"upper", {}},
        {"lower", {}},
        {"replace", {"old", "new", "count"}},
        {"split", {"sep", "maxsplit"}},
        {"default", {"default_value", "boolean"}},
        {"d", {"default_value", "boolean"}},
        {"trim", {"chars"}},
        {"string", {}},
        {"tojson", {"ensure_ascii", "indent"}},
        {"safe", {}},
        {"length", {}},
        {"count", {}},
        {"list", {}},
        {"first", {}},
        {"last", {}},
        {"join", {"d"}},
        {"selectattr", {"", "", ""}},
        {"rejectattr", {"", "", ""}}};
    const auto found = parameters.find(of);
    if (found == parameters.end()) return {};
    const std::vector<std::string_view>& names = found->second;
    std::vector<expression> ordered = std::move(a.positional);
    if (ordered.size() > names.size()) fail(of + " with so many arguments is not supported");
    for (auto& [name, e] : a.named) {
      const auto i = static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
      if (i == names.size() || (i < ordered.size() && ordered[i])) {
        fail("the argument \"" + name + "\" of " + of + " is not supported");
      }
      ordered.resize(std::max(ordered.size(), i + 1));
      ordered[i] = std::move(e);
    }
    return ordered;
  }

  expression parse_function(const std::string& name) {
    arguments written = parse_arguments();
    if (name == "namespace") {
      if (!written.positional.empty()) fail("namespace takes names with values only");
      return [a = std::move(written)](context& x) {
        const auto made = std::make_shared<space>();
        for (const auto& [key, e] : a.named) check_member(x, made->attributes[key] = e(x));
        return object{made};
      };
    }
    std::vector<expression> in_use = in_order(std::move(written), name);
    if (name == "raise_exception") {
      return [a = std::move(in_use)](context& x) -> object {
        const auto v = evaluate(a, x);
        fail(x, v.empty() ? "the template refuses these messages" : to_text(x, v[0]));
      };
    }
    if (name == "range") {
      return [a = std::move(in_use)](context& x) {
        const auto v = evaluate(a, x);
        if (v.empty()) fail(x, "range takes 1 to 3 numbers");
        const std::int64_t begin = v.size() > 1 ? whole(x, v[0]) : 0, end = whole(x, v[v.size() > 1 ? 1 : 0]);
        const std::int64_t step = v.size() > 2 ? whole(x, v[2]) : 1;
        if (step == 0) fail(x, "range with a step of 0");
        std::vector<object> list;
        for (std::int64_t i = begin; step > 0 ? i < end : i > end; i += step) push(x, list, object{i});
        return made(x, {std::move(list)});
      };
    }
    fail("the function \"" + name + "\" is not supported");
  }

  // --- Running ---------------------------------------------------------------------------------------------------------

  static void run(const body& statements, context& x) {
    for (const statement& s : statements) s(x);
  }

  static object variable(const context& x, const std::string& name) {
    for (auto scope = x.scopes.rbegin(); scope != x.scopes.rend(); ++scope) {
      if (const auto it = scope->find(name); it != scope->end()) return it->second;
    }
    return {};
  }

  // Arguments' values, undefined those left out before others.
  static std::vector<object> evaluate(const std::vector<expression>& in_use, context& x) {
    std::vector<object> values;
    for (const expression& e : in_use) values.push_back(e ? e(x) : object{});
    return values;
  }

  std::size_t next_ = 0;  // chunk
  int depth_ = 0;
  body body_;
};

MOTE_END_NAMESPACE

// ---- mote/io/json.hpp
// Reading JSON that somebody else wrote: every error names the file and the field.

#include <unordered_set>

// ---- mote/io/mapped_file.hpp
// A whole file, mapped read-only into memory (POSIX).

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

MOTE_BEGIN_NAMESPACE

namespace detail {

// A regular file, open for reading while the object lives.
class regular_file {
 public:
  // Throws format_error naming the file when it is no regular file or cannot be opened.
  explicit regular_file(const std::string& path)
      // Without O_NONBLOCK a named pipe would be waited for before it can be refused.
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) raise<format_error>(path + ": cannot be opened: " + std::strerror(errno));
    if (::fstat(descriptor_, &status_) == 0 && S_ISREG(status_.st_mode)) return;
    ::close(descriptor_);
    raise<format_error>(path + ": is not a regular file");
  }
  regular_file(const regular_file&) = delete;
  regular_file& operator=(const regular_file&) = delete;
  ~regular_file() { ::close(descriptor_); }

  int descriptor() const { return descriptor_; }
  const struct stat& status() const { return status_; }
  std::size_t size() const { return static_cast<std::size_t>(status_.st_size); }

 private:
  int descriptor_;
  struct stat status_ {};
};

}  // namespace detail

class mapped_file {
 public:
  // Throws format_error naming the file when it is no regular file or cannot be opened or mapped.
  explicit mapped_file(const std::string& path) : path_(path) {
    const detail::regular_file file(path);
    size_ = file.size();
    if (size_ > 0) data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      raise<format_error>(path + ": cannot be mapped: " + std::strerror(errno));
    }
  }

  mapped_file(mapped_file&& other) noexcept
      : path_(std::move(other.path_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  ~mapped_file() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  std::string path_;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

// Of a map from names to tensors of one file: whoever shares bytes with the tensor before fails.
template <class Tensors>
void check_overlap(const Tensors& tensors) {
  std::vector<const typename Tensors::mapped_type*> order;
  for (const auto& [name, t] : tensors) {
    if (!t.bytes.empty()) order.push_back(&t);
  }
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->bytes.data() < b->bytes.data(); });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->bytes.data() + order[i - 1]->bytes.size() > order[i]->bytes.data()) {
      order[i]->fail("its data overlaps that of " + order[i - 1]->name);
    }
  }
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/io/json.hpp
MOTE_BEGIN_NAMESPACE

// Parses `text`; `where` names it in errors. Throws format_error for malformed text, for nesting deeper than any
// configuration has use for, and for a key that stands twice in one object.
inline nlohmann::json parse_json(std::string_view text, const std::string& where) {
  using event = nlohmann::json::parse_event_t;
  constexpr int deepest = 64;
  std::vector<std::unordered_set<std::string>> keys;
  const auto check_structure = [&](int depth, event e, nlohmann::json& parsed) {
    if (depth > deepest)
      raise<format_error>(where + ": JSON nested more than " + std::to_string(deepest) + " levels deep");
    if (e == event::object_start) keys.emplace_back();
    if (e == event::object_end) keys.pop_back();
    if (e == event::key && !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
      raise<format_error>(where + ": the key \"" + parsed.get_ref<const std::string&>() +
                          "\" stands twice in one object");
    }
    return true;
  };
#if MOTE_EXCEPTIONS
  try {
    return nlohmann::json::parse(text.begin(), text.end(), check_structure);
  } catch (const nlohmann::json::exception& e) {
    raise<format_error>(where + ": malformed JSON: " + e.what());
  }
#else
  nlohmann::json parsed = nlohmann::json::parse(text.begin(), text.end(), check_structure, false);
  if (parsed.is_discarded()) raise<format_error>(where + ": malformed JSON");
  return parsed;
#endif
}

// A JSON object and the place it came from. Getters throw format_error "file: field: expected …" for a missing field, a
// wrong type or a number out of range; the `_or` forms give a default for a field that is absent or null.
class json_object {
 public:
  json_object(const nlohmann::json& value, std::string where) : value_(&value), where_(std::move(where)) {
    if (!value.is_object()) raise<format_error>(where_ + ": expected a JSON object, got " + value.type_name());
  }

  const nlohmann::json& value() const { return *value_; }
  const std::string& where() const { return where_; }

  bool contains(const std::string& field) const { return value_->contains(field); }
  bool has_value(const std::string& field) const { return contains(field) && !(*value_)[field].is_null(); }

  [[noreturn]] void fail(const std::string& field, const std::string& message) const {
    raise<format_error>(where_ + ": " + field + ": " + message);
  }

  const nlohmann::json& at(const std::string& field) const {
    if (!contains(field)) fail(field, "missing");
    return (*value_)[field];
  }

  std::string string(const std::string& field) const {
    const nlohmann::json& v = at(field);
    if (!v.is_string()) fail(field, std::string("expected a string, got ") + v.type_name());
    return v.get<std::string>();
  }
  std::string string_or(const std::string& field, const std::string& fallback) const {
    return has_value(field) ? string(field) : fallback;
  }

  // A finite number.
  double number(const std::string& field) const {
    const nlohmann::json& v = at(field);
    if (!v.is_number() || !std::isfinite(v.get<double>()))
      fail(field, std::string("expected a number, got ") + v.type_name());
    return v.get<double>();
  }
  double number_or(const std::string& field, double fallback) const {
    return has_value(field) ? number(field) : fallback;
  }

  // A number that float32 does not turn into infinity or into a zero that it is not.
  double float_number(const std::string& field) const {
    const double n = number(field);
    const auto narrow = static_cast<float>(n);
    if (!std::isfinite(narrow) || (narrow == 0.0f && n != 0.0))
      fail(field, "expected a number in the range of float32, got " + at(field).dump());
    return n;
  }
  double float_number_or(const std::string& field, double fallback) const {
    return has_value(field) ? float_number(field) : fallback;
  }

  bool boolean(const std::string& field) const {
    const nlohmann::json& v = at(field);
    if (!v.is_boolean()) fail(field, std::string("expected true or false, got ") + v.type_name());
    return v.get<bool>();
  }
  bool boolean_or(const std::string& field, bool fallback) const {
    return has_value(field) ? boolean(field) : fallback;
  }

  // A whole number in [least, most].
  std::size_t integer(const std::string& field, std::size_t least, std::size_t most) const {
    const nlohmann::json& v = at(field);
    const bool whole = v.is_number_unsigned() || (v.is_number_integer() && v.get<std::int64_t>() >= 0);
    if (!whole || v.get<std::uint64_t>() < least || v.get<std::uint64_t>() > most) {
      fail(field, "expected a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
                      (v.is_number() ? v.dump() : v.type_name()));
    }
    return v.get<std::size_t>();
  }
  std::size_t integer_or(const std::string& field, std::size_t fallback, std::size_t least, std::size_t most) const {
    return has_value(field) ? integer(field, least, most) : fallback;
  }

  json_object object(const std::string& field) const { return {at(field), where_ + ": " + field}; }

  const nlohmann::json& array(const std::string& field) const {
    const nlohmann::json& v = at(field);
    if (!v.is_array()) fail(field, std::string("expected an array, got ") + v.type_name());
    return v;
  }

 private:
  const nlohmann::json* value_;
  std::string where_;
};

// A parsed JSON file; objects taken from it refer to it.
class json_file {
 public:
  // Throws format_error when the file cannot be read or is not well-formed.
  explicit json_file(const std::string& path) : path_(path) {
    const mapped_file file(path);
    value_ = parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path);
  }

  const std::string& path() const { return path_; }
  const nlohmann::json& value() const { return value_; }
  json_object root() const { return {value_, path_}; }

 private:
  std::string path_;
  nlohmann::json value_;
};

MOTE_END_NAMESPACE

// ---- mote/io/tokenizer/token_name.hpp
// Tokens that tokenizer_config.json names.

MOTE_BEGIN_NAMESPACE

namespace detail {

// The text of the token that `field` names by a string or by an object with `content`; nothing where it is missing or null.
// Throws format_error.
inline std::optional<std::string> token_name(const json_object& config, const std::string& field) {
  if (!config.has_value(field)) return std::nullopt;
  return config.at(field).is_string() ? config.string(field) : config.object(field).string("content");
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/io/chat_template.hpp
MOTE_BEGIN_NAMESPACE

struct chat_message {
  std::string role, content;
};

class chat_template {
 public:
  struct template_source {
    std::string text, where;  // `where` names it in errors
  };

  // The model's template as it is written: the file DIR/chat_template.jinja, or the `chat_template` of
  // DIR/tokenizer_config.json (a string, or a list of which the one named "default" counts); nothing where it has none.
  static std::optional<template_source> read_source(const std::string& directory) {
    auto found = read_file(directory);
    return found ? std::move(found) : read_source(read_config(directory));
  }

  // The template of read_source, ready for use. Throws format_error for one that is malformed or uses what is not
  // supported.
  static std::optional<chat_template> load(const std::string& directory) {
    const auto file = read_config(directory);
    auto found = read_file(directory);
    if (!found) found = read_source(file);
    if (!found) return std::nullopt;
    jinja_template::value variables = jinja_template::value::object();
    if (file) {
      const json_object config = file->root();
      for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
        if (auto token = detail::token_name(config, name)) variables[name] = std::move(*token);
      }
    }
    return chat_template(std::move(found->text), std::move(found->where), std::move(variables));
  }

  // `variables`: bos_token and the like.
  chat_template(std::string source, std::string where, jinja_template::value variables)
      : template_(std::make_unique<jinja_template>(std::move(source), std::move(where))),
        variables_(std::move(variables)) {}

  // The conversation as text; with `add_generation_prompt` it ends where the model's answer begins.
  std::string render(std::span<const chat_message> messages, bool add_generation_prompt) const {
    jinja_template::value variables = variables_;
    variables["messages"] = jinja_template::value::array();
    for (const chat_message& m : messages) variables["messages"].push_back({{"role", m.role}, {"content", m.content}});
    variables["add_generation_prompt"] = add_generation_prompt;
    return template_->render(variables);
  }

 private:
  static std::optional<template_source> read_file(const std::string& directory) {
    const std::string path = directory + "/chat_template.jinja";
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) return std::nullopt;
    const mapped_file file(path);
    return template_source{{reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path};
  }

  static std::optional<json_file> read_config(const std::string& directory) {
    const std::string path = directory + "/tokenizer_config.json";
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) return std::nullopt;
    return json_file(path);
  }

  static std::optional<template_source> read_source(const std::optional<json_file>& file) {
    if (!file || !file->root().has_value("chat_template")) return std::nullopt;
    const json_object config = file->root();
    return template_source{text_of(config), config.where() + ": chat_template"};
  }
  static std::string text_of(const json_object& config) {
    const nlohmann::json& entry = config.at("chat_template");
    if (!entry.is_array()) return config.string("chat_template");
    for (const nlohmann::json& choice : entry) {
      const json_object named(choice, config.where() + ": chat_template");
      if (named.string("name") == "default") return named.string("template");
    }
    config.fail("chat_template", "no template is named \"default\"");
  }

  std::unique_ptr<jinja_template> template_;  // its statements refer to it
  jinja_template::value variables_;
};

MOTE_END_NAMESPACE

// ---- mote/io/compressed_tensors.hpp
// Matrices of linear layers in safetensors checkpoints, whichever way they are stored. Of a layer NAME [out, in]:
//
//   plain   NAME.weight floating point [out, in]
//   fp8     NAME.weight F8_E4M3 or F8_E5M2 [out, in] and NAME.weight_scale_inv or NAME.weight_scale: [1] or [1, 1] for the
//           tensor, [out] or [out, 1] for each row, [⌈out / 128⌉, ⌈in / 128⌉] for each block               w = q · scale
//   int8    NAME.weight I8 [out, in], NAME.weight_scale [1], [1, 1], [out], [out, 1] or for each
//           group [out, in / group], NAME.weight_zero_point I8 [like it] if asymmetric             w = (q - zero) · scale
//   int4    NAME.weight_packed I32 [out, in / 8], NAME.weight_scale [out, in / group],
//           NAME.weight_shape [2] = (out, in); a word holds eight codes q + 8, the first in its
//           lowest bits; NAME.weight_zero_point I32 [⌈out / 8⌉, in / group] if asymmetric, eight
//           rows' zero + 8 a word                                                                  w = (q - zero) · scale
//   mxfp4   NAME.weight_packed U8 [out, in / 2], NAME.weight_scale U8 [out, in / 32]          w = e2m1 · 2^(scale - 127)
//   nvfp4   NAME.weight_packed U8 [out, in / 2], NAME.weight_scale F8_E4M3 [out, in / 16],
//           NAME.weight_global_scale [1]; a byte holds two codes, the first low             w = e2m1 · scale · (1 / global_scale)
//   blocks  NAME.weight_FORMAT U8 [out, in / F::block_size · sizeof(F)] for each F of quant/formats.hpp, its blocks as they
//           lie in memory                                                                                  w = F::decode()
//
// Source: fp8 as DeepSeek-V3 stores it and as the package compressed-tensors does; int8 to nvfp4 as that package does (formats
// float-quantized, int-quantized, pack-quantized, mxfp4-pack-quantized, nvfp4-pack-quantized); blocks are mote's own.

#include <limits>

// ---- mote/io/safetensors.hpp
// safetensors files, memory-mapped, and checkpoints of one or several of them.
//
// Layout: an unsigned 64-bit little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}},
// then the data, to which the offsets refer. Every size and offset is checked; the file may be hostile.
// Source: the safetensors format description.

// ---- mote/io/dtype.hpp
// Element types of stored tensors.

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

// ---- mote/io/safetensors.hpp
MOTE_BEGIN_NAMESPACE

// A tensor in a mapped file; valid as long as the file's object.
struct tensor_ref {
  std::string name;
  mote::dtype dtype = dtype::f32;
  std::vector<std::size_t> shape;
  std::span<const std::byte> bytes;  // may be unaligned
  const std::string* file = nullptr;

  std::size_t size() const { return bytes.size() / dtype_size(dtype); }

  [[noreturn]] void fail(const std::string& message) const {
    raise<format_error>(*file + ": tensor " + name + ": " + message);
  }
};

class safetensors_file {
 public:
  // Throws format_error naming file and tensor or offset for anything that breaks the format.
  explicit safetensors_file(const std::string& path) : file_(path), path_(std::make_unique<std::string>(path)) {
    const std::span<const std::byte> all = file_.bytes();
    constexpr std::size_t prefix = 8, longest_header = 100'000'000;
    if (all.size() < prefix) fail("expected at least 8 bytes, the header's length, got " + std::to_string(all.size()));
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < prefix; ++i) length |= static_cast<std::uint64_t>(all[i]) << (8 * i);
    if (length > longest_header || length > all.size() - prefix) {
      fail("byte 0: the header's length " + std::to_string(length) + " exceeds " +
           (length > longest_header ? "the format's limit of 100000000"
                                    : "the file's " + std::to_string(all.size()) + " bytes"));
    }
    const std::size_t header = static_cast<std::size_t>(length);
    data_ = all.subspan(prefix + header);
    const nlohmann::json json =
        parse_json({reinterpret_cast<const char*>(all.data() + prefix), header}, path + ": header");
    const json_object root(json, path + ": header");
    for (const auto& [name, entry] : json.items()) {
      if (name == "__metadata__") continue;
      add(name, json_object(entry, path + ": tensor " + name));
    }
    detail::check_overlap(tensors_);
  }

  const std::string& path() const { return *path_; }

  // In the order of their names.
  const std::map<std::string, tensor_ref, std::less<>>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Throws format_error naming the file when it has no such tensor.
  const tensor_ref& tensor(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) fail("tensor " + std::string(name) + ": missing");
    return it->second;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { raise<format_error>(*path_ + ": " + message); }

  void add(const std::string& name, const json_object& entry) {
    tensor_ref t;
    t.name = name;
    t.file = path_.get();
    const std::string type = entry.string("dtype");
    const std::optional<dtype> known = dtype_of(type);
    if (!known) entry.fail("dtype", "unknown type \"" + type + "\"");
    t.dtype = *known;
    const std::size_t limit = std::numeric_limits<std::size_t>::max();
    std::size_t bytes = dtype_size(t.dtype);
    for (const nlohmann::json& extent : entry.array("shape")) {
      if (!extent.is_number_unsigned()) entry.fail("shape", "expected whole numbers of at least 0");
      const std::size_t n = extent.get<std::size_t>();
      if (n != 0 && bytes > limit / n) entry.fail("shape", "its product overflows");
      bytes *= n;
      t.shape.push_back(n);
    }
    const nlohmann::json& offsets = entry.array("data_offsets");
    if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
      entry.fail("data_offsets", "expected [begin, end]");
    }
    const std::size_t begin = offsets[0].get<std::size_t>(), end = offsets[1].get<std::size_t>();
    if (begin > end || end > data_.size()) {
      entry.fail("data_offsets", "[" + std::to_string(begin) + ", " + std::to_string(end) +
                                     ") lies outside the file's " + std::to_string(data_.size()) + " bytes of data");
    }
    if (end - begin != bytes) {
      entry.fail("data_offsets", "hold " + std::to_string(end - begin) + " bytes, " + type + " " + shape_text(t.shape) +
                                     " needs " + std::to_string(bytes));
    }
    t.bytes = data_.subspan(begin, bytes);
    tensors_.emplace(name, std::move(t));
  }

  mapped_file file_;
  std::unique_ptr<std::string> path_;  // its address stays when the object moves
  std::span<const std::byte> data_;
  std::map<std::string, tensor_ref, std::less<>> tensors_;
};

// A directory with model.safetensors, or with model.safetensors.index.json and the shards that it names.
class checkpoint {
 public:
  // Throws format_error naming the file that is missing or malformed, or the tensor that its shard does not hold.
  explicit checkpoint(const std::string& directory) : directory_(directory) {
    const std::string single = directory + "/model.safetensors", index = directory + "/model.safetensors.index.json";
    std::error_code ignored;
    if (std::filesystem::exists(single, ignored) || !std::filesystem::exists(index, ignored)) {
      shards_.emplace_back(single);
      for (const auto& [name, t] : shards_[0].tensors()) tensors_.emplace(name, &t);
      return;
    }
    const json_file file(index);
    const json_object map = file.root().object("weight_map");
    std::map<std::string, std::size_t> shard_of;
    for (const auto& [name, shard] : map.value().items()) shard_of.emplace(map.string(name), 0);
    shards_.reserve(shard_of.size());  // tensors_ points into them
    for (auto& [name, i] : shard_of) {
      if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
        map.fail("\"" + name + "\"", "a shard must be a file of the checkpoint's own directory");
      }
      i = shards_.size();
      shards_.emplace_back(directory + "/" + name);
    }
    for (const auto& [name, shard] : map.value().items()) {
      tensors_.emplace(name, &shards_[shard_of.at(shard.get<std::string>())].tensor(name));
    }
  }

  const std::string& directory() const { return directory_; }

  // The files that hold tensors, in the order of their names.
  const std::vector<safetensors_file>& files() const { return shards_; }

  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Every tensor, in the order of their names.
  std::vector<tensor_ref> tensors() const {
    std::vector<tensor_ref> all;
    for (const auto& [name, t] : tensors_) all.push_back(*t);
    return all;
  }

  // Throws format_error naming the directory and the tensor when it is missing.
  const tensor_ref& tensor(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) raise<format_error>(directory_ + ": tensor " + std::string(name) + ": missing");
    return *it->second;
  }

  // The same, of the given shape.
  const tensor_ref& tensor(std::string_view name, std::span<const std::size_t> shape) const {
    const tensor_ref& t = tensor(name);
    if (!std::equal(shape.begin(), shape.end(), t.shape.begin(), t.shape.end())) {
      t.fail("expected shape " + shape_text(shape) + ", got " + shape_text(t.shape));
    }
    return t;
  }

 private:
  std::string directory_;
  std::vector<safetensors_file> shards_;
  std::map<std::string, const tensor_ref*, std::less<>> tensors_;
};

// The tensor's elements straight from the map, or nothing when they are not aligned for T. T is the element type.
template <class T>
std::optional<view<const T, 1>> mapped_view(const tensor_ref& t) {
  if (sizeof(T) != dtype_size(t.dtype)) t.fail("expected elements of " + std::to_string(sizeof(T)) + " bytes");
  if (reinterpret_cast<std::uintptr_t>(t.bytes.data()) % alignof(T) != 0) return std::nullopt;
  return view<const T, 1>(reinterpret_cast<const T*>(t.bytes.data()), t.size());
}

// Elements of a floating-point tensor as float32. Throws format_error for another type.
inline buffer<float> read_float(const tensor_ref& t) {
  buffer<float> values(t.size());
  const auto convert = [&]<class T>(T element) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&element, t.bytes.data() + i * sizeof(T), sizeof(T));
      values[i] = static_cast<float>(element);
    }
  };
  switch (t.dtype) {
    case dtype::f64:
      convert(double{});
      break;
    case dtype::f32:
      convert(float{});
      break;
    case dtype::f16:
      convert(f16{});
      break;
    case dtype::bf16:
      convert(bf16{});
      break;
    case dtype::f8_e4m3:
      convert(f8_e4m3{});
      break;
    case dtype::f8_e5m2:
      convert(f8_e5m2{});
      break;
    default:
      t.fail("expected a floating-point type, got " + std::string(dtype_name(t.dtype)));
  }
  return values;
}

MOTE_END_NAMESPACE

// ---- mote/io/compressed_tensors.hpp
MOTE_BEGIN_NAMESPACE

enum class matrix_layout { plain, fp8, int8, int4, mxfp4, nvfp4, blocks };

namespace detail {

// Element i of a tensor of elements T, which may be unaligned.
template <class T>
T element(const tensor_ref& t, std::size_t i) {
  T value;
  std::memcpy(static_cast<void*>(&value), t.bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

// Element i of a tensor of whole numbers, such as NAME.weight_shape. Throws format_error.
inline std::int64_t whole_element(const tensor_ref& t, std::size_t i) {
  if (t.dtype == dtype::i64) return element<std::int64_t>(t, i);
  if (t.dtype != dtype::i32) t.fail("expected I64 or I32");
  return element<std::int32_t>(t, i);
}

// FORMAT of a tensor NAME.weight_FORMAT, or "".
inline std::string_view stored_format(std::string_view tensor) {
  constexpr std::string_view mark = ".weight_";
  const std::size_t at = tensor.rfind(mark);
  return at == std::string_view::npos ? std::string_view() : tensor.substr(at + mark.size());
}

}  // namespace detail

// The tensor with the numbers or codes of linear layer `name`: NAME.weight where there is none.
inline std::string stored_matrix_name(const checkpoint& files, const std::string& name) {
  std::string found = name + ".weight";
  if (files.contains(found)) return found;
  if (files.contains(found + "_packed")) return found + "_packed";
  for_each_format([&]<class F>() {
    const std::string blocks = name + ".weight_" + std::string(F::name);
    if (files.contains(blocks)) found = blocks;
  });
  return found;
}

// A matrix [out, in] in a checkpoint, which must outlive it.
class matrix_ref {
 public:
  // Throws format_error naming the tensor that is missing or of another type or shape than its layout wants, or a feature
  // that is not supported: a group order, codes of other widths.
  matrix_ref(const checkpoint& files, const std::string& name, std::size_t out, std::size_t in) : out_(out), in_(in) {
    if (files.contains(name + ".weight_g_idx")) files.tensor(name + ".weight_g_idx").fail("is not supported");
    const std::string stored = stored_matrix_name(files, name);
    with_format(detail::stored_format(stored), [&]<class F>() { find_blocks<F>(files.tensor(stored)); });
    if (layout_ == matrix_layout::blocks) return;
    if (stored.ends_with(".weight_packed")) {
      weight_ = files.tensor(stored);
      if (weight_.dtype == dtype::i32) {
        find_int4(files, name);
      } else {
        find_fp4(files, name);
      }
      return;
    }
    weight_ = files.tensor(stored, std::vector<std::size_t>{out, in});
    const std::string inverse = name + ".weight_scale_inv";
    if (weight_.dtype == dtype::i8) {
      layout_ = matrix_layout::int8;
      scaled_.codes = codes_as<std::int8_t>();
      const tensor_ref& scale = files.tensor(name + ".weight_scale");
      read_scales(scale);
      if (files.contains(name + ".weight_zero_point")) {
        read_int8_zeros(files.tensor(name + ".weight_zero_point", scale.shape));
      }
    } else if (dtype_size(weight_.dtype) == 1 || files.contains(inverse)) {
      layout_ = matrix_layout::fp8;
      const std::string scale = files.contains(inverse) ? inverse : name + ".weight_scale";
      if (!files.contains(scale)) weight_.fail("an fp8 tensor needs its scales, " + inverse);
      if (weight_.dtype == dtype::f8_e4m3) {
        scaled_.codes = codes_as<f8_e4m3>();
      } else if (weight_.dtype == dtype::f8_e5m2) {
        scaled_.codes = codes_as<f8_e5m2>();
      } else {
        weight_.fail("expected F8_E4M3 or F8_E5M2 beside " + scale);
      }
      read_scales(files.tensor(scale));
    }
  }

  matrix_layout layout() const { return layout_; }
  std::size_t out_features() const { return out_; }
  std::size_t in_features() const { return in_; }
  const tensor_ref& weight() const { return weight_; }  // or what is packed

  // Rows [begin, begin + rows) as float32. Throws shape_error.
  void read(std::size_t begin, const view<float, 2>& rows) const {
    check(begin <= out_ && rows.extent(0) <= out_ - begin, "matrix_ref", "read: rows outside the matrix");
    check_view("matrix_ref", "rows", rows, {rows.extent(0), in_});
    if (in_ == 0) return;  // a hostile file's [2^60, 0] has too many empty rows to visit
    if (layout_ == matrix_layout::plain) return read_floating(begin, rows);
    for (std::size_t r = 0; r < rows.extent(0); ++r) {
      if (has_scaled()) {
        dequantize_row(scaled_, begin + r, rows.row(r));
      } else if (layout_ == matrix_layout::blocks) {
        decode_blocks_(weight_.bytes.data() + (begin + r) * weight_.shape[1], in_, rows.row(r));
      } else {
        for (std::size_t k = 0; k < in_; ++k) rows(r, k) = fp4_value((begin + r) * in_ + k);
      }
    }
  }
  buffer<float> read() const {
    buffer<float> values(out_ * in_);
    read(0, values.as(out_, in_));
    return values;
  }

  // The matrix where its codes lie in the file; its scales and zero points belong to this object. Throws shape_error for
  // another layout than fp8, int8 and int4.
  const scaled_matrix& scaled() const {
    check(has_scaled(), "matrix_ref", "scaled: expected an fp8, int8 or int4 matrix");
    return scaled_;
  }

  // The same numbers as blocks, for symmetric int4 with scales that float16 holds exactly and groups of whole blocks.
  std::optional<buffer<q4_0>> to_q4_0() const {
    constexpr std::size_t size = q4_0::block_size;
    if (layout_ != matrix_layout::int4 || !zero_.empty() || scaled_.tile_columns % size != 0) return std::nullopt;
    for (const float s : scale_) {
      if (static_cast<float>(f16(s)) != s) return std::nullopt;
    }
    buffer<q4_0> blocks(out_ * in_ / size);
    const auto rows = blocks.as(out_, in_ / size);
    for (std::size_t n = 0; n < out_; ++n) {
      const auto* pairs = std::get<view<const int4_pair, 2>>(scaled_.codes).row(n);
      for (std::size_t b = 0; b < in_ / size; ++b) {
        rows(n, b).d = f16(scaled_.scale(n / scaled_.tile_rows, b * size / scaled_.tile_columns));
        detail::halves_of_pairs<size>(reinterpret_cast<const std::uint8_t*>(pairs) + b * size / 2, rows(n, b).q);
      }
    }
    return blocks;
  }

  // The same numbers as blocks, for mxfp4.
  std::optional<buffer<mxfp4>> to_mxfp4() const {
    if (layout_ != matrix_layout::mxfp4) return std::nullopt;
    buffer<mxfp4> blocks(out_ * in_ / mxfp4::block_size);
    load_mxfp4(fp4_pairs(), fp4_scales<f8_e8m0>(32), blocks.as(out_, in_ / mxfp4::block_size));
    return blocks;
  }

  // For nvfp4 the same divided by tensor_scale(), where rows are whole blocks and scales are numbers that blocks may have.
  std::optional<buffer<nvfp4>> to_nvfp4() const {
    if (layout_ != matrix_layout::nvfp4 || in_ % nvfp4::block_size != 0) return std::nullopt;
    const auto positive = [](std::byte scale) { return scale < std::byte{0x7F}; };
    if (!std::all_of(packed_scale_.bytes.begin(), packed_scale_.bytes.end(), positive)) return std::nullopt;
    buffer<nvfp4> blocks(out_ * in_ / nvfp4::block_size);
    load_nvfp4(fp4_pairs(), fp4_scales<f8_e4m3>(16), blocks.as(out_, in_ / nvfp4::block_size));
    return blocks;
  }
  float tensor_scale() const { return tensor_scale_; }

  // Whether the matrix is stored in blocks of format F; these blocks.
  template <block_format F>
  bool has_blocks() const {
    return layout_ == matrix_layout::blocks && decode_blocks_ == &decode_blocks<F>;
  }
  template <block_format F>
  std::optional<buffer<F>> to_blocks() const {
    if (!has_blocks<F>()) return std::nullopt;
    buffer<F> blocks(weight_.bytes.size() / sizeof(F));
    if (!weight_.bytes.empty())
      std::memcpy(static_cast<void*>(blocks.data()), weight_.bytes.data(), weight_.bytes.size());
    return blocks;
  }

 private:
  bool has_scaled() const {
    return layout_ == matrix_layout::fp8 || layout_ == matrix_layout::int8 || layout_ == matrix_layout::int4;
  }

  static void expect(const tensor_ref& t, const std::vector<std::size_t>& shape) {
    if (t.shape != shape) t.fail("expected shape " + shape_text(shape) + ", got " + shape_text(t.shape));
  }

  template <class Code>
  view<const Code, 2> codes_as() const {
    return {reinterpret_cast<const Code*>(weight_.bytes.data()), out_, in_};
  }

  // Finds out from the scales' shape what each of them is for.
  void read_scales(const tensor_ref& t) {
    using shape = std::vector<std::size_t>;
    const bool for_matrix = t.shape == shape{1} || t.shape == shape{1, 1};
    const bool for_rows = t.shape == shape{out_} || t.shape == shape{out_, 1};
    const shape blocks = {fp8_blocks(out_), fp8_blocks(in_)};
    scaled_.tile_rows = 1;
    scaled_.tile_columns = std::max(in_, std::size_t{1});
    if (for_matrix) {
      scaled_.tile_rows = std::max(out_, std::size_t{1});
    } else if (layout_ == matrix_layout::fp8 && t.shape == blocks) {
      scaled_.tile_rows = scaled_.tile_columns = fp8_block;
    } else if (!for_rows) {
      if (layout_ == matrix_layout::fp8) {
        t.fail("expected a scale for the matrix, for each row or for each block, " + shape_text(blocks) +
               ", got shape " + shape_text(t.shape));
      }
      if (t.shape.size() != 2 || t.shape[0] != out_ || t.shape[1] == 0 || in_ % t.shape[1] != 0) {
        t.fail("expected a scale for each group of a row, got shape " + shape_text(t.shape));
      }
      scaled_.tile_columns = std::max(in_ / t.shape[1], std::size_t{1});
    }
    scale_ = read_float(t);
    scaled_.scale = scale_.as(scale_rows(), scale_columns());
  }
  std::size_t scale_rows() const { return (out_ + scaled_.tile_rows - 1) / scaled_.tile_rows; }
  std::size_t scale_columns() const { return (in_ + scaled_.tile_columns - 1) / scaled_.tile_columns; }

  void read_int8_zeros(const tensor_ref& t) {
    if (t.dtype != dtype::i8) t.fail("expected I8");
    zero_ = buffer<std::int8_t>(t.size());
    for (std::size_t i = 0; i < zero_.size(); ++i) zero_[i] = detail::element<std::int8_t>(t, i);
    scaled_.zero = zero_.as(scale_rows(), scale_columns());
  }

  // n numbers of blocks, which may be unaligned.
  template <block_format F>
  static void decode_blocks(const std::byte* bytes, std::size_t n, float* y) {
    for (std::size_t i = 0; i < n; i += F::block_size, bytes += sizeof(F)) {
      F block;
      std::memcpy(static_cast<void*>(&block), bytes, sizeof(F));
      block.decode(y + i);
    }
  }

  template <block_format F>
  void find_blocks(const tensor_ref& t) {
    weight_ = t;
    layout_ = matrix_layout::blocks;
    decode_blocks_ = &decode_blocks<F>;
    if (t.dtype != dtype::u8) t.fail("expected U8");
    if (in_ % F::block_size != 0) t.fail("expected columns in multiples of " + std::to_string(F::block_size));
    expect(t, {out_, in_ / F::block_size * sizeof(F)});
  }

  void find_int4(const checkpoint& files, const std::string& name) {
    layout_ = matrix_layout::int4;
    const tensor_ref& stated = files.tensor(name + ".weight_shape", std::vector<std::size_t>{2});
    for (std::size_t d = 0; d < 2; ++d) {
      if (detail::whole_element(stated, d) != static_cast<std::int64_t>(d == 0 ? out_ : in_)) {
        stated.fail("expected " + shape_text(std::vector<std::size_t>{out_, in_}));
      }
    }
    const std::size_t words = (in_ + 7) / 8;
    expect(weight_, {out_, words});
    read_scales(files.tensor(name + ".weight_scale"));
    if (in_ % 2 != 0 || (scaled_.tile_columns % 2 != 0)) weight_.fail("expected groups of an even number of columns");
    scaled_.codes = view<const int4_pair, 2>(reinterpret_cast<const int4_pair*>(weight_.bytes.data()), {out_, in_ / 2},
                                             {words * 4, 1});
    if (!files.contains(name + ".weight_zero_point")) return;
    const tensor_ref& zero = files.tensor(name + ".weight_zero_point");
    const std::size_t rows = scale_rows(), columns = scale_columns();
    if (zero.dtype != dtype::i32) zero.fail("expected I32");
    expect(zero, {(rows + 7) / 8, columns});
    zero_ = buffer<std::int8_t>(rows * columns);
    for (std::size_t i = 0; i < zero_.size(); ++i) {
      const std::size_t row = i / columns;
      const auto word = detail::element<std::uint32_t>(zero, row / 8 * columns + i % columns);
      zero_[i] = static_cast<std::int8_t>(static_cast<int>(word >> (row % 8 * 4) & 15u) - 8);
    }
    scaled_.zero = zero_.as(rows, columns);
  }

  void find_fp4(const checkpoint& files, const std::string& name) {
    if (weight_.dtype != dtype::u8) weight_.fail("expected I32 or U8");
    if (files.contains(name + ".weight_zero_point")) files.tensor(name + ".weight_zero_point").fail("is not supported");
    layout_ = files.contains(name + ".weight_global_scale") ? matrix_layout::nvfp4 : matrix_layout::mxfp4;
    const bool nv = layout_ == matrix_layout::nvfp4;
    const std::size_t group = nv ? nvfp4::group_size : mxfp4::group_size;
    if (in_ % group != 0) weight_.fail("expected columns in multiples of " + std::to_string(group));
    expect(weight_, {out_, in_ / 2});
    packed_scale_ = files.tensor(name + ".weight_scale");
    expect(packed_scale_, {out_, in_ / group});
    if (packed_scale_.dtype != (nv ? dtype::f8_e4m3 : dtype::u8))
      packed_scale_.fail(nv ? "expected F8_E4M3" : "expected U8");
    if (nv) {
      const tensor_ref& global = files.tensor(name + ".weight_global_scale", std::vector<std::size_t>{1});
      tensor_scale_ = 1.0f / read_float(global)[0];
      if (!(tensor_scale_ > 0.0f && tensor_scale_ <= std::numeric_limits<float>::max()))
        global.fail("expected a positive number");
    }
  }

  view<const std::uint8_t, 2> fp4_pairs() const {
    return {reinterpret_cast<const std::uint8_t*>(weight_.bytes.data()), out_, in_ / 2};
  }
  template <class Scale>
  view<const Scale, 2> fp4_scales(std::size_t group) const {
    return {reinterpret_cast<const Scale*>(packed_scale_.bytes.data()), out_, in_ / group};
  }

  // Element i of an mxfp4 or nvfp4 matrix.
  float fp4_value(std::size_t i) const {
    const auto pair = detail::element<std::uint8_t>(weight_, i / 2);
    const auto code = static_cast<float>(f4_e2m1::from_bits(static_cast<std::uint8_t>(pair >> (i % 2 * 4) & 15)));
    if (layout_ == matrix_layout::nvfp4) {
      return code * (static_cast<float>(detail::element<f8_e4m3>(packed_scale_, i / 16)) * tensor_scale_);
    }
    return code * static_cast<float>(f8_e8m0::from_bits(detail::element<std::uint8_t>(packed_scale_, i / 32)));
  }

  // Rows of elements of any floating-point type, without scales.
  void read_floating(std::size_t begin, const view<float, 2>& rows) const {
    tensor_ref part = weight_;
    const std::size_t row_bytes = in_ * dtype_size(weight_.dtype);
    part.shape[0] = rows.extent(0);
    part.bytes = weight_.bytes.subspan(begin * row_bytes, rows.extent(0) * row_bytes);
    const buffer<float> values = read_float(part);
    for (std::size_t r = 0; r < rows.extent(0); ++r) std::copy_n(values.data() + r * in_, in_, rows.row(r));
  }

  matrix_layout layout_ = matrix_layout::plain;
  std::size_t out_, in_;
  tensor_ref weight_, packed_scale_;
  scaled_matrix scaled_;
  buffer<float> scale_;
  buffer<std::int8_t> zero_;
  float tensor_scale_ = 1.0f;
  void (*decode_blocks_)(const std::byte* bytes, std::size_t n, float* y) = nullptr;
};

MOTE_END_NAMESPACE

// ---- mote/io/fingerprint.hpp
// Checksums: of bytes, and of a large file quickly enough to be taken at every start.

MOTE_BEGIN_NAMESPACE

// FNV-1a, 64 bits: notices accidents, not forgery. `hash` is what came before, to go on from.
inline constexpr std::uint64_t fnv1a_start = 0xcbf29ce484222325u;
inline std::uint64_t fnv1a(std::span<const std::byte> bytes, std::uint64_t hash = fnv1a_start) {
  for (const std::byte b : bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3u;
  return hash;
}

// A number that changes with the file: of its size, the time it was last written, its first megabyte (where model files
// have their list of tensors) and 64 samples of 4 KiB, spread evenly up to its end. No more than that is read from the disk.
// Not noticed: a change between the samples that keeps size and time. Throws format_error naming the file when it cannot be read.
inline std::uint64_t fingerprint(const std::string& path, std::uint64_t hash = fnv1a_start) {
  constexpr std::size_t head = std::size_t{1} << 20, sample = 4096, samples = 64;
  const detail::regular_file file(path);
#ifdef POSIX_FADV_RANDOM
  static_cast<void>(::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_RANDOM));  // no reading ahead
#endif
  const std::size_t size = file.size();
#ifdef __APPLE__
  const timespec& written = file.status().st_mtimespec;
#else
  const timespec& written = file.status().st_mtim;
#endif
  const std::uint64_t facts[] = {size, static_cast<std::uint64_t>(written.tv_sec),
                                 static_cast<std::uint64_t>(written.tv_nsec)};
  hash = fnv1a(std::as_bytes(std::span(facts)), hash);
  std::vector<std::byte> bytes(std::min(head, size));
  const auto add = [&](std::size_t begin, std::size_t count) {
    for (std::size_t done = 0; done < count;) {
      const ssize_t n = ::pread(file.descriptor(), bytes.data() + done, count - done, static_cast<off_t>(begin + done));
      if (n < 0) raise<format_error>(path + ": cannot be read: " + std::strerror(errno));
      if (n == 0) break;  // it has been cut meanwhile; its size is another then
      done += static_cast<std::size_t>(n);
    }
    hash = fnv1a(std::span(bytes).first(count), hash);
  };
  add(0, bytes.size());
  const std::size_t rest = size - bytes.size();
  for (std::size_t i = 1; i <= samples && rest > 0; ++i) {
    add(head + rest / samples * i + rest % samples * i / samples - sample, sample);
  }
  return hash;
}

MOTE_END_NAMESPACE

// ---- mote/io/gguf.hpp
// GGUF files: reading (memory-mapped), writing, metadata and typed tensors. The tokenizer that such a file holds is in
// gguf/tokenizer.hpp.

// ---- mote/io/gguf/file.hpp
// GGUF files, memory-mapped, and models of one or several of them.
//
// Layout, little-endian: "GGUF", a 32-bit version (2 or 3), 64-bit counts of tensors and of metadata entries; the entries
// {key, 32-bit type, value}; the tensors {name, 32-bit count of dimensions, 64-bit extents, innermost first, 32-bit type,
// 64-bit offset}; then, from the next multiple of `general.alignment` on, the data to which the offsets refer. A string is
// a 64-bit length and its bytes, an array a 32-bit type, a 64-bit count and the elements. Every size and offset is checked;
// the file may be hostile. Source: the GGUF specification (ggml's docs/gguf.md).

#include <cstdio>
#include <type_traits>

// ---- mote/io/gguf/metadata.hpp
// The metadata of a GGUF file: named values of thirteen types.

MOTE_BEGIN_NAMESPACE

// The values are those of the file, and the order that of the variants below.
enum class gguf_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

inline constexpr std::string_view gguf_type_names[] = {"u8",      "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                       "boolean", "string", "array", "u64", "i64", "f64"};

// Elements of one type; of arrays, too.
struct gguf_array {
  std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
               std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>, std::vector<float>,
               std::vector<bool>, std::vector<std::string>, std::vector<gguf_array>, std::vector<std::uint64_t>,
               std::vector<std::int64_t>, std::vector<double>>
      data;

  gguf_type type() const { return static_cast<gguf_type>(data.index()); }  // of the elements
  std::size_t size() const {
    return std::visit([](const auto& elements) { return elements.size(); }, data);
  }
  friend bool operator==(const gguf_array& a, const gguf_array& b) { return a.data == b.data; }
};

using gguf_value = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t,
                                float, bool, std::string, gguf_array, std::uint64_t, std::int64_t, double>;

inline gguf_type type_of(const gguf_value& value) { return static_cast<gguf_type>(value.index()); }

// Values by key, and the file that they came from. Getters throw format_error "file: key: expected …" for a missing key,
// a wrong type or a number out of range; the `_or` forms give a default for a missing key.
class gguf_metadata {
 public:
  gguf_metadata() = default;
  explicit gguf_metadata(std::string where) : where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  const std::map<std::string, gguf_value, std::less<>>& values() const { return values_; }

  // Whether the key was new.
  bool add(std::string key, gguf_value value) { return values_.emplace(std::move(key), std::move(value)).second; }

  [[noreturn]] void fail(std::string_view key, const std::string& message) const {
    raise<format_error>(where_ + ": " + std::string(key) + ": " + message);
  }

  bool contains(std::string_view key) const { return values_.find(key) != values_.end(); }
  const gguf_value& at(std::string_view key) const {
    const auto it = values_.find(key);
    if (it == values_.end()) fail(key, "missing");
    return it->second;
  }

  const std::string& string(std::string_view key) const { return get<std::string>(key, "a string"); }
  std::string string_or(std::string_view key, const std::string& fallback) const {
    return contains(key) ? string(key) : fallback;
  }

  bool boolean(std::string_view key) const { return get<bool>(key, "a boolean"); }
  bool boolean_or(std::string_view key, bool fallback) const { return contains(key) ? boolean(key) : fallback; }

  // A whole number in [least, most], of whatever integer type.
  std::size_t integer(std::string_view key, std::size_t least, std::size_t most) const {
    const std::optional<std::uint64_t> n = std::visit(
        [](const auto& v) -> std::optional<std::uint64_t> {
          using T = std::remove_cvref_t<decltype(v)>;
          if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
            if (v >= T{0}) return static_cast<std::uint64_t>(v);
          }
          return std::nullopt;
        },
        at(key));
    if (!n || *n < least || *n > most) {
      fail(key, "expected a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
                    (n ? std::to_string(*n) : shown(at(key))));
    }
    return static_cast<std::size_t>(*n);
  }
  std::size_t integer_or(std::string_view key, std::size_t fallback, std::size_t least, std::size_t most) const {
    return contains(key) ? integer(key, least, most) : fallback;
  }

  // A finite number of whatever type.
  double number(std::string_view key) const {
    const double n = std::visit(
        [](const auto& v) {
          using T = std::remove_cvref_t<decltype(v)>;
          if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
            return static_cast<double>(v);
          } else {
            return std::nan("");
          }
        },
        at(key));
    if (!std::isfinite(n)) fail(key, "expected a finite number, got " + shown(at(key)));
    return n;
  }
  double number_or(std::string_view key, double fallback) const { return contains(key) ? number(key) : fallback; }

  // The elements of an array of T, e.g. array<std::string>.
  template <class T>
  const std::vector<T>& array(std::string_view key) const {
    const gguf_array& a = get<gguf_array>(key, "an array");
    const auto* elements = std::get_if<std::vector<T>>(&a.data);
    if (elements == nullptr) {
      fail(key, "expected an array of " + std::string(name_of<std::vector<T>>(a.data)) + ", got one of " +
                    std::string(gguf_type_names[a.data.index()]));
    }
    return *elements;
  }

 private:
  template <class T>
  const T& get(std::string_view key, const char* expected) const {
    const gguf_value& value = at(key);
    const T* v = std::get_if<T>(&value);
    if (v == nullptr) fail(key, std::string("expected ") + expected + ", got " + shown(value));
    return *v;
  }

  // The name of the alternative T of a variant in the order of gguf_type.
  template <class T, class... Alternatives>
  static std::string_view name_of(const std::variant<Alternatives...>&) {
    std::size_t i = 0, found = 0;
    ((std::is_same_v<T, Alternatives> ? (found = i++) : i++), ...);
    return gguf_type_names[found];
  }

  static std::string shown(const gguf_value& value) {
    return std::visit(
        [&](const auto& v) -> std::string {
          if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(v)>>) {
            return std::string(gguf_type_names[value.index()]) + " " + std::to_string(v);
          } else {
            return std::string(gguf_type_names[value.index()]);
          }
        },
        value);
  }

  std::string where_;
  std::map<std::string, gguf_value, std::less<>> values_;
};

MOTE_END_NAMESPACE

// ---- mote/io/gguf/types.hpp
// Element types of GGUF tensors: codes, names and block sizes.

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

// ---- mote/io/gguf/file.hpp
MOTE_BEGIN_NAMESPACE

inline constexpr std::size_t gguf_default_alignment = 32;

// A tensor in a mapped file; valid as long as the file's object.
struct gguf_tensor {
  std::string name;
  ggml_type type = ggml_type::f32;
  std::vector<std::size_t> shape;    // outermost first, in elements; the last is a multiple of the type's block size
  std::span<const std::byte> bytes;  // aligned to at least 8 bytes
  const std::string* file = nullptr;

  // Elements.
  std::size_t size() const { return bytes.size() / info(type).bytes * info(type).block_size; }

  [[noreturn]] void fail(const std::string& message) const {
    raise<format_error>(*file + ": tensor " + name + ": " + message);
  }
};

namespace detail {

// Reads a file's bytes in order; what does not fit is refused by what it belongs to.
class gguf_cursor {
 public:
  gguf_cursor(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  std::size_t position() const { return position_; }

  // What is being read, for errors, e.g. "metadata entry 3".
  void enter(std::string what) { what_ = std::move(what); }
  [[noreturn]] void fail(const std::string& message) const {
    raise<format_error>(path_ + ": " + what_ + ": " + message);
  }

  template <class T>
  T number() {
    T value{};
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }

  bool boolean() {
    const auto value = number<std::uint8_t>();
    if (value > 1) fail("expected the boolean 0 or 1, got " + std::to_string(value));
    return value == 1;
  }

  std::string string(std::size_t longest) {
    const auto length = number<std::uint64_t>();
    const std::size_t limit = std::min(longest, left());
    if (length > limit) {
      fail("a string of " + std::to_string(length) + " bytes at byte " + std::to_string(position_) +
           ", expected at most " + std::to_string(limit));
    }
    const auto size = static_cast<std::size_t>(length);
    return {reinterpret_cast<const char*>(take(size)), size};
  }

  // A count of things of at least `smallest` bytes each.
  std::size_t count(const char* of, std::size_t smallest) {
    const auto n = number<std::uint64_t>();
    if (n > left() / smallest) {
      fail(std::to_string(n) + " " + of + ", more than the file's " + std::to_string(bytes_.size()) +
           " bytes can hold");
    }
    return static_cast<std::size_t>(n);
  }

 private:
  std::size_t left() const { return bytes_.size() - position_; }

  const std::byte* take(std::size_t size) {
    if (size > left()) {
      fail("expected " + std::to_string(size) + " bytes at byte " + std::to_string(position_) +
           ", the file ends at byte " + std::to_string(bytes_.size()));
    }
    return bytes_.data() + std::exchange(position_, position_ + size);
  }

  std::span<const std::byte> bytes_;
  const std::string& path_;
  std::size_t position_ = 0;
  std::string what_ = "header";
};

// One value of type T, inside `depth` arrays.
template <class T>
T read_gguf(gguf_cursor& in, int depth);

// The alternative of the variant whose number the file gives.
template <class Variant, std::size_t... I, class Read>
Variant read_gguf_alternative(std::uint32_t type, std::index_sequence<I...>, Read&& read) {
  Variant value;
  ((type == I
        ? static_cast<void>(value.template emplace<I>(read(std::in_place_type<std::variant_alternative_t<I, Variant>>)))
        : static_cast<void>(0)),
   ...);
  return value;
}

inline std::uint32_t read_gguf_type(gguf_cursor& in) {
  const auto type = in.number<std::uint32_t>();
  if (type >= std::size(gguf_type_names)) in.fail("unknown value type " + std::to_string(type));
  return type;
}

inline gguf_array read_gguf_array(gguf_cursor& in, int depth) {
  constexpr int deepest = 8;
  if (depth >= deepest) in.fail("arrays nested more than " + std::to_string(deepest) + " deep");
  const std::uint32_t type = read_gguf_type(in);
  constexpr std::size_t smallest[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};  // bytes of an element
  const std::size_t size = in.count("array elements", smallest[type]);
  using variant = decltype(gguf_array::data);
  return {read_gguf_alternative<variant>(type, std::make_index_sequence<std::variant_size_v<variant>>{},
                                         [&]<class Elements>(std::in_place_type_t<Elements>) {
                                           Elements elements;
                                           elements.reserve(size);
                                           for (std::size_t i = 0; i < size; ++i) {
                                             elements.push_back(
                                                 read_gguf<typename Elements::value_type>(in, depth + 1));
                                           }
                                           return elements;
                                         })};
}

template <class T>
T read_gguf(gguf_cursor& in, int depth) {
  if constexpr (std::is_same_v<T, bool>) {
    return in.boolean();
  } else if constexpr (std::is_same_v<T, std::string>) {
    return in.string(std::numeric_limits<std::size_t>::max());
  } else if constexpr (std::is_same_v<T, gguf_array>) {
    return read_gguf_array(in, depth);
  } else {
    return in.number<T>();
  }
}

inline gguf_value read_gguf_value(gguf_cursor& in) {
  const std::uint32_t type = read_gguf_type(in);
  return read_gguf_alternative<gguf_value>(type, std::make_index_sequence<std::variant_size_v<gguf_value>>{},
                                           [&]<class T>(std::in_place_type_t<T>) { return read_gguf<T>(in, 0); });
}

}  // namespace detail

class gguf_file {
 public:
  // Throws format_error naming file and metadata key, tensor or offset for anything that breaks the format.
  explicit gguf_file(const std::string& path)
      : file_(path), path_(std::make_unique<std::string>(path)), metadata_(path) {
    detail::gguf_cursor in(file_.bytes(), *path_);
    read_header(in);
    const std::size_t tensors = in.count("tensors", 24), entries = in.count("metadata entries", 13);
    for (std::size_t i = 0; i < entries; ++i) read_entry(in, i);
    alignment_ = metadata_.integer_or("general.alignment", gguf_default_alignment, 8, std::size_t{1} << 31);
    if ((alignment_ & (alignment_ - 1)) != 0) {
      metadata_.fail("general.alignment", "expected a power of two, got " + std::to_string(alignment_));
    }
    std::vector<std::uint64_t> offsets;
    std::vector<gguf_tensor> found;
    for (std::size_t i = 0; i < tensors; ++i) {
      found.push_back(read_tensor(in, i));
      offsets.push_back(in.number<std::uint64_t>());
    }
    const std::span<const std::byte> all = file_.bytes();
    const std::size_t start = (in.position() + alignment_ - 1) / alignment_ * alignment_;
    data_ = all.subspan(std::min(start, all.size()));
    for (std::size_t i = 0; i < tensors; ++i) place(std::move(found[i]), offsets[i]);
    detail::check_overlap(tensors_);
  }

  const std::string& path() const { return *path_; }
  std::uint32_t version() const { return version_; }
  std::size_t alignment() const { return alignment_; }
  const gguf_metadata& metadata() const { return metadata_; }

  // In the order of their names.
  const std::map<std::string, gguf_tensor, std::less<>>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Throws format_error naming the file when it has no such tensor.
  const gguf_tensor& tensor(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) raise<format_error>(*path_ + ": tensor " + std::string(name) + ": missing");
    return it->second;
  }

 private:
  void read_header(detail::gguf_cursor& in) {
    const auto magic = in.number<std::array<char, 4>>();
    if (std::string_view(magic.data(), 4) != "GGUF") in.fail("expected a file that begins with GGUF");
    version_ = in.number<std::uint32_t>();
    if (version_ != 0 && (version_ & 0xFFFFu) == 0) {
      in.fail("a big-endian file, expected a little-endian one");
    }
    if (version_ != 2 && version_ != 3) in.fail("version " + std::to_string(version_) + ", expected 2 or 3");
  }

  void read_entry(detail::gguf_cursor& in, std::size_t i) {
    in.enter("metadata entry " + std::to_string(i));
    std::string key = in.string(65535);
    if (key.empty()) in.fail("expected a key, got none");
    in.enter("key " + key);
    gguf_value value = detail::read_gguf_value(in);
    if (!metadata_.add(std::move(key), std::move(value))) in.fail("stands twice");
  }

  gguf_tensor read_tensor(detail::gguf_cursor& in, std::size_t i) {
    constexpr std::size_t longest_name = 64, most_dimensions = 4;
    in.enter("tensor " + std::to_string(i));
    gguf_tensor t;
    t.file = path_.get();
    t.name = in.string(longest_name);
    if (t.name.empty()) in.fail("expected a name, got none");
    in.enter("tensor " + t.name);
    const auto dimensions = in.number<std::uint32_t>();
    if (dimensions > most_dimensions) {
      in.fail(std::to_string(dimensions) + " dimensions, expected at most " + std::to_string(most_dimensions));
    }
    t.shape.resize(dimensions);
    for (std::size_t d = dimensions; d-- > 0;) {
      const auto extent = in.number<std::uint64_t>();
      if (extent > std::numeric_limits<std::size_t>::max() / 2) {
        in.fail("an extent of " + std::to_string(extent) + " elements overflows");
      }
      t.shape[d] = static_cast<std::size_t>(extent);
    }
    const auto code = in.number<std::uint32_t>();
    const ggml_type_info* known = find_ggml_type(code);
    if (known == nullptr) in.fail("unknown type " + std::to_string(code));
    t.type = known->type;
    return t;
  }

  // Finds the tensor's bytes and adds it.
  void place(gguf_tensor t, std::uint64_t offset) {
    const ggml_type_info& type = info(t.type);
    const std::size_t columns = t.shape.empty() ? 1 : t.shape.back();
    if (columns % type.block_size != 0) {
      t.fail("expected rows in multiples of " + std::to_string(type.block_size) + " elements for " +
             std::string(type.name) + ", got " + shape_text(t.shape));
    }
    std::size_t size = type.bytes;
    for (std::size_t d = 0; d < t.shape.size(); ++d) {
      const std::size_t n = d + 1 == t.shape.size() ? t.shape[d] / type.block_size : t.shape[d];
      if (n != 0 && size > std::numeric_limits<std::size_t>::max() / n) {
        t.fail("shape " + shape_text(t.shape) + ": its product overflows");
      }
      size *= n;
    }
    if (offset % alignment_ != 0) {
      t.fail("offset " + std::to_string(offset) + ", expected a multiple of " + std::to_string(alignment_));
    }
    if (offset > data_.size() || size > data_.size() - offset) {
      t.fail(std::string(type.name) + " " + shape_text(t.shape) + " needs " + std::to_string(size) +
             " bytes at offset " + std::to_string(offset) + ", outside the file's " + std::to_string(data_.size()) +
             " bytes of data");
    }
    t.bytes = data_.subspan(static_cast<std::size_t>(offset), size);
    std::string name = t.name;
    const auto [it, added] = tensors_.emplace(std::move(name), std::move(t));
    if (!added) it->second.fail("stands twice");
  }

  mapped_file file_;
  std::unique_ptr<std::string> path_;  // its address stays when the object moves
  gguf_metadata metadata_;
  std::uint32_t version_ = 0;
  std::size_t alignment_ = gguf_default_alignment;
  std::span<const std::byte> data_;
  std::map<std::string, gguf_tensor, std::less<>> tensors_;
};

// A model of one file, or of the files NAME-00001-of-00003.gguf, -00002-… that it was split into.
class gguf_checkpoint {
 public:
  // `path`: the file, or any one of a split model's. Throws format_error naming the file that is missing or malformed.
  explicit gguf_checkpoint(const std::string& path) {
    constexpr std::size_t most = 65535;
    files_.emplace_back(path);
    const gguf_metadata& given = files_[0].metadata();
    const std::size_t count = given.integer_or("split.count", 1, 0, most);
    if (count > 1) {
      const std::size_t number = given.integer("split.no", 0, count - 1);
      const std::string ending = part_ending(number, count);
      if (!path.ends_with(ending)) {
        given.fail("split.no", "the name of part " + std::to_string(number + 1) + " of " + std::to_string(count) +
                                   " must end with \"" + ending + "\"");
      }
      open_parts(path.substr(0, path.size() - ending.size()), count);
    }
    std::size_t total = 0;
    for (const gguf_file& file : files_) {
      total += file.tensors().size();
      for (const auto& [name, t] : file.tensors()) {
        if (!tensors_.emplace(name, &t).second) t.fail("stands in another part as well");
      }
    }
    const gguf_metadata& first = metadata();
    if (count > 1 && first.integer("split.tensors.count", 0, std::numeric_limits<std::uint32_t>::max()) != total) {
      first.fail("split.tensors.count", "the parts hold " + std::to_string(total) + " tensors");
    }
  }

  // The first file's path and metadata.
  const std::string& path() const { return files_[0].path(); }
  const gguf_metadata& metadata() const { return files_[0].metadata(); }
  const std::vector<gguf_file>& files() const { return files_; }

  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Every tensor, in the order of their names.
  std::vector<gguf_tensor> tensors() const {
    std::vector<gguf_tensor> all;
    for (const auto& [name, t] : tensors_) all.push_back(*t);
    return all;
  }

  // Throws format_error naming the file and the tensor when it is missing.
  const gguf_tensor& tensor(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) raise<format_error>(path() + ": tensor " + std::string(name) + ": missing");
    return *it->second;
  }

  // The same, of the given shape.
  const gguf_tensor& tensor(std::string_view name, std::span<const std::size_t> shape) const {
    const gguf_tensor& t = tensor(name);
    if (!std::equal(shape.begin(), shape.end(), t.shape.begin(), t.shape.end())) {
      t.fail("expected shape " + shape_text(shape) + ", got " + shape_text(t.shape));
    }
    return t;
  }

 private:
  // "-00001-of-00003.gguf" for the first (0) of three.
  static std::string part_ending(std::size_t number, std::size_t count) {
    char text[64] = {};
    std::snprintf(text, sizeof text, "-%05zu-of-%05zu.gguf", number + 1, count);
    return text;
  }

  void open_parts(const std::string& prefix, std::size_t count) {
    files_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      const gguf_metadata& m = files_.emplace_back(prefix + part_ending(i, count)).metadata();
      if (m.integer("split.count", 0, 65535) != count) {
        m.fail("split.count", "expected " + std::to_string(count));
      }
      if (m.integer("split.no", 0, 65535) != i) m.fail("split.no", "expected " + std::to_string(i));
    }
  }

  std::vector<gguf_file> files_;
  std::map<std::string, const gguf_tensor*, std::less<>> tensors_;
};

// The tensor's blocks or elements straight from the map: [rows, columns / block size], all but the last dimension taken
// together as rows. T is a block format, float, f16, bf16 or double. Throws format_error for a tensor of another type.
template <class T>
view<const T, 2> mapped_view(const gguf_tensor& t) {
  if (t.type != ggml_type_of<T>()) {
    t.fail("expected type " + std::string(ggml_type_name(ggml_type_of<T>())) + ", got " +
           std::string(ggml_type_name(t.type)));
  }
  const std::size_t across = (t.shape.empty() ? 1 : t.shape.back()) / info(t.type).block_size;
  const std::size_t blocks = t.bytes.size() / sizeof(T);
  return {reinterpret_cast<const T*>(t.bytes.data()), across == 0 ? 0 : blocks / across, across};
}

// Calls f.template operator()<T>() with the block format or element type of a tensor that mote can read as numbers. Throws
// format_error naming the tensor when it can not.
template <class F>
void visit_type(const gguf_tensor& t, F&& f) {
  bool known = false;
  const auto consider = [&]<class T>() {
    if constexpr (has_ggml_type<T>) {
      if (t.type != ggml_type_of<T>()) return;
      known = true;
      f.template operator()<T>();
    }
  };
  for_each_format(consider, type_list<float, f16, bf16, double>{});
  for_each_format(consider);
  if (!known) t.fail("type " + std::string(ggml_type_name(t.type)) + " is not supported");
}

// Elements as float32, blocks decoded. Throws format_error for a type that mote has no format for.
inline buffer<float> read_float(const gguf_tensor& t) {
  buffer<float> values(t.size());
  visit_type(t, [&]<class T>() {
    const view<const T, 2> stored = mapped_view<T>(t);
    for (std::size_t i = 0; i < stored.size(); ++i) {
      if constexpr (block_format<T>) {
        stored.data()[i].decode(values.data() + i * T::block_size);
      } else {
        values[i] = static_cast<float>(stored.data()[i]);
      }
    }
  });
  return values;
}

MOTE_END_NAMESPACE

// ---- mote/io/gguf/writer.hpp
// Writing GGUF files, version 3: metadata and the list of tensors first, then the tensors' data in that order.

// ---- mote/io/tensor_stream.hpp
// What the writers of model files share: a header, then the tensors' data in a known order, piece by piece, in a file that
// gets its name only when it is complete.

// ---- mote/io/part_file.hpp
// A file that gets its name only when it is complete: until then it is PATH.part (POSIX). Where PATH is a symbolic link, what
// it points to is written.

#include <sys/file.h>

MOTE_BEGIN_NAMESPACE

// What becomes of PATH.part when its writer goes without finish():
enum class unfinished {
  removed,
  kept  // a later writer of the same tensors can go on with it: resume()
};

// "PATH: cannot be written: No space left on device", for what errno says.
[[noreturn]] inline void raise_unwritable(const std::string& path) {
  const int reason = errno;
  raise<format_error>(path + ": cannot be written" + (reason != 0 ? std::string(": ") + std::strerror(reason) : ""));
}

namespace detail {

// What `path` stands for when it is a symbolic link to a file or to nothing; anything else stays.
inline std::string behind_links(std::string path) {
  namespace fs = std::filesystem;
  constexpr int most_links = 40;
  for (int i = 0; i < most_links; ++i) {
    std::error_code problem;
    const fs::file_status status = fs::status(path, problem);
    if (fs::exists(status) && !fs::is_regular_file(status)) break;
    const fs::path target = fs::read_symlink(path, problem);
    if (problem) break;
    path = (fs::path(path).parent_path() / target).string();
  }
  return path;
}

class part_file {
 public:
  // Opens PATH.part, which may hold what an earlier writer left. Throws format_error when it cannot be written or another
  // process is writing it.
  part_file(const std::string& path, unfinished policy)
      : path_(behind_links(path)), part_(path_ + ".part"), policy_(policy) {
    const int descriptor = open_locked();
    file_ = ::fdopen(descriptor, "r+b");
    if (file_ == nullptr) {
      ::close(descriptor);
      fail();
    }
  }
  part_file(const part_file&) = delete;
  part_file& operator=(const part_file&) = delete;
  ~part_file() {
    if (file_ == nullptr) return;
    if (policy_ == unfinished::removed) std::remove(part_.c_str());
    std::fclose(file_);
  }

  const std::string& path() const { return path_; }
  const std::string& part() const { return part_; }
  std::FILE* file() { return file_; }

  [[noreturn]] void fail() const { raise_unwritable(path_); }

  // PATH.part will stay as it is; gives its name.
  const std::string& keep() {
    policy_ = unfinished::kept;
    return part_;
  }

  // Empties the file, which must be empty already or begin with `mark`, as an earlier writer's. Throws format_error and leaves
  // anything else as it is.
  void begin_anew(std::string_view mark) {
    std::string found(mark.size(), '\0');
    found.resize(std::fread(found.data(), 1, found.size(), file_));
    if (found != mark.substr(0, found.size())) {
      raise<format_error>(keep() + ": was left by something else and is not overwritten");
    }
    truncate(0);
  }

  // Cuts the file to its first `size` bytes and goes on behind them.
  void truncate(std::size_t size) {
    if (std::fflush(file_) != 0 || ::ftruncate(fileno(file_), static_cast<off_t>(size)) != 0 ||
        std::fseek(file_, 0, SEEK_END) != 0) {
      fail();
    }
  }

  void put(const void* data, std::size_t size) {
    if (size != 0 && std::fwrite(data, 1, size, file_) != size) fail();
  }

  // Hands what was written to the operating system, so that the end of this process does not lose it.
  void flush() {
    if (std::fflush(file_) != 0) fail();
  }

  // Gives the file its name when all of it is on the disk.
  void finish() {
    flush();
    if (::fsync(fileno(file_)) != 0) fail();
    const bool named = std::rename(part_.c_str(), path_.c_str()) == 0;
    const int reason = errno;
    if (!named && policy_ == unfinished::removed) std::remove(part_.c_str());
    std::fclose(std::exchange(file_, nullptr));
    errno = reason;
    if (!named) fail();
  }

 private:
  // Another writer may finish or remove PATH.part after it was opened here and before it is locked: what is locked then has
  // another name or none, and PATH.part is opened anew.
  int open_locked() const {
    constexpr int most_writers = 100;
    for (int i = 0; i < most_writers; ++i) {
      const int descriptor = ::open(part_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
      if (descriptor < 0) fail();
      const bool locked = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0;
      if (locked && is_part(descriptor)) return descriptor;
      ::close(descriptor);
      if (!locked) break;
    }
    raise<format_error>(part_ + ": is being written by another process");
  }
  bool is_part(int descriptor) const {
    struct stat opened {};
    struct stat named {};
    return ::fstat(descriptor, &opened) == 0 && ::stat(part_.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
  }

  std::string path_, part_;
  unfinished policy_;
  std::FILE* file_ = nullptr;
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/io/tensor_stream.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

class tensor_stream {
 public:
  // `writer` names the class in errors. Throws format_error when PATH.part cannot be written.
  tensor_stream(std::string writer, std::string path, unfinished policy)
      : writer_(std::move(writer)), file_(std::move(path), policy) {}

  const std::string& path() const { return file_.path(); }
  bool started() const { return started_; }
  void expect(bool condition, const std::string& message) const { check(condition, writer_, message); }

  // A tensor of `size` bytes, followed by zeros up to a multiple of `alignment` from the beginning of the data.
  void add(const std::string& name, std::size_t size, std::size_t alignment) {
    expect(!started_, "add_tensor: " + name + ": after the first data");
    expect(names_.insert(name).second, "add_tensor: " + name + ": given twice");
    tensors_.push_back({name, size, (alignment - size % alignment) % alignment});
  }

  void start(const std::string& header) {
    if (std::exchange(started_, true)) return;
    file_.truncate(0);
    file_.put(header.data(), header.size());
  }

  // Goes on behind the data of the first `count` tensors, which PATH.part must hold behind the same header.
  void resume(const std::string& header, std::size_t count) {
    expect(!started_, "resume: after the first data");
    expect(count <= tensors_.size(), "resume: expected at most " + std::to_string(tensors_.size()) + " tensors");
    if (count == 0) return start(header);
    started_ = true;
    std::string found(header.size(), '\0');
    std::rewind(file_.file());
    if (std::fread(found.data(), 1, found.size(), file_.file()) != found.size() || found != header) {
      raise<format_error>(file_.part() + ": is not the beginning of this file: remove it to begin anew");
    }
    std::uintmax_t end = header.size();
    for (; current_ < count; ++current_) end += tensors_[current_].size + tensors_[current_].padding;
    std::error_code problem;
    const std::uintmax_t size = std::filesystem::file_size(file_.part(), problem);
    if (problem || size < end) {
      raise<format_error>(file_.part() + ": expected at least " + std::to_string(end) + " bytes, got " +
                          std::to_string(size));
    }
    file_.truncate(end);
  }

  void write(std::string_view name, std::span<const std::byte> bytes) {
    skip_empty();
    if (bytes.empty()) return;
    expect(current_ < tensors_.size() && tensors_[current_].name == name,
           "write: " + std::string(name) + ": expected " +
               (current_ < tensors_.size() ? tensors_[current_].name : "no more tensors"));
    const tensor& t = tensors_[current_];
    expect(bytes.size() <= t.size - written_,
           "write: " + t.name + ": more than its " + std::to_string(t.size) + " bytes");
    file_.put(bytes.data(), bytes.size());
    written_ += bytes.size();
    if (written_ < t.size) return;
    const std::string zeros(t.padding, '\0');
    file_.put(zeros.data(), zeros.size());
    written_ = 0;
    ++current_;
  }

  void flush() { file_.flush(); }

  void finish() {
    skip_empty();
    expect(current_ == tensors_.size(),
           "finish: " + (current_ < tensors_.size() ? tensors_[current_].name : std::string()) + ": data is missing");
    file_.finish();
  }

 private:
  struct tensor {
    std::string name;
    std::size_t size, padding;  // bytes
  };

  // Tensors without elements have no data to wait for.
  void skip_empty() {
    while (current_ < tensors_.size() && tensors_[current_].size == 0) ++current_;
  }

  std::string writer_;
  part_file file_;
  std::unordered_set<std::string> names_;
  std::vector<tensor> tensors_;
  bool started_ = false;     // the header is written
  std::size_t current_ = 0;  // the tensor whose data comes next, and how much of it was written
  std::size_t written_ = 0;
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/io/gguf/writer.hpp
MOTE_BEGIN_NAMESPACE

//   gguf_writer file("model.gguf");
//   file.add("general.architecture", std::string("deepseek2"));
//   file.add_tensor("token_embd.weight", ggml_type::q4_0, shape);    // all of them
//   file.write("token_embd.weight", bytes);                          // in the same order, whole or piece by piece
//   file.finish();
//
// The file has the name PATH.part until finish() gives it its own.
class gguf_writer {
 public:
  // `alignment`: of every tensor's data, a power of two of at least 8. Throws format_error when the file cannot be created.
  explicit gguf_writer(std::string path, std::size_t alignment = gguf_default_alignment,
                       unfinished policy = unfinished::removed)
      : stream_("gguf_writer", std::move(path), policy), alignment_(alignment) {
    stream_.expect(alignment >= 8 && alignment <= (std::size_t{1} << 31) && (alignment & (alignment - 1)) == 0,
                   "alignment: expected a power of two of at least 8");
    if (alignment != gguf_default_alignment) put_entry("general.alignment", static_cast<std::uint32_t>(alignment));
  }

  // A metadata entry; `general.alignment` is the writer's own. Throws shape_error for a key given twice or too late, when
  // data was written.
  void add(const std::string& key, const gguf_value& value) {
    stream_.expect(!stream_.started(), "add: " + key + ": after the first data");
    stream_.expect(!key.empty() && key.size() <= 65535, "add: expected a key of 1 to 65535 bytes");
    stream_.expect(key != "general.alignment", "add: general.alignment: is an argument of the constructor");
    put_entry(key, value);
  }

  // A tensor to come, `shape` outermost first. Throws shape_error for a name given twice or longer than 63 bytes, a shape
  // of more than four dimensions or with rows that are no whole blocks, or too late, when data was written.
  void add_tensor(const std::string& name, ggml_type type, std::span<const std::size_t> shape) {
    const std::string where = "add_tensor: " + name;
    stream_.expect(!name.empty() && name.size() <= 63, where + ": expected a name of 1 to 63 bytes");
    stream_.expect(shape.size() <= 4, where + ": expected at most 4 dimensions");
    const std::size_t columns = shape.empty() ? 1 : shape.back(), block = info(type).block_size;
    stream_.expect(columns % block == 0, where + ": expected rows in multiples of " + std::to_string(block));
    std::size_t size = columns / block * info(type).bytes;
    for (std::size_t d = 0; d + 1 < shape.size(); ++d) {
      stream_.expect(shape[d] == 0 || size <= std::numeric_limits<std::size_t>::max() / 2 / shape[d],
                     where + ": its size overflows");
      size *= shape[d];
    }
    stream_.add(name, size, alignment_);
    put_string(list_, name);
    put(list_, static_cast<std::uint32_t>(shape.size()));
    for (std::size_t d = shape.size(); d-- > 0;) put(list_, static_cast<std::uint64_t>(shape[d]));
    put(list_, static_cast<std::uint32_t>(type));
    put(list_, static_cast<std::uint64_t>(next_offset_));
    next_offset_ += (size + alignment_ - 1) / alignment_ * alignment_;
    ++tensors_;
  }

  // The next bytes of the first tensor that is not complete, which must be `name`. Throws shape_error for another one or
  // too many bytes, format_error when they cannot be written.
  void write(std::string_view name, std::span<const std::byte> bytes) {
    stream_.start(header());
    stream_.write(name, bytes);
  }

  // The same for contiguous blocks or elements.
  template <class T, std::size_t Rank>
  void write(std::string_view name, const view<const T, Rank>& values) {
    stream_.expect(values.contiguous(), "write: " + std::string(name) + ": expected contiguous values");
    write(name, std::as_bytes(std::span<const T>(values.data(), values.size())));
  }

  // Goes on behind the data of the first `count` tensors, written by a writer of the same metadata and tensors that left its
  // file (unfinished::kept). Throws format_error when the file is another one or shorter.
  void resume(std::size_t count) { stream_.resume(header(), count); }

  // Hands what was written to the operating system: it outlives the process. Throws format_error when it cannot.
  void flush() { stream_.flush(); }

  // Gives the file its name. Throws format_error when it cannot be written, shape_error when data is missing.
  void finish() {
    stream_.start(header());
    stream_.finish();
  }

 private:
  void put_entry(const std::string& key, const gguf_value& value) {
    stream_.expect(keys_.insert(key).second, "add: " + key + ": given twice");
    put_string(metadata_, key);
    put(metadata_, static_cast<std::uint32_t>(value.index()));
    std::visit([&](const auto& v) { put_value(metadata_, v); }, value);
  }

  template <class T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void put_string(std::string& out, std::string_view text) {
    put(out, static_cast<std::uint64_t>(text.size()));
    out.append(text);
  }
  template <class T>
  static void put_value(std::string& out, const T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      put_string(out, value);
    } else if constexpr (std::is_same_v<T, bool>) {
      put(out, static_cast<std::uint8_t>(value));
    } else if constexpr (std::is_same_v<T, gguf_array>) {
      put(out, static_cast<std::uint32_t>(value.data.index()));
      put(out, static_cast<std::uint64_t>(value.size()));
      std::visit(
          [&]<class Elements>(const Elements& elements) {
            for (const typename Elements::value_type& e : elements) put_value(out, e);
          },
          value.data);
    } else {
      put(out, value);
    }
  }

  std::string header() const {
    if (stream_.started()) return {};
    std::string all = "GGUF";
    put(all, std::uint32_t{3});
    put(all, static_cast<std::uint64_t>(tensors_));
    put(all, static_cast<std::uint64_t>(keys_.size()));
    all += metadata_ + list_;
    all.append((alignment_ - all.size() % alignment_) % alignment_, '\0');
    return all;
  }

  detail::tensor_stream stream_;
  std::size_t alignment_;
  std::unordered_set<std::string> keys_;
  std::string metadata_, list_;  // as they will stand in the file
  std::size_t tensors_ = 0, next_offset_ = 0;
};

MOTE_END_NAMESPACE

// ---- mote/io/gguf/tokenizer.hpp
// The tokenizer and the chat template of a GGUF file: byte-level BPE, `tokenizer.ggml.model` = "gpt2".
//
// The file has the tokens, their types and the merges; how text is cut into pieces it only names, in `tokenizer.ggml.pre`.
// The names and the expressions of the published tokenizers that they stand for are listed here.

// ---- mote/io/tokenizer.hpp
// Byte-level BPE tokenizers in the published form, tokenizer.json.
//
// Text is searched for added tokens first; what lies between is cut into pieces (pre_tokenizer) and merged (bpe); the
// post-processor adds tokens such as begin-of-sentence or, where it has no template, add_bos_token and add_eos_token of
// tokenizer_config.json do. The same ids as the `tokenizers` package gives. Bytes that are not UTF-8, which that package
// does not accept, are encoded byte by byte as pieces of their own, so that decoding gives the same bytes back.
//
// Supported parts are those of byte-level models (GPT-2, Llama 3, DeepSeek): see tokenizer/*.hpp. Anything else in a file
// is refused with its name, never passed over; but truncation and padding are for who calls to decide, as transformers has it.

// ---- mote/io/tokenizer/added_tokens.hpp
// Tokens that are found in the text as they stand, before anything else: the `added_tokens` of a tokenizer.json.

// ---- mote/io/tokenizer/pattern.hpp
// The regular expressions of tokenizer files, on PCRE2.

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

// ---- mote/io/tokenizer/oniguruma.hpp
// Regular expressions of tokenizer files, which are in Oniguruma's dialect, in PCRE2's.
//
// What PCRE2 reads differently is translated: \s (Unicode's White_Space), \w, \b, [:alpha:] and their like, scripts, (?m),
// which lets . match a line's end, a{,n}, a{n}? and a{n,m}+, which repeats the repetition. Refused is what has no short
// equivalent (&& and classes in classes, \h, letters beside ASCII that ignore case), what Oniguruma refuses (recursion,
// (?s)), and what would let a match end inside a character or begin before the place where it was looked for (\C, \K).

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif

#include <iterator>

MOTE_BEGIN_NAMESPACE

namespace detail {

// One expression. Throws format_error, naming `where` and the construct, for what is refused; what is malformed otherwise is
// left to PCRE2.
class oniguruma_expression {
 public:
  oniguruma_expression(std::string_view expression, const std::string& where) : in_(expression), where_(where) {}

  std::string to_pcre2() {
    while (i_ < in_.size()) translate_next();
    out_.append(groups_.front().to_close, ')');
    return std::move(out_);
  }

 private:
  static constexpr std::size_t none = std::string::npos;
  // Members of a character class.
  static constexpr std::string_view white_space =
      R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
  static constexpr std::string_view no_white_space =
      R"(\x{0}-\x{8}\x{E}-\x{1F}\x{21}-\x{84}\x{86}-\x{9F}\x{A1}-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027})"
      R"(\x{202A}-\x{202E}\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{10FFFF})";
  // Alphabetic, which beside letters and marks has letterlike numbers and the circled and squared letters; digits, joints.
  static constexpr std::string_view word_characters =
      R"(\p{L}\p{Nl}\p{M}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189}\p{Nd}\p{Pc})";

  struct group {
    std::size_t begin = none;  // in the output
    bool caseless = false;     // around the group
    std::size_t to_close = 0;  // groups that (?i) and the like have begun in it
  };

  [[noreturn]] void refuse(const std::string& construct) const {
    raise<format_error>(where_ + ": " + construct + " is not supported");
  }
  [[noreturn]] void malformed(const std::string& problem) const {
    raise<format_error>(where_ + ": malformed pattern: " + problem);
  }

  char at(std::size_t i) const { return i < in_.size() ? in_[i] : '\0'; }

  // The next `length` bytes as they are.
  void copy(std::size_t length) {
    const std::string_view taken = in_.substr(i_, length);
    out_ += taken;
    i_ += taken.size();
  }
  void replace(std::size_t length, std::string_view by) {
    out_ += by;
    i_ = std::min(i_ + length, in_.size());
  }

  void begin_atom() {
    atom_ = out_.size();
    repeated_ = false;
    letter_ = '\0';
  }
  void no_atom() {
    atom_ = none;
    letter_ = '\0';
  }

  void translate_next() {
    switch (at(i_)) {
      case '\\':
        begin_atom();
        escape(false);
        break;
      case '[':
        begin_atom();
        character_class();
        break;
      case '(':
        open_group();
        break;
      case ')':
        close_group();
        break;
      case '|':
        copy(1);
        no_atom();
        break;
      case '*':
      case '+':
      case '?':
        repeat(1, std::string(1, at(i_)), true);
        break;
      case '{':
        brace();
        break;
      default:
        literal();
    }
  }

  void literal() {
    const char before = letter_;
    begin_atom();
    const auto c = static_cast<unsigned char>(at(i_));
    if (caseless_) {
      if (c >= 0x80) refuse("a character beside ASCII that ignores case");
      letter_ = static_cast<char>(std::tolower(c));
      for (const std::string_view pair : {"ss", "st", "ff", "fi", "fl"}) {  // each is one letter, too, such as U+00DF
        if (before == pair[0] && letter_ == pair[1]) refuse("\"" + std::string(pair) + "\" that ignores case");
      }
    }
    copy(std::max<std::size_t>(1, utf8_length(in_.substr(i_))));
  }

  // {n}, {n,}, {n,m} and {,m}; any other brace stands for itself.
  void brace() {
    std::size_t end = i_ + 1;
    const auto digits = [&] {
      const std::size_t begin = end;
      while (std::isdigit(static_cast<unsigned char>(at(end)))) ++end;
      return std::string(in_.substr(begin, end - begin));
    };
    const std::string least = digits();
    const bool range = at(end) == ',';
    if (range) ++end;
    const std::string most = range ? digits() : std::string();
    if (at(end) != '}' || (least.empty() && most.empty())) {
      begin_atom();
      replace(1, "\\{");
      return;
    }
    const std::string interval = "{" + (least.empty() ? "0" : least) + (range ? "," + most : "") + "}";
    repeat(end + 1 - i_, interval, false, range);
  }

  // A repetition of the last atom. Those of intervals are never possessive, and lazy only for a range.
  void repeat(std::size_t length, const std::string& by, bool possessive, bool lazy = true) {
    if (atom_ == none) malformed("nothing to repeat");
    if (repeated_) {
      out_.insert(atom_, "(?:");
      out_ += ')';
    }
    replace(length, by);
    if ((lazy && at(i_) == '?') || (possessive && at(i_) == '+')) copy(1);
    repeated_ = true;
    letter_ = '\0';
  }

  void open_group() {
    if (at(i_ + 1) == '*') refuse("(*");
    const std::size_t begin = out_.size();
    if (at(i_ + 1) != '?') {
      copy(1);
    } else if (at(i_ + 2) == '#') {
      const std::size_t end = in_.find(')', i_);
      if (end == none) malformed("unclosed (?#");
      i_ = end + 1;
      return;
    } else if (std::string_view(":=!>").find(at(i_ + 2)) != none && at(i_ + 2) != '\0') {
      copy(3);
    } else if (at(i_ + 2) == '<') {
      copy(at(i_ + 3) == '=' || at(i_ + 3) == '!' ? 4 : name_length('>'));
    } else {
      options();
      return;
    }
    groups_.push_back({begin, caseless_});
    no_atom();
  }

  // "(?<name>", up to its end.
  std::size_t name_length(char last) const {
    const std::size_t end = in_.find(last, i_);
    if (end == none) malformed("unclosed name");
    return end + 1 - i_;
  }

  // (?i:…), or (?i), which reaches to the end of the group around it.
  void options() {
    const std::size_t begin = out_.size();
    const bool outer = caseless_;
    std::string options = "(?";
    bool on = true;
    std::size_t end = i_ + 2;
    for (; at(end) != ':' && at(end) != ')'; ++end) {
      const char c = at(end);
      if (c != 'i' && c != 'm' && c != '-') refuse(std::string(in_.substr(i_, end + 1 - i_)));
      if (c == '-') on = false;
      if (c == 'i') caseless_ = on;
      options += c == 'm' ? 's' : c;
    }
    if (at(end) == ')') {
      ++groups_.back().to_close;
    } else {
      groups_.push_back({begin, outer});
    }
    replace(end + 1 - i_, options + ":");
    no_atom();
  }

  void close_group() {
    if (groups_.size() == 1) malformed("unmatched )");
    const group closed = groups_.back();
    groups_.pop_back();
    out_.append(closed.to_close, ')');
    copy(1);
    begin_atom();
    atom_ = closed.begin;
    caseless_ = closed.caseless;
  }

  void escape(bool in_class) {
    const char c = at(i_ + 1);
    const auto characters = [&](std::string_view members, const char* bracket = "[") {
      if (in_class) check_no_range();
      replace(2, in_class ? std::string(members) : bracket + std::string(members) + "]");
    };
    const std::string w = "[" + std::string(word_characters) + "]";
    if (c != '\0' && std::string_view("hHCEKQgcV").find(c) != none) refuse(std::string("\\") + c);
    if (c == 's') {
      characters(white_space);
    } else if (c == 'S') {
      characters(no_white_space);
    } else if (c == 'w') {
      characters(word_characters);
    } else if (c == 'W') {
      if (in_class) refuse("\\W in a character class");
      characters(word_characters, "[^");
    } else if (c == 'b' && !in_class) {
      replace(2, "(?:(?<=" + w + ")(?!" + w + ")|(?<!" + w + ")(?=" + w + "))");
    } else if (c == 'B' && !in_class) {
      replace(2, "(?:(?<=" + w + ")(?=" + w + ")|(?<!" + w + ")(?!" + w + "))");
    } else if (c == 'v') {
      replace(2, "\\x{B}");
    } else if (c == 'p' || c == 'P') {
      property();
    } else if (c == 'N' && at(i_ + 2) == '{') {
      refuse("\\N{");
    } else if (c == 'x' || c == 'o' || c == 'k') {
      numbered(c);
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      std::size_t length = 2;
      while (length < 4 && std::isdigit(static_cast<unsigned char>(at(i_ + length)))) ++length;
      if (length == 4 && c >= '2' && c < '8') refuse("an octal number of a byte beside ASCII");
      copy(length);
    } else {
      copy(1 + std::max<std::size_t>(1, utf8_length(in_.substr(std::min(i_ + 1, in_.size())))));
    }
  }

  // \xHH, \x{…}, \o{…} and \k<name>.
  void numbered(char c) {
    const char opening = at(i_ + 2);
    if (caseless_ && c != 'k') refuse(std::string("\\") + c + " that ignores case");
    if (opening == '{' || opening == '<') {
      copy(name_length(opening == '{' ? '}' : '>'));
      return;
    }
    std::size_t length = 2;
    while (length < 4 && std::isxdigit(static_cast<unsigned char>(at(i_ + length)))) ++length;
    if (length == 4 && opening >= '8') refuse("\\x of a byte beside ASCII");
    copy(length);
  }

  // \p{…}. Without a brace the letter stands for itself.
  void property() {
    if (at(i_ + 2) != '{') {
      ++i_;
      copy(1);
      return;
    }
    const std::size_t length = name_length('}');
    std::string_view name = in_.substr(i_ + 3, length - 4);
    bool negated = at(i_ + 1) == 'P';
    if (!name.empty() && name[0] == '^') {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) || c == ' ' || c == '_' || c == '-';
    });
    const bool pcre2_only = name.size() == 3 && (name[0] == 'X' || name[0] == 'x');  // such as Xan
    if (!plain || pcre2_only || (caseless_ && is_cased(name))) refuse(std::string(in_.substr(i_, length)));
    // A script's own characters. The bare name has in PCRE2 those that it shares with others, too.
    const std::string script = "\\p{sc:" + std::string(name) + "}";
    replace(length, std::string(negated ? "\\P{" : "\\p{") + (compiles(script) ? "sc:" : "") + std::string(name) + "}");
  }

  // Where case is ignored these have all letters in Oniguruma, but not in every PCRE2.
  static bool is_cased(std::string_view property) {
    std::string name;
    for (const char c : property) {
      if (std::isalpha(static_cast<unsigned char>(c))) {
        name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      }
    }
    constexpr std::string_view cased[] = {
        "lu",    "ll",        "lt",    "uppercaseletter", "lowercaseletter", "titlecaseletter",
        "upper", "uppercase", "lower", "lowercase"};
    return std::find(std::begin(cased), std::end(cased), name) != std::end(cased);
  }

  static bool compiles(const std::string& expression) {
    int problem = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code* const code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                           PCRE2_UTF | PCRE2_UCP, &problem, &offset, nullptr);
    pcre2_code_free(code);
    return code != nullptr;
  }

  void character_class() {
    copy(at(i_ + 1) == '^' ? 2 : 1);
    class_begin_ = out_.size();
    if (at(i_) == ']') replace(1, "\\]");  // in first place it stands for itself
    while (i_ < in_.size() && at(i_) != ']') {
      const char c = at(i_);
      if (c == '\\') {
        escape(true);
      } else if (c == '[') {
        named_class();
      } else if (c == '&' && at(i_ + 1) == '&') {
        refuse("&& in a character class");
      } else if (caseless_ && static_cast<unsigned char>(c) >= 0x80) {
        refuse("a character beside ASCII that ignores case");
      } else {
        copy(1);
      }
    }
    copy(1);
  }

  // What stands for several characters neither begins nor ends a range.
  void check_no_range() const {
    const bool begins = at(i_ + 2) == '-' && at(i_ + 3) != ']';
    const std::size_t size = out_.size();
    const bool ends = size > class_begin_ + 1 && out_[size - 1] == '-' && out_[size - 2] != '\\';
    if (begins || ends) refuse("a range to or from \\" + std::string(1, at(i_ + 1)));
  }

  // [:name:] in a class.
  void named_class() {
    if (at(i_ + 1) != ':') refuse("a nested character class");
    const std::size_t end = in_.find(":]", i_ + 2);
    if (end == none) malformed("unclosed [:");
    std::string_view name = in_.substr(i_ + 2, end - i_ - 2);
    const bool negated = !name.empty() && name[0] == '^';
    if (negated) name.remove_prefix(1);
    struct translation {
      std::string_view name, members, others;
    };
    static constexpr translation known[] = {{"alpha", "\\p{Alphabetic}", "\\P{Alphabetic}"},
                                            {"alnum", "\\p{Alphabetic}\\p{Nd}", ""},
                                            {"upper", "\\p{Uppercase}", "\\P{Uppercase}"},
                                            {"lower", "\\p{Lowercase}", "\\P{Lowercase}"},
                                            {"space", white_space, no_white_space},
                                            {"blank", "\\p{Zs}\\t", ""},
                                            {"word", word_characters, ""},
                                            {"digit", "\\p{Nd}", "\\P{Nd}"},
                                            {"cntrl", "\\p{Cc}", "\\P{Cc}"},
                                            {"ascii", "[:ascii:]", "[:^ascii:]"},
                                            {"punct", "\\p{P}\\p{S}", ""},
                                            {"xdigit", "[:xdigit:]", "[:^xdigit:]"}};
    for (const translation& t : known) {
      const std::string_view by = negated ? t.others : t.members;
      if (t.name == name && !by.empty() && !(caseless_ && is_cased(name))) return replace(end + 2 - i_, by);
    }
    refuse(std::string(in_.substr(i_, end + 2 - i_)));
  }

  std::string_view in_;
  const std::string& where_;
  std::size_t i_ = 0;
  std::string out_;
  std::size_t atom_ = none;  // where the last one begins in the output
  bool repeated_ = false;    // whether it has a repetition
  char letter_ = '\0';       // the letter before, where case is ignored
  bool caseless_ = false;
  std::size_t class_begin_ = 0;
  std::vector<group> groups_{group{}};
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/io/tokenizer/pattern.hpp
MOTE_BEGIN_NAMESPACE

// find() may be called by several threads at once.
class pattern {
 public:
  // Throws format_error, naming `where`, for an expression that is malformed or uses what is not supported.
  pattern(const std::string& expression, std::string where) : where_(std::move(where)) {
    const std::string translated = detail::oniguruma_expression(expression, where_).to_pcre2();
    int problem = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &problem, &offset,
                              nullptr));
    if (!code_) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(problem, message, sizeof message);
      raise<format_error>(where_ + ": malformed pattern: " + reinterpret_cast<const char*>(message));
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // optional: matching works without
  }

  // The first match in well-formed UTF-8 at or after `from`, as [begin, end). Throws format_error when the pattern takes
  // more steps than any sensible one would.
  std::optional<std::pair<std::size_t, std::size_t>> find(std::string_view text, std::size_t from) const {
    const workspace& space = workspace::of_this_thread();
    const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK, space.match.get(), space.context.get());
    if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (found < 0) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(found, message, sizeof message);
      raise<format_error>(where_ + ": pattern failed: " + reinterpret_cast<const char*>(message));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(space.match.get());
    if (range[0] < from || range[1] < range[0]) raise<format_error>(where_ + ": \\K is not supported");
    return std::pair{static_cast<std::size_t>(range[0]), static_cast<std::size_t>(range[1])};
  }

  // Whether a match may have no characters.
  bool may_be_empty() const {
    std::uint32_t empty = 0;
    pcre2_pattern_info(code_.get(), PCRE2_INFO_MATCHEMPTY, &empty);
    return empty != 0;
  }

  // The expression that matches `literal` itself.
  static std::string quote(std::string_view literal) {
    std::string expression;
    for (const char c : literal) {
      if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) expression += '\\';
      expression += c;
    }
    return expression;
  }

 private:
  struct free_pcre2 {
    void operator()(pcre2_code* p) const { pcre2_code_free(p); }
    void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
    void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
    void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
  };

  template <class T>
  using owned = std::unique_ptr<T, free_pcre2>;

  // What a match writes to. All patterns of a thread share one: nothing in it outlives a match but its result.
  struct workspace {
    workspace() {
      if (!match || !context || !stack) raise<format_error>("not enough memory for patterns");
      pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
      pcre2_set_match_limit(context.get(), 20'000'000);
      pcre2_set_depth_limit(context.get(), 100'000);
      pcre2_set_heap_limit(context.get(), 64 << 10);  // KiB
    }
    static const workspace& of_this_thread() {
      thread_local const workspace space;
      return space;
    }

    owned<pcre2_match_data> match{pcre2_match_data_create(1, nullptr)};  // the whole match, no groups
    owned<pcre2_match_context> context{pcre2_match_context_create(nullptr)};
    owned<pcre2_jit_stack> stack{pcre2_jit_stack_create(std::size_t{32} << 10, std::size_t{8} << 20, nullptr)};
  };

  std::string where_;
  owned<pcre2_code> code_;
};

MOTE_END_NAMESPACE

// ---- mote/io/tokenizer/added_tokens.hpp
MOTE_BEGIN_NAMESPACE

struct added_token {
  std::string content;
  std::int32_t id = 0;
  bool special = false, normalized = false, single_word = false, lstrip = false, rstrip = false;
};

class added_tokens {
 public:
  struct part {
    std::size_t begin, end;    // with the white space that lstrip and rstrip take
    const added_token* token;  // none: ordinary text
  };

  added_tokens() = default;

  // Throws format_error naming the entry that is malformed.
  explicit added_tokens(const json_object& json) {
    if (!json.has_value("added_tokens")) return;
    std::size_t i = 0;
    for (const nlohmann::json& entry : json.array("added_tokens")) {
      const json_object t(entry, json.where() + ": added_tokens[" + std::to_string(i++) + "]");
      added_token token;
      token.content = t.string("content");
      token.id = static_cast<std::int32_t>(t.integer("id", 0, std::numeric_limits<std::int32_t>::max()));
      token.special = t.boolean_or("special", false);
      token.normalized = t.boolean_or("normalized", !token.special);
      token.single_word = t.boolean_or("single_word", false);
      token.lstrip = t.boolean_or("lstrip", false);
      token.rstrip = t.boolean_or("rstrip", false);
      if (token.content.empty()) t.fail("content", "is empty");
      tokens_.push_back(std::move(token));
    }
    index();
  }

  // The given tokens, none of them empty.
  explicit added_tokens(std::vector<added_token> tokens) : tokens_(std::move(tokens)) { index(); }

  const std::vector<added_token>& tokens() const { return tokens_; }

  // The tokens in the text and what lies between them, in order. Tokens that are not `normalized` are looked for first,
  // the others in what is left.
  std::vector<part> split(std::string_view text) const {
    std::vector<part> parts;
    for (const part& p : cut(text, false)) {
      if (p.token != nullptr) {
        parts.push_back(p);
        continue;
      }
      for (const part& q : cut(text.substr(p.begin, p.end - p.begin), true)) {
        parts.push_back({p.begin + q.begin, p.begin + q.end, q.token});
      }
    }
    return parts;
  }

 private:
  void index() {
    // Candidates by first byte, the longest first.
    for (std::size_t t = 0; t < tokens_.size(); ++t) {
      by_first_byte_[static_cast<unsigned char>(tokens_[t].content[0])].push_back(t);
    }
    for (auto& [byte, list] : by_first_byte_) {
      std::stable_sort(list.begin(), list.end(), [&](std::size_t a, std::size_t b) {
        return tokens_[a].content.size() > tokens_[b].content.size();
      });
    }
  }

  // Leftmost, then longest. The search goes on right behind a token, also where the token was refused for not being a word
  // of its own or has taken white space that begins the next one.
  std::vector<part> cut(std::string_view text, bool normalized) const {
    std::vector<part> parts;
    std::size_t done = 0;
    for (std::size_t i = 0; i < text.size();) {
      const added_token* token = longest_at(text, i, normalized);
      if (token == nullptr) {
        ++i;
        continue;
      }
      std::size_t begin = i, end = i + token->content.size();
      i = end;
      if (token->single_word && (word_before(text, begin) || word_after(text, end))) continue;
      if (token->lstrip) begin = std::max(space_before(text, begin), done);
      if (token->rstrip) end = space_after(text, end);
      if (done < begin) parts.push_back({done, begin, nullptr});
      parts.push_back({begin, end, token});
      done = end;
    }
    if (done < text.size()) parts.push_back({done, text.size(), nullptr});
    return parts;
  }

  const added_token* longest_at(std::string_view text, std::size_t i, bool normalized) const {
    const auto list = by_first_byte_.find(static_cast<unsigned char>(text[i]));
    if (list == by_first_byte_.end()) return nullptr;
    for (const std::size_t t : list->second) {
      const added_token& token = tokens_[t];
      if (token.normalized == normalized && text.substr(i, token.content.size()) == token.content) return &token;
    }
    return nullptr;
  }

  static std::string_view character_before(std::string_view text, std::size_t end) {
    std::size_t begin = end;
    while (begin > 0 && detail::is_continuation(text[begin - 1]) && end - begin < 3) --begin;
    if (begin > 0) --begin;
    const std::string_view character = text.substr(begin, end - begin);
    return detail::utf8_length(character) == character.size() ? character : std::string_view();
  }
  static std::string_view character_at(std::string_view text, std::size_t begin) {
    return text.substr(begin, detail::utf8_length(text.substr(begin)));
  }

  bool word_before(std::string_view text, std::size_t i) const {
    const auto c = character_before(text, i);
    return !c.empty() && word_.find(c, 0).has_value();
  }
  bool word_after(std::string_view text, std::size_t i) const {
    const auto c = character_at(text, i);
    return !c.empty() && word_.find(c, 0).has_value();
  }
  std::size_t space_before(std::string_view text, std::size_t i) const {
    for (auto c = character_before(text, i); !c.empty() && space_.find(c, 0); c = character_before(text, i))
      i -= c.size();
    return i;
  }
  std::size_t space_after(std::string_view text, std::size_t i) const {
    for (auto c = character_at(text, i); !c.empty() && space_.find(c, 0); c = character_at(text, i)) i += c.size();
    return i;
  }

  std::vector<added_token> tokens_;
  std::unordered_map<unsigned char, std::vector<std::size_t>> by_first_byte_;
  pattern word_{"[\\w\\x{200C}\\x{200D}]", "added_tokens"};
  pattern space_{"\\s", "added_tokens"};
};

MOTE_END_NAMESPACE

// ---- mote/io/tokenizer/bpe.hpp
// Byte-pair encoding: the `model` of a tokenizer.json, over bytes.
//
// A piece starts as single bytes; the adjacent pair with the lowest merge rank is joined, leftmost first, until none is
// left. Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016); Radford et al.,
// "Language Models are Unsupervised Multitask Learners" (2019) for the byte alphabet.

#include <queue>

MOTE_BEGIN_NAMESPACE

class bpe {
 public:
  // Throws format_error naming the field that is missing, malformed, contradictory or not supported.
  explicit bpe(const json_object& json) {
    if (json.string_or("type", "BPE") != "BPE")
      json.fail("type", "expected \"BPE\", got \"" + json.string("type") + "\"");
    for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!json.string_or(field, "").empty()) json.fail(field, "is not supported");
    }
    if (json.number_or("dropout", 0.0) != 0.0) json.fail("dropout", "is not supported");
    if (json.boolean_or("byte_fallback", false))
      json.fail("byte_fallback", "is not supported: expected a byte-level vocabulary");
    ignore_merges_ = json.boolean_or("ignore_merges", false);
    read_vocab(json.object("vocab"));
    read_merges(json);
    if (json.has_value("unk_token")) {
      unknown_ = find(json.string("unk_token"));
      if (!unknown_) json.fail("unk_token", "is not in the vocabulary");
      if (json.boolean_or("fuse_unk", false)) json.fail("fuse_unk", "is not supported");
    }
  }

  // A vocabulary whose tokens have their places as ids, and merges "left right" in the order of their ranks. With
  // `ignore_merges` a piece that is a token stays whole. Throws format_error naming `where` and the entry that is malformed
  // or contradictory.
  bpe(std::span<const std::string> tokens, std::span<const std::string> merges, bool ignore_merges, std::string where)
      : ignore_merges_(ignore_merges) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (!add_token(tokens[i], static_cast<std::int32_t>(i))) {
        raise<format_error>(where + ": token " + std::to_string(i) + ": \"" + tokens[i] + "\" stands twice");
      }
    }
    if (ids_.empty()) raise<format_error>(where + ": the vocabulary is empty");
    index_bytes();
    for (std::size_t i = 0; i < merges.size(); ++i) {
      const auto fail = [&](const std::string& message) {
        raise<format_error>(where + ": merge " + std::to_string(i) + ": " + message);
      };
      const auto parts = split_merge(merges[i]);
      if (!parts) fail("expected \"left right\"");
      add_merge(parts->first, parts->second, static_cast<std::uint32_t>(i), fail);
    }
  }

  // Calls f(bytes, id) for every token of the vocabulary.
  template <class F>
  void for_each(F&& f) const {
    for (const auto& [bytes, id] : ids_) f(bytes, id);
    for (const auto& [text, id] : others_) f(text, id);
  }

  // The id of a token as the vocabulary spells it.
  std::optional<std::int32_t> find(const std::string& token) const {
    const auto bytes = alphabet_.decode(token);
    const auto& table = bytes ? ids_ : others_;
    const auto it = table.find(bytes ? *bytes : token);
    return it == table.end() ? std::nullopt : std::optional(it->second);
  }

  // Appends the ids of one piece. Bytes that the vocabulary lacks become the unknown token, or nothing where it has none.
  void encode(const std::string& piece, std::vector<std::int32_t>& out) const {
    if (ignore_merges_) {
      if (const auto it = ids_.find(piece); it != ids_.end()) {
        out.push_back(it->second);
        return;
      }
    }
    merge(piece, out);
  }

 private:
  static constexpr std::int32_t none = -1;

  struct merge_result {
    std::uint32_t rank;
    std::int32_t id;
  };

  static std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
  }

  void read_vocab(const json_object& vocab) {
    std::unordered_set<std::int32_t> seen;
    for (const auto& [token, entry] : vocab.value().items()) {
      const auto id = static_cast<std::int32_t>(vocab.integer(token, 0, std::numeric_limits<std::int32_t>::max()));
      if (!seen.insert(id).second) vocab.fail(token, "the id " + std::to_string(id) + " is given twice");
      add_token(token, id);
    }
    if (ids_.empty()) raise<format_error>(vocab.where() + ": is empty");
    index_bytes();
  }

  // Whether the token was new.
  bool add_token(const std::string& token, std::int32_t id) {
    const auto bytes = alphabet_.decode(token);
    return (bytes ? ids_ : others_).emplace(bytes ? *bytes : token, id).second;
  }

  void index_bytes() {
    bytes_.fill(none);
    for (std::size_t b = 0; b < 256; ++b) {
      if (const auto it = ids_.find(std::string(1, static_cast<char>(b))); it != ids_.end()) bytes_[b] = it->second;
    }
  }

  // "left right" in older files, ["left", "right"] in newer ones.
  void read_merges(const json_object& json) {
    std::uint32_t rank = 0;
    for (const nlohmann::json& entry : json.array("merges")) {
      const auto fail = [&](const std::string& message) { json.fail("merges[" + std::to_string(rank) + "]", message); };
      std::optional<std::pair<std::string, std::string>> parts;
      if (entry.is_string()) {
        parts = split_merge(entry.get_ref<const std::string&>());
        if (!parts) fail("expected \"left right\"");
      } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
        parts.emplace(entry[0].get<std::string>(), entry[1].get<std::string>());
      } else {
        fail("expected \"left right\" or [\"left\", \"right\"]");
      }
      add_merge(parts->first, parts->second, rank, fail);
      ++rank;
    }
  }

  static std::optional<std::pair<std::string, std::string>> split_merge(const std::string& text) {
    const std::size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) return std::nullopt;
    return std::pair{text.substr(0, space), text.substr(space + 1)};
  }

  // `fail(message)` throws.
  template <class Fail>
  void add_merge(const std::string& left, const std::string& right, std::uint32_t rank, Fail&& fail) {
    const auto id_of = [&](const std::string& token) {
      const auto id = find(token);
      if (!id) fail("\"" + left + " " + right + "\" names a token that the vocabulary lacks");
      return *id;
    };
    merges_.insert_or_assign(pair_key(id_of(left), id_of(right)), merge_result{rank, id_of(left + right)});
  }

  void merge(const std::string& piece, std::vector<std::int32_t>& out) const {
    struct symbol {
      std::int32_t id;
      std::uint32_t previous, next;
    };
    struct candidate {
      std::uint32_t rank, position;
      std::int32_t left, right, id;
      bool operator>(const candidate& o) const { return rank != o.rank ? rank > o.rank : position > o.position; }
    };
    constexpr std::uint32_t end = std::numeric_limits<std::uint32_t>::max();
    if (piece.size() >= end) raise<format_error>("tokenizer: a piece of text of 4 GiB or more");
    std::vector<symbol> symbols;
    symbols.reserve(piece.size());
    for (const char c : piece) {
      std::int32_t id = bytes_[static_cast<unsigned char>(c)];
      if (id == none) {
        if (!unknown_) continue;
        id = *unknown_;
      }
      const auto i = static_cast<std::uint32_t>(symbols.size());
      symbols.push_back({id, i == 0 ? end : i - 1, i + 1});
    }
    if (symbols.empty()) return;
    symbols.back().next = end;

    std::priority_queue<candidate, std::vector<candidate>, std::greater<>> queue;
    const auto consider = [&](std::uint32_t left) {
      const std::uint32_t right = symbols[left].next;
      if (right == end) return;
      const auto it = merges_.find(pair_key(symbols[left].id, symbols[right].id));
      if (it == merges_.end()) return;
      queue.push({it->second.rank, left, symbols[left].id, symbols[right].id, it->second.id});
    };
    for (std::uint32_t i = 0; i + 1 < symbols.size(); ++i) consider(i);
    while (!queue.empty()) {
      const candidate c = queue.top();
      queue.pop();
      symbol& left = symbols[c.position];
      if (left.id != c.left || left.next == end || symbols[left.next].id != c.right) continue;  // out of date
      symbol& right = symbols[left.next];
      left.id = c.id;
      right.id = none;
      left.next = right.next;
      if (right.next != end) symbols[right.next].previous = c.position;
      if (left.previous != end) consider(left.previous);
      consider(c.position);
    }
    for (std::uint32_t i = 0; i != end; i = symbols[i].next) out.push_back(symbols[i].id);
  }

  detail::byte_alphabet alphabet_;
  std::unordered_map<std::string, std::int32_t> ids_;     // by bytes
  std::unordered_map<std::string, std::int32_t> others_;  // tokens outside the byte alphabet, by their text
  std::array<std::int32_t, 256> bytes_{};
  std::unordered_map<std::uint64_t, merge_result> merges_;
  std::optional<std::int32_t> unknown_;
  bool ignore_merges_ = false;
};

MOTE_END_NAMESPACE

// ---- mote/io/tokenizer/pre_tokenizer.hpp
// Cutting text into the pieces within which byte-pair encoding merges: the `pre_tokenizer` of a tokenizer.json.
//
// Supported: Sequence, Split (Regex and String patterns, every behavior, invert), Digits, ByteLevel (last). Each step cuts
// the pieces of the step before; a pattern sees one piece at a time.

MOTE_BEGIN_NAMESPACE

class pre_tokenizer {
 public:
  // Throws format_error naming the field of what is missing, malformed or not supported.
  explicit pre_tokenizer(const json_object& json) {
    add(json, 0);
    if (!byte_level_) json.fail("type", "only byte-level tokenizers are supported: expected a ByteLevel step");
  }

  // Cuts at every match of one pattern after another, matches and what lies between them being pieces.
  pre_tokenizer(std::span<const std::string> patterns, const std::string& where) : byte_level_(true) {
    for (const std::string& p : patterns) steps_.push_back({std::make_unique<pattern>(p, where)});
  }

  // The pieces of well-formed UTF-8, in order. With add_prefix_space the first byte of a piece may be a space that the text
  // lacks, so pieces are strings of their own.
  std::vector<std::string> split(std::string_view text) const {
    std::vector<std::string> pieces, next;
    if (!text.empty()) pieces.emplace_back(text);
    for (const step& s : steps_) {
      next.clear();
      for (std::string& piece : pieces) {
        if (s.prefix_space && piece.front() != ' ') piece.insert(piece.begin(), ' ');
        if (s.expression) {
          apply(s, piece, next);
        } else {
          next.push_back(std::move(piece));
        }
      }
      std::swap(pieces, next);
    }
    return pieces;
  }

 private:
  enum class behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

  struct step {
    std::unique_ptr<pattern> expression;  // none: no cut
    behavior what = behavior::isolated;
    bool invert = false;
    bool prefix_space = false;
  };

  void add(const json_object& json, int depth) {
    const std::string type = json.string("type");
    if (byte_level_) json.fail("type", "nothing may follow the ByteLevel step");
    if (depth > 8) json.fail("type", "nested too deeply");
    if (type == "Sequence") {
      std::size_t i = 0;
      for (const nlohmann::json& entry : json.array("pretokenizers")) {
        add(json_object(entry, json.where() + ": pretokenizers[" + std::to_string(i++) + "]"), depth + 1);
      }
    } else if (type == "Split") {
      const json_object expression = json.object("pattern");
      const bool literal = expression.contains("String");
      const std::string text = expression.string(literal ? "String" : "Regex");
      steps_.push_back({std::make_unique<pattern>(literal ? pattern::quote(text) : text, json.where() + ": pattern"),
                        read_behavior(json), json.boolean_or("invert", false), false});
      if (steps_.back().what == behavior::contiguous && steps_.back().expression->may_be_empty()) {
        json.fail("behavior", "Contiguous is not supported for a pattern that may match nothing");
      }
    } else if (type == "Digits") {
      steps_.push_back({std::make_unique<pattern>("\\p{N}", json.where()),
                        json.boolean_or("individual_digits", false) ? behavior::isolated : behavior::contiguous, false,
                        false});
    } else if (type == "ByteLevel") {
      byte_level_ = true;
      step s;
      s.prefix_space = json.boolean_or("add_prefix_space", true);
      if (json.boolean_or("use_regex", true)) {
        s.expression = std::make_unique<pattern>(
            R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", json.where());
      }
      steps_.push_back(std::move(s));
    } else {
      json.fail("type", "\"" + type + "\" is not supported: expected Sequence, Split, Digits or ByteLevel");
    }
  }

  static behavior read_behavior(const json_object& json) {
    const std::string name = json.string("behavior");
    if (name == "Removed") return behavior::removed;
    if (name == "Isolated") return behavior::isolated;
    if (name == "MergedWithPrevious") return behavior::merged_with_previous;
    if (name == "MergedWithNext") return behavior::merged_with_next;
    if (name == "Contiguous") return behavior::contiguous;
    json.fail("behavior",
              "expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous, got \"" + name + "\"");
  }

  struct part {
    std::size_t begin, end;
    bool match;
  };

  // Matches and what lies between them, in order.
  static std::vector<part> find_parts(const step& s, std::string_view text) {
    std::vector<part> parts;
    std::size_t done = 0, from = 0;
    while (from <= text.size()) {
      const auto match = s.expression->find(text, from);
      if (!match) break;
      const auto [begin, end] = *match;
      if (done < begin) parts.push_back({done, begin, s.invert});
      if (begin < end) parts.push_back({begin, end, !s.invert});
      done = end;
      from = end;
      if (begin == end) {  // an empty match: look on from the next character
        ++from;
        while (from < text.size() && detail::is_continuation(text[from])) ++from;
      }
    }
    if (done < text.size()) parts.push_back({done, text.size(), s.invert});
    return parts;
  }

  static void apply(const step& s, std::string_view text, std::vector<std::string>& out) {
    const std::vector<part> parts = find_parts(s, text);
    std::vector<part> merged;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const part& p = parts[i];
      bool join = false;  // with the part before
      switch (s.what) {
        case behavior::removed:
          if (p.match) continue;
          break;
        case behavior::isolated:
          break;
        case behavior::contiguous:
          join = i > 0 && parts[i - 1].match == p.match;
          break;
        case behavior::merged_with_previous:
          join = p.match && i > 0 && !parts[i - 1].match;
          break;
        case behavior::merged_with_next:
          join = !p.match && i > 0 && parts[i - 1].match;
          break;
      }
      if (join) {
        merged.back().end = p.end;
      } else {
        merged.push_back(p);
      }
    }
    for (const part& p : merged) out.emplace_back(text.substr(p.begin, p.end - p.begin));
  }

  std::vector<step> steps_;
  bool byte_level_ = false;
};

MOTE_END_NAMESPACE

// ---- mote/io/tokenizer.hpp
MOTE_BEGIN_NAMESPACE

// What a tokenizer consists of, wherever it comes from. The added tokens' content is their text as it is decoded.
struct tokenizer_parts {
  bpe model;
  added_tokens added;
  pre_tokenizer pre;
  std::vector<std::int32_t> prefix, suffix;  // around a text
  std::optional<std::int32_t> bos, eos;
};

class tokenizer {
 public:
  // Reads DIR/tokenizer.json, and DIR/tokenizer_config.json where there is one for the names of the begin- and
  // end-of-sentence tokens. Where tokenizer.json has no TemplateProcessing, the config's add_bos_token and add_eos_token put
  // these around a text. Throws format_error naming the file and the field at fault.
  explicit tokenizer(const std::string& directory) : tokenizer(json_file(directory + "/tokenizer.json")) {
    const std::string path = directory + "/tokenizer_config.json";
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) return;
    const json_file config(path);
    bos_ = named_token(config.root(), "bos_token");
    eos_ = named_token(config.root(), "eos_token");
    if (has_template_) return;
    add_around(config.root(), "add_bos_token", bos_, prefix_);
    add_around(config.root(), "add_eos_token", eos_, suffix_);
  }

  explicit tokenizer(const json_file& file)
      : model_(file.root().object("model")), added_(file.root()), pre_tokenizer_(file.root().object("pre_tokenizer")) {
    const json_object root = file.root();
    check_normalizer(root);
    const json_object decoder = root.object("decoder");
    if (decoder.string("type") != "ByteLevel") decoder.fail("type", "expected ByteLevel");
    model_.for_each([&](const std::string& bytes, std::int32_t id) { tokens_.emplace(id, entry{bytes, false}); });
    const detail::byte_alphabet alphabet;
    std::unordered_set<std::string> contents;
    std::size_t next_id = tokens_.size();  // of an added token that the vocabulary lacks
    for (const added_token& token : added_.tokens()) {
      const std::string bytes = alphabet.decode(token.content).value_or(token.content);
      const auto in_vocab = model_.find(token.content);
      if ((in_vocab && *in_vocab != token.id) || (!in_vocab && tokens_.contains(token.id))) {
        root.fail("added_tokens",
                  "the id " + std::to_string(token.id) + " of \"" + token.content + "\" contradicts the vocabulary");
      }
      if (!contents.insert(token.content).second) {
        root.fail("added_tokens", "\"" + token.content + "\" stands twice");
      }
      if (!in_vocab && static_cast<std::size_t>(token.id) != next_id) {
        root.fail("added_tokens", "\"" + token.content + "\" has the id " + std::to_string(token.id) + ", expected " +
                                      std::to_string(next_id) + ", the next one");
      }
      next_id = std::max(next_id, static_cast<std::size_t>(token.id) + 1);
      tokens_.insert_or_assign(token.id, entry{bytes, token.special});
    }
    if (root.has_value("post_processor")) read_post_processor(root.object("post_processor"), 0);
  }

  explicit tokenizer(tokenizer_parts parts)
      : model_(std::move(parts.model)),
        added_(std::move(parts.added)),
        pre_tokenizer_(std::move(parts.pre)),
        prefix_(std::move(parts.prefix)),
        suffix_(std::move(parts.suffix)),
        bos_(parts.bos),
        eos_(parts.eos) {
    model_.for_each([&](const std::string& bytes, std::int32_t id) { tokens_.emplace(id, entry{bytes, false}); });
    for (const added_token& t : added_.tokens()) tokens_.insert_or_assign(t.id, entry{t.content, t.special});
  }

  // One more than the largest id.
  std::size_t vocab_size() const {
    std::int32_t largest = -1;
    for (const auto& [id, token] : tokens_) largest = std::max(largest, id);
    return static_cast<std::size_t>(largest) + 1;
  }

  std::optional<std::int32_t> bos_id() const { return bos_; }
  std::optional<std::int32_t> eos_id() const { return eos_; }

  std::optional<std::int32_t> token_to_id(const std::string& token) const {
    for (const added_token& t : added_.tokens()) {
      if (t.content == token) return t.id;
    }
    return model_.find(token);
  }

  // With `special`, the tokens that the post-processor puts around a text are added.
  std::vector<std::int32_t> encode(std::string_view text, bool special = true) const {
    std::vector<std::int32_t> ids;
    if (special) ids = prefix_;
    for (const auto& part : added_.split(text)) {
      if (part.token != nullptr) {
        ids.push_back(part.token->id);
      } else {
        encode_ordinary(text.substr(part.begin, part.end - part.begin), ids);
      }
    }
    if (special) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
    return ids;
  }

  // The bytes of the tokens; special tokens are left out if asked. Throws format_error for an id that no token has.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = true) const {
    std::string text;
    for (const std::int32_t id : ids) {
      const auto it = tokens_.find(id);
      if (it == tokens_.end()) raise<format_error>("tokenizer: no token has the id " + std::to_string(id));
      if (!(skip_special && it->second.special)) text += it->second.bytes;
    }
    return text;
  }

 private:
  static constexpr std::size_t most_added = 4096;  // tokens around a text

  struct entry {
    std::string bytes;
    bool special;
  };

  static void check_normalizer(const json_object& root) {
    if (!root.has_value("normalizer")) return;
    const json_object normalizer = root.object("normalizer");
    if (normalizer.string("type") == "Sequence" && normalizer.array("normalizers").empty()) return;
    normalizer.fail("type", "\"" + normalizer.string("type") + "\" is not supported: expected no normalizer");
  }

  // TemplateProcessing adds special tokens before and after the text; ByteLevel changes offsets only.
  void read_post_processor(const json_object& json, int depth) {
    const std::string type = json.string("type");
    if (depth > 8) json.fail("type", "nested too deeply");
    if (type == "ByteLevel") return;
    if (type == "Sequence") {
      std::size_t i = 0;
      for (const nlohmann::json& part : json.array("processors")) {
        read_post_processor(json_object(part, json.where() + ": processors[" + std::to_string(i++) + "]"), depth + 1);
      }
      return;
    }
    if (type != "TemplateProcessing") {
      json.fail("type", "\"" + type + "\" is not supported: expected TemplateProcessing, ByteLevel or Sequence");
    }
    if (std::exchange(has_template_, true)) json.fail("type", "a second TemplateProcessing is not supported");
    const json_object special = json.object("special_tokens");
    bool text_seen = false;
    for (const nlohmann::json& part : json.array("single")) {
      const json_object item(part, json.where() + ": single");
      if (item.contains("Sequence")) {
        if (item.object("Sequence").string("id") != "A" || std::exchange(text_seen, true)) {
          json.fail("single", "expected the sequence A once");
        }
        continue;
      }
      const std::string name = item.object("SpecialToken").string("id");
      for (const nlohmann::json& id : special.object(name).array("ids")) {
        constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max());
        const std::uint64_t value = id.is_number_unsigned() ? id.get<std::uint64_t>() : largest + 1;
        if (value > largest || !tokens_.contains(static_cast<std::int32_t>(value))) {
          special.fail(name, "names an id that no token has");
        }
        // A list named many times must not grow without a bound.
        if (prefix_.size() + suffix_.size() == most_added) json.fail("single", "adds too many tokens");
        (text_seen ? suffix_ : prefix_).push_back(static_cast<std::int32_t>(value));
      }
    }
    if (!text_seen) json.fail("single", "expected the sequence A once");
  }

  std::optional<std::int32_t> named_token(const json_object& config, const std::string& field) const {
    const std::optional<std::string> name = detail::token_name(config, field);
    if (!name) return std::nullopt;
    const auto id = token_to_id(*name);
    if (!id) config.fail(field, "\"" + *name + "\" is not a token of tokenizer.json");
    return id;
  }

  static void add_around(const json_object& config, const std::string& field, std::optional<std::int32_t> token,
                         std::vector<std::int32_t>& around) {
    if (!config.boolean_or(field, false)) return;
    if (!token) config.fail(field, "is true, but no such token is named");
    around.push_back(*token);
  }

  void encode_ordinary(std::string_view text, std::vector<std::int32_t>& ids) const {
    for (std::size_t i = 0; i < text.size();) {
      std::size_t valid = i;
      for (std::size_t n; valid < text.size() && (n = detail::utf8_length(text.substr(valid))) > 0;) valid += n;
      if (valid > i) {
        for (const std::string& piece : pre_tokenizer_.split(text.substr(i, valid - i))) model_.encode(piece, ids);
      }
      std::size_t bad = valid;
      while (bad < text.size() && detail::utf8_length(text.substr(bad)) == 0) ++bad;
      if (bad > valid) model_.encode(std::string(text.substr(valid, bad - valid)), ids);
      i = bad;
    }
  }

  bpe model_;
  added_tokens added_;
  pre_tokenizer pre_tokenizer_;
  std::unordered_map<std::int32_t, entry> tokens_;
  std::vector<std::int32_t> prefix_, suffix_;
  std::optional<std::int32_t> bos_, eos_;
  bool has_template_ = false;
};

// Text of tokens as they come: a character is given out when its last byte has arrived.
class token_stream {
 public:
  explicit token_stream(const tokenizer& t, bool skip_special = true) : tokenizer_(t), skip_special_(skip_special) {}

  // Appends a token; gives the text that is now complete. Throws like tokenizer::decode.
  std::string push(std::int32_t id) {
    pending_ += tokenizer_.decode({&id, 1}, skip_special_);
    std::size_t keep = 0;  // bytes at the end that may still become a character
    for (std::size_t n = 1; n <= 3 && n <= pending_.size(); ++n) {
      if (detail::utf8_incomplete(std::string_view(pending_).substr(pending_.size() - n))) keep = n;
    }
    std::string text = pending_.substr(0, pending_.size() - keep);
    pending_.erase(0, pending_.size() - keep);
    return text;
  }

  // What is left, complete or not.
  std::string finish() { return std::exchange(pending_, {}); }

 private:
  const tokenizer& tokenizer_;
  bool skip_special_;
  std::string pending_;
};

MOTE_END_NAMESPACE

// ---- mote/io/gguf/tokenizer.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// How a published tokenizer cuts text: at the matches of one pattern after another.
struct gguf_pre_tokenizer {
  std::vector<std::string> patterns;
  bool ignore_merges = false;  // a piece that is a token stays whole
  bool add_bos = false;        // where the file does not say
};

// Cased letters, as DeepSeek-LLM and DeepSeek-V2 list them.
inline constexpr const char* gguf_cased_letters =
    R"(A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF})"
    R"(\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1})"
    R"(\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5})"
    R"(\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A})"
    R"(\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B})"
    R"(\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC})"
    R"(\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107})"
    R"(\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139})"
    R"(\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4})"
    R"(\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787})"
    R"(\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A})"
    R"(\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2})"
    R"(\x{118A0}-\x{118DF}\x{1E900}-\x{1E943})";

// Throws format_error for a name that is not known.
inline gguf_pre_tokenizer read_gguf_pre_tokenizer(const gguf_metadata& m) {
  const std::string gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
  const std::string contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
  // The expressions of cl100k and its like, with runs of digits of a given length.
  const auto cl100k = [&](const std::string& digits) {
    return contractions + R"(|[^\r\n\p{L}\p{N}]?\p{L}+|)" + digits +
           R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  };
  // Words that break where small letters are followed by capitals; `letter` limits which those are.
  const auto cased = [&](const std::string& ending, const std::string& digits, const std::string& letter = "",
                         const std::string& breaks = R"([\r\n/]*)") {
    const std::string before = R"([^\r\n\p{L}\p{N}]?)", upper = "(?:" + letter + R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]))",
                      lower = "(?:" + letter + R"([\p{Ll}\p{Lm}\p{Lo}\p{M}]))";
    return before + upper + "*" + lower + "+" + ending + "|" + before + upper + "+" + lower + "*" + ending + "|" +
           digits + R"(| ?[^\s\p{L}\p{N}]+)" + breaks + R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
  };
  const std::string asian = R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";

  // Without the key, as in llama.cpp, "default".
  const std::string name = m.contains("tokenizer.ggml.pre") ? m.string("tokenizer.ggml.pre") : "default";
  const auto is = [&](auto... names) { return ((name == names) || ...); };
  if (is("gpt-2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "trillion",
         "granite-docling", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4")) {
    return {{gpt2}};
  }
  if (is("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2")) {
    return {{R"(\p{N})", gpt2}};
  }
  if (is("falcon")) return {{R"([\p{P}$+<=>^~|`]+)", gpt2, "[0-9][0-9][0-9]"}};
  if (is("default")) return {{R"([\p{P}$+<=>^~|]+)", gpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}};
  if (is("deepseek-llm")) {
    return {{R"([\r\n])", R"(\s?[)" + std::string(gguf_cased_letters) + "]+",
             R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)", R"(\s+$)", asian,
             R"(\p{N})"}};
  }
  if (is("deepseek-coder")) return {{R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", asian, R"(\p{N})"}};
  if (is("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")) {
    return {{R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
             R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
             R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}};
  }
  if (is("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"))
    return {{cl100k(R"(\p{N}{1,3})")}, true, true};
  if (is("dbrx", "smaug-bpe", "chatglm-bpe")) return {{cl100k(R"(\p{N}{1,3})")}};
  if (is("glm4", "glm5")) return {{cl100k(R"(\p{N}{1,3})")}, true};
  if (is("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2", "solar-open", "grok-2"))
    return {{cl100k(R"(\p{N})")}};
  if (is("qwen35")) {
    return {{contractions + R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+)"
                            R"(|\s+(?!\S)|\s+)"}};
  }
  if (is("tekken")) return {{cased("", R"(\p{N})")}, true, true};
  if (is("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")) {
    return {{cased(contractions + "?", R"(\p{N}{1,3})")}};
  }
  if (is("youtu")) {
    return {{R"([\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+)"
             R"(|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F})"
             R"(\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
             cased(contractions + "?", R"(\p{N})")},
            true};
  }
  if (is("kimi-k2")) {
    return {{R"(\p{Han}+|)" + cased(contractions + "?", R"(\p{N}{1,3})", R"((?!\p{Han}))", R"([\r\n]*)")}};
  }
  if (is("seed-coder")) {
    return {{contractions + R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)"}};
  }
  if (is("bailingmoe", "bailingmoe2", "llada-moe")) {
    return {{R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n])"
             R"(|\s+(?!\S)|\s+)"}};
  }
  m.fail("tokenizer.ggml.pre", "\"" + name + "\" is not a byte-level tokenizer that is known");
}

// The id that a key gives, or nothing.
inline std::optional<std::int32_t> read_gguf_token(const gguf_metadata& m, std::string_view key, std::size_t tokens) {
  if (!m.contains(key)) return std::nullopt;
  return static_cast<std::int32_t>(m.integer(key, 0, tokens - 1));
}

// Tokens that are found in the text as they stand: those of the types "control" and "user defined".
inline std::vector<added_token> read_gguf_added_tokens(const gguf_metadata& m, const std::vector<std::string>& tokens) {
  constexpr const char* key = "tokenizer.ggml.token_type";
  constexpr std::int32_t control = 3, user_defined = 4, byte = 6;
  if (!m.contains(key)) return {};
  const std::vector<std::int32_t>& types = m.array<std::int32_t>(key);
  if (types.size() != tokens.size()) {
    m.fail(key, "expected one for each of the " + std::to_string(tokens.size()) + " tokens, got " +
                    std::to_string(types.size()));
  }
  std::vector<added_token> added;
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] < 0 || types[i] > byte) {
      m.fail(key, "token " + std::to_string(i) + ": unknown type " + std::to_string(types[i]));
    }
    if (types[i] != control && types[i] != user_defined) continue;
    if (tokens[i].empty()) m.fail("tokenizer.ggml.tokens", "token " + std::to_string(i) + ": is empty");
    added_token& t = added.emplace_back();
    t.content = tokens[i];
    t.id = static_cast<std::int32_t>(i);
    t.special = types[i] == control;
  }
  return added;
}

}  // namespace detail

// Throws format_error naming the key that is missing, malformed or not supported.
inline tokenizer read_gguf_tokenizer(const gguf_metadata& m) {
  const std::string& model = m.string("tokenizer.ggml.model");
  if (model == "no_vocab") m.fail("tokenizer.ggml.model", "the file has no vocabulary: it takes token ids, not text");
  if (model != "gpt2") {
    m.fail("tokenizer.ggml.model", "\"" + model + "\" is not supported: expected \"gpt2\", byte-level BPE");
  }
  const std::vector<std::string>& tokens = m.array<std::string>("tokenizer.ggml.tokens");
  if (tokens.empty()) m.fail("tokenizer.ggml.tokens", "is empty");
  if (m.boolean_or("tokenizer.ggml.add_space_prefix", false)) {
    m.fail("tokenizer.ggml.add_space_prefix", "is not supported for byte-level BPE");
  }
  const detail::gguf_pre_tokenizer pre = detail::read_gguf_pre_tokenizer(m);
  const std::string where = m.where() + ": tokenizer.ggml";
  tokenizer_parts parts{bpe(tokens, m.array<std::string>("tokenizer.ggml.merges"), pre.ignore_merges, where),
                        added_tokens(detail::read_gguf_added_tokens(m, tokens)),
                        pre_tokenizer(pre.patterns, where + ".pre"),
                        {},
                        {},
                        detail::read_gguf_token(m, "tokenizer.ggml.bos_token_id", tokens.size()),
                        detail::read_gguf_token(m, "tokenizer.ggml.eos_token_id", tokens.size())};
  if (m.boolean_or("tokenizer.ggml.add_bos_token", pre.add_bos)) {
    if (!parts.bos) m.fail("tokenizer.ggml.bos_token_id", "missing, but texts begin with it");
    parts.prefix.push_back(*parts.bos);
  }
  if (m.boolean_or("tokenizer.ggml.add_eos_token", false)) {
    if (!parts.eos) m.fail("tokenizer.ggml.eos_token_id", "missing, but texts end with it");
    parts.suffix.push_back(*parts.eos);
  }
  return tokenizer(std::move(parts));
}

// The file's `tokenizer.chat_template`, or nothing. Throws format_error for one that is malformed or uses what is not
// supported.
inline std::optional<chat_template> read_gguf_chat_template(const gguf_metadata& m) {
  constexpr const char* key = "tokenizer.chat_template";
  if (!m.contains(key)) return std::nullopt;
  jinja_template::value variables = jinja_template::value::object();
  constexpr std::pair<const char*, const char*> names[] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                                                           {"eos_token", "tokenizer.ggml.eos_token_id"},
                                                           {"unk_token", "tokenizer.ggml.unknown_token_id"},
                                                           {"pad_token", "tokenizer.ggml.padding_token_id"}};
  for (const auto& [name, id_key] : names) {
    if (!m.contains(id_key)) continue;
    const std::vector<std::string>& tokens = m.array<std::string>("tokenizer.ggml.tokens");
    if (tokens.empty()) m.fail("tokenizer.ggml.tokens", "is empty");
    variables[name] = tokens[m.integer(id_key, 0, tokens.size() - 1)];
  }
  return chat_template(m.string(key), m.where() + ": " + key, std::move(variables));
}

MOTE_END_NAMESPACE

// ---- mote/io/mapped_experts.hpp
// Experts in a mapped file of which only some are in memory, so that a model larger than memory runs.
//
// Bounds what the process has in memory, everything counted: experts get what the rest leaves of it. Experts that are needed
// are read from the file, those used least go (decode/expert_cache.hpp), out of the system's file cache too: kept there
// they would drive out of a machine that is full what is in use.

// ---- mote/io/resident.hpp
// Which parts of a mapped file lie in memory (POSIX; resident_memory() is Linux's).
//
// Nothing here changes what a program reads: pages that were given back come again from the file when they are touched.
// The bytes must be those of a mapped_file, or of another mapping that is never written.

#include <charconv>

MOTE_BEGIN_NAMESPACE

namespace detail {

inline std::size_t memory_page() {
  static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

// Advises on every page that holds some of the bytes.
inline void advise(std::span<const std::byte> bytes, int advice) {
  if (bytes.empty()) return;
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::uintptr_t begin = address / memory_page() * memory_page();
  ::madvise(reinterpret_cast<void*>(begin), address + bytes.size() - begin, advice);  // advice may be left untaken
}

}  // namespace detail

// Takes the pages out of the process's memory. Neighbours that share a page with the bytes lose it too.
inline void release_pages(std::span<const std::byte> bytes) { detail::advise(bytes, MADV_DONTNEED); }

// The same, and out of the system's file cache where it lets go of them, so that they leave room in the machine too.
inline void evict_pages(std::span<const std::byte> bytes) {
#ifdef MADV_PAGEOUT
  detail::advise(bytes, MADV_PAGEOUT);
#endif
  release_pages(bytes);
}

// Has the system read the pages while the program goes on. In steps, since Linux takes no more at once than the device's
// largest request.
inline void prefetch_pages(std::span<const std::byte> bytes) {
  constexpr std::size_t step = std::size_t{1} << 17;
  for (std::size_t i = 0; i < bytes.size(); i += step) {
    detail::advise(bytes.subspan(i, std::min(step, bytes.size() - i)), MADV_WILLNEED);
  }
}

// Brings the pages into the process's memory and waits for them.
inline void touch_pages(std::span<const std::byte> bytes) {
  for (std::size_t i = 0; i < bytes.size(); i += detail::memory_page()) {
    static_cast<void>(*static_cast<const volatile std::byte*>(bytes.data() + i));
  }
}

// Bytes of this process that lie in memory now, those of mapped files included. Opens no file and allocates nothing after
// the first call. Throws format_error where the system does not say.
inline std::size_t resident_memory() {
  static const int descriptor = ::open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  char text[128];
  const ssize_t size = ::pread(descriptor, text, sizeof text, 0);
  const char* end = text + std::max<ssize_t>(size, 0);
  const char* second = std::find(static_cast<const char*>(text), end, ' ');
  std::size_t pages = 0;
  if (second == end || std::from_chars(second + 1, end, pages).ec != std::errc()) {
    raise<format_error>("/proc/self/statm: cannot be read");
  }
  return pages * detail::memory_page();
}

MOTE_END_NAMESPACE

// ---- mote/io/mapped_experts.hpp
MOTE_BEGIN_NAMESPACE

class mapped_experts {
 public:
  using region = std::span<const std::byte>;  // of the mapped file, its pages the expert's own (weight_file::region)

  // experts[l][e]: layer l's expert e. memory_limit: bytes of the whole process, which must leave room for one expert;
  // `reserve`: what the rest of the process may come to need within a step beyond what it has.
  mapped_experts(std::vector<std::vector<region>> experts, std::size_t memory_limit, std::size_t reserve)
      : experts_(std::move(experts)), cache_(sizes(experts_)), limit_(memory_limit) {
    for (std::size_t l = 0; l < experts_.size(); ++l) layers_.push_back(layer_residency(*this, l));
    set_reserve(reserve);
    update_capacity();
  }
  mapped_experts(const mapped_experts&) = delete;
  mapped_experts& operator=(const mapped_experts&) = delete;

  // Another `reserve`, before a step, beyond what the rest of the process has now.
  void set_reserve(std::size_t bytes) { reserved_ = rest() + bytes; }

  expert_residency& layer(std::size_t l) { return layers_[l]; }
  std::size_t limit() const { return limit_; }
  const expert_cache& cache() const { return cache_; }

  // Begins with the experts that an earlier run used most, in memory before the first step. Throws as
  // expert_cache::begin_with.
  template <host Backend>
  void begin_with(Backend& be, const std::vector<std::vector<std::uint64_t>>& uses) {
    cache_.begin_with(uses);
    std::vector<region> chosen;
    cache_.fill([&](std::size_t l, std::size_t e) { chosen.push_back(experts_[l][e]); });
    be.parallel_for(chosen.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        prefetch_pages(chosen[i]);
        touch_pages(chosen[i]);
      }
    });
  }

 private:
  class layer_residency final : public expert_residency {
   public:
    layer_residency(mapped_experts& all, std::size_t layer) : all_(&all), layer_(layer) {}
    std::size_t require(view<const std::int32_t, 1> offsets, std::size_t first) override {
      return all_->require(layer_, offsets, first);
    }

   private:
    mapped_experts* all_;
    std::size_t layer_;
  };

  static std::vector<std::vector<std::size_t>> sizes(const std::vector<std::vector<region>>& experts) {
    std::vector<std::vector<std::size_t>> result;
    for (const auto& layer : experts) {
      auto& row = result.emplace_back();
      for (const region& r : layer) row.push_back(r.size());
    }
    return result;
  }

  // What the process has beside experts. Those brought in are resident once they were used, which they are before the next call.
  std::size_t rest() const {
    const std::size_t now = resident_memory(), experts = cache_.resident_bytes();
    return now > experts ? now - experts : 0;
  }
  void update_capacity() {
    const std::size_t needed = std::max(rest(), reserved_);
    cache_.set_capacity(limit_ > needed ? limit_ - needed : 0);
  }

  std::size_t require(std::size_t l, view<const std::int32_t, 1> offsets, std::size_t first) {
    update_capacity();
    return cache_.require(
        l, offsets, first, [&](std::size_t layer, std::size_t e) { prefetch_pages(experts_[layer][e]); },
        [&](std::size_t layer, std::size_t e) { evict_pages(experts_[layer][e]); });
  }

  std::vector<std::vector<region>> experts_;
  expert_cache cache_;
  std::vector<layer_residency> layers_;
  std::size_t limit_, reserved_ = 0;  // reserved_: what the rest may come to have
};

MOTE_END_NAMESPACE

// ---- mote/io/npy.hpp
// Writing NumPy's .npy files, format 1.0.

MOTE_BEGIN_NAMESPACE

// A float32 matrix [rows, columns], written row by row. A regular file gets its name in finish(), when it is whole; anything
// else (a pipe, a device) is written directly.
class npy_writer {
 public:
  // Throws format_error naming the file when it cannot be created.
  npy_writer(const std::string& path, std::size_t rows, std::size_t columns)
      : path_(detail::behind_links(path)), left_(rows), columns_(columns) {
    std::error_code ignored;
    const auto status = std::filesystem::status(path_, ignored);
    if (!std::filesystem::exists(status) || std::filesystem::is_regular_file(status)) {
      file_.emplace(path_, unfinished::removed).begin_anew("\x93NUMPY");
    } else if (device_.reset(std::fopen(path_.c_str(), "wb")); device_ == nullptr) {
      raise_unwritable(path_);
    }
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ", " +
                         std::to_string(columns) + "), }";
    constexpr std::size_t preamble = 10;  // magic, version, length; the data starts at a multiple of 64
    header.append(63 - (preamble + header.size()) % 64, ' ');
    header += '\n';
    const char start[] = {'\x93',
                          'N',
                          'U',
                          'M',
                          'P',
                          'Y',
                          1,
                          0,
                          static_cast<char>(header.size() & 0xFF),
                          static_cast<char>(header.size() >> 8)};
    write(start, sizeof start);
    write(header.data(), header.size());
  }

  // The next rows. Throws format_error when they cannot be written, shape_error when they are too many or too wide.
  void append(view<const float, 2> rows) {
    check_shape("npy_writer", "rows", rows.extents(), {rows.extent(0), columns_});
    check(rows.extent(0) <= left_, "npy_writer", "rows: more than the file was made for");
    for (std::size_t i = 0; i < rows.extent(0); ++i) write(rows.row(i), columns_ * sizeof(float));
    left_ -= rows.extent(0);
  }

  // Gives the file its name. Throws like append, or when rows are missing.
  void finish() {
    check(left_ == 0, "npy_writer", "finish: rows are missing");
    if (file_) return file_->finish();
    if (std::fclose(device_.release()) != 0) raise_unwritable(path_);
  }

 private:
  struct close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void write(const void* data, std::size_t size) {
    if (file_) return file_->put(data, size);
    if (std::fwrite(data, 1, size, device_.get()) != size) raise_unwritable(path_);
  }

  std::string path_;
  std::size_t left_, columns_;
  std::optional<detail::part_file> file_;
  std::unique_ptr<std::FILE, close> device_;
};

MOTE_END_NAMESPACE

// ---- mote/io/safetensors_writer.hpp
// Writing safetensors files (the layout is described in safetensors.hpp): the list of tensors first, then their data in
// that order, piece by piece, so that nothing needs to be in memory whole.

MOTE_BEGIN_NAMESPACE

//   safetensors_writer file("model.safetensors");
//   file.add_tensor("lm_head.weight", dtype::bf16, shape);    // all of them
//   file.write("lm_head.weight", bytes);                      // in the same order, whole or piece by piece
//   file.finish();
//
// The file has the name PATH.part until finish() gives it its own.
class safetensors_writer {
 public:
  // Throws format_error when the file cannot be created.
  explicit safetensors_writer(std::string path, unfinished policy = unfinished::removed)
      : stream_("safetensors_writer", std::move(path), policy) {}

  // An entry of __metadata__. Throws shape_error when data was written.
  void add(const std::string& key, const std::string& value) {
    stream_.expect(!stream_.started(), "add: " + key + ": after the first data");
    header_["__metadata__"][key] = value;
  }

  // A tensor to come. Throws shape_error for a name given twice or the reserved one, an overflowing size, or too late, when
  // data was written.
  void add_tensor(const std::string& name, dtype type, std::span<const std::size_t> shape) {
    stream_.expect(name != "__metadata__", "add_tensor: " + name + ": is reserved");
    std::size_t size = dtype_size(type);
    for (const std::size_t n : shape) {
      stream_.expect(n == 0 || size <= std::numeric_limits<std::size_t>::max() / 2 / n,
                     "add_tensor: " + name + ": its size overflows");
      size *= n;
    }
    stream_.add(name, size, 1);
    header_[name] = {{"dtype", dtype_name(type)},
                     {"shape", nlohmann::json(shape)},
                     {"data_offsets", {next_offset_, next_offset_ + size}}};
    next_offset_ += size;
  }

  // The next bytes of the first tensor that is not complete, which must be `name`. Throws shape_error for another one or
  // too many bytes, format_error when they cannot be written.
  void write(std::string_view name, std::span<const std::byte> bytes) {
    stream_.start(header());
    stream_.write(name, bytes);
  }
  template <class T, std::size_t Rank>
  void write(std::string_view name, const view<const T, Rank>& values) {
    stream_.expect(values.contiguous(), "write: " + std::string(name) + ": expected contiguous values");
    write(name, std::as_bytes(std::span<const T>(values.data(), values.size())));
  }

  // Goes on behind the data of the first `count` tensors, written by a writer of the same tensors that left its file
  // (unfinished::kept). Throws format_error when the file is another one or shorter.
  void resume(std::size_t count) { stream_.resume(header(), count); }

  // Hands what was written to the operating system: it outlives the process. Throws format_error when it cannot.
  void flush() { stream_.flush(); }

  // Gives the file its name. Throws format_error when it cannot be written, shape_error when data is missing.
  void finish() {
    stream_.start(header());
    stream_.finish();
  }

 private:
  // Filled with spaces to a multiple of 8 bytes, so that the data begins aligned.
  std::string header() const {
    if (stream_.started()) return {};
    std::string json = header_.dump();
    json.append((8 - json.size() % 8) % 8, ' ');
    std::string prefix(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) prefix[i] = static_cast<char>(std::uint64_t{json.size()} >> (8 * i) & 0xFF);
    return prefix + json;
  }

  detail::tensor_stream stream_;
  nlohmann::ordered_json header_ = nlohmann::ordered_json::object();
  std::size_t next_offset_ = 0;
};

MOTE_END_NAMESPACE

// ---- mote/io/weight_file.hpp
// Files of weights in the form in which kernels read them: mapped, a model is ready without being converted or packed.
//
// Layout, in the byte order of the machine that wrote it: "MOTEPACK", then as 64-bit numbers the version (1), the offset, size
// and fnv1a of the table; the weights' bytes, each from a multiple of 4096 on; then the table, JSON
// {"key": text, "weights": {NAME: {"form": "packed q4_0", "shape": [out, in], "offset": …}}}, and what else a form needs (detail::
// stored_form). The table is checked whole, every size and offset in it, and may be hostile. The weights'
// own bytes are taken as they are: whatever they hold, they are numbers.

#include <tuple>

MOTE_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::string_view weight_file_magic = "MOTEPACK";
inline constexpr std::size_t weight_alignment = 4096;
inline constexpr std::size_t region_alignment = std::size_t{1} << 16;

inline constexpr std::size_t largest_extent = std::size_t{1} << 30;  // no size of such a matrix overflows

// Two whole numbers from 1 on.
inline std::pair<std::size_t, std::size_t> extents(const json_object& json, const std::string& field) {
  const nlohmann::json& pair = json.array(field);
  const auto extent = [&](std::size_t i) {
    if (pair.size() != 2 || !pair[i].is_number_unsigned() || pair[i].get<std::uint64_t>() - 1 >= largest_extent) {
      json.fail(field, "expected two whole numbers from 1 to " + std::to_string(largest_extent));
    }
    return pair[i].get<std::size_t>();
  };
  const std::size_t first = extent(0);
  return {first, extent(1)};
}

struct weight_file_header {
  std::array<char, 8> magic{};
  std::uint64_t version = 0, table_offset = 0, table_size = 0, table_checksum = 0;
};

// How a form of matrix is kept: its name, what its entry of the table says besides (`describe`), its bytes for a shape
// (`size`, nothing where it has no such shape), its parts, and the matrix again from the bytes that the parts gave one after
// another (`make`).
template <class Matrix>
struct stored_form;

inline void check_contiguous(bool contiguous) {
  check(contiguous, "weight_file_writer", "write: expected contiguous rows");
}

template <class T>
std::span<const std::byte> bytes_of(const view<const T, 2>& v) {
  check_contiguous(v.contiguous());
  return std::as_bytes(std::span(v.data(), v.size()));
}

template <class T>
struct stored_form<view<const T, 2>> {
  static std::string name() {
    if constexpr (block_format<T>) {
      return std::string(std::string_view(T::name));
    } else {
      static_assert(std::is_same_v<T, float> || std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
      return std::is_same_v<T, float> ? "f32" : std::is_same_v<T, bf16> ? "bf16" : "f16";
    }
  }
  static void describe(const view<const T, 2>&, nlohmann::json&) {}
  static std::optional<std::size_t> size(const json_object&, std::size_t out, std::size_t in) {
    if (in % columns_of<T> != 0) return std::nullopt;
    return out * (in / columns_of<T>)*sizeof(T);
  }
  static std::vector<std::span<const std::byte>> parts(const view<const T, 2>& m) { return {bytes_of(m)}; }
  static weight make(const json_object&, const std::byte* bytes, std::size_t out, std::size_t in) {
    return view<const T, 2>(reinterpret_cast<const T*>(bytes), out, in / columns_of<T>);
  }
};

// The scales first: behind them the codes need no alignment.
template <>
struct stored_form<int8_matrix> {
  static std::string name() { return "int8"; }
  static void describe(const int8_matrix&, nlohmann::json&) {}
  static std::optional<std::size_t> size(const json_object&, std::size_t out, std::size_t in) {
    return out * sizeof(float) + out * in;
  }
  static std::vector<std::span<const std::byte>> parts(const int8_matrix& m) {
    check_contiguous(m.scale.contiguous());
    return {std::as_bytes(std::span(m.scale.data(), m.scale.size())), bytes_of(m.codes)};
  }
  static weight make(const json_object&, const std::byte* bytes, std::size_t out, std::size_t in) {
    return int8_matrix{{reinterpret_cast<const std::int8_t*>(bytes + out * sizeof(float)), out, in},
                       {reinterpret_cast<const float*>(bytes), out}};
  }
};

// Scales, codes, zero points.
template <>
struct stored_form<scaled_matrix> {
  static constexpr std::array<std::string_view, 4> code_names = {"f8_e4m3", "f8_e5m2", "int8", "int4"};

  struct layout {
    std::size_t code, row_bytes, tile_rows, tile_columns, scale_rows, scale_columns;
    bool zero;
  };

  static std::string name() { return "scaled"; }
  static void describe(const scaled_matrix& m, nlohmann::json& entry) {
    check(m.first_row == 0, "weight_file_writer", "write: expected a whole matrix");
    entry["codes"] = code_names[m.codes.index()];
    entry["tile"] = {std::min(m.tile_rows, largest_extent), std::min(m.tile_columns, largest_extent)};
    entry["zero"] = !m.zero.empty();
  }
  static std::optional<std::size_t> size(const json_object& json, std::size_t out, std::size_t in) {
    const layout l = read(json, out, in);
    const bool pairs = code_names[l.code] == "int4", floats = l.code < 2;
    if (pairs && (in % 2 != 0 || (l.tile_columns % 2 != 0 && l.tile_columns < in))) return std::nullopt;
    if (floats && l.zero) json.fail("zero", "fp8 has no zero points");
    const std::size_t scales = l.scale_rows * l.scale_columns;
    return scales * sizeof(float) + out * l.row_bytes + (l.zero ? scales : 0);
  }
  static std::vector<std::span<const std::byte>> parts(const scaled_matrix& m) {
    std::vector<std::span<const std::byte>> all = {bytes_of(m.scale)};
    std::visit([&](const auto& codes) { all.push_back(bytes_of(codes)); }, m.codes);
    if (!m.zero.empty()) all.push_back(bytes_of(m.zero));
    return all;
  }
  static weight make(const json_object& json, const std::byte* bytes, std::size_t out, std::size_t in) {
    const layout l = read(json, out, in);
    const std::byte* codes = bytes + l.scale_rows * l.scale_columns * sizeof(float);
    scaled_matrix m;
    m.tile_rows = l.tile_rows;
    m.tile_columns = l.tile_columns;
    m.scale = {reinterpret_cast<const float*>(bytes), l.scale_rows, l.scale_columns};
    const auto set = [&]<class Code>(view<const Code, 2>) {
      m.codes = view<const Code, 2>(reinterpret_cast<const Code*>(codes), out, l.row_bytes);
    };
    if (l.code == 0) set(view<const f8_e4m3, 2>());
    if (l.code == 1) set(view<const f8_e5m2, 2>());
    if (l.code == 2) set(view<const std::int8_t, 2>());
    if (l.code == 3) set(view<const int4_pair, 2>());
    if (l.zero) {
      m.zero = {reinterpret_cast<const std::int8_t*>(codes + out * l.row_bytes), l.scale_rows, l.scale_columns};
    }
    return m;
  }

 private:
  static layout read(const json_object& json, std::size_t out, std::size_t in) {
    layout l{};
    const std::string codes = json.string("codes");
    while (l.code < code_names.size() && code_names[l.code] != codes) ++l.code;
    if (l.code == code_names.size()) json.fail("codes", "unknown codes \"" + codes + "\"");
    l.row_bytes = codes == "int4" ? in / 2 : in;
    std::tie(l.tile_rows, l.tile_columns) = extents(json, "tile");
    l.scale_rows = (out - 1) / l.tile_rows + 1;
    l.scale_columns = (in - 1) / l.tile_columns + 1;
    l.zero = json.boolean("zero");
    return l;
  }
};

template <class T>
struct stored_form<packed_matrix<T>> {
  static std::string name() {
    if constexpr (block_format<T>) {
      return "packed " + std::string(std::string_view(T::name));
    } else {
      return std::is_same_v<T, std::int8_t> ? "packed int8" : "packed bf16";
    }
  }
  static void describe(const packed_matrix<T>& m, nlohmann::json& entry) {
    if constexpr (integer_format<T>) {  // of which the order depends on the instruction set
      entry["lanes"] = m.order().lanes;
      entry["largest_code"] = m.order().largest_code;
    }
  }
  static std::optional<std::size_t> size(const json_object&, std::size_t out, std::size_t in) {
    if (in % columns_of<T> != 0) return std::nullopt;
    return packed_matrix<T>::size(out, in);
  }
  static std::vector<std::span<const std::byte>> parts(const packed_matrix<T>& m) {
    return {std::as_bytes(std::span(m.bytes().data(), m.bytes().size()))};
  }
  static weight make(const json_object& json, const std::byte* bytes, std::size_t out, std::size_t in) {
    packing order{};
    if constexpr (integer_format<T>) {
      order.lanes = json.integer("lanes", 1, packed_rows);
      if (packed_rows % order.lanes != 0) json.fail("lanes", "expected a divisor of " + std::to_string(packed_rows));
      order.largest_code = static_cast<int>(json.integer("largest_code", 0, 255));
    }
    return packed_matrix<T>({reinterpret_cast<const std::uint8_t*>(bytes), packed_matrix<T>::size(out, in)}, out, in,
                            order);
  }
};

// f.template operator()<Form>() with the form of that name; whether there is one.
template <class Function, std::size_t... I>
bool with_stored_form(std::string_view name, Function&& f, std::index_sequence<I...>) {
  bool found = false;
  const auto consider = [&]<class Form>() {
    if (found || Form::name() != name) return;
    found = true;
    f.template operator()<Form>();
  };
  (consider.template operator()<stored_form<std::variant_alternative_t<I, weight>>>(), ...);
  return found;
}

inline bool begins_as_weight_file(std::span<const std::byte> bytes) {
  return bytes.size() >= weight_file_magic.size() &&
         std::memcmp(bytes.data(), weight_file_magic.data(), weight_file_magic.size()) == 0;
}

}  // namespace detail

// Whether a file begins as one of these does. Throws format_error when it cannot be read.
inline bool is_weight_file(const std::string& path) { return detail::begins_as_weight_file(mapped_file(path).bytes()); }

//   weight_file_writer file("model.mote", key);
//   file.write("lm_head.weight", weight);       // as they are made, in any order
//   file.finish();
//
// The file has the name PATH.part until finish() gives it its own; without finish() nothing is left.
class weight_file_writer {
 public:
  // `key`: what the weights were made from and for, any text. Throws format_error when the file cannot be written, or
  // PATH.part is there and does not begin as such a file.
  weight_file_writer(std::string path, const std::string& key) : file_(std::move(path), unfinished::removed) {
    const auto mark = magic();
    file_.begin_anew({mark.data(), mark.size()});
    table_ = {{"key", key}, {"weights", nlohmann::json::object()}};
    const detail::weight_file_header begun{.magic = magic(), .version = 0};  // a version that is never read
    put(std::as_bytes(std::span(&begun, 1)));
  }

  // The weights that follow, up to the next call, may be brought into memory and given back by themselves: they begin where
  // no page that the system maps in passing belongs to others. The last region ends with a call too.
  void begin_region() { align(detail::region_alignment); }

  // Throws shape_error for a name given twice or an empty matrix, format_error when the file cannot be written.
  void write(const std::string& name, const weight& w) {
    check(!table_["weights"].contains(name), "weight_file_writer", "write: " + name + ": given twice");
    check(out_features(w) > 0 && in_features(w) > 0, "weight_file_writer", "write: " + name + ": is empty");
    align(detail::weight_alignment);
    nlohmann::json entry = {{"shape", {out_features(w), in_features(w)}}, {"offset", size_}};
    std::visit(
        [&](const auto& m) {
          using form = detail::stored_form<std::remove_cvref_t<decltype(m)>>;
          entry["form"] = form::name();
          form::describe(m, entry);
          for (const std::span<const std::byte> part : form::parts(m)) put(part);
        },
        w);
    table_["weights"][name] = std::move(entry);
  }

  // Throws format_error when the file cannot be written.
  void finish() {
    const std::string table = table_.dump();
    const detail::weight_file_header header{.magic = magic(),
                                            .version = 1,
                                            .table_offset = size_,
                                            .table_size = table.size(),
                                            .table_checksum = fnv1a(std::as_bytes(std::span(table)))};
    put(std::as_bytes(std::span(table)));
    if (std::fseek(file_.file(), 0, SEEK_SET) != 0) file_.fail();
    file_.put(&header, sizeof header);
    file_.finish();
  }

 private:
  static std::array<char, 8> magic() {
    std::array<char, 8> text{};
    std::copy_n(detail::weight_file_magic.data(), text.size(), text.data());
    return text;
  }
  void put(std::span<const std::byte> bytes) {
    file_.put(bytes.data(), bytes.size());
    size_ += bytes.size();
  }

  void align(std::size_t alignment) {
    const std::vector<std::byte> zeros((alignment - size_ % alignment) % alignment);
    put(zeros);
  }

  detail::part_file file_;
  nlohmann::json table_;
  std::size_t size_ = 0;
};

// Such a file, mapped. The weights refer to it and live as long.
class weight_file {
 public:
  // Throws format_error naming the file and what in it breaks the format.
  explicit weight_file(const std::string& path) : file_(path) {
    const std::span<const std::byte> all = file_.bytes();
    if (!detail::begins_as_weight_file(all)) fail("is no file of weights: expected it to begin with MOTEPACK");
    detail::weight_file_header header{};
    if (all.size() < sizeof header) fail("its header is cut off");
    std::memcpy(&header, all.data(), sizeof header);
    if (header.version != 1) fail("version " + std::to_string(header.version) + ", expected 1");
    if (header.table_offset > all.size() || header.table_size > all.size() - header.table_offset) {
      fail("its table lies beyond the file's " + std::to_string(all.size()) + " bytes");
    }
    const auto table =
        all.subspan(static_cast<std::size_t>(header.table_offset), static_cast<std::size_t>(header.table_size));
    if (fnv1a(table) != header.table_checksum) fail("its table is damaged");
    const nlohmann::json json =
        parse_json({reinterpret_cast<const char*>(table.data()), table.size()}, path + ": table");
    const json_object root(json, path + ": table");
    key_ = root.string("key");
    const json_object entries = root.object("weights");
    for (const auto& [name, value] : entries.value().items()) {
      weights_.emplace(name, read(json_object(value, path + ": weight " + name),
                                  all.first(static_cast<std::size_t>(header.table_offset))));
    }
  }

  const std::string& path() const { return file_.path(); }
  const std::string& key() const { return key_; }

  struct entry {
    mote::weight weight;
    std::span<const std::byte> bytes;  // where it lies in the map
  };
  const std::map<std::string, entry, std::less<>>& weights() const { return weights_; }
  bool contains(std::string_view name) const { return weights_.find(name) != weights_.end(); }

  // The bytes from one weight to another that was written behind it, with the padding up to the next region. Throws
  // format_error when they do not lie so.
  std::span<const std::byte> region(const entry& first, const entry& last) const {
    const auto begin = static_cast<std::size_t>(first.bytes.data() - file_.bytes().data());
    const auto end = static_cast<std::size_t>(last.bytes.data() - file_.bytes().data()) + last.bytes.size();
    if (end < begin) fail("weights of one region do not follow one another");
    const std::size_t alignment = detail::region_alignment;
    return file_.bytes().subspan(begin,
                                 std::min((end + alignment - 1) / alignment * alignment, file_.bytes().size()) - begin);
  }

  // Throws format_error when there is no such weight or it has another shape.
  const entry& at(std::string_view name, std::size_t out, std::size_t in) const {
    const auto found = weights_.find(name);
    if (found == weights_.end()) fail("weight " + std::string(name) + ": missing");
    const std::size_t got[] = {out_features(found->second.weight), in_features(found->second.weight)};
    const std::size_t want[] = {out, in};
    if (got[0] != out || got[1] != in) {
      fail("weight " + std::string(name) + ": expected shape " + shape_text(want) + ", got " + shape_text(got));
    }
    return found->second;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { raise<format_error>(path() + ": " + message); }

  static entry read(const json_object& json, std::span<const std::byte> data) {
    const auto [out, in] = detail::extents(json, "shape");
    const std::size_t offset = json.integer("offset", sizeof(detail::weight_file_header), data.size());
    if (offset % detail::weight_alignment != 0) {
      json.fail("offset", "expected a multiple of " + std::to_string(detail::weight_alignment));
    }
    const std::string form = json.string("form");
    std::optional<entry> result;
    const auto place = [&, rows = out, columns = in]<class Form>() {
      const std::optional<std::size_t> size = Form::size(json, rows, columns);
      if (!size) json.fail("shape", form + " has no rows of " + std::to_string(columns));
      if (*size > data.size() - offset) {
        json.fail("offset", std::to_string(*size) + " bytes from byte " + std::to_string(offset) +
                                " on, the weights end at byte " + std::to_string(data.size()));
      }
      const auto bytes = data.subspan(offset, *size);
      result = entry{Form::make(json, bytes.data(), rows, columns), bytes};
    };
    const bool known =
        detail::with_stored_form(form, place, std::make_index_sequence<std::variant_size_v<mote::weight>>{});
    if (!known) json.fail("form", "unknown form \"" + form + "\"");
    return *result;
  }

  mapped_file file_;
  std::string key_;
  std::map<std::string, entry, std::less<>> weights_;
};

MOTE_END_NAMESPACE
