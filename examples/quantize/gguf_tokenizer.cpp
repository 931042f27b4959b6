#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include <mote/io/chat_template.hpp>
#include <mote/io/gguf/tokenizer.hpp>
#include <mote/io/json.hpp>
#include <mote/io/tokenizer.hpp>
#include <mote/io/tokenizer/pre_tokenizer.hpp>

#include "gguf.hpp"

namespace quantize {
namespace {

// Names of `tokenizer.ggml.pre`, one for each way of cutting text; some differ in ignore_merges only.
constexpr const char* pre_names[] = {"deepseek-v3", "deepseek-llm", "deepseek-coder", "gpt-2",  "llama-bpe", "dbrx",
                                     "qwen2",       "qwen35",       "starcoder",      "gpt-4o", "tekken",    "falcon"};

// Texts that the ways of cutting cut differently.
constexpr const char* telling_texts[] = {
    "",
    "Hello, world! It's 12345 o'clock;  don't\tyou   think\n\n so?\r\n I'LL say: A1b2_c3 (x+y)^2",
    "naïve Ünïcödé ǅ ʰ ªº ½ ٣٤٥ 1234 Ⅻ",
    "中文字符，日本語ひらがなカタカナ 한국어 123中文456 漢字、かな。",
    "foo.bar::baz->qux();  // comment --- $100.00 <tag/> `code` ~tilde~ a)\n/b /\n/",
    "   \n  \t end   ",
    " leading",
    "cafe\u0301s हिन्दी ที่นี่ עִבְרִית \u0301x \u0301\u0301 1\u0301 .\u0301a",
    "1 12 123 1234 12345 123456 1234567 x1 x12 x123 x1234 ١٢٣٤ ²³¹ 1,234.5",
    "I'm you're he's we've I'd they'll can't I'M YOU'RE HE'S 'tis x'S 'x 's 'ſ",
    "camelCase HTMLParser ABCdef ÀÉîõ ΑΒγδ Їжак",
    "a  b   c    d\n\n\ne \n \n f\r\n\r\ng\t\th \u00a0 i\u3000j \u200b k",
    "!?.,;: ... --- === +=+ €£¥ ©®™ ←→ 😀👩‍👩‍👧",
    "a.b !a ?b .Net #tag @me \"q\" «q» “q”\n\n"};

// What GGUF has no place for.
void check_expressible(const mote::json_object& json, const mote::tokenizer& own) {
  if (json.has_value("added_tokens")) {
    std::size_t i = 0;
    for (const nlohmann::json& entry : json.array("added_tokens")) {
      const mote::json_object token(entry, json.where() + ": added_tokens[" + std::to_string(i++) + "]");
      for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
        if (token.boolean_or(flag, false)) token.fail(flag, "is true, which GGUF cannot express");
      }
    }
  }
  const mote::json_object bpe = json.object("model");
  if (!bpe.has_value("unk_token")) return;
  const std::vector<std::int32_t> unknown = {own.token_to_id(bpe.string("unk_token")).value()};
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    if (own.encode(byte, false) == unknown && own.decode(unknown, false) != byte) {
      bpe.fail("unk_token", "stands for bytes that have no token, which GGUF cannot express");
    }
  }
}

// Texts whose ids tell tokenizers of one vocabulary apart: with every token as a piece, and every added token in a text.
std::vector<std::string> make_probes(const mote::json_object& json, const mote::tokenizer& own) {
  std::vector<std::string> texts(std::begin(telling_texts), std::end(telling_texts));
  for (const auto& [token, id] : json.object("model").object("vocab").value().items()) {
    const std::int32_t ids[] = {id.get<std::int32_t>()};
    texts.push_back(own.decode(ids, false));
  }
  if (json.has_value("added_tokens")) {
    for (const nlohmann::json& token : json.array("added_tokens")) {
      texts.push_back("a " + token["content"].get<std::string>() + " b");
    }
  }
  return texts;
}

// The tokens that GGUF can put around a text, as flags.
struct surroundings {
  bool bos = false, eos = false;
};

surroundings find_surroundings(const mote::json_object& json, const mote::tokenizer& own) {
  const std::string text = telling_texts[1];
  const std::vector<std::int32_t> plain = own.encode(text, false), whole = own.encode(text);
  for (const bool bos : {false, true}) {
    for (const bool eos : {false, true}) {
      if ((bos && !own.bos_id()) || (eos && !own.eos_id())) continue;
      std::vector<std::int32_t> ids = plain;
      if (bos) ids.insert(ids.begin(), *own.bos_id());
      if (eos) ids.push_back(*own.eos_id());
      if (ids == whole) return {bos, eos};
    }
  }
  json.fail("post_processor",
            "puts other tokens around a text than tokenizer_config.json's bos_token before and eos_token behind it, "
            "which GGUF cannot express");
}

