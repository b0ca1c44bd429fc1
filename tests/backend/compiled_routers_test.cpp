// Compiles a list of layers, for forward_test.cpp.
#include "layers.hpp"
#include "support.hpp"

static support::compile<tested::routers> const here;
