// The part of Jinja2 that published chat templates are written in.
//
// Text, {{ expressions }}, {# comments #}, {% if / elif / else %}, {% for x in list if … %} with `loop`, {% set %} with
// namespaces, whitespace control (trim_blocks and lstrip_blocks as transformers sets them); literals, operators,
// conditional expressions, subscripts and slices, the tests, filters, methods and functions listed in the code. Anything
// else is refused with the template's line, never passed over; but letters beyond ASCII keep their case. Work, memory,
// nesting and output are bounded, since templates come with models and may be hostile.
// Source: Jinja2's template designer documentation; the chat templates of transformers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "jinja/lexer.hpp"
#include "jinja/runtime.hpp"

MOTE_BEGIN_NAMESPACE

class jinja_template : detail::jinja_lexer, detail::jinja_runtime {
 public:
  using value = nlohmann::ordered_json;  // of variables

  // Throws format_error naming `where` and the line of what is malformed or not supported.
  jinja_template(std::string source, std::string where) : jinja_lexer(std::move(source), std::move(where)) {
    std::string end;
    body_ = parse_body({}, end);
  }
  jinja_template(const jinja_template&) = delete;  // statements refer to the object
  jinja_template& operator=(const jinja_template&) = delete;

  // Throws format_error likewise for what goes wrong in use, raise_exception included.
  std::string render(const value& variables) const {
    context x{.where = where()};
    x.scopes.emplace_back();
    for (const auto& [name, v] : variables.items()) x.scopes.back()[name] = from_json(x, v);
    run(body_, x);
    return std::move(x.out);
  }

 private:
  using jinja_lexer::fail;
  using jinja_runtime::fail;

  using expression = std::function<object(context&)>;
  using suffix = std::function<object(context&, const object&)>;
  using statement = std::function<void(context&)>;
  using body = std::vector<statement>;

  struct arguments {
    std::vector<expression> positional;
    std::vector<std::pair<std::string, expression>> named;
  };

  // --- Blocks ----------------------------------------------------------------------------------------------------------

  // Statements up to a block tag that begins with one of `ends`; `end` receives it, its tokens remain to be read.
  body parse_body(const std::vector<std::string>& ends, std::string& end) {
    if (++depth_ > deepest) fail("nested too deeply");
    body statements;
    while (next_ < chunks_.size()) {
      const chunk& c = chunks_[next_++];
      line_ = c.line;
      if (c.what == chunk::kind::text) {
        statements.push_back([&c](context& x) {
          x.line = c.line;
          append(x, x.out, c.text);
        });
        continue;
      }
      lex(c.text);
      if (c.what == chunk::kind::output) {
        expression e = parse_expression();
        expect_end();
        statements.push_back([e = std::move(e)](context& x) { append(x, x.out, to_text(x, e(x))); });
        continue;
      }
      const std::string name = expect_name();
      if (std::find(ends.begin(), ends.end(), name) != ends.end()) {
        end = name;
        --depth_;
        return statements;
      }
      if (name == "if") {
        statements.push_back(parse_if());
      } else if (name == "for") {
        statements.push_back(parse_for());
      } else if (name == "set") {
        statements.push_back(parse_set());
      } else if (name == "generation" || name == "endgeneration") {
        expect_end();  // marks the assistant's text for training
      } else {
        fail("the block \"" + name + "\" is not supported");
      }
    }
    if (!ends.empty()) fail("expected {% " + ends.back() + " %} before the end");
    --depth_;
    return statements;
  }

  statement parse_if() {
    std::vector<std::pair<expression, body>> branches;
    body otherwise;
    std::string end = "elif";
    while (end == "elif") {
      expression condition = parse_expression();
      expect_end();
      body then = parse_body({"elif", "else", "endif"}, end);
      branches.emplace_back(std::move(condition), std::move(then));
    }
    if (end == "else") {
      expect_end();
      otherwise = parse_body({"endif"}, end);
    }
    expect_end();
    return [branches = std::move(branches), otherwise = std::move(otherwise)](context& x) {
      for (const auto& [condition, then] : branches) {
        if (truth(condition(x))) return run(then, x);
      }
      run(otherwise, x);
    };
  }

