// The hidden state at the newest item of every sequence (`SASRec.encode_last`): the same network as in block.h, for
// prediction alone. A few sequences at a time go through all blocks without leaving the cache; nothing is kept for a
// gradient. Who serves many times with the same weights has them prepared once: for one user that is half of the time.
//
// In the last block only the newest position asks. So keys and values of the others are never made: a query times W_k
// is multiplied with the positions themselves, and W_v with their weighted mean.
#pragma once

#include <memory>

#include "block.h"

extern "C" {
struct NewestWeights {
    int64_t units, heads, pre_norm, blocks, max_length, table_rows;
    double scale;                 // of the items
    const float* items;           // table rows x D; read with every call, never copied
    const float* places;          // max_length x D, the same; the newest item of a sequence takes the last
    const float* const* weights;  // 9 of every block, in the order of `enum Weight`
    const float* norm_weight;     // after the last block; none where it is null
    const float* norm_bias;
};

struct NewestCall {
    int64_t sequences, threads;
    const int64_t* lengths;  // positions of every sequence; the state of an empty one is left as it is
    const int64_t* rows;     // positions
    float* output;           // sequences x D
};
}

namespace native {

// The weights as the products want them.
class Prepared {
  public:
    explicit Prepared(const NewestWeights& given) : given_(given) {
        for (long block = 0; block < given.blocks; ++block)
            blocks_.emplace_back(given.weights + 9 * block, given.units, given.heads);
        if (given.norm_weight == nullptr) return;
        for (auto& [room, from] : {std::pair<Room&, const float*>{norm_weight_, given.norm_weight}, {norm_bias_, given.norm_bias}}) {
            room.assign(static_cast<size_t>(padded(given.units)), 0.0f);
            std::copy_n(from, given.units, room.begin());
        }
    }

    NewestWeights given_;
    std::vector<BlockWeights> blocks_;
    Room norm_weight_, norm_bias_;
};

class Newest {
  public:
    Newest(const Prepared& prepared, const NewestCall& call)
        : call_(call), given_(prepared.given_), blocks_(prepared.blocks_), norm_weight_(prepared.norm_weight_),
          norm_bias_(prepared.norm_bias_), units_(given_.units), width_(padded(units_)), wide_(blocks_[0].wide_) {
        divide();
    }

    void find() {
        in_parallel(static_cast<long>(chunks_.size()), call_.threads, [&] { return scratch(); }, [&](long chunk, Scratch* s) {
            find(chunks_[static_cast<size_t>(chunk)], *s);
        });
    }

  private:
    struct Scratch {
        Scratch(long most, long longest, long width, long wide, long head_width)
            : most(most), longest(longest), width(width), wide_width(wide), head_width(head_width),
              attention(longest, head_width), state(room(most, width)), normed(state.size()), inner(state.size()),
              change(state.size()), asked(state.size()), turned(state.size()), wide(room(most, 3 * wide)),
              attended(room(most, wide)), sums(static_cast<size_t>(longest)), scores(static_cast<size_t>(padded(longest))) {}
        long most, longest, width, wide_width, head_width;
        Attention attention;
        Room state;  // of every position, and after the last block of every sequence
        Room normed, inner, change, asked, turned, wide, attended, sums, scores;
    };

    // A thread keeps what it worked in: for one user, new memory would cost as much as a block.
    Scratch* scratch() const {
        thread_local std::unique_ptr<Scratch> kept;
        const long head_width = blocks_[0].head_width_;
        const bool is_alike = kept && kept->width == width_ && kept->wide_width == wide_ && kept->head_width == head_width;
        if (!is_alike || kept->most < most_ || kept->longest < longest_) {
            const long most = is_alike ? std::max(kept->most, most_) : most_, longest = is_alike ? std::max(kept->longest, longest_) : longest_;
            kept = std::make_unique<Scratch>(most, longest, width_, wide_, head_width);
        }
        return kept.get();
    }

