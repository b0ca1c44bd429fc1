// The main function of the tests, and the body of Catch2, where Catch2 is version 2: a header.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
