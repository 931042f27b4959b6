// Regular expressions of tokenizer files, which are in Oniguruma's dialect, in PCRE2's.
//
// What PCRE2 reads differently is translated: \s (Unicode's White_Space), \w, \b, [:alpha:] and their like, scripts, (?m),
// which lets . match a line's end, a{,n}, a{n}? and a{n,m}+, which repeats the repetition. Refused is what has no short
// equivalent (&& and classes in classes, \h, letters beside ASCII that ignore case), what Oniguruma refuses (recursion,
// (?s)), and what would let a match end inside a character or begin before the place where it was looked for (\C, \K).
#pragma once

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../../core/error.hpp"
#include "utf8.hpp"

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
