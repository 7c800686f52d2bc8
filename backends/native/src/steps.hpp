// Compiled steps, and the test of where they led, for every sample of a batch: what the
// solvers and fixedpoint/convergence.py say in terms of whole batches, in a few passes over
// each sample.
#pragma once

#include <cstdint>

namespace fixedpoint_native {

// What keeps the step of a sample from being the plain one: it is then done anew, operation
// by operation. That a residual rose, or that the sample may have ended, is noted only.
enum Remark : unsigned char {
    plain = 0,
    not_accepted = 1,   // a residual is not finite, or too large for the method
    uninformative = 2,  // a difference of residuals is nothing but rounding
    doubtful = 4,       // a square under- or overflowed
    singular = 8,       // a Gram matrix is not positive definite
    shortened = 16,     // earlier steps were not accepted
    risen = 32,         // the residual did not fall
    ended = 64,         // the test is met, or can no longer tell
};

constexpr int anderson_memory = 16, broyden_memory = 128;  // at most
constexpr int lanes = 16;   // samples whose small systems are solved side by side
constexpr int window = 20;  // steps over which the largest amplification counts

// What holds for all steps of a solve. `entries` says whether each entry of a sample is a
// part to be tested by itself, `peaks` whether norms are the largest entries, and `on_error`
// whether the error is tested, or the residual. `least` is what Anderson's method multiplies
// the diagonal of its Gram matrix by, and for Broyden's the cosine below which nothing is
// learnt.
struct Settings {
    int64_t samples, size;
    int memory;
    bool entries, peaks, on_error;
    double rtol, atol, least, rounding, smallest, fall, zero, roundings;
};

// Where a step begins and ends, and what is known of it.
template <typename T>
struct Arrays {
    const T *old_value, *old_increment, *old_norm, *old_magnitude, *value, *image;
    const bool *active, *shortened;
    const T *first, *highest, *largest, *sizes;
    T *amplification, *increment, *norm, *magnitude;
    T *error, *new_highest, *new_largest, *new_sizes;
    bool *satisfied, *hidden, *vanished;
    unsigned char *remarks;
    int slot, rows, count;  // the column to write, columns with it, and steps so far
};

// What Anderson's method remembers, which is written to.
template <typename T>
struct AndersonArrays {
    T *residuals, *images, *gram;
    const T *envelope;
    T *proposal;
    T share;  // 1/(steps + 1), of the envelope
};

// What Broyden's method remembers, which is written to; `before` is the direction of the
// step, or null where its estimate has just been emptied.
template <typename T>
struct BroydenArrays {
    T *left, *right;
    const T *scale, *before;
    T *direction;
};

// What plain iteration remembers: the increment before the old one. `parallel` and
// `explained` are the shares that fixedpoint/solvers/picard.py calls so.
template <typename T>
struct PicardArrays {
    const T *earlier;
    T *correction;
    T damping, parallel, explained;
};

// A step of the samples from `first` up to `last`.
template <typename T, typename Memory>
using Advance = void (*)(const Settings &, const Arrays<T> &, const Memory &, int64_t first,
                         int64_t last);

}  // namespace fixedpoint_native
