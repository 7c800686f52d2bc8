// A step of Anderson's method of type II, undamped: fixedpoint/solvers/anderson.py.
// Compiled once for each instruction set, whose name is FIXEDPOINT_LEVEL.
#include "levels.hpp"
#include "test.hpp"

namespace fixedpoint_native {
namespace FIXEDPOINT_LEVEL {
namespace {

// Gram matrices and products of several samples, one in each lane.
struct Systems {
    alignas(64) double matrix[anderson_memory][anderson_memory][lanes];
    alignas(64) double vector[anderson_memory][lanes];
};

template <typename T>
struct AndersonStep : Test<AndersonStep<T>, T> {
    using Base = Test<AndersonStep<T>, T>;
    using Base::at, Base::set, Base::takes_part;

    const AndersonArrays<T> &of;
    Systems systems{};
    Sums<T> sums[lanes];

    AndersonStep(const Settings &set, const Arrays<T> &at, const AndersonArrays<T> &of)
        : Base{set, at}, of(of) {}

    T correction(int64_t i) const { return of.proposal[i] - at.value[i]; }

    void rest(int64_t b) {
        copy(at.value + b * set.size, set.size, of.proposal + b * set.size);
    }

    // The samples of one group.
    void all(int64_t first, int64_t last) {
        for (int lane = 0; lane < lanes; lane++) {
            leave_out(lane);
            if (first + lane < last && this->begins(first + lane)) remember(first + lane, lane);
        }
        solve(first, int(last - first));
        for (int64_t b = first; b < last; b++) {
            if (!takes_part(b)) continue;
            const int lane = int(b - first);
            propose(b, lane);
            const int64_t start = b * set.size;
            const T step = this->size_of(sums[lane].corrected, of.proposal + start,
                                         at.value + start);
            this->judge(b, sums[lane], step);
        }
    }

    // The new increment and the differences, which replace a column of the history; their
    // row of the Gram matrix, and the products with the increment.
    void remember(int64_t b, int lane) {
        const int64_t n = set.size;
        T *history = of.residuals + b * set.memory * n;
        T row[anderson_memory] = {}, products[anderson_memory] = {};
        Sums<T> sum;
        for (int64_t start = 0; start < n; start += block) {
            const int64_t end = smaller<int64_t>(start + block, n);
            differences(b, start, end, sum);
            const T *change = history + at.slot * n + start, *g = at.increment + b * n + start;
            const T *past = history + start;
            int j = 0;
            for (; j + 5 <= at.rows; j += 5)
                multiply<5>(end - start, n, past + j * n, change, g, row + j, products + j);
            for (; j < at.rows; j++)
                multiply<1>(end - start, n, past + j * n, change, g, row + j, products + j);
        }
        sum.changed = row[at.slot];
        this->measure(b, sum);
        sums[lane] = sum;
        check(b, sum.changed);
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

    void differences(int64_t b, int64_t start, int64_t end, Sums<T> &sum) {
        const int64_t n = set.size;
        const T *z = at.value + b * n, *f = at.image + b * n;
        const T *z0 = at.old_value + b * n, *g0 = at.old_increment + b * n;
        T *g = at.increment + b * n;
        T *change = of.residuals + (b * set.memory + at.slot) * n;
        T *moved = of.images + (b * set.memory + at.slot) * n;
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
        if (!(norm < at.old_norm[b] || norm <= of.envelope[b] * of.share))
            at.remarks[b] |= not_accepted;
        if (!(square > rounding * rounding)) at.remarks[b] |= uninformative;
    }

    void place(int64_t b, int lane, const T *row, const T *products) {
        T *gram = of.gram + b * set.memory * set.memory;
        for (int j = 0; j < at.rows; j++)
            gram[at.slot * set.memory + j] = gram[j * set.memory + at.slot] = row[j];
        for (int i = 0; i < at.rows; i++) {
            for (int j = 0; j <= i; j++)
                systems.matrix[i][j][lane] = gram[i * set.memory + j];
            systems.matrix[i][i][lane] *= set.least;
            systems.vector[i][lane] = products[i];
        }
    }

    void leave_out(int lane) {
        for (int i = 0; i < at.rows; i++) {
            for (int j = 0; j <= i; j++) systems.matrix[i][j][lane] = i == j;
            systems.vector[i][lane] = 0;
        }
    }

    // (ΔGᵀΔG + λD²)γ = ΔGᵀg in every lane, by LDLᵀ.
    void solve(int64_t first, int here) {
        auto &a = systems.matrix;
        auto &x = systems.vector;
        for (int j = 0; j < at.rows; j++) {
            alignas(64) double inverse[lanes];
            for (int l = 0; l < lanes; l++) inverse[l] = 1 / a[j][j][l];
            for (int l = 0; l < here; l++)
                if (!(a[j][j][l] > 0)) at.remarks[first + l] |= singular;
            for (int i = j + 1; i < at.rows; i++) {
                alignas(64) double factor[lanes];
                for (int l = 0; l < lanes; l++) factor[l] = a[i][j][l] * inverse[l];
                for (int k = j + 1; k <= i; k++)
                    for (int l = 0; l < lanes; l++) a[i][k][l] -= factor[l] * a[k][j][l];
                for (int l = 0; l < lanes; l++) x[i][l] -= factor[l] * x[j][l];
            }
            for (int l = 0; l < lanes; l++) a[j][j][l] = inverse[l];
        }
        for (int i = at.rows - 1; i >= 0; i--) {
            for (int k = i + 1; k < at.rows; k++)
                for (int l = 0; l < lanes; l++) x[i][l] -= a[k][i][l] * x[k][l];
            for (int l = 0; l < lanes; l++) x[i][l] *= a[i][i][l];
        }
    }

    // z + g − (ΔZ + ΔG)γ, and how far that is from z.
    void propose(int64_t b, int lane) {
        const int64_t n = set.size;
        const T *z = at.value + b * n, *g = at.increment + b * n;
        const T *history = of.images + b * set.memory * n;
        T *next = of.proposal + b * n, minus[anderson_memory];
        for (int j = 0; j < at.rows; j++) minus[j] = -T(systems.vector[j][lane]);
        for (int64_t start = 0; start < n; start += block) {
            const int64_t end = smaller<int64_t>(start + block, n);
#pragma omp simd
            for (int64_t i = start; i < end; i++) next[i] = z[i] + g[i];
            add_all(at.rows, end - start, n, history + start, minus, next + start);
            T corrected = 0;
#pragma omp simd reduction(+ : corrected)
            for (int64_t i = start; i < end; i++)
                corrected += (next[i] - z[i]) * (next[i] - z[i]);
            sums[lane].corrected += corrected;
        }
    }
};

}  // namespace

template <typename T>
void anderson(const Settings &set, const Arrays<T> &at, const AndersonArrays<T> &of,
              int64_t first, int64_t last) {
    AndersonStep<T> step(set, at, of);
    for (; first < last; first += lanes) {
        for (auto &sum : step.sums) sum = {};
        step.all(first, smaller<int64_t>(first + lanes, last));
    }
}

template void anderson(const Settings &, const Arrays<float> &, const AndersonArrays<float> &,
                       int64_t, int64_t);
template void anderson(const Settings &, const Arrays<double> &, const AndersonArrays<double> &,
                       int64_t, int64_t);

}  // namespace FIXEDPOINT_LEVEL
}  // namespace fixedpoint_native
