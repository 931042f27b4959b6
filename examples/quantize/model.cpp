#include "model.hpp"

#include <algorithm>
#include <charconv>
#include <memory>
#include <regex>
#include <utility>

#include <mote/core/buffer.hpp>

namespace quantize {
namespace {

// All experts of a layer go together.
std::string target_of(const std::string& name) {
  static const std::regex expert("\\.experts\\.[0-9]+\\.");
  return std::regex_replace(name, expert, ".experts.*.");
}

// What other programs multiply at once: experts' three matrices, gate and up, and what reads the hidden state in front of the
// latents.
std::string fused_layer_of(const std::string& target) {
  const std::size_t dot = target.rfind('.') + 1;
  const std::string before = target.substr(0, dot), module = target.substr(dot);
  if (before.ends_with(".experts.*.")) return before.substr(0, dot - 1);
  if (module == "gate_proj" || module == "up_proj") return before + "gate_proj+up_proj";
  if (module == "q_a_proj" || module == "kv_a_proj_with_mqa") return before + "q_a_proj+kv_a_proj_with_mqa";
  return target;
}

}  // namespace

std::optional<std::size_t> decoder_layer(const std::string& name) {
  const std::string_view prefix = "model.layers.";
  if (!name.starts_with(prefix)) return std::nullopt;
  std::size_t layer = 0;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + prefix.size(), end, layer);
  if (error != std::errc() || rest == end || *rest != '.') return std::nullopt;
  return layer;
}

bool is_linear_layer(const std::string& tensor) {
  return (tensor.ends_with("_proj.weight") && !tensor.ends_with(".eh_proj.weight")) ||
         tensor.ends_with("_proj_with_mqa.weight");
}

std::vector<output_tensor> plan_safetensors(const model_source& source, bool fused) {
  const mote::checkpoint& files = source.files();
  std::vector<output_tensor> all;
  for (const mote::tensor_ref& tensor : files.tensors()) {
    const mote::tensor_ref& t = files.tensor(tensor.name);  // lives as long as `files`
    if (t.name.find(".weight_") != std::string::npos && !t.name.ends_with(".weight_scale_inv")) {
      t.fail("the model is quantized already, expected float32, float16, bfloat16 or DeepSeek's fp8");
    }
    if (t.name.ends_with(".weight_scale_inv")) continue;  // read with its matrix
    output_tensor out;
    out.shape = t.shape;
    const bool widened = t.name.ends_with(".eh_proj.weight") && mote::dtype_size(t.dtype) == 1;
    if (is_linear_layer(t.name) || widened) {
      if (t.shape.size() != 2 || t.size() == 0) t.fail("expected a matrix");
      out.name = t.name.substr(0, t.name.size() - std::string(".weight").size());
      out.target = target_of(out.name);
      out.layer = fused ? fused_layer_of(out.target) : out.target;
      if (widened) out.least = "bf16";
      out.modules = {out.name};
      const auto matrix = std::make_shared<model_source::matrix>(source, out.name, t.shape[0], t.shape[1]);
      out.read = [matrix](std::size_t begin, const mote::view<float, 2>& rows) { matrix->read(begin, rows); };
    } else {
      if (mote::dtype_size(t.dtype) == 1) t.fail("expected float32, float16 or bfloat16");
      out.name = t.name;
      out.type = mote::dtype_name(t.dtype);
      out.copy = [&t, &source](const auto& write) {
        if (source.scales().change(t.name)) {
          const mote::buffer<float> values = source.floats(t);
          return write(stored_as(t.dtype, {values.data(), values.size()}));
        }
        constexpr std::size_t piece = std::size_t{1} << 23;
        for (std::size_t begin = 0; begin < t.bytes.size(); begin += piece) {
          const auto bytes = t.bytes.subspan(begin, std::min(piece, t.bytes.size() - begin));
          write(bytes);
          source.used(bytes.size());
        }
      };
    }
    all.push_back(std::move(out));
  }
  std::stable_sort(all.begin(), all.end(), [](const output_tensor& a, const output_tensor& b) {
    return decoder_layer(a.name) < decoder_layer(b.name);
  });
  return all;
}

}  // namespace quantize
