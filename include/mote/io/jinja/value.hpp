// What templates compute with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "../../core/config.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

struct jinja_undefined {};
struct jinja_container;
struct jinja_namespace;

// A value in use. Strings, lists and mappings never change, so that copies share them.
struct jinja_object {
  std::variant<jinja_undefined, std::nullptr_t, bool, std::int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const jinja_container>, std::shared_ptr<jinja_namespace>>
      held;

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(held);
  }
  // What it refers to, or a null pointer where it is something else.
  template <class T>
  T* at() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&held);
    return pointer != nullptr ? pointer->get() : nullptr;
  }
  const std::string* text() const { return at<const std::string>(); }
  const jinja_container* list() const { return structure(false); }
  const jinja_container* mapping() const { return structure(true); }
  bool is_number() const { return is<std::int64_t>() || is<double>(); }

 private:
  const jinja_container* structure(bool mapping) const;
};

struct jinja_container {
  std::vector<jinja_object> items;
  bool mapping = false;
  std::vector<std::string> keys = {};  // of a mapping, one for each item
  int depth = 1;
};

inline const jinja_container* jinja_object::structure(bool mapping) const {
  const auto* c = at<const jinja_container>();
  return c != nullptr && c->mapping == mapping ? c : nullptr;
}

struct jinja_namespace {
  std::map<std::string, jinja_object> attributes;
};

// A template that is being rendered.
struct jinja_context {
  const std::string& where;  // what errors begin with
  std::vector<std::map<std::string, jinja_object>> scopes = {};
  std::string out = {};
  std::size_t work = 0, line = 1;
};

}  // namespace detail

MOTE_END_NAMESPACE
