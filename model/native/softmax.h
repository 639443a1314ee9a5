// Rows of scores become the gradient of their cross-entropy while they are in the cache.
#pragma once

#include "block.h"

extern "C" {
struct SoftmaxCall {
    int64_t rows, columns, threads;
    int64_t is_short;        // whether scores are bfloat16 and not float32
    void* scores;            // rows x columns; become weight * (probability - [column == target])
    const int64_t* targets;  // columns
    const float* weights;
    float* losses;           // ln sum e^score - score of the target, without the weight
};
}

namespace native {

// bfloat16: the upper half of a float.
struct Short {
    uint16_t bits;
};

inline void widen(const float* from, float* to, long count) { std::copy_n(from, count, to); }

inline void widen(const Short* from, float* to, long count) {
    for (long at = 0; at < count; ++at) {
        const uint32_t bits = static_cast<uint32_t>(from[at].bits) << 16;
        std::memcpy(to + at, &bits, sizeof bits);
    }
}

inline void narrow(const float* from, float* to, long count) { std::copy_n(from, count, to); }

// To the nearest, a tie to the even one.
inline void narrow(const float* from, Short* to, long count) {
    for (long at = 0; at < count; ++at) {
        uint32_t bits;
        std::memcpy(&bits, from + at, sizeof bits);
        to[at].bits = static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
    }
}

// `power` has room for the columns, padded.
template <class Score>
void softmax_gradient(const SoftmaxCall& call, long row, float* power) {
    Score* score = static_cast<Score*>(call.scores) + row * call.columns;
    widen(score, power, call.columns);
    const float target = power[call.targets[row]];
    const long width = padded(call.columns);
    std::fill(power + call.columns, power + width, power[0]);
    Vector most = load(power);
    for (long at = kLanes; at < width; at += kLanes) {
        const Vector here = load(power + at);
        most = here > most ? here : most;
    }
    const float highest = largest(most);
    for (long at = 0; at < width; at += kLanes) store(power + at, exponential(load(power + at) - highest));
    std::fill(power + call.columns, power + width, 0.0f);
    Vector total{};
    for (long at = 0; at < width; at += kLanes) total += load(power + at);
    const float whole = sum(total), share = call.weights[row] / whole;
    for (long at = 0; at < width; at += kLanes) store(power + at, load(power + at) * share);
    power[call.targets[row]] -= call.weights[row];
    narrow(power, score, call.columns);
    call.losses[row] = highest + std::log(whole) - target;
}

inline void softmax_gradients(const SoftmaxCall& call) {
    constexpr long kTogether = 8;
    const auto power = [&] { return Room(static_cast<size_t>(padded(call.columns))); };
    in_parallel((call.rows + kTogether - 1) / kTogether, call.threads, power, [&](long part, Room& power) {
        for (long row = part * kTogether; row < std::min<long>(call.rows, (part + 1) * kTogether); ++row) {
            if (call.is_short)
                softmax_gradient<Short>(call, row, power.data());
            else
                softmax_gradient<float>(call, row, power.data());
        }
    });
}

}  // namespace native
