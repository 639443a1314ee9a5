// Vectors of the compiler's own kind (GCC and Clang lower them to whatever the processor has), and what is read often.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef LANES
// Zen 3 and 4 do 512 bits in two halves, so that narrower vectors cost nothing and waste less at odd widths.
#if defined(__AVX512F__) && !defined(__znver3__) && !defined(__znver4__)
#define LANES 16
#else
#define LANES 8
#endif
#endif

namespace native {

constexpr long kLanes = LANES;

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector load(const float* at) { return *reinterpret_cast<const Vector*>(at); }
inline void store(float* at, Vector value) { *reinterpret_cast<Vector*>(at) = value; }
inline Vector all(float value) { return value - Vector{}; }

// By halves: the order of additions is fixed, and they do not wait for one another.
inline float sum(Vector value) {
    float lanes[kLanes];
    store(lanes, value);
    for (long half = kLanes / 2; half > 0; half /= 2)
        for (long lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

inline float largest(Vector value) {
    float most = value[0];
    for (long lane = 1; lane < kLanes; ++lane) most = value[lane] > most ? value[lane] : most;
    return most;
}

// Up to a whole number of vectors: rows in scratch memory are so long, and what is too much of them is zero.
inline long padded(long count) { return (count + kLanes - 1) / kLanes * kLanes; }

// e^x to a relative error below 2e-7, for x from -87 to 88; beyond that the value at the end. NaN stays NaN.
inline Vector exponential(Vector x) {
    const Vector lowest = all(-87.0f), highest = all(88.0f), magic = all(12582912.0f);
    x = x < lowest ? lowest : x;
    x = x > highest ? highest : x;
    const Vector shifted = x * 1.44269504088896341f + magic;  // rounds to an integer in the low bits
    const Vector power = shifted - magic;
    const Vector r = (x - power * 0.693359375f) + power * 2.12194440e-4f;
    Vector p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Integers bits, base;
    std::memcpy(&bits, &shifted, sizeof bits);
    std::memcpy(&base, &magic, sizeof base);
    bits = (bits - base + 127) << 23;
    Vector scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

}  // namespace native
