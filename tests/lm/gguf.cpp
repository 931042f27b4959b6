// GGUF files against the published checkpoints that they were made from.
#include <lm/engine.hpp>
#include <lm/gguf_config.hpp>
#include <lm/gguf_names.hpp>
#include <lm/model_files.hpp>
#include <lm/parameters.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <mote/core/backend.hpp>
#include <mote/io/gguf.hpp>
#include <mote/quant/quantize.hpp>
#include <nlohmann/json.hpp>

#include "io/temporary.hpp"
#include "lm/support.hpp"

namespace {

using metadata = std::map<std::string, mote::gguf_value>;

struct gguf_source {
  std::vector<std::size_t> shape;
  std::vector<float> values;
};
using sources = std::map<std::string, gguf_source>;

struct gguf_options {
  mote::ggml_type matrices = mote::ggml_type::f32;
  bool split_kv_b = true;
  std::function<void(metadata&, sources&)> spoil = [](metadata&, sources&) {};
};

std::uint32_t u32(std::size_t n) { return static_cast<std::uint32_t>(n); }

metadata metadata_of(const lm::model_config& c, const mote::json_object& json, bool split_kv_b) {
  const mote::mla_config& a = c.decoder.attention;
  const mote::router_config& r = c.decoder.router;
  metadata m = {{"general.architecture", std::string("deepseek2")},
                {"tokenizer.ggml.model", std::string("no_vocab")},
                {"deepseek2.vocab_size", u32(c.vocab_size)},
                {"deepseek2.context_length", u32(c.max_position_embeddings)},
                {"deepseek2.block_count", u32(c.num_hidden_layers + c.num_nextn_predict_layers)},
                {"deepseek2.nextn_predict_layers", u32(c.num_nextn_predict_layers)},
                {"deepseek2.embedding_length", u32(c.hidden_size)},
                {"deepseek2.feed_forward_length", u32(c.intermediate_size)},
                {"deepseek2.attention.head_count", u32(a.num_attention_heads)},
                {"deepseek2.attention.layer_norm_rms_epsilon", c.decoder.rms_norm_eps},
                {"deepseek2.attention.q_lora_rank", u32(c.q_lora_rank)},
                {"deepseek2.attention.kv_lora_rank", u32(a.kv_lora_rank)},
                {"deepseek2.rope.dimension_count", u32(a.qk_rope_head_dim)},
                {"deepseek2.rope.freq_base", static_cast<float>(json.number_or("rope_theta", 10000.0))},
                {"deepseek2.leading_dense_block_count", u32(c.first_k_dense_replace)},
                {"deepseek2.expert_count", u32(c.n_routed_experts)},
                {"deepseek2.expert_used_count", u32(r.num_experts_per_tok)},
                {"deepseek2.expert_shared_count", u32(c.n_shared_experts)},
                {"deepseek2.expert_feed_forward_length", u32(c.moe_intermediate_size)},
                {"deepseek2.expert_weights_scale", r.routed_scaling_factor},
                {"deepseek2.expert_weights_norm", r.norm_topk_prob},
                {"deepseek2.expert_gating_func", u32(r.scoring == mote::scoring_func::sigmoid ? 2 : 1)},
                {"deepseek2.expert_group_count", u32(r.n_group)},
                {"deepseek2.expert_group_used_count", u32(r.topk_group)}};
  const std::string mla = split_kv_b ? "_mla" : "";
  m["deepseek2.attention.key_length" + mla] = u32(a.qk_head_dim());
  m["deepseek2.attention.value_length" + mla] = u32(a.v_head_dim);
  if (json.has_value("rope_scaling")) {
    const mote::json_object yarn = json.object("rope_scaling");
    m["deepseek2.rope.scaling.type"] = std::string("yarn");
    m["deepseek2.rope.scaling.factor"] = static_cast<float>(yarn.number("factor"));
    m["deepseek2.rope.scaling.original_context_length"] =
        u32(static_cast<std::size_t>(yarn.number("original_max_position_embeddings")));
    m["deepseek2.rope.scaling.yarn_beta_fast"] = static_cast<float>(yarn.number_or("beta_fast", 32.0));
    m["deepseek2.rope.scaling.yarn_beta_slow"] = static_cast<float>(yarn.number_or("beta_slow", 1.0));
    m["deepseek2.rope.scaling.yarn_log_multiplier"] = static_cast<float>(yarn.number("mscale_all_dim") / 10.0);
  }
  return m;
}

// The tensors of a checkpoint as GGUF has them: experts together, kv_b_proj in two halves if wanted.
sources tensors_of(const std::string& directory, const lm::model_config& c, bool split_kv_b) {
  const mote::checkpoint files(directory);
  const mote::mla_config& a = c.decoder.attention;
  const std::size_t heads = a.num_attention_heads, nope = a.qk_nope_head_dim, v_dim = a.v_head_dim;
  const std::size_t rank = a.kv_lora_rank;
  sources all;
  for (const mote::tensor_ref& t : files.tensors()) {
    const auto place = lm::find_gguf_place(t.name);
    REQUIRE(place.has_value());
    const mote::buffer<float> values = mote::read_float(t);
    if (split_kv_b && place->name.ends_with("attn_kv_b.weight")) {
      const std::string block = place->name.substr(0, place->name.size() - std::string("kv_b.weight").size());
      gguf_source k{{heads, rank, nope}, std::vector<float>(heads * rank * nope)}, v{{heads, v_dim, rank}, {}};
      for (std::size_t h = 0; h < heads; ++h) {
        const float* head = values.data() + h * (nope + v_dim) * rank;
        for (std::size_t i = 0; i < nope * rank; ++i) {
          k.values[(h * rank + i % rank) * nope + i / rank] = head[i];
        }
        v.values.insert(v.values.end(), head + nope * rank, head + (nope + v_dim) * rank);
      }
      all[block + "k_b.weight"] = std::move(k);
      all[block + "v_b.weight"] = std::move(v);
      continue;
    }
    gguf_source& s = all[place->name];
    if (place->expert) {
      s.shape = {c.n_routed_experts, t.shape[0], t.shape[1]};
      s.values.resize(c.n_routed_experts * t.size());
      std::copy(values.begin(), values.end(),
                s.values.begin() + static_cast<std::ptrdiff_t>(*place->expert * t.size()));
    } else {
      s = {t.shape, {values.begin(), values.end()}};
    }
  }
  return all;
}

void write_gguf(const std::string& directory, const std::string& path, const gguf_options& o) {
  const mote::json_file json(directory + "/config.json");
  const lm::model_config c = lm::read_config(directory);
  metadata m = metadata_of(c, json.root(), o.split_kv_b);
  sources tensors = tensors_of(directory, c, o.split_kv_b);
  o.spoil(m, tensors);
  mote::gguf_writer writer(path);
  for (const auto& [key, value] : m) writer.add(key, value);
  const auto type_of = [&](const std::string& name, const gguf_source& s) {
    return s.shape.size() < 2 || name.find("ffn_gate_inp") != std::string::npos ||
                   s.shape.back() % mote::info(o.matrices).block_size != 0
               ? mote::ggml_type::f32
               : o.matrices;
  };
  for (const auto& [name, s] : tensors) writer.add_tensor(name, type_of(name, s), s.shape);
  mote::reference be;
  for (const auto& [name, s] : tensors) {
    const std::size_t rows = s.values.size() / s.shape.back(), columns = s.shape.back();
    const mote::view<const float, 2> values(s.values.data(), rows, columns);
    if (type_of(name, s) == mote::ggml_type::f32) {
      writer.write(name, values);
    } else if (o.matrices == mote::ggml_type::bf16) {
      const std::vector<mote::bf16> narrow(s.values.begin(), s.values.end());
      writer.write(name, mote::view<const mote::bf16, 2>(narrow.data(), rows, columns));
    } else {
      const auto write_as = [&, &name = name, &s = s]<class F>() {
        std::vector<F> blocks(s.values.size() / F::block_size);
        const mote::view<F, 2> to(blocks.data(), rows, columns / F::block_size);
        mote::quantize<F>(be, values, to);
        writer.write(name, mote::view<const F, 2>(to));
      };
      if (o.matrices == mote::ggml_type::q8_0) write_as.template operator()<mote::q8_0>();
      if (o.matrices == mote::ggml_type::nvfp4) write_as.template operator()<mote::nvfp4>();
    }
  }
  writer.finish();
}

std::unique_ptr<lm::engine> make(const std::string& model, lm::weight_format format, lm::backend_kind backend,
                                 bool speculative = false) {
  return lm::make_engine({.model = model,
                          .weights = format,
                          .backend = backend,
                          .threads = 2,
                          .context = 64,
                          .chunk = 16,
                          .speculative = speculative});
}

const std::vector<std::int32_t> prompt_tokens = {1, 17, 60, 3, 9, 42, 5, 11};

// Logits of a prefill, then of a decoded token.
std::vector<float> logits_of(const std::string& model, lm::weight_format format = lm::weight_format::stored,
                             lm::backend_kind backend = lm::backend_kind::simd) {
  const auto engine = make(model, format, backend);
  const std::size_t vocab = engine->config().vocab_size;
  std::vector<float> all;
  const auto prefill = engine->forward(prompt_tokens, prompt_tokens.size());
  all.assign(prefill.data(), prefill.data() + prompt_tokens.size() * vocab);
  const std::int32_t next[] = {7};
  const auto decoded = engine->forward(next, 1);
  all.insert(all.end(), decoded.data(), decoded.data() + vocab);
  return all;
}

void check_close(const std::vector<float>& got, const std::vector<float>& want, float share) {
  const auto [low, high] = std::minmax_element(want.begin(), want.end());
  test::check_within(got, want, share * (*high - *low), 0.0f);
}

// The median over the tokens of ‖got - want‖ / ‖want‖: single ones may stray, as rounding can change which experts a router
// chooses.
double distance(const std::vector<float>& got, const std::vector<float>& want, std::size_t vocab) {
  REQUIRE(got.size() == want.size());
  std::vector<double> distances;
  for (std::size_t begin = 0; begin < got.size(); begin += vocab) {
    double difference = 0.0, size = 0.0;
    for (std::size_t i = begin; i < begin + vocab; ++i) {
      difference += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
      size += std::pow(static_cast<double>(want[i]), 2);
    }
    distances.push_back(std::sqrt(difference / size));
  }
  std::sort(distances.begin(), distances.end());
  return distances[distances.size() / 2];
}

}  // namespace

