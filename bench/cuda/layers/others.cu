#include "../erase.cuh"

static bool const compiled = switchyard::bench::compile_layers<1, 3, 4, 5, 6>();
