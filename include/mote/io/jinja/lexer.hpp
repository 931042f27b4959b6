// A template's text and tags, with Jinja2's whitespace control (trim_blocks, lstrip_blocks), and a tag's tokens.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../../core/error.hpp"

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
