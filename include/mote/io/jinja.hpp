// The part of Jinja2 that published chat templates are written in.
//
// Text, {{ expressions }}, {# comments #}, {% if / elif / else %}, {% for x in list if … %} with `loop`, {% set %} with
// namespaces, whitespace control (trim_blocks and lstrip_blocks as transformers sets them); literals, operators,
// conditional expressions, subscripts and slices, the tests, filters, methods and functions listed in the code. Anything
// else is refused with the template's line, never passed over. Loops, nesting and output are bounded, since templates come
// with models and may be hostile.
// Source: Jinja2's template designer documentation; the chat templates of transformers.
#pragma once

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

class jinja_template {
 public:
  // Values are JSON; a discarded value stands for an undefined one.
  using value = nlohmann::ordered_json;

  // Throws format_error naming `where` and the line of what is malformed or not supported.
  jinja_template(std::string source, std::string where) : source_(std::move(source)), where_(std::move(where)) {
    if (source_.ends_with('\n')) source_.pop_back();  // as Jinja2 does, unless told to keep it
    tokenize();
    std::string end;
    body_ = parse_body({}, end);
  }
  jinja_template(const jinja_template&) = delete;  // statements refer to the object
  jinja_template& operator=(const jinja_template&) = delete;

  // Throws format_error likewise for what goes wrong in use, raise_exception included.
  std::string render(const value& variables) const {
    context c;
    c.scopes.push_back({});
    for (const auto& [name, v] : variables.items()) c.scopes.back()[name] = v;
    try {
      run(body_, c);
    } catch (const value::exception& e) {
      raise<format_error>(where_ + ": " + e.what());
    }
    return std::move(c.out);
  }

 private:
  struct context {
    std::vector<std::map<std::string, value>> scopes;
    std::string out;
    std::size_t steps = 0;
  };
  using expression = std::function<value(context&)>;
  using statement = std::function<void(context&)>;
  using body = std::vector<statement>;

  struct chunk {
    enum class kind { text, output, block } what;
    std::string text;
    std::size_t line;
  };
  struct token {
    enum class kind { end, name, number, text, op } what;
    std::string text;
  };
  struct arguments {
    std::vector<expression> positional;
    std::vector<std::pair<std::string, expression>> named;
  };

  static constexpr std::size_t most_steps = 1'000'000, most_output = std::size_t{16} << 20;
  static constexpr int deepest = 100;

  [[noreturn]] void fail(std::size_t line, const std::string& message) const {
    raise<format_error>(where_ + ": line " + std::to_string(line) + ": " + message);
  }
  [[noreturn]] void fail(const std::string& message) const { fail(line_, message); }

  // --- Text and tags ---------------------------------------------------------------------------------------------------

  void tokenize() {
    std::size_t i = 0, line = 1;
    bool trim_next = false;  // a tag ended in "-"
    const auto count = [&](std::string_view s) {
      line += static_cast<std::size_t>(std::count(s.begin(), s.end(), '\n'));
    };
    while (i < source_.size()) {
      std::size_t open = i;
      while (open < source_.size() && !(source_[open] == '{' && open + 1 < source_.size() &&
                                        std::string_view("{%#").find(source_[open + 1]) != std::string_view::npos)) {
        ++open;
      }
      std::string text = source_.substr(i, open - i);
      const bool tag = open < source_.size();
      const char kind = tag ? source_[open + 1] : '\0';
      if (trim_next) text.erase(0, std::min(text.find_first_not_of(" \t\r\n"), text.size()));
      const bool dash = tag && open + 2 < source_.size() && source_[open + 2] == '-';
      if (dash) {
        text.erase(text.find_last_not_of(" \t\r\n") + 1);
      } else if (tag && kind != '{') {  // lstrip_blocks: spaces from the line's start up to a block
        const std::size_t last = text.find_last_not_of(" \t");
        const bool at_start = last == std::string::npos ? i == 0 || source_[i - 1] == '\n' : text[last] == '\n';
        if (at_start) text.erase(last == std::string::npos ? 0 : last + 1);
      }
      if (!text.empty()) chunks_.push_back({chunk::kind::text, text, line});
      count(std::string_view(source_).substr(i, open - i));
      if (!tag) break;

      const std::string close = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
      const std::size_t end = find_close(open + 2, close, kind == '#');
      if (end == std::string::npos) fail(line, std::string("{") + kind + " is not closed");
      std::size_t begin = open + (dash ? 3 : 2), stop = end;
      trim_next = stop > begin && source_[stop - 1] == '-';
      if (trim_next) --stop;
      if (kind != '#') {
        chunks_.push_back(
            {kind == '{' ? chunk::kind::output : chunk::kind::block, source_.substr(begin, stop - begin), line});
      }
      count(std::string_view(source_).substr(open, end + 2 - open));
      i = end + 2;
      if (kind != '{' && !trim_next && i < source_.size() && source_[i] == '\n') {  // trim_blocks
        ++i;
        ++line;
      }
    }
  }

