// Tokens that are found in the text as they stand, before anything else: the `added_tokens` of a tokenizer.json.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../json.hpp"
#include "pattern.hpp"
#include "utf8.hpp"

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
