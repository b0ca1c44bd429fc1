// options: -ffinite-math-only
// expect: switchyard: -ffast-math, -Ofast and their like (-ffinite-math-only, -funsafe-math-optimizations) make wrong numbers of right code.
#include <switchyard/switchyard.hpp>
