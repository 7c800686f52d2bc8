// Compiled once for each instruction set, whose name is FIXEDPOINT_LEVEL.
#include "anderson.hpp"

#include <cmath>
#include <limits>

namespace fixedpoint_native {
namespace FIXEDPOINT_LEVEL {
namespace {

constexpr int lanes = 16;    // samples whose small systems are solved side by side
constexpr int block = 1024;  // entries that are read again while they are near

// Not those of the standard library: a linker may take any level's copy of them for all.
template <typename T>
inline T larger(T a, T b) { return a < b ? b : a; }

template <typename T>
inline T smaller(T a, T b) { return b < a ? b : a; }

template <typename T>
inline void copy(const T *from, int64_t count, T *to) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
}

template <typename T>
struct Sums {
    T residual = 0, image = 0, state = 0, moved = 0, corrected = 0, size = 0;
};

// Gram matrices and products of several samples, one in each lane.
struct Systems {
    alignas(64) double matrix[largest_memory][largest_memory][lanes];
    alignas(64) double vector[largest_memory][lanes];
};

template <typename T>
struct Step {
    const Settings &set;
    const Arrays<T> &at;
    int slot, rows, count;
    T share;  // 1/(steps + 1), of the envelope
    Systems systems{};
    Sums<T> sums[lanes];

    int all() {
        for (int64_t first = 0; first < set.samples; first += lanes) {
            const int here = int(smaller<int64_t>(lanes, set.samples - first));
            for (int lane = 0; lane < lanes; lane++) {
                leave_out(lane);
                if (lane < here && begins(first + lane)) remember(first + lane, lane);
            }
            solve(first, here);
            for (int lane = 0; lane < here; lane++) {
                if (!takes_part(first + lane)) continue;
                propose(first + lane, lane);
                judge(first + lane, lane);
            }
        }
        int any = plain;
        for (int64_t b = 0; b < set.samples; b++) any |= at.remarks[b];
        return any;
    }

    bool takes_part(int64_t b) const {
        return (!at.active || at.active[b]) && !(at.remarks[b] & ~risen);
    }

    // Whether the sample takes a plain step, as far as that is known before.
    bool begins(int64_t b) {
        at.remarks[b] = at.shortened && at.shortened[b] ? shortened : plain;
        if (at.active && !at.active[b]) {
            at.remarks[b] = plain;
            keep(b);
        }
        return takes_part(b);
    }

    // A sample that has ended stays where it is.
    void keep(int64_t b) {
        const int64_t n = set.size, start = b * n;
        for (int64_t i = start; i < start + n; i++) {
            at.increment[i] = at.image[i] - at.value[i];
            at.proposal[i] = at.value[i];
        }
        at.norm[b] = at.old_norm[b];
        at.magnitude[b] = at.old_magnitude[b];
        at.error[b] = std::numeric_limits<T>::infinity();
        at.satisfied[b] = at.hidden[b] = at.vanished[b] = false;
        at.new_highest[b] = at.highest[b];
        const int64_t parts = set.entries ? n : 1;
        copy(at.largest + b * parts, parts, at.new_largest + b * parts);
        copy(at.sizes + 2 * b, 2, at.new_sizes + 2 * b);
    }

    // The new increment and the differences, which replace a column of the history; their
    // row of the Gram matrix, and the products with the increment.
    void remember(int64_t b, int lane) {
        const int64_t n = set.size;
        T *history = at.residuals + b * set.memory * n;
        T row[largest_memory] = {}, products[largest_memory] = {};
        Sums<T> sum;
        for (int64_t start = 0; start < n; start += block) {
            const int64_t end = smaller<int64_t>(start + block, n);
            differences(b, start, end, sum);
            const T *change = history + slot * n + start, *g = at.increment + b * n + start;
            const T *past = history + start;
            int j = 0;
            for (; j + 5 <= rows; j += 5)
                multiply<5>(end - start, n, past + j * n, change, g, row + j, products + j);
            for (; j < rows; j++)
                multiply<1>(end - start, n, past + j * n, change, g, row + j, products + j);
        }
        at.norm[b] = size_of(sum.residual, at.increment + b * n);
        at.magnitude[b] = size_of(sum.image, at.image + b * n);
        sum.size = size_of(sum.state, at.value + b * n);
        sums[lane] = sum;
        check(b, row[slot]);
        if (takes_part(b)) place(b, lane, row, products);
    }

    // Adds the products of some rows, n apart, with two vectors.
    template <int R>
    static void multiply(int64_t length, int64_t n, const T *past, const T *change, const T *g,
                         T *row, T *products) {
        T a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0, b4 = 0;
#pragma omp simd reduction(+ : a0, a1, a2, a3, a4, b0, b1, b2, b3, b4)
        for (int64_t i = 0; i < length; i++) {
            const T x = change[i], y = g[i];
            a0 += past[i] * x, b0 += past[i] * y;
            if constexpr (R == 5) {
                a1 += past[n + i] * x, b1 += past[n + i] * y;
                a2 += past[2 * n + i] * x, b2 += past[2 * n + i] * y;
                a3 += past[3 * n + i] * x, b3 += past[3 * n + i] * y;
                a4 += past[4 * n + i] * x, b4 += past[4 * n + i] * y;
            }
        }
        row[0] += a0, products[0] += b0;
        if constexpr (R == 5) {
            row[1] += a1, row[2] += a2, row[3] += a3, row[4] += a4;
            products[1] += b1, products[2] += b2, products[3] += b3, products[4] += b4;
        }
    }

