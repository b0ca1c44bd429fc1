#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "picture.hpp"

/// Functional experts as an SVG picture.
namespace tiny_lm {

/// Bits per byte more: of the bytes of a class, and of the others.
struct loss_increase {
  double of_class = 0.0, of_others = 0.0;
};

/// What was found of one class.
struct drawn_class {
  std::string name = {};
  std::vector<std::vector<double>> counts_of_all = {};  ///< [blocks][experts], of top units, all experts looked at
  std::vector<std::vector<double>> counts = {};         ///< the same where those that a byte is sent to are
  double threshold = 0.0;                               ///< counts above it make an expert functional
  double chance = 0.0;                                  ///< the mean count of a random partition
  std::vector<loss_increase> increases =
      {};  ///< functional experts perturbed, and as many others; empty where there are none
};

/// One row for each class: a bar chart of every block's experts, and what perturbing them costs. `subtitle` says what was counted,
/// `note` what is not drawn.
inline std::string functional_svg(std::vector<drawn_class> const& all, std::string const& subtitle,
                                  std::string const& note) {
  constexpr int chart_width = 150, chart_height = 84, gap = 26, row_height = 132, margin = 48, top = 138, label = 116;
  constexpr char const *blue = "#3b6fb6", *orange = "#d9480f", *grey = "#9aa5b1", *light_orange = "#f3b594",
                       *light_blue = "#a9c1e3", *text = "#52606d";
  std::size_t const charts = all.empty() ? 0 : all[0].counts.size();
  int const losses_left = margin + label + static_cast<int>(charts) * (chart_width + gap) + 16;
  int const losses_width = 250, width = losses_left + losses_width + margin;
  int const height = top + static_cast<int>(all.size()) * row_height + 26;
  double full = 1.0, worst = 0.0;
  for (drawn_class const& c : all) {
    full = std::max(full, c.threshold + 1.0);
    for (auto const* counts : {&c.counts, &c.counts_of_all}) {
      for (auto const& block : *counts) full = std::max(full, *std::max_element(block.begin(), block.end()));
    }
    for (loss_increase const& i : c.increases) worst = std::max({worst, i.of_class, i.of_others});
  }

  std::string out = detail::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
      "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#1f2933\">\n",
      width, height, width, height);
  auto const say = [&](int x, double y, int size, char const* colour, char const* more, std::string const& what) {
    out += detail::format("<text x=\"%d\" y=\"%.1f\" font-size=\"%d\" fill=\"%s\" %s>", x, y, size, colour, more) +
           what + "</text>\n";
  };
  auto const box = [&](double x, double y, double w, double h, char const* colour) {
    out += detail::format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y, w, h,
                          colour);
  };
  out += detail::format("<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height);
  say(margin, 36, 20, "#1f2933", "font-weight=\"bold\"", "Functional experts for classes of bytes");
  say(margin, 58, 13, text, "", subtitle);
  box(margin, 74, 8, 12, light_blue);
  box(margin + 9, 74, 8, 12, light_orange);
  say(margin + 23, 84.5, 12, text, "", "all experts looked at, as is published");
  box(margin + 258, 74, 8, 12, blue);
  box(margin + 267, 74, 8, 12, orange);
  say(margin + 281, 84.5, 12, text, "", "those that the byte is sent to");
  box(margin + 472, 74, 12, 12, orange);
  say(margin + 490, 84.5, 12, text, "", "functional: above what chance gives once in 1000 (dashed)");
  box(margin + 882, 79, 24, 2, grey);
  say(margin + 912, 84.5, 12, text, "", "mean of random partitions");
  for (std::size_t block = 0; block < charts; ++block) {
    int const left = margin + label + static_cast<int>(block) * (chart_width + gap);
    say(left + chart_width / 2, top - 16, 13, "#1f2933", "font-weight=\"bold\" text-anchor=\"middle\"",
        "Block " + std::to_string(block));
  }
  say(losses_left, top - 28, 13, "#1f2933", "font-weight=\"bold\"", "Perturbed: bits per byte more");
  say(losses_left, top - 12, 12, text, "", "of this class (dark) and of other bytes (light)");

  for (std::size_t c = 0; c < all.size(); ++c) {
    int const upper = top + static_cast<int>(c) * row_height, base = upper + chart_height + 10;
    say(margin, upper + 10 + chart_height / 2, 13, "#1f2933", "font-weight=\"bold\"", all[c].name);
    auto const y = [&](double count) { return base - count / full * chart_height; };
    for (std::size_t block = 0; block < charts; ++block) {
      int const left = margin + label + static_cast<int>(block) * (chart_width + gap);
      std::vector<double> const& counts = all[c].counts[block];
      double const step = static_cast<double>(chart_width) / static_cast<double>(counts.size());
      for (std::size_t e = 0; e < counts.size(); ++e) {
        double const x = left + (static_cast<double>(e) + 0.1) * step;
        for (bool sent : {false, true}) {
          double const count = sent ? counts[e] : all[c].counts_of_all[block][e];
          bool const is_functional = count > all[c].threshold;
          char const* const colour = is_functional ? (sent ? orange : light_orange) : sent ? blue : light_blue;
          box(x + (sent ? 0.4 * step : 0.0), y(count), 0.4 * step, base - y(count), colour);
          if (is_functional) {
            say(static_cast<int>(x + (sent ? 0.6 : 0.2) * step), y(count) - 3, 10, orange, "text-anchor=\"middle\"",
                detail::format("%.0f", count));
          }
        }
        say(static_cast<int>(x + 0.4 * step), base + 13, 10, "#7b8794", "text-anchor=\"middle\"", std::to_string(e));
      }
      box(left, base, chart_width, 1, "#cbd2d9");
      box(left, y(all[c].chance) - 1.0, chart_width, 2, grey);
      out += detail::format(
          "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"1.2\" stroke-dasharray=\"5 "
          "3\"/>\n",
          left, y(all[c].threshold + 0.5), left + chart_width, y(all[c].threshold + 0.5), orange);
    }
    if (all[c].increases.empty()) {
      say(losses_left, upper + 10 + chart_height / 2, 12, text, "", "no functional expert");
      continue;
    }
    for (std::size_t other = 0; other < all[c].increases.size(); ++other) {
      loss_increase const& i = all[c].increases[other];
      double const first = upper + 12 + static_cast<double>(other) * 46;
      say(losses_left, first, 11, text, "", other == 0 ? "its functional experts" : "as many others");
      double const scale = (losses_width - 56) / std::max(worst, 1e-9);
      char const *dark = other == 0 ? orange : blue, *light = other == 0 ? light_orange : light_blue;
      for (int bar = 0; bar < 2; ++bar) {
        double const value = bar == 0 ? i.of_class : i.of_others, length = std::max(value, 0.0) * scale;
        double const lower = first + 5 + bar * 13;
        box(losses_left, lower, length, 11, bar == 0 ? dark : light);
        say(losses_left + static_cast<int>(length) + 5, lower + 9.5, 11, text, "", detail::format("%+.3f", value));
      }
    }
  }
  if (!note.empty()) say(margin, height - 14, 12, text, "", note);
  return out + "</svg>\n";
}

}  // namespace tiny_lm
