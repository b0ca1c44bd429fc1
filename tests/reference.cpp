#include "reference.hpp"

#include <cstddef>
#include <numbers>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace reference {
namespace {

double log_sum_exp(numbers const& x) {
  double const highest = *std::max_element(x.begin(), x.end());
  double total = 0;
  for (double v : x) total += std::exp(v - highest);
  return highest + std::log(total);
}

/// out[r] = sum_c matrix[r, c] x[c] (+ bias[r])
numbers product(double const* matrix, int rows, int columns, numbers const& x, double const* bias = nullptr) {
  numbers out(rows);
  for (int r = 0; r < rows; ++r) {
    double sum = bias ? bias[r] : 0.0;
    for (int c = 0; c < columns; ++c) sum += matrix[std::size_t(r) * columns + c] * x[c];
    out[r] = sum;
  }
  return out;
}

/// Activation of one value; `clamped_swiglu` needs both halves and is in `expert`.
///
/// Sources: So et al. 2021, Primer, section 4 (squared ReLU); Hendrycks and Gimpel 2016, Gaussian Error Linear Units,
/// section 2 (both forms of GELU, and SiLU).
double apply(activation act, double x) {
  switch (act) {
    case activation::relu: return std::max(x, 0.0);
    case activation::relu_squared: return x > 0 ? x * x : 0.0;
    case activation::gelu: return 0.5 * x * (1.0 + std::erf(x / std::numbers::sqrt2));
    case activation::gelu_tanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case activation::silu: return x * sigmoid(x);
    case activation::clamped_swiglu: break;
  }
  throw std::invalid_argument("reference: clamped_swiglu needs a gate and an up value");
}

/// act(up x), or act(gate x) * up x with a gate (Shazeer 2020, GLU Variants Improve Transformer, section 2).
///
/// clamped_swiglu: g = min(gate, limit), u = clip(up, -limit, limit), g * sigmoid(alpha g) * (u + shift)
/// (OpenAI 2025, gpt-oss model card, section 2.2, and the published model code).
numbers inner_values(config const& c, int intermediate, double const* gate_proj, double const* up_proj,
                     double const* gate_bias, double const* up_bias, numbers const& x) {
  numbers inner = product(up_proj, intermediate, c.hidden, x, up_bias);
  if (c.gated) {
    numbers const gate = product(gate_proj, intermediate, c.hidden, x, gate_bias);
    for (int i = 0; i < intermediate; ++i) {
      if (c.act == activation::clamped_swiglu) {
        double const g = std::min(gate[i], c.clamp_limit);
        double const u = std::clamp(inner[i], -c.clamp_limit, c.clamp_limit);
        inner[i] = g * sigmoid(c.clamp_alpha * g) * (u + c.clamp_shift);
      } else {
        inner[i] *= apply(c.act, gate[i]);
      }
    }
  } else {
    for (double& v : inner) v = apply(c.act, v);
  }
  return inner;
}

/// The L2 norm of a column of down [hidden, intermediate].
double norm_of_column(config const& c, double const* down_proj, int intermediate, int column) {
  double squares = 0;
  for (int h = 0; h < c.hidden; ++h) squares += std::pow(down_proj[std::size_t(h) * intermediate + column], 2);
  return std::sqrt(squares);
}

/// What inner values are ranked by.
numbers ranks_of_units(config const& c, numbers const& inner, double const* down_proj) {
  numbers ranks = inner;
  int const intermediate = static_cast<int>(inner.size());
  for (int i = 0; c.norm_compensated && i < intermediate; ++i) {
    ranks[i] *= norm_of_column(c, down_proj, intermediate, i);
  }
  return ranks;
}

/// One expert on one token: down of its inner values, or of those that are at least the `kept_units`-th largest (Csordas et al.
/// 2023, Approximating Two-Layer Feedforward Networks for Efficient Transformers, section 3.1).
numbers expert(config const& c, int intermediate, double const* gate_proj, double const* up_proj,
               double const* down_proj, double const* gate_bias, double const* up_bias, double const* down_bias,
               numbers const& x) {
  numbers inner = inner_values(c, intermediate, gate_proj, up_proj, gate_bias, up_bias, x);
  if (c.kept_units > 0) {
    numbers const ranks = ranks_of_units(c, inner, down_proj);
    double const least = ranks[largest(ranks, c.kept_units).back()];
    for (int i = 0; i < intermediate; ++i)
      if (ranks[i] < least) inner[i] = 0;
  }
  return product(down_proj, c.hidden, intermediate, inner, down_bias);
}

/// An expert without rows, by its number among those.
numbers null_expert(config const& c, weights const& w, int number, numbers const& x) {
  int const vectors = c.constant_experts + c.mixed_constant_experts, mixed = number - c.constant_experts;
  if (number >= vectors + c.identity_experts) return numbers(c.hidden, 0.0);
  if (number >= vectors) return x;
  numbers out(w.constant_vectors.begin() + std::size_t(number) * c.hidden,
              w.constant_vectors.begin() + std::size_t(number + 1) * c.hidden);
  if (mixed < 0) return out;
  numbers const share = softmax(product(w.constant_mixing.data() + std::size_t(mixed) * 2 * c.hidden, 2, c.hidden, x));
  for (int i = 0; i < c.hidden; ++i) out[i] = share[0] * x[i] + share[1] * out[i];
  return out;
}

/// Two (or more) choices one after the other. For the best remaining logit s, experts with
/// (s - s_e) / max(|s_e|, s) > 2 jitter are masked; the weight is the softmax over the others. Then the chosen expert
/// leaves (Liu et al. 2024, GRIN, section 2; evaluation mode, so the choice is the maximum and not a sample).
choice route_sparsemixer(config const& c, numbers const& logits) {
  choice out;
  numbers remaining = logits;
  for (int k = 0; k < c.top_k; ++k) {
    int const best = largest(remaining, 1)[0];
    double const s = logits[best];
    numbers open = remaining;
    for (int e = 0; e < c.experts; ++e)
      if ((s - logits[e]) / std::max(std::abs(logits[e]), s) > 2.0 * c.jitter)
        open[e] = -std::numeric_limits<double>::infinity();
    out.ids.push_back(best);
    out.weights.push_back(softmax(open)[best]);
    remaining[best] = -std::numeric_limits<double>::infinity();
  }
  out.priority = out.weights[0];
  return out;
}

numbers scores_of(config const& c, numbers const& logits) {
  numbers scores = logits;
  if (c.scores == score::softmax) scores = softmax(logits);
  if (c.scores == score::sigmoid)
    for (double& s : scores) s = sigmoid(s);
  if (c.scores == score::sqrt_softplus)
    for (double& s : scores) s = std::sqrt(std::max(s, 0.0) + std::log1p(std::exp(-std::abs(s))));
  return scores;
}

void normalise(norm by, numbers& weights, double least_sum = 0) {
  double total = 0;
  for (double w : weights) total += by == norm::l2 ? w * w : w;
  if (by == norm::l2) total = std::sqrt(total);
  total = std::max(total, least_sum);
  if (by != norm::none && total > 0)
    for (double& w : weights) w /= total;
}

/// First token of every group and one past the last one.
std::vector<std::pair<std::int64_t, std::int64_t>> token_groups(config const& c, std::int64_t tokens) {
  std::int64_t const size = c.tokens_per_group > 0 ? c.tokens_per_group : std::max<std::int64_t>(tokens, 1);
  std::vector<std::pair<std::int64_t, std::int64_t>> groups;
  for (std::int64_t begin = 0; begin < tokens; begin += size)
    groups.emplace_back(begin, std::min(begin + size, tokens));
  return groups;
}

/// Marks the pairs that find all slots of their expert taken. A pair beyond the capacity still counts in the queue,
/// which changes nothing: whoever comes after it is beyond the capacity too.
std::vector<std::uint8_t> drop(config const& c, std::vector<int> const& ids, numbers const& priority,
                               std::vector<std::uint8_t> const& active) {
  std::int64_t const tokens = std::int64_t(priority.size());
  std::vector<std::uint8_t> dropped(ids.size(), 0);
  for (auto [begin, end] : token_groups(c, tokens)) {
    std::int64_t counted = end - begin;
    if (!active.empty() && !c.counts_padding)
      counted -= std::count(active.begin() + begin, active.begin() + end, std::uint8_t{0});
    std::int64_t const slots = c.slot_rule ? c.slot_rule(c, counted) : c.slots;
    if (slots == no_limit) continue;
    std::vector<std::int64_t> order(end - begin);
    std::iota(order.begin(), order.end(), begin);
    if (c.order == queue::priority)
      std::stable_sort(order.begin(), order.end(),
                       [&](std::int64_t a, std::int64_t b) { return priority[a] > priority[b]; });
    std::vector<std::int64_t> pairs;  // in the order of the queue
    if (c.order == queue::token) {
      for (std::int64_t t : order)
        for (int k = 0; k < c.top_k; ++k) pairs.push_back(t * c.top_k + k);
    } else {
      for (int k = 0; k < c.top_k; ++k)
        for (std::int64_t t : order) pairs.push_back(t * c.top_k + k);
    }
    std::vector<std::int64_t> waiting(c.experts, 0);
    for (std::int64_t pair : pairs)
      if (ids[pair] >= 0 && ids[pair] < experts_with_rows(c)) dropped[pair] = waiting[ids[pair]]++ >= slots;
  }
  return dropped;
}

/// Standard deviation of the whole population divided by the mean; 0 when nothing was chosen
/// (Shazeer et al. 2017, Outrageously Large Neural Networks, section 4).
double variation(std::vector<std::int64_t> const& load) {
  double mean = 0, square = 0;
  for (std::int64_t n : load) mean += double(n) / double(load.size());
  for (std::int64_t n : load) square += (double(n) - mean) * (double(n) - mean) / double(load.size());
  return mean > 0 ? std::sqrt(square) / mean : 0.0;
}

/// E sum_e f_e p_e per group of tokens, then the mean over groups. With p the mean softmax of the logits:
///
/// first choice: f_e is the share of tokens whose first choice is e, before dropping (Fedus et al. 2021, Switch
/// Transformers, equations 4 to 6; Lepikhin et al. 2020, GShard, section 2.2);
/// all choices: f_e counts every choice, so that sum f = top_k, over the tokens of all groups (Mixtral in Hugging Face
/// transformers);
/// kept choice: a dropped first choice counts for expert 0 (Switch in Hugging Face transformers takes the arg-max of a
/// row that dropping has zeroed);
/// combine weight: as kept choice, and p is the mean of the weights after dropping (NLLB-MoE in Hugging Face
/// transformers).
///
/// negative entropy: sum q_e log q_e with q the mean softmax over all tokens (Csordas et al. 2023, sigma-MoE, section 5).
/// z loss: mean over tokens of logsumexp(logits)^2 (Zoph et al. 2022, ST-MoE, equation 5).
/// Tokens that are not active count nowhere.
auxiliary auxiliary_values(config const& c, result const& r, std::vector<std::uint8_t> const& active) {
  auxiliary aux;
  aux.load_variation = variation(r.load);
  if (r.logits.empty()) return aux;
  std::int64_t const tokens = std::int64_t(r.logits.size()) / c.experts;
  auto const is_active = [&](std::int64_t t) { return active.empty() || active[t] != 0; };
  numbers p_everywhere(c.experts), choices_everywhere(c.experts);
  double all_tokens = 0, groups = 0;
  for (auto [begin, end] : token_groups(c, tokens)) {
    numbers p(c.experts), combine(c.experts), first(c.experts), kept(c.experts);
    double rows = 0;
    for (std::int64_t t = begin; t < end; ++t) {
      if (!is_active(t)) continue;
      rows += 1;
      numbers const logits(r.logits.begin() + t * c.experts, r.logits.begin() + (t + 1) * c.experts);
      numbers const probability = softmax(logits);
      for (int e = 0; e < c.experts; ++e) {
        p[e] += probability[e];
        p_everywhere[e] += probability[e];
      }
      for (int k = 0; k < c.top_k; ++k) {
        std::int64_t const pair = t * c.top_k + k;
        choices_everywhere[r.ids[pair]] += 1;
        combine[r.ids[pair]] += r.weights[pair];
      }
      int const best = r.ids[t * c.top_k];
      first[best] += 1;
      kept[r.dropped[t * c.top_k] ? 0 : best] += 1;
      double const z = log_sum_exp(logits);
      aux.z_loss += z * z;
    }
    if (rows == 0) continue;
    groups += 1;
    all_tokens += rows;
    for (int e = 0; e < c.experts; ++e) {
      double const scale = c.experts / (rows * rows);
      aux.balance_first_choice += scale * first[e] * p[e];
      aux.balance_kept_choice += scale * kept[e] * p[e];
      aux.balance_combine_weight += scale * kept[e] * combine[e];
    }
  }
  if (all_tokens == 0) return aux;
  for (double* mean : {&aux.balance_first_choice, &aux.balance_kept_choice, &aux.balance_combine_weight})
    *mean /= groups;
  aux.z_loss /= all_tokens;
  for (int e = 0; e < c.experts; ++e)
    aux.balance_all_choices += c.experts * choices_everywhere[e] / all_tokens * (p_everywhere[e] / all_tokens);
  for (double p : p_everywhere)
    if (p > 0) aux.negative_entropy += p / all_tokens * std::log(p / all_tokens);
  return aux;
}

}  // namespace

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

