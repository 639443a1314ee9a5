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

// The highest scores so far, each with its item; whenever the room for twice as many is full, half of it goes.
class Kept {
  public:
    Kept(uint64_t* keys, long count, long keep) : keys_(keys), count_(count), keep_(keep) {
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
    float least_ = -INFINITY;
};

class Best {
  public:
    Best(const BestCall& call, long user)
        : call_(call), best_(call.keys + user * 2 * call.keep, call.counts[user], call.keep),
          scores_(call.scores + user * call.columns) {
        exclude(call.excluded + user * call.excluded_columns);
    }

    // Collects what beats the least of the best so far.
    long add() {
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

  private:
    static constexpr long kTogether = 8 * kLanes;

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
    Kept best_;
    float* scores_;
};

inline void best_of(const BestCall& call) {
    const auto nothing = [] { return 0; };
    in_parallel(call.users, call.threads, nothing, [&](long user, int) { call.counts[user] = Best(call, user).add(); });
}

}  // namespace native
