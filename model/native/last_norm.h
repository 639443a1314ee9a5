// Layer normalisation of a whole batch, a few hundred rows at a time, so that any number of threads gives the same bytes.
#pragma once

#include "block.h"

extern "C" {
struct NormCall {
    int64_t rows, units, threads;
    const float* input;     // rows x D
    const float* weight;
    const float* bias;
    float* output;          // rows x D
    const float* given;     // its gradient
    float* input_gradient;
    float* weight_gradient;
    float* bias_gradient;
};
}

namespace native {

class LastNorm {
  public:
    explicit LastNorm(const NormCall& call)
        : call_(call), units_(call.units), width_(padded(units_)), parts_((call.rows + kTogether - 1) / kTogether) {
        weight_.assign(static_cast<size_t>(width_), 0.0f);
        bias_ = weight_;
        std::copy_n(call.weight, units_, weight_.begin());
        std::copy_n(call.bias, units_, bias_.begin());
    }

    void forward() const {
        in_parallel(parts_, call_.threads, [&] { return Scratch(width_); }, [&](long part, Scratch& s) {
            const long first = part * kTogether, count = std::min(kTogether, call_.rows - first);
            read(call_.input, first, count, s.input);
            normalise(s.input.data(), s.other.data(), count, units_, {weight_.data(), bias_.data()});
            write(s.other, first, count, call_.output);
        });
    }

    void backward() const {
        Room gradients(room(parts_, 2 * width_), 0.0f);
        in_parallel(parts_, call_.threads, [&] { return Scratch(width_); }, [&](long part, Scratch& s) {
            const long first = part * kTogether, count = std::min(kTogether, call_.rows - first);
            read(call_.input, first, count, s.input);
            read(call_.given, first, count, s.other);
            float* to = gradients.data() + part * 2 * width_;
            normalise_backward(s.input.data(), s.other.data(), count, units_, weight_.data(), to, to + width_);
            write(s.other, first, count, call_.input_gradient);
        });
        for (long unit = 0; unit < units_; ++unit) {
            float weight = 0.0f, bias = 0.0f;
            for (long part = 0; part < parts_; ++part) {
                weight += gradients[static_cast<size_t>(part * 2 * width_ + unit)];
                bias += gradients[static_cast<size_t>(part * 2 * width_ + width_ + unit)];
            }
            call_.weight_gradient[unit] = weight;
            call_.bias_gradient[unit] = bias;
        }
    }

  private:
    static constexpr long kTogether = 256;

    struct Scratch {
        explicit Scratch(long width) : input(room(kTogether, width)), other(input.size()) {}
        Room input, other;
    };

    void read(const float* from, long first, long count, Room& to) const {
        for (long row = 0; row < count; ++row) {
            std::copy_n(from + (first + row) * units_, units_, to.data() + row * width_);
            std::fill(to.data() + row * width_ + units_, to.data() + (row + 1) * width_, 0.0f);
        }
    }

    void write(const Room& from, long first, long count, float* to) const {
        for (long row = 0; row < count; ++row)
            std::copy_n(from.data() + row * width_, units_, to + (first + row) * units_);
    }

    const NormCall& call_;
    long units_, width_, parts_;
    Room weight_, bias_;
};

}  // namespace native
