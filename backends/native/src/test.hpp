// What every step has in common. Included once for each instruction set, in a namespace of
// its own, whose name is FIXEDPOINT_LEVEL.
#pragma once

#include <cmath>
#include <limits>

#include "steps.hpp"

namespace fixedpoint_native {
namespace FIXEDPOINT_LEVEL {
namespace {

constexpr int block = 16384;  // entries of long samples that are taken together

// Not those of the standard library: a linker may take any level's copy of them for all.
template <typename T>
inline T larger(T a, T b) { return a < b ? b : a; }

template <typename T>
inline T smaller(T a, T b) { return b < a ? b : a; }

template <typename T>
inline void copy(const T *from, int64_t count, T *to) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
}

// Adds c[j] times each of R rows, n apart, to a vector.
template <int R, typename T>
inline void add(int64_t length, int64_t n, const T *past, const T *c, T *to) {
    static_assert(R == 1 || R == 5);
#pragma omp simd
    for (int64_t i = 0; i < length; i++) {
        T sum = to[i] + c[0] * past[i];
        if constexpr (R == 5) {
            sum += c[1] * past[n + i] + c[2] * past[2 * n + i];
            sum += c[3] * past[3 * n + i] + c[4] * past[4 * n + i];
        }
        to[i] = sum;
    }
}

template <typename T>
inline void add_all(int rows, int64_t length, int64_t n, const T *past, const T *c, T *to) {
    int j = 0;
    for (; j + 5 <= rows; j += 5) add<5>(length, n, past + j * n, c + j, to);
    for (; j < rows; j++) add<1>(length, n, past + j * n, c + j, to);
}

template <typename T>
struct Sums {
    T residual = 0, image = 0, state = 0, moved = 0, changed = 0, corrected = 0;
};

// The test of where a step led. `Method` says how far it would go next, entry by entry.
template <typename Method, typename T>
struct Test {
    const Settings &set;
    const Arrays<T> &at;

    bool takes_part(int64_t b) const {
        return (!at.active || at.active[b]) && !(at.remarks[b] & ~risen);
    }

    // Whether the sample takes a plain step, as far as that is known before.
    bool begins(int64_t b) {
        at.remarks[b] = at.shortened && at.shortened[b] ? shortened : plain;
        if (at.active && !at.active[b]) {
            at.remarks[b] = plain;
            keep(b);
            static_cast<Method *>(this)->rest(b);
        }
        return takes_part(b);
    }

    // A sample that has ended stays where it is.
    void keep(int64_t b) {
        const int64_t n = set.size, start = b * n;
        for (int64_t i = start; i < start + n; i++) at.increment[i] = at.image[i] - at.value[i];
        at.norm[b] = at.old_norm[b];
        at.magnitude[b] = at.old_magnitude[b];
        at.error[b] = std::numeric_limits<T>::infinity();
        at.satisfied[b] = at.hidden[b] = at.vanished[b] = false;
        unchanged(b);
    }

    // The norms of the new point; whether its numbers can be trusted.
    void measure(int64_t b, Sums<T> &sum) {
        const int64_t start = b * set.size;
        at.norm[b] = size_of(sum.residual, at.increment + start);
        at.magnitude[b] = size_of(sum.image, at.image + start);
        sum.state = size_of(sum.state, at.value + start);
        if (!(at.norm[b] < at.old_norm[b])) at.remarks[b] |= risen;
        doubt(b, at.norm[b], set.peaks);
        doubt(b, at.magnitude[b], set.peaks);
    }

    // The norm of a vector of this sum of squares; of its difference from another one.
    T size_of(T square, const T *vector, const T *other = nullptr) const {
        if (!set.peaks || square != square) return std::sqrt(square);
        T most = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < set.size; i++) {
            const T size = std::abs(other ? vector[i] - other[i] : vector[i]);
            most = most < size ? size : most;
        }
        return most;
    }

    void doubt(int64_t b, T size, bool is_peak) {
        if (is_peak && size > 0) return;
        if (size < T(set.smallest) || !(size < std::numeric_limits<T>::infinity()))
            at.remarks[b] |= doubtful;
    }

    // What fixedpoint.convergence.judge finds, of a correction of the length `step`, which is
    // as long as the error where that `is_known`.
    void judge(int64_t b, const Sums<T> &sum, T step, bool is_known = false) {
        const T norm = at.norm[b], length = larger(step, norm);
        doubt(b, step, set.peaks);
        at.hidden[b] = T(set.rounding) * at.magnitude[b] > T(set.fall) * at.highest[b];
        if (!set.on_error) {
            unchanged(b);
            at.vanished[b] = vanishes(b, sum.state);
            at.error[b] = length;
            at.satisfied[b] = residual_passes(b) && !at.hidden[b];
            return;
        }
        note(b, sum);
        at.vanished[b] = vanishes(b, sum.state);
        T guarded = length;
        at.error[b] = is_known ? length : estimated(b, length, guarded);
        const T factor = guarded / (length > 0 ? length : T(1));
        const bool fell = norm <= T(set.fall) * at.new_highest[b];
        bool within = true;
        const bool all = passes(b, factor, sum.state, length, within);
        at.satisfied[b] = fell && !at.hidden[b] && all;
        // Whether zero is an answer is for the solver to ask.
        if (at.satisfied[b] && !within) at.remarks[b] |= doubtful;
        at.new_sizes[2 * b] = length;
        at.new_sizes[2 * b + 1] = at.sizes[2 * b];
    }

