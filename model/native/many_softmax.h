// What many items that all positions share cost, in float, and its gradient, without positions x items in memory:
// cross-entropy against all items, of which the target is one, or against drawn ones beside the target; or of drawn ones
// softplus(score - level), one by one.
//
// A piece of positions at a time. First, a few positions together: their scores (which fit into the cache), powers
// e^(score - highest) (or chances 1 / (1 + e^(level - score))), and the gradient of the hidden states. Then, a panel of items at a time, what the powers of the
// whole piece add to the gradient of the items. Every sum has an order that follows from the shapes alone: any number of
// threads gives the same bytes.
#pragma once

#include "products.h"
#include "scores.h"

#include <algorithm>
#include <limits>

extern "C" {
struct ManySoftmaxCall {
    int64_t positions, items, units, threads;
    int64_t cost;                 // 0: cross-entropy; drawn ones: 1, the sum of softplus, or 2, its mean
    const float* hidden;          // positions x D
    const float* table;           // items x D
    const int64_t* targets;       // which item each target is; against drawn ones, the row of the target
    const float* weights;
    const int64_t* rows;          // drawn ones: the row of each item; null where all items are meant
    const float* discounts;       // drawn ones: what is taken off the score of each item, if anything
    const float* levels;          // drawn ones: the target's score, or what scores count from
    float* losses;                // without the weight
    float* hidden_gradient;       // positions x D
    float* item_gradient;         // items x D; added to
    float* level_gradient;        // drawn ones
};
}

namespace native {

class ManySoftmax {
  public:
    explicit ManySoftmax(const ManySoftmaxCall& call)
        : call_(call), width_(padded(call.units)), items_((call.items + kPanel - 1) / kPanel * kPanel),
          by_unit_(room(items_, call.units)), by_item_(room(items_, width_)), shares_(room(kPiece, width_)),
          powers_(room(items_, kPiece)), gradient_(room(items_, width_)),
          scratch_(std::max<size_t>(1, static_cast<size_t>(call.threads))) {
        for (Room& one : scratch_) one.resize(room(kTogether, items_));
        pack_items();
        if (call.rows) find_drawn();
    }

    void learn() {
        for (long start = 0; start < call_.positions; start += kPiece) {
            const long count = std::min<long>(kPiece, call_.positions - start);
            std::atomic<size_t> taken{0};
            in_parallel((count + kTogether - 1) / kTogether, call_.threads, [&] { return scratch_[taken++].data(); },
                        [&](long part, float* scores) {
                            learn_some(start, part * kTogether, std::min(kTogether, count - part * kTogether), scores);
                        });
            in_parallel(items_ / kPanel, call_.threads, [] { return 0; }, [&](long panel, int) {
                product(kPanel, width_, count, {powers_.data() + panel * kPiece * kPanel, 1, kPanel}, shares_.data(), width_,
                        gradient_.data() + panel * kPanel * width_, width_, Into::kAdd);
            });
        }
        for (long item = 0; item < call_.items; ++item)
            add_scaled(call_.item_gradient + item * call_.units, gradient_.data() + item * width_, 1.0f, call_.units);
        if (call_.rows) return;
        for (long position = 0; position < call_.positions; ++position)
            add_scaled(call_.item_gradient + call_.targets[position] * call_.units, call_.hidden + position * call_.units,
                       -call_.weights[position], call_.units);
    }

  private:
    static constexpr long kPanel = 3 * kLanes;  // a multiple of the rows of a tile
    static constexpr long kPiece = 128, kTogether = 4 * kTileRows;
    static constexpr long kSome = 64;           // items whose rows stay in the first-level cache
    static constexpr float kNone = -std::numeric_limits<float>::max();

    struct Drawn {
        int64_t row;
        long item;
    };

    using Some = std::pair<const Drawn*, const Drawn*>;

    static size_t room(long rows, long columns) { return static_cast<size_t>(rows * columns); }

    void pack_items() {
        for (long item = 0; item < call_.items; ++item) {
            const float* from = call_.table + item * call_.units;
            float* panel = by_unit_.data() + item / kPanel * call_.units * kPanel + item % kPanel;
            for (long unit = 0; unit < call_.units; ++unit) panel[unit * kPanel] = from[unit];
            std::copy_n(from, call_.units, by_item_.data() + item * width_);
        }
    }

    void find_drawn() {
        for (long item = 0; item < call_.items; ++item) drawn_.push_back({call_.rows[item], item});
        std::stable_sort(drawn_.begin(), drawn_.end(), [](const Drawn& one, const Drawn& two) { return one.row < two.row; });
        nothing_ = drawn_of(0);
    }

    // Where a row was drawn; it may have been several times.
    Some drawn_of(int64_t row) const {
        const auto before = [](const Drawn& one, int64_t other) { return one.row < other; };
        const Drawn* first = std::lower_bound(drawn_.data(), drawn_.data() + drawn_.size(), row, before);
        const Drawn* last = first;
        while (last < drawn_.data() + drawn_.size() && last->row == row) ++last;
        return {first, last};
    }

