#include "layers.hpp"

#include <cctype>
#include <cstddef>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "catch.hpp"

namespace {

/// The words in the names of a list of layers: their policies, what they are put together from, elements.
template <class... Layers>
std::set<std::string> words_of(std::tuple<Layers...> const*) {
  std::set<std::string> words;
  for (std::string const& name : {switchyard::describe<Layers>()...}) {
    std::string word;
    for (char c : name + ' ') {
      if (std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_') {
        word += c;
      } else if (!word.empty()) {
        words.insert(std::exchange(word, {}));
      }
    }
  }
  return words;
}

}  // namespace

TEST_CASE("the layers that run everywhere have every policy of those that the CPU alone runs", "[layers]") {
  std::set<std::string> const everywhere = words_of(static_cast<tested_layers const*>(nullptr));
  std::set<std::string> const more = words_of(static_cast<more_tested_layers const*>(nullptr));
  CHECK(more.size() > 20);
  for (std::string const& word : more) {
    CAPTURE(word);
    CHECK(everywhere.count(word) == 1);
  }
}
