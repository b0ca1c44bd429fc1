#include "catch.hpp"
#include "support/compare.hpp"
#include "support/row_layers.hpp"

namespace support {

void check_rows(row_problem const& p, row_outcome const& got, double tolerance) {
  row_outcome const expected = row_reference(p);
  CHECK(got.guards_intact);
  CHECK(got.experts == expected.experts);
  CHECK(got.load == expected.load);
  CHECK(relative_error(got.weights, expected.weights) <= 1e-5);
  if (!expected.scores.empty()) CHECK(relative_error(got.scores, expected.scores) <= 1e-5);
  CHECK(relative_error(got.output, expected.output) <= tolerance);
}

}  // namespace support
