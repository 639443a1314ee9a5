// Random bits by counter: whether a unit is dropped depends on the seed, the place in the network, the position and the
// unit, and on nothing else: not on threads, not on the order of work. The same bits as `model/dropout.py`.
#pragma once

#include "vectors.h"

namespace native {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

// The finaliser of SplitMix64 (Steele, Lea & Flood 2014), variant 13 of Stafford.
inline uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// One place in the network at which units are dropped.
class Dropout {
  public:
    // `dropped` of 65536 units are dropped, the others multiplied by `factor`; none where `dropped` is 0.
    Dropout(uint64_t seed, int64_t site, uint32_t dropped, float factor, long units)
        : key_(mixed(seed + static_cast<uint64_t>(site + 1) * kGolden)), dropped_(dropped), factor_(factor),
          words_((units + 3) / 4) {}

    // What the units of a position are multiplied by; `factors` has `room` for `padded(units)` numbers.
    void factors(long position, float* factors, long room) const {
        if (dropped_ == 0) {
            for (long unit = 0; unit < room; ++unit) factors[unit] = 1.0f;
            return;
        }
        uint64_t words[kWords];
        uint16_t bits[4 * kWords];
        const uint64_t first = static_cast<uint64_t>(position) * static_cast<uint64_t>(words_);
        for (long start = 0; start < room; start += 4 * kWords) {
            const long here = room - start < 4 * kWords ? room - start : 4 * kWords;
            for (long word = 0; word < here / 4; ++word)
                words[word] = mixed(key_ + (first + static_cast<uint64_t>(start / 4 + word)) * kGolden);
            std::memcpy(bits, words, sizeof bits);
            for (long unit = 0; unit < here; unit += kLanes) {
                Halves some;
                std::memcpy(&some, bits + unit, sizeof some);
                const Integers kept = __builtin_convertvector(some, Integers) >= static_cast<int32_t>(dropped_);
                store(factors + start + unit, kept ? all(factor_) : Vector{});
            }
        }
    }

  private:
    typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
    static constexpr long kWords = 64;
    uint64_t key_;
    uint32_t dropped_;
    float factor_;
    long words_;
};

}  // namespace native
