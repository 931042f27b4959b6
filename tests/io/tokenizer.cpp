// Tokenizers against the `tokenizers` package (tests/golden/tokenizer) and against hostile files.
#include <mote/io/tokenizer.hpp>

#include <algorithm>
#include <filesystem>
#include <latch>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "io/refused.hpp"
#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

const std::string golden = std::string(MOTE_GOLDEN_DIR) + "/tokenizer/";

// A complete byte-level tokenizer of three tokens, with parts to be replaced.
std::string small(const std::string& model = "", const std::string& rest = "") {
  const std::string plain_model = R"({"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]})";
  const std::string plain_rest = R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false})";
  const std::string decoder = rest.find("\"decoder\"") == rest.npos ? R"("decoder":{"type":"ByteLevel"},)" : "";
  return "{\"model\":" + (model.empty() ? plain_model : model) + "," + decoder + (rest.empty() ? plain_rest : rest) +
         "}";
}

std::string split_at(const std::string& expression, const std::string& behavior = "Isolated") {
  return small("", R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":)" +
                       nlohmann::json(expression).dump() + R"(},"behavior":")" + behavior +
                       R"("},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})");
}

void refuses_tokenizer(const std::string& json, const std::string& what) {
  test::check_refused("tokenizer.json", json, what, [](const std::string& path) {
    return mote::tokenizer(std::filesystem::path(path).parent_path().string());
  });
}

std::vector<std::int32_t> ids_of(const nlohmann::json& json) { return json.get<std::vector<std::int32_t>>(); }

}  // namespace

TEST_CASE("tokenizer: the ids of the tokenizers package for hard strings") {
  for (const char* name : {"gpt2", "gpt2_prefix_space", "llama3", "deepseek_v3", "deepseek_llm", "behaviors"}) {
    const mote::tokenizer tokenizer(golden + name);
    const mote::json_file expected(golden + name + "/expected.json");
    for (const auto& entry : expected.value()) {
      const auto text = entry["text"].get<std::string>();
      CAPTURE(name, text);
      CHECK(tokenizer.encode(text) == ids_of(entry["ids"]));
      CHECK(tokenizer.encode(text, false) == ids_of(entry["plain_ids"]));
      CHECK(tokenizer.decode(tokenizer.encode(text)) == entry["decoded"].get<std::string>());
    }
  }
}

TEST_CASE("tokenizer: threads that share one get the ids that one thread gets") {
  const mote::tokenizer tokenizer(golden + "llama3");
  std::string text;
  for (int i = 0; i < 2000; ++i) text += "It's " + std::to_string(i * i) + " words, über\n\n all  of them; ";
  const std::vector<std::int32_t> want = tokenizer.encode(text);
  constexpr std::size_t count = 4;
  std::vector<int> same(count, 0);  // not CHECK: Catch2 is for one thread
  {
    std::latch start(count);
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < count; ++t) {
      threads.emplace_back([&, t] {
        start.arrive_and_wait();
        for (int i = 0; i < 10; ++i) same[t] += tokenizer.encode(text) == want ? 1 : 0;
      });
    }
  }
  CHECK(same == std::vector<int>(count, 10));
}

TEST_CASE("tokenizer: the shipped model's own prompts") {
  const mote::tokenizer tokenizer(MOTE_MODEL_DIR);
  CHECK(tokenizer.vocab_size() == 1536);
  CHECK(tokenizer.bos_id() == 0);
  CHECK(tokenizer.eos_id() == 1);
  const mote::json_file expected(std::string(MOTE_MODEL_DIR) + "/expected.json");
  for (const auto& prompt : expected.value()["prompts"]) {
    CHECK(tokenizer.encode(prompt["prompt"].get<std::string>()) == ids_of(prompt["input_ids"]));
    CHECK(tokenizer.decode(ids_of(prompt["greedy_ids"])) == prompt["greedy_text"].get<std::string>());
  }
}

