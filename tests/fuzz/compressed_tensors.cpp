// Any bytes either are a safetensors checkpoint whose matrices can be read, in whatever layout, or give a format_error.
#include <mote/io/compressed_tensors.hpp>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "fuzz/support.hpp"

namespace {

// A checkpoint's directory, whose one file leads to `bytes`.
class directory {
 public:
  explicit directory(const test::memory_file& bytes) {
    std::string name = (std::filesystem::temp_directory_path() / "mote_fuzz_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
    std::filesystem::create_symlink(bytes.path(), path_ + "/model.safetensors");
  }
  directory(const directory&) = delete;
  directory& operator=(const directory&) = delete;
  ~directory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const test::memory_file bytes(data, size);
  const directory files(bytes);
  const auto attempt = [](auto&& f) {
    try {
      f();
    } catch (const mote::format_error&) {
    }
  };
  attempt([&] {
    const mote::checkpoint checkpoint(files.path());
    for (const mote::tensor_ref& t : checkpoint.tensors()) {
      const std::size_t end = t.name.find(".weight");
      if (end == std::string::npos || t.shape.size() != 2) continue;
      // Codes of a byte, two a byte, eight a word, blocks of 32: what the columns may stand for.
      for (const std::size_t each : {1u, 2u, 8u, 32u}) {
        const std::size_t out = t.shape[0], in = t.shape[1] * each;
        if (out > 4096 || t.shape[1] > 4096) continue;
        attempt([&] { mote::matrix_ref(checkpoint, t.name.substr(0, end), out, in).read(); });
      }
    }
  });
  return 0;
}
