// One block of SASRec over packed sequences (`Block` in model/sasrec.py says what it computes), forward and backward.
//
// The sequences are divided into shares, each with gradients of its own that are added up in order: the division follows
// from the lengths alone, so any number of threads gives the same bytes. A share is worked off in chunks that fit into
// the cache. Scratch rows are padded to whole vectors with zeros; D units, H heads, W units of all heads, each padded.
#pragma once

#include <atomic>
#include <system_error>
#include <thread>

#include "attention.h"
#include "dropout.h"
#include "weights.h"

extern "C" {
struct BlockCall {
    int64_t sequences, units, heads, pre_norm, threads, site, dropped;
    uint64_t seed;
    double factor;
    const int64_t* lengths;  // positions of every sequence
    const int64_t* lasts;    // how many of the newest come out
    const float* input;      // positions x D
    const float* weights[9];
    float* saved;
    float* output;           // what comes out x D
    const float* given;      // its gradient
    float* input_gradient;
    float* gradients[9];
};
}

namespace native {

struct Chunk {
    long sequence, end;      // sequences [sequence, end)
    long position, output;   // the first of each
    long positions, outputs; // how many
};

struct Share {
    std::vector<Chunk> chunks;
};

constexpr long kChunkPositions = 256;
constexpr long kMostShares = 32;

// About equally costly shares of consecutive sequences.
inline std::vector<Share> shares_of(const BlockCall& call) {
    double cost = 0.0;
    const auto cost_of = [&](long sequence) {
        const double length = static_cast<double>(call.lengths[sequence]);
        return length * (5.0 * static_cast<double>(call.units) + length);
    };
    for (long sequence = 0; sequence < call.sequences; ++sequence) cost += cost_of(sequence);
    std::vector<Share> shares(1);
    const double fair = cost / kMostShares;
    double done = 0.0, next = fair;
    long position = 0, output = 0;
    for (long sequence = 0; sequence < call.sequences; ++sequence) {
        const long length = call.lengths[sequence], last = call.lasts[sequence];
        if (done >= next) {
            shares.emplace_back();
            while (next <= done) next += fair;
        }
        auto& chunks = shares.back().chunks;
        if (chunks.empty() || chunks.back().positions + length > kChunkPositions)
            chunks.push_back({sequence, sequence, position, output, 0, 0});
        chunks.back().end = sequence + 1;
        chunks.back().positions += length;
        chunks.back().outputs += last;
        position += length;
        output += last;
        done += cost_of(sequence);
    }
    return shares;
}

// Calls `work(share, scratch)` for every share, by several threads; each makes its own scratch once.
template <class Make, class Work>
void in_parallel(long shares, long threads, const Make& make, const Work& work) {
    std::atomic<long> next{0};
    const auto worker = [&] {
        auto scratch = make();
        for (long share = next++; share < shares; share = next++) work(share, scratch);
    };
    std::vector<std::thread> others;
    try {
        for (long other = 1; other < std::min(threads, shares); ++other) others.emplace_back(worker);
    } catch (const std::system_error&) {
        // No more threads to be had: those there are do the work.
    }
    worker();
    for (auto& other : others) other.join();
}

class Block : BlockWeights {
  public:
    explicit Block(const BlockCall& call)
        : BlockWeights(call.weights, call.units, call.heads), call_(call), shares_(shares_of(call)) {
        for (long sequence = 0; sequence < call.sequences; ++sequence) {
            positions_ += call.lengths[sequence];
            outputs_ += call.lasts[sequence];
        }
        for (const auto& share : shares_)
            for (const auto& chunk : share.chunks) {
                most_positions_ = std::max(most_positions_, chunk.positions);
                for (long sequence = chunk.sequence; sequence < chunk.end; ++sequence)
                    longest_ = std::max(longest_, static_cast<long>(call.lengths[sequence]));
            }
        float* at = call.saved;
        const auto take = [&](long rows, long width) {
            float* taken = at;
            at += room(rows, width);
            return taken;
        };
        key_value_ = take(positions_, 2 * wide_);
        query_ = take(outputs_, wide_);
        attended_ = take(outputs_, wide_);
        log_sum_ = take(outputs_, heads_);
        joined_ = take(outputs_, width_);
        inner_ = take(outputs_, width_);
        sum_ = take(outputs_, width_);
    }