TEST_CASE("tokenizer: bytes that are not UTF-8 come back as they were") {
  const mote::tokenizer tokenizer(golden + "deepseek_v3");
  for (const std::string text :
       {"\xFF", "a\x80z", "\xE6\xBC", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xC0\xAF ok", "ok \xF0\x9F\x98"}) {
    CHECK(tokenizer.decode(tokenizer.encode(text, false)) == text);
  }
}

TEST_CASE("tokenizer: a stream gives whole characters as soon as they are complete") {
  const mote::tokenizer tokenizer(golden + "gpt2");
  const std::string text = "naïve 😀👩‍👩‍👧 漢字 \xFF end \xF0\x9F";
  mote::token_stream stream(tokenizer);
  std::string all;
  for (const std::int32_t id : tokenizer.encode(text, false)) {
    const std::string part = stream.push(id);
    const bool starts_inside = !part.empty() && mote::detail::is_continuation(part[0]);
    CHECK_FALSE(starts_inside);
    all += part;
  }
  CHECK(all == text.substr(0, text.size() - 2));
  CHECK(all + stream.finish() == text);
}

TEST_CASE("tokenizer: an id that no token has is refused") {
  const mote::tokenizer tokenizer(golden + "gpt2");
  const std::vector<std::int32_t> high = {1, 100000}, negative = {-1};
  CHECK_THROWS_WITH(tokenizer.decode(high), contains("100000"));
  CHECK_THROWS_WITH(tokenizer.decode(negative), contains("-1"));
}

TEST_CASE("tokenizer: a malformed file is refused by field") {
  CHECK_THROWS_WITH(mote::tokenizer("no-such-directory"), contains("no-such-directory/tokenizer.json"));
  refuses_tokenizer("", "malformed JSON");
  refuses_tokenizer("{", "malformed JSON");
  refuses_tokenizer("[]", "JSON object");
  refuses_tokenizer("{}", "model");
  refuses_tokenizer(R"({"model":[]})", "model");
  refuses_tokenizer(small(R"({"type":"WordPiece","vocab":{},"merges":[]})"), "BPE");
  refuses_tokenizer(small(R"({"type":"BPE","merges":[]})"), "vocab");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":[],"merges":[]})"), "vocab");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{},"merges":[]})"), "empty");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":-1},"merges":[]})"), "vocab: a");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":1.5},"merges":[]})"), "vocab: a");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":99999999999},"merges":[]})"), "vocab: a");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0,"b":0},"merges":[]})"), "given twice");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0,"a":1},"merges":[]})"), "twice");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0}})"), "merges");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":["a"]})"), "merges[0]");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":[["a"]]})"), "merges[0]");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":[7]})"), "merges[0]");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":["a a"]})"), "lacks");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":["a z"]})"), "lacks");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"<unk>"})"), "unk_token");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"a","fuse_unk":true})"), "fuse_unk");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":[],"dropout":0.5})"), "dropout");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":[],"byte_fallback":true})"), "byte_fallback");
  refuses_tokenizer(small(R"({"type":"BPE","vocab":{"a":0},"merges":[],"end_of_word_suffix":"</w>"})"),
                    "end_of_word_suffix");
}

TEST_CASE("tokenizer: what is not supported is refused, never passed over") {
  refuses_tokenizer(small("", R"("x":1)"), "pre_tokenizer");
  refuses_tokenizer(small("", R"("pre_tokenizer":null)"), "pre_tokenizer");
  refuses_tokenizer(small("", R"("pre_tokenizer":{"type":"Whitespace"})"), "Whitespace");
  refuses_tokenizer(small("", R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[]})"), "ByteLevel");
  refuses_tokenizer(small("", R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"a("},"behavior":"Isolated"})"),
                    "pattern");
  refuses_tokenizer(small("", R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"a"},"behavior":"Sideways"})"),
                    "behavior");
  refuses_tokenizer(small("", R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"[a&&b]"},"behavior":"Isolated"})"),
                    "&&");
  refuses_tokenizer(
      small("", R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"ByteLevel"},{"type":"ByteLevel"}]})"),
      "ByteLevel");
  const std::string byte_level = R"("pre_tokenizer":{"type":"ByteLevel"},)";
  refuses_tokenizer(small("", byte_level + R"("normalizer":{"type":"NFC"})"), "NFC");
  refuses_tokenizer(small("", byte_level + R"("decoder":{"type":"WordPiece"})"), "decoder");
  refuses_tokenizer(small("", byte_level + R"("decoder":null)"), "decoder");
  refuses_tokenizer(split_at("x*", "Contiguous"), "Contiguous");
  refuses_tokenizer(small("", byte_level + R"("post_processor":{"type":"BertProcessing"})"), "BertProcessing");
  refuses_tokenizer(small("", byte_level + R"("added_tokens":[{"id":5}])"), "added_tokens[0]");
  refuses_tokenizer(small("", byte_level + R"("added_tokens":[{"id":5,"content":""}])"), "empty");
  refuses_tokenizer(small("", byte_level + R"("added_tokens":[{"id":0,"content":"<s>"}])"), "contradicts");
  refuses_tokenizer(small("", byte_level + R"("added_tokens":7)"), "added_tokens");
  refuses_tokenizer(small("", byte_level + R"("added_tokens":[{"id":4,"content":"<s>"}])"), "expected 3");
  refuses_tokenizer(small("", byte_level + R"("added_tokens":[{"id":3,"content":"<s>"},{"id":4,"content":"<s>"}])"),
                    "stands twice");

  const test::temporary_directory directory;
  directory.write("tokenizer.json", small());
  directory.write("tokenizer_config.json", R"({"bos_token":"<s>"})");
  CHECK_THROWS_WITH(mote::tokenizer(directory.path()), contains("tokenizer_config.json") && contains("bos_token"));
}

