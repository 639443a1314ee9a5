// Rows of a table that a step touches: gradients of equal rows are added up, and Adam learns each row once.
//
// What is added up, and in which order, follows from the input alone: any number of threads gives the same bytes.
#pragma once

#include <utility>

#include "block.h"

extern "C" {
struct SortCall {
    int64_t entries;
    int64_t padding;      // the row that is left out
    const int64_t* rows;  // entries, none negative and all below 2^32
    int32_t* order;       // entries, by row and then as they came; those of the padding row not
    int64_t* unique;      // the rows there are, ascending
    int64_t* starts;      // where in `order` each of them begins, and at last the end: one more than rows
};

struct MergeCall {
    int64_t unique, units, threads;
    const int32_t* order;
    const int64_t* starts;
    const float* values;  // entries x D
    float* sums;          // unique x D
};

struct AdamCall {
    int64_t touched, units, threads, steps, table_rows;
    double rate, beta1, beta2, epsilon, decay;
    const int64_t* rows;    // touched, all different
    const float* gradient;  // touched x D
    float* table;           // table rows x D
    float* moments;         // table rows x 2 x D: first and second
    const int64_t* began;   // table rows
    int64_t* last;          // table rows: the step that touched each last
};
}

namespace native {

// Whether every row stands in a table of so many.
inline bool all_within(const int64_t* rows, int64_t count, int64_t table_rows) {
    uint64_t highest = 0;  // a negative row is a high one
    for (int64_t at = 0; at < count; ++at) highest = std::max(highest, static_cast<uint64_t>(rows[at]));
    return count == 0 || highest < static_cast<uint64_t>(table_rows);
}

// By the digits of the row, the lowest first; equal rows stay in order. Returns how many rows there are.
inline int64_t sort_rows(const SortCall& call) {
    struct Entry {
        uint32_t row;
        int32_t index;
    };
    std::vector<Entry> entries, aside;
    entries.reserve(static_cast<size_t>(call.entries));
    uint32_t highest = 0;
    for (int64_t entry = 0; entry < call.entries; ++entry) {
        if (call.rows[entry] == call.padding) continue;
        entries.push_back({static_cast<uint32_t>(call.rows[entry]), static_cast<int32_t>(entry)});
        highest = std::max(highest, entries.back().row);
    }
    aside.resize(entries.size());
    constexpr int kDigit = 11;
    for (int shift = 0; shift < 32 && (highest >> shift) > 0; shift += kDigit) {
        std::vector<size_t> place(1 << kDigit, 0);
        const auto digit = [&](const Entry& entry) { return (entry.row >> shift) & ((1u << kDigit) - 1u); };
        for (const Entry& entry : entries) ++place[digit(entry)];
        size_t before = 0;
        for (size_t& count : place) before += std::exchange(count, before);
        for (const Entry& entry : entries) aside[place[digit(entry)]++] = entry;
        entries.swap(aside);
    }
    int64_t unique = 0;
    for (size_t at = 0; at < entries.size(); ++at) {
        call.order[at] = entries[at].index;
        if (at > 0 && entries[at].row == entries[at - 1].row) continue;
        call.unique[unique] = entries[at].row;
        call.starts[unique++] = static_cast<int64_t>(at);
    }
    call.starts[unique] = static_cast<int64_t>(entries.size());
    return unique;
}

constexpr long kRowsTogether = 64;

// Calls `work(row)` for every row, some of them together.
template <class Work>
void each_row(long rows, long threads, const Work& work) {
    in_parallel((rows + kRowsTogether - 1) / kRowsTogether, threads, [] { return 0; }, [&](long part, int) {
        for (long row = part * kRowsTogether; row < std::min(rows, (part + 1) * kRowsTogether); ++row) work(row);
    });
}

inline void merge_rows(const MergeCall& call) {
    each_row(call.unique, call.threads, [&](long row) {
        float* to = call.sums + row * call.units;
        const float* first = call.values + call.order[call.starts[row]] * call.units;
        std::copy_n(first, call.units, to);
        for (int64_t at = call.starts[row] + 1; at < call.starts[row + 1]; ++at) {
            const float* from = call.values + call.order[at] * call.units;
            for (long unit = 0; unit < call.units; ++unit) to[unit] += from[unit];
        }
    });
}

// A power that is asked for again and again: rows of a step mostly sat out the same few steps.
class Power {
  public:
    explicit Power(double base) : base_(base) {}

    double operator()(int64_t exponent) {
        if (exponent != exponent_) {
            exponent_ = exponent;
            power_ = std::pow(base_, static_cast<double>(exponent));
        }
        return power_;
    }

  private:
    double base_, power_ = 1.0;
    int64_t exponent_ = 0;
};

// `RowAdam._learn_rows` in model/optimiser.py says what is computed.
class RowsAdam {
  public:
    explicit RowsAdam(const AdamCall& call) : call_(call) {}

    void learn() const {
        const auto powers = [&] {
            return Powers{Power(call_.beta1), Power(call_.beta2), Power(call_.beta1), Power(call_.beta2),
                          Power(1.0 - call_.rate * call_.decay)};
        };
        const long parts = (call_.touched + kRowsTogether - 1) / kRowsTogether;
        in_parallel(parts, call_.threads, powers, [&](long part, Powers& of) {
            const long end = std::min<long>(call_.touched, (part + 1) * kRowsTogether);
            for (long at = part * kRowsTogether; at < end; ++at) {
                if (at + kAhead < call_.touched) fetch(call_.rows[at + kAhead]);
                learn_row(at, of);
            }
        });
    }

  private:
    static constexpr long kAhead = 8;
    static constexpr long kLine = 16;

    struct Powers {
        Power first, second, first_age, second_age, kept;
    };

    // Rows of a large table lie far apart: they are asked for before they are needed.
    void fetch(int64_t row) const {
        const long units = call_.units;
        for (long unit = 0; unit < units; unit += kLine) __builtin_prefetch(call_.table + row * units + unit, 1);
        for (long unit = 0; unit < 2 * units; unit += kLine) __builtin_prefetch(call_.moments + row * 2 * units + unit, 1);
        __builtin_prefetch(call_.began + row);
        __builtin_prefetch(call_.last + row, 1);
    }

    void learn_row(long at, Powers& of) const {
        const int64_t row = call_.rows[at];
        const long units = call_.units;
        const int64_t missed = call_.steps - call_.last[row], age = call_.steps - call_.began[row];
        const float first_kept = static_cast<float>(of.first(missed)), second_kept = static_cast<float>(of.second(missed));
        const float first_new = static_cast<float>(1.0 - call_.beta1), second_new = static_cast<float>(1.0 - call_.beta2);
        const float scale = static_cast<float>(1.0 / std::sqrt(1.0 - of.second_age(age)));
        const float rate = static_cast<float>(call_.rate / (1.0 - of.first_age(age)));
        const float kept = static_cast<float>(of.kept(missed)), epsilon = static_cast<float>(call_.epsilon);
        const float* __restrict gradient = call_.gradient + at * units;
        float* __restrict first = call_.moments + row * 2 * units;
        float* __restrict second = first + units;
        float* __restrict weight = call_.table + row * units;
        call_.last[row] = call_.steps;
        for (long unit = 0; unit < units; ++unit) {
            first[unit] = first[unit] * first_kept + first_new * gradient[unit];
            second[unit] = second[unit] * second_kept + second_new * gradient[unit] * gradient[unit];
            weight[unit] = weight[unit] * kept - rate * first[unit] / (std::sqrt(second[unit]) * scale + epsilon);
        }
    }

    const AdamCall& call_;
};

}  // namespace native
