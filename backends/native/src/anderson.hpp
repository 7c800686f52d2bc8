// A step of Anderson's method of type II, undamped, and the test of where it led, for
// every sample of a batch: what fixedpoint/solvers/anderson.py and
// fixedpoint/convergence.py say in terms of whole batches, in one pass over each sample.
#pragma once

#include <cstdint>

namespace fixedpoint_native {

// What keeps the step of a sample from being the plain one: it is then done anew, operation
// by operation. That a residual rose but was accepted is noted only.
enum Remark : unsigned char {
    plain = 0,
    not_accepted = 1,   // a residual is not finite, or neither fell nor is below its envelope
    uninformative = 2,  // a difference of residuals is nothing but rounding
    doubtful = 4,       // a square under- or overflowed
    singular = 8,       // a Gram matrix is not positive definite
    shortened = 16,     // earlier steps were not accepted
    risen = 32,         // accepted, though the residual did not fall
};

constexpr int largest_memory = 16;
constexpr int window = 20;  // steps over which the largest amplification counts

// What holds for all steps of a solve. `entries` says whether each entry of a sample is a
// part to be tested by itself, `peaks` whether norms are the largest entries, and `on_error`
// whether the error is tested, or the residual.
struct Settings {
    int64_t samples, size;
    int memory;
    bool entries, peaks, on_error;
    double rtol, atol, diagonal, rounding, smallest, fall, zero;
};

// Where a step begins and ends; and what is remembered, which is written to.
template <typename T>
struct Arrays {
    const T *old_value, *old_increment, *old_norm, *old_magnitude, *value, *image, *envelope;
    const bool *active, *shortened;
    T *residuals, *images, *gram, *amplification;
    const T *first, *highest, *largest, *sizes;
    T *increment, *norm, *magnitude, *proposal;
    T *error, *new_highest, *new_largest, *new_sizes;
    bool *satisfied, *hidden, *vanished;
    unsigned char *remarks;
};

}  // namespace fixedpoint_native
