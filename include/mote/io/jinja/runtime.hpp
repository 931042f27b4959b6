// What templates do with values: operators, tests, methods and filters, as Jinja2 and Python have them. Work, text and nesting
// are bounded; what is not supported is an error at the line that is run.
#pragma once

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "../../core/error.hpp"
#include "text.hpp"
#include "value.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

struct jinja_runtime {
  using value = nlohmann::ordered_json;
  using object = jinja_object;
  using container = jinja_container;
  using space = jinja_namespace;
  using undefined = jinja_undefined;
  using context = jinja_context;

  // Work is counted in bytes of text read or written; a token and an element of a list cost about what they take.
  static constexpr std::size_t most_work = std::size_t{512} << 20, token_work = 64, element_work = 256;
  static constexpr std::size_t most_text = std::size_t{16} << 20;
  static constexpr int deepest = 100;

  [[noreturn]] static void fail(const context& x, const std::string& message) {
    raise<format_error>(x.where + ": line " + std::to_string(x.line) + ": " + message);
  }

  static void spend(context& x, std::size_t work) {
    x.work += work;
    if (x.work > most_work) fail(x, "the template runs too long");
  }

  static void append(context& x, std::string& to, std::string_view text) {
    if (to.size() + text.size() > most_text) fail(x, "a string or the output grows too long");
    to += text;
  }

  static object text(context& x, std::string s) {
    if (s.size() > most_text) fail(x, "a string or the output grows too long");
    spend(x, s.size());
    return {std::make_shared<const std::string>(std::move(s))};
  }

  static void push(context& x, std::vector<object>& list, object item) {
    spend(x, element_work);
    list.push_back(std::move(item));
  }

  static void put(context& x, container& mapping, const std::string& key, object item) {
    if (const object* present = find(x, mapping, key)) {
      mapping.items[static_cast<std::size_t>(present - mapping.items.data())] = std::move(item);
      return;
    }
    push(x, mapping.items, std::move(item));
    mapping.keys.push_back(key);
  }

  // A namespace may change, so that it could come to hold itself.
  static void check_member(context& x, const object& v) {
    if (v.is<std::shared_ptr<space>>()) fail(x, "a namespace inside of another value is not supported");
  }

  static object made(context& x, container c) {
    for (const object& item : c.items) {
      check_member(x, item);
      if (const auto* inner = item.at<const container>()) c.depth = std::max(c.depth, inner->depth + 1);
    }
    if (c.depth > deepest) fail(x, "a value is nested too deeply");
    return {std::make_shared<const container>(std::move(c))};
  }

  static object from_json(context& x, const value& v) {
    if (v.is_null()) return {nullptr};
    if (v.is_boolean()) return {v.get<bool>()};
    if (v.is_number_integer()) return {v.get<std::int64_t>()};
    if (v.is_number()) return {v.get<double>()};
    if (v.is_string()) return text(x, v.get<std::string>());
    if (!v.is_structured()) return {};
    container c{{}, v.is_object()};
    for (const auto& [key, item] : v.items()) {
      push(x, c.items, from_json(x, item));
      if (c.mapping) c.keys.push_back(key);
    }
    return made(x, std::move(c));
  }

  static bool truth(const object& v) {
    if (const auto* b = std::get_if<bool>(&v.held)) return *b;
    if (v.is_number()) return number(v) != 0.0;
    if (const auto* s = v.text()) return !s->empty();
    if (const auto* c = v.at<const container>()) return !c->items.empty();
    return v.is<std::shared_ptr<space>>();
  }

  static double number(const object& v) {
    if (const auto* i = std::get_if<std::int64_t>(&v.held)) return static_cast<double>(*i);
    if (const auto* b = std::get_if<bool>(&v.held)) return *b ? 1.0 : 0.0;
    return std::get<double>(v.held);
  }

  static bool equal(context& x, const object& a, const object& b) {
    spend(x, token_work);
    const auto numeric = [](const object& v) { return v.is_number() || v.is<bool>(); };  // Python's True is 1
    if (numeric(a) && numeric(b)) return number(a) == number(b);
    if (a.held.index() != b.held.index()) return false;
    if (a.text() != nullptr) {
      spend(x, std::min(a.text()->size(), b.text()->size()));
      return *a.text() == *b.text();
    }
    if (a.is<std::shared_ptr<space>>()) return a.at<space>() == b.at<space>();
    const auto *p = a.at<const container>(), *q = b.at<const container>();
    if (p == q) return true;  // none and undefined values, too
    if (p->mapping != q->mapping || p->items.size() != q->items.size()) return false;
    for (std::size_t i = 0; i < p->items.size(); ++i) {
      const object* other = p->mapping ? find(x, *q, p->keys[i]) : &q->items[i];
      if (other == nullptr || !equal(x, p->items[i], *other)) return false;
    }
    return true;
  }

