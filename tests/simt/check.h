// The harness of the emulator's own tests. A test throws at the first thing that is wrong.
#pragma once

#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/launch.h"

namespace rnnfast::emu {

struct Test {
  const char* name;
  std::function<void()> run;
};

// Runs all of them and returns the number of those that failed.
inline int run_tests(const std::vector<Test>& tests) {
  int failures = 0;
  for (const Test& test : tests) {
    settings = {};
    try {
      test.run();
    } catch (const std::exception& e) {
      std::printf("%s: %s\n", test.name, e.what());
      ++failures;
    }
  }
  return failures;
}

inline void check(bool right, const std::string& what) {
  if (!right) throw std::logic_error(what);
}

// Launches, and returns what the emulator found wrong, or "".
template <class Args>
std::string error_of(void (*kernel)(Args), const dev::Launch& l,
                     const std::type_identity_t<Args>& args) {
  try {
    const dev::Status status = dev::launch(kernel, l, {}, args);
    return status.text;
  } catch (const Error& e) {
    return e.what();
  }
}

template <class Args>
void check_runs(void (*kernel)(Args), const dev::Launch& l,
                const std::type_identity_t<Args>& args) {
  const std::string error = error_of(kernel, l, args);
  check(error.empty(), error);
}

inline void check_holds(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    check(text.find(part) != std::string::npos, "no \"" + part + "\" in \"" + text + "\"");
}

// The launch must fail with an error that holds all of `parts`.
template <class Args>
void check_fails(void (*kernel)(Args), const dev::Launch& l, const std::type_identity_t<Args>& args,
                 const std::vector<std::string>& parts) {
  check_holds(error_of(kernel, l, args), parts);
}

// Every schedule must fail, and some with an error that holds `part`.
template <class Args>
void check_may_fail(void (*kernel)(Args), const dev::Launch& l,
                    const std::type_identity_t<Args>& args, const std::string& part) {
  for (int seed = 0; seed < 100; ++seed) {
    const std::string error = error_of(kernel, l, args);
    check(!error.empty(), "no error");
    if (error.find(part) != std::string::npos) return;
  }
  throw std::logic_error("no schedule says \"" + part + "\"");
}

// Some schedule must make `run` return false: what a missing barrier breaks.
inline void check_breaks(const std::function<bool()>& run, int seeds = 200) {
  for (int seed = 1; seed <= seeds; ++seed) {
    settings.seed = static_cast<uint64_t>(seed);
    if (!run()) return;
  }
  throw std::logic_error("no schedule shows the error");
}

}  // namespace rnnfast::emu