numbers softmax(numbers const& x) {
  double const highest = *std::max_element(x.begin(), x.end());
  numbers p(x.size());
  double total = 0;
  for (std::size_t i = 0; i < x.size(); ++i) total += p[i] = std::exp(x[i] - highest);
  for (double& v : p) v /= total;
  return p;
}

std::vector<int> largest(numbers const& x, int count) {
  std::vector<int> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
  order.resize(count);
  return order;
}

void close_groups(config const& c, numbers& choice_scores) {
  int const size = c.experts / c.groups;
  numbers of_group(c.groups);
  for (int g = 0; g < c.groups; ++g) {
    numbers const members(choice_scores.begin() + g * size, choice_scores.begin() + (g + 1) * size);
    int const taken = c.group_by == group_score::top2_sum ? std::min(2, size) : 1;
    for (int i : largest(members, taken)) of_group[g] += members[i];
  }
  std::vector<bool> open(c.groups, false);
  for (int g : largest(of_group, c.kept_groups)) open[g] = true;
  for (int e = 0; e < c.experts; ++e)
    if (!open[e / size]) choice_scores[e] = c.masked_fill;
}

numbers weights_of_predictions(config const& c, numbers const& p) {
  numbers weights = p;
  double const total = std::accumulate(p.begin(), p.end(), 0.0);
  for (std::size_t k = 0; k < p.size(); ++k)
    weights[k] = c.degrading_factors.empty() ? p[k] / total * p[0] : p[k] * c.degrading_factors[k];
  return weights;
}

