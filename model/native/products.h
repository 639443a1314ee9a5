// Matrix products of a few dozen columns whose operands lie in the cache: C (+)= A B.
#pragma once

#include "vectors.h"

namespace native {

#if defined(__AVX512F__) || defined(__AVX512VL__) || defined(__aarch64__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif
constexpr int kTileRows = 6;

// A is read one number at a time at a[row * across + k * along], so it may stand transposed; rows of B and C are
// contiguous and a whole number of vectors wide.
struct Left {
    const float* at;
    long across;
    long along;
};

template <int Rows, int Vectors>
inline void tile(long inner, Left a, const float* b, long b_stride, float* c, long c_stride, bool add) {
    Vector sums[Rows][Vectors];
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sums[row][v] = add ? load(c + row * c_stride + v * kLanes) : Vector{};
    for (long k = 0; k < inner; ++k) {
        Vector right[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) right[v] = load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 8
        for (int row = 0; row < Rows; ++row) {
            const float left = a.at[row * a.across + k * a.along];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[row][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) store(c + row * c_stride + v * kLanes, sums[row][v]);
}

template <int Rows>
inline void tiles(int vectors, long inner, Left a, const float* b, long b_stride, float* c, long c_stride, bool add) {
    switch (vectors) {
        case 1: return tile<Rows, 1>(inner, a, b, b_stride, c, c_stride, add);
        case 2: return tile<Rows, 2>(inner, a, b, b_stride, c, c_stride, add);
#if defined(__AVX512F__) || defined(__AVX512VL__) || defined(__aarch64__)
        case 3: return tile<Rows, 3>(inner, a, b, b_stride, c, c_stride, add);
        default: return tile<Rows, 4>(inner, a, b, b_stride, c, c_stride, add);
#endif
    }
}

enum class Into { kReplace, kAdd };

inline void product(long rows, long columns, long inner, Left a, const float* b, long b_stride, float* c, long c_stride,
                    Into into = Into::kReplace) {
    const bool add = into == Into::kAdd;
    for (long column = 0; column < columns; column += kTileVectors * kLanes) {
        const long left = (columns - column) / kLanes;
        const int vectors = static_cast<int>(left < kTileVectors ? left : kTileVectors);
        long row = 0;
        for (; row + kTileRows <= rows; row += kTileRows)
            tiles<kTileRows>(vectors, inner, {a.at + row * a.across, a.across, a.along}, b + column, b_stride,
                             c + row * c_stride + column, c_stride, add);
        const Left rest{a.at + row * a.across, a.across, a.along};
        float* last = c + row * c_stride + column;
        switch (rows - row) {
            case 1: tiles<1>(vectors, inner, rest, b + column, b_stride, last, c_stride, add); break;
            case 2: tiles<2>(vectors, inner, rest, b + column, b_stride, last, c_stride, add); break;
            case 3: tiles<3>(vectors, inner, rest, b + column, b_stride, last, c_stride, add); break;
            case 4: tiles<4>(vectors, inner, rest, b + column, b_stride, last, c_stride, add); break;
            case 5: tiles<5>(vectors, inner, rest, b + column, b_stride, last, c_stride, add); break;
            default: break;
        }
    }
}

}  // namespace native
