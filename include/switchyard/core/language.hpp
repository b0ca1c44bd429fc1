#pragma once

// What the library needs of a compiler. One sentence, and the end of the compilation: hundreds of errors would follow.
#if !defined(__cplusplus) || (!defined(_MSVC_LANG) && __cplusplus < 202002L) || \
    (defined(_MSVC_LANG) && _MSVC_LANG < 202002L)
#error "switchyard: C++20 is needed. Compile with -std=c++20 (in CMake: target_compile_features(... cxx_std_20))."
#include <switchyard/the sentence above says what to change>
#endif
