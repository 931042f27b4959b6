// The regular expressions of tokenizer files, on PCRE2.
#pragma once

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "../../core/error.hpp"
#include "oniguruma.hpp"

MOTE_BEGIN_NAMESPACE

// find() may be called by several threads at once.
class pattern {
 public:
  // Throws format_error, naming `where`, for an expression that is malformed or uses what is not supported.
  pattern(const std::string& expression, std::string where) : where_(std::move(where)) {
    const std::string translated = detail::oniguruma_expression(expression, where_).to_pcre2();
    int problem = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &problem, &offset,
                              nullptr));
    if (!code_) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(problem, message, sizeof message);
      raise<format_error>(where_ + ": malformed pattern: " + reinterpret_cast<const char*>(message));
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // optional: matching works without
  }

  // The first match in well-formed UTF-8 at or after `from`, as [begin, end). Throws format_error when the pattern takes
  // more steps than any sensible one would.
  std::optional<std::pair<std::size_t, std::size_t>> find(std::string_view text, std::size_t from) const {
    const workspace& space = workspace::of_this_thread();
    const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK, space.match.get(), space.context.get());
    if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (found < 0) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(found, message, sizeof message);
      raise<format_error>(where_ + ": pattern failed: " + reinterpret_cast<const char*>(message));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(space.match.get());
    if (range[0] < from || range[1] < range[0]) raise<format_error>(where_ + ": \\K is not supported");
    return std::pair{static_cast<std::size_t>(range[0]), static_cast<std::size_t>(range[1])};
  }

  // Whether a match may have no characters.
  bool may_be_empty() const {
    std::uint32_t empty = 0;
    pcre2_pattern_info(code_.get(), PCRE2_INFO_MATCHEMPTY, &empty);
    return empty != 0;
  }

  // The expression that matches `literal` itself.
  static std::string quote(std::string_view literal) {
    std::string expression;
    for (const char c : literal) {
      if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) expression += '\\';
      expression += c;
    }
    return expression;
  }

 private:
  struct free_pcre2 {
    void operator()(pcre2_code* p) const { pcre2_code_free(p); }
    void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
    void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
    void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
  };

  template <class T>
  using owned = std::unique_ptr<T, free_pcre2>;

  // What a match writes to. All patterns of a thread share one: nothing in it outlives a match but its result.
  struct workspace {
    workspace() {
      if (!match || !context || !stack) raise<format_error>("not enough memory for patterns");
      pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
      pcre2_set_match_limit(context.get(), 20'000'000);
      pcre2_set_depth_limit(context.get(), 100'000);
      pcre2_set_heap_limit(context.get(), 64 << 10);  // KiB
    }
    static const workspace& of_this_thread() {
      thread_local const workspace space;
      return space;
    }

    owned<pcre2_match_data> match{pcre2_match_data_create(1, nullptr)};  // the whole match, no groups
    owned<pcre2_match_context> context{pcre2_match_context_create(nullptr)};
    owned<pcre2_jit_stack> stack{pcre2_jit_stack_create(std::size_t{32} << 10, std::size_t{8} << 20, nullptr)};
  };

  std::string where_;
  owned<pcre2_code> code_;
};

MOTE_END_NAMESPACE