// GGUF only names how text is cut into pieces, and the name decides ignore_merges too: the first name with which the
// tokenizer, read back, gives the ids of the original.
std::string find_pre_name(const mote::json_object& json, const mote::tokenizer& own,
                          const mote::gguf_metadata& nameless) {
  const mote::pre_tokenizer cut(json.object("pre_tokenizer"));
  const std::vector<std::string> probes = make_probes(json, own);
  const bool ignore_merges = json.object("model").boolean_or("ignore_merges", false);
  std::string near, differs;  // a name that cuts the same way, and a text that has other ids all the same
  for (const char* name : pre_names) {
    mote::gguf_metadata metadata = nameless;
    metadata.add("tokenizer.ggml.pre", std::string(name));
    const mote::detail::gguf_pre_tokenizer named = mote::detail::read_gguf_pre_tokenizer(metadata);
    const mote::pre_tokenizer candidate(named.patterns, name);
    const bool same = std::all_of(std::begin(telling_texts), std::end(telling_texts),
                                  [&](const char* text) { return cut.split(text) == candidate.split(text); });
    if (!same) continue;
    const mote::tokenizer back = mote::read_gguf_tokenizer(metadata);
    const auto other = std::find_if(probes.begin(), probes.end(),
                                    [&](const std::string& text) { return own.encode(text) != back.encode(text); });
    if (other == probes.end()) return name;
    if (near.empty() || named.ignore_merges == ignore_merges) {
      near = name;
      differs = nlohmann::json(*other).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    }
  }
  if (near.empty()) json.fail("pre_tokenizer", "cuts text as none of the tokenizers that GGUF has a name for");
  mote::raise<mote::format_error>(json.where() + ": GGUF cannot express it: its name \"" + near +
                                  "\" cuts text the same way, but " + differs + " would have other ids (" +
                                  "ignore_merges is " + (ignore_merges ? "true" : "false") + ")");
}

// The id of tokenizer_config.json's pad_token, which chat templates may use.
std::optional<std::int32_t> find_padding(const std::string& model, const mote::tokenizer& own) {
  const std::string path = model + "/tokenizer_config.json";
  if (!std::filesystem::exists(path)) return std::nullopt;
  const mote::json_file file(path);
  const std::optional<std::string> name = mote::detail::token_name(file.root(), "pad_token");
  return name ? own.token_to_id(*name) : std::nullopt;
}

}  // namespace

void add_gguf_tokenizer(const std::string& model, std::size_t vocab_size, metadata_entries& entries) {
  const std::string path = model + "/tokenizer.json";
  if (!std::filesystem::exists(path)) {
    fmt::print(stderr, "{}: is not there: model.gguf gets no vocabulary\n", path);
    entries.emplace_back("tokenizer.ggml.model", std::string("no_vocab"));
    return;
  }
  const mote::tokenizer checked(model);  // says what is malformed
  const mote::json_file file(path);
  const mote::json_object json = file.root();
  constexpr std::int32_t normal = 1, control = 3, user_defined = 4, unused = 5;
  std::vector<std::string> tokens(vocab_size);
  std::vector<std::int32_t> types(vocab_size, unused);
  for (std::size_t i = 0; i < vocab_size; ++i) tokens[i] = "[PAD" + std::to_string(i) + "]";
  const auto set = [&](const mote::json_object& where, const std::string& token, std::size_t id, std::int32_t type) {
    if (id >= vocab_size) {
      where.fail(token,
                 "the id " + std::to_string(id) + " exceeds the model's vocab_size, " + std::to_string(vocab_size));
    }
    tokens[id] = token;
    types[id] = type;
  };
  const mote::json_object bpe = json.object("model"), vocab = bpe.object("vocab");
  constexpr std::size_t largest = std::numeric_limits<std::int32_t>::max();
  for (const auto& [token, id] : vocab.value().items()) set(vocab, token, vocab.integer(token, 0, largest), normal);
  if (json.has_value("added_tokens")) {
    for (const nlohmann::json& entry : json.array("added_tokens")) {
      const mote::json_object t(entry, path + ": added_tokens");
      set(t, t.string("content"), t.integer("id", 0, largest), t.boolean_or("special", false) ? control : user_defined);
    }
  }
  std::vector<std::string> merges;
  for (const nlohmann::json& merge : bpe.array("merges")) {
    merges.push_back(merge.is_string() ? merge.get<std::string>()
                                       : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }

  check_expressible(json, checked);
  const surroundings around = find_surroundings(json, checked);
  mote::gguf_metadata metadata(path);
  const auto add = [&](const char* key, mote::gguf_value value) {
    metadata.add(std::string("tokenizer.ggml.") + key, std::move(value));
  };
  add("model", std::string("gpt2"));
  add("tokens", mote::gguf_array{std::move(tokens)});
  add("token_type", mote::gguf_array{std::move(types)});
  add("merges", mote::gguf_array{std::move(merges)});
  const auto add_id = [&](const char* key, std::optional<std::int32_t> token) {
    if (token) add(key, static_cast<std::uint32_t>(*token));
  };
  add_id("bos_token_id", checked.bos_id());
  add_id("eos_token_id", checked.eos_id());
  add_id("padding_token_id", find_padding(model, checked));
  add("add_bos_token", around.bos);
  add("add_eos_token", around.eos);
  add("pre", find_pre_name(json, checked, metadata));
  entries.insert(entries.end(), metadata.values().begin(), metadata.values().end());
  if (auto chat = mote::chat_template::read_source(model))
    entries.emplace_back("tokenizer.chat_template", std::move(chat->text));
}

}  // namespace quantize