choice route(config const& c, numbers const& logits, numbers const& correction_bias,
             std::vector<std::uint8_t> const& masked) {
  if (c.scores == score::sparsemixer) {
    choice out = route_sparsemixer(c, logits);
    for (double& w : out.weights) w *= c.scaling;
    return out;
  }
  numbers choice_scores = scores_of(c, logits);
  if (!correction_bias.empty())
    for (int e = 0; e < c.experts; ++e) choice_scores[e] += correction_bias[e];
  double const closed = -std::numeric_limits<double>::infinity();
  auto const by_bias = [&](int e) {
    return logits[e] == closed || (!correction_bias.empty() && correction_bias[e] == closed);
  };
  for (std::size_t e = 0; e < masked.size(); ++e)
    if (masked[e] || by_bias(int(e))) choice_scores[e] = closed;
  if (c.groups > 1) close_groups(c, choice_scores);

  std::vector<int> ids = largest(choice_scores, c.top_k);
  if (masked.empty()) return weigh(c, logits, ids);
  ids.erase(std::remove_if(ids.begin(), ids.end(), [&](int e) { return choice_scores[e] == closed; }), ids.end());
  choice out = ids.empty() ? choice{} : weigh(c, logits, ids);
  numbers hidden_scores = scores_of(c, logits);
  for (int e = 0; e < c.experts; ++e)
    if (!masked[e] || by_bias(e)) hidden_scores[e] = closed;
  for (int e : largest(hidden_scores, c.top_k - int(ids.size()))) out.ids.push_back(e);
  out.weights.resize(c.top_k, 0.0);
  return out;
}

