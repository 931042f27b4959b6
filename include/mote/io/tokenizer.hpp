// Byte-level BPE tokenizers in the published form, tokenizer.json.
//
// Text is searched for added tokens first; what lies between is cut into pieces (pre_tokenizer) and merged (bpe); the
// post-processor adds tokens such as begin-of-sentence or, where it has no template, add_bos_token and add_eos_token of
// tokenizer_config.json do. The same ids as the `tokenizers` package gives. Bytes that are not UTF-8, which that package
// does not accept, are encoded byte by byte as pieces of their own, so that decoding gives the same bytes back.
//
// Supported parts are those of byte-level models (GPT-2, Llama 3, DeepSeek): see tokenizer/*.hpp. Anything else in a file
// is refused with its name, never passed over; but truncation and padding are for who calls to decide, as transformers has it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "json.hpp"
#include "tokenizer/added_tokens.hpp"
#include "tokenizer/bpe.hpp"
#include "tokenizer/pre_tokenizer.hpp"
#include "tokenizer/token_name.hpp"
#include "tokenizer/utf8.hpp"

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
