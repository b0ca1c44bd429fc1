// Included by assignment.hpp once per instruction set, each time inside another namespace and with other values of
//   SWITCHYARD_ASSIGNMENT_TARGET  the attribute that lets a function use the instruction set
//   SWITCHYARD_ASSIGNMENT_BYTES   bytes of one vector register
// No product is added to anything, so that no compiler contracts, and all of them give the same bits.

inline constexpr int lanes = SWITCHYARD_ASSIGNMENT_BYTES / 8;
typedef double doubles __attribute__((vector_size(SWITCHYARD_ASSIGNMENT_BYTES)));
typedef std::int64_t longs __attribute__((vector_size(SWITCHYARD_ASSIGNMENT_BYTES)));
typedef float floats __attribute__((vector_size(SWITCHYARD_ASSIGNMENT_BYTES / 2)));
typedef std::int32_t ints __attribute__((vector_size(SWITCHYARD_ASSIGNMENT_BYTES / 2)));

/// least[j] = min(least[j], row[j]); `at` says in which row that was, the first of equal ones.
SWITCHYARD_ASSIGNMENT_TARGET inline void keep_least(float const* row, std::int32_t number, std::int64_t count,
                                                    float* least, std::int32_t* at) {
  for (std::int64_t j = 0; j < count; ++j) {
    bool const less = row[j] < least[j];
    least[j] = less ? row[j] : least[j];
    at[j] = less ? number : at[j];
  }
}

/// The least and the second least of row[j] - price[j], of equal ones those that stand first.
SWITCHYARD_ASSIGNMENT_TARGET inline two_columns two_least(float const* row, double const* price, std::int64_t count) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  doubles first = doubles{} + infinity, second = first;
  longs first_at = longs{} - 1, second_at = first_at, at;
  for (int l = 0; l < lanes; ++l) at[l] = l;
  std::int64_t j = 0;
  for (; j + lanes <= count; j += lanes) {
    floats cost;
    doubles value;
    __builtin_memcpy(&cost, row + j, sizeof cost);
    __builtin_memcpy(&value, price + j, sizeof value);
    value = __builtin_convertvector(cost, doubles) - value;
    longs const before_first = value < first, before_second = value < second;
    doubles const worse = before_first ? first : value;
    longs const worse_at = before_first ? first_at : at;
    second = before_second ? worse : second;
    second_at = before_second ? worse_at : second_at;
    first = before_first ? value : first;
    first_at = before_first ? at : first_at;
    at += lanes;
  }
  two_columns result{-1, -1, infinity, infinity};
  auto const offer = [&](double value, std::int64_t column) {
    if (column < 0) return;
    if (value < result.first || (value == result.first && column < result.first_column)) {
      result.second = result.first;
      result.second_column = result.first_column;
      result.first = value;
      result.first_column = column;
    } else if (value < result.second || (value == result.second && column < result.second_column)) {
      result.second = value;
      result.second_column = column;
    }
  };
  for (int l = 0; l < lanes; ++l) {
    offer(first[l], first_at[l]);
    offer(second[l], second_at[l]);
  }
  for (; j < count; ++j) offer(row[j] - price[j], j);
  return result;
}

/// distance[j] = min(distance[j], length + row[j] - price[j]); `from` says by which row, and the result is the first of the least
/// distances. Columns that are done have a price of minus infinity and stay as they are.
SWITCHYARD_ASSIGNMENT_TARGET inline std::int64_t relax(float const* row, std::int32_t number, double length,
                                                       double const* price, std::int64_t count, double* distance,
                                                       std::int32_t* from) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  doubles least = doubles{} + infinity;
  longs least_at = longs{} - 1, at;
  for (int l = 0; l < lanes; ++l) at[l] = l;
  std::int64_t j = 0;
  for (; j + lanes <= count; j += lanes) {
    floats cost;
    doubles value, old;
    ints by;
    __builtin_memcpy(&cost, row + j, sizeof cost);
    __builtin_memcpy(&value, price + j, sizeof value);
    __builtin_memcpy(&old, distance + j, sizeof old);
    __builtin_memcpy(&by, from + j, sizeof by);
    value = length + (__builtin_convertvector(cost, doubles) - value);
    longs const shorter = value < old;
    value = shorter ? value : old;
    by = __builtin_convertvector(shorter, ints) ? ints{} + number : by;
    __builtin_memcpy(distance + j, &value, sizeof value);
    __builtin_memcpy(from + j, &by, sizeof by);
    longs const before = value < least;
    least = before ? value : least;
    least_at = before ? at : least_at;
    at += lanes;
  }
  double best = infinity;
  std::int64_t best_at = -1;
  for (int l = 0; l < lanes; ++l) {
    if (least_at[l] >= 0 && (least[l] < best || (least[l] == best && least_at[l] < best_at))) {
      best = least[l];
      best_at = least_at[l];
    }
  }
  for (; j < count; ++j) {
    double const value = length + (row[j] - price[j]);
    if (value < distance[j]) {
      distance[j] = value;
      from[j] = number;
    }
    if (distance[j] < best) {
      best = distance[j];
      best_at = j;
    }
  }
  return best_at;
}
