// Compiles lists of layers, for forward_test.cpp.
#include "layers.hpp"
#include "support/compile.hpp"

static bool const here = support::compile_on_cpu<tested::elements, tested::more_elements>();
