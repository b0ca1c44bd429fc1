// expect: switchyard: languages takes the number of languages without the shared one, at least 1.
#include <switchyard/switchyard.hpp>

auto const wrong = switchyard::languages<0>::count;