  statement parse_for() {
    std::vector<std::string> names = {expect_name()};
    while (take_op(",")) names.push_back(expect_name());
    if (!take_name("in")) fail("expected \"in\"");
    expression list = parse_or(), filter;
    if (take_name("if")) filter = parse_expression();
    expect_end();
    const std::size_t line = line_;
    std::string end;
    body each = parse_body({"else", "endfor"}, end), otherwise;
    if (end == "else") {
      expect_end();
      otherwise = parse_body({"endfor"}, end);
    }
    expect_end();
    return [line, names = std::move(names), list = std::move(list), filter = std::move(filter), each = std::move(each),
            otherwise = std::move(otherwise)](context& x) {
      auto all = elements(x, list(x));
      x.scopes.emplace_back();
      // Each item has a scope of its own: what is set for one does not reach the next.
      const auto bind = [&](const object& item) {
        x.line = line;
        spend(x, element_work);
        x.scopes.back().clear();
        if (names.size() == 1) {
          x.scopes.back()[names[0]] = item;
          return;
        }
        const container* parts = item.list();
        if (parts == nullptr || parts->items.size() != names.size())
          fail(x, "an item does not unpack into the loop's names");
        for (std::size_t i = 0; i < names.size(); ++i) x.scopes.back()[names[i]] = parts->items[i];
      };
      if (filter) {
        std::vector<object> kept;
        for (const object& item : all->items) {
          bind(item);
          if (truth(filter(x))) push(x, kept, item);
        }
        all = std::make_shared<const container>(container{std::move(kept)});
      }
      for (std::size_t i = 0; i < all->items.size(); ++i) {
        bind(all->items[i]);
        x.scopes.back()["loop"] = loop_state(x, all->items, i);
        run(each, x);
      }
      x.scopes.back().clear();
      if (all->items.empty()) run(otherwise, x);
      x.scopes.pop_back();
    };
  }

  static object loop_state(context& x, const std::vector<object>& items, std::size_t i) {
    const auto number = [](std::size_t n) { return object{static_cast<std::int64_t>(n)}; };
    const std::size_t n = items.size();
    container loop{
        {number(i + 1), number(i), object{i == 0}, object{i + 1 == n}, number(n), number(n - i), number(n - i - 1)},
        true,
        {"index", "index0", "first", "last", "length", "revindex", "revindex0"}};
    if (i > 0) put(x, loop, "previtem", items[i - 1]);
    if (i + 1 < n) put(x, loop, "nextitem", items[i + 1]);
    return made(x, std::move(loop));
  }

  statement parse_set() {
    std::string name = expect_name(), attribute;
    if (take_op(".")) attribute = expect_name();
    expect_op("=");
    expression e = parse_expression();
    expect_end();
    return [name = std::move(name), attribute = std::move(attribute), e = std::move(e)](context& x) {
      object v = e(x);
      if (attribute.empty()) {
        x.scopes.back()[name] = std::move(v);
        return;
      }
      space* const target = variable(x, name).at<space>();
      if (target == nullptr) fail(x, "\"" + name + "\" is no namespace");
      check_member(x, v);
      target->attributes[attribute] = std::move(v);
    };
  }

  // --- Expressions -----------------------------------------------------------------------------------------------------

  expression parse_expression() {
    if (++depth_ > deepest) fail("nested too deeply");
    expression e = parse_or();
    if (take_name("if")) {
      expression condition = parse_or(), otherwise;
      if (take_name("else")) otherwise = parse_expression();
      e = [e = std::move(e), condition = std::move(condition), otherwise = std::move(otherwise)](context& x) {
        if (truth(condition(x))) return e(x);
        return otherwise ? otherwise(x) : object{};
      };
    }
    --depth_;
    return e;
  }

  // Everything that is evaluated stands in such an expression, so that work is counted here.
  expression parse_or() {
    const std::size_t begin = position_;
    expression e = parse_logic("or", true, &jinja_template::parse_and);
    std::size_t work = 0;
    for (std::size_t i = begin; i < position_; ++i) work += token_work + tokens_[i].text.size();
    return [e = std::move(e), work, line = line_](context& x) {
      x.line = line;
      spend(x, work);
      return e(x);
    };
  }
  expression parse_and() { return parse_logic("and", false, &jinja_template::parse_not); }

