// Cross-entropy over all items with products of bfloat16, and its gradient, without positions x items in memory.
//
// A piece of positions at a time. First, a few positions together: their scores (which fit into the cache), powers
// e^(score - highest) rounded to bfloat16, and the gradient of the hidden states. Then, item by item, what the powers of
// the whole piece add to the gradient of the items. Sums are of float; the target's own share is added exactly. Every
// sum has an order that follows from the shapes alone: any number of threads gives the same bytes.
#pragma once

#include "scores.h"
#include "softmax.h"

#include <limits>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
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
        : call_(call), pairs_((call.units + 1) / 2), width_(rounded(call.units, kHalf)), items_(rounded(call.items, kAcross)),
          by_unit_(pairs_ * items_), by_item_(items_ / 2 * width_), hidden_(kPiece * pairs_), shares_(kPiece / 2 * width_),
          powers_(items_ * kStride), scratch_(std::max<size_t>(1, static_cast<size_t>(call.threads))) {
        for (Scratch& one : scratch_) one = {Room(kTogether * items_), std::vector<Pair>(kTogether / 2 * items_)};
        pack_items();
    }

    void learn() {
        for (long start = 0; start < call_.positions; start += kPiece) {
            const long count = std::min<long>(kPiece, call_.positions - start);
            pack_hidden(start, count);
            std::atomic<size_t> taken{0};
            in_parallel(kPiece / kTogether, call_.threads, [&] { return &scratch_[taken++]; }, [&](long part, Scratch* s) {
                if (part * kTogether < count) learn_some(start, part * kTogether, std::min(kTogether, count - part * kTogether), *s);
                else forget(part * kTogether);
            });
            pack_shares(start, count);
            in_parallel(items_ / kLine, call_.threads, [] { return 0; }, [&](long line, int) { learn_items(line * kLine); });
        }
        for (long position = 0; position < call_.positions; ++position)
            add_scaled(call_.item_gradient + call_.targets[position] * call_.units, call_.hidden + position * call_.units,
                       -call_.weights[position], call_.units);
    }

  private:
    static constexpr long kLine = 16;              // floats, or pairs of bfloat16, of a vector
    static constexpr long kVectors = 4, kRows = 4; // of a tile of sums
    static constexpr long kHalf = kLine / 2, kAcross = kVectors * kLine;
    static constexpr long kPiece = 256, kTogether = 16;
    // Of a line of items, the powers of all pairs of positions; one more, so that lines do not fall on one another in the cache.
    static constexpr long kStride = kPiece / 2 + 1;

    using Pair = uint32_t;  // two of bfloat16, the first in the low half

    struct Scratch {
        Room scores;
        std::vector<Pair> powers;  // pairs of items, those of the rows of a tile side by side
    };

    static long rounded(long count, long to) { return (count + to - 1) / to * to; }

    // sums[row][vector] += pairs of `left[row]` times those of `right`, over `inner` pairs; a half vector at the end or none.
    template <int Vectors, int Halves>
    static void tile(long inner, const Pair* left, long across, long along, const Pair* right, long right_stride,
                     float* to, long to_stride, bool add) {
        constexpr int kEnd = Vectors * kLine;
        __m512 sums[kRows][Vectors + 1];
        __m256 ends[kRows];
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v)
                sums[row][v] = add ? _mm512_loadu_ps(to + row * to_stride + v * kLine) : _mm512_setzero_ps();
            if (Halves) ends[row] = add ? _mm256_loadu_ps(to + row * to_stride + kEnd) : _mm256_setzero_ps();
        }
        for (long k = 0; k < inner; ++k) {
            const Pair* from = right + k * right_stride;
            __m512bh wide[Vectors + 1];
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) wide[v] = (__m512bh)_mm512_loadu_si512(from + v * kLine);
            const __m256bh end = Halves ? (__m256bh)_mm256_loadu_si256((const __m256i*)(from + kEnd)) : __m256bh{};
