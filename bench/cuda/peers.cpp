#include "peers.hpp"

#include <cstddef>
#include <stdexcept>

namespace switchyard::bench {

std::vector<std::int32_t> experts_of_pairs(device_call const& call, bfloat16* output) {
  int const experts = call.of->dims.experts;
  auto const pair_of = copied(call.of->plan_of(call.memory(output)).pair_of, call.rows);
  std::vector<std::int32_t> result(static_cast<std::size_t>(call.tokens * call.of->dims.top_k), experts);
  for (int e = 0; e < experts; ++e) {
    for (std::int32_t row = call.offsets[e]; row < call.offsets[e + 1]; ++row) result[pair_of[row]] = e;
  }
  return result;
}

peers::peers(std::vector<device_call> const& calls, cublas const& with, cudaStream_t stream)
    : of_(calls.front().of),
      tokens_(calls.front().tokens),
      with_(&with),
      stream_(stream),
      gathered_(tokens_ * of_->dims.top_k * of_->dims.hidden),
      in_(tokens_ * of_->dims.top_k * of_->in_features()),
      inner_(tokens_ * of_->dims.top_k * of_->dims.intermediate),
      outer_(tokens_ * of_->dims.top_k * of_->dims.hidden),
      output_(tokens_ * of_->dims.hidden),
      by_cub_(tokens_ * of_->dims.top_k, of_->dims.experts) {
  if (of_->dims.hidden % 8 != 0 || of_->dims.intermediate % 8 != 0) {
    throw std::logic_error("the peers work on chunks of eight bfloat16");
  }
  for (device_call const& call : calls) turns_.push_back(prepared(call));
}

void peers::run(peer how, int turn) const {
  prepared_call const& t = turns_[static_cast<std::size_t>(turn)];
  device_weights const& w = *t.call->weights;
  std::int64_t const rows = t.call->rows;
  if (how == peer::dense) {
    int const expert = turn % of_->dims.experts;
    with_->multiply(in_product(w, expert, 0, rows));
    with_->multiply(out_product(w, expert, 0, rows));
    return;
  }
  bool const by_cub = how == peer::cub;
  if (by_cub) by_cub_.enqueue(t.expert_of_pair.data(), stream_);
  auto const& pair_of = by_cub ? by_cub_.pair_of : t.pair_of;
  auto const& expert_of = by_cub ? by_cub_.expert_of : t.expert_of;
  auto const& row_of = by_cub ? by_cub_.row_of : t.row_of;
  gather_rows(t.call->input.data(), pair_of.data(), rows, of_->dims, gathered_.data(), stream_);
  multiply(how, t.in, t.in_group);
  activate_rows(*of_, in_.data(), w.in_bias.data(), expert_of.data(), rows, inner_.data(), stream_);
  multiply(how, t.out, t.out_group);
  combine_pairs(*of_, outer_.data(), w.out_bias.data(), expert_of.data(), row_of.data(), t.weight.data(), tokens_,
                output_.data(), stream_);
}

peers::prepared_call peers::prepared(device_call const& call) const {
  gpu_memory const memory = call.memory(output_.data());
  dispatch_plan const plan = of_->plan_of(memory);
  std::int64_t const pairs = tokens_ * of_->dims.top_k;
  std::vector<std::int32_t> expert_of;
  std::vector<cublas_product> in, out;
  for (int e = 0; e < of_->dims.experts; ++e) {
    std::int64_t const first = call.offsets[e], rows = call.offsets[e + 1] - first;
    if (rows == 0) continue;
    expert_of.insert(expert_of.end(), static_cast<std::size_t>(rows), e);
    in.push_back(in_product(*call.weights, e, first, rows));
    out.push_back(out_product(*call.weights, e, first, rows));
  }
  return {&call,
          device_memory<std::int32_t>(copied(plan.pair_of, call.rows)),
          device_memory<std::int32_t>(copied(plan.row_of, pairs)),
          device_memory<std::int32_t>(expert_of),
          device_memory<std::int32_t>(experts_of_pairs(call, output_.data())),
          device_memory<float>(copied(of_->combine_weights_of(memory), pairs)),
          in,
          out,
          cublas_group(in),
          cublas_group(out)};
}

cublas_product peers::in_product(device_weights const& w, int expert, std::int64_t first, std::int64_t rows) const {
  int const features = of_->in_features(), depth = of_->dims.hidden;
  return {rows,
          features,
          depth,
          gathered_.data() + first * depth,
          w.in.data() + std::int64_t{expert} * features * depth,
          in_.data() + first * features};
}

cublas_product peers::out_product(device_weights const& w, int expert, std::int64_t first, std::int64_t rows) const {
  int const features = of_->dims.hidden, depth = of_->dims.intermediate;
  return {rows,
          features,
          depth,
          inner_.data() + first * depth,
          w.out.data() + std::int64_t{expert} * features * depth,
          outer_.data() + first * features};
}

void peers::multiply(peer how, std::vector<cublas_product> const& products, cublas_group const& group) const {
  if (how == peer::loop) {
    for (cublas_product const& p : products) with_->multiply(p);
  } else {
    with_->multiply(group);
  }
}

}  // namespace switchyard::bench
