// Cross-entropy over all items with products of bfloat16, and its gradient, without positions x items in memory.
//
// A piece of positions at a time. First, a few positions together, some items after the other: their scores, which become
// powers e^(score - what it counts from) before they leave the registers, rounded to bfloat16, and what these add to the
// gradient of the hidden states. Then, item by item, what the powers of the whole piece add to the gradient of the items.
// Sums are of float; the target's own share is added exactly. Vectors lie along positions, or along units where these fill
// them, so that no lane is wasted whatever the number of units. Every sum has an order that follows from the shapes alone:
// any number of threads gives the same bytes.
#pragma once

#include "scores.h"
#include "softmax.h"

#include <limits>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>
#define HAS_SHORT_PRODUCTS 1
#else
#define HAS_SHORT_PRODUCTS 0
#endif

extern "C" {
struct FullSoftmaxCall {
    int64_t positions, items, units, threads;
    const float* hidden;     // positions x D
    const float* table;      // items x D
    const int64_t* targets;  // below `items`
    const float* weights;
    float* losses;           // ln sum e^score - score of the target, without the weight
    float* hidden_gradient;  // positions x D
    float* item_gradient;    // items x D
};
}

namespace native {

#if HAS_SHORT_PRODUCTS

class FullSoftmax {
  public:
    explicit FullSoftmax(const FullSoftmaxCall& call)
        : call_(call), pairs_((call.units + 1) / 2), items_(rounded(call.items, kLine)), full_(call.units / kLine * kLine),
          by_unit_(items_ * pairs_), by_item_(items_ / 2 * call.units), shares_(kPiece / 2 * full_),
          rest_shares_((call.units - full_) * kPiece / 2), powers_(items_ * kStride), rest_(static_cast<size_t>((call.units - full_) * items_)),
          scratch_(std::max<size_t>(1, static_cast<size_t>(call.threads)), Scratch(pairs_, call.units)) {
        pack_items();
    }

    void learn() {
        for (long start = 0; start < call_.positions; start += kPiece) {
            const long count = std::min<long>(kPiece, call_.positions - start), parts = (count + kTogether - 1) / kTogether;
            std::atomic<size_t> taken{0};
            in_parallel(parts, call_.threads, [&] { return &scratch_[taken++]; }, [&](long part, Scratch* s) {
                learn_some(start, part * kTogether, std::min(kTogether, count - part * kTogether), *s);
            });
            pack_shares(start, parts * kTogether);
            in_parallel(items_ / kLine, call_.threads, [] { return 0; },
                        [&](long line, int) { learn_items(line * kLine, parts * kTogether / 2); });
        }
        for (long unit = full_; unit < call_.units; ++unit)
            for (long item = 0; item < call_.items; ++item)
                call_.item_gradient[item * call_.units + unit] += rest_[static_cast<size_t>((unit - full_) * items_ + item)];
        for (long position = 0; position < call_.positions; ++position)
            add_scaled(call_.item_gradient + call_.targets[position] * call_.units, call_.hidden + position * call_.units,
                       -call_.weights[position], call_.units);
    }

  private:
    static constexpr long kLine = 16;                // floats, or pairs of bfloat16, of a vector
    static constexpr long kPiece = 256, kTogether = 2 * kLine;
    static constexpr long kSome = 640;               // items whose powers are still in the cache when they are used
    static constexpr int kRows = 10, kItemRows = 8;  // of a tile of two vectors, and of one of three
    // Of an item, the powers of all pairs of positions; more, so that items do not fall on one another in the cache.
    static constexpr long kStride = kPiece / 2 + kLine;
    static constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945f;
    static constexpr float kFar = 70.0f;             // no sum of so many e^kFar as there may be items is too large

    using Pair = uint32_t;  // two of bfloat16, the first in the low half

    struct alignas(64) Line {
        Pair pairs[kLine];
    };

