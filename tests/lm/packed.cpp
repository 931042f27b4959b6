// Checkpoints whose matrices are packed codes, as mote-quantize writes them.
#include <lm/engine.hpp>
#include <lm/parameters.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <mote/io/compressed_tensors.hpp>
#include <mote/io/safetensors_writer.hpp>

#include "io/temporary.hpp"
#include "lm/support.hpp"
#include "support/random.hpp"

namespace {

struct tensor {
  mote::dtype type;
  std::vector<std::size_t> shape;
  std::string bytes;
};
using tensors = std::map<std::string, tensor>;  // by name

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

void write_tensors(const tensors& all, const std::string& directory) {
  mote::safetensors_writer writer(directory + "/model.safetensors");
  for (const auto& [name, t] : all) writer.add_tensor(name, t.type, t.shape);
  for (const auto& [name, t] : all) writer.write(name, test::bytes_of(t.bytes));
  writer.finish();
}

tensors read_tensors(const std::string& directory) {
  const mote::checkpoint files(directory);
  tensors all;
  for (const mote::tensor_ref& t : files.tensors()) {
    all[t.name] = {t.dtype, t.shape, {reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size()}};
  }
  return all;
}

// Puts random codes in place of NAME.weight [rows, columns].
using pack = void (*)(tensors& all, const std::string& name, std::size_t rows, std::size_t columns,
                      test::random_source& random);

std::string random_bytes(test::random_source& random, std::size_t size) {
  std::string bytes;
  for (const float v : random.normal(size, 40.0f)) bytes += static_cast<char>(static_cast<int>(v) & 0xFF);
  return bytes;
}

void pack_int4(tensors& all, const std::string& name, std::size_t rows, std::size_t columns,
               test::random_source& random) {
  const std::size_t words = (columns + 7) / 8;
  all[name + ".weight_packed"] = {mote::dtype::i32, {rows, words}, random_bytes(random, rows * words * 4)};
  all[name + ".weight_scale"] = {mote::dtype::f32, {rows, 1}, raw(std::vector<float>(rows, 0.02f))};
  all[name + ".weight_shape"] = {
      mote::dtype::i64,
      {2},
      raw(std::vector<std::int64_t>{static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns)})};
}

void pack_nvfp4(tensors& all, const std::string& name, std::size_t rows, std::size_t columns,
                test::random_source& random) {
  all[name + ".weight_packed"] = {mote::dtype::u8, {rows, columns / 2}, random_bytes(random, rows * columns / 2)};
  all[name + ".weight_scale"] = {
      mote::dtype::f8_e4m3, {rows, columns / 16}, std::string(rows * columns / 16, '\x38')};  // 1
  all[name + ".weight_global_scale"] = {mote::dtype::f32, {1}, raw(std::vector<float>{50.0f})};
}

// The multi-token-prediction module of a model, with an embedding and a head of its own: its matrices packed in `packed`, the
// same numbers as float32 in `plain`.
void write_models(pack how, const std::string& packed, const std::string& plain) {
  const std::string source = test::golden_model("deepseek_v3_mtp");
  const std::string module = "model.layers." + std::to_string(lm::read_config(source).num_hidden_layers) + ".";
  tensors all = read_tensors(source);
  all[module + "embed_tokens.weight"] = all.at("model.embed_tokens.weight");
  all[module + "shared_head.head.weight"] = all.at("lm_head.weight");
  tensors with_codes = all;
  test::random_source random(5);
  std::vector<std::string> names;
  for (const auto& [name, t] : all) {
    constexpr std::string_view ending = ".weight";
    if (!name.starts_with(module) || t.shape.size() != 2 || name.ends_with("mlp.gate.weight")) continue;
    if (t.shape[1] % 16 != 0) continue;
    with_codes.erase(name);
    names.push_back(name.substr(0, name.size() - ending.size()));
    how(with_codes, names.back(), t.shape[0], t.shape[1], random);
  }
  write_tensors(with_codes, packed);
  const mote::checkpoint files(packed);
  for (const std::string& name : names) {
    tensor& t = all.at(name + ".weight");
    const auto values = mote::matrix_ref(files, name, t.shape[0], t.shape[1]).read();
    t = {mote::dtype::f32, t.shape, raw(std::vector<float>(values.begin(), values.end()))};
  }
  write_tensors(all, plain);
  for (const std::string& to : {packed, plain}) {
    std::filesystem::copy_file(source + "/config.json", to + "/config.json");
  }
}

std::vector<float> draft_of(const std::string& model) {
  const auto e = lm::make_engine(
      {.model = model, .weights = lm::weight_format::f32, .context = 16, .chunk = 8, .speculative = true});
  const std::vector<std::int32_t> tokens = {3, 17, 60, 9};
  e->forward(tokens, 1);
  const auto logits = e->draft(7);
  return {logits.data(), logits.data() + e->config().vocab_size};
}

}  // namespace

TEST_CASE("packed checkpoints: the multi-token-prediction module, its embedding and its head are found") {
  for (const pack how : {pack_int4, pack_nvfp4}) {
    const test::temporary_directory packed, plain;
    write_models(how, packed.path(), plain.path());
    CHECK(draft_of(packed.path()) == draft_of(plain.path()));
  }
}

TEST_CASE("speculative decoding: a token and its draft must fit a chunk") {
  CHECK_THROWS_WITH(lm::make_engine({.model = test::golden_model("deepseek_v3_mtp"), .chunk = 1, .speculative = true}),
                    contains("chunk: expected at least 2"));
}

TEST_CASE("parameters: a matrix counts as it is, neither its words nor its scales") {
  for (const pack how : {pack_int4, pack_nvfp4}) {
    const test::temporary_directory packed, plain;
    write_models(how, packed.path(), plain.path());
    const lm::model_config c = lm::read_config(plain.path());
    const auto want = lm::count_parameters(lm::model_files(plain.path()), c);
    const auto got = lm::count_parameters(lm::model_files(packed.path()), c);
    CHECK(got.total == want.total);
    CHECK(got.active == want.active);
    CHECK(got.mtp == want.mtp);
  }
  CHECK(lm::count_parameters(lm::model_files(MOTE_MODEL_DIR), lm::read_config(MOTE_MODEL_DIR)).total == 6070544);

  // Twelve columns leave half of a row's last word empty.
  const test::temporary_directory directory;
  test::random_source random(6);
  tensors one;
  pack_int4(one, "x", 3, 12, random);
  write_tensors(one, directory.path());
  CHECK(lm::count_parameters(lm::model_files(directory.path()), {}).total == 3 * 12);
  one.at("x.weight_shape").bytes[8] = 9 * 8;
  write_tensors(one, directory.path());
  CHECK_THROWS_WITH(lm::count_parameters(lm::model_files(directory.path()), {}), contains("tensor x.weight_shape"));
}