    void divide() {
        long position = 0;
        for (long sequence = 0; sequence < call_.sequences; ++sequence) {
            const long length = call_.lengths[sequence];
            if (length == 0) continue;
            if (chunks_.empty() || chunks_.back().positions + length > kChunkPositions)
                chunks_.push_back({sequence, sequence, position, 0, 0, 0});
            chunks_.back().end = sequence + 1;
            chunks_.back().positions += length;
            ++chunks_.back().outputs;
            position += length;
            most_ = std::max(most_, chunks_.back().positions);
            longest_ = std::max(longest_, length);
        }
    }

    void find(const Chunk& chunk, Scratch& s) const {
        embed(chunk, s);
        for (size_t block = 0; block + 1 < blocks_.size(); ++block) whole(blocks_[block], chunk, s);
        newest(blocks_.back(), chunk, s);
        const float* state = s.state.data();
        if (!norm_weight_.empty()) {
            normalise(s.state.data(), s.normed.data(), chunk.outputs, units_, {norm_weight_.data(), norm_bias_.data()});
            state = s.normed.data();
        }
        each(chunk, [&](long nth, long sequence, long, long) {
            std::copy_n(state + nth * width_, units_, call_.output + sequence * units_);
        });
    }

    // Calls `work(which of the chunk's sequences, sequence, its first position in the chunk, its length)`.
    template <class Work>
    void each(const Chunk& chunk, const Work& work) const {
        long nth = 0, position = 0;
        for (long sequence = chunk.sequence; sequence < chunk.end; ++sequence) {
            const long length = call_.lengths[sequence];
            if (length == 0) continue;
            work(nth++, sequence, position, length);
            position += length;
        }
    }

    void embed(const Chunk& chunk, Scratch& s) const {
        const float scale = static_cast<float>(given_.scale);
        each(chunk, [&](long, long, long first, long length) {
            for (long at = 0; at < length; ++at) {
                const float* item = given_.items + call_.rows[chunk.position + first + at] * units_;
                const float* place = given_.places + (given_.max_length - length + at) * units_;
                float* to = s.state.data() + (first + at) * width_;
                for (long unit = 0; unit < units_; ++unit) to[unit] = place[unit] + item[unit] * scale;
                std::fill(to + units_, to + width_, 0.0f);
            }
        });
    }

    const float* read(const BlockWeights& w, long positions, Scratch& s) const {
        if (given_.pre_norm == 0) return s.state.data();
        normalise(s.state.data(), s.normed.data(), positions, units_, w.norm(kNorm1Weight, kNorm1Bias));
        return s.normed.data();
    }

    // A block of which every position comes out.
    void whole(const BlockWeights& w, const Chunk& chunk, Scratch& s) const {
        const long wide = 3 * w.wide_;
        product(chunk.positions, wide, units_, {read(w, chunk.positions, s), width_, 1}, w.projection_turned_.data(), wide,
                s.wide.data(), wide);
        each(chunk, [&](long, long, long first, long length) {
            for (long head = 0; head < w.heads_; ++head) {
                const float* query = s.wide.data() + first * wide + head * w.head_width_;
                s.attention.forward({length, length, w.head_width_, query, query + w.wide_, query + 2 * w.wide_, wide, wide},
                                    s.attended.data() + first * w.wide_ + head * w.head_width_, w.wide_, s.sums.data(), 1);
            }
        });
        add_attended(w, chunk.positions, s, s.state.data());
        feed_forward(w, chunk.positions, s);
    }