    // So many pairs from the beginning of a line of the cache on.
    struct Pairs {
        explicit Pairs(long count) : lines(static_cast<size_t>(count / kLine + 1)) {}
        Pair* data() { return lines.data()->pairs; }
        const Pair* data() const { return lines.data()->pairs; }
        Pair& operator[](long at) { return data()[at]; }
        Pair operator[](long at) const { return data()[at]; }
        std::vector<Line> lines;
    };

    struct Scratch {
        Scratch(long pairs, long units) : hidden(pairs * kTogether), sums(static_cast<size_t>(units * kTogether)) {}
        Pairs hidden;  // pairs of units, positions side by side
        Room sums;     // units, positions side by side as `near` has them
        alignas(64) float scores[kRows * kTogether];
        alignas(64) Pair near[kSome / 2 * kTogether];  // pairs of items, positions side by side
        alignas(64) float from[kTogether];             // what scores count from: the target's, if none is far above it
        alignas(64) float whole[kTogether];            // sums of powers
        float target[kTogether];                       // scores of the targets
    };

    static long rounded(long count, long to) { return (count + to - 1) / to * to; }

    // sums[row][vector] += pairs of `left[row]` times those of `right`, over `inner` pairs.
    template <int Rows, int Vectors>
    static inline __attribute__((always_inline)) void multiply(long inner, const Pair* left, long across, long along, const Pair* right,
                                                               long right_stride, __m512 (&sums)[Rows][Vectors]) {
        for (long k = 0; k < inner; ++k) {
            __m512bh wide[Vectors];
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) wide[v] = (__m512bh)_mm512_loadu_si512(right + k * right_stride + v * kLine);
#pragma GCC unroll 16
            for (int row = 0; row < Rows; ++row) {
                const __m512bh one = (__m512bh)_mm512_set1_epi32(static_cast<int>(left[row * across + k * along]));
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) sums[row][v] = _mm512_dpbf16_ps(sums[row][v], one, wide[v]);
            }
        }
    }

    // The same to and from memory.
    template <int Rows, int Vectors>
    static void tile(long inner, const Pair* left, long across, long along, const Pair* right, long right_stride,
                     float* to, long to_stride, bool add) {
        __m512 sums[Rows][Vectors];
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v)
                sums[row][v] = add ? _mm512_loadu_ps(to + row * to_stride + v * kLine) : _mm512_setzero_ps();
        multiply(inner, left, across, along, right, right_stride, sums);
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) _mm512_storeu_ps(to + row * to_stride + v * kLine, sums[row][v]);
    }

    // The same for up to `Rows` rows.
    template <int Rows, int Vectors>
    static void tiles(long rows, long inner, const Pair* left, long across, long along, const Pair* right, long right_stride,
                      float* to, long to_stride, bool add) {
        if constexpr (Rows > 1)
            if (rows < Rows) return tiles<Rows - 1, Vectors>(rows, inner, left, across, along, right, right_stride, to, to_stride, add);
        tile<Rows, Vectors>(inner, left, across, along, right, right_stride, to, to_stride, add);
    }

    // Up to sixteen floats as bfloat16; zero where there are fewer.
    static __m256i narrowed(const float* from, long count, float factor) {
        return (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask(count), from), _mm512_set1_ps(factor)));
    }

    // The first lanes, so many of them.
    static __mmask16 mask(long count) {
        return count < kLine ? static_cast<__mmask16>((1u << std::max(0L, count)) - 1u) : __mmask16{0xFFFF};
    }

    // A row of units as pairs of units; `to` has room for whole lines.
    void pair_units(const float* from, float factor, Pair* to) const {
        for (long unit = 0; unit < call_.units; unit += kLine)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + unit / 2), narrowed(from + unit, call_.units - unit, factor));
    }

    // Two rows of units, each times its factor, as one row of pairs; `to` has room for whole lines.
    void pair_rows(const float* first, const float* second, float first_factor, float second_factor, Pair* to) const {
        for (long unit = 0; unit < call_.units; unit += kLine) {
            const long count = call_.units - unit;
            _mm512_storeu_si512(to + unit, set_above(narrowed(first ? first + unit : first, first ? count : 0, first_factor),
                                                     narrowed(second ? second + unit : second, second ? count : 0, second_factor)));
        }
    }

    // Sixteen of one row and of another as pairs.
    static __m512i set_above(__m256i first, __m256i second) {
        return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
    }

    // Pairs of units for the scores, pairs of items for the hidden states' gradient; zero where there is no item.
    void pack_items() {
        Pair pairs[kMostUnits + kLine];
        const auto row = [&](long item) { return item < call_.items ? call_.table + item * call_.units : nullptr; };
        for (long item = 0; item < call_.items; ++item) {
            pair_units(row(item), 1.0f, pairs);
            std::copy_n(pairs, pairs_, by_unit_.data() + item * pairs_);
            longest_ = std::max(longest_, length(row(item)));
        }
        for (long two = 0; two < items_ / 2; ++two) {
            pair_rows(row(2 * two), row(2 * two + 1), 1.0f, 1.0f, pairs);
            for (long unit = 0; unit < call_.units; unit += kRows)
                std::copy_n(pairs + unit, units_from(unit), by_item(unit, two));
        }
    }

    // Units of the tile that begins with this one, pairs of items one after another.
    long units_from(long unit) const { return std::min<long>(kRows, call_.units - unit); }
    Pair* by_item(long unit, long two) { return by_item_.data() + unit * items_ / 2 + two * units_from(unit); }

    float length(const float* row) const { return std::sqrt(dot(row, row, call_.units)); }

    // Hidden states times what makes powers probabilities, in pairs of positions: lines of units, and the units behind them.
    void pack_shares(long start, long count) {
        Pair pairs[kMostUnits + kLine];
        const auto row = [&](long at) { return start + at < call_.positions ? call_.hidden + (start + at) * call_.units : nullptr; };
        for (long two = 0; two < count / 2; ++two) {
            pair_rows(row(2 * two), row(2 * two + 1), share_[2 * two], share_[2 * two + 1], pairs);
            std::copy_n(pairs, full_, shares_.data() + two * full_);
            for (long unit = full_; unit < call_.units; ++unit)
                rest_shares_[(unit - full_) * kPiece / 2 + two] = pairs[unit];
        }
    }

    void learn_some(long start, long first, long count, Scratch& s) {
        pack_hidden(start + first, count, s);
        std::fill_n(s.whole, kTogether, 0.0f);
        for (long item = 0; item < call_.items; item += kSome) {
            const long some = std::min(kSome, call_.items - item);
            raise_some(item, some, first, s);
            for (long unit = 0; unit < call_.units; unit += kRows)
                tiles<kRows, 2>(units_from(unit), (some + 1) / 2, by_item(unit, item / 2), 1, units_from(unit), s.near, kTogether,
                                s.sums.data() + unit * kTogether, kTogether, item > 0);
        }
        for (long at = 0; at < kTogether; ++at) {
            share_[first + at] = 0.0f;
            if (at < count) finish(start + first + at, at, first + at, s);
        }
    }

    void pack_hidden(long start, long count, Scratch& s) const {
        Pair pairs[kMostUnits + kLine];
        std::fill_n(s.hidden.data(), pairs_ * kTogether, 0);
        std::fill_n(s.from, kTogether, 0.0f);
        bool is_far = false;
        for (long at = 0; at < count; ++at) {
            const float* hidden = call_.hidden + (start + at) * call_.units;
            pair_units(hidden, kLog2E, pairs);
            for (long k = 0; k < pairs_; ++k) s.hidden[k * kTogether + at] = pairs[k];
            s.from[at] = s.target[at] = target_score(pairs, call_.targets[start + at]);
            is_far = is_far || !(length(hidden) * longest_ - kLn2 * s.target[at] < kFar);
        }
        if (is_far) find_highest(s);
    }

    float target_score(const Pair* hidden, long item) const {
        __m512 sums{};
        for (long k = 0; k < pairs_; k += kLine) {
            const __mmask16 there = mask(pairs_ - k);
            sums = _mm512_dpbf16_ps(sums, (__m512bh)_mm512_maskz_loadu_epi32(there, hidden + k),
                                    (__m512bh)_mm512_maskz_loadu_epi32(there, by_unit_.data() + item * pairs_ + k));
        }
        return _mm512_reduce_add_ps(sums);
    }

    // Where the highest score might be too far above the target's, from which scores count, they count from the highest.
    void find_highest(Scratch& s) const {
        __m512 highest[2] = {_mm512_set1_ps(-std::numeric_limits<float>::max()), _mm512_set1_ps(-std::numeric_limits<float>::max())};
        for (long item = 0; item < call_.items; item += kRows) {
            const long rows = std::min<long>(kRows, call_.items - item);
            score(item, rows, s);
            for (long row = 0; row < rows; ++row)
                for (long v = 0; v < 2; ++v)
                    highest[v] = _mm512_max_ps(highest[v], _mm512_load_ps(s.scores + row * kTogether + v * kLine));
        }
        for (long v = 0; v < 2; ++v) _mm512_store_ps(s.from + v * kLine, highest[v]);
    }

    // Logarithms to base 2.
    void score(long item, long rows, Scratch& s) const {
        tiles<kRows, 2>(rows, pairs_, by_unit_.data() + item * pairs_, pairs_, 1, s.hidden.data(), kTogether, s.scores, kTogether, false);
    }

    // Powers of some items: for the hidden states' gradient pairs of items, for that of the items pairs of positions.
    void raise_some(long first, long some, long at, Scratch& s) {
        const __m512 less[2] = {_mm512_sub_ps(__m512{}, _mm512_load_ps(s.from)), _mm512_sub_ps(__m512{}, _mm512_load_ps(s.from + kLine))};
        __m512 total[2] = {};
        long item = first;
        for (; item + kRows <= first + some; item += kRows) raise_tile(item, at, less, total, s.near + (item - first) / 2 * kTogether, s);
        for (score(item, first + some - item, s); item < first + some; item += 2) {
            __m512 sums[2][2];
            const bool is_pair = item + 1 < first + some;
            for (long v = 0; v < 2; ++v) {
                const float* scores = s.scores + (item - first) % kRows * kTogether + v * kLine;
                sums[0][v] = _mm512_add_ps(_mm512_load_ps(scores), less[v]);
                sums[1][v] = is_pair ? _mm512_add_ps(_mm512_load_ps(scores + kTogether), less[v]) : _mm512_set1_ps(-std::numeric_limits<float>::infinity());
            }
            raise_two(sums[0], sums[1], total, powers_.data() + item * kStride + at / 2, s.near + (item - first) / 2 * kTogether);
        }
        for (long v = 0; v < 2; ++v) _mm512_store_ps(s.whole + v * kLine, _mm512_add_ps(_mm512_load_ps(s.whole + v * kLine), total[v]));
    }

    void raise_tile(long item, long at, const __m512* less, __m512* total, Pair* near, const Scratch& s) {
        __m512 sums[kRows][2];
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row)
            for (int v = 0; v < 2; ++v) sums[row][v] = less[v];
        multiply(pairs_, by_unit_.data() + item * pairs_, pairs_, 1, s.hidden.data(), kTogether, sums);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; row += 2)
            raise_two(sums[row], sums[row + 1], total, powers_.data() + (item + row) * kStride + at / 2, near + row / 2 * kTogether);
    }

    // Powers of two items.
    static inline __attribute__((always_inline)) void raise_two(const __m512* first, const __m512* second, __m512* total, Pair* to, Pair* near) {
        const __m512i one = raise(first, total), two = raise(second, total);
        _mm512_store_si512(to, one);
        _mm512_store_si512(to + kStride, two);
        _mm512_store_si512(near, _mm512_unpacklo_epi16(one, two));
        _mm512_store_si512(near + kLine, _mm512_unpackhi_epi16(one, two));
    }

    static inline __attribute__((always_inline)) __m512i raise(const __m512* scores, __m512* total) {
        __m512 power[2];
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            power[v] = raised(scores[v]);
            total[v] = _mm512_add_ps(total[v], power[v]);
        }
        return (__m512i)_mm512_cvtne2ps_pbh(power[1], power[0]);
    }

    // 2^x to a relative error of 1.1e-4 (powers keep eight bits), exact where x is an integer; NaN stays NaN.
    static __m512 raised(__m512 x) {
        const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x less the integer below
        __m512 p = _mm512_set1_ps(7.82679692e-2f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.26307675e-1f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.95424318e-1f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
        return _mm512_scalef_ps(p, x);
    }

    // The loss of a position, its gradient, and what makes its powers probabilities.
    void finish(long position, long at, long place, const Scratch& s) {
        const float* target = call_.table + call_.targets[position] * call_.units;
        const float share = share_[place] = call_.weights[position] / s.whole[at];
        call_.losses[position] = std::log(s.whole[at]) + kLn2 * (s.from[at] - s.target[at]);
        float* to = call_.hidden_gradient + position * call_.units;
        const float* sums = s.sums.data() + at / 4 % 2 * kLine + at / 8 * 4 + at % 4;  // where unpacking has put it
        for (long unit = 0; unit < call_.units; ++unit)
            to[unit] = sums[unit * kTogether] * share - call_.weights[position] * target[unit];
    }

    // What a line of items gets from the powers of so many pairs of positions.
    void learn_items(long line, long pairs) {
        const Pair* powers = powers_.data() + line * kStride;
        for (long item = line; item < std::min(line + kLine, call_.items); item += kItemRows)
            for (long unit = 0; unit < full_; unit += 3 * kLine)
                learn_units(std::min<long>(kItemRows, call_.items - item), pairs, powers + (item - line) * kStride, unit,
                            call_.item_gradient + item * call_.units + unit);
        for (long unit = 0; unit < call_.units - full_; ++unit) {
            float* to = rest_.data() + unit * items_ + line;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), dots(pairs, powers, rest_shares_.data() + unit * kPiece / 2)));
        }
    }

    void learn_units(long rows, long pairs, const Pair* powers, long unit, float* to) const {
        const Pair* right = shares_.data() + unit;
        switch (std::min(3L, (full_ - unit) / kLine)) {
            case 1: return tiles<kItemRows, 1>(rows, pairs, powers, kStride, 1, right, full_, to, call_.units, true);
            case 2: return tiles<kItemRows, 2>(rows, pairs, powers, kStride, 1, right, full_, to, call_.units, true);
            default: return tiles<kItemRows, 3>(rows, pairs, powers, kStride, 1, right, full_, to, call_.units, true);
        }
    }

    // Of sixteen items the powers times one unit of so many pairs of positions.
    static __m512 dots(long pairs, const Pair* powers, const Pair* shares) {
        __m512 sums[kLine] = {};
        for (long k = 0; k < pairs; k += kLine) {
            const __m512bh share = (__m512bh)_mm512_loadu_si512(shares + k);
#pragma GCC unroll 16
            for (long item = 0; item < kLine; ++item)
                sums[item] = _mm512_dpbf16_ps(sums[item], (__m512bh)_mm512_loadu_si512(powers + item * kStride + k), share);
        }
        alignas(64) float totals[kLine];
#pragma GCC unroll 16
        for (long item = 0; item < kLine; ++item) totals[item] = _mm512_reduce_add_ps(sums[item]);
        return _mm512_load_ps(totals);
    }

  public:
    static constexpr long kMostUnits = 256;

  private:
    const FullSoftmaxCall& call_;
    long pairs_, items_, full_;
    Pairs by_unit_, by_item_, shares_, rest_shares_, powers_;
    Room rest_;                     // of units that fill no line, items side by side
    std::vector<Scratch> scratch_;  // of each thread: memory that is given back is paid for again, page by page
    float share_[kPiece];
    float longest_ = 0.0f;          // row of the table
};

inline void full_softmax(const FullSoftmaxCall& call) { FullSoftmax(call).learn(); }

#else

inline void full_softmax(const FullSoftmaxCall&) {}

#endif

}  // namespace native
