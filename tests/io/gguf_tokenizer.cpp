// Tokenizers of GGUF files: small vocabularies, and published ones where MOTE_GGUF_VOCABS names a directory of them.
#include <mote/io/gguf.hpp>
#include <mote/io/gguf/tokenizer.hpp>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

using ids = std::vector<std::int32_t>;

struct vocabulary {
  std::string model = "gpt2", pre = "gpt-2";
  // "Ġ" is the space of the byte alphabet.
  std::vector<std::string> tokens = {"a",       "b",   "c",    "\u0120", "1",   "ab",
                                     "\u0120a", "<s>", "</s>", "<user>", "abc", "\u010A"};
  std::vector<std::int32_t> types = {1, 1, 1, 1, 1, 1, 1, 3, 3, 4, 1, 1};
  std::vector<std::string> merges = {"a b", "\u0120 a", "ab c"};
  std::uint32_t bos = 7, eos = 8;
};

mote::gguf_metadata metadata(const vocabulary& v) {
  mote::gguf_metadata m("x.gguf");
  m.add("tokenizer.ggml.model", v.model);
  m.add("tokenizer.ggml.pre", v.pre);
  m.add("tokenizer.ggml.tokens", mote::gguf_array{v.tokens});
  m.add("tokenizer.ggml.token_type", mote::gguf_array{v.types});
  m.add("tokenizer.ggml.merges", mote::gguf_array{v.merges});
  m.add("tokenizer.ggml.bos_token_id", v.bos);
  m.add("tokenizer.ggml.eos_token_id", v.eos);
  return m;
}

void refuses(const std::function<void(vocabulary&)>& spoil, const std::string& key, const std::string& what) {
  vocabulary v;
  spoil(v);
  CAPTURE(key, what);
  CHECK_THROWS_AS(mote::read_gguf_tokenizer(metadata(v)), mote::format_error);
  CHECK_THROWS_WITH(mote::read_gguf_tokenizer(metadata(v)), contains("x.gguf: " + key) && contains(what));
}

}  // namespace

TEST_CASE("gguf tokenizer: tokens, merges and added tokens of a file that the writer wrote") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/x.gguf";
  mote::gguf_metadata source = metadata({});
  source.add("tokenizer.ggml.add_bos_token", true);
  mote::gguf_writer writer(path);
  for (const auto& [key, value] : source.values()) writer.add(key, value);
  writer.finish();

  const mote::gguf_file file(path);
  const mote::tokenizer t = mote::read_gguf_tokenizer(file.metadata());
  CHECK(t.vocab_size() == 12);
  CHECK(t.bos_id() == 7);
  CHECK(t.eos_id() == 8);
  CHECK(t.encode("abc ab a", false) == ids{10, 3, 5, 6});
  CHECK(t.encode("a<user>b</s>", true) == ids{7, 0, 9, 1, 8});
  CHECK(t.decode(ids{7, 0, 9, 1, 3, 8}, true) == "a<user>b ");
  CHECK(t.decode(ids{7, 0, 8}, false) == "<s>a</s>");
}

TEST_CASE("gguf tokenizer: what surrounds a text, and whole pieces") {
  vocabulary v;
  mote::gguf_metadata both = metadata(v);
  both.add("tokenizer.ggml.add_bos_token", true);
  both.add("tokenizer.ggml.add_eos_token", true);
  CHECK(mote::read_gguf_tokenizer(both).encode("a", true) == ids{7, 0, 8});
  CHECK(mote::read_gguf_tokenizer(metadata(v)).encode("a", true) == ids{0});

  // Llama 3 takes a piece that is a token as it is, whatever the merges say, and begins with <s>.
  v.pre = "llama-bpe";
  v.merges = {"b c"};
  v.tokens.push_back("bc");
  v.types.push_back(1);
  CHECK(mote::read_gguf_tokenizer(metadata(v)).encode("abc", true) == ids{7, 10});
  v.pre = "qwen2";
  CHECK(mote::read_gguf_tokenizer(metadata(v)).encode("abc", true) == ids{0, 12});
}

TEST_CASE("gguf tokenizer: every name's expressions compile and lose no text") {
  const std::string text = "abc  a1 1\n\n b <user>c11 1 ";
  for (const char* pre :
       {"default", "gpt-2",  "mpt",          "olmo",           "starcoder",   "refact",    "command-r",
        "smollm",  "falcon", "deepseek-llm", "deepseek-coder", "deepseek-v3", "llama-bpe", "dbrx",
        "glm4",    "qwen2",  "qwen35",       "stablelm2",      "tekken",      "gpt-4o"}) {
    CAPTURE(pre);
    vocabulary v;
    v.pre = pre;
    const mote::tokenizer t = mote::read_gguf_tokenizer(metadata(v));
    CHECK(t.decode(t.encode(text, false), false).find("abc") == 0);
    CHECK(t.decode(t.encode("a b\nc 11", false), false) == "a b\nc 11");
  }
}

