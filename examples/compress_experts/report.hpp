#pragma once

#include <switchyard/compression/resmoe.hpp>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "compress.hpp"

namespace compress_experts {
namespace detail {

template <class... Values>
std::string format(char const* pattern, Values... values) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

inline std::string row(std::string const& name, compression::resmoe_report const& r,
                       compression::centre_error const& e) {
  return format("    %-38s %12.4g %12.4g   %12.4g %12.4g\n", name.c_str(), e.residual, r.per_element(e.residual),
                e.centre, r.per_element(e.centre));
}

inline std::string bytes(std::int64_t count) {
  return count < 10'000'000 ? std::to_string(count) + " bytes" : format("%.1f MB", static_cast<double>(count) * 1e-6);
}

inline std::string sizes(std::int64_t before, std::int64_t centre, std::int64_t residual) {
  double const all = static_cast<double>(before);
  return bytes(before) + " before; " + bytes(centre) + " for the centre and " + bytes(residual) +
         format(" for residuals: %.1f %%, %.1f %% without the centre\n",
                100.0 * static_cast<double>(centre + residual) / all, 100.0 * static_cast<double>(residual) / all);
}

}  // namespace detail

/// What became of each layer, as a table.
inline std::string table(std::vector<layer_report> const& layers) {
  std::string text;
  std::int64_t before = 0, centre = 0, residual = 0;
  for (layer_report const& l : layers) {
    compression::resmoe_report const& r = l.report;
    bool const pruned = r.form == compression::residual_form::pruned;
    text += l.layer.prefix + detail::format(": %d experts of %d hidden units and %d numbers, %s %lld\n",
                                            r.sizes.experts, r.sizes.intermediate, static_cast<int>(r.sizes.columns()),
                                            pruned ? "kept" : "rank",
                                            pruned ? static_cast<long long>(r.kept) : static_cast<long long>(r.rank));
    text += "    squared error of an expert               with residual, a number     centre alone,  a number\n";
    text += detail::row(
        detail::format("barycenter from %d, %d iteration%s", r.start, r.iterations, r.iterations == 1 ? "" : "s"), r,
        r.barycenter);
    if (r.compared) {
      text += detail::row(detail::format("expert %d as the centre, aligned", r.single_expert), r, r.single);
      text += detail::row("plain average, not aligned", r, r.average);
    }
    text += "    " + detail::sizes(l.bytes_before, l.centre_bytes, l.residual_bytes);
    before += l.bytes_before;
    centre += l.centre_bytes;
    residual += l.residual_bytes;
  }
  if (layers.size() > 1) text += "All layers: " + detail::sizes(before, centre, residual);
  return text;
}

}  // namespace compress_experts
