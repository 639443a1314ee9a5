// The weights of a block, padded and turned as the products want them.
#pragma once

#include <algorithm>
#include <vector>

#include "norm.h"
#include "products.h"

namespace native {

enum Weight { kNorm1Weight, kNorm1Bias, kProjection, kNorm2Weight, kNorm2Bias, kInner, kInnerBias, kOuter, kOuterBias };

// Rows of a matrix, and room for more of them than are used.
using Room = std::vector<float>;

inline size_t room(long rows, long width) { return static_cast<size_t>(rows * width); }

// D units, H heads, W units of all heads, each padded.
class BlockWeights {
  public:
    BlockWeights(const float* const* weights, long units, long heads)
        : units_(units), heads_(heads), head_(units / heads), width_(padded(units_)), head_width_(padded(head_)),
          wide_(heads_ * head_width_), scale_(1.0f / std::sqrt(static_cast<float>(head_))) {
        pack_projection(weights[kProjection]);
        pack_square(weights[kInner], inner_weight_, inner_turned_);
        pack_square(weights[kOuter], outer_weight_, outer_turned_);
        for (const Weight which : {kNorm1Weight, kNorm1Bias, kNorm2Weight, kNorm2Bias, kInnerBias, kOuterBias}) {
            vectors_[which].assign(static_cast<size_t>(width_), 0.0f);
            std::copy_n(weights[which], units_, vectors_[which].begin());
        }
    }

    Norm norm(Weight weight, Weight bias) const { return {vectors_[weight].data(), vectors_[bias].data()}; }

    void linear(long rows, const float* input, const Room& turned, float* output) const {
        product(rows, width_, units_, {input, width_, 1}, turned.data(), width_, output, width_);
    }

    void add_bias_and_clip(long rows, float* inner) const {
        const float* bias = vectors_[kInnerBias].data();
        for (long row = 0; row < rows; ++row, inner += width_)
            for (long at = 0; at < width_; at += kLanes) {
                const Vector value = load(inner + at) + load(bias + at);
                store(inner + at, value < Vector{} ? Vector{} : value);
            }
    }

    long units_, heads_, head_, width_, head_width_, wide_;
    float scale_;
    Room projection_, projection_turned_;  // W x D, as the gradient goes back; D x W, as the input goes forward
    Room inner_weight_, inner_turned_, outer_weight_, outer_turned_;
    Room vectors_[9];

  private:
    void pack_projection(const float* from) {
        projection_.assign(room(3 * wide_, width_), 0.0f);
        projection_turned_.assign(room(width_, 3 * wide_), 0.0f);
        for (long part = 0; part < 3; ++part)
            for (long head = 0; head < heads_; ++head)
                for (long unit = 0; unit < head_; ++unit) {
                    const float* weights = from + (part * units_ + head * head_ + unit) * units_;
                    const long row = part * wide_ + head * head_width_ + unit;
                    for (long in = 0; in < units_; ++in) {
                        const float weight = part == 0 ? weights[in] * scale_ : weights[in];
                        projection_[room(row, width_) + static_cast<size_t>(in)] = weight;
                        projection_turned_[room(in, 3 * wide_) + static_cast<size_t>(row)] = weight;
                    }
                }
    }

    void pack_square(const float* from, Room& same, Room& turned) const {
        same.assign(room(width_, width_), 0.0f);
        turned.assign(room(width_, width_), 0.0f);
        for (long out = 0; out < units_; ++out)
            for (long in = 0; in < units_; ++in)
                turned[room(in, width_) + static_cast<size_t>(out)] = same[room(out, width_) + static_cast<size_t>(in)] =
                    from[out * units_ + in];
    }
};

}  // namespace native
