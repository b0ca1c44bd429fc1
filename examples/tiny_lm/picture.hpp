#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

/// How often each expert was used: as bars for a terminal and as an SVG picture.
namespace tiny_lm {

/// For each block the share of each expert, in percent.
using shares = std::vector<std::vector<double>>;

template <class Usage>
shares shares_of(Usage const& used) {
  shares result;
  for (auto const& block : used) {
    double total = 0.0;
    for (std::int64_t count : block) total += static_cast<double>(count);
    auto& row = result.emplace_back();
    for (std::int64_t count : block) row.push_back(total > 0.0 ? 100.0 * static_cast<double>(count) / total : 0.0);
  }
  return result;
}

namespace detail {

template <class... Values>
std::string format(char const* pattern, Values... values) {
  char text[512];
  int const size = std::snprintf(text, sizeof text, pattern, values...);
  return std::string(text, std::clamp<std::size_t>(size, 0, sizeof text - 1));
}

inline double largest(shares const& all) {
  double result = 0.0;
  for (auto const& block : all) {
    for (double share : block) result = std::max(result, share);
  }
  return result;
}

/// A bar `width` characters wide, drawn to an eighth of a character.
inline std::string bar(double fraction, int width) {
  static constexpr char const* parts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  int const eighths = static_cast<int>(fraction * width * 8 + 0.5);
  std::string text;
  for (int i = 0; i < eighths / 8; ++i) text += "█";
  text += parts[eighths % 8];
  return text + std::string(width - (eighths + 7) / 8, ' ');
}

}  // namespace detail

/// One line per expert, one column per block.
inline std::string bars(shares const& all) {
  constexpr int width = 10;
  double const full = std::max(detail::largest(all), 1.0);
  std::string text = "  expert";
  for (std::size_t block = 0; block < all.size(); ++block) text += detail::format("  block %-11zu", block);
  text += "\n";
  for (std::size_t e = 0; !all.empty() && e < all[0].size(); ++e) {
    text += detail::format("  %6zu", e);
    for (auto const& block : all) {
      text += "  " + detail::bar(block[e] / full, width) + detail::format(" %4.1f %%", block[e]);
    }
    text += "\n";
  }
  return text;
}

/// How evenly a block uses its experts: the number that, used alike, have the entropy of these percentages.
inline double effective_number(std::vector<double> const& percentages) {
  double entropy = 0.0;
  for (double share : percentages) entropy -= share > 0.0 ? share / 100.0 * std::log(share / 100.0) : 0.0;
  return std::exp(entropy);
}

/// For experts that are too many to draw, such as the rows of a memory: one line per block.
inline std::string row_use(shares const& all) {
  std::string text;
  for (std::size_t block = 0; block < all.size(); ++block) {
    auto const read = std::count_if(all[block].begin(), all[block].end(), [](double share) { return share > 0.0; });
    text += detail::format("  block %zu: %lld of %zu rows read, with the entropy of %.0f read alike\n", block,
                           static_cast<long long>(read), all[block].size(), effective_number(all[block]));
  }
  return text;
}

/// The same as small bar charts on one scale, one per block. `subtitle` says what was counted.
inline std::string svg(shares const& all, std::string const& subtitle) {
  constexpr int columns = 2, panel_width = 380, panel_height = 170, below = 64;
  constexpr int gap = 48, margin = 48, top = 96;
  int const rows = (static_cast<int>(all.size()) + columns - 1) / columns;
  int const width = 2 * margin + columns * panel_width + (columns - 1) * gap;
  int const height = top + rows * (panel_height + below) - 14;
  int const experts = all.empty() ? 1 : static_cast<int>(all[0].size());
  // The axis ends at a multiple of 5 %.
  double const full = 5.0 * (static_cast<int>(detail::largest(all) / 5.0) + 1);
  double const even = 100.0 / experts;

  std::string out = detail::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
      "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#1f2933\">\n",
      width, height, width, height);
  out += detail::format("<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height);
  out += detail::format("<text x=\"%d\" y=\"36\" font-size=\"20\" font-weight=\"bold\">Share of each expert</text>\n",
                        margin);
  out +=
      detail::format("<text x=\"%d\" y=\"58\" font-size=\"13\" fill=\"#52606d\">%s</text>\n", margin, subtitle.c_str());
  // Legend of the dashed line, at the right end of the title.
  int const right = width - margin;
  out += detail::format(
      "<line x1=\"%d\" y1=\"31\" x2=\"%d\" y2=\"31\" stroke=\"#d9480f\" stroke-width=\"1.5\" stroke-dasharray=\"5 "
      "3\"/>\n",
      right - 140, right - 112);
  out += detail::format(
      "<text x=\"%d\" y=\"35\" font-size=\"12\" text-anchor=\"end\" fill=\"#52606d\">"
      "even use, %.1f %%</text>\n",
      right, even);

  for (std::size_t block = 0; block < all.size(); ++block) {
    int const left = margin + static_cast<int>(block) % columns * (panel_width + gap);
    int const upper = top + static_cast<int>(block) / columns * (panel_height + below);
    int const base = upper + panel_height;
    auto const y = [&](double share) { return base - share / full * (panel_height - 24); };
    out += detail::format("<text x=\"%d\" y=\"%d\" font-size=\"14\" font-weight=\"bold\">Block %zu</text>\n", left,
                          upper + 4, block);
    for (double share = 5.0; share <= full; share += 5.0) {
      out += detail::format("<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#e4e7eb\"/>\n", left, y(share),
                            left + panel_width, y(share));
      out += detail::format(
          "<text x=\"%d\" y=\"%.1f\" font-size=\"11\" text-anchor=\"end\" fill=\"#7b8794\">%.0f%%"
          "</text>\n",
          left - 6, y(share) + 4, share);
    }
    out += detail::format(
        "<text x=\"%d\" y=\"%d\" font-size=\"12\" text-anchor=\"middle\" fill=\"#52606d\">expert"
        "</text>\n",
        left + panel_width / 2, base + 34);
    double const step = static_cast<double>(panel_width) / experts;
    for (int e = 0; e < experts; ++e) {
      double const share = all[block][e], middle = left + (e + 0.5) * step;
      out += detail::format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"#3b6fb6\"/>\n",
                            middle - 0.36 * step, y(share), 0.72 * step, base - y(share));
      // In the foot of the bar, where the dashed line does not cross it; above a bar too low for that.
      bool const inside = base - y(share) > 18.0;
      out += detail::format(
          "<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"middle\" fill=\"%s\">%.1f"
          "</text>\n",
          middle, inside ? base - 6.0 : y(share) - 4.0, inside ? "#ffffff" : "#1f2933", share);
      out += detail::format(
          "<text x=\"%.1f\" y=\"%d\" font-size=\"12\" text-anchor=\"middle\" fill=\"#52606d\">%d"
          "</text>\n",
          middle, base + 17, e);
    }
    out += detail::format("<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"#7b8794\"/>\n", left, base,
                          left + panel_width, base);
    out += detail::format(
        "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#d9480f\" stroke-width=\"1.5\" "
        "stroke-dasharray=\"5 3\"/>\n",
        left, y(even), left + panel_width, y(even));
  }
  return out + "</svg>\n";
}

}  // namespace tiny_lm
