#pragma once

#include <switchyard/compression/units.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// The one header that needs LAPACK and BLAS, and a program that is linked with them: in CMake, LAPACK::LAPACK.
extern "C" {
void dsyevr_(char const* jobz, char const* range, char const* uplo, int const* n, double* a, int const* lda,
             double const* vl, double const* vu, int const* il, int const* iu, double const* abstol, int* m, double* w,
             double* z, int const* ldz, int* isuppz, double* work, int const* lwork, int* iwork, int const* liwork,
             int* info);
void dsyrk_(char const* uplo, char const* trans, int const* n, int const* k, double const* alpha, double const* a,
            int const* lda, double const* beta, double* c, int const* ldc);
void dgemm_(char const* transa, char const* transb, int const* m, int const* n, int const* k, double const* alpha,
            double const* a, int const* lda, double const* b, int const* ldb, double const* beta, double* c,
            int const* ldc);
}

namespace switchyard::compression {

namespace detail {

/// The largest eigenvalues of a matrix' product with its transpose, on its smaller side, and their vectors.
struct gram_eigen {
  int size = 0;
  bool by_columns = false;      ///< of change^T change; else of change change^T
  std::vector<double> change;   ///< [rows, columns]
  std::vector<double> values;   ///< [count], from the smallest on
  std::vector<double> vectors;  ///< [count, size], none where they are not wanted
};

inline gram_eigen eigen_of_gram(view<float const> change, int count, bool with_vectors) {
  gram_eigen result;
  result.by_columns = change.columns <= change.rows;
  int const rows = static_cast<int>(change.rows), columns = static_cast<int>(change.columns);
  int const size = result.size = std::min(rows, columns), other = std::max(rows, columns);
  result.change.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) result.change[r * columns + c] = change.row(r)[c];
  }
  // Fortran's matrices run the other way: it sees [columns, rows].
  std::vector<double> gram(static_cast<std::size_t>(size) * static_cast<std::size_t>(size));
  double const one = 1.0, zero = 0.0;
  dsyrk_("U", result.by_columns ? "N" : "T", &size, &other, &one, result.change.data(), &columns, &zero, gram.data(),
         &size);

  result.values.resize(static_cast<std::size_t>(size));
  if (with_vectors) result.vectors.resize(static_cast<std::size_t>(count) * static_cast<std::size_t>(size));
  std::vector<int> support(2 * static_cast<std::size_t>(std::max(1, count)));
  char const* const what = with_vectors ? "V" : "N";
  char const* const range = count == size ? "A" : "I";
  int const first = size - count + 1, last = size, ask = -1;
  int found = 0, info = 0, integers = 0;
  double doubles = 0.0;
  auto const call = [&](double* work, int const* work_size, int* integer_work, int const* integer_size) {
    dsyevr_(what, range, "U", &size, gram.data(), &size, &zero, &zero, &first, &last, &zero, &found,
            result.values.data(), result.vectors.data(), &size, support.data(), work, work_size, integer_work,
            integer_size, &info);
  };
  call(&doubles, &ask, &integers, &ask);
  int const work_size = static_cast<int>(doubles), integer_size = integers;
  std::vector<double> work(static_cast<std::size_t>(std::max(1, work_size)));
  std::vector<int> integer_work(static_cast<std::size_t>(std::max(1, integer_size)));
  call(work.data(), &work_size, integer_work.data(), &integer_size);
  if (info != 0 || found != count) {
    fail("compression::lapack_svd, dsyevr", "eigenvalues", "its error " + std::to_string(info));
  }
  result.values.resize(static_cast<std::size_t>(count));
  for (double& value : result.values) value = std::max(value, 0.0);
  return result;
}

}  // namespace detail

/// A `truncated_svd` by LAPACK: factors of the best approximation of a matrix of the rank that they have. Each takes the square roots of
/// the singular values, the largest first, so that both have numbers of like size.
///
/// It takes the eigenvectors V of the matrix' product with its transpose, on the smaller side, in double (dsyrk, dsyevr), and projects
/// the matrix on them: A V V^T. Squaring costs nothing that is seen: singular values down to 1e-8 of the largest are right, and a
/// projection on a little less than the best space is off by the square of that little. Memory: 8 bytes for each number of the matrix,
/// of the square of its smaller size and of both factors, so 3 GB for 14336 x 12288 at the rank 1654; time there: about 2.2e12 operations
/// for the product and 3e12 for the eigenvectors, half of which BLAS does at the speed of memory.
inline void lapack_svd(view<float const> change, view<float> left, view<float> right) {
  std::int64_t const rank = left.columns, smaller = std::min(change.rows, change.columns);
  if (left.rows != change.rows || right.columns != change.columns || right.rows != rank || rank > smaller) {
    fail("compression::lapack_svd, factors",
         std::to_string(change.rows) + " x rank and rank x " + std::to_string(change.columns) +
             ", of a rank of at most " + std::to_string(smaller),
         std::to_string(left.rows) + " x " + std::to_string(left.columns) + " and " + std::to_string(right.rows) +
             " x " + std::to_string(right.columns));
  }
  if (rank == 0) return;
  int const count = static_cast<int>(rank);
  detail::gram_eigen const eigen = detail::eigen_of_gram(change, count, true);
  int const rows = static_cast<int>(change.rows), columns = static_cast<int>(change.columns), size = eigen.size;
  // The other factor: change x vectors [rows, count], or vectors^T x change [count, columns].
  int const other = eigen.by_columns ? rows : columns;
  std::vector<double> projected(static_cast<std::size_t>(other) * static_cast<std::size_t>(count));
  double const one = 1.0, zero = 0.0;
  dgemm_(eigen.by_columns ? "T" : "N", "N", &other, &count, &size, &one, eigen.change.data(), &columns,
         eigen.vectors.data(), &size, &zero, projected.data(), &other);
  double const largest = std::sqrt(eigen.values.back());
  for (int k = 0; k < count; ++k) {
    int const from = count - 1 - k;  // the largest first
    double const value = std::sqrt(eigen.values[from]);
    double const scale = value > 1e-12 * largest ? std::sqrt(value) : 1.0;
    double const* const vector = eigen.vectors.data() + std::int64_t{from} * size;
    double const* const projection = projected.data() + std::int64_t{from} * other;
    for (int r = 0; r < rows; ++r) {
      left.row(r)[k] = static_cast<float>(eigen.by_columns ? projection[r] / scale : vector[r] * scale);
    }
    for (int c = 0; c < columns; ++c) {
      right.row(k)[c] = static_cast<float>(eigen.by_columns ? vector[c] * scale : projection[c] / scale);
    }
  }
}

/// All singular values of a matrix, the largest first. Those below 1e-8 of the largest are not right.
inline std::vector<double> lapack_singular_values(view<float const> change) {
  detail::gram_eigen const eigen =
      detail::eigen_of_gram(change, static_cast<int>(std::min(change.rows, change.columns)), false);
  std::vector<double> values;
  for (std::size_t i = eigen.values.size(); i-- > 0;) values.push_back(std::sqrt(eigen.values[i]));
  return values;
}

}  // namespace switchyard::compression
