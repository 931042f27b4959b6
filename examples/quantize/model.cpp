#include "model.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <regex>
#include <utility>

#include <mote/io/compressed_tensors.hpp>

namespace quantize {
namespace {

// All experts of a layer go together.
std::string layer_of(const std::string& name) {
  static const std::regex expert("\\.experts\\.[0-9]+\\.");
  return std::regex_replace(name, expert, ".experts.*.");
}

}  // namespace

mapped_pages::mapped_pages(const mote::checkpoint& files) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  for (const mote::tensor_ref& t : files.tensors()) {
    const auto begin = reinterpret_cast<std::uintptr_t>(t.bytes.data());
    ranges_.emplace_back(begin / page * page, (begin + t.bytes.size() + page - 1) / page * page);
  }
  std::sort(ranges_.begin(), ranges_.end());
  std::size_t last = 0;
  for (const auto& range : ranges_) {
    if (range.first <= ranges_[last].second) {
      ranges_[last].second = std::max(ranges_[last].second, range.second);
    } else {
      ranges_[++last] = range;
    }
  }
  ranges_.resize(std::min(ranges_.size(), last + 1));
}

void mapped_pages::used(std::size_t bytes) {
  constexpr std::size_t most = std::size_t{1} << 26;
  used_ += bytes;
  if (used_ < most) return;
  used_ = 0;
  for (const auto& [begin, end] : ranges_) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

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
  return tensor.ends_with("_proj.weight") || tensor.ends_with("_proj_with_mqa.weight");
}

std::vector<output_tensor> plan_safetensors(const mote::checkpoint& files) {
  std::vector<output_tensor> all;
  const auto pages = std::make_shared<mapped_pages>(files);
  for (const mote::tensor_ref& tensor : files.tensors()) {
    const mote::tensor_ref& t = files.tensor(tensor.name);  // lives as long as `files`
    if (t.name.find(".weight_") != std::string::npos && !t.name.ends_with(".weight_scale_inv")) {
      t.fail("the model is quantized already, expected float32, float16, bfloat16 or DeepSeek's fp8");
    }
    if (t.name.ends_with(".weight_scale_inv")) continue;  // read with its matrix
    output_tensor out;
    out.shape = t.shape;
    if (is_linear_layer(t.name)) {
      if (t.shape.size() != 2 || t.size() == 0) t.fail("expected a matrix");
      out.name = t.name.substr(0, t.name.size() - std::string(".weight").size());
      out.layer = layer_of(out.name);
      out.modules = {out.name};
      const auto matrix = std::make_shared<mote::matrix_ref>(files, out.name, t.shape[0], t.shape[1]);
      const std::size_t bytes = mote::dtype_size(t.dtype);
      out.read = [matrix, pages, bytes](std::size_t begin, const mote::view<float, 2>& rows) {
        matrix->read(begin, rows);
        pages->used(rows.size() * bytes);
      };
    } else {
      if (mote::dtype_size(t.dtype) == 1) t.fail("expected float32, float16 or bfloat16");
      out.name = t.name;
      out.type = mote::dtype_name(t.dtype);
      out.copy = [&t, pages](const auto& write) {
        constexpr std::size_t piece = std::size_t{1} << 23;
        for (std::size_t begin = 0; begin < t.bytes.size(); begin += piece) {
          const auto bytes = t.bytes.subspan(begin, std::min(piece, t.bytes.size() - begin));
          write(bytes);
          pages->used(bytes.size());
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
