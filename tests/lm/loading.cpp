// Packed weights in a file of their own, and models larger than the memory they may have.
#include <malloc.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <lm/engine.hpp>
#include <lm/memory_limit.hpp>
#include <mote/io/resident.hpp>
#include <mote/io/safetensors_writer.hpp>

#include "io/refused.hpp"
#include "io/temporary.hpp"
#include "lm/support.hpp"
#include "support/random.hpp"
#include "support/sanitizers.hpp"

namespace {

const std::vector<std::int32_t> loading_tokens = {3,  17, 5, 60, 2,  41, 8,  8,  33, 12,
                                                  55, 1,  9, 27, 44, 6,  13, 50, 21, 30};

// Logits of a prefill in chunks, then of single tokens; `each` is called after every step.
template <class Each = void (*)()>
std::vector<float> logits_of(
    lm::engine& e, Each&& each = [] {}) {
  std::vector<float> all;
  const std::size_t vocab = e.config().vocab_size, prompt = 14;
  const auto step = [&](std::size_t first, std::size_t count) {
    const auto logits = e.forward(std::span(loading_tokens).subspan(first, count), std::min(count, e.chunk()));
    all.insert(all.end(), logits.data(), logits.data() + logits.extent(0) * vocab);
    each();
  };
  step(0, prompt);
  for (std::size_t t = prompt; t < loading_tokens.size(); ++t) step(t, 1);
  return all;
}

// A copy of a model, to put files beside it.
std::string copy_of(const std::string& model, const test::temporary_directory& directory) {
  const std::string copy = directory.path() + "/model";
  std::filesystem::create_directory(copy);
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::filesystem::copy_file(model + "/" + name, copy + "/" + name);
  }
  return copy;
}

// What the process holds, without memory that is free but kept.
std::size_t memory_in_use() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  return mote::resident_memory();
}

// A model with many experts of 384 KiB (bf16), of which the first are chosen more often.
constexpr std::size_t hidden_size = 256, intermediate_size = 256, experts = 24, layers = 4;

void write_model(const std::string& directory) {
  const nlohmann::json config = {{"architectures", {"DeepseekV2ForCausalLM"}},
                                 {"model_type", "deepseek_v2"},
                                 {"vocab_size", 64},
                                 {"hidden_size", hidden_size},
                                 {"intermediate_size", 512},
                                 {"moe_intermediate_size", intermediate_size},
                                 {"num_hidden_layers", layers},
                                 {"num_attention_heads", 2},
                                 {"num_key_value_heads", 2},
                                 {"n_shared_experts", 1},
                                 {"n_routed_experts", experts},
                                 {"routed_scaling_factor", 1.0},
                                 {"kv_lora_rank", 32},
                                 {"q_lora_rank", nullptr},
                                 {"qk_rope_head_dim", 16},
                                 {"qk_nope_head_dim", 32},
                                 {"v_head_dim", 32},
                                 {"topk_method", "greedy"},
                                 {"n_group", 1},
                                 {"topk_group", 1},
                                 {"num_experts_per_tok", 3},
                                 {"first_k_dense_replace", 0},
                                 {"moe_layer_freq", 1},
                                 {"norm_topk_prob", true},
                                 {"scoring_func", "softmax"},
                                 {"hidden_act", "silu"},
                                 {"max_position_embeddings", 128},
                                 {"rms_norm_eps", 1e-6},
                                 {"rope_theta", 10000.0},
                                 {"attention_bias", false},
                                 {"tie_word_embeddings", false}};
  std::ofstream(directory + "/config.json") << config.dump();
  std::vector<std::pair<std::string, std::vector<std::size_t>>> tensors = {
      {"model.embed_tokens.weight", {64, hidden_size}},
      {"lm_head.weight", {64, hidden_size}},
      {"model.norm.weight", {hidden_size}}};
  const auto ffn = [&](const std::string& p) {
    tensors.push_back({p + "gate_proj.weight", {intermediate_size, hidden_size}});
    tensors.push_back({p + "up_proj.weight", {intermediate_size, hidden_size}});
    tensors.push_back({p + "down_proj.weight", {hidden_size, intermediate_size}});
  };
  for (std::size_t l = 0; l < layers; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    tensors.push_back({p + "input_layernorm.weight", {hidden_size}});
    tensors.push_back({p + "post_attention_layernorm.weight", {hidden_size}});
    tensors.push_back({p + "self_attn.q_proj.weight", {2 * 48, hidden_size}});
    tensors.push_back({p + "self_attn.kv_a_proj_with_mqa.weight", {32 + 16, hidden_size}});
    tensors.push_back({p + "self_attn.kv_a_layernorm.weight", {32}});
    tensors.push_back({p + "self_attn.kv_b_proj.weight", {2 * 64, 32}});
    tensors.push_back({p + "self_attn.o_proj.weight", {hidden_size, 2 * 32}});
    tensors.push_back({p + "mlp.gate.weight", {experts, hidden_size}});
    for (std::size_t e = 0; e < experts; ++e) ffn(p + "mlp.experts." + std::to_string(e) + ".");
    ffn(p + "mlp.shared_experts.");
  }
  mote::safetensors_writer writer(directory + "/model.safetensors");
  for (const auto& [name, shape] : tensors) writer.add_tensor(name, mote::dtype::bf16, shape);
  test::random_source random(7);
  for (const auto& [name, shape] : tensors) {
    std::size_t size = 1;
    for (const std::size_t n : shape) size *= n;
    std::vector<float> values = random.normal(size, 0.06f);
    std::vector<mote::bf16> narrow;
    for (std::size_t i = 0; i < size; ++i) {
      const bool norm = shape.size() == 1, popular = name.ends_with("mlp.gate.weight") && i / hidden_size < 5;
      narrow.push_back(mote::bf16(norm ? 1.0f + values[i] : popular ? 3.0f * values[i] : values[i]));
    }
    writer.write(name, mote::view<const mote::bf16, 1>(narrow.data(), size));
  }
  writer.finish();
}

}  // namespace

