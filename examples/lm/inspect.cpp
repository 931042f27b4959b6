// mote-lm inspect: what is in a checkpoint and what it costs to run.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <fmt/core.h>
#include <fmt/ranges.h>

#include "commands.hpp"
#include "config.hpp"
#include "model_files.hpp"
#include "parameters.hpp"

namespace lm {
namespace {

struct listed_tensor {
  std::string name, type;
  std::size_t bytes;
  std::vector<std::size_t> shape;
};

std::vector<listed_tensor> list(const model_files& model) {
  std::vector<listed_tensor> all;
  if (const auto* published = std::get_if<mote::checkpoint>(&model.files())) {
    for (const mote::tensor_ref& t : published->tensors()) {
      all.push_back({t.name, std::string(mote::dtype_name(t.dtype)), t.bytes.size(), t.shape});
    }
  } else {
    for (const mote::gguf_tensor& t : std::get<mote::gguf_checkpoint>(model.files()).tensors()) {
      all.push_back({t.name, std::string(mote::ggml_type_name(t.type)), t.bytes.size(), t.shape});
    }
  }
  return all;
}

void run(const std::string& model) {
  const model_config c = load_config(model);
  const model_files files(model);
  const std::vector<listed_tensor> tensors = list(files);
  std::size_t stored = 0;
  std::size_t width = 6;
  for (const listed_tensor& tensor : tensors) width = std::max(width, tensor.name.size());
  fmt::print("{:{}}  {:8}  {:>12}  {}\n", "tensor", width, "dtype", "bytes", "shape");
  for (const listed_tensor& tensor : tensors) {
    fmt::print("{:{}}  {:8}  {:>12}  [{}]\n", tensor.name, width, tensor.type, tensor.bytes,
               fmt::join(tensor.shape, ", "));
    stored += tensor.bytes;
  }
  const parameter_count parameters = count_parameters(files, c);
  const mote::mla_config& a = c.decoder.attention;
  const std::size_t full = a.num_attention_heads * (a.qk_head_dim() + a.v_head_dim);
  fmt::print("\nstored                    {} bytes\n", stored);
  fmt::print("parameters, total         {}\n", parameters.total);
  fmt::print("parameters, active        {} a token\n", parameters.active);
  if (parameters.mtp > 0) fmt::print("parameters, MTP module    {}\n", parameters.mtp);
  fmt::print("latent cache              ");
  mote::for_each_format(
      [&]<class T>() {
        constexpr auto format = mote::row_format::of<T>();
        if (a.cache_width() % format.block_size != 0) return;
        fmt::print("{}{}{} ({})", std::is_same_v<T, float> ? "" : ", ",
                   c.num_hidden_layers * format.row_bytes(a.cache_width()),
                   std::is_same_v<T, float> ? " bytes a token" : "", format.name);
      },
      mote::type_list<float, mote::bf16, mote::mxfp8, mote::q8_0>{});
  fmt::print("\nfull multi-head attention {} bytes a token (f32), {:.1f} times as much\n",
             c.num_hidden_layers * full * sizeof(float),
             static_cast<double>(full) / static_cast<double>(a.cache_width()));
}

}  // namespace

void add_inspect(CLI::App& program) {
  auto model = std::make_shared<std::string>();
  CLI::App* command = program.add_subcommand("inspect", "Tensors, parameters and cache size of a checkpoint");
  command->add_option("--model", *model, "Directory with config.json and the checkpoint, or GGUF file")->required();
  command->callback([model] { run(*model); });
}

}  // namespace lm