choice weigh(config const& c, numbers const& logits, std::vector<int> const& ids) {
  numbers const scores = scores_of(c, logits);
  choice out;
  out.ids = ids;
  out.priority = scores[out.ids[0]];
  for (int e : out.ids) out.weights.push_back(c.softmax_after_top_k ? logits[e] : scores[e]);
  if (c.softmax_after_top_k) out.weights = softmax(out.weights);
  if (c.sigmoid_after_top_k)
    for (double& w : out.weights) w = sigmoid(w);
  if (c.unit_weights) out.weights.assign(out.weights.size(), 1.0);
  if (!c.normalise_after_dropping) {
    normalise(c.normalise, out.weights);
    for (double& w : out.weights) w *= c.scaling;
  }
  return out;
}

numbers inner_values(config const& c, weights const& w, int expert, numbers const& x) {
  auto const at = [&](numbers const& v, std::size_t each) { return v.empty() ? nullptr : v.data() + expert * each; };
  std::size_t const matrix = std::size_t(c.intermediate) * c.hidden;
  return inner_values(c, c.intermediate, at(w.gate_proj, matrix), at(w.up_proj, matrix),
                      at(w.gate_bias, c.intermediate), at(w.up_bias, c.intermediate), x);
}

numbers unit_norms(config const& c, weights const& w) {
  numbers norms;
  for (int e = 0; e < experts_with_rows(c); ++e) {
    double const* const down = w.down_proj.data() + std::size_t(e) * c.hidden * c.intermediate;
    for (int i = 0; i < c.intermediate; ++i) norms.push_back(norm_of_column(c, down, c.intermediate, i));
  }
  return norms;
}

numbers unit_ranks(config const& c, weights const& w, int expert, numbers const& inner) {
  return ranks_of_units(c, inner, w.down_proj.data() + std::size_t(expert) * c.hidden * c.intermediate);
}

