// The best rows of some lists of rows: rows are read where the item table has them, so what is found is scored exactly.
#pragma once

#include "best.h"

extern "C" {
struct ProbeCall {
    int64_t users, units, probes, keep, excluded_columns, threads;
    const float* hidden;      // users x units
    const float* items;       // the item table, its rows `units` wide
    const int64_t* starts;    // where each list begins in `rows`, and where the last one ends
    const int32_t* rows;      // the rows of one list after another
    const int64_t* probed;    // users x probes: which lists
    const uint8_t* live;      // of all rows, whether they may be served
    const int64_t* excluded;  // users x excluded_columns, ascending
    uint64_t* keys;           // users x 2 * keep
    int64_t* counts;          // users
};
}

namespace native {

class Probe {
  public:
    Probe(const ProbeCall& call, long user)
        : call_(call), hidden_(call.hidden + user * call.units), probed_(call.probed + user * call.probes),
          excluded_(call.excluded + user * call.excluded_columns), excluded_end_(excluded_ + call.excluded_columns),
          best_(call.keys + user * 2 * call.keep, 0, call.keep) {}

    long find() {
        for (long probe = 0; probe < call_.probes; ++probe) {
            const long list = probed_[probe];
            look_through(call_.rows + call_.starts[list], call_.rows + call_.starts[list + 1]);
        }
        return best_.finish();
    }

  private:
    // Rows lie anywhere in a table that no cache holds: each is asked for so many rows before it is needed.
    static constexpr long kAhead = 12;
    static constexpr long kLine = 16;

    void look_through(const int32_t* row, const int32_t* end) {
        for (const int32_t* ahead = row; ahead < std::min(end, row + kAhead); ++ahead) ask_for(*ahead);
        for (; row < end; ++row) {
            if (row + kAhead < end) ask_for(row[kAhead]);
            const float score = score_of_row(*row);
            if (score > best_.least() && call_.live[*row] && !std::binary_search(excluded_, excluded_end_, int64_t{*row}))
                best_.take(score, *row);
        }
    }

    void ask_for(int32_t row) const {
        const float* at = call_.items + row * call_.units;
        for (long unit = 0; unit < call_.units; unit += kLine) __builtin_prefetch(at + unit);
    }

    float score_of_row(int32_t row) const {
        const float* at = call_.items + row * call_.units;
        Vector sums[2] = {};
        long unit = 0;
        for (; unit + 2 * kLanes <= call_.units; unit += 2 * kLanes) {
            sums[0] += load(at + unit) * load(hidden_ + unit);
            sums[1] += load(at + unit + kLanes) * load(hidden_ + unit + kLanes);
        }
        float rest = 0.0f;
        for (; unit < call_.units; ++unit) rest += at[unit] * hidden_[unit];
        return sum(sums[0] + sums[1]) + rest;
    }

    const ProbeCall& call_;
    const float* hidden_;
    const int64_t* probed_;
    const int64_t *excluded_, *excluded_end_;
    Kept best_;
};

inline void probe(const ProbeCall& call) {
    const auto nothing = [] { return 0; };
    in_parallel(call.users, call.threads, nothing, [&](long user, int) { call.counts[user] = Probe(call, user).find(); });
}

}  // namespace native
