// A step of Broyden's good method: fixedpoint/solvers/broyden.py.
// Compiled once for each instruction set, whose name is FIXEDPOINT_LEVEL.
#include "levels.hpp"
#include "test.hpp"

namespace fixedpoint_native {
namespace FIXEDPOINT_LEVEL {
namespace {

template <typename T>
struct BroydenStep : Test<BroydenStep<T>, T> {
    using Base = Test<BroydenStep<T>, T>;
    using Base::at, Base::set;

    const BroydenArrays<T> &of;
    // The products uⱼᵀΔz and vⱼᵀg, of the columns that there are.
    T across[broyden_memory], along[broyden_memory];

    BroydenStep(const Settings &set, const Arrays<T> &at, const BroydenArrays<T> &of)
        : Base{set, at}, of(of) {}

    T correction(int64_t i) const { return of.direction[i]; }

    T *column(T *history, int64_t b) const {
        return history + (b * set.memory + at.slot) * set.size;
    }

    void rest(int64_t b) {
        const int64_t n = set.size;
        T *u = column(of.left, b), *v = column(of.right, b), *next = of.direction + b * n;
        for (int64_t i = 0; i < n; i++) u[i] = v[i] = next[i] = 0;
    }

    void sample(int64_t b) {
        if (!this->begins(b)) return;
        Sums<T> sum;
        multiply(b, sum);
        this->measure(b, sum);
        if (!(at.norm[b] < std::numeric_limits<T>::infinity())) at.remarks[b] |= not_accepted;
        if (!this->takes_part(b)) return;
        update(b, sum);
        this->judge(b, sum, this->size_of(sum.corrected, of.direction + b * set.size));
    }

    // The new increment, and the products with the columns.
    void multiply(int64_t b, Sums<T> &sum) {
        const int64_t n = set.size, history = b * set.memory * n;
        const int columns = at.rows - 1;
        for (int j = 0; j < columns; j++) across[j] = along[j] = 0;
        T *move = column(of.right, b);
        for (int64_t start = 0; start < n; start += block) {
            const int64_t length = smaller<int64_t>(block, n - start);
            differences(b, start, start + length, move, sum);
            const T *left = of.left + history + start, *right = of.right + history + start;
            const T *g = at.increment + b * n + start;
            int j = 0;
            for (; j + 5 <= columns; j += 5) {
                products<5>(length, n, left + j * n, move + start, across + j);
                products<5>(length, n, right + j * n, g, along + j);
            }
            for (; j < columns; j++) {
                products<1>(length, n, left + j * n, move + start, across + j);
                products<1>(length, n, right + j * n, g, along + j);
            }
        }
    }

    void differences(int64_t b, int64_t start, int64_t end, T *move, Sums<T> &sum) {
        const int64_t n = set.size;
        const T *z = at.value + b * n, *f = at.image + b * n;
        const T *z0 = at.old_value + b * n, *g0 = at.old_increment + b * n;
        T *g = at.increment + b * n;
        T residual = 0, image = 0, state = 0, step = 0, changed = 0;
#pragma omp simd reduction(+ : residual, image, state, step, changed)
        for (int64_t i = start; i < end; i++) {
            const T now = f[i] - z[i], dz = z[i] - z0[i], dg = now - g0[i];
            g[i] = now;
            move[i] = dz;
            residual += now * now;
            image += f[i] * f[i];
            state += z[i] * z[i];
            step += dz * dz;
            changed += dg * dg;
        }
        sum.residual += residual;
        sum.image += image;
        sum.state += state;
        sum.moved += step;
        sum.changed += changed;
    }

    // Adds the products of some rows, n apart, with a vector.
    template <int R>
    static void products(int64_t length, int64_t n, const T *past, const T *vector, T *sums) {
        T a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0;
#pragma omp simd reduction(+ : a0, a1, a2, a3, a4)
        for (int64_t i = 0; i < length; i++) {
            const T x = vector[i];
            a0 += past[i] * x;
            if constexpr (R == 5) {
                a1 += past[n + i] * x, a2 += past[2 * n + i] * x;
                a3 += past[3 * n + i] * x, a4 += past[4 * n + i] * x;
            }
        }
        sums[0] += a0;
        if constexpr (R == 5) sums[1] += a1, sums[2] += a2, sums[3] += a3, sums[4] += a4;
    }

    // The new column u = −(Δz + HΔg)/(vᵀΔg), v = HᵀΔz, and the direction (H + uvᵀ)g, where
    // HΔg is Hg less the direction of the step.
    void update(int64_t b, Sums<T> &sum) {
        const int64_t n = set.size, history = b * set.memory * n;
        const T *g = at.increment + b * n, *g0 = at.old_increment + b * n, scale = of.scale[b];
        T *v = column(of.right, b), *u = column(of.left, b), *image = of.direction + b * n;
        T across_change = 0, amount = 0, square = 0;
        for (int64_t start = 0; start < n; start += block) {
            const int64_t end = smaller<int64_t>(start + block, n), length = end - start;
#pragma omp simd
            for (int64_t i = start; i < end; i++) {
                v[i] *= scale;
                image[i] = scale * g[i];
            }
            const int columns = at.rows - 1;
            add_all(columns, length, n, of.right + history + start, across, v + start);
            add_all(columns, length, n, of.left + history + start, along, image + start);
            T a = 0, c = 0, s = 0;
#pragma omp simd reduction(+ : a, c, s)
            for (int64_t i = start; i < end; i++) {
                a += v[i] * (g[i] - g0[i]);
                c += v[i] * g[i];
                s += v[i] * v[i];
            }
            across_change += a, amount += c, square += s;
        }
        const T length = std::sqrt(square), size = std::sqrt(sum.changed);
        const bool sound = std::abs(across_change) > T(set.least) * length * size &&
                           size > 4 * T(set.rounding) * at.magnitude[b];
        // No number is lost in a factor that is zero.
        const T factor = sound ? -1 / across_change : T(0);
        const T *before = of.before ? of.before + b * n : nullptr;
        const T *z = at.value + b * n, *z0 = at.old_value + b * n;
        T corrected = 0;
#pragma omp simd reduction(+ : corrected)
        for (int64_t i = 0; i < n; i++) {
            const T direction = before ? before[i] : scale * g0[i];
            const T column = sound ? factor * ((z[i] - z0[i]) + (image[i] - direction)) : T(0);
            v[i] = sound ? v[i] : T(0);
            u[i] = column;
            image[i] += (sound ? amount : T(0)) * column;
            corrected += image[i] * image[i];
        }
        sum.corrected = corrected;
    }
};

}  // namespace

template <typename T>
void broyden(const Settings &set, const Arrays<T> &at, const BroydenArrays<T> &of, int64_t first,
             int64_t last) {
    BroydenStep<T> step(set, at, of);
    for (; first < last; first++) step.sample(first);
}

template void broyden(const Settings &, const Arrays<float> &, const BroydenArrays<float> &,
                      int64_t, int64_t);
template void broyden(const Settings &, const Arrays<double> &, const BroydenArrays<double> &,
                      int64_t, int64_t);

}  // namespace FIXEDPOINT_LEVEL
}  // namespace fixedpoint_native
