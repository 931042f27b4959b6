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
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

class jinja_template {
 public:
  using value = nlohmann::ordered_json;  // of variables

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
    context x;
    x.scopes.emplace_back();
    for (const auto& [name, v] : variables.items()) x.scopes.back()[name] = from_json(x, v);
    run(body_, x);
    return std::move(x.out);
  }

 private:
  struct undefined {};
  struct container;
  struct space;

  // A value in use. Strings, lists and mappings never change, so that copies share them.
  struct object {
    std::variant<undefined, std::nullptr_t, bool, std::int64_t, double, std::shared_ptr<const std::string>,
                 std::shared_ptr<const container>, std::shared_ptr<space>>
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
    const container* list() const { return structure(false); }
    const container* mapping() const { return structure(true); }
    const container* structure(bool mapping) const {
      const auto* c = at<const container>();
      return c != nullptr && c->mapping == mapping ? c : nullptr;
    }
    bool is_number() const { return is<std::int64_t>() || is<double>(); }
  };
  struct container {
    std::vector<object> items;
    bool mapping = false;
    std::vector<std::string> keys = {};  // of a mapping, one for each item
    int depth = 1;
  };
  struct space {  // a namespace
    std::map<std::string, object> attributes;
  };

  struct context {
    std::vector<std::map<std::string, object>> scopes;
    std::string out;
    std::size_t work = 0, line = 1;
  };
  using expression = std::function<object(context&)>;
  using suffix = std::function<object(context&, const object&)>;
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

  // Work is counted in bytes of text read or written; a token and an element of a list cost about what they take.
  static constexpr std::size_t most_work = std::size_t{512} << 20, token_work = 64, element_work = 256;
  static constexpr std::size_t most_text = std::size_t{16} << 20;
  static constexpr int deepest = 100;

  [[noreturn]] void fail(std::size_t line, const std::string& message) const {
    raise<format_error>(where_ + ": line " + std::to_string(line) + ": " + message);
  }
  [[noreturn]] void fail(const std::string& message) const { fail(line_, message); }
  [[noreturn]] void fail(const context& x, const std::string& message) const { fail(x.line, message); }

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

  // Where a tag ends: outside of strings and brackets, which may hold what looks like its end.
  std::size_t find_close(std::size_t i, const std::string& close, bool comment) const {
    if (comment) return source_.find(close, i);
    char quote = '\0';
    for (std::size_t open = 0; i < source_.size(); ++i) {
      const char c = source_[i];
      if (quote != '\0') {
        if (c == '\\')
          ++i;
        else if (c == quote)
          quote = '\0';
      } else if (open == 0 && source_.compare(i, 2, close) == 0) {
        return i;
      } else if (c == '\'' || c == '"') {
        quote = c;
      } else if (c == '(' || c == '[' || c == '{') {
        ++open;
      } else if (open > 0 && (c == ')' || c == ']' || c == '}')) {
        --open;
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
        statements.push_back([this, &c](context& x) {
          x.line = c.line;
          append(x, x.out, c.text);
        });
        continue;
      }
      lex(c.text);
      if (c.what == chunk::kind::output) {
        expression e = parse_expression();
        expect_end();
        statements.push_back([this, e = std::move(e)](context& x) { append(x, x.out, to_text(x, e(x))); });
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
    return [this, line, names = std::move(names), list = std::move(list), filter = std::move(filter),
            each = std::move(each), otherwise = std::move(otherwise)](context& x) {
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

  object loop_state(context& x, const std::vector<object>& items, std::size_t i) const {
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
    return [this, name = std::move(name), attribute = std::move(attribute), e = std::move(e)](context& x) {
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
    return [this, e = std::move(e), work, line = line_](context& x) {
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
    return [this, first = std::move(first), rest = std::move(rest)](context& x) {
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
    return [this, first = std::move(first), rest = std::move(rest)](context& x) {
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
    return [this, parts = std::move(parts)](context& x) {
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
    return [this, e = std::move(e)](context& x) { return arithmetic(x, "-", object{std::int64_t{0}}, e(x)); };
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
      return [this, items = std::move(items)](context& x) {
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
      return [this, items = std::move(items)](context& x) {
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
          suffixes.push_back([this, name, a = in_order(parse_arguments(), name)](context& x, const object& v) {
            return method(x, v, name, evaluate(a, x));
          });
        } else {
          suffixes.push_back([this, key = object{std::make_shared<const std::string>(std::move(name))}](
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
        suffixes.push_back([this, name, a = in_order(std::move(a), name)](context& x, const object& v) {
          return filter(x, v, name, evaluate(a, x));
        });
      } else if (take_name("is")) {
        const bool negated = take_name("not");
        suffixes.push_back([this, negated, name = expect_name()](context& x, const object& v) {
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
      return [this, first = std::move(first)](context& x, const object& v) { return member(x, v, first(x)); };
    }
    expect_op(":");
    if (!at(token::kind::op, "]") && !at(token::kind::op, ":")) last = parse_expression();
    if (take_op(":") && !at(token::kind::op, "]")) step = parse_expression();
    expect_op("]");
    return
        [this, first = std::move(first), last = std::move(last), step = std::move(step)](context& x, const object& v) {
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
      return [this, a = std::move(written)](context& x) {
        const auto made = std::make_shared<space>();
        for (const auto& [key, e] : a.named) check_member(x, made->attributes[key] = e(x));
        return object{made};
      };
    }
    std::vector<expression> in_use = in_order(std::move(written), name);
    if (name == "raise_exception") {
      return [this, a = std::move(in_use)](context& x) -> object {
        const auto v = evaluate(a, x);
        fail(x, v.empty() ? "the template refuses these messages" : to_text(x, v[0]));
      };
    }
    if (name == "range") {
      return [this, a = std::move(in_use)](context& x) {
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

  void run(const body& statements, context& x) const {
    for (const statement& s : statements) s(x);
  }

  void spend(context& x, std::size_t work) const {
    x.work += work;
    if (x.work > most_work) fail(x, "the template runs too long");
  }

  void append(context& x, std::string& to, std::string_view text) const {
    if (to.size() + text.size() > most_text) fail(x, "a string or the output grows too long");
    to += text;
  }

  object text(context& x, std::string s) const {
    if (s.size() > most_text) fail(x, "a string or the output grows too long");
    spend(x, s.size());
    return {std::make_shared<const std::string>(std::move(s))};
  }

  void push(context& x, std::vector<object>& list, object item) const {
    spend(x, element_work);
    list.push_back(std::move(item));
  }

  void put(context& x, container& mapping, const std::string& key, object item) const {
    if (const object* present = find(x, mapping, key)) {
      mapping.items[static_cast<std::size_t>(present - mapping.items.data())] = std::move(item);
      return;
    }
    push(x, mapping.items, std::move(item));
    mapping.keys.push_back(key);
  }

  // A namespace may change, so that it could come to hold itself.
  void check_member(context& x, const object& v) const {
    if (v.is<std::shared_ptr<space>>()) fail(x, "a namespace inside of another value is not supported");
  }

  object made(context& x, container c) const {
    for (const object& item : c.items) {
      check_member(x, item);
      if (const auto* inner = item.at<const container>()) c.depth = std::max(c.depth, inner->depth + 1);
    }
    if (c.depth > deepest) fail(x, "a value is nested too deeply");
    return {std::make_shared<const container>(std::move(c))};
  }

  object from_json(context& x, const value& v) const {
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

  bool equal(context& x, const object& a, const object& b) const {
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

  bool compare(context& x, const std::string& op, const object& a, const object& b) const {
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

  std::string to_text(context& x, const object& v) const {
    if (v.is<undefined>()) return "";
    if (v.is<std::nullptr_t>()) return "None";
    if (const auto* b = std::get_if<bool>(&v.held)) return *b ? "True" : "False";
    if (const auto* i = std::get_if<std::int64_t>(&v.held)) return std::to_string(*i);
    if (const auto* d = std::get_if<double>(&v.held)) return value(*d).dump();
    if (v.text() == nullptr) fail(x, "a list or mapping cannot be written as text: use tojson");
    spend(x, v.text()->size());
    return *v.text();
  }

  std::int64_t whole(context& x, const object& v) const {
    if (!v.is<std::int64_t>()) fail(x, "expected a whole number");
    return std::get<std::int64_t>(v.held);
  }

  object arithmetic(context& x, const std::string& op, const object& a, const object& b) const {
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
  void spend_search(context& x, const std::string& s, const std::string& part) const {
    spend(x, s.size() * (1 + part.size() / 32));
  }

  const object* find(context& x, const container& mapping, const std::string& key) const {
    spend(x, mapping.keys.size() * (8 + key.size() / 32));
    const auto it = std::find(mapping.keys.begin(), mapping.keys.end(), key);
    return it == mapping.keys.end() ? nullptr : &mapping.items[static_cast<std::size_t>(it - mapping.keys.begin())];
  }

  bool contains(context& x, const object& v, const object& item) const {
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
  std::shared_ptr<const container> elements(context& x, const object& v) const {
    if (v.list() != nullptr) return std::get<std::shared_ptr<const container>>(v.held);
    container list;
    if (const container* c = v.mapping()) {
      for (const std::string& key : c->keys) push(x, list.items, text(x, key));
    } else if (const std::string* s = v.text()) {
      for (std::size_t i = 0, end; i < s->size(); i = end) {
        for (end = i + 1; end < s->size() && continues((*s)[end]);) ++end;
        push(x, list.items, text(x, s->substr(i, end - i)));
      }
    } else if (!v.is<undefined>()) {
      fail(x, "expected a list to loop over");
    }
    return std::make_shared<const container>(std::move(list));
  }

  object member(context& x, const object& v, const object& key) const {
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

  // Characters are those of UTF-8.
  static bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0u) == 0x80u; }

  std::size_t length(context& x, const object& v) const {
    const auto* c = v.at<const container>();
    if (v.text() == nullptr) return c != nullptr ? c->items.size() : 0;
    spend(x, v.text()->size());
    return static_cast<std::size_t>(
        std::count_if(v.text()->begin(), v.text()->end(), [](char b) { return !continues(b); }));
  }

  // The characters from `begin` up to `end`.
  std::string_view part(context& x, std::string_view s, std::size_t begin, std::size_t end) const {
    spend(x, s.size());
    const auto offset = [](std::string_view t, std::size_t n) {
      std::size_t i = 0;
      while (i < t.size() && (continues(t[i]) || n-- > 0)) ++i;
      return i;
    };
    s.remove_prefix(offset(s, begin));
    return s.substr(0, offset(s, end - begin));
  }

  object slice(context& x, const object& v, const object& first, const object& last, const object& step) const {
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
      return text(x, by > 0 ? std::string(chosen) : reversed(chosen));
    }
    std::vector<object> list;
    for (std::size_t i = begin; i < end; ++i) push(x, list, v.list()->items[i]);
    if (by < 0) std::reverse(list.begin(), list.end());
    return made(x, {std::move(list)});
  }

  static std::string reversed(std::string_view s) {
    std::string out;
    for (std::size_t i = s.size(), end = i; i-- > 0;) {
      if (i > 0 && continues(s[i])) continue;
      out += s.substr(i, end - i);
      end = i;
    }
    return out;
  }

  bool test(context& x, const object& v, const std::string& name) const {
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

  // Where the character at i ends.
  static std::size_t character_end(std::string_view s, std::size_t i) {
    do ++i;
    while (i < s.size() && continues(s[i]));
    return i;
  }

  static std::string strip(std::string_view s, std::string_view characters, bool left, bool right) {
    const auto goes = [&](std::string_view character) { return characters.find(character) != std::string::npos; };
    while (left && !s.empty() && goes(s.substr(0, character_end(s, 0)))) s.remove_prefix(character_end(s, 0));
    while (right && !s.empty()) {
      std::size_t last = s.size() - 1;
      while (last > 0 && continues(s[last])) --last;
      if (!goes(s.substr(last))) break;
      s = s.substr(0, last);
    }
    return std::string(s);
  }

  // The first character from `i` on that is white space, or that is none.
  static std::size_t find_white(std::string_view s, std::size_t i, bool is_white) {
    for (std::size_t end; i < s.size(); i = end) {
      end = character_end(s, i);
      if ((white.find(s.substr(i, end - i)) != std::string::npos) == is_white) return i;
    }
    return std::string::npos;
  }

  static std::string mapped(std::string s, int (*f)(int)) {
    for (char& c : s) {
      if (static_cast<unsigned char>(c) < 0x80) c = static_cast<char>(f(c));
    }
    return s;
  }

  // At most `left` times, unless that is negative.
  object replaced(context& x, const std::string& s, const std::string& from, const std::string& to,
                  std::int64_t left) const {
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
  object split(context& x, const std::string& s, const std::string& separator, std::int64_t left) const {
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
  const std::string& text_argument(context& x, const std::vector<object>& a, std::size_t i) const {
    if (i >= a.size() || a[i].text() == nullptr) fail(x, "expected a string as argument");
    return *a[i].text();
  }

  object method(context& x, const object& v, const std::string& name, const std::vector<object>& a) const {
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

  object text_method(context& x, const std::string& s, const std::string& name, const std::vector<object>& a) const {
    spend(x, s.size());
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
      const std::string_view characters = given(a, 0) ? std::string_view(text_argument(x, a, 0)) : white;
      spend(x, s.size() * (characters.size() / 32));
      return text(x, strip(s, characters, name != "rstrip", name != "lstrip"));
    }
    if (name == "startswith") return {s.starts_with(text_argument(x, a, 0))};
    if (name == "endswith") return {s.ends_with(text_argument(x, a, 0))};
    if (name == "upper") return text(x, mapped(s, std::toupper));
    if (name == "lower") return text(x, mapped(s, std::tolower));
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

  object filter(context& x, const object& v, const std::string& name, const std::vector<object>& a) const {
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
  bool chosen(context& x, const object& item, const std::vector<object>& a) const {
    spend(x, token_work);
    if (text_argument(x, a, 0).find('.') != std::string::npos)
      fail(x, "attributes of attributes are not supported here");
    const object attribute = member(x, item, a[0]);
    if (a.size() == 1) return truth(attribute);
    const std::string& how = text_argument(x, a, 1);
    if (a.size() == 2) return test(x, attribute, how);
    if (a.size() > 3 || (how != "equalto" && how != "==")) fail(x, "the test \"" + how + "\" is not supported here");
    return equal(x, attribute, a[2]);
  }

  // As Python's json.dumps writes it: ", " and ": " between items, or a line for each, `indent` spaces a level.
  void write_json(context& x, std::string& out, const object& v, int indent, int level) const {
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

  // As Python has it.
  static constexpr std::string_view white =
      " \t\r\n\v\f\x1C\x1D\x1E\x1F\u0085\u00A0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200A"
      "\u2028\u2029"
      "\u202F\u205F\u3000";

  std::string source_, where_;
  std::vector<chunk> chunks_;
  std::size_t next_ = 0, line_ = 1;
  std::vector<token> tokens_;
  std::size_t position_ = 0;
  int depth_ = 0;
  body body_;
};

MOTE_END_NAMESPACE