  static bool compare(context& x, const std::string& op, const object& a, const object& b) {
    if (op == "in" || op == "not in") return contains(x, b, a) == (op == "in");
    if (op == "==" || op == "!=") return equal(x, a, b) == (op == "==");
    const auto holds = [&](const auto& p, const auto& q) {
      return op == "<" ? p < q : op == "<=" ? p <= q : op == ">" ? p > q : p >= q;
    };
    if (a.is_number() && b.is_number()) return holds(number(a), number(b));
    if (a.text() == nullptr || b.text() == nullptr) fail(x, "values that have no order");
    spend(x, std::min(a.text()->size(), b.text()->size()));
    return holds(*a.text(), *b.text());
  }

  static std::string to_text(context& x, const object& v) {
    if (v.is<undefined>()) return "";
    if (v.is<std::nullptr_t>()) return "None";
    if (const auto* b = std::get_if<bool>(&v.held)) return *b ? "True" : "False";
    if (const auto* i = std::get_if<std::int64_t>(&v.held)) return std::to_string(*i);
    if (const auto* d = std::get_if<double>(&v.held)) return value(*d).dump();
    if (v.text() == nullptr) fail(x, "a list or mapping cannot be written as text: use tojson");
    spend(x, v.text()->size());
    return *v.text();
  }

  static std::int64_t whole(context& x, const object& v) {
    if (!v.is<std::int64_t>()) fail(x, "expected a whole number");
    return std::get<std::int64_t>(v.held);
  }

  static object arithmetic(context& x, const std::string& op, const object& a, const object& b) {
    if (op == "+" && a.text() != nullptr && b.text() != nullptr) return text(x, *a.text() + *b.text());
    if (op == "+" && a.list() != nullptr && b.list() != nullptr) {
      std::vector<object> list;
      for (const container* c : {a.list(), b.list()}) {
        for (const object& item : c->items) push(x, list, item);
      }
      return made(x, {std::move(list)});
    }
    if (!a.is_number() || !b.is_number()) fail(x, "\"" + op + "\" needs numbers");
    constexpr double exact = 9007199254740992.0;  // 2^53: beyond it neither form is exact
    const double p = number(a), q = number(b);
    if (std::abs(p) >= exact || std::abs(q) >= exact) fail(x, "a number is too large");
    if ((op == "/" || op == "//" || op == "%") && q == 0.0) fail(x, "division by zero");
    const double r = op == "+"    ? p + q
                     : op == "-"  ? p - q
                     : op == "*"  ? p * q
                     : op == "/"  ? p / q
                     : op == "//" ? std::floor(p / q)
                                  : p - q * std::floor(p / q);
    if (std::abs(r) >= exact) fail(x, "a number is too large");
    if (op != "/" && a.is<std::int64_t>() && b.is<std::int64_t>()) return {static_cast<std::int64_t>(r)};
    return {r};
  }

  // Searching compares up to all of `part` at each place.
  static void spend_search(context& x, const std::string& s, const std::string& part) {
    spend(x, s.size() * (1 + part.size() / 32));
  }

  static const object* find(context& x, const container& mapping, const std::string& key) {
    spend(x, mapping.keys.size() * (8 + key.size() / 32));
    const auto it = std::find(mapping.keys.begin(), mapping.keys.end(), key);
    return it == mapping.keys.end() ? nullptr : &mapping.items[static_cast<std::size_t>(it - mapping.keys.begin())];
  }

  static bool contains(context& x, const object& v, const object& item) {
    if (v.text() != nullptr && item.text() != nullptr) {
      spend_search(x, *v.text(), *item.text());
      return v.text()->find(*item.text()) != std::string::npos;
    }
    if (v.mapping() != nullptr && item.text() != nullptr) return find(x, *v.mapping(), *item.text()) != nullptr;
    if (const container* c = v.list()) {
      return std::any_of(c->items.begin(), c->items.end(), [&](const object& o) { return equal(x, o, item); });
    }
    fail(x, "\"in\" needs a string, list or mapping");
  }

