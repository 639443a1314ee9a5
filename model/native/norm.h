// Layer normalisation of rows in scratch memory (Ba, Kiros & Hinton 2016).
#pragma once

#include "vectors.h"

namespace native {

struct Norm {
    const float* weight;
    const float* bias;
};

struct Moments {
    float mean;
    float scale;  // 1 / standard deviation
};

// One in every lane of a row's last vector that holds a unit, zero in those that are too much.
inline Vector last_lanes(long units) {
    Vector lanes{};
    for (long lane = 0; lane < kLanes; ++lane) lanes[lane] = padded(units) - kLanes + lane < units ? 1.0f : 0.0f;
    return lanes;
}

inline Moments moments(const float* row, long units, Vector last) {
    constexpr float kEpsilon = 1e-5f;
    const long end = padded(units) - kLanes;
    Vector total{};
    for (long at = 0; at <= end; at += kLanes) total += load(row + at);
    const float mean = sum(total) / static_cast<float>(units);
    Vector squares{};
    for (long at = 0; at <= end; at += kLanes) {
        const Vector off = at < end ? load(row + at) - mean : (load(row + at) - mean) * last;
        squares += off * off;
    }
    return {mean, 1.0f / std::sqrt(sum(squares) / static_cast<float>(units) + kEpsilon)};
}

// `weight` and `bias` are padded with zeros, so the result is too.
inline void normalise(const float* input, float* output, long rows, long units, Norm norm) {
    const long width = padded(units);
    const Vector last = last_lanes(units);
    for (long row = 0; row < rows; ++row, input += width, output += width) {
        const Moments m = moments(input, units, last);
        for (long at = 0; at < width; at += kLanes)
            store(output + at, (load(input + at) - m.mean) * m.scale * load(norm.weight + at) + load(norm.bias + at));
    }
}

// Adds to the gradients of weight and bias, and replaces `gradient` by the one of the input.
inline void normalise_backward(const float* input, float* gradient, long rows, long units, const float* weight,
                               float* weight_gradient, float* bias_gradient) {
    const long width = padded(units);
    const float share = 1.0f / static_cast<float>(units);
    const Vector last = last_lanes(units);
    for (long row = 0; row < rows; ++row, input += width, gradient += width) {
        const Moments m = moments(input, units, last);
        Vector total{}, along{};
        for (long at = 0; at < width; at += kLanes) {
            const Vector given = load(gradient + at);
            const Vector normed = (load(input + at) - m.mean) * m.scale;
            store(bias_gradient + at, load(bias_gradient + at) + given);
            store(weight_gradient + at, load(weight_gradient + at) + given * normed);
            const Vector inner = given * load(weight + at);
            total += inner;
            along += inner * normed;
        }
        const float mean = sum(total) * share, slope = sum(along) * share;
        for (long at = 0; at < width; at += kLanes) {
            const Vector normed = (load(input + at) - m.mean) * m.scale;
            store(gradient + at, m.scale * (load(gradient + at) * load(weight + at) - mean - normed * slope));
        }
        for (long unit = units; unit < width; ++unit) gradient[unit] = 0.0f;
    }
}

}  // namespace native
