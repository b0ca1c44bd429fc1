#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "results.hpp"

namespace switchyard::bench {

/// The bytes that each contender read, by budget, as an SVG picture: a panel for each trace. Bytes are multiples of all pieces, on an axis
/// of equal ratios.
inline std::string bytes_by_budget(std::vector<trace_results> const& all) {
  struct line {
    char const *contender, *colour, *dashes;
  };
  static constexpr line lines[] = {{"mmap", "#868e96", ""},
                                   {"on demand", "#212529", "2 3"},
                                   {"exact", "#e8590c", ""},
                                   {"lru", "#f08c00", ""},
                                   {"pinned", "#9c36b5", ""},
                                   {"ours", "#3b6fb6", ""},
                                   {"ours, frequencies", "#3b6fb6", "2 3"},
                                   {"ours, next router", "#3b6fb6", "6 4"},
                                   {"ours, SiDA", "#0c8599", "6 4"},
                                   {"ours, oracle", "#2b8a3e", ""},
                                   {"Belady, simulated", "#1f2933", "1 4"}};
  constexpr int columns = 3;
  constexpr double panel_width = 230.0, panel_height = 190.0, gap = 62.0, left = 70.0, top = 104.0, below = 74.0;
  int const rows = (static_cast<int>(all.size()) + columns - 1) / columns;
  double const width = left + columns * (panel_width + gap) + 130.0, height = top + rows * (panel_height + below);
  auto const format = [](char const* pattern, auto... values) {
    char text[384];
    int const size = std::snprintf(text, sizeof text, pattern, values...);
    return std::string(text, static_cast<std::size_t>(std::clamp(size, 0, static_cast<int>(sizeof text) - 1)));
  };
  std::string out = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" "
      "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#1f2933\">\n",
      width, height, width, height);
  out += format("<rect width=\"%.0f\" height=\"%.0f\" fill=\"#ffffff\"/>\n", width, height);
  out +=
      "<text x=\"24\" y=\"34\" font-size=\"20\" font-weight=\"bold\">What is read, by budget</text>\n"
      "<text x=\"24\" y=\"56\" font-size=\"13\" fill=\"#52606d\">bytes read over those of the least possible reads "
      "(Belady), "
      "against the share of the experts that fits the budget</text>\n";
  double most = 1.0;
  for (trace_results const& t : all) {
    for (budget_results const& b : t.budgets) {
      for (outcome const& o : b.outcomes) {
        if (b.belady_bytes > 0)
          most = std::max(most, static_cast<double>(o.bytes) / static_cast<double>(b.belady_bytes));
      }
    }
  }
  most = std::min(most, 8.0);
  for (std::size_t i = 0; i < all.size(); ++i) {
    double const x0 = left + static_cast<double>(i % columns) * (panel_width + gap);
    double const y0 = top + static_cast<double>(i / columns) * (panel_height + below);
    auto const x = [&](double share) { return x0 + share * panel_width; };
    auto const y = [&](double ratio) {
      return y0 + panel_height - (std::min(ratio, most) - 1.0) / std::max(most - 1.0, 0.1) * panel_height;
    };
    out += format("<text x=\"%.1f\" y=\"%.1f\" font-size=\"13\" font-weight=\"bold\">%s</text>\n", x0, y0 - 10.0,
                  all[i].name.c_str());
    for (int ratio = 1; ratio <= static_cast<int>(most); ++ratio) {
      out += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x0, y(ratio),
                    x0 + panel_width, y(ratio), ratio == 1 ? "#7b8794" : "#e4e7eb");
      out += format("<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"end\" fill=\"#7b8794\">%d</text>\n",
                    x0 - 6.0, y(ratio) + 4.0, ratio);
    }
    for (budget_results const& b : all[i].budgets) {
      out +=
          format("<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"middle\" fill=\"#7b8794\">%.0f%%</text>\n",
                 x(b.share), y0 + panel_height + 18.0, 100.0 * b.share);
    }
    for (line const& l : lines) {
      std::string points, dots;
      for (budget_results const& b : all[i].budgets) {
        outcome const* const o = b.find(l.contender);
        if (o == nullptr || b.belady_bytes == 0) continue;
        double const ratio = static_cast<double>(o->bytes) / static_cast<double>(b.belady_bytes);
        points += format("%.1f,%.1f ", x(b.share), y(ratio));
        dots += format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"%s\"/>\n", x(b.share), y(ratio), l.colour);
      }
      out += format("<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" stroke-dasharray=\"%s\" points=\"",
                    l.colour, l.dashes[0] == '\0' ? "none" : l.dashes) +
             points + "\"/>\n" + dots;
    }
  }
  double at = top;
  for (line const& l : lines) {
    double const x = width - 178.0;
    out += format(
        "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"2\" "
        "stroke-dasharray=\"%s\"/>\n",
        x, at, x + 28.0, at, l.colour, l.dashes[0] == '\0' ? "none" : l.dashes);
    out += format("<text x=\"%.1f\" y=\"%.1f\" font-size=\"12\">%s</text>\n", x + 36.0, at + 4.0, l.contender);
    at += 20.0;
  }
  out += format("<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" fill=\"#7b8794\">more than %.0f</text>\n", width - 178.0,
                at + 10.0, most);
  out += format("<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" fill=\"#7b8794\">stands at %.0f</text>\n", width - 178.0,
                at + 24.0, most);
  return out + "</svg>\n";
}

}  // namespace switchyard::bench
