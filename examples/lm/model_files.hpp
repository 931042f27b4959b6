// The files of a model: a directory as models are published, or a GGUF file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include <mote/core/buffer.hpp>
#include <mote/io/chat_template.hpp>
#include <mote/io/compressed_tensors.hpp>
#include <mote/io/fingerprint.hpp>
#include <mote/io/gguf.hpp>
#include <mote/io/gguf/tokenizer.hpp>
#include <mote/io/resident.hpp>
#include <mote/io/safetensors.hpp>
#include <mote/io/tokenizer.hpp>

#include "config.hpp"
#include "gguf_config.hpp"
#include "gguf_names.hpp"

namespace lm {

inline bool is_gguf(const std::string& path) { return path.ends_with(".gguf"); }

// A tensor times a number, which GGUF files have beside matrices in NVFP4: NAME.scale of NAME.weight.
struct gguf_matrix {
  mote::gguf_tensor tensor;
  float scale = 1.0f;
};

// A matrix as its file has it.
using stored_matrix = std::variant<mote::matrix_ref, gguf_matrix>;

inline std::span<const std::byte> bytes_of(const stored_matrix& stored) {
  if (const auto* matrix = std::get_if<gguf_matrix>(&stored)) return matrix->tensor.bytes;
  return std::get<mote::matrix_ref>(stored).weight().bytes;
}

// Of every file of a checkpoint that holds weights or shapes.
inline std::uint64_t fingerprint(const mote::checkpoint& files) {
  std::uint64_t hash = mote::fingerprint(files.directory() + "/config.json");
  for (const mote::safetensors_file& file : files.files()) hash = mote::fingerprint(file.path(), hash);
  return hash;
}

// Tensors by the names of published checkpoints, whichever files they lie in. What is missing or has another shape throws
// format_error naming file and tensor.
class model_files {
 public:
  // `path`: a directory with a safetensors checkpoint, or a GGUF file.
  explicit model_files(const std::string& path) : files_(open(path)) {}
  model_files(mote::checkpoint files) : files_(std::move(files)) {}

  const std::variant<mote::checkpoint, mote::gguf_checkpoint>& files() const { return files_; }

  bool contains(const std::string& name) const {
    if (const auto* published = std::get_if<mote::checkpoint>(&files_)) return published->contains(name);
    const auto place = find_gguf_place(name);
    return place && gguf().contains(place->name);
  }

  // The same of the matrix NAME.weight, which has another name where a checkpoint has packed codes.
  bool contains_matrix(const std::string& name) const {
    const auto* published = std::get_if<mote::checkpoint>(&files_);
    return contains(published != nullptr ? mote::stored_matrix_name(*published, stem(name)) : name);
  }

  // A copy, in memory alone: the pages of the file are given back. Throws format_error where a number is not finite.
  mote::buffer<float> read(const std::string& name, const std::vector<std::size_t>& shape) const {
    const auto copy = [](const auto& tensor) {
      mote::buffer<float> values = mote::read_float(tensor);
      mote::release_pages(tensor.bytes);
      if (!mote::detail::all_finite(values.data(), values.size())) tensor.fail("has numbers that are not finite");
      return values;
    };
    if (const auto* published = std::get_if<mote::checkpoint>(&files_)) return copy(published->tensor(name, shape));
    const gguf_place place = place_of(name);
    const mote::gguf_tensor& tensor = gguf().tensor(place.name, shape);
    mote::buffer<float> values = copy(tensor);
    const float scale = scale_of(place, tensor);
    for (float& v : values) v *= scale;
    return values;
  }

  // The matrix NAME.weight [rows, columns].
  stored_matrix matrix(const std::string& name, std::size_t rows, std::size_t columns) const {
    if (const auto* published = std::get_if<mote::checkpoint>(&files_)) {
      return mote::matrix_ref(*published, stem(name), rows, columns);
    }
    const gguf_place place = place_of(name);
    const mote::gguf_tensor& tensor = gguf().tensor(place.name);
    return gguf_matrix{place.expert ? expert(tensor, *place.expert, rows, columns) : whole(tensor, rows, columns),
                       scale_of(place, tensor)};
  }