numbers balancing_bias(config const& c, numbers const& logits, std::vector<std::uint8_t> const& active) {
  std::size_t const experts = c.experts;
  std::vector<std::size_t> rows;  // that count
  for (std::size_t t = 0; t < logits.size() / experts; ++t)
    if (active.empty() || active[t]) rows.push_back(t);
  numbers u(rows.size(), 0.0), v(experts, 0.0);
  if (rows.size() < 2) return v;
  double const sign = c.balancing_subtracts ? -1.0 : 1.0;
  for (int i = 0; i < c.balancing_iterations; ++i) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      numbers row(logits.begin() + rows[r] * experts, logits.begin() + (rows[r] + 1) * experts);
      for (std::size_t e = 0; e < experts; ++e) row[e] += sign * v[e];
      u[r] = -log_sum_exp(row);
    }
    for (std::size_t e = 0; e < experts; ++e) {
      numbers column;
      for (std::size_t r = 0; r < rows.size(); ++r) column.push_back(logits[rows[r] * experts + e] + sign * u[r]);
      bool const closed = *std::max_element(column.begin(), column.end()) == -std::numeric_limits<double>::infinity();
      v[e] = closed ? 0.0 : std::log(double(rows.size()) / double(experts)) - log_sum_exp(column);
    }
  }
  return v;
}

double load_importance(numbers const& p, int experts, int top_k, double gate_noise) {
  numbers importance(experts, 0.0), load(experts, 0.0);
  for (std::size_t row = 0; row < p.size(); row += experts) {
    numbers const scores(p.begin() + row, p.begin() + row + experts);
    double const threshold = scores[largest(scores, top_k).back()];
    for (int e = 0; e < experts; ++e) {
      importance[e] += scores[e];
      double const z = (scores[e] - threshold) * experts / gate_noise;
      load[e] += 0.5 * (1.0 + std::erf(z / std::numbers::sqrt2));
    }
  }
  auto const squared_variation = [&](numbers const& x) {
    double const mean = std::accumulate(x.begin(), x.end(), 0.0) / experts;
    double square = 0;
    for (double v : x) square += (v - mean) * (v - mean);
    return square / (experts - 1) / (mean * mean + 1e-10);
  };
  return 0.5 * (squared_variation(importance) + squared_variation(load));
}

cluster_table cluster_features(config const& c, numbers const& x, inputs const& in) {
  clustering const& form = c.clusters;
  std::size_t const d = c.hidden, table = c.experts * d;
  std::int64_t const tokens = std::int64_t(x.size()) / c.hidden;
  std::vector<double> count(c.experts, 0.0);
  int largest_id = -1;
  auto const each_token = [&](auto const& body) {
    for (std::int64_t t = 0; t < tokens; ++t)
      if (in.active.empty() || in.active[t]) body(t, in.labels[t * in.label_choices]);
  };
  each_token([&](std::int64_t t, int label) {
    count[label] += 1;
    for (int k = 0; k < in.label_choices; ++k) largest_id = std::max(largest_id, in.labels[t * in.label_choices + k]);
  });
  numbers mean(table, 0.0);
  cluster_table out{numbers(table, 0.0), numbers(table, 1.0)};
  each_token([&](std::int64_t t, int label) {
    for (std::size_t q = 0; q < d; ++q) mean[label * d + q] += x[t * d + q] / count[label];
  });
  each_token([&](std::int64_t t, int label) {
    for (std::size_t q = 0; q < d; ++q) {
      double const apart = x[t * d + q] - mean[label * d + q];
      out.dispersion[label * d + q] +=
          (form.measure == spread::variance ? apart * apart : std::abs(apart)) / count[label];
    }
  });
  std::vector<int> live;
  for (int e = 0; e < c.experts; ++e)
    if (form.counts_empty ? e <= largest_id : count[e] > 0) live.push_back(e);
  if (live.empty()) return out;
  double all = 0;
  for (int e : live)
    for (std::size_t q = 0; q < d; ++q) all += out.scale[e * d + q] = 1.0 / (out.dispersion[e * d + q] + form.alpha);
  all /= double(live.size()) * double(d);
  for (std::size_t q = 0; q < d; ++q) {
    double column = 0;
    for (int e : live) {
      double& w = out.scale[e * d + q];
      if (form.clip > 0) w = std::min(w, form.clip * all);
      column += w / double(live.size());
    }
    double const divisor = form.scaling == feature_scaling::per_feature ? column
                           : form.scaling == feature_scaling::global    ? all
                                                                        : 1.0;
    for (int e : live) out.scale[e * d + q] /= divisor;
  }
  return out;
}

numbers scaled_tokens(config const& c, numbers x, inputs const& in, numbers const& scale) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    std::size_t const t = i / c.hidden;
    if (in.active.empty() || in.active[t])
      x[i] *= scale[std::size_t(in.labels[t * in.label_choices]) * c.hidden + i % c.hidden];
  }
  return x;
}

