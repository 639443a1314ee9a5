// Scores of positions against choices of their own, and both gradients, without a row gathered more than once.
#pragma once

#include "rows.h"

extern "C" {
struct ScoresCall {
    int64_t positions, choices, units, threads, unique, table_rows;
    const float* hidden;    // positions x D
    const float* items;     // table rows x D
    const int64_t* rows;    // positions x choices
    float* scores;          // positions x choices
    const float* given;     // their gradient
    const int32_t* order;   // of the choices, as `sort_rows` gives it
    const int64_t* starts;  // as well
    float* hidden_gradient; // positions x D
    float* item_gradient;   // unique x D
};
}

namespace native {

inline float dot(const float* left, const float* right, long units) {
    Vector sums{};
    long unit = 0;
    for (; unit + kLanes <= units; unit += kLanes) sums += load(left + unit) * load(right + unit);
    float total = sum(sums);
    for (; unit < units; ++unit) total += left[unit] * right[unit];
    return total;
}

inline void scores_forward(const ScoresCall& call) {
    each_row(call.positions, call.threads, [&](long position) {
        const float* hidden = call.hidden + position * call.units;
        const int64_t* rows = call.rows + position * call.choices;
        for (long choice = 0; choice < call.choices; ++choice)
            call.scores[position * call.choices + choice] = dot(hidden, call.items + rows[choice] * call.units, call.units);
    });
}

inline void add_scaled(float* __restrict to, const float* __restrict from, float factor, long units) {
    for (long unit = 0; unit < units; ++unit) to[unit] += factor * from[unit];
}

inline void scores_backward(const ScoresCall& call) {
    each_row(call.positions, call.threads, [&](long position) {
        float* to = call.hidden_gradient + position * call.units;
        std::fill(to, to + call.units, 0.0f);
        const int64_t* rows = call.rows + position * call.choices;
        for (long choice = 0; choice < call.choices; ++choice)
            add_scaled(to, call.items + rows[choice] * call.units, call.given[position * call.choices + choice], call.units);
    });
    each_row(call.unique, call.threads, [&](long row) {
        float* to = call.item_gradient + row * call.units;
        std::fill(to, to + call.units, 0.0f);
        for (int64_t at = call.starts[row]; at < call.starts[row + 1]; ++at) {
            const int32_t entry = call.order[at];
            add_scaled(to, call.hidden + entry / call.choices * call.units, call.given[entry], call.units);
        }
    });
}

}  // namespace native