    void unchanged(int64_t b) {
        const int64_t parts = set.entries ? set.size : 1;
        at.new_highest[b] = at.highest[b];
        copy(at.largest + b * parts, parts, at.new_largest + b * parts);
        copy(at.sizes + 2 * b, 2, at.new_sizes + 2 * b);
    }

    // Whether nothing is left of a state of which there was something.
    bool vanishes(int64_t b, T state) const {
        if (!set.entries)
            return at.new_largest[b] > 0 && state <= T(set.zero) * at.new_largest[b];
        bool some = false, all = true;
        for (int64_t i = b * set.size; i < (b + 1) * set.size && all; i++) {
            some |= at.new_largest[i] > 0;
            all = std::abs(at.value[i]) <= T(set.zero) * at.new_largest[i];
        }
        return some && all;
    }

    // The amplification by this step, and the largest sizes so far.
    void note(int64_t b, const Sums<T> &sum) {
        const T moved = std::sqrt(sum.moved), changed = std::sqrt(sum.changed);
        doubt(b, moved, false);
        doubt(b, changed, false);
        T *past = at.amplification + b * window, ratio = moved / changed;
        // Rounding errors alone do not make light of the steps before.
        if (!(changed > T(set.roundings) * T(set.rounding) * at.magnitude[b]))
            ratio = larger(ratio, largest_of(past, std::numeric_limits<T>::max()));
        past[at.count % window] = ratio;
        at.new_highest[b] = at.norm[b] > at.highest[b] ? at.norm[b] : at.highest[b];
        const int64_t n = set.size;
        if (!set.entries) {
            doubt(b, sum.state, set.peaks);
            at.new_largest[b] = sum.state > at.largest[b] ? sum.state : at.largest[b];
            return;
        }
        for (int64_t i = b * n; i < (b + 1) * n; i++) {
            const T state = std::abs(at.value[i]);
            at.new_largest[i] = state > at.largest[i] ? state : at.largest[i];
        }
    }

    // The largest amplification that is less than a limit, or that.
    static T largest_of(const T *past, T limit) {
        T most = 0;
        for (int k = 0; k < window; k++) most = past[k] <= limit ? larger(most, past[k]) : most;
        return most;
    }

    // The estimate of the error, and the one that has to be within tolerance.
    T estimated(int64_t b, T length, T &guarded) const {
        const T before = at.sizes[2 * b], earlier = at.sizes[2 * b + 1];
        const T rate = larger(length / before, std::sqrt(length / earlier));
        const T following = length / (rate < 1 ? 1 - rate : T(0));
        const T most = largest_of(at.amplification + b * window,
                                  std::numeric_limits<T>::infinity());
        const T amplified = most / 2 * at.norm[b];
        const T error = larger(following, amplified);
        guarded = larger(error, std::sqrt(length) * std::sqrt(larger(length, before)));
        return error;
    }

    // Whether every part is `within` tolerance, or has become zero.
    bool passes(int64_t b, T factor, T state, T length, bool &within) const {
        if (!set.entries) return part(factor * length, state, at.new_largest[b], within);
        const auto &method = static_cast<const Method &>(*this);
        const int64_t n = set.size;
        bool all = true;
        for (int64_t i = b * n; i < (b + 1) * n && all; i++) {
            const T correction = std::abs(method.correction(i));
            const T share_of_it = larger(correction, std::abs(at.increment[i]));
            all = part(factor * share_of_it, std::abs(at.value[i]), at.new_largest[i], within);
        }
        return all;
    }

    bool part(T left, T state, T most, bool &within) const {
        if (left <= T(set.atol) + T(set.rtol) * state) return true;
        within = false;
        return state + left <= T(set.zero) * most;
    }

    bool residual_passes(int64_t b) const {
        const T norm = at.norm[b];
        if (!(norm <= T(set.fall) * at.first[b] || norm <= T(set.atol))) return false;
        if (!set.entries) return norm <= T(set.atol) + T(set.rtol) * at.magnitude[b];
        const int64_t n = set.size;
        bool all = true;
        for (int64_t i = b * n; i < (b + 1) * n && all; i++) {
            const T target = std::abs(at.value[i] + at.increment[i]);
            all = std::abs(at.increment[i]) <= T(set.atol) + T(set.rtol) * target;
        }
        return all;
    }
};

}  // namespace
}  // namespace FIXEDPOINT_LEVEL
}  // namespace fixedpoint_native
