// The tokenizer and the chat template of a GGUF file: byte-level BPE, `tokenizer.ggml.model` = "gpt2".
//
// The file has the tokens, their types and the merges; how text is cut into pieces it only names, in `tokenizer.ggml.pre`.
// The names and the expressions of the published tokenizers that they stand for are listed here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../chat_template.hpp"
#include "../tokenizer.hpp"
#include "metadata.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// How a published tokenizer cuts text: at the matches of one pattern after another.
struct gguf_pre_tokenizer {
  std::vector<std::string> patterns;
  bool ignore_merges = false;  // a piece that is a token stays whole
  bool add_bos = false;        // where the file does not say
};

// Cased letters, as DeepSeek-LLM and DeepSeek-V2 list them.
inline constexpr const char* gguf_cased_letters =
    R"(A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF})"
    R"(\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1})"
    R"(\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5})"
    R"(\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A})"
    R"(\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B})"
    R"(\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC})"
    R"(\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107})"
    R"(\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139})"
    R"(\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4})"
    R"(\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787})"
    R"(\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A})"
    R"(\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2})"
    R"(\x{118A0}-\x{118DF}\x{1E900}-\x{1E943})";

// Throws format_error for a name that is not known.
inline gguf_pre_tokenizer read_gguf_pre_tokenizer(const gguf_metadata& m) {
  const std::string gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
  const std::string contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
  // The expressions of cl100k and its like, with runs of digits of a given length.
  const auto cl100k = [&](const std::string& digits) {
    return contractions + R"(|[^\r\n\p{L}\p{N}]?\p{L}+|)" + digits +
           R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  };
  // Words that break where small letters are followed by capitals; `letter` limits which those are.
  const auto cased = [&](const std::string& ending, const std::string& digits, const std::string& letter = "",
                         const std::string& breaks = R"([\r\n/]*)") {
    const std::string before = R"([^\r\n\p{L}\p{N}]?)", upper = "(?:" + letter + R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]))",
                      lower = "(?:" + letter + R"([\p{Ll}\p{Lm}\p{Lo}\p{M}]))";
    return before + upper + "*" + lower + "+" + ending + "|" + before + upper + "+" + lower + "*" + ending + "|" +
           digits + R"(| ?[^\s\p{L}\p{N}]+)" + breaks + R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
  };
  const std::string asian = R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";

  // Without the key, as in llama.cpp, "default".
  const std::string name = m.contains("tokenizer.ggml.pre") ? m.string("tokenizer.ggml.pre") : "default";
  const auto is = [&](auto... names) { return ((name == names) || ...); };
  if (is("gpt-2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "trillion",
         "granite-docling", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4")) {
    return {{gpt2}};
  }
  if (is("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2")) {
    return {{R"(\p{N})", gpt2}};
  }
  if (is("falcon")) return {{R"([\p{P}$+<=>^~|`]+)", gpt2, "[0-9][0-9][0-9]"}};
  if (is("default")) return {{R"([\p{P}$+<=>^~|]+)", gpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}};
  if (is("deepseek-llm")) {
    return {{R"([\r\n])", R"(\s?[)" + std::string(gguf_cased_letters) + "]+",
             R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)", R"(\s+$)", asian,
             R"(\p{N})"}};
  }
  if (is("deepseek-coder")) return {{R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", asian, R"(\p{N})"}};
  if (is("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")) {
    return {{R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
             R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
             R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}};
  }
  if (is("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"))
    return {{cl100k(R"(\p{N}{1,3})")}, true, true};
  if (is("dbrx", "smaug-bpe", "chatglm-bpe")) return {{cl100k(R"(\p{N}{1,3})")}};
  if (is("glm4", "glm5")) return {{cl100k(R"(\p{N}{1,3})")}, true};
  if (is("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2", "solar-open", "grok-2"))
    return {{cl100k(R"(\p{N})")}};
  if (is("qwen35")) {
    return {{contractions + R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+)"
                            R"(|\s+(?!\S)|\s+)"}};
  }
  if (is("tekken")) return {{cased("", R"(\p{N})")}, true, true};
  if (is("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")) {
    return {{cased(contractions + "?", R"(\p{N}{1,3})")}};
  }
  if (is("youtu")) {
    return {{R"([\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+)"
             R"(|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F})"
             R"(\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
             cased(contractions + "?", R"(\p{N})")},
            true};
  }
  if (is("kimi-k2")) {
    return {{R"(\p{Han}+|)" + cased(contractions + "?", R"(\p{N}{1,3})", R"((?!\p{Han}))", R"([\r\n]*)")}};
  }
  if (is("seed-coder")) {
    return {{contractions + R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)"}};
  }
  if (is("bailingmoe", "bailingmoe2", "llada-moe")) {
    return {{R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n])"
             R"(|\s+(?!\S)|\s+)"}};
  }
  m.fail("tokenizer.ggml.pre", "\"" + name + "\" is not a byte-level tokenizer that is known");
}

