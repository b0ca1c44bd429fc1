#include "../erase.cuh"

static bool const compiled = switchyard::bench::compile_layers<4, 5, 6>();
