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

// GGUF only names how text is cut into pieces: the first name whose pieces of some telling texts are the tokenizer's.
std::string pre_tokenizer_name(const mote::json_object& json) {
  const mote::pre_tokenizer own(json.object("pre_tokenizer"));
  const std::string texts[] = {
      "Hello, world! It's 12345 o'clock;  don't\tyou   think\n\n so?\r\n I'LL say: A1b2_c3 (x+y)^2",
      "naïve Ünïcödé ǅ ʰ ªº ½ ٣٤٥ 1234 Ⅻ", "中文字符，日本語ひらがなカタカナ 한국어 123中文456",
      "foo.bar::baz->qux();  // comment --- $100.00 <tag/> `code` ~tilde~", "   \n  \t end   "};
  for (const char* name : {"deepseek-v3", "deepseek-llm", "deepseek-coder", "gpt-2", "llama-bpe", "qwen2", "starcoder",
                           "gpt-4o", "tekken", "falcon"}) {
    mote::gguf_metadata metadata;
    metadata.add("tokenizer.ggml.pre", std::string(name));
    const mote::pre_tokenizer candidate(mote::detail::read_gguf_pre_tokenizer(metadata).patterns, name);
    const bool same = std::all_of(std::begin(texts), std::end(texts),
                                  [&](const std::string& text) { return own.split(text) == candidate.split(text); });
    if (same) return name;
  }
  json.fail("pre_tokenizer", "cuts text as none of the tokenizers that GGUF has a name for");
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

  const auto add = [&](const std::string& key, mote::gguf_value value) {
    entries.emplace_back("tokenizer." + key, std::move(value));
  };
  add("ggml.model", std::string("gpt2"));
  add("ggml.pre", pre_tokenizer_name(json));
  add("ggml.tokens", mote::gguf_array{std::move(tokens)});
  add("ggml.token_type", mote::gguf_array{std::move(types)});
  add("ggml.merges", mote::gguf_array{std::move(merges)});
  // What stands around a text.
  const std::vector<std::int32_t> empty = checked.encode("");
  const auto holds = [&](std::optional<std::int32_t> id) {
    return id && std::find(empty.begin(), empty.end(), *id) != empty.end();
  };
  const auto id = [&](const char* key, std::optional<std::int32_t> token) {
    if (token) add(key, static_cast<std::uint32_t>(*token));
  };
  id("ggml.bos_token_id", checked.bos_id());
  id("ggml.eos_token_id", checked.eos_id());
  add("ggml.add_bos_token", holds(checked.bos_id()));
  add("ggml.add_eos_token", holds(checked.eos_id()));
  if (auto chat = mote::chat_template::read_source(model)) add("chat_template", std::move(chat->text));
}

}  // namespace quantize