    // Takes some rows, n apart, times their coefficients from a vector.
    template <int R>
    static void deduct(int64_t length, int64_t n, const T *past, const double *gamma,
                       const T *from, T *to) {
        T c[5] = {};
        for (int j = 0; j < R; j++) c[j] = T(gamma[j * lanes]);
#pragma omp simd
        for (int64_t i = 0; i < length; i++) {
            T left = from[i] - c[0] * past[i];
            if constexpr (R == 5) {
                left -= c[1] * past[n + i] + c[2] * past[2 * n + i];
                left -= c[3] * past[3 * n + i] + c[4] * past[4 * n + i];
            }
            to[i] = left;
        }
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

    void differences(int64_t b, int64_t start, int64_t end, Sums<T> &sum) {
        const int64_t n = set.size;
        const T *z = at.value + b * n, *f = at.image + b * n;
        const T *z0 = at.old_value + b * n, *g0 = at.old_increment + b * n;
        T *g = at.increment + b * n;
        T *change = at.residuals + (b * set.memory + slot) * n;
        T *moved = at.images + (b * set.memory + slot) * n;
        T residual = 0, image = 0, state = 0, step = 0;
#pragma omp simd reduction(+ : residual, image, state, step)
        for (int64_t i = start; i < end; i++) {
            const T now = f[i] - z[i], dz = z[i] - z0[i], dg = now - g0[i];
            g[i] = now;
            change[i] = dg;
            moved[i] = dz + dg;
            residual += now * now;
            image += f[i] * f[i];
            state += z[i] * z[i];
            step += dz * dz;
        }
        sum.residual += residual;
        sum.image += image;
        sum.state += state;
        sum.moved += step;
    }

    // Whether the point is accepted, and the new column tells anything.
    void check(int64_t b, T square) {
        const T norm = at.norm[b], rounding = 4 * T(set.rounding) * at.magnitude[b];
        const bool fell = norm < at.old_norm[b];
        if (!fell) at.remarks[b] |= risen;
        if (!(fell || norm <= at.envelope[b] * share)) at.remarks[b] |= not_accepted;
        if (!(square > rounding * rounding)) at.remarks[b] |= uninformative;
        doubt(b, norm, set.peaks);
        doubt(b, at.magnitude[b], set.peaks);
    }

    void doubt(int64_t b, T size, bool is_peak) {
        if (is_peak && size > 0) return;
        if (size < T(set.smallest) || !(size < std::numeric_limits<T>::infinity()))
            at.remarks[b] |= doubtful;
    }

    void place(int64_t b, int lane, const T *row, const T *products) {
        T *gram = at.gram + b * set.memory * set.memory;
        for (int j = 0; j < rows; j++)
            gram[slot * set.memory + j] = gram[j * set.memory + slot] = row[j];
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j <= i; j++)
                systems.matrix[i][j][lane] = gram[i * set.memory + j];
            systems.matrix[i][i][lane] *= set.diagonal;
            systems.vector[i][lane] = products[i];
        }
    }

