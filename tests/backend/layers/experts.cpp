// Compiles a list of layers, for forward_test.cpp.
#include "layers.hpp"
#include "support/compile.hpp"

static bool const here = support::compile<tested::experts, switchyard::backend::cpu>();