numbers router_logits(config const& c, weights const& w, numbers const& x) {
  int const width = c.router_width > 0 ? c.router_width : c.hidden;
  numbers router = w.router;
  if (c.clusters.scales && c.clusters.unit_rows) {
    for (int e = 0; e < c.experts; ++e) {
      double* const row = router.data() + std::size_t(e) * c.hidden;
      double square = 0;
      for (int q = 0; q < c.hidden; ++q) square += row[q] * row[q];
      for (int q = 0; q < c.hidden; ++q) row[q] /= std::max(std::sqrt(square), 1e-4);
    }
  }
  numbers logits;
  for (std::size_t row = 0; row < x.size(); row += width) {
    numbers token(x.begin() + row, x.begin() + row + width);
    numbers z;
    if (c.select_by != selector::none) {
      double square = 0;
      for (double v : token) square += v * v;
      for (double& v : token) v = square > 0 ? v / std::sqrt(square) : 0.0;
    }
    if (c.select_by == selector::center_distances) {
      for (int e = 0; e < c.experts; ++e) {
        double square = 0;
        for (int q = 0; q < width; ++q) square += std::pow(token[q] - router[std::size_t(e) * width + q], 2);
        z.push_back(-std::sqrt(square));
      }
    } else {
      z = product(router.data(), c.experts, width, token, w.router_bias.empty() ? nullptr : w.router_bias.data());
    }
    if (c.select_by == selector::network) {
      for (double& v : z) v = std::tanh(v);
      z = product(w.selector_output.data(), c.experts, c.experts, z, nullptr);
    }
    logits.insert(logits.end(), z.begin(), z.end());
  }
  return logits;
}

result decide(config const& c, numbers logits, numbers const& given_bias, std::int64_t tokens, inputs const& in) {
  result r;
  r.logits = std::move(logits);
  numbers const correction_bias = c.balancing_iterations > 0 ? balancing_bias(c, r.logits, in.active) : given_bias;
  r.ids.assign(tokens * c.top_k, -1);
  r.weights.assign(tokens * c.top_k, 0.0);
  numbers priority(tokens, 0.0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (!in.active.empty() && !in.active[t]) continue;
    choice chosen;
    if (c.scores == score::precomputed) {
      chosen.ids.assign(in.ids.begin() + t * c.top_k, in.ids.begin() + (t + 1) * c.top_k);
      chosen.weights.assign(in.id_weights.begin() + t * c.top_k, in.id_weights.begin() + (t + 1) * c.top_k);
      if (c.predicted) chosen.weights = weights_of_predictions(c, chosen.weights);
      chosen.priority = chosen.weights[0];
      for (int k = 0; k < c.top_k; ++k)
        if (chosen.ids[k] < 0) chosen.weights[k] = 0;  // another device's
    } else {
      numbers const mine(r.logits.begin() + t * c.experts, r.logits.begin() + (t + 1) * c.experts);
      if (c.given_ids) {
        chosen = weigh(c, mine, {in.ids.begin() + t * c.top_k, in.ids.begin() + (t + 1) * c.top_k});
      } else {
        std::vector<std::uint8_t> masked;
        if (!in.masked.empty())
          masked.assign(in.masked.begin() + t * c.experts, in.masked.begin() + (t + 1) * c.experts);
        chosen = route(c, mine, correction_bias, masked);
      }
    }
    std::copy(chosen.ids.begin(), chosen.ids.end(), r.ids.begin() + t * c.top_k);
    std::copy(chosen.weights.begin(), chosen.weights.end(), r.weights.begin() + t * c.top_k);
    priority[t] = chosen.priority;
  }

  r.dropped = drop(c, r.ids, priority, in.active);
  r.counts.assign(c.experts, 0);
  r.load.assign(c.experts, 0);
  for (std::size_t pair = 0; pair < r.ids.size(); ++pair) {
    if (r.ids[pair] < 0) continue;
    r.load[r.ids[pair]] += 1;
    if (r.dropped[pair])
      r.weights[pair] = 0;
    else if (r.ids[pair] < experts_with_rows(c))
      r.counts[r.ids[pair]] += 1;
  }
  if (c.normalise_after_dropping && c.scores != score::sparsemixer) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      numbers kept(r.weights.begin() + t * c.top_k, r.weights.begin() + (t + 1) * c.top_k);
      normalise(c.normalise, kept, c.least_sum);
      for (int k = 0; k < c.top_k; ++k) r.weights[t * c.top_k + k] = kept[k] * c.scaling;
    }
  }
  r.aux = auxiliary_values(c, r, in.active);
  return r;
}

namespace {

/// (x - mean) / sqrt(variance + epsilon) * weight + bias (Ba et al. 2016, Layer Normalization, section 3).
numbers layer_norm(numbers const& x, double const* weight, double const* bias, double epsilon) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / double(x.size());
  for (double v : x) variance += (v - mean) * (v - mean) / double(x.size());
  numbers out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    out[i] = (x[i] - mean) / std::sqrt(variance + epsilon) * weight[i] + bias[i];
  return out;
}