  // The first operand whose truth decides, else the last one.
  expression parse_logic(const char* name, bool decides, expression (jinja_template::*operand)()) {
    std::vector<expression> operands;
    do operands.push_back((this->*operand)());
    while (take_name(name));
    if (operands.size() == 1) return std::move(operands[0]);
    return [operands = std::move(operands), decides](context& x) {
      object v;
      for (const expression& e : operands) {
        v = e(x);
        if (truth(v) == decides) break;
      }
      return v;
    };
  }

  expression parse_not() {
    if (!take_name("not")) return parse_comparison();
    if (++depth_ > deepest) fail("nested too deeply");
    expression e = parse_not();
    --depth_;
    return [e = std::move(e)](context& x) { return object{!truth(e(x))}; };
  }

  // As in Python, a < b < c means a < b and b < c.
  expression parse_comparison() {
    expression first = parse_sum();
    std::vector<std::pair<std::string, expression>> rest;
    for (std::string op = take_comparison(); !op.empty(); op = take_comparison()) rest.emplace_back(op, parse_sum());
    if (rest.empty()) return first;
    return [first = std::move(first), rest = std::move(rest)](context& x) {
      object left = first(x);
      for (const auto& [op, e] : rest) {
        object right = e(x);
        if (!compare(x, op, left, right)) return object{false};
        left = std::move(right);
      }
      return object{true};
    };
  }

  std::string take_comparison() {
    for (const char* op : {"==", "!=", "<", "<=", ">", ">="}) {
      if (take_op(op)) return op;
    }
    if (take_name("in")) return "in";
    if (!at(token::kind::name, "not") || peek(1).what != token::kind::name || peek(1).text != "in") return "";
    position_ += 2;
    return "not in";
  }

  expression parse_sum() { return parse_arithmetic({"+", "-"}, &jinja_template::parse_concatenation); }
  expression parse_product() { return parse_arithmetic({"*", "/", "//", "%"}, &jinja_template::parse_unary); }

  expression parse_arithmetic(std::initializer_list<std::string_view> ops, expression (jinja_template::*operand)()) {
    expression first = (this->*operand)();
    std::vector<std::pair<std::string, expression>> rest;
    while (peek().what == token::kind::op && std::find(ops.begin(), ops.end(), peek().text) != ops.end()) {
      std::string op = tokens_[position_++].text;
      rest.emplace_back(std::move(op), (this->*operand)());
    }
    if (rest.empty()) return first;
    return [first = std::move(first), rest = std::move(rest)](context& x) {
      object result = first(x);
      for (const auto& [op, e] : rest) result = arithmetic(x, op, result, e(x));
      return result;
    };
  }

  expression parse_concatenation() {
    std::vector<expression> parts;
    do parts.push_back(parse_product());
    while (take_op("~"));
    if (parts.size() == 1) return std::move(parts[0]);
    return [parts = std::move(parts)](context& x) {
      std::string out;
      for (const expression& e : parts) append(x, out, to_text(x, e(x)));
      return text(x, std::move(out));
    };
  }

  expression parse_unary() { return parse_filters(parse_negative()); }

  expression parse_negative() {
    if (!take_op("-")) return parse_postfix(parse_primary());
    if (++depth_ > deepest) fail("nested too deeply");
    expression e = parse_negative();
    --depth_;
    return [e = std::move(e)](context& x) { return arithmetic(x, "-", object{std::int64_t{0}}, e(x)); };
  }