  // What a loop over `v` goes through, as a list.
  static std::shared_ptr<const container> elements(context& x, const object& v) {
    if (v.list() != nullptr) return std::get<std::shared_ptr<const container>>(v.held);
    container list;
    if (const container* c = v.mapping()) {
      for (const std::string& key : c->keys) push(x, list.items, text(x, key));
    } else if (const std::string* s = v.text()) {
      for (std::size_t i = 0, end; i < s->size(); i = end) {
        end = character_end(*s, i);
        push(x, list.items, text(x, s->substr(i, end - i)));
      }
    } else if (!v.is<undefined>()) {
      fail(x, "expected a list to loop over");
    }
    return std::make_shared<const container>(std::move(list));
  }

  static object member(context& x, const object& v, const object& key) {
    if (v.is<undefined>()) fail(x, "a member of an undefined value");
    if (const std::string* name = key.text()) {
      if (const container* c = v.mapping()) {
        const object* item = find(x, *c, *name);
        return item != nullptr ? *item : object{};
      }
      if (const space* s = v.at<space>()) {
        const auto it = s->attributes.find(*name);
        return it != s->attributes.end() ? it->second : object{};
      }
      return {};
    }
    if (!key.is<std::int64_t>() || (v.text() == nullptr && v.list() == nullptr))
      fail(x, "a subscript that does not fit");
    const auto size = static_cast<std::int64_t>(length(x, v));
    const std::int64_t i = whole(x, key), place = i < 0 ? i + size : i;
    if (place < 0 || place >= size) return {};
    const auto k = static_cast<std::size_t>(place);
    return v.text() != nullptr ? text(x, std::string(part(x, *v.text(), k, k + 1))) : v.list()->items[k];
  }

  static std::size_t length(context& x, const object& v) {
    const auto* c = v.at<const container>();
    if (v.text() == nullptr) return c != nullptr ? c->items.size() : 0;
    spend(x, v.text()->size());
    return static_cast<std::size_t>(
        std::count_if(v.text()->begin(), v.text()->end(), [](char b) { return !is_continuation(b); }));
  }

  // The characters from `begin` up to `end`.
  static std::string_view part(context& x, std::string_view s, std::size_t begin, std::size_t end) {
    spend(x, s.size());
    const auto offset = [](std::string_view t, std::size_t n) {
      std::size_t i = 0;
      while (i < t.size() && (is_continuation(t[i]) || n-- > 0)) ++i;
      return i;
    };
    s.remove_prefix(offset(s, begin));
    return s.substr(0, offset(s, end - begin));
  }

  static object slice(context& x, const object& v, const object& first, const object& last, const object& step) {
    if (v.text() == nullptr && v.list() == nullptr) fail(x, "a slice of what is neither list nor string");
    const auto size = static_cast<std::int64_t>(length(x, v));
    const std::int64_t by = step.is<std::nullptr_t>() ? 1 : whole(x, step);
    if (by != 1 && by != -1) fail(x, "a slice's step other than 1 and -1 is not supported");
    const auto bound = [&](const object& b, std::int64_t fallback) {
      if (b.is<std::nullptr_t>()) return fallback;
      const std::int64_t i = whole(x, b);
      return std::clamp<std::int64_t>(i < 0 ? i + size : i, by > 0 ? 0 : -1, by > 0 ? size : size - 1);
    };
    const std::int64_t from = bound(first, by > 0 ? 0 : size - 1), to = bound(last, by > 0 ? size : -1);
    const auto begin = static_cast<std::size_t>(by > 0 ? from : to + 1);
    const auto end = std::max(begin, static_cast<std::size_t>(by > 0 ? to : from + 1));
    if (v.text() != nullptr) {
      const std::string_view chosen = part(x, *v.text(), begin, end);
      return text(x, by > 0 ? std::string(chosen) : reversed_characters(chosen));
    }
    std::vector<object> list;
    for (std::size_t i = begin; i < end; ++i) push(x, list, v.list()->items[i]);
    if (by < 0) std::reverse(list.begin(), list.end());
    return made(x, {std::move(list)});
  }