TEST_CASE("gguf model: the shipped weights give the same logits from a GGUF file") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/x.gguf";
  const std::vector<float> want = logits_of(MOTE_MODEL_DIR);
  for (const bool split : {true, false}) {
    write_gguf(MOTE_MODEL_DIR, path, {.matrices = mote::ggml_type::bf16, .split_kv_b = split});
    CHECK(logits_of(path) == want);
  }

  // The multi-token-prediction module, too.
  const auto drafted = [](const std::string& model) {
    const auto engine = make(model, lm::weight_format::stored, lm::backend_kind::simd, true);
    engine->forward(prompt_tokens, 1);
    const auto logits = engine->draft(7);
    return std::vector<float>(logits.data(), logits.data() + engine->config().vocab_size);
  };
  CHECK(drafted(path) == drafted(MOTE_MODEL_DIR));
}

TEST_CASE("gguf model: routers, yarn and queries of the published kinds") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/x.gguf";
  for (const char* name : {"deepseek_v2_lite", "deepseek_v2_group", "deepseek_v3"}) {
    CAPTURE(name);
    // GGUF has one number for yarn's mscale and mscale_all_dim.
    auto config = nlohmann::json::parse(test::read_bytes(test::golden_model(name) + "/config.json"));
    if (config.contains("rope_scaling") && config["rope_scaling"].is_object()) {
      nlohmann::json& scaling = config["rope_scaling"];
      scaling["mscale"] = scaling["mscale_all_dim"] = scaling.value("mscale_all_dim", 1.0);
    }
    directory.write("config.json", config.dump());
    directory.write("model.safetensors", test::read_bytes(test::golden_model(name) + "/model.safetensors"));
    write_gguf(directory.path(), path, {});
    check_close(logits_of(path), logits_of(directory.path()), 1e-5f);
  }
}

