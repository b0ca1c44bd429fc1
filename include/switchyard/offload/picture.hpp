#pragma once

#include <switchyard/core/language.hpp>

#include <switchyard/core/error.hpp>
#include <switchyard/offload/measures.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace switchyard::offload {

namespace detail {

template <class... Values>
std::string formatted(char const* pattern, Values... values) {
  char text[384];
  int const size = std::snprintf(text, sizeof text, pattern, values...);
  return std::string(text, static_cast<std::size_t>(std::clamp(size, 0, static_cast<int>(sizeof text) - 1)));
}

/// What stands above and below one panel of the picture, and where its values are.
struct panel {
  double top, most, seconds;
  static constexpr double left = 70.0, width = 640.0, height = 110.0;

  double x(double at) const { return left + (seconds > 0.0 ? at / seconds : 0.0) * width; }
  double y(double value) const { return top + height - (most > 0.0 ? value / most : 0.0) * height; }
  /// Lines across at nothing, half and all, and what the panel shows.
  std::string frame(char const* name, char const* number) const {
    std::string out = formatted("<text x=\"%.0f\" y=\"%.1f\" font-size=\"13\" font-weight=\"bold\">%s</text>\n", left,
                                top - 10.0, name);
    for (double share : {0.0, 0.5, 1.0}) {
      out += formatted("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", left, y(share * most),
                       left + width, y(share * most), share > 0.0 ? "#e4e7eb" : "#7b8794");
      out += formatted("<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"end\" fill=\"#7b8794\">", left - 8.0,
                       y(share * most) + 4.0);
      out += formatted(number, share * most);
      out += "</text>\n";
    }
    return out;
  }
};

}  // namespace detail

/// What a cache did over time, as an SVG picture: the bytes that were resident, with the budget; the bytes that were read; and the part of the
/// time in which calls waited. Drawn of the calls that were recorded (`cache_options::record_calls`), of which there is at least one.
inline std::string picture_of(cache_measures const& measures, std::string const& title) {
  using detail::formatted;
  if (measures.calls.empty()) {
    fail("offload::picture_of, measures", "calls that were recorded (cache_options::record_calls)", "none");
  }
  double const begin = measures.calls.front().begin_seconds;
  double const seconds = measures.calls.back().begin_seconds + measures.calls.back().seconds - begin;
  double const megabyte = 1e-6, moved = static_cast<double>(measures.calls.back().moved_bytes) * megabyte;
  double const budget = static_cast<double>(measures.budget_bytes) * megabyte;
  std::string out =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"580\" viewBox=\"0 0 760 580\" "
      "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#1f2933\">\n"
      "<rect width=\"760\" height=\"580\" fill=\"#ffffff\"/>\n";
  out += "<text x=\"24\" y=\"34\" font-size=\"18\" font-weight=\"bold\">" + title + "</text>\n";

  detail::panel const of_resident{86.0, 1.1 * budget, seconds}, of_moved{246.0, std::max(moved, megabyte), seconds};
  auto const curve = [&](detail::panel const& to, char const* colour, std::int64_t call_measures::*bytes) {
    std::string points;
    double before = to.y(static_cast<double>(measures.calls.front().*bytes) * megabyte);
    for (call_measures const& c : measures.calls) {
      double const x = to.x(c.begin_seconds + c.seconds - begin), y = to.y(static_cast<double>(c.*bytes) * megabyte);
      if (points.empty()) points = formatted("%.1f,%.1f ", to.x(0.0), before);
      points += formatted("%.1f,%.1f %.1f,%.1f ", x, before, x, y);
      before = y;
    }
    out +=
        formatted("<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"", colour) + points + "\"/>\n";
  };
  out += of_resident.frame("resident, MB", "%.0f");
  out +=
      formatted("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#d9480f\" stroke-dasharray=\"5 3\"/>\n",
                of_resident.left, of_resident.y(budget), of_resident.left + of_resident.width, of_resident.y(budget));
  out += formatted("<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"end\" fill=\"#d9480f\">budget</text>\n",
                   of_resident.left + of_resident.width, of_resident.y(budget) - 4.0);
  curve(of_resident, "#3b6fb6", &call_measures::resident_bytes);
  out += of_moved.frame("read, MB", "%.0f");
  curve(of_moved, "#2b8a3e", &call_measures::moved_bytes);

  // A call's waiting is spread over the time that the call took.
  constexpr int bars = 80;
  std::vector<double> waiting(bars);
  for (call_measures const& c : measures.calls) {
    if (c.seconds <= 0.0 || seconds <= 0.0) continue;
    double const from = (c.begin_seconds - begin) / seconds * bars, to = from + c.seconds / seconds * bars;
    for (int b = std::max(0, static_cast<int>(from)); b < bars && b < to; ++b) {
      double const part = std::min<double>(to, b + 1) - std::max<double>(from, b);
      waiting[static_cast<std::size_t>(b)] += part * c.waiting_seconds / c.seconds;
    }
  }
  detail::panel const of_waiting{406.0, 100.0, seconds};
  out += of_waiting.frame("calls that wait, share of the time", "%.0f%%");
  for (int b = 0; b < bars; ++b) {
    double const y = of_waiting.y(100.0 * std::min(1.0, waiting[static_cast<std::size_t>(b)]));
    out += formatted("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"#c92a2a\"/>\n",
                     of_waiting.x(seconds * b / bars), y, of_waiting.width / bars - 1.0, of_waiting.y(0.0) - y);
  }
  for (int i = 0; i <= 5; ++i) {
    double const at = seconds * i / 5.0;
    out +=
        formatted("<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"middle\" fill=\"#7b8794\">%.0f</text>\n",
                  of_waiting.x(at), of_waiting.y(0.0) + 18.0, 1e3 * at);
  }
  out += formatted("<text x=\"%.1f\" y=\"%.1f\" font-size=\"12\" text-anchor=\"middle\" fill=\"#52606d\">ms</text>\n",
                   of_waiting.left + of_waiting.width / 2.0, of_waiting.y(0.0) + 38.0);
  return out + "</svg>\n";
}

}  // namespace switchyard::offload
