// What the first block reads: item and position embeddings, added, with units dropped; forward and backward.
#pragma once

#include "block.h"

extern "C" {
struct EmbeddingCall {
    int64_t sequences, units, max_length, threads, site, dropped, table_rows;
    uint64_t seed;
    double factor;
    double scale;               // of the items
    const int64_t* lengths;
    const int64_t* rows;        // positions
    const float* items;         // table rows x D
    const float* places;        // max_length x D; the newest item of a sequence takes the last
    float* output;              // positions x D
    const float* given;         // its gradient
    float* item_gradient;       // positions x D: what each position adds to its item's row
    float* place_gradient;      // max_length x D, zero before
};
}

namespace native {

class Embedding {
  public:
    explicit Embedding(const EmbeddingCall& call)
        : call_(call), drop_(call.seed, call.site, static_cast<uint32_t>(call.dropped), static_cast<float>(call.factor), call.units) {
        for (long sequence = 0; sequence < call.sequences; ++sequence)
            for (long place = call.max_length - call.lengths[sequence]; place < call.max_length; ++place)
                places_.push_back(place);
    }

    int64_t positions() const { return static_cast<int64_t>(places_.size()); }

    void forward() const {
        const float scale = static_cast<float>(call_.scale);
        each_position([&](long position, const float* factors) {
            const float* item = call_.items + call_.rows[position] * call_.units;
            const float* place = call_.places + places_[static_cast<size_t>(position)] * call_.units;
            float* to = call_.output + position * call_.units;
            for (long unit = 0; unit < call_.units; ++unit) to[unit] = (place[unit] + item[unit] * scale) * factors[unit];
        });
    }

    void backward() const {
        const float scale = static_cast<float>(call_.scale);
        each_position([&](long position, const float* factors) {
            const float* given = call_.given + position * call_.units;
            float* to = call_.item_gradient + position * call_.units;
            for (long unit = 0; unit < call_.units; ++unit) to[unit] = given[unit] * factors[unit];
        });
        for (size_t position = 0; position < places_.size(); ++position) {
            float* at = call_.item_gradient + static_cast<long>(position) * call_.units;
            float* to = call_.place_gradient + places_[position] * call_.units;
            for (long unit = 0; unit < call_.units; ++unit) {
                to[unit] += at[unit];
                at[unit] *= scale;
            }
        }
    }

  private:
    static constexpr long kTogether = 512;

    template <class Work>
    void each_position(const Work& work) const {
        const long positions = static_cast<long>(places_.size());
        in_parallel((positions + kTogether - 1) / kTogether, call_.threads, [&] { return Room(static_cast<size_t>(padded(call_.units))); }, [&](long part, Room& factors) {
            for (long position = part * kTogether; position < std::min(positions, (part + 1) * kTogether); ++position) {
                drop_.factors(position, factors.data(), padded(call_.units));
                work(position, factors.data());
            }
        });
    }

    const EmbeddingCall& call_;
    Dropout drop_;
    std::vector<long> places_;
};

}  // namespace native
