// Byte-pair encoding: the `model` of a tokenizer.json, over bytes.
//
// A piece starts as single bytes; the adjacent pair with the lowest merge rank is joined, leftmost first, until none is
// left. Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016); Radford et al.,
// "Language Models are Unsupervised Multitask Learners" (2019) for the byte alphabet.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../json.hpp"
#include "utf8.hpp"

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
