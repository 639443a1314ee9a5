// Causal attention of one sequence and one head, and its gradient, a few queries at a time so that everything stays in
// the cache (the order of work of Dao et al. 2022). Only keys that a query may look at are touched.
#pragma once

#include <algorithm>
#include <vector>

#include "products.h"

namespace native {

// T keys and values, the last `queries` of which also ask. Rows of queries are `query_stride` numbers apart, those of
// keys and values `key_stride`; queries are scaled already.
struct Heads {
    long positions;
    long queries;
    long width;  // units of a head, padded
    const float* query;
    const float* key;
    const float* value;
    long query_stride;
    long key_stride;
};

constexpr long kQueries = 48;

class Attention {
  public:
    Attention(long positions, long width)
        : keys_(static_cast<size_t>(padded(positions) * width)), values_(keys_.size()),
          scores_(static_cast<size_t>(kQueries * padded(positions))), changes_(scores_.size()) {}

    // `output` has a row for every query; `log_sum` is ln sum e^score of every query, `step` numbers apart.
    void forward(const Heads& heads, float* output, long stride, float* log_sum, long step) {
        transpose(heads.key, heads, keys_.data());
        for (long start = 0; start < heads.queries; start += kQueries) {
            const Some some = queries(heads, start);
            score(heads, some);
            for (long i = 0; i < some.count; ++i)
                log_sum[(start + i) * step] = softmax(scores_.data() + i * some.stride, some.first + i + 1, some.stride);
            product(some.count, heads.width, some.keys, {scores_.data(), some.stride, 1}, heads.value, heads.key_stride,
                    output + start * stride, stride);
        }
    }

    struct Gradients {
        const float* output;  // what was attended to, as `forward` gave it
        const float* given;   // its gradient
        const float* log_sum;
        long stride;
        long step;
        float* query;  // replaced
        float* key;    // added to
        float* value;  // added to
    };

    void backward(const Heads& heads, const Gradients& to) {
        transpose(heads.key, heads, keys_.data());
        transpose(heads.value, heads, values_.data());
        for (long start = 0; start < heads.queries; start += kQueries) {
            const Some some = queries(heads, start);
            const float* given = to.given + start * to.stride;
            score(heads, some);
            product(some.count, padded(some.keys), heads.width, {given, to.stride, 1}, values_.data(),
                    padded(heads.positions), changes_.data(), some.stride);
            for (long i = 0; i < some.count; ++i) {
                const float* output = to.output + (start + i) * to.stride;
                Vector dot{};
                for (long at = 0; at < heads.width; at += kLanes) dot += load(output + at) * load(given + i * to.stride + at);
                derive(scores_.data() + i * some.stride, changes_.data() + i * some.stride, some.first + i + 1,
                       some.stride, to.log_sum[(start + i) * to.step], sum(dot));
            }
            product(some.keys, heads.width, some.count, {scores_.data(), 1, some.stride}, given, to.stride, to.value,
                    heads.key_stride, Into::kAdd);
            product(some.keys, heads.width, some.count, {changes_.data(), 1, some.stride},
                    heads.query + start * heads.query_stride, heads.query_stride, to.key, heads.key_stride, Into::kAdd);
            product(some.count, heads.width, some.keys, {changes_.data(), some.stride, 1}, heads.key, heads.key_stride,
                    to.query + start * heads.query_stride, heads.query_stride);
        }
    }

  private:
    // Queries that are dealt with together: the first stands at position `first` and all look at `keys` at most.
    struct Some {
        long start;
        long count;
        long first;
        long keys;
        long stride;
    };

    static Some queries(const Heads& heads, long start) {
        const long count = std::min(kQueries, heads.queries - start);
        const long first = heads.positions - heads.queries + start;
        return {start, count, first, first + count, padded(first + count)};
    }

    void score(const Heads& heads, const Some& some) {
        product(some.count, some.stride, heads.width, {heads.query + some.start * heads.query_stride, heads.query_stride, 1},
                keys_.data(), padded(heads.positions), scores_.data(), some.stride);
    }

    // Units x positions, so that the scores of a query come out side by side.
    static void transpose(const float* rows, const Heads& heads, float* columns) {
        const long width = padded(heads.positions);
        for (long position = 0; position < heads.positions; ++position)
            for (long unit = 0; unit < heads.width; ++unit)
                columns[unit * width + position] = rows[position * heads.key_stride + unit];
        for (long unit = 0; unit < heads.width; ++unit)
            std::fill(columns + unit * width + heads.positions, columns + (unit + 1) * width, 0.0f);
    }

    // Scores become probabilities, zero from `count` on.
    static float softmax(float* score, long count, long stride) {
        for (long at = count; at < padded(count); ++at) score[at] = score[count - 1];
        Vector most = load(score);
        for (long at = kLanes; at < count; at += kLanes) {
            const Vector here = load(score + at);
            most = here > most ? here : most;
        }
        const float highest = largest(most);
        for (long at = 0; at < count; at += kLanes) store(score + at, exponential(load(score + at) - highest));
        std::fill(score + count, score + stride, 0.0f);
        Vector total{};
        for (long at = 0; at < count; at += kLanes) total += load(score + at);
        const float whole = sum(total), share = 1.0f / whole;
        for (long at = 0; at < count; at += kLanes) store(score + at, load(score + at) * share);
        return highest + std::log(whole);
    }

    // Scores become probabilities, and gradients of probabilities those of scores: p (change - dot).
    static void derive(float* score, float* change, long count, long stride, float log_sum, float dot) {
        for (long at = 0; at < count; at += kLanes) {
            const Vector probability = exponential(load(score + at) - log_sum);
            store(score + at, probability);
            store(change + at, probability * (load(change + at) - dot));
        }
        std::fill(score + count, score + stride, 0.0f);
        std::fill(change + count, change + stride, 0.0f);
    }

    std::vector<float> keys_, values_, scores_, changes_;
};

}  // namespace native