    static long saved_size(long positions, long outputs, long units, long heads) {
        const long wide = heads * padded(units / heads);
        return positions * 2 * wide + outputs * (2 * wide + heads + 3 * padded(units));
    }

    void forward() {
        const auto scratch = [&] { return Scratch(*this); };
        in_parallel(static_cast<long>(shares_.size()), call_.threads, scratch, [&](long share, Scratch& s) {
            for (const auto& chunk : shares_[static_cast<size_t>(share)].chunks) forward(chunk, s);
        });
    }

    void backward() {
        const long size = gradient_size();
        Room gradients(room(static_cast<long>(shares_.size()), size), 0.0f);
        const auto scratch = [&] { return Scratch(*this); };
        in_parallel(static_cast<long>(shares_.size()), call_.threads, scratch, [&](long share, Scratch& s) {
            for (const auto& chunk : shares_[static_cast<size_t>(share)].chunks)
                backward(chunk, s, gradients.data() + share * size);
        });
        for (long share = 1; share < static_cast<long>(shares_.size()); ++share) {
            const float* from = gradients.data() + share * size;
            for (long at = 0; at < size; ++at) gradients[static_cast<size_t>(at)] += from[at];
        }
        unpack(gradients.data());
    }

  private:
    // What one thread works in.
    struct Scratch {
        explicit Scratch(const Block& block)
            : attention(block.longest_, block.head_width_), input(room(block.most_positions_, block.width_)),
              normed(input.size()), asking(input.size()), change(input.size()), more(input.size()), other(input.size()),
              heads(room(block.most_positions_, block.wide_)), query(heads.size()), key_value(2 * heads.size()),
              factors(static_cast<size_t>(block.width_)) {}
        Attention attention;
        Room input, normed, asking, change, more, other, heads, query, key_value, factors;
    };

    Dropout dropout(long place) const {
        return Dropout(call_.seed, call_.site + place, static_cast<uint32_t>(call_.dropped),
                       static_cast<float>(call_.factor), units_);
    }

    // ---- forward ----

    void forward(const Chunk& chunk, Scratch& s) {
        read(chunk, s);
        float* key_value = key_value_ + chunk.position * 2 * wide_;
        float* query = query_ + chunk.output * wide_;
        product(chunk.positions, 2 * wide_, units_, {s.normed.data(), width_, 1}, projection_turned_.data() + wide_,
                3 * wide_, key_value, 2 * wide_);
        product(chunk.outputs, wide_, units_, {asking(chunk, s), width_, 1}, projection_turned_.data(), 3 * wide_, query,
                wide_);
        each_head(chunk, [&](const Heads& heads, long head, long output) {
            s.attention.forward(heads, attended_ + output * wide_ + head * head_width_, wide_,
                                log_sum_ + output * heads_ + head, heads_);
        });
        float* joined = joined_ + room(chunk.output, width_);
        join_attention(chunk, s, joined);
        // After this `more` is what the feed-forward network reads, and what is added to it.
        const bool pre = call_.pre_norm != 0;
        normalise(joined, s.more.data(), chunk.outputs, units_, pre ? norm(kNorm2Weight, kNorm2Bias) : norm(kNorm1Weight, kNorm1Bias));
        float* inner = inner_ + room(chunk.output, width_);
        linear(chunk.outputs, s.more.data(), inner_turned_, inner);
        add_bias_and_clip(chunk.outputs, inner);
        linear(chunk.outputs, inner, outer_turned_, s.change.data());
        add_dropped(chunk, s, pre ? joined : s.more.data());
        if (!pre) {
            std::copy_n(s.change.data(), room(chunk.outputs, width_), sum_ + room(chunk.output, width_));
            normalise(sum_ + room(chunk.output, width_), s.change.data(), chunk.outputs, units_, norm(kNorm2Weight, kNorm2Bias));
        }
        write(s.change.data(), call_.output + chunk.output * units_, chunk.outputs);
    }

    // Whether every position of the chunk asks.
    static bool is_all(const Chunk& chunk) { return chunk.outputs == chunk.positions; }