  expression parse_primary() {
    const token t = peek();
    ++position_;
    if (t.what == token::kind::text) {
      std::string text = t.text;
      while (peek().what == token::kind::text) text += tokens_[position_++].text;
      return constant(object{std::make_shared<const std::string>(std::move(text))});
    }
    if (t.what == token::kind::number) {
      const bool whole = t.text.find('.') == std::string::npos;
      return constant(whole ? object{std::int64_t{std::stoll(t.text)}} : object{std::stod(t.text)});
    }
    if (t.what == token::kind::name) {
      if (t.text == "true" || t.text == "True") return constant(object{true});
      if (t.text == "false" || t.text == "False") return constant(object{false});
      if (t.text == "none" || t.text == "None") return constant(object{nullptr});
      if (at(token::kind::op, "(")) return parse_function(t.text);
      return [name = t.text](context& x) { return variable(x, name); };
    }
    if (t.text == "(") {
      expression e = parse_expression();
      expect_op(")");
      return e;
    }
    if (t.text == "[") {
      std::vector<expression> items;
      while (!take_op("]")) {
        items.push_back(parse_expression());
        if (!take_op(",") && !at(token::kind::op, "]")) fail("expected \",\" or \"]\"");
      }
      return [items = std::move(items)](context& x) {
        std::vector<object> list;
        for (const expression& item : items) push(x, list, item(x));
        return made(x, {std::move(list)});
      };
    }
    if (t.text == "{") {
      std::vector<std::pair<expression, expression>> items;
      while (!take_op("}")) {
        expression key = parse_expression();
        expect_op(":");
        items.emplace_back(std::move(key), parse_expression());
        if (!take_op(",") && !at(token::kind::op, "}")) fail("expected \",\" or \"}\"");
      }
      return [items = std::move(items)](context& x) {
        container mapping{{}, true};
        for (const auto& [key, item] : items) {
          const std::string name = to_text(x, key(x));
          put(x, mapping, name, item(x));
        }
        return made(x, std::move(mapping));
      };
    }
    fail("unexpected \"" + t.text + "\"");
  }

  static expression constant(object v) {
    return [v = std::move(v)](context&) { return v; };
  }

  expression parse_postfix(expression e) {
    std::vector<suffix> suffixes;
    for (;;) {
      if (take_op("[")) {
        suffixes.push_back(parse_subscript());
      } else if (take_op(".")) {
        std::string name = expect_name();
        if (at(token::kind::op, "(")) {
          suffixes.push_back([name, a = in_order(parse_arguments(), name)](context& x, const object& v) {
            return method(x, v, name, evaluate(a, x));
          });
        } else {
          suffixes.push_back([key = object{std::make_shared<const std::string>(std::move(name))}](
                                 context& x, const object& v) { return member(x, v, key); });
        }
      } else {
        return with_suffixes(std::move(e), std::move(suffixes));
      }
    }
  }

  expression parse_filters(expression e) {
    std::vector<suffix> suffixes;
    for (;;) {
      if (take_op("|")) {
        std::string name = expect_name();
        arguments a;
        if (at(token::kind::op, "(")) a = parse_arguments();
        suffixes.push_back([name, a = in_order(std::move(a), name)](context& x, const object& v) {
          return filter(x, v, name, evaluate(a, x));
        });
      } else if (take_name("is")) {
        const bool negated = take_name("not");
        suffixes.push_back([negated, name = expect_name()](context& x, const object& v) {
          return object{test(x, v, name) != negated};
        });
      } else {
        return with_suffixes(std::move(e), std::move(suffixes));
      }
    }
  }

  static expression with_suffixes(expression e, std::vector<suffix> suffixes) {
    if (suffixes.empty()) return e;
    return [e = std::move(e), suffixes = std::move(suffixes)](context& x) {
      object v = e(x);
      for (const suffix& s : suffixes) v = s(x, v);
      return v;
    };
  }

  suffix parse_subscript() {
    expression first, last, step;
    if (!at(token::kind::op, ":")) first = parse_expression();
    if (take_op("]")) {
      return [first = std::move(first)](context& x, const object& v) { return member(x, v, first(x)); };
    }
    expect_op(":");
    if (!at(token::kind::op, "]") && !at(token::kind::op, ":")) last = parse_expression();
    if (take_op(":") && !at(token::kind::op, "]")) step = parse_expression();
    expect_op("]");
    return [first = std::move(first), last = std::move(last), step = std::move(step)](context& x, const object& v) {
      const auto bound = [&](const expression& e) { return e ? e(x) : object{nullptr}; };
      const object from = bound(first), to = bound(last);
      return slice(x, v, from, to, bound(step));
    };
  }

  arguments parse_arguments() {
    arguments a;
    expect_op("(");
    while (!take_op(")")) {
      if (peek().what == token::kind::name && peek(1).what == token::kind::op && peek(1).text == "=") {
        const std::string name = expect_name();
        expect_op("=");
        a.named.emplace_back(name, parse_expression());
      } else {
        a.positional.push_back(parse_expression());
      }
      if (!take_op(",") && !at(token::kind::op, ")")) fail("expected \",\" or \")\"");
    }
    return a;
  }