#pragma GCC unroll 4
            for (int row = 0; row < kRows; ++row) {
                const __m512i one = _mm512_set1_epi32(static_cast<int>(left[row * across + k * along]));
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) sums[row][v] = _mm512_dpbf16_ps(sums[row][v], (__m512bh)one, wide[v]);
                if (Halves) ends[row] = _mm256_dpbf16_ps(ends[row], (__m256bh)_mm512_castsi512_si256(one), end);
            }
        }
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) _mm512_storeu_ps(to + row * to_stride + v * kLine, sums[row][v]);
            if (Halves) _mm256_storeu_ps(to + row * to_stride + kEnd, ends[row]);
        }
    }

    // The same over columns, as many vectors together as fit.
    static void product(long columns, long inner, const Pair* left, long across, long along, const Pair* right,
                        long right_stride, float* to, long to_stride, bool add) {
        for (long column = 0; column < columns; column += kVectors * kLine) {
            const Pair* from = right + column;
            float* into = to + column;
            switch (std::min(2 * kVectors, (columns - column) / kHalf)) {
                case 1: tile<0, 1>(inner, left, across, along, from, right_stride, into, to_stride, add); break;
                case 2: tile<1, 0>(inner, left, across, along, from, right_stride, into, to_stride, add); break;
                case 3: tile<1, 1>(inner, left, across, along, from, right_stride, into, to_stride, add); break;
                case 4: tile<2, 0>(inner, left, across, along, from, right_stride, into, to_stride, add); break;
                case 5: tile<2, 1>(inner, left, across, along, from, right_stride, into, to_stride, add); break;
                case 6: tile<3, 0>(inner, left, across, along, from, right_stride, into, to_stride, add); break;
                case 7: tile<3, 1>(inner, left, across, along, from, right_stride, into, to_stride, add); break;
                default: tile<4, 0>(inner, left, across, along, from, right_stride, into, to_stride, add);
            }
        }
    }

    // Up to sixteen floats as bfloat16; zero where there are fewer.
    static __m256i narrowed(const float* from, long count, __m512 factor) {
        const __mmask16 there = count < kLine ? static_cast<__mmask16>((1u << std::max(0L, count)) - 1u) : __mmask16{0xFFFF};
        return (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, from), factor));
    }

    // Two rows of `units` floats, each times its factor, as one row of pairs; zero behind the units.
    void pair_rows(const float* first, const float* second, float first_factor, float second_factor, Pair* to) const {
        const __m512 one = _mm512_set1_ps(first_factor), two = _mm512_set1_ps(second_factor);
        for (long unit = 0; unit < width_; unit += kLine) {
            const long count = call_.units - unit;
            const __m512i pairs = set_above(narrowed(first ? first + unit : first, first ? count : 0, one),
                                            narrowed(second ? second + unit : second, second ? count : 0, two));
            if (width_ - unit >= kLine) _mm512_storeu_si512(to + unit, pairs);
            else _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + unit), _mm512_castsi512_si256(pairs));
        }
    }

    // A row of units as pairs of units; `to` has room for whole lines.
    void pair_units(const float* from, Pair* to) const {
        for (long unit = 0; unit < call_.units; unit += kLine)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + unit / 2), narrowed(from + unit, call_.units - unit, _mm512_set1_ps(1.0f)));
    }

    // Pairs of units side by side for the scores, pairs of items for the hidden states' gradient; zero where there is none.
    void pack_items() {
        const auto row = [&](long item) { return item < call_.items ? call_.table + item * call_.units : nullptr; };
        Pair pairs[kMostUnits / 2 + kLine];
        for (long item = 0; item < call_.items; ++item) {
            pair_units(row(item), pairs);
            for (long k = 0; k < pairs_; ++k)
                by_unit_[static_cast<size_t>((item / kAcross * pairs_ + k) * kAcross + item % kAcross)] = pairs[k];
        }
        for (long two = 0; two < items_ / 2; ++two)
            pair_rows(row(2 * two), row(2 * two + 1), 1.0f, 1.0f, by_item_.data() + two * width_);
    }

    void pack_hidden(long start, long count) {
        Pair pairs[kMostUnits / 2 + kLine];
        for (long row = 0; row < count; ++row) {
            pair_units(call_.hidden + (start + row) * call_.units, pairs);
            std::copy_n(pairs, pairs_, hidden_.data() + row * pairs_);
        }
        std::fill(hidden_.begin() + count * pairs_, hidden_.end(), 0);
    }

    // Hidden states times what makes powers probabilities, in pairs of positions.
    void pack_shares(long start, long count) {
        const auto row = [&](long at) { return at < count ? call_.hidden + (start + at) * call_.units : nullptr; };
        for (long two = 0; two < kPiece / 2; ++two)
            pair_rows(row(2 * two), row(2 * two + 1), share_[2 * two], share_[2 * two + 1], shares_.data() + two * width_);
    }

    void learn_some(long start, long first, long count, Scratch& s) {
        float* scores = s.scores.data();
        for (long line = 0; line < items_; line += kAcross)
            for (long row = 0; row < kTogether; row += kRows)
                tile<kVectors, 0>(pairs_, hidden_.data() + (first + row) * pairs_, pairs_, 1, by_unit_.data() + line * pairs_,
                               kAcross, scores + row * items_ + line, items_, false);
        for (long row = 0; row < kTogether; row += kRows) raise(start, first + row, row, count, s);
        float sums[kTogether * kMostUnits];
        constexpr long kSome = 64;  // pairs of items whose rows stay in the first-level cache
        for (long two = 0; two < items_ / 2; two += kSome)
            for (long row = 0; row < kTogether; row += kRows)
                product(width_, std::min(kSome, items_ / 2 - two), s.powers.data() + row * items_ / 2 + two * kRows, 1, kRows,
                        by_item_.data() + two * width_, width_, sums + row * width_, width_, two > 0);
        for (long row = 0; row < count; ++row) {
            const long position = start + first + row;
            const float* target = call_.table + call_.targets[position] * call_.units;
            float* to = call_.hidden_gradient + position * call_.units;
            for (long unit = 0; unit < call_.units; ++unit)
                to[unit] = sums[row * width_ + unit] * share_[first + row] - call_.weights[position] * target[unit];
        }
    }

    // Powers of the positions of a tile, from `at` on of the piece; nothing of positions that are not there.
    void raise(long start, long at, long row, long count, Scratch& s) {
        __m512 highest[kRows], total[kRows];
        float target[kRows] = {};
        for (long one = 0; one < kRows; ++one) {
            float* score = s.scores.data() + (row + one) * items_;
            std::fill(score + call_.items, score + items_, -std::numeric_limits<float>::max());
            if (row + one < count) target[one] = score[call_.targets[start + at + one]];
            __m512 best = _mm512_loadu_ps(score);
            for (long item = kLine; item < items_; item += kLine) best = _mm512_max_ps(best, _mm512_loadu_ps(score + item));
            highest[one] = _mm512_set1_ps(_mm512_reduce_max_ps(best));
            total[one] = _mm512_setzero_ps();
        }
        Pair* beside = s.powers.data() + row * items_ / 2;
        for (long item = 0; item < items_; item += kLine) {
            __m256i narrowed[kRows];
#pragma GCC unroll 4
            for (long one = 0; one < kRows; ++one) {
                const __m512 score = _mm512_loadu_ps(s.scores.data() + (row + one) * items_ + item);
                const __m512 power = raised(_mm512_sub_ps(score, highest[one]));
                total[one] = _mm512_add_ps(total[one], power);
                narrowed[one] = (__m256i)_mm512_cvtneps_pbh(power);
            }
            set_beside(narrowed, beside + item / 2 * kRows);
            Pair* above = powers_.data() + item * kStride + at / 2 * kLine;
            _mm512_storeu_si512(above, set_above(narrowed[0], narrowed[1]));
            _mm512_storeu_si512(above + kLine, set_above(narrowed[2], narrowed[3]));
        }
        for (long one = 0; one < kRows; ++one) {
            share_[at + one] = 0.0f;
            if (row + one >= count) continue;
            const long position = start + at + one;
            const float whole = _mm512_reduce_add_ps(total[one]);
            share_[at + one] = call_.weights[position] / whole;
            call_.losses[position] = _mm512_cvtss_f32(highest[one]) + std::log(whole) - target[one];
        }
    }

    // Eight pairs of items of four positions become, pair by pair, those of the four positions.
    static void set_beside(const __m256i* from, Pair* to) {
        const __m256i low01 = _mm256_unpacklo_epi32(from[0], from[1]), high01 = _mm256_unpackhi_epi32(from[0], from[1]);
        const __m256i low23 = _mm256_unpacklo_epi32(from[2], from[3]), high23 = _mm256_unpackhi_epi32(from[2], from[3]);
        const __m256i pair0 = _mm256_unpacklo_epi64(low01, low23), pair1 = _mm256_unpackhi_epi64(low01, low23);
        const __m256i pair2 = _mm256_unpacklo_epi64(high01, high23), pair3 = _mm256_unpackhi_epi64(high01, high23);
        __m256i* at = reinterpret_cast<__m256i*>(to);
        _mm256_storeu_si256(at, _mm256_permute2x128_si256(pair0, pair1, 0x20));
        _mm256_storeu_si256(at + 1, _mm256_permute2x128_si256(pair2, pair3, 0x20));
        _mm256_storeu_si256(at + 2, _mm256_permute2x128_si256(pair0, pair1, 0x31));
        _mm256_storeu_si256(at + 3, _mm256_permute2x128_si256(pair2, pair3, 0x31));
    }

    // Sixteen items of two positions as pairs of positions.
    static __m512i set_above(__m256i first, __m256i second) {
        return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
    }

    void forget(long first) {
        for (long line = 0; line < items_; line += kLine)
            std::fill_n(powers_.begin() + line * kStride + first / 2 * kLine, kTogether / 2 * kLine, 0);
        std::fill_n(share_ + first, kTogether, 0.0f);
    }

    // What a line of items gets from the powers of the piece.
    void learn_items(long line) {
        float sums[kRows * kMostUnits];
        for (long item = line; item < line + kLine; item += kRows) {
            product(width_, kPiece / 2, powers_.data() + line * kStride + item - line, 1, kLine, shares_.data(), width_, sums, width_, false);
            for (long row = 0; row < std::min(kRows, call_.items - item); ++row)
                for (long unit = 0; unit < call_.units; ++unit)
                    call_.item_gradient[(item + row) * call_.units + unit] += sums[row * width_ + unit];
        }
    }

    // e^x to a relative error of 5e-6 (powers keep eight bits), for x from -87 to 0; NaN stays NaN.
    static __m512 raised(__m512 x) {
        const __m512 magic = _mm512_set1_ps(12582912.0f);  // rounds to an integer in the low bits
        x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);      // of NaN and a number the second
        const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504088896341f), magic);
        const __m512 r = _mm512_fnmadd_ps(_mm512_sub_ps(shifted, magic), _mm512_set1_ps(0.693147180559945f), x);
        __m512 p = _mm512_set1_ps(4.191752969e-2f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.679216097e-1f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.999886911e-1f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999622785e-1f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.000000075f));
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
    }

  public:
    static constexpr long kMostUnits = 256;

  private:
    const FullSoftmaxCall& call_;
    long pairs_, width_, items_;
    std::vector<Pair> by_unit_, by_item_, hidden_, shares_, powers_;
    std::vector<Scratch> scratch_;  // of each thread: memory that is given back is paid for again, page by page
    float share_[kPiece];
};

inline void full_softmax(const FullSoftmaxCall& call) { FullSoftmax(call).learn(); }

#else

inline void full_softmax(const FullSoftmaxCall&) {}

#endif

}  // namespace native