TEST_CASE("packed cache: the first and the second start give the bits of a start without it") {
  const test::temporary_directory directory;
  const std::string model = copy_of(test::golden_model("deepseek_v3_mtp"), directory);
  for (const auto backend : {lm::backend_kind::reference, lm::backend_kind::simd}) {
    for (const auto format : {lm::weight_format::stored, lm::weight_format::int8, lm::format_of<mote::q4_0>()}) {
      lm::engine_options o{
          .model = model, .weights = format, .backend = backend, .threads = 2, .chunk = 8, .speculative = true};
      std::string notes;
      o.note = [&](const std::string& line) { notes += line; };
      const auto run = [&] {
        const auto e = lm::make_engine(o);
        std::vector<float> all = logits_of(*e);
        const auto draft = e->draft(4);
        all.insert(all.end(), draft.data(), draft.data() + e->config().vocab_size);
        return all;
      };
      const std::vector<float> want = run();
      o.packed_cache = true;
      CHECK(run() == want);
      CHECK(run() == want);
      CHECK(notes.empty());
    }
  }
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(model)) {
    CHECK(entry.path().extension() != ".part");
    if (entry.path().extension() == ".mote") ++files;
  }
  CHECK(files == 6);  // one for each format and order
}

TEST_CASE("packed cache: a file that is stale, cut off or damaged is made anew, a foreign one left alone") {
  const test::temporary_directory directory;
  const std::string model = copy_of(test::golden_model("deepseek_v2_lite"), directory);
  const std::string path = directory.path() + "/weights.mote";
  std::string notes;
  lm::engine_options o{.model = model, .packed_cache = true, .packed_cache_path = path};
  o.note = [&](const std::string& line) { notes += line; };
  const std::vector<float> want = logits_of(*lm::make_engine(o));
  const std::string good = test::read_bytes(path);
  const auto remade = [&](const std::string& why) {
    notes.clear();
    CHECK(logits_of(*lm::make_engine(o)) == want);
    CHECK_THAT(notes, contains(path) && contains(why) && contains("made anew"));
    CHECK(test::read_bytes(path) == good);
  };
  CHECK(notes.empty());
  CHECK_THAT(mote::weight_file(path).key(), contains("lanes"));  // so that another packing is made anew
  for (const std::size_t size : {good.size() - 1, good.size() / 2, std::size_t{20}}) {
    directory.write("weights.mote", good.substr(0, size));
    remade(path);
  }
  std::string spoilt = good;
  spoilt[spoilt.size() - 2] ^= 4;
  directory.write("weights.mote", spoilt);
  remade("damaged");

  notes.clear();
  o.weights = lm::weight_format::bf16;
  lm::make_engine(o);
  CHECK_THAT(notes, contains("stored") && contains("bf16"));
  o.weights = lm::weight_format::stored;
  remade("bf16");

  notes.clear();
  std::filesystem::last_write_time(model + "/model.safetensors", std::filesystem::file_time_type::clock::now());
  lm::make_engine(o);
  CHECK_THAT(notes, contains("made anew"));

  directory.write("weights.mote", "a text of somebody's");
  CHECK_THROWS_WITH(lm::make_engine(o), contains(path) && contains("not overwritten"));
  CHECK(test::read_bytes(path) == "a text of somebody's");
  o.packed_cache_path = directory.path() + "/no/weights.mote";
  CHECK_THROWS_WITH(lm::make_engine(o), contains("no/weights.mote: cannot be written"));
}

