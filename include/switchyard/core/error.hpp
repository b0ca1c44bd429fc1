#pragma once

#include <exception>
#include <string>
#include <utility>

#if !defined(__cpp_exceptions)
#include <cstdio>
#include <cstdlib>
#endif

namespace switchyard {

/// What every run-time failure of the library throws. `what()` is one line:
/// `switchyard: <what>: expected <expected>, got <got>`.
class error : public std::exception {
 public:
  explicit error(std::string message) : message_(std::move(message)) {}
  char const* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

/// Reports wrong use of the library. Throws `error`; built without exceptions, prints the same line to
/// stderr and aborts.
[[noreturn]] inline void fail(std::string const& what, std::string const& expected, std::string const& got) {
  std::string message = "switchyard: " + what + ": expected " + expected + ", got " + got;
#if defined(__cpp_exceptions)
  throw error(std::move(message));
#else
  std::fprintf(stderr, "%s\n", message.c_str());
  std::abort();
#endif
}

}  // namespace switchyard