    void learn_some(long start, long first, long count, float* scores) {
        const float* hidden = call_.hidden + (start + first) * call_.units;
        for (long item = 0; item < items_; item += kPanel)
            product(count, kPanel, call_.units, {hidden, call_.units, 1}, by_unit_.data() + item * call_.units, kPanel,
                    scores + item, items_);
        float share[kTogether];
        for (long row = 0; row < count; ++row) {
            share[row] = raise(start + first + row, first + row, scores + row * items_);
            float* to = shares_.data() + (first + row) * width_;
            for (long unit = 0; unit < call_.units; ++unit) to[unit] = hidden[row * call_.units + unit] * share[row];
        }
        float sums[kTogether * kMostUnits];
        for (long item = 0; item < items_; item += kSome)
            product(count, width_, std::min(kSome, items_ - item), {scores + item, items_, 1}, by_item_.data() + item * width_,
                    width_, sums, width_, item > 0 ? Into::kAdd : Into::kReplace);
        for (long row = 0; row < count; ++row) {
            float* to = call_.hidden_gradient + (start + first + row) * call_.units;
            for (long unit = 0; unit < call_.units; ++unit) to[unit] = sums[row * width_ + unit] * share[row];
            if (!call_.rows)
                add_scaled(to, call_.table + call_.targets[start + first + row] * call_.units, -call_.weights[start + first + row], call_.units);
        }
    }

    // The scores of a position become powers; what makes them its gradient.
    float raise(long position, long at, float* scores) {
        const Some own = call_.rows ? drawn_of(call_.targets[position]) : Some{};
        if (call_.discounts)
            for (long item = 0; item < call_.items; ++item) scores[item] -= call_.discounts[item];
        const float target = call_.rows ? call_.levels[position] : scores[call_.targets[position]];
        const long counted = call_.items - (own.second - own.first) - (nothing_.second - nothing_.first);
        if (call_.cost) return each_alone(position, at, counted, own, target, scores);
        set_none(scores, own, kNone);
        Vector most = load(scores);
        for (long item = kLanes; item < items_; item += kLanes) {
            const Vector here = load(scores + item);
            most = here > most ? here : most;
        }
        const float highest = largest(most);
        for (long item = 0; item < items_; item += kLanes) store(scores + item, exponential(load(scores + item) - highest));
        set_none(scores, own, 0.0f);
        const float whole = take(at, scores);
        if (call_.rows) return beside(position, counted, highest, whole, target);
        call_.losses[position] = highest + std::log(whole) - target;
        return call_.weights[position] / whole;
    }

    // Puts powers where the items find them; their sum.
    float take(long at, const float* powers) {
        Vector total{};
        for (long item = 0; item < items_; item += kLanes) {
            const Vector power = load(powers + item);
            total += power;
            store(powers_.data() + (item / kPanel * kPiece + at) * kPanel + item % kPanel, power);
        }
        return sum(total);
    }

    // softplus(score - level) of each that counts: the larger of score - level and 0, plus ln(1 + e^-|score - level|).
    float each_alone(long position, long at, long counted, Some own, float level, float* scores) {
        set_none(scores, own, kNone);
        Vector total{};
        for (long item = 0; item < items_; item += kLanes) {
            const Vector ahead = load(scores + item) - level;
            const Vector positive = ahead > 0.0f ? ahead : Vector{};
            const Vector small = exponential(ahead - 2.0f * positive);
            total += positive + logarithm_above_one(small);
            store(scores + item, (ahead > 0.0f ? all(1.0f) : small) / (1.0f + small));
        }
        set_none(scores, own, 0.0f);
        const float weight = call_.cost == 2 ? 1.0f / static_cast<float>(std::max(1L, counted)) : 1.0f;
        const float share = call_.weights[position] * weight;
        call_.losses[position] = weight * sum(total);
        call_.level_gradient[position] = -share * take(at, scores);
        return share;
    }

    // ln(1 + x) to a relative error below 2e-7, for x from 0 to 1: twice the area hyperbolic tangent of x / (2 + x).
    static Vector logarithm_above_one(Vector x) {
        const Vector z = x / (2.0f + x), square = z * z;
        Vector p = all(1.0f / 13.0f);
        p = p * square + 1.0f / 11.0f;
        p = p * square + 1.0f / 9.0f;
        p = p * square + 1.0f / 7.0f;
        p = p * square + 1.0f / 5.0f;
        p = p * square + 1.0f / 3.0f;
        return 2.0f * (z + z * square * p);
    }

    // Of the drawn ones, so many of which count, beside the target.
    float beside(long position, long counted, float highest, float whole, float target) const {
        if (counted == 0) {
            call_.losses[position] = target - target;  // not finite where the score is not
            call_.level_gradient[position] = 0.0f;
            return 0.0f;
        }
        const float ahead = highest + std::log(whole / static_cast<float>(counted)) - target;
        const float small = std::exp(-std::abs(ahead));
        call_.losses[position] = std::max(ahead, 0.0f) + std::log1p(small);
        const float chance = (ahead < 0.0f ? small : 1.0f) / (1.0f + small);
        call_.level_gradient[position] = -call_.weights[position] * chance;
        return call_.weights[position] * chance / whole;
    }

    // What is no item, or does not count against this target.
    void set_none(float* scores, Some own, float value) const {
        std::fill(scores + call_.items, scores + items_, value);
        for (const Drawn* one = own.first; one != own.second; ++one) scores[one->item] = value;
        for (const Drawn* one = nothing_.first; one != nothing_.second; ++one) scores[one->item] = value;
    }

  public:
    static constexpr long kMostUnits = 256;

  private:
    const ManySoftmaxCall& call_;
    long width_, items_;
    Room by_unit_, by_item_, shares_;
    Room powers_;  // of every panel of items, those of all positions of the piece
    Room gradient_;
    std::vector<Room> scratch_;  // of each thread
    std::vector<Drawn> drawn_;   // by row
    Some nothing_{};
};

inline void many_softmax(const ManySoftmaxCall& call) { ManySoftmax(call).learn(); }

}  // namespace native