  // The arguments of the function, method or filter `of` in the order of its parameters. A name that is not known is refused
  // in use, if it comes to that.
  std::vector<expression> in_order(arguments a, const std::string& of) const {
    static const std::map<std::string_view, std::vector<std::string_view>> parameters = {
        {"range", {"", "", ""}},  // which have no names
        {"raise_exception", {"message"}},
        {"get", {"", ""}},
        {"items", {}},
        {"keys", {}},
        {"values", {}},
        {"strip", {""}},
        {"lstrip", {""}},
        {"rstrip", {""}},
        {"startswith", {""}},
        {"endswith", {""}},
        {"upper", {}},
        {"lower", {}},
        {"replace", {"old", "new", "count"}},
        {"split", {"sep", "maxsplit"}},
        {"default", {"default_value", "boolean"}},
        {"d", {"default_value", "boolean"}},
        {"trim", {"chars"}},
        {"string", {}},
        {"tojson", {"ensure_ascii", "indent"}},
        {"safe", {}},
        {"length", {}},
        {"count", {}},
        {"list", {}},
        {"first", {}},
        {"last", {}},
        {"join", {"d"}},
        {"selectattr", {"", "", ""}},
        {"rejectattr", {"", "", ""}}};
    const auto found = parameters.find(of);
    if (found == parameters.end()) return {};
    const std::vector<std::string_view>& names = found->second;
    std::vector<expression> ordered = std::move(a.positional);
    if (ordered.size() > names.size()) fail(of + " with so many arguments is not supported");
    for (auto& [name, e] : a.named) {
      const auto i = static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
      if (i == names.size() || (i < ordered.size() && ordered[i])) {
        fail("the argument \"" + name + "\" of " + of + " is not supported");
      }
      ordered.resize(std::max(ordered.size(), i + 1));
      ordered[i] = std::move(e);
    }
    return ordered;
  }

  expression parse_function(const std::string& name) {
    arguments written = parse_arguments();
    if (name == "namespace") {
      if (!written.positional.empty()) fail("namespace takes names with values only");
      return [a = std::move(written)](context& x) {
        const auto made = std::make_shared<space>();
        for (const auto& [key, e] : a.named) check_member(x, made->attributes[key] = e(x));
        return object{made};
      };
    }
    std::vector<expression> in_use = in_order(std::move(written), name);
    if (name == "raise_exception") {
      return [a = std::move(in_use)](context& x) -> object {
        const auto v = evaluate(a, x);
        fail(x, v.empty() ? "the template refuses these messages" : to_text(x, v[0]));
      };
    }
    if (name == "range") {
      return [a = std::move(in_use)](context& x) {
        const auto v = evaluate(a, x);
        if (v.empty()) fail(x, "range takes 1 to 3 numbers");
        const std::int64_t begin = v.size() > 1 ? whole(x, v[0]) : 0, end = whole(x, v[v.size() > 1 ? 1 : 0]);
        const std::int64_t step = v.size() > 2 ? whole(x, v[2]) : 1;
        if (step == 0) fail(x, "range with a step of 0");
        std::vector<object> list;
        for (std::int64_t i = begin; step > 0 ? i < end : i > end; i += step) push(x, list, object{i});
        return made(x, {std::move(list)});
      };
    }
    fail("the function \"" + name + "\" is not supported");
  }

  // --- Running ---------------------------------------------------------------------------------------------------------

  static void run(const body& statements, context& x) {
    for (const statement& s : statements) s(x);
  }

  static object variable(const context& x, const std::string& name) {
    for (auto scope = x.scopes.rbegin(); scope != x.scopes.rend(); ++scope) {
      if (const auto it = scope->find(name); it != scope->end()) return it->second;
    }
    return {};
  }

  // Arguments' values, undefined those left out before others.
  static std::vector<object> evaluate(const std::vector<expression>& in_use, context& x) {
    std::vector<object> values;
    for (const expression& e : in_use) values.push_back(e ? e(x) : object{});
    return values;
  }

  std::size_t next_ = 0;  // chunk
  int depth_ = 0;
  body body_;
};

MOTE_END_NAMESPACE