    void leave_out(int lane) {
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j <= i; j++) systems.matrix[i][j][lane] = i == j;
            systems.vector[i][lane] = 0;
        }
    }

    // (ΔGᵀΔG + λD²)γ = ΔGᵀg in every lane, by LDLᵀ.
    void solve(int64_t first, int here) {
        auto &a = systems.matrix;
        auto &x = systems.vector;
        for (int j = 0; j < rows; j++) {
            alignas(64) double inverse[lanes];
            for (int l = 0; l < lanes; l++) inverse[l] = 1 / a[j][j][l];
            for (int l = 0; l < here; l++)
                if (!(a[j][j][l] > 0)) at.remarks[first + l] |= singular;
            for (int i = j + 1; i < rows; i++) {
                alignas(64) double factor[lanes];
                for (int l = 0; l < lanes; l++) factor[l] = a[i][j][l] * inverse[l];
                for (int k = j + 1; k <= i; k++)
                    for (int l = 0; l < lanes; l++) a[i][k][l] -= factor[l] * a[k][j][l];
                for (int l = 0; l < lanes; l++) x[i][l] -= factor[l] * x[j][l];
            }
            for (int l = 0; l < lanes; l++) a[j][j][l] = inverse[l];
        }
        for (int i = rows - 1; i >= 0; i--) {
            for (int k = i + 1; k < rows; k++)
                for (int l = 0; l < lanes; l++) x[i][l] -= a[k][i][l] * x[k][l];
            for (int l = 0; l < lanes; l++) x[i][l] *= a[i][i][l];
        }
    }

    // z + g − (ΔZ + ΔG)γ, and how far that is from z.
    void propose(int64_t b, int lane) {
        const int64_t n = set.size;
        const T *z = at.value + b * n, *g = at.increment + b * n;
        const T *history = at.images + b * set.memory * n;
        T *next = at.proposal + b * n;
        for (int64_t start = 0; start < n; start += block) {
            const int64_t end = smaller<int64_t>(start + block, n);
#pragma omp simd
            for (int64_t i = start; i < end; i++) next[i] = z[i] + g[i];
            const double *gamma = &systems.vector[0][lane];
            T *to = next + start;
            int j = 0;
            for (; j + 5 <= rows; j += 5)
                deduct<5>(end - start, n, history + j * n + start, gamma + j * lanes, to, to);
            for (; j < rows; j++)
                deduct<1>(end - start, n, history + j * n + start, gamma + j * lanes, to, to);
            T corrected = 0;
#pragma omp simd reduction(+ : corrected)
            for (int64_t i = start; i < end; i++)
                corrected += (next[i] - z[i]) * (next[i] - z[i]);
            sums[lane].corrected += corrected;
        }
    }

    // What fixedpoint.convergence.judge finds.
    void judge(int64_t b, int lane) {
        const Sums<T> &sum = sums[lane];
        const int64_t start = b * set.size;
        const T step = size_of(sum.corrected, at.proposal + start, at.value + start);
        const T norm = at.norm[b], length = larger(step, norm);
        doubt(b, step, set.peaks);
        at.hidden[b] = T(set.rounding) * at.magnitude[b] > T(set.fall) * at.highest[b];
        if (!set.on_error) {
            unchanged(b);
            at.vanished[b] = vanishes(b, sum.size);
            at.error[b] = length;
            at.satisfied[b] = residual_passes(b) && !at.hidden[b];
            return;
        }
        note(b, sum);
        at.vanished[b] = vanishes(b, sum.size);
        T guarded;
        at.error[b] = estimated(b, length, guarded);
        const T factor = guarded / (length > 0 ? length : T(1));
        const bool fell = norm <= T(set.fall) * at.new_highest[b];
        at.satisfied[b] = fell && !at.hidden[b] && passes(b, factor, sum.size, length);
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
        const T *gram = at.gram + b * set.memory * set.memory;
        const T moved = std::sqrt(sum.moved);
        const T changed = std::sqrt(gram[slot * set.memory + slot]);
        doubt(b, moved, false);
        doubt(b, changed, false);
        at.amplification[b * window + count % window] = moved / changed;
        at.new_highest[b] = at.norm[b] > at.highest[b] ? at.norm[b] : at.highest[b];
        const int64_t n = set.size;
        if (!set.entries) {
            doubt(b, sum.size, set.peaks);
            at.new_largest[b] = sum.size > at.largest[b] ? sum.size : at.largest[b];
            return;
        }
        for (int64_t i = b * n; i < (b + 1) * n; i++) {
            const T state = std::abs(at.value[i]);
            at.new_largest[i] = state > at.largest[i] ? state : at.largest[i];
        }
    }

    // The estimate of the error, and the one that has to be within tolerance.
    T estimated(int64_t b, T length, T &guarded) const {
        const T before = at.sizes[2 * b], earlier = at.sizes[2 * b + 1];
        const T rate = larger(length / before, std::sqrt(length / earlier));
        const T following = length / (rate < 1 ? 1 - rate : T(0));
        const T *past = at.amplification + b * window;
        T most = past[0];
        for (int k = 1; k < window; k++) most = larger(most, past[k]);
        const T amplified = most / 2 * at.norm[b];
        const T error = larger(following, amplified);
        guarded = larger(error, std::sqrt(length) * std::sqrt(larger(length, before)));
        return error;
    }

    bool passes(int64_t b, T factor, T state, T length) const {
        if (!set.entries) return part(factor * length, state, at.new_largest[b]);
        const int64_t n = set.size;
        bool all = true;
        for (int64_t i = b * n; i < (b + 1) * n && all; i++) {
            const T correction = std::abs(at.proposal[i] - at.value[i]);
            const T share_of_it = larger(correction, std::abs(at.increment[i]));
            all = part(factor * share_of_it, std::abs(at.value[i]), at.new_largest[i]);
        }
        return all;
    }

    bool part(T left, T state, T most) const {
        return left <= T(set.atol) + T(set.rtol) * state || state + left <= T(set.zero) * most;
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

template <typename T>
int advance(const Settings &set, const Arrays<T> &at, int slot, int rows, int count, T share) {
    return Step<T>{set, at, slot, rows, count, share}.all();
}

template int advance(const Settings &, const Arrays<float> &, int, int, int, float);
template int advance(const Settings &, const Arrays<double> &, int, int, int, double);

}  // namespace FIXEDPOINT_LEVEL
}  // namespace fixedpoint_native
