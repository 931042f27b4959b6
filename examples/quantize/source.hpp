// The values that are quantized: those of a checkpoint as float32, with channels scaled where that was chosen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <mote/core/buffer.hpp>
#include <mote/core/view.hpp>
#include <mote/io/compressed_tensors.hpp>
#include <mote/io/dtype.hpp>
#include <mote/io/safetensors.hpp>

namespace quantize {

// The pages of a mapped checkpoint that have been read, let go from time to time so that what is resident stays bounded.
class mapped_pages {
 public:
  explicit mapped_pages(const mote::checkpoint& files);

  // Says that so many bytes were read.
  void used(std::size_t bytes);

 private:
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> ranges_;
  std::size_t used_ = 0;
};

// Scales s of channels, moved from what makes a channel (the gain of a norm, the rows of a matrix) to the columns of what
// reads it: mote/compress/channel_scale.hpp. By the names of tensors.
struct channel_scales {
  using scale = std::shared_ptr<const std::vector<float>>;
  std::map<std::string, scale> multiplied;  // columns
  std::map<std::string, scale> divided;     // rows; of a norm its gains

  bool change(const std::string& tensor) const { return multiplied.contains(tensor) || divided.contains(tensor); }
  std::uint64_t fingerprint() const;
  // Rows [begin, begin + rows.extent(0)) of `tensor`, in place.
  void apply(const std::string& tensor, std::size_t begin, const mote::view<float, 2>& rows) const;
};

// Numbers as a floating-point type of a file stores them, and what such a type makes of one number.
std::vector<std::byte> stored_as(mote::dtype type, std::span<const float> values);
float rounded_to(mote::dtype type, float value);

// What is read of a checkpoint is float32, scaled, and finite: else format_error is thrown.
class model_source {
 public:
  // Scaled tensors that are not quantized are rounded to the type that the file has for them, if `types_stay`. `files` must
  // outlive the object, the object what it gives out.
  model_source(const mote::checkpoint& files, bool types_stay)
      : files_(files), types_stay_(types_stay), pages_(files) {}

  // From now on; also what was given out before.
  void scale(channel_scales scales) { scales_ = std::move(scales); }

  const mote::checkpoint& files() const { return files_; }
  const channel_scales& scales() const { return scales_; }
  void used(std::size_t bytes) const { pages_.used(bytes); }

  // `name`.weight, a matrix in any layout of checkpoints.
  class matrix {
   public:
    matrix(const model_source& source, const std::string& name, std::size_t out, std::size_t in)
        : source_(source), name_(name + ".weight"), stored_(source.files(), name, out, in) {}

    std::size_t out_features() const { return stored_.out_features(); }

    // Rows [begin, begin + rows.extent(0)).
    void read(std::size_t begin, const mote::view<float, 2>& rows) const;

   private:
    const model_source& source_;
    std::string name_;
    mote::matrix_ref stored_;
  };

  // A tensor of floating-point numbers.
  mote::buffer<float> floats(const mote::tensor_ref& t) const;

 private:
  // `name` is that of scales, which packed tensors do not have themselves.
  void finish(const mote::tensor_ref& t, const std::string& name, std::size_t begin,
              const mote::view<float, 2>& rows) const;

  const mote::checkpoint& files_;
  channel_scales scales_;
  bool types_stay_;
  mutable mapped_pages pages_;
};

}  // namespace quantize