    const float* residual(const Chunk& chunk, const Scratch& s) const { return is_all(chunk) ? s.input.data() : s.other.data(); }

    const float* asking(const Chunk& chunk, const Scratch& s) const { return is_all(chunk) ? s.normed.data() : s.asking.data(); }

    // `input` with its padding and `normed` as it is projected; of both the rows that ask, where not all do, in `other`
    // and `asking`.
    void read(const Chunk& chunk, Scratch& s) const {
        for (long row = 0; row < chunk.positions; ++row) {
            float* to = s.input.data() + row * width_;
            std::copy_n(call_.input + (chunk.position + row) * units_, units_, to);
            std::fill(to + units_, to + width_, 0.0f);
        }
        if (call_.pre_norm)
            normalise(s.input.data(), s.normed.data(), chunk.positions, units_, norm(kNorm1Weight, kNorm1Bias));
        else
            std::copy_n(s.input.data(), room(chunk.positions, width_), s.normed.data());
        if (is_all(chunk)) return;
        each_output(chunk, [&](long row, long from, long) {
            std::copy_n(s.input.data() + from * width_, width_, s.other.data() + row * width_);
            std::copy_n(s.normed.data() + from * width_, width_, s.asking.data() + row * width_);
        });
    }

    // Calls `work(row of the outputs, row of the inputs, position in the whole batch)`.
    template <class Work>
    void each_output(const Chunk& chunk, const Work& work) const {
        long row = 0, end = 0;
        for (long sequence = chunk.sequence; sequence < chunk.end; ++sequence) {
            end += call_.lengths[sequence];
            for (long from = end - call_.lasts[sequence]; from < end; ++from, ++row) work(row, from, chunk.position + from);
        }
    }

    template <class Work>
    void each_head(const Chunk& chunk, const Work& work) const {
        long position = chunk.position, output = chunk.output;
        for (long sequence = chunk.sequence; sequence < chunk.end; ++sequence) {
            const float* key_value = key_value_ + position * 2 * wide_;
            for (long head = 0; head < heads_; ++head)
                work(Heads{static_cast<long>(call_.lengths[sequence]), static_cast<long>(call_.lasts[sequence]),
                           head_width_, query_ + output * wide_ + head * head_width_, key_value + head * head_width_,
                           key_value + wide_ + head * head_width_, wide_, 2 * wide_},
                     head, output);
            position += call_.lengths[sequence];
            output += call_.lasts[sequence];
        }
    }

    void join_attention(const Chunk& chunk, Scratch& s, float* joined) const {
        const Dropout drop = dropout(0);
        each_output(chunk, [&](long row, long, long position) {
            drop.factors(position, s.factors.data(), width_);
            const float* attended = attended_ + (chunk.output + row) * wide_;
            const float* input = residual(chunk, s) + row * width_;
            float* to = joined + row * width_;
            for (long head = 0; head < heads_; ++head)
                for (long unit = 0; unit < head_; ++unit) {
                    const long at = head * head_ + unit;
                    to[at] = input[at] + attended[head * head_width_ + unit] * s.factors[static_cast<size_t>(at)];
                }
            std::fill(to + units_, to + width_, 0.0f);
        });
    }

    // `change` becomes `residual` + dropout(`change` + bias).
    void add_dropped(const Chunk& chunk, Scratch& s, const float* residual) const {
        const Dropout drop = dropout(1);
        const float* bias = vectors_[kOuterBias].data();
        each_output(chunk, [&](long row, long, long position) {
            drop.factors(position, s.factors.data(), width_);
            float* to = s.change.data() + row * width_;
            for (long at = 0; at < width_; at += kLanes)
                store(to + at, load(residual + row * width_ + at) + (load(to + at) + load(bias + at)) * load(s.factors.data() + at));
        });
    }

    void write(const float* rows, float* to, long count) const {
        for (long row = 0; row < count; ++row) std::copy_n(rows + row * width_, units_, to + row * units_);
    }

    // ---- backward ----

    long gradient_size() const { return 3 * wide_ * width_ + 2 * width_ * width_ + 6 * width_; }