TEST_CASE("gguf model: yarn without an mscale_all_dim is llama.cpp's") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/x.gguf";
  const auto spoil = [](metadata& m, sources&) {
    m["deepseek2.rope.scaling.type"] = std::string("yarn");
    m["deepseek2.rope.scaling.factor"] = 4.0f;
    m["deepseek2.rope.scaling.original_context_length"] = u32(64);
    m.erase("deepseek2.rope.scaling.yarn_log_multiplier");
  };
  write_gguf(test::golden_model("deepseek_v2_lite"), path, {.spoil = spoil});
  const lm::model_config config = lm::read_gguf_config(mote::gguf_checkpoint(path));
  const float m = 0.1f * std::log(4.0f) + 1.0f;
  CHECK(std::abs(config.rope.attention_factor - m) < 1e-6f);
  CHECK(std::abs(config.rope.softmax_multiplier - m * m) < 1e-6f);
}

TEST_CASE("gguf model: blocks stay blocks, whichever back end, and can be turned into another format") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/x.gguf";
  write_gguf(MOTE_MODEL_DIR, path, {.matrices = mote::ggml_type::q8_0});
  const std::vector<float> exact = logits_of(path, lm::weight_format::f32, lm::backend_kind::reference);
  check_close(logits_of(path, lm::weight_format::f32), exact, 1e-5f);
  const std::vector<float> reference = logits_of(path, lm::weight_format::stored, lm::backend_kind::reference);
  const std::vector<float> packed = logits_of(path);
  CHECK(distance(reference, exact, 1536) < 0.03);  // activations are rounded to int8
  CHECK(distance(packed, reference, 1536) < 0.03);
  CHECK(packed != exact);

  const auto engine = make(path, lm::weight_format::stored, lm::backend_kind::simd);
  CHECK(mote::bytes(engine->weights().lm_head) < 1536 * 256 * 2);
}

