#pragma once

#include <switchyard/core/host_device.hpp>
#include <switchyard/core/text.hpp>

#include <cstdint>
#include <string_view>

/// The paths through a layer that has factors for languages: each is an expert of the layer. The number `Languages` is that of real
/// languages; the id behind them is the pseudo-language that all of them share.
/// Source: Xu et al. 2023, Condensing Multilingual Knowledge with Lightweight Language-Specific Modules.
namespace switchyard {

/// A path for each pair of a source and a target language (pair-wise). The shared path is `path(shared, shared)`, the last one.
template <int Languages>
struct language_pairs {
  static_assert(Languages >= 1 && Languages < 46340,
                "switchyard: language_pairs takes the number of languages without the shared one, 1 to 46339.");
  static constexpr auto label = "language_pairs<" + decimal<Languages>() + ">";
  static constexpr std::string_view name = label;
  static constexpr bool pair_wise = true;
  static constexpr int shared = Languages;
  static constexpr int entries = Languages + 1;  ///< of a table: the languages, and the shared one at the end
  static constexpr int count = entries * entries;

  /// A language that does not exist makes no path: -2.
  SWITCHYARD_HD static constexpr int path(std::int32_t source, std::int32_t target) {
    bool const exists = source >= 0 && source < entries && target >= 0 && target < entries;
    return exists ? source * entries + target : -2;
  }
};

/// A path for each language (language-wise), and the shared one at the end. What a pair of a language and itself does, its path does.
template <int Languages>
struct languages {
  static_assert(Languages >= 1 && Languages < 2147483647,
                "switchyard: languages takes the number of languages without the shared one, at least 1.");
  static constexpr auto label = "languages<" + decimal<Languages>() + ">";
  static constexpr std::string_view name = label;
  static constexpr bool pair_wise = false;
  static constexpr int shared = Languages;
  static constexpr int entries = Languages + 1;
  static constexpr int count = entries;

  /// A language that does not exist makes no path: -2.
  SWITCHYARD_HD static constexpr int path(std::int32_t language) {
    return language >= 0 && language < entries ? language : -2;
  }
};

}  // namespace switchyard
