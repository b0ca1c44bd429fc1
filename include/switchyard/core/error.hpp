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

/// Throws `failure`; built without exceptions, prints what it says to stderr and aborts.
template <class Error>
[[noreturn]] void raise(Error failure) {
#if defined(__cpp_exceptions)
  throw Error(std::move(failure));
#else
  std::fprintf(stderr, "%s\n", failure.what());
  std::abort();
#endif
}

/// The one line of a failure: `switchyard: <what>: expected <expected>, got <got>`.
inline std::string sentence(std::string const& what, std::string const& expected, std::string const& got) {
  return "switchyard: " + what + ": expected " + expected + ", got " + got;
}

/// Reports wrong use of the library. Throws `error`; built without exceptions, prints the same line to
/// stderr and aborts.
[[noreturn]] inline void fail(std::string const& what, std::string const& expected, std::string const& got) {
  raise(error(sentence(what, expected, got)));
}

}  // namespace switchyard
