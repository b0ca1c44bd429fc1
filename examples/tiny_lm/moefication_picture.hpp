#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "picture.hpp"

/// Score and time against the share of the hidden units that are computed, as an SVG picture.
namespace tiny_lm {

struct tradeoff_line {
  std::string name;
  std::vector<int> chosen = {};   ///< experts
  std::vector<double> bits = {};  ///< per byte, of each
  std::vector<double> time = {};  ///< ns for each byte, of each; empty: not measured
};

struct tradeoff {
  std::string title = {};
  double dense_bits = 0.0, dense_time = 0.0;
  int experts = 1;
  std::vector<tradeoff_line> lines = {};
  std::string subtitle = {};
};

inline std::string svg(tradeoff const& of) {
  constexpr int width = 900, height = 540, left = 70, right = 650, upper = 84, base = 470;
  constexpr char const* colours[] = {"#7b8794", "#94c973", "#2f9e44", "#0b7285", "#3b6fb6", "#d9480f"};
  double most_time = of.dense_time;
  for (tradeoff_line const& line : of.lines) {
    for (double t : line.time) most_time = std::max(most_time, t);
  }
  double const low = std::floor(of.dense_bits * 10.0 - 0.5) / 10.0, high = low + 1.5;
  double const full_time = 2500.0 * std::max(1.0, std::ceil(most_time / 2500.0));
  auto const x = [&](double share) { return left + share * (right - left); };
  auto const y = [&](double bits) { return base - (std::min(bits, high) - low) / (high - low) * (base - upper); };
  auto const time_y = [&](double t) { return base - t / full_time * (base - upper); };

  std::string out = detail::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
      "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#1f2933\">\n"
      "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
      width, height, width, height, width, height);
  out += detail::format(
      "<text x=\"%d\" y=\"34\" font-size=\"20\" font-weight=\"bold\">%s</text>\n<text x=\"%d\" y=\"56\" "
      "font-size=\"13\" fill=\"#52606d\">%s</text>\n",
      left, of.title.c_str(), left, of.subtitle.c_str());
  for (int i = 0; i <= 5; ++i) {
    double const bits = low + (high - low) * i / 5.0, share = i / 5.0;
    out += detail::format("<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#e4e7eb\"/>\n", left, y(bits),
                          right, y(bits));
    out += detail::format("<text x=\"%d\" y=\"%.1f\" font-size=\"12\" text-anchor=\"end\">%.1f</text>\n", left - 8,
                          y(bits) + 4, bits);
    out += detail::format("<text x=\"%.1f\" y=\"%d\" font-size=\"12\" text-anchor=\"middle\">%.0f %%</text>\n",
                          x(share), base + 20, 100.0 * share);
    out += detail::format("<text x=\"%d\" y=\"%.1f\" font-size=\"12\" fill=\"#52606d\">%.0f</text>\n", right + 8,
                          time_y(full_time * share) + 4, full_time * share);
  }
  out += detail::format(
      "<text x=\"%d\" y=\"%d\" font-size=\"12\" text-anchor=\"middle\">hidden units computed</text>\n"
      "<text x=\"%d\" y=\"%d\" font-size=\"12\">bits per byte</text>\n"
      "<text x=\"%d\" y=\"%d\" font-size=\"12\" text-anchor=\"end\" fill=\"#52606d\">ns for each byte, dashed</text>\n",
      (left + right) / 2, base + 42, left - 50, upper - 12, right + 40, upper - 12);
  out += detail::format(
      "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#1f2933\" stroke-width=\"1\"/>\n"
      "<text x=\"%d\" y=\"%.1f\" font-size=\"12\">dense</text>\n",
      left, y(of.dense_bits), right, y(of.dense_bits), left + 6, y(of.dense_bits) - 5);
  out += detail::format(
      "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#1f2933\" stroke-width=\"1\" "
      "stroke-dasharray=\"2 4\"/>\n<text x=\"%d\" y=\"%.1f\" font-size=\"12\" text-anchor=\"end\" "
      "fill=\"#52606d\">time of the dense layers</text>\n",
      left, time_y(of.dense_time), right, time_y(of.dense_time), right - 6, time_y(of.dense_time) - 5);
  for (std::size_t i = 0; i < of.lines.size(); ++i) {
    tradeoff_line const& line = of.lines[i];
    // The colours of selectors stay, whether there is a split by METIS or not.
    std::size_t const from_end = of.lines.size() - i;
    char const* const colour = from_end <= 2 ? colours[6 - from_end] : colours[std::min<std::size_t>(i, 3)];
    std::string scores, times, marks;
    for (std::size_t n = 0; n < line.bits.size(); ++n) {
      double const share = static_cast<double>(line.chosen[n]) / of.experts;
      if (line.bits[n] <= high) {
        scores += detail::format("%.1f,%.1f ", x(share), y(line.bits[n]));
        marks += detail::format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", x(share), y(line.bits[n]),
                                colour);
      }
      if (!line.time.empty()) times += detail::format("%.1f,%.1f ", x(share), time_y(line.time[n]));
    }
    out += "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"" + std::string(colour) + "\" points=\"" + scores +
           "\"/>\n" + marks;
    if (!times.empty()) {
      out += "<polyline fill=\"none\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\" stroke=\"" + std::string(colour) +
             "\" points=\"" + times + "\"/>\n";
    }
    double const row = upper + 20.0 + 26.0 * static_cast<double>(i);
    out += detail::format(
        "<circle cx=\"%d\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n<text x=\"%d\" y=\"%.1f\" "
        "font-size=\"13\">%s</text>\n",
        right + 60, row - 4.0, colour, right + 72, row, line.name.c_str());
  }
  return out + "</svg>\n";
}

}  // namespace tiny_lm