TEST_CASE("memory limit: a model several times as large gives the same bits within it") {
  if (test::sanitized) return;  // their own memory is most of the process's
  const test::temporary_directory directory;
  write_model(directory.path());
  for (const auto format : {lm::weight_format::stored, lm::format_of<mote::q8_0>()}) {
    lm::engine_options o{.model = directory.path(), .weights = format, .threads = 2, .chunk = 8};
    const std::vector<float> want = logits_of(*lm::make_engine(o));
    o.packed_cache = true;
    {
      const auto all = lm::make_engine(o);  // makes the file
      CHECK(all->experts() == nullptr);
      std::size_t bytes = 0;
      for (const auto& layer : all->weights().expert_regions) {
        for (const auto& region : layer) bytes += region.size();
      }
      CHECK(bytes > std::size_t{20} << 20);
    }
    o.memory_limit = 1;
    CHECK_THROWS_WITH(lm::make_engine(o), contains("memory_limit: expected at least") && contains("got 1"));

    constexpr std::size_t room = std::size_t{15} << 20;
    o.memory_limit = memory_in_use() + room;
    o.expert_profile = directory.path() + "/profile.json";
    std::vector<std::vector<std::uint64_t>> uses;
    for (int start = 0; start < 2; ++start) {
      const auto e = lm::make_engine(o);
      std::size_t most = 0;
      CHECK(logits_of(*e, [&] { most = std::max(most, mote::resident_memory()); }) == want);
      const mote::expert_cache& cache = e->experts()->cache();
      CHECK(cache.statistics().hits > 0);
      CHECK(cache.statistics().misses > 0);
      CHECK(cache.resident_bytes() < room / 2);
      CHECK(most <= o.memory_limit);
      if (start == 0) {
        lm::write_expert_profile(o.expert_profile, cache);
        uses = lm::read_expert_profile(o.expert_profile);
        REQUIRE(uses.size() == layers);
        REQUIRE(uses[0].size() == experts);
        std::uint64_t total = 0;
        for (const std::uint64_t n : uses[1]) total += n;
        CHECK(total == 3 * loading_tokens.size());
      } else {
        CHECK(cache.uses(1, 2) == 2 * uses[1][2]);  // goes on counting
      }
    }
    std::filesystem::remove(o.expert_profile);
  }
}

TEST_CASE("memory limit: on the reference back end too, and never without the file") {
  if (test::sanitized) return;  // their own memory is most of the process's
  const test::temporary_directory directory;
  write_model(directory.path());
  lm::engine_options o{.model = directory.path(), .backend = lm::backend_kind::reference, .chunk = 8};
  const std::vector<float> want = logits_of(*lm::make_engine(o));
  o.memory_limit = memory_in_use() + (std::size_t{14} << 20);
  CHECK_THROWS_WITH(lm::make_engine(o), contains("packed_cache"));
  o.packed_cache = true;
  lm::make_engine(o);
  const auto e = lm::make_engine(o);
  CHECK(logits_of(*e) == want);
  CHECK(e->experts()->cache().statistics().misses > 0);
}

TEST_CASE("config.json: numbers that float32 cannot hold are refused by field") {
  const nlohmann::json good = mote::json_file(test::golden_model("deepseek_v3_mtp") + "/config.json").value();
  const auto refuses = [&](const std::string& pointer, double value, const std::string& why) {
    nlohmann::json config = good;
    config[nlohmann::json::json_pointer(pointer)] = value;
    test::check_refused("config.json", config.dump(), why,
                        [](const std::string& path) { return lm::parse_config(mote::json_file(path).root()); });
  };
  for (const std::string field : {"rms_norm_eps", "rope_theta", "routed_scaling_factor", "rope_scaling/factor",
                                  "rope_scaling/original_max_position_embeddings", "rope_scaling/beta_fast",
                                  "rope_scaling/mscale", "rope_scaling/attention_factor"}) {
    const std::string name = field.substr(field.find('/') + 1);
    for (const double value : {1e300, -1e300, 1e-300}) {
      refuses("/" + field, value, name + ": expected a number in the range of float32");
    }
  }
  refuses("/rope_scaling/mscale_all_dim", 1e30, "the scale of attention is not finite");
}

TEST_CASE("expert profile: bad files are refused by name") {
  const test::temporary_directory directory;
  const auto refuses = [](const std::string& text, const std::string& why) {
    test::check_refused("profile.json", text, why,
                        [](const std::string& path) { return lm::read_expert_profile(path); });
  };
  refuses("", "malformed");
  refuses("{}", "expert_uses: missing");
  refuses(R"({"expert_uses": [1]})", "arrays");
  refuses(R"({"expert_uses": [[-1]]})", "whole numbers");
  refuses(R"({"expert_uses": [[1.5]]})", "whole numbers");
  refuses(R"({"expert_uses": [[18446744073709551615]]})", "whole numbers");
  CHECK(lm::read_expert_profile(directory.write("p", R"({"expert_uses": [[1, 2], []]})")) ==
        lm::expert_uses{{1, 2}, {}});
}