TEST_CASE("tokenizer: patterns that would cut a character or step back are refused") {
  for (const std::string escape :
       {"\\\\C", "(?<=\\\\Ka)", "\\\\Qa\\\\E", "\\\\h", "\\\\\\u0000\\\\C", "\\\\\\u0000C\\\\C"}) {
    refuses_tokenizer(
        small("", R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":")" + escape + R"("},"behavior":"Isolated"})"),
        "pattern");
  }
}

// One piece for each match and for what lies between, as the tokenizers package cuts.
TEST_CASE("tokenizer: patterns are read as Oniguruma reads them") {
  using pieces = std::vector<std::string>;
  const auto cut = [](const std::string& expression, const std::string& text) {
    const std::string steps[] = {expression};
    return mote::pre_tokenizer(steps, "p").split(text);
  };
  CHECK(cut("\\s", "a\u180eb c\u0085d") == pieces{"a\u180eb", " ", "c", "\u0085", "d"});
  CHECK(cut("[^\\S\n]+", " \n\u3000\u180e") == pieces{" ", "\n", "\u3000", "\u180e"});
  CHECK(cut("\\S+", "a\u180e b") == pieces{"a\u180e", " ", "b"});
  CHECK(cut("\\w+", "aⅧⓐe\u0301 ²") == pieces{"aⅧⓐe\u0301", " ²"});
  CHECK(cut("\\b", "a\u0301b c") == pieces{"a\u0301b", " ", "c"});
  CHECK(cut("\\B", "ab") == pieces{"a", "b"});
  CHECK(cut("[[:^alpha:]]+", "aⅧb\u0301") == pieces{"aⅧb", "\u0301"});
  CHECK(cut("[[:space:]]", "a\u180e b") == pieces{"a\u180e", " ", "b"});
  CHECK(cut("[[:punct:]]+", "a+°«b") == pieces{"a", "+°«", "b"});
  CHECK(cut("\\p{N}{1,3}+", "12345") == pieces{"12345"});
  CHECK(cut("a{2}+b?", "aaaab") == pieces{"aaaab"});
  CHECK(cut("a{1,3}?", "aab") == pieces{"a", "a", "b"});
  CHECK(cut("a{2}?b", "baab") == pieces{"b", "aab"});
  CHECK(cut("a{2}{2}", "aaaaaa") == pieces{"aaaa", "aa"});
  CHECK(cut("a+*", "aab") == pieces{"aa", "b"});
  CHECK(cut("ba{,2}", "baaa") == pieces{"baa", "a"});
  CHECK(cut("a{ 1,2}", "aaa{ 1,2}") == pieces{"aa", "a{ 1,2}"});
  CHECK(cut("(?m:a.)b", "a\nb") == pieces{"a\nb"});
  CHECK(cut("(?m)^.", "\n\n") == pieces{"\n", "\n"});
  CHECK(cut("\\d(?i)a|b", "1A1B") == pieces{"1A", "1B"});
  CHECK(cut("(?:(?i)a)b", "AbAB") == pieces{"Ab", "AB"});
  CHECK(cut("\\pL", "apLb") == pieces{"a", "pL", "b"});
  CHECK(cut("\\v", "a\n\v") == pieces{"a\n", "\v"});
  CHECK(cut("\\p{Han}+", "漢、字") == pieces{"漢", "、", "字"});
  CHECK(cut("\\P{^Han}+", "漢、字") == pieces{"漢", "、", "字"});
  CHECK(cut("\\x41{2}[\\x{42}-\\x43]", "AAB") == pieces{"AAB"});
  CHECK(cut("(?#[)a(?>b+)(?<n>c)\\k<n>", "abcc.") == pieces{"abcc", "."});
  CHECK(cut("[]a][\\]b]", "]]ab") == pieces{"]]", "ab"});
}