/// Calls `body(a's value, b's value)` for each auxiliary value.
template <class Body>
void each_value(auxiliary& a, auxiliary const& b, Body body) {
  body(a.balance_first_choice, b.balance_first_choice);
  body(a.balance_all_choices, b.balance_all_choices);
  body(a.balance_kept_choice, b.balance_kept_choice);
  body(a.balance_combine_weight, b.balance_combine_weight);
  body(a.z_loss, b.z_loss);
  body(a.load_variation, b.load_variation);
  body(a.negative_entropy, b.negative_entropy);
}

/// A block whose experts stand in strata, tokens_in being its tokens after its norm and in.residual before it
/// (Xu et al. 2023, Towards Being Parameter-Efficient, section 3, and its published code): the tokens in the lowest stratum
/// that has any make a pass of a layer of its and all higher experts, and go to the stratum above their first choice's.
result forward_by_strata(config const& c, weights const& w, numbers const& tokens_in, inputs const& in) {
  std::int64_t const tokens = std::int64_t(tokens_in.size()) / c.hidden;
  int const strata = int(c.strata.size());
  std::size_t const d = c.hidden, matrix = d * c.intermediate, pairs = tokens * c.top_k;
  result r;
  r.ids.assign(strata * pairs, -1);
  r.weights.assign(strata * pairs, 0.0);
  r.dropped.assign(strata * pairs, 0);
  r.counts.assign(c.experts, 0);
  r.load.assign(c.experts, 0);
  r.passes.assign(tokens, 0);
  numbers h = tokens_in, residual = in.residual;
  std::vector<int> state(tokens, 0);
  for (std::int64_t t = 0; t < tokens; ++t)
    if (!in.active.empty() && !in.active[t]) {
      state[t] = strata;
      std::fill(h.begin() + t * d, h.begin() + (t + 1) * d, 0.0);
    }
  auto const lowest = [&] { return tokens == 0 ? strata : *std::min_element(state.begin(), state.end()); };
  for (int current = lowest(); current < strata; current = lowest()) {
    int closed = 0, router_row = 0;
    for (int i = 0; i < current; ++i) {
      router_row += c.experts - closed;
      closed += c.strata[i];
    }
    config pass = c;
    pass.strata.clear();
    pass.experts = c.experts - closed;
    pass.top_k = std::min(c.top_k, pass.experts);
    auto const part = [](numbers const& from, std::size_t begin, std::size_t count) {
      return from.empty() ? numbers{} : numbers(from.begin() + begin, from.begin() + begin + count);
    };
    auto const of_experts = [&](numbers const& from, std::size_t size) {
      return part(from, closed * size, pass.experts * size);
    };
    weights open;
    open.router = part(w.router, router_row * d, pass.experts * d);
    open.router_bias = part(w.router_bias, router_row, pass.experts);
    open.correction_bias = part(w.correction_bias, router_row, pass.experts);
    open.gate_proj = of_experts(w.gate_proj, matrix);
    open.up_proj = of_experts(w.up_proj, matrix);
    open.down_proj = of_experts(w.down_proj, matrix);
    open.gate_bias = of_experts(w.gate_bias, c.intermediate);
    open.up_bias = of_experts(w.up_bias, c.intermediate);
    open.down_bias = of_experts(w.down_bias, d);

    result::pass made{.stratum = current, .tokens = {}, .logits = {}};
    numbers x;
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (state[t] != current) continue;
      made.tokens.push_back(t);
      x.insert(x.end(), h.begin() + t * d, h.begin() + (t + 1) * d);
    }
    result const y = forward(pass, open, x);
    made.logits = y.logits;
    for (std::size_t row = 0; row < made.tokens.size(); ++row) {
      std::int64_t const t = made.tokens[row];
      for (int k = 0; k < pass.top_k; ++k) {
        std::size_t const to = current * pairs + t * c.top_k + k, from = row * pass.top_k + k;
        r.ids[to] = closed + y.ids[from];
        r.weights[to] = y.weights[from];
        r.dropped[to] = y.dropped[from];
      }
      int const first = closed + y.ids[row * pass.top_k];
      for (int end = state[t] = 0; end <= first; ++state[t]) end += c.strata[state[t]];
      r.passes[t] += 1;
      numbers sum(d);
      for (std::size_t i = 0; i < d; ++i) sum[i] = y.y[row * d + i] + residual[t * d + i];
      numbers normal = sum;
      if (c.stratum_norms) {
        std::size_t const norm = (state[t] - 1) * d;
        normal = layer_norm(sum, w.norm_weight.data() + norm, w.norm_bias.data() + norm, c.norm_epsilon);
      }
      std::copy(normal.begin(), normal.end(), h.begin() + t * d);
      numbers const& next = c.normalised_residual ? normal : sum;
      std::copy(next.begin(), next.end(), residual.begin() + t * d);
    }
    for (int e = 0; e < pass.experts; ++e) {
      r.counts[closed + e] += y.counts[e];
      r.load[closed + e] += y.load[e];
    }
    each_value(r.aux, y.aux, [](double& sum, double value) { sum += value; });
    r.made.push_back(std::move(made));
  }
  double const passes = std::max<double>(double(r.made.size()), 1.0);
  each_value(r.aux, r.aux, [passes](double& mean, double sum) { mean = sum / passes; });
  r.y = std::move(h);
  return r;
}

}  // namespace

