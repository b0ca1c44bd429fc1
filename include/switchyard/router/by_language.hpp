#pragma once

#include <switchyard/core/language_paths.hpp>
#include <switchyard/router/by_inputs.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// What `router::by_language_pair` decides by: ids from 0 to `Languages`, of which the last is the shared pseudo-language. Any other id
/// leaves its token without a route.
struct tokens_of_language_pairs {
  std::int32_t const* source = nullptr;  ///< [tokens]
  std::int32_t const* target = nullptr;  ///< [tokens]
};

/// What `router::by_language` decides by, with the same ids.
struct tokens_of_languages {
  std::int32_t const* language = nullptr;  ///< [tokens]
};

namespace router {

namespace detail {

/// A token's languages are its path, which is its only expert, with the combine weight 1.
template <class Paths>
struct by_path : by_inputs {
  using paths = Paths;

  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    static_assert(Dims.experts == Paths::count,
                  "switchyard: a layer that routes by language has an expert for each path. Set shape.experts to "
                  "language_pairs<Languages>::count with router::by_language_pair, to languages<Languages>::count with "
                  "router::by_language.");
    static_assert(Dims.top_k == 1, "switchyard: a token has one path of languages. Set shape.top_k to 1.");
    if constexpr (requires { typename Expert::paths; }) {
      static_assert(std::is_same_v<typename Expert::paths, Paths>,
                    "switchyard: the router and expert::low_rank go by other languages. language_pairs<Languages> goes "
                    "with router::by_language_pair<Languages>, languages<Languages> with "
                    "router::by_language<Languages>.");
    }
    return true;
  }
};

}  // namespace detail

/// The source and the target language of a token say where it goes: `.inputs = {.source = ids, .target = ids}`. Tokens of many pairs go in
/// one call, and are grouped like any others.
/// Source: Xu et al. 2023, Condensing Multilingual Knowledge with Lightweight Language-Specific Modules (pair-wise). The published code
/// takes batches of one pair.
template <int Languages>
struct by_language_pair : detail::by_path<language_pairs<Languages>> {
  using typename detail::by_path<language_pairs<Languages>>::paths;
  static constexpr auto label = "by_language_pair<" + decimal<Languages>() + ">";
  static constexpr std::string_view name = label;
  static constexpr char const* experts_name =
      "the pair of inputs.source and inputs.target (-2 stands for one that does not exist)";

  template <class Layer>
  using inputs = tokens_of_language_pairs;

  SWITCHYARD_HD static routed_pair pair(tokens_of_language_pairs const& of, std::int64_t token, int, int) {
    return {paths::path(of.source[token], of.target[token]), 1.0f};
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    if (args.tokens.rows == 0) return;
    checks::check_pointer(args.inputs.source, "inputs.source", "[tokens] int32");
    checks::check_pointer(args.inputs.target, "inputs.target", "[tokens] int32");
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    memory.read("inputs.source", args.inputs.source, args.tokens.rows);
    memory.read("inputs.target", args.inputs.target, args.tokens.rows);
  }
};

/// The language of a token says where it goes: `.inputs = {.language = ids}`.
/// Source: as above (language-wise). Which of a token's languages that is, the caller says: in an encoder the source, in a decoder the
/// target; the published code takes the source in both.
template <int Languages>
struct by_language : detail::by_path<languages<Languages>> {
  using typename detail::by_path<languages<Languages>>::paths;
  static constexpr auto label = "by_language<" + decimal<Languages>() + ">";
  static constexpr std::string_view name = label;
  static constexpr char const* experts_name = "inputs.language (-2 stands for one that does not exist)";

  template <class Layer>
  using inputs = tokens_of_languages;

  SWITCHYARD_HD static routed_pair pair(tokens_of_languages const& of, std::int64_t token, int, int) {
    return {paths::path(of.language[token]), 1.0f};
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    if (args.tokens.rows == 0) return;
    checks::check_pointer(args.inputs.language, "inputs.language", "[tokens] int32");
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    memory.read("inputs.language", args.inputs.language, args.tokens.rows);
  }
};

static_assert(router_policy<by_language_pair<2>> && router_policy<by_language<2>>);

}  // namespace router
}  // namespace switchyard