TEST_CASE("tokenizer: patterns that PCRE2 alone reads, or reads otherwise, are refused by construct") {
  for (const auto& [expression, construct] : {std::pair{"(?s:a)", "(?s"},
                                              {"(?x)a b", "(?x"},
                                              {"a(?R)?", "(?R"},
                                              {"(?P<n>a)", "(?P"},
                                              {"(?(?=a)b|c)", "(?("},
                                              {"(*FAIL)", "(*"},
                                              {"(a)\\g<1>", "\\g"},
                                              {"\\p{L&}", "\\p{L&}"},
                                              {"\\p{Script=Greek}", "\\p{Script=Greek}"},
                                              {"\\p{Xan}", "\\p{Xan}"},
                                              {"(?i:ß)", "ignores case"},
                                              {"(?i:[é])", "ignores case"},
                                              {"(?i:ss)", "\"ss\""},
                                              {"(?i:\\x{DF})", "\\x"},
                                              {"[[:graph:]]", "[:graph:]"},
                                              {"[\\s-\u5b57]", "range"},
                                              {"[!-\\s]", "range"},
                                              {"\\V", "\\V"},
                                              {"\\N{U+41}", "\\N{"},
                                              {"\\xC3\\xA9", "\\x of a byte"},
                                              {"\\351", "octal"},
                                              {"(?i:[\\p{Lu}])", "\\p{Lu}"},
                                              {"(?i:[[:lower:]])", "[:lower:]"},
                                              {"*a", "nothing to repeat"},
                                              {"(?i)a)", "unmatched )"}}) {
    refuses_tokenizer(split_at(expression), construct);
  }
}

TEST_CASE("tokenizer: words and white space beside added tokens are Unicode's") {
  const test::temporary_directory directory;
  directory.write("tokenizer.json",
                  small(R"({"type":"BPE","vocab":{"a":0,"b":1,"c":2},"merges":[],"unk_token":"b"})",
                        R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"added_tokens":[)"
                        R"({"id":3,"content":"<w>","single_word":true},)"
                        R"({"id":4,"content":"<r>","rstrip":true}])"));
  const mote::tokenizer tokenizer(directory.path());
  const auto holds = [&](const std::string& text, std::int32_t id) {
    const std::vector<std::int32_t> ids = tokenizer.encode(text);
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  CHECK(holds("²<w>", 3));
  CHECK_FALSE(holds("ⓐ<w>", 3));
  CHECK_FALSE(holds("<w>Ⅷ", 3));
  CHECK(tokenizer.encode("<r>\u3000a") == std::vector<std::int32_t>{4, 0});
  CHECK(tokenizer.encode("<r>\u180ea") == std::vector<std::int32_t>{4, 1, 1, 1, 0});
}

TEST_CASE("tokenizer: what surrounds a text, from the configuration where there is no template") {
  const auto surrounded = [](const std::string& post, const std::string& config) {
    const test::temporary_directory directory;
    directory.write(
        "tokenizer.json",
        small("", R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"post_processor":)" + post));
    directory.write("tokenizer_config.json", config);
    return mote::tokenizer(directory.path()).encode("a");
  };
  const std::string both = R"({"bos_token":"b","eos_token":"ab","add_bos_token":true,"add_eos_token":true})";
  const std::string byte_level = R"({"type":"ByteLevel"})";
  const std::string single = R"({"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}}],"special_tokens":{}})";
  using tokens = std::vector<std::int32_t>;
  CHECK(surrounded("null", both) == tokens{1, 0, 2});
  CHECK(surrounded(byte_level, both) == tokens{1, 0, 2});
  CHECK(surrounded(byte_level, R"({"bos_token":"b","add_bos_token":false})") == tokens{0});
  CHECK(surrounded(single, both) == tokens{0});
  CHECK(surrounded(R"({"type":"Sequence","processors":[)" + byte_level + "," + single + "]}", both) == tokens{0});
  CHECK_THROWS_WITH(surrounded("null", R"({"add_bos_token":true})"), contains("tokenizer_config.json: add_bos_token"));
}

