// expect: switchyard: a pipeline is made of a function that returns the next item as std::optional<Item>, and takes nothing or a std::stop_token.
#include <switchyard/offload/pipeline.hpp>

auto const wrong = [] { switchyard::offload::pipeline<int> endless([](int before) { return before + 1; }); };
