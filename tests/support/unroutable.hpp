#pragma once

#include "support/any_layer.hpp"
#include "support/random_problem.hpp"

/// Tokens without a route, experts that are closed and routes that lead elsewhere, on any backend.
namespace support {

/// Makes one token of a problem one that cannot be routed.
void make_unroutable(problem& p, std::size_t token);

/// Compares a call in which a token cannot be routed with one in which it is not active.
void check_unroutable_token(any_layer const& layer);

/// Closes an expert by a bias and compares with the reference; false where the layer's router has none.
bool check_closed_expert(any_layer const& layer);

/// Sends some pairs of precomputed routes nowhere and compares with the reference; false where routes are the layer's.
bool check_routes_elsewhere(any_layer const& layer);

}  // namespace support