  static bool test(context& x, const object& v, const std::string& name) {
    if (name == "defined") return !v.is<undefined>();
    if (name == "undefined") return v.is<undefined>();
    if (name == "none") return v.is<std::nullptr_t>();
    if (name == "string") return v.text() != nullptr;
    if (name == "number") return v.is_number() || v.is<bool>();
    if (name == "integer") return v.is<std::int64_t>();
    if (name == "boolean") return v.is<bool>();
    if (name == "mapping") return v.mapping() != nullptr;
    if (name == "sequence" || name == "iterable") return v.text() != nullptr || v.at<const container>() != nullptr;
    if (name == "true") return v.is<bool>() && truth(v);
    if (name == "false") return v.is<bool>() && !truth(v);
    if (name == "odd" || name == "even") return (whole(x, v) % 2 != 0) == (name == "odd");
    fail(x, "the test \"" + name + "\" is not supported");
  }

  // At most `left` times, unless that is negative.
  static object replaced(context& x, const std::string& s, const std::string& from, const std::string& to,
                         std::int64_t left) {
    if (from.empty()) fail(x, "replace of an empty string");
    spend_search(x, s, from);
    std::string out;
    std::size_t done = 0;
    for (std::size_t i; left != 0 && (i = s.find(from, done)) != std::string::npos; --left) {
      append(x, out, std::string_view(s).substr(done, i - done));
      append(x, out, to);
      done = i + from.size();
    }
    append(x, out, std::string_view(s).substr(done));
    return text(x, std::move(out));
  }

  // At a separator, or at white space where it is empty; at most `left` times, unless that is negative.
  static object split(context& x, const std::string& s, const std::string& separator, std::int64_t left) {
    spend_search(x, s, separator);
    const bool blank = separator.empty();
    std::vector<object> parts;
    std::size_t done = blank ? find_white(s, 0, false) : 0;
    for (std::size_t i; left != 0 && done != std::string::npos; --left) {
      i = blank ? find_white(s, done, true) : s.find(separator, done);
      if (i == std::string::npos) break;
      push(x, parts, text(x, s.substr(done, i - done)));
      done = blank ? find_white(s, i, false) : i + separator.size();
    }
    if (done != std::string::npos) push(x, parts, text(x, s.substr(done)));
    return made(x, {std::move(parts)});
  }

  // Whether there is an argument, and it is not none.
  static bool given(const std::vector<object>& a, std::size_t i) {
    return i < a.size() && !a[i].is<undefined>() && !a[i].is<std::nullptr_t>();
  }
  static const std::string& text_argument(context& x, const std::vector<object>& a, std::size_t i) {
    if (i >= a.size() || a[i].text() == nullptr) fail(x, "expected a string as argument");
    return *a[i].text();
  }

  static object method(context& x, const object& v, const std::string& name, const std::vector<object>& a) {
    if (v.text() != nullptr) return text_method(x, *v.text(), name, a);
    if (const container* c = v.mapping()) {
      if (name == "get") {
        const object* item = find(x, *c, text_argument(x, a, 0));
        return item != nullptr ? *item : a.size() > 1 ? a[1] : object{nullptr};
      }
      if (name == "items" || name == "keys" || name == "values") {
        std::vector<object> list;
        for (std::size_t i = 0; i < c->items.size(); ++i) {
          if (name == "values") {
            push(x, list, c->items[i]);
            continue;
          }
          const object key = text(x, c->keys[i]);
          push(x, list, name == "keys" ? key : made(x, {{key, c->items[i]}}));
        }
        return made(x, {std::move(list)});
      }
    }
    fail(x, "the method \"" + name + "\" is not supported here");
  }

