// expect: switchyard: language_pairs takes the number of languages without the shared one, 1 to 46339.
#include <switchyard/switchyard.hpp>

auto const wrong = switchyard::language_pairs<0>::count;