 private:
  static std::variant<mote::checkpoint, mote::gguf_checkpoint> open(const std::string& path) {
    if (is_gguf(path)) return mote::gguf_checkpoint(path);
    return mote::checkpoint(path);
  }

  const mote::gguf_checkpoint& gguf() const { return std::get<mote::gguf_checkpoint>(files_); }

  gguf_place place_of(const std::string& name) const {
    if (auto place = find_gguf_place(name)) return *std::move(place);
    mote::raise<mote::format_error>(gguf().path() + ": a GGUF file has no tensor " + name);
  }

  static constexpr std::string_view ending = ".weight";
  // NAME of NAME.weight.
  static std::string stem(const std::string& name) { return name.substr(0, name.size() - ending.size()); }

  // One for the tensor, or for each expert.
  float scale_of(const gguf_place& place, const mote::gguf_tensor& tensor) const {
    if (!place.name.ends_with(ending)) return 1.0f;
    const std::string name = stem(place.name) + ".scale";
    if (!gguf().contains(name)) return 1.0f;
    const mote::gguf_tensor& scale = gguf().tensor(name, std::vector<std::size_t>{place.expert ? tensor.shape[0] : 1});
    const float value = mote::read_float(scale)[place.expert.value_or(0)];
    if (!std::isfinite(value)) scale.fail("expected finite numbers");
    return value;
  }

  // All dimensions but the last together are rows.
  static mote::gguf_tensor whole(mote::gguf_tensor t, std::size_t rows, std::size_t columns) {
    const std::vector<std::size_t> shape = {rows, columns};
    if (t.shape.size() < 2 || t.shape.back() != columns || t.size() / columns != rows) wrong_shape(t, shape);
    t.shape = shape;
    return t;
  }

  static mote::gguf_tensor expert(mote::gguf_tensor t, std::size_t e, std::size_t rows, std::size_t columns) {
    const std::vector<std::size_t> shape = {std::max(e + 1, t.shape.empty() ? 0 : t.shape[0]), rows, columns};
    if (t.shape != shape) wrong_shape(t, shape);
    const std::size_t size = t.bytes.size() / shape[0];
    t.bytes = t.bytes.subspan(e * size, size);
    t.shape = {rows, columns};
    return t;
  }

  [[noreturn]] static void wrong_shape(const mote::gguf_tensor& t, const std::vector<std::size_t>& shape) {
    t.fail("expected shape " + mote::shape_text(shape) + ", got " + mote::shape_text(t.shape));
  }

  std::variant<mote::checkpoint, mote::gguf_checkpoint> files_;
};

// Throws format_error for a file that is neither.
inline void check_model_name(const std::string& path) {
  std::error_code none;
  if (is_gguf(path) || !std::filesystem::is_regular_file(path, none)) return;
  mote::raise<mote::format_error>(path + ": is a file, expected a directory or the name of a GGUF file, NAME.gguf");
}

// Throws format_error naming the file and the field or key at fault.
inline model_config load_config(const std::string& path) {
  check_model_name(path);
  return is_gguf(path) ? read_gguf_config(mote::gguf_checkpoint(path)) : read_config(path);
}

inline mote::tokenizer load_tokenizer(const std::string& path) {
  check_model_name(path);
  return is_gguf(path) ? mote::read_gguf_tokenizer(mote::gguf_checkpoint(path).metadata()) : mote::tokenizer(path);
}

// Nothing where the model has none.
inline std::optional<mote::chat_template> load_chat_template(const std::string& path) {
  return is_gguf(path) ? mote::read_gguf_chat_template(mote::gguf_checkpoint(path).metadata())
                       : mote::chat_template::load(path);
}

}  // namespace lm