    // The last block, of which the newest position of each sequence comes out.
    void newest(const BlockWeights& w, const Chunk& chunk, Scratch& s) const {
        const float* read_from = read(w, chunk.positions, s);
        each(chunk, [&](long nth, long, long first, long length) {
            std::copy_n(read_from + (first + length - 1) * width_, width_, s.asked.data() + nth * width_);
        });
        product(chunk.outputs, w.wide_, units_, {s.asked.data(), width_, 1}, w.projection_turned_.data(), 3 * w.wide_,
                s.wide.data(), w.wide_);
        for (long head = 0; head < w.heads_; ++head) {
            const float* query = s.wide.data() + head * w.head_width_;
            product(chunk.outputs, width_, w.head_, {query, w.wide_, 1},
                    w.projection_.data() + (w.wide_ + head * w.head_width_) * width_, width_, s.turned.data(), width_);
            each(chunk, [&](long nth, long, long first, long length) {
                look(read_from + first * width_, length, s.turned.data() + nth * width_, s.asked.data() + nth * width_, s);
            });
            product(chunk.outputs, w.head_width_, units_, {s.asked.data(), width_, 1},
                    w.projection_turned_.data() + 2 * w.wide_ + head * w.head_width_, 3 * w.wide_,
                    s.attended.data() + head * w.head_width_, w.wide_);
        }
        each(chunk, [&](long nth, long, long first, long length) {
            std::copy_n(s.state.data() + (first + length - 1) * width_, width_, s.asked.data() + nth * width_);
        });
        std::copy_n(s.asked.data(), room(chunk.outputs, width_), s.state.data());
        add_attended(w, chunk.outputs, s, s.state.data());
        feed_forward(w, chunk.outputs, s);
    }

    // The mean of `count` positions, each weighed by e^(position . query).
    void look(const float* positions, long count, const float* query, float* mean, Scratch& s) const {
        float highest = -INFINITY;
        for (long at = 0; at < count; ++at) {
            Vector products{};
            for (long unit = 0; unit < width_; unit += kLanes) products += load(positions + at * width_ + unit) * load(query + unit);
            s.scores[static_cast<size_t>(at)] = sum(products);
            highest = std::max(highest, s.scores[static_cast<size_t>(at)]);
        }
        std::fill(s.scores.begin() + count, s.scores.begin() + padded(count), -INFINITY);
        for (long at = 0; at < count; at += kLanes) store(s.scores.data() + at, exponential(load(s.scores.data() + at) - highest));
        float total = 0.0f;
        for (long at = 0; at < count; ++at) total += s.scores[static_cast<size_t>(at)];
        std::fill(mean, mean + width_, 0.0f);
        for (long at = 0; at < count; ++at) {
            const Vector share = all(s.scores[static_cast<size_t>(at)] / total);
            for (long unit = 0; unit < width_; unit += kLanes)
                store(mean + unit, load(mean + unit) + share * load(positions + at * width_ + unit));
        }
    }

    // Adds what was attended to, head after head without its padding.
    void add_attended(const BlockWeights& w, long rows, Scratch& s, float* to) const {
        for (long row = 0; row < rows; ++row)
            for (long head = 0; head < w.heads_; ++head)
                for (long unit = 0; unit < w.head_; ++unit)
                    to[row * width_ + head * w.head_ + unit] += s.attended[room(row, w.wide_) + static_cast<size_t>(head * w.head_width_ + unit)];
    }

    // From `state` to `state`.
    void feed_forward(const BlockWeights& w, long rows, Scratch& s) const {
        const bool pre = given_.pre_norm != 0;
        normalise(s.state.data(), s.normed.data(), rows, units_, pre ? w.norm(kNorm2Weight, kNorm2Bias) : w.norm(kNorm1Weight, kNorm1Bias));
        w.linear(rows, s.normed.data(), w.inner_turned_, s.inner.data());
        w.add_bias_and_clip(rows, s.inner.data());
        w.linear(rows, s.inner.data(), w.outer_turned_, s.change.data());
        const float* base = pre ? s.state.data() : s.normed.data();
        const float* bias = w.vectors_[kOuterBias].data();
        float* to = pre ? s.state.data() : s.change.data();
        for (long row = 0; row < rows; ++row)
            for (long at = 0; at < width_; at += kLanes) {
                const long here = row * width_ + at;
                store(to + here, load(base + here) + (load(s.change.data() + here) + load(bias + at)));
            }
        if (!pre) normalise(s.change.data(), s.state.data(), rows, units_, w.norm(kNorm2Weight, kNorm2Bias));
    }

    const NewestCall& call_;
    const NewestWeights& given_;
    const std::vector<BlockWeights>& blocks_;
    const Room &norm_weight_, &norm_bias_;
    long units_, width_, wide_;
    long most_ = 0, longest_ = 0;
    std::vector<Chunk> chunks_;
};

}  // namespace native