TEST_CASE("gguf tokenizer: malformed metadata is refused by its key") {
  refuses([](vocabulary& v) { v.model = "llama"; }, "tokenizer.ggml.model", "\"llama\"");
  refuses([](vocabulary& v) { v.model = "no_vocab"; }, "tokenizer.ggml.model", "no vocabulary");
  refuses([](vocabulary& v) { v.pre = "unheard-of"; }, "tokenizer.ggml.pre", "\"unheard-of\"");
  refuses([](vocabulary& v) { v.tokens.clear(); }, "tokenizer.ggml.tokens", "empty");
  refuses([](vocabulary& v) { v.tokens[1] = "a"; }, "tokenizer.ggml", "stands twice");
  refuses([](vocabulary& v) { v.tokens[7] = ""; }, "tokenizer.ggml.tokens", "empty");
  refuses([](vocabulary& v) { v.types.pop_back(); }, "tokenizer.ggml.token_type", "12 tokens, got 11");
  refuses([](vocabulary& v) { v.types[3] = 7; }, "tokenizer.ggml.token_type", "token 3: unknown type 7");
  refuses([](vocabulary& v) { v.types[3] = -1; }, "tokenizer.ggml.token_type", "unknown type -1");
  refuses([](vocabulary& v) { v.merges[0] = "ab"; }, "tokenizer.ggml", "merge 0");
  refuses([](vocabulary& v) { v.merges[0] = "a z"; }, "tokenizer.ggml", "vocabulary lacks");
  refuses([](vocabulary& v) { v.bos = 12; }, "tokenizer.ggml.bos_token_id", "0 to 11");
  refuses([](vocabulary& v) { v.eos = 12; }, "tokenizer.ggml.eos_token_id", "0 to 11");

  mote::gguf_metadata m("x.gguf");
  CHECK_THROWS_WITH(mote::read_gguf_tokenizer(m), contains("tokenizer.ggml.model: missing"));
  m.add("tokenizer.ggml.model", std::string("gpt2"));
  m.add("tokenizer.ggml.tokens", mote::gguf_array{std::vector<std::string>{"a"}});
  CHECK_THROWS_WITH(mote::read_gguf_tokenizer(m), contains("tokenizer.ggml.merges: missing"));
  m.add("tokenizer.ggml.merges", mote::gguf_array{std::vector<std::string>{}});
  m.add("tokenizer.ggml.add_bos_token", true);
  CHECK_THROWS_WITH(mote::read_gguf_tokenizer(m), contains("tokenizer.ggml.bos_token_id: missing"));
}

TEST_CASE("gguf tokenizer: chat template") {
  mote::gguf_metadata m = metadata({});
  CHECK_FALSE(mote::read_gguf_chat_template(m).has_value());
  m.add("tokenizer.chat_template", std::string("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"));
  const mote::chat_message messages[] = {{"user", "abc"}};
  CHECK(mote::read_gguf_chat_template(m)->render(messages, false) == "<s>abc");
}

// Text and ids stand in NAME.gguf.inp and NAME.gguf.out, the texts separated by a line.
TEST_CASE("gguf tokenizer: published vocabularies") {
  const char* const directory = std::getenv("MOTE_GGUF_VOCABS");
  if (directory == nullptr) return;
  std::size_t vocabularies = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string path = entry.path().string();
    if (!path.ends_with(".gguf") || !std::filesystem::exists(path + ".inp")) continue;
    const mote::gguf_file file(path);
    if (file.metadata().string("tokenizer.ggml.model") != "gpt2") continue;
    CAPTURE(path);
    const mote::tokenizer t = mote::read_gguf_tokenizer(file.metadata());
    constexpr std::string_view separator = "\n__ggml_vocab_test__\n";
    const std::string text = test::read_bytes(path + ".inp");
    std::istringstream lines(test::read_bytes(path + ".out"));
    std::string line;
    std::size_t tests = 0;
    for (std::size_t begin = 0, end; (end = text.find(separator, begin)) != std::string::npos;
         begin = end + separator.size(), ++tests) {
      const std::string input = text.substr(begin, end - begin);
      REQUIRE(std::getline(lines, line));
      std::istringstream numbers(line);
      const ids want{std::istream_iterator<std::int32_t>(numbers), {}};
      CAPTURE(input);
      CHECK(t.encode(input, false) == want);
    }
    CHECK(tests > 0);
    ++vocabularies;
  }
  CHECK(vocabularies > 0);
}