  // Where a tag ends; strings may hold what looks like its end.
  std::size_t find_close(std::size_t i, const std::string& close, bool comment) const {
    char quote = '\0';
    for (; i < source_.size(); ++i) {
      if (quote != '\0') {
        if (source_[i] == '\\')
          ++i;
        else if (source_[i] == quote)
          quote = '\0';
      } else if (source_.compare(i, 2, close) == 0) {
        return i;
      } else if (!comment && (source_[i] == '\'' || source_[i] == '"')) {
        quote = source_[i];
      }
    }
    return std::string::npos;
  }

  // --- Expressions' tokens ---------------------------------------------------------------------------------------------

  void lex(const std::string& text) {
    tokens_.clear();
    position_ = 0;
    for (std::size_t i = 0; i < text.size();) {
      const auto c = static_cast<unsigned char>(text[i]);
      if (std::isspace(c)) {
        ++i;
      } else if (std::isalpha(c) || c == '_') {
        std::size_t end = i;
        while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_')) ++end;
        tokens_.push_back({token::kind::name, text.substr(i, end - i)});
        i = end;
      } else if (std::isdigit(c)) {
        std::size_t end = i;
        while (end < text.size() && std::isdigit(static_cast<unsigned char>(text[end]))) ++end;
        if (end + 1 < text.size() && text[end] == '.' && std::isdigit(static_cast<unsigned char>(text[end + 1]))) {
          for (++end; end < text.size() && std::isdigit(static_cast<unsigned char>(text[end]));) ++end;
        }
        if (end - i > 18) fail("a number of too many digits");
        tokens_.push_back({token::kind::number, text.substr(i, end - i)});
        i = end;
      } else if (c == '\'' || c == '"') {
        std::string content;
        std::size_t end = i + 1;
        for (; end < text.size() && text[end] != text[i]; ++end) {
          if (text[end] != '\\' || end + 1 == text.size()) {
            content += text[end];
            continue;
          }
          const char escaped = text[++end];
          const std::size_t known = std::string_view("ntr\\'\"").find(escaped);
          if (known == std::string_view::npos) fail(std::string("the escape \\") + escaped + " is not supported");
          content += "\n\t\r\\'\""[known];
        }
        if (end == text.size()) fail("a string is not closed");
        tokens_.push_back({token::kind::text, content});
        i = end + 1;
      } else {
        std::string op(1, text[i]);
        if (i + 1 < text.size()) {
          for (const char* two : {"==", "!=", "<=", ">=", "//"}) {
            if (text.compare(i, 2, two) == 0) op = two;
          }
        }
        if (op.size() == 1 && std::string_view("+-*/%~<>=()[]{}.,:|").find(text[i]) == std::string_view::npos) {
          fail("unexpected character \"" + op + "\"");
        }
        tokens_.push_back({token::kind::op, op});
        i += op.size();
      }
    }
  }

