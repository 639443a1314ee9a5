// The best columns of every row of scores, part by part of a catalogue: no score is moved, hardly one is looked at twice.
#pragma once

#include <algorithm>

#include "block.h"

extern "C" {
struct BestCall {
    int64_t users, columns, first, keep, excluded_columns, threads;
    float* scores;            // users x columns, of the items first, first + 1, ...; lost where excluded
    const uint8_t* live;      // of all items, whether they may be served
    const int64_t* excluded;  // users x excluded_columns
    uint64_t* keys;           // users x 2 * keep: what was found so far, then what is found here
    int64_t* counts;          // users: keys that stand there
};

struct OrderCall {
    int64_t users, keep, threads;
    uint64_t* keys;         // users x 2 * keep; sorted afterwards
    const int64_t* counts;  // users
    float* scores;          // users x keep, as they are where fewer were found
    int64_t* rows;          // users x keep, the same
};
}

namespace native {

// Score and item as one number: a higher score is a higher number, of equal scores the lower item is.
inline uint64_t key_of(float score, int64_t item) {
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(bits) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(item));
}

inline float score_of(uint64_t key) {
    uint32_t bits = static_cast<uint32_t>(key >> 32);
    bits = bits >> 31 ? bits & 0x7FFFFFFFu : ~bits;
    float score;
    std::memcpy(&score, &bits, sizeof score);
    return score;
}

inline int64_t item_of(uint64_t key) { return 0xFFFFFFFFu - static_cast<uint32_t>(key); }

// The highest scores so far, each with its item; whenever the room for twice as many is full, half of it goes.
class Kept {
  public:
    // Nothing up to `least` is wanted.
    Kept(uint64_t* keys, long count, long keep, float least = -INFINITY) : keys_(keys), count_(count), keep_(keep), least_(least) {
        if (count_ == keep_) least_ = score_of(*std::min_element(keys_, keys_ + count_));
    }

    // What does not beat it need not be taken.
    float least() const { return least_; }

    void take(float score, int64_t item) {
        keys_[count_++] = key_of(score, item);
        if (count_ == 2 * keep_) halve();
    }

    // How many there are in the end.
    long finish() {
        if (count_ > keep_) halve();
        return count_;
    }

  private:
    void halve() {
        std::nth_element(keys_, keys_ + keep_ - 1, keys_ + count_, std::greater<uint64_t>());
        count_ = keep_;
        least_ = score_of(keys_[keep_ - 1]);
    }

    uint64_t* keys_;
    long count_, keep_;
    float least_;
};

class Best {
  public:
    Best(const BestCall& call, long user)
        : call_(call), keys_(call.keys + user * 2 * call.keep), before_(call.counts[user]),
          best_(keys_, before_, call.keep), scores_(call.scores + user * call.columns) {
        exclude(call.excluded + user * call.excluded_columns);
    }

    // Collects what beats the least of the best so far. Where there are not so many yet, a guess from a sample keeps most
    // of the others out; where it kept out too much, all is looked at.
    long add() {
        if (before_ == 0 && call_.columns >= kGuessFrom * call_.keep) {
            best_ = Kept(keys_, 0, call_.keep, guess());
            const long count = collect();
            if (count == call_.keep) return count;
            best_ = Kept(keys_, 0, call_.keep);
        }
        return collect();
    }

  private:
    static constexpr long kTogether = 8 * kLanes;
    static constexpr long kGuessFrom = 4;
    static constexpr long kSample = 256;

    // A score that, by a sample, somewhat more than the wanted number are above.
    float guess() const {
        float sample[kSample];
        for (long nth = 0; nth < kSample; ++nth) {
            const long column = nth * call_.columns / kSample;
            sample[nth] = call_.live[call_.first + column] ? scores_[column] : -INFINITY;
        }
        const float expected = static_cast<float>(kSample * call_.keep) / static_cast<float>(call_.columns);
        const long rank = std::min(kSample - 1, static_cast<long>(expected + 2.0f * std::sqrt(expected)) + 1);
        std::nth_element(sample, sample + rank, sample + kSample, std::greater<float>());
        return sample[rank];
    }

    long collect() {
        long column = 0;
        for (; column + kTogether <= call_.columns; column += kTogether) {
            Vector most = load(scores_ + column);
            for (long at = kLanes; at < kTogether; at += kLanes) {
                const Vector here = load(scores_ + column + at);
                most = here > most ? here : most;
            }
            if (largest(most) > best_.least())
                for (long at = column; at < column + kTogether; ++at) consider(at);
        }
        for (; column < call_.columns; ++column) consider(column);
        return best_.finish();
    }

    void exclude(const int64_t* item) {
        for (const int64_t* end = item + call_.excluded_columns; item < end; ++item) {
            const int64_t column = *item - call_.first;
            if (column >= 0 && column < call_.columns) scores_[column] = -INFINITY;
        }
    }

    void consider(long column) {
        const int64_t item = call_.first + column;
        if (scores_[column] > best_.least() && call_.live[item]) best_.take(scores_[column], item);
    }

    const BestCall& call_;
    uint64_t* keys_;
    long before_;
    Kept best_;
    float* scores_;
};

inline void best_of(const BestCall& call) {
    const auto nothing = [] { return 0; };
    in_parallel(call.users, call.threads, nothing, [&](long user, int) { call.counts[user] = Best(call, user).add(); });
}

// Scores and rows, best first.
inline void in_order(const OrderCall& call) {
    const auto nothing = [] { return 0; };
    in_parallel(call.users, call.threads, nothing, [&](long user, int) {
        uint64_t* keys = call.keys + user * 2 * call.keep;
        std::sort(keys, keys + call.counts[user], std::greater<uint64_t>());
        for (long nth = 0; nth < call.counts[user]; ++nth) {
            call.scores[user * call.keep + nth] = score_of(keys[nth]);
            call.rows[user * call.keep + nth] = item_of(keys[nth]);
        }
    });
}

}  // namespace native
