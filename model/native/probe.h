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

// Some users together: a list that several of them look through is read from memory once.
class Probe {
  public:
    Probe(const ProbeCall& call, long first, long end) : call_(call), first_(first) {
        for (long user = first; user < end; ++user) {
            best_.emplace_back(call.keys + user * 2 * call.keep, 0, call.keep);
            for (long probe = 0; probe < call.probes; ++probe)
                asked_.emplace_back(call.probed[user * call.probes + probe], user);
        }
        std::sort(asked_.begin(), asked_.end());
    }

    void find() {
        for (size_t at = 0, next = 0; at < asked_.size(); at = next) {
            while (next < asked_.size() && asked_[next].first == asked_[at].first) ++next;
            look_through(asked_[at].first, asked_.data() + at, asked_.data() + next);
        }
        for (size_t nth = 0; nth < best_.size(); ++nth) call_.counts[first_ + static_cast<long>(nth)] = best_[nth].finish();
    }

  private:
    using Asked = std::pair<int64_t, long>;  // a list, and the user who looks through it

    // Rows lie anywhere in a table that no cache holds: each is asked for so many rows before it is needed.
    static constexpr long kAhead = 12;
    static constexpr long kLine = 16;

    void look_through(int64_t list, const Asked* asked, const Asked* asked_end) {
        const int32_t* row = call_.rows + call_.starts[list];
        const int32_t* end = call_.rows + call_.starts[list + 1];
        for (const int32_t* ahead = row; ahead < std::min(end, row + kAhead); ++ahead) ask_for(*ahead);
        for (; row < end; ++row) {
            if (row + kAhead < end) ask_for(row[kAhead]);
            if (!call_.live[*row]) continue;
            for (const Asked* one = asked; one < asked_end; ++one) consider(one->second, *row);
        }
    }

    void consider(long user, int32_t row) {
        const float score = score_of_row(call_.hidden + user * call_.units, row);
        Kept& best = best_[static_cast<size_t>(user - first_)];
        if (score > best.least() && !is_excluded(user, row)) best.take(score, row);
    }

    bool is_excluded(long user, int32_t row) const {
        const int64_t* excluded = call_.excluded + user * call_.excluded_columns;
        return std::binary_search(excluded, excluded + call_.excluded_columns, int64_t{row});
    }

    void ask_for(int32_t row) const {
        const float* at = call_.items + row * call_.units;
        for (long unit = 0; unit < call_.units; unit += kLine) __builtin_prefetch(at + unit);
    }

    float score_of_row(const float* hidden, int32_t row) const {
        const float* at = call_.items + row * call_.units;
        Vector sums[2] = {};
        long unit = 0;
        for (; unit + 2 * kLanes <= call_.units; unit += 2 * kLanes) {
            sums[0] += load(at + unit) * load(hidden + unit);
            sums[1] += load(at + unit + kLanes) * load(hidden + unit + kLanes);
        }
        float rest = 0.0f;
        for (; unit < call_.units; ++unit) rest += at[unit] * hidden[unit];
        return sum(sums[0] + sums[1]) + rest;
    }

    const ProbeCall& call_;
    long first_;
    std::vector<Kept> best_;
    std::vector<Asked> asked_;
};

inline void probe(const ProbeCall& call) {
    const long shares = std::max(1l, std::min(static_cast<long>(call.threads), static_cast<long>(call.users)));
    const auto nothing = [] { return 0; };
    in_parallel(shares, shares, nothing, [&](long share, int) {
        Probe(call, call.users * share / shares, call.users * (share + 1) / shares).find();
    });
}

}  // namespace native
