// The library in a second translation unit of one program: it must not define anything twice.
#include <switchyard/switchyard.hpp>