result forward(config const& c, weights const& w, numbers const& tokens_in, inputs const& in) {
  if (!c.strata.empty()) return forward_by_strata(c, w, tokens_in, in);
  std::int64_t const tokens = std::int64_t(tokens_in.size()) / c.hidden;
  numbers x = tokens_in;
  numbers logits;
  cluster_table table;
  if (c.clusters.scales) {
    table = cluster_features(c, x, in);
    if (!in.feature_scale.empty()) table = {{}, in.feature_scale};
    numbers scaled = scaled_tokens(c, x, in, table.scale);
    logits = router_logits(c, w, scaled);
    if (c.clusters.experts_see_scaled) x = std::move(scaled);
  } else if (c.scores != score::precomputed) {
    logits = router_logits(c, w, c.router_width > 0 ? in.router_tokens : x);
  }
  result r = decide(c, std::move(logits), w.correction_bias, tokens, in);
  r.feature_scale = table.scale;
  r.dispersion = table.dispersion;

  // The weight that a dropped pair had before it was dropped, for outputs that need it.
  config everything = c;
  everything.slots = no_limit;
  everything.slot_rule = nullptr;
  everything.normalise_after_dropping = false;
  if (c.normalise_after_dropping) everything.normalise = norm::none;
  result undropped;
  if (c.dropped == dropped_output::weighted_input)
    undropped = decide(everything, r.logits, w.correction_bias, tokens, in);

  auto const at = [](numbers const& v, std::size_t offset) { return v.empty() ? nullptr : v.data() + offset; };
  std::size_t const matrix = std::size_t(c.intermediate) * c.hidden;
  r.y.assign(x.size(), 0.0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (!in.active.empty() && !in.active[t]) continue;
    numbers const token(x.begin() + t * c.hidden, x.begin() + (t + 1) * c.hidden);
    double* const y = r.y.data() + t * c.hidden;
    bool any_kept = false;
    for (int k = 0; k < c.top_k; ++k) {
      std::int64_t const pair = t * c.top_k + k;
      if (r.ids[pair] < 0) {
        any_kept = true;  // perhaps elsewhere
        continue;
      }
      std::size_t const e = r.ids[pair];
      if (r.dropped[pair]) {
        if (c.dropped == dropped_output::weighted_input)
          for (int i = 0; i < c.hidden; ++i) y[i] += undropped.weights[pair] * token[i];
        continue;
      }
      any_kept = true;
      if (int const null = r.ids[pair] - experts_with_rows(c); null >= 0) {
        numbers const out = null_expert(c, w, null, token);
        for (int i = 0; i < c.hidden; ++i) y[i] += r.weights[pair] * c.expert_output_scale * out[i];
        continue;
      }
      numbers input = token;
      if (c.weight_on_input)
        for (double& v : input) v *= r.weights[pair];
      numbers const out = expert(c, c.intermediate, at(w.gate_proj, e * matrix), at(w.up_proj, e * matrix),
                                 at(w.down_proj, e * matrix), at(w.gate_bias, e * c.intermediate),
                                 at(w.up_bias, e * c.intermediate), at(w.down_bias, e * c.hidden), input);
      double const factor = (c.weight_on_input ? 1.0 : r.weights[pair]) * c.expert_output_scale;
      for (int i = 0; i < c.hidden; ++i) y[i] += factor * out[i];
    }
    for (int i = 0; c.replaces_zeros && i < c.hidden; ++i)
      if (y[i] == 0) y[i] = token[i];
    if (c.dropped == dropped_output::input && !any_kept)
      for (int i = 0; i < c.hidden; ++i) y[i] += token[i];
    if (c.shared != shared_expert::none) {
      numbers const out = expert(c, c.shared_intermediate, at(w.shared_gate_proj, 0), at(w.shared_up_proj, 0),
                                 at(w.shared_down_proj, 0), nullptr, nullptr, nullptr, token);
      double const gate = c.shared == shared_expert::sigmoid_gated
                              ? sigmoid(product(w.shared_gate.data(), 1, c.hidden, token)[0])
                              : 1.0;
      for (int i = 0; i < c.hidden; ++i) y[i] += gate * out[i];
    }
    if (c.output_bias)
      for (int i = 0; i < c.hidden; ++i) y[i] += w.output_bias[i];
  }
  return r;
}

}  // namespace reference