    // Where in a share's gradients one weight's lie.
    long place(Weight which) const {
        const long squares = 3 * wide_ * width_, vectors = squares + 2 * width_ * width_;
        switch (which) {
            case kProjection: return 0;
            case kInner: return squares;
            case kOuter: return squares + width_ * width_;
            case kNorm1Weight: return vectors;
            case kNorm1Bias: return vectors + width_;
            case kNorm2Weight: return vectors + 2 * width_;
            case kNorm2Bias: return vectors + 3 * width_;
            case kInnerBias: return vectors + 4 * width_;
            default: return vectors + 5 * width_;
        }
    }

    void backward(const Chunk& chunk, Scratch& s, float* to) {
        const bool pre = call_.pre_norm != 0;
        const float* joined = joined_ + room(chunk.output, width_);
        const float* inner = inner_ + room(chunk.output, width_);
        // `change`: the gradient of the sum of both sub-layers.
        for (long row = 0; row < chunk.outputs; ++row) {
            std::copy_n(call_.given + (chunk.output + row) * units_, units_, s.change.data() + row * width_);
            std::fill(s.change.data() + row * width_ + units_, s.change.data() + (row + 1) * width_, 0.0f);
        }
        if (!pre) norm_backward(sum_ + room(chunk.output, width_), s.change, chunk.outputs, kNorm2Weight, kNorm2Bias, to);
        // `more`: the gradient of what the outer layer gave, then of what the inner layer gave.
        drop_gradient(chunk, s);
        add_column_sums(chunk.outputs, s.more.data(), to + place(kOuterBias));
        product(units_, width_, chunk.outputs, {s.more.data(), 1, width_}, inner, width_, to + place(kOuter), width_, Into::kAdd);
        product(chunk.outputs, width_, units_, {s.more.data(), width_, 1}, outer_weight_.data(), width_, s.other.data(), width_);
        for (size_t at = 0; at < room(chunk.outputs, width_); at += kLanes)
            store(s.other.data() + at, load(inner + at) > Vector{} ? load(s.other.data() + at) : Vector{});
        add_column_sums(chunk.outputs, s.other.data(), to + place(kInnerBias));
        normalise(joined, s.more.data(), chunk.outputs, units_, pre ? norm(kNorm2Weight, kNorm2Bias) : norm(kNorm1Weight, kNorm1Bias));
        product(units_, width_, chunk.outputs, {s.other.data(), 1, width_}, s.more.data(), width_, to + place(kInner), width_, Into::kAdd);
        product(chunk.outputs, width_, units_, {s.other.data(), width_, 1}, inner_weight_.data(), width_, s.more.data(), width_);
        // `change`: the gradient of the input and what was attended to, joined.
        if (pre) {
            norm_backward(joined, s.more, chunk.outputs, kNorm2Weight, kNorm2Bias, to);
            add(chunk.outputs, s.more.data(), s.change.data());
        } else {
            add(chunk.outputs, s.more.data(), s.change.data());
            norm_backward(joined, s.change, chunk.outputs, kNorm1Weight, kNorm1Bias, to);
        }
        attention_backward(chunk, s);
        project_backward(chunk, s, to);
    }

    void norm_backward(const float* input, Room& gradient, long rows, Weight weight, Weight bias, float* to) const {
        normalise_backward(input, gradient.data(), rows, units_, vectors_[weight].data(), to + place(weight), to + place(bias));
    }

    void drop_gradient(const Chunk& chunk, Scratch& s) const {
        const Dropout drop = dropout(1);
        each_output(chunk, [&](long row, long, long position) {
            drop.factors(position, s.factors.data(), width_);
            for (long at = 0; at < width_; at += kLanes)
                store(s.more.data() + row * width_ + at, load(s.change.data() + row * width_ + at) * load(s.factors.data() + at));
        });
    }

    void add_column_sums(long rows, const float* from, float* to) const {
        for (long row = 0; row < rows; ++row) add_row(from + row * width_, to);
    }

    void add(long rows, const float* from, float* to) const {
        for (long row = 0; row < rows; ++row) add_row(from + row * width_, to + row * width_);
    }

