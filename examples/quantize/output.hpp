// The files of a quantized model. Tensors are declared first, then written in that order.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "encoder.hpp"

namespace quantize {

class model_output {
 public:
  virtual ~model_output() = default;

  virtual void declare(const stored_tensor& tensor) = 0;

  // After the last declare(): goes on behind the first `count` tensors, which an interrupted run has written and flushed.
  virtual void resume(std::size_t count) = 0;
  virtual void write(const std::string& name, std::span<const std::byte> bytes) = 0;

  // What was written outlives the process.
  virtual void flush() = 0;
  virtual void finish() = 0;
};

// model.safetensors in `directory`, or, with more than `shard_bytes` of data, as many shards and their index.
std::unique_ptr<model_output> make_safetensors_output(const std::string& directory, std::size_t shard_bytes);

}  // namespace quantize
