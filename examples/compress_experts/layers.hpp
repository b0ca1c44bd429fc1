#pragma once

#include <switchyard/compression/units.hpp>
#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/half.hpp>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "../checkpoint/reader.hpp"
#include "options.hpp"

namespace compress_experts {

namespace sy = switchyard;

/// The routed experts of one layer in a checkpoint: what their tensors are called.
struct expert_layer {
  std::string prefix = {};                    ///< "model.layers.3.mlp.experts"
  std::string word = {};                      ///< what stands before an expert's number: "" or "expert_"
  std::string gate = {}, up = {}, down = {};  ///< what the projections are called; `gate` is empty where there is none
  std::string type = {};                      ///< of all weights: F32, BF16 or F16
  sy::compression::expert_sizes sizes = {};

  std::vector<std::string> projections() const {
    return gate.empty() ? std::vector{up, down} : std::vector{gate, up, down};
  }
  std::string name(int expert, std::string const& projection, char const* part = "weight") const {
    return prefix + "." + word + std::to_string(expert) + "." + projection + "." + part;
  }
  std::string centre_name(std::string const& projection) const { return prefix + ".centre." + projection + ".weight"; }
  std::string residual_name(std::string const& part) const { return prefix + ".residual." + part; }
  checkpoint::shape dims(std::string const& projection) const {
    if (projection == down) return {sizes.hidden, sizes.intermediate};
    return {sizes.intermediate, sizes.hidden};
  }
};

/// What a projection is called in one style of names.
struct projection_names {
  char const *gate, *up, *down;
};
inline constexpr projection_names known_names[] = {{"w1", "w3", "w2"},  // Mixtral, PhiMoE
                                                   {"gate_proj", "up_proj", "down_proj"},
                                                   {"wi_0", "wi_1", "wo"},
                                                   {"", "wi", "wo"},     // Switch
                                                   {"", "fc1", "fc2"}};  // NLLB

namespace detail {

/// "a.b.experts.3.w1.weight" taken apart.
struct expert_name {
  std::string prefix, word, projection, part;
  int expert = -1;
};

inline bool take_apart(std::string const& name, expert_name& to) {
  std::size_t const experts = name.rfind(".experts.");
  if (experts == name.npos) return false;
  to.prefix = name.substr(0, experts + 8);
  std::string_view rest = std::string_view(name).substr(experts + 9);
  to.word = rest.starts_with("expert_") ? "expert_" : "";
  rest.remove_prefix(to.word.size());
  std::size_t const dot = rest.find('.');
  if (dot == rest.npos || dot == 0 || dot > 6) return false;
  auto const [end, error] = std::from_chars(rest.data(), rest.data() + dot, to.expert);
  if (error != std::errc{} || end != rest.data() + dot || to.expert < 0) return false;
  if (dot > 1 && rest[0] == '0') return false;
  rest.remove_prefix(dot + 1);
  std::size_t const last = rest.find('.');
  if (last == rest.npos) return false;
  to.projection = rest.substr(0, last);
  to.part = rest.substr(last + 1);
  return to.part == "weight" || to.part == "bias";
}

}  // namespace detail

/// Bytes of an element, as floats.
inline void widen(std::string_view type, char const* from, std::size_t count, float* to) {
  if (type == "F32") {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, from + 2 * i, 2);
    if (type == "BF16") {
      sy::bfloat16 value;
      value.bits = bits;
      to[i] = static_cast<float>(value);
    } else {
      sy::half value;
      value.bits = bits;
      to[i] = static_cast<float>(value);
    }
  }
}
/// Floats as bytes of an element.
inline std::vector<char> narrow(std::string_view type, float const* from, std::size_t count) {
  std::vector<char> bytes(count * (type == "F32" ? 4 : 2));
  if (type == "F32" && count > 0) std::memcpy(bytes.data(), from, bytes.size());
  for (std::size_t i = 0; type != "F32" && i < count; ++i) {
    std::uint16_t const bits = type == "BF16" ? sy::bfloat16(from[i]).bits : sy::half(from[i]).bits;
    std::memcpy(bytes.data() + 2 * i, &bits, 2);
  }
  return bytes;
}