    void add_row(const float* from, float* to) const {
        for (long at = 0; at < width_; at += kLanes) store(to + at, load(to + at) + load(from + at));
    }

    // From `change` to the gradients of queries, keys and values.
    void attention_backward(const Chunk& chunk, Scratch& s) {
        const Dropout drop = dropout(0);
        each_output(chunk, [&](long row, long, long position) {
            drop.factors(position, s.factors.data(), width_);
            const float* from = s.change.data() + row * width_;
            float* to = s.heads.data() + row * wide_;
            for (long head = 0; head < heads_; ++head) {
                for (long unit = 0; unit < head_; ++unit)
                    to[head * head_width_ + unit] = from[head * head_ + unit] * s.factors[static_cast<size_t>(head * head_ + unit)];
                std::fill(to + head * head_width_ + head_, to + (head + 1) * head_width_, 0.0f);
            }
        });
        std::fill_n(s.key_value.begin(), room(chunk.positions, 2 * wide_), 0.0f);
        long row = 0, output = 0, sequence = chunk.sequence;
        each_head(chunk, [&](const Heads& heads, long head, long at) {
            const float* log_sum = log_sum_ + at * heads_ + head;
            float* key = s.key_value.data() + row * 2 * wide_ + head * head_width_;
            s.attention.backward(heads, {attended_ + at * wide_ + head * head_width_,
                                         s.heads.data() + output * wide_ + head * head_width_, log_sum, wide_, heads_,
                                         s.query.data() + output * wide_ + head * head_width_, key, key + wide_});
            if (head + 1 == heads_) {
                row += call_.lengths[sequence];
                output += call_.lasts[sequence];
                ++sequence;
            }
        });
    }

    // From the gradients of queries, keys and values to those of the projection and of the input.
    void project_backward(const Chunk& chunk, Scratch& s, float* to) {
        read(chunk, s);
        float* weight = to + place(kProjection);
        product(wide_, width_, chunk.outputs, {s.query.data(), 1, wide_}, asking(chunk, s), width_, weight, width_, Into::kAdd);
        product(2 * wide_, width_, chunk.positions, {s.key_value.data(), 1, 2 * wide_}, s.normed.data(), width_,
                weight + wide_ * width_, width_, Into::kAdd);
        product(chunk.positions, width_, 2 * wide_, {s.key_value.data(), 2 * wide_, 1}, projection_.data() + wide_ * width_,
                width_, s.normed.data(), width_);
        product(chunk.outputs, width_, wide_, {s.query.data(), wide_, 1}, projection_.data(), width_, s.more.data(), width_);
        each_output(chunk, [&](long row, long from, long) { add_row(s.more.data() + row * width_, s.normed.data() + from * width_); });
        if (call_.pre_norm) norm_backward(s.input.data(), s.normed, chunk.positions, kNorm1Weight, kNorm1Bias, to);
        each_output(chunk, [&](long row, long from, long) { add_row(s.change.data() + row * width_, s.normed.data() + from * width_); });
        write(s.normed.data(), call_.input_gradient + chunk.position * units_, chunk.positions);
    }

    void unpack(const float* from) const {
        for (long part = 0; part < 3; ++part)
            for (long head = 0; head < heads_; ++head)
                for (long unit = 0; unit < head_; ++unit) {
                    const float* row = from + (part * wide_ + head * head_width_ + unit) * width_;
                    float* to = call_.gradients[kProjection] + (part * units_ + head * head_ + unit) * units_;
                    for (long in = 0; in < units_; ++in) to[in] = part == 0 ? row[in] * scale_ : row[in];
                }
        write(from + place(kInner), call_.gradients[kInner], units_);
        write(from + place(kOuter), call_.gradients[kOuter], units_);
        for (const Weight which : {kNorm1Weight, kNorm1Bias, kNorm2Weight, kNorm2Bias, kInnerBias, kOuterBias})
            std::copy_n(from + place(which), units_, call_.gradients[which]);
    }

    const BlockCall& call_;
    std::vector<Share> shares_;
    long positions_ = 0, outputs_ = 0, most_positions_ = 0, longest_ = 0;
    float *key_value_, *query_, *attended_, *log_sum_, *joined_, *inner_, *sum_;
};

}  // namespace native
