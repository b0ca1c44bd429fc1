#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "picture.hpp"

/// Points and lines of several series on two axes, as an SVG picture.
namespace tiny_lm {

struct chart_point {
  double x, y;
  std::string label;  ///< stands beside the point; may be empty
};
struct chart_series {
  std::string name, colour;
  std::vector<chart_point> points;
  bool dashed = false;
  bool joined = true;  ///< by lines
};
struct chart {
  std::string title, subtitle, x_name, y_name;
  std::vector<chart_series> series;
  double level = 0.0;  ///< a dotted line across; 0: none
  std::string level_name;
};

namespace detail {

/// A round number of a third to a whole of the number.
inline double round_step(double number) {
  double const power = std::pow(10.0, std::floor(std::log10(number)));
  for (double digit : {5.0, 2.0}) {
    if (digit * power <= number) return digit * power;
  }
  return power;
}

}  // namespace detail

inline std::string svg(chart const& of) {
  constexpr int width = 860, height = 560, left = 70, right = 250, top = 84, bottom = 60;
  double least_y = 1e300, most_y = -1e300, most_x = 0.0;
  for (chart_series const& s : of.series) {
    for (chart_point const& p : s.points) {
      least_y = std::min(least_y, p.y);
      most_y = std::max(most_y, p.y);
      most_x = std::max(most_x, p.x);
    }
  }
  if (of.level > 0.0) least_y = std::min(least_y, of.level);
  double const y_step = detail::round_step(std::max(most_y - least_y, 1e-6) / 5.0),
               x_step = detail::round_step(most_x / 6.0);
  double const from_y = std::floor(least_y / y_step) * y_step, to_y = std::ceil(most_y / y_step) * y_step;
  double const to_x = std::ceil(most_x / x_step) * x_step;
  auto const x_at = [&](double x) { return left + x / to_x * (width - left - right); };
  auto const y_at = [&](double y) {
    return height - bottom - (y - from_y) / (to_y - from_y) * (height - top - bottom);
  };

  std::string out = detail::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
      "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#1f2933\">\n",
      width, height, width, height);
  auto const text = [&](double x, double y, char const* style, std::string const& words) {
    out += detail::format("<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, style, words.c_str());
  };
  auto const line = [&](double x1, double y1, double x2, double y2, char const* style) {
    out += detail::format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2, style);
  };
  out += detail::format("<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height);
  text(24, 34, "font-size=\"20\" font-weight=\"bold\"", of.title);
  text(24, 56, "font-size=\"13\" fill=\"#52606d\"", of.subtitle);
  for (int i = 0; from_y + i * y_step <= to_y + 1e-9; ++i) {
    double const y = from_y + i * y_step;
    line(left, y_at(y), width - right, y_at(y), "stroke=\"#e4e7eb\"");
    text(left - 8, y_at(y) + 4, "font-size=\"11\" text-anchor=\"end\" fill=\"#7b8794\"",
         detail::format("%g", std::round(y * 1e6) / 1e6));
  }
  for (int i = 0; i * x_step <= to_x + 1e-9; ++i) {
    text(x_at(i * x_step), height - bottom + 18, "font-size=\"11\" text-anchor=\"middle\" fill=\"#7b8794\"",
         detail::format("%g", i * x_step));
  }
  line(left, height - bottom, width - right, height - bottom, "stroke=\"#7b8794\"");
  text((left + width - right) / 2.0, height - 18, "font-size=\"12\" text-anchor=\"middle\" fill=\"#52606d\"",
       of.x_name);
  text(left - 8, top - 10, "font-size=\"12\" fill=\"#52606d\"", of.y_name);
  if (of.level > 0.0) {
    line(left, y_at(of.level), width - right, y_at(of.level), "stroke=\"#1f2933\" stroke-dasharray=\"2 3\"");
    text(width - right + 6, y_at(of.level) + 4, "font-size=\"11\" fill=\"#1f2933\"", of.level_name);
  }
  int legend = 0;
  for (chart_series const& s : of.series) {
    std::string const dash = s.dashed ? " stroke-dasharray=\"6 4\"" : "";
    if (s.joined && !s.points.empty()) {
      out += "<polyline fill=\"none\" stroke=\"" + s.colour + "\" stroke-width=\"2\"" + dash + " points=\"";
      for (chart_point const& p : s.points) out += detail::format("%.1f,%.1f ", x_at(p.x), y_at(p.y));
      out += "\"/>\n";
    }
    for (chart_point const& p : s.points) {
      out += detail::format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\" stroke=\"%s\"/>\n", x_at(p.x),
                            y_at(p.y), s.dashed ? "#ffffff" : s.colour.c_str(), s.colour.c_str());
      if (!p.label.empty()) {
        text(x_at(p.x) + 6, y_at(p.y) - 6, ("font-size=\"10\" fill=\"" + s.colour + "\"").c_str(), p.label);
      }
    }
    double const x = width - right + 24, y = top + 20.0 * legend++;
    if (s.joined && s.points.size() > 1)
      line(x, y, x + 28, y, ("stroke=\"" + s.colour + "\" stroke-width=\"2\"" + dash).c_str());
    out += detail::format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\" stroke=\"%s\"/>\n", x + 14, y,
                          s.dashed ? "#ffffff" : s.colour.c_str(), s.colour.c_str());
    text(x + 36, y + 4, "font-size=\"12\"", s.name);
  }
  return out + "</svg>\n";
}

}  // namespace tiny_lm
