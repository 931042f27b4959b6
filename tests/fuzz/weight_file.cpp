// Any bytes either are a file of weights, all of which can be read, or give a format_error.
#include <mote/io/weight_file.hpp>

#include <cstring>
#include <vector>

#include "fuzz/support.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // With the checksum that the table has: else no change of the table would be looked at.
  std::vector<std::uint8_t> bytes(data, data + size);
  mote::detail::weight_file_header header{};
  if (size >= sizeof header) {
    std::memcpy(&header, data, sizeof header);
    if (header.table_offset >= sizeof header && header.table_offset <= size &&
        header.table_size <= size - header.table_offset) {
      header.table_checksum =
          mote::fnv1a(std::as_bytes(std::span(bytes)).subspan(header.table_offset, header.table_size));
      std::memcpy(bytes.data(), &header, sizeof header);
    }
  }
  const test::memory_file memory(bytes.data(), bytes.size());
  try {
    const mote::weight_file file(memory.path());
    for (const auto& [name, entry] : file.weights()) {
      std::vector<float> row(mote::in_features(entry.weight));
      for (const std::size_t n : {std::size_t{0}, mote::out_features(entry.weight) - 1}) {
        mote::dequantize_row(entry.weight, n, row.data());
      }
      static_cast<void>(file.region(entry, entry));
    }
  } catch (const mote::format_error&) {
  }
  return 0;
}