// The id that a key gives, or nothing.
inline std::optional<std::int32_t> read_gguf_token(const gguf_metadata& m, std::string_view key, std::size_t tokens) {
  if (!m.contains(key)) return std::nullopt;
  return static_cast<std::int32_t>(m.integer(key, 0, tokens - 1));
}

// Tokens that are found in the text as they stand: those of the types "control" and "user defined".
inline std::vector<added_token> read_gguf_added_tokens(const gguf_metadata& m, const std::vector<std::string>& tokens) {
  constexpr const char* key = "tokenizer.ggml.token_type";
  constexpr std::int32_t control = 3, user_defined = 4, byte = 6;
  if (!m.contains(key)) return {};
  const std::vector<std::int32_t>& types = m.array<std::int32_t>(key);
  if (types.size() != tokens.size()) {
    m.fail(key, "expected one for each of the " + std::to_string(tokens.size()) + " tokens, got " +
                    std::to_string(types.size()));
  }
  std::vector<added_token> added;
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] < 0 || types[i] > byte) {
      m.fail(key, "token " + std::to_string(i) + ": unknown type " + std::to_string(types[i]));
    }
    if (types[i] != control && types[i] != user_defined) continue;
    if (tokens[i].empty()) m.fail("tokenizer.ggml.tokens", "token " + std::to_string(i) + ": is empty");
    added_token& t = added.emplace_back();
    t.content = tokens[i];
    t.id = static_cast<std::int32_t>(i);
    t.special = types[i] == control;
  }
  return added;
}

}  // namespace detail

// Throws format_error naming the key that is missing, malformed or not supported.
inline tokenizer read_gguf_tokenizer(const gguf_metadata& m) {
  const std::string& model = m.string("tokenizer.ggml.model");
  if (model == "no_vocab") m.fail("tokenizer.ggml.model", "the file has no vocabulary: it takes token ids, not text");
  if (model != "gpt2") {
    m.fail("tokenizer.ggml.model", "\"" + model + "\" is not supported: expected \"gpt2\", byte-level BPE");
  }
  const std::vector<std::string>& tokens = m.array<std::string>("tokenizer.ggml.tokens");
  if (tokens.empty()) m.fail("tokenizer.ggml.tokens", "is empty");
  if (m.boolean_or("tokenizer.ggml.add_space_prefix", false)) {
    m.fail("tokenizer.ggml.add_space_prefix", "is not supported for byte-level BPE");
  }
  const detail::gguf_pre_tokenizer pre = detail::read_gguf_pre_tokenizer(m);
  const std::string where = m.where() + ": tokenizer.ggml";
  tokenizer_parts parts{bpe(tokens, m.array<std::string>("tokenizer.ggml.merges"), pre.ignore_merges, where),
                        added_tokens(detail::read_gguf_added_tokens(m, tokens)),
                        pre_tokenizer(pre.patterns, where + ".pre"),
                        {},
                        {},
                        detail::read_gguf_token(m, "tokenizer.ggml.bos_token_id", tokens.size()),
                        detail::read_gguf_token(m, "tokenizer.ggml.eos_token_id", tokens.size())};
  if (m.boolean_or("tokenizer.ggml.add_bos_token", pre.add_bos)) {
    if (!parts.bos) m.fail("tokenizer.ggml.bos_token_id", "missing, but texts begin with it");
    parts.prefix.push_back(*parts.bos);
  }
  if (m.boolean_or("tokenizer.ggml.add_eos_token", false)) {
    if (!parts.eos) m.fail("tokenizer.ggml.eos_token_id", "missing, but texts end with it");
    parts.suffix.push_back(*parts.eos);
  }
  return tokenizer(std::move(parts));
}

// The file's `tokenizer.chat_template`, or nothing. Throws format_error for one that is malformed or uses what is not
// supported.
inline std::optional<chat_template> read_gguf_chat_template(const gguf_metadata& m) {
  constexpr const char* key = "tokenizer.chat_template";
  if (!m.contains(key)) return std::nullopt;
  jinja_template::value variables = jinja_template::value::object();
  constexpr std::pair<const char*, const char*> names[] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                                                           {"eos_token", "tokenizer.ggml.eos_token_id"},
                                                           {"unk_token", "tokenizer.ggml.unknown_token_id"},
                                                           {"pad_token", "tokenizer.ggml.padding_token_id"}};
  for (const auto& [name, id_key] : names) {
    if (!m.contains(id_key)) continue;
    const std::vector<std::string>& tokens = m.array<std::string>("tokenizer.ggml.tokens");
    if (tokens.empty()) m.fail("tokenizer.ggml.tokens", "is empty");
    variables[name] = tokens[m.integer(id_key, 0, tokens.size() - 1)];
  }
  return chat_template(m.string(key), m.where() + ": " + key, std::move(variables));
}

MOTE_END_NAMESPACE