  static object text_method(context& x, const std::string& s, const std::string& name, const std::vector<object>& a) {
    spend(x, s.size());
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
      const std::string_view characters = given(a, 0) ? std::string_view(text_argument(x, a, 0)) : white_space;
      spend(x, s.size() * (characters.size() / 32));
      return text(x, strip_characters(s, characters, name != "rstrip", name != "lstrip"));
    }
    if (name == "startswith") return {s.starts_with(text_argument(x, a, 0))};
    if (name == "endswith") return {s.ends_with(text_argument(x, a, 0))};
    if (name == "upper") return text(x, map_ascii(s, std::toupper));
    if (name == "lower") return text(x, map_ascii(s, std::tolower));
    if (name == "replace") {
      return replaced(x, s, text_argument(x, a, 0), text_argument(x, a, 1), a.size() > 2 ? whole(x, a[2]) : -1);
    }
    if (name == "split") {
      const std::string separator = given(a, 0) ? text_argument(x, a, 0) : "";
      if (given(a, 0) && separator.empty()) fail(x, "split at an empty string");
      return split(x, s, separator, a.size() > 1 ? whole(x, a[1]) : -1);
    }
    fail(x, "the method \"" + name + "\" is not supported here");
  }

  static object filter(context& x, const object& v, const std::string& name, const std::vector<object>& a) {
    if (name == "default" || name == "d") {
      const bool missing = v.is<undefined>() || (a.size() > 1 && truth(a[1]) && !truth(v));
      return !missing ? v : a.empty() || a[0].is<undefined>() ? text(x, "") : a[0];
    }
    if (name == "trim") return text_method(x, to_text(x, v), "strip", a);
    if (name == "upper" || name == "lower" || name == "replace") return text_method(x, to_text(x, v), name, a);
    if (name == "string") return text(x, to_text(x, v));
    if (name == "items") return method(x, v, name, a);
    if (name == "tojson") {
      if (given(a, 0) && truth(a[0])) fail(x, "tojson with ensure_ascii is not supported");
      const std::int64_t indent = given(a, 1) ? whole(x, a[1]) : -1;
      if (indent > 16) fail(x, "tojson with an indent of more than 16 is not supported");
      std::string out;
      write_json(x, out, v, static_cast<int>(indent), 0);
      return text(x, std::move(out));
    }
    if (name == "safe") return v;
    if (name == "length" || name == "count") return {static_cast<std::int64_t>(length(x, v))};
    if (name == "list") return {elements(x, v)};
    if (name == "first" || name == "last") {
      const bool whole = v.text() != nullptr;  // its characters need no list
      return member(x, whole ? v : object{elements(x, v)}, object{std::int64_t{name == "first" ? 0 : -1}});
    }
    if (name == "join") {
      std::string out;
      const auto list = elements(x, v);
      for (const object& item : list->items) {
        if (&item != list->items.data() && !a.empty()) append(x, out, text_argument(x, a, 0));
        append(x, out, to_text(x, item));
        spend(x, token_work);
      }
      return text(x, std::move(out));
    }
    if (name == "selectattr" || name == "rejectattr") {
      std::vector<object> kept;
      const auto list = elements(x, v);
      for (const object& item : list->items) {
        if (chosen(x, item, a) == (name == "selectattr")) push(x, kept, item);
      }
      return made(x, {std::move(kept)});
    }
    fail(x, "the filter \"" + name + "\" is not supported");
  }

  // Whether selectattr keeps an item: its arguments are the attribute's name, a test, and what the test compares with.
  static bool chosen(context& x, const object& item, const std::vector<object>& a) {
    spend(x, token_work);
    if (text_argument(x, a, 0).find('.') != std::string::npos)
      fail(x, "attributes of attributes are not supported here");
    const object attribute = member(x, item, a[0]);
    if (a.size() == 1) return truth(attribute);
    const std::string& how = text_argument(x, a, 1);
    if (a.size() == 2) return test(x, attribute, how);
    if (how != "equalto" && how != "==") fail(x, "the test \"" + how + "\" is not supported here");
    return equal(x, attribute, a[2]);
  }

  // As Python's json.dumps writes it: ", " and ": " between items, or a line for each, `indent` spaces a level.
  static void write_json(context& x, std::string& out, const object& v, int indent, int level) {
    const auto quoted = [&](const std::string& s) {
      spend(x, s.size());
      append(x, out, value(s).dump(-1, ' ', false, value::error_handler_t::replace));
    };
    spend(x, token_work);
    if (v.is<undefined>()) fail(x, "tojson of an undefined value");
    if (v.text() != nullptr) return quoted(*v.text());
    if (v.is<std::nullptr_t>()) return append(x, out, "null");
    if (v.is<bool>()) return append(x, out, truth(v) ? "true" : "false");
    const auto* c = v.at<const container>();
    if (c == nullptr) return append(x, out, to_text(x, v));
    const auto new_line = [&](int deep) {
      if (indent >= 0) append(x, out, "\n" + std::string(static_cast<std::size_t>(indent * deep), ' '));
    };
    append(x, out, c->mapping ? "{" : "[");
    for (std::size_t i = 0; i < c->items.size(); ++i) {
      if (i > 0) append(x, out, indent < 0 ? ", " : ",");
      new_line(level + 1);
      if (c->mapping) {
        quoted(c->keys[i]);
        append(x, out, ": ");
      }
      write_json(x, out, c->items[i], indent, level + 1);
    }
    if (!c->items.empty()) new_line(level);
    append(x, out, c->mapping ? "}" : "]");
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