TEST_CASE("gguf model: matrices may have scales beside them, one each or one an expert") {
  const test::temporary_directory directory;
  const std::string plain = directory.path() + "/plain.gguf", scaled = directory.path() + "/scaled.gguf";
  // Powers of two, which change neither codes nor products.
  const auto scale = [](metadata&, sources& tensors) {
    for (const std::string name : {"blk.0.attn_output", "blk.1.attn_k_b", "blk.1.ffn_down_exps", "output"}) {
      gguf_source& matrix = tensors.at(name + ".weight");
      std::vector<float> scales(name.ends_with("exps") ? matrix.shape[0] : 1);
      for (std::size_t e = 0; e < scales.size(); ++e) scales[e] = std::ldexp(1.0f, -2 - static_cast<int>(e % 3));
      const std::size_t part = matrix.values.size() / scales.size();
      for (std::size_t i = 0; i < matrix.values.size(); ++i) matrix.values[i] /= scales[i / part];
      tensors[name + ".scale"] = {{scales.size()}, scales};
    }
  };
  write_gguf(MOTE_MODEL_DIR, plain, {.matrices = mote::ggml_type::q8_0});
  write_gguf(MOTE_MODEL_DIR, scaled, {.matrices = mote::ggml_type::q8_0, .spoil = scale});
  CHECK(logits_of(scaled, lm::weight_format::f32) == logits_of(plain, lm::weight_format::f32));
  const lm::model_config config = lm::load_config(plain);
  CHECK(lm::count_parameters(lm::model_files(scaled), config).total ==
        lm::count_parameters(lm::model_files(plain), config).total);

  // NVFP4 stays as it is, which rounds activations to int8: some token's router may choose other experts.
  write_gguf(MOTE_MODEL_DIR, scaled, {.matrices = mote::ggml_type::nvfp4, .spoil = scale});
  const std::vector<float> exact = logits_of(scaled, lm::weight_format::f32), packed = logits_of(scaled);
  CHECK(distance(packed, exact, 1536) < 0.1);
  CHECK(packed != exact);
}

TEST_CASE("gguf model: text, whichever part of a split model is named") {
  const test::temporary_directory directory;
  const std::string parts[] = {directory.path() + "/x-00001-of-00002.gguf",
                               directory.path() + "/x-00002-of-00002.gguf"};
  for (std::uint16_t i = 0; i < 2; ++i) {
    mote::gguf_writer writer(parts[i]);
    writer.add("split.count", std::uint16_t{2});
    writer.add("split.no", i);
    writer.add("split.tensors.count", std::int32_t{0});
    if (i == 0) {
      writer.add("tokenizer.ggml.model", std::string("gpt2"));
      writer.add("tokenizer.ggml.pre", std::string("gpt-2"));
      writer.add("tokenizer.ggml.tokens", mote::gguf_array{std::vector<std::string>{"a", "b", "ab"}});
      writer.add("tokenizer.ggml.merges", mote::gguf_array{std::vector<std::string>{"a b"}});
      writer.add("tokenizer.chat_template", std::string("{{ messages[0]['content'] }}!"));
    }
    writer.finish();
  }
  const mote::chat_message messages[] = {{"user", "ab"}};
  for (const std::string& part : parts) {
    CHECK(lm::load_tokenizer(part).encode("abb") == std::vector<std::int32_t>{2, 1});
    CHECK(lm::load_chat_template(part)->render(messages, true) == "ab!");
  }
}

