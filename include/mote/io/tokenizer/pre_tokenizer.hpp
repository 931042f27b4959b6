// Cutting text into the pieces within which byte-pair encoding merges: the `pre_tokenizer` of a tokenizer.json.
//
// Supported: Sequence, Split (Regex and String patterns, every behavior, invert), Digits, ByteLevel (last). Each step cuts
// the pieces of the step before; a pattern sees one piece at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../json.hpp"
#include "pattern.hpp"
#include "utf8.hpp"

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
