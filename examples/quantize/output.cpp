#include "output.hpp"

#include <filesystem>
#include <fstream>
#include <utility>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <mote/io/dtype.hpp>
#include <mote/io/safetensors_writer.hpp>

namespace quantize {
namespace {

class safetensors_output : public model_output {
 public:
  safetensors_output(std::string directory, std::size_t shard_bytes)
      : directory_(std::move(directory)), shard_bytes_(shard_bytes) {}

  void declare(const stored_tensor& tensor) override {
    std::size_t bytes = mote::dtype_size(*mote::dtype_of(tensor.type));
    for (const std::size_t n : tensor.shape) bytes *= n;
    if (shards_.empty() || (shards_.back().bytes > 0 && shards_.back().bytes + bytes > shard_bytes_)) {
      shards_.emplace_back();
    }
    shards_.back().tensors.push_back(tensor);
    shards_.back().bytes += bytes;
    total_ += bytes;
  }

  void resume(std::size_t count) override {
    // A shard that is complete has its name already.
    while (current_ < shards_.size() && count >= shards_[current_].tensors.size() &&
           std::filesystem::exists(path(current_))) {
      count -= shards_[current_++].tensors.size();
    }
    if (current_ < shards_.size()) open(count);
  }

  void write(const std::string& name, std::span<const std::byte> bytes) override {
    const auto& tensors = shards_[current_].tensors;
    while (next_ < tensors.size() && tensors[next_].name != name) ++next_;
    if (next_ == tensors.size()) {
      file_->finish();
      ++current_;
      open(0);
    }
    file_->write(name, bytes);
  }

  void flush() override { file_->flush(); }

  void finish() override {
    if (file_) file_->finish();
    if (shards_.size() == 1) return;
    nlohmann::ordered_json index;
    index["metadata"]["total_size"] = total_;
    for (std::size_t s = 0; s < shards_.size(); ++s) {
      for (const stored_tensor& t : shards_[s].tensors) index["weight_map"][t.name] = file_name(s);
    }
    std::ofstream file(directory_ + "/model.safetensors.index.json");
    file << index.dump(2) << '\n';
    if (!file.flush()) mote::raise_unwritable(directory_ + "/model.safetensors.index.json");
  }

 private:
  struct shard {
    std::vector<stored_tensor> tensors;
    std::size_t bytes = 0;
  };

  std::string file_name(std::size_t s) const {
    if (shards_.size() == 1) return "model.safetensors";
    return fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards_.size());
  }
  std::string path(std::size_t s) const { return directory_ + "/" + file_name(s); }

  void open(std::size_t done) {
    file_ = std::make_unique<mote::safetensors_writer>(path(current_), mote::unfinished::kept);
    file_->add("format", "pt");
    for (const stored_tensor& t : shards_[current_].tensors)
      file_->add_tensor(t.name, *mote::dtype_of(t.type), t.shape);
    file_->resume(done);
    next_ = 0;
  }

  std::string directory_;
  std::size_t shard_bytes_, total_ = 0;
  std::vector<shard> shards_;
  std::size_t current_ = 0, next_ = 0;  // the shard being written, the tensor in it
  std::unique_ptr<mote::safetensors_writer> file_;
};

}  // namespace

std::unique_ptr<model_output> make_safetensors_output(const std::string& directory, std::size_t shard_bytes) {
  return std::make_unique<safetensors_output>(directory, shard_bytes);
}

}  // namespace quantize