TEST_CASE("gguf model: bad files are refused by key or tensor") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/x.gguf", source = test::golden_model("deepseek_v2_lite");
  const lm::model_config config = lm::read_config(source);
  const std::string experts = "blk." + std::to_string(config.first_k_dense_replace) + ".ffn_up_exps.";
  const auto refuses = [&](const std::function<void(metadata&, sources&)>& spoil, const std::string& what) {
    CAPTURE(what);
    write_gguf(source, path, {.spoil = spoil});
    CHECK_THROWS_AS(logits_of(path), mote::format_error);
    CHECK_THROWS_WITH(logits_of(path), contains("x.gguf: ") && contains(what));
  };
  const auto key = [](const std::string& name, mote::gguf_value value) {
    return [=](metadata& m, sources&) { m["deepseek2." + name] = value; };
  };
  refuses([](metadata& m, sources&) { m["general.architecture"] = std::string("llama"); }, "general.architecture");
  refuses([](metadata& m, sources&) { m.erase("deepseek2.block_count"); }, "deepseek2.block_count: missing");
  refuses([](metadata& m, sources&) { m.erase("deepseek2.vocab_size"); }, "tokenizer.ggml.tokens: missing");
  refuses(key("embedding_length", std::string("wide")), "deepseek2.embedding_length");
  refuses(key("nextn_predict_layers", u32(1000)), "deepseek2.nextn_predict_layers");
  refuses(key("block_count", u32(1)), "deepseek2.block_count");
  refuses(key("attention.key_length_mla", u32(1)), "deepseek2.attention.key_length_mla");
  refuses(key("attention.head_count", u32(config.decoder.attention.num_attention_heads + 1)), "attn_q.weight");
  refuses(key("rope.dimension_count", u32(3)), "qk_rope_head_dim");
  refuses(key("rope.scaling.type", std::string("longrope")), "deepseek2.rope.scaling.type");
  for (const char* type : {"none", "linear", "yarn", ""}) {
    refuses(
        [&](metadata& m, sources&) {
          m["deepseek2.rope.scaling.type"] = std::string(type);
          if (*type == '\0') m.erase("deepseek2.rope.scaling.type");
          m["deepseek2.rope.scaling.attn_factor"] = 2.0f;
        },
        "deepseek2.rope.scaling.attn_factor");
  }
  for (const char* factor : {"deepseek2.rope.scaling.factor", "deepseek2.rope.scale_linear"}) {
    refuses(
        [&](metadata& m, sources&) {
          m.erase("deepseek2.rope.scaling.type");
          m.erase("deepseek2.rope.scaling.factor");
          m[factor] = 4.0f;
        },
        factor);
  }
  refuses(key("expert_gating_func", u32(3)), "deepseek2.expert_gating_func");
  refuses(key("expert_used_count", u32(0)), "deepseek2.expert_used_count");
  refuses(key("expert_count", u32(1u << 20)), "deepseek2.expert_count");
  refuses(
      [](metadata& m, sources&) {
        m["deepseek2.expert_weights_norm"] = true;
        m["deepseek2.expert_weights_scale"] = 1.0f;
        m["deepseek2.expert_used_count"] = u32(1);
      },
      "deepseek2.expert_weights_norm");
  refuses(key("attention.layer_norm_rms_epsilon", 1e300), "rms_norm_eps: expected a number in the range of float32");
  refuses(key("attention.temperature_scale", 1.0f), "deepseek2.attention.temperature_scale");
  refuses(
      [](metadata& m, sources&) {
        m["deepseek2.expert_weights_norm"] = true;
        m["deepseek2.expert_weights_scale"] = 2.0f;
      },
      "deepseek2.expert_weights_scale");
  refuses([](metadata&, sources& t) { t.erase("blk.0.attn_kv_a_norm.weight"); },
          "tensor blk.0.attn_kv_a_norm.weight: missing");
  refuses([&](metadata&, sources& t) { t.erase(experts + "weight"); }, "tensor " + experts + "weight: missing");
  refuses(
      [&](metadata&, sources& t) { std::swap(t.at(experts + "weight").shape[1], t.at(experts + "weight").shape[2]); },
      "tensor " + experts + "weight: expected shape");
  refuses(
      [&](metadata&, sources& t) {
        t[experts + "scale"] = {{1}, {0.5f}};
      },
      "tensor " + experts + "scale: expected shape");
  refuses(
      [](metadata&, sources& t) {
        t["blk.0.attn_output.scale"] = {{1}, {std::nanf("")}};
      },
      "tensor blk.0.attn_output.scale: expected finite numbers");
  refuses([](metadata&,
             sources& t) { t.at("blk.0.attn_k_b.weight").shape = {t.at("blk.0.attn_k_b.weight").values.size()}; },
          "tensor blk.0.attn_k_b.weight: expected shape");
}
