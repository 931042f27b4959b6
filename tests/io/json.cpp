// JSON that somebody else wrote: errors name file and field.
#include <mote/io/json.hpp>

#include <cstdint>
#include <string>

#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

template <class F>
void fails(const F& read, const std::string& field) {
  CHECK_THROWS_AS(read(), mote::format_error);
  CHECK_THROWS_WITH(read(), contains("f.json") && contains(field));
}

}  // namespace

TEST_CASE("json: getters give values, and defaults for what is absent or null") {
  const auto value = mote::parse_json(
      R"({"n":3,"largest":18446744073709551615,"x":-1.5,"b":true,"s":"text","a":[1],"o":{"n":7},"none":null})",
      "f.json");
  const mote::json_object json(value, "f.json");
  CHECK(json.integer("n", 0, 3) == 3);
  CHECK(json.integer("largest", 0, SIZE_MAX) == SIZE_MAX);
  CHECK(json.number("n") == 3.0);
  CHECK(json.number("x") == -1.5);
  CHECK(json.boolean("b"));
  CHECK(json.string("s") == "text");
  CHECK(json.array("a").size() == 1);
  CHECK(json.object("o").integer("n", 0, 7) == 7);
  CHECK(json.contains("none"));
  CHECK_FALSE(json.has_value("none"));
  CHECK(json.integer_or("none", 9, 0, 1) == 9);
  CHECK(json.number_or("absent", 0.5) == 0.5);
  CHECK(json.string_or("absent", "d") == "d");
  CHECK_FALSE(json.boolean_or("absent", false));
}

TEST_CASE("json: a missing field, a wrong type and a number out of range are named") {
  const auto value = mote::parse_json(
      R"({"n":3,"negative":-1,"half":0.5,"whole":2.0,"huge":1e300,"beyond":99999999999999999999,"s":"text","o":{"n":"x"},)"
      R"("none":null})",
      "f.json");
  const mote::json_object json(value, "f.json");
  for (const char* field : {"absent", "none", "negative", "half", "whole", "huge", "beyond", "s", "o"}) {
    fails([&] { return json.integer(field, 0, 100); }, field);
  }
  fails([&] { return json.integer("n", 4, 100); }, "from 4 to 100, got 3");
  fails([&] { return json.integer("n", 0, 2); }, "from 0 to 2, got 3");
  fails([&] { return json.integer_or("negative", 0, 0, 9); }, "negative");
  fails([&] { return json.number("s"); }, "s: expected a number");
  fails([&] { return json.number_or("s", 0.0); }, "s: expected a number");
  fails([&] { return json.boolean("n"); }, "n: expected true or false");
  fails([&] { return json.string("n"); }, "n: expected a string");
  fails([&] { return json.string("absent"); }, "absent: missing");
  fails([&] { return json.array("o").size(); }, "o: expected an array");
  fails([&] { return json.object("n").where(); }, "n: expected a JSON object");
  fails([&] { return json.object("o").integer("n", 0, 9); }, "o: n: expected a whole number");
}

TEST_CASE("json: malformed text is refused, whatever it holds") {
  for (const std::string text :
       {"", "{", "{\"a\":}", "nul", "1e999", "[1,]", "\"\xFF\"", "{\"\xC3\":1}", "\"\\ud800\"", "{} x"}) {
    CAPTURE(text);
    fails([&] { return mote::parse_json(text, "f.json"); }, "malformed JSON");
  }
  fails([] { return mote::parse_json(R"({"a":{"b":1,"b":2}})", "f.json"); }, "\"b\" stands twice");
  CHECK(mote::parse_json(R"({"a":{"b":1},"b":2})", "f.json").size() == 2);
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(mote::parse_json(nested(60), "f.json").is_array());
  fails([&] { return mote::parse_json(nested(100), "f.json"); }, "nested");
  fails([] { return mote::parse_json(std::string(1000000, '['), "f.json"); }, "nested");
}

TEST_CASE("json: a file's root must be what is asked for") {
  const test::temporary_directory directory;
  const mote::json_file file(directory.write("f.json", "[1]"));
  fails([&] { return file.root().where(); }, "expected a JSON object, got array");
  fails([&] { return mote::json_file(directory.write("f.json", "{")); }, "malformed JSON");
}
