// What of a mapped file lies in memory.
#include <mote/io/resident.hpp>

#include <cstddef>
#include <string>

#include <mote/io/mapped_file.hpp>

#include "io/temporary.hpp"
#include "support/catch.hpp"

TEST_CASE("resident: pages come when they are touched, go when they are released, and come again") {
  constexpr std::size_t size = std::size_t{32} << 20, tolerance = std::size_t{4} << 20;
  const test::temporary_directory directory;
  const mote::mapped_file file(directory.write("file", std::string(size, 'x')));
  mote::release_pages(file.bytes());
  const std::size_t before = mote::resident_memory();
  mote::prefetch_pages(file.bytes());
  mote::touch_pages(file.bytes());
  CHECK(mote::resident_memory() > before + size - tolerance);
  mote::release_pages(file.bytes().subspan(100, size / 2));
  CHECK(mote::resident_memory() < before + size / 2 + tolerance);
  CHECK(mote::resident_memory() > before + size / 2 - tolerance);
  CHECK(file.bytes()[1000] == std::byte{'x'});
  mote::touch_pages(file.bytes());
  mote::evict_pages(file.bytes());
  CHECK(mote::resident_memory() < before + tolerance);
  CHECK(file.bytes()[1000] == std::byte{'x'});
  mote::evict_pages({});
  mote::touch_pages({});
}
