// options: -std=c++17
// expect: switchyard: C++20 is needed. Compile with -std=c++20
#include <switchyard/switchyard.hpp>