  const token& peek(std::size_t ahead = 0) const {
    static const token end{token::kind::end, "the end of the tag"};
    return position_ + ahead < tokens_.size() ? tokens_[position_ + ahead] : end;
  }
  bool at(token::kind what, std::string_view text) const { return peek().what == what && peek().text == text; }
  bool take(token::kind what, std::string_view text) {
    if (!at(what, text)) return false;
    ++position_;
    return true;
  }
  bool take_op(std::string_view text) { return take(token::kind::op, text); }
  bool take_name(std::string_view text) { return take(token::kind::name, text); }
  void expect_op(std::string_view text) {
    if (!take_op(text)) fail("expected \"" + std::string(text) + "\", got \"" + peek().text + "\"");
  }
  std::string expect_name() {
    if (peek().what != token::kind::name) fail("expected a name, got \"" + peek().text + "\"");
    return tokens_[position_++].text;
  }
  void expect_end() const {
    if (position_ < tokens_.size()) fail("unexpected \"" + peek().text + "\"");
  }

  // --- Blocks ----------------------------------------------------------------------------------------------------------

  // Statements up to a block tag that begins with one of `ends`; `end` receives it, its tokens remain to be read.
  body parse_body(const std::vector<std::string>& ends, std::string& end) {
    if (++depth_ > deepest) fail("nested too deeply");
    body statements;
    while (next_ < chunks_.size()) {
      const chunk& c = chunks_[next_++];
      line_ = c.line;
      if (c.what == chunk::kind::text) {
        statements.push_back([this, text = c.text, line = c.line](context& x) { write(x, text, line); });
        continue;
      }
      lex(c.text);
      if (c.what == chunk::kind::output) {
        expression e = parse_expression();
        expect_end();
        statements.push_back([this, e, line = c.line](context& x) { write(x, to_text(e(x), line), line); });
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
    return [this, branches = std::move(branches), otherwise = std::move(otherwise)](context& x) {
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
    expression list = parse_or();
    expression filter;
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
    return [=, this, each = std::move(each), otherwise = std::move(otherwise)](context& x) {
      value items = iterable(list(x), line);
      const auto bind = [&](const value& item) {
        if (names.size() == 1) {
          x.scopes.back()[names[0]] = item;
          return;
        }
        if (!item.is_array() || item.size() != names.size())
          fail(line, "an item does not unpack into the loop's names");
        for (std::size_t i = 0; i < names.size(); ++i) x.scopes.back()[names[i]] = item[i];
      };
      x.scopes.emplace_back();
      if (filter) {
        value kept = value::array();
        for (const value& item : items) {
          bind(item);
          if (truth(filter(x))) kept.push_back(item);
        }
        items = std::move(kept);
      }
      for (std::size_t i = 0; i < items.size(); ++i) {
        if (++x.steps > most_steps) fail(line, "the loops run too long");
        bind(items[i]);
        value loop = {{"index", i + 1},
                      {"index0", i},
                      {"first", i == 0},
                      {"last", i + 1 == items.size()},
                      {"length", items.size()},
                      {"revindex", items.size() - i},
                      {"revindex0", items.size() - i - 1}};
        if (i > 0) loop["previtem"] = items[i - 1];
        if (i + 1 < items.size()) loop["nextitem"] = items[i + 1];
        x.scopes.back()["loop"] = std::move(loop);
        run(each, x);
      }
      x.scopes.pop_back();
      if (items.empty()) run(otherwise, x);
    };
  }

  statement parse_set() {
    const std::string name = expect_name();
    std::string attribute;
    if (take_op(".")) attribute = expect_name();
    expect_op("=");
    expression e = parse_expression();
    expect_end();
    return [this, name, attribute, e, line = line_](context& x) {
      value v = e(x);
      if (attribute.empty()) {
        x.scopes.back()[name] = std::move(v);
        return;
      }
      for (auto scope = x.scopes.rbegin(); scope != x.scopes.rend(); ++scope) {
        if (const auto it = scope->find(name); it != scope->end() && it->second.is_object()) {
          it->second[attribute] = std::move(v);
          return;
        }
      }
      fail(line, "\"" + name + "\" is no namespace");
    };
  }

  // --- Expressions -----------------------------------------------------------------------------------------------------

  expression parse_expression() {
    if (++depth_ > deepest) fail("nested too deeply");
    expression e = parse_or();
    while (take_name("if")) {
      expression condition = parse_or(), otherwise;
      if (take_name("else")) otherwise = parse_expression();
      e = [e, condition, otherwise](context& x) {
        if (truth(condition(x))) return e(x);
        return otherwise ? otherwise(x) : value(value::value_t::discarded);
      };
    }
    --depth_;
    return e;
  }

  expression parse_or() {
    expression left = parse_and();
    while (take_name("or")) {
      left = [left, right = parse_and()](context& x) {
        value v = left(x);
        return truth(v) ? v : right(x);
      };
    }
    return left;
  }

  expression parse_and() {
    expression left = parse_not();
    while (take_name("and")) {
      left = [left, right = parse_not()](context& x) {
        value v = left(x);
        return truth(v) ? right(x) : v;
      };
    }
    return left;
  }

  expression parse_not() {
    if (!take_name("not")) return parse_comparison();
    if (++depth_ > deepest) fail("nested too deeply");
    expression e = parse_not();
    --depth_;
    return [e](context& x) { return value(!truth(e(x))); };
  }

  expression parse_comparison() {
    expression left = parse_sum();
    for (;;) {
      const std::size_t line = line_;
      const bool negated = at(token::kind::name, "not") && peek(1).what == token::kind::name && peek(1).text == "in";
      if (negated) ++position_;
      if (take_name("in")) {
        left = [=, this, right = parse_sum()](context& x) {
          return value(contains(right(x), left(x), line) != negated);
        };
        continue;
      }
      const std::string op = peek().what == token::kind::op ? peek().text : "";
      if (op != "==" && op != "!=" && op != "<" && op != "<=" && op != ">" && op != ">=") return left;
      ++position_;
      left = [=, this, right = parse_sum()](context& x) {
        const value a = left(x), b = right(x);
        if (op == "==") return value(equal(a, b));
        if (op == "!=") return value(!equal(a, b));
        if (!((a.is_number() && b.is_number()) || (a.is_string() && b.is_string())))
          fail(line, "values that have no order");
        return value(op == "<" ? a < b : op == "<=" ? a <= b : op == ">" ? b < a : b <= a);
      };
    }
  }

  expression parse_sum() {
    expression left = parse_product();
    for (;;) {
      const std::string op = peek().what == token::kind::op ? peek().text : "";
      if (op != "+" && op != "-" && op != "~") return left;
      ++position_;
      left = [=, this, line = line_, right = parse_product()](context& x) {
        value a = left(x), b = right(x);
        if (op == "~") return value(limited(to_text(a, line) + to_text(b, line), line));
        if (op == "+" && a.is_string() && b.is_string())
          return value(limited(a.get<std::string>() + b.get<std::string>(), line));
        if (op == "+" && a.is_array() && b.is_array()) {
          for (value& item : b) a.push_back(std::move(item));
          return a;
        }
        return arithmetic(op, a, b, line);
      };
    }
  }

  expression parse_product() {
    expression left = parse_unary();
    for (;;) {
      const std::string op = peek().what == token::kind::op ? peek().text : "";
      if (op != "*" && op != "/" && op != "//" && op != "%") return left;
      ++position_;
      left = [=, this, line = line_, right = parse_unary()](context& x) {
        return arithmetic(op, left(x), right(x), line);
      };
    }
  }

  expression parse_unary() {
    if (take_op("-")) {
      if (++depth_ > deepest) fail("nested too deeply");
      expression e = parse_unary();
      --depth_;
      return [this, e, line = line_](context& x) { return arithmetic("-", value(0), e(x), line); };
    }
    return parse_postfix(parse_primary());
  }

  expression parse_primary() {
    const token t = peek();
    ++position_;
    if (t.what == token::kind::text) {
      std::string text = t.text;
      while (peek().what == token::kind::text) text += tokens_[position_++].text;
      return [text](context&) { return value(text); };
    }
    if (t.what == token::kind::number) {
      const bool whole = t.text.find('.') == std::string::npos;
      const value v = whole ? value(std::stoll(t.text)) : value(std::stod(t.text));
      return [v](context&) { return v; };
    }
    if (t.what == token::kind::name) {
      if (t.text == "true" || t.text == "True") return [](context&) { return value(true); };
      if (t.text == "false" || t.text == "False") return [](context&) { return value(false); };
      if (t.text == "none" || t.text == "None") return [](context&) { return value(nullptr); };
      if (at(token::kind::op, "(")) return parse_function(t.text);
      return [name = t.text](context& x) {
        for (auto scope = x.scopes.rbegin(); scope != x.scopes.rend(); ++scope) {
          if (const auto it = scope->find(name); it != scope->end()) return it->second;
        }
        return value(value::value_t::discarded);
      };
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
      return [items](context& x) {
        value list = value::array();
        for (const expression& item : items) list.push_back(item(x));
        return list;
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
      return [this, items, line = line_](context& x) {
        value object = value::object();
        for (const auto& [key, item] : items) object[to_text(key(x), line)] = item(x);
        return object;
      };
    }
    fail("unexpected \"" + t.text + "\"");
  }

  expression parse_postfix(expression e) {
    for (;;) {
      if (take_op(".")) {
        const std::string name = expect_name();
        if (at(token::kind::op, "(")) {
          e = [this, e, name, a = parse_arguments(), line = line_](context& x) {
            return method(e(x), name, evaluate(a, x, line), line);
          };
        } else {
          e = [this, e, name, line = line_](context& x) { return member(e(x), value(name), line); };
        }
      } else if (take_op("[")) {
        e = parse_subscript(std::move(e));
      } else if (take_op("|")) {
        const std::string name = expect_name();
        arguments a;
        if (at(token::kind::op, "(")) a = parse_arguments();
        e = [this, e, name, a, line = line_](context& x) { return filter(e(x), name, evaluate(a, x, line), line); };
      } else if (take_name("is")) {
        const bool negated = take_name("not");
        const std::string name = expect_name();
        e = [this, e, name, negated, line = line_](context& x) { return value(test(e(x), name, line) != negated); };
      } else {
        return e;
      }
    }
  }

  expression parse_subscript(expression e) {
    expression first, last, step;
    const bool slice_first = at(token::kind::op, ":");
    if (!slice_first) first = parse_expression();
    if (!take_op(":")) {
      expect_op("]");
      return [this, e, first, line = line_](context& x) { return member(e(x), first(x), line); };
    }
    if (!at(token::kind::op, "]") && !at(token::kind::op, ":")) last = parse_expression();
    if (take_op(":") && !at(token::kind::op, "]")) step = parse_expression();
    expect_op("]");
    return [this, e, first, last, step, line = line_](context& x) {
      return slice(e(x), first ? first(x) : value(), last ? last(x) : value(), step ? step(x) : value(1), line);
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

  expression parse_function(const std::string& name) {
    const arguments a = parse_arguments();
    const std::size_t line = line_;
    if (name == "namespace") {
      return [a](context& x) {
        value object = value::object();
        for (const auto& [key, e] : a.named) object[key] = e(x);
        return object;
      };
    }
    if (name == "raise_exception") {
      return [this, a, line](context& x) -> value {
        const auto v = evaluate(a, x, line);
        fail(line, v.empty() ? "the template refuses these messages" : to_text(v[0], line));
      };
    }
    if (name == "range") {
      return [this, a, line](context& x) {
        const auto v = evaluate(a, x, line);
        if (v.empty() || v.size() > 3) fail(line, "range takes 1 to 3 numbers");
        const std::int64_t begin = v.size() > 1 ? whole(v[0], line) : 0, end = whole(v[v.size() > 1 ? 1 : 0], line);
        const std::int64_t step = v.size() > 2 ? whole(v[2], line) : 1;
        if (step == 0) fail(line, "range with a step of 0");
        value list = value::array();
        for (std::int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
          if (++x.steps > most_steps) fail(line, "the loops run too long");
          list.push_back(i);
        }
        return list;
      };
    }
    fail("the function \"" + name + "\" is not supported");
  }

  // --- Running ---------------------------------------------------------------------------------------------------------

  void run(const body& statements, context& x) const {
    for (const statement& s : statements) s(x);
  }

  void write(context& x, const std::string& text, std::size_t line) const {
    if (x.out.size() + text.size() > most_output) fail(line, "the output grows too long");
    x.out += text;
  }

  std::string limited(std::string text, std::size_t line) const {
    if (text.size() > most_output) fail(line, "a string grows too long");
    return text;
  }

  // Positional arguments' values, named ones behind them in the order given.
  std::vector<value> evaluate(const arguments& a, context& x, std::size_t) const {
    std::vector<value> values;
    for (const expression& e : a.positional) values.push_back(e(x));
    for (const auto& [name, e] : a.named) values.push_back(e(x));
    return values;
  }

  static bool truth(const value& v) {
    if (v.is_discarded() || v.is_null()) return false;
    if (v.is_boolean()) return v.get<bool>();
    if (v.is_number()) return v.get<double>() != 0.0;
    if (v.is_string()) return !v.get_ref<const std::string&>().empty();
    return !v.empty();
  }

  static bool equal(const value& a, const value& b) {
    if (a.is_discarded() || b.is_discarded()) return a.is_discarded() && b.is_discarded();
    return a == b;
  }

  std::string to_text(const value& v, std::size_t line) const {
    if (v.is_discarded()) return "";
    if (v.is_string()) return v.get<std::string>();
    if (v.is_boolean()) return v.get<bool>() ? "True" : "False";
    if (v.is_null()) return "None";
    if (v.is_number()) return v.dump();
    fail(line, "a list or mapping cannot be written as text: use tojson");
  }

  std::int64_t whole(const value& v, std::size_t line) const {
    if (!v.is_number_integer()) fail(line, "expected a whole number");
    return v.get<std::int64_t>();
  }

  value arithmetic(const std::string& op, const value& a, const value& b, std::size_t line) const {
    if (!a.is_number() || !b.is_number()) fail(line, "\"" + op + "\" needs numbers");
    constexpr double exact = 9007199254740992.0;  // 2^53: beyond it neither form is exact
    const double p = a.get<double>(), q = b.get<double>();
    if (std::abs(p) > exact || std::abs(q) > exact) fail(line, "a number is too large");
    if ((op == "/" || op == "//" || op == "%") && q == 0.0) fail(line, "division by zero");
    const double r = op == "+"    ? p + q
                     : op == "-"  ? p - q
                     : op == "*"  ? p * q
                     : op == "/"  ? p / q
                     : op == "//" ? std::floor(p / q)
                                  : p - q * std::floor(p / q);
    if (std::abs(r) > exact) fail(line, "a number is too large");
    if (op != "/" && a.is_number_integer() && b.is_number_integer()) return static_cast<std::int64_t>(r);
    return r;
  }

  bool contains(const value& list, const value& item, std::size_t line) const {
    if (list.is_string() && item.is_string())
      return list.get<std::string>().find(item.get<std::string>()) != std::string::npos;
    if (list.is_object() && item.is_string()) return list.contains(item.get<std::string>());
    if (list.is_array()) return std::any_of(list.begin(), list.end(), [&](const value& v) { return equal(v, item); });
    fail(line, "\"in\" needs a string, list or mapping");
  }

  value iterable(const value& v, std::size_t line) const {
    if (v.is_array()) return v;
    if (v.is_discarded()) return value::array();
    if (v.is_object()) {
      value keys = value::array();
      for (const auto& [key, item] : v.items()) keys.push_back(key);
      return keys;
    }
    fail(line, "expected a list to loop over");
  }

  value member(const value& v, const value& key, std::size_t line) const {
    if (v.is_discarded()) fail(line, "a member of an undefined value");
    if (v.is_object() && key.is_string()) {
      const auto it = v.find(key.get<std::string>());
      return it == v.end() ? value(value::value_t::discarded) : *it;
    }
    if (key.is_number_integer() && v.is_array()) {
      const auto size = static_cast<std::int64_t>(v.size());
      const std::int64_t i = key.get<std::int64_t>(), at = i < 0 ? i + size : i;
      if (at < 0 || at >= size) return value(value::value_t::discarded);
      return v[static_cast<std::size_t>(at)];
    }
    if (key.is_string()) return value(value::value_t::discarded);
    fail(line, "a subscript that does not fit");
  }

  // The characters of UTF-8 text, one string each.
  static value characters(const std::string& text) {
    value list = value::array();
    for (const char c : text) {
      const bool continues = (static_cast<unsigned char>(c) & 0xC0u) == 0x80u;
      if (continues && !list.empty()) {
        list.back().get_ref<std::string&>() += c;
      } else {
        list.push_back(std::string(1, c));
      }
    }
    return list;
  }

  value slice(const value& v, const value& first, const value& last, const value& step, std::size_t line) const {
    if (!v.is_array() && !v.is_string()) fail(line, "a slice of what is neither list nor string");
    const value items = v.is_string() ? characters(v.get<std::string>()) : v;
    const auto size = static_cast<std::int64_t>(items.size());
    const std::int64_t by = whole(step, line);
    if (by != 1 && by != -1) fail(line, "a slice's step other than 1 and -1 is not supported");
    const auto bound = [&](const value& b, std::int64_t fallback) {
      if (b.is_null()) return fallback;
      const std::int64_t i = whole(b, line);
      return std::clamp<std::int64_t>(i < 0 ? i + size : i, by > 0 ? 0 : -1, by > 0 ? size : size - 1);
    };
    const std::int64_t begin = bound(first, by > 0 ? 0 : size - 1), end = bound(last, by > 0 ? size : -1);
    value list = value::array();
    for (std::int64_t i = begin; by > 0 ? i < end : i > end; i += by)
      list.push_back(items[static_cast<std::size_t>(i)]);
    return v.is_string() ? filter(list, "join", {}, line) : list;
  }

  bool test(const value& v, const std::string& name, std::size_t line) const {
    if (name == "defined") return !v.is_discarded();
    if (name == "undefined") return v.is_discarded();
    if (name == "none") return v.is_null();
    if (name == "string") return v.is_string();
    if (name == "number") return v.is_number();
    if (name == "integer") return v.is_number_integer();
    if (name == "boolean") return v.is_boolean();
    if (name == "mapping") return v.is_object();
    if (name == "sequence" || name == "iterable") return v.is_array() || v.is_string() || v.is_object();
    if (name == "true") return v.is_boolean() && v.get<bool>();
    if (name == "false") return v.is_boolean() && !v.get<bool>();
    if (name == "odd" || name == "even") return (whole(v, line) % 2 != 0) == (name == "odd");
    fail(line, "the test \"" + name + "\" is not supported");
  }

  static std::string strip(const std::string& s, const std::string& characters, bool left, bool right) {
    std::size_t begin = 0, end = s.size();
    while (left && begin < end && characters.find(s[begin]) != std::string::npos) ++begin;
    while (right && end > begin && characters.find(s[end - 1]) != std::string::npos) --end;
    return s.substr(begin, end - begin);
  }

  static std::string mapped(std::string s, int (*f)(int)) {
    for (char& c : s) {
      if (static_cast<unsigned char>(c) < 0x80) c = static_cast<char>(f(c));
    }
    return s;
  }

  std::string replaced(const std::string& s, const std::string& from, const std::string& to, std::size_t line) const {
    if (from.empty()) fail(line, "replace of an empty string");
    std::string out;
    std::size_t done = 0;
    for (std::size_t i = s.find(from); i != std::string::npos; i = s.find(from, done)) {
      out = limited(out + s.substr(done, i - done) + to, line);
      done = i + from.size();
    }
    return out + s.substr(done);
  }

  std::string text_argument(const std::vector<value>& a, std::size_t i, std::size_t line) const {
    if (i >= a.size() || !a[i].is_string()) fail(line, "expected a string as argument");
    return a[i].get<std::string>();
  }

  value method(const value& v, const std::string& name, const std::vector<value>& a, std::size_t line) const {
    const std::string white = " \t\r\n\v\f";
    if (v.is_string()) {
      const std::string s = v.get<std::string>();
      if (name == "strip" || name == "lstrip" || name == "rstrip") {
        return strip(s, a.empty() ? white : text_argument(a, 0, line), name != "rstrip", name != "lstrip");
      }
      if (name == "startswith") return s.starts_with(text_argument(a, 0, line));
      if (name == "endswith") return s.ends_with(text_argument(a, 0, line));
      if (name == "upper") return mapped(s, std::toupper);
      if (name == "lower") return mapped(s, std::tolower);
      if (name == "replace") return replaced(s, text_argument(a, 0, line), text_argument(a, 1, line), line);
      if (name == "split") {
        const std::string separator = text_argument(a, 0, line);
        if (separator.empty()) fail(line, "split at an empty string");
        std::int64_t left = a.size() > 1 ? whole(a[1], line) : -1;
        value parts = value::array();
        std::size_t done = 0;
        for (std::size_t i; left != 0 && (i = s.find(separator, done)) != std::string::npos; --left) {
          parts.push_back(s.substr(done, i - done));
          done = i + separator.size();
        }
        parts.push_back(s.substr(done));
        return parts;
      }
    }
    if (v.is_object()) {
      if (name == "get") {
        const auto it = v.find(text_argument(a, 0, line));
        return it != v.end() ? *it : a.size() > 1 ? a[1] : value(nullptr);
      }
      if (name == "items" || name == "keys" || name == "values") {
        value list = value::array();
        for (const auto& [key, item] : v.items()) {
          list.push_back(name == "keys" ? value(key) : name == "values" ? item : value::array({key, item}));
        }
        return list;
      }
    }
    fail(line, "the method \"" + name + "\" is not supported here");
  }

  value filter(const value& v, const std::string& name, const std::vector<value>& a, std::size_t line) const {
    if (name == "default" || name == "d") {
      const bool missing = v.is_discarded() || (a.size() > 1 && truth(a[1]) && !truth(v));
      return missing ? (a.empty() ? value("") : a[0]) : v;
    }
    if (name == "trim") return method(value(to_text(v, line)), "strip", a, line);
    if (name == "upper" || name == "lower") return method(value(to_text(v, line)), name, a, line);
    if (name == "replace") return method(value(to_text(v, line)), name, a, line);
    if (name == "string") return to_text(v, line);
    if (name == "items") return method(v, name, a, line);
    if (name == "tojson") return to_json(v, line);
    if (name == "safe") return v;
    if (name == "length" || name == "count") {
      if (!v.is_string()) return v.is_array() || v.is_object() ? v.size() : std::size_t{0};
      const std::string s = v.get<std::string>();
      return std::count_if(s.begin(), s.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; });
    }
    if (name == "list") return iterable(v, line);
    if (name == "first" || name == "last") return member(iterable(v, line), value(name == "first" ? 0 : -1), line);
    if (name == "join") {
      std::string out;
      const value items = iterable(v, line);
      for (std::size_t i = 0; i < items.size(); ++i) {
        if (i > 0 && !a.empty()) out += text_argument(a, 0, line);
        out = limited(out + to_text(items[i], line), line);
      }
      return out;
    }
    if (name == "selectattr" || name == "rejectattr") {
      value list = value::array();
      for (const value& item : iterable(v, line)) {
        const value attribute = member(item, value(text_argument(a, 0, line)), line);
        const std::string how = a.size() > 1 ? text_argument(a, 1, line) : "";
        if (a.size() == 3 && how != "equalto" && how != "==")
          fail(line, "the test \"" + how + "\" is not supported here");
        const bool chosen = a.size() == 3   ? equal(attribute, a[2])
                            : a.size() == 2 ? test(attribute, how, line)
                                            : truth(attribute);
        if (chosen == (name == "selectattr")) list.push_back(item);
      }
      return list;
    }
    fail(line, "the filter \"" + name + "\" is not supported");
  }

  // As Python's json.dumps writes it: ", " and ": " between items.
  std::string to_json(const value& v, std::size_t line) const {
    if (v.is_discarded()) fail(line, "tojson of an undefined value");
    if (!v.is_structured()) return v.dump(-1, ' ', false, value::error_handler_t::replace);
    std::string out = v.is_array() ? "[" : "{";
    bool first = true;
    for (const auto& [key, item] : v.items()) {
      if (!std::exchange(first, false)) out += ", ";
      if (v.is_object()) out += value(key).dump(-1, ' ', false, value::error_handler_t::replace) + ": ";
      out = limited(out + to_json(item, line), line);
    }
    return out + (v.is_array() ? "]" : "}");
  }

  std::string source_, where_;
  std::vector<chunk> chunks_;
  std::size_t next_ = 0, line_ = 1;
  std::vector<token> tokens_;
  std::size_t position_ = 0;
  int depth_ = 0;
  body body_;
};

MOTE_END_NAMESPACE
