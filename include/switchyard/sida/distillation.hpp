#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/lanes.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace switchyard::sida {

/// What the predictor is trained with: the logits of the model's routers, the teacher, and its own. Rows are the tokens of all layers.
struct truncated_distillation_args {
  view<float const> student = {};  ///< [rows, experts]
  view<float const> teacher = {};  ///< [rows, experts]
  view<float> gradient =
      {};  ///< [rows, experts], of the loss to the student's logits; may be their own memory; no data: not wanted
  int kept = 30;  ///< so many of the teacher's largest logits are compared, or all where there are fewer
  double cross_entropy_weight = 0.005;
};

struct truncated_distillation_losses {
  double loss = 0.0;  ///< distillation + cross_entropy_weight * cross_entropy
  double distillation =
      0.0;  ///< mean of |softmax of the student - softmax of the teacher|, both over the kept entries alone
  double cross_entropy = 0.0;  ///< mean of that with the teacher's best expert, over all experts, in nats
};

/// Truncated knowledge distillation, summed in double. Of equal logits of the teacher those of lower ids are kept. Without rows all is 0.
/// Where the probabilities are equal, the gradient of their distance is 0. Throws `error` for matrices that do not fit; logits that are
/// no numbers show in the result.
/// Source: Du et al. 2024, SiDA-MoE: Sparsity-Inspired Data-Aware Serving; 30 entries and the weight are those of its code,
/// which takes means over slices of at most 2048 sequences.
inline truncated_distillation_losses truncated_distillation(truncated_distillation_args const& args) {
  std::int64_t const rows = args.student.rows, experts = args.student.columns;
  auto const check = [&](auto const& matrix, char const* name) {
    auto const what = [&] { return std::string("sida::truncated_distillation, ") + name; };
    if (matrix.rows != rows || matrix.columns != experts) {
      fail(what(), std::to_string(rows) + " x " + std::to_string(experts) + " (rows x experts)",
           std::to_string(matrix.rows) + " x " + std::to_string(matrix.columns));
    }
    if (rows > 1 && matrix.row_stride < experts) {
      fail(what() + ", row stride", "at least " + std::to_string(experts), std::to_string(matrix.row_stride));
    }
    if (rows > 0 && matrix.data == nullptr) fail(what(), "a matrix", "a null pointer");
  };
  if (rows < 0 || experts < 1) {
    fail("sida::truncated_distillation, student", "at least 0 x 1 (rows x experts)",
         std::to_string(rows) + " x " + std::to_string(experts));
  }
  check(args.student, "student");
  check(args.teacher, "teacher");
  if (args.gradient.data != nullptr) check(args.gradient, "gradient");
  if (args.kept < 1) fail("sida::truncated_distillation, kept", "at least 1", std::to_string(args.kept));
  truncated_distillation_losses result;
  if (rows == 0) return result;

  auto const all = static_cast<std::size_t>(experts);
  std::size_t const kept = std::min(all, static_cast<std::size_t>(args.kept));
  std::vector<candidate> best(all);
  std::vector<double> gradient(all), of_student(all), of_teacher(kept), of_kept(kept), signs(kept);
  // Turns logits into probabilities.
  auto const softmax = [](std::vector<double>& x) {
    double const largest = *std::max_element(x.begin(), x.end());
    double total = 0.0;
    for (double& v : x) total += v = std::exp(v - largest);
    for (double& v : x) v /= total;
    return largest + std::log(total);
  };
  double const of_row = 1.0 / static_cast<double>(rows), of_entry = of_row / static_cast<double>(kept);
  for (std::int64_t row = 0; row < rows; ++row) {
    float const *const student = args.student.row(row), *const teacher = args.teacher.row(row);
    for (std::size_t e = 0; e < all; ++e) best[e] = {teacher[e], static_cast<int>(e)};
    std::partial_sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(kept), best.end(), precedes);
    for (std::size_t i = 0; i < kept; ++i) {
      of_teacher[i] = static_cast<double>(best[i].value);
      of_kept[i] = static_cast<double>(student[best[i].id]);
    }
    for (std::size_t e = 0; e < all; ++e) of_student[e] = static_cast<double>(student[e]);
    double const of_best = of_kept[0];
    softmax(of_teacher);
    softmax(of_kept);
    double const log_total = softmax(of_student);
    double mean_sign = 0.0;
    for (std::size_t i = 0; i < kept; ++i) {
      double const difference = of_kept[i] - of_teacher[i];
      result.distillation += of_entry * std::abs(difference);
      signs[i] = difference > 0.0 ? 1.0 : difference < 0.0 ? -1.0 : 0.0;
      mean_sign += signs[i] * of_kept[i];
    }
    result.cross_entropy += of_row * (log_total - of_best);
    if (args.gradient.data == nullptr) continue;
    double const of_cross_entropy = args.cross_entropy_weight * of_row;
    for (std::size_t e = 0; e < all; ++e) gradient[e] = of_cross_entropy * of_student[e];
    gradient[static_cast<std::size_t>(best[0].id)] -= of_cross_entropy;
    for (std::size_t i = 0; i < kept; ++i) {
      gradient[static_cast<std::size_t>(best[i].id)] += of_entry * of_kept[i] * (signs[i] - mean_sign);
    }
    for (std::size_t e = 0; e < all; ++e) args.gradient.row(row)[e] = static_cast<float>(gradient[e]);
  }
  result.loss = result.distillation + args.cross_entropy_weight * result.cross_entropy;
  return result;
}

}  // namespace switchyard::sida