TEST_CASE("tokenizer: added tokens that overlap, as the tokenizers package finds them") {
  const test::temporary_directory directory;
  directory.write("tokenizer.json",
                  small("", R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"added_tokens":[)"
                            R"({"id":3,"content":"<","normalized":false},)"
                            R"({"id":4,"content":"a<","normalized":true},)"
                            R"({"id":5,"content":"bb","normalized":false,"single_word":true},)"
                            R"({"id":6,"content":"b>","normalized":false},)"
                            R"({"id":7,"content":"!","normalized":false,"rstrip":true},)"
                            R"({"id":8,"content":" ","normalized":false}])"));
  const mote::tokenizer tokenizer(directory.path());
  using tokens = std::vector<std::int32_t>;
  CHECK(tokenizer.encode("a<") == tokens{0, 3});      // what is not normalized comes first
  CHECK(tokenizer.encode("abb>") == tokens{2, 1});    // bb is refused, and b> is not looked for inside it
  CHECK(tokenizer.encode("bb>") == tokens{5});        // the vocabulary lacks >
  CHECK(tokenizer.encode("! a") == tokens{7, 8, 0});  // the white space that ! takes is a token too
}

TEST_CASE("tokenizer: the tokens around a text exist and are not too many") {
  const auto template_of = [](const std::string& single, const std::string& ids) {
    return small("",
                 R"("pre_tokenizer":{"type":"ByteLevel"},"post_processor":{"type":"TemplateProcessing","single":[)" +
                     single + R"(],"special_tokens":{"s":{"ids":[)" + ids + "]}}}");
  };
  const std::string item = R"({"SpecialToken":{"id":"s"}})";
  refuses_tokenizer(template_of(item, "3"), "no token has");
  refuses_tokenizer(template_of(item, "4294967296"), "no token has");  // 0, if cut to 32 bits
  refuses_tokenizer(template_of(item, "-1"), "no token has");
  refuses_tokenizer(template_of(item, "\"0\""), "no token has");
  std::string items = item, ids = "0";
  for (int i = 1; i < 100; ++i) {
    items += "," + item;
    ids += ",0";
  }
  refuses_tokenizer(template_of(items, ids), "too many");

  const std::string text = R"({"Sequence":{"id":"A"}})", pair = R"({"Sequence":{"id":"B"}})";
  refuses_tokenizer(template_of(item, "0"), "sequence A once");
  refuses_tokenizer(template_of(pair, "0"), "sequence A once");
  refuses_tokenizer(template_of(text + "," + item + "," + text, "0"), "sequence A once");
  const std::string whole = R"({"type":"TemplateProcessing","single":[)" + text + R"(],"special_tokens":{}})";
  refuses_tokenizer(
      small("", R"("pre_tokenizer":{"type":"ByteLevel"},"post_processor":{"type":"Sequence","processors":[)" + whole +
                    "," + whole + "]}"),
      "second TemplateProcessing");
}

TEST_CASE("tokenizer: a pattern that would run for ever is stopped") {
  const test::temporary_directory directory;
  directory.write(
      "tokenizer.json",
      small("", R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":)"
                R"({"Regex":"(a+)+[bc]"},"behavior":"Isolated"},{"type":"ByteLevel","use_regex":false}]})"));
  const mote::tokenizer tokenizer(directory.path());
  CHECK_THROWS_WITH(tokenizer.encode(std::string(60, 'a')), contains("pattern"));
}
