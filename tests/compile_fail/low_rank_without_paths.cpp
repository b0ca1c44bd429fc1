// expect: switchyard: the first argument of expert::low_rank says which paths there are. Give language_pairs<Languages> or languages<Languages>.
#include <switchyard/switchyard.hpp>

using namespace switchyard;

auto const wrong = expert::low_rank<expert::mlp<relu>, 4, expert::mlp<relu>>::name;