/// All layers with routed experts, in the order of their numbers. Throws where one is there that cannot be understood.
inline std::vector<expert_layer> find_layers(checkpoint::reader const& file) {
  struct found_layer {
    std::string word;
    std::set<std::string> projections, biases;
    int experts = 0;
  };
  std::map<std::string, found_layer> found;
  for (std::string const& name : file.names()) {
    detail::expert_name parts;
    if (!detail::take_apart(name, parts)) continue;
    found_layer& layer = found[parts.prefix];
    layer.word = parts.word;
    layer.experts = std::max(layer.experts, parts.expert + 1);
    (parts.part == "bias" ? layer.biases : layer.projections).insert(parts.projection);
  }

  std::vector<expert_layer> result;
  for (auto const& [prefix, of] : found) {
    expert_layer layer{.prefix = prefix, .word = of.word};
    for (projection_names const& names : known_names) {
      std::set<std::string> wanted{names.up, names.down};
      if (*names.gate != '\0') wanted.insert(names.gate);
      if (of.projections != wanted) continue;
      layer.gate = names.gate;
      layer.up = names.up;
      layer.down = names.down;
    }
    if (layer.up.empty()) {
      std::string list;
      for (std::string const& p : of.projections) list += (list.empty() ? "" : ", ") + p;
      file.refuse("has experts '" + prefix + "' with the projections " + list + ", which are none that are known");
    }
    layer.sizes.experts = of.experts;
    layer.sizes.gated = !layer.gate.empty();
    layer.sizes.biased = of.biases.contains(layer.up) || (layer.sizes.gated && of.biases.contains(layer.gate));
    std::string const first = layer.name(0, layer.up);
    if (!file.has(first)) file.refuse("has experts '" + prefix + "' without '" + first + "'");
    checkpoint::tensor const& up = file.at(first);
    if (up.dims.size() != 2 || up.dims[0] < 1 || up.dims[1] < 1 || up.dims[0] > std::numeric_limits<int>::max() / 4 ||
        up.dims[1] > std::numeric_limits<int>::max() / 4) {
      file.refuse(first, "has tensor '" + first + "' with shape " + checkpoint::text(up.dims) +
                             ", expected [intermediate, hidden]");
    }
    layer.sizes.intermediate = static_cast<int>(up.dims[0]);
    layer.sizes.hidden = static_cast<int>(up.dims[1]);
    layer.type = up.type;
    if (layer.type != "F32" && layer.type != "BF16" && layer.type != "F16") {
      file.refuse(first, "has tensor '" + first + "' of type " + layer.type + ", expected F32, BF16 or F16");
    }
    auto const check = [&](std::string const& name, checkpoint::shape const& dims) {
      if (!file.has(name)) file.refuse("has no tensor '" + name + "', which the other experts have");
      checkpoint::tensor const& t = file.at(name);
      if (t.dims != dims || t.type != layer.type) {
        file.refuse(name, "has tensor '" + name + "' of type " + t.type + " with shape " + checkpoint::text(t.dims) +
                              ", expected " + layer.type + " and " + checkpoint::text(dims));
      }
    };
    for (int e = 0; e < layer.sizes.experts; ++e) {
      for (std::string const& p : layer.projections()) {
        check(layer.name(e, p), layer.dims(p));
        // The bias of down belongs to no unit, and is copied as it is.
        if (p != layer.down && of.biases.contains(p)) check(layer.name(e, p, "bias"), {layer.sizes.intermediate});
      }
    }
    result.push_back(std::move(layer));
  }
  if (result.empty()) {
    file.refuse(
        "has no routed experts of known names, such as '….experts.0.w1.weight', '….experts.0.gate_proj.weight' or "
        "'….experts.expert_0.wi.weight'");
  }
  // 2 before 10.
  auto const key = [](std::string const& name) {
    std::string padded, digits;
    for (char c : name + ".") {
      if (std::isdigit(static_cast<unsigned char>(c)) != 0) {
        digits += c;
        continue;
      }
      if (!digits.empty()) padded += std::string(12 - std::min<std::size_t>(12, digits.size()), '0') + digits;
      digits.clear();
      padded += c;
    }
    return padded;
  };
  std::stable_sort(result.begin(), result.end(),
                   [&](expert_layer const& a, expert_layer const& b) { return key(a.prefix) < key(b.prefix); });
  return result;
}

/// Whether an item of `--layers` names a layer: by the first number in its name, or by a part of its name.
inline bool is_named(expert_layer const& layer, layer_item const& item) {
  if (item.first < 0) return layer.prefix.find(item.text) != std::string::npos;
  std::size_t const digit = layer.prefix.find_first_of("0123456789");
  if (digit == std::string::npos) return false;
  int number = -1;
  std::from_chars(layer.prefix.data() + digit, layer.prefix.data() + layer.prefix.size(), number);
  return number >= item.first && number <= item.last;
}

/// The layers that `--layers` names, all where it has no items. Throws for an item that names none.
inline std::vector<expert_layer> named_layers(checkpoint::reader const& file, std::vector<layer_item> const& items) {
  std::vector<expert_layer> const all = find_layers(file);
  for (layer_item const& item : items) {
    if (std::none_of(all.begin(), all.end(), [&](expert_layer const& layer) { return is_named(layer, item); })) {
      file.refuse("has no layer with routed experts that --layers " + item.text + " names");
    }
  }
  std::vector<expert_layer> result;
  for (expert_layer const& layer : all) {
    if (items.empty() ||
        std::any_of(items.begin(), items.end(), [&](layer_item const& item) { return is_named(layer, item); })) {
      result.push_back(layer);
    }
  }
  return result;
}

}  // namespace compress_experts
