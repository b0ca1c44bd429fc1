// expect: switchyard: capacity::factor takes a fraction. Give a numerator of at least 0 and a denominator of
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::capacity::factor<-5, 4>::name;
